"""Two people run one missed occurrence at the same moment; in a database that their threads share."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

from celery_misfire.misfire import to_millis
from tests.support.admin_site import admin_site
from tests.support.processes import published
from tests.support.redis_server import RedisServer

NINE = datetime(2026, 3, 2, 8, tzinfo=UTC)


def test_two_clicks_at_the_same_moment_send_one_message(redis_server: RedisServer, tmp_path: Path) -> None:
    with admin_site(redis_server.url, database=str(tmp_path / "test.sqlite3")) as site:
        from django.db import connections
        from django_celery_beat.models import CrontabSchedule, PeriodicTask

        from celery_misfire.contrib.django.admin.running import AlreadyRun
        from celery_misfire.contrib.django.admin.running import run as run_it
        from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun

        crontab = CrontabSchedule.objects.create(minute="0")
        task = PeriodicTask.objects.create(name="reports", task="shop.reports", crontab=crontab)
        record = MissedFire.objects.create(
            task_id="x",
            entry="reports",
            periodic_task=task,
            task="shop.reports",
            first=NINE,
            last=NINE,
            count=1,
            detected_at=NINE,
        )
        start, ends = threading.Barrier(4), list[str]()

        def click() -> None:
            start.wait()
            try:
                run_it(site.app, record, to_millis(NINE), None)
                ends.append("sent")
            except AlreadyRun:
                ends.append("already run")
            finally:
                connections.close_all()

        threads = [threading.Thread(target=click) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ends) == ["already run", "already run", "already run", "sent"]
        assert len(published(site.url)) == OccurrenceRun.objects.count() == 1
