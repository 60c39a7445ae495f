"""Beats in the process of a test, with messages and state in one Redis."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from celery import Celery

from celery_misfire.beat import MisfireScheduler
from celery_misfire.conf.settings import read_settings
from celery_misfire.schedules import simple
from celery_misfire.store.redis_store import RedisStore
from tests.support.log_lines import one_by_one
from tests.support.processes import wait_for
from tests.support.redis_server import RedisServer


class World:
    """A Redis, and beats on it."""

    def __init__(self, server: RedisServer) -> None:
        self.server, self.client = server, server.client()
        self.beats: list[MisfireScheduler] = []

    def app(self, **settings: Any) -> Celery:
        """Return an app with broker and state in database 0."""
        broker = settings.pop("broker", self.server.url)
        app = Celery("shop", broker=broker, set_as_current=False, task_cls=settings.pop("task_cls", None))
        state = {"misfire_redis_url": self.server.url, "misfire_lease_ttl": 60, "misfire_standby_poll": 0.05}
        app.conf.update(state | {"task_ignore_result": True, "beat_schedule": {}} | settings)
        return app

    def beat(self, app: Celery | None = None, /, **settings: Any) -> MisfireScheduler:
        """Return a beat that has taken over a state that knows of no entry."""
        app = app or self.app(**settings)
        store = RedisStore.of(read_settings(app))
        if "_meta" not in self.client.hgetall(store.state_key):
            store.acquire("past", 10)
            store.write_meta("past", "shop")
            store.release("past")
        self.beats.append(MisfireScheduler(app))
        run(self.beats[-1], lambda: self.beats[-1]._member.holds_lease)
        return self.beats[-1]

    def close(self) -> None:
        for beat in self.beats:
            beat.close()
            beat.app.close()
        self.client.close()

    # -- what is in Redis ----------------------------------------------------------------------------------

    def messages(self, queue: str = "celery") -> list[dict[str, Any]]:
        """Return the messages of a queue, oldest first."""
        return [json.loads(text) for text in reversed(self.client.lrange(queue, 0, -1))]

    def runs(self, queue: str = "celery") -> Counter[str]:
        """Return how many messages of each entry stand in a queue."""
        return Counter(m["headers"]["misfire"]["entry"] for m in self.messages(queue))


def run(beat: MisfireScheduler, true: Callable[[], object], timeout: float = 40) -> None:
    wait_for(lambda: beat.tick() >= 0 and true(), timeout, every=0.005)


def body(*args: Any, **kwargs: Any) -> None:
    """What the tasks do."""


def due_now(task: str = "shop.reports", **more: Any) -> dict[str, Any]:
    """Return an entry that is due at this moment and then an hour later."""
    return {"task": task, "schedule": simple(start=datetime.now(UTC), interval=3600), **more}


def fire(beat: MisfireScheduler, names: Iterable[str] = "a", **entry: Any) -> None:
    """Have entries become due and carried out."""
    patient = {"misfire": {"instruction": "do_nothing", "threshold": 600}}
    beat.update_from_dict({name: due_now(**(patient | entry)) for name in names})


def store_of(beat: MisfireScheduler) -> RedisStore:
    return RedisStore.of(read_settings(beat.app))


def is_done(beat: MisfireScheduler, names: Iterable[str] = "a") -> bool:
    """Return True when all runs of these entries have been sent, as far as beat knows."""
    records = [beat._leader.record(name) for name in names]
    return beat._member.holds_lease and all(
        record is not None and record.settled and record.state.previous_fire_time for record in records
    )


def fire_all(beat: MisfireScheduler, names: Iterable[str] = "a", **entry: Any) -> None:
    fire(beat, names, **entry)
    run(beat, lambda: is_done(beat, names))


def sent_lines(beat: MisfireScheduler) -> Counter[str]:
    return Counter(line["entry"] for line in one_by_one(store_of(beat).log()) if line["event"] == "sent")
