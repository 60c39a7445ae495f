"""Cron expressions: what they mean, against croniter, cronsim and plain calendars; and what is refused."""

from __future__ import annotations

import calendar
import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from zlib import crc32
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_misfire import calendars, simulate
from celery_misfire.misfire import FireTimes, TriggerState, from_millis, to_millis
from celery_misfire.schedules import cron, excluding
from celery_misfire.triggers.cron import parse_cron
from celery_misfire.triggers.kinds import trigger_for
from celery_misfire.triggers.wall_times import Days, month_of

HOUR = timedelta(hours=1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def times_of(expression: str, timezone: str = "UTC") -> FireTimes:
    return trigger_for(cron(expression, timezone)).fire_times(TriggerState(None, 0))


def forward(times: FireTimes, after: datetime, many: int) -> list[datetime]:
    found, moment = [], times.after(to_millis(after))
    while moment is not None and len(found) < many:
        found.append(from_millis(moment))
        moment = times.after(moment)
    return found


def between(times: FireTimes, first: datetime, last: datetime) -> list[datetime]:
    found, moment = [], times.after(to_millis(first) - 1)
    while moment is not None and moment <= to_millis(last):
        found.append(from_millis(moment))
        moment = times.after(moment)
    return found


# -- days ----------------------------------------------------------------------------------------------------


def nearest_weekday(day: int, when: date) -> date | None:
    """Monday to Friday, nearest to this day, in the same month."""
    if day < 1 or day > calendar.monthrange(when.year, when.month)[1]:
        return None
    wanted = when.replace(day=day)
    others = [wanted + timedelta(days=n) for n in (0, -1, 1, -2, 2)]
    return next(d for d in others if d.weekday() < 5 and d.month == when.month)


def days_in_month(when: date) -> int:
    return calendar.monthrange(when.year, when.month)[1]


# Day of the month, day of the week, and the same said in another way.
DAY_RULES: list[tuple[str, str, Callable[[date], bool]]] = [
    ("*", "?", lambda d: True),
    ("?", "*", lambda d: True),
    ("13", "?", lambda d: d.day == 13),
    ("28-3", "?", lambda d: d.day >= 28 or d.day <= 3),
    ("*/7", "?", lambda d: d.day in (1, 8, 15, 22, 29)),
    ("25-5/4", "?", lambda d: d.day in (25, 29, 2)),
    ("L", "?", lambda d: d.day == days_in_month(d)),
    ("L-0", "?", lambda d: d.day == days_in_month(d)),
    ("L-3", "?", lambda d: d.day == days_in_month(d) - 3),
    ("L-30", "?", lambda d: d.day == 1 and days_in_month(d) == 31),
    ("LW", "?", lambda d: d == nearest_weekday(days_in_month(d), d)),
    ("L-3W", "?", lambda d: d == nearest_weekday(days_in_month(d) - 3, d)),
    ("1W", "?", lambda d: d == nearest_weekday(1, d)),
    ("15W", "?", lambda d: d == nearest_weekday(15, d)),
    ("31W", "?", lambda d: d == nearest_weekday(31, d)),
    ("?", "1", lambda d: d.isoweekday() == 7),
    ("?", "SUN", lambda d: d.isoweekday() == 7),
    ("?", "L", lambda d: d.isoweekday() == 6),
    ("?", "2-6", lambda d: d.isoweekday() <= 5),
    ("?", "FRI-MON", lambda d: d.isoweekday() in (5, 6, 7, 1)),
    ("?", "2/2", lambda d: d.isoweekday() in (1, 3, 5)),
    ("?", "6-3/2", lambda d: d.isoweekday() in (5, 7, 2)),
    ("?", "6L", lambda d: d.isoweekday() == 5 and d.day > days_in_month(d) - 7),
    ("?", "FRIL", lambda d: d.isoweekday() == 5 and d.day > days_in_month(d) - 7),
    ("?", "1L", lambda d: d.isoweekday() == 7 and d.day > days_in_month(d) - 7),
    ("?", "6#3", lambda d: d.isoweekday() == 5 and (d.day - 1) // 7 == 2),
    ("?", "MON#5", lambda d: d.isoweekday() == 1 and (d.day - 1) // 7 == 4),
]


@pytest.mark.parametrize(("day", "weekday", "rule"), DAY_RULES, ids=[f"{d} {w}" for d, w, _ in DAY_RULES])
def test_a_day_rule_is_what_it_says(day: str, weekday: str, rule: Callable[[date], bool]) -> None:
    first = date(2023, 12, 1)
    wanted = [d for n in range(1700) if rule(d := first + timedelta(days=n))]
    noon = datetime(2023, 12, 1, 12, tzinfo=UTC)
    times = times_of(f"0 0 12 {day} * {weekday}")
    found = between(times, noon, noon + timedelta(days=1699))
    assert [f.date() for f in found] == wanted
    assert times.count(to_millis(noon), to_millis(noon + timedelta(days=1699))) == len(wanted)


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("1,L", ["1", "L"]),
        ("L,1", ["1", "L"]),
        ("L-1W,L-1", ["L-1W", "L-1"]),
        ("2W,16", ["2W", "16"]),
        ("16W,2", ["16W", "2"]),
        ("1W,15W", ["1W", "15W"]),
        ("1W,15,LW", ["1W", "15", "LW"]),
        ("1-5,20/5,L,L-1,L-2", ["1-5", "20/5", "L", "L-1", "L-2"]),
        ("31,L-2", ["31", "L-2"]),
    ],
)
def test_each_rule_in_a_list_of_days_stands_for_itself(written: str, parts: list[str]) -> None:
    first, last = NOW, NOW + timedelta(days=800)
    apart = {t for part in parts for t in between(times_of(f"0 0 9 {part} * ?"), first, last)}
    assert between(times_of(f"0 0 9 {written} * ?"), first, last) == sorted(apart)
    assert parse_cron(f"0 0 9 {written} * ?") == parse_cron(f"0 0 9 {','.join(parts)} * ?")


def test_in_unix_a_list_of_days_may_hold_the_last_one_and_a_weekday_besides() -> None:
    found = between(times_of("0 9 7,L * *"), NOW, NOW + timedelta(days=60))
    assert [t.strftime("%m-%d") for t in found] == ["01-07", "01-31", "02-07", "02-28"]
    with_weekday = between(times_of("0 9 L,1 * MON"), NOW, NOW + timedelta(days=31))
    assert [t.day for t in with_weekday] == [1, 5, 12, 19, 26, 31]


@pytest.mark.parametrize("expression", ["0 9 2W,16 * *", "0 9 1,2W * *", "0 0 9 1,15W * ?", "0 0 9 1,LL * ?"])
def test_a_list_in_which_a_rule_is_not_clear_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r"day_of_month: '.*(W|LL)'; allowed are"):
        parse_cron(expression)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("/5 * * * *", "*/5 * * * *"),
        ("0 /6 * * *", "0 */6 * * *"),
        ("0 9 /2 * MON", "0 9 */2 * MON"),
        ("0 9 13 * /2", "0 9 13 * */2"),
        ("3,/20 9 * /3 *", "3,*/20 9 * */3 *"),
    ],
)
def test_a_step_alone_is_one_after_a_star(written: str, meant: str) -> None:
    assert parse_cron(written) == parse_cron(meant)
    assert trigger_for(cron(written, "UTC")).fingerprint == trigger_for(cron(meant, "UTC")).fingerprint


def test_in_unix_a_day_matches_either_field_unless_one_begins_with_a_star() -> None:
    assert [f"{f:%a %d}" for f in forward(times_of("0 0 13 * FRI"), NOW, 4)] == [
        "Fri 02",
        "Fri 09",
        "Tue 13",
        "Fri 16",
    ]
    both = forward(times_of("0 0 */13 * FRI"), NOW, 3)
    assert all(f.day in (1, 14, 27) and f.weekday() == 4 for f in both)
    assert forward(times_of("0 0 ? * 5"), NOW, 9) == forward(times_of("0 0 * * FRI"), NOW, 9)


def test_sunday_is_0_and_7_in_unix_and_1_in_quartz() -> None:
    sundays = forward(times_of("0 0 12 ? * 1"), NOW, 5)
    for unix in ("0 12 * * 0", "0 12 * * 7", "0 12 * * SUN", "0 12 ? * sun"):
        assert forward(times_of(unix), NOW, 5) == sundays
    weekend = forward(times_of("0 0 12 ? * 6-1"), NOW, 9)
    assert forward(times_of("0 12 * * 5-7"), NOW, 9) == weekend
    assert forward(times_of("0 12 * * 5-0"), NOW, 9) == weekend


# -- other readers of the same language ----------------------------------------------------------------------

RANGES = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]


@st.composite
def unix_fields(draw: st.DrawFn, low: int, high: int) -> str:
    def item() -> str:
        kind = draw(st.sampled_from(["value", "value", "range", "step", "star"]))
        first = draw(st.integers(low, high - 1))
        # A range of a single value is a whole round to croniter.
        last = draw(st.integers(first + 1, high))
        step = draw(st.integers(1, min(12, high)))
        return {
            "value": f"{first}",
            "range": f"{first}-{last}",
            "step": f"{first}-{last}/{step}",
            "star": f"*/{step}",
        }[kind]

    if draw(st.integers(0, 2)) == 0:
        return "*"
    return ",".join(item() for _ in range(draw(st.integers(1, 3))))


@st.composite
def unix_expressions(draw: st.DrawFn) -> str:
    fields = [draw(unix_fields(low, high)) for low, high in RANGES]
    # Both day fields and the month at random leave hardly a fire time: let one of the three be free.
    fields[draw(st.integers(2, 4))] = "*"
    if "31" in fields[2] or "30" in fields[2] or "29" in fields[2]:
        fields[3] = "*"
    return " ".join(fields)


@settings(max_examples=150, deadline=None)
@given(unix_expressions(), st.integers(0, 10_000))
def test_five_fields_mean_what_croniter_and_cronsim_take_them_for(expression: str, hours: int) -> None:
    start = NOW + hours * HOUR
    times = times_of(expression)
    found = forward(times, start, 8)
    assert found == list(islice(CronSim(expression, start), 8))
    # Croniter takes a day field for unrestricted by its values, not by its star.
    if "*" in expression.split()[2::2]:
        other = croniter(expression, start, ret_type=datetime)
        assert found == [other.get_next() for _ in range(8)]
        back = croniter(expression, found[-1], ret_type=datetime)
        assert times.before(to_millis(found[-1])) == to_millis(back.get_prev())
    assert times.count(to_millis(found[0]), to_millis(found[-1])) == 8


@settings(max_examples=100, deadline=None)
@given(
    unix_fields(0, 59),
    unix_fields(0, 59),
    unix_fields(0, 23),
    unix_fields(1, 12),
    st.lists(st.integers(1, 7), min_size=1, max_size=4, unique=True),
    st.integers(0, 10_000),
)
def test_six_fields_mean_what_croniter_takes_their_translation_for(
    second: str, minute: str, hour: str, month: str, weekdays: list[int], hours: int
) -> None:
    quartz = ",".join(map(str, weekdays))
    translated = ",".join(str(day - 1) for day in weekdays)
    start = NOW + hours * HOUR
    other = croniter(
        f"{second} {minute} {hour} * {month} {translated}", start, ret_type=datetime, second_at_beginning=True
    )
    found = forward(times_of(f"{second} {minute} {hour} ? {month} {quartz}"), start, 8)
    assert found == [other.get_next() for _ in range(8)]


# -- aliases, and H ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alias", "expression"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        (" @Daily ", "0 0 * * *"),
    ],
)
def test_an_alias_is_short_for_five_fields(alias: str, expression: str) -> None:
    named = trigger_for(cron(alias, "UTC"), "an entry")
    assert named.fingerprint == trigger_for(cron(expression, "UTC")).fingerprint
    assert trigger_for(cron(alias, "UTC")).fingerprint == named.fingerprint


def drawn(expression: str, entry: str) -> tuple[tuple[int, ...], ...]:
    """Return the minutes, hours, days, months and weekdays (0 = SUN), both kinds of days in a month of 31."""
    parsed = parse_cron(expression, entry)
    days = [day for day in range(1, 32) if parsed.pick(MAY_2026) >> day - 1 & 1]
    weekdays = {date(2026, 5, day).isoweekday() % 7 for day in days}
    return parsed.minutes, parsed.hours, tuple(days), parsed.months, tuple(sorted(weekdays))


MAY_2026 = month_of(2026 * 12 + 4)
NAMES = [f"entry {n}" for n in range(200)]

# The field by its place, how it is written, its first and last value, and its step.
HASHED = [
    (0, "H", 0, 59, None),
    (0, "h", 0, 59, None),
    (0, "H(0-29)", 0, 29, None),
    (0, "H/15", 0, 59, 15),
    (0, "H/1", 0, 59, 1),
    (0, "H/59", 0, 59, 59),
    (0, "H(10-39)/10", 10, 39, 10),
    (0, "H(0-29)/30", 0, 29, 30),
    (1, "H", 0, 23, None),
    (1, "H(9-17)", 9, 17, None),
    (1, "H/6", 0, 23, 6),
    (1, "H(9-17)/9", 9, 17, 9),
    (2, "H", 1, 31, None),
    (2, "H(1-28)", 1, 28, None),
    (2, "H/7", 1, 31, 7),
    (2, "H/31", 1, 31, 31),
    (3, "H", 1, 12, None),
    (3, "H/3", 1, 12, 3),
    (3, "H/12", 1, 12, 12),
    (4, "H", 0, 6, None),
    (4, "H(1-5)", 1, 5, None),
    (4, "H/2", 0, 6, 2),
    (4, "H/7", 0, 6, 7),
]


@pytest.mark.parametrize(("place", "written", "first", "last", "step"), HASHED, ids=[h[1] for h in HASHED])
def test_h_is_a_value_or_a_beginning_that_the_name_of_the_entry_decides(
    place: int, written: str, first: int, last: int, step: int | None
) -> None:
    fields = ["*"] * 5
    fields[place] = written
    expression = " ".join(fields)
    latest = last if step is None else min(first + step - 1, last)
    begun = Counter()
    for name in NAMES:
        # Croniter shifts by the place, so that the fields of one entry differ.
        begin = first + (crc32(name.encode()) >> place) % (latest - first + 1)
        begun[begin] += 1
        expected = (begin,) if step is None else tuple(range(begin, last + 1, step))
        assert drawn(expression, name)[place] == expected
        assert drawn(expression, name) == drawn(expression, name)
    assert len(begun) > (latest - first) / 3


def test_an_entry_keeps_its_values_whatever_release_of_croniter_is_there() -> None:
    assert [parse_cron("H H H(1-28) H H", name).text for name in ("reports", "stocks", "")] == [
        "0 13 18 day 14 or WED 5 * first pass",
        "0 25 18 day 26 or SAT 5 * first pass",
        "0 0 0 day 1 or SUN 1 * first pass",
    ]
    assert parse_cron("H/20 * * * *", "reports").text == "0 13,33,53 * * and * * * every pass"


def test_h_with_a_step_follows_elapsed_time_and_h_alone_is_a_fixed_time() -> None:
    for wildcard in ("H/15 2 * * *", "H H/2 * * *", "H * * * *"):
        assert parse_cron(wildcard, "reports").is_wildcard
    for fixed in ("H H * * *", "H(0-29)/10 2 * * *", "H 2 * * *"):
        assert not parse_cron(fixed, "reports").is_wildcard


def test_of_two_days_h_is_one_of_them_and_h_with_a_step_a_star() -> None:
    assert " or " in parse_cron("0 0 H * MON", "reports").text
    assert " and " in parse_cron("0 0 H/7 * MON", "reports").text


def test_h_is_refused_where_there_is_no_entry() -> None:
    hashed = cron("H 3 * * *", "UTC")
    message = r"cron expression 'H 3 \* \* \*': minute: 'H' depends on the name of the entry.*allowed"
    away = {"down_at": NOW, "up_at": NOW + 24 * HOUR, "until": NOW + 48 * HOUR}
    for refused in (
        lambda: trigger_for(hashed),
        lambda: trigger_for(excluding(hashed, calendars.weekly(["SUN"]))),
        lambda: simulate(hashed, policy="do_nothing", **away),
        lambda: hashed.is_due(NOW),
        lambda: calendars.cron("H 3 * * *"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    simulated = simulate(hashed, policy="fire_once_now", entry="reports", **away)
    assert simulated.fires[0].scheduled_fire_time == datetime(2026, 1, 1, 3, 13, tzinfo=UTC)


def test_an_entry_gives_its_name_to_the_schedule_under_a_calendar_and_to_no_other_entry() -> None:
    hashed = cron("H 3 * * *", "UTC")
    weekdays = excluding(hashed, calendars.weekly(["SUN"]))
    for name in ("reports", "stocks"):
        alone, under = trigger_for(hashed, name), trigger_for(weekdays, name)
        assert under.fingerprint.startswith(alone.fingerprint)
    assert trigger_for(hashed, "reports").fingerprint != trigger_for(hashed, "stocks").fingerprint
    assert pickle.loads(pickle.dumps(hashed)) == hashed
    with pytest.raises(ValueError, match="name of the entry"):
        trigger_for(hashed)


# -- when the clocks change ----------------------------------------------------------------------------------

ZONES = [
    "America/New_York",
    "Europe/Berlin",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
    "Antarctica/Troll",
    "Europe/Dublin",
    "Africa/Casablanca",
    "America/Sao_Paulo",
    "Asia/Kolkata",
    "Pacific/Apia",
]

AROUND = [
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
    "45 2 25-31 * *",
    "0 3 * 3,4,9,10 *",
    "59 23 * * *",
]


def changes(zone: ZoneInfo) -> list[datetime]:
    moment, end, found = datetime(2025, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC), []
    while moment < end:
        following = moment + 6 * HOUR
        if moment.astimezone(zone).utcoffset() != following.astimezone(zone).utcoffset():
            found.append(following)
        moment = following
    return found


def quartz(unix: str) -> str:
    """The same in Quartz's syntax."""
    minute, hour, day, month, weekday = unix.split()
    if weekday == "*":
        return f"0 {minute} {hour} {day} {month} ?"
    return f"0 {minute} {hour} ? {month} {int(weekday) + 1}"


@pytest.mark.parametrize("name", ZONES)
def test_every_change_of_the_clocks_from_2025_to_2030_agrees_with_cronsim(name: str) -> None:
    zone = ZoneInfo(name)
    for change in changes(zone) or [datetime(2027, 3, 28, tzinfo=UTC)]:
        first, last = change - 30 * HOUR, change + 26 * HOUR
        for expression in AROUND:
            wanted: dict[datetime, None] = {}
            for when in CronSim(expression, (first - timedelta(seconds=1)).astimezone(zone)):
                if when.astimezone(UTC) > last:
                    break
                # It names each of several fixed times in one gap.
                wanted[when.astimezone(UTC)] = None
            for written in (expression, quartz(expression)):
                times = times_of(written, name)
                what = f"{written} in {name} around {change}"
                assert between(times, first, last) == list(wanted), what
                assert times.count(to_millis(first), to_millis(last)) == len(wanted), what


def berlin(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin"))


def shown(times: FireTimes, first: str, last: str) -> list[str]:
    found = between(times, berlin(first), berlin(last))
    return [f"{f.astimezone(ZoneInfo('Europe/Berlin')):%d %H:%M:%S%z}" for f in found]


def test_a_fixed_time_with_seconds_in_the_gap_runs_once_at_its_end() -> None:
    times = times_of("15,30,45 30 2 * * ?", "Europe/Berlin")
    assert shown(times, "2026-03-29", "2026-03-30") == ["29 03:00:00+0200"]
    assert times.count(to_millis(berlin("2026-03-29")), to_millis(berlin("2026-03-30"))) == 1


def test_a_fixed_time_with_seconds_in_the_overlap_runs_in_the_first_pass() -> None:
    assert shown(times_of("15 30 2 * * ?", "Europe/Berlin"), "2026-10-25", "2026-10-26") == [
        "25 02:30:15+0200"
    ]


@pytest.mark.parametrize(
    "written", ["0 0/30 2 * * ?", "0 */30 2 * * ?", "0 /30 2 * * ?", "0 0,30/30 2 * * ?"]
)
def test_a_step_without_end_is_a_wildcard_however_it_is_written(written: str) -> None:
    times = times_of(written, "Europe/Berlin")
    assert shown(times, "2026-10-25", "2026-10-26") == [
        "25 02:00:00+0200",
        "25 02:30:00+0200",
        "25 02:00:00+0100",
        "25 02:30:00+0100",
    ]
    assert shown(times, "2026-03-29", "2026-03-30") == []


# -- counting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "days", "count"),
    [
        ("0 * * * * ?", 365, 365 * 1440),
        ("* * * * * ?", 365, 365 * 86_400),
        ("* * * * *", 365, 365 * 1440),
        ("0 0 12 ? * MON-FRI", 365, 261),
        ("0 0 0 29 2 ?", 40 * 365, 10),
        ("0 0 0 ? 2 MON#5", 40 * 365, 1),
    ],
)
def test_counting_takes_a_few_steps_a_month(
    expression: str, days: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    of = Days.of
    monkeypatch.setattr(Days, "of", lambda self, month: asked.append(month) or of(self, month))
    times = times_of(expression, "Europe/Berlin")
    first = to_millis(berlin("2026-01-01"))
    asked.clear()
    assert times.count(first, first + days * 86_400_000 - 1) == count
    # Twice a year the clocks change, and what lies in the gap is looked up.
    assert len(asked) < days / 365 * 30 + 20


def test_what_almost_never_comes_is_found_in_bounded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    of = Days.of
    monkeypatch.setattr(Days, "of", lambda self, month: asked.append(month) or of(self, month))
    times = times_of("0 0 0 ? 2 MON#5", "America/New_York")
    asked.clear()
    assert f"{from_millis(times.after(to_millis(NOW)) or 0):%a %Y-%m-%d}" == "Mon 2044-02-29"
    assert f"{from_millis(times.before(to_millis(NOW)) or 0):%a %Y-%m-%d}" == "Mon 2016-02-29"
    assert len(asked) < 1000


# -- years ---------------------------------------------------------------------------------------------------


def test_years_are_those_named_and_no_others() -> None:
    times = times_of("0 0 12 1 1 ? 2027,2030-2032,2090/4")
    assert [f.year for f in forward(times, NOW, 99)] == [2027, 2030, 2031, 2032, 2090, 2094, 2098]
    assert times.before(to_millis(NOW)) is None
    assert times.count(to_millis(NOW), to_millis(datetime(2200, 1, 1, tzinfo=UTC))) == 7


@pytest.mark.parametrize("years", ["2003", "1969", "2001-2005", "2100", "2150", "2150/5", "9999"])
def test_years_that_are_past_or_beyond_2099_never_fire_and_that_is_told(years: str) -> None:
    with pytest.warns(UserWarning, match="year.*never fires"):
        made = cron(f"0 0 12 * * ? {years}", "UTC")
    assert trigger_for(made).first_state(to_millis(NOW)).next_fire_time is None
    if int(years[:4]) >= 2100:
        assert forward(trigger_for(made).fire_times(TriggerState(None, 0)), NOW, 1) == []


def test_years_end_with_2099_when_they_are_named() -> None:
    assert forward(times_of("0 0 0 31 12 ? 2098-2126"), NOW, 9) == [
        datetime(2098, 12, 31, tzinfo=UTC),
        datetime(2099, 12, 31, tzinfo=UTC),
    ]


def test_a_step_after_a_name_does_nothing_as_in_quartz_and_that_is_told() -> None:
    for stepped, plain in (("MON/2", "MON"), ("MON-FRI/2", "MON-FRI")):
        with pytest.warns(UserWarning, match=f"step in {stepped} does nothing"):
            made = cron(f"0 0 12 ? * {stepped}", "UTC")
        assert trigger_for(made).fingerprint == trigger_for(cron(f"0 0 12 ? * {plain}", "UTC")).fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [f"{f:%a}" for f in forward(times_of("0 0 * * MON-FRI/2"), NOW, 3)] == ["Fri", "Mon", "Wed"]


# -- the same meaning ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0 0/15 * * * ?", "0 */15 * * * ?"),
        ("0 0 12 ? * MON-FRI", " 0  0 12 ?\t* 2-6 "),
        ("0 0 12 1 JAN,MAR ?", "0 0 12 1 1,3 ?"),
        ("0 0 12 L * ?", "0 0 12 L-0 * ?"),
        ("0 0 12 ? * 7", "0 0 12 ? * L"),
        ("0 0 12 ? * 6L", "0 0 12 ? * fril"),
        ("0 0 12 * * ?", "0 0 12 ? * *"),
        ("0 0 12 * * ? *", "0 0 12 * * ?"),
        ("5 4 * * 7", "5 4 * * sun"),
    ],
)
def test_what_means_the_same_has_the_same_text(one: str, other: str) -> None:
    assert parse_cron(one) == parse_cron(other)
    assert parse_cron(one).text == parse_cron(other).text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0 0 12 * * ?", "0 0 13 * * ?"),
        ("0 0 12 * * ?", "0 0 12 * * ? 2026-2099"),
        ("0 0 12 1W * ?", "0 0 12 1 * ?"),
        ("0 0 12 L * ?", "0 0 12 LW * ?"),
        ("0 0 12 ? * 6L", "0 0 12 ? * 6#4"),
        ("0 0 13 * 5", "0 0 * * 5"),
        ("0 0-10 2 * * ?", "0 0-11 2 * * ?"),
        ("0 0/20 2 * * ?", "0 0,20,40 2 * * ?"),
    ],
)
def test_what_means_something_else_has_another_text(one: str, other: str) -> None:
    assert parse_cron(one).text != parse_cron(other).text


# -- what is refused -----------------------------------------------------------------------------------------

# Expression, the field that is at fault, and its value there.
BAD = [
    ("60 * * * * ?", "second", "60"),
    ("-1 * * * * ?", "second", "-1"),
    ("1- * * * * ?", "second", "1-"),
    ("1-2-3 * * * * ?", "second", "1-2-3"),
    ("1/2/3 * * * * ?", "second", "1/2/3"),
    ("1--2 * * * * ?", "second", "1--2"),
    ("*5 * * * * ?", "second", "*5"),
    ("5* * * * * ?", "second", "5*"),
    ("*-5 * * * * ?", "second", "*-5"),
    ("** * * * * ?", "second", "**"),
    ("? * * * * ?", "second", "?"),
    ("L * * * * ?", "second", "L"),
    ("0.5 * * * * ?", "second", "0.5"),
    ("1e1 * * * * ?", "second", "1E1"),
    ("0x1 * * * * ?", "second", "0X1"),
    ("+5 * * * * ?", "second", "+5"),
    ("5_0 * * * * ?", "second", "5_0"),
    ("٣ * * * * ?", "second", "٣"),
    ("² * * * * ?", "second", "²"),
    ("99999999999999999999 * * * * ?", "second", "9999"),
    ("5,,6 * * * * ?", "second", ""),
    (",5 * * * * ?", "second", ""),
    ("5, * * * * ?", "second", ""),
    (", * * * * ?", "second", ""),
    ("*/0 * * * * ?", "second", "*/0"),
    ("*/60 * * * * ?", "second", "*/60"),
    ("0/99999 * * * * ?", "second", "0/99999"),
    ("10-20/60 * * * * ?", "second", "10-20/60"),
    ("*/ * * * * ?", "second", "*/"),
    ("/ * * * * ?", "second", "/"),
    ("*/-5 * * * * ?", "second", "*/-5"),
    ("*/5-10 * * * * ?", "second", "*/5-10"),
    ("MON * * * * ?", "second", "MON"),
    ("H * * * * ?", "second", "H"),
    ("R * * * * ?", "second", "R"),
    ("0-60 * * * * ?", "second", "60"),
    ("0 60 * * * ?", "minute", "60"),
    ("0 61-5 * * * ?", "minute", "61"),
    ("0 5-61 * * * ?", "minute", "61"),
    ("0 0/ * * * ?", "minute", "0/"),
    ("0 0/60 * * * ?", "minute", "0/60"),
    ("0 W * * * ?", "minute", "W"),
    ("0 five * * * ?", "minute", "FIVE"),
    ("0 1.5 * * * ?", "minute", "1.5"),
    ("0 1:30 * * * ?", "minute", "1:30"),
    ("0 0 24 * * ?", "hour", "24"),
    ("0 0 */24 * * ?", "hour", "*/24"),
    ("0 0 9-25 * * ?", "hour", "25"),
    ("0 0 9am * * ?", "hour", "9AM"),
    ("0 0 L * * ?", "hour", "L"),
    ("0 0 12# * * ?", "hour", "12#"),
    ("0 0 ? * * ?", "hour", "?"),
    ("0 0 12 0 * ?", "day_of_month", "0"),
    ("0 0 12 32 * ?", "day_of_month", "32"),
    ("0 0 12 1-32 * ?", "day_of_month", "32"),
    ("0 0 12 */32 * ?", "day_of_month", "*/32"),
    ("0 0 12 0W * ?", "day_of_month", "0"),
    ("0 0 12 32W * ?", "day_of_month", "32"),
    ("0 0 12 W * ?", "day_of_month", "W"),
    ("0 0 12 WL * ?", "day_of_month", "WL"),
    ("0 0 12 LL * ?", "day_of_month", "LL"),
    ("0 0 12 L15 * ?", "day_of_month", "L15"),
    ("0 0 12 15L * ?", "day_of_month", "15L"),
    ("0 0 12 L-31 * ?", "day_of_month", "L-31"),
    ("0 0 12 L- * ?", "day_of_month", "L-"),
    ("0 0 12 L-W * ?", "day_of_month", "L-W"),
    ("0 0 12 L+1 * ?", "day_of_month", "L+1"),
    ("0 0 12 L/2 * ?", "day_of_month", "L/2"),
    ("0 0 12 1,15W * ?", "day_of_month", "15W"),
    ("0 0 12 1-5W * ?", "day_of_month", "1-5W"),
    ("0 0 12 15W/2 * ?", "day_of_month", "15W/2"),
    ("0 0 12 ?? * ?", "day_of_month", "??"),
    ("0 0 12 ?/2 * ?", "day_of_month", "?/2"),
    ("0 0 12 MON * ?", "day_of_month", "MON"),
    ("0 0 12 1#2 * ?", "day_of_month", "1#2"),
    ("0 0 12 C * ?", "day_of_month", "C"),
    ("0 0 12 30 2 ?", "day_of_month", "day 30 never comes in month 2"),
    ("0 0 12 31 2,4,6,9,11 ?", "day_of_month", "day 31 never comes in month 2,4,6,9,11"),
    ("0 0 12 31W 4 ?", "day_of_month", "31"),
    ("0 0 12 L-29 2 ?", "day_of_month", "29"),
    ("0 0 12 29 2 ? 2027", "day_of_month", "of 2027"),
    ("0 0 12 ? 2 MON#5 2027-2030", "day_of_month", "MON number 5 never comes in month 2"),
    ("0 0 12 1 0 ?", "month", "0"),
    ("0 0 12 1 13 ?", "month", "13"),
    ("0 0 12 1 */13 ?", "month", "*/13"),
    ("0 0 12 1 JANUARY ?", "month", "JANUARY"),
    ("0 0 12 1 JAN- ?", "month", "JAN-"),
    ("0 0 12 1 JAN-3 ?", "month", "JAN-3"),
    ("0 0 12 1 1-MAR ?", "month", "1-MAR"),
    ("0 0 12 1 FOO ?", "month", "FOO"),
    ("0 0 12 1 JAN-FOO ?", "month", "FOO"),
    ("0 0 12 1 L ?", "month", "L"),
    ("0 0 12 1 MON ?", "month", "MON"),
    ("0 0 12 ? * 0", "day_of_week", "0"),
    ("0 0 12 ? * 8", "day_of_week", "8"),
    ("0 0 12 ? * 1-8", "day_of_week", "8"),
    ("0 0 12 ? * */8", "day_of_week", "*/8"),
    ("0 0 12 ? * MONDAY", "day_of_week", "MONDAY"),
    ("0 0 12 ? * MO", "day_of_week", "MO"),
    ("0 0 12 ? * JAN", "day_of_week", "JAN"),
    ("0 0 12 ? * MON-6", "day_of_week", "MON-6"),
    ("0 0 12 ? * MON-", "day_of_week", "MON-"),
    ("0 0 12 ? * -FRI", "day_of_week", "-FRI"),
    ("0 0 12 ? * LMON", "day_of_week", "LMON"),
    ("0 0 12 ? * 0L", "day_of_week", "0"),
    ("0 0 12 ? * 8L", "day_of_week", "8"),
    ("0 0 12 ? * L-3", "day_of_week", "L-3"),
    ("0 0 12 ? * L,MON", "day_of_week", "L"),
    ("0 0 12 ? * MON,FRIL", "day_of_week", "FRIL"),
    ("0 0 12 ? * 6#0", "day_of_week", "6#0"),
    ("0 0 12 ? * 6#6", "day_of_week", "6#6"),
    ("0 0 12 ? * 6#", "day_of_week", "6#"),
    ("0 0 12 ? * #3", "day_of_week", "#3"),
    ("0 0 12 ? * 8#3", "day_of_week", "8"),
    ("0 0 12 ? * FRI#L", "day_of_week", "FRI#L"),
    ("0 0 12 ? * 6#3,2#1", "day_of_week", "6#3"),
    ("0 0 12 ? * MON,#2", "day_of_week", "#2"),
    ("0 0 12 ? * 2W", "day_of_week", "2W"),
    ("0 0 12 * * ?5", "day_of_month and day_of_week", "?5"),
    ("0 0 12 * * *", "day_of_month and day_of_week", "*"),
    ("0 0 12 ? * ?", "day_of_month and day_of_week", "?"),
    ("0 0 12 1 * MON", "day_of_month and day_of_week", "MON"),
    ("0 0 12 * * ? abc", "year", "ABC"),
    ("0 0 12 * * ? 26", "year", "26"),
    ("0 0 12 * * ? 12026", "year", "12026"),
    ("0 0 12 * * ? 2030-2026", "year", "2030-2026"),
    ("0 0 12 * * ? 2026-", "year", "2026-"),
    ("0 0 12 * * ? 2026/0", "year", "2026/0"),
    ("0 0 12 * * ? ?", "year", "?"),
    ("0 0 12 * * ? -2026", "year", "-2026"),
    ("", "fields", "0"),
    ("   ", "fields", "0"),
    ("@reboot", "fields", "1"),
    ("@dayly", "fields", "1"),
    ("@", "fields", "1"),
    ("@daily @daily", "fields", "2"),
    ("R * * * *", "minute", "R"),
    ("R(0-5) * * * *", "minute", "R(0-5)"),
    ("H,5 * * * *", "minute", "H"),
    ("H-5 * * * *", "minute", "H-5"),
    ("H() * * * *", "minute", "H()"),
    ("H(5-5) * * * *", "minute", "H(5-5)"),
    ("H(9-5) * * * *", "minute", "H(9-5)"),
    ("H(0-60) * * * *", "minute", "60"),
    ("H/0 * * * *", "minute", "H/0"),
    ("H/60 * * * *", "minute", "H/60"),
    ("H(0-29)/60 * * * *", "minute", "H(0-29)/60"),
    ("* H(0-24) * * *", "hour", "24"),
    ("* * H(0-28) * *", "day_of_month", "0"),
    ("* * HW * *", "day_of_month", "HW"),
    ("* * * H(JAN-MAR) *", "month", "H(JAN-MAR)"),
    ("* * * * H(1-8)", "day_of_week", "8"),
    ("* * * * H#2", "day_of_week", "H#2"),
    ("@every 5m", "fields", "2"),
    ("* * * *", "fields", "4"),
    ("0 0 12 * * ? 2026 UTC", "fields", "8"),
    ("60 * * * *", "minute", "60"),
    ("* 24 * * *", "hour", "24"),
    ("* * 0 * *", "day_of_month", "0"),
    ("* * * 13 *", "month", "13"),
    ("* * * * 8", "day_of_week", "8"),
    ("* * * * L", "day_of_week", "L"),
    ("*/90 * * * *", "minute", "*/90"),
    ("0 0 31 2 *", "day_of_month", "day 31 and * never comes in month 2"),
    ("0 0 30 2 */2", "day_of_month", "day 30 and SUN TUE THU SAT never comes in month 2"),
    ("2-59/3 1,9,22 11-26 1-6 ? 2003", "day_of_month and day_of_week", "2003"),
]


@pytest.mark.parametrize(("expression", "field", "value"), BAD)
def test_a_bad_expression_is_refused_by_field_value_and_what_is_allowed(
    expression: str, field: str, value: str
) -> None:
    with pytest.raises(ValueError, match="allowed") as refused:
        cron(expression)
    said = str(refused.value)
    assert said.startswith(f"cron expression {expression!r}: {field}: ")
    assert value in said.removeprefix(f"cron expression {expression!r}: {field}: ")


def test_there_are_enough_bad_ones() -> None:
    assert len({expression for expression, _, _ in BAD}) > 130


@pytest.mark.parametrize("what", [None, 5, 5.0, b"* * * * *", ["*"] * 5, ("*",), {}, object()])
def test_what_is_no_text_is_refused_as_well(what: object) -> None:
    with pytest.raises(ValueError, match="expression: expected text"):
        cron(what)  # type: ignore[arg-type]


def test_a_long_one_is_not_repeated_at_length() -> None:
    with pytest.raises(ValueError, match="allowed") as refused:
        cron("1," * 50_000 + "x * * * * ?")
    assert len(str(refused.value)) < 400


# Not one character each: most of that is refused for its number of fields.
SCRAPS = [
    "*",
    "?",
    "L",
    "W",
    "#",
    "/",
    "-",
    ",",
    "0",
    "1",
    "7",
    "31",
    "59",
    "60",
    "2026",
    "MON",
    "JAN",
    "LW",
    "H",
    "H(1-5)",
    "@daily",
    "\x00",
]


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(SCRAPS), min_size=1, max_size=4).map("".join), max_size=8).map(" ".join)
    | st.text(max_size=40)
)
def test_any_text_is_either_understood_or_refused_with_a_value_error(expression: str) -> None:
    said = "allowed"
    try:
        assert parse_cron(expression, "an entry").times.size > 0
    except ValueError as refused:
        said = str(refused)
    assert said.count("allowed") == 1
