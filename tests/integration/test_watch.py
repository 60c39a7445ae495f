"""One look after the other of those that watch beat, on a real Redis."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab

from celery_misfire import records
from celery_misfire.conf.settings import read_settings
from celery_misfire.exceptions import StoreUnavailable
from celery_misfire.signals import beat_overdue, beat_recovered
from celery_misfire.store.port import Change
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.triggers.kinds import trigger_for
from celery_misfire.worker.watch import MOST_NAMES, Watch
from tests.support.processes import wait_for
from tests.support.redis_server import RedisServer


class Place:
    """A store with records in it, and workers that watch."""

    def __init__(self, server: RedisServer, schedule: dict[str, Any] | None = None, **settings: Any) -> None:
        self.app = Celery("watched", broker=server.url, set_as_current=False)
        self.app.conf.update({"misfire_check_rate": 60, **settings})
        self.app.conf.beat_schedule = schedule or {}
        self.store = RedisStore(server.url, "watched")
        self.alarms: list[dict[str, Any]] = []
        beat_overdue.connect(self._note, sender=self.app)

    def _note(self, sender: Any, entries: list[str], since: Any, **_: Any) -> None:
        self.alarms.append({"sender": sender, "entries": entries, "since": since})

    def watch(self) -> Watch:
        return Watch(self.app, read_settings(self.app), "worker@test")

    def due(self, ago: float, *names: str, schedule: Any = 3600.0) -> None:
        """Write the record of entries whose next fire time has passed so many seconds ago."""
        trigger = trigger_for(schedule)
        moment = round((time.time() - ago) * 1000)
        changes = []
        for name in names:
            record = records.first_seen(name, "task", trigger, moment, from_now=True)
            record = replace(record, state=replace(record.state, next_fire_time=moment))
            changes.append(Change(name, self.store.load().get(name, ""), records.dumps(record)))
        self.store.acquire("beat", ttl=10)
        self.store.commit("beat", changes)
        self.store.release("beat")

    def log(self, **line: Any) -> None:
        self.store.acquire("beat", ttl=10)
        self.store.commit("beat", [], [line])
        self.store.release("beat")

    def missed(self, entry: str, **more: Any) -> None:
        fields: dict[str, Any] = {
            "first": 1_800_000_000_000,
            "last": 1_800_000_060_000,
            "count": 2,
            "id": "the-id",
        }
        fields |= {"reason": "failover", "instruction": "do_nothing"}
        self.log(**{"event": "missed", "entry": entry, **fields, **more})


@pytest.fixture
def place(redis_server: RedisServer) -> Place:
    return Place(redis_server)


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "celery_misfire.worker.watch"]


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "celery_misfire.worker.watch")


def test_nothing_is_said_where_all_is_well(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    watch = place.watch()
    watch.look()
    place.due(-60, "tomorrow")
    watch.look()
    # Due, and somebody leads.
    place.due(600, "tick")
    place.store.acquire("beat", ttl=10)
    watch.look()

    assert said(caplog) == []
    assert place.alarms == []


def test_an_outage_has_one_alarm_and_one_end(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    watch = place.watch()
    place.due(120, "second")
    place.due(600, "first")
    place.due(1, "not yet")
    for _ in range(3):
        watch.look()
    [alarm] = place.alarms
    assert alarm["sender"] is place.app
    assert alarm["entries"] == ["first", "second"]
    assert abs(alarm["since"].timestamp() - (time.time() - 600)) < 30
    [(level, line)] = said(caplog)
    assert level == "ERROR"
    assert line.startswith("worker: beat is overdue since 20")
    assert line.endswith("and nobody leads; waiting: 'first', 'second'")

    caplog.clear()
    place.store.acquire("beat", ttl=10)
    for _ in range(3):
        watch.look()
    [(level, line)] = said(caplog)
    assert level == "INFO"
    assert line.startswith("worker: beat is back; it had been overdue since 20")

    # The next outage is another one.
    place.store.release("beat")
    watch.look()
    assert len(place.alarms) == 2


def test_the_end_of_an_alarm_is_a_signal_too(place: Place) -> None:
    told: list[tuple[Any, Any]] = []

    def note(sender: Any, since: Any, **_: Any) -> None:
        told.append((sender, since))

    beat_recovered.connect(note, sender=place.app)
    watch = place.watch()
    place.due(600, "tick")
    watch.look()
    assert told == []
    place.store.acquire("beat", ttl=10)
    for _ in range(2):
        watch.look()
    assert told == [(place.app, place.alarms[0]["since"])]


def test_many_entries_are_not_all_named_in_the_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.due(600, *[f"entry {n:03}" for n in range(MOST_NAMES + 7)])
    place.watch().look()

    [(_, line)] = said(caplog)
    assert line.endswith("'entry 009' and 7 more")
    assert len(place.alarms[0]["entries"]) == MOST_NAMES + 7


def test_the_threshold_is_the_entrys_own_where_the_worker_knows_it(redis_server: RedisServer) -> None:
    schedule = {
        "patient": {"task": "t", "schedule": 3600.0, "misfire": {"threshold": 900}},
        "strict": {"task": "t", "schedule": crontab(minute="*"), "misfire": {"threshold": 5}},
        "auto": {"task": "t", "schedule": 20.0},
    }
    place = Place(redis_server, schedule)
    place.due(30, "patient", "from the database")
    place.due(30, "strict", schedule=crontab(minute="*"))
    place.due(15, "auto", schedule=20.0)
    place.watch().look()

    assert sorted(place.alarms[0]["entries"]) == ["auto", "strict"]


def test_the_threshold_of_an_entry_from_elsewhere_is_that_of_the_app(redis_server: RedisServer) -> None:
    place = Place(redis_server, misfire_threshold=20)
    place.due(30, "late")
    place.due(10, "not yet")
    place.watch().look()

    assert place.alarms[0]["entries"] == ["late"]


def test_an_entry_that_beat_has_planned_by_another_schedule_is_watched_all_the_same(
    redis_server: RedisServer,
) -> None:
    # A new version of the app is rolled out, and its beat does not start.
    schedule = {"edited": {"task": "t", "schedule": crontab(minute="*"), "misfire": {"threshold": 900}}}
    place = Place(redis_server, schedule)
    place.due(120, "edited", schedule=3600.0)
    place.watch().look()

    assert place.alarms[0]["entries"] == ["edited"]


def test_times_are_in_the_zone_of_the_app(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(redis_server, timezone="Asia/Tokyo")
    watch = place.watch()
    watch.look()
    place.due(600, "tick")
    watch.look()

    [alarm] = [line for _, line in said(caplog)]
    assert "+09:00 and nobody leads" in alarm


def test_one_watches_at_a_time_and_another_takes_over(place: Place, redis_server: RedisServer) -> None:
    first, second = place.watch(), place.watch()
    first.look()
    place.due(600, "tick")
    second.look()
    assert place.alarms == []
    redis_server.client().delete("celery-misfire:{watched}:watcher")
    second.look()
    assert [alarm["entries"] for alarm in place.alarms] == [["tick"]]
    first.look()
    assert len(place.alarms) == 1


def test_what_beat_has_said_is_not_said_again(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    watch = place.watch()
    watch.look()
    place.missed("tick")
    watch.look()
    assert said(caplog) == []


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, asyncio.CancelledError])
def test_a_receiver_that_raises_does_not_end_the_watch(
    place: Place, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    place.app.conf.misfire_check_rate = 0.05
    place.due(600, "tick")
    watch, called = place.watch(), threading.Event()

    def broken(**_: Any) -> None:
        called.set()
        raise error

    beat_overdue.connect(broken, sender=place.app)
    try:
        watch.start()
        assert called.wait(20)
        place.store.acquire("beat", ttl=60)
        wait_for(lambda: "beat is back" in caplog.text, what="the end of the alarm")
    finally:
        watch.stop()
        beat_overdue.disconnect(broken, sender=place.app)


def test_a_store_that_cannot_be_reached_is_mentioned_once(
    place: Place, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    place.app.conf.misfire_check_rate = 0.05
    watch = place.watch()
    redis_server.kill()
    with pytest.raises(StoreUnavailable):
        watch.look()
    watch.start()
    try:
        wait_for(lambda: said(caplog), what="the line")
        # Time for some looks more.
        time.sleep(0.5)
        [(level, line)] = said(caplog)
        assert level == "WARNING"
        assert line.startswith("worker: nobody can see whether beat is overdue")
        redis_server.start()
        place.due(600, "tick")
        wait_for(lambda: place.alarms, what="the alarm")
        again = [line for level, line in said(caplog) if level == "INFO"]
        address = redis_server.url.partition("://")[2].partition("/")[0]
        assert len(again) == 1
        assert again[0].startswith(f"worker: Redis at {address} answers again after ")
    finally:
        watch.stop()
