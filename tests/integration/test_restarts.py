"""A deploy is no alarm, and hides no outage: beats that stop and start, on a virtual clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from celery.schedules import crontab, schedule

from celery_misfire.events import Event, Led, Misfired
from celery_misfire.exceptions import BrokerUnavailable
from celery_misfire.leadership.leader import Leader
from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.member import Member
from celery_misfire.misfire import MisfirePolicy
from celery_misfire.records import Definition
from celery_misfire.sending.dispatch import Attempt, Fate, Message
from celery_misfire.sending.missed_runs import Report
from celery_misfire.store.memory import MemoryDatabase, MemoryStore
from celery_misfire.store.state_mark import Destination
from celery_misfire.triggers.kinds import trigger_for

SECOND, HOUR = 1_000, 3_600_000
#: 23:00 UTC.
BEGIN = 1_700_002_800_000


@dataclass
class World:
    """One store, one clock, one broker; beats come and go."""

    now: int = BEGIN
    grace: float = 60.0
    definitions: list[Definition] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    misfires: list[Misfired] = field(default_factory=list)
    takeovers: list[str] = field(default_factory=list)
    broker_is_up: bool = True
    #: How far the clock of the store is ahead of that of the beats, in milliseconds.
    ahead: int = 0
    beats: list[Member] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.database = MemoryDatabase(lambda: (self.now + self.ahead) / 1000)

    def every(self, *periods: int, instruction: str = "do_nothing") -> None:
        for seconds in periods:
            trigger, name = trigger_for(schedule(seconds)), f"{seconds} s"
            self.definitions.append(Definition(name, f"shop.{name}", trigger, MisfirePolicy(instruction)))

    def start(self) -> Member:
        # The clock of the lease stands still: nothing runs out.
        store = MemoryStore(self.database)
        lease = Lease(store, ttl=1e9, renew_every=1e6, clock=lambda: 0)
        leader = Leader(
            store,
            lease,
            self,
            self,
            namespace="test",
            listeners=[self.hear],
            restart_grace=self.grace,
            wall=lambda: self.now,
            steady=lambda: self.now / 1000,
        )
        beat = Member(
            store,
            lease,
            leader,
            app="test",
            namespace="test",
            poll=0,
            description=("", ""),
            definitions=lambda: self.definitions,
        )
        self.beats.append(beat)
        beat.tick()
        return beat

    def stop(self) -> None:
        """Stop the beat that leads in an orderly way."""
        self.beats.pop(0).close()

    def kill(self) -> None:
        """End the beat that leads without a word."""
        self.beats.pop(0)._lease._stop.set()
        self.database.contents.expiring.clear()

    def run(self, seconds: float) -> None:
        until = self.now + round(seconds * SECOND)
        while self.now < until:
            delays = [beat.tick() for beat in list(self.beats)]
            self.now = min(until, self.now + max(1, round(delays[0] * 1000)))
        for beat in self.beats:
            beat.tick()

    def away(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)

    def restart(self, seconds: float) -> None:
        self.stop()
        self.away(seconds)
        self.start()
        self.run(1)

    @property
    def alarms(self) -> list[tuple[str, str]]:
        """Entry and reason of each miss that raises ``task_failure``."""
        return [m for m in self.missed if m[1] != "restarted"]

    @property
    def missed(self) -> list[tuple[str, str]]:
        return [(r.missed.entry, str(r.missed.reason)) for r in self.reports]

    # Publisher
    was_asked = True

    def connect(self) -> None:
        if not self.broker_is_up:
            raise BrokerUnavailable("down")

    def read(self, key: str) -> None:
        """It is no Redis."""
        self.connect()

    def destination(self, keys: Sequence[str]) -> Destination:
        self.connect()
        return Destination("memory", "", "celery")

    def publish(self, message: Message) -> Attempt:
        if not self.broker_is_up:
            return Attempt(Fate.NOT_TRIED, BrokerUnavailable("down"))
        self.sent.append(message.intent.scheduled)
        return Attempt(Fate.SENT)

    # Reporter
    def submit(self, report: Report) -> None:
        self.reports.append(report)
        self._done.append(report)

    def finished(self) -> list[Report]:
        done, self._done = self._done, []
        return done

    _done: list[Report] = field(default_factory=list)

    def hear(self, events: Sequence[Event]) -> None:
        self.misfires += [event for event in events if isinstance(event, Misfired)]
        self.takeovers += [event.reason for event in events if isinstance(event, Led)]


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("phase", range(0, 30, 3))
def test_restarts_of_twelve_seconds_under_frequent_entries_are_recorded_and_no_alarm(
    world: World, phase: int
):
    world.every(5, 10, 15, 20, 30)
    world.start()
    world.run(60 + phase)
    for _ in range(3):
        world.restart(12)
        world.run(44)
    assert world.takeovers == ["scheduler_down", *["restarted"] * 3]
    assert world.alarms == []
    assert len(world.missed) >= 3
    assert {m.reason for m in world.misfires} == {"restarted"}


def test_the_same_without_a_grace_is_an_alarm_as_is_a_crash(world: World):
    world.grace = 0
    world.every(5)
    world.start()
    world.run(60)
    world.restart(12)
    assert world.alarms == [("5 s", "scheduler_down")]
    world.grace = 60
    world.run(60)
    world.kill()
    world.away(12)
    world.start()
    world.run(20)
    assert world.alarms == [("5 s", "scheduler_down")] * 2
    assert world.takeovers == ["scheduler_down"] * 3


def test_a_recovered_run_of_a_restart_says_so_too(world: World):
    world.every(5, instruction="fire_once_now")
    world.start()
    world.run(60)
    world.restart(12)
    assert world.missed == []
    assert [m.reason for m in world.misfires] == ["restarted"]


def test_a_clean_handover_to_a_standby_counts(world: World):
    world.every(5)
    world.start()
    world.start()
    world.run(60)
    world.stop()
    world.away(8)
    world.run(20)
    assert world.takeovers == ["scheduler_down", "restarted"]
    assert world.missed == [("5 s", "restarted")]


# -- condition 1: the take-over comes soon after the clean stop of the term just before ---------------------


def test_a_clean_stop_followed_by_an_outage_is_an_alarm(world: World):
    """Redis is away when beat comes back, say: it takes over when Redis is there again."""
    world.every(5)
    world.start()
    world.run(60)
    world.restart(61)
    assert world.alarms == [("5 s", "scheduler_down")]
    assert world.takeovers == ["scheduler_down"] * 2


def test_the_clock_of_the_store_tells_how_long_it_took(world: World):
    world.ahead = 3 * HOUR
    world.every(5)
    world.start()
    world.run(60)
    world.stop()
    # Somebody sets the store's clock back: how long it took is not known any more.
    world.ahead = 0
    world.away(12)
    world.start()
    world.run(10)
    assert world.alarms == [("5 s", "scheduler_down")]


def test_a_crash_after_a_restart_is_not_covered_by_the_clean_stop_before(world: World):
    world.every(5)
    world.start()
    world.run(60)
    world.restart(3)
    world.run(10)
    world.kill()
    world.away(12)
    world.start()
    world.run(10)
    assert ("5 s", "scheduler_down") in world.alarms
    assert world.takeovers[-1] == "scheduler_down"


def test_a_take_over_that_fails_half_way_leaves_no_mark_of_a_clean_stop(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    """Else beats that try for an hour would make a restart of it."""
    world.every(5)
    world.start()
    world.run(60)
    world.stop()
    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "describe", lambda *_: 1 / 0)
        for _ in range(10):
            world.away(10)
            with pytest.raises(ZeroDivisionError):
                world.start()
            world.beats.clear()
    world.start()
    world.run(20)
    assert world.alarms == [("5 s", "scheduler_down")]
    assert "restarted" not in world.takeovers[2:]


# -- condition 2: the next run comes soon -------------------------------------------------------------------


def test_a_daily_run_in_the_window_of_a_deploy_is_an_alarm(world: World):
    policy = MisfirePolicy("do_nothing", threshold=5)
    daily = trigger_for(crontab(hour=23, minute=30))
    world.definitions.append(Definition("daily", "shop.daily", daily, policy))
    world.start()
    world.run(24.5 * 3600 - 2)
    assert world.sent == [BEGIN + HOUR // 2]
    world.restart(12)
    assert world.missed == [("daily", "scheduler_down")]
    assert world.takeovers == ["scheduler_down", "restarted"]


# -- condition 3: the entry has fired since the restart before -----------------------------------------------


def test_restarts_in_a_row_under_which_an_entry_never_fires_are_an_alarm(world: World):
    """A liveness probe restarts beat every 50 s, and each start takes long."""
    world.every(30)
    world.start()
    world.run(100)
    fired = len(world.sent)
    for _ in range(12):
        world.stop()
        # Whatever the phase, beat is never there for a whole period of the entry.
        world.away(45)
        world.start()
        world.run(5)
    # One that is late by less than half a period is sent.
    restarts_with_a_run = len(world.sent) - fired
    assert restarts_with_a_run < 12
    assert len(world.alarms) >= 12 - 2 * restarts_with_a_run - 1
    assert world.missed[0] == ("30 s", "restarted")


def test_a_beat_that_is_restarted_before_it_sends_anything_is_an_alarm(world: World):
    world.every(5)
    world.start()
    world.run(60)
    world.restart(12)
    for _ in range(5):
        world.stop()
        world.away(12)
        # It plans what is late, and is stopped before the next run is due.
        world.start()
        world.run(0.001)
    assert world.missed == [("5 s", "restarted"), *[("5 s", "scheduler_down")] * 5]


# -- what is no matter of a restart --------------------------------------------------------------------------


def test_a_broker_that_is_away_when_beat_stops_or_starts_is_an_outage(world: World):
    world.every(5)
    world.start()
    world.run(60)
    world.broker_is_up = False
    world.run(20)
    world.stop()
    world.away(12)
    world.broker_is_up = True
    world.start()
    world.run(20)
    assert world.takeovers[-1] == "scheduler_down"
    assert len(world.alarms) >= 1
    assert "restarted" not in [reason for _, reason in world.missed]

    reports = len(world.reports)
    world.run(60)
    world.stop()
    world.broker_is_up = False
    world.away(12)
    world.start()
    world.run(20)
    world.broker_is_up = True
    world.run(20)
    assert world.takeovers[-1] == "restarted"
    assert world.missed[reports:] == [("5 s", "scheduler_down")]
