"""What a worker decides of the runs that beat has sent: which may start, and what becomes of the others."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from celery import Celery, Task
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.time import maybe_iso8601, maybe_make_aware

from celery_misfire import fire
from celery_misfire.conf import settings as conf
from celery_misfire.exceptions import StoreUnavailable
from celery_misfire.fire import Fire, isoformat
from celery_misfire.misfire import MisfireInstruction, MissedFire, Outcome, Reason, to_millis
from celery_misfire.sending.missed_runs import Part, Report, log_line, report
from celery_misfire.sending.reporter import Reporter
from celery_misfire.signals import task_started_late
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.texts import one_line, quote

if TYPE_CHECKING:
    from celery_misfire.worker import Request

__all__ = ["Guard"]

logger = logging.getLogger(__name__)


#: Longest wait of a run for the store, in seconds.
CALL_TIMEOUT = 2.0
#: When the store cannot be reached, it is left alone for so long, in seconds: each run would wait for it.
LEAVE_ALONE = 5.0
#: Time given to the reporter when the worker stops, in seconds.
FAREWELL = 5.0

_NONCE = re.compile(r"\w{1,64}", re.ASCII).fullmatch

T = TypeVar("T")


class _Late(Enum):
    """What becomes of a run that starts late."""

    RUNS = "runs"
    DISCARDED = "discarded"
    #: The first one runs; what was sent before it started is merged into it.
    ONE_RUNS = "one runs"


_WHEN_LATE = {
    # It stands for another instruction, which nobody has asked for: a run that exists is not thrown away.
    MisfireInstruction.SMART_POLICY: _Late.RUNS,
    MisfireInstruction.IGNORE_MISFIRE_POLICY: _Late.RUNS,
    MisfireInstruction.FIRE_ONCE_NOW: _Late.ONE_RUNS,
    MisfireInstruction.DO_NOTHING: _Late.DISCARDED,
    MisfireInstruction.FIRE_NOW: _Late.ONE_RUNS,
    MisfireInstruction.RESCHEDULE_NOW_WITH_EXISTING_REPEAT_COUNT: _Late.ONE_RUNS,
    MisfireInstruction.RESCHEDULE_NOW_WITH_REMAINING_REPEAT_COUNT: _Late.ONE_RUNS,
    MisfireInstruction.RESCHEDULE_NEXT_WITH_EXISTING_COUNT: _Late.DISCARDED,
    MisfireInstruction.RESCHEDULE_NEXT_WITH_REMAINING_COUNT: _Late.DISCARDED,
}


@dataclass(frozen=True)
class _Copy:
    """One message of a run that our beat has sent.

    :param nonce: tells the messages of one run apart; a redelivery has the same.
    :param instruction: None when misfire handling is off for the entry.
    :param due: when it should start, in seconds since 1970.
    :param threshold: how late that may be, in seconds.
    """

    task_id: str
    task: str
    fire: Fire
    nonce: str
    instruction: MisfireInstruction | None
    due: float
    threshold: float
    on_missed: str | None

    @property
    def when_late(self) -> _Late:
        return _WHEN_LATE[self.instruction] if self.instruction else _Late.RUNS

    def __str__(self) -> str:
        scheduled = isoformat(self.fire.scheduled_fire_time)
        return f"{quote(self.fire.entry)} ({one_line(self.task)}[{self.task_id}], scheduled {scheduled})"


class _Fields(Protocol):
    """Celery's ``Context``, or the dict that it is made of."""

    def get(self, key: str, /) -> Any: ...


class Guard:
    """Decides whether a run that beat has sent may start.

    No method raises an error: whatever goes wrong is logged, and the run starts.

    :param hostname: of the worker, for the registers and the log.
    """

    def __init__(self, app: Celery, settings: conf.Settings, hostname: str) -> None:
        self._app, self._settings, self._hostname = app, settings, hostname
        self._main_process = os.getpid()
        self._reporters: dict[int, Reporter] = {}
        self._stores: dict[int, RedisStore] = {}
        self._away_until: float | None = None

    # -- the questions -------------------------------------------------------------------------------------

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
        if not _may_be_discarded(request.request_dict):
            # What else there is to decide is decided where the run starts.
            return False
        copy = self._copy(request.request_dict)
        if copy is None:
            return False
        late_by = self._late_by(copy)
        if late_by is not None and copy.when_late is _Late.DISCARDED:
            return self._discarded(copy, Reason.QUEUE_LATE, request.context, late_by)
        return False

    def _expires(self, request: Request) -> bool:
        copy = self._copy(request.request_dict)
        if copy is None or copy.instruction is None or not self._settings.worker_guard:
            return False
        return self._discarded(copy, Reason.EXPIRED, request.context, time.time() - copy.due)

    def _admits(self, task: Task[Any, Any]) -> bool:
        request = task.request
        copy = self._copy(request)
        if copy is None or request.is_eager or request.get("misfire_admitted"):
            return True
        late_by = self._late_by(copy)
        if late_by is not None and copy.when_late is _Late.DISCARDED:
            return not self._discarded(copy, Reason.QUEUE_LATE, request, late_by)
        starts, again = self._starts(copy, late_by)
        if not starts:
            return False
        # A class may call before_start of another one that is wrapped as well.
        request.update(misfire_admitted=True)
        if late_by is not None and not again:
            self._tell_late(task, copy, late_by)
        return True

    # -- the answers ---------------------------------------------------------------------------------------

    def _late_by(self, copy: _Copy) -> float | None:
        """Return how late a start is now, in seconds, None when it is in time."""
        late_by = time.time() - copy.due
        judged = self._settings.worker_guard and copy.instruction is not None
        return late_by if judged and late_by >= copy.threshold else None

    def _starts(self, copy: _Copy, late_by: float | None) -> tuple[bool, bool]:
        """Write into the register that the run starts; return whether it may, and whether it did before."""
        merges = self._settings.worker_guard and copy.when_late is _Late.ONE_RUNS
        if not (merges or self._settings.deduplicate):
            return True, False
        late_line = None if late_by is None else self._line("late", copy, late_by=round(late_by * 1000))
        answer = self._ask(
            lambda: self._store.start(
                copy.task_id,
                f"started:{copy.nonce}:{self._hostname}",
                entry=copy.fire.entry,
                sent=to_millis(copy.fire.fire_time) if merges else None,
                late=_now() if merges and late_by is not None else None,
                line=late_line,
                merged_line=self._line("merged", copy) if merges else None,
            )
        )
        if answer is None:
            return True, False
        held, fresh = answer
        return self._is_own(copy, held), not fresh

    def _discarded(self, copy: _Copy, reason: Reason, request: Context, late_by: float) -> bool:
        """Make a run a missed one; False when it is under way already, and this is its redelivery."""
        # Only a run that is explicitly configured so, or has expired, comes here.
        instruction = copy.instruction
        assert instruction is not None
        missed = MissedFire(
            entry=copy.fire.entry,
            task=copy.task,
            task_id=copy.task_id,
            first=copy.fire.scheduled_fire_time,
            last=copy.fire.scheduled_fire_time,
            count=1,
            reason=reason,
            instruction=instruction,
            detected_at=datetime.now(UTC),
        )
        scheduled = to_millis(missed.first)
        line = self._line("missed", copy, first=scheduled, last=scheduled, count=1)
        line |= {"reason": reason, "instruction": instruction}
        # With the nonce: if this process dies now, the message comes again, and is reported then.
        value = f"missed:{reason}:{copy.nonce}"
        answer = self._ask(lambda: self._store.start(copy.task_id, value, entry=copy.fire.entry, line=line))
        if answer is None:
            return False
        if answer[0] != value:
            return not self._is_own(copy, answer[0])
        logger.warning("worker: %s, late by %.3f s", log_line(missed), late_by)
        self._report(Report(missed, copy.on_missed, request=_without_arguments(request)))
        return True

    def _is_own(self, copy: _Copy, held: str) -> bool:
        """True when the register says that the run started from this message, else the message is dropped."""
        what, _, rest = held.partition(":")
        nonce, _, host = rest.partition(":")
        if what == "started" and (nonce == copy.nonce or not self._settings.deduplicate):
            return True
        if what not in ("started", "merged", "missed"):
            logger.warning("worker: the register of %s holds something unknown, the run starts", copy)
            return True
        why = {
            "started": f"{host} started it from another message",
            "merged": f"merged into the late run {rest}",
            "missed": f"it counts as missed ({nonce})",
        }[what]
        logger.info("worker: a message of %s is dropped: %s", copy, one_line(why))
        return False

    def _tell_late(self, task: Task[Any, Any], copy: _Copy, late_by: float) -> None:
        logger.warning(
            "worker: %s starts late by %.3f s (threshold %g s), instruction %s",
            copy,
            late_by,
            copy.threshold,
            copy.instruction,
        )
        task_started_late.send(sender=task, fire=copy.fire, late_by=late_by)

    def _report(self, item: Report) -> None:
        # The main loop must not wait, and that process lives on.
        left: Iterable[Part] = tuple(Part)
        if os.getpid() != self._main_process:
            # This one may not: now, and only what fails is tried for as long as it does.
            left = report(self._app, self._settings, item)
        if left:
            self._reporter.start()
            self._reporter.submit(item, left)
            self._reporter.finished()

    def start(self) -> None:
        """Get ready to make reports."""
        self._reporter.start()

    def close(self) -> None:
        """Finish the reports that are under way."""
        self._reporter.stop(FAREWELL)

    # ------------------------------------------------------------------------------------------------------

    def _copy(self, request: _Fields) -> _Copy | None:
        """Return what the message says, None when our beat has not sent it or it is a retry."""
        raw = request.get(fire.HEADER)
        if raw is None or request.get("retries"):
            return None
        sent = fire.read(raw)
        if sent is None:
            return None
        task_id, generation, nonce = request.get("id"), raw.get("generation"), raw.get("nonce")
        if type(generation) is not int or not isinstance(nonce, str) or not _NONCE(nonce):
            return None
        scheduled = to_millis(sent.scheduled_fire_time)
        if task_id != fire.task_id(self._settings.namespace, sent.entry, generation, scheduled):
            # Another app's, or a task that was given the headers of the one that sent it.
            return None
        instruction, threshold, on_missed = (raw.get(k) for k in ("instruction", "threshold", "on_missed"))
        known = isinstance(instruction, str) and instruction in _WHEN_LATE
        known = known and isinstance(threshold, int | float) and threshold >= 0
        due = sent.scheduled_fire_time if sent.outcome is Outcome.FIRED else sent.fire_time
        if eta := request.get("eta"):
            due = max(due, _moment(eta, self._app))
        return _Copy(
            task_id=task_id,
            task=request.get("task"),
            fire=sent,
            nonce=nonce,
            instruction=MisfireInstruction(instruction) if known else None,
            due=due.timestamp(),
            threshold=threshold if known else 0.0,
            on_missed=on_missed if isinstance(on_missed, str) else None,
        )

    def _line(self, event: str, copy: _Copy, **fields: Any) -> dict[str, Any]:
        scheduled = {} if "first" in fields else {"scheduled": to_millis(copy.fire.scheduled_fire_time)}
        line = {"event": event, "entry": copy.fire.entry, **scheduled, **fields}
        return {**line, "id": copy.task_id, "worker": self._hostname}

    @property
    def _reporter(self) -> Reporter:
        """The reporter of this process: a thread does not go with it into a child."""
        pid = os.getpid()
        if pid not in self._reporters:
            self._reporters = {pid: Reporter(self._app, self._settings, who="worker")}
        return self._reporters[pid]

    @property
    def _store(self) -> RedisStore:
        """The store of this process: connections and locks are not to be shared with a child."""
        pid = os.getpid()
        if pid not in self._stores:
            self._stores = {pid: _store(self._settings)}
        return self._stores[pid]

    def _ask(self, call: Callable[[], T]) -> T | None:
        """Ask the store; None when it cannot be reached."""
        if self._away_until is not None and time.monotonic() < self._away_until:
            return None
        try:
            answer = call()
        except StoreUnavailable as exc:
            known = self._away_until is not None
            self._away_until = time.monotonic() + LEAVE_ALONE
            if not known:
                logger.warning("worker: %s; until it is back, runs are neither judged nor deduplicated", exc)
            return None
        if self._away_until is not None:
            logger.info("worker: the store is there again")
            self._away_until = None
        return answer

    def _safely(self, default: bool, question: Callable[[Any], bool], about: Any) -> bool:
        try:
            return question(about)
        except SoftTimeLimitExceeded:
            # The run's own time is up.
            raise
        except Exception:
            logger.exception("worker: unexpected error, the run starts")
            return default


def _may_be_discarded(request: _Fields) -> bool:
    """Tell at a look whether a late start could be the end of this message."""
    raw = request.get(fire.HEADER)
    instruction = raw.get("instruction") if isinstance(raw, dict) else None
    return isinstance(instruction, str) and _WHEN_LATE.get(instruction) is _Late.DISCARDED  # type: ignore[call-overload]


def _moment(eta: Any, app: Celery) -> datetime:
    moment: Any = maybe_iso8601(eta)
    return maybe_make_aware(moment, app.timezone)


def _without_arguments(request: Context) -> Context:
    kept = Context(vars(request))
    kept.update(args=None, kwargs=None, argsrepr=None, kwargsrepr=None)
    return kept


def _store(settings: conf.Settings) -> RedisStore:
    return RedisStore(
        settings.redis_url, settings.namespace, settings.redis_options, settings.history, CALL_TIMEOUT
    )


def _now() -> int:
    return time.time_ns() // 1_000_000
