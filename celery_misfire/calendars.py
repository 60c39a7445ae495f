"""Quartz's calendars, which exclude fire times, for :class:`celery_misfire.schedules.excluding`.

Each names what is *excluded*, in its own time zone. It may have a `base`, another calendar, whose exclusions
count as well. Calendars compare by value and can be pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import date, datetime, time, tzinfo
from functools import lru_cache, partial
from typing import Any

from celery_misfire.misfire import from_millis
from celery_misfire.triggers.cron import WEEKDAYS, parse_cron
from celery_misfire.triggers.excluding import Excluded, ExcludingTrigger, Exclusion, PartsOfDays, WholeDays
from celery_misfire.triggers.wall_times import (
    DAY,
    MINUTE,
    SECOND,
    Days,
    Month,
    day_bits,
    month_of,
    weekday_bits,
)
from celery_misfire.triggers.zones import checked_timezone, without_addresses, zone_for

__all__ = [
    "Calendar",
    "ExcludingTrigger",
    "annual",
    "cron",
    "daily",
    "holiday",
    "monthly",
    "time_of_day",
    "weekly",
]


class Calendar:
    """What all calendars share.

    :param timezone: a name or a tzinfo; None: the time zone of the schedule.
    :param base: another calendar, whose exclusions count as well.
    """

    def __init__(self, *, timezone: str | tzinfo | None = None, base: Calendar | None = None) -> None:
        if base is not None and not isinstance(base, Calendar):
            raise ValueError(f"base: expected a calendar, got {base!r}")
        self.timezone = checked_timezone(timezone)
        self.base = base

    def exclusion(self) -> Exclusion:
        """Return what this calendar excludes by the clock on the wall, without its base."""
        raise NotImplementedError

    def excluded(self, default: Callable[[], tzinfo]) -> Excluded:
        """Return what this calendar and all that it stands on exclude, in real moments.

        :param default: returns the time zone of those that name none.
        """
        return Excluded(
            (calendar.exclusion(), zone_for(default() if calendar.timezone is None else calendar.timezone))
            for calendar in self.stacked()
        )

    def stacked(self) -> Iterator[Calendar]:
        """Iterate over the calendar and what it stands on."""
        calendar: Calendar | None = self
        while calendar is not None:
            yield calendar
            calendar = calendar.base

    def _fields(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def __repr__(self) -> str:
        named = {"timezone": self.timezone, "base": self.base}
        shown = [repr(value) for value in self._fields()]
        shown += [f"{name}={value!r}" for name, value in named.items() if value is not None]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        assert isinstance(other, Calendar)
        mine, its = ((*c._fields(), c.timezone, c.base) for c in (self, other))
        return mine == its

    def __hash__(self) -> int:
        return hash((type(self), repr(self.timezone), self.base))

    def __reduce__(self) -> Any:
        make = partial(type(self), timezone=self.timezone, base=self.base)
        return make, self._fields()


class holiday(Calendar):  # noqa: N801 - in lower case like Celery's schedules
    """Excludes whole days by their date (Quartz's HolidayCalendar).

    :param dates: dates, or a mapping that has them as keys, such as an object of the `holidays` package. That
        is asked date by date, as it makes up its years when it is asked.
    :raises ValueError: for anything that is no date.
    """

    def __init__(
        self, dates: Iterable[date], timezone: str | tzinfo | None = None, base: Calendar | None = None
    ) -> None:
        super().__init__(timezone=timezone, base=base)
        self.dates: Collection[date]
        if isinstance(dates, Mapping):
            self.dates = dates
            return
        if isinstance(dates, str) or not isinstance(dates, Iterable):
            raise ValueError(f"dates: expected dates, got {dates!r}")
        given = list(dates)
        for one in given:
            if not isinstance(one, date) or isinstance(one, datetime):
                raise ValueError(f"dates: expected a datetime.date, got {one!r}")
        self.dates = tuple(sorted(set(given)))

    def exclusion(self) -> Exclusion:
        dates = self.dates
        if isinstance(dates, Mapping):
            text = _identity(dates)
            days = Days(lru_cache(maxsize=1024)(partial(_among, dates)))
            return WholeDays(days, f"holiday {text}", runs_foreign_code=type(dates) is not dict)
        bits: dict[int, int] = {}
        for one in dates:
            month, bit = one.year * 12 + one.month - 1, one.day - 1
            first = month_of(month).first
            bits[first] = bits.get(first, 0) | 1 << bit
        text = ",".join(one.isoformat() for one in dates)
        return WholeDays(Days(lambda month: bits.get(month.first, 0)), f"holiday {text}")

    def _fields(self) -> tuple[Any, ...]:
        return (self.dates,)


def _identity(dates: Mapping[date, Any]) -> str:
    """Return text that is the same for a mapping in every process, and before and after it is asked."""
    if type(dates) is dict:
        return ",".join(sorted(str(one) for one in dates))
    # The repr of a `holidays` object grows with each year that it is asked about.
    named = ("country", "market", "subdiv", "categories", "observed")
    fields = {name: getattr(dates, name) for name in named if hasattr(dates, name)}
    if not fields:
        return without_addresses(repr(dates))
    cls = type(dates)
    shown = (f"{k}={sorted(v) if isinstance(v, set | frozenset) else v}" for k, v in fields.items())
    return " ".join((f"{cls.__module__}.{cls.__qualname__}", *shown))


def _among(dates: Collection[date], month: Month) -> int:
    first = from_millis(month.first * DAY).date().toordinal()
    return sum(1 << bit for bit in range(month.length) if date.fromordinal(first + bit) in dates)


class weekly(Calendar):  # noqa: N801
    """Excludes days of the week (Quartz's WeeklyCalendar).

    :param excluded_days: names of three letters, "MON" to "SUN".
    :raises ValueError: for another name, and when no day is left.
    """

    def __init__(
        self, excluded_days: Iterable[str], timezone: str | tzinfo | None = None, base: Calendar | None = None
    ) -> None:
        super().__init__(timezone=timezone, base=base)
        self.excluded_days = weekday_names("excluded_days", excluded_days)
        if len(self.excluded_days) == 7:
            raise ValueError("excluded_days: all seven; allowed are six at most")

    def exclusion(self) -> Exclusion:
        weeks = weekday_bits(map(WEEKDAYS.index, self.excluded_days))
        return WholeDays(Days(lambda month: weeks >> month.weekday), f"weekly {','.join(self.excluded_days)}")

    def _fields(self) -> tuple[Any, ...]:
        return (self.excluded_days,)


class annual(Calendar):  # noqa: N801
    """Excludes days of every year (Quartz's AnnualCalendar).

    :param days: "MM-DD", or dates whose year does not matter.
    :raises ValueError: for anything else, and for a day that no year has.
    """

    def __init__(
        self, days: Iterable[str | date], timezone: str | tzinfo | None = None, base: Calendar | None = None
    ) -> None:
        super().__init__(timezone=timezone, base=base)
        self.days = tuple(sorted({_month_and_day(day) for day in _several("days", days)}))

    def exclusion(self) -> Exclusion:
        bits = [
            day_bits(int(day[3:]) for day in self.days if int(day[:2]) == month) for month in range(1, 13)
        ]
        return WholeDays(Days(lambda month: bits[month.number % 12]), f"annual {','.join(self.days)}")

    def _fields(self) -> tuple[Any, ...]:
        return (self.days,)


def _month_and_day(day: object) -> str:
    if isinstance(day, date):
        return f"{day:%m-%d}"
    try:
        if isinstance(day, str) and len(day) == 5:
            # 2000 is a leap year, so 29 February is valid.
            return f"{date.fromisoformat(f'2000-{day}'):%m-%d}"
    except ValueError:
        pass
    raise ValueError(f"days: expected 'MM-DD' or a date, got {day!r}")


class monthly(Calendar):  # noqa: N801
    """Excludes days of every month (Quartz's MonthlyCalendar).

    :param days: whole numbers from 1 to 31.
    :raises ValueError: for anything else.
    """

    def __init__(
        self, days: Iterable[int], timezone: str | tzinfo | None = None, base: Calendar | None = None
    ) -> None:
        super().__init__(timezone=timezone, base=base)
        several = _several("days", days)
        for day in several:
            if type(day) is not int or not 1 <= day <= 31:
                raise ValueError(f"days: expected whole numbers from 1 to 31, got {day!r}")
        self.days = tuple(sorted(set(several)))

    def exclusion(self) -> Exclusion:
        bits = day_bits(self.days)
        return WholeDays(Days(lambda month: bits), f"monthly {','.join(map(str, self.days))}")

    def _fields(self) -> tuple[Any, ...]:
        return (self.days,)


class daily(Calendar):  # noqa: N801
    """Excludes a range of every day, with both ends.

    Quartz's DailyCalendar does, and excludes midnight as well.

    :param range_start: "HH:MM", "HH:MM:SS" or a :class:`datetime.time`.
    :param range_end: the same. A range over midnight is the inverse of the range between.
    :param invert: exclude everything but the range.
    :raises ValueError: for what is no time of the day, and for a range that ends before it starts.
    """

    def __init__(
        self,
        range_start: str | time,
        range_end: str | time,
        invert: bool = False,
        timezone: str | tzinfo | None = None,
        base: Calendar | None = None,
    ) -> None:
        super().__init__(timezone=timezone, base=base)
        self.range_start = time_of_day("range_start", range_start)
        self.range_end = time_of_day("range_end", range_end)
        if self.range_end < self.range_start:
            raise ValueError(
                f"range_end: {self.range_end} is before range_start, {self.range_start};"
                " for a range over midnight give the range between, with invert=True"
            )
        if not isinstance(invert, bool):
            raise ValueError(f"invert: expected True or False, got {invert!r}")
        self.invert = invert

    def exclusion(self) -> Exclusion:
        bounds: tuple[int, ...] = (millis_of_day(self.range_start), millis_of_day(self.range_end) + 1)
        if self.invert:
            bounds = (0, *bounds, DAY)
        text = f"daily {self.range_start}-{self.range_end}{' inverted' if self.invert else ''}"
        return PartsOfDays(Days(lambda month: -1), bounds, text)

    def _fields(self) -> tuple[Any, ...]:
        return self.range_start, self.range_end, self.invert


class cron(Calendar):  # noqa: N801
    """Excludes what a cron expression matches, in local time (Quartz's CronCalendar).

    An expression of 5 fields excludes whole minutes, one of 6 or 7 whole seconds.

    :param expression: as for :class:`celery_misfire.schedules.cron`.
    :raises ValueError: as there.
    """

    def __init__(
        self, expression: str, timezone: str | tzinfo | None = None, base: Calendar | None = None
    ) -> None:
        super().__init__(timezone=timezone, base=base)
        parse_cron(expression)
        self.expression = expression

    def exclusion(self) -> Exclusion:
        parsed = parse_cron(self.expression)
        bounds = _runs(parsed.hours, parsed.minutes, tuple(range(60)) if parsed.by_minute else parsed.seconds)
        return PartsOfDays(parsed.days, bounds, f"cron {parsed.text}{' minutes' if parsed.by_minute else ''}")

    def _fields(self) -> tuple[Any, ...]:
        return (self.expression,)


@lru_cache(maxsize=256)
def _runs(hours: tuple[int, ...], minutes: tuple[int, ...], seconds: tuple[int, ...]) -> tuple[int, ...]:
    """Return where the unbroken runs of these seconds begin and end, in turn, in milliseconds of the day."""
    runs = [(0, SECOND)]
    for values, unit in ((seconds, SECOND), (minutes, MINUTE), (hours, 60 * MINUTE)):
        joined: list[tuple[int, int]] = []
        for begin, end in [(value * unit + b, value * unit + e) for value in values for b, e in runs]:
            if joined and joined[-1][1] == begin:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((begin, end))
        runs = joined
    return tuple(bound for run in runs for bound in run)


# --------------------------------------------------------------------------------------------------------
# Times and days as they are written


def time_of_day(name: str, value: object) -> time:
    """Return a time of the day that was given as "HH:MM", "HH:MM:SS" or a time.

    :raises ValueError: when it is none of these.
    """
    try:
        if isinstance(value, str) and len(value) in (5, 8):
            value = time.fromisoformat(value)
    except ValueError:
        pass
    if not isinstance(value, time) or value.tzinfo is not None:
        raise ValueError(
            f"{name}: expected 'HH:MM', 'HH:MM:SS' or a datetime.time without a zone, got {value!r}"
        )
    return value


def millis_of_day(value: time) -> int:
    """Return the milliseconds from midnight to this time of the day."""
    return ((value.hour * 60 + value.minute) * 60 + value.second) * SECOND + value.microsecond // 1000


def weekday_names(name: str, values: object) -> tuple[str, ...]:
    """Return names of weekdays, from SUN on.

    :raises ValueError: when they are not names of three letters.
    """
    given = _several(name, values)
    for value in given:
        if not isinstance(value, str) or value.upper() not in WEEKDAYS:
            raise ValueError(f"{name}: expected {', '.join(WEEKDAYS)}, got {value!r}")
    return tuple(sorted({value.upper() for value in given}, key=WEEKDAYS.index))


def _several(name: str, values: object) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name}: expected a list, got {values!r}")
    return list(values)
