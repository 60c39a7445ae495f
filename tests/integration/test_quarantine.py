"""Schedules that raise, lie, dawdle or never answer: left aside alone, and taken up again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from celery.schedules import BaseSchedule, crontab, schedstate, schedule

from celery_misfire.calendars import holiday, weekly
from celery_misfire.leadership.decisions import MOST_BROKEN_TRIES
from celery_misfire.misfire import MisfirePolicy, from_millis, to_millis
from celery_misfire.records import Definition
from celery_misfire.schedules import calendar_interval, cron, daily_time_interval, excluding, simple
from celery_misfire.triggers import time_limit
from celery_misfire.triggers.kinds import trigger_for
from celery_misfire.triggers.time_limit import ANSWER_TIMEOUT, SLOW_THREAD, TimeLimit
from tests.integration.test_leader import HOUR, MINUTE, SECOND, World
from tests.support.processes import wait_for


@pytest.fixture
def world(redis_server: Any) -> Iterator[World]:
    world = World(redis_server.url)
    yield world
    if world.leader is not None:
        world.stop()


@pytest.fixture
def late() -> Iterator[threading.Event]:
    """What a schedule waits for that does not answer; it comes at the end of the test, at last."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for each answer: for schedules that answer at once, however busy the machine is."""
    monkeypatch.setattr(time_limit, "ANSWER_TIMEOUT", 60.0)
    monkeypatch.setattr(time_limit, "SHORT_ANSWER_TIMEOUT", 60.0)


@pytest.fixture
def open_questions() -> Callable[[], int]:
    """How many questions nobody waits for are still being answered, those of earlier tests left out."""
    before = set(threading.enumerate())
    return lambda: sum(t.name == SLOW_THREAD for t in set(threading.enumerate()) - before)


class Minutely(BaseSchedule):
    """Every full minute, once it has done `first`."""

    def __init__(self, first: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.first = first

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        self.first()
        return from_millis((to_millis(last_run_at) // MINUTE + 1) * MINUTE) - self.now()


class Answering(BaseSchedule):
    """Gives the answer it is given to every question."""

    def __init__(self, answer: Any, due: Any = None) -> None:
        super().__init__()
        self.answer, self.due = answer, due

    def remaining_estimate(self, last_run_at: datetime) -> Any:
        return self.answer() if callable(self.answer) else self.answer


class Due(BaseSchedule):
    """The same with is_due."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def is_due(self, last_run_at: datetime) -> Any:
        return self.answer() if callable(self.answer) else self.answer


def raises(error: BaseException) -> Callable[[], None]:
    def answer() -> None:
        raise error

    return answer


def broken(world: World, entry: str = "odd") -> list[dict[str, Any]]:
    return [line for line in world.store.log() if line["event"] == "broken" and line["entry"] == entry]


BROKEN = {
    "raises": (Answering(raises(ZeroDivisionError("on purpose"))), "ZeroDivisionError"),
    "ends the process": (Answering(raises(SystemExit(3))), "RuntimeError"),
    "recursion": (Answering(raises(RecursionError("too deep"))), "RecursionError"),
    "raises a time-out of its own": (Answering(raises(TimeoutError("the database"))), "TimeoutError"),
    "does not move on": (Answering(timedelta(0)), "ValueError"),
    "goes back": (Answering(timedelta(days=-900_000)), "OverflowError"),
    "a number": (Answering(5), "ValueError"),
    "nothing": (Answering(None), "ValueError"),
    "is_due: nothing": (Due(None), "TypeError"),
    "is_due: three things": (Due((1, 2, 3)), "ValueError"),
    "is_due: a wait that is none": (Due(schedstate(False, "soon")), "ValueError"),
    "is_due: at once, for ever": (Due(schedstate(False, 0)), "ValueError"),
    "is_due: never due": (Due(schedstate(False, 1)), "NoAnswer"),
    "is_due: sleeps": (Due(lambda: time.sleep(0.2) or schedstate(True, 60)), "NoAnswer"),
    "a million steps": (Answering(lambda: timedelta(seconds=sum(1 for _ in range(10**7)))), "NoAnswer"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_schedule_is_left_aside_alone_and_mentioned_once(
    world: World, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest, kind: str
) -> None:
    schedule_, error = BROKEN[kind]
    if error != "NoAnswer":
        request.getfixturevalue("patient")
    world.entry("odd", schedule_)
    world.entry("good", schedule(60))
    begin = world.now
    begun = time.monotonic()
    world.start()
    world.run(begin + 5 * MINUTE + SECOND)
    if error != "NoAnswer":
        # The slow ones may have come through in the end.
        assert world.scheduled("odd") == []
    assert [(m.intent.scheduled, m.fire_time) for m in world.sent if m.definition.name == "good"] == [
        (begin + n * MINUTE, begin + n * MINUTE) for n in range(1, 6)
    ]
    assert time.monotonic() - begun < 10
    assert [line["error"] for line in broken(world)] == [error]
    assert caplog.text.count("'odd' cannot be planned and is tried again") == 1
    assert "Traceback" not in caplog.text


@pytest.mark.usefixtures("patient")
def test_a_schedule_that_stays_broken_is_mentioned_each_hour(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.entry("odd", Answering(5))
    world.start()
    world.run(world.now + 150 * MINUTE)
    assert len(broken(world)) == 3
    assert caplog.text.count("cannot be planned and is tried again") == 3


@pytest.mark.usefixtures("patient")
def test_when_it_works_again_what_was_due_meanwhile_is_judged_and_says_why_it_was_late(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fails: list[Exception] = []
    world.entry("odd", Minutely(lambda: fails and raises(fails[0])()), "do_nothing")
    begin = world.now
    world.start()
    world.run(begin + 2 * MINUTE + SECOND)
    fails.append(LookupError("gone"))
    world.run(begin + 10 * MINUTE + SECOND)
    assert world.scheduled() == [begin + MINUTE, begin + 2 * MINUTE]
    assert world.missed == []
    fails.clear()
    world.run(begin + 13 * MINUTE + SECOND)
    (report,) = world.missed
    assert report.missed.reason == "schedule_error"
    assert report.missed.first == from_millis(begin + 3 * MINUTE)
    assert report.missed.count + len(world.scheduled()) == 13
    assert "'odd' can be planned again" in caplog.text


@pytest.mark.usefixtures("patient")
def test_what_fell_into_an_outage_before_it_broke_was_missed_for_the_outage(world: World) -> None:
    fails: list[Exception] = []
    world.entry("odd", Minutely(lambda: fails and raises(fails[0])()), "do_nothing")
    begin = world.now
    world.start()
    world.stop()
    world.now += 10 * MINUTE + SECOND
    fails.append(LookupError("gone"))
    world.start()
    world.run(world.now + MINUTE)
    fails.clear()
    world.run(world.now + MINUTE)
    (report,) = world.missed
    assert (report.missed.reason, report.missed.first) == ("scheduler_down", from_millis(begin + MINUTE))


def test_one_that_does_not_answer_holds_nobody_up_and_is_planned_when_it_does(
    world: World,
    late: threading.Event,
    open_questions: Callable[[], int],
    request: pytest.FixtureRequest,
) -> None:
    world.entry("odd", Minutely(late.wait))
    world.entry("good", schedule(60))
    begin = world.now
    world.start()
    world.run(begin + 3 * MINUTE + SECOND)
    assert len(world.scheduled("good")) == 3
    # The question stays open and is not put again and again.
    assert open_questions() == 1
    late.set()
    wait_for(lambda: open_questions() == 0)
    request.getfixturevalue("patient")
    world.run(begin + 8 * MINUTE + SECOND)
    assert len(world.scheduled("good")) == 8
    on_time = [m.fire_time for m in world.sent if m.definition.name == "odd"][1:]
    assert on_time
    assert on_time == [begin + n * MINUTE for n in range(9 - len(on_time), 9)]


def test_one_that_is_always_slow_runs_all_the_same(world: World, open_questions: Callable[[], int]) -> None:
    world.entry("odd", Minutely(lambda: time.sleep(2 * ANSWER_TIMEOUT)), "ignore_misfire_policy")
    begin = world.now
    world.start()
    for _ in range(5):
        # The time that it really takes, so that it is there with its answer at the next try.
        wait_for(lambda: open_questions() == 0)
        world.run(world.now + MINUTE)
    wait_for(lambda: open_questions() == 0)
    world.run(world.now + 30 * SECOND)
    ran = world.scheduled("odd")
    assert len(ran) >= 4
    assert ran == [ran[0] + n * MINUTE for n in range(len(ran))]
    assert ran[0] <= begin + 2 * MINUTE
    assert len(broken(world)) == 1


def test_one_that_is_due_again_before_it_has_answered_is_not_asked_from_the_beginning_each_time(
    world: World,
) -> None:
    class Dawdling(Due):
        """Every second."""

        def is_due(self, last_run_at: datetime) -> schedstate:
            time.sleep(ANSWER_TIMEOUT)
            return schedstate(self.now() > last_run_at, 1)

    world.entry("odd", Dawdling(None), "ignore_misfire_policy")
    leader, begun, begin = world.start(), time.monotonic(), world.now

    def has_run() -> bool:
        # In real time, as here it matters how long it takes to answer.
        world.now = begin + round((time.monotonic() - begun) * 1000)
        leader.tick()
        return len(world.scheduled()) >= 3

    wait_for(has_run, 30, every=0.02)
    assert world.scheduled() == [world.scheduled()[0] + n * SECOND for n in range(len(world.scheduled()))]


def test_a_hundred_that_do_not_answer_cost_the_start_a_few_seconds_and_then_nothing(
    world: World, late: threading.Event
) -> None:
    for n in range(100):
        world.entry(f"odd {n}", Minutely(late.wait))
    world.entry("good", schedule(1))
    begun = time.monotonic()
    world.start()
    assert time.monotonic() - begun < 10
    begun = time.monotonic()
    world.run(world.now + MINUTE)
    assert len(world.scheduled("good")) == 60
    assert time.monotonic() - begun < 10


def test_a_slow_schedule_under_a_calendar_is_left_aside_too(world: World, late: threading.Event) -> None:
    world.entry("odd", excluding(Minutely(late.wait), weekly(["SUN"])))
    world.entry("good", schedule(60))
    begun = time.monotonic()
    world.start()
    world.run(world.now + MINUTE)
    assert time.monotonic() - begun < 10
    assert len(world.scheduled("good")) == 1
    assert len(broken(world)) == 1


def test_a_run_in_doubt_of_a_schedule_that_became_slow_is_sent_again(
    world: World,
    late: threading.Event,
    open_questions: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow: list[bool] = []
    world.entry("odd", Minutely(lambda: slow and late.wait()))
    world.start()
    commit, calls = world.store.commit, []

    def dies_after_the_claim(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return commit(*args)

    monkeypatch.setattr(world.store, "commit", dies_after_the_claim)
    # It is not slow yet, whatever else this machine does.
    monkeypatch.setattr("celery_misfire.triggers.time_limit.ANSWER_TIMEOUT", 30.0)
    with pytest.raises(KeyboardInterrupt):
        world.run(world.now + MINUTE)
    monkeypatch.undo()
    world.crash()
    slow.append(True)
    world.entry("odd", Minutely(lambda: slow and late.wait()))
    world.start()
    world.run(world.now + 30 * SECOND)
    late.set()
    wait_for(lambda: open_questions() == 0)
    world.run(world.now + 90 * SECOND)
    first, second, *_ = world.sent
    assert first.task_id == second.task_id


# -- edits --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_an_entry_edited_to_a_schedule_that_works_later_is_planned_from_then_on(world: World) -> None:
    world.entry("odd", crontab(minute=0), "ignore_misfire_policy")
    begin = world.now
    world.start()
    world.run(begin + 10 * MINUTE)
    fails = [LookupError("gone")]
    world.entry("odd", Minutely(lambda: fails and raises(fails[0])()), "ignore_misfire_policy")
    assert world.leader is not None
    world.leader.adopt(world.definitions)
    # The full hour was a fire time of the old schedule.
    world.run(begin + 70 * MINUTE)
    fails.clear()
    world.run(begin + 75 * MINUTE + SECOND)
    ran = world.scheduled()
    assert ran
    assert ran == [begin + n * MINUTE for n in range(76 - len(ran), 76)]
    assert ran[0] > begin + 70 * MINUTE
    assert world.missed == []


@pytest.mark.usefixtures("patient")
def test_a_broken_schedule_that_is_edited_works_at_once(world: World) -> None:
    world.entry("odd", Answering(5))
    world.start()
    # Just after a try, and so long before the next.
    world.run(world.now + HOUR + 4 * SECOND)
    world.entry("odd", schedule(5))
    assert world.leader is not None
    world.leader.adopt(world.definitions)
    begin = world.now
    world.run(begin + 11 * SECOND)
    assert world.scheduled() == [begin + 5 * SECOND, begin + 10 * SECOND]


class Moody(Minutely):
    """Changes with every question."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.history = 0, [0]

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        self.asked += 1
        self.history.append(self.asked)
        # From a second question on it would be late by an hour.
        return super().remaining_estimate(last_run_at) + timedelta(hours=self.asked - 1)


@pytest.mark.usefixtures("patient")
def test_a_schedule_that_changes_when_it_is_asked_is_itself_at_each_question_and_not_edited(
    world: World,
) -> None:
    moody = Moody()
    definition = Definition("odd", "shop.odd", trigger_for(moody), MisfirePolicy())
    world.definitions = [definition]
    begin = world.now
    leader = world.start()
    world.run(begin + 2 * MINUTE + SECOND)
    # Each entry gets a new trigger, as when any entry is added.
    world.definitions = [Definition("odd", "shop.odd", trigger_for(moody), MisfirePolicy())]
    leader.adopt(world.definitions)
    world.run(begin + 4 * MINUTE + SECOND)
    assert world.scheduled() == [begin + n * MINUTE for n in range(1, 5)]
    assert len({m.intent.generation for m in world.sent}) == 1
    assert moody.asked == 0


class Dates(Mapping[date, str]):
    """Dates that the app looks up when it is asked."""

    def __getitem__(self, key: date) -> str:
        raise KeyError(key)

    def __iter__(self) -> Iterator[date]:
        return iter(())

    def __len__(self) -> int:
        return 0


COMPUTED = [
    schedule(5),
    schedule(5, relative=True),
    crontab(),
    simple(interval=5),
    cron("0 0 12 * * ?"),
    daily_time_interval(1, "hour", "08:00", "17:00"),
    calendar_interval(1, "month"),
    excluding(crontab(), weekly(["SUN"])),
    excluding(crontab(), holiday([date(2026, 1, 1)], base=holiday({date(2026, 1, 6): "Epiphany"}))),
]
FOREIGN = [
    Minutely(),
    excluding(Minutely(), weekly(["SUN"])),
    excluding(crontab(), weekly(["SUN"], base=holiday(Dates()))),
]


@pytest.mark.parametrize("computed", COMPUTED, ids=str)
def test_a_schedule_that_is_computed_is_asked_without_a_thread(computed: BaseSchedule) -> None:
    trigger = trigger_for(computed)
    assert not trigger.runs_foreign_code
    assert TimeLimit().limited(trigger) is trigger


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_schedule_that_runs_code_of_the_app_is_asked_with_a_time_limit(foreign: BaseSchedule) -> None:
    trigger = trigger_for(foreign)
    assert trigger.runs_foreign_code
    limited = TimeLimit().limited(trigger)
    assert limited is not trigger
    assert limited.runs_foreign_code


@pytest.mark.usefixtures("patient")
def test_however_many_are_broken_one_step_tries_a_few_of_them_and_all_get_their_turn(world: World) -> None:
    tried: list[int] = []

    def fails(n: int) -> Callable[[], object]:
        def fail() -> object:
            tried.append(n)
            raise RuntimeError("no idea")

        return fail

    for n in range(300):
        world.entry(f"odd {n}", Minutely(fails(n)))
    leader = world.start()
    tried.clear()
    world.now += 2 * SECOND
    steps = 0
    while len(set(tried)) < 300:
        before = len(tried)
        leader.tick()
        assert len(tried) - before <= MOST_BROKEN_TRIES
        steps += 1
        assert steps <= 30
