"""Pauses and holds on a virtual clock: what the leader makes of what people ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from celery.schedules import crontab, schedule

from celery_misfire import control, records
from celery_misfire.events import Event
from celery_misfire.misfire import MisfirePolicy, Reason
from celery_misfire.pause_events import Paused, Resumed
from celery_misfire.records import Definition, EntryRecord, Pause
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.triggers.kinds import trigger_for
from tests.integration.test_leader import HOUR, MINUTE, SECOND, World

HOURLY = crontab(minute=0)


@dataclass
class Asked(World):
    """A world in which somebody asks the leader for something."""

    heard: list[Event] = field(default_factory=list)

    def hear(self, events: Sequence[Event]) -> None:
        super().hear(events)
        self.heard += [event for event in events if isinstance(event, Paused | Resumed)]

    def ask(self, what: str, *names: str, **options: object) -> None:
        store = RedisStore(self.url, "test")
        store.time = lambda: self.now  # type: ignore[method-assign]
        function = getattr(control, what)
        function(store, *([names] if names else []), **options)
        # The next renewal tells the leader, and it renews by real time.
        self.lease.is_asked = True

    def record(self, name: str) -> EntryRecord:
        return records.loads(self.store.load()[name])

    def hours(self, name: str) -> list[float]:
        return [(moment - self.begin) / HOUR for moment in self.scheduled(name)]

    def __post_init__(self) -> None:
        self.begin = self.now


@pytest.fixture
def world(redis_server) -> Iterable[Asked]:
    world = Asked(redis_server.url)
    yield world
    if world.leader is not None:
        world.stop()


def test_a_paused_entry_does_not_fire_until_it_is_resumed_and_the_pause_is_no_outage(world: Asked):
    world.entry("one", HOURLY, "ignore_misfire_policy")
    world.entry("other", HOURLY)
    world.start()
    world.run(world.begin + HOUR)
    world.ask("pause", "one", reason="month end", by="ann")
    world.run(world.begin + 4 * HOUR + 30 * MINUTE)
    paused = Pause(world.begin + HOUR, None, "month end", "ann")
    assert world.record("one").paused == paused
    assert world.store.sight().requests == {}
    world.ask("resume", "one", by="bob")
    world.run(world.begin + 6 * HOUR)
    assert world.hours("one") == [1, 5, 6]
    assert world.hours("other") == [1, 2, 3, 4, 5, 6]
    assert world.record("one").paused is None
    assert (world.missed, world.told) == ([], [])
    log = [line for line in world.store.log() if line["event"] in ("paused", "resumed")]
    assert log == [event.encode() for event in world.heard]
    assert [(line["event"], line["by"]) for line in log] == [("paused", "ann"), ("resumed", "bob")]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_pause_ends_by_itself_on_the_leaders_clock_whoever_leads_by_then(world: Asked, restarts: bool):
    world.entry("one", HOURLY, "ignore_misfire_policy")
    world.start()
    world.ask("pause", "one", until=world.begin + 3 * HOUR + 30 * MINUTE)
    world.run(world.begin + 2 * HOUR)
    if restarts:
        world.crash()
        world.now = world.begin + 5 * HOUR + 10 * MINUTE
        world.start()
    world.run(world.begin + 6 * HOUR)
    # After a restart, what came due when the pause was over has misfired as ever.
    assert world.hours("one") == [4, 5, 6]
    assert [m.reason for m in world.told] == ([Reason.SCHEDULER_DOWN] if restarts else [])
    assert world.missed == []


def test_as_in_quartz_the_fire_times_of_a_pause_have_misfired(world: Asked):
    world.resume_misfires = True
    world.entry("one", HOURLY, "ignore_misfire_policy")
    world.entry("none", HOURLY, "do_nothing")
    world.start()
    world.ask("pause", "one", "none")
    world.run(world.begin + 2 * HOUR + 30 * MINUTE)
    world.ask("resume", "one", "none")
    world.run(world.begin + 3 * HOUR)
    assert world.hours("one") == [1, 2, 3]
    assert world.hours("none") == [3]
    assert {(m.entry, m.reason, m.count) for m in world.told} == {
        ("one", Reason.PAUSED, 2),
        ("none", Reason.PAUSED, 2),
    }
    assert [(r.missed.count, r.missed.reason) for r in world.missed] == [(2, Reason.PAUSED)]


@pytest.mark.parametrize("how", ["pause", "hold"])
def test_what_was_due_before_a_pause_and_was_not_decided_is_recorded_and_not_run(world: Asked, how: str):
    world.entry("one", HOURLY, "ignore_misfire_policy")
    world.start()
    world.run(world.begin + HOUR)
    world.crash()
    world.now = world.begin + 3 * HOUR + 30 * MINUTE
    # Nobody leads: 2 and 3 o'clock are overdue.
    names = ["one"] if how == "pause" else []
    world.ask(how, *names, until=world.begin + 6 * HOUR + 30 * MINUTE)
    world.now = world.begin + 5 * HOUR + 30 * MINUTE
    world.start()
    world.run(world.begin + 7 * HOUR)
    assert world.hours("one") == [1, 7]
    missed = [
        (r.missed.count, r.missed.reason, r.missed.first.hour, r.missed.last.hour) for r in world.missed
    ]
    assert missed == [(2, Reason.PAUSED, 2, 3)]


@pytest.mark.parametrize("how", ["pause", "hold", "hold that ends by itself"])
@pytest.mark.parametrize("delay", [8 * SECOND, 10 * MINUTE])
def test_no_entry_misfires_only_because_the_leader_hears_of_the_end_late(world: Asked, how: str, delay: int):
    world.entry("quick", schedule(timedelta(seconds=2)), "do_nothing")
    world.entry("hourly", HOURLY, "do_nothing")
    world.start()
    end = world.begin + HOUR - 5 * SECOND
    if how == "pause":
        world.ask("pause", "quick", "hourly")
    else:
        world.ask("hold", until=world.begin + 3 * HOUR if how == "hold" else end)
    world.run(end - 1)
    world.now = end
    if how == "pause":
        world.ask("resume", "quick", "hourly")
    elif how == "hold":
        world.ask("release")
    world.now = heard = end + delay
    world.run(heard + 5 * SECOND)
    if delay > MINUTE:
        # It was not there for that long: what came due after the end has misfired as ever.
        assert {misfired.entry for misfired in world.told} == {"quick", "hourly"}
        return
    assert (world.told, world.missed) == ([], [])
    assert world.hours("hourly") == [1]
    assert world.scheduled("quick")[0] == heard + SECOND


@pytest.mark.parametrize("restarts", ["in", "after", "never"])
def test_of_a_hold_nothing_is_caught_up_and_one_line_says_so(world: Asked, restarts: str):
    for n in range(30):
        world.entry(f"cron{n}", HOURLY, "ignore_misfire_policy")
    world.entry("grid", schedule(timedelta(minutes=40)), "fire_now")
    world.start()
    world.ask("hold", until=world.begin + 3 * HOUR + 30 * MINUTE, reason="upgrade", by="ann")
    world.run(world.begin + HOUR)
    if restarts != "never":
        world.crash()
        world.now = world.begin + (120 if restarts == "in" else 225) * MINUTE
        world.start()
    world.run(world.begin + 4 * HOUR)
    assert {tuple(world.hours(f"cron{n}")) for n in range(30)} == {(4,)}
    # The grid stays.
    assert world.scheduled("grid") == [world.begin + 4 * HOUR]
    assert (world.missed, world.told) == ([], [])
    assert world.store.sight().hold == ""
    begun, ended = world.heard
    assert (begun.encode()["reason"], begun.encode()["by"], ended.encode()["count"]) == ("upgrade", "ann", 31)
    assert ended.sentence() == (
        "the hold since 2026-03-02T00:00:00.000+00:00 is over; entries that go on from its end: 31"
    )


def test_a_hold_can_be_made_longer_and_be_ended_early(world: Asked):
    world.entry("one", HOURLY)
    world.start()
    world.ask("hold", until=world.begin + 2 * HOUR)
    world.run(world.begin + HOUR + 30 * MINUTE)
    world.ask("hold", until=world.begin + 9 * HOUR)
    world.run(world.begin + 3 * HOUR + 30 * MINUTE)
    world.ask("release", by="ann")
    world.run(world.begin + 5 * HOUR)
    assert world.hours("one") == [4, 5]
    assert [e.encode().get("by") for e in world.heard] == [None, None, "ann"]


def test_a_hold_and_pauses_that_the_store_lost_are_restored_from_memory(world: Asked):
    world.entry("one", HOURLY)
    world.entry("two", HOURLY)
    world.start()
    world.ask("pause", "one")
    world.ask("hold", until=world.begin + 2 * HOUR + 30 * MINUTE)
    world.run(world.begin + HOUR)
    world.store._redis.flushall()
    acquired = world.lease.acquire()
    assert acquired
    world.leader.take_over(acquired, world.definitions)
    world.run(world.begin + 4 * HOUR)
    assert (world.hours("one"), world.hours("two")) == ([], [3, 4])


def test_an_edited_renamed_or_removed_entry_stays_paused(world: Asked):
    world.entry("one", HOURLY)
    world.start()
    world.ask("pause", "one")
    world.run(world.begin + MINUTE)
    world.entry("one", crontab(minute=30))
    world.leader.adopt(world.definitions)
    world.run(world.begin + 2 * HOUR)
    world.definitions, before = [], world.definitions
    world.leader.adopt(world.definitions)
    world.leader.adopt(before)
    world.run(world.begin + 4 * HOUR)
    assert world.sent == []
    world.ask("resume", "one")
    world.run(world.begin + 5 * HOUR)
    assert world.hours("one") == [4.5]


def test_a_pause_stops_catching_up_and_what_was_decided_goes_on_after_it(world: Asked):
    world.entry("one", schedule(timedelta(seconds=10)), "ignore_misfire_policy")
    world.start()
    world.run(world.begin + MINUTE)
    world.crash()
    world.sent.clear()
    world.now = world.begin + 4 * HOUR
    world.start()
    for _ in range(5):
        world.leader.tick()
    world.ask("pause", "one")
    world.run(world.now + SECOND)
    before = len(world.sent)
    assert 0 < before < 1000
    world.run(world.now + MINUTE)
    assert len(world.sent) == before
    world.ask("resume", "one")
    world.run(world.now + 11 * SECOND)
    late = [moment for moment in world.scheduled() if moment <= world.begin + 4 * HOUR]
    # Each of the occurrences of the outage once.
    assert len(late) == len(set(late)) == (4 * HOUR - MINUTE) // (10 * SECOND)


def test_a_request_that_nobody_can_carry_out_stops_nothing(world: Asked, caplog: pytest.LogCaptureFixture):
    world.entry("one", HOURLY)
    world.start()
    world.store.request({"1": "no request", "2": '{"do":"dance","at":1}'})
    world.ask("pause", "nobody")
    world.ask("resume", "one")
    world.ask("release")
    world.run(world.begin + HOUR)
    assert world.hours("one") == [1]
    assert world.store.sight().requests == {}
    assert "no entry 'nobody': it cannot be paused" in caplog.text
    assert caplog.text.count("this version does not understand it") == 2
    assert world.heard == []


def test_requests_that_are_carried_out_twice_work_once(world: Asked):
    """The leader dies after it has carried them out, and before it has dropped them."""
    world.entry("one", HOURLY, "ignore_misfire_policy")
    world.start()
    world.run(world.begin + HOUR)
    for what in ("pause", "resume"):
        world.ask(what, "one")
        world.now += 30 * MINUTE
    asked = dict(world.store.sight().requests)
    assert len(asked) == 2
    world.leader.tick()
    # The second was made at half past one, and what came due since then counts.
    world.run(world.begin + 3 * HOUR - MINUTE)
    world.crash()
    RedisStore(world.url, "test").request(asked)
    world.now = world.begin + 4 * HOUR + 30 * MINUTE
    world.start()
    world.run(world.begin + 5 * HOUR)
    assert world.hours("one") == [1, 2, 3, 4, 5]
    assert world.missed == []


def test_thousands_of_entries_are_paused_in_few_calls(world: Asked):
    names = [f"e{n}" for n in range(2_000)]
    for name in names:
        world.definitions.append(Definition(name, "t", trigger_for(3600.0), MisfirePolicy()))
    world.start()
    commits, commit = [], world.store.commit
    world.store.commit = lambda *args, **kwargs: commits.append(1) or commit(*args, **kwargs)
    world.ask("pause", *names)
    world.leader.tick()
    assert len(commits) == 10
    assert world.record("e1999").paused is not None


def test_a_broken_schedule_is_not_asked_in_a_pause_and_beat_sleeps(world: Asked):
    class Broken(crontab):
        asked, fails = 0, False

        def remaining_estimate(self, last_run_at):
            Broken.asked += 1
            if Broken.fails:
                raise RuntimeError("always")
            return super().remaining_estimate(last_run_at)

    world.entry("one", Broken(minute=0))
    world.start()
    Broken.fails = True
    world.run(world.begin + HOUR + MINUTE)
    world.ask("pause", "one")
    world.run(world.now + MINUTE)
    asked = Broken.asked
    assert asked > 1
    world.run(world.now + HOUR)
    assert Broken.asked == asked
