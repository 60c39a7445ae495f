"""What others do with the scheduler on the tables of django-celery-beat: see its entries, derive from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import schedule

from tests.support.django_project import DjangoProject
from tests.support.processes import published, wait_for


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
