"""What stands in the logs of real processes: how loud, in which order, and as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, Project, wait_for
from tests.support.redis_server import RedisServer

MANY = 15
NOTHING = {"instruction": "do_nothing", "threshold": 1}


@pytest.fixture
def project(redis_server: RedisServer, tmp_path: Path) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


def entries(count: int) -> dict[str, Any]:
    every_second = {"type": "interval", "seconds": 1}
    return {f"e{n}": {"schedule": every_second, "args": ["x"], "misfire": NOTHING} for n in range(count)}


def positions(log: str, *texts: str) -> list[int]:
    return [log.index(text) for text in texts]


@pytest.mark.takes(12)
def test_a_redis_that_was_away_is_one_warning_after_the_line_that_it_is_back(
    project: Project, redis_server: RedisServer
) -> None:
    project.configure(entries(MANY))
    project.worker()
    project.leading_beat()
    wait_for(lambda: len(project.records()) > MANY, what="runs in time")
    seen = len(project.log())
    redis_server.kill()
    time.sleep(3)
    redis_server.start()
    wait_for(lambda: "entries missed their times" in project.log(), what="the summary")
    log = project.log()[seen:]
    misfires = [line for line in log.splitlines() if "beat: misfire of" in line]
    assert len(misfires) == MANY
    assert all("INFO" in line for line in misfires)
    [summary] = [line for line in log.splitlines() if "entries missed their times" in line]
    assert "WARNING" in summary
    assert f"beat: {MANY} entries missed their times since 20" in summary
    assert "(store_unavailable): 0 runs recovered, 0 merged, " in summary
    order = positions(log, "standing by", "answers again after", "misfire of", "entries missed")
    assert order == sorted(order)
    [back] = [line for line in log.splitlines() if "answers again after" in line]
    assert "beat: Redis at " in back
    assert f"Redis at 127.0.0.1:{redis_server.port}" in back
    # The worker has its own line about its Redis, and nothing about what beat has said.
    wait_for(lambda: [d for d in project.decisions() if d["event"] == "missed"], what="the records")
    assert " missed " not in project.log("worker")


@pytest.mark.takes(12)
def test_a_broker_that_was_away_is_said_to_be_back_before_what_follows_from_it(
    project: Project, redis_server: RedisServer, redis_binary: Path
) -> None:
    with RedisServer(redis_binary) as broker:
        late = {"schedule": {"type": "interval", "seconds": 2}, "args": ["x"], "misfire": NOTHING}
        project.configure({"slow": late}, broker_url=broker.url, misfire_redis_url=redis_server.url)
        project.leading_beat()
        wait_for(lambda: [d for d in project.decisions() if d["event"] == "sent"], what="a run in time")
        broker.kill()
        wait_for(lambda: "the broker failed" in project.log(), what="beat to notice")
        time.sleep(3)
        broker.start()
        wait_for(lambda: "misfire of 'slow'" in project.log(), what="the misfire")
        log = project.log()
    order = positions(log, "the broker failed", "the broker is there again after", "misfire of 'slow'")
    assert order == sorted(order)
    [back] = [line for line in log.splitlines() if "is there again" in line]
    assert f"redis://127.0.0.1:{broker.port}" in back


@pytest.mark.takes(12)
@pytest.mark.parametrize(("snippet", "level"), [("json_logs", "levelname"), ("structlog_logs", "level")])
def test_the_logs_are_json_as_the_documentation_says(project: Project, snippet: str, level: str) -> None:
    pytest.importorskip({"json_logs": "pythonjsonlogger", "structlog_logs": "structlog"}[snippet])
    (project.directory / "shop.py").write_text(
        f"from tests.support.apps import app\n{(ROOT / 'docs' / f'{snippet}.py').read_text()}"
    )
    project.configure(entries(2))

    def celery(*arguments: str, name: str) -> Any:
        return project.celery(*arguments, "--loglevel=INFO", app="shop", name=name)

    def lines(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in project.log(name).splitlines() if line.startswith("{")]

    def events(name: str) -> dict[str, dict[str, Any]]:
        return {line["misfire.event"]: line for line in lines(name) if "misfire.event" in line}

    beat = celery("beat", "--pidfile=", name="beat")
    wait_for(lambda: [d for d in project.decisions() if d["event"].startswith("sent")], what="runs in time")
    beat.kill()
    # Long enough for runs that come late to a worker.
    time.sleep(3)
    celery("worker", "--pool=solo", "--without-mingle", name="worker")
    celery("beat", "--pidfile=", name="beat")
    wait_for(lambda: {"lead", "misfire"} <= events("beat").keys(), 60, what="the misfire")
    wait_for(lambda: "missed" in events("worker"), 60, what="the run that came too late")
    misfire, missed = events("beat")["misfire"], events("worker")["missed"]
    assert misfire[level].upper() == "WARNING"
    assert misfire["misfire.reason"] == "scheduler_down"
    assert misfire["misfire.entry"] in entries(2)
    assert misfire["misfire.late_by"] >= 1
    assert misfire["misfire.outcome"] == "missed"
    assert (missed["misfire.reason"], missed["misfire.task"]) == ("queue_late", "record")
    sent = {d["id"] for d in project.decisions() if d["event"] == "sent"}
    assert missed["misfire.task_id"] in sent
