"""Fire times against independent oracles: brute force over every minute, cronsim, and Celery itself."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import celery
import pytest
from celery import Celery
from celery.schedules import BaseSchedule, crontab, schedstate, schedule, solar
from cronsim import CronSim
from dateutil import tz as dateutil_tz
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from celery_misfire.misfire import ENDLESS, FireTimes, TriggerState, TriggerType, from_millis, to_millis
from celery_misfire.triggers import zones
from celery_misfire.triggers.asked import AskedTimes, AskedTrigger
from celery_misfire.triggers.kinds import CronTrigger, GridTrigger, trigger_for
from celery_misfire.triggers.wall_times import ClockTimes, Days, Grid, WallTimes, day_bits, weekday_bits
from celery_misfire.triggers.zones import EveryPass, FirstPass, Zone, zone_for

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

ZONES = [
    "America/New_York",
    "Europe/Berlin",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
    "Antarctica/Troll",
    "Europe/Dublin",
    "Africa/Casablanca",
    "America/Sao_Paulo",
    "America/Havana",
    "Asia/Beirut",
    "Asia/Kolkata",
    "Pacific/Apia",
]

app = Celery("fire-times", set_as_current=False)


def at(text: str, zone: str = "UTC", fold: int = 0) -> int:
    return to_millis(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold))


def cron(expression: str, zone: str = "UTC") -> crontab:
    minute, hour, day_of_month, month_of_year, day_of_week = expression.split()
    made = crontab(minute, hour, day_of_week, day_of_month, month_of_year, app=app)
    made.tz = ZoneInfo(zone)
    return made


def wall_times(
    minutes: Iterable[int],
    hours: Iterable[int],
    days: Iterable[int] = range(1, 32),
    months: Iterable[int] = range(1, 13),
    weekdays: Iterable[int] = range(7),
) -> WallTimes:
    on_days, on_weekdays = day_bits(days), weekday_bits(weekdays)
    picked = Days(lambda month: on_days & on_weekdays >> month.weekday, months)
    return WallTimes(picked, ClockTimes(tuple(hours), tuple(minutes), (0,)))


def times_of(expression: str, zone: str = "UTC") -> FireTimes:
    return trigger_for(cron(expression, zone)).fire_times(TriggerState(None, 0))


def forward(times: FireTimes, first: int, last: int) -> list[int]:
    found, moment = [], first - 1
    while (following := times.after(moment)) is not None and following <= last:
        assert following > moment
        found.append(following)
        moment = following
    return found


def backward(times: FireTimes, first: int, last: int) -> list[int]:
    found, moment = [], last + 1
    while (previous := times.before(moment)) is not None and previous >= first:
        assert previous < moment
        found.append(previous)
        moment = previous
    return found[::-1]


def local(moments: list[int], zone: str) -> list[str]:
    return [from_millis(m).astimezone(ZoneInfo(zone)).isoformat(sep=" ")[:16] for m in moments]


def assert_agree(times: FireTimes, expected: list[int], first: int, last: int, what: str = "") -> None:
    assert forward(times, first, last) == expected, what
    assert backward(times, first, last) == expected, what
    assert times.count(first, last) == len(expected), what
    some = random.Random(what)
    for _ in range(3):
        low, high = sorted(some.choices(range(first, last + 1), k=2))
        assert times.count(low, high) == sum(low <= m <= high for m in expected), (what, low, high)


# The oracle: look at the clock on the wall in every single minute.


@lru_cache(maxsize=64)
def transitions(zone: str, first_year: int, last_year: int) -> list[int]:
    """Changes of the clocks, as a moment at most six hours after each."""
    moment, end = at(f"{first_year}-01-01"), at(f"{last_year + 1}-01-01")
    found, offset = [], offset_at(moment, zone)
    while moment < end:
        moment += 6 * HOUR
        if offset_at(moment, zone) != offset:
            found.append(moment)
            offset = offset_at(moment, zone)
    return found


def offset_at(moment: int, zone: str) -> int:
    return round(from_millis(moment).astimezone(ZoneInfo(zone)).utcoffset().total_seconds()) * SECOND


@lru_cache(maxsize=256)
def clock(zone: str, first: int, last: int) -> list[tuple[int, datetime]]:
    """Every minute as (moment, wall time)."""
    minutes = range(first - first % MINUTE, last, MINUTE)
    return [(m, from_millis(m).astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)) for m in minutes]


def minute_by_minute(expression: str, zone: str, first: int, last: int) -> list[int]:
    """What Debian's cron would run from `first` to `last`; a wildcard is a field that begins with a star."""
    parsed = cron(expression)

    def matches(wall: datetime) -> bool:
        return (
            wall.minute in parsed.minute
            and wall.hour in parsed.hour
            and wall.day in parsed.day_of_month
            and wall.month in parsed.month_of_year
            and wall.isoweekday() % 7 in parsed.day_of_week
        )

    # From some time before, to know which wall times have been shown already.
    shown = clock(zone, first - 6 * HOUR, last + 1)
    minute, hour, *_ = expression.split()
    if minute.startswith("*") or hour.startswith("*"):
        return [m for m, wall in shown if m >= first and matches(wall)]
    found, highest = [], shown[0][1]
    for moment, wall in shown:
        due = False
        while highest < wall:
            highest += timedelta(minutes=1)
            due = due or matches(highest)
        if due and moment >= first:
            found.append(moment)
    return found


def by_cronsim(expression: str, zone: str, first: int, last: int) -> list[int]:
    found: list[int] = []
    for when in CronSim(expression, from_millis(first - 1).astimezone(ZoneInfo(zone))):
        if (moment := to_millis(when)) > last:
            return found
        # It names each of several fixed times in one gap.
        if moment not in found[-1:]:
            found.append(moment)
    return found


EXPRESSIONS = [
    "0 * * * *",
    "*/20 * * * *",
    "7,37 * * * *",
    "30 */2 * * *",
    "*/30 1-3 * * *",
    "15,45 1,2,3 * * *",
    "0 0 * * *",
    "30 0 * * *",
    "0 2 * * *",
    "30 2 * * 0",
    "59 23 * * *",
]


@pytest.mark.parametrize("zone", ZONES)
def test_every_change_of_the_clocks_agrees_with_brute_force_and_cronsim(zone: str) -> None:
    changes = transitions(zone, 2026, 2028) or [at("2027-03-28")]
    for change in changes:
        first, last = change - 30 * HOUR, change + 26 * HOUR
        for expression in EXPRESSIONS:
            expected = minute_by_minute(expression, zone, first, last)
            what = f"{expression} in {zone} around {from_millis(change)}"
            assert_agree(times_of(expression, zone), expected, first, last, what)
            assert by_cronsim(expression, zone, first, last) == expected, what


@pytest.mark.parametrize("zone", ZONES)
def test_the_years_2026_to_2028_agree_with_cronsim_from_end_to_end(zone: str) -> None:
    first, last = at("2026-01-01"), at("2029-01-01")
    for expression in ["30 2 * * *", "0 */6 * * 1-5", "15 1 13 * *"]:
        expected = by_cronsim(expression, zone, first, last)
        assert_agree(times_of(expression, zone), expected, first, last, f"{expression} in {zone}")


@pytest.mark.parametrize(
    ("zone", "year"),
    [
        ("Pacific/Apia", 2011),  # a whole day left out
        ("America/Sao_Paulo", 2018),  # midnight left out
        ("Asia/Beirut", 2023),
        ("Asia/Gaza", 2011),  # half past midnight
        ("Africa/Cairo", 2014),  # four changes in one year
        ("America/Caracas", 2016),  # half an hour, for good
        ("Asia/Pyongyang", 2015),
        ("America/Recife", 2000),  # two changes within a week
    ],
)
def test_odd_changes_of_the_past_agree_with_brute_force(zone: str, year: int) -> None:
    changes = transitions(zone, year, year)
    assert changes
    for change in changes:
        first, last = change - 40 * HOUR, change + 40 * HOUR
        for expression in EXPRESSIONS:
            expected = minute_by_minute(expression, zone, first, last)
            assert_agree(times_of(expression, zone), expected, first, last, f"{expression} {zone}")


def test_an_offset_with_seconds_moves_the_fire_times_by_seconds() -> None:
    zone, first, last = "Africa/Monrovia", at("1972-01-06 22:00"), at("1972-01-07 03:00")
    hourly = [at(f"1972-01-{m}") for m in ("06 22:44:30", "06 23:44:30", "07 01:00", "07 02:00", "07 03:00")]
    assert_agree(times_of("0 * * * *", zone), hourly, first, last)
    # Midnight, at 00:44:30, is when the clocks go forward by those seconds and minutes.
    assert_agree(times_of("0 0 * * *", zone), [at("1972-01-07 00:44:30")], first, last)


# The fields of a crontab have these ranges, in their order.
FIELDS = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]


@st.composite
def expressions(draw: st.DrawFn) -> str:
    fields = []
    for low, high in FIELDS:
        some = st.lists(st.integers(low, high), min_size=1, max_size=4).map(lambda v: ",".join(map(str, v)))
        steps = st.integers(2, 12).map("*/{}".format)
        fields.append(draw(st.one_of(st.just("*"), st.just("*"), some, steps)))
    # Both day fields and the month at random leave hardly a fire time: let two of the three be free.
    for free in draw(st.permutations([2, 3, 4]))[:2]:
        fields[free] = "*"
    return " ".join(fields)


@settings(max_examples=200, deadline=None)
@given(expression=expressions(), zone=st.sampled_from([*ZONES, "Asia/Gaza"]), seed=st.integers(0, 10_000))
def test_any_crontab_agrees_with_brute_force_around_any_change(expression: str, zone: str, seed: int) -> None:
    parsed, (minute, hour, *_) = cron(expression), expression.split()
    # The oracle knows a wildcard by its star alone.
    assume("*" in minute + hour or (len(parsed.minute) < 60 and len(parsed.hour) < 24))
    changes = transitions(zone, 2016, 2022) or [at("2027-03-28")]
    change = changes[seed % min(12, len(changes))]
    first, last = change - 30 * HOUR, change + 26 * HOUR
    expected = minute_by_minute(expression, zone, first, last)
    assert_agree(times_of(expression, zone), expected, first, last, f"{expression} {zone} {seed}")


@settings(max_examples=100, deadline=None)
@given(expression=expressions(), zone=st.sampled_from(ZONES), start=st.integers(0, at("2040-01-01")))
def test_before_is_the_mirror_of_after(expression: str, zone: str, start: int) -> None:
    times = times_of(expression, zone)
    following = times.after(start)
    assert following is not None
    assert times.before(following + 1) == following
    assert times.after(following - 1) == following
    previous = times.before(following)
    assert previous is not None
    assert previous <= start
    assert times.after(previous) == following
    assert times.count(previous, following) == 2


@settings(max_examples=60, deadline=None)
@given(expression=expressions(), start=st.integers(at("2026-01-01"), at("2030-01-01")))
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata"])
def test_away_from_changes_crontab_agrees_with_celery(zone: str, expression: str, start: int) -> None:
    times, celery = times_of(expression, zone), AskedTimes(cron(expression, zone))
    moment: int | None = start
    for _ in range(5):
        following = times.after(moment)
        assert following == celery.after(moment)
        moment = following


# Debian cron's rules, example by example.


def test_a_fixed_time_in_the_gap_runs_once_at_its_end() -> None:
    first, last = at("2026-03-28", "Europe/Berlin"), at("2026-03-30", "Europe/Berlin")
    runs = forward(times_of("30 2 * * *", "Europe/Berlin"), first, last)
    assert local(runs, "Europe/Berlin") == ["2026-03-28 02:30", "2026-03-29 03:00"]


def test_several_fixed_times_in_one_gap_run_once_together_with_one_at_its_end() -> None:
    times = times_of("0,20,40 2,3 * * *", "Europe/Berlin")
    first, last = at("2026-03-29", "Europe/Berlin"), at("2026-03-30", "Europe/Berlin")
    runs = forward(times, first, last)
    assert local(runs, "Europe/Berlin") == ["2026-03-29 03:00", "2026-03-29 03:20", "2026-03-29 03:40"]
    assert times.count(first, last) == 3
    assert times.count(runs[0], runs[0]) == 1


def test_a_fixed_time_in_the_overlap_runs_once_in_the_first_pass() -> None:
    times = times_of("30 1 * * *", "America/New_York")
    once = at("2026-11-01 01:30", "America/New_York")
    assert forward(times, at("2026-11-01"), at("2026-11-02")) == [once]
    second_pass = at("2026-11-01 01:10", "America/New_York", fold=1)
    assert times.after(second_pass) == at("2026-11-02 01:30", "America/New_York")
    assert times.before(second_pass) == once


def test_a_wildcard_follows_elapsed_time_through_both_passes() -> None:
    runs = forward(
        times_of("*/30 * * * *", "America/New_York"), at("2026-11-01 05:00"), at("2026-11-01 07:00")
    )
    assert runs == [at("2026-11-01 05:00") + n * 30 * MINUTE for n in range(5)]


def test_a_wildcard_inside_the_gap_does_not_run() -> None:
    times = times_of("*/30 2 * * *", "Europe/Berlin")
    assert times.count(at("2026-03-29", "Europe/Berlin"), at("2026-03-30", "Europe/Berlin")) == 0


def test_a_complete_field_is_a_wildcard_however_it_is_written() -> None:
    by_range, by_star = times_of("0 0-23 * * *", "Europe/Berlin"), times_of("0 * * * *", "Europe/Berlin")
    assert isinstance(by_range, EveryPass)
    first, last = at("2026-10-25", "Europe/Berlin"), at("2026-10-26", "Europe/Berlin") - 1
    assert forward(by_range, first, last) == forward(by_star, first, last)
    assert by_range.count(first, last) == 25


def test_fixed_times_of_a_day_that_is_left_out_run_once_when_the_next_begins() -> None:
    times = times_of("0 9,15 30 12 *", "Pacific/Apia")
    runs = forward(times, at("2011-12-28"), at("2012-01-02"))
    assert local(runs, "Pacific/Apia") == ["2011-12-31 00:00"]
    assert times_of("0 * 30 12 *", "Pacific/Apia").count(at("2011-12-28"), at("2012-01-02")) == 0


def test_both_day_fields_must_match() -> None:
    runs = forward(times_of("0 12 13 * 5"), at("2026-01-01"), at("2027-01-01"))
    assert local(runs, "UTC") == ["2026-02-13 12:00", "2026-03-13 12:00", "2026-11-13 12:00"]


def test_days_that_almost_never_come_are_found_within_fifty_years() -> None:
    times = times_of("0 0 29 2 1", "Europe/Berlin")
    assert local([times.after(at("2026-01-01")) or 0], "Europe/Berlin") == ["2044-02-29 00:00"]
    assert local([times.before(at("2026-01-01")) or 0], "Europe/Berlin") == ["2016-02-29 00:00"]
    # Across 2100, which is no leap year, it takes forty years.
    assert local([times.after(at("2073-01-01")) or 0], "Europe/Berlin") == ["2112-02-29 00:00"]


def test_days_that_never_come_are_none_in_both_directions() -> None:
    never = wall_times([0], [0], [31], [2])
    for times in (
        never,
        FirstPass(never, zone_for("Europe/Berlin")),
        EveryPass(never, zone_for("Europe/Berlin")),
    ):
        assert times.after(at("2026-01-01")) is None
        assert times.before(at("2026-01-01")) is None
        assert times.count(at("1970-01-01"), at("2070-01-01")) == 0


def test_a_wildcard_that_only_ever_falls_into_the_gap_is_searched_no_further_than_the_horizon() -> None:
    # The last Sunday of March, from 25 to 31, is when the hour is missing.
    times = times_of("*/5 2 25-31 3 0", "Europe/Berlin")
    assert times.after(at("2026-01-01")) is None
    assert times.count(at("2026-01-01"), at("2036-01-01")) == 0


# Zones of every make.


class PytzLike(tzinfo):
    """What matters of pytz: as it stands on a datetime it is one fixed, old offset."""

    zone = "Europe/Berlin"

    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(minutes=53)

    dst = utcoffset

    def localize(self, when: datetime) -> datetime:
        raise AssertionError("not needed")


@pytest.mark.parametrize(
    "zone", ["Europe/Berlin", ZoneInfo("Europe/Berlin"), dateutil_tz.gettz("Europe/Berlin"), PytzLike()]
)
def test_the_zone_may_be_a_name_or_a_tzinfo_of_any_make(zone: Any) -> None:
    times = CronTrigger(FirstPass(wall_times([30], [2], [29], [3]), zone_for(zone)), "").times
    assert times.after(at("2026-01-01")) == at("2026-03-29 03:00", "Europe/Berlin")
    every = EveryPass(wall_times([0], [2], months=[10]), zone_for(zone))
    assert every.count(at("2026-10-24 12:00"), at("2026-10-25 12:00")) == 2


def test_fixed_offsets_and_none_are_zones_too() -> None:
    noon = wall_times([0], [12])
    for tz, hour in ((timezone(timedelta(hours=-3)), 15), (UTC, 12), (None, 12)):
        assert FirstPass(noon, zone_for(tz)).after(at("2026-06-01")) == at(f"2026-06-01 {hour}:00")


def test_celerys_local_timezone_is_the_zone_of_the_operating_system() -> None:
    code = (
        "from celery.utils.time import LocalTimezone\n"
        "from celery_misfire.triggers.zones import zone_for\n"
        "zone = zone_for(LocalTimezone())\n"
        "year = zone.between(1767225600000, 1798761599000)\n"
        "print([(s.start // 1000, s.offset // 1000) for s in year])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TZ": "America/New_York"},
        capture_output=True,
        text=True,
        check=True,
    )
    change, back = at("2026-03-08 07:00") // SECOND, at("2026-11-01 06:00") // SECOND
    assert f"({change}, -14400)" in done.stdout
    assert f"({back}, -18000)" in done.stdout


def test_a_zone_is_known_once_for_all_its_schedules() -> None:
    assert zone_for(ZoneInfo("Europe/Berlin")) is zone_for("Europe/Berlin")
    assert zone_for(ZoneInfo("Europe/Berlin")) is not zone_for("Europe/Paris")


class PutBackOnce(Zone):
    """An hour ahead of UTC until `change`, and then no more."""

    def __init__(self, change: int) -> None:
        super().__init__(UTC)
        self.change = change

    def offset(self, moment: int) -> int:
        return HOUR if moment < self.change else 0


@pytest.mark.parametrize("minutes", range(-75, 90, 15))
def test_the_pieces_in_which_a_zone_is_remembered_leave_no_seam(minutes: int) -> None:
    seam = 50 * zones._BLOCK
    change = seam + minutes * MINUTE
    quarterly = wall_times([0, 15, 30, 45], range(24))
    first, last = seam - 3 * HOUR, seam + 3 * HOUR
    quarters = range(first, last + 1, 15 * MINUTE)
    # For an hour after the change the wall shows what it has shown before.
    once = [m for m in quarters if m < change or m >= change + HOUR]
    assert_agree(FirstPass(quarterly, PutBackOnce(change)), once, first, last, str(minutes))
    for moment in range(first, last - 2 * HOUR, 5 * MINUTE):
        following = FirstPass(quarterly, PutBackOnce(change)).after(moment)
        assert following == next(m for m in once if m > moment)
    assert_agree(EveryPass(quarterly, PutBackOnce(change)), list(quarters), first, last, str(minutes))


# Work is counted, not timed.


class CountedZone(Zone):
    probes = 0

    def offset(self, moment: int) -> int:
        self.probes += 1
        return super().offset(moment)


class CountedTimes:
    def __init__(self, times: FireTimes) -> None:
        self.times, self.calls = times, 0

    def after(self, moment: int) -> int | None:
        self.calls += 1
        return self.times.after(moment)

    def before(self, moment: int) -> int | None:
        self.calls += 1
        return self.times.before(moment)

    def count(self, first: int, last: int) -> int:
        self.calls += 1
        return self.times.count(first, last)


def test_a_year_of_a_minutely_crontab_is_counted_without_walking() -> None:
    zone = CountedZone(ZoneInfo("Europe/Berlin"))
    wall = CountedTimes(wall_times(range(60), range(24)))
    times = EveryPass(wall, zone)
    assert times.count(at("2026-01-01"), at("2027-01-01") - 1) == 365 * 24 * 60
    assert wall.calls <= 6
    assert zone.probes < 1_000
    probed = zone.probes
    assert times.count(at("2026-02-01"), at("2026-12-01") - 1) == 303 * 24 * 60
    assert times.after(at("2026-06-01")) == at("2026-06-01 00:01")
    assert zone.probes == probed


def test_a_rare_day_is_looked_up_in_a_few_steps() -> None:
    zone = CountedZone(ZoneInfo("Europe/Berlin"))
    wall = CountedTimes(wall_times([0, 30], range(24), [29], [2], [1]))
    assert EveryPass(wall, zone).after(at("2026-01-01")) == at("2044-02-29 00:00", "Europe/Berlin")
    assert wall.calls <= 8
    assert zone.probes < 1_000


# Grids.


@given(
    start=st.integers(-50, 50),
    interval=st.integers(1, 20),
    repeat_count=st.integers(-1, 6),
    end=st.none() | st.integers(0, 150),
    moment=st.integers(-60, 200),
    last=st.integers(-60, 200),
)
def test_a_grid_agrees_with_brute_force(
    start: int, interval: int, repeat_count: int, end: int | None, moment: int, last: int
) -> None:
    slots = [start + k * interval for k in range(400)]
    if repeat_count != ENDLESS:
        slots = slots[: repeat_count + 1]
    if end is not None:
        slots = [slot for slot in slots if slot < end] or [start] * (start == end)
    grid = Grid(start, interval, repeat_count, end)
    assert grid.after(moment) == next((slot for slot in slots if slot > moment), None)
    assert grid.before(moment) == next((slot for slot in reversed(slots) if slot < moment), None)
    assert grid.count(moment, last) == sum(moment <= slot <= last for slot in slots)


def test_a_grid_ends_with_the_calendar() -> None:
    assert Grid(at("2026-01-01"), 10_000 * 366 * DAY).after(at("2026-01-01")) is None


def test_thirty_days_of_seconds_are_counted_at_once() -> None:
    trigger = trigger_for(1)
    times = trigger.fire_times(trigger.first_state(0))
    assert times.count(1_000, 30 * DAY) == 2_592_000
    assert times.before(30 * DAY + 1) == 30 * DAY


@pytest.mark.parametrize(
    "every", [900, 900.0, timedelta(minutes=15), schedule(900), schedule(timedelta(minutes=15))]
)
def test_an_interval_first_fires_one_period_after_first_sight(every: Any) -> None:
    trigger = trigger_for(every)
    assert trigger.trigger_type is TriggerType.ENDLESS
    assert trigger.interval == 900_000
    state = trigger.first_state(at("2026-03-01 10:07"))
    assert state == TriggerState(at("2026-03-01 10:22"), at("2026-03-01 10:22"), repeat_count=ENDLESS)
    assert trigger.fire_times(state).after(at("2026-03-01 12:00")) == at("2026-03-01 12:07")
    assert trigger.fingerprint == trigger_for(900).fingerprint


def test_a_grid_follows_the_state_that_was_planned() -> None:
    trigger = trigger_for(60)
    state = replace(trigger.first_state(0), start_time=at("2026-01-01"), repeat_count=2)
    assert forward(trigger.fire_times(state), 0, at("2027-01-01")) == [
        at("2026-01-01") + n * MINUTE for n in range(3)
    ]


# Relative intervals.


def relative(every: float | timedelta, zone: str) -> schedule:
    made = schedule(every, relative=True, app=app)
    made.tz = ZoneInfo(zone)
    return made


@given(
    every=st.sampled_from(
        [1, 5, 30, 60, 90, 300, 3600, 5400, 4 * 3600, 86400, 36 * 3600, 3 * 86400, 7 * 86400]
    ),
    zone=st.sampled_from(["UTC", "Asia/Kolkata", "Asia/Tokyo"]),
    seen=st.integers(at("2026-01-01"), at("2027-01-01")),
)
def test_a_relative_interval_first_fires_where_celery_rounds_it_to(every: int, zone: str, seen: int) -> None:
    celery = relative(every, zone)
    now = from_millis(seen).astimezone(ZoneInfo(zone))
    celery.nowfun = lambda: now
    assert trigger_for(celery).first_state(seen).next_fire_time == to_millis(
        now + celery.remaining_estimate(now)
    )


@pytest.mark.parametrize(
    ("every", "seen", "first"),
    [
        # At 2:00 the clock goes back to 1:30.
        (3600, "2026-04-04T14:15", "2026-04-04T15:30"),
        (3600, "2026-04-04T14:45", "2026-04-04T15:30"),
        (1800, "2026-04-04T14:45", "2026-04-04T15:15"),
        (7200, "2026-04-04T14:10", "2026-04-04T15:30"),
        # At 2:00 it goes on to 2:30.
        (3600, "2026-10-03T15:10", "2026-10-03T16:00"),
        (3600, "2026-10-03T14:40", "2026-10-03T15:30"),
        (5400, "2026-10-03T14:10", "2026-10-03T15:30"),
        (4 * 3600, "2026-10-03T11:30", "2026-10-03T15:30"),
    ],
)
def test_a_relative_interval_begins_on_the_hour_of_a_clock_that_changes_by_half_an_hour(
    every: int, seen: str, first: str
) -> None:
    trigger = trigger_for(relative(every, "Australia/Lord_Howe"))
    found = trigger.first_state(to_millis(datetime.fromisoformat(f"{seen}+00:00"))).next_fire_time
    assert found is not None
    assert from_millis(found).strftime("%Y-%m-%dT%H:%M") == first


@pytest.mark.skipif(celery.VERSION < (5, 7), reason="Celery's own errs around changes of the clock")
@settings(max_examples=300)
@given(
    every=st.sampled_from([1, 60, 90, 1800, 3600, 5400, 4 * 3600, 23 * 3600]),
    zone_and_day=st.sampled_from(
        [
            ("Australia/Lord_Howe", "2026-04-04"),
            ("Australia/Lord_Howe", "2026-10-03"),
            ("Europe/Berlin", "2026-03-29"),
            ("Europe/Berlin", "2026-10-25"),
        ]
    ),
    seen=st.integers(0, 24 * 3600 - 1),
)
def test_around_a_change_of_the_clocks_a_relative_interval_begins_where_celery_begins_it(
    every: int, zone_and_day: tuple[str, str], seen: int
) -> None:
    zone, day = zone_and_day
    moment = at(day) + seen * 1000
    now = from_millis(moment).astimezone(ZoneInfo(zone))
    theirs = relative(every, zone)
    theirs.nowfun = lambda: now
    expected = moment + theirs.remaining_estimate(now) // timedelta(milliseconds=1)
    assert trigger_for(theirs).first_state(moment).next_fire_time == expected


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", "Asia/Kolkata"])
@pytest.mark.parametrize("kind", ["crontab", "a subclass", "relative"])
def test_the_zone_of_nowfun_is_the_schedules_where_it_is_in_celery(kind: str, zone: str) -> None:
    """Up to 5.6, Celery's crontab reads its fields in the zone of what nowfun returns."""
    now = datetime(2026, 1, 15, 12, 34, tzinfo=UTC).astimezone(ZoneInfo(zone))
    if kind == "relative":
        made: Any = schedule(timedelta(days=1), relative=True, nowfun=lambda: now, app=app)
    else:
        cls = crontab if kind == "crontab" else type("Own", (crontab,), {})
        made = cls(minute=30, hour=9, nowfun=lambda: now, app=app)
    expected = to_millis(now + made.remaining_estimate(made.now()))
    trigger = trigger_for(made)
    state = trigger.first_state(to_millis(now))
    assert state.next_fire_time == expected
    assert trigger.fire_times(state).after(expected) == expected + 86_400_000


@pytest.mark.parametrize("nowfun", [lambda: 1 / 0, lambda: None, lambda: datetime(2026, 1, 1)])
def test_a_nowfun_that_tells_no_zone_leaves_the_one_of_the_app(nowfun: Any) -> None:
    made = crontab(hour=9, minute=0, nowfun=nowfun, app=app)
    assert trigger_for(made).fingerprint == trigger_for(crontab(hour=9, minute=0, app=app)).fingerprint


def test_a_relative_interval_of_days_stays_on_local_midnight() -> None:
    trigger = trigger_for(relative(timedelta(days=2), "Europe/Berlin"))
    state = trigger.first_state(at("2026-03-26 10:17", "Europe/Berlin"))
    times = trigger.fire_times(state)
    runs = forward(times, state.next_fire_time or 0, at("2026-04-02", "Europe/Berlin"))
    assert local(runs, "Europe/Berlin") == [f"2026-{day} 00:00" for day in ("03-28", "03-30", "04-01")]
    assert times.count(runs[0], at("2028-03-28", "Europe/Berlin")) == 366
    assert backward(times, 0, runs[-1]) == runs


def test_a_relative_day_without_midnight_begins_at_the_end_of_the_gap_and_returns_to_midnight() -> None:
    trigger = trigger_for(relative(timedelta(days=1), "America/Sao_Paulo"))
    state = trigger.first_state(at("2018-11-03 15:00", "America/Sao_Paulo"))
    runs = forward(trigger.fire_times(state), state.start_time, state.start_time + DAY)
    assert local(runs, "America/Sao_Paulo") == ["2018-11-04 01:00", "2018-11-05 00:00"]


def test_a_relative_interval_of_hours_is_elapsed_time_after_its_first_fire() -> None:
    trigger = trigger_for(relative(timedelta(hours=6), "Europe/Berlin"))
    state = trigger.first_state(at("2026-03-28 14:40", "Europe/Berlin"))
    runs = forward(trigger.fire_times(state), state.start_time, state.start_time + DAY)
    assert local(runs, "Europe/Berlin")[:3] == ["2026-03-28 20:00", "2026-03-29 03:00", "2026-03-29 09:00"]
    assert trigger.fingerprint != trigger_for(relative(timedelta(hours=6), "UTC")).fingerprint


# Which trigger for which schedule.


class Plain(crontab):
    """A subclass that adds nothing to the arithmetic."""

    label = "nightly"


def test_a_subclass_that_leaves_the_arithmetic_alone_is_computed() -> None:
    trigger = trigger_for(Plain(minute="0", app=app))
    assert isinstance(trigger, CronTrigger)
    assert trigger.fingerprint == trigger_for(crontab(minute=[0], app=app)).fingerprint


def test_the_fingerprint_of_a_crontab_is_its_meaning() -> None:
    same = {
        trigger_for(cron(e, "Europe/Berlin")).fingerprint for e in ("*/15 * * * *", "0,15,30,45 */1 * * *")
    }
    assert same == {"crontab 0,15,30,45 * * * * every pass zone=Europe/Berlin"}
    # In steps it follows elapsed time, as a list it names fixed times.
    others = {trigger_for(cron(e)).fingerprint for e in ("0 */12 * * *", "0 0,12 * * *", "0 0,12 * * 1")}
    assert len(others) == 3
    assert (
        trigger_for(cron("0 5 * * *", "Asia/Tokyo")).fingerprint != trigger_for(cron("0 5 * * *")).fingerprint
    )


def test_a_crontab_takes_the_zone_of_its_app() -> None:
    tokyo = Celery("tokyo", set_as_current=False)
    tokyo.conf.timezone = "Asia/Tokyo"
    state = trigger_for(crontab(minute=0, hour=9, app=tokyo)).first_state(at("2026-01-01 12:00"))
    assert state == TriggerState(at("2026-01-02 00:00"), at("2026-01-01 12:00"))


def test_the_crontab_of_django_celery_beat_is_computed_in_its_own_zone() -> None:
    tzcrontab = pytest.importorskip("django_celery_beat.tzcrontab")
    made = tzcrontab.TzAwareCrontab(minute="30", hour="2", tz=ZoneInfo("Europe/Berlin"), app=app)
    trigger = trigger_for(made)
    assert isinstance(trigger, CronTrigger)
    assert trigger.fingerprint == trigger_for(cron("30 2 * * *", "Europe/Berlin")).fingerprint


def test_a_clocked_time_is_a_single_fire_also_in_the_past() -> None:
    clockedschedule = pytest.importorskip("django_celery_beat.clockedschedule")
    due = datetime(2026, 1, 1, 12, tzinfo=UTC)
    trigger = trigger_for(clockedschedule.clocked(due, app=app))
    assert trigger.trigger_type is TriggerType.ONCE
    assert trigger.interval is None
    assert trigger.first_state(at("2026-06-01")) == TriggerState(
        to_millis(due), to_millis(due), repeat_count=0
    )
    naive = clockedschedule.clocked(due, app=app)
    naive.clocked_time = datetime(2026, 1, 1, 12)
    with pytest.raises(ValueError, match=r"^clocked_time: needs a time zone, got 2026-01-01 12:00:00$"):
        trigger_for(naive)


@pytest.mark.parametrize(
    "every", [0, -1, 0.0005, timedelta(0), float("nan"), float("inf"), True, schedule(0)]
)
def test_an_interval_below_a_millisecond_is_refused(every: Any) -> None:
    with pytest.raises(ValueError, match=r"^needs an interval of at least a millisecond, got "):
        trigger_for(every)


@pytest.mark.parametrize("what", ["*/5 * * * *", None, object(), [60]])
def test_what_is_no_schedule_is_refused(what: Any) -> None:
    with pytest.raises(ValueError, match=r"^needs a schedule, a number of seconds or a timedelta, got "):
        trigger_for(what)


def test_a_crontab_with_an_empty_field_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^crontab: hour is empty, so it never fires$"):
        trigger_for(crontab(hour=[], app=app))


def test_a_schedule_may_carry_its_own_trigger() -> None:
    class Carrying(BaseSchedule):
        def as_trigger(self) -> GridTrigger:
            return GridTrigger(5_000)

    assert trigger_for(Carrying()) == GridTrigger(5_000)


class Untouchable(BaseSchedule):
    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        raise RuntimeError("asked too early")

    is_due = remaining_estimate
    tz = app = property(remaining_estimate)  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        raise RuntimeError("copied too early")


def test_no_code_of_an_unknown_schedule_runs_before_it_is_asked() -> None:
    assert isinstance(trigger_for(Untouchable()), AskedTrigger)


# Schedules that are asked themselves.


class Asked(BaseSchedule):
    """Fires on every multiple of `every`, counted from 1970."""

    def __init__(self, every: timedelta, **options: Any) -> None:
        super().__init__(app=app, **options)
        self.every = every
        self.questions = 0

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        self.questions += 1
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        return epoch + ((last_run_at - epoch) // self.every + 1) * self.every - self.now()


def asked(every: timedelta, anchor: int | None = None) -> tuple[AskedTimes, Asked]:
    times = AskedTimes(Asked(every), anchor)
    return times, times._clock._schedule  # the copy that is asked, to count the questions


def test_an_unknown_schedule_is_asked_on_a_virtual_clock() -> None:
    mine = Asked(timedelta(minutes=7))
    trigger = trigger_for(mine)
    assert (trigger.trigger_type, trigger.interval) == (TriggerType.CRON, None)
    state = trigger.first_state(100 * MINUTE)
    assert state == TriggerState(105 * MINUTE, 100 * MINUTE)
    expected = [n * 7 * MINUTE for n in range(15, 40)]
    assert_agree(trigger.fire_times(state), expected, 105 * MINUTE, 279 * MINUTE)
    assert mine.questions == 0
    assert mine.nowfun is None


def test_before_and_count_of_an_unknown_schedule_work_without_an_anchor() -> None:
    times, copy = asked(timedelta(minutes=7))
    assert times.before(105 * MINUTE) == 98 * MINUTE
    assert times.count(98 * MINUTE, 105 * MINUTE) == 2
    assert copy.questions < 60


def test_a_long_absence_of_an_unknown_schedule_is_estimated_in_bounded_steps() -> None:
    times, copy = asked(timedelta(seconds=10), anchor=10 * SECOND)
    year = 365 * DAY
    assert times.count(10 * SECOND, year) == year // (10 * SECOND)
    assert times.before(year + 1) == year
    assert times.after(year) == year + 10 * SECOND
    assert copy.questions < 10_100


def test_an_interval_of_ones_own_goes_on_from_the_run_before() -> None:
    class Rested(schedule):
        """90 seconds after the last run, whenever that was."""

        def remaining_estimate(self, last_run_at: datetime) -> timedelta:
            return last_run_at + self.run_every - self.now()

    trigger = trigger_for(Rested(90, app=app))
    assert isinstance(trigger, AskedTrigger)
    state = trigger.first_state(0)
    times = trigger.fire_times(state)
    assert state.next_fire_time == 90 * SECOND
    assert forward(times, 90 * SECOND + 1, 300 * SECOND) == [180 * SECOND, 270 * SECOND]
    assert times.after(200 * SECOND) == 270 * SECOND
    assert times.before(200 * SECOND) == 180 * SECOND


def test_sub_milliseconds_are_rounded_up_so_that_time_goes_on() -> None:
    times, _ = asked(timedelta(microseconds=1_500_300))
    assert forward(times, 0, 6 * SECOND) == [0, 1501, 3001, 4501]


class Shop(crontab):
    """Closed on one day; its arguments do not fit the __reduce__ that it inherits."""

    def __init__(self, closed: int, **options: Any) -> None:
        super().__init__(**options)
        self.closed = closed

    def is_due(self, last_run_at: datetime) -> schedstate:
        due, wait = super().is_due(last_run_at)
        return schedstate(due and self.now().day != self.closed, wait)


def test_where_a_subclass_only_changes_is_due_it_is_asked_that() -> None:
    trigger = trigger_for(Shop(closed=3, minute=0, hour=9, app=app))
    state = trigger.first_state(at("2026-05-01 12:00"))
    runs = forward(trigger.fire_times(state), at("2026-05-02"), at("2026-05-05"))
    assert local(runs, "UTC") == ["2026-05-02 09:00", "2026-05-04 09:00"]


def test_a_schedule_with_is_due_alone_is_asked_as_often_as_it_wants() -> None:
    class Polled(BaseSchedule):
        def is_due(self, last_run_at: datetime) -> schedstate:
            return schedstate(self.now().minute == 30 and self.now() > last_run_at, 60)

    times = AskedTimes(Polled(app=app))
    assert local(forward(times, at("2026-05-01"), at("2026-05-01 02:00")), "UTC") == [
        "2026-05-01 00:30",
        "2026-05-01 01:30",
    ]


def test_one_fixed_time_that_has_passed_is_the_end() -> None:
    class Once(BaseSchedule):
        def remaining_estimate(self, last_run_at: datetime) -> timedelta:
            return datetime(2026, 5, 1, tzinfo=UTC) - self.now()

    times = AskedTimes(Once(app=app), at("2026-05-01"))
    assert times.after(at("2026-04-01")) == at("2026-05-01")
    assert times.after(at("2026-05-01")) is None
    assert times.after(at("2026-06-01")) is None
    assert times.before(at("2026-06-01")) == at("2026-05-01")
    assert times.count(at("2026-04-01"), at("2026-06-01")) == 1


def test_a_schedule_that_says_never_has_no_next_fire_time() -> None:
    class Never(BaseSchedule):
        def remaining_estimate(self, last_run_at: datetime) -> timedelta:
            return timedelta.max

    class NeverDue(BaseSchedule):
        def is_due(self, last_run_at: datetime) -> schedstate:
            return schedstate(False, float("inf"))

    for made in (Never(app=app), NeverDue(app=app)):
        assert trigger_for(made).first_state(at("2026-05-01")).next_fire_time is None
        assert AskedTimes(made).before(at("2026-05-01")) is None


@pytest.mark.parametrize("remaining", [timedelta(0), timedelta(seconds=-5)])
def test_a_schedule_that_does_not_move_on_is_an_error(remaining: timedelta) -> None:
    class Stuck(BaseSchedule):
        def remaining_estimate(self, last_run_at: datetime) -> timedelta:
            return remaining

    with pytest.raises(ValueError, match=r"Stuck: asked for the fire time after 2026-05-01 .* it answers"):
        trigger_for(Stuck(app=app)).first_state(at("2026-05-01"))


@pytest.mark.parametrize("wait", [0, -1, float("nan"), None])
def test_an_is_due_that_leads_nowhere_is_an_error(wait: Any) -> None:
    class Nowhere(BaseSchedule):
        def is_due(self, last_run_at: datetime) -> schedstate:
            return schedstate(False, wait)

    with pytest.raises(ValueError, match=r"Nowhere: .* is_due wants to be asked again in"):
        trigger_for(Nowhere(app=app)).first_state(at("2026-05-01"))


def test_an_is_due_that_is_never_due_is_given_up_after_bounded_looks() -> None:
    class Waiting(BaseSchedule):
        looks: list[datetime]

        def is_due(self, last_run_at: datetime) -> schedstate:
            self.looks.append(self.now())
            return schedstate(False, 5)

    waiting = Waiting(app=app)
    waiting.looks = []
    with pytest.raises(ValueError, match="is_due was not due in 100000 calls, up to 2026-05-06 18:53:20"):
        trigger_for(waiting).first_state(at("2026-05-01"))
    assert len(waiting.looks) == 100_000


def test_an_is_due_that_looks_every_few_seconds_finds_its_way_through_a_weekend() -> None:
    class OfficeHours(schedule):
        def is_due(self, last_run_at: datetime) -> schedstate:
            now = self.now()
            if now.weekday() >= 5 or not 9 <= now.hour < 17:
                return schedstate(False, 5)
            return super().is_due(last_run_at)

    trigger = trigger_for(OfficeHours(timedelta(minutes=1), app=app))
    times = trigger.fire_times(trigger.first_state(at("2026-05-01 16:58")))
    assert times.after(at("2026-05-01 16:58")) == at("2026-05-01 16:59")
    assert times.after(at("2026-05-01 16:59")) == at("2026-05-04 09:00")


def test_what_the_schedule_raises_passes_through() -> None:
    class Broken(BaseSchedule):
        def remaining_estimate(self, last_run_at: datetime) -> timedelta:
            raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError, match="on purpose"):
        trigger_for(Broken(app=app)).first_state(0)


def test_an_answer_that_is_no_timedelta_is_an_error() -> None:
    class Odd(BaseSchedule):
        def remaining_estimate(self, last_run_at: datetime) -> Any:
            return 5

    with pytest.raises(ValueError, match="Odd: needs a timedelta to remain, got 5"):
        trigger_for(Odd(app=app)).first_state(0)


def test_a_schedule_that_overrides_now_is_given_the_virtual_time_all_the_same() -> None:
    class Clocked(crontab):
        def now(self) -> datetime:
            return datetime(2000, 1, 1, tzinfo=UTC)

    state = trigger_for(Clocked(minute=0, app=app)).first_state(at("2026-05-01 10:20"))
    assert state.next_fire_time == at("2026-05-01 11:00")


def test_the_fingerprint_of_an_unknown_schedule_is_its_fields_and_nothing_that_changes() -> None:
    one = trigger_for(Asked(timedelta(minutes=7)))
    used = Asked(timedelta(minutes=7), nowfun=lambda: datetime.now(UTC))
    assert used.tz  # now cached on it
    assert trigger_for(used).fingerprint == one.fingerprint
    assert trigger_for(Asked(timedelta(minutes=8))).fingerprint != one.fingerprint


def test_the_fingerprint_of_an_unknown_schedule_is_the_same_in_every_process() -> None:
    code = (
        "from celery.schedules import BaseSchedule\n"
        "from celery_misfire.triggers.kinds import trigger_for\n"
        "class Mine(BaseSchedule):\n"
        "    def remaining_estimate(self, last_run_at): ...\n"
        "mine = Mine()\n"
        "mine.days = {'mon', 'tue', 'wed', 'thu'}\n"
        "mine.helper = [object(), {'b': 1, 'a': frozenset('xyz')}]\n"
        "print(trigger_for(mine).fingerprint)\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert "zone=UTC" in printed.pop()


class Seaside(solar):
    """A subclass: what is said of Celery's own class holds for it."""


@pytest.mark.parametrize("kind", [solar, Seaside])
def test_sunsets_are_asked_from_celery(kind: type[solar]) -> None:
    pytest.importorskip("ephem")
    trigger = trigger_for(kind("sunset", 52.5, 13.4, app=app))
    assert trigger.trigger_type is TriggerType.CRON
    fingerprint = trigger.fingerprint
    state = trigger.first_state(at("2026-06-01"))
    runs = forward(trigger.fire_times(state), at("2026-06-01"), at("2026-06-08"))
    assert len(runs) == 7
    assert all(abs(b - a - DAY) < 3 * MINUTE for a, b in pairwise(runs))
    assert trigger.fire_times(state).count(runs[0], runs[-1]) == 7
    assert trigger_for(kind("sunset", 52.5, 13.4, app=app)).fingerprint == fingerprint
    assert trigger_for(trigger._schedule).fingerprint == fingerprint  # it has been asked since
    assert trigger_for(kind("sunrise", 52.5, 13.4, app=app)).fingerprint != fingerprint
