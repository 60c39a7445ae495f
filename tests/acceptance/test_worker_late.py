"""Runs that wait too long for a worker get what their instruction says, in every pool.

One slot, a task that blocks it, and entries that fire every second. What became of each message is read from
the recorder, the store's log and the result backend.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_misfire.store import registers
from celery_misfire.store.redis_store import RedisStore
from tests.support.processes import NAMESPACE, Project, wait_for
from tests.support.redis_server import RedisServer

THRESHOLD = 2.0
#: What may pass between the look at the clock and the first line of the task, in seconds.
TOLERANCE = 1.0

ENTRIES = {
    "strict": "do_nothing",
    "once": "fire_once_now",
    "every": "ignore_misfire_policy",
    "smart": "smart_policy",
}


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


@pytest.mark.parametrize(
    "pool",
    [
        "prefork",
        "threads",
        pytest.param("solo", marks=pytest.mark.long),
        pytest.param("gevent", marks=pytest.mark.long),
    ],
)
def test_what_waits_too_long_gets_what_its_instruction_says(
    project: Project, redis_server: RedisServer, pool: str
) -> None:
    if pool == "gevent":
        pytest.importorskip("gevent")
    client, store = redis_server.client(), RedisStore(redis_server.url, NAMESPACE)
    every_second = {"type": "interval", "seconds": 1}
    project.configure(
        {
            name: {
                "schedule": every_second,
                "args": [name],
                "misfire": {"instruction": instruction, "threshold": THRESHOLD},
            }
            for name, instruction in ENTRIES.items()
        }
    )
    worker = project.worker("--concurrency=1", pool=pool)
    gate = project.directory / "gate"
    sender = Celery(broker=redis_server.url, set_as_current=False)
    sender.send_task("record", args=["in front"], kwargs={"until": str(gate)})
    wait_for(project.records, what="the task in front")
    beat = project.leading_beat()

    def sent(name: str) -> dict[str, dict[str, Any]]:
        lines = [line for line in project.decisions() if line["event"] == "sent"]
        return {line["id"]: line for line in lines if line["entry"] == name}

    def ran(name: str) -> dict[str, float]:
        runs = [line for line in project.records() if line["label"] == name]
        assert len({line["task_id"] for line in runs}) == len(runs), "ran twice"
        return {line["task_id"]: line["started"] for line in runs}

    wait_for(lambda: all(len(sent(name)) >= 5 for name in ENTRIES), 60, what="five fires of each")
    opened = time.time()
    gate.touch()
    wait_for(lambda: all(len(sent(name)) >= 8 for name in ENTRIES), 60, what="fires after the block")
    beat.stop()
    told = {line["id"]: line for line in project.decisions() if "worker" in line}

    def all_are_accounted_for() -> bool:
        told.update(
            {line["id"]: line for line in project.decisions() if line["event"] in ("missed", "merged")}
        )
        return all(
            sent(name).keys() == ran(name).keys() | (told.keys() & sent(name).keys()) for name in ENTRIES
        )

    wait_for(all_are_accounted_for, what="a fate for every message")
    wait_for(lambda: not client.llen("celery") and not client.hlen("unacked"), what="every acknowledgement")
    assert worker.alive
    assert "Traceback" not in project.log("worker")

    # do_nothing: what could not start in time is missed, and none of it ran.
    missed = sent("strict").keys() - ran("strict").keys()
    for id_, line in sent("strict").items():
        if line["scheduled"] / 1000 < opened - THRESHOLD:
            assert id_ in missed
        if id_ in ran("strict"):
            assert ran("strict")[id_] - line["scheduled"] / 1000 < THRESHOLD + TOLERANCE
    assert len(missed) >= 2
    assert {line["reason"] for id_, line in told.items() if id_ in missed} == {"queue_late"}
    for signal in ("task_missed", "task_failure"):
        wait_for(lambda name=signal: len(project.signals(name)) >= len(missed), what=signal)
        assert {line["task_id"] for line in project.signals(signal)} == missed
    wait_for(lambda: all(client.get(f"celery-task-meta-{id_}") for id_ in missed), what="the results")
    assert {json.loads(client.get(f"celery-task-meta-{id_}"))["status"] for id_ in missed} == {"MISSED"}

    # fire_once_now: one of those that had been sent before it started.
    first = min(ran("once").values())
    assert first > opened - 0.1
    waiting = {id_ for id_, line in sent("once").items() if line["fire_time"] / 1000 < first - 0.1}
    [late_run] = waiting & ran("once").keys()
    assert len(waiting) >= 4
    assert late_run == min(sent("once").values(), key=lambda line: line["scheduled"])["id"]
    assert {store.register(id_) for id_ in waiting - {late_run}} == {registers.Merged(late_run)}

    # ignore_misfire_policy and smart_policy: all of them.
    for name in ("every", "smart"):
        assert ran(name).keys() == sent(name).keys()
        assert f"'{name}'" in "".join(
            line for line in project.log("worker").splitlines() if "late by" in line
        )
