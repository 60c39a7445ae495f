"""What happens to a run that is due late: the trigger state, and the planner that decides.

:func:`plan` is a pure function: it reads no clock, no store and no broker. Every moment is a whole number of
milliseconds since 1970-01-01 UTC and comes in as an argument. The rules are Quartz's
(``SimpleTriggerImpl.updateAfterMisfire``, ``CronTriggerImpl.updateAfterMisfire`` and the misfire test
of its job stores). Where ours differ on purpose, a comment says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from celery_misfire.frozen import replaced
from celery_misfire.policy import (
    AUTO_THRESHOLD,
    FITTING,
    MisfireInstruction,
    MisfirePolicy,
    Outcome,
    Reason,
    TriggerType,
    resolve,
    threshold_millis,
)

__all__ = [
    "AUTO_THRESHOLD",
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
    "threshold_millis",
    "to_millis",
]

#: ``repeat_count`` of a trigger that repeats for ever (Quartz's REPEAT_INDEFINITELY).
ENDLESS = -1


@dataclass(frozen=True)
class MissedFire:
    """The record of runs that never happen, as signals and results carry it.

    :param entry: name of the entry in the schedule.
    :param task: name of its task.
    :param task_id: id of the result: the task id that the first of these runs would have had.
    :param first: scheduled fire time of the first run, aware.
    :param last: scheduled fire time of the last run, aware.
    :param count: number of runs.
    :param reason: why they never happen. A newer version may have stored one that this version does not know.
    :param instruction: the misfire instruction that was applied, resolved.
    :param detected_at: when beat or a worker gave them up, aware.
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


@dataclass(frozen=True, slots=True)
class TriggerState:
    """Where a trigger stands. The words are Quartz's, the moments milliseconds UTC.

    :param next_fire_time: the next expected fire time; None when it never fires again.
    :param previous_fire_time: scheduled time of the last occurrence decided.
    :param times_triggered: how many of its repetitions are used up; the runs made, for cron types.
    :param repeat_count: repetitions after the first fire, ``ENDLESS`` for ever; None for cron types.
    :param start_time: first fire time of the grid in force (moved by the ``reschedule_now`` instructions).
    :param end_time: no run starts after it; None for no end.
    :param max_runs: a cron type's runs in all, whatever is missed in between; None for no limit.
    :param unknown_fields: what a newer version has stored with the state, as JSON. It is kept and not used.
    """

    next_fire_time: int | None
    start_time: int
    previous_fire_time: int | None = None
    times_triggered: int = 0
    repeat_count: int | None = None
    end_time: int | None = None
    max_runs: int | None = None
    unknown_fields: str = ""

    @property
    def runs_left(self) -> int | None:
        """How many runs are left, None for no limit. Only cron types have it: a grid counts its slots."""
        return None if self.max_runs is None else self.max_runs - self.times_triggered

    @property
    def trigger_type(self) -> TriggerType:
        if self.repeat_count is None:
            return TriggerType.CRON
        if self.repeat_count == 0:
            return TriggerType.ONCE
        return TriggerType.ENDLESS if self.repeat_count == ENDLESS else TriggerType.FIXED


class FireTimes(Protocol):
    """The fire times of a trigger, by arithmetic: far ones are found without a walk through near ones."""

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
        """The type of the schedule as it was configured. It decides which instructions fit."""

    @property
    def interval(self) -> int | None:
        """Milliseconds between two fire times of a grid; None for cron types and without repetition."""

    @property
    def fingerprint(self) -> str:
        """Text that changes when, and only when, the fire times change meaning (schedule or zone edited)."""

    @property
    def runs_foreign_code(self) -> bool:
        """Whether asking it runs code of the app, which may take long or never return."""

    @property
    def follows_elapsed_time(self) -> bool:
        """Whether its fire times follow one another after a time, not at fixed times on the wall."""

    def first_state(self, first_seen: int) -> TriggerState:
        """Return the state of a trigger that is seen for the first time at this moment."""

    def fire_times(self, state: TriggerState) -> FireTimes:
        """Return the fire times under this state (its grid, repetitions and end)."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Consecutive occurrences that are to be run, oldest first.

    :param merged: how many further occurrences the run stands for. Then there is only one run.
    :param last_missed: the last of those occurrences, None when there is none.
    :param before: the state before `first`, when the grid was started anew with this run; else None.
    :param unknown_fields: as in :class:`TriggerState`.
    """

    first: int
    last: int
    count: int
    outcome: Outcome
    merged: int = 0
    last_missed: int | None = None
    before: TriggerState | None = None
    unknown_fields: str = ""

    @property
    def end(self) -> int:
        """The last occurrence that is decided with these runs."""
        return self.last if self.last_missed is None else self.last_missed


@dataclass(frozen=True)
class Missed:
    """Consecutive occurrences that never run."""

    first: int
    last: int
    count: int
    reason: Reason


@dataclass(frozen=True)
class Misfire:
    """One misfire of an entry, and what is done about it."""

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
    """All that follows when one trigger is planned at one moment."""

    state: TriggerState
    runs: tuple[Runs, ...] = ()
    missed: tuple[Missed, ...] = ()
    misfire: Misfire | None = None


def plan(
    trigger: Trigger,
    state: TriggerState,
    policy: MisfirePolicy | None,
    now: int,
    reason: Reason = Reason.SCHEDULER_DOWN,
) -> Plan:
    """Decide what happens to every occurrence that is due at `now`.

    There is one verdict for all of them, as in Quartz. When the oldest is late by the threshold or more, all
    have misfired. Else all fire, whatever the instruction.

    :param policy: None switches misfire handling off: late occurrences are dropped without a record.
    :param reason: why occurrences are late, if they are.
    :returns: a :class:`Plan` whose state has its next fire time after `now`. Planned again from that state at
        the same `now`, nothing is decided.
    """
    first = state.next_fire_time
    if first is None or first > now:
        return Plan(state)
    times = trigger.fire_times(state)
    following = times.after(first)
    if following is None or following > now:
        last, count = first, 1
    else:
        # A fire time that equals `now` is due.
        last = times.before(now + 1) or first
        count = times.count(first, last)
    in_time = now - first < threshold_millis(policy, first, following)
    ignores = policy is not None and policy.instruction is MisfireInstruction.IGNORE_MISFIRE_POLICY
    if (in_time or ignores) and state.runs_left is not None and count > state.runs_left:
        # The trigger is complete with the last of its runs. What would have followed is no occurrence.
        count = state.runs_left
        last = _find_nth(times, first, last, count)
    if in_time:
        if _has_ended(state, now) and not ignores:
            missed = Missed(first, last, count, Reason.ENDED)
            return Plan(_pass_over(state, times, now, last, count, runs=0), missed=(missed,))
        runs = Runs(first, last, count, Outcome.FIRED)
        return Plan(_pass_over(state, times, now, last, count, runs=count), runs=(runs,))
    if policy is None:
        return Plan(_pass_over(state, times, now, last, count, runs=0))
    return _Episode(trigger, times, state, policy, now, reason, first, last, count).plan()


def _pass_over(
    state: TriggerState, times: FireTimes, now: int, last: int, count: int, runs: int
) -> TriggerState:
    """Return the state after `count` occurrences up to `last`, of which `runs` were run."""
    # A grid uses up a slot for each occurrence, a cron type one for each run.
    used = runs if state.repeat_count is None else count
    triggered = state.times_triggered + used
    complete = state.max_runs is not None and triggered >= state.max_runs
    following = None if complete else times.after(now)
    return replaced(state, next_fire_time=following, previous_fire_time=last, times_triggered=triggered)


def _find_nth(times: FireTimes, first: int, last: int, n: int) -> int:
    """Return the `n`-th fire time, where `first` is the first one. Searches by halves."""
    low, high = first, last
    while low < high:
        middle = (low + high) // 2
        if times.count(first, middle) < n:
            low = middle + 1
        else:
            high = middle
    return low


def _has_ended(state: TriggerState, now: int) -> bool:
    # Under fire_now and fire_once_now, Quartz starts a run after the end all the same. We do not.
    return state.end_time is not None and now > state.end_time


@dataclass(frozen=True)
class _Episode:
    """The occurrences from `first` to `last`, which have misfired."""

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
                return self._run_one(self._pass_over(runs=1))
            case MisfireInstruction.FIRE_NOW if trigger_type is TriggerType.ONCE:
                return self._run_one(self._pass_over(runs=1))
            case MisfireInstruction.DO_NOTHING | MisfireInstruction.RESCHEDULE_NEXT_WITH_REMAINING_COUNT:
                return self._run_none(self._keep_grid(self._intervals_to_next()))
            case MisfireInstruction.RESCHEDULE_NEXT_WITH_EXISTING_COUNT:
                return self._run_none(self._keep_grid(0))
            case MisfireInstruction.RESCHEDULE_NOW_WITH_EXISTING_REPEAT_COUNT:
                return self._run_one(self._restart_now(intervals_missed=0))
            case MisfireInstruction.FIRE_NOW | MisfireInstruction.RESCHEDULE_NOW_WITH_REMAINING_REPEAT_COUNT:
                interval = self.trigger.interval
                used = 0 if interval is None else (self.now - self.first) // interval
                return self._run_one(self._restart_now(intervals_missed=used))
            case unresolved:  # pragma: no cover
                raise AssertionError(f"{unresolved} is not an instruction to carry out")

    def _pass_over(self, runs: int) -> TriggerState:
        return _pass_over(self.state, self.times, self.now, self.last, self.count, runs)

    def _keep_grid(self, used: int) -> TriggerState:
        """Return the state in which the schedule goes on as it was, with so many slots used up."""
        return replace(self._pass_over(runs=0), times_triggered=self.state.times_triggered + used)

    def _intervals_to_next(self) -> int:
        """Return the number of intervals up to the next fire time. Excluded ones count, as in Quartz."""
        following = self._pass_over(runs=0).next_fire_time
        if following is None or self.trigger.interval is None:
            return 0
        return (following - self.first) // self.trigger.interval

    def _run_every_one(self) -> Plan:
        first, missed = self._drop_too_old()
        if first is None:
            return self._result(self._pass_over(runs=self.count), (), missed)
        limit = self.policy.max_catch_up
        remaining = self.times.count(first, self.last)
        if limit is not None and remaining > limit:
            oldest_kept = self._oldest_of_newest(limit)
            last_capped = self.times.before(oldest_kept)
            assert last_capped is not None
            missed = (*missed, Missed(first, last_capped, remaining - limit, Reason.CAPPED))
            first, remaining = oldest_kept, limit
        runs = Runs(first, self.last, remaining, Outcome.RECOVERED)
        return self._result(self._pass_over(runs=self.count), (runs,), missed)

    def _run_one(self, state: TriggerState) -> Plan:
        first, missed = self._drop_too_old()
        if first is None:
            return self._result(self._pass_over(runs=0), (), missed)
        if _has_ended(self.state, self.now):
            return self._run_none(self._pass_over(runs=0), Reason.ENDED)
        merged = self.times.count(first, self.last) - 1
        runs = Runs(first, first, 1, Outcome.RECOVERED, merged, self.last if merged else None)
        if state.start_time != self.state.start_time:
            used = self.state.times_triggered + sum(m.count for m in missed)
            runs = replace(runs, before=replace(self.state, next_fire_time=first, times_triggered=used))
        return self._result(state, (runs,), missed)

    def _run_none(self, state: TriggerState, reason: Reason | None = None) -> Plan:
        return self._result(state, (), (Missed(self.first, self.last, self.count, reason or self.reason),))

    def _restart_now(self, intervals_missed: int) -> TriggerState:
        """Return the state in which the grid starts again now, with the run that is made now."""
        repeat_count, triggered = self.state.repeat_count, self.state.times_triggered
        if repeat_count is not None and repeat_count > 0:
            repeat_count = max(0, repeat_count - triggered - intervals_missed)
            triggered = 0
        state = replace(
            self._pass_over(runs=1),
            start_time=self.now,
            repeat_count=repeat_count,
            times_triggered=triggered + 1,
        )
        return replace(state, next_fire_time=self.trigger.fire_times(state).after(self.now))

    def _drop_too_old(self) -> tuple[int | None, tuple[Missed, ...]]:
        """Return the first occurrence that is not too old to run, and the record of those that are."""
        if self.policy.max_lateness is None:
            return self.first, ()
        oldest = self.now - round(self.policy.max_lateness * 1000)
        if self.first >= oldest:
            return self.first, ()
        # A time after the last counted run is no occurrence, and so not too old either.
        too_old = self.times.before(min(oldest, self.last + 1))
        assert too_old is not None
        missed = Missed(self.first, too_old, self.times.count(self.first, too_old), Reason.TOO_OLD)
        kept = self.times.after(too_old)
        return (None if kept is None or kept > self.last else kept), (missed,)

    def _oldest_of_newest(self, limit: int) -> int:
        """Return the first of the newest `limit` occurrences."""
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
    """Return an aware datetime as milliseconds since 1970 UTC, rounded down.

    :raises ValueError: for a naive datetime.
    """
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ValueError(f"needs a time zone, got {moment}")
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def from_millis(moment: int) -> datetime:
    """Return milliseconds since 1970 UTC as an aware datetime in UTC."""
    return _EPOCH + timedelta(milliseconds=moment)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
