"""A secret in every place that has one, and every error that can be reached: it is nowhere to be read."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.outcomes import of_entry
from tests.support.processes import Project, published, wait_for
from tests.support.redis_server import RedisServer

CANARY = "canary-4711"
EVERY_SECOND = {"type": "interval", "seconds": 1}
#: As a user would pass them: in positions, by name, in the message's own headers.
SECRETIVE: dict[str, Any] = {
    "args": [CANARY],
    "kwargs": {"label": CANARY},
    "options": {"headers": {"x-token": CANARY, "nested": {"password": CANARY}}},
}
OURS = "celery-misfire:"


@pytest.fixture
def broker(redis_binary: Path) -> Iterator[RedisServer]:
    with RedisServer(redis_binary, append_only="always") as broker:
        yield broker


@pytest.fixture
def results(redis_binary: Path) -> Iterator[RedisServer]:
    with RedisServer(redis_binary) as results:
        yield results


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


def with_password(server: RedisServer) -> str:
    """Return the server's URL with a password; a server without one takes any."""
    return server.url.replace("//", f"//default:{CANARY}@")


def assert_not_in(text: str, where: str) -> None:
    # Celery shows a receiver's own error to whoever wrote the receiver.
    text = re.sub(rf"this receiver raises on purpose .*?(\\n|\n){CANARY}", "", text)
    lines = [line for line in text.splitlines() if CANARY in line]
    assert lines == [], f"{len(lines)} lines of {where}"


def everything_of_ours(server: RedisServer) -> str:
    """Return all that our keys hold, in one text."""
    client, found = server.client(), list[Any]()
    for key in client.scan_iter(f"{OURS}*"):
        kind = client.type(key)
        read = {"hash": client.hgetall, "string": client.get}
        found += [key, client.xrange(key) if kind == "stream" else read[kind](key)]
    assert found
    return str(found)


def results_of(results: RedisServer, project: Project) -> list[Any]:
    """Return the results of missed runs that are there."""
    ids = [decision["id"] for decision in project.decisions() if decision["event"] == "missed"]
    return [text for id_ in ids if (text := results.client().get(f"celery-task-meta-{id_}"))]


@pytest.mark.takes(11)
def test_no_secret_is_in_a_log_in_a_key_of_ours_or_in_a_result_of_ours(
    project: Project, redis_server: RedisServer, broker: RedisServer, results: RedisServer, tmp_path: Path
) -> None:
    entries: dict[str, Any] = {
        "runs": SECRETIVE | {"args": [], "schedule": EVERY_SECOND, "misfire": "ignore_misfire_policy"},
        "missed": SECRETIVE | {"args": [], "schedule": EVERY_SECOND, "misfire": "do_nothing"},
        "fails": SECRETIVE | {"args": [], "schedule": EVERY_SECOND, "kwargs": {"fail": True, "label": "x"}},
        # Refused with an error that quotes the arguments.
        "refused": {"schedule": EVERY_SECOND, "unserialisable": True, "kwargs": {"password": CANARY}},
        "broken": SECRETIVE | {"args": [], "schedule": {"type": "raising", "until": "/nonexistent"}},
        "no such handler": SECRETIVE
        | {"schedule": EVERY_SECOND, "misfire": {"instruction": "do_nothing", "on_missed": "no.such.task"}},
    }
    project.configure(
        entries,
        broker_url=with_password(broker),
        result_backend=with_password(results),
        misfire_redis_url=with_password(redis_server),
        misfire_redis_options={"client_name": CANARY, "socket_timeout": 1},
        misfire_check_rate=1,
        misfire_on_missed="on_missed",
        misfire_threshold=1,
    )
    environment = {"MISFIRE_TEST_SAYS": f"password={CANARY} redis://u:{CANARY}@h/1\n{CANARY}"}
    worker = project.worker("--loglevel=DEBUG", env=environment)
    beat = project.beat("--loglevel=DEBUG", env=environment)
    wait_for(lambda: len(project.records()) >= 6, 60, what="runs")

    # The store, the broker and the results go away in turn, under beat and worker.
    redis_server.freeze()
    wait_for(lambda: "standing by" in project.log(), 60, what="beat to miss the store")
    redis_server.thaw()
    broker.kill()
    wait_for(lambda: "the broker failed" in project.log(), 60, what="beat to miss the broker")
    results.kill()
    time.sleep(2)
    broker.start()
    wait_for(lambda: "cannot be reported" in project.log(), 60, what="the reporter to miss the results")
    results.start()
    # Each of them has missed runs by now; and they are told.
    for name in ("missed", "no such handler", "refused"):
        wait_for(
            lambda name=name: [s for s in project.signals("task_missed") if s["entry"] == name],
            60,
            what=f"a miss of {name}",
        )
    wait_for(lambda: "can be reported again" in project.log(), 60, what="the reporter to go on")
    # Earlier results are lost: that Redis keeps nothing on disk.
    wait_for(lambda: results_of(results, project), 60, what="results")
    assert "cannot be planned" in project.log()
    assert "cannot be sent" in project.log()
    worker.stop()
    beat.stop()

    assert_not_in(project.log(), "beat's log")
    for line in project.log("worker").splitlines():
        # Celery's worker shows the arguments of what it runs; our own words do not.
        assert "worker: " not in line or CANARY not in line, line
    assert_not_in(everything_of_ours(redis_server), "our keys")
    stored = results_of(results, project)
    assert stored
    assert_not_in("\n".join(stored), "our results")
    # A run that failed has its own failure, with the headers that it was sent with.
    signals = [json.dumps(s) for s in project.signals() if s.get("kind", "TaskMissed") == "TaskMissed"]
    assert_not_in("\n".join(signals), "signals")
    sent = of_entry(published(broker.url), "runs") or project.records()
    assert CANARY in str(sent), "the canary was in the arguments"


@pytest.mark.parametrize(
    "settings",
    [
        {"misfire_redis_url": f"redis://:{CANARY}/x@h:6379/1", "misfire_threshold": f"redis://:{CANARY}@h"},
        {
            "misfire_redis_url": f"redis://h:6379/1?passwd={CANARY}",
            "misfire_redis_options": {"passwort": CANARY},
            "misfire_policies": {"x": [{"token": CANARY}]},
        },
    ],
    ids=["password", "options"],
)
def test_a_beat_that_cannot_start_does_not_say_its_secrets(
    project: Project, settings: dict[str, Any]
) -> None:
    entry = SECRETIVE | {"schedule": EVERY_SECOND, "misfire": {"pass": CANARY}, "extra": CANARY}
    project.configure({"x": entry}, broker_url=f"redis://:{CANARY}@127.0.0.1:1/0", **settings)
    beat = project.beat("--loglevel=DEBUG")
    wait_for(lambda: not beat.alive, 30, what="beat to end")
    assert re.search(r"the configuration has \d problems", project.log())
    assert_not_in(project.log(), "beat's log")
