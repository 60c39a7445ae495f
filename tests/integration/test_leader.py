"""The leader on a virtual clock and a real Redis; only the broker and the reporter are stand-ins."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab, schedule
from cronsim import CronSim

from celery_misfire import fire, records
from celery_misfire.clocks import uptime
from celery_misfire.events import Event, Misfired
from celery_misfire.exceptions import (
    BrokerUnavailable,
    LeaseLost,
    MisfireError,
    PublishRejected,
    StoreUnavailable,
)
from celery_misfire.leadership.decisions import LARGEST_BATCH
from celery_misfire.leadership.leader import Leader
from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.ledger import Outdated
from celery_misfire.leadership.pending_misses import LARGEST_PORTION
from celery_misfire.misfire import MisfirePolicy, from_millis, to_millis
from celery_misfire.records import Definition
from celery_misfire.schedules import simple
from celery_misfire.sending.dispatch import Attempt, Fate, Message
from celery_misfire.sending.missed_runs import Report
from celery_misfire.store import registers
from celery_misfire.store.port import Change
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.store.state_mark import Destination
from celery_misfire.triggers.kinds import trigger_for
from tests.support.past import long_sleeps

DAY = datetime(2026, 3, 2, tzinfo=UTC)
SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000


@dataclass
class World:
    """One Redis, one clock, one broker; beats come and go."""

    url: str
    now: int = field(default_factory=lambda: to_millis(DAY))
    sent: list[Message] = field(default_factory=list)
    missed: list[Report] = field(default_factory=list)
    told: list[Misfired] = field(default_factory=list)
    definitions: list[Definition] = field(default_factory=list)
    refuses: Callable[[Message], Exception | None] = lambda _: None
    broker_is_up: bool = True
    each: bool = False
    resume_misfires: bool = False
    ahead: int = 0
    leader: Leader | None = None

    def entry(
        self, name: str, schedule_: object, policy: MisfirePolicy | str | None = "smart_policy"
    ) -> None:
        if isinstance(policy, str):
            policy = MisfirePolicy(policy)
        self.definitions = [d for d in self.definitions if d.name != name]
        self.definitions.append(Definition(name, f"shop.{name}", trigger_for(schedule_), policy))

    def start(self) -> Leader:
        self.store = RedisStore(self.url, "test")
        # The clock of Redis is as virtual as beat's.
        self.store.time = lambda: self.now - self.ahead
        self.lease = Lease(self.store, 3600, 1200)
        self.leader = Leader(
            self.store,
            self.lease,
            self,
            self,
            namespace="test",
            listeners=[self.hear],
            each=self.each,
            resume_misfires=self.resume_misfires,
            wall=lambda: self.now,
            steady=lambda: self.now / 1000,
        )
        acquired = self.lease.acquire()
        assert acquired
        self.leader.take_over(acquired, self.definitions)
        return self.leader

    def stop(self) -> None:
        self.lease.release()
        self.leader = None

    def crash(self) -> None:
        """End without a word; the lease is free at once, so that no test has to wait for it."""
        self.stop()

    def run(self, until: int) -> None:
        """Let the leader work, and the time pass where it would sleep."""
        with long_sleeps():
            while True:
                delay = self.leader.tick()
                if not delay:
                    continue
                if self.now + max(1, round(delay * 1000)) > until:
                    self.now = until
                    while not self.leader.tick():
                        pass
                    return
                self.now += max(1, round(delay * 1000))

    def scheduled(self, name: str | None = None) -> list[int]:
        return [m.intent.scheduled for m in self.sent if name in (None, m.definition.name)]

    # Publisher
    def connect(self) -> None:
        if not self.broker_is_up:
            raise BrokerUnavailable("down")

    was_asked = True

    def read(self, key: str) -> None:
        """It is no Redis."""

    def destination(self, keys: Sequence[str]) -> Destination:
        return Destination("memory", "", "celery")

    def publish(self, message: Message) -> Attempt:
        error = self.refuses(message)
        if error is None:
            self.sent.append(message)
            return Attempt(Fate.SENT)
        return Attempt(Fate.REFUSED if isinstance(error, PublishRejected) else Fate.IN_DOUBT, error)

    # Reporter
    def submit(self, report: Report) -> None:
        self.missed.append(report)
        self._done.append(report)

    def finished(self) -> list[Report]:
        done, self._done = self._done, []
        return done

    def hear(self, events: Sequence[Event]) -> None:
        self.told += [event for event in events if isinstance(event, Misfired)]

    _done: list[Report] = field(default_factory=list)


@pytest.fixture
def world(redis_server) -> Iterable[World]:
    world = World(redis_server.url)
    yield world
    if world.leader is not None:
        world.stop()


# -- restarts -----------------------------------------------------------------------------------------------


def test_a_daily_interval_keeps_its_grid_although_beat_is_restarted_every_hour(world):
    world.entry("daily", schedule(timedelta(days=1)))
    begin = world.now
    for hour in range(1, 3 * 24 + 2):
        world.start()
        world.run(begin + hour * HOUR - 5 * MINUTE)
        world.crash() if hour % 2 else world.stop()
        world.now = begin + hour * HOUR - 10 * SECOND
    assert world.scheduled() == [begin + days * 24 * HOUR for days in (1, 2, 3)]
    assert world.missed == []


TRANSITIONS = [
    (zone, year, month)
    for zone, months in {
        "America/New_York": (3, 11),
        "Europe/Berlin": (3, 10),
        "Australia/Lord_Howe": (4, 10),
    }.items()
    for year in (2026, 2027, 2028)
    for month in months
]


def transition(zone: str, year: int, month: int) -> datetime:
    """Return the moment in UTC, by asking each quarter of an hour of the month."""
    zone_ = ZoneInfo(zone)
    moment = datetime(year, month, 1, tzinfo=UTC)
    while (
        moment.astimezone(zone_).utcoffset() == (moment + timedelta(minutes=15)).astimezone(zone_).utcoffset()
    ):
        moment += timedelta(minutes=15)
    return moment + timedelta(minutes=15)


def expected(expression: str, zone: str, begin: datetime, end: datetime) -> list[datetime]:
    """Return the fire times in UTC by an independent judge."""
    zone_ = ZoneInfo(zone)
    minute, hour, *_ = expression.split()
    if zone == "Australia/Lord_Howe" and "*" in (minute[0], hour[0]):
        # CronSim leaps over the second pass of a repeated half hour; here every minute is looked at.
        minutes = [begin.replace(second=0, microsecond=0) + timedelta(minutes=m) for m in range(1, 600)]
        walls = [(m, m.astimezone(zone_)) for m in minutes if m <= end]
        wanted = range(0, 60, int(minute[2:])) if minute[0] == "*" else [int(minute)]
        return [m for m, wall in walls if wall.minute in wanted]
    found = []
    for moment in CronSim(expression, begin.astimezone(zone_)):
        if moment > end:
            return found
        found.append(moment.astimezone(UTC))
    raise AssertionError("it never ends")


@pytest.mark.parametrize(("zone", "year", "month"), TRANSITIONS)
def test_each_expected_run_happens_once_across_a_clock_change_with_restarts_in_the_repeated_hour(
    world, zone, year, month
):
    expressions = {
        "hourly": "0 * * * *",
        "half-hourly": "*/30 * * * *",
        "at half past": "30 * * * *",
        "1:30": "30 1 * * *",
        "1:45": "45 1 * * *",
        "2:00": "0 2 * * *",
        "2:15": "15 2 * * *",
        "2:30": "30 2 * * *",
        "3:00": "0 3 * * *",
    }
    change = transition(zone, year, month)
    begin, end = change - timedelta(hours=4, minutes=7), change + timedelta(hours=5)
    world.now = to_millis(begin)
    for name, expression in expressions.items():
        minute, hour, *_ = expression.split()
        made = crontab(minute=minute, hour=hour)
        made.tz = ZoneInfo(zone)
        world.entry(name, made, MisfirePolicy("ignore_misfire_policy"))
    world.start()
    # Away twice: into the repeated hour, and from inside it to past its end.
    for away_from, away_to in ((-70, -20), (10, 35), (50, 95)):
        world.run(to_millis(change + timedelta(minutes=away_from)))
        world.crash()
        world.now = to_millis(change + timedelta(minutes=away_to))
        world.start()
    world.run(to_millis(end))
    for name, expression in expressions.items():
        ran = sorted(from_millis(m) for m in world.scheduled(name))
        assert ran == expected(expression, zone, begin, end), name


def test_what_was_claimed_and_not_acknowledged_is_sent_again_under_the_same_id(world, monkeypatch):
    world.entry("report", simple(start=DAY + timedelta(seconds=10), repeat_count=0))
    world.start()
    commit, calls = world.store.commit, []

    def dies_after_the_claim(*args):
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return commit(*args)

    monkeypatch.setattr(world.store, "commit", dies_after_the_claim)
    with pytest.raises(KeyboardInterrupt):
        world.run(world.now + 11 * SECOND)
    monkeypatch.undo()
    world.crash()
    world.now += HOUR
    world.start()
    world.run(world.now + HOUR)
    first, second = world.sent
    assert first.task_id == second.task_id
    assert world.missed == []


def test_a_cold_take_over_that_was_interrupted_leaves_its_line_in_the_log(world, monkeypatch):
    world.entry("a", schedule(60))
    world.start()
    world.stop()
    world.store._redis.delete("celery-misfire:{test}:state", "celery-misfire:{test}:log")
    commit = RedisStore.commit

    def away(store, token, changes, log=(), *more):
        if any(line["event"] == "lead" for line in log):
            raise StoreUnavailable("away")
        return commit(store, token, changes, log, *more)

    monkeypatch.setattr(RedisStore, "commit", away)
    with pytest.raises(StoreUnavailable):
        world.start()
    monkeypatch.undo()
    world.lease.release()
    world.start()
    assert [line["cold"] for line in world.store.log() if line["event"] == "lead"] == [True]


@pytest.mark.parametrize("before", ["", "something was decided"])
def test_a_take_over_without_a_state_says_so_once_though_it_is_interrupted(
    world, monkeypatch, caplog, before
):
    caplog.set_level("INFO")
    if before:
        store = RedisStore(world.url, "test")
        store.acquire("past", 10)
        store.commit("past", [], [{"event": before}])
        store.release("past")

    def away(*_):
        raise StoreUnavailable("away")

    with monkeypatch.context() as broken:
        # The first line is in the log by then.
        broken.setattr(RedisStore, "write_meta", away)
        with pytest.raises(StoreUnavailable, match="away"):
            world.start()
    world.lease.release()
    world.leader.take_over(world.lease.acquire(), world.definitions)
    said = [text for text in caplog.messages if "every schedule is planned from now" in text]
    assert len(said) == 1
    assert ("the saved schedule was lost" in said[0]) is bool(before)
    # A state that is lost in a later term is news.
    world.lease.release()
    world.lease.superseded = True
    world.store._redis.flushall()
    world.leader.take_over(world.lease.acquire(), world.definitions)
    assert caplog.text.count("the saved schedule was lost") == 1 + bool(before)


def test_a_record_that_cannot_be_read_is_told_once_though_the_take_over_is_interrupted(
    world, monkeypatch, caplog
):
    world.entry("a", schedule(60))
    world.start()
    world.stop()
    world.store._redis.hset("celery-misfire:{test}:state", "e:gone", "no record")

    def away(*_, **__):
        raise StoreUnavailable("away")

    with monkeypatch.context() as broken:
        broken.setattr(RedisStore, "commit", away)
        with pytest.raises(StoreUnavailable, match="away"):
            world.start()
    world.lease.release()
    world.leader.take_over(world.lease.acquire(), world.definitions)
    assert caplog.text.count("the state of entry 'gone' cannot be used") == 1


@pytest.mark.parametrize(("frozen", "reason"), [(True, "scheduler_down"), (False, "store_unavailable")])
def test_a_beat_that_was_frozen_does_not_blame_the_store(world, monkeypatch, frozen, reason):
    world.entry("a", schedule(60), "do_nothing")
    begin, leader = world.now, world.start()
    world.run(begin + 30 * SECOND)
    # The lease has run out meanwhile, and nobody else has taken it.
    world.now = begin + 5 * MINUTE
    monkeypatch.setattr(world.lease, "was_frozen", lambda: frozen)
    leader.take_over(world.lease.acquire(), world.definitions)
    world.run(world.now + SECOND)
    assert [line["reason"] for line in world.store.log() if line["event"] == "lead"][1:] == [reason]
    (report,) = world.missed
    assert (report.missed.reason, report.missed.count) == (reason, 5)


# -- the broker ---------------------------------------------------------------------------------------------


def test_while_the_broker_is_away_nothing_is_claimed_and_what_is_late_then_is_judged(world):
    world.entry("all", schedule(60), "ignore_misfire_policy")
    world.entry("none", schedule(60), "do_nothing")
    begin = world.now
    world.start()
    world.run(begin + 61 * SECOND)
    world.broker_is_up = False
    world.refuses = lambda _: BrokerUnavailable("gone")
    world.run(begin + 5 * 60 * SECOND + 40 * SECOND)
    world.broker_is_up, world.refuses = True, lambda _: None
    world.run(begin + 6 * 60 * SECOND + SECOND)
    assert sorted(world.scheduled("all")) == [begin + n * MINUTE for n in range(1, 7)]
    on_time = world.scheduled("none")
    lost = [
        m
        for r in world.missed
        for m in range(to_millis(r.missed.first), to_millis(r.missed.last) + 1, MINUTE)
    ]
    assert sorted(on_time + lost) == [begin + n * MINUTE for n in range(1, 7)]
    assert {r.missed.reason for r in world.missed} == {"broker_unavailable"}


@pytest.mark.parametrize("instruction", ["do_nothing", "fire_once_now", "ignore_misfire_policy"])
def test_what_was_claimed_when_the_broker_failed_and_what_came_due_after_it_is_one_episode(
    world, instruction
):
    world.entry("a", schedule(60), instruction)
    begin = world.now
    world.start()
    world.run(begin + MINUTE - SECOND)
    world.store.watch("worker", 3600, 3600)
    world.refuses = lambda _: BrokerUnavailable("gone")
    world.run(begin + MINUTE)
    world.broker_is_up = False
    world.run(begin + 3 * MINUTE + 40 * SECOND)
    world.broker_is_up, world.refuses = True, lambda _: None
    world.run(begin + 3 * MINUTE + 50 * SECOND)
    [told] = world.told
    assert (told.first, told.count, told.reason) == (begin + MINUTE, 3, "broker_unavailable")
    runs = [(m.intent.scheduled, m.intent.merged) for m in world.sent]
    records = [(to_millis(r.missed.first), r.missed.count) for r in world.missed]
    assert (runs, records) == {
        "do_nothing": ([], [(begin + MINUTE, 3)]),
        "fire_once_now": ([(begin + MINUTE, 2)], []),
        "ignore_misfire_policy": ([(begin + n * MINUTE, 0) for n in (1, 2, 3)], []),
    }[instruction]


@pytest.mark.parametrize("instruction", ["do_nothing", "fire_once_now", "fire_now", "ignore_misfire_policy"])
def test_a_broker_that_takes_connections_and_no_messages_is_one_outage(world, instruction):
    world.entry("a", schedule(5), MisfirePolicy(instruction, threshold=2))
    begin = world.now
    world.start()
    world.run(begin + 4 * SECOND)
    world.store.watch("worker", 3600, 3600)
    world.refuses = lambda _: BrokerUnavailable("gone")
    world.run(begin + 63 * SECOND)
    world.refuses = lambda _: None
    world.run(begin + 130 * SECOND)
    [told] = world.told
    assert told.reason == "broker_unavailable"
    assert told.first == begin + 5 * SECOND
    late = [m for m in world.sent if m.intent.outcome == "recovered"]
    ran = {"do_nothing": 0, "ignore_misfire_policy": told.count}.get(instruction, 1)
    assert len(late) == ran
    assert [r.missed.count for r in world.missed] == ([told.count] if instruction == "do_nothing" else [])
    assert told.count >= 11


def test_a_broker_that_takes_connections_and_no_messages_does_not_delay_a_verdict_for_long(world):
    world.entry("a", schedule(3600), "do_nothing")
    begin = world.now
    world.start()
    world.run(begin + HOUR - SECOND)
    world.store.watch("worker", 3600, 3600)
    world.refuses = lambda _: BrokerUnavailable("gone")
    world.run(begin + HOUR + 5 * MINUTE)
    assert [r.missed.count for r in world.missed] == [1]


def test_what_comes_due_while_the_broker_is_waited_for_is_part_of_the_outage(world, monkeypatch):
    world.entry("a", schedule(60), "do_nothing")
    begin, leader = world.now, world.start()
    world.run(begin + 30 * SECOND)
    leader._broker.failed(BrokerUnavailable("gone"))
    connect = leader._dispatch.connect

    def slow() -> None:
        world.now = begin + 3 * MINUTE + 10 * SECOND
        connect()

    monkeypatch.setattr(leader._broker, "_connect", slow)
    world.now = begin + 2 * MINUTE + 45 * SECOND
    leader.tick()
    [told] = world.told
    assert (told.first, told.count, told.reason) == (begin + MINUTE, 3, "broker_unavailable")


def test_a_record_of_a_refused_run_says_which_instruction_was_asked_for(world):
    world.entry("a", schedule(60), MisfirePolicy("fire_once_now", threshold=10))
    world.entry("b", simple(start=DAY, interval=60, repeat_count=9), MisfirePolicy(threshold=10))
    world.refuses = lambda _: PublishRejected("EncodeError")
    begin = world.now
    world.start()
    world.run(begin + 2 * MINUTE + 30 * SECOND)
    told = {(r.missed.entry, str(r.missed.reason), str(r.missed.instruction)) for r in world.missed}
    rejected = {(entry, instruction) for entry, reason, instruction in told if reason == "publish_rejected"}
    assert ("a", "fire_once_now") in rejected
    assert ("b", "reschedule_now_with_existing_repeat_count") in rejected


def test_refused_runs_that_are_given_up_together_have_one_record(world):
    world.entry("a", schedule(1), MisfirePolicy("fire_once_now", threshold=5))
    world.refuses = lambda _: PublishRejected("EncodeError")
    begin = world.now
    world.start()
    world.run(begin + 20 * MINUTE)
    covered = Counter()
    for report in world.missed:
        span = range(to_millis(report.missed.first), to_millis(report.missed.last) + 1, SECOND)
        assert len(span) == report.missed.count
        covered.update(span)
    assert set(covered.values()) == {1}
    assert len(world.missed) < sum(covered.values()) / 10


def test_a_late_run_that_a_worker_has_left_to_beat_just_before_it_was_acknowledged_is_recorded(world):
    world.entry("a", schedule(60), MisfirePolicy("do_nothing", threshold=10))
    begin = world.now
    world.start()

    def slow(message: Message) -> None:
        # The broker takes it at last, and so does a worker.
        world.now += 20 * SECOND
        world.store.settle([message.task_id], registers.Missed("queue_late"))

    world.refuses = slow
    world.run(begin + MINUTE)
    world.refuses = lambda _: None
    world.run(begin + MINUTE + 40 * SECOND)
    [report] = world.missed
    assert (to_millis(report.missed.first), report.missed.count) == (begin + MINUTE, 1)
    assert len(world.told) == 1


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_late_run_that_a_worker_leaves_to_beat_while_it_is_acknowledged_is_recorded(
    world, monkeypatch, is_killed
):
    world.entry("a", schedule(60), MisfirePolicy("do_nothing", threshold=10))
    begin = world.now
    world.start()
    world.store.watch("worker", 3600, 3600)
    right, sent = world.store.commit, list[str]()

    class Killed(BaseException):
        pass

    def slow(message: Message) -> None:
        world.now += 20 * SECOND
        sent.append(message.task_id)

    def commit(*args: object, **kwargs: object) -> object:
        if not sent:
            return right(*args, **kwargs)
        world.store.settle([sent.pop()], registers.Missed("queue_late"))
        result = right(*args, **kwargs)
        if is_killed:
            raise Killed
        return result

    world.refuses = slow
    with monkeypatch.context() as patched:
        patched.setattr(world.store, "commit", commit)
        with pytest.raises(Killed) if is_killed else nullcontext():
            world.run(begin + MINUTE)
    world.refuses = lambda _: None
    if is_killed:
        world.crash()
        world.start()
    world.run(begin + MINUTE + 40 * SECOND)
    [report] = world.missed
    assert (to_millis(report.missed.first), report.missed.count) == (begin + MINUTE, 1)


def test_a_message_in_doubt_is_sent_again_however_late_and_never_called_missed(world):
    world.entry("none", schedule(60), "do_nothing")
    begin = world.now
    world.start()

    def arrives_and_breaks(message: Message) -> Exception:
        world.sent.append(message)
        return BrokerUnavailable("gone")

    world.refuses = arrives_and_breaks
    world.run(begin + MINUTE + SECOND)
    world.broker_is_up = False
    world.run(begin + 4 * MINUTE + SECOND)
    world.broker_is_up, world.refuses = True, lambda _: None
    world.run(begin + 5 * MINUTE + SECOND)
    ids = [m.task_id for m in world.sent if m.intent.scheduled == begin + MINUTE]
    assert len(ids) >= 2
    assert len(set(ids)) == 1
    assert all(to_millis(r.missed.first) > begin + MINUTE for r in world.missed)
    assert sum(r.missed.count for r in world.missed) + len(set(world.scheduled())) == 5


def test_a_message_that_is_refused_is_tried_again_and_then_recorded_while_the_others_go_on(world):
    world.entry("bad", schedule(60))
    world.entry("good", schedule(60))
    begin = world.now
    tries = []

    def refuses(message: Message) -> Exception | None:
        if message.definition.name != "bad":
            return None
        tries.append(message)
        return PublishRejected("EncodeError")

    world.refuses = refuses
    world.start()
    world.run(begin + 10 * MINUTE + SECOND)
    assert world.scheduled("good") == [begin + n * MINUTE for n in range(1, 11)]
    assert len(tries) > 10
    assert {r.missed.reason for r in world.missed} == {"publish_rejected"}
    assert {r.missed.entry for r in world.missed} == {"bad"}
    # A run that waits for its next try is not tried at every later run as well.
    assert max(Counter(m.intent.scheduled for m in tries).values()) < 8
    world.refuses = lambda _: None
    world.run(begin + 20 * MINUTE + SECOND)
    decided = Counter(world.scheduled("bad")) + Counter(to_millis(r.missed.first) for r in world.missed)
    assert decided == Counter(begin + n * MINUTE for n in range(1, 21))


class Raising:
    trigger_type, interval, fingerprint, broken = "cron", None, "raising", True

    def __init__(self) -> None:
        self._sound = trigger_for(crontab())

    def first_state(self, now):
        return self._sound.first_state(now)

    def fire_times(self, state):
        if self.broken:
            raise RuntimeError("no idea")
        return self._sound.fire_times(state)


def test_an_entry_that_cannot_be_planned_is_tried_again_and_says_why_it_was_late(world):
    trigger = Raising()
    world.definitions = [Definition("odd", "shop.odd", trigger, MisfirePolicy("do_nothing", threshold=10))]
    world.entry("good", schedule(60))
    begin = world.now
    world.start()
    world.run(begin + 5 * MINUTE + SECOND)
    assert world.scheduled("odd") == []
    assert len(world.scheduled("good")) == 5
    trigger.broken = False
    world.run(begin + 8 * MINUTE + SECOND)
    (report,) = world.missed
    assert report.missed.reason == "schedule_error"
    assert report.missed.count + len(world.scheduled("odd")) == 8


# -- order and shares ---------------------------------------------------------------------------------------


def test_what_is_on_time_goes_before_a_million_late_runs_and_no_entry_waits_for_another(world):
    world.entry("long", schedule(1), "ignore_misfire_policy")
    world.entry("short", schedule(3600), "ignore_misfire_policy")
    world.entry("regular", schedule(12 * 24 * 3600))
    begin = world.now
    world.start()
    world.run(begin)
    world.crash()
    world.now = begin + 12 * 24 * HOUR
    leader = world.start()
    for _ in range(60):
        leader.tick()
    assert world.sent[0].definition.name == "regular"
    assert len(world.scheduled("short")) == 12 * 24
    late = world.scheduled("long")
    assert late == [begin + n * SECOND for n in range(1, len(late) + 1)]
    assert {str(m.intent.outcome) for m in world.sent[1:]} == {"recovered"}
    for _ in range(20):
        world.now += SECOND
        sent = len(world.sent)
        leader.tick()
        first = world.sent[sent]
        assert (str(first.intent.outcome), first.intent.scheduled, first.fire_time) == (
            "fired",
            world.now,
            world.now,
        )


def test_a_crash_in_the_middle_of_catching_up_loses_and_doubles_nothing(world):
    world.entry("long", schedule(60), "ignore_misfire_policy")
    begin = world.now
    world.start()
    world.crash()
    for _ in range(6):
        world.now += 10 * MINUTE + 7 * SECOND
        leader = world.start()
        leader.tick()
        leader.tick()
        world.crash()
    world.start()
    world.run(world.now + MINUTE)
    assert sorted(world.scheduled()) == [begin + n * MINUTE for n in range(1, len(world.sent) + 1)]
    assert len(world.sent) >= 60


def test_more_late_runs_than_one_batch_are_sent_in_order(world):
    world.entry("many", schedule(60), MisfirePolicy("ignore_misfire_policy"))
    begin = world.now
    world.start()
    world.crash()
    world.now += 5 * LARGEST_BATCH * MINUTE
    world.start()
    world.run(world.now)
    assert world.scheduled() == [begin + n * MINUTE for n in range(1, 5 * LARGEST_BATCH + 1)]


def test_catching_up_holds_up_no_run_in_time_when_messages_are_slow(world):
    begin = world.now
    for n in range(10):
        world.entry(f"late {n}", schedule(1), "ignore_misfire_policy")
    world.start()
    world.stop()
    world.now += 300 * SECOND
    world.entry("regular", schedule(1))

    def take_time(message: Message) -> None:
        world.now += 10

    world.refuses = take_time
    world.start()
    world.run(begin + 340 * SECOND)
    runs = [m for m in world.sent if m.definition.name == "regular"]
    assert len(runs) >= 35
    assert sum(m.definition.name != "regular" for m in world.sent) > 2_000
    lags = [m.fire_time - m.intent.scheduled for m in runs if m.fire_time > begin + 303 * SECOND]
    # A step of ten runs and what else is due then, where a batch of a hundred takes a second.
    assert max(lags) < 300


def test_beat_wakes_once_for_each_fire_time(world):
    world.entry("minutely", schedule(60))
    leader = world.start()
    leader.tick()
    for n in (1, 2):
        world.now += MINUTE
        assert leader.tick() > 0
        assert len(world.sent) == n


# -- what is missed -----------------------------------------------------------------------------------------


def test_one_record_tells_of_a_whole_outage(world):
    world.entry("none", schedule(60), MisfirePolicy("do_nothing", on_missed="shop.alarm"))
    begin = world.now
    world.start()
    world.stop()
    world.now += HOUR + SECOND
    world.start()
    world.run(world.now + SECOND)
    (report,) = world.missed
    missed = report.missed
    assert (missed.first, missed.last, missed.count) == (
        from_millis(begin + MINUTE),
        from_millis(begin + HOUR),
        60,
    )
    assert (missed.reason, missed.instruction, report.on_missed) == (
        "scheduler_down",
        "do_nothing",
        "shop.alarm",
    )
    (told,) = world.told
    assert told.outcomes == {"missed": 60}
    assert told.task == "shop.none"


def test_each_missed_occurrence_has_its_own_record_on_request_through_a_crash(world):
    world.each = True
    world.entry("none", schedule(60), "do_nothing")
    begin = world.now
    world.start()
    world.stop()
    world.now += 250 * MINUTE + SECOND
    leader = world.start()
    leader.tick()
    leader.tick()
    world.crash()
    world.start()
    world.run(world.now + SECOND)
    told = {to_millis(r.missed.first) for r in world.missed}
    assert told == {begin + n * MINUTE for n in range(1, 251)}
    assert {r.missed.count for r in world.missed} == {1}
    ids = {(r.missed.first, r.missed.task_id) for r in world.missed}
    assert len(ids) == 250


@pytest.mark.parametrize("breaks", ["at once", "after a portion"])
def test_where_each_miss_is_reported_one_broken_schedule_keeps_no_entry_from_anything(world, breaks):
    world.each = True
    trigger = Raising()
    trigger.broken = False
    world.definitions = [Definition("odd", "shop.odd", trigger, MisfirePolicy("do_nothing"))]
    world.entry("good", schedule(60))
    begin = world.now
    world.start()
    world.stop()
    world.now += 250 * MINUTE + SECOND
    world.start()
    submit, portion = world.submit, []

    def breaking(report: Report) -> None:
        portion.append(report)
        trigger.broken = trigger.broken or len(portion) == LARGEST_PORTION
        submit(report)

    world.submit = breaking
    commit = world.store.commit

    def breaking_commit(token, changes, log=(), *rest):
        trigger.broken = trigger.broken or (breaks == "at once" and bool(changes))
        return commit(token, changes, log, *rest)

    world.store.commit = breaking_commit
    world.run(world.now + SECOND)
    world.store.commit = commit
    world.crash()
    world.start()
    begin_again = world.now
    world.run(begin_again + 5 * MINUTE)
    odd = [r.missed for r in world.missed if r.missed.entry == "odd"]
    assert sum(m.count for m in odd) == 250
    assert to_millis(odd[0].first) == begin + MINUTE
    assert len([s for s in world.scheduled("good") if s > begin_again]) == 5


def test_a_schedule_that_began_before_it_was_first_seen_has_misfired_unless_nothing_was_known(world):
    late = simple(start=DAY - timedelta(minutes=10), repeat_count=0)
    world.entry("cold", late, "do_nothing")
    world.start()
    world.run(world.now + SECOND)
    assert (world.sent, world.missed) == ([], [])
    world.stop()
    world.entry("warm", late, "do_nothing")
    world.start()
    world.run(world.now + SECOND)
    (report,) = world.missed
    assert (report.missed.entry, report.missed.reason) == ("warm", "start_in_past")


def test_with_misfire_handling_off_nothing_is_recorded(world):
    world.entry("off", schedule(60), None)
    begin = world.now
    world.start()
    world.stop()
    world.now += HOUR + SECOND
    world.start()
    world.run(world.now + MINUTE)
    assert world.scheduled() == [begin + 61 * MINUTE]
    assert (world.missed, world.told) == ([], [])


def test_a_clock_that_was_set_forward_is_the_reason(world):
    world.entry("none", schedule(60), "do_nothing")
    world.start()
    world.run(world.now + 30 * SECOND)
    offset = [0]
    world.leader._steady = lambda: (world.now - offset[0]) / 1000
    offset[0] = HOUR
    world.now += HOUR
    world.run(world.now + SECOND)
    assert {r.missed.reason for r in world.missed} == {"clock_jump"}


def test_a_clock_that_was_set_back_is_told_and_fixed_times_do_not_run_twice(world, caplog):
    world.entry("report", crontab(minute=",".join(map(str, range(59))), hour="0,1,2"))
    begin = world.now
    world.start()
    world.run(begin + 10 * MINUTE)
    world.leader._steady = lambda: (world.now + 5 * MINUTE) / 1000
    world.now -= 5 * MINUTE
    world.run(begin + 12 * MINUTE)
    assert world.scheduled() == [begin + n * MINUTE for n in range(1, 13)]
    assert [m for m in caplog.messages if "the clock was set back by 300.0 s" in m]
    assert "clock_jump" not in caplog.text


def test_a_clock_that_was_ahead_for_a_while_leaves_no_silence(world, caplog):
    """As after a first boot with a wrong clock: what is fixed waits for its time, what is short goes on."""
    world.entry("ticks", schedule(5))
    world.entry("minutely", crontab())
    world.entry("fixed", crontab(hour="0", minute="10,20,30,40,50"))
    begin = world.now
    world.start()
    world.run(begin + MINUTE)
    offset = [0]
    world.leader._steady = lambda: (world.now - offset[0]) / 1000
    offset[0], world.now = 2 * HOUR, world.now + 2 * HOUR
    world.run(world.now + MINUTE)
    offset[0], world.now = 0, begin + 2 * MINUTE
    caplog.clear()
    sent = len(world.sent)
    world.run(begin + 15 * MINUTE)
    later = [(m.definition.name, m.intent.scheduled) for m in world.sent[sent:]]
    assert [t for n, t in later if n == "ticks"] == [begin + 2 * MINUTE + n * 5000 for n in range(1, 157)]
    assert [t for n, t in later if n == "minutely"] == [begin + n * MINUTE for n in range(3, 16)]
    assert [t for n, t in later if n == "fixed"] == []
    assert len({m.task_id for m in world.sent}) == len(world.sent)
    (warning,) = [m for m in caplog.messages if "clock_jump" in m]
    assert "entries that are planned from now: 2" in warning


def test_a_state_that_lies_in_the_future_does_not_silence_the_next_beat(world, caplog):
    world.entry("ticks", schedule(5))
    world.entry("daily", crontab(hour="0", minute="10"))
    begin = world.now
    world.now += 10 * 365 * 24 * HOUR
    world.start()
    world.run(world.now + HOUR)
    world.crash()
    world.now, world.sent = begin, []
    world.start()
    world.run(begin + 15 * MINUTE)
    assert world.scheduled("daily") == [begin + 10 * MINUTE]
    assert len(world.scheduled("ticks")) == 180
    assert world.missed == []
    assert len([m for m in caplog.messages if "clock_jump" in m]) == 1


def test_hosts_whose_clocks_differ_by_seconds_plan_nothing_anew_at_a_failover(world, caplog):
    world.entry("ticks", schedule(1))
    world.entry("minutely", crontab())
    begin = world.now
    for failover in range(1, 7):
        world.start()
        world.run(begin + failover * 90 * SECOND)
        world.crash()
        world.now -= 4 * SECOND
    assert "clock_jump" not in caplog.text
    ids = [m.task_id for m in world.sent]
    assert len(set(ids)) == len(ids)
    assert world.scheduled("minutely") == [begin + n * MINUTE for n in range(1, 10)]
    assert sorted(world.scheduled("ticks")) == [begin + n * SECOND for n in range(1, 541)]


def test_a_clock_that_was_set_back_is_followed_although_the_store_went_back_as_well(world):
    begin = world.now
    world.entry("hourly", schedule(3600))
    world.start()
    before = world.store.load()["hourly"]
    world.run(begin + 5 * HOUR)
    ledger = world.leader._ledger
    # Memory follows the store, as where the messages are in the same database.
    ledger.holds_messages = True
    world.store.commit(world.lease.token, [Change("hourly", world.store.load()["hourly"], before)])
    world.sent.clear()
    world.leader._steady = lambda: (world.now + 10 * HOUR) / 1000
    world.now = set_back = begin - 5 * HOUR - 10 * MINUTE
    with pytest.raises(Outdated):
        world.leader.tick()
    world.leader.take_over(world.lease.acquire(), world.definitions)
    ledger.holds_messages = False
    world.run(set_back + 2 * HOUR)
    assert len(world.sent) == 2


@pytest.mark.parametrize(
    ("ahead", "told"), [(0, ""), (4_000, ""), (-60_000, "60 s behind"), (9_000, "9 s ahead of")]
)
def test_a_clock_that_differs_from_the_one_of_the_store_is_told_at_a_take_over(world, caplog, ahead, told):
    world.ahead = ahead
    world.start()
    lines = [m for m in caplog.messages if "the clock of Redis" in m]
    assert [told in line for line in lines] == ([True] if told else [])


# -- names ---------------------------------------------------------------------------------------------------


def keyed(world, **names):
    """Let each entry have this key; the others have none."""
    world.definitions = [replace(d, key=names.get(d.name)) for d in world.definitions]


def test_an_entry_that_is_renamed_while_beat_is_down_keeps_its_grid_and_what_is_under_way(world):
    begin = world.now
    world.entry("old", schedule(3600), "ignore_misfire_policy")
    keyed(world, old="1")
    world.start()
    world.run(begin + HOUR - SECOND)
    world.refuses = lambda _: BrokerUnavailable("gone")
    world.run(begin + HOUR + SECOND)
    world.crash()
    world.refuses = lambda _: None
    world.now = begin + 2 * HOUR + 30 * MINUTE
    world.definitions = []
    world.entry("new", schedule(3600), "ignore_misfire_policy")
    keyed(world, new="1")
    world.start()
    world.run(world.now + HOUR)
    assert world.scheduled("new") == [begin + n * HOUR for n in (1, 2, 3)]
    ids = [fire.task_id("test", "old", begin, begin + HOUR), *(m.task_id for m in world.sent[1:])]
    assert [m.task_id for m in world.sent] == ids
    assert [m.intent.entry for m in world.sent] == ["old", "", ""]
    assert (world.missed, world.told[0].count) == ([], 1)


def test_what_is_in_doubt_stays_so_when_its_entry_is_renamed(world):
    begin = world.now
    world.entry("old", schedule(3600), "do_nothing")
    keyed(world, old="1")
    world.start()
    world.run(begin + HOUR - SECOND)
    # The message may have arrived.
    world.refuses = lambda _: BrokerUnavailable("gone")
    world.run(begin + HOUR + SECOND)
    world.crash()
    world.refuses = lambda _: None
    world.now = begin + HOUR + 30 * MINUTE
    world.definitions = []
    world.entry("new", schedule(3600), "do_nothing")
    keyed(world, new="1")
    world.start()
    world.run(world.now + MINUTE)
    assert world.scheduled() == [begin + HOUR]
    assert world.missed == []


def test_two_entries_that_have_changed_names_change_records(world):
    begin = world.now
    world.entry("a", schedule(3600), "ignore_misfire_policy")
    world.now += 10 * MINUTE
    world.entry("b", schedule(7200), "ignore_misfire_policy")
    keyed(world, a="1", b="2")
    world.start()
    world.run(world.now + SECOND)
    world.crash()
    world.definitions = []
    world.entry("b", schedule(3600), "ignore_misfire_policy")
    world.entry("a", schedule(7200), "ignore_misfire_policy")
    keyed(world, b="1", a="2")
    world.start()
    world.run(begin + 3 * HOUR)
    start = begin + 10 * MINUTE
    assert world.scheduled("b") == [start + HOUR, start + 2 * HOUR]
    assert world.scheduled("a") == [start + 2 * HOUR]
    world.crash()
    # Nothing is moved a second time.
    records_before = dict(world.store.load())
    world.start()
    assert world.store.load() == records_before


def test_a_new_entry_under_the_name_of_one_that_is_renamed_is_new(world):
    begin = world.now
    world.entry("name", schedule(3600))
    keyed(world, name="1")
    world.start()
    world.run(begin + 10 * MINUTE)
    world.crash()
    world.entry("renamed", schedule(3600))
    keyed(world, name="2", renamed="1")
    world.start()
    world.run(begin + 75 * MINUTE)
    assert world.scheduled("renamed") == [begin + HOUR]
    assert world.scheduled("name") == [begin + 70 * MINUTE]


def test_the_misses_of_a_renamed_entry_are_reported_under_the_name_of_their_ids(world):
    begin = world.now
    world.entry("old", schedule(60), "do_nothing")
    keyed(world, old="1")
    world.start()
    world.run(begin + SECOND)
    world.crash()
    world.now = begin + HOUR
    world.start()
    # Decided, and beat is gone before it is reported.
    world.leader.tick()
    world.crash()
    reported, world.missed = world.missed, []
    world.definitions = []
    world.entry("new", schedule(60), "do_nothing")
    keyed(world, new="1")
    world.start()
    world.run(begin + HOUR + MINUTE)
    assert [r.missed.entry for r in world.missed] == ["old"]
    assert [r.missed.task_id for r in world.missed] == [r.missed.task_id for r in reported]
    assert world.scheduled("new") == [begin + HOUR + MINUTE]


# -- the schedule changes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("instruction", ["ignore_misfire_policy", "do_nothing", "fire_once_now"])
def test_an_edited_schedule_is_planned_from_now(world, instruction):
    world.entry("edited", crontab(minute="0"), instruction)
    world.start()
    world.stop()
    world.now += 3 * HOUR + 10 * MINUTE
    world.entry("edited", crontab(minute="30"), instruction)
    world.start()
    world.run(world.now + 5 * SECOND)
    assert (world.sent, world.missed) == ([], [])
    begin = world.now
    world.run(begin + HOUR)
    assert world.scheduled() == [to_millis(DAY) + 3 * HOUR + 30 * MINUTE]


def test_an_entry_that_was_removed_and_comes_back_is_planned_from_now(world):
    world.entry("other", schedule(3600), "do_nothing")
    world.entry("gone", simple(start=DAY, interval=60), "ignore_misfire_policy")
    kept = list(world.definitions)
    world.start()
    world.run(world.now + 5 * MINUTE)
    sent = len(world.scheduled("gone"))
    world.stop()
    world.definitions = kept[:1]
    world.start()
    world.run(world.now + 5 * MINUTE)
    world.stop()
    world.definitions = kept
    world.start()
    back = world.now
    world.run(back + 59 * SECOND)
    assert len(world.scheduled("gone")) == sent
    world.run(back + MINUTE)
    assert world.scheduled("gone")[sent:] == [back + MINUTE]
    assert world.missed == []
    assert len({m.task_id for m in world.sent}) == len(world.sent)


@pytest.mark.parametrize(
    ("instruction", "recovered", "missed"),
    [("ignore_misfire_policy", 4, 0), ("fire_now", 1, 0), ("do_nothing", 0, 4)],
)
def test_where_a_pause_is_an_outage_what_an_entry_would_have_run_while_it_was_gone_has_misfired(
    world, instruction, recovered, missed
):
    world.resume_misfires = True
    world.entry("other", schedule(3600), "do_nothing")
    world.entry("gone", schedule(60), instruction)
    kept = list(world.definitions)
    world.start()
    world.run(world.now + MINUTE)
    begun = world.now
    # Over two starts of beat, for four fire times.
    for _ in range(2):
        world.stop()
        world.definitions = kept[:1]
        world.start()
        world.run(world.now + 2 * MINUTE + 20 * SECOND)
    assert world.scheduled("gone") == [begun]
    world.stop()
    world.definitions = kept
    world.start()
    world.run(world.now + SECOND)
    assert world.scheduled("gone")[1:] == [begun + n * MINUTE for n in range(1, recovered + 1)]
    assert {m.intent.outcome for m in world.sent[1:]} <= {"recovered"}
    assert sum(r.missed.count for r in world.missed) == missed
    assert {r.missed.reason for r in world.missed} <= {"paused"}
    (told,) = world.told
    assert (told.entry, told.reason) == ("gone", "paused")
    # From here on it is late for reasons of its own.
    world.broker_is_up = False
    world.leader._broker.is_up = False
    world.run(world.now + 10 * MINUTE)
    world.broker_is_up = True
    world.run(world.now + 10 * SECOND)
    assert world.told[-1].reason == "broker_unavailable"


def test_an_entry_that_comes_back_before_its_next_fire_time_or_edited_has_not_misfired(world):
    world.resume_misfires = True
    world.entry("other", schedule(3600), "do_nothing")
    world.entry("soon back", schedule(60), "ignore_misfire_policy")
    world.entry("edited", schedule(60), "ignore_misfire_policy")
    kept = list(world.definitions)
    world.start()
    begun = world.now
    world.stop()
    world.definitions = kept[:1]
    world.start()
    world.run(begun + 40 * SECOND)
    world.stop()
    world.definitions = kept[:2]
    world.start()
    world.run(begun + 2 * MINUTE)
    assert world.scheduled() == [begun + MINUTE, begun + 2 * MINUTE]
    world.definitions = kept[:2]
    world.entry("edited", schedule(90), "ignore_misfire_policy")
    world.leader.adopt(world.definitions)
    world.run(begun + 210 * SECOND)
    assert world.scheduled("edited") == [begun + 210 * SECOND]
    assert (world.told, world.missed) == ([], [])


def test_a_record_of_an_entry_that_is_gone_is_dropped_after_a_week_whether_or_not_it_can_be_read(world):
    world.entry("stays", schedule(3600), "do_nothing")
    world.entry("over", simple(start=DAY), "do_nothing")
    world.start()
    (kept,) = [d for d in world.definitions if d.name == "stays"]
    world.store.commit(world.lease.token, [Change("unreadable", "", "not ours")])
    world.stop()
    world.definitions = [kept]
    for _ in range(2):
        world.start()
        assert set(world.store.load()) == {"stays", "over", "unreadable"}
        assert records.loads(world.store.load()["unreadable"]).removed_at
        world.stop()
    world.now += 7 * 24 * HOUR + 1
    world.start()
    assert set(world.store.load()) == {"stays"}


def test_an_entry_whose_record_was_unreadable_and_who_comes_back_is_planned_from_now(world):
    world.entry("stays", schedule(3600), "do_nothing")
    world.start()
    world.store.commit(world.lease.token, [Change("over", "", "not ours")])
    world.stop()
    world.start()
    world.stop()
    # In its past, which nobody knows: it may have run.
    world.entry("over", simple(start=DAY - timedelta(days=1)), "fire_now")
    world.start()
    world.run(world.now + MINUTE)
    assert (world.scheduled(), world.missed) == ([], [])


def test_decisions_of_a_removed_entry_that_were_not_carried_out_are_recorded_as_missed(world):
    world.entry("gone", schedule(60), "ignore_misfire_policy")
    world.entry("other", schedule(3600), "do_nothing")
    world.start()
    world.stop()
    world.now += 55 * MINUTE + SECOND
    leader = world.start()
    leader.tick()
    world.crash()
    world.definitions = [d for d in world.definitions if d.name == "other"]
    world.start()
    world.run(world.now + SECOND)
    assert {r.missed.reason for r in world.missed} == {"entry_deleted"}
    assert sum(r.missed.count for r in world.missed) + len(world.sent) == 55


# -- the store ----------------------------------------------------------------------------------------------


def test_state_that_changed_under_our_own_lease_is_written_again_from_memory(world, caplog):
    world.entry("report", schedule(60))
    begin = world.now
    world.start()
    (text,) = world.store.load().values()
    world.store.commit(world.lease.token, [Change("report", text, "not ours")])
    world.run(begin + 2 * MINUTE)
    assert world.scheduled() == [begin + MINUTE, begin + 2 * MINUTE]
    assert [r.message for r in caplog.records if "went back in time" in r.message]


def test_a_lost_store_is_restored_from_memory_and_the_grid_goes_on(world):
    world.entry("report", schedule(60), "ignore_misfire_policy")
    begin = world.now
    world.start()
    world.run(begin + 2 * MINUTE)
    world.store._redis.flushall()
    with pytest.raises(LeaseLost):
        world.run(begin + 4 * MINUTE)
    acquired = world.lease.acquire()
    assert acquired.cold
    world.leader.take_over(acquired, world.definitions)
    world.run(begin + 5 * MINUTE)
    assert world.scheduled() == [begin + n * MINUTE for n in range(1, 6)]
    assert world.missed == []


def test_with_a_lost_store_and_no_memory_nothing_runs_and_nothing_is_missed(world, caplog):
    world.entry("report", schedule(60), "ignore_misfire_policy")
    world.entry("once", simple(start=DAY + timedelta(minutes=1), repeat_count=0))
    world.start()
    world.stop()
    world.store._redis.flushall()
    world.now += HOUR + SECOND
    caplog.clear()
    world.start()
    world.run(world.now + 30 * SECOND)
    assert (world.sent, world.missed) == ([], [])
    # Nothing in the store tells it from a first start.
    assert [r for r in caplog.records if r.levelname == "WARNING"] == []
    assert caplog.text.count("first start, or Redis has lost its data") == 1


def test_a_state_that_is_gone_although_there_is_a_log_is_a_loss(world, caplog):
    world.entry("report", schedule(60))
    world.start()
    world.stop()
    world.store._redis.delete(world.store.state_key)
    caplog.clear()
    world.start()
    [warning] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "the saved schedule was lost" in warning


def test_a_beat_that_stood_by_meanwhile_does_not_restore_a_lost_store_from_what_it_remembers(
    world, monkeypatch
):
    world.entry("report", schedule(60), "ignore_misfire_policy")
    begin = world.now
    first = world.start()
    lease = world.lease
    world.run(begin + 2 * MINUTE)
    world.store._redis.delete(world.store.lease_key)
    lease.lost()
    world.start()
    world.run(begin + 10 * MINUTE)
    assert lease.acquire() is None
    world.stop()
    world.store._redis.flushall()
    world.leader, world.lease = first, lease
    world.sent.clear()
    assert lease.acquire() is None, "the other one may be there"
    monkeypatch.setattr(lease, "_clock", lambda: uptime() + 3600)
    first.take_over(lease.acquire(), world.definitions)
    world.run(begin + 20 * MINUTE)
    assert min(world.scheduled()) > begin + 10 * MINUTE


@pytest.mark.parametrize("fails", ["commit", "write_meta"])
def test_a_restoration_that_was_interrupted_is_begun_again(world, monkeypatch, fails):
    world.entry("report", schedule(60), "ignore_misfire_policy")
    begin = world.now
    leader = world.start()
    world.run(begin + 2 * MINUTE)
    world.store._redis.flushall()
    world.now += 90 * SECOND
    world.lease.lost()

    def away(*_: object) -> None:
        raise StoreUnavailable("away again")

    acquired = world.lease.acquire()
    monkeypatch.setattr(world.store, fails, away)
    with pytest.raises(StoreUnavailable):
        leader.take_over(acquired, world.definitions)
    monkeypatch.undo()
    world.lease.release()
    leader.take_over(world.lease.acquire(), world.definitions)
    world.run(begin + 5 * MINUTE)
    assert world.scheduled() == [begin + n * MINUTE for n in range(1, 6)]


def test_an_edit_does_not_make_an_acknowledgement_without_an_answer_forgotten(world, monkeypatch):
    world.entry("report", schedule(60))
    begin = world.now
    leader = world.start()
    world.run(begin + MINUTE - SECOND)
    commit = world.store.commit

    def loses_the_answer(token, changes, log=(), *rest):
        done = commit(token, changes, log, *rest)
        if any(line["event"] == "sent" for line in log):
            raise StoreUnavailable("no answer")
        return done

    monkeypatch.setattr(world.store, "commit", loses_the_answer)
    with pytest.raises(StoreUnavailable):
        world.run(begin + 2 * MINUTE)
    monkeypatch.undo()
    world.entry("stocks", schedule(60))
    leader.adopt(world.definitions)
    world.run(begin + 2 * MINUTE)
    assert world.scheduled("report") == [begin + MINUTE, begin + 2 * MINUTE]
    assert world.scheduled("stocks") == [begin + 2 * MINUTE]


# -- refusals, outages and turns ----------------------------------------------------------------------------


def test_a_refused_run_that_is_too_late_by_now_is_not_sent_along_with_the_next_one(world):
    world.entry("bad", schedule(1), MisfirePolicy("do_nothing", threshold=1))
    begin = world.now
    world.refuses = lambda _: PublishRejected("EncodeError")
    world.start()
    world.run(begin + 5 * SECOND + 500)
    world.refuses = lambda _: None
    world.run(begin + 30 * SECOND)
    assert max(m.fire_time - m.intent.scheduled for m in world.sent) < SECOND
    decided = Counter(world.scheduled())
    for report in world.missed:
        decided.update(range(to_millis(report.missed.first), to_millis(report.missed.last) + 1, SECOND))
    assert decided == Counter(begin + n * SECOND for n in range(1, 31))


def test_a_broker_that_fails_in_the_middle_of_catching_up_makes_no_run_a_refused_one(world):
    world.entry("a", schedule(10), "ignore_misfire_policy")
    begin = world.now
    world.start()
    world.run(begin + SECOND)
    world.crash()
    world.now = begin + 100 * SECOND

    def refuses(_: Message) -> Exception | None:
        if world.sent or not world.broker_is_up:
            return None
        world.broker_is_up = False
        return BrokerUnavailable("down")

    world.refuses = refuses
    world.start()
    world.run(world.now + 60 * SECOND)
    world.refuses, world.broker_is_up = (lambda _: None), True
    world.run(world.now + 60 * SECOND)
    assert world.missed == []
    assert sorted(world.scheduled()) == [begin + 10 * n * SECOND for n in range(1, 23)]


@pytest.mark.parametrize("while_", ["planning", "sending"])
def test_a_schedule_that_raises_at_any_time_keeps_no_other_entry_waiting(world, while_):
    trigger = Raising()
    trigger.broken = False
    world.definitions = [Definition("odd", "shop.odd", trigger, MisfirePolicy("do_nothing", threshold=10))]
    world.entry("good", schedule(60))
    begin = world.now
    world.start()

    def refuses(message: Message) -> Exception | None:
        # From its first message on: planned, claimed, and never to be judged again.
        if message.definition.name == "odd" and while_ == "sending":
            trigger.broken = True
            return BrokerUnavailable("down")
        return None

    world.refuses = refuses
    world.run(begin + 30 * SECOND)
    trigger.broken = while_ == "planning"
    world.run(begin + 5 * MINUTE + SECOND)
    assert world.scheduled("good") == [begin + n * MINUTE for n in range(1, 6)]


def test_an_entry_that_is_removed_while_it_waits_for_its_next_try_is_forgotten(world):
    world.definitions = [Definition("odd", "shop.odd", Raising(), MisfirePolicy("do_nothing"))]
    world.entry("bad", schedule(60))
    world.entry("good", schedule(60))
    begin = world.now
    world.refuses = lambda m: PublishRejected("x") if m.definition.name == "bad" else None
    leader = world.start()
    world.run(begin + 70 * SECOND)
    world.definitions = [d for d in world.definitions if d.name == "good"]
    leader.adopt(world.definitions)
    world.now += 30 * SECOND
    # With nothing to do it sleeps.
    assert [leader.tick() > 0 for _ in range(3)] == [True] * 3


def test_what_has_to_be_sent_again_gets_its_turn_while_beat_is_busy_all_the_time(world):
    for n in range(100):
        world.entry(f"busy {n}", schedule(1), MisfirePolicy(threshold=3600))
    world.entry("a", simple(start=DAY + timedelta(seconds=1), repeat_count=0))
    begin = world.now

    def refuses(message: Message) -> Exception | None:
        # Sending takes longer than the time until the next run is due.
        world.now += 20
        failed = message.definition.name == "a" and world.now < begin + 5 * SECOND
        return PublishRejected("EncodeError") if failed else None

    world.refuses = refuses
    leader = world.start()
    while world.now < begin + 20 * SECOND:
        delay = leader.tick()
        world.now += round(delay * 1000)
    assert world.scheduled("a") == [begin + SECOND]


def test_a_beat_that_leads_again_does_not_wait_for_what_another_one_has_sent(world):
    world.entry("daily", schedule(60), MisfirePolicy("do_nothing", threshold=30))
    begin = world.now
    first = world.start()
    world.run(begin + 59 * SECOND)
    world.refuses = lambda _: BrokerUnavailable("down")
    world.now = begin + MINUTE
    first.tick()
    lease = world.lease
    lease.release()
    world.refuses = lambda _: None
    world.start()
    world.run(begin + MINUTE + 10 * SECOND)
    assert world.scheduled() == [begin + MINUTE]
    world.lease.release()
    lease.superseded = True
    first.take_over(lease.acquire(), world.definitions)
    assert min(first.tick() for _ in range(3)) > 0


def claim_without_an_answer(world: World) -> None:
    """Let the leader claim what is due and not hear that it was done."""
    commit = world.store.commit

    def lost(*arguments):
        commit(*arguments)
        raise StoreUnavailable("no answer")

    world.store.commit = lost
    with pytest.raises(StoreUnavailable):
        world.leader.tick()
    world.store.commit = commit


def test_a_schedule_that_cannot_be_asked_for_a_moment_makes_no_run_a_refused_one(world):
    trigger = Raising()
    trigger.broken = False
    policy = MisfirePolicy("fire_once_now", threshold=10)
    world.definitions = [Definition("odd", "shop.odd", trigger, policy)]
    begin = world.now
    leader = world.start()
    world.run(begin + 59 * SECOND)
    world.now = begin + MINUTE
    claim_without_an_answer(world)
    world.now += 20 * SECOND
    trigger.broken = True
    leader.tick()
    trigger.broken = False
    world.run(world.now + 20 * SECOND)
    assert world.scheduled() == [begin + MINUTE]
    assert world.missed == []


def test_runs_that_were_in_time_when_they_were_decided_are_judged_before_they_are_sent(world):
    for n in range(4):
        world.entry(f"e{n}", schedule(1), MisfirePolicy("do_nothing", threshold=60))
    begin = world.now
    world.start()
    world.run(begin + SECOND + 500)
    world.crash()
    world.sent.clear()
    world.now = begin + 51 * SECOND
    world.refuses = lambda _: BrokerUnavailable("down")
    world.start().tick()
    world.broker_is_up = False
    world.run(world.now + HOUR)
    world.broker_is_up, world.refuses = True, lambda _: None
    world.run(world.now + 10 * SECOND)
    late = [m for m in world.sent if m.fire_time - m.intent.scheduled >= 60 * SECOND]
    # The one that is in doubt.
    assert [(m.definition.name, m.intent.scheduled) for m in late] == [("e0", begin + 2 * SECOND)]


def test_a_broker_that_is_found_to_be_away_before_a_message_is_begun_leaves_no_doubt(world):
    world.entry("a", schedule(60), MisfirePolicy("do_nothing", threshold=1))
    begin = world.now
    leader = world.start()
    world.run(begin + 59 * SECOND)
    world.broker_is_up = False
    assert leader._broker.is_up
    world.run(begin + 70 * SECOND)
    world.broker_is_up = True
    world.run(begin + 130 * SECOND)
    assert world.scheduled() == [begin + 2 * MINUTE]
    (report,) = world.missed
    assert to_millis(report.missed.first) == begin + MINUTE


def test_a_run_that_is_missed_after_an_edit_keeps_its_id_and_its_reason(world):
    world.entry("a", schedule(60), MisfirePolicy("do_nothing", threshold=10))
    begin = world.now
    tried = []

    def refuses(message: Message) -> Exception:
        tried.append(message.task_id)
        return PublishRejected("EncodeError")

    world.refuses = refuses
    leader = world.start()
    world.run(begin + MINUTE + SECOND)
    world.entry("a", schedule(300), MisfirePolicy("do_nothing", threshold=10))
    leader.adopt(world.definitions)
    world.run(begin + 2 * MINUTE)
    (report,) = world.missed
    assert {report.missed.task_id} == set(tried)
    assert report.missed.reason == "publish_rejected"


def test_a_run_that_an_outage_made_late_was_not_there_too_early_after_an_edit(world):
    world.entry("a", schedule(60), MisfirePolicy("do_nothing", threshold=10))
    begin = world.now
    leader = world.start()
    world.run(begin + 59 * SECOND)
    world.now = begin + MINUTE
    claim_without_an_answer(world)
    world.broker_is_up = leader._broker.is_up = False
    world.now += 2 * SECOND
    world.entry("a", schedule(300), MisfirePolicy("do_nothing", threshold=10))
    leader.adopt(world.definitions)
    world.run(begin + 2 * MINUTE)
    world.broker_is_up = True
    world.run(begin + 3 * MINUTE)
    (report,) = world.missed
    assert report.missed.reason == "store_unavailable"


@pytest.mark.parametrize("instruction", ["do_nothing", "ignore_misfire_policy"])
def test_the_record_of_an_entry_that_is_never_taken_and_never_surely_refused_stays_small(world, instruction):
    world.entry("a", schedule(1), MisfirePolicy(instruction, threshold=10))
    begin = world.now
    world.refuses = lambda _: MisfireError("refused by a queue (nack)")
    leader = world.start()
    world.run(begin + HOUR)
    assert len(leader.record("a").intents) <= 2 * LARGEST_BATCH
    world.refuses = lambda _: None
    world.run(begin + HOUR + 5 * MINUTE)
    decided = Counter(world.scheduled())
    for report in world.missed:
        decided.update(range(to_millis(report.missed.first), to_millis(report.missed.last) + 1, SECOND))
    assert decided == Counter(begin + n * SECOND for n in range(1, 3901))


def test_what_a_beat_said_of_a_refused_run_before_it_died_is_what_becomes_of_it(world, monkeypatch):
    world.entry("a", schedule(60), MisfirePolicy("fire_once_now", threshold=10))
    begin = world.now
    world.refuses = lambda _: PublishRejected("EncodeError")
    world.start()
    world.run(begin + MINUTE + SECOND)

    class PowerCut(BaseException):
        pass

    settle = world.store.settle

    def die(ids, value, **fence):
        held = settle(ids, value, **fence)
        if held:
            raise PowerCut
        return held

    monkeypatch.setattr(world.store, "settle", die)
    with pytest.raises(PowerCut):
        world.run(begin + 2 * MINUTE - SECOND)
    world.crash()
    world.refuses = lambda _: None
    world.start()
    world.run(begin + 2 * MINUTE + SECOND)
    # A worker would drop it: the register says that it is missed.
    assert world.scheduled() == [begin + 2 * MINUTE]
    (report,) = world.missed
    assert (to_millis(report.missed.first), report.missed.reason) == (begin + MINUTE, "publish_rejected")


@pytest.mark.parametrize("runs", [5, 8])
def test_an_entry_that_was_gone_for_a_while_does_not_begin_its_count_anew(world, runs):
    world.entry("a", simple(interval=3600, repeat_count=7))
    begin = world.now
    leader = world.start()
    world.run(begin + runs * HOUR + SECOND)
    assert len(world.sent) == runs
    leader.adopt([])
    world.now += MINUTE
    leader.adopt(world.definitions)
    world.run(begin + 50 * HOUR)
    assert world.scheduled() == [begin + n * HOUR for n in range(1, 9)]
    assert world.missed == []
