"""What to do about a run that is due late: instructions, policies, trigger state, and the planner.

Pure: nothing here reads a clock, a store or a broker. Every moment is an integer number of
milliseconds since 1970-01-01 UTC and comes in as an argument. The rules are Quartz's
(``SimpleTriggerImpl.updateAfterMisfire``, ``CronTriggerImpl.updateAfterMisfire`` and the misfire test
of its job stores); where ours differ on purpose, the line says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Protocol

from celery_misfire.texts import kind_of, shown, unknown_word

__all__ = [
    "ENDLESS",
    "FITTING",
    "FireTimes",
    "Misfire",
    "MisfireInstruction",
    "MisfirePolicy",
    "Missed",
    "MissedFire",
    "Outcome",
    "Plan",
    "Reason",
    "Runs",
    "Trigger",
    "TriggerState",
    "TriggerType",
    "from_millis",
    "plan",
    "resolve",
    "to_millis",
]

#: ``repeat_count`` of a trigger that repeats for ever (Quartz's REPEAT_INDEFINITELY).
ENDLESS = -1

#: The longest automatic misfire threshold, in milliseconds (Quartz's default threshold).
AUTO_THRESHOLD = 60_000


class MisfireInstruction(StrEnum):
    """What happens to the fire times that passed while nobody could run them."""

    #: Decide by the type of the trigger, see :func:`resolve`.
    SMART_POLICY = "smart_policy"
    #: Run every one of them, late, oldest first, each with its own scheduled fire time.
    IGNORE_MISFIRE_POLICY = "ignore_misfire_policy"
    #: One late run stands for all of them; the schedule goes on as it was.
    FIRE_ONCE_NOW = "fire_once_now"
    #: Run none of them; the schedule goes on as it was.
    DO_NOTHING = "do_nothing"
    #: A single run: late, now. A repeated one: as ``reschedule_now_with_remaining_repeat_count``.
    FIRE_NOW = "fire_now"
    #: One late run, and the schedule starts again from now with the runs it had left.
    RESCHEDULE_NOW_WITH_EXISTING_REPEAT_COUNT = "reschedule_now_with_existing_repeat_count"
    #: One late run, and the schedule starts again from now; the intervals missed are used up.
    RESCHEDULE_NOW_WITH_REMAINING_REPEAT_COUNT = "reschedule_now_with_remaining_repeat_count"
    #: Run none of them, go on with the next on the old grid; the counter does not count them.
    RESCHEDULE_NEXT_WITH_EXISTING_COUNT = "reschedule_next_with_existing_count"
    #: Run none of them, go on with the next on the old grid; the counter counts them as used.
    RESCHEDULE_NEXT_WITH_REMAINING_COUNT = "reschedule_next_with_remaining_count"


class TriggerType(StrEnum):
    """The four kinds of schedule that Quartz's rules tell apart."""

    ONCE = "once"
    FIXED = "fixed"
    ENDLESS = "endless"
    CRON = "cron"


class Outcome(StrEnum):
    """How one occurrence ended; every occurrence ends as exactly one of these."""

    FIRED = "fired"
    RECOVERED = "recovered"
    MERGED = "merged"
    MISSED = "missed"


class Reason(StrEnum):
    """Why an occurrence was late or never ran."""

    SCHEDULER_DOWN = "scheduler_down"
    FAILOVER = "failover"
    STORE_UNAVAILABLE = "store_unavailable"
    BROKER_UNAVAILABLE = "broker_unavailable"
    SCHEDULER_BUSY = "scheduler_busy"
    QUEUE_LATE = "queue_late"
    PAUSED = "paused"
    TOO_OLD = "too_old"
    CAPPED = "capped"
    ENDED = "ended"
    SCHEDULE_ERROR = "schedule_error"
    PUBLISH_REJECTED = "publish_rejected"
    ENTRY_DELETED = "entry_deleted"
    CLOCK_JUMP = "clock_jump"
    EXPIRED = "expired"
    START_IN_PAST = "start_in_past"


_FOR_ALL = (
    MisfireInstruction.SMART_POLICY,
    MisfireInstruction.IGNORE_MISFIRE_POLICY,
    MisfireInstruction.FIRE_ONCE_NOW,
    MisfireInstruction.DO_NOTHING,
)

#: The instructions that fit each type of trigger.
FITTING: dict[TriggerType, tuple[MisfireInstruction, ...]] = {
    TriggerType.ONCE: tuple(MisfireInstruction),
    TriggerType.FIXED: tuple(MisfireInstruction),
    TriggerType.ENDLESS: tuple(MisfireInstruction),
    TriggerType.CRON: _FOR_ALL,
}

_SMART = {
    TriggerType.ONCE: MisfireInstruction.FIRE_NOW,
    TriggerType.FIXED: MisfireInstruction.RESCHEDULE_NOW_WITH_EXISTING_REPEAT_COUNT,
    TriggerType.ENDLESS: MisfireInstruction.RESCHEDULE_NEXT_WITH_REMAINING_COUNT,
    TriggerType.CRON: MisfireInstruction.FIRE_ONCE_NOW,
}


def resolve(instruction: MisfireInstruction, trigger_type: TriggerType) -> MisfireInstruction:
    """Return the instruction that `instruction` stands for on a trigger of this type.

    Only ``smart_policy`` stands for another one; ``fire_now`` keeps its name on repeated triggers,
    although it acts there as ``reschedule_now_with_remaining_repeat_count``.
    """
    return _SMART[trigger_type] if instruction is MisfireInstruction.SMART_POLICY else instruction


@dataclass(frozen=True)
class MisfirePolicy:
    """What an entry does when it misfires.

    :param instruction: a :class:`MisfireInstruction` or its name.
    :param threshold: how late a fire may be before it is a misfire, in seconds (or a timedelta);
        late by exactly this much *is* a misfire, as in Quartz. ``"auto"``: half the gap between the
        misfired fire time and the next one, at most 60 seconds.
    :param max_catch_up: at most so many misfired occurrences are run late, the newest ones.
        None: no limit.
    :param max_lateness: misfired occurrences older than this, in seconds (or a timedelta), never run.
        None: no limit.
    :param on_missed: name of a task that is sent with the record of what was missed.
    :raises ValueError: when a value makes no sense; the message names the field and the value.
    """

    instruction: MisfireInstruction = MisfireInstruction.SMART_POLICY
    threshold: float | str = "auto"
    max_catch_up: int | None = None
    max_lateness: float | None = None
    on_missed: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "instruction", _instruction(self.instruction))
        if self.threshold != "auto":
            object.__setattr__(self, "threshold", _seconds("threshold", self.threshold, also=" or 'auto'"))
        if self.max_lateness is not None:
            object.__setattr__(self, "max_lateness", _seconds("max_lateness", self.max_lateness))
        limit = self.max_catch_up
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ValueError(
                f"max_catch_up: expected a whole number from 1, got {shown(limit)}. "
                "To run nothing use the instruction 'do_nothing'."
            )
        if self.on_missed is not None and not (isinstance(self.on_missed, str) and self.on_missed):
            given = shown(self.on_missed) if isinstance(self.on_missed, str) else kind_of(self.on_missed)
            raise ValueError(f"on_missed: expected the name of a task, got {given}.")


def _instruction(value: object) -> MisfireInstruction:
    try:
        return MisfireInstruction(str(value))
    except ValueError:
        raise ValueError(f"instruction: {unknown_word(value, tuple(MisfireInstruction))}") from None


# Longer is a mistake of units, and would overflow later.
_HUNDRED_YEARS = 100 * 366 * 86_400


def _seconds(name: str, value: object, also: str = "") -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a number of seconds > 0{also}, got {shown(value)}.")
    if value > _HUNDRED_YEARS:
        raise ValueError(f"{name}: expected seconds, got more than 100 years: {shown(value)}.")
    return float(value)


@dataclass(frozen=True)
class MissedFire:
    """What is known of runs that never happen; the record that signals and results carry.

    :param entry: name of the entry in the schedule.
    :param task: name of its task.
    :param task_id: id of the result, the one that the first of these runs would have had.
    :param first: scheduled fire time of the first of them, aware.
    :param last: scheduled fire time of the last of them, aware.
    :param count: how many there are.
    :param reason: a :class:`Reason`.
    :param instruction: the misfire instruction that was applied, resolved.
    :param detected_at: when they were given up, aware.
    """

    entry: str
    task: str
    task_id: str
    first: datetime
    last: datetime
    count: int
    reason: Reason
    instruction: MisfireInstruction
    detected_at: datetime


@dataclass(frozen=True)
class TriggerState:
    """Where a trigger stands; the words are Quartz's, the moments milliseconds UTC.

    :param next_fire_time: the next expected fire time; None when it never fires again.
    :param previous_fire_time: scheduled time of the last occurrence decided.
    :param times_triggered: how many of its repetitions are used up; the runs made, for cron types.
    :param repeat_count: repetitions after the first fire, ``ENDLESS`` for ever; None for cron types.
    :param start_time: first fire time of the grid in force (moved by the ``reschedule_now`` instructions).
    :param end_time: no run starts after it; None for no end.
    :param max_runs: a cron type's runs in all, whatever is missed in between; None for no limit.
    """

    next_fire_time: int | None
    start_time: int
    previous_fire_time: int | None = None
    times_triggered: int = 0
    repeat_count: int | None = None
    end_time: int | None = None
    max_runs: int | None = None

    @property
    def runs_left(self) -> int | None:
        """How many runs are left, None for no limit; a grid counts its slots instead."""
        return None if self.max_runs is None else self.max_runs - self.times_triggered

    @property
    def trigger_type(self) -> TriggerType:
        if self.repeat_count is None:
            return TriggerType.CRON
        if self.repeat_count == 0:
            return TriggerType.ONCE
        return TriggerType.ENDLESS if self.repeat_count == ENDLESS else TriggerType.FIXED


class FireTimes(Protocol):
    """The fire times of a trigger, as arithmetic: asking for far ones must not walk through the near ones."""

    def after(self, moment: int) -> int | None:
        """Return the first fire time strictly after `moment`, None when there is none."""

    def before(self, moment: int) -> int | None:
        """Return the last fire time strictly before `moment`, None when there is none."""

    def count(self, first: int, last: int) -> int:
        """Return how many fire times lie between `first` and `last`, both included."""


class Trigger(Protocol):
    """A schedule as the planner sees it."""

    @property
    def trigger_type(self) -> TriggerType:
        """The type that the schedule was configured as; decides which instructions fit."""

    @property
    def interval(self) -> int | None:
        """Milliseconds between two fire times of a grid; None for cron types and without repetition."""

    @property
    def fingerprint(self) -> str:
        """Text that changes when, and only when, the fire times change meaning (schedule or zone edited)."""

    @property
    def runs_foreign_code(self) -> bool:
        """Whether asking it runs code of the app, which may take long or never return."""

    def first_state(self, first_seen: int) -> TriggerState:
        """Return the state of a trigger that is seen for the first time at this moment."""

    def fire_times(self, state: TriggerState) -> FireTimes:
        """Return the fire times under this state (its grid, repetitions and end)."""


@dataclass(frozen=True)
class Runs:
    """A stretch of consecutive occurrences that are to be run, oldest first.

    :param merged: how many further occurrences the (single) run stands for.
    :param last_missed: the last of those, None when there is none.
    """

    first: int
    last: int
    count: int
    outcome: Outcome
    merged: int = 0
    last_missed: int | None = None


@dataclass(frozen=True)
class Missed:
    """A stretch of consecutive occurrences that never run."""

    first: int
    last: int
    count: int
    reason: Reason


@dataclass(frozen=True)
class Misfire:
    """That an entry misfired, and what was done about it."""

    first: int
    last: int
    count: int
    late_by: int
    reason: Reason
    instruction: MisfireInstruction
    resolved: MisfireInstruction
    outcomes: dict[Outcome, int] = field(hash=False)


@dataclass(frozen=True)
class Plan:
    """Every consequence of one look at one trigger."""

    state: TriggerState
    runs: tuple[Runs, ...] = ()
    missed: tuple[Missed, ...] = ()
    misfire: Misfire | None = None


def threshold_millis(policy: MisfirePolicy | None, scheduled: int, following: int | None) -> int:
    """Return how late the fire scheduled at this time may be before it is a misfire, in milliseconds."""
    if policy is not None and policy.threshold != "auto":
        return round(float(policy.threshold) * 1000)
    return AUTO_THRESHOLD if following is None else min(AUTO_THRESHOLD, (following - scheduled) // 2)


def plan(
    trigger: Trigger,
    state: TriggerState,
    policy: MisfirePolicy | None,
    now: int,
    reason: Reason = Reason.SCHEDULER_DOWN,
) -> Plan:
    """Decide what happens to every occurrence that is due at `now`.

    The verdict is one for the whole episode: when the oldest due occurrence is late by the threshold or
    more, all of them have misfired; else all of them fire, whatever the instruction (Quartz).

    :param policy: None switches misfire handling off for the entry: what is late is dropped without a trace.
    :param reason: why occurrences are late, if they are.
    :returns: a :class:`Plan` whose state has its next fire time after `now`; planning again from that
        state at the same `now` decides nothing.
    """
    first = state.next_fire_time
    if first is None or first > now:
        return Plan(state)
    times = trigger.fire_times(state)
    following = times.after(first)
    if following is None or following > now:
        last, count = first, 1
    else:
        # `now` itself is included: a fire time that is reached exactly is due.
        last = times.before(now + 1) or first
        count = times.count(first, last)
    in_time = now - first < threshold_millis(policy, first, following)
    ignores = policy is not None and policy.instruction is MisfireInstruction.IGNORE_MISFIRE_POLICY
    if (in_time or ignores) and state.runs_left is not None and count > state.runs_left:
        # With the last of its runs it is complete; what would have followed is no occurrence.
        count = state.runs_left
        last = _nth(times, first, last, count)
    if in_time:
        if _ended(state, now) and not ignores:
            missed = Missed(first, last, count, Reason.ENDED)
            return Plan(_advanced(state, times, now, last, count, runs=0), missed=(missed,))
        runs = Runs(first, last, count, Outcome.FIRED)
        return Plan(_advanced(state, times, now, last, count, runs=count), runs=(runs,))
    if policy is None:
        return Plan(_advanced(state, times, now, last, count, runs=0))
    return _Episode(trigger, times, state, policy, now, reason, first, last, count).plan()


def _advanced(
    state: TriggerState, times: FireTimes, now: int, last: int, count: int, runs: int
) -> TriggerState:
    """Return the state after `count` occurrences up to `last`, of which `runs` were run."""
    # A grid's slots are used up by passing, a cron type's runs by running.
    used = runs if state.repeat_count is None else count
    moved = replace(state, previous_fire_time=last, times_triggered=state.times_triggered + used)
    complete = moved.runs_left is not None and moved.runs_left <= 0
    return replace(moved, next_fire_time=None if complete else times.after(now))


def _nth(times: FireTimes, first: int, last: int, n: int) -> int:
    """Return the `n`-th fire time from `first` on, which is one and counts, in few questions."""
    low, high = first, last
    while low < high:
        middle = (low + high) // 2
        if times.count(first, middle) < n:
            low = middle + 1
        else:
            high = middle
    return low


def _ended(state: TriggerState, now: int) -> bool:
    # Quartz starts such a run all the same under fire_now and fire_once_now; an end that does not end
    # anything helps nobody.
    return state.end_time is not None and now > state.end_time


@dataclass(frozen=True)
class _Episode:
    """The occurrences `first` to `last` have misfired."""

    trigger: Trigger
    times: FireTimes
    state: TriggerState
    policy: MisfirePolicy
    now: int
    reason: Reason
    first: int
    last: int
    count: int

    def plan(self) -> Plan:
        trigger_type = self.state.trigger_type
        match resolve(self.policy.instruction, trigger_type):
            case MisfireInstruction.IGNORE_MISFIRE_POLICY:
                return self._run_every_one()
            case MisfireInstruction.FIRE_ONCE_NOW:
                return self._run_one(self._advanced(runs=1))
            case MisfireInstruction.FIRE_NOW if trigger_type is TriggerType.ONCE:
                return self._run_one(self._advanced(runs=1))
            case MisfireInstruction.DO_NOTHING | MisfireInstruction.RESCHEDULE_NEXT_WITH_REMAINING_COUNT:
                return self._run_none(self._with_triggered(self._intervals_to_next()))
            case MisfireInstruction.RESCHEDULE_NEXT_WITH_EXISTING_COUNT:
                return self._run_none(self._with_triggered(0))
            case MisfireInstruction.RESCHEDULE_NOW_WITH_EXISTING_REPEAT_COUNT:
                return self._run_one(self._restarted(intervals_missed=0))
            case MisfireInstruction.FIRE_NOW | MisfireInstruction.RESCHEDULE_NOW_WITH_REMAINING_REPEAT_COUNT:
                interval = self.trigger.interval
                used = 0 if interval is None else (self.now - self.first) // interval
                return self._run_one(self._restarted(intervals_missed=used))
            case unresolved:  # pragma: no cover
                raise AssertionError(f"{unresolved} is not an instruction to carry out")

    def _advanced(self, runs: int) -> TriggerState:
        return _advanced(self.state, self.times, self.now, self.last, self.count, runs)

    def _with_triggered(self, used: int) -> TriggerState:
        return replace(self._advanced(runs=0), times_triggered=self.state.times_triggered + used)

    def _intervals_to_next(self) -> int:
        """Return how many intervals there are to the next fire time, excluded ones included, as in Quartz."""
        following = self._advanced(runs=0).next_fire_time
        if following is None or self.trigger.interval is None:
            return 0
        return (following - self.first) // self.trigger.interval

    def _run_every_one(self) -> Plan:
        first, missed = self._without_too_old()
        if first is None:
            return self._result(self._advanced(runs=self.count), (), missed)
        limit = self.policy.max_catch_up
        remaining = self.times.count(first, self.last)
        if limit is not None and remaining > limit:
            oldest_kept = self._newest(limit)
            last_capped = self.times.before(oldest_kept)
            assert last_capped is not None
            missed = (*missed, Missed(first, last_capped, remaining - limit, Reason.CAPPED))
            first, remaining = oldest_kept, limit
        runs = Runs(first, self.last, remaining, Outcome.RECOVERED)
        return self._result(self._advanced(runs=self.count), (runs,), missed)

    def _run_one(self, state: TriggerState) -> Plan:
        first, missed = self._without_too_old()
        if first is None:
            return self._result(self._advanced(runs=0), (), missed)
        if _ended(self.state, self.now):
            return self._run_none(self._advanced(runs=0), Reason.ENDED)
        merged = self.times.count(first, self.last) - 1
        runs = Runs(first, first, 1, Outcome.RECOVERED, merged, self.last if merged else None)
        return self._result(state, (runs,), missed)

    def _run_none(self, state: TriggerState, reason: Reason | None = None) -> Plan:
        return self._result(state, (), (Missed(self.first, self.last, self.count, reason or self.reason),))

    def _restarted(self, intervals_missed: int) -> TriggerState:
        """Return the state of a trigger whose grid starts again now, after the run that is made now."""
        repeat_count, triggered = self.state.repeat_count, self.state.times_triggered
        if repeat_count is not None and repeat_count > 0:
            repeat_count = max(0, repeat_count - triggered - intervals_missed)
            triggered = 0
        state = replace(
            self._advanced(runs=1),
            start_time=self.now,
            repeat_count=repeat_count,
            times_triggered=triggered + 1,
        )
        return replace(state, next_fire_time=self.trigger.fire_times(state).after(self.now))

    def _without_too_old(self) -> tuple[int | None, tuple[Missed, ...]]:
        """Return the first occurrence that is not too old to run, and the record of those that are."""
        if self.policy.max_lateness is None:
            return self.first, ()
        oldest = self.now - round(self.policy.max_lateness * 1000)
        if self.first >= oldest:
            return self.first, ()
        # What a count of runs does not reach is no occurrence, and so not too old either.
        too_old = self.times.before(min(oldest, self.last + 1))
        assert too_old is not None
        missed = Missed(self.first, too_old, self.times.count(self.first, too_old), Reason.TOO_OLD)
        kept = self.times.after(too_old)
        return (None if kept is None or kept > self.last else kept), (missed,)

    def _newest(self, limit: int) -> int:
        kept = self.last
        for _ in range(limit - 1):
            kept = self.times.before(kept) or kept
        return kept

    def _result(self, state: TriggerState, runs: tuple[Runs, ...], missed: tuple[Missed, ...]) -> Plan:
        counts = {
            Outcome.RECOVERED: sum(r.count for r in runs),
            Outcome.MERGED: sum(r.merged for r in runs),
            Outcome.MISSED: sum(m.count for m in missed),
        }
        asked = self.policy.instruction
        misfire = Misfire(
            first=self.first,
            last=self.last,
            count=self.count,
            late_by=self.now - self.first,
            reason=self.reason,
            instruction=asked,
            resolved=resolve(asked, self.state.trigger_type),
            outcomes={outcome: n for outcome, n in counts.items() if n},
        )
        return Plan(state, runs, missed, misfire)


def to_millis(moment: datetime) -> int:
    """Return an aware datetime as milliseconds since 1970 UTC, cut to the millisecond below.

    :raises ValueError: for a naive datetime.
    """
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ValueError(f"needs a time zone, got {moment}")
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def from_millis(moment: int) -> datetime:
    """Return milliseconds since 1970 UTC as an aware datetime in UTC."""
    return _EPOCH + timedelta(milliseconds=moment)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
