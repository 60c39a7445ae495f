"""What others do with a Celery scheduler: they hook into it, derive from it, and change its entries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedule
from kombu import Producer

from celery_misfire.beat import MisfireScheduler
from celery_misfire.conf.settings import read_settings
from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.store.redis_store import RedisStore
from tests.support.log_lines import one_by_one
from tests.support.processes import wait_for
from tests.support.redis_server import RedisServer

Make = Callable[..., MisfireScheduler]


@pytest.fixture
def make(redis_server: RedisServer) -> Iterator[Make]:
    beats: list[MisfireScheduler] = []

    def make(cls: type[MisfireScheduler] = MisfireScheduler, **options: Any) -> MisfireScheduler:
        app = Celery("shop", broker="memory://", backend=redis_server.url, set_as_current=False)
        app.conf.update(misfire_redis_url=redis_server.url, misfire_standby_poll=0.1)
        app.conf.beat_schedule = {"often": {"task": "shop.often", "schedule": 0.2}}
        beats.append(cls(app, **options))
        return beats[-1]

    yield make
    for beat in beats:
        beat.close()
        beat.app.close()


def run(beat: MisfireScheduler, true: Callable[[], Any]) -> None:
    wait_for(lambda: beat.tick() >= 0 and true())


def sent(beat: MisfireScheduler, entry: str) -> int:
    return sum(
        line["event"] == "sent" and line["entry"] == entry
        for line in one_by_one(RedisStore.of(read_settings(beat.app)).log())
    )


def entry(beat: MisfireScheduler, name: str, task: str = "shop.new", every: float = 0.2) -> ScheduleEntry:
    return ScheduleEntry(name=name, task=task, schedule=schedule(every, app=beat.app), app=beat.app)


# -- the mapping of the entries ----------------------------------------------------------------------------


def test_an_entry_that_is_put_into_the_schedule_runs_and_one_that_is_taken_out_ends(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    beat = make()
    run(beat, lambda: sent(beat, "often"))
    beat.schedule["new"] = entry(beat, "new")
    run(beat, lambda: sent(beat, "new"))
    del beat.schedule["often"]
    beat.tick()
    before = sent(beat, "often")
    run(beat, lambda: sent(beat, "new") > 3)
    assert sent(beat, "often") == before
    assert "KeyError" not in caplog.text


def test_an_entry_that_is_replaced_runs_as_its_successor(make: Make) -> None:
    beat = make()
    run(beat, lambda: sent(beat, "often"))
    beat.schedule["often"] = entry(beat, "often", every=3600.0)
    beat.tick()
    record = beat._leader.record("often")
    assert record is not None
    assert "interval=3600000" in record.fingerprint


def test_a_schedule_that_is_replaced_or_merged_as_a_whole_is_taken_up(make: Make) -> None:
    beat = make()
    beat.tick()
    beat.schedule = {"other": entry(beat, "other")}
    run(beat, lambda: sent(beat, "other"))
    beat.merge_inplace({"merged": {"task": "shop.merged", "schedule": 0.2}})
    run(beat, lambda: sent(beat, "merged"))
    assert set(beat._leader._ledger.definitions) == {"merged"}


def test_nothing_is_adopted_anew_while_the_entries_stay_the_same(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = make()
    run(beat, lambda: sent(beat, "often"))
    monkeypatch.setattr(beat._leader, "adopt", lambda *_: pytest.fail("adopted anew"))
    run(beat, lambda: sent(beat, "often") > 3)


# -- counters ----------------------------------------------------------------------------------------------


class Reserving(MisfireScheduler):
    def reserve(self, entry: Any) -> Any:
        vars(self).setdefault("reserved", []).append(entry.name)
        return super().reserve(entry)


def test_the_counters_of_an_entry_advance_when_a_run_was_sent(make: Make) -> None:
    begun = datetime.now(UTC)
    beat: Any = make(Reserving)
    beat.tick()
    first = beat.schedule["often"]
    before = sent(beat, "often")
    assert first.total_run_count == before
    run(beat, lambda: sent(beat, "often") > before + 1)
    now = beat.schedule["often"]
    assert now.total_run_count == sent(beat, "often") == len(beat.reserved)
    assert begun < now.last_run_at <= datetime.now(UTC)
    assert now.last_run_at > first.last_run_at


class NoSend(MisfireScheduler):
    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("no")


def test_the_counters_of_an_entry_stay_when_nothing_is_sent(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    beat = make(NoSend)
    run(beat, lambda: "often" in caplog.text)
    assert beat.schedule["often"].total_run_count == 0


def test_an_entry_whose_options_ignore_the_result_has_no_result_of_a_missed_run(
    make: Make,
) -> None:
    beat = make(NoSend)
    new = {"task": "shop.new", "schedule": 0.2, "misfire": {"instruction": "do_nothing", "threshold": 0.3}}
    beat.update_from_dict({"kept": new, "ignored": new | {"options": {"ignore_result": True}}})

    def reported() -> list[dict[str, Any]]:
        lines = [line for line in RedisStore.of(read_settings(beat.app)).log() if line["event"] == "missed"]
        return lines if {line["entry"] for line in lines} >= {"kept", "ignored"} else []

    run(beat, reported)
    run(beat, lambda: not beat._leader._misses.waiting)
    states = {(line["entry"], beat.app.backend.get_state(line["id"])) for line in reported()}
    assert {("kept", "MISSED"), ("ignored", "PENDING")} <= states
    assert ("ignored", "MISSED") not in states


# -- classes of the app's own ------------------------------------------------------------------------------


class OwnDue(MisfireScheduler):
    def is_due(self, entry: Any) -> Any:
        return super().is_due(entry)


class DueEntry(ScheduleEntry):
    def is_due(self) -> Any:
        return super().is_due()


class OwnEntry(MisfireScheduler):
    Entry = DueEntry


@pytest.mark.parametrize(("cls", "named"), [(OwnDue, "OwnDue"), (OwnEntry, "DueEntry")])
def test_a_class_that_says_itself_what_is_due_is_refused_at_start(
    make: Make, cls: type[MisfireScheduler], named: str
) -> None:
    with pytest.raises(MisfireConfigError) as caught:
        make(cls)
    assert caught.value.problems == (
        f"celery_misfire: {__name__}.{named}.is_due: is not asked, as fire times are planned ahead. "
        "Give a schedule class such an is_due().",
    )


def test_an_entry_that_says_itself_whether_it_is_due_is_left_out(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    beat = make()
    beat.schedule["new"] = DueEntry(
        name="new", task="shop.new", schedule=schedule(0.2, app=beat.app), app=beat.app
    )
    beat.tick()
    assert "entry 'new' is left out" in caplog.text
    assert "is_due: is not asked" in caplog.text


class CountingEntry(ScheduleEntry):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.task = f"{self.task}.v2" if not self.task.endswith(".v2") else self.task


class OwnPlainEntry(MisfireScheduler):
    Entry = CountingEntry


def test_an_entry_class_of_the_apps_own_is_used(make: Make) -> None:
    beat = make(OwnPlainEntry)
    run(beat, lambda: sent(beat, "often"))
    record = beat._leader.record("often")
    assert record is not None
    assert record.task == "shop.often.v2"
    assert isinstance(beat.schedule["often"], CountingEntry)


class OwnProducer(Producer):
    published: ClassVar[list[str]] = []

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        self.published.append(kwargs["correlation_id"])
        return super().publish(*args, **kwargs)


def test_the_producer_class_that_is_given_is_used_on_the_connection_that_scheduler_connection_is(
    make: Make,
) -> None:
    OwnProducer.published.clear()
    beat = make(Producer=OwnProducer)
    run(beat, lambda: sent(beat, "often"))
    assert len(OwnProducer.published) == sent(beat, "often")
    assert isinstance(beat.producer, OwnProducer)
    assert beat.connection is beat.producer.connection
    assert beat.connection is beat._broker._connection


def test_a_producer_that_is_no_class_of_kombus_is_refused(make: Make) -> None:
    with pytest.raises(MisfireConfigError, match=r"Producer: expected a subclass of kombu\.Producer, got"):
        make(Producer=lambda *_, **__: None)


# -- monitors ----------------------------------------------------------------------------------------------


def test_whoever_wraps_the_tick_of_celerys_class_sees_ours(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks: list[tuple[str, float]] = []
    original = Scheduler.tick
    names: list[str] = []

    def traced(self: Any, *args: Any, **kwargs: Any) -> float:
        before = sent(beat, "often")
        delay: float = original(self, *args, **kwargs)
        names.extend(["often"] * (sent(beat, "often") - before))
        ticks.append((type(self).__name__, delay))
        return delay

    monkeypatch.setattr(Scheduler, "tick", traced)
    beat = make()
    run(beat, lambda: sent(beat, "often"))
    assert {name for name, _ in ticks} == {"MisfireScheduler"}
    # Every message is sent inside a tick.
    assert len(names) == sent(beat, "often")


def test_a_beat_that_stands_by_respects_max_interval(make: Make, redis_server: RedisServer) -> None:
    leader = make()
    leader.tick()
    beat = make(max_interval=0.07)
    assert beat.tick() <= 0.07
    assert not beat._member.holds_lease
