"""What each process of a worker needs of its own: a child inherits no threads, connections or locks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from celery import Celery

from celery_misfire.conf.settings import Settings
from celery_misfire.exceptions import StoreUnavailable
from celery_misfire.log_lines import Log
from celery_misfire.sending.missed_runs import Part, Report, report
from celery_misfire.sending.reporter import Reporter
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.trouble import Trouble

say = Log(__name__, "worker")

#: Longest wait of a run for the store, in seconds.
CALL_TIMEOUT = 2.0
#: A store that failed is left alone for so long, in seconds. Each run would wait for it otherwise.
LEAVE_ALONE = 5.0
#: Longest wait for unfinished reports when the worker stops, in seconds.
STOP_TIMEOUT = 5.0

T = TypeVar("T")


class StoreForRuns:
    """The store as a run may ask it: not for long, and not again soon after it has failed.

    :param hostname: of the worker, for the log.
    """

    def __init__(self, settings: Settings, hostname: str) -> None:
        self._settings, self._hostname = settings, hostname
        self._stores: dict[int, RedisStore] = {}
        self._trouble = Trouble(first_wait=LEAVE_ALONE, longest_wait=LEAVE_ALONE)

    def ask(self, question: Callable[[RedisStore], T]) -> T | None:
        """Return the answer of the store; None when it cannot be reached."""
        trouble = self._trouble
        if trouble.is_waiting(time.monotonic()):
            return None
        try:
            answer = question(self._store)
        except StoreUnavailable as exc:
            if trouble.fail(time.monotonic()):
                what = "until it answers, runs are neither judged nor deduplicated"
                say.warning("store_unavailable", "%s; %s", exc, what, owner=self._hostname)
            return None
        if (away := trouble.end(time.monotonic())) is not None:
            say.store_available(self._store.server, away, self._hostname)
        return answer

    @property
    def _store(self) -> RedisStore:
        pid = os.getpid()
        if pid not in self._stores:
            self._stores = {pid: RedisStore.of(self._settings, CALL_TIMEOUT)}
        return self._stores[pid]


class Reports:
    """The reports of what a worker gives up."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._app, self._settings, self._main_process = app, settings, os.getpid()
        self._reporters: dict[int, Reporter] = {}

    def make(self, item: Report) -> None:
        """Make a report. The main process lives on, and its loop must not wait."""
        left: Iterable[Part] = tuple(Part)
        if os.getpid() != self._main_process:
            # A process of the pool may end at any time: report now, and leave to the thread what fails.
            left = report(self._app, self._settings, item)
        if left:
            self._reporter.start()
            self._reporter.submit(item, left)
            self._reporter.finished()

    def start(self) -> None:
        """Get ready to make reports."""
        self._reporter.start()

    def stop(self) -> None:
        """Finish the reports that are under way."""
        self._reporter.stop(STOP_TIMEOUT)

    @property
    def _reporter(self) -> Reporter:
        pid = os.getpid()
        if pid not in self._reporters:
            self._reporters = {pid: Reporter(self._app, self._settings, who="worker")}
        return self._reporters[pid]
