"""The planner's laws, over every kind of schedule."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from celery.schedules import crontab, schedule
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from celery_misfire import calendars
from celery_misfire.calendars import Calendar
from celery_misfire.misfire import (
    ENDLESS,
    FITTING,
    MisfireInstruction,
    MisfirePolicy,
    Outcome,
    Plan,
    Trigger,
    TriggerState,
    TriggerType,
    from_millis,
    plan,
    resolve,
    to_millis,
)
from celery_misfire.records import dumps, first_seen, loads, occurrences, with_plan
from celery_misfire.schedules import calendar_interval, cron, daily_time_interval, excluding, simple
from celery_misfire.triggers.kinds import trigger_for

SECOND = 1_000
HOUR = 3600 * SECOND
ZONES = ["UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Africa/Casablanca"]

zones = st.sampled_from(ZONES)
# Around changes of the clocks as much as elsewhere.
beginnings = st.sampled_from(
    [
        datetime(2026, 1, 30),
        datetime(2026, 3, 7),
        datetime(2026, 3, 28),
        datetime(2026, 10, 24),
        datetime(2028, 2, 27),
    ]
).map(lambda day: to_millis(day.replace(tzinfo=UTC)))


@dataclass(frozen=True)
class Situation:
    """A schedule that was first seen at one moment, and is looked at again at another."""

    schedule: Any
    first_seen: int
    now: int

    @property
    def trigger(self) -> Trigger:
        return trigger_for(self.schedule)

    @property
    def state(self) -> TriggerState:
        return self.trigger.first_state(self.first_seen)


@st.composite
def schedules(draw: st.DrawFn, seen: int) -> Any:
    start = from_millis(seen + draw(st.integers(-500, 500)) * 60 * SECOND)
    end = draw(st.none() | st.integers(1, 3000).map(lambda minutes: start + timedelta(minutes=minutes)))
    kind = draw(
        st.sampled_from(
            ["simple", "interval", "crontab", "cron", "daily", "calendar", "excluding", "excluding"]
        )
    )
    match kind:
        case "simple":
            interval = draw(st.none() | st.integers(60, 20_000))
            count = ENDLESS if interval is None else draw(st.integers(-1, 12))
            return simple(start, interval, count, end)
        case "interval":
            return schedule(draw(st.integers(60, 20_000)))
        case "crontab":
            made = crontab(
                minute=draw(st.sampled_from(["0", "*/20", "7,37"])),
                hour=draw(st.sampled_from(["*", "2", "1,2,3"])),
            )
            made.tz = ZoneInfo(draw(zones))
            return made
        case "cron":
            expressions = [
                "0 0/20 * * * ?",
                "15 30 1-3 * * ?",
                "0 0 2 ? * SUN,MON",
                "0 0 0 L * ?",
                "*/30 9-17 * * 1-5",
            ]
            where = draw(st.sampled_from([(None, None), (start, None), (start, end)]))
            return cron(draw(st.sampled_from(expressions)), draw(zones), *where)
        case "daily":
            return daily_time_interval(
                draw(st.integers(10, 300)),
                "minute",
                draw(st.sampled_from(["00:00", "01:30", "08:00"])),
                draw(st.sampled_from(["08:00", "12:00", "23:59:59"])),
                draw(st.none() | st.just(["SAT", "SUN", "MON"])),
                draw(st.integers(-1, 9)),
                draw(zones),
                end=draw(st.just(end) if end and end > from_millis(seen) else st.none()),
            )
        case "calendar":
            unit = draw(st.sampled_from(["minute", "hour", "day", "week", "month"]))
            every = draw(st.integers(20, 90)) if unit == "minute" else draw(st.integers(1, 3))
            where = draw(st.sampled_from([(None, None), (start, None), (start, end)]))
            return calendar_interval(every, unit, draw(zones), *where, draw(st.booleans()))
    return excluding(draw(schedules(seen)), draw(exclusions()))


@st.composite
def exclusions(draw: st.DrawFn) -> Calendar:
    base = draw(st.none() | st.just(calendars.monthly([1])))
    made = [
        calendars.weekly(["SAT", "SUN"], draw(zones), base),
        calendars.daily("01:00", "02:30", False, draw(zones), base),
        calendars.daily("00:00", "20:00", True, draw(zones), base),
        calendars.holiday([date(2026, 3, 29), date(2026, 10, 25)], draw(zones), base),
        calendars.annual(["03-08", "02-29"], draw(zones), base),
        calendars.cron("* 10-15 * * * ?", draw(zones), base),
    ]
    return draw(st.sampled_from(made))


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    seen = draw(beginnings) + draw(st.integers(0, 48)) * HOUR + draw(st.integers(0, HOUR))
    situation = Situation(
        draw(schedules(seen)), seen, seen + draw(st.integers(0, 72)) * HOUR + draw(st.integers(0, HOUR))
    )
    try:
        _ = situation.state
    except ValueError:  # The calendar leaves out every fire time of the schedule.
        reject()
    return situation


@st.composite
def policies(draw: st.DrawFn, trigger_type: TriggerType) -> MisfirePolicy:
    return MisfirePolicy(
        instruction=draw(st.sampled_from(FITTING[trigger_type])),
        threshold=draw(st.just("auto") | st.integers(1, 4000).map(float)),
        max_catch_up=draw(st.none() | st.integers(1, 30)),
        max_lateness=draw(st.none() | st.integers(1, 100_000).map(float)),
    )


def walked(situation: Situation) -> list[int]:
    """Every fire time that is due, one by one."""
    times, found, moment = situation.trigger.fire_times(situation.state), [], situation.state.next_fire_time
    while moment is not None and moment <= situation.now:
        found.append(moment)
        moment = times.after(moment)
    return found


def accounted(trigger: Trigger, state: TriggerState, made: Plan, due: list[int]) -> list[int]:
    """Every occurrence that a plan gives an outcome to, by fire time, as often as it does."""
    found: list[int] = []
    for run in made.runs:
        ran = list(occurrences(trigger, state, run.first, run.last))
        assert len(ran) == run.count
        found += ran
        merged = [m for m in due if run.merged and run.first < m <= (run.last_missed or 0)]
        assert len(merged) == run.merged
        found += merged
    for missed in made.missed:
        lost = list(occurrences(trigger, state, missed.first, missed.last))
        assert len(lost) == missed.count
        found += lost
    return sorted(found)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_the_four_outcomes_partition_the_expected_fire_times(data: st.DataObject) -> None:
    situation = data.draw(situations())
    trigger, state = situation.trigger, situation.state
    policy = data.draw(policies(trigger.trigger_type))
    due = walked(situation)
    made = plan(trigger, state, policy, situation.now)
    given_out = accounted(trigger, state, made, due)
    # A count of runs may be used up before all that is due has run; then the rest is no occurrence.
    left = state.runs_left
    complete = left is not None and made.state.runs_left == 0
    assert given_out == (due[: len(given_out)] if complete else due)
    if left is not None:
        assert sum(run.count for run in made.runs) <= left
    assert made.state.next_fire_time is None or made.state.next_fire_time > situation.now
    if made.misfire is not None:
        assert sum(made.misfire.outcomes.values()) == made.misfire.count == len(given_out)
        assert made.misfire.resolved is resolve(policy.instruction, state.trigger_type)
        assert set(made.misfire.outcomes) <= set(Outcome) - {Outcome.FIRED}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_counts_equal_brute_force(data: st.DataObject) -> None:
    situation = data.draw(situations())
    times, due = situation.trigger.fire_times(situation.state), walked(situation)
    if due:
        assert times.count(due[0], situation.now) == len(due)
        assert times.before(situation.now + 1) == due[-1]
    low, high = sorted(data.draw(st.tuples(*[st.integers(situation.first_seen, situation.now)] * 2)))
    inside = [m for m in due if low <= m <= high]
    if situation.state.next_fire_time is not None and low >= situation.state.next_fire_time:
        assert times.count(low, high) == len(inside)
        assert times.after(low - 1) == next((m for m in due if m >= low), times.after(situation.now))


KEEP_THE_GRID = [
    MisfireInstruction.IGNORE_MISFIRE_POLICY,
    MisfireInstruction.DO_NOTHING,
    MisfireInstruction.FIRE_ONCE_NOW,
    MisfireInstruction.RESCHEDULE_NEXT_WITH_EXISTING_COUNT,
    MisfireInstruction.RESCHEDULE_NEXT_WITH_REMAINING_COUNT,
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_two_outages_in_a_row_account_for_what_one_does(data: st.DataObject) -> None:
    """Where an instruction keeps the grid, cutting an outage in two loses no occurrence and doubles none."""
    situation = data.draw(situations())
    trigger, state = situation.trigger, situation.state
    fitting = [i for i in KEEP_THE_GRID if i in FITTING[trigger.trigger_type]]
    policy = MisfirePolicy(data.draw(st.sampled_from(fitting)), threshold=0.001)
    halfway = data.draw(st.integers(situation.first_seen, situation.now))
    due = walked(situation)
    first = plan(trigger, state, policy, halfway)
    second = plan(trigger, first.state, policy, situation.now)
    whole = plan(trigger, state, policy, situation.now)
    apart = accounted(trigger, state, first, due) + accounted(trigger, first.state, second, due)
    if state.max_runs is None or policy.instruction is not MisfireInstruction.FIRE_ONCE_NOW:
        assert apart == accounted(trigger, state, whole, due)
        assert second.state.next_fire_time == whole.state.next_fire_time
    else:
        # Two late runs use up two of a count, one uses up one.
        assert apart == due[: len(apart)]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_an_outage_planned_after_another_is_planned_as_if_it_were_the_first(data: st.DataObject) -> None:
    """What a plan leaves behind is all that the next one knows, also through the store."""
    situation = data.draw(situations())
    trigger = situation.trigger
    policy = data.draw(policies(trigger.trigger_type))
    record = first_seen("e", "t", trigger, situation.first_seen, from_now=False)
    halfway = data.draw(st.integers(situation.first_seen, situation.now))
    first = plan(trigger, record.state, policy, halfway)
    stored = loads(dumps(with_plan(record, first, halfway)))
    assert stored.state == first.state
    assert plan(trigger, stored.state, policy, situation.now) == plan(
        trigger, first.state, policy, situation.now
    )
    again = plan(trigger, first.state, policy, halfway)
    assert (again.state, again.runs, again.missed, again.misfire) == (first.state, (), (), None)


def test_nothing_done_is_used_up_as_under_next_with_remaining_count() -> None:
    """Where both fit, ``do_nothing`` is another word for it, also for what a later new start has left."""
    nine = datetime(2026, 3, 2, 9, tzinfo=UTC)
    trigger = trigger_for(simple(nine, 3600, 7))
    state = trigger.first_state(to_millis(nine))
    at_quarter_past_ten = to_millis(nine + timedelta(minutes=75))
    plans = [
        plan(trigger, state, MisfirePolicy(instruction), at_quarter_past_ten)
        for instruction in ("do_nothing", "reschedule_next_with_remaining_count")
    ]
    assert plans[0].state == plans[1].state
    assert plans[0].missed == plans[1].missed
    assert plans[0].state.times_triggered == 2
