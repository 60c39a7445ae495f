"""Two deployments of one code base on one Redis: each sends into its own queue, or one refuses loudly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_misfire.store.redis_store import RedisStore
from tests.support.processes import NAMESPACE, CeleryProcess, Project, published, wait_for
from tests.support.redis_server import RedisServer

LEASE_TTL = 2
REFUSAL = "whose runs go elsewhere"


@dataclass
class Deployment:
    """One of the two.

    :param queue: the key of its queue in Redis.
    :param broker: the URL of its broker.
    """

    name: str
    project: Project
    queue: str
    broker: str
    beat: CeleryProcess | None = None

    def configure(self, **settings: Any) -> None:
        entry = {"schedule": {"type": "interval", "seconds": 0.5}, "args": [self.name]}
        self.project.configure({"tick": entry}, **({"misfire_lease_ttl": LEASE_TTL} | settings))

    def start(self) -> None:
        self.beat = self.project.beat()

    def stop(self) -> None:
        assert self.beat is not None
        assert self.beat.alive
        self.beat.stop()

    def wait_for_runs(self, count: int = 3) -> None:
        """Wait until so many more of its runs stand in its queue."""
        with redis.Redis.from_url(self.broker) as client:
            wanted = client.llen(self.queue) + count
            wait_for(lambda: client.llen(self.queue) >= wanted, 60, what=f"runs of {self.name}")

    def sent(self) -> set[str]:
        """Return the deployments whose runs stand in the queue of this one."""
        return {message.args[0] for message in published(self.broker, self.queue)}

    def refusals(self) -> list[str]:
        return [line for line in self.project.log().splitlines() if ": ERROR/" in line and REFUSAL in line]

    def is_heard(self, runs: int) -> bool:
        """Return True when it has refused, or its queue has so many runs."""
        with redis.Redis.from_url(self.broker) as client:
            return bool(self.refusals()) or client.llen(self.queue) >= runs


@dataclass
class Pair:
    prod: Deployment
    staging: Deployment

    def __iter__(self) -> Iterator[Deployment]:
        return iter((self.prod, self.staging))


@pytest.fixture
def make(tmp_path: Path, redis_server: RedisServer, redis_binary: Path) -> Iterator[Any]:
    """Return a function that makes the two of what tells them apart."""
    projects = [
        Project(tmp_path / name, redis_server.url) for name in ("prod", "staging") if _made(tmp_path / name)
    ]
    others = [RedisServer(redis_binary), RedisServer(redis_binary)]

    def make(way: str) -> Pair:
        pair = []
        for number, project in enumerate(projects):
            name, queue, broker = project.directory.name, "celery", redis_server.url
            settings: dict[str, Any] = {}
            match way:
                case "namespace":
                    queue = name
                    settings = {"misfire_namespace": name, "task_default_queue": name}
                case "global_keyprefix":
                    queue = f"{name}:celery"
                    settings = {"broker_transport_options": {"global_keyprefix": f"{name}:"}}
                case "global_keyprefix of one":
                    if number:
                        queue = f"{name}:celery"
                        settings = {"broker_transport_options": {"global_keyprefix": f"{name}:"}}
                case "queue":
                    queue, settings = name, {"task_default_queue": name}
                case "route":
                    queue, settings = name, {"task_routes": {"*": {"queue": name}}}
                case "database":
                    broker = f"redis://127.0.0.1:{redis_server.port}/{number}"
                    settings = {"broker_url": broker}
                case "broker":
                    others[number].start()
                    broker = others[number].url
                    settings = {"broker_url": broker, "misfire_redis_url": redis_server.url}
            pair.append(Deployment(name, project, queue, broker))
            pair[-1].configure(**settings)
        return Pair(*pair)

    try:
        yield make
    finally:
        for project in projects:
            project.stop()
        for other in others:
            other.__exit__(None, None, None)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


#: What tells the two apart, and whether one refuses.
WAYS = {
    "namespace": False,
    "global_keyprefix": False,
    "global_keyprefix of one": False,
    "database": False,
    "queue": True,
    "route": True,
    "broker": True,
}
#: One of each kind for the normal run; tests/integration/test_destination.py tells all of them apart.
SHORT = [pytest.param(way, WAYS[way], 3) for way in ("namespace", "global_keyprefix of one", "broker")]
LONG = [
    pytest.param(way, refused, 60, marks=[pytest.mark.long, pytest.mark.timeout(300)])
    for way, refused in WAYS.items()
]


@pytest.mark.takes(20)
@pytest.mark.parametrize(("way", "refused", "seconds"), [*SHORT, *LONG])
def test_each_run_stands_in_the_queue_of_its_own_deployment_or_one_refuses(
    make: Any, way: str, refused: bool, seconds: float
) -> None:
    pair = make(way)
    prod, staging = pair
    prod.start()
    prod.wait_for_runs()
    staging.start()
    wait_for(lambda: staging.is_heard(3), 60, what="staging")
    begun = time.monotonic()

    prod.stop()
    prod.start()
    prod.wait_for_runs()
    staging.stop()
    staging.start()
    if refused:
        wait_for(lambda: len(staging.refusals()) == 2, 60, what="another refusal")
    else:
        staging.wait_for_runs()
    wait_for(lambda: time.monotonic() - begun > seconds, seconds + 10, every=1)
    prod.wait_for_runs()

    assert prod.sent() == {"prod"}
    assert prod.refusals() == []
    if refused:
        assert staging.sent() == set()
        for line in staging.refusals():
            assert "misfire_namespace" in line
        assert "redis://" not in "".join(staging.refusals())
        # The one that leads hears of it, too.
        assert REFUSAL in prod.project.log()
    else:
        assert staging.sent() == {"staging"}
        assert staging.refusals() == []


def test_a_beat_and_a_worker_of_a_user_who_is_limited_to_a_prefix(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    url = f"redis://acme:secret@127.0.0.1:{redis_server.port}/0"
    with redis_server.client() as client, Project(tmp_path, url) as project:
        # Redis compares the patterns that Celery's worker subscribes to letter by letter.
        client.execute_command("ACL", "SETUSER", "acme", "on", ">secret", "~acme:*", "&*", "+@all")
        prefix = {"global_keyprefix": "acme:"}
        store = RedisStore(url, NAMESPACE, key_prefix="acme:")
        store.acquire("past", 10)
        store.write_meta("past", NAMESPACE)
        store.release("past")
        project.configure(
            {
                "often": {"schedule": {"type": "interval", "seconds": 0.5}},
                "late": {"schedule": {"type": "simple", "start": time.time() - 60}, "misfire": "fire_now"},
            },
            broker_transport_options=prefix,
            result_backend_transport_options=prefix,
        )
        project.worker()
        project.beat()

        def entries() -> list[str]:
            return [record["misfire"]["entry"] for record in project.records()]

        wait_for(lambda: len(entries()) > 3 and set(entries()) == {"often", "late"}, 60)
        late = next(r["task_id"] for r in project.records() if r["misfire"]["entry"] == "late")
        assert store.register(late) is not None
        wait_for(lambda: client.exists(f"acme:celery-misfire:{{{NAMESPACE}}}:watcher"))
        assert [key for key in client.scan_iter() if not key.startswith("acme:")] == []
        for name in ("beat", "worker"):
            assert "ermission" not in project.log(name)
