"""One outage is one episode: what was decided and not sent is judged with all that is overdue."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from celery.schedules import crontab, schedule
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from celery_misfire import calendars, records
from celery_misfire.episodes import Episodes
from celery_misfire.misfire import (
    ENDLESS,
    FITTING,
    Misfire,
    MisfireInstruction,
    MisfirePolicy,
    Outcome,
    Plan,
    Reason,
    Trigger,
    TriggerType,
    plan,
    to_millis,
)
from celery_misfire.records import EntryRecord, Intent, dumps, loads
from celery_misfire.schedules import excluding, simple
from celery_misfire.triggers.kinds import trigger_for

NINE = to_millis(datetime(2026, 3, 2, 9, tzinfo=UTC))
SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000


def hourly(repeat_count: int = ENDLESS) -> Trigger:
    return trigger_for(
        simple(start=datetime(2026, 3, 2, 9, tzinfo=UTC), interval=3600, repeat_count=repeat_count)
    )


TRIGGERS = {
    "once": hourly(0),
    "fixed": hourly(7),
    "many": hourly(30),
    "endless": hourly(),
    "interval": trigger_for(schedule(3600)),
    "cron": trigger_for(crontab(minute=0)),
    "excluding": trigger_for(excluding(crontab(minute=0), calendars.daily("11:00", "12:30"))),
}
#: Each type of trigger with each instruction that fits it.
CASES = [(name, i) for name, t in TRIGGERS.items() for i in FITTING[t.trigger_type]]
RUNS_NONE = ("do_nothing", "reschedule_next_with_existing_count", "reschedule_next_with_remaining_count")


def first_seen(trigger: Trigger) -> EntryRecord:
    return records.first_seen("a", "t", trigger, NINE - 1, from_now=False)


def fired(record: EntryRecord, trigger: Trigger, policy: MisfirePolicy, times: int = 1) -> EntryRecord:
    """Return the record after so many runs that came due one by one, and were claimed in time."""
    for _ in range(times):
        due = record.state.next_fire_time
        if due is not None:
            made = plan(trigger, record.state, policy, due)
            record = records.claim(records.with_plan(record, made, due), trigger, due, 1)
    return loads(dumps(record))


def sent_before(trigger: Trigger, policy: MisfirePolicy, times: int) -> EntryRecord:
    """Return the record of an entry of which so many runs were sent, and that has one to come."""
    times = 0 if trigger.trigger_type is TriggerType.ONCE else times
    return replace(fired(first_seen(trigger), trigger, policy, times), intents=())


def judged(
    record: EntryRecord, trigger: Trigger, policy: MisfirePolicy, now: int, unsent: list[Intent] | None = None
) -> tuple[EntryRecord, list[Misfire]]:
    episodes = Episodes(trigger, policy, now, lambda *_: Reason.BROKER_UNAVAILABLE)
    steps = episodes.judge(record, record.intents if unsent is None else unsent)
    return (steps[-1][0] if steps else record), [misfire for _, misfire in steps if misfire]


def run_times(record: EntryRecord, trigger: Trigger, now: int) -> list[tuple[int, str, int, int | None]]:
    claimed = records.claim(record, trigger, now, 10_000)
    return sorted((i.scheduled, str(i.outcome), i.merged, i.last_missed) for i in claimed.intents)


def misses(record: EntryRecord) -> list[tuple[int, int, int]]:
    return [(m.first, m.last, m.count) for m in record.missed]


def expect(record: EntryRecord, made: Plan, trigger: Trigger, now: int) -> None:
    """Fail unless the record is what this plan makes of the entry."""
    planned = records.with_plan(first_seen(trigger), made, now)
    assert record.state == made.state
    assert run_times(record, trigger, now) == run_times(planned, trigger, now)
    assert misses(record) == misses(planned)


def test_the_classic_example_with_its_first_run_claimed_and_not_sent() -> None:
    trigger, policy, now = hourly(7), MisfirePolicy(), NINE + HOUR + 15 * MINUTE
    record, [misfire] = judged(fired(first_seen(trigger), trigger, policy), trigger, policy, now)
    assert misfire.outcomes == {Outcome.RECOVERED: 1, Outcome.MERGED: 1}
    assert (misfire.first, misfire.last, misfire.count) == (NINE, NINE + HOUR, 2)
    assert record.state.repeat_count == 7
    assert record.state.next_fire_time == NINE + 2 * HOUR + 15 * MINUTE
    [intent] = record.intents
    assert (intent.scheduled, intent.merged, record.runs, record.missed) == (NINE, 1, (), ())


@pytest.mark.parametrize(("name", "instruction"), CASES)
@settings(deadline=None, max_examples=25)
@given(
    sent=st.integers(0, 3),
    claimed=st.integers(1, 12),
    late=st.integers(0, 20 * HOUR),
    extra=st.sampled_from([{}, {"max_catch_up": 3}, {"max_lateness": 3 * 3600.0}]),
)
def test_what_was_claimed_when_an_outage_began_is_planned_as_if_it_had_not_been(
    name: str, instruction: MisfireInstruction, sent: int, claimed: int, late: int, extra: dict[str, float]
) -> None:
    trigger, policy = TRIGGERS[name], MisfirePolicy(instruction, threshold=600, **extra)
    before = sent_before(trigger, policy, sent)
    record = fired(before, trigger, policy, claimed)
    now = record.intents[0].scheduled + 600 * SECOND + late
    # All that was claimed by then had come due by then.
    while record.intents[-1].scheduled > now:
        claimed -= 1
        record = fired(before, trigger, policy, claimed)
    made = plan(trigger, before.state, policy, now, Reason.BROKER_UNAVAILABLE)
    after, misfires = judged(record, trigger, policy, now)
    expect(after, made, trigger, now)
    assert misfires == [made.misfire]
    assert judged(after, trigger, policy, now) == (after, [])


@pytest.mark.parametrize(("name", "instruction"), CASES)
@settings(deadline=None, max_examples=25)
@given(
    first_part=st.integers(1, 9 * HOUR),
    second_part=st.integers(1, 9 * HOUR),
    claimed=st.integers(0, 3),
    sent=st.integers(0, 2),
)
def test_an_outage_that_is_judged_in_two_parts_comes_to_the_same(
    name: str, instruction: MisfireInstruction, first_part: int, second_part: int, claimed: int, sent: int
) -> None:
    trigger, policy = TRIGGERS[name], MisfirePolicy(instruction, threshold=600)
    before = sent_before(trigger, policy, sent)
    halfway = before.state.next_fire_time + 600 * SECOND + first_part
    now = halfway + second_part
    record, told = judged(before, trigger, policy, halfway)
    # Some of the late runs were claimed, and failed.
    record = loads(dumps(records.claim(record, trigger, halfway, claimed)))
    due = record.state.next_fire_time
    assume(due is None or due > now or due <= now - 600 * SECOND)
    after, more = judged(record, trigger, policy, now)
    if record.runs or record.intents:
        # What was re-anchored at the first verdict goes back to the old grid, unless nothing more was due.
        at = halfway if after == record else now
        made = plan(trigger, before.state, policy, at, Reason.BROKER_UNAVAILABLE)
        expect(after, made, trigger, at)
        counts = Counter[Outcome]()
        for misfire in told + more:
            counts.update(misfire.outcomes)
        assert counts == made.misfire.outcomes
        assert sum(m.count for m in told + more) == made.misfire.count
    else:
        # It was told already, and nothing of it runs.
        whole = plan(trigger, before.state, policy, now)
        assert after.state.next_fire_time == whole.state.next_fire_time
        assert sum(m.count for m in after.missed) == whole.misfire.count
    spans = [(m.first, m.last) for m in told + more]
    assert all(one[1] < other[0] for one, other in pairwise(spans))


@pytest.mark.parametrize(("name", "instruction"), CASES)
@settings(deadline=None, max_examples=25)
@given(fates=st.lists(st.booleans(), min_size=1, max_size=8), late=st.integers(0, 5 * HOUR))
def test_a_run_that_was_sent_ends_an_episode_and_each_occurrence_has_one_outcome(
    name: str, instruction: MisfireInstruction, fates: list[bool], late: int
) -> None:
    trigger, policy = TRIGGERS[name], MisfirePolicy(instruction, threshold=60)
    record = fired(first_seen(trigger), trigger, policy, len(fates))
    times = [i.scheduled for i in record.intents]
    unsent = [i for i, is_sent in zip(record.intents, fates, strict=False) if not is_sent]
    now = times[-1] + MINUTE + late
    due = record.state.next_fire_time
    assume(due is None or due > now or due <= now - MINUTE)
    overdue = sorted({*[i.scheduled for i in unsent], *due_times(trigger, record, now)})
    after, misfires = judged(replace(record, intents=tuple(unsent)), trigger, policy, now)

    every = sorted({*times, *due_times(trigger, record, now)})
    ends = Counter[int]()
    for scheduled, _, merged, last_missed in run_times(after, trigger, now):
        stands_for = [t for t in every if scheduled <= t <= (last_missed or scheduled)]
        assert len(stands_for) == 1 + merged
        ends.update(stands_for)
    for first, last, count in misses(after):
        covered = [t for t in every if first <= t <= last]
        assert len(covered) == count
        ends.update(covered)
    assert ends == Counter(overdue)
    gaps = [
        t
        for t, following in zip(every, [*every[1:], None], strict=True)
        if t in overdue and following not in overdue
    ]
    assert len(misfires) == len(gaps)
    assert sum(m.count for m in misfires) == len(overdue)


def due_times(trigger: Trigger, record: EntryRecord, now: int) -> list[int]:
    found, moment = [], record.state.next_fire_time
    while moment is not None and moment <= now:
        found.append(moment)
        moment = trigger.fire_times(record.state).after(moment)
    return found


@pytest.mark.parametrize("instruction", FITTING[TRIGGERS["endless"].trigger_type])
def test_what_was_claimed_in_time_and_is_still_in_time_stays_as_it_is(
    instruction: MisfireInstruction,
) -> None:
    trigger, policy = hourly(), MisfirePolicy(instruction, threshold=7200)
    record = fired(first_seen(trigger), trigger, policy)
    assert judged(record, trigger, policy, NINE + 10 * MINUTE) == (record, [])
    after, misfires = judged(record, trigger, policy, NINE + HOUR)
    assert (after.intents, misfires) == (record.intents, [])
    assert [(r.first, r.outcome) for r in after.runs] == [(NINE + HOUR, Outcome.FIRED)]


def test_late_runs_that_wait_for_their_turn_do_not_make_a_run_in_time_late() -> None:
    trigger, policy = hourly(), MisfirePolicy("ignore_misfire_policy", threshold=600)
    record, [_] = judged(first_seen(trigger), trigger, policy, NINE + 4 * HOUR + 30 * MINUTE)
    after, misfires = judged(record, trigger, policy, NINE + 5 * HOUR)
    assert misfires == []
    assert [(r.outcome, r.count) for r in after.runs] == [(Outcome.FIRED, 1), (Outcome.RECOVERED, 5)]


def test_the_policy_in_force_decides_about_the_whole_episode() -> None:
    trigger, now = hourly(), NINE + 3 * HOUR + 30 * MINUTE
    record, [_] = judged(
        first_seen(trigger), trigger, MisfirePolicy("fire_once_now"), NINE + HOUR + 30 * MINUTE
    )
    after, [misfire] = judged(record, trigger, MisfirePolicy("do_nothing"), now)
    assert misses(after) == [(NINE, NINE + 3 * HOUR, 4)]
    assert (misfire.count, misfire.outcomes) == (4, {Outcome.MISSED: 4})
    assert run_times(after, trigger, now) == []


def test_the_runs_of_an_edited_schedule_are_an_episode_of_their_own() -> None:
    old, new, policy = hourly(), trigger_for(schedule(1800)), MisfirePolicy("do_nothing")
    record = fired(first_seen(old), old, policy, 2)
    edited = records.edited(record, "t", new, NINE + HOUR + 10)
    after, misfires = judged(edited, new, policy, NINE + 3 * HOUR)
    assert [(m.count, m.generation) for m in after.missed] == [(3, edited.generation), (2, record.generation)]
    assert [m.count for m in misfires] == [3, 2]
    assert after.state.next_fire_time > NINE + 3 * HOUR


def test_a_clock_that_is_set_back_makes_no_episode_of_what_lies_in_the_future() -> None:
    trigger, policy = TRIGGERS["endless"], MisfirePolicy("fire_once_now", threshold=60)
    record, [_] = judged(first_seen(trigger), trigger, policy, NINE + 5 * HOUR + 30 * MINUTE)
    record = records.claim(record, trigger, NINE, 1)
    now = NINE - 10 * HOUR
    back = records.set_back(record, trigger, now, 15 * HOUR)
    assert back is not None
    assert judged(back, trigger, policy, now) == (back, [])
    # What was claimed is of another generation, and so has another task id.
    later, misfires = judged(back, trigger, policy, back.state.next_fire_time + 5 * MINUTE)
    assert [m.count for m in misfires] == [1]
    assert later.intents == record.intents


def test_a_grid_that_an_older_version_has_started_anew_is_left_as_it_is() -> None:
    trigger, policy = hourly(7), MisfirePolicy()
    record, [_] = judged(first_seen(trigger), trigger, policy, NINE + HOUR + 15 * MINUTE)
    record = records.claim(record, trigger, NINE + HOUR + 15 * MINUTE, 1)
    record = replace(record, intents=tuple(replace(i, before=None) for i in record.intents))
    after, [misfire] = judged(record, trigger, policy, NINE + 3 * HOUR)
    assert (misfire.first, misfire.count) == (NINE + 2 * HOUR + 15 * MINUTE, 1)
    assert record.intents == after.intents
