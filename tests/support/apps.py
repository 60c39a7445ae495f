"""The Celery app of the process tests: ``celery -A tests.support.apps``.

Everything about it comes from the JSON file that ``MISFIRE_TEST_CONFIG`` names; the test writes it through
:class:`tests.support.processes.Project`::

    {"settings": {...}, "entries": {name: entry}, "records": path, "signals": path, "install": true}

``settings`` are Celery settings as they stand; entries are described in :mod:`tests.support.schedules`.

With ``MISFIRE_TEST_SAYS`` in the environment, receivers of every signal raise an error, and that text is in
each error on purpose.

With ``MISFIRE_TEST_GATE`` in its environment, a beat does all its imports, writes ``<path>.ready`` and
waits until the file of that path exists; so it can begin its work at a chosen moment.

With ``MISFIRE_TEST_DIES`` in its environment, a beat that sends batches to a Redis kills itself when the
first one is in a queue, so before its ack.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import beat_init, task_failure, task_revoked
from celery.worker.request import Request
from redis.client import Pipeline

import celery_misfire
from celery_misfire import Fire, MissedFire, current_fire
from celery_misfire.fire import isoformat
from celery_misfire.sending.missed_record import missed_dict
from celery_misfire.signals import beat_overdue, misfire_detected, task_missed, task_started_late
from tests.support.schedules import SAYS, build_entry


def _build() -> Celery:
    path = os.environ.get("MISFIRE_TEST_CONFIG")
    config: dict[str, Any] = json.loads(Path(path).read_text()) if path else {}
    app = Celery("acceptance")
    app.conf.update(config.get("settings", {}))
    app.conf.beat_schedule = {name: build_entry(e, app) for name, e in config.get("entries", {}).items()}
    if config.get("install", True):
        celery_misfire.install(app)
    app.records = config.get("records", os.devnull)
    app.signals = config.get("signals", os.devnull)
    return app


app = _build()


def _record(
    task: Any,
    label: Any = None,
    *,
    seconds: float = 0,
    until: str | None = None,
    retries: int = 0,
    die: bool = False,
    fail: bool = False,
) -> str:
    """The recorder: append one line of JSON to the records file when the task starts.

    :param label: goes into the line.
    :param seconds: how long the task then takes.
    :param until: wait until the file of this path exists.
    :param retries: be retried so often.
    :param die: be killed (SIGKILL), with the process, unless this is a redelivery.
    :param fail: then raise.
    """
    request = task.request
    line = {
        "task_id": request.id,
        "label": label,
        "misfire": request.get("misfire"),
        "fire": _told(current_fire()),
        "started": time.time(),
        "retries": request.retries,
        "redelivered": (request.delivery_info or {}).get("redelivered"),
        "pid": os.getpid(),
    }
    _append(app.records, line)
    time.sleep(seconds)
    while until and not Path(until).exists():
        time.sleep(0.01)
    if die and not line["redelivered"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if request.retries < retries:
        raise task.retry(countdown=0)
    if fail:
        raise RuntimeError("this task fails on purpose")
    return request.id


class OwnRequest(Request):
    """A request class of the app's own, as other libraries bring one."""


#: The recorder under the names of what is special about it.
RECORDERS: dict[str, dict[str, Any]] = {
    "record": {},
    "record.late_ack": {"acks_late": True, "reject_on_worker_lost": True},
    "record.limited": {"rate_limit": "2/s"},
    "record.tracked": {"track_started": True},
    "record.tracked_ignored": {"track_started": True, "ignore_result": True},
    "record.own_request": {"Request": OwnRequest},
}
for _name, _options in RECORDERS.items():
    app.task(bind=True, name=_name, **_options)(_record)


@app.task(name="noop")
def noop() -> None:
    """Nothing, to measure what everything else costs."""


@app.task(name="add")
def add(x: int, y: int, after: float = 0) -> int:
    """Return the sum, after so many seconds."""
    time.sleep(after)
    return x + y


@app.task(name="errback")
def errback(task_id: str) -> None:
    """The error callback: append the id of the run that failed to the signals file."""
    _append(app.signals, {"signal": "errback", "task_id": task_id})


@app.task(name="on_missed")
def on_missed(missed: dict[str, Any]) -> None:
    """The handler of missed runs: append the record to the signals file."""
    _append(app.signals, {"signal": "on_missed", **missed})


@misfire_detected.connect
def _note_misfire(sender: str, **arguments: Any) -> None:
    noted = {k: arguments[k] for k in ("entry", "late_by", "instruction", "resolved", "outcomes", "reason")}
    _append(app.signals, {"signal": "misfire_detected", "task": sender, **noted})


@task_missed.connect
def _note_missed(sender: str, missed: MissedFire, **_: Any) -> None:
    _append(app.signals, {"signal": "task_missed", "sender": sender, **missed_dict(missed)})


@task_failure.connect
def _note_failure(sender: Any, task_id: str, exception: Exception, einfo: Any, **_: Any) -> None:
    line = {"signal": "task_failure", "sender": sender.name, "task_id": task_id, "error": str(exception)}
    line |= {"kind": type(exception).__name__, "traceback": str(einfo), "headers": sender.request.headers}
    _append(app.signals, line)


@task_revoked.connect
def _note_revoked(sender: Any, request: Any, expired: bool, **_: Any) -> None:
    _append(app.signals, {"signal": "task_revoked", "task_id": request.id, "expired": expired})


@task_started_late.connect
def _note_late(sender: Any, fire: Fire, late_by: float, **_: Any) -> None:
    told = _told(fire)
    _append(
        app.signals, {"signal": "task_started_late", "sender": sender.name, "fire": told, "late_by": late_by}
    )


@beat_overdue.connect
def _note_overdue(sender: Any, entries: list[str], since: datetime, **_: Any) -> None:
    line = {"signal": "beat_overdue", "sender": sender.main, "entries": entries, "since": since.timestamp()}
    _append(app.signals, {**line, "at": time.time()})


def _raise(**_: Any) -> None:
    raise RuntimeError(f"this receiver raises on purpose {SAYS}")


if SAYS:
    for _signal in (misfire_detected, task_missed, task_failure, task_started_late, beat_overdue):
        _signal.connect(_raise)


@beat_init.connect
def _wait_at_the_gate(**_: Any) -> None:
    if gate := os.environ.get("MISFIRE_TEST_GATE"):
        Path(f"{gate}.ready").touch()
        while not Path(gate).exists():
            time.sleep(0.005)


_EXECUTE = Pipeline.execute


def _execute_and_die(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
    has_messages = any(command[0] == "LPUSH" for command, _ in pipeline.command_stack)
    answers = _EXECUTE(pipeline, *args, **kwargs)
    if has_messages:
        os.kill(os.getpid(), signal.SIGKILL)
    return answers


if os.environ.get("MISFIRE_TEST_DIES"):
    Pipeline.execute = _execute_and_die


def _told(fire: Fire | None) -> dict[str, Any] | None:
    if fire is None:
        return None
    return {k: isoformat(v) if isinstance(v, datetime) else v for k, v in asdict(fire).items()}


def _append(path: str, line: dict[str, Any]) -> None:
    # Each line is one write to a file opened for appending, so lines of several processes never mix.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
    finally:
        os.close(descriptor)
