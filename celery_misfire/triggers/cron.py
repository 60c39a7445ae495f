"""Cron expressions: Quartz's with 6 or 7 fields, Unix's with 5.

The rules are those of Quartz's ``CronExpression``, version 2.5, and of Debian's crontab(5). What Quartz
half-accepts is refused.

croniter expands the aliases and draws the values of ``H``. It does not read the fields: it knows no ``LW``,
``L-3`` or ``FRIL``, numbers Quartz's weekdays otherwise, takes ``7-7`` for every day of the week, and its
releases read some expressions differently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial, reduce
from operator import and_, or_
from typing import NamedTuple, NoReturn, overload

from croniter import CroniterError, croniter

from celery_misfire.triggers.wall_times import ClockTimes, Days, Month, day_bits, weekday_bits

#: No expression that names years fires after this year; Quartz and croniter have the same limit.
LAST_YEAR = 2099

_Pick = Callable[[Month], int]


@dataclass(frozen=True)
class CronFields:
    """What a cron expression means.

    :param day: the rule for the days of a month, in words that are the same for equal rules.
    :param years: None for all.
    :param is_wildcard: it follows elapsed time when the clocks change; else its times are fixed ones.
    :param by_minute: written with 5 fields, so that it names minutes and not seconds.
    :param pick: the days of a month that match, as bits.
    :param notes: what the author of the expression should be warned of.
    """

    hours: tuple[int, ...]
    minutes: tuple[int, ...]
    seconds: tuple[int, ...]
    day: str
    months: tuple[int, ...]
    years: frozenset[int] | None
    is_wildcard: bool
    by_minute: bool
    pick: _Pick = field(compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def times(self) -> ClockTimes:
        return ClockTimes(self.hours, self.minutes, self.seconds)

    @property
    def days(self) -> Days:
        return Days(self.pick, self.months, self.years)

    @property
    def text(self) -> str:
        """The same text for all expressions that mean the same."""
        parts = ((self.seconds, 60), (self.minutes, 60), (self.hours, 24))
        times = " ".join("*" if len(values) == size else _listed(values) for values, size in parts)
        months = "*" if len(self.months) == 12 else _listed(self.months)
        years = "*" if self.years is None else _listed(self.years)
        passes = "every" if self.is_wildcard else "first"
        return f"{times} {self.day} {months} {years} {passes} pass"


def _listed(values: Iterable[int]) -> str:
    return ",".join(map(str, sorted(values)))


def parse_cron(expression: str, entry: str | None = None) -> CronFields:
    """Return what a cron expression means.

    :param entry: the name of the entry, which decides the value of ``H``; None: ``H`` is refused.
    :raises ValueError: naming the expression, the field, the value and what is allowed.
    """
    if not isinstance(expression, str):
        raise ValueError(f"expression: expected text, got {_short(repr(expression))}")
    # Entries with the same expression share what it means, unless it has an H.
    return _parsed(expression, entry if "H" in expression.upper() else None)


@lru_cache(maxsize=4096)
def _parsed(expression: str, entry: str | None) -> CronFields:
    try:
        fields = _without_alias(expression.upper().split())
        if len(fields) == 5:
            parsed = _unix(entry, *fields)
        elif len(fields) in (6, 7):
            parsed = _quartz(*fields)
        else:
            raise ValueError(
                f"fields: {len(fields)}; allowed are 5 (Unix: minute hour day_of_month month day_of_week)"
                " and 6 or 7 (Quartz: second minute hour day_of_month month day_of_week [year]), or one of"
                " @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually"
            )
        _refuse_impossible(parsed)
    except ValueError as refused:
        raise ValueError(f"cron expression {_short(expression)}: {refused}") from None
    return parsed


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _refuse_impossible(parsed: CronFields) -> None:
    if parsed.years is not None and not parsed.years:
        # All years lie beyond LAST_YEAR; the day may exist there.
        return
    # Within 28 years 29 February falls on every day of the week.
    years = range(2000, 2028) if parsed.years is None else parsed.years
    if not any(parsed.days.of(year * 12 + month - 1) for year in years for month in parsed.months):
        named = "" if parsed.years is None else f" of {_listed(parsed.years)}"
        raise ValueError(
            f"day_of_month: {parsed.day} never comes in month {_listed(parsed.months)}{named};"
            " allowed are dates that exist"
        )


def _without_alias(fields: list[str]) -> list[str]:
    """Return the fields that an alias such as @daily stands for; anything else stays as it is."""
    if len(fields) != 1 or not fields[0].startswith("@"):
        return fields
    try:
        # Without a hash_id: with one, croniter would draw the time of @daily.
        return [",".join(map(str, values)) for values in croniter.expand(fields[0])[0]]
    except CroniterError:
        return fields


def _unix(entry: str | None, minute: str, hour: str, day: str, month: str, weekday: str) -> CronFields:
    day, weekday = ("*" if text == "?" else text for text in (day, weekday))
    # A step without a star is none of crontab(5), and means the same in every program that takes it.
    written = [_STEP_ALONE.sub("*/", text) for text in (minute, hour, day, month, weekday)]
    # H/15 is */15 that begins later.
    star = [text.startswith(("*", "H/")) for text in written]
    minute, hour, day, month, weekday = (_without_hash(n, text, entry) for n, text in enumerate(written))
    minutes, hours = _values(_MINUTE, minute), _values(_HOUR, hour)
    if "," in day and (near := re.search("[0-9]+W", day)):
        # Lists with W are Quartz's alone.
        _DAY.refuse(near[0])
    (on_day, day_text), (on_weekday, weekday_text) = _days(day), _weekdays(_UNIX_WEEKDAY, weekday)
    # crontab(5): a day that matches either field will do, unless one of them begins with a star.
    either = not star[2] and not star[4]
    return CronFields(
        hours=hours.sorted,
        minutes=minutes.sorted,
        seconds=(0,),
        day=f"{day_text} {'or' if either else 'and'} {weekday_text}",
        months=_values(_UNIX_MONTH, month).sorted,
        years=None,
        is_wildcard=star[0] or star[1] or minutes.complete or hours.complete,
        by_minute=True,
        pick=partial(_any if either else _all_of, (on_day, on_weekday)),
    )


def _quartz(
    second: str, minute: str, hour: str, day: str, month: str, weekday: str, year: str = "*"
) -> CronFields:
    if (day == "?") == (weekday == "?"):
        raise ValueError(
            f"day_of_month and day_of_week: {_short(day)} and {_short(weekday)};"
            " allowed is '?' in exactly one of the two"
        )
    minutes, hours, months = _values(_MINUTE, minute), _values(_HOUR, hour), _values(_MONTH, month)
    pick, text = _days(day) if weekday == "?" else _weekdays(_WEEKDAY, weekday)
    years = None if year == "*" else frozenset(y for y in _values(_YEAR, year).found if y <= LAST_YEAR)
    return CronFields(
        hours=hours.sorted,
        minutes=minutes.sorted,
        seconds=_values(_SECOND, second).sorted,
        day=text,
        months=months.sorted,
        years=years,
        # "0/20" is how Quartz's users write "*/20".
        is_wildcard=minutes.open_ended or hours.open_ended or minutes.complete or hours.complete,
        by_minute=False,
        pick=pick,
        notes=tuple(
            f"{name}: the step in {text} does nothing, as in Quartz: after names there are no steps"
            for name, text in (("month", month), ("day_of_week", weekday))
            if _NAME_WITH_STEP.search(text)
        ),
    )


# --------------------------------------------------------------------------------------------------------
# Numbers, names, lists, ranges and steps


class _Field(NamedTuple):
    """What a field may hold.

    :param wraps: the number of values, after which a range starts again at `low`; 0: ranges only go upwards.
    :param names: stand for the numbers from `low` on.
    :param names_take_steps: a step after a name counts; in Quartz it does nothing.
    """

    name: str
    low: int
    high: int
    wraps: int
    longest_step: int
    names: tuple[str, ...] = ()
    also: str = ""
    names_take_steps: bool = False

    @overload
    def number(self, value: str) -> int: ...
    @overload
    def number(self, value: None) -> None: ...
    def number(self, value: str | None) -> int | None:
        """Return the number that a value stands for."""
        if value is None:
            return None
        if value in self.names:
            return self.low + self.names.index(value)
        number = int(value) if value.isdigit() else -1
        # Years outside the range are allowed; they never fire.
        if not (number >= 1000 if self is _YEAR else self.low <= number <= self.high):
            self.refuse(value)
        return number

    def refuse(self, value: str) -> NoReturn:
        names = f", {self.names[0]} to {self.names[-1]}" if self.names else ""
        raise ValueError(
            f"{self.name}: {_short(value)}; allowed are {self.low} to {self.high}{names}, *, lists (1,2),"
            f" ranges (1-5) and steps (*/2) of 1 to {self.longest_step}{self.also}"
        )


_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")

_SECOND = _Field("second", 0, 59, 60, 59)
_MINUTE = _Field("minute", 0, 59, 60, 59)
_HOUR = _Field("hour", 0, 23, 24, 23)
_DAY = _Field("day_of_month", 1, 31, 31, 31, also=", L, L-3, LW, L-3W, and 15W at the beginning")
_MONTH = _Field("month", 1, 12, 12, 12, _MONTHS)
_WEEKDAY = _Field("day_of_week", 1, 7, 7, 7, WEEKDAYS, ", or one of L, 6L, FRIL, 6#3, FRI#3 alone")
_UNIX_MONTH = _MONTH._replace(names_take_steps=True)
_UNIX_WEEKDAY = _Field("day_of_week", 0, 7, 7, 7, WEEKDAYS, ", or one of 5L, FRIL, 5#3, FRI#3 alone", True)
_YEAR = _Field("year", 1970, LAST_YEAR, 0, LAST_YEAR - 1970)

_UNIX_FIELDS = (_MINUTE, _HOUR, _DAY, _UNIX_MONTH, _UNIX_WEEKDAY)


class _Values(NamedTuple):
    """The values of a field.

    :param open_ended: some of them come from a star, or from a step that has no end of its own.
    """

    found: frozenset[int]
    open_ended: bool
    complete: bool

    @property
    def sorted(self) -> tuple[int, ...]:
        return tuple(sorted(self.found))


_ITEM = re.compile(
    r"(?:\*|(?P<first>[0-9]{1,4})(?:-(?P<last>[0-9]{1,4}))?|(?P<from>[A-Z]{3})(?:-(?P<to>[A-Z]{3}))?)?"
    r"(?:/(?P<step>[0-9]{1,4}))?"
)
_STEP_ALONE = re.compile(r"(?<![^,])/")
_NAME_WITH_STEP = re.compile(r"[A-Z]{3}/")


def _values(field: _Field, text: str) -> _Values:
    found: set[int] = set()
    open_ended = False
    for item in text.split(","):
        match = _ITEM.fullmatch(item)
        if not item or match is None:
            field.refuse(item)
        step = 1 if match["step"] is None else int(match["step"])
        if not 1 <= step <= field.longest_step:
            field.refuse(item)
        first, last = (
            field.number(match["first"] or match["from"]),
            field.number(match["last"] or match["to"]),
        )
        if first is None:
            first, last, open_ended = field.low, field.high, True
        elif match["from"] and not field.names_take_steps:
            step, last = 1, first if last is None else last
        elif last is None and match["step"] is None:
            last = first
        elif last is None:
            last, open_ended = max(first, field.high), True
        if last < first:
            if not field.wraps:
                field.refuse(item)
            last += field.wraps
        values = range(first, last + 1, step)
        found.update(field.low + (v - field.low) % field.wraps for v in values if field.wraps)
        found.update(v for v in values if not field.wraps)
    return _Values(frozenset(found), open_ended, len(found) == field.wraps)


_HASH = re.compile(r"H(?:\((?P<first>[0-9]{1,4})-(?P<last>[0-9]{1,4})\))?(?:/(?P<step>[0-9]{1,4}))?")


def _without_hash(index: int, text: str, entry: str | None) -> str:
    """Return a field of 5 with a value drawn for its H, the same value each time for one entry."""
    match, field = _HASH.fullmatch(text), _UNIX_FIELDS[index]
    if match is None:
        return text
    if entry is None:
        raise ValueError(
            f"{field.name}: {_short(text)} depends on the name of the entry, and there is none; H is allowed"
            " in the schedule of an entry, and in simulate() with entry='its name'"
        )
    first, last = field.low, field.low + field.wraps - 1
    if match["first"]:
        first, last = field.number(match["first"]), field.number(match["last"])
    step = int(match["step"] or 1)
    if first >= last or not 1 <= step <= field.longest_step:
        field.refuse(text)
    # The step is left to _values: with one as long as the field, releases of croniter draw different values.
    end = min(first + step - 1, last) if match["step"] else last
    drawn = str(first)
    if first < end:
        fields = ["*"] * 5
        fields[index] = f"H({first}-{end})"
        drawn = str(croniter.expand(" ".join(fields), entry.encode("utf-8", "surrogatepass"))[0][index][0])
    return f"{drawn}-{last}/{step}" if match["step"] else drawn


# --------------------------------------------------------------------------------------------------------
# Days

_DAY_RULE = re.compile(r"L(?:-(?P<before>[0-9]{1,4}))?(?P<last_weekday>W)?|(?P<near>[0-9]{1,4})W")
_WEEKDAY_RULE = re.compile(r"(?P<day>[0-9]{1,4}|[A-Z]{3})(?:L|#(?P<nth>[0-9]{1,4}))")


def _days(text: str) -> tuple[_Pick, str]:
    """Return the rule of a day_of_month field, and its text.

    In a list, each rule stands for itself, as in Quartz since 2.5 (2.3 dropped some of them or refused).
    """
    rules, plain = dict[str, _Pick](), list[str]()
    for item in text.split(","):
        if (match := _DAY_RULE.fullmatch(item)) is None:
            plain.append(item)
        elif match["near"] and plain:
            # In 1,15W the W may be meant for both days, and so most dialects refuse it: 15W,1 is clear.
            _DAY.refuse(item)
        else:
            pick, name = _day_rule(item, match)
            rules[name] = pick
    if plain:
        values = _values(_DAY, ",".join(plain))
        if values.complete:
            return _all, "*"
        rules[f"day {_listed(values.found)}"] = partial(_on_days, day_bits(values.found))
    names = sorted(rules)
    picks = tuple(rules[name] for name in names)
    return picks[0] if len(picks) == 1 else partial(_any, picks), " or ".join(names)


def _day_rule(text: str, match: re.Match[str]) -> tuple[_Pick, str]:
    """Return a rule for one day of the month, and its text."""
    if match["near"]:
        return partial(_near, day := _DAY.number(match["near"])), f"weekday nearest to day {day}"
    before = int(match["before"] or 0)
    if before > 30:
        _DAY.refuse(text)
    rule = _last_weekday if match["last_weekday"] else _last
    near = "weekday nearest to " if match["last_weekday"] else ""
    return partial(rule, before), f"{near}last day - {before}"


def _weekdays(field: _Field, text: str) -> tuple[_Pick, str]:
    """Return the rule of a day_of_week field, and its text."""
    if text == "L" and field is _WEEKDAY:
        text = "SAT"
    match = _WEEKDAY_RULE.fullmatch(text)
    if match is None:
        found = {(v - field.low) % 7 for v in _values(field, text).found}
        if len(found) == 7:
            return _all, "*"
        return partial(_on_weekdays, weekday_bits(found)), " ".join(WEEKDAYS[v] for v in sorted(found))
    weekday = (field.number(match["day"]) - field.low) % 7
    if match["nth"] is None:
        return partial(_last_of, weekday), f"last {WEEKDAYS[weekday]}"
    nth = int(match["nth"])
    if not 1 <= nth <= 5:
        field.refuse(text)
    return partial(_nth_of, weekday, nth), f"{WEEKDAYS[weekday]} number {nth}"


def _all(month: Month) -> int:
    return -1


def _on_days(days: int, month: Month) -> int:
    return days


def _on_weekdays(weeks: int, month: Month) -> int:
    return weeks >> month.weekday


def _all_of(picks: Iterable[_Pick], month: Month) -> int:
    return reduce(and_, (pick(month) for pick in picks))


def _any(picks: Iterable[_Pick], month: Month) -> int:
    return reduce(or_, (pick(month) for pick in picks))


def _last(before: int, month: Month) -> int:
    return 1 << (month.length - 1) >> before


def _last_weekday(before: int, month: Month) -> int:
    return _near(month.length - before, month)


def _near(day: int, month: Month) -> int:
    """The weekday, Monday to Friday, that is nearest to this day within its month."""
    if not 1 <= day <= month.length:
        return 0
    weekday = (month.weekday + day - 1) % 7
    if weekday == 6:
        day += -1 if day > 1 else 2
    elif weekday == 0:
        day += 1 if day < month.length else -2
    return 1 << (day - 1)


def _nth_of(weekday: int, nth: int, month: Month) -> int:
    return 1 << ((weekday - month.weekday) % 7 + 7 * (nth - 1))


def _last_of(weekday: int, month: Month) -> int:
    after = (month.weekday + month.length - 1 - weekday) % 7
    return 1 << (month.length - 1 - after)
