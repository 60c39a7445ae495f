"""What a missed run leaves: a MISSED result, signals, an event for monitors, the handler task, a log line.

:func:`report` does all but the log line. Beat's main loop must never wait for a result backend, a broker or
a signal receiver, so there a :class:`Reporter` does it in a thread of its own.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

from billiard.einfo import ExceptionInfo
from celery import Celery, Task, signals, states
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.utils.nodenames import gethostname, nodename
from kombu.exceptions import EncodeError, OperationalError

from celery_misfire.background import BackgroundWorker
from celery_misfire.exceptions import BrokerUnavailable, TaskMissed
from celery_misfire.fire import isoformat
from celery_misfire.misfire import MisfireInstruction, MissedFire, Reason
from celery_misfire.sending.broker import Broker
from celery_misfire.signals import misfire_detected, task_missed

if TYPE_CHECKING:
    from celery_misfire.conf.settings import Settings

__all__ = [
    "MISSED",
    "Part",
    "Report",
    "Reporter",
    "log_line",
    "missed_dict",
    "missed_from_dict",
    "recorders",
    "report",
    "result_of",
]

logger = logging.getLogger(__name__)

#: The result state of a run that never happens.
MISSED = "MISSED"

#: Longest wait for the result backend, in seconds.
BACKEND_TIMEOUT = 5.0
#: First and longest pause before what failed is tried again, in seconds.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
#: So many finished reports are handed back at a time, and struck from the records together.
AT_A_TIME = 200
#: What cannot succeed is tried so often, in case it can.
HOPELESS_TRIES = 3


# -- the record as JSON ------------------------------------------------------------------------------------


def missed_dict(missed: MissedFire) -> dict[str, Any]:
    """Return the record as plain JSON types; moments are ISO 8601 text in UTC."""
    return {
        "entry": missed.entry,
        "task": missed.task,
        "task_id": missed.task_id,
        "first_scheduled_fire_time": isoformat(missed.first),
        "last_scheduled_fire_time": isoformat(missed.last),
        "count": missed.count,
        "reason": str(missed.reason),
        "instruction": str(missed.instruction),
        "detected_at": isoformat(missed.detected_at),
    }


def missed_from_dict(record: Mapping[str, Any]) -> MissedFire:
    """Return what :func:`missed_dict` was made of.

    :raises ValueError: when it was made of something else.
    """
    try:
        return MissedFire(
            entry=record["entry"],
            task=record["task"],
            task_id=record["task_id"],
            first=datetime.fromisoformat(record["first_scheduled_fire_time"]),
            last=datetime.fromisoformat(record["last_scheduled_fire_time"]),
            count=record["count"],
            reason=Reason(record["reason"]),
            instruction=MisfireInstruction(record["instruction"]),
            detected_at=datetime.fromisoformat(record["detected_at"]),
        )
    except (KeyError, TypeError) as exc:
        raise ValueError(f"not a record of missed runs: {exc}") from None


def result_of(missed: MissedFire) -> dict[str, Any]:
    """Return the result to store: the record, in the form in which Celery stores an exception.

    The exception itself would not do. Celery encodes exceptions in its own states only, and a pickled one
    could not be read where this package is not installed.
    """
    return {
        "exc_type": TaskMissed.__name__,
        "exc_message": [str(TaskMissed.from_missed(missed))],
        "exc_module": TaskMissed.__module__,
        **missed_dict(missed),
    }


def log_line(missed: MissedFire) -> str:
    """Return the record as one line for the log: at most 500 characters, control characters escaped."""
    runs = "1 run" if missed.count == 1 else f"{missed.count} runs"
    when = isoformat(missed.first)
    if missed.count > 1:
        when += f" to {isoformat(missed.last)}"
    line = (
        f"{_shortened(missed.entry)} missed {runs} of {_shortened(missed.task)}, scheduled {when}, "
        f"reason {missed.reason}, instruction {missed.instruction}"
    )
    return line[:500]


def _shortened(name: str) -> str:
    shown = repr(name)
    return shown if len(shown) <= 120 else f"{shown[:118]}…'"


# -- one report --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """A record that is to be reported.

    :param on_missed: name of the handler task, None for none.
    :param key: anything, for the caller to know the report by.
    :param request: the request of a run that a worker has received, without its arguments.
    """

    missed: MissedFire
    on_missed: str | None = None
    key: object = None
    request: Context | None = None


#: Where else to keep a record of missed runs. Each is called again, for all of them, until none raises, so it
#: must not mind a record that it has already; a TypeError or ValueError is final.
recorders: list[Callable[[MissedFire], None]] = []


class Part(StrEnum):
    """The parts of a report, in their order."""

    #: The copy that the app's own storage keeps, see :data:`recorders`.
    RECORD = "record"
    #: The result under the run's task id.
    RESULT = "result"
    #: What depends on the run: its chord, its chain, its error callbacks.
    CANVAS = "canvas"
    #: Celery's own ``task_failure`` signal.
    TASK_FAILURE = "task_failure"
    #: Our signal.
    TASK_MISSED = "task_missed"
    #: The ``task-missed`` event.
    EVENT = "event"
    #: The handler task.
    HANDLER = "handler"


def report(
    app: Celery,
    settings: Settings,
    item: Report,
    parts: Iterable[Part] = tuple(Part),
    broker: Broker | None = None,
    workers: Mapping[Part, BackgroundWorker] | None = None,
) -> dict[Part, BaseException]:
    """Report missed runs once; a part that fails does not stop the others.

    :param parts: what to do of it.
    :param broker: None: connect for this report alone.
    :param workers: where to do these parts, with a time limit; the others: here, for as long as it takes.
    :returns: the parts that failed, with their errors.
    """
    used = broker or Broker(app)
    failed: dict[Part, BaseException] = {}
    try:
        for part in parts:
            try:
                do = partial(_DO[part], app, settings, item, used)
                if part is Part.CANVAS and item.request is None:
                    # Nothing depends on a run that was never sent.
                    continue
                if workers is not None and part in workers:
                    _do_in_time(workers[part], do)
                else:
                    do()
            # A receiver of a signal may raise anything, and this may be a thread's only chance.
            except BaseException as exc:
                failed[part] = exc
                if part in (Part.EVENT, Part.HANDLER):
                    used.drop()
    finally:
        if broker is None:
            used.close()
    return failed


def _do_in_time(worker: BackgroundWorker, do: Callable[[], None]) -> None:
    """Have something done by the other thread, and raise what it raises.

    Result backends, databases and mail servers have time limits and retries of their own: many minutes on
    Redis, none on most databases. They are the app's, and stay as they are.

    :raises TimeoutError: after ``BACKEND_TIMEOUT``. What had begun by then may still be done.
    """

    def work() -> None:
        _refresh_django_connections()
        try:
            do()
        finally:
            _refresh_django_connections()

    done = worker.submit(work)
    try:
        done.result(BACKEND_TIMEOUT)
    finally:
        done.cancel()


def _store_result(app: Celery, settings: Settings, item: Report, broker: Broker) -> None:
    missed, task = item.missed, _task(app, item.missed.task)
    backend = task.backend
    # The RPC backend answers who asked for the run, and nobody did.
    if isinstance(backend, DisabledBackend | RPCBackend):
        return
    if task.ignore_result and not task.store_errors_even_if_ignored:
        return
    with _held(backend, missed.task_id) as state:
        if state not in states.READY_STATES:
            result = result_of(missed)
            backend.store_result(missed.task_id, result, settings.result_state, request=_request(item))


@contextmanager
def _held(backend: Any, task_id: str) -> Iterator[str]:
    """Give the state of a result, and let nobody change it in the block, where the backend can do that.

    Celery's own backends cannot, but most look again themselves, right before they write. Those of
    django-celery-results overwrite whatever is there, and a row can be locked.
    """
    model = getattr(backend, "TaskModel", None)
    if model is None:
        yield backend.get_task_meta(task_id, cache=False)["status"]
        return
    # Found, not imported, as below.
    database = sys.modules["django.db"]
    using = database.router.db_for_write(model)
    rows = model._default_manager.using(using)
    with database.transaction.atomic(using=using):
        # Only a row that exists can be locked.
        rows.get_or_create(task_id=task_id)
        yield rows.select_for_update().get(task_id=task_id).status


def _keep_records(app: Celery, settings: Settings, item: Report, broker: Broker) -> None:
    for keep in recorders:
        keep(item.missed)


def _fail_canvas(app: Celery, settings: Settings, item: Report, broker: Broker) -> None:
    request = item.request
    if request is None or not (request.chord or request.chain or request.errbacks):
        return
    error = TaskMissed.from_missed(item.missed)
    backend = _task(app, item.missed.task).backend
    chain: Any = request.chain
    for following in chain or ():
        if id_ := following.get("options", {}).get("task_id"):
            backend.store_result(id_, error, states.FAILURE)
    # As a failure: a chord is told the result of its member, and cannot encode one in a state of ours.
    backend.mark_as_failure(item.missed.task_id, error, request=request, store_result=False)


def _send_task_failure(app: Celery, settings: Settings, item: Report, broker: Broker) -> None:
    if not settings.send_task_failure:
        return
    missed, task = item.missed, _task(app, item.missed.task)
    error = TaskMissed.from_missed(missed)
    einfo = _einfo(error)
    # Receivers read the request from the sender, as in a worker.
    task.request_stack.push(_request(item))
    try:
        signals.task_failure.send(
            sender=task,
            task_id=missed.task_id,
            exception=error,
            args=(),
            kwargs={},
            traceback=error.__traceback__,
            einfo=einfo,
        )
    finally:
        task.request_stack.pop()


def _send_task_missed(app: Celery, settings: Settings, item: Report, broker: Broker) -> None:
    task_missed.send(sender=item.missed.task, missed=item.missed)


def _send_event(app: Celery, settings: Settings, item: Report, broker: Broker) -> None:
    fields = missed_dict(item.missed)
    fields |= {
        "uuid": fields.pop("task_id"),
        "name": fields.pop("task"),
        # The only text of a task that Flower shows in any state.
        "exception": str(TaskMissed.from_missed(item.missed)),
    }
    if item.request is None:
        # Monitors take whoever sends an event of a task for a worker; one not seen since 1970 is offline.
        fields["timestamp"] = 0
    producer = broker.producer
    hostname = _request(item).hostname
    dispatcher = app.events.Dispatcher(
        producer.connection, hostname=hostname, channel=producer.channel, buffer_while_offline=False
    )
    with dispatcher:
        dispatcher.send("task-missed", **fields)


def _send_handler(app: Celery, settings: Settings, item: Report, broker: Broker) -> None:
    if item.on_missed is None:
        return
    app.send_task(
        item.on_missed,
        kwargs={"missed": missed_dict(item.missed)},
        task_id=str(uuid5(NAMESPACE_OID, f"celery-misfire on_missed {item.missed.task_id}")),
        producer=broker.producer,
        retry=False,
        # Else Celery would subscribe to the result, and the alarm would fail with the result backend.
        ignore_result=True,
    )


_DO: dict[Part, Callable[[Celery, Settings, Report, Broker], None]] = {
    Part.RECORD: _keep_records,
    Part.RESULT: _store_result,
    Part.CANVAS: _fail_canvas,
    Part.TASK_FAILURE: _send_task_failure,
    Part.TASK_MISSED: _send_task_missed,
    Part.EVENT: _send_event,
    Part.HANDLER: _send_handler,
}


def _task(app: Celery, name: str) -> Task[Any, Any]:
    """Return the task of this name, or one that stands for it where it is not known."""
    known: Task[Any, Any] | None = app.tasks.get(name)
    if known is not None:
        return known
    unknown: Any = type("UnknownTask", (app.Task,), {"name": name, "__module__": __name__})
    unknown.bind(app)
    task: Task[Any, Any] = unknown()
    return task


def _request(item: Report) -> Context:
    """Return the request of the run, or the one that it would have had, without arguments."""
    missed = item.missed
    return item.request or Context(
        id=missed.task_id,
        task=missed.task,
        hostname=_hostname(),
        periodic_task_name=missed.entry,
        headers={"periodic_task_name": missed.entry},
        delivery_info={},
    )


def _hostname() -> str:
    return nodename("beat", gethostname())


def _einfo(error: TaskMissed) -> ExceptionInfo:
    """Raise and catch, for a traceback; here, so that it holds no variables but the error."""
    try:
        raise error
    except TaskMissed:
        return ExceptionInfo()


# -- the thread --------------------------------------------------------------------------------------------


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
        self._workers: dict[Part, BackgroundWorker] = {}
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
                    for worker in set(self._workers.values()):
                        worker.close()
                    self._workers = {}
                    return

    def _work(self, item: _Job | Mapping[str, Any] | None) -> None:
        _refresh_django_connections()
        if isinstance(item, _Job):
            self._begin(item)
        elif item is not None:
            misfire_detected.send(**item)
        last_chance = self._stopping and self._inbox.empty()
        if self._waiting and (last_chance or time.monotonic() >= self._retry_at):
            self._retry()
        _refresh_django_connections()

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
        if not self._workers:
            # Two, so that neither a database nor a result backend that hangs holds up the other.
            records, results = BackgroundWorker("misfire-records"), BackgroundWorker("misfire-results")
            self._workers = {Part.RECORD: records, Part.RESULT: results, Part.CANVAS: results}
        failed = report(self._app, self._settings, job.report, job.left, self._broker, self._workers)
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


def _refresh_django_connections() -> None:
    """Let go of database connections that are broken or too old, as Django does around a request."""
    # Found, not imported: Django is there only if the app uses it, or if somebody has imported it in vain.
    database, conf = sys.modules.get("django.db"), sys.modules.get("django.conf")
    if database is None or conf is None or not conf.settings.configured:
        return
    try:
        database.close_old_connections()
    except Exception as exc:
        logger.debug("letting go of database connections failed: %s", type(exc).__name__)
