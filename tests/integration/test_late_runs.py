"""What a real worker says of a backlog, and what it leaves in Redis."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_misfire.events import StartedLate
from celery_misfire.log_lines import Log
from celery_misfire.worker.late_runs import LateRuns
from tests.support.processes import Project
from tests.support.redis_server import RedisServer
from tests.support.shop import Shop

#: Runs of a backlog, for each instruction.
STARTED, MISSED, MERGED = 25, 15, 10


@pytest.mark.takes(12)
def test_a_backlog_is_told_in_a_few_warnings_and_counted_in_full(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    since = time.time() - 3600
    with Project(tmp_path, redis_server.url) as project:
        shop = Shop(project, redis_server.url)
        for n in range(STARTED):
            shop.send("starts", late=60 + n, instruction="smart_policy")
        for n in range(MISSED):
            shop.send("skips", late=60 + n, instruction="do_nothing")
        for n in range(MERGED):
            shop.send("merges", late=100 - n, instruction="fire_once_now")
        project.worker("--concurrency=2", pool="prefork")
        shop.wait_until_done()
        log = project.log("worker")

    late = STARTED + MISSED + MERGED
    counted = shop.store.counts_since(since)
    assert counted == {("", "late"): late, ("skips", "missed"): MISSED, ("merges", "merged"): MERGED - 1}
    told = Counter(line["event"] for line in shop.store.log())
    assert told == {"late": STARTED + 1, "missed": MISSED, "merged": MERGED - 1}

    def lines(text: str, level: str) -> list[str]:
        return [line for line in log.splitlines() if text in line and level in line]

    single = "started late by", "missed 1 run of"
    assert sum(len(lines(text, "WARNING")) for text in single) <= 10
    assert sum(len(lines(text, "WARNING")) + len(lines(text, "INFO")) for text in single) == (
        STARTED + MISSED + 1
    )
    [summary] = lines("runs have come late out of the queue since", "WARNING")
    assert "worker: 11 runs have come late" in summary


def late(n: int) -> StartedLate:
    return StartedLate(
        entry="e", scheduled=1_772_442_000_000, late_by=1_500, id=f"id {n}", outcome="fired", now=1
    )


def test_a_worker_that_cannot_ask_counts_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    runs = LateRuns(Log("celery_misfire.test", "worker"), Celery(set_as_current=False), "w@h")
    caplog.set_level(logging.INFO)
    for n in range(150):
        runs.log(late(n), "threshold 1 s", None)
    levels = Counter(record.levelname for record in caplog.records)
    # One more of each where the hour ended in between.
    assert 12 <= levels["WARNING"] <= 24
    assert levels["INFO"] >= 130


def test_a_late_start_carries_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    runs = LateRuns(Log("celery_misfire.test", "worker"), Celery(set_as_current=False), "w@h")
    runs.log(late(1), "threshold 1 s", 1)
    [record] = caplog.records
    found: dict[str, Any] = {k: v for k, v in vars(record).items() if k.startswith("misfire.")}
    assert json.loads(json.dumps(found)) == {
        "misfire.event": "late",
        "misfire.entry": "e",
        "misfire.scheduled": "2026-03-02T09:00:00.000+00:00",
        "misfire.late_by": 1.5,
        "misfire.task_id": "id 1",
        "misfire.outcome": "fired",
        "misfire.owner": "w@h",
    }
