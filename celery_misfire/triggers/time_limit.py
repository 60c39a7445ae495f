"""A time limit for schedules that run code of the app.

Such a schedule may do anything when it is asked: sleep, compute for minutes, never return. Beat goes on with
the other entries all the same. Each question is put in a background thread. When the answer takes too long,
beat gets :class:`NoAnswer`, and the thread goes on; its answer is used when beat puts the question again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import cached_property, partial
from typing import Any

from celery_misfire.background import BackgroundWorker
from celery_misfire.misfire import FireTimes, Trigger, TriggerState, TriggerType

#: The name of a thread whose schedule has exceeded the limit and is still at work.
SLOW_THREAD = "misfire-slow-schedule"
#: The longest wait for one answer, in seconds.
ANSWER_TIMEOUT = 0.1
#: The longest wait for one answer, in seconds, while the budget for waiting in vain is used up.
SHORT_ANSWER_TIMEOUT = 0.02
#: The budget for waiting in vain, in seconds; a tenth of the time that passes is given back.
WASTED_TIME_LIMIT = 1.0


class NoAnswer(TimeoutError):
    """A schedule is still at work on an answer.

    :param waited: how long, in seconds.
    """

    def __init__(self, waited: float) -> None:
        super().__init__(f"the schedule has not answered for {waited:.1f} s")
        self.waited = waited


class TimeLimit:
    """Asks the schedules of one beat, from one thread, each for a limited time.

    In the long run, answers that come too late cost all schedules together about a tenth of the time.
    """

    def __init__(self) -> None:
        self._worker: BackgroundWorker | None = None
        self._wasted = 0.0
        self._last_asked = 0.0

    def limited(self, trigger: Trigger) -> Trigger:
        """Return a trigger that answers in time or raises NoAnswer; the same one if it can only compute."""
        # A trigger that the app made itself may not say it.
        return _LimitedTrigger(trigger, self) if getattr(trigger, "runs_foreign_code", True) else trigger

    def ask(self, question: Callable[[], Any]) -> Future[Any]:
        """Return the answer; when it takes too long, it is not there yet."""
        worker = self._worker = self._worker or BackgroundWorker("misfire-schedule")
        answer = worker.submit(partial(_answer, question))
        asked = time.monotonic()
        self._wasted = max(0.0, self._wasted - (asked - self._last_asked) / 10)
        self._last_asked = asked
        try:
            answer.exception(SHORT_ANSWER_TIMEOUT if self._wasted > WASTED_TIME_LIMIT else ANSWER_TIMEOUT)
        except TimeoutError:
            # The thread is left to that question and ends with it; the next question gets a new one.
            worker.name = SLOW_THREAD
            worker.close()
            self._worker = None
            self._wasted += time.monotonic() - asked
        return answer


def _answer(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except Exception:
        raise
    except BaseException as exc:
        # A schedule must not end beat by SystemExit.
        raise RuntimeError(f"it raised {type(exc).__name__}") from None


class _LimitedTrigger:
    """A trigger whose questions are put one at a time, each with a time limit."""

    def __init__(self, trigger: Trigger, limit: TimeLimit) -> None:
        self._trigger, self._limit = trigger, limit
        #: The last question if it was not answered in time: its key, its answer, when it was put.
        self._open: tuple[object, Future[Any], float] | None = None
        self._first_state: TriggerState | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LimitedTrigger) and self._trigger == other._trigger

    def __hash__(self) -> int:
        return hash(self._trigger)

    @property
    def trigger_type(self) -> TriggerType:
        return self._trigger.trigger_type

    @property
    def interval(self) -> int | None:
        return self._trigger.interval

    @property
    def runs_foreign_code(self) -> bool:
        return True

    @property
    def follows_elapsed_time(self) -> bool:
        return self._trigger.follows_elapsed_time

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
            # A late answer is kept until the next question is answered as well: a slow schedule that is
            # asked about a new moment each time would never be done.
            self._first_state = state
        return self._first_state

    def fire_times(self, state: TriggerState) -> FireTimes:
        return _LimitedTimes(self, state)

    def ask_times(self, state: TriggerState, method: str, *moments: int) -> Any:
        """Return what a method of the trigger's fire times returns."""
        found = self.ask(
            (state, method, moments), lambda: getattr(self._trigger.fire_times(state), method)(*moments)
        )
        self._first_state = None
        return found

    def ask(self, key: object, question: Callable[[], Any]) -> Any:
        """Return the answer to a question.

        :param key: identifies the question; a late answer is given to the same question.
        :raises NoAnswer: when there is none yet.
        """
        late, self._open = self._open, None
        if late is not None and late[1].done() and late[0] != key:
            late = None
        now = time.monotonic()
        asked, answer, since = late or (key, self._limit.ask(question), now)
        if not answer.done():
            self._open = asked, answer, since
            raise NoAnswer(time.monotonic() - since)
        return answer.result()


class _LimitedTimes:
    def __init__(self, trigger: _LimitedTrigger, state: TriggerState) -> None:
        self._ask = partial(trigger.ask_times, state)

    def after(self, moment: int) -> int | None:
        found: int | None = self._ask("after", moment)
        return found

    def before(self, moment: int) -> int | None:
        found: int | None = self._ask("before", moment)
        return found

    def count(self, first: int, last: int) -> int:
        count: int = self._ask("count", first, last)
        return count
