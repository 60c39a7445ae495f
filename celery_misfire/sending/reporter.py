"""The thread that makes reports of missed runs, each until it has succeeded.

Beat's main loop must never wait for a result backend, a broker or a signal receiver.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu.exceptions import EncodeError, OperationalError

from celery_misfire.background import Aside
from celery_misfire.exceptions import BrokerUnavailable
from celery_misfire.sending.broker import Broker
from celery_misfire.sending.missed_runs import Part, Report, log_line, refresh_django_connections, report
from celery_misfire.signals import misfire_detected

if TYPE_CHECKING:
    from celery_misfire.conf.settings import Settings

__all__ = ["Reporter"]

logger = logging.getLogger(__name__)

#: First and longest pause before what failed is tried again, in seconds.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
#: So many finished reports are handed back at a time, and struck from the records together.
AT_A_TIME = 200
#: What cannot succeed is tried so often, in case it can.
HOPELESS_TRIES = 3


@dataclass
class _Job:
    report: Report
    left: list[Part]
    tries: int = 0


class Reporter:
    """Makes reports in a daemon thread, each until it has succeeded; `who` reports, for the log.

    What fails is tried again after 1 to 30 seconds, for as long as it takes, and only the part that failed.
    Meanwhile other reports go as far as they can. No method waits, except :meth:`stop`.
    """

    def __init__(self, app: Celery, settings: Settings, who: str = "beat") -> None:
        self._app = app
        self._settings = settings
        self._who = who
        self._broker = Broker(app)
        #: There from the first report on.
        self._asides: dict[Part, Aside] = {}
        self._inbox: SimpleQueue[_Job | Mapping[str, Any] | None] = SimpleQueue()
        self._done: SimpleQueue[Report] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopping = False
        # The rest belongs to the thread.
        self._waiting: deque[_Job] = deque()
        self._broken: set[Part] = set()
        self._pause = 0.0
        self._retry_at = 0.0

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None or not self._thread.is_alive():
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name="misfire-reporter", daemon=True)
            self._thread.start()

    def stop(self, timeout: float) -> None:
        """Finish what is there within `timeout` seconds, and end the thread; the rest stays unfinished."""
        self._stopping = True
        self._inbox.put(None)
        if self._thread is not None:
            self._thread.join(timeout)

    def submit(self, report: Report, parts: Iterable[Part] = tuple(Part)) -> None:
        """Have a report made, or what is left of it."""
        self._inbox.put(_Job(report, list(parts)))

    def announce(self, misfire: Mapping[str, Any]) -> None:
        """Have ``misfire_detected`` sent with these arguments, ``sender`` among them."""
        self._inbox.put(misfire)

    def finished(self) -> list[Report]:
        """Return the next reports that have been made, in the order in which they were; so many at most."""
        return [self._done.get_nowait() for _ in range(min(self._done.qsize(), AT_A_TIME))]

    def _run(self) -> None:
        while True:
            wait = max(0.0, self._retry_at - time.monotonic()) if self._waiting else None
            try:
                item = self._inbox.get(timeout=wait)
            except Empty:
                item = None
            try:
                self._work(item)
            except BaseException:
                # A receiver may raise anything, and there is no other thread for the reports.
                logger.exception("%s: unexpected error in the reporter", self._who)
            if self._inbox.empty():
                # An idle connection would be closed by the broker, and the next report fail on it.
                self._broker.close()
                if self._stopping:
                    for aside in set(self._asides.values()):
                        aside.close()
                    self._asides = {}
                    return

    def _work(self, item: _Job | Mapping[str, Any] | None) -> None:
        refresh_django_connections()
        if isinstance(item, _Job):
            self._begin(item)
        elif item is not None:
            misfire_detected.send(**item)
        last_chance = self._stopping and self._inbox.empty()
        if self._waiting and (last_chance or time.monotonic() >= self._retry_at):
            self._retry()
        refresh_django_connections()

    def _begin(self, job: _Job) -> None:
        # What is known to be broken is left for later: each try may take long to fail.
        later = [part for part in job.left if part in self._broken]
        job.left = [part for part in job.left if part not in self._broken]
        self._try(job)
        job.left += later
        if self._settle(job) or self._pause:
            return
        self._pause = FIRST_PAUSE
        self._retry_at = time.monotonic() + self._pause
        logger.warning(
            "%s: missed runs cannot be reported (%s fails), trying until they can", self._who, job.left[0]
        )

    def _retry(self) -> None:
        """Try again what waits, up to the first that fails."""
        while self._waiting:
            job = self._waiting.popleft()
            self._broken.difference_update(job.left)
            self._try(job)
            if not self._settle(job):
                self._pause = min(LONGEST_PAUSE, self._pause * 2)
                self._retry_at = time.monotonic() + self._pause
                return
            self._pause = FIRST_PAUSE
        self._broken.clear()
        self._pause = 0.0
        logger.info("%s: missed runs can be reported again", self._who)

    def _try(self, job: _Job) -> None:
        """Do what is left of a job; what fails, and may succeed another time, is left then."""
        if not self._asides:
            # Two, so that neither a database nor a result backend that hangs holds up the other.
            records, results = Aside("misfire-records"), Aside("misfire-results")
            self._asides = {Part.RECORD: records, Part.RESULT: results, Part.CANVAS: results}
        failed = report(self._app, self._settings, job.report, job.left, self._broker, self._asides)
        job.tries += 1
        job.left = []
        for part, error in failed.items():
            if _worth_another_try(part, error, job.tries):
                job.left.append(part)
            else:
                kind, line = type(error).__name__, log_line(job.report.missed)
                logger.error("%s: %s of a report is given up (%s): %s", self._who, part, kind, line)
        self._broken.update(job.left)

    def _settle(self, job: _Job) -> bool:
        """Put a job where it belongs now; True when it is done."""
        if job.left:
            self._waiting.append(job)
        else:
            self._done.put(job.report)
        return not job.left


def _worth_another_try(part: Part, error: BaseException, tries: int) -> bool:
    if part in (Part.TASK_FAILURE, Part.TASK_MISSED):
        return False
    if tries < HOPELESS_TRIES or isinstance(error, OSError | OperationalError | BrokerUnavailable):
        return True
    # Nobody depends on an event; the others are given up only if the record itself is what is wrong.
    return part is not Part.EVENT and not isinstance(error, TypeError | ValueError | EncodeError)
