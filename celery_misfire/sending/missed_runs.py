"""What a missed run leaves: a MISSED result, signals, an event for monitors, the handler task.

:func:`report` does all of it, once; the log line is the caller's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

from billiard.einfo import ExceptionInfo
from celery import Celery, Task, signals, states
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.utils.nodenames import gethostname, nodename

from celery_misfire.background import BackgroundWorker
from celery_misfire.exceptions import TaskMissed
from celery_misfire.misfire import MissedFire, Reason
from celery_misfire.sending.broker import Broker
from celery_misfire.sending.missed_record import missed_dict, result_of
from celery_misfire.signals import task_missed

if TYPE_CHECKING:
    from celery_misfire.conf.settings import Settings

logger = logging.getLogger(__name__)

#: Longest wait for the result backend, and for the recorders, in seconds.
BACKEND_TIMEOUT = 5.0


@dataclass(frozen=True)
class Report:
    """A record that is to be reported.

    :param on_missed: name of the handler task, None for none.
    :param key: anything by which the caller knows the report.
    :param request: the request of a run that a worker has received, without its arguments.
    :param ignore_result: the option of this name of the entry; None when it says nothing.
    """

    missed: MissedFire
    on_missed: str | None = None
    key: object = None
    request: Context | None = None
    ignore_result: bool | None = None


#: Where else to keep a record of missed runs. All are called again until none raises, so each must accept a
#: record that it has already. A TypeError or ValueError is final.
recorders: list[Callable[[MissedFire], None]] = []

#: Called before and after the work of a report, in each thread that does some. They close connections of the
#: app that are broken or too old, as a framework does around a request.
connection_closers: list[Callable[[], object]] = []


def close_connections() -> None:
    """Have connections closed that are broken or too old."""
    for close in connection_closers:
        try:
            close()
        except Exception as exc:
            logger.debug("closing old connections failed: %s", type(exc).__name__)


def use_django() -> ModuleType:
    """Return our module for Django's database, and have its connections closed when they are old.

    For processes that use Django and have not installed our Django app, which does the same.

    :raises ImportError: when Django is not installed.
    """
    database = import_module("celery_misfire.contrib.django.database")
    database.install()
    return database


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
    background: Mapping[Part, BackgroundWorker] | None = None,
) -> dict[Part, BaseException]:
    """Report missed runs once; a part that fails does not stop the others.

    :param parts: what to do of it.
    :param broker: None: connect for this report alone.
    :param background: where to do these parts, with a time limit; the others: here, for as long as it takes.
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
                if background is not None and part in background:
                    _do_in_time(background[part], do)
                else:
                    do()
            # A receiver of a signal may raise anything; it must not end the thread.
            except BaseException as exc:
                failed[part] = exc
                if part in (Part.EVENT, Part.HANDLER):
                    used.drop()
    finally:
        if broker is None:
            used.close()
    return failed


def _do_in_time(thread: BackgroundWorker, do: Callable[[], None]) -> None:
    """Have something done by another thread, and raise what it raises.

    Result backends, databases and mail servers have time limits and retries of their own: many minutes on
    Redis, none on most databases. The app has chosen them, so they stay as they are.

    :raises TimeoutError: after ``BACKEND_TIMEOUT``. What had begun by then may still be done.
    """

    def work() -> None:
        close_connections()
        try:
            do()
        finally:
            close_connections()

    done = thread.submit(work)
    try:
        done.result(BACKEND_TIMEOUT)
    finally:
        done.cancel()


def _store_result(app: Celery, settings: Settings, item: Report, broker: Broker) -> None:
    missed, task = item.missed, _task(app, item.missed.task)
    backend = task.backend
    # The RPC backend sends a result to the caller of the run, and beat's runs have none.
    if isinstance(backend, DisabledBackend | RPCBackend):
        return
    # The run itself would decide so: what was asked for with it goes before what its task says.
    told = item.ignore_result if item.request is None else vars(item.request).get("ignore_result")
    ignored = task.ignore_result if told is None else told
    if ignored and not task.store_errors_even_if_ignored:
        return
    with _hold_result(backend, missed.task_id) as state:
        if state not in states.READY_STATES:
            result = result_of(missed)
            backend.store_result(missed.task_id, result, settings.result_state, request=_request(item))


@contextmanager
def _hold_result(backend: Any, task_id: str) -> Iterator[str]:
    """Give the state of a result, and let nobody change it in the block, where the backend can do that.

    Celery's own backends cannot. Most of them look once more right before they write. The backend of
    django-celery-results overwrites whatever is there, but its rows can be locked.
    """
    model = getattr(backend, "TaskModel", None)
    if model is None:
        yield backend.get_task_meta(task_id, cache=False)["status"]
        return
    # This backend brings Django along, whether or not our Django app is installed.
    with use_django().hold_result(model, task_id) as state:
        yield state


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
    # The run fails, for its chord: a chord cannot encode the result of a member in a state of ours.
    backend.mark_as_failure(item.missed.task_id, error, request=request, store_result=False)


def _send_task_failure(app: Celery, settings: Settings, item: Report, broker: Broker) -> None:
    # A deploy is no alarm.
    if not settings.send_task_failure or item.missed.reason == Reason.RESTARTED:
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
        # Monitors take the sender of a task's event for a worker. One last seen in 1970 is shown as offline.
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
        # Celery would subscribe to the result otherwise, and the alarm would fail with the result backend.
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
    """Return the task of this name, or a stand-in where it is not known."""
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
    """Raise and catch the error, so that it has a traceback; here, where the error is the only variable."""
    try:
        raise error
    except TaskMissed:
        return ExceptionInfo()
