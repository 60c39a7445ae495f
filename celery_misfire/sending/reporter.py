"""The thread that makes reports of missed runs, each until it has succeeded.

Beat's main loop must never wait for a result backend, a broker or a signal receiver.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from celery import Celery
from kombu.exceptions import EncodeError, OperationalError

from celery_misfire.background import BackgroundWorker
from celery_misfire.events import Misfired, Missed
from celery_misfire.exceptions import BrokerUnavailable
from celery_misfire.log_lines import Log
from celery_misfire.misfire import MisfireInstruction, Outcome, Reason, from_millis
from celery_misfire.sending.broker import Broker, name_error
from celery_misfire.sending.missed_runs import Part, Report, close_connections, report, use_django
from celery_misfire.signals import misfire_detected
from celery_misfire.trouble import Trouble

if TYPE_CHECKING:
    from celery_misfire.conf.settings import Settings

#: First and longest pause before what failed is tried again, in seconds.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
#: Most finished reports that are handed back, and struck from the records, at a time.
MOST_FINISHED = 200
#: Most tries of a part whose error will hardly go away by itself.
MOST_TRIES = 3


@dataclass
class _Job:
    """A report under way.

    :param left: the parts that are still to be done.
    """

    report: Report
    left: list[Part]
    tries: int = 0
    error: str = ""


class Reporter:
    """Makes reports in a daemon thread, each until it has succeeded.

    What fails is tried again after 1 to 30 seconds, for as long as it takes, and only the part that failed.
    Meanwhile other reports go as far as they can. No method waits, except :meth:`stop`.

    :param who: reports, in the words of the log.
    """

    def __init__(self, app: Celery, settings: Settings, who: str = "beat") -> None:
        self._app = app
        self._settings = settings
        self._log = Log(__name__, who)
        self._broker = Broker(app)
        #: Threads for the parts that may take long; there from the first report on.
        self._background: dict[Part, BackgroundWorker] = {}
        self._inbox: SimpleQueue[_Job | Misfired | None] = SimpleQueue()
        self._done: SimpleQueue[Report] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopping = False
        # The rest belongs to the thread.
        self._waiting: deque[_Job] = deque()
        self._broken: set[Part] = set()
        self._trouble = Trouble(first_wait=FIRST_PAUSE, longest_wait=LONGEST_PAUSE)

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None or not self._thread.is_alive():
            # Celery tells a process of a Django site by the same variable.
            if os.environ.get("DJANGO_SETTINGS_MODULE"):
                with suppress(ImportError):
                    use_django()
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
        """Have a report made, or those parts of it that are left."""
        self._inbox.put(_Job(report, list(parts)))

    def announce(self, misfire: Misfired) -> None:
        """Have ``misfire_detected`` sent."""
        self._inbox.put(misfire)

    def finished(self) -> list[Report]:
        """Return the next finished reports, ``MOST_FINISHED`` at most, in the order in which they ended."""
        return [self._done.get_nowait() for _ in range(min(self._done.qsize(), MOST_FINISHED))]

    def _run(self) -> None:
        while True:
            wait = max(0.0, self._trouble.until - time.monotonic()) if self._waiting else None
            try:
                item = self._inbox.get(timeout=wait)
            except Empty:
                item = None
            try:
                self._work(item)
            except BaseException:
                # A receiver may raise anything, and there is no other thread for the reports.
                self._log.exception("unexpected_error", "unexpected error in the reporter")
            if self._inbox.empty():
                # The broker would close an idle connection, and the next report would fail on it.
                self._broker.close()
                if self._stopping:
                    for thread in set(self._background.values()):
                        thread.close()
                    self._background = {}
                    return

    def _work(self, item: _Job | Misfired | None) -> None:
        close_connections()
        if isinstance(item, _Job):
            self._begin(item)
        elif item is not None:
            _send_misfire_detected(item)
        last_chance = self._stopping and self._inbox.empty()
        if self._waiting and (last_chance or not self._trouble.is_waiting(time.monotonic())):
            self._retry()
        close_connections()

    def _begin(self, job: _Job) -> None:
        # Leave for later what is known to be broken: each try may take long to fail.
        later = [part for part in job.left if part in self._broken]
        job.left = [part for part in job.left if part not in self._broken]
        self._try(job)
        job.left += later
        if self._settle(job) or self._trouble.is_on:
            return
        self._trouble.fail(time.monotonic())
        event, part = Missed.of(job.report.missed), str(job.left[0])
        what = "missed runs cannot be reported in full, %s fails (%s); trying again until it works"
        self._log.event(logging.WARNING, event, what, part, job.error, word="report_fails", part=part)

    def _retry(self) -> None:
        """Try again what waits, up to the first job that fails."""
        failed = ", ".join(sorted(self._broken))
        while self._waiting:
            job = self._waiting.popleft()
            self._broken.difference_update(job.left)
            self._try(job)
            if not self._settle(job):
                self._trouble.fail(time.monotonic())
                return
        self._broken.clear()
        if (seconds := self._trouble.end(time.monotonic())) is not None:
            what = "missed runs can be reported again; %s failed for %.0f s"
            self._log.info("reports_work", what, failed, seconds)

    def _try(self, job: _Job) -> None:
        """Do what is left of a job; what fails, and may succeed another time, is left then."""
        if not self._background:
            # Two threads: neither a database nor a result backend that hangs may hold up the other.
            records, results = BackgroundWorker("misfire-records"), BackgroundWorker("misfire-results")
            self._background = {Part.RECORD: records, Part.RESULT: results, Part.CANVAS: results}
        failed = report(self._app, self._settings, job.report, job.left, self._broker, self._background)
        job.tries += 1
        job.left = []
        for part, error in failed.items():
            if _is_worth_another_try(part, error, job.tries):
                job.error = job.error if job.left else name_error(error)
                job.left.append(part)
            else:
                event = Missed.of(job.report.missed)
                what, told = "%s of a report is given up (%s): %s", event.sentence(self._app.timezone)
                args = what, str(part), name_error(error), told
                self._log.event(logging.ERROR, event, *args, word="report_given_up", part=str(part))
        self._broken.update(job.left)

    def _settle(self, job: _Job) -> bool:
        """Put a job where it belongs now; True when it is done."""
        if job.left:
            self._waiting.append(job)
        else:
            self._done.put(job.report)
        return not job.left


def _is_worth_another_try(part: Part, error: BaseException, tries: int) -> bool:
    if part in (Part.TASK_FAILURE, Part.TASK_MISSED):
        return False
    if tries < MOST_TRIES or isinstance(error, OSError | OperationalError | BrokerUnavailable):
        return True
    # Nothing depends on an event. The other parts are given up only when the record itself is at fault.
    return part is not Part.EVENT and not isinstance(error, TypeError | ValueError | EncodeError)


def _send_misfire_detected(misfire: Misfired) -> None:
    late_by = misfire.now - misfire.first if misfire.late_by is None else misfire.late_by
    misfire_detected.send(
        sender=misfire.task,
        entry=misfire.entry,
        scheduled_fire_time=from_millis(misfire.first),
        late_by=late_by / 1000,
        instruction=MisfireInstruction(misfire.instruction),
        resolved=MisfireInstruction(misfire.resolved),
        outcomes={Outcome(word): count for word, count in misfire.outcomes.items()},
        reason=Reason(misfire.reason),
    )
