"""The workers notice that beat is dead, say so once, and tell what has been missed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from tests.support.processes import CeleryProcess, Project, wait_for
from tests.support.redis_server import RedisServer

RATE, THRESHOLD, LEASE = 0.5, 2.0, 2.0
#: What a busy machine may add, in seconds.
TOLERANCE = 5.0

OVERDUE = "beat is overdue since"
BACK = "beat is back"


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        policy = {"instruction": "do_nothing", "threshold": THRESHOLD}
        entry = {"schedule": {"type": "interval", "seconds": 1}, "misfire": policy, "args": ["tick"]}
        project.configure({"tick": entry}, misfire_check_rate=RATE, misfire_lease_ttl=LEASE)
        yield project


def lines(project: Project, text: str, *logs: str) -> list[str]:
    return [line for log in logs for line in project.log(log).splitlines() if text in line]


def watching(project: Project, server: RedisServer) -> str:
    """Return the name of the worker that watches, '' for none."""
    return (server.client().get("celery-misfire:{acceptance}:watcher") or "").split("@")[0]


@pytest.mark.takes(18)
def test_the_death_of_the_only_beat_is_told_once_and_so_is_its_return(
    project: Project, redis_server: RedisServer
) -> None:
    # The one that watches is stuck in a task meanwhile.
    gate = project.directory / "gate"
    project.worker(name="a", pool="solo")
    wait_for(lambda: watching(project, redis_server) == "a", what="a to watch")
    sender = Celery(broker=redis_server.url, set_as_current=False)
    sender.send_task("record", args=["in front"], kwargs={"until": str(gate)})
    wait_for(project.records, what="the task in front")
    project.worker(name="b", pool="prefork")
    beat = project.leading_beat()
    wait_for(lambda: len(project.records()) >= 3, 30, what="fires")
    assert lines(project, OVERDUE, "a", "b") == []
    killed = time.time()
    beat.kill()

    [alarm] = wait_for(lambda: project.signals("beat_overdue"), 30, what="the alarm")
    assert alarm["entries"] == ["tick"]
    assert alarm["sender"] == "acceptance"
    assert killed - 1 < alarm["since"] < killed + 1.1
    assert alarm["at"] < alarm["since"] + max(THRESHOLD, LEASE) + RATE + TOLERANCE
    time.sleep(4 * RATE)
    [line] = lines(project, OVERDUE, "a", "b")
    assert "ERROR" in line
    assert "waiting: 'tick'" in line
    assert lines(project, BACK, "a", "b") == []

    project.leading_beat()
    wait_for(lambda: lines(project, BACK, "a", "b"), what="the news that beat is back")
    wait_for(lambda: [d for d in project.decisions() if d["event"] == "missed"], what="the record")
    gate.touch()
    time.sleep(4 * RATE)
    [line] = lines(project, BACK, "a", "b")
    assert "INFO" in line
    # Beat has said it, and the runs of it that came too late were the worker's own.
    told = [line for line in lines(project, "'tick' missed", "a", "b") if "reason queue_late" not in line]
    assert told == []
    assert len(project.signals("beat_overdue")) == 1


@pytest.mark.takes(14)
def test_a_worker_that_takes_over_the_watch_goes_on_where_the_other_ended(
    project: Project, redis_server: RedisServer
) -> None:
    workers: dict[str, CeleryProcess] = {name: project.worker(name=name) for name in ("a", "b")}
    beat = project.leading_beat()
    wait_for(lambda: len(project.records()) >= 2, 30, what="fires")
    beat.kill()
    wait_for(lambda: project.signals("beat_overdue"), 30, what="the alarm")
    first = watching(project, redis_server)
    workers[first].kill()
    second = {"a": "b", "b": "a"}[first]
    wait_for(lambda: watching(project, redis_server) == second, what="the other to watch")
    time.sleep(2 * RATE)

    assert len(lines(project, OVERDUE, "a", "b")) == 1
    project.leading_beat()
    wait_for(lambda: lines(project, BACK, second), what="the news that beat is back")
    assert lines(project, BACK, first) == []
