"""The worker side: which runs of beat may start, and a watch over beat.

Two hooks ask the :class:`Guard`. :class:`Request` asks it in the main process, when a run is about to go to
the pool: a run that is too late is dropped there, and costs the pool nothing. ``Task.before_start`` asks it
where the run starts, in every pool, and there the register of the run is written. Only this hook sees how
long a run waited in a pool of threads, which takes runs long before they start. A task that beat has not
sent costs each hook one look at its headers.

Installed by :func:`celery_misfire.install`, or by the setting ``imports = ("celery_misfire.worker",)``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import celery.worker.request
from celery import Celery, Task, states
from celery.app import trace
from celery.app.task import Context
from celery.exceptions import Ignore
from celery.signals import beat_init, worker_init, worker_ready, worker_shutdown
from celery.worker.state import task_ready

from celery_misfire import result
from celery_misfire.conf import settings as conf
from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.log_lines import Log
from celery_misfire.metrics.children import WorkerNumbers
from celery_misfire.metrics.numbers import Note
from celery_misfire.worker.guard import Guard
from celery_misfire.worker.tracing import describe_span
from celery_misfire.worker.watch import Watch

__all__ = ["WORKER_SIDE", "Guard", "Request", "install"]

say = Log(__name__, "worker")


#: Under this name the configuration of a worker says that the worker side is installed (``inspect conf``).
WORKER_SIDE = "worker_side_of_celery_misfire"


class Request(celery.worker.request.Request):
    """A request that asks the guard of its app before it goes to the pool."""

    @property
    def context(self) -> Context:
        """The request as its task sees it."""
        context: Context = self._context  # type: ignore[attr-defined]
        return context

    def revoked(self) -> bool:
        """Return True when the run must not start; its message is acknowledged then."""
        if super().revoked():
            return True
        guard = _guard_of(self.app)
        if guard is None or not guard.refuses(self):
            return False
        self._drop()
        return True

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        guard = _guard_of(self.app)
        if expired and guard is not None and guard.expires(self):
            self._drop()
        else:
            super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]

    def _drop(self) -> None:
        task_ready(self)
        self.acknowledge()
        self._already_revoked = True


_DEFAULT_REQUEST = Task.Request

#: Attribute of a task whose ``track_started`` was on.
_TRACKS_START = "_misfire_tracks"


def _ask_before_start(cls: type[Task[Any, Any]]) -> None:
    """Wrap ``before_start`` of a task class: Celery ignores one that an instance has."""
    original = cls.before_start
    if getattr(original, "asks_guard", False):
        return

    @functools.wraps(original)
    def before_start(self: Task[Any, Any], task_id: str, args: Any, kwargs: Any) -> None:
        guard = _guard_of(self.app)
        if guard is not None:
            with suppress(Exception):
                # Spans are never worth a run.
                describe_span()
            if not guard.admits(self):
                raise Ignore
        _store_started(self, task_id)
        original(self, task_id, args, kwargs)

    before_start.asks_guard = True  # type: ignore[attr-defined]
    cls.before_start = before_start  # type: ignore[method-assign]


def _store_started(task: Task[Any, Any], task_id: str) -> None:
    """Store STARTED in place of Celery, for a task that tracks its start."""
    request = task.request
    if _TRACKS_START in vars(task) and not request.is_eager and not _ignores_result(task, request):
        meta = {"pid": os.getpid(), "hostname": request.hostname}
        task.backend.store_result(task_id, meta, states.STARTED, request=request)


# Up to Celery 5.5 only the task decides whether its result is ignored; later a message may, too.
_ignores_result: Callable[[Task[Any, Any], Context], bool] = getattr(
    trace, "get_actual_ignore_result", lambda task, request: task.ignore_result
)


def _guard_of(app: Celery | None) -> Guard | None:
    return vars(app).get("_misfire_guard")


# -- installation ------------------------------------------------------------------------------------------


def install(worker: Any) -> None:
    """Install the guard and the watch in a worker that is about to start; once for each app.

    A wrong configuration is logged. The worker then works as it would without this package.
    """
    app: Celery = worker.app
    result.install(app)
    known = vars(app)
    if "_misfire_watch" in known:
        return
    try:
        settings = conf.read_settings(app)
    except MisfireConfigError as exc:
        # The worker has not set its log up yet.
        known["_misfire_problem"] = exc
        return
    watch = known["_misfire_watch"] = Watch(app, settings, worker.hostname)
    numbers = known["_misfire_numbers"] = WorkerNumbers(settings)
    numbers.gauges.append(lambda: [Note("store_up", value=watch.store_is_up)])
    app.conf[WORKER_SIDE] = {"namespace": settings.namespace, "guard": settings.worker_guard}
    if not (settings.worker_guard or settings.deduplicate):
        return
    known["_misfire_guard"] = Guard(app, settings, worker.hostname, numbers)
    for task in app.tasks.values():
        if task.Request == _DEFAULT_REQUEST:
            task.Request = Request  # type: ignore[assignment]
        _ask_before_start(type(task))
        if task.track_started:
            # Celery would store STARTED before it asks the guard. For a second message of a run, that would
            # replace the result of the run.
            vars(task)[_TRACKS_START] = True
            task.track_started = False


@worker_init.connect
def _install_by_setting(sender: Any, **_: Any) -> None:
    if _is_imported_by(sender.app):
        install(sender)


@beat_init.connect
def _install_results_by_setting(sender: Any, **_: Any) -> None:
    if _is_imported_by(sender.app):
        result.install(sender.app)


def _is_imported_by(app: Celery) -> bool:
    return __name__ in (*app.conf.imports, *app.conf.include)


@worker_ready.connect
def _start(sender: Any, **_: Any) -> None:
    known = vars(sender.app)
    problem: MisfireConfigError | None = known.pop("_misfire_problem", None)
    if problem is not None:
        say.error("problem", "runs of beat are neither judged nor deduplicated: %s", problem)
    guard = _guard_of(sender.app)
    if guard is not None:
        guard.reports.start()
    if (watch := known.get("_misfire_watch")) is not None:
        watch.start()
    numbers: WorkerNumbers | None = known.get("_misfire_numbers")
    if numbers is not None:
        # A pool of green threads has no children, and a thread that waits for a pipe would stop it.
        numbers.start(has_children=not sender.pool.is_green)


@worker_shutdown.connect
def _stop(sender: Any, **_: Any) -> None:
    watch: Watch | None = vars(sender.app).get("_misfire_watch")
    if watch is not None:
        watch.stop()
    guard = _guard_of(sender.app)
    if guard is not None:
        guard.reports.stop()
