"""Fire times in closed form: counted and found by arithmetic, never by walking through them.

*Wall time* is the reading of a clock on the wall of some time zone, as milliseconds since 1970-01-01 00:00 on
that same clock; it knows no zone and never jumps. :class:`Grid` works on wall time and on real moments alike.
All of these are :class:`~celery_misfire.misfire.FireTimes`, but for :class:`Days` and the two kinds of times
of a day, which :class:`WallTimes` puts together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import NamedTuple, Protocol

from celery_misfire.misfire import ENDLESS, FireTimes, to_millis

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

# The longest search for a day before the answer is "never": leap days on one weekday can be 40 years apart.
HORIZON_MONTHS = 50 * 12
HORIZON = HORIZON_MONTHS * 31 * DAY

# The first and last moments that a datetime can hold in every zone.
FIRST_MOMENT = to_millis(datetime(1, 1, 3, tzinfo=UTC))
LAST_MOMENT = to_millis(datetime(9999, 12, 30, tzinfo=UTC))


class Grid:
    """`start`, and every `interval` after it; the rules of Quartz's ``SimpleTriggerImpl.getFireTimeAfter``.

    :param interval: None for the start alone.
    :param repeat_count: how many slots follow the start, ``ENDLESS`` for no limit. Slots count, not runs.
    :param end: no fire time at or after it, but for a start that is the end itself (as in Quartz).
    """

    __slots__ = ("_interval", "_slots", "_start")

    def __init__(
        self, start: int, interval: int | None, repeat_count: int = ENDLESS, end: int | None = None
    ) -> None:
        last = LAST_MOMENT if end is None else min(end - 1, LAST_MOMENT)
        self._start = start
        self._interval = interval or 1
        # The division rounds down, so a start after the end has no slot.
        self._slots = max((last - start) // self._interval + 1, int(start == end))
        if interval is None or repeat_count == 0:
            self._slots = min(self._slots, 1)
        elif repeat_count != ENDLESS:
            self._slots = min(self._slots, repeat_count + 1)

    def _slots_before(self, moment: int) -> int:
        return min(max(0, -((self._start - moment) // self._interval)), self._slots)

    def after(self, moment: int) -> int | None:
        slot = self._slots_before(moment + 1)
        return self._start + slot * self._interval if slot < self._slots else None

    def before(self, moment: int) -> int | None:
        slot = self._slots_before(moment) - 1
        return self._start + slot * self._interval if slot >= 0 else None

    def count(self, first: int, last: int) -> int:
        return max(0, self._slots_before(last + 1) - self._slots_before(first))


class Bounded:
    """The fire times from `first` to `last`, both included; None: no bound on that side."""

    __slots__ = ("_first", "_last", "_times")

    def __init__(self, times: FireTimes, first: int | None, last: int | None) -> None:
        self._times = times
        self._first = FIRST_MOMENT if first is None else first
        self._last = LAST_MOMENT if last is None else last

    def after(self, moment: int) -> int | None:
        found = self._times.after(max(moment, self._first - 1))
        return None if found is None or found > self._last else found

    def before(self, moment: int) -> int | None:
        found = self._times.before(min(moment, self._last + 1))
        return None if found is None or found < self._first else found

    def count(self, first: int, last: int) -> int:
        first, last = max(first, self._first), min(last, self._last)
        return self._times.count(first, last) if first <= last else 0


class Preceded:
    """A first fire time, and the later ones that follow it."""

    __slots__ = ("_first", "_rest")

    def __init__(self, first: int, rest: FireTimes) -> None:
        self._first, self._rest = first, rest

    def after(self, moment: int) -> int | None:
        return self._first if moment < self._first else self._rest.after(moment)

    def before(self, moment: int) -> int | None:
        found = self._rest.before(moment)
        return self._first if found is None and moment > self._first else found

    def count(self, first: int, last: int) -> int:
        return self._rest.count(first, last) + (first <= self._first <= last)


# --------------------------------------------------------------------------------------------------------
# Days

_EPOCH_DAY = date(1970, 1, 1).toordinal()

# Months are numbered from January of the year 0, days from 1970-01-01.
_FIRST_MONTH, _LAST_MONTH = 2 * 12, 9999 * 12


class Month(NamedTuple):
    """What the calendar of one month looks like.

    :param number: months since January of the year 0.
    :param first: its first day, counted from 1970-01-01.
    :param length: how many days it has.
    :param weekday: the weekday of its first day, 0 = Sunday.
    """

    number: int
    first: int
    length: int
    weekday: int

    @property
    def days(self) -> int:
        """All its days, as bits (bit 0 = the first)."""
        return (1 << self.length) - 1


@lru_cache(maxsize=4096)
def month_of(month: int) -> Month:
    """Return the calendar of a month by its number."""
    first, following = (date(m // 12, m % 12 + 1, 1).toordinal() for m in (month, month + 1))
    return Month(month, first - _EPOCH_DAY, following - first, first % 7)


def month_and_bit(day: int) -> tuple[int, int]:
    """Return the number of the month that a day lies in, and the bit that stands for it there."""
    when = date.fromordinal(day + _EPOCH_DAY)
    return when.year * 12 + when.month - 1, when.day - 1


def day_bits(days: Iterable[int]) -> int:
    """Return days of the month, 1 to 31, as bits."""
    return sum(1 << (day - 1) for day in days)


def weekday_bits(weekdays: Iterable[int]) -> int:
    """Return weekdays (0 = Sunday) as bits of six weeks that begin with a Sunday.

    Shifted right by the weekday of its first day they are the days of a month.
    """
    return sum(1 << (day + 7 * week) for day in weekdays for week in range(6))


class Days:
    """Some of the days of the calendar, kept as bits of a month, so that a month costs a few operations.

    :param pick: returns the days of a month as bits (bit 0 = the first); bits beyond its end are ignored.
    :param months: the months that count, 1 = January.
    :param years: the years that count; None: all.
    """

    __slots__ = ("_first", "_last", "_months", "_pick", "_years")

    def __init__(
        self,
        pick: Callable[[Month], int],
        months: Iterable[int] = range(1, 13),
        years: frozenset[int] | None = None,
    ) -> None:
        self._pick = pick
        self._months = sum(1 << (month - 1) for month in months)
        self._years = years
        self._first, self._last = _FIRST_MONTH, _LAST_MONTH
        if years is not None:
            self._first, self._last = (min(years) * 12, max(years) * 12 + 11) if years else (0, 0)

    def of(self, month: int) -> int:
        """Return these days of a month, given by its number, as bits."""
        if not self._months >> month % 12 & 1:
            return 0
        if self._years is not None and month // 12 not in self._years:
            return 0
        calendar = month_of(month)
        return self._pick(calendar) & calendar.days

    def has(self, day: int) -> bool:
        month, bit = month_and_bit(day)
        return bool(self.of(month) >> bit & 1)

    def first_from(self, day: int) -> int | None:
        """Return the first of these days from `day` on, None when there is none within 50 years."""
        month, bit = month_and_bit(day)
        days = self.of(month) >> bit << bit
        horizon = self._last if self._years is not None else min(month + HORIZON_MONTHS, _LAST_MONTH)
        month = max(month, self._first - 1)
        while not days and month < horizon:
            month += 1
            days = self.of(month)
        return month_of(month).first + (days & -days).bit_length() - 1 if days else None

    def last_to(self, day: int) -> int | None:
        """Return the last of these days up to `day`, None when there is none within 50 years."""
        month, bit = month_and_bit(day)
        days = self.of(month) & (2 << bit) - 1
        horizon = self._first if self._years is not None else max(month - HORIZON_MONTHS, _FIRST_MONTH)
        month = min(month, self._last + 1)
        while not days and month > horizon:
            month -= 1
            days = self.of(month)
        return month_of(month).first + days.bit_length() - 1 if days else None

    def count(self, day: int, to_day: int) -> int:
        """Return how many of these days there are from `day` on and before `to_day`."""
        (month, bit), (to_month, to_bit) = month_and_bit(day), month_and_bit(to_day)
        whole = sum(self.of(m).bit_count() for m in range(month, to_month))
        last = self.of(to_month) & (1 << to_bit) - 1
        return whole + last.bit_count() - (self.of(month) & (1 << bit) - 1).bit_count()


# --------------------------------------------------------------------------------------------------------
# Times of a day, and both together


class TimesOfDay(Protocol):
    """Some times of the day, in order and counted from 0; all in milliseconds since midnight."""

    size: int

    def rank(self, time: int) -> int:
        """Return how many of them lie before `time`."""

    def time(self, rank: int) -> int:
        """Return the one with this number."""


class ClockTimes:
    """The times of the day with these hours, minutes and seconds, each sorted; never multiplied out."""

    __slots__ = ("_hours", "_minutes", "_per_hour", "_seconds", "size")

    def __init__(self, hours: tuple[int, ...], minutes: tuple[int, ...], seconds: tuple[int, ...]) -> None:
        self._hours, self._minutes, self._seconds = hours, minutes, seconds
        self._per_hour = len(minutes) * len(seconds)
        self.size = len(hours) * self._per_hour

    def rank(self, time: int) -> int:
        minute_of_day, second = divmod(-(-time // SECOND), 60)
        hour, minute = divmod(minute_of_day, 60)
        at = bisect_left(self._hours, hour)
        rank = at * self._per_hour
        if at < len(self._hours) and self._hours[at] == hour:
            at = bisect_left(self._minutes, minute)
            rank += at * len(self._seconds)
            if at < len(self._minutes) and self._minutes[at] == minute:
                rank += bisect_left(self._seconds, second)
        return rank

    def time(self, rank: int) -> int:
        hour, rank = divmod(rank, self._per_hour)
        minute, second = divmod(rank, len(self._seconds))
        return self._hours[hour] * HOUR + self._minutes[minute] * MINUTE + self._seconds[second] * SECOND


class StepTimes:
    """The times of the day from `start` on in steps of `interval`, up to `end` itself."""

    __slots__ = ("_interval", "_start", "size")

    def __init__(self, start: int, end: int, interval: int) -> None:
        self._start, self._interval = start, interval
        self.size = (end - start) // interval + 1

    def rank(self, time: int) -> int:
        return min(max(0, -((self._start - time) // self._interval)), self.size)

    def time(self, rank: int) -> int:
        return self._start + rank * self._interval


class WallTimes:
    """The wall times at these times of these days."""

    __slots__ = ("_days", "_times")

    def __init__(self, days: Days, times: TimesOfDay) -> None:
        self._days, self._times = days, times

    def after(self, moment: int) -> int | None:
        day, time = divmod(moment, DAY)
        if self._days.has(day):
            rank = self._times.rank(time + 1)
            if rank < self._times.size:
                return day * DAY + self._times.time(rank)
        found = self._days.first_from(day + 1)
        return None if found is None else found * DAY + self._times.time(0)

    def before(self, moment: int) -> int | None:
        day, time = divmod(moment, DAY)
        if rank := self._rank_on(day, time):
            return day * DAY + self._times.time(rank - 1)
        found = self._days.last_to(day - 1)
        return None if found is None else found * DAY + self._times.time(self._times.size - 1)

    def count(self, first: int, last: int) -> int:
        if last < first:
            return 0
        (day, time), (to_day, to_time) = divmod(first, DAY), divmod(last + 1, DAY)
        whole_days = self._days.count(day, to_day) * self._times.size
        return whole_days + self._rank_on(to_day, to_time) - self._rank_on(day, time)

    def _rank_on(self, day: int, time: int) -> int:
        """Return how many fire times of this day lie before this time of it."""
        return self._times.rank(time) if self._days.has(day) else 0


class MonthGrid:
    """The wall time `start`, and the same day and time of every `step` months after it.

    Each is counted from the start, so a day that a month does not have is its last day, in that month alone:
    31 January, 28 February, 31 March. (Quartz adds month after month and stays on the 28th.)
    """

    __slots__ = ("_bit", "_month", "_slots", "_step", "_time")

    def __init__(self, start: int, step: int) -> None:
        day, self._time = divmod(start, DAY)
        self._month, self._bit = month_and_bit(day)
        self._step = step
        self._slots = (_LAST_MONTH - self._month) // step + 1

    def _slot(self, slot: int) -> int:
        calendar = month_of(self._month + slot * self._step)
        return (calendar.first + min(self._bit, calendar.length - 1)) * DAY + self._time

    def _slots_before(self, moment: int) -> int:
        slot = (month_and_bit(moment // DAY)[0] - self._month) // self._step
        if slot < 0:
            return 0
        return slot + (self._slot(slot) < moment) if slot < self._slots else self._slots

    def after(self, moment: int) -> int | None:
        slot = self._slots_before(moment + 1)
        return self._slot(slot) if slot < self._slots else None

    def before(self, moment: int) -> int | None:
        slot = self._slots_before(moment) - 1
        return self._slot(slot) if slot >= 0 else None

    def count(self, first: int, last: int) -> int:
        return max(0, self._slots_before(last + 1) - self._slots_before(first))
