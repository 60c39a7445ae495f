"""One row whose schedule cannot be read: the pages, the command line and the watch go on with the others."""

from __future__ import annotations

from typing import Any

import pytest

from celery_misfire.conf.settings import read_settings
from tests.support.admin_site import AdminSite, now

HOUR = 3_600_000
FLEET, MISSED = "/admin/celery_misfire/fleet/", "/admin/celery_misfire/missedfire/"


@pytest.fixture(params=["timezone = 'Mars/Base'", "minute = '99'"])
def rows(request: pytest.FixtureRequest, admin: AdminSite) -> tuple[Any, Any]:
    """A good row and a bad one, both late."""
    from django.db import connection
    from django_celery_beat.models import CrontabSchedule, PeriodicTask

    good, bad = (
        PeriodicTask.objects.create(
            name=name, task="shop.reports", crontab=CrontabSchedule.objects.create(minute=minute)
        )
        for name, minute in (("good", "0"), ("bad", "30"))
    )
    admin.plan(good, bad, next_fire_time=now() - 3 * HOUR)
    # The form refuses it; a zone may be gone after an update of the system.
    with connection.cursor() as cursor:
        table = CrontabSchedule._meta.db_table
        cursor.execute(f"UPDATE {table} SET {request.param} WHERE id = %s", [bad.crontab_id])
    return good, PeriodicTask.objects.get(pk=bad.pk)


def test_pages_go_on_with_the_others(admin: AdminSite, rows: tuple[Any, Any]):
    from celery_misfire.contrib.django.models import MissedFire
    from celery_misfire.contrib.django.moments import as_stored

    good, bad = rows
    records = [
        MissedFire.objects.create(
            task_id=task.name,
            entry=task.name,
            periodic_task=task,
            task=task.task,
            first=as_stored(now() - 3 * HOUR),
            last=as_stored(now() - 3 * HOUR),
            count=1,
            detected_at=as_stored(now()),
        )
        for task in (good, bad)
    ]
    client = admin.client(superuser=True)
    pages = [FLEET, f"{FLEET}what-if/", MISSED]
    pages += [f"{MISSED}{record.pk}/change/" for record in records]
    pages += [f"{MISSED}run/?run={record.pk}" for record in records]
    for page in pages:
        answer = client.get(page)
        assert answer.status_code == 200, page
        assert "bad" in answer.content.decode() or "good" in answer.content.decode()
    assert client.get(f"{FLEET}health.json").json()["overdue"] == 2


def test_the_command_line_goes_on_with_the_others(admin: AdminSite, rows: tuple[Any, Any]):
    from celery_misfire.contrib.django.beat import DatabaseScheduler

    _settings, entries = DatabaseScheduler.configured(admin.app)
    assert entries["good"].trigger is not None
    assert entries["bad"].trigger is None


def test_the_watch_knows_the_others(admin: AdminSite, rows: tuple[Any, Any]):
    from celery_misfire.contrib.django.planned import find

    known = find(["good", "bad"], read_settings(admin.app))
    assert known["good"][0] is not None
    assert known["bad"] == (None, None)
