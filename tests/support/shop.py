"""A project with a worker that a test sends messages of runs to, as an imaginary beat."""

from __future__ import annotations

import json
from typing import Any

import redis
from celery import Celery

import celery_misfire
from celery_misfire.sending.missed_record import MISSED
from celery_misfire.store import registers
from celery_misfire.store.redis_store import RedisStore
from tests.support.fires import Fires
from tests.support.processes import NAMESPACE, CeleryProcess, Project, wait_for


class Shop:
    """A project with a worker, the one that sends to it, and a look at what came of it."""

    def __init__(self, project: Project, url: str) -> None:
        self.project, self.fires = project, Fires(url)
        self.store = RedisStore(url, NAMESPACE)
        self.client = redis.Redis.from_url(url, decode_responses=True)
        self.app = celery_misfire.install(Celery("client", broker=url, backend=url, set_as_current=False))
        self.worker: CeleryProcess | None = None

    def send(self, entry: str, **how: Any) -> str:
        return self.fires.send(entry, **how)

    def wait_until_done(self, timeout: float = 30) -> None:
        """Wait until what was sent so far has had its turn, and every message has been acknowledged."""
        last = self.fires.app.send_task("record", args=["last"]).id

        def is_done() -> bool:
            assert self.worker is None or self.worker.alive, self.log()[-3000:]
            waiting = self.client.llen("celery") or self.client.hlen("unacked")
            return not waiting and any(line["task_id"] == last for line in self.project.records())

        wait_for(is_done, timeout, what="the worker to be done")

    def runs(self, entry: str) -> list[dict[str, Any]]:
        """The runs that were started, once the worker has nothing more to do."""
        self.wait_until_done()
        return [line for line in self.project.records() if line["label"] == entry]

    def signals(self, name: str, task_id: str, count: int = 1) -> list[dict[str, Any]]:
        """What the receivers of a signal got about a run; waits for so many calls."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.project.signals(name) if line.get("task_id") == task_id]

        wait_for(lambda: len(found()) >= count, what=f"{name} of {task_id}")
        return found()

    def result(self, task_id: str) -> dict[str, Any] | None:
        text = self.client.get(f"celery-task-meta-{task_id}")
        return json.loads(text) if text else None

    def assert_missed(self, task_id: str, reason: str) -> None:
        """Assert that a run left all that a missed run leaves."""
        [told] = self.signals("task_missed", task_id)
        assert told["reason"] == reason
        [failure] = self.signals("task_failure", task_id)
        assert failure["kind"] == "TaskMissed"
        wait_for(lambda: self.result(task_id), what="the result")
        assert self.result(task_id)["status"] == MISSED
        held = self.store.register(task_id)
        assert isinstance(held, registers.Missed)
        assert held.reason == reason
        assert held.nonce
        [line] = [one for one in self.store.log() if one.get("id") == task_id]
        assert (line["event"], line["reason"], line["count"]) == ("missed", reason, 1)

    def log(self, name: str = "worker") -> str:
        return self.project.log(name)

    def lines(self, *texts: str) -> list[str]:
        """The lines of the worker's log that have all of these in them."""
        return [line for line in self.log().splitlines() if all(text in line for text in texts)]
