"""The watch over beat on a Django site: how late a row may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import DatabaseError

from celery_misfire.conf.settings import read_settings
from celery_misfire.signals import beat_overdue
from celery_misfire.worker.watch import Watch, finders
from tests.support.admin_site import AdminSite, now

SECOND = 1_000


@pytest.fixture
def alarms(admin: AdminSite, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    from celery_misfire.contrib.django import mail, planned

    # Its thread would write to the database of another test.
    monkeypatch.setattr(mail, "_in_thread", lambda _do: None)
    planned.install()
    told: list[list[str]] = []

    def note(entries: list[str], **_: Any) -> None:
        told.append(sorted(entries))

    beat_overdue.connect(note, sender=admin.app)
    yield told
    beat_overdue.disconnect(note, sender=admin.app)


def late(site: AdminSite, name: str, seconds: int, *, every: int = 3600, **policy: Any) -> Any:
    """Add a row that beat has planned, and that is late by so many seconds."""
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    from celery_misfire.contrib.django.models import MisfirePolicy

    interval = IntervalSchedule.objects.get_or_create(every=every, period="seconds")[0]
    task = PeriodicTask.objects.create(name=name, task="shop.stocks", interval=interval)
    if policy:
        MisfirePolicy.objects.create(periodic_task=task, **policy)
    site.plan(task, next_fire_time=now() - seconds * SECOND)
    return task


def look(site: AdminSite) -> None:
    """Look, when no beat leads."""
    site.store.release("the test")
    Watch(site.app, read_settings(site.app), "worker@test").look()


def test_a_row_may_be_late_by_its_own_threshold(admin: AdminSite, alarms: list[list[str]]):
    late(admin, "patient", 120, threshold=900)
    late(admin, "strict", 30, threshold=5)
    late(admin, "often", 30, every=20)
    late(admin, "hourly", 30)
    late(admin, "off", 120, instruction="off")
    with admin.settings(misfire_policies={"of the settings": {"threshold": 900}}):
        late(admin, "of the settings", 120)
        # Celery made this name of the arguments of an entry that has none.
        late(admin, "shop.stocks('hunter2')", 30, threshold=5)
        look(admin)
    [names] = alarms
    assert names[:2] == ["off", "often"]
    assert names[2].startswith("shop.stocks(...) row ")
    assert names[3:] == ["strict"]


def test_a_row_with_a_new_schedule_is_watched_by_the_threshold_of_the_app(
    admin: AdminSite, alarms: list[list[str]]
):
    from django_celery_beat.models import IntervalSchedule

    task = late(admin, "edited", 120, threshold=900)
    task.interval = IntervalSchedule.objects.create(every=7, period="minutes")
    task.save()
    look(admin)
    assert alarms == [["edited"]]


def test_without_the_database_the_alarm_comes_all_the_same(admin: AdminSite, alarms: list[list[str]]):
    def fails(*_: Any) -> Any:
        raise DatabaseError

    late(admin, "hourly", 120)
    finders[:] = [fails]
    look(admin)
    assert alarms == [["hourly"]]
