"""What a worker decides of the runs that beat has sent: which may start, and what becomes of the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from celery import Celery, Task
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded

from celery_misfire.clocks import wall_clock
from celery_misfire.conf.settings import Settings
from celery_misfire.events import Merged, Missed, StartedLate
from celery_misfire.fire import isoformat
from celery_misfire.log_lines import Log
from celery_misfire.metrics.numbers import Note, Numbers
from celery_misfire.misfire import MissedFire, Reason, to_millis
from celery_misfire.sending.missed_runs import Report
from celery_misfire.signals import task_started_late
from celery_misfire.store import registers
from celery_misfire.store.port import Store
from celery_misfire.store.registers import Register
from celery_misfire.texts import one_line
from celery_misfire.worker.delivery import Delivery, LateStart, is_claimed, is_missed_when_late, read_delivery
from celery_misfire.worker.late_runs import LateRuns
from celery_misfire.worker.process_parts import Reports, StoreForRuns

if TYPE_CHECKING:
    from celery_misfire.worker import Request

say = Log(__name__, "worker")


class Guard:
    """Decides whether a run that beat has sent may start.

    No method raises an error: whatever goes wrong is logged, and the run starts.

    :param hostname: of the worker, for the registers and the log.
    :param numbers: what the worker is measured by.
    """

    def __init__(self, app: Celery, settings: Settings, hostname: str, numbers: Numbers) -> None:
        self._app, self._settings, self._hostname, self._numbers = app, settings, hostname, numbers
        self.reports, self._store = Reports(app, settings), StoreForRuns(settings, hostname)
        self._late_runs = LateRuns(say, app, hostname)

    # -- questions -----------------------------------------------------------------------------------------

    def refuses(self, request: Request) -> bool:
        """Return True for a run that must not go to the pool; it has been dealt with then."""
        return self._safely(False, self._refuses, request)

    def expires(self, request: Request) -> bool:
        """Return True for an expired run that has been dealt with, False to leave it to Celery."""
        return self._safely(False, self._expires, request)

    def admits(self, task: Task[Any, Any]) -> bool:
        """Return True when the run may start here and now, False when it has been dealt with."""
        return self._safely(True, self._admits, task)

    def _refuses(self, request: Request) -> bool:
        if not is_missed_when_late(request.request_dict):
            # All other decisions are made where the run starts.
            return False
        delivery = self._read(request.request_dict)
        if delivery is None:
            return False
        late_by = self._late_by(delivery)
        if late_by is not None and delivery.late_start is LateStart.MISS:
            return self._give_up(delivery, Reason.QUEUE_LATE, request.context, late_by)
        return False

    def _expires(self, request: Request) -> bool:
        delivery = self._read(request.request_dict)
        if delivery is None or delivery.instruction is None or not self._settings.worker_guard:
            return False
        return self._give_up(delivery, Reason.EXPIRED, request.context, time.time() - delivery.due)

    def _admits(self, task: Task[Any, Any]) -> bool:
        request = task.request
        delivery = self._read(request)
        if delivery is None or request.is_eager or request.get("misfire_admitted"):
            return True
        late_by = self._late_by(delivery)
        if late_by is not None and delivery.late_start is LateStart.MISS:
            if self._give_up(delivery, Reason.QUEUE_LATE, request, late_by):
                return False
            if not delivery.redelivered:
                return True
        # A run that is delivered again is not told late: it may have started in time before.
        late = None if late_by is None or delivery.redelivered else self._started_late(delivery, late_by)
        may_start, nth = self._write_start(delivery, late, task)
        if not may_start:
            return False
        # A class may call before_start of another one that is wrapped as well.
        request.update(misfire_admitted=True)
        # What comes again may have started in time before.
        if not (request.retries or delivery.redelivered):
            self._numbers.take(Note("lateness_seconds", ("worker",), time.time() - delivery.due))
        if late is not None and nth != 0:
            what = f"threshold {delivery.threshold:g} s, instruction {delivery.instruction}"
            self._late_runs.log(late, what, nth)
            task_started_late.send(sender=task, fire=delivery.fire, late_by=late_by)
        return True

    def _read(self, message: Any) -> Delivery | None:
        return read_delivery(message, self._app, self._settings.namespace)

    def _late_by(self, delivery: Delivery) -> float | None:
        """Return how late a start is now, in seconds; None when it is in time, or nobody judges it."""
        late_by = time.time() - delivery.due
        judged = self._settings.worker_guard and delivery.instruction is not None
        return late_by if judged and late_by >= delivery.threshold else None

    def _started_late(self, delivery: Delivery, late_by: float) -> StartedLate:
        return StartedLate(
            entry=delivery.fire.entry,
            scheduled=delivery.scheduled,
            late_by=round(late_by * 1000),
            id=delivery.task_id,
            worker=self._hostname,
            outcome=delivery.fire.outcome,
            now=wall_clock(),
        )

    # -- registers -----------------------------------------------------------------------------------------

    def _write_start(
        self, delivery: Delivery, late: StartedLate | None, task: Task[Any, Any]
    ) -> tuple[bool, int | None]:
        """Write into the register that the run starts; return whether it may, and how many were late so far.

        :returns: with 0 when a message of it was there before; None when nobody has counted.
        """
        judges, late_start = self._settings.worker_guard, delivery.late_start
        merges = judges and late_start is LateStart.MERGE
        if not (merges or self._settings.deduplicate):
            return True, None
        # After the start, the message may come again, and be given up for being late.
        may_be_missed = judges and late_start is LateStart.MISS and _comes_again(task)
        if delivery.once and late is None and not merges and not may_be_missed:
            return True, None
        entry = delivery.fire.entry
        merged = Merged(entry=entry, scheduled=delivery.scheduled, id=delivery.task_id, worker=self._hostname)
        # A message that is delivered again may be that of a run that started before the late one.
        is_compared = merges and not delivery.redelivered
        start = registers.StartRequest(
            registers.Started(delivery.nonce, self._hostname),
            entry=entry,
            sent_at=to_millis(delivery.fire.fire_time) if is_compared else None,
            late_start=wall_clock() if merges and late is not None else None,
            line=None if late is None else late.encode(),
            merged_line=merged.encode() if merges else None,
            by_hand=delivery.by_hand,
        )
        answer = self._store.ask(lambda store: store.start(delivery.task_id, start))
        if answer is None:
            return True, None
        register, nth = answer
        if nth and isinstance(register, registers.Merged):
            self._numbers.hear([merged])
        return self._has_started(delivery, register), nth

    def _give_up(self, delivery: Delivery, reason: Reason, context: Context, late_by: float) -> bool:
        """Make a run a missed one; return False for one that has started already, or may have."""
        # A run comes here when its entry is configured so, or when it has expired.
        assert delivery.instruction is not None
        missed = MissedFire(
            entry=delivery.fire.entry,
            task=delivery.task,
            task_id=delivery.task_id,
            first=delivery.fire.scheduled_fire_time,
            last=delivery.fire.scheduled_fire_time,
            count=1,
            reason=reason,
            instruction=delivery.instruction,
            detected_at=datetime.now(UTC),
        )
        event = Missed.of(missed, worker=self._hostname)
        # With the nonce: should this process die now, the message comes again, and is reported then.
        record = self._claim(delivery)
        value = registers.Missed(reason, "" if record else delivery.nonce)
        line = None if record else event.encode()
        request = registers.StartRequest(value, delivery.fire.entry, line=line)
        answer = self._store.ask(lambda store: _close(store, delivery, request, record))
        if answer is None:
            return False
        register, nth = answer
        if register is None:
            # Beat has written meanwhile, unless the message is delivered again: then nobody knows.
            changed = bool(record) and not delivery.redelivered
            return changed and self._give_up(delivery, reason, context, late_by)
        if register != value:
            return not self._has_started(delivery, register)
        if record:
            what = "a message of %s is dropped: beat has it among what an outage left"
            say.info("dropped", what, delivery, **self._fields(delivery))
            return True
        self._late_runs.log(event, f"late by {late_by:.3f} s", nth or None)
        self._numbers.hear([event])
        self.reports.make(Report(missed, delivery.on_missed, request=_without_arguments(context)))
        return True

    def _claim(self, delivery: Delivery) -> str:
        """Return the record by which beat does not know that the run was sent, '' when there is none.

        Beat judges such a run with the whole outage.
        """
        if delivery.once or time.time() - delivery.fire.fire_time.timestamp() < registers.LEFT_AFTER:
            return ""
        entry = delivery.fire.entry
        found = self._store.ask(lambda store: store.load([entry])) or {}
        text = found.get(entry, "")
        return text if text and is_claimed(delivery, text, self._settings.namespace) else ""

    def _has_started(self, delivery: Delivery, register: Register) -> bool:
        """Return True when the register says that the run started from this message; else it is dropped."""
        match register:
            case registers.Started(nonce, host):
                if nonce == delivery.nonce or not self._settings.deduplicate:
                    return True
                why = f"{host} started it from another message"
                self._numbers.take(Note("duplicates_dropped_total"))
            case registers.Merged(task_id):
                why = f"merged into the late run {task_id}"
            case registers.Missed(reason):
                why = f"it counts as missed ({reason})"
            case _:
                what = "the register of %s cannot be read; the run starts"
                say.warning("register_unreadable", what, delivery, **self._fields(delivery))
                return True
        what = "a message of %s is dropped: %s"
        say.info("dropped", what, delivery, one_line(why), **self._fields(delivery))
        return False

    def _fields(self, delivery: Delivery) -> dict[str, str]:
        return {
            "entry": one_line(delivery.fire.entry),
            "task": one_line(delivery.task),
            "task_id": delivery.task_id,
            "scheduled": isoformat(delivery.fire.scheduled_fire_time),
            "owner": self._hostname,
        }

    def _safely(self, default: bool, question: Callable[[Any], bool], about: Any) -> bool:
        try:
            return question(about)
        except SoftTimeLimitExceeded:
            # The time of the run itself is up.
            raise
        except Exception:
            say.exception("unexpected_error", "unexpected error, the run starts", owner=self._hostname)
            return default


def _close(
    store: Store, delivery: Delivery, request: registers.StartRequest, record: str
) -> tuple[Register | None, int | None]:
    """Write into the register that the run is missed; return what it holds, and what `start` has counted.

    A message that is delivered again may be that of a run that has started without a register. So it leaves
    an empty one alone, and the answer is None.

    :param record: what the entry's record must still be; '' when no intent stands for the run.
    """
    if delivery.redelivered:
        return store.register(delivery.task_id), None
    if record:
        return store.close(delivery.task_id, request.value, request.entry, record), None
    return store.start(delivery.task_id, request)


def _comes_again(task: Task[Any, Any]) -> bool:
    """Return True for a task whose message is acknowledged late."""
    return bool(task.acks_late or task.reject_on_worker_lost)


def _without_arguments(request: Context) -> Context:
    kept = Context(vars(request))
    kept.update(args=None, kwargs=None, argsrepr=None, kwargsrepr=None)
    return kept
