"""Both kinds of store behind one face, for the tests that every store must pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import redis

from celery_misfire.store.memory import Contents, MemoryDatabase, MemoryStore
from celery_misfire.store.port import Store
from celery_misfire.store.redis_store import RedisStore
from tests.support.redis_server import RedisServer

NAMESPACE = "test"
STATE, LEASE, LOG, STOPPED = (
    f"celery-misfire:{{{NAMESPACE}}}:{key}" for key in ("state", "lease", "log", "stopped")
)


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

    def write_stop(self, text: str) -> None:
        """Write the mark of a clean stop."""

    def write_lease(self, text: str) -> None:
        """Write the lease, without an end."""

    def read_lease(self) -> str:
        """Return the text of the lease, '' for none."""

    def take_messages(self, queue: str) -> list[bytes]:
        """Take all messages out of a queue, in the order in which a worker does it, and return them."""

    def spoil(self, queue: str) -> None:
        """Make a queue one that takes no messages: its key holds something else."""

    def forbid(self, command: str) -> None:
        """Take the right to a command of the broker away, until everything is lost."""

    def ends_in(self, queue: str) -> float:
        """Return in how many seconds a queue ends."""

    def subscribe(self, channel: str) -> AbstractContextManager[Callable[[], bytes]]:
        """Listen to a channel of the broker; what is returned waits for the next message."""

    def time(self) -> float:
        """Return the time of the store, in seconds since 1970."""


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
        self.client.execute_command("ACL", "SETUSER", "default", "+@all")

    def write_mark(self, text: str) -> None:
        self.client.hset(STATE, "_meta", text)

    def write_epoch(self, epoch: int) -> None:
        self.client.hset(STATE, "_epoch", epoch)

    def write_stop(self, text: str) -> None:
        self.client.set(STOPPED, text)

    def write_lease(self, text: str) -> None:
        self.client.set(LEASE, text)

    def read_lease(self) -> str:
        return self.client.get(LEASE) or ""

    def take_messages(self, queue: str) -> list[bytes]:
        with redis.Redis.from_url(self._url) as client:
            return list(iter(lambda: client.rpop(queue), None))

    def spoil(self, queue: str) -> None:
        self.client.sadd(queue, "not ours")

    def forbid(self, command: str) -> None:
        self.client.execute_command("ACL", "SETUSER", "default", f"-{command}")

    def ends_in(self, queue: str) -> float:
        return self.client.pttl(queue) / 1000

    @contextmanager
    def subscribe(self, channel: str) -> Iterator[Callable[[], bytes]]:
        with redis.Redis.from_url(self._url) as client, client.pubsub() as subscription:
            subscription.subscribe(channel)
            subscription.get_message(timeout=10)
            yield lambda: subscription.get_message(timeout=10)["data"]

    def time(self) -> float:
        return time.time()


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

    def write_stop(self, text: str) -> None:
        self.database.contents.expiring["stopped"] = (text, float("inf"))

    def write_lease(self, text: str) -> None:
        self.database.contents.expiring["lease"] = (text, float("inf"))

    def read_lease(self) -> str:
        return self.database.contents.expiring.get("lease", ("",))[0]

    def take_messages(self, queue: str) -> list[bytes]:
        messages = self.database.contents.queues.pop(queue, [])
        return [one.encode() if isinstance(one, str) else one for one in messages]

    def spoil(self, queue: str) -> None:
        words = "LPOP: WRONGTYPE Operation against a key holding the wrong kind of value"
        self.database.refuse = lambda push: words if push.key == queue else ""

    def forbid(self, command: str) -> None:
        kind = "lpush" if command == "lpop" else command
        words = f"{command.upper()}: no permissions to run the '{command}' command"
        self.database.refuse = lambda push: words if push.kind == kind else ""

    def ends_in(self, queue: str) -> float:
        return self.database.contents.queue_ends[queue] - self.now

    @contextmanager
    def subscribe(self, channel: str) -> Iterator[Callable[[], bytes]]:
        yield lambda: next(m.encode() for name, m in self.database.contents.published if name == channel)

    def time(self) -> float:
        return self.now
