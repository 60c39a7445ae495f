"""Both kinds of store behind one face, for the tests that every store must pass."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

import redis

from celery_misfire.store.memory import Contents, MemoryDatabase, MemoryStore
from celery_misfire.store.port import Store
from celery_misfire.store.redis_store import RedisStore
from tests.support.redis_server import RedisServer

NAMESPACE = "test"
STATE, LEASE, LOG = (f"celery-misfire:{{{NAMESPACE}}}:{key}" for key in ("state", "lease", "log"))


class StorePlace(Protocol):
    """A place where stores of one namespace keep their state, and what can befall it."""

    def store(self, history: int = 10_000) -> Store:
        """Return one more store on it."""

    def pass_time(self, seconds: float) -> None:
        """Let so much time go by, or a little more."""

    def contents(self) -> object:
        """Return all that is kept, to be compared."""

    def lose(self) -> None:
        """Forget everything."""

    def write_mark(self, text: str) -> None:
        """Write the mark of a complete state, as another version may have done."""

    def write_epoch(self, epoch: int) -> None:
        """Write the number of the last term of leadership."""

    def write_lease(self, text: str) -> None:
        """Write the lease, without an end."""

    def read_lease(self) -> str:
        """Return the text of the lease, '' for none."""

    def take_messages(self, queue: str) -> list[bytes]:
        """Take all messages out of a queue, in the order in which a worker does it, and return them."""

    def spoil(self, queue: str) -> None:
        """Make a queue one that takes no messages: its key holds something else."""


class RedisPlace:
    """A database in a Redis, whose time is real."""

    def __init__(self, server: RedisServer) -> None:
        self._url, self.client = server.url, server.client()

    def store(self, history: int = 10_000) -> RedisStore:
        return RedisStore(self._url, NAMESPACE, history=history)

    def pass_time(self, seconds: float) -> None:
        time.sleep(seconds)

    def contents(self) -> Mapping[bytes, bytes]:
        with redis.Redis.from_url(self._url) as client:
            return {key: client.dump(key) for key in client.scan_iter()}

    def lose(self) -> None:
        self.client.flushall()

    def write_mark(self, text: str) -> None:
        self.client.hset(STATE, "_meta", text)

    def write_epoch(self, epoch: int) -> None:
        self.client.hset(STATE, "_epoch", epoch)

    def write_lease(self, text: str) -> None:
        self.client.set(LEASE, text)

    def read_lease(self) -> str:
        return self.client.get(LEASE) or ""

    def take_messages(self, queue: str) -> list[bytes]:
        with redis.Redis.from_url(self._url) as client:
            return list(iter(lambda: client.rpop(queue), None))

    def spoil(self, queue: str) -> None:
        self.client.sadd(queue, "not ours")


class MemoryPlace:
    """A database in memory, whose time the test turns."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self.database = MemoryDatabase(lambda: self.now)

    def store(self, history: int = 10_000) -> MemoryStore:
        return MemoryStore(self.database, history=history)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def contents(self) -> Contents:
        return self.database.snapshot()

    def lose(self) -> None:
        self.database.lose()
        self.database.refuse = lambda push: ""

    def write_mark(self, text: str) -> None:
        self.database.contents.meta = text

    def write_epoch(self, epoch: int) -> None:
        self.database.contents.epoch = epoch

    def write_lease(self, text: str) -> None:
        self.database.contents.expiring["lease"] = (text, float("inf"))

    def read_lease(self) -> str:
        return self.database.contents.expiring.get("lease", ("",))[0]

    def take_messages(self, queue: str) -> list[bytes]:
        messages = self.database.contents.queues.pop(queue, [])
        return [one.encode() if isinstance(one, str) else one for one in messages]

    def spoil(self, queue: str) -> None:
        words = "WRONGTYPE Operation against a key holding the wrong kind of value"
        self.database.refuse = lambda push: words if push.key == queue else ""
