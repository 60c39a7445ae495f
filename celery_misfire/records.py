"""What the store keeps of one entry, and how it changes.

Pure, like the planner. A record holds the trigger state, the decisions that are not carried out yet (runs
to send, runs being sent, misses to report) and nothing of the task but its name. It travels as one small
JSON text with its version in it; the store compares and replaces it whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from celery_misfire.misfire import (
    ENDLESS,
    Misfire,
    MisfireInstruction,
    MisfirePolicy,
    Missed,
    Outcome,
    Plan,
    Reason,
    Runs,
    Trigger,
    TriggerState,
    resolve,
    threshold_millis,
)

#: Version of the state in Redis. A beat refuses to work on a newer one.
SCHEMA = 1

#: A record longer than this is not ours: 20,000 runs that wait to be sent take less.
MAX_LENGTH = 4_000_000


@dataclass(frozen=True)
class Definition:
    """An entry of the schedule, as far as its record depends on it.

    :param anchor: when an entry on an interval last ran elsewhere, in milliseconds UTC: seen for the first
        time here, it goes on from that.
    """

    name: str
    task: str
    trigger: Trigger
    policy: MisfirePolicy | None
    anchor: int | None = None


@dataclass(frozen=True)
class Intent:
    """An occurrence that was claimed to be sent and is not known to have been sent.

    :param unsent: certain that no attempt was made or that the attempt failed; it may be judged again.
        Else it is in doubt, and only sending it (again, under the same id) is safe.
    """

    scheduled: int
    generation: int
    outcome: Outcome
    claimed_at: int
    merged: int = 0
    last_missed: int | None = None
    unsent: bool = False


@dataclass(frozen=True)
class Unreported:
    """Missed occurrences whose result and signals are still to come."""

    first: int
    last: int
    count: int
    reason: Reason
    instruction: MisfireInstruction
    detected_at: int
    generation: int


@dataclass(frozen=True)
class EntryRecord:
    """All that is known of one entry.

    :param generation: changes whenever its fire times change meaning (first sight, an edit); part of every
        task id, so that ids never repeat. Milliseconds of the moment it began.
    :param removed_at: when the entry was found to be gone from the schedule, None while it is there.
    :param paused_from: the next fire time that a removed entry had; of one that came back to find its fire
        times misfired, the first of those, until they are planned.
    """

    name: str
    task: str
    generation: int
    fingerprint: str
    state: TriggerState
    runs: tuple[Runs, ...] = ()
    intents: tuple[Intent, ...] = ()
    missed: tuple[Unreported, ...] = ()
    removed_at: int | None = None
    paused_from: int | None = None

    @property
    def settled(self) -> bool:
        """True when every decision has been carried out."""
        return not (self.runs or self.intents or self.missed)

    def is_over(self, since: int) -> bool:
        """Return True when the entry has been gone since then, and nothing is left to be done for it."""
        return self.removed_at is not None and self.removed_at < since and self.settled


def first_seen(
    name: str, task: str, trigger: Trigger, now: int, *, from_now: bool, anchor: int | None = None
) -> EntryRecord:
    """Return the record of an entry that begins (or begins anew) at `now`.

    :param from_now: leave out fire times up to `now`; else those of a schedule that started in the past
        are due, and misfired, as in Quartz.
    :param anchor: a fire time that an interval goes on from, with the first one that follows `now`.
    """
    passed = 0 if anchor is None or trigger.interval is None else (now - anchor) % trigger.interval
    state = trigger.first_state(now - passed)
    if from_now and state.next_fire_time is not None and state.next_fire_time <= now:
        state = replace(state, next_fire_time=trigger.fire_times(state).after(now))
    return EntryRecord(name, task, now, trigger.fingerprint, state)


def edited(record: EntryRecord, task: str, trigger: Trigger, now: int) -> EntryRecord:
    """Return the record of an entry whose schedule was edited: planned from now.

    What was claimed under the old schedule is still sent; what was only decided is given up.
    """
    fresh = first_seen(record.name, task, trigger, now, from_now=True)
    generation = max(record.generation + 1, now)
    return replace(fresh, generation=generation, intents=record.intents, missed=record.missed)


def returned(record: EntryRecord, task: str, trigger: Trigger, now: int) -> EntryRecord:
    """Return the record of an entry that came back unchanged, and whose time away was no outage.

    It is planned from now. One that runs a number of times has not got the runs back that it has made.
    """
    fresh, state = edited(record, task, trigger, now), record.state
    if (state.repeat_count or 0) <= 0 and (state.max_runs or 0) <= 1:
        return fresh
    finished = record.paused_from is None
    next_ = None if finished else trigger.fire_times(state).after(now)
    return replace(fresh, state=replace(state, next_fire_time=next_))


def removed(record: EntryRecord, now: int, started: Collection[Intent] = ()) -> EntryRecord:
    """Return the record of an entry that is gone from the schedule: nothing more is sent.

    :param started: intents that a worker is known to have started.
    """
    unsent = [(i, Reason.ENTRY_DELETED) for i in record.intents if i not in started]
    undone = [Missed(r.first, r.last, r.count, Reason.ENTRY_DELETED) for r in record.runs]
    next_ = record.state.next_fire_time
    state = replace(record.state, next_fire_time=None)
    gone = replace(record, state=state, runs=(), intents=(), removed_at=now, paused_from=next_)
    gone = with_unsent(gone, unsent, MisfireInstruction.DO_NOTHING, now)
    return with_missed(gone, undone, MisfireInstruction.DO_NOTHING, now)


def resumed(record: EntryRecord, task: str, now: int) -> EntryRecord:
    """Return the record of an entry that came back unchanged, and whose fire times in between have misfired.

    So Quartz resumes a trigger: it is as if nobody had looked at it for a while.
    """
    next_ = record.paused_from
    paused_from = None if next_ is None or next_ > now else next_
    state = replace(record.state, next_fire_time=next_)
    return replace(record, task=task, state=state, removed_at=None, paused_from=paused_from)


def unknown(name: str, now: int) -> EntryRecord:
    """Return the record of a removed entry of which nothing is known any more."""
    state = TriggerState(next_fire_time=None, start_time=now)
    return EntryRecord(name, "", now, "", state, removed_at=now)


def with_plan(record: EntryRecord, plan: Plan, now: int) -> EntryRecord:
    """Return the record after a plan: its state in force, its decisions to be carried out."""
    in_time = tuple(r for r in plan.runs if r.outcome is Outcome.FIRED)
    late = tuple(r for r in plan.runs if r.outcome is not Outcome.FIRED)
    # What is in time does not wait behind what is being caught up.
    decided = replace(record, state=plan.state, runs=in_time + record.runs + late, paused_from=None)
    resolved = plan.misfire.resolved if plan.misfire else MisfireInstruction.DO_NOTHING
    return with_missed(decided, plan.missed, resolved, now)


def with_missed(
    record: EntryRecord, missed: Iterable[Missed], instruction: MisfireInstruction, now: int
) -> EntryRecord:
    """Return the record with these misses still to be reported."""
    new = tuple(
        Unreported(m.first, m.last, m.count, m.reason, instruction, now, record.generation) for m in missed
    )
    return replace(record, missed=record.missed + new)


def with_unsent(
    record: EntryRecord,
    lost: Iterable[tuple[Intent, Reason]],
    instruction: MisfireInstruction,
    now: int,
) -> EntryRecord:
    """Return the record with intents that are given up, and why, still to be reported.

    Each is of the generation in which it was claimed, which makes the task id that it has had.
    """
    new = tuple(
        Unreported(i.scheduled, i.scheduled, 1, reason, instruction, now, i.generation) for i, reason in lost
    )
    return replace(record, missed=record.missed + new)


def claim(record: EntryRecord, trigger: Trigger, now: int, limit: int) -> EntryRecord:
    """Turn the oldest runs that were decided into intents, at most `limit`."""
    claimed: list[Intent] = []
    runs = list(record.runs)
    while runs and len(claimed) < limit:
        stretch = runs.pop(0)
        times = occurrences(trigger, record.state, stretch.first, stretch.last)
        for taken, scheduled in enumerate(times, start=1):
            intent = Intent(scheduled, record.generation, stretch.outcome, now)
            claimed.append(replace(intent, merged=stretch.merged, last_missed=stretch.last_missed))
            if len(claimed) == limit:
                # Not by the count, which is an estimate where a schedule of the app's own is asked.
                if (following := next(times, None)) is not None:
                    runs.insert(0, replace(stretch, first=following, count=max(1, stretch.count - taken)))
                break
    return replace(record, runs=tuple(runs), intents=record.intents + tuple(claimed))


def occurrences(trigger: Trigger, state: TriggerState, first: int, last: int) -> Iterator[int]:
    """Yield the fire times from `first` to `last`, both known to be fire times.

    A grid that has been moved since is rebuilt from `first`, so old decisions can be carried out.
    """
    yield first
    if first == last:
        # Without asking the schedule, which may cost something.
        return
    if state.repeat_count is not None:
        state = replace(state, start_time=first, repeat_count=ENDLESS, end_time=None)
    times = trigger.fire_times(state)
    following = times.after(first)
    while following is not None and following <= last:
        yield following
        following = times.after(following)


def judge_again(
    record: EntryRecord,
    trigger: Trigger,
    policy: MisfirePolicy | None,
    now: int,
    reason: Callable[[Intent], Reason],
    arbitrable: Collection[int] = (),
) -> tuple[EntryRecord, Misfire | None]:
    """Judge once more the runs in time that are certain not to have been sent, and are too late by now.

    An intent in doubt stays as it is, however late: sent again under the same id it is the same run, while
    a record of it as missed could be a lie.

    :param reason: why the occurrence is late.
    :param arbitrable: scheduled times of intents in doubt that are judged all the same, as there is somebody
        who knows whether they were started.
    """
    asked = policy.instruction if policy else MisfireInstruction.DO_NOTHING
    resolved = resolve(asked, record.state.trigger_type)
    times = trigger.fire_times(record.state)
    stay: list[Intent] = []
    late: list[Intent] = []
    for intent in record.intents:
        threshold = threshold_millis(policy, intent.scheduled, times.after(intent.scheduled))
        certain = intent.unsent or intent.scheduled in arbitrable
        is_late = intent.outcome is Outcome.FIRED and now - intent.scheduled >= threshold
        (late if certain and is_late else stay).append(intent)
    if not late:
        return record, None
    late.sort(key=lambda intent: intent.scheduled)
    first, last = late[0], late[-1]
    run: list[Intent] = []
    lost: list[tuple[Intent, Reason]] = []
    if resolved in _RUNS_NONE:
        lost = [(i, reason(i)) for i in late]
    elif resolved is MisfireInstruction.IGNORE_MISFIRE_POLICY:
        run = [replace(i, outcome=Outcome.RECOVERED) for i in late]
    else:
        merged = len(late) - 1
        last_missed = last.scheduled if merged else None
        run = [replace(first, outcome=Outcome.RECOVERED, merged=merged, last_missed=last_missed)]
    judged = replace(record, intents=tuple(stay + run))
    if policy is None:
        return judged, None
    outcomes = {
        Outcome.RECOVERED: len(run),
        Outcome.MERGED: sum(i.merged for i in run),
        Outcome.MISSED: len(lost),
    }
    misfire = Misfire(
        first=first.scheduled,
        last=last.scheduled,
        count=len(late),
        late_by=now - first.scheduled,
        reason=reason(first),
        instruction=asked,
        resolved=resolved,
        outcomes={outcome: n for outcome, n in outcomes.items() if n},
    )
    return with_unsent(judged, lost, resolved, now), misfire


_RUNS_NONE = frozenset(
    {
        MisfireInstruction.DO_NOTHING,
        MisfireInstruction.RESCHEDULE_NEXT_WITH_EXISTING_COUNT,
        MisfireInstruction.RESCHEDULE_NEXT_WITH_REMAINING_COUNT,
    }
)


_encode = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode


def dumps(record: EntryRecord) -> str:
    """Return the record as JSON; equal records give equal texts."""
    # By hand: dataclasses.asdict() copies every value, and this runs twice for every run that is sent.
    data = {
        **vars(record),
        "v": SCHEMA,
        "state": vars(record.state),
        "runs": [vars(r) for r in record.runs],
        "intents": [vars(i) for i in record.intents],
        "missed": [vars(m) for m in record.missed],
    }
    return _encode(data)


def loads(text: str) -> EntryRecord:
    """Return the record that :func:`dumps` wrote.

    :raises ValueError: when the text is anything else.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"longer than {MAX_LENGTH} characters")
    try:
        data: dict[str, Any] = json.loads(text)
        if data.pop("v") != SCHEMA:
            raise ValueError("another schema")
        state = TriggerState(**data.pop("state"))
        record = EntryRecord(
            **data
            | {
                "state": state,
                "runs": tuple(Runs(**r | {"outcome": Outcome(r["outcome"])}) for r in data["runs"]),
                "intents": tuple(Intent(**i | {"outcome": Outcome(i["outcome"])}) for i in data["intents"]),
                "missed": tuple(
                    Unreported(
                        **m
                        | {
                            "reason": Reason(m["reason"]),
                            "instruction": MisfireInstruction(m["instruction"]),
                        }
                    )
                    for m in data["missed"]
                ),
            }
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ValueError(f"not a record: {type(exc).__name__}") from None
    _check(record)
    return record


#: Moments lie between these two: the years 1 and 5138.
_FIRST, _FAR = -62_135_596_800_000, 10**14


def _check(record: EntryRecord) -> None:
    state = record.state
    texts = (record.name, record.task, record.fingerprint)
    moments: list[Any] = [record.generation, state.start_time, state.times_triggered]
    moments += [
        m
        for m in (
            state.next_fire_time,
            state.previous_fire_time,
            state.end_time,
            record.removed_at,
            record.paused_from,
        )
        if m is not None
    ]
    moments += [count for count in (state.repeat_count, state.max_runs) if count is not None]
    stretches: tuple[Runs | Unreported, ...] = (*record.runs, *record.missed)
    for stretch in stretches:
        moments += [stretch.first, stretch.last, stretch.count]
    for lost in record.missed:
        moments += [lost.detected_at, lost.generation]
    for intent in record.intents:
        moments += [intent.scheduled, intent.generation, intent.claimed_at]
    runs: tuple[Runs | Intent, ...] = (*record.runs, *record.intents)
    for run in runs:
        moments += [run.merged, 0 if run.last_missed is None else run.last_missed]
    if not all(isinstance(t, str) for t in texts):
        raise ValueError("not a record: a text is missing")
    if not all(isinstance(intent.unsent, bool) for intent in record.intents):
        raise ValueError("not a record: neither true nor false")
    if not all(type(m) is int and _FIRST <= m < _FAR for m in moments):
        raise ValueError("not a record: a moment is not a whole number in range")


__all__ = [
    "MAX_LENGTH",
    "SCHEMA",
    "Definition",
    "EntryRecord",
    "Intent",
    "Unreported",
    "claim",
    "dumps",
    "edited",
    "first_seen",
    "judge_again",
    "loads",
    "occurrences",
    "removed",
    "resumed",
    "returned",
    "unknown",
    "with_missed",
    "with_plan",
    "with_unsent",
]
