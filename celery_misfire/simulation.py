"""What an outage would do to a schedule: the production planner on a virtual clock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery_misfire.misfire import (
    FITTING,
    MisfirePolicy,
    Outcome,
    Plan,
    Reason,
    Trigger,
    TriggerState,
    from_millis,
    plan,
    to_millis,
)
from celery_misfire.records import occurrences
from celery_misfire.texts import type_name
from celery_misfire.triggers.kinds import trigger_for

__all__ = ["SimulatedFire", "SimulatedMiss", "Simulation", "simulate", "simulate_trigger"]


@dataclass(frozen=True)
class SimulatedFire:
    """A run that would be sent; both times are aware and in UTC.

    :param merged: how many further occurrences it stands for.
    """

    scheduled_fire_time: datetime
    fire_time: datetime
    outcome: Outcome
    merged: int = 0


@dataclass(frozen=True)
class SimulatedMiss:
    """Occurrences that would never run, `first` to `last` by scheduled fire time."""

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
    clock = _VirtualBeat(trigger, policy, state)
    clock.run(seen, down - 1)
    clock.run(max(up, seen), end)
    return clock.result()


class _VirtualBeat:
    def __init__(self, trigger: Trigger, policy: MisfirePolicy, state: TriggerState) -> None:
        self._trigger, self._policy, self._state = trigger, policy, state
        self._fires: list[SimulatedFire] = []
        self._missed: list[SimulatedMiss] = []
        self._misfired = False

    def run(self, now: int, until: int) -> None:
        """Let beat run from `now` to `until`, both included."""
        while (due := self._state.next_fire_time) is not None and max(due, now) <= until:
            now = max(due, now)
            before, after = self._state, plan(self._trigger, self._state, self._policy, now)
            self._state = after.state
            self._record(before, after, now)

    def _record(self, before: TriggerState, done: Plan, now: int) -> None:
        self._misfired = self._misfired or done.misfire is not None
        for stretch in done.runs:
            for scheduled in occurrences(self._trigger, before, stretch.first, stretch.last):
                self._fires.append(
                    SimulatedFire(from_millis(scheduled), from_millis(now), stretch.outcome, stretch.merged)
                )
        for lost in done.missed:
            self._missed.append(
                SimulatedMiss(from_millis(lost.first), from_millis(lost.last), lost.count, lost.reason)
            )

    def result(self) -> Simulation:
        following = self._state.next_fire_time
        return Simulation(
            fires=tuple(self._fires),
            missed=tuple(self._missed),
            misfired=self._misfired,
            next_fire_time=None if following is None else from_millis(following),
            state=self._state,
        )
