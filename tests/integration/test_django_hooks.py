"""What others do with the scheduler on the tables of django-celery-beat: see its entries, derive from it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import schedule

from tests.support.django_project import DjangoProject
from tests.support.processes import published, wait_for
from tests.support.redis_server import RedisServer


@pytest.fixture
def app(site: DjangoProject) -> Iterator[Celery]:
    app = Celery("shop", broker=site.url, set_as_current=False)
    app.conf.update(misfire_standby_poll=0.1, result_expires=None)
    yield app
    app.close()


def sent(site: DjangoProject, task: str) -> int:
    return sum(message.task == task for message in published(site.url))


def test_the_schedule_contains_and_iterates_the_rows(site: DjangoProject, app: Celery) -> None:
    from celery_misfire.contrib.django.beat import DatabaseScheduler

    site.add("row", interval=1)
    site.add("cannot be read", interval=60, args="[1")
    beat: Any = DatabaseScheduler(app)
    try:
        wait_for(lambda: beat.tick() >= 0 and sent(site, "record"))
        beat.schedule["put in"] = ScheduleEntry(
            name="put in", task="shop.put_in", schedule=schedule(0.2, app=app), app=app
        )
        assert set(beat.schedule) == {"row", "put in"}
        assert {name: entry.task for name, entry in beat.schedule.items()} == {
            "row": "record",
            "put in": "shop.put_in",
        }
        assert len(beat.schedule) == 2
        assert "row" in beat.schedule
        assert "unknown" not in beat.schedule
        assert beat.schedule.get("unknown") is None
        wait_for(lambda: beat.tick() >= 0 and sent(site, "shop.put_in"))
        counts = {name: entry.total_run_count for name, entry in beat.schedule.items()}
        assert counts == {"row": sent(site, "record"), "put in": sent(site, "shop.put_in")}
        del beat.schedule["put in"]
        assert set(beat.schedule) == {"row"}
        with pytest.raises(KeyError):
            del beat.schedule["row"]
    finally:
        beat.close()


def test_a_row_that_celery_named_goes_on_under_a_name_without_arguments(
    site: DjangoProject, app: Celery, redis_server: RedisServer
) -> None:
    from celery_misfire.contrib.django.beat import DatabaseScheduler

    row = site.add("record('hunter2')", interval=3600, args='["hunter2"]')
    shown = f"record(...) row {row.pk}"
    state, client = "celery-misfire:{shop}:state", redis_server.client()

    def beat_until(ready: Callable[[Any], Any]) -> None:
        beat: Any = DatabaseScheduler(app)
        try:
            wait_for(lambda: beat.tick() >= 0 and ready(beat))
        finally:
            beat.close()

    beat_until(lambda beat: client.hexists(state, f"e:{shown}"))
    before = json.loads(client.hget(state, f"e:{shown}"))
    # A version that used the row's own name, and stopped with a run that is due.
    before["state"]["next_fire_time"] -= 3600_000
    before["name"] = row.name
    client.hdel(state, f"e:{shown}")
    client.hset(state, f"e:{row.name}", json.dumps(before))

    def has_run(beat: Any) -> bool:
        assert set(beat.schedule) in ({shown}, set())
        return bool(sent(site, "record"))

    beat_until(has_run)
    after = json.loads(client.hget(state, f"e:{shown}"))
    assert after["state"]["next_fire_time"] == before["state"]["next_fire_time"] + 3600_000
    [message] = published(site.url)
    assert message.headers["periodic_task_name"] == message.misfire["entry"] == shown
    # Another version may come back: nothing of the old name is left that it could plan by.
    assert json.loads(client.hget(state, f"e:{row.name}"))["removed_at"]


def test_entries_of_the_settings_that_celery_named_are_told_without_arguments(
    site: DjangoProject, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    from django_celery_beat.models import PeriodicTask

    from celery_misfire.contrib.django.beat import DatabaseScheduler

    app.conf.beat_schedule = {
        "record('hunter2')": {"task": "record", "schedule": 60.0, "options": {"expires": 5}},
        "record('hunter3')": {"task": "record", "schedule": 0.5, "one_off": True},
        "record('hunter4')": {"task": "record", "schedule": 60.0, "start_time": "never"},
    }
    # As an entry of the settings alone is called.
    site.add("record(...)", interval=60)
    with caplog.at_level(logging.INFO):
        beat: Any = DatabaseScheduler(app)
        try:
            wait_for(lambda: beat.tick() >= 0 and sent(site, "record"))
        finally:
            beat.close()
    row = PeriodicTask.objects.get(name__contains="hunter")
    assert row.name == "record('hunter2')"
    # So the command line has them.
    names = {f"record(...) row {row.pk}", "record(...)", "record(...) #2", "record(...) #3"}
    assert set(DatabaseScheduler.configured(app)[1]) == names
    for told in (
        "beat_schedule['record(...)'].options: a row has no column for 'expires'",
        "beat_schedule['record(...) #2']: its schedule has no model, so 'one_off' has no effect",
        "entry 'record(...)' cannot be written as a row",
        "periodic task 'record(...)' is not used",
    ):
        assert told in caplog.text
    assert "hunter" not in caplog.text
    assert "hunter" not in str([vars(line) for line in caplog.records])


def test_an_entry_class_of_the_apps_own_makes_the_entries_of_rows(site: DjangoProject, app: Celery) -> None:
    from django_celery_beat.schedulers import ModelEntry

    from celery_misfire.contrib.django.beat import DatabaseScheduler

    class OwnEntry(ModelEntry):
        def __init__(self, model: Any, app: Any = None) -> None:
            super().__init__(model, app=app)
            self.task = f"{self.task}.v2"

    class Own(DatabaseScheduler):
        Entry = OwnEntry

    site.add("row", interval=1)
    beat: Any = Own(app)
    try:
        wait_for(lambda: beat.tick() >= 0 and sent(site, "record.v2"))
    finally:
        beat.close()
