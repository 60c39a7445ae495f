"""A past in Redis, made by the real leader on a clock of its own; only the broker is left out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import redis

from celery_misfire.events import decode
from celery_misfire.leadership.leader import Leader
from celery_misfire.leadership.lease import Lease
from celery_misfire.records import Definition
from celery_misfire.sending.dispatch import Attempt, Fate, Message
from celery_misfire.sending.missed_runs import Report
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.store.state_mark import Destination


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
        self._done: list[Report] = []

    def beat_runs(self, until: int) -> None:
        """A beat starts now and runs up to this moment; then it is gone."""
        lease = Lease(self._store, 3600, 1200)
        leader = Leader(
            self._store,
            lease,
            self,
            self,
            namespace=self._namespace,
            wall=lambda: self.now,
            steady=lambda: self.now / 1000,
        )
        acquired = lease.acquire()
        assert acquired
        leader.take_over(acquired, self.definitions)
        while True:
            delay = leader.tick()
            if not delay:
                continue
            if self.now + round(delay * 1000) > until:
                break
            self.now += max(1, round(delay * 1000))
        lease.release()
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

    # The publisher
    def connect(self) -> None:
        pass

    was_asked = True

    def read(self, key: str) -> None:
        """It is no Redis."""

    def destination(self, keys: Sequence[str]) -> Destination:
        return Destination("memory", "", "celery")

    def publish(self, message: Message) -> Attempt:
        self.sent.append(message)
        return Attempt(Fate.SENT)

    # The reporter
    def submit(self, report: Report) -> None:
        self._done.append(report)

    def finished(self) -> list[Report]:
        done, self._done = self._done, []
        return done
