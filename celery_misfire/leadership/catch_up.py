"""When late runs have their turn: seldom while beat is busy with what is due, and not into long queues."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from celery_misfire.leadership.decisions import LARGEST_BATCH, Decisions
from celery_misfire.leadership.queues import Queues
from celery_misfire.sending.choice import DispatchChoice

#: Late runs get a turn at least so often, in seconds, however busy beat is with what is on time.
TURN_EVERY = 1.0
#: A step of catching up takes about so long at most, in seconds: what comes due meanwhile waits for its end.
LONGEST_STEP = 0.02
#: So many runs are caught up in a step, however slow it is.
SMALLEST_STEP = 10
#: A queue that is too long for catching up is looked at so often, in seconds.
LOOK_AT_QUEUE_EVERY = 5.0


class CatchUp:
    """Has the late runs of one beat sent.

    :param longest_queue: catching up waits while a queue has more messages than this.
    :param steady: a clock that nobody sets, in seconds.
    """

    def __init__(
        self,
        decisions: Decisions,
        dispatch: DispatchChoice,
        queues: Queues,
        longest_queue: int,
        steady: Callable[[], float],
    ) -> None:
        self._decisions, self._dispatch, self._queues = decisions, dispatch, queues
        self._longest_queue, self._steady = longest_queue, steady
        self._last_turn = self._look_at_queue = 0.0
        #: So many runs are caught up in the next step.
        self._step = LARGEST_BATCH

    def takes_turn(self, *, is_busy: bool) -> bool:
        """Return True when late runs may be sent after what was due.

        :param is_busy: there was something due.
        """
        steady = self._steady()
        if is_busy and steady - self._last_turn < TURN_EVERY:
            return False
        self._last_turn = steady
        return True

    @property
    def has_work(self) -> bool:
        """True when there are late runs that may be sent now."""
        return self._room() > 0 and any(map(self._decisions.may_catch_up, self._queues.catch_up))

    def waits(self) -> Iterator[float]:
        """Yield in how many seconds the queue is looked at that late runs wait for, if they do."""
        if self._queues.catch_up and not self._room():
            yield self._look_at_queue - self._steady()

    def run(self, now: int) -> None:
        """Send one batch."""
        room, begin = self._room(), self._steady()
        self._look_at_queue = begin + LOOK_AT_QUEUE_EVERY
        (commit, runs), again = self._decisions.catch_up(now, room)
        self._dispatch.carry_out(commit, runs)
        if (length := self._steady() - begin) > 0:
            step = round(len(runs) * LONGEST_STEP / length)
            self._step = max(SMALLEST_STEP, min(LARGEST_BATCH, step))
        if again:
            self._dispatch.carry_out(*self._decisions.judge_again(again, now))

    def _room(self) -> int:
        """Return how many late runs may be sent now."""
        if self._dispatch.queue_length <= self._longest_queue:
            return self._step
        # After a single run, the queue's length is asked again.
        return 1 if self._steady() >= self._look_at_queue else 0
