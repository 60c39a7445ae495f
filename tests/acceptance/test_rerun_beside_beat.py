"""Thousands of missed runs are run from the page, while a beat with entries of each second goes on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import published, wait_for
from tests.support.served_shop import ON_BOTH, Shop

pytest.importorskip("playwright.sync_api")

if TYPE_CHECKING:
    from playwright.sync_api import Browser

RECORDS, ENTRIES, SECOND = 5000, 5, 1000

SEED = f"""
import django; django.setup()
from datetime import UTC, datetime, timedelta
from celery_misfire.contrib.django.models import MissedFire
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask
hourly = CrontabSchedule.objects.create(minute="0", timezone="UTC")
task = PeriodicTask.objects.create(name="reports", task="shop.make_report", crontab=hourly)
first = datetime(2026, 1, 1, tzinfo=UTC)
MissedFire.objects.bulk_create(
    MissedFire(
        task_id=f"id {{n}}", entry=task.name, periodic_task=task, task=task.task, first=at, last=at, count=1,
        reason="scheduler_down", instruction="do_nothing", detected_at=at,
    )
    for n in range({RECORDS}) for at in [first + timedelta(hours=n)]
)
second = IntervalSchedule.objects.create(every=1, period="seconds")
for n in range({ENTRIES}):
    PeriodicTask.objects.create(name=f"each second {{n}}", task="shop.fetch_stock_price", interval=second)
"""


def sent_by_beat(shop: Shop) -> dict[str, list[dict[str, object]]]:
    """Return the runs of each entry that is due each second, as the log has them."""
    found: dict[str, list[dict[str, object]]] = {}
    for line in shop.log():
        if str(line.get("entry", "")).startswith("each second"):
            found.setdefault(line["entry"], []).append(line)
    return found


@pytest.mark.long
@pytest.mark.timeout(600)
@ON_BOTH
def test_beat_goes_on_undisturbed(shop: Shop, browser: Browser) -> None:
    shop.python(SEED)
    beat = shop.start_beat()
    wait_for(lambda: len(sent_by_beat(shop)) == ENTRIES or not beat.alive, 60, what="the first runs")
    before = sum(map(len, sent_by_beat(shop).values()))

    page = shop.page(browser)
    page.goto("/admin/celery_misfire/missedfire/?state=open")
    page.check("#action-toggle")
    page.click(".actions .question a")
    page.select_option("select[name=action]", "run_selected")
    page.click("button[name=index], .actions button[type=submit]")
    assert f"Re-run these {RECORDS} occurrences?" in page.inner_text("#content")
    page.get_by_role("button", name="Yes, run now").click()
    steps = set[int]()

    def is_done() -> bool:
        told = re.match(r"(\d+) of (\d+): (\d+) sent, 0 not sent\.", page.inner_text("#rerun-told"))
        assert told, page.inner_text("#content")
        steps.add(int(told[1]))
        return told[1] == told[2] == told[3] == str(RECORDS)

    wait_for(is_done, 400, what="the end of the re-run")
    assert len(steps) > 2
    beat.stop()

    queue = published(shop.url, shop.namespace)
    rerun = [m.misfire["scheduled_fire_time"] for m in queue if m.misfire["entry"] == "reports"]
    assert len(set(rerun)) == RECORDS
    assert rerun == sorted(rerun)
    runs = sent_by_beat(shop)
    assert sum(map(len, runs.values())) > before
    for lines in runs.values():
        assert {line["outcome"] for line in lines} == {"fired"}
        scheduled = [int(str(line["scheduled"])) for line in lines]
        assert scheduled == list(range(scheduled[0], scheduled[-1] + 1, SECOND))
