"""What becomes of entries when the clock was set back, or when the state is of a time yet to come."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from celery.schedules import crontab, schedule

from celery_misfire import calendars, records
from celery_misfire.entry_record import EntryRecord
from celery_misfire.leadership.outages import Outages
from celery_misfire.misfire import Outcome, Reason, Runs, plan, to_millis
from celery_misfire.records import Intent
from celery_misfire.schedules import calendar_interval, cron, excluding, simple
from celery_misfire.triggers.kinds import trigger_for

NOW = to_millis(datetime(2026, 3, 2, 9, tzinfo=UTC))
SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
YEARS = 10 * 365 * DAY


def of_the_future(schedule_: Any, ahead: int, *, ran: bool = True) -> EntryRecord:
    """Return the record of an entry that was seen a day before NOW and goes on when the clock is ahead."""
    trigger = trigger_for(schedule_)
    record = records.first_seen("e", "t", trigger, (NOW + ahead if not ran else NOW - DAY), from_now=True)
    if ran:
        record = replace(record, state=plan(trigger, record.state, None, NOW + ahead).state)
    return record


def after_step(schedule_: Any, record: EntryRecord, now: int = NOW) -> EntryRecord | None:
    step = records.clock_step([record], now)
    return records.set_back(record, trigger_for(schedule_), now, step)


MONTHLY = calendar_interval(1, "month", timezone="UTC")
HOLIDAY = calendars.holiday([date(2026, 3, 3)], timezone="UTC")


@pytest.mark.parametrize(
    ("schedule_", "first"),
    [
        (schedule(5), 5 * SECOND),
        (schedule(timedelta(hours=7)), 4 * HOUR),
        (schedule(5, relative=True), 5 * SECOND),
        (simple(start=datetime(2026, 1, 1, 0, 30, tzinfo=UTC), interval=3600), 30 * MINUTE),
        (simple(start=datetime(2030, 1, 1, tzinfo=UTC), interval=3600), None),
        (crontab(), MINUTE),
        (crontab(minute="*/10"), 10 * MINUTE),
        (crontab(hour=10, minute=0), HOUR),
        (cron("0 0 10 * * ?", timezone="UTC"), HOUR),
        (cron("0 0/5 * * * ?", timezone="UTC"), 5 * MINUTE),
        (calendar_interval(2, "hour", timezone="UTC"), 2 * HOUR),
        (excluding(schedule(5), HOLIDAY), 5 * SECOND),
        (excluding(crontab(hour=8, minute=0), HOLIDAY), 2 * DAY - HOUR),
    ],
    ids=repr,
)
@pytest.mark.parametrize("ran", [True, False])
def test_a_state_of_another_decade_is_planned_from_now(schedule_: Any, first: int | None, ran: bool) -> None:
    record = of_the_future(schedule_, YEARS, ran=ran)
    planned = after_step(schedule_, record)
    assert planned is not None
    expected = to_millis(datetime(2030, 1, 1, tzinfo=UTC)) if first is None else NOW + first
    next_ = planned.state.next_fire_time
    assert next_ is not None
    if trigger_for(schedule_).interval is not None and first is not None:
        # A grid keeps its phase.
        assert NOW < next_ <= NOW + max(first, trigger_for(schedule_).interval or 0)
    else:
        assert next_ == expected
    assert planned.generation > record.generation
    assert planned.begin == NOW
    assert records.loads(records.dumps(planned)) == planned
    assert after_step(schedule_, planned) is None


@pytest.mark.parametrize(
    ("schedule_", "waits"),
    [
        (schedule(5), False),
        (crontab(), False),
        (crontab(minute="*/10"), False),
        (crontab(minute="0,10,20,30,40,50", hour="9,10,11,12"), True),
        (schedule(timedelta(hours=1)), False),
        # Its next fire time is one of the next two: no silence to speak of.
        (schedule(timedelta(days=1)), True),
        (crontab(hour=9, minute=30), True),
    ],
    ids=repr,
)
def test_after_less_than_three_hours_fixed_times_wait_and_what_follows_elapsed_time_goes_on(
    schedule_: Any, waits: bool
) -> None:
    record = of_the_future(schedule_, 2 * HOUR + 59 * MINUTE)
    assert (after_step(schedule_, record) is None) == waits


def test_after_three_hours_fixed_times_are_planned_from_now() -> None:
    every_ten = crontab(minute="0,10,20,30,40,50", hour="9,10,11,12")
    planned = after_step(every_ten, of_the_future(every_ten, 3 * HOUR))
    assert planned is not None
    assert planned.state.next_fire_time == NOW + 10 * MINUTE


@pytest.mark.parametrize("every", [0.5, 1, 5, 20, 60, 3600])
@pytest.mark.parametrize("ahead", [1, 2_500, 9_000, 30_000])
def test_clocks_of_two_hosts_that_differ_by_seconds_change_nothing(every: float, ahead: int) -> None:
    assert after_step(schedule(every), of_the_future(schedule(every), ahead)) is None
    assert after_step(crontab(), of_the_future(crontab(), ahead)) is None


@pytest.mark.parametrize(
    "schedule_",
    [
        simple(start=datetime(2030, 1, 1, tzinfo=UTC), interval=60),
        simple(start=datetime(2030, 1, 1, tzinfo=UTC)),
        cron("* * * * *", timezone="UTC", start=datetime(2030, 1, 1, tzinfo=UTC)),
        calendar_interval(1, "hour", timezone="UTC", start=datetime(2030, 1, 1, tzinfo=UTC)),
    ],
    ids=repr,
)
def test_a_start_that_is_still_to_come_is_no_trouble_of_the_clock(schedule_: Any) -> None:
    record = of_the_future(schedule_, -DAY, ran=False)
    assert records.set_back(record, trigger_for(schedule_), NOW, HOUR) is None


def test_no_step_no_change() -> None:
    """An entry may be silent for long; only a time that lies in the future tells of a clock."""
    record = of_the_future(schedule(5), 0)
    state = replace(record.state, next_fire_time=NOW + DAY)
    assert records.clock_step([replace(record, state=state)], NOW) <= 0
    assert records.set_back(replace(record, state=state), trigger_for(schedule(5)), NOW, 0) is None
    assert records.clock_step([], NOW) == 0


def test_a_counted_trigger_makes_the_runs_that_are_left() -> None:
    eight = simple(interval=60, repeat_count=7)
    trigger = trigger_for(eight)
    record = records.first_seen("e", "t", trigger, NOW + YEARS, from_now=True)
    record = replace(record, state=plan(trigger, record.state, None, NOW + YEARS + 3 * MINUTE).state)
    planned = after_step(eight, record)
    assert planned is not None
    times, moment, left = trigger.fire_times(planned.state), NOW, 0
    while (found := times.after(moment)) is not None:
        moment, left = found, left + 1
    assert (left, planned.state.times_triggered) == (5, 3)


def test_what_was_decided_is_kept_under_its_ids() -> None:
    record = of_the_future(schedule(5), YEARS)
    intent = Intent(NOW + YEARS, record.generation, Outcome.FIRED, NOW + YEARS)
    record = replace(record, intents=(intent,), runs=(Runs(NOW, NOW, 1, Outcome.RECOVERED),))
    record = records.with_missed(record, [], records.MisfireInstruction.DO_NOTHING, NOW)
    planned = after_step(schedule(5), record)
    assert planned is not None
    assert (planned.intents, planned.runs, planned.missed) == (record.intents, record.runs, record.missed)


def test_a_generation_in_the_future_does_not_make_every_run_one_of_the_past() -> None:
    """It is the begin of the generation that tells what was planned before it."""
    planned = after_step(schedule(5), of_the_future(schedule(5), YEARS, ran=False))
    assert planned is not None
    assert planned.generation > NOW + YEARS
    outages = Outages(0)
    outages.note(Reason.SCHEDULER_DOWN, NOW + HOUR)
    due = NOW + 5 * SECOND
    assert outages.reason_for(planned, due, planned.begin, is_broken=False) is Reason.SCHEDULER_DOWN
