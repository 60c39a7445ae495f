"""Schedules that run the app's own code, asked with a time limit.

Whatever such a schedule does when it is asked (sleep, compute for minutes, never return), beat goes on with
the other entries. Each question is put in a helper thread. When the answer takes too long, beat is told so by
an error, and the thread goes on: what it finds is there when the schedule is asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import cached_property, partial
from typing import Any

from celery_misfire.background import Aside
from celery_misfire.calendars import ExcludingTrigger
from celery_misfire.misfire import FireTimes, Trigger, TriggerState, TriggerType
from celery_misfire.triggers.kinds import CalendarTrigger, CronTrigger, GridTrigger, RelativeTrigger

__all__ = ["PATIENCE", "SLOW", "NoAnswer", "Patience"]

#: Name of a thread in which a schedule is still at work on an answer that nobody waits for any more.
SLOW = "misfire-slow-schedule"
#: Longest wait for one answer, in seconds.
PATIENCE = 0.1
#: The same when there are many slow schedules at a time.
LITTLE_PATIENCE = 0.02
#: So many seconds of waiting in vain are many, if they are more than a tenth of the time.
MANY = 1.0


class NoAnswer(TimeoutError):
    """A schedule is still at work on an answer.

    :param since: for so many seconds.
    """

    def __init__(self, since: float) -> None:
        super().__init__(f"the schedule has not answered for {since:.1f} s")
        self.since = since


class Patience:
    """Asks the schedules of one beat, in the thread that uses it.

    Answers that do not come in time cost all schedules together about a tenth of the time, in the long run.
    """

    def __init__(self) -> None:
        self._helper: Aside | None = None
        self._wasted = 0.0
        self._looked_at = 0.0

    def guard(self, trigger: Trigger) -> Trigger:
        """Return the trigger such that it answers soon or raises NoAnswer."""
        return _GuardedTrigger(trigger, self) if _runs_own_code(trigger) else trigger

    def ask(self, question: Callable[[], Any]) -> Future[Any]:
        """Return the answer; it may not be there yet."""
        helper = self._helper = self._helper or Aside("misfire-schedule")
        answer = helper.do(partial(_answer, question))
        begun = time.monotonic()
        self._wasted = max(0.0, self._wasted - (begun - self._looked_at) / 10)
        self._looked_at = begun
        try:
            answer.exception(LITTLE_PATIENCE if self._wasted > MANY else PATIENCE)
        except TimeoutError:
            # The helper is left to that question, and ends with it.
            helper.name = SLOW
            helper.close()
            self._helper = None
            self._wasted += time.monotonic() - begun
        return answer


def _answer(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except Exception:
        raise
    except BaseException as exc:
        # A schedule must not end beat by SystemExit.
        raise RuntimeError(f"it raised {type(exc).__name__}") from None


class _GuardedTrigger:
    """A trigger whose questions are put one at a time."""

    def __init__(self, trigger: Trigger, patience: Patience) -> None:
        self._trigger, self._patience = trigger, patience
        #: What was asked last and not answered in time.
        self._open: tuple[object, Future[Any], float] | None = None
        self._first_state: TriggerState | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _GuardedTrigger) and self._trigger == other._trigger

    def __hash__(self) -> int:
        return hash(self._trigger)

    @property
    def trigger_type(self) -> TriggerType:
        return self._trigger.trigger_type

    @property
    def interval(self) -> int | None:
        return self._trigger.interval

    @cached_property
    def fingerprint(self) -> str:
        fingerprint: str = self.ask("fingerprint", lambda: self._trigger.fingerprint)
        return fingerprint

    def first_state(self, first_seen: int) -> TriggerState:
        if self._first_state is None:
            late = self._open is not None
            state: TriggerState = self.ask("first state", lambda: self._trigger.first_state(first_seen))
            if not late:
                return state
            # An answer that came late is kept until the next question is answered as well: asked about a new
            # moment each time, a slow schedule would never be done.
            self._first_state = state
        return self._first_state

    def fire_times(self, state: TriggerState) -> FireTimes:
        return _GuardedTimes(self, state)

    def ask_times(self, state: TriggerState, method: str, *moments: int) -> Any:
        """Return what a method of the trigger's fire times returns."""
        found = self.ask(
            (state, method, moments), lambda: getattr(self._trigger.fire_times(state), method)(*moments)
        )
        self._first_state = None
        return found

    def ask(self, what: object, question: Callable[[], Any]) -> Any:
        """Return the answer to a question.

        :param what: names the question; a late answer is given to the same one.
        :raises NoAnswer: when there is none yet.
        """
        late, self._open = self._open, None
        if late is not None and late[1].done() and late[0] != what:
            late = None
        now = time.monotonic()
        asked, answer, since = late or (what, self._patience.ask(question), now)
        if not answer.done():
            self._open = asked, answer, since
            raise NoAnswer(time.monotonic() - since)
        return answer.result()


class _GuardedTimes:
    def __init__(self, guard: _GuardedTrigger, state: TriggerState) -> None:
        self._ask = partial(guard.ask_times, state)

    def after(self, moment: int) -> int | None:
        found: int | None = self._ask("after", moment)
        return found

    def before(self, moment: int) -> int | None:
        found: int | None = self._ask("before", moment)
        return found

    def count(self, first: int, last: int) -> int:
        count: int = self._ask("count", first, last)
        return count


def _runs_own_code(trigger: Trigger) -> bool:
    match trigger:
        case GridTrigger() | RelativeTrigger() | CronTrigger() | CalendarTrigger():
            return False
        case ExcludingTrigger():
            return _runs_own_code(trigger.trigger)
    return True
