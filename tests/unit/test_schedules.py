from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, maybe_schedule, schedule

from celery_misfire.fire_times import trigger_for
from celery_misfire.misfire import ENDLESS, TriggerState, TriggerType, to_millis
from celery_misfire.schedules import simple

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

    def __init__(self, made: simple, begun_at: datetime) -> None:
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
