"""The command line beside real beats and workers: probes of frozen beats, pauses, holds, runs by hand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import CommandLine, check_answer
from tests.support.django_project import DjangoProject
from tests.support.processes import NAMESPACE, CeleryProcess, Project, published, wait_for
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer

#: The settings of the processes that the command line has to know, too.
SETTINGS = {"misfire_namespace": NAMESPACE, "misfire_lease_ttl": 2, "misfire_lease_renew": 0.5}
EVERY_SECOND = {"type": "interval", "seconds": 1}
#: A beat may be silent for so many seconds, and a busy machine may add some.
LIMIT, TOLERANCE = 10.0, 8.0


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


def command_line(url: str, **entries: Any) -> CommandLine:
    return CommandLine(url, entries, dict(SETTINGS))


def is_healthy(shop: CommandLine) -> bool:
    return bool(shop.call("health", "--this-host").exit_code == 0)


def freeze_and_thaw(shop: CommandLine, beat: CeleryProcess) -> str:
    """Freeze a beat until the probe fails, and thaw it until it does not; return the reason."""
    beat.freeze()
    frozen_at = time.monotonic()
    wait_for(lambda: not is_healthy(shop), LIMIT + TOLERANCE, what="the probe to fail")
    assert time.monotonic() - frozen_at < LIMIT + TOLERANCE
    reason: str = shop.json("health", "--this-host", code=1)["reason"]
    beat.thaw()
    wait_for(lambda: is_healthy(shop), what="the probe to be content again")
    return reason


@pytest.mark.takes(40)
def test_a_frozen_beat_is_not_healthy_be_it_the_leader_or_a_standby(project: Project):
    shop = command_line(project.url)
    entries = {f"e{n}": {"schedule": EVERY_SECOND, "misfire": "do_nothing"} for n in range(200)}
    project.configure(entries, misfire_history=1000)
    assert "no beat of host" in shop.json("health", "--this-host", code=1)["reason"]
    leader = project.leading_beat("leader")
    standby = project.beat(name="standby")
    wait_for(lambda: "another beat leads" in project.log("standby"), 60, what="the standby")
    wait_for(lambda: len(shop.json("health", "--this-host")["beats"]) == 2, what="both signs of life")
    for beat in (standby, leader):
        reason = freeze_and_thaw(shop, beat)
        assert f"beat {socket.gethostname()}:{beat.pid} has given no sign of life" in reason
    # A beat that was killed does not matter once there is another one; one that ends takes its sign back.
    wait_for(lambda: shop.call("health").exit_code == 0, what="a leader")
    leader.kill()
    wait_for(lambda: is_healthy(shop), what="the probe to see who is left")
    # A beat that was killed is known as dead on its own host.
    assert [beat["pid"] for beat in shop.json("health", "--this-host")["beats"]] == [standby.pid]
    standby.stop()
    assert standby.pid not in [beat["pid"] for beat in shop.json("health", code=1)["beats"]]
    wait_for(lambda: not is_healthy(shop), LIMIT + TOLERANCE, what="the last sign to be too old")


@pytest.mark.takes(25)
def test_a_beat_that_waits_for_redis_is_not_healthy_with_that_reason(
    project: Project, redis_server: RedisServer
):
    shop = command_line(project.url)
    port = int(project.url.rsplit(":", 1)[1].partition("/")[0])
    with Proxy(port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        project.configure({"tick": {"schedule": EVERY_SECOND}}, misfire_redis_url=url)
        project.leading_beat()
        wait_for(lambda: is_healthy(shop), what="a sign of life")
        # The beat is cut off, the probe is not.
        proxy.refusing = True
        proxy.cut()
        wait_for(lambda: not is_healthy(shop), LIMIT + TOLERANCE, what="the probe to fail")
        assert "has given no sign of life" in shop.json("health", "--this-host", code=1)["reason"]
        proxy.refusing = False
        wait_for(lambda: is_healthy(shop), what="the probe to be content again")
    # Nobody reaches it any more.
    redis_server.kill()
    error = shop.error("health", "--this-host", code=3)
    assert error.startswith("Redis at 127.0.0.1:")


@pytest.mark.takes(30)
def test_entries_are_paused_held_and_run_while_beat_and_a_worker_are_at_work(project: Project):
    entries = {
        name: {"task": "record", "schedule": EVERY_SECOND, "misfire": "ignore_misfire_policy", "args": [name]}
        for name in ("one", "two")
    }
    project.configure(entries)
    shop = command_line(
        project.url, **{name: {"task": "record", "schedule": 1.0, "args": [name]} for name in entries}
    )
    project.leading_beat()
    project.worker()

    def runs(name: str) -> list[dict[str, Any]]:
        return [record for record in project.records() if record["label"] == name]

    def scheduled(name: str) -> list[datetime]:
        times = [record["fire"]["scheduled_fire_time"] for record in runs(name)]
        return sorted(map(datetime.fromisoformat, times))

    wait_for(lambda: runs("one") and runs("two"))
    assert shop.json("pause", "one", "--reason", "month end")["done"]
    begin, others = time.time(), len(runs("two"))
    wait_for(lambda: len(runs("two")) >= others + 4, what="runs of the other entry")
    end = time.time()
    assert shop.json("resume", "one")["done"]
    wait_for(lambda: scheduled("one")[-1].timestamp() > end, what="a run after the pause")
    # The log tells when the leader carried it out.
    told = [line for line in project.decisions() if line["event"] in ("paused", "resumed")]
    assert [line["event"] for line in told] == ["paused", "resumed"]
    paused = told[0]["now"] / 1000
    assert begin - 10 < paused <= begin
    assert not [t for t in scheduled("one") if paused < t.timestamp() <= end]
    assert "'one' is paused by" in project.log()
    # A hold of all.
    assert shop.json("hold", "--until", "3s", "--reason", "upgrade")["done"]
    wait_for(lambda: "is over" in project.log(), what="the end of the hold")
    (held,) = [line for line in project.decisions() if line["event"] == "paused" and not line["entry"]]
    wait_for(lambda: scheduled("two")[-1].timestamp() * 1000 > held["until"], what="a run after the hold")
    for name in entries:
        assert not [t for t in scheduled(name) if held["now"] < t.timestamp() * 1000 <= held["until"]]
    assert not [line for line in project.decisions() if line["event"] in ("misfire", "missed", "gave_up")]
    # One of them once more.
    first = scheduled("one")[0]
    done = shop.json("run", "one", "--at", first.isoformat())
    wait_for(
        lambda: [r for r in runs("one") if r["task_id"] == done["runs"][0]["id"]], what="the run by hand"
    )
    (again,) = (r for r in runs("one") if r["task_id"] == done["runs"][0]["id"])
    assert datetime.fromisoformat(again["fire"]["scheduled_fire_time"]) == first
    assert shop.json("run", "one", "--at", first.isoformat(), code=1)["runs"][0]["problem"]


@pytest.mark.takes(20)
def test_doctor_looks_into_the_workers(project: Project):
    project.configure({"tick": {"task": "noop", "schedule": EVERY_SECOND}})
    shop = command_line(project.url, tick={"task": "noop", "schedule": 1.0})
    shop.settings["misfire_lease_renew"] = 0.5
    project.leading_beat()
    worker = project.worker()

    def found() -> str:
        answer = shop.json("doctor", code=1)
        return "\n".join(f["text"] for f in answer["findings"] if f["check"] == "workers")

    # A worker that is busy may answer too late for one look.
    wait_for(lambda: found() == "", what="an answer of the worker")
    shop.entries["tock"] = {"task": "shop.nowhere", "schedule": 60.0}
    unknown = "1 entry has a task that no live worker knows: 'tock (shop.nowhere)'"
    wait_for(lambda: found() == unknown, what="an unknown task")
    del shop.entries["tock"]
    shop.settings["misfire_namespace"] = "other"
    wait_for(lambda: "with another namespace: 'worker@test'" in found(), what="another namespace")
    shop.settings["misfire_namespace"] = NAMESPACE
    project.configure({"tick": {"task": "noop", "schedule": EVERY_SECOND}}, install=False)
    project.worker(name="bare")
    wait_for(lambda: "without the worker side: 'bare@test'" in found(), what="the other worker")
    wait_for(lambda: "a second message of a run may run" in found(), what="what that means")
    worker.kill()


@pytest.mark.takes(20)
def test_the_rows_of_a_django_site_are_its_entries(site: DjangoProject):
    def misfire(*arguments: str, code: int = 0) -> dict[str, Any]:
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "tests.support.apps",
            "misfire",
            *arguments,
            "--json",
        ]
        done = subprocess.run(
            command, env={**os.environ, **site.env}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        check_answer(answer)
        return answer

    site.configure({})
    site.add("reports", interval=3600, task="shop.reports", args='["March"]')
    site.add("resting", interval=3600, enabled=False)
    site.leading_beat()
    wait_for(lambda: site.state("reports"), what="the record of the row")
    entries = {entry["name"]: entry for entry in misfire("status")["entries"]}
    assert "resting" not in entries
    reports = entries["reports"]
    assert (reports["task"], reports["schedule"], reports["planned"]) == ("shop.reports", "every hour", True)
    assert reports["resolved"] == "reschedule_next_with_remaining_count"
    assert misfire("pause", "reports")["done"]
    assert misfire("status", "--entry", "reports")["entries"][0]["paused"]
    record = site.state("reports")
    assert record is not None
    at = datetime.fromtimestamp(record.state.start_time / 1000 - 3600).astimezone()
    misfire("run", "reports", "--at", at.isoformat())
    message = published(site.url)[-1]
    assert (message.task, message.args) == ("shop.reports", ["March"])
    assert misfire("run", "resting", "--at", at.isoformat(), code=4)["error"].startswith(
        "no entry 'resting'."
    )
