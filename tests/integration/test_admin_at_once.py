"""Several people run one missed occurrence at the same moment, from the pages and from the command line."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

from celery_misfire import by_hand
from celery_misfire.misfire import to_millis
from tests.support.admin_site import NAMESPACE, admin_site
from tests.support.processes import published
from tests.support.redis_server import RedisServer

NINE = datetime(2026, 3, 2, 8, tzinfo=UTC)


def test_clicks_and_commands_at_the_same_moment_send_one_message(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    # In a file, which threads share.
    with admin_site(redis_server.url, database=str(tmp_path / "test.sqlite3")) as site:
        from django.db import connections
        from django_celery_beat.models import CrontabSchedule, PeriodicTask

        from celery_misfire.contrib.django.admin.running import AlreadyRun, Runner
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
        id_ = by_hand.task_id(NAMESPACE, "reports", to_millis(NINE))
        sendable = by_hand.Sendable("reports", "shop.reports")
        start, ends = threading.Barrier(6), list[str]()

        def click() -> None:
            runner = Runner(site.app, None)
            start.wait()
            try:
                runner.run(record, task, to_millis(NINE))
                ends.append("sent")
            except AlreadyRun:
                ends.append("already run")
            finally:
                runner.close()
                connections.close_all()

        def command() -> None:
            start.wait()
            try:
                by_hand.run_once(site.app, site.store, sendable, id_, to_millis(NINE), "ann@shop")
                ends.append("sent")
            except by_hand.AlreadyRun:
                ends.append("already run")

        threads = [threading.Thread(target=ask) for ask in (click, command) * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ends) == ["already run"] * 5 + ["sent"]
        assert len(published(site.url)) == OccurrenceRun.objects.count() == 1
