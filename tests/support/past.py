"""A past in Redis, made by the real leader on a clock of its own; only the broker is left out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from unittest.mock import patch

import redis

from celery_misfire.events import decode
from celery_misfire.leadership import leader
from celery_misfire.records import Definition
from celery_misfire.sending.dispatch import Message
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.testing.process import BeatProcess, Unsent


def long_sleeps() -> AbstractContextManager[object]:
    """Let leaders on a virtual clock sleep until there is something to do: a day has thousands of sleeps."""
    return patch.object(leader, "LONGEST_SLEEP", 86_400.0)


class Past:
    """Beats that come and go while the time passes.

    :param now: the moment at which the past begins, in milliseconds UTC.
    """

    def __init__(self, url: str, namespace: str, definitions: Iterable[Definition], now: int) -> None:
        self.definitions = list(definitions)
        self.now = now
        self.sent: list[Message] = []
        self._client = redis.Redis.from_url(url)
        self._store = RedisStore(url, namespace)
        self._namespace = namespace

    def beat_runs(self, until: int) -> None:
        """A beat starts now and runs up to this moment; then it is gone."""
        beat = BeatProcess(
            self._store,
            Unsent(self.sent),
            lambda: self.now,
            lambda: self.definitions,
            namespace=self._namespace,
            # By the clock of Redis, no time passes between two beats.
            restart_grace=0,
        )
        with long_sleeps():
            while True:
                delay = beat.tick()
                if not delay:
                    continue
                if self.now + round(delay * 1000) > until:
                    break
                self.now += max(1, round(delay * 1000))
        beat.member.close()
        self._date_log()
        self.now = until

    def pass_to(self, moment: int) -> None:
        """Nobody is there until this moment."""
        self.now = moment

    def _date_log(self) -> None:
        """Give each line of the log the time at which its beat wrote it; Redis has given its own."""
        rows = self._client.xrange(self._store.log_key)
        self._client.delete(self._store.log_key)
        at = 0
        # Numbered here, as Redis does it by itself from 7.0 on.
        for number, (_id, fields) in enumerate(rows):
            event = decode(json.loads(fields[b"d"]))
            at = max(at, at if event is None else event.written_at or at)
            self._client.xadd(self._store.log_key, fields, id=f"{at}-{number}")
