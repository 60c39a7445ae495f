"""What an outage would do to a schedule: the production planner on a virtual clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from celery_misfire.misfire import (
    FITTING,
    MisfireInstruction,
    MisfirePolicy,
    Missed,
    Outcome,
    Plan,
    Reason,
    Runs,
    Trigger,
    TriggerState,
    from_millis,
    plan,
    to_millis,
)
from celery_misfire.records import EntryRecord, Pause, occurrences, skip
from celery_misfire.texts import type_name
from celery_misfire.triggers.kinds import trigger_for

__all__ = [
    "OutageEffect",
    "Pauses",
    "SimulatedFire",
    "SimulatedMiss",
    "Simulation",
    "Step",
    "effect_of_outage",
    "simulate",
    "simulate_trigger",
    "steps",
]


@dataclass(frozen=True)
class SimulatedFire:
    """A run that would be sent.

    :param scheduled_fire_time: when it was due, aware, in UTC.
    :param fire_time: when it would be sent, aware, in UTC.
    :param outcome: ``Outcome.FIRED`` or ``Outcome.RECOVERED``.
    :param merged: how many further occurrences it covers.
    """

    scheduled_fire_time: datetime
    fire_time: datetime
    outcome: Outcome
    merged: int = 0


@dataclass(frozen=True)
class SimulatedMiss:
    """Occurrences that would never run.

    :param first: scheduled fire time of the first, aware, in UTC.
    :param last: scheduled fire time of the last, aware, in UTC.
    :param count: number of occurrences.
    :param reason: why they would never run.
    """

    first: datetime
    last: datetime
    count: int
    reason: Reason


@dataclass(frozen=True)
class Simulation:
    """What would happen.

    :param fires: every run, in the order of sending.
    :param missed: every stretch of occurrences that never run.
    :param misfired: True when anything misfired, also under ``ignore_misfire_policy``, where Quartz notifies
        nobody.
    :param next_fire_time: the first expected fire time after `until`, None when there is none.
    :param state: the trigger state at the end, in milliseconds UTC.
    """

    fires: tuple[SimulatedFire, ...]
    missed: tuple[SimulatedMiss, ...]
    misfired: bool
    next_fire_time: datetime | None
    state: TriggerState


def simulate(
    schedule: Any,
    *,
    policy: MisfirePolicy | str,
    down_at: datetime,
    up_at: datetime,
    until: datetime,
    start: datetime | None = None,
    entry: str | None = None,
) -> Simulation:
    """Return what `schedule` does when beat is away from `down_at` to `up_at`, and then runs on to `until`.

    A fire time that equals `down_at` is not fired, one that equals `until` is. Runs take no time.

    :param schedule: any Celery schedule, or a number of seconds, or a timedelta.
    :param policy: the misfire policy, or the name of an instruction. It must fit the type of the schedule.
    :param start: when the entry was first seen. None: at `down_at`.
    :param entry: the name of the entry, by which ``H`` in a cron expression is drawn.
    :raises ValueError: for naive datetimes, times out of order, an instruction that does not fit, and ``H``
        without `entry`.
    :raises TypeError: for a policy of another type.
    """
    if isinstance(policy, str):
        policy = MisfirePolicy(policy)
    if not isinstance(policy, MisfirePolicy):
        forms = "a MisfirePolicy or the name of an instruction"
        raise TypeError(f"policy: expected {forms}, got {type_name(policy)}.")
    seen = start or down_at
    trigger = trigger_for(schedule, entry)
    state = trigger.first_state(to_millis(seen))
    return simulate_trigger(
        trigger, state, policy=policy, start=seen, down_at=down_at, up_at=up_at, until=until
    )


def simulate_trigger(
    trigger: Trigger,
    state: TriggerState,
    *,
    policy: MisfirePolicy,
    start: datetime,
    down_at: datetime,
    up_at: datetime,
    until: datetime,
) -> Simulation:
    """Do what :func:`simulate` does for a trigger that is in a given state.

    :param start: when beat begins to look after it. What is due by then has misfired, if it is late enough.
    :raises ValueError: as :func:`simulate`.
    """
    if policy.instruction not in FITTING[trigger.trigger_type]:
        raise ValueError(f"{policy.instruction} does not fit a schedule of type {trigger.trigger_type}")
    seen, down, up, end = (to_millis(t) for t in (start, down_at, up_at, until))
    if not down <= up <= end:
        raise ValueError("down_at, up_at and until must follow each other in this order")
    fires: list[SimulatedFire] = []
    missed: list[SimulatedMiss] = []
    misfired = False
    for step in steps(trigger, state, policy, start=seen, down_at=down, up_at=up, until=end):
        misfired = misfired or step.plan.misfire is not None
        now = from_millis(step.now)
        for stretch in step.plan.runs:
            for scheduled in occurrences(trigger, state, stretch.first, stretch.last):
                fires.append(SimulatedFire(from_millis(scheduled), now, stretch.outcome, stretch.merged))
        for lost in step.plan.missed:
            ends = (from_millis(lost.first), from_millis(lost.last))
            missed.append(SimulatedMiss(*ends, lost.count, lost.reason))
        state = step.plan.state
    following = state.next_fire_time
    next_ = None if following is None else from_millis(following)
    return Simulation(tuple(fires), tuple(missed), misfired, next_, state)


@dataclass(frozen=True)
class Step:
    """What beat decides at one moment, in milliseconds UTC."""

    now: int
    plan: Plan


@dataclass(frozen=True)
class Pauses:
    """The pauses of an entry, in which it does not fire.

    :param own: its own pause.
    :param hold: the hold of all entries.
    :param own_misfires: what would have run in its own pause has misfired when that ends.
    """

    own: Pause | None = None
    hold: Pause | None = None
    own_misfires: bool = False

    @classmethod
    def of(cls, record: EntryRecord | None, hold: Pause | None, *, own_misfires: bool) -> Pauses:
        """Return those that are in force for the entry of this record."""
        own = None if record is None or record.removed_at is not None else record.paused
        return cls(own, hold, own_misfires)

    def begun(self, moment: int) -> Iterator[Pause]:
        """Iterate over those that have begun by a moment, in milliseconds UTC."""
        return (pause for pause in (self.own, self.hold) if pause is not None and pause.since <= moment)

    def lasting(self, moment: int) -> Pause | None:
        """Return the one that goes on at a moment, in milliseconds UTC."""
        return next((pause for pause in self.begun(moment) if not pause.is_over(moment)), None)

    def misfire(self, pause: Pause) -> bool:
        """Return True when what would have run in this pause is judged at its end."""
        return pause is self.own and self.own_misfires

    def hold_back(self, moment: int) -> bool:
        """Return True when what is due at a moment is judged at the end of a pause, with all before it."""
        return any(self.misfire(pause) and not pause.is_over(moment) for pause in self.begun(moment))

    def following(self, trigger: Trigger, state: TriggerState, moment: int) -> int | None:
        """Return the first fire time after those that have begun by a moment, in milliseconds UTC."""
        for pause in self.begun(moment):
            state, _lost = skip(trigger, state, pause.since, pause.until)
        return state.next_fire_time


#: An entry that is not paused.
NO_PAUSES = Pauses()


def steps(
    trigger: Trigger,
    state: TriggerState,
    policy: MisfirePolicy | None,
    *,
    start: int,
    down_at: int,
    up_at: int,
    until: int,
    pauses: Pauses = NO_PAUSES,
) -> Iterator[Step]:
    """Yield what beat decides, as in :func:`simulate_trigger`; moments are milliseconds UTC.

    An outage is one step, however long: its occurrences are counted and not walked through.
    """
    for first, last in ((start, down_at - 1), (max(up_at, start), until)):
        while (due := state.next_fire_time) is not None:
            now = max(due, first)
            held_by = [pause for pause in pauses.begun(now) if pause.until is None or due <= pause.until]
            ends = [last + 1 if pause.until is None else pause.until for pause in held_by]
            # Beat decides when the last of them is over.
            if (now := max([now, *ends])) > last:
                break
            if not held_by or pauses.misfire(held_by[0]):
                done = plan(trigger, state, policy, now)
            else:
                after, lost = skip(trigger, state, held_by[0].since, held_by[0].until)
                done = Plan(after, missed=tuple(lost))
            yield Step(now, done)
            state = done.state


#: Under this policy all that comes due is run, however late.
_ALL_IN_TIME = MisfirePolicy(MisfireInstruction.IGNORE_MISFIRE_POLICY)


@dataclass(frozen=True)
class OutageEffect:
    """What one outage does to one trigger, counted and not walked, so that it may be of any length.

    Moments are milliseconds UTC.

    :param due: how many occurrences are decided at its end: those that lie in the outage, its end included,
        and those of a pause that is judged with them.
    :param runs: what runs at its end: in time after all, or late.
    :param missed: what never runs.
    :param misfired: as in :class:`Simulation`.
    :param next_fire_time: the first one after the outage, and after a pause that goes on; None when there is
        none.
    :param paused: the pause, or the hold, that goes on when the outage is over.
    """

    due: int
    runs: tuple[Runs, ...]
    missed: tuple[Missed, ...]
    misfired: bool
    next_fire_time: int | None
    paused: Pause | None = None

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many occurrences end in which way, by outcome."""
        counts = dict.fromkeys(map(str, Outcome), 0)
        for run in self.runs:
            counts[run.outcome] += run.count
            counts["merged"] += run.merged
        counts["missed"] += sum(lost.count for lost in self.missed)
        return counts


def effect_of_outage(
    trigger: Trigger,
    state: TriggerState,
    policy: MisfirePolicy | None,
    down: int,
    up: int,
    pauses: Pauses = NO_PAUSES,
) -> OutageEffect:
    """Return what happens when beat is away from `down` to `up`, in milliseconds UTC.

    :param state: where the trigger stands. Until `down` all goes as planned.
    :param policy: None: misfire handling is off, and what is late is dropped.
    :raises ValueError: for times out of order, and for an instruction that does not fit.
    """
    if policy is not None and policy.instruction not in FITTING[trigger.trigger_type]:
        raise ValueError(f"{policy.instruction} does not fit a schedule of type {trigger.trigger_type}")
    if not down < up:
        raise ValueError("the outage must end after it begins")
    state = _when_it_begins(trigger, state, down, pauses)
    done = _decided(trigger, state, policy, down, up, pauses)
    # Misfire handling that is off records nothing of what it drops.
    all_ = done if policy is not None else _decided(trigger, state, _ALL_IN_TIME, down, up, pauses)
    due = sum(run.count + run.merged for one in all_ for run in one.runs)
    due += sum(lost.count for one in all_ for lost in one.missed)
    return OutageEffect(
        due,
        tuple(run for one in done for run in one.runs),
        tuple(lost for one in done for lost in one.missed),
        any(one.misfire is not None for one in done),
        pauses.following(trigger, done[-1].state if done else state, up),
        pauses.lasting(up),
    )


def _when_it_begins(trigger: Trigger, state: TriggerState, down: int, pauses: Pauses) -> TriggerState:
    """Return the state of a trigger when an outage begins; nothing is due that is not part of it."""
    if pauses.hold_back(down):
        return state
    for pause in pauses.begun(down):
        if not pauses.misfire(pause):
            # A run that was due before the pause is missed with or without the outage.
            state, _lost = skip(trigger, state, pause.since, pause.until)
    return plan(trigger, state, _ALL_IN_TIME, down - 1).state


def _decided(
    trigger: Trigger, state: TriggerState, policy: MisfirePolicy | None, down: int, up: int, pauses: Pauses
) -> list[Plan]:
    """Return what beat decides when it is back."""
    window = {"start": down, "down_at": down, "up_at": up, "until": up}
    return [step.plan for step in steps(trigger, state, policy, **window, pauses=pauses)]
