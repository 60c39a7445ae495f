"""How the record of an entry changes: each function takes a record and returns the next one.

Pure, like the planner. A record holds the trigger state, the decisions that are not carried out yet (runs
to send, runs being sent, misses to report) and nothing of the task but its name. Its text is the business of
:mod:`~celery_misfire.entry_record`; the store compares and replaces it whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from celery_misfire.entry_record import (
    MAX_LENGTH,
    SCHEMA,
    EntryRecord,
    Intent,
    Pause,
    Unreported,
    dumps,
    loads,
    loads_all,
)
from celery_misfire.frozen import replaced
from celery_misfire.misfire import (
    ENDLESS,
    MisfireInstruction,
    MisfirePolicy,
    Missed,
    Outcome,
    Plan,
    Reason,
    Trigger,
    TriggerState,
    resolve,
)

#: After the clock was set back, a next fire time that comes within so many milliseconds is waited for.
LONGEST_SILENCE = 60_000
#: Fixed times are waited for when the clock was set back by less than so many milliseconds.
SHORT_STEP = 3 * 3600 * 1000


@dataclass(frozen=True)
class Definition:
    """An entry of the schedule, as far as its record depends on it.

    :param anchor: when an interval entry last ran under another scheduler, in milliseconds UTC. Its grid goes
        on from there when it is first seen.
    :param ignore_result: the entry's option of this name; None when it says nothing.
    :param due_since: for an entry that runs once and has not, as its table says: since when it waits, in
        milliseconds UTC. What came due since then is due, also when the store knows nothing.
    :param key: what the entry is known by, whatever its name; None when there is nothing but the name.
    """

    name: str
    task: str
    trigger: Trigger
    policy: MisfirePolicy | None
    anchor: int | None = None
    ignore_result: bool | None = None
    due_since: int | None = None
    key: str | None = None


def first_seen(
    name: str,
    task: str,
    trigger: Trigger,
    now: int,
    *,
    from_now: bool,
    anchor: int | None = None,
    due_since: int | None = None,
) -> EntryRecord:
    """Return the record of an entry that begins (or begins anew) at `now`.

    :param from_now: leave out fire times up to `now`. Else those of a schedule that started in the past are
        due, and have misfired, as in Quartz.
    :param anchor: a fire time of an interval. Its grid goes on with the first fire time after `now`.
    :param due_since: see :class:`Definition`; it overrides `from_now`.
    """
    if due_since is not None:
        return EntryRecord(name, task, now, trigger.fingerprint, trigger.first_state(min(due_since, now)))
    passed = 0 if anchor is None or trigger.interval is None else (now - anchor) % trigger.interval
    state = trigger.first_state(now - passed)
    if from_now and state.next_fire_time is not None and state.next_fire_time <= now:
        state = replace(state, next_fire_time=trigger.fire_times(state).after(now))
    return EntryRecord(name, task, now, trigger.fingerprint, state)


def edited(record: EntryRecord, task: str, trigger: Trigger, now: int) -> EntryRecord:
    """Return the record of an entry whose schedule was edited: planned from now.

    Claimed runs of the old schedule are still sent. Runs that were only decided are given up.
    """
    fresh = first_seen(record.name, task, trigger, now, from_now=True)
    return replace(
        _begun(fresh, record, now),
        intents=record.intents,
        missed=record.missed,
        paused=record.paused,
        unknown_fields=record.unknown_fields,
    )


def _begun(record: EntryRecord, before: EntryRecord, now: int) -> EntryRecord:
    """Return the record in a new generation, which begins now."""
    generation = max(before.generation + 1, now)
    return replace(record, generation=generation, begun_at=None if generation == now else now)


def returned(record: EntryRecord, task: str, trigger: Trigger, now: int) -> EntryRecord:
    """Return the record of an entry that came back unchanged, and whose time away was no outage.

    It is planned from now. A counted trigger does not get back the runs that it has made.
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
    unsent = [[i] for i in record.intents if i not in started]
    undone = [Missed(r.first, r.end, r.count + r.merged, Reason.ENTRY_DELETED) for r in record.runs]
    next_ = record.state.next_fire_time
    state = replace(record.state, next_fire_time=None)
    gone = replace(record, state=state, runs=(), intents=(), removed_at=now, paused_from=next_)
    gone = with_unsent(gone, unsent, Reason.ENTRY_DELETED, MisfireInstruction.DO_NOTHING, now)
    return with_missed(gone, undone, MisfireInstruction.DO_NOTHING, now)


def renamed(record: EntryRecord, name: str, place: EntryRecord | None) -> EntryRecord:
    """Return the record of an entry that has another name now: its fire times go on.

    Intents keep the name that their ids were made of. Misses stay under the old name, see :func:`vacated`.

    :param place: the record that had this name before.
    """
    intents = tuple(replace(i, entry=i.entry or record.name) for i in record.intents)
    generation = max(record.generation, place.generation if place else record.generation) + 1
    missed = place.missed if place else ()
    begin = record.begin
    return replace(record, name=name, generation=generation, begun_at=begin, intents=intents, missed=missed)


def vacated(record: EntryRecord, now: int) -> EntryRecord:
    """Return what is kept under the old name of a renamed entry: what is still to be reported."""
    generation = max(record.generation + 1, now)
    return replace(
        unknown(record.name, now), task=record.task, generation=generation, begun_at=now, missed=record.missed
    )


def resumed(record: EntryRecord, task: str, now: int) -> EntryRecord:
    """Return the record of an entry that came back unchanged, and whose fire times in between count.

    Those that are due by now have misfired, if they are late enough. So Quartz resumes a trigger.
    """
    next_ = record.paused_from
    paused_from = None if next_ is None or next_ > now else next_
    state = replace(record.state, next_fire_time=next_)
    return replace(record, task=task, state=state, removed_at=None, paused_from=paused_from)


def awakened(record: EntryRecord, trigger: Trigger, end: int, now: int, *, misfires: bool) -> EntryRecord:
    """Return the record of an entry whose pause is over.

    What was due before the pause and had not been decided is missed: nothing of it is made up for.

    :param end: when the pause ended; what is due later is judged as ever.
    :param misfires: the fire times of the pause have misfired, if they are late enough, as Quartz resumes a
        trigger. Else they are none, and the next one is the first after the pause; the grid stays.
    """
    pause = record.paused
    if pause is None:
        return record
    next_, awake = record.state.next_fire_time, replace(record, paused=None)
    if next_ is None or next_ > end:
        return awake
    if misfires:
        return replace(awake, paused_from=next_)
    return skipped(awake, trigger, pause.since, end, now)


def skipped(record: EntryRecord, trigger: Trigger, since: int, end: int, now: int) -> EntryRecord:
    """Return the record with the first fire time after `end`: those since `since` are no occurrences.

    What was due before `since` and had not been decided is missed.
    """
    state, lost = skip(trigger, record.state, since, end)
    if state is record.state:
        return record
    return with_missed(replace(record, state=state), lost, MisfireInstruction.DO_NOTHING, now)


def skip(
    trigger: Trigger, state: TriggerState, since: int, end: int | None
) -> tuple[TriggerState, list[Missed]]:
    """Return the state with the first fire time after a pause, and what was due before it and is missed.

    :param end: of the pause; None: it does not end.
    """
    first = state.next_fire_time
    if first is None or (end is not None and first > end):
        return state, []
    times, lost = trigger.fire_times(state), []
    if first < since:
        last = times.before(since) or first
        lost = [Missed(first, last, times.count(first, last), Reason.PAUSED)]
    return replace(state, next_fire_time=None if end is None else times.after(end)), lost


def unknown(name: str, now: int) -> EntryRecord:
    """Return the record of a removed entry whose own record could not be read."""
    state = TriggerState(next_fire_time=None, start_time=now)
    return EntryRecord(name, "", now, "", state, removed_at=now)


def clock_step(records: Iterable[EntryRecord], now: int) -> int:
    """Return by how much the clock was set back, as far as the records of entries show it, in milliseconds.

    It is not more than 0 when nothing of what they hold lies in the future.
    """
    return max((max(r.begin, r.state.previous_fire_time or r.begin) for r in records), default=now) - now


def set_back(record: EntryRecord, trigger: Trigger, now: int, step: int) -> EntryRecord | None:
    """Return the record planned from now, after the clock was set back; None when it stays as it is.

    The rule is that of Debian's cron: what follows elapsed time (intervals, wildcards) goes on at once, fixed
    times come when the clock reaches them again, unless it was set back far. Nothing is done to a next fire
    time that is close, or one of the next two in any case. What was decided is kept.

    :param step: see :func:`clock_step`.
    """
    next_ = record.state.next_fire_time
    if step <= 0 or next_ is None or next_ - now <= LONGEST_SILENCE:
        return None
    if step < SHORT_STEP and not trigger.follows_elapsed_time:
        return None
    state = _from_now(record.state, next_, trigger, now)
    first = state.next_fire_time
    second = None if first is None else trigger.fire_times(state).after(first)
    if second is None or next_ <= second:
        return None
    return _begun(replace(record, state=state), record, now)


def _from_now(state: TriggerState, next_: int, trigger: Trigger, now: int) -> TriggerState:
    """Return the state with the first fire time after `now`; a grid keeps its phase and its count."""
    fresh, interval = trigger.first_state(now), trigger.interval
    begins = fresh.next_fire_time
    if begins is not None and (begins == next_ or begins > now + (interval or 0)) and fresh.start_time > now:
        # It has a start of its own, which is still to come.
        start = fresh.start_time
    elif interval is not None:
        start = state.start_time - (next_ - now - 1) // interval * interval
    else:
        start = state.start_time if state.start_time <= now else fresh.start_time
    state = replace(state, start_time=start, previous_fire_time=None)
    return replace(state, next_fire_time=trigger.fire_times(state).after(now))


def with_plan(record: EntryRecord, plan: Plan, now: int, policy: MisfirePolicy | None = None) -> EntryRecord:
    """Return the record after a plan, whose decisions are to be carried out.

    :param policy: by which it was made.
    """
    in_time = tuple(r for r in plan.runs if r.outcome is Outcome.FIRED)
    late = tuple(r for r in plan.runs if r.outcome is not Outcome.FIRED)
    # Runs in time go first, or they would wait for the catch-up.
    decided = replaced(record, state=plan.state, runs=in_time + record.runs + late, paused_from=None)
    if not plan.missed:
        return decided
    instruction = plan.misfire.resolved if plan.misfire else resolved(record, policy)
    return with_missed(decided, plan.missed, instruction, now)


def resolved(record: EntryRecord, policy: MisfirePolicy | None) -> MisfireInstruction:
    """Return what the instruction of a policy stands for on this entry."""
    asked = policy.instruction if policy else MisfireInstruction.DO_NOTHING
    return resolve(asked, record.state.trigger_type)


def with_missed(
    record: EntryRecord,
    missed: Iterable[Missed],
    instruction: MisfireInstruction,
    now: int,
    claimed: Intent | None = None,
) -> EntryRecord:
    """Return the record with these misses still to be reported.

    :param claimed: one of them that was claimed. They keep the generation of then, and so their task ids.
    """
    generation, entry = (claimed.generation, claimed.entry) if claimed else (record.generation, "")
    new = tuple(
        Unreported(m.first, m.last, m.count, m.reason, instruction, now, generation, entry) for m in missed
    )
    return replace(record, missed=record.missed + new) if new else record


def with_unsent(
    record: EntryRecord,
    lost: Iterable[Sequence[Intent]],
    reason: Reason,
    instruction: MisfireInstruction,
    now: int,
) -> EntryRecord:
    """Return the record with intents that were given up still to be reported, and what was merged into them.

    :param lost: together those that follow one another.
    """
    for intents in lost:
        count = sum(1 + i.merged for i in intents)
        missed = Missed(intents[0].scheduled, intents[-1].end, count, reason)
        record = with_missed(record, [missed], instruction, now, intents[0])
    return record


def claim(record: EntryRecord, trigger: Trigger, now: int, limit: int) -> EntryRecord:
    """Return the record with the oldest decided runs made intents, at most `limit`."""
    claimed: list[Intent] = []
    runs = list(record.runs)
    while runs and len(claimed) < limit:
        stretch = runs.pop(0)
        times = occurrences(trigger, record.state, stretch.first, stretch.last)
        for taken, scheduled in enumerate(times, start=1):
            merged, last_missed = stretch.merged, stretch.last_missed
            intent = Intent(scheduled, record.generation, stretch.outcome, now, merged, last_missed)
            claimed.append(replace(intent, before=stretch.before) if stretch.before else intent)
            if len(claimed) == limit:
                # Ask for the next one: the count is an estimate where a schedule of the app's own is asked.
                if (following := next(times, None)) is not None:
                    runs.insert(0, replace(stretch, first=following, count=max(1, stretch.count - taken)))
                break
    return replaced(record, runs=tuple(runs), intents=record.intents + tuple(claimed))


def occurrences(trigger: Trigger, state: TriggerState, first: int, last: int) -> Iterator[int]:
    """Yield the fire times from `first` to `last`, both known to be fire times.

    A grid may have been started anew since. So the old one is rebuilt from `first`.
    """
    yield first
    if first == last:
        # The schedule is not asked: that may take long.
        return
    if state.repeat_count is not None:
        state = replace(state, start_time=first, repeat_count=ENDLESS, end_time=None)
    times = trigger.fire_times(state)
    following = times.after(first)
    while following is not None and following <= last:
        yield following
        following = times.after(following)


__all__ = [
    "MAX_LENGTH",
    "SCHEMA",
    "Definition",
    "EntryRecord",
    "Intent",
    "Pause",
    "Unreported",
    "awakened",
    "claim",
    "clock_step",
    "dumps",
    "edited",
    "first_seen",
    "loads",
    "loads_all",
    "occurrences",
    "removed",
    "renamed",
    "resolved",
    "resumed",
    "returned",
    "set_back",
    "skipped",
    "unknown",
    "vacated",
    "with_missed",
    "with_plan",
    "with_unsent",
]
