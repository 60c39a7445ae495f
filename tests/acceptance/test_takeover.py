"""The beat that led was killed: when another one of the same host goes on."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from celery_misfire.store.owner import is_dead
from celery_misfire.store.port import LeaseValue
from tests.support.processes import Project, published, wait_for
from tests.support.redis_server import RedisServer

LEASE = "celery-misfire:{acceptance}:lease"
#: The times of the lease as they are by default: nobody waits for one to run out here.
DEFAULTS = {"misfire_lease_ttl": 30, "misfire_lease_renew": 10, "misfire_standby_poll": 5}
TICK = {"tick": {"schedule": {"type": "interval", "seconds": 0.5}}}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells that a process is dead")


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


def lease(redis_server: RedisServer) -> LeaseValue:
    return LeaseValue.parse(redis_server.client().get(LEASE) or "")


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_beat_that_is_started_after_a_kill_leads_at_once(
    project: Project, redis_server: RedisServer, reaped: bool
):
    project.configure(TICK, **DEFAULTS)
    beat = project.leading_beat()
    wait_for(lambda: published(redis_server.url))
    killed = lease(redis_server)
    if reaped:
        beat.kill()
    else:
        os.kill(beat.pid, signal.SIGKILL)
        wait_for(lambda: is_dead(killed.owner), what="the zombie")
    assert lease(redis_server) == killed
    project.leading_beat("second")
    assert redis_server.client().pttl(LEASE) > 20_000
    log = project.log("second")
    assert f"{socket.gethostname()}:{beat.pid}, which held it, has ended" in log
    assert "standing by" not in log
    assert [line["reason"] for line in project.terms()] == ["scheduler_down"] * 2


def test_the_lease_of_a_beat_in_another_pid_namespace_is_left_to_its_time_to_live(
    project: Project, redis_server: RedisServer
):
    """As when a container is started again: both beats are the process 1 of their host."""
    project.configure(TICK, **DEFAULTS | {"misfire_standby_poll": 0.2})
    beat = project.leading_beat()
    beat.kill()
    killed = lease(redis_server)
    place, _, started = killed.owner.rpartition("/")
    boot, _, namespace = place.rpartition("/")
    elsewhere = replace(killed, owner=f"{boot}/{int(namespace) + 1}/{started}")
    redis_server.client().set(LEASE, str(elsewhere), px=4_000)
    project.beat(name="second")
    wait_for(lambda: f"another beat leads ({socket.gethostname()}:{beat.pid})" in project.log("second"))
    assert lease(redis_server) == elsewhere
    wait_for(lambda: len(project.terms()) == 2, what="the end of the lease")
    assert "has ended" not in project.log("second")


def test_a_beat_inside_a_worker_ends_with_that_worker(project: Project, redis_server: RedisServer):
    # Nothing is due: a child of the pool that runs a task while its worker dies has a traceback of its own.
    project.configure({"hourly": {"schedule": {"type": "interval", "seconds": 3600}}}, **DEFAULTS)
    options = ("-B", "--scheduler", "celery_misfire.beat:MisfireScheduler")
    worker = project.worker(*options, pool="prefork")
    wait_for(project.terms, what="the beat in the worker")
    owner = lease(redis_server).owner
    # The worker alone: the beat inside it is a process of its own.
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: redis_server.client().get(LEASE) is None, what="the end of the lease")
    wait_for(lambda: is_dead(owner), what="the end of the beat")
    assert "the worker of this beat has ended, and so beat ends" in project.log("worker")
    assert "Traceback" not in project.log("worker")
    project.worker(*options, pool="prefork", name="second")
    wait_for(lambda: len(project.terms()) == 2, what="the next beat")
    assert "standing by" not in project.log("second")
