"""Exclusion calendars, against a look at the clock on the wall in every minute."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab, schedule
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from celery_misfire import calendars
from celery_misfire.calendars import (
    Calendar,
    annual,
    cron,
    daily,
    holiday,
    monthly,
    weekly,
)
from celery_misfire.misfire import from_millis, to_millis
from celery_misfire.schedules import calendar_interval, daily_time_interval, excluding, simple
from celery_misfire.schedules import cron as cron_schedule
from celery_misfire.triggers.excluding import Excluded, Included
from celery_misfire.triggers.kinds import trigger_for

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: Any = UTC) -> int:
    return to_millis(datetime.fromisoformat(text).replace(tzinfo=zone))


def excluded(calendar: Calendar, zone: Any = UTC) -> Excluded:
    return calendar.excluded(lambda: zone)


def is_included(calendar: Calendar, text: str, zone: Any = UTC) -> bool:
    return excluded(calendar, zone).span(at(text, zone)).included


# Each calendar, and the same said in another way about the clock on the wall.
RULES: list[tuple[Calendar, Callable[[datetime], bool]]] = [
    (
        holiday([date(2026, 3, 29), date(2026, 12, 25)]),
        lambda t: t.date() not in (date(2026, 3, 29), date(2026, 12, 25)),
    ),
    (weekly(["SAT", "SUN"]), lambda t: t.isoweekday() < 6),
    (weekly(["wed"]), lambda t: t.isoweekday() != 3),
    (weekly([]), lambda t: True),
    (annual(["03-29", "10-25", "02-29"]), lambda t: (t.month, t.day) not in ((3, 29), (10, 25), (2, 29))),
    (annual([date(1999, 10, 25)]), lambda t: (t.month, t.day) != (10, 25)),
    (monthly([1, 29, 31]), lambda t: t.day not in (1, 29, 31)),
    (monthly([]), lambda t: True),
    (daily("02:00", "02:59:59"), lambda t: not time(2) <= t.time() <= time(2, 59, 59)),
    (daily("02:00", "02:59:59", invert=True), lambda t: time(2) <= t.time() <= time(2, 59, 59)),
    (daily("00:00", "06:30"), lambda t: t.time() > time(6, 30)),
    (daily("00:00", "23:59:59", invert=True), lambda t: t.time() <= time(23, 59, 59)),
    (daily(time(12), time(12)), lambda t: t.time() != time(12)),
    (cron("* * 0-7,18-23 ? * *"), lambda t: 8 <= t.hour < 18),
    (cron("* * * ? * SUN"), lambda t: t.isoweekday() != 7),
    (cron("* 0/30 2 * * ?"), lambda t: not (t.hour == 2 and t.minute in (0, 30))),
    (cron("0 0 12 L * ?"), lambda t: not (t.time() == time(12) and (t + timedelta(days=1)).day == 1)),
    (cron("30 2 * * *"), lambda t: not (t.hour == 2 and t.minute == 30)),
    (cron("* * * * * ? 2025"), lambda t: t.year != 2025),
    (
        weekly(["SUN"], base=daily("12:00", "13:00", base=monthly([2]))),
        lambda t: t.isoweekday() != 7 and not time(12) <= t.time() <= time(13) and t.day != 2,
    ),
]


@pytest.mark.parametrize(("calendar", "rule"), RULES, ids=[repr(c) for c, _ in RULES])
@pytest.mark.parametrize(
    "zone", [UTC, BERLIN, ZoneInfo("Australia/Lord_Howe"), timezone(timedelta(hours=-7))]
)
def test_a_span_is_all_included_or_all_excluded_as_the_wall_clock_says(calendar, rule, zone) -> None:
    spans = excluded(calendar, zone)
    for first, last in (
        ("2026-03-27", "2026-04-06"),
        ("2026-10-23", "2026-11-02"),
        ("2024-02-28", "2024-03-02"),
    ):
        moment, end = at(first), at(last)
        while moment < end:
            span = spans.span(moment)
            assert span.start <= moment < span.end
            for inside in {moment, span.end - 1, *range(moment, min(span.end, end), 37 * MINUTE + 500)}:
                wall = from_millis(inside).astimezone(zone).replace(tzinfo=None)
                # A daily range ends with its end; a cron expression goes for whole seconds.
                if "daily" not in repr(calendar):
                    wall = wall.replace(microsecond=0)
                if "30 2 * * *" in repr(calendar):
                    wall = wall.replace(second=0)
                assert span.included == rule(wall), wall
            moment = span.end


def test_a_daily_range_ends_with_its_end_to_the_millisecond() -> None:
    lunch = daily("12:00", "13:00")
    assert is_included(lunch, "2026-03-02 11:59:59.999")
    assert not is_included(lunch, "2026-03-02 12:00")
    assert not is_included(lunch, "2026-03-02 13:00")
    assert is_included(lunch, "2026-03-02 13:00:00.001")
    inverted = daily("12:00", "13:00", invert=True)
    for text in ("11:59:59.999", "12:00", "13:00", "13:00:00.001"):
        assert is_included(inverted, f"2026-03-02 {text}") != is_included(lunch, f"2026-03-02 {text}")


def test_midnight_is_not_excluded_by_a_daily_range_elsewhere() -> None:
    """Quartz's DailyCalendar excludes it."""
    assert is_included(daily("12:00", "13:00"), "2026-03-02 00:00")


def test_a_cron_calendar_excludes_whole_seconds_and_with_five_fields_whole_minutes() -> None:
    assert not is_included(cron("0 0 12 * * ?"), "2026-03-02 12:00:00.999")
    assert is_included(cron("0 0 12 * * ?"), "2026-03-02 12:00:01")
    assert not is_included(cron("0 12 * * *"), "2026-03-02 12:00:59.999")
    assert is_included(cron("0 12 * * *"), "2026-03-02 12:01")


def test_each_calendar_of_a_stack_has_its_own_zone() -> None:
    stack = weekly(
        ["MON"], timezone="Asia/Tokyo", base=weekly(["MON"], timezone=ZoneInfo("America/New_York"))
    )
    # From Monday in Tokyo to the end of Monday in New York.
    spans = excluded(stack)
    assert spans.span(at("2026-03-01 14:59:59")).included
    assert not spans.span(at("2026-03-01 15:00")).included
    assert not spans.span(at("2026-03-03 03:59")).included
    assert spans.span(at("2026-03-03 05:00")).included


def test_without_a_zone_of_its_own_a_calendar_takes_the_schedules() -> None:
    away = weekly(["SUN"])
    times = trigger_for(excluding(cron_schedule("0 30 23 * * ?", "Asia/Tokyo"), away))
    found = times.fire_times(times.first_state(at("2026-03-01 12:00"))).after(at("2026-03-01 00:00"))
    assert found == at("2026-03-02 23:30", ZoneInfo("Asia/Tokyo"))


# -- objects that make up their dates ------------------------------------------------------------------------


class Lazy(dict):
    """As the classes of the `holidays` package: it knows the years that it was asked about."""

    def __contains__(self, day: object) -> bool:
        assert isinstance(day, date)
        return (day.month, day.day) == (5, 1)

    def __repr__(self) -> str:
        return "Lazy('DE')"


def test_dates_may_be_an_object_that_makes_them_up_when_asked() -> None:
    lazy = holiday(Lazy())
    assert isinstance(lazy.dates, Mapping)
    assert not is_included(lazy, "2040-05-01 23:59")
    assert is_included(lazy, "2040-05-02 00:00")
    assert excluded(lazy).text == "holiday Lazy('DE') zone=UTC"


def test_holidays_of_the_holidays_package() -> None:
    holidays = pytest.importorskip("holidays")
    germany = holiday(holidays.country_holidays("DE", subdiv="BY"), timezone="Europe/Berlin")
    assert not is_included(germany, "2026-01-06 12:00", BERLIN)
    assert not is_included(germany, "2031-12-26 12:00", BERLIN)
    assert is_included(germany, "2026-01-07 00:00", BERLIN)
    text = excluded(germany).text
    assert pickle.loads(pickle.dumps(germany)) == germany
    assert excluded(pickle.loads(pickle.dumps(germany))).text == text


# -- what is left of a schedule ------------------------------------------------------------------------------


def brute(times, spans: Excluded, first: int, last: int) -> list[int]:
    found, moment = [], times.after(first - 1)
    while moment is not None and moment <= last:
        if spans.span(moment).included:
            found.append(moment)
        moment = times.after(moment)
    return found


SCHEDULES = [
    simple(datetime(2026, 3, 1, 1, tzinfo=UTC), 5 * 3600),
    schedule(1800),
    crontab(minute="*/20", hour="0-6"),
    cron_schedule("0 0/10 9-17 ? * MON-FRI", "Europe/Berlin"),
    cron_schedule("*/30 59 * * * ?", "America/New_York"),
    daily_time_interval(72, "minute", "08:00", "17:00", timezone="Asia/Kolkata"),
    calendar_interval(9, "hour", "UTC", datetime(2026, 3, 1, tzinfo=UTC)),
]


@st.composite
def any_calendar(draw: st.DrawFn, depth: int = 0) -> Calendar:
    where = {
        "timezone": draw(st.sampled_from([None, "UTC", "Europe/Berlin", "Australia/Lord_Howe"])),
        "base": draw(any_calendar(depth + 1)) if depth < 2 and draw(st.booleans()) else None,
    }
    days = st.lists(st.integers(1, 28), max_size=9)
    match draw(st.integers(0, 5)):
        case 0:
            return holiday({date(2026, 3, d) for d in draw(days)}, **where)
        case 1:
            return weekly(draw(st.lists(st.sampled_from(["MON", "TUE", "SAT", "SUN"]), max_size=3)), **where)
        case 2:
            first, last = sorted(draw(st.tuples(st.integers(0, 86_399), st.integers(0, 86_399))))
            clock = [(datetime(2000, 1, 1) + timedelta(seconds=s)).time() for s in (first, last)]
            return daily(*clock, draw(st.booleans()), **where)
        case 3:
            return annual({f"03-{d:02}" for d in draw(days)}, **where)
        case 4:
            return monthly(draw(days), **where)
    expressions = [
        "* * 0-7,18-23 ? * *",
        "* * 9-11 ? * MON-FRI",
        "0 0/20 * * * ?",
        "* * * * 1-5",
        "0 0 12 L * ?",
    ]
    return cron(draw(st.sampled_from(expressions)), **where)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SCHEDULES), any_calendar(), st.integers(0, 300), st.integers(0, 400))
def test_what_is_left_is_what_a_walk_finds(made: Any, calendar: Calendar, start: int, hours: int) -> None:
    trigger = trigger_for(excluding(made, calendar))
    inner = trigger_for(made)
    state = inner.first_state(at("2026-03-01"))
    first = at("2026-03-20") + start * HOUR
    last = first + hours * HOUR
    spans = excluded(calendar, ZoneInfo(getattr(made, "timezone", "UTC")))
    expected = brute(inner.fire_times(state), spans, first, last)
    times = trigger.fire_times(state)
    assert times.count(first, last) == len(expected)
    # A schedule that never fires is searched through 50 years; that is a test of its own.
    assume(times.count(last + 1, last + 40 * DAY) and times.count(first - 40 * DAY, first - 1))
    found, moment = [], times.after(first - 1)
    while moment is not None and moment <= last:
        found.append(moment)
        moment = times.after(moment)
    assert found == expected
    back, moment = [], times.before(last + 1)
    while moment is not None and moment >= first:
        back.append(moment)
        moment = times.before(moment)
    assert back[::-1] == expected
    some = random.Random(hours)
    low, high = sorted(some.choices(range(first, last + 1), k=2))
    assert times.count(low, high) == sum(low <= m <= high for m in expected)
    assert times.count(high + 1, low - 1) == 0


class Counted:
    """Fire times, or spans, that count how often they are asked."""

    def __init__(self, what: Any) -> None:
        self.what, self.asked = what, 0

    def __getattr__(self, name: str) -> Any:
        self.asked += 1
        return getattr(self.what, name)


@pytest.mark.parametrize("calendar", [weekly(["SAT", "SUN"]), cron("* * 0-7,18-23 ? * *"), monthly([15])])
def test_what_lies_in_between_is_counted_and_not_walked_through(calendar: Calendar) -> None:
    seconds = Counted(
        trigger_for(schedule(1)).fire_times(trigger_for(schedule(1)).first_state(at("2026-01-01")))
    )
    count = Included(seconds, excluded(calendar)).count(at("2026-01-02"), at("2026-02-01") - 1)
    assert 30 * 8 * 3600 < count < 30 * 86_400
    assert seconds.asked < 30 * 6


def test_rare_fire_times_are_looked_up_one_by_one() -> None:
    spans = Counted(excluded(cron("0 * * * * ?")))
    monthly_run = trigger_for(cron_schedule("30 0 12 1 * ?", "UTC"))
    times = monthly_run.fire_times(monthly_run.first_state(at("2026-01-01")))
    assert Included(times, spans).count(at("2026-01-01"), at("2036-01-01")) == 120
    assert spans.asked < 130


def test_what_is_always_excluded_never_fires() -> None:
    trigger = trigger_for(excluding(cron_schedule("0 30 12 * * ?", "UTC"), daily("12:00", "13:00")))
    assert trigger.first_state(at("2026-01-01")).next_fire_time is None


def test_a_search_that_leads_nowhere_is_given_up_with_advice() -> None:
    trigger = trigger_for(excluding(cron_schedule("0 * * * * ?", "UTC"), cron("0 * * * * ?")))
    with pytest.raises(ValueError, match=r"20000 excluded times in a row.*larger pieces"):
        trigger.first_state(at("2026-01-01"))
    state = trigger_for(cron_schedule("0 * * * * ?", "UTC")).first_state(at("2026-01-01"))
    with pytest.raises(ValueError, match="20000 excluded times in a row"):
        trigger.fire_times(state).before(at("2026-01-01"))


# -- values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "calendar", [c for c, _ in RULES] + [weekly(["MON"], timezone="Asia/Tokyo")], ids=repr
)
def test_a_calendar_survives_pickling_and_copying(calendar: Calendar) -> None:
    for copied in (pickle.loads(pickle.dumps(calendar)), copy.copy(calendar), copy.deepcopy(calendar)):
        assert copied == calendar
        assert hash(copied) == hash(calendar)
        assert repr(copied) == repr(calendar)
        assert excluded(copied).text == excluded(calendar).text


def test_every_field_counts_in_comparison_and_text() -> None:
    different = [
        *(c for c, _ in RULES),
        weekly(["SAT", "SUN"], timezone="Asia/Tokyo"),
        weekly(["SAT", "SUN"], base=monthly([1])),
        daily("02:00", "03:00"),
        cron("30 2 * * ?"),
        cron("0 30 2 * * ?"),
    ]
    for i, one in enumerate(different):
        assert [other == one for other in different] == [j == i for j in range(len(different))]
    texts = [excluded(c).text for c in different if repr(c) not in ("cron('30 2 * * ?')",)]
    assert len(set(texts)) == len(texts)


def test_how_it_is_written_does_not_count() -> None:
    assert weekly(["sun", "SAT", "SUN"]) == weekly(("SAT", "SUN"))
    assert annual([date(2001, 3, 5), "12-25"]) == annual(["12-25", "03-05"])
    assert daily("06:00", time(7)) == daily(time(6), "07:00:00")
    assert holiday([date(2026, 1, 1)] * 2) == holiday({date(2026, 1, 1)})
    assert weekly(["SUN"]) != "weekly"


def test_its_repr_is_how_it_is_made() -> None:
    made = weekly(["SUN"], timezone="UTC", base=monthly([1]))
    assert repr(made) == "weekly(('SUN',), timezone='UTC', base=monthly((1,)))"
    assert eval(repr(made), vars(calendars)) == made


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: holiday("2026-01-01"), "dates: expected dates, got '2026-01-01'"),
        (lambda: holiday(5), "dates: expected dates, got 5"),
        (lambda: holiday(["2026-01-01"]), "dates: expected a datetime.date, got '2026-01-01'"),
        (lambda: holiday([datetime(2026, 1, 1)]), "dates: expected a datetime.date, got datetime"),
        (lambda: weekly("SUN"), "excluded_days: expected a list, got 'SUN'"),
        (
            lambda: weekly(["SUNDAY"]),
            "excluded_days: expected SUN, MON, TUE, WED, THU, FRI, SAT, got 'SUNDAY'",
        ),
        (lambda: weekly([1]), "excluded_days: expected SUN, MON, TUE, WED, THU, FRI, SAT, got 1"),
        (lambda: weekly(["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]), "excluded_days: all seven"),
        (lambda: annual(["2-30"]), "days: expected 'MM-DD' or a date, got '2-30'"),
        (lambda: annual(["02-30"]), "days: expected 'MM-DD' or a date, got '02-30'"),
        (lambda: annual("12-25"), "days: expected a list, got '12-25'"),
        (lambda: annual([1225]), "days: expected 'MM-DD' or a date, got 1225"),
        (lambda: monthly([0]), "days: expected whole numbers from 1 to 31, got 0"),
        (lambda: monthly([32]), "days: expected whole numbers from 1 to 31, got 32"),
        (lambda: monthly([True]), "days: expected whole numbers from 1 to 31, got True"),
        (lambda: monthly(5), "days: expected a list, got 5"),
        (lambda: daily("25:00", "26:00"), "range_start: expected 'HH:MM', 'HH:MM:SS' or a datetime.time"),
        (lambda: daily("06:00", "7"), "range_end: expected 'HH:MM', 'HH:MM:SS' or a datetime.time"),
        (
            lambda: daily("06:00", time(7, tzinfo=UTC)),
            "range_end: expected 'HH:MM', 'HH:MM:SS' or a datetime.time",
        ),
        (lambda: daily("22:00", "06:00"), "range_end: 06:00:00 is before range_start, 22:00:00.*invert=True"),
        (lambda: daily("06:00", "07:00", invert="yes"), "invert: expected True or False, got 'yes'"),
        (lambda: cron("0 0 12 * *  * *"), "cron expression '0 0 12 .*allowed"),
        (lambda: monthly([1], timezone="Mars/Olympus"), "timezone: expected .*, got 'Mars/Olympus'"),
        (lambda: monthly([1], timezone=3), "timezone: expected .*, got 3"),
        (lambda: monthly([1], timezone="../etc"), "timezone: expected"),
        (lambda: monthly([1], base="weekly"), "base: expected a calendar, got 'weekly'"),
        (lambda: excluding(5, weekly), "calendar: expected one of celery_misfire.calendars"),
        (
            lambda: excluding("5", weekly(["SUN"])),
            "schedule: expected a schedule, seconds or a timedelta, got '5'",
        ),
        (lambda: excluding(0, weekly(["SUN"])), "needs an interval of at least a millisecond, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_fingerprint_of_a_holidays_object_does_not_change_when_it_is_asked() -> None:
    holidays = pytest.importorskip("holidays")
    dates = holidays.country_holidays("US", subdiv="NY")
    before = excluded(holiday(dates)).text
    assert date(2026, 7, 4) in dates
    assert excluded(holiday(dates)).text == before
