"""Several people, or beats, do the same at the same moment, from the pages and from the command line."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from celery_misfire import by_hand
from celery_misfire.misfire import to_millis
from tests.support.admin_site import NAMESPACE, admin_site
from tests.support.django_project import connected
from tests.support.postgres import Postgres
from tests.support.processes import published, wait_for
from tests.support.redis_server import RedisServer

NINE = datetime(2026, 3, 2, 8, tzinfo=UTC)


def waits_for_lock() -> bool:
    """Return True while a transaction waits for another one to end."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(cursor.fetchone()[0])


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


def test_two_who_save_the_same_at_the_same_moment(
    redis_server: RedisServer, postgres_server: Postgres
) -> None:
    with connected(postgres_server.database("postgres")), admin_site(redis_server.url) as site:
        from django.db import connections, transaction
        from django_celery_beat.models import CrontabSchedule, PeriodicTask

        from celery_misfire.contrib.django.models import MisfirePolicy

        crontab = CrontabSchedule.objects.create(minute="0")
        task = PeriodicTask.objects.create(name="reports", task="shop.reports", crontab=crontab)
        client = site.client(superuser=True)

        def save(page: str, **changes: Any) -> Any:
            data = {
                "name": "reports",
                "task": "shop.reports",
                "crontab": crontab.pk,
                "args": "[]",
                "kwargs": "{}",
                "headers": "{}",
                "misfire_policy-TOTAL_FORMS": 1,
                "misfire_policy-INITIAL_FORMS": 0,
            }
            try:
                return client.post(f"/admin/django_celery_beat/periodictask/{page}/", data | changes)
            finally:
                connections.close_all()

        with ThreadPoolExecutor(1) as pool:
            with transaction.atomic():
                theirs = MisfirePolicy.objects.create(periodic_task=task, instruction="do_nothing")
                chosen = {
                    "misfire_policy-0-instruction": "fire_once_now",
                    "misfire_policy-0-periodic_task": task.pk,
                }
                answer = pool.submit(save, f"{task.pk}/change", **chosen)
                # It has looked for a policy, and found none.
                wait_for(waits_for_lock, 30, what="the second policy")
            page = answer.result(timeout=30)
            assert page.status_code == 200
            text = page.content.decode()
            assert "Somebody else has chosen a policy meanwhile. Load this page again." in text
            theirs.refresh_from_db()
            assert theirs.instruction == "do_nothing"

            with transaction.atomic():
                PeriodicTask.objects.create(name="stocks", task="shop.stocks", crontab=crontab)
                answer = pool.submit(save, "add", name="stocks")
                wait_for(waits_for_lock, 30, what="the second task")
            page = answer.result(timeout=30)
            assert page.status_code == 200
            assert "Periodic task with this Name already exists." in page.content.decode()


def test_two_beats_that_write_the_same_entry_at_the_same_moment(
    redis_server: RedisServer, postgres_server: Postgres
) -> None:
    with connected(postgres_server.database("postgres")), admin_site(redis_server.url):
        from celery.schedules import solar
        from django.db import connections, transaction
        from django_celery_beat.models import PeriodicTask, SolarSchedule

        from celery_misfire.contrib.django.table import WrittenEntry

        fields = {"task": "shop.lights", "schedule": solar("sunset", 52, 13)}
        entry = WrittenEntry("lights", fields, {"threshold": 5.0})

        def write() -> None:
            try:
                entry.write()
            finally:
                connections.close_all()

        with ThreadPoolExecutor(1) as pool:
            with transaction.atomic():
                entry.write()
                theirs = pool.submit(write)
                wait_for(waits_for_lock, 30, what="the second beat")
            theirs.result(timeout=30)
        assert SolarSchedule.objects.count() == 1
        assert PeriodicTask.objects.get().misfire_policy.threshold == 5.0
