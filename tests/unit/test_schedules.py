from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import BaseSchedule, crontab, maybe_schedule, schedule

from celery_misfire import calendars
from celery_misfire.misfire import (
    ENDLESS,
    FireTimes,
    MisfirePolicy,
    TriggerState,
    TriggerType,
    from_millis,
    plan,
    to_millis,
)
from celery_misfire.records import dumps, first_seen, loads, with_plan
from celery_misfire.schedules import calendar_interval, cron, daily_time_interval, excluding, simple
from celery_misfire.simulation import Simulation, simulate
from celery_misfire.triggers.kinds import trigger_for

app = Celery("schedules", set_as_current=False)

NINE = datetime(2026, 3, 2, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)


def first_state(seen: datetime, *arguments: Any, **named: Any) -> TriggerState:
    return trigger_for(simple(*arguments, **named)).first_state(to_millis(seen))


@pytest.mark.parametrize(
    ("made", "trigger_type", "interval"),
    [
        (simple(NINE), TriggerType.ONCE, None),
        (simple(NINE, repeat_count=0), TriggerType.ONCE, None),
        (simple(NINE, 3600, repeat_count=0), TriggerType.ONCE, None),
        (simple(NINE, 3600, repeat_count=7), TriggerType.FIXED, 3_600_000),
        (simple(NINE, HOUR), TriggerType.ENDLESS, 3_600_000),
        (simple(interval=0.25), TriggerType.ENDLESS, 250),
    ],
)
def test_the_trigger_type_follows_from_interval_and_repeat_count(
    made: simple, trigger_type: TriggerType, interval: int | None
) -> None:
    trigger = trigger_for(made)
    assert (trigger.trigger_type, trigger.interval) == (trigger_type, interval)
    assert trigger.first_state(0).trigger_type is trigger_type


def test_a_start_in_the_past_is_the_first_fire_time_all_the_same() -> None:
    state = first_state(NINE + 100 * HOUR, NINE, HOUR, 7)
    assert state == TriggerState(to_millis(NINE), to_millis(NINE), repeat_count=7)


def test_without_a_start_the_first_fire_is_one_interval_after_first_sight() -> None:
    assert first_state(NINE, interval=HOUR).next_fire_time == to_millis(NINE + HOUR)


def test_without_start_and_interval_it_fires_at_first_sight() -> None:
    assert first_state(NINE) == TriggerState(to_millis(NINE), to_millis(NINE), repeat_count=0)


def test_the_end_is_exclusive() -> None:
    trigger = trigger_for(simple(NINE, HOUR, end=NINE + 3 * HOUR))
    state = trigger.first_state(to_millis(NINE))
    assert state.end_time == to_millis(NINE + 3 * HOUR)
    assert trigger.fire_times(state).count(0, to_millis(NINE + 100 * HOUR)) == 3
    assert trigger.fire_times(state).after(to_millis(NINE + 2 * HOUR)) is None


def test_an_end_that_is_the_start_leaves_that_one_fire() -> None:
    assert first_state(NINE - HOUR, NINE, HOUR, end=NINE).next_fire_time == to_millis(NINE)


def test_an_end_before_the_first_fire_leaves_none() -> None:
    assert first_state(NINE, interval=HOUR, end=NINE + HOUR / 2).next_fire_time is None


def test_seven_repetitions_are_eight_fires() -> None:
    trigger = trigger_for(simple(NINE, HOUR, 7))
    times = trigger.fire_times(trigger.first_state(to_millis(NINE)))
    assert times.count(0, to_millis(NINE + 1000 * HOUR)) == 8
    assert times.before(to_millis(NINE + 1000 * HOUR)) == to_millis(NINE + 7 * HOUR)


def test_the_same_moments_in_another_zone_are_the_same_schedule() -> None:
    here, there = simple(NINE, 3600), simple(NINE.astimezone(ZoneInfo("Asia/Tokyo")), HOUR)
    assert here == there
    assert hash(here) == hash(there)
    assert trigger_for(here).fingerprint == trigger_for(there).fingerprint


@pytest.mark.parametrize(
    "other",
    [
        simple(NINE + HOUR, 3600, 7, NINE + 20 * HOUR),
        simple(NINE, 3601, 7, NINE + 20 * HOUR),
        simple(NINE, 3600, 6, NINE + 20 * HOUR),
        simple(NINE, 3600, 7),
    ],
)
def test_every_field_counts_in_comparison_and_fingerprint(other: simple) -> None:
    one = simple(NINE, 3600, 7, NINE + 20 * HOUR)
    assert one != other
    assert trigger_for(one).fingerprint != trigger_for(other).fingerprint


def test_it_equals_no_other_kind_of_schedule() -> None:
    made = simple(interval=60)
    for other in (schedule(60), crontab(), timedelta(minutes=1), 60):
        assert made != other
        assert other != made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": datetime(2026, 3, 2, 9)}, "start: needs a time zone, got 2026-03-02 09:00:00"),
        ({"end": datetime(2026, 3, 2, 9)}, "end: needs a time zone, got 2026-03-02 09:00:00"),
        ({"start": "2026-03-02"}, "start: expected an aware datetime, got '2026-03-02'"),
        (
            {"start": NINE, "end": NINE - HOUR},
            "end: 2026-03-02 08:00:00+00:00 is before start, 2026-03-02 09:00:00+00:00",
        ),
        ({"interval": 0}, "interval: expected a timedelta or seconds, at least a millisecond, got 0"),
        (
            {"interval": 0.0004},
            "interval: expected a timedelta or seconds, at least a millisecond, got 0.0004",
        ),
        ({"interval": True}, "interval: expected a timedelta or seconds, at least a millisecond, got True"),
        ({"interval": "60"}, "interval: expected a timedelta or seconds, at least a millisecond, got '60'"),
        ({"interval": 1, "repeat_count": -2}, "repeat_count: expected a whole number from -1 on, got -2"),
        ({"interval": 1, "repeat_count": True}, "repeat_count: expected a whole number from -1 on, got True"),
        ({"interval": 1, "repeat_count": 2.0}, "repeat_count: expected a whole number from -1 on, got 2.0"),
        ({"repeat_count": 3}, "repeat_count: needs an interval to repeat after, got 3"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is compared
        simple(**arguments)
    assert str(raised.value) == message


def test_it_survives_pickling_and_copying() -> None:
    made = simple(NINE, 3600, 7, NINE + 20 * HOUR, app=app)
    for copied in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made)):
        assert copied == made
        assert (copied.start, copied.interval, copied.repeat_count, copied.end) == (
            NINE,
            HOUR,
            7,
            NINE + 20 * HOUR,
        )
    once = simple(NINE)
    assert pickle.loads(pickle.dumps(once)) == once


def test_its_repr_tells_its_fields() -> None:
    assert repr(simple(NINE, 3600, 7)) == (
        "<simple: start 2026-03-02 09:00:00+00:00, interval 1:00:00, repeat_count 7, end None>"
    )


def test_celery_takes_it_for_a_schedule() -> None:
    made = simple(NINE, 3600)
    assert maybe_schedule(made, app=app) is made
    assert made.app is app


class StockBeat:
    """One entry as celery.beat keeps it, looked at every minute."""

    def __init__(self, made: BaseSchedule, begun_at: datetime) -> None:
        self.now = begun_at
        made.nowfun = lambda: self.now
        self.entry = ScheduleEntry(name="e", task="t", schedule=made, app=app)

    def run(self, until: datetime) -> list[str]:
        runs = []
        while self.now < until:
            self.now += timedelta(minutes=1)
            if self.entry.is_due().is_due:
                runs.append(f"{self.now:%d %H:%M}")
                self.entry = next(self.entry)
        return runs


def test_under_stock_beat_it_fires_on_its_grid_and_then_never_again() -> None:
    beat = StockBeat(simple(NINE, HOUR, 2), NINE - timedelta(minutes=7))
    assert beat.run(NINE + 30 * HOUR) == ["02 09:00", "02 10:00", "02 11:00"]
    due, wait = beat.entry.is_due()
    assert (due, wait) == (False, 86_400)
    assert beat.entry.schedule.remaining_estimate(beat.now) == timedelta(days=36_500)


def test_under_stock_beat_late_looks_run_once_and_stay_on_the_grid() -> None:
    beat = StockBeat(simple(NINE, HOUR), NINE - HOUR / 2)
    beat.now = NINE + timedelta(hours=3, minutes=29)
    assert beat.run(NINE + 6 * HOUR) == ["02 12:30", "02 13:00", "02 14:00", "02 15:00"]


def test_under_stock_beat_a_start_in_the_past_waits_for_the_next_slot() -> None:
    beat = StockBeat(simple(NINE, HOUR), NINE + HOUR / 4)
    assert beat.run(NINE + 2 * HOUR) == ["02 10:00", "02 11:00"]
    assert StockBeat(simple(NINE), NINE + HOUR).run(NINE + 3 * HOUR) == []


def test_under_stock_beat_it_begins_with_the_beat_when_it_has_no_start() -> None:
    begun = NINE + timedelta(minutes=10)
    assert StockBeat(simple(interval=HOUR, repeat_count=1), begun).run(NINE + 5 * HOUR) == [
        "02 10:10",
        "02 11:10",
    ]
    assert StockBeat(simple(), begun).run(NINE + 5 * HOUR) == ["02 09:11"]


def test_is_due_tells_the_seconds_to_the_next_fire() -> None:
    made = simple(NINE, HOUR, nowfun=lambda: NINE + timedelta(minutes=50), app=app)
    assert made.is_due(NINE) == (False, 600)
    assert made.remaining_estimate(NINE) == timedelta(minutes=10)
    assert made.is_due(NINE - timedelta(seconds=1)) == (True, 600)
    assert made.remaining_estimate(NINE - timedelta(seconds=1)) == timedelta(minutes=-50)


def test_a_naive_last_run_is_utc_as_for_celery() -> None:
    made = simple(NINE, HOUR, nowfun=lambda: NINE + timedelta(minutes=50), app=app)
    assert made.is_due(datetime(2026, 3, 2, 9)) == (False, 600)


def test_the_default_repeats_for_ever() -> None:
    assert first_state(NINE, NINE, HOUR).repeat_count == ENDLESS


# -- cron, daily_time_interval, calendar_interval ------------------------------------------------------------

BERLIN = ZoneInfo("Europe/Berlin")


def berlin(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN)


def fire_times(made: BaseSchedule, seen: datetime = NINE) -> FireTimes:
    trigger = trigger_for(made)
    return trigger.fire_times(trigger.first_state(to_millis(seen)))


def shown(made: BaseSchedule, seen: datetime, many: int = 5) -> list[str]:
    """The first fire times, by the clock in Berlin."""
    trigger = trigger_for(made)
    state = trigger.first_state(to_millis(seen))
    times, moment, found = trigger.fire_times(state), state.next_fire_time, []
    while moment is not None and len(found) < many:
        found.append(f"{from_millis(moment).astimezone(BERLIN):%y-%m-%d %H:%M}")
        moment = times.after(moment)
    return found


@pytest.mark.parametrize(
    "made",
    [
        cron("0 0 12 * * ?", "UTC", start=NINE + 3 * HOUR, end=NINE + 51 * HOUR),
        daily_time_interval(
            1, "hour", "12:00", "12:59", timezone="UTC", start=NINE + 3 * HOUR, end=NINE + 51 * HOUR
        ),
    ],
)
def test_start_and_end_are_included(made: BaseSchedule) -> None:
    times = fire_times(made)
    days = [to_millis(NINE + 3 * HOUR + timedelta(days=n)) for n in range(3)]
    assert [times.after(days[0] - 1), times.after(days[0]), times.after(days[1])] == days
    assert times.after(days[2]) is None
    assert times.before(days[0]) is None
    assert times.before(days[2] + 10**10) == days[2]
    assert times.count(0, days[2] + 10**10) == 3
    assert times.count(days[0], days[2]) == 3
    assert trigger_for(made).first_state(to_millis(NINE)).end_time == days[2]


def test_the_end_of_a_calendar_interval_is_excluded() -> None:
    times = fire_times(calendar_interval(1, "day", "UTC", NINE, NINE + timedelta(days=2)))
    assert times.count(0, to_millis(NINE + timedelta(days=9))) == 2
    assert times.after(to_millis(NINE + timedelta(days=1))) is None
    assert fire_times(calendar_interval(1, "day", "UTC", NINE, NINE)).count(0, 10**14) == 0


@pytest.mark.parametrize(
    "made",
    [
        cron("0 0 * * * ?", "UTC", start=NINE),
        daily_time_interval(1, "hour", "00:00", "23:59", timezone="UTC", start=NINE),
        calendar_interval(1, "hour", "UTC", start=NINE),
    ],
)
def test_a_start_counts_itself_and_one_in_the_past_is_no_misfire(made: BaseSchedule) -> None:
    trigger = trigger_for(made)
    for seen, first in [(-1, 0), (0, 0), (2, 3), (2.5, 3)]:
        found = trigger.first_state(to_millis(NINE + seen * HOUR)).next_fire_time
        assert found == to_millis(NINE + first * HOUR)


def test_without_a_start_a_calendar_interval_counts_from_first_sight() -> None:
    assert shown(calendar_interval(1, "month", BERLIN), berlin("2026-01-31 09:30"), 3) == [
        "26-02-28 09:30",
        "26-03-31 09:30",
        "26-04-30 09:30",
    ]


def test_a_month_that_lacks_the_day_does_not_move_the_later_ones() -> None:
    monthly = calendar_interval(1, "month", BERLIN, berlin("2027-12-31 09:00"))
    assert shown(monthly, NINE, 4) == ["27-12-31 09:00", "28-01-31 09:00", "28-02-29 09:00", "28-03-31 09:00"]
    yearly = calendar_interval(1, "year", BERLIN, berlin("2024-02-29 09:00"))
    assert shown(yearly, NINE, 3) == ["27-02-28 09:00", "28-02-29 09:00", "29-02-28 09:00"]
    assert shown(calendar_interval(5, "month", BERLIN, berlin("2026-03-31 10:00")), NINE, 3) == [
        "26-03-31 10:00",
        "26-08-31 10:00",
        "27-01-31 10:00",
    ]


def test_a_calendar_interval_of_months_agrees_with_brute_force() -> None:
    start = datetime(2024, 1, 31, 9, tzinfo=UTC)
    wanted = []
    for n in range(0, 300, 7):
        year, month = divmod(start.month - 1 + n, 12)
        first = start.replace(year=start.year + year, month=month + 1, day=1)
        days = (first.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
        wanted.append(to_millis(first.replace(day=min(31, days.day))))
    times = fire_times(calendar_interval(7, "month", "UTC", start), start)
    for moment, following in pairwise(wanted):
        assert times.after(moment) == times.after(following - 1) == following
        assert times.before(following) == times.before(moment + 1) == moment
        assert times.count(moment, following) == 2
    assert times.count(wanted[0], wanted[-1]) == len(wanted)
    assert times.before(wanted[0]) is None
    assert times.count(0, wanted[0] - 1) == 0


def test_days_keep_the_time_on_the_wall_and_come_back_to_it_after_a_gap() -> None:
    daily = calendar_interval(1, "day", BERLIN, berlin("2026-03-28 02:30"))
    # Of the 29th it is the end of the gap; Quartz goes on at 3:30 for ever.
    assert shown(daily, NINE, 3) == ["26-03-28 02:30", "26-03-29 03:00", "26-03-30 02:30"]
    weekly = calendar_interval(1, "week", BERLIN, berlin("2026-10-18 02:30"))
    assert shown(weekly, NINE, 3) == ["26-10-18 02:30", "26-10-25 02:30", "26-11-01 02:30"]
    gap = fire_times(daily)
    assert gap.count(to_millis(berlin("2026-03-28")), to_millis(berlin("2026-03-31"))) == 3


def test_a_day_without_the_hour_may_be_left_out() -> None:
    daily = calendar_interval(
        1, "day", BERLIN, berlin("2026-03-28 02:30"), skip_day_if_hour_does_not_exist=True
    )
    assert shown(daily, NINE, 3) == ["26-03-28 02:30", "26-03-30 02:30", "26-03-31 02:30"]
    times = fire_times(daily)
    gap = to_millis(berlin("2026-03-29 03:00"))
    assert times.count(to_millis(berlin("2026-03-28")), to_millis(berlin("2026-03-31"))) == 2
    assert times.before(gap + 1) == to_millis(berlin("2026-03-28 02:30"))
    assert times.count(gap, gap) == 0


def test_the_end_of_a_gap_itself_is_not_left_out() -> None:
    at_three = calendar_interval(
        1, "day", BERLIN, berlin("2026-03-28 03:00"), skip_day_if_hour_does_not_exist=True
    )
    assert shown(at_three, NINE, 3) == ["26-03-28 03:00", "26-03-29 03:00", "26-03-30 03:00"]
    assert fire_times(at_three).count(to_millis(berlin("2026-03-28")), to_millis(berlin("2026-03-31"))) == 3


def test_hours_are_elapsed_time() -> None:
    every_twelve = calendar_interval(12, "hour", BERLIN, berlin("2026-03-28 12:00"))
    assert shown(every_twelve, NINE, 3) == ["26-03-28 12:00", "26-03-29 00:00", "26-03-29 13:00"]


def test_a_start_in_the_second_pass_of_an_hour_is_the_first_fire_time_all_the_same() -> None:
    second_pass = berlin("2026-10-25 02:30").replace(fold=1)
    daily = calendar_interval(1, "day", BERLIN, second_pass)
    assert shown(daily, NINE, 2) == ["26-10-25 02:30", "26-10-26 02:30"]
    times = fire_times(daily)
    assert times.after(0) == to_millis(second_pass)
    assert times.before(to_millis(second_pass) + 1) == to_millis(second_pass)
    assert times.count(0, to_millis(second_pass)) == 1


def test_every_day_of_a_daily_time_interval_begins_anew() -> None:
    made = daily_time_interval(72, "minute", "08:00", "17:00", ["MON", "WED"], timezone=BERLIN)
    found = shown(made, berlin("2026-03-02 14:30"), 4)
    assert found == ["26-03-02 15:12", "26-03-02 16:24", "26-03-04 08:00", "26-03-04 09:12"]


def test_the_end_time_of_day_counts_itself() -> None:
    made = daily_time_interval(30, "minute", time(9), "10:00:00", timezone=BERLIN)
    assert shown(made, berlin("2026-03-02"), 4)[:3] == ["26-03-02 09:00", "26-03-02 09:30", "26-03-02 10:00"]
    assert shown(made, berlin("2026-03-02"), 4)[3] == "26-03-03 09:00"


def test_a_daily_time_interval_shows_what_the_clock_shows_when_that_is_changed() -> None:
    made = daily_time_interval(30, "minute", "01:30", "03:30", timezone=BERLIN)
    assert shown(made, berlin("2026-03-29"), 4) == [
        f"26-03-{t}" for t in ("29 01:30", "29 03:00", "29 03:30", "30 01:30")
    ]
    assert shown(made, berlin("2026-10-25"), 7) == [
        f"26-10-25 {t}" for t in ("01:30", "02:00", "02:30", "02:00", "02:30", "03:00", "03:30")
    ]


def test_a_single_time_a_day_is_a_fixed_one() -> None:
    made = daily_time_interval(24, "hour", "02:30", "23:59", timezone=BERLIN)
    assert shown(made, berlin("2026-03-28"), 3) == ["26-03-28 02:30", "26-03-29 03:00", "26-03-30 02:30"]
    assert shown(made, berlin("2026-10-25"), 2) == ["26-10-25 02:30", "26-10-26 02:30"]


# -- a daily count of runs -----------------------------------------------------------------------------------


def three_runs(instruction: str, up: float, until: float, threshold: float | str = 60) -> Simulation:
    """Three runs, hourly from 9:00; away from 8:00 to `up` o'clock."""
    made = daily_time_interval(1, "hour", "00:00", "23:59", repeat_count=2, timezone="UTC", start=NINE)
    midnight = NINE - 9 * HOUR
    return simulate(
        made,
        policy=MisfirePolicy(instruction, threshold=threshold),
        down_at=midnight + 8 * HOUR,
        up_at=midnight + up * HOUR,
        until=midnight + until * HOUR,
        start=midnight,
    )


def hours(simulation: Simulation) -> list[tuple[int, str]]:
    return [(f.scheduled_fire_time.hour, str(f.outcome)) for f in simulation.fires]


def test_a_daily_count_is_one_of_runs_so_what_is_missed_does_not_count() -> None:
    simulation = three_runs("do_nothing", 20.25, 24)
    assert hours(simulation) == [(21, "fired"), (22, "fired"), (23, "fired")]
    assert [(m.first.hour, m.last.hour, m.count) for m in simulation.missed] == [(9, 20, 12)]
    assert (simulation.next_fire_time, simulation.state.times_triggered) == (None, 3)


def test_one_run_for_all_is_one_of_the_daily_count() -> None:
    simulation = three_runs("fire_once_now", 20.25, 24)
    assert hours(simulation) == [(9, "recovered"), (21, "fired"), (22, "fired")]
    assert [f.merged for f in simulation.fires] == [11, 0, 0]
    assert simulation.next_fire_time is None


def test_running_every_one_ends_with_the_daily_count() -> None:
    simulation = three_runs("ignore_misfire_policy", 20.25, 24)
    assert hours(simulation) == [(9, "recovered"), (10, "recovered"), (11, "recovered")]
    assert (simulation.missed, simulation.next_fire_time) == ((), None)
    assert simulation.misfired


def test_what_is_in_time_ends_with_the_daily_count_as_well() -> None:
    simulation = three_runs("do_nothing", 20.25, 24, threshold=12 * 3600)
    assert hours(simulation) == [(9, "fired"), (10, "fired"), (11, "fired")]
    assert not simulation.misfired


def test_the_daily_count_is_kept_with_the_record() -> None:
    made = daily_time_interval(1, "hour", "00:00", "23:59", repeat_count=2, timezone="UTC")
    trigger = trigger_for(made)
    now = to_millis(NINE)
    record = first_seen("e", "t", trigger, now, from_now=True)
    runs = 0
    while record.state.next_fire_time is not None:
        now = record.state.next_fire_time
        made_plan = plan(trigger, record.state, MisfirePolicy(), now)
        runs += sum(r.count for r in made_plan.runs)
        record = loads(dumps(with_plan(record, made_plan, now)))
    assert runs == record.state.max_runs == 3


# -- excluding -----------------------------------------------------------------------------------------------

WEEKEND = calendars.weekly(["SAT", "SUN"])


@pytest.mark.parametrize(
    ("inner", "trigger_type"),
    [
        (simple(NINE), TriggerType.ONCE),
        (simple(NINE, HOUR, 7), TriggerType.FIXED),
        (simple(NINE, HOUR), TriggerType.ENDLESS),
        (schedule(60), TriggerType.ENDLESS),
        (3600, TriggerType.ENDLESS),
        (HOUR, TriggerType.ENDLESS),
        (crontab(), TriggerType.CRON),
        (cron("0 0 12 * * ?"), TriggerType.CRON),
    ],
)
def test_what_is_excluded_from_keeps_its_type(inner: Any, trigger_type: TriggerType) -> None:
    made = excluding(inner, WEEKEND)
    trigger = trigger_for(made)
    assert trigger.trigger_type is trigger_type
    assert trigger.first_state(to_millis(NINE)).trigger_type is trigger_type
    assert trigger.interval == trigger_for(made.schedule).interval
    assert trigger.fingerprint.startswith(trigger_for(made.schedule).fingerprint)
    assert "SUN,SAT" in trigger.fingerprint


def test_a_grid_counts_its_slots_also_those_that_are_excluded() -> None:
    lunch = calendars.daily("12:00", "14:30", timezone="UTC")
    times = fire_times(excluding(simple(NINE, HOUR, 7), lunch))
    found = [h for h in range(24) if times.count(*[to_millis(NINE.replace(hour=h))] * 2)]
    assert found == [9, 10, 11, 15, 16]


def test_a_recovered_run_may_start_on_an_excluded_day_and_the_next_ones_do_not() -> None:
    """Quartz: even if the calendar excludes now."""
    saturday = datetime(2026, 3, 7, 9, tzinfo=UTC)
    simulation = simulate(
        excluding(simple(NINE, 12 * HOUR), WEEKEND),
        policy=MisfirePolicy("fire_now"),
        down_at=saturday - 12 * HOUR,
        up_at=saturday,
        until=saturday + timedelta(days=3),
        start=NINE,
    )
    assert [(f"{f.fire_time:%a %H}", str(f.outcome)) for f in simulation.fires][-4:] == [
        ("Sat 09", "recovered"),
        ("Mon 09", "fired"),
        ("Mon 21", "fired"),
        ("Tue 09", "fired"),
    ]


def test_an_excluded_time_is_no_occurrence() -> None:
    simulation = simulate(
        excluding(cron("0 0 12 * * ?", "UTC"), WEEKEND),
        policy=MisfirePolicy("do_nothing"),
        down_at=NINE,
        up_at=NINE + timedelta(days=9),
        until=NINE + timedelta(days=9),
    )
    assert [(m.count, f"{m.first:%a %d}", f"{m.last:%a %d}") for m in simulation.missed] == [
        (7, "Mon 02", "Tue 10")
    ]


def test_the_zone_of_the_app_reaches_what_is_excluded_from() -> None:
    here = Celery("here", set_as_current=False)
    here.conf.timezone = "Asia/Tokyo"
    made = excluding(cron("0 0 0 * * ?"), calendars.weekly(["SUN"]))
    maybe_schedule(made, app=here)
    found = trigger_for(made).first_state(to_millis(datetime(2026, 3, 7, tzinfo=UTC))).next_fire_time
    # Sunday in Tokyo is left out.
    assert from_millis(found or 0) == datetime(2026, 3, 8, 15, tzinfo=UTC)


def test_without_a_time_zone_it_is_that_of_the_app() -> None:
    here = Celery("here", set_as_current=False)
    here.conf.timezone = "Asia/Kolkata"
    for made in (
        cron("0 0 9 * * ?", app=here),
        daily_time_interval(1, "hour", "09:00", "09:30", app=here),
        calendar_interval(1, "day", start=datetime(2026, 3, 1, 3, 30, tzinfo=UTC), app=here),
    ):
        found = trigger_for(made).first_state(to_millis(NINE)).next_fire_time
        assert from_millis(found or 0) == datetime(2026, 3, 3, 3, 30, tzinfo=UTC)
        assert "Asia/Kolkata" in trigger_for(made).fingerprint


# -- as values, and under stock beat -------------------------------------------------------------------------

END = NINE + 100 * HOUR

# Each with others that differ from it in one field.
FAMILIES: list[list[BaseSchedule]] = [
    [
        cron("0 0 12 * * ?", "UTC", NINE, END),
        cron("0 0 13 * * ?", "UTC", NINE, END),
        cron("0 0 12 * * ?", "Asia/Tokyo", NINE, END),
        cron("0 0 12 * * ?", "UTC", NINE + HOUR, END),
        cron("0 0 12 * * ?", "UTC", NINE),
    ],
    [
        daily_time_interval(2, "hour", "08:00", "17:00", ["MON"], 3, "UTC", NINE, END),
        daily_time_interval(3, "hour", "08:00", "17:00", ["MON"], 3, "UTC", NINE, END),
        daily_time_interval(2, "minute", "08:00", "17:00", ["MON"], 3, "UTC", NINE, END),
        daily_time_interval(2, "hour", "09:00", "17:00", ["MON"], 3, "UTC", NINE, END),
        daily_time_interval(2, "hour", "08:00", "18:00", ["MON"], 3, "UTC", NINE, END),
        daily_time_interval(2, "hour", "08:00", "17:00", None, 3, "UTC", NINE, END),
        daily_time_interval(2, "hour", "08:00", "17:00", ["MON"], 4, "UTC", NINE, END),
        daily_time_interval(2, "hour", "08:00", "17:00", ["MON"], 3, "Asia/Tokyo", NINE, END),
        daily_time_interval(2, "hour", "08:00", "17:00", ["MON"], 3, "UTC", NINE + HOUR, END),
        daily_time_interval(2, "hour", "08:00", "17:00", ["MON"], 3, "UTC", NINE),
    ],
    [
        calendar_interval(1, "day", "UTC", NINE, END, False),
        calendar_interval(2, "day", "UTC", NINE, END, False),
        calendar_interval(1, "week", "UTC", NINE, END, False),
        calendar_interval(1, "day", "Asia/Tokyo", NINE, END, False),
        calendar_interval(1, "day", "UTC", NINE + HOUR, END, False),
        calendar_interval(1, "day", "UTC", NINE, None, False),
        calendar_interval(1, "day", "UTC", NINE, END, True),
    ],
    [
        excluding(simple(NINE, 60), WEEKEND),
        excluding(simple(NINE, 61), WEEKEND),
        excluding(simple(NINE, 60), calendars.weekly(["SUN"])),
        excluding(simple(NINE, 60), calendars.weekly(["SAT", "SUN"], timezone="Asia/Tokyo")),
        excluding(crontab(minute=0, app=app), WEEKEND),
    ],
]
ALL = [made for family in FAMILIES for made in family]


def test_every_field_of_every_kind_counts_in_comparison_and_fingerprint() -> None:
    for i, one in enumerate(ALL):
        assert [other == one for other in ALL] == [j == i for j in range(len(ALL))]
    fingerprints = [trigger_for(made).fingerprint for made in ALL]
    assert len(set(fingerprints)) == len(fingerprints)


@pytest.mark.parametrize("made", ALL, ids=repr)
def test_every_kind_survives_pickling_and_copying(made: BaseSchedule) -> None:
    for copied in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made)):
        assert copied == made
        assert hash(copied) == hash(made)
        assert repr(copied) == repr(made)
        assert trigger_for(copied).fingerprint == trigger_for(made).fingerprint


def test_how_it_is_written_does_not_count() -> None:
    assert daily_time_interval(2, "hour", "08:00", time(17), ["tue", "MON"]) == daily_time_interval(
        2, "hour", time(8), "17:00:00", ("MON", "TUE", "MON")
    )
    assert trigger_for(cron("0 0 12 ? * 2-6", "UTC")).fingerprint == (
        trigger_for(cron("0 0 12 ? * mon-fri", "UTC")).fingerprint
    )


def test_the_reprs_tell_the_fields() -> None:
    assert (
        repr(cron("0 0 12 * * ?")) == "<cron: expression 0 0 12 * * ?, timezone None, start None, end None>"
    )
    assert repr(excluding(3600, WEEKEND)) == (
        "<excluding: schedule <freq: 1.00 hour>, calendar weekly(('SUN', 'SAT'))>"
    )


@pytest.mark.parametrize(
    ("made", "runs"),
    [
        (cron("0 0 10,11 * * ?", "UTC"), ["02 10:00", "02 11:00", "03 10:00"]),
        (
            daily_time_interval(90, "minute", "09:00", "12:00", timezone="UTC"),
            ["02 10:30", "02 12:00", "03 09:00", "03 10:30"],
        ),
        (
            daily_time_interval(90, "minute", "09:00", "12:00", repeat_count=1, timezone="UTC"),
            ["02 10:30", "02 12:00"],
        ),
        (calendar_interval(1, "day", "UTC", NINE), ["03 09:00"]),
        (calendar_interval(5, "hour", "UTC"), ["02 14:10", "02 19:10", "03 00:10", "03 05:10", "03 10:10"]),
        (
            excluding(cron("0 0 * * * ?", "UTC"), calendars.daily("10:30", "23:59")),
            ["02 10:00", *[f"03 {h:02}:00" for h in range(11)]],
        ),
    ],
)
def test_under_stock_beat_every_kind_fires_at_its_times(made: BaseSchedule, runs: list[str]) -> None:
    assert StockBeat(made, NINE + timedelta(minutes=10)).run(NINE + timedelta(hours=25, minutes=50)) == runs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: cron("0 0 12 * * ?", "Mars/Olympus"),
            "timezone: expected the name of a time zone or a tzinfo, got 'Mars/Ol",
        ),
        (lambda: cron("0 0 12 * * ?", start=datetime(2026, 1, 1)), "start: needs a time zone"),
        (lambda: cron("0 0 12 * * ?", end="never"), "end: expected an aware datetime, got 'never'"),
        (lambda: cron("0 0 12 * * ?", start=END, end=NINE), "end: .* is before start"),
        (
            lambda: daily_time_interval(0, "hour", "08:00", "17:00"),
            "interval: expected a whole number from 1",
        ),
        (lambda: daily_time_interval(1.5, "hour", "08:00", "17:00"), "interval: expected a whole .*got 1.5"),
        (lambda: daily_time_interval(True, "hour", "08:00", "17:00"), "interval: expected .*got True"),
        (
            lambda: daily_time_interval(25, "hour", "08:00", "17:00"),
            "interval: expected a day at most, got 25 hours",
        ),
        (
            lambda: daily_time_interval(1, "day", "08:00", "17:00"),
            "unit: expected second, minute, hour, got 'day'",
        ),
        (
            lambda: daily_time_interval(1, ["hour"], "08:00", "17:00"),
            "unit: expected second, minute, hour, got",
        ),
        (lambda: daily_time_interval(1, "hour", "8", "17:00"), "start_time_of_day: expected 'HH:MM'"),
        (lambda: daily_time_interval(1, "hour", "08:00", "24:00"), "end_time_of_day: expected 'HH:MM'"),
        (lambda: daily_time_interval(1, "hour", "17:00", "08:00"), "end_time_of_day: 08:00:00 is before"),
        (
            lambda: daily_time_interval(1, "hour", "08:00", "17:00", []),
            "days_of_week: expected a day at least",
        ),
        (
            lambda: daily_time_interval(1, "hour", "08:00", "17:00", ["Monday"]),
            "days_of_week: expected SUN, MON",
        ),
        (lambda: daily_time_interval(1, "hour", "08:00", "17:00", "MON"), "days_of_week: expected a list"),
        (
            lambda: daily_time_interval(1, "hour", "08:00", "17:00", None, -2),
            "repeat_count: expected a whole",
        ),
        (lambda: calendar_interval(1, "days"), "unit: expected second, minute, hour, day, week, month, year"),
        (lambda: calendar_interval(-1, "day"), "interval: expected a whole number from 1"),
        (lambda: calendar_interval(10**10, "year"), "interval: expected a whole number from 1 to 1000000000"),
    ],
)
def test_what_no_kind_can_make_sense_of_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_interval_beyond_the_calendar_fires_once() -> None:
    far = calendar_interval(10**9, "year", "UTC", NINE)
    assert fire_times(far).after(to_millis(NINE)) is None
    assert fire_times(far).count(0, to_millis(NINE) + 10**12) == 1
