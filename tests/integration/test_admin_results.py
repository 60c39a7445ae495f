"""What the admin tells of results, where django-celery-results is installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest

from tests.support import django_settings
from tests.support.admin_site import AdminSite, admin_site
from tests.support.redis_server import RedisServer

NINE = datetime(2026, 3, 2, 8, tzinfo=UTC)
MISSED = "/admin/celery_misfire/missedfire/"


@pytest.fixture(scope="module")
def site(server: RedisServer) -> Iterator[AdminSite]:
    apps = [*django_settings.INSTALLED_APPS, "django_celery_results"]
    with admin_site(server.url, INSTALLED_APPS=apps) as site:
        from django.apps import apps as django_apps
        from django.contrib import admin
        from django_celery_results.models import TaskResult

        if not admin.site.is_registered(TaskResult):
            admin.site.register(TaskResult)
        load_urls()
        try:
            yield site
        finally:
            # The sites of other tests do not have that app.
            models = {*admin.site._registry} & {
                *django_apps.get_app_config("django_celery_results").get_models()
            }
            admin.site.unregister(list(models))
            load_urls()


def load_urls() -> None:
    """Have the site serve what is registered now: another test may have loaded its URLs."""
    from django.urls import clear_url_caches

    from tests.support import admin_urls

    importlib.reload(admin_urls)
    clear_url_caches()


def test_a_re_run_tells_its_result_and_leads_to_it_whoever_may_see_it(site: AdminSite) -> None:
    from django_celery_beat.models import CrontabSchedule, PeriodicTask
    from django_celery_results.models import TaskResult

    from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun

    hourly = CrontabSchedule.objects.create(minute="0", timezone="UTC")
    task = PeriodicTask.objects.create(name="reports", task="shop.reports", crontab=hourly)
    record = MissedFire.objects.create(
        task_id="x",
        entry="reports",
        periodic_task=task,
        task="shop.reports",
        first=NINE,
        last=NINE + timedelta(hours=2),
        count=3,
        reason="scheduler_down",
        instruction="do_nothing",
        detected_at=NINE,
    )
    may_run = ("view_missedfire", "run_missedfire")
    client = site.client(*may_run, "view_taskresult")
    client.post(f"{MISSED}run/", {"run": str(record.pk)})
    runs = list(OccurrenceRun.objects.order_by("scheduled_fire_time"))
    done: dict[str, Any] = {"task_name": "shop.reports", "result": '"secret"'}
    TaskResult.objects.create(task_id=runs[0].task_id, status="SUCCESS", **done)
    TaskResult.objects.filter(task_id=runs[0].task_id).update(
        date_started=NINE + timedelta(hours=9), date_done=NINE + timedelta(hours=9, seconds=2.5)
    )
    failed = TaskResult.objects.create(task_id=runs[1].task_id, status="FAILURE", **done)
    rerun = f"/admin/celery_misfire/rerun/{runs[0].rerun_id}/change/"
    for url in (f"{MISSED}{record.pk}/change/", rerun):
        text = unescape(client.get(url).content.decode())
        assert "succeeded, started 2026-03-02 18:00:00+01:00, took 2.5 s" in text
        assert f'href="/admin/django_celery_results/taskresult/{failed.pk}/change/">failed at ' in text
        assert "secret" not in text
        assert "taskresult" not in site.client(*may_run).get(url).content.decode()
    assert "no result yet" in client.get(rerun).content.decode()
