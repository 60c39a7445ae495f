"""When a schedule fires: any Celery schedule as a :class:`~celery_misfire.misfire.Trigger`.

Moments are integer milliseconds UTC. What is called *wall time* here is the reading of a clock on the wall of
some time zone, as milliseconds since 1970-01-01 00:00 on that same clock; it knows no zone and never jumps.

The layers, each of them a :class:`~celery_misfire.misfire.FireTimes`: :class:`Grid` and :class:`CrontabTimes`
count in closed form, on either time line; :class:`FirstPass` and :class:`EveryPass` carry wall times over to
real moments in a :class:`Zone`, and differ in what a change of the clocks means; :class:`AskedTimes` is for
schedules that only they themselves understand.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import cached_property, lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from celery_misfire.misfire import (
    ENDLESS,
    FireTimes,
    Trigger,
    TriggerState,
    TriggerType,
    from_millis,
    to_millis,
)

__all__ = [
    "AskedTimes",
    "AskedTrigger",
    "CronTrigger",
    "CrontabTimes",
    "EveryPass",
    "FirstPass",
    "Grid",
    "GridTrigger",
    "RelativeTrigger",
    "Zone",
    "interval_millis",
    "trigger_for",
    "zone_for",
]

_SECOND = 1_000
_MINUTE = 60 * _SECOND
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR

# How far a search looks before it says "never": leap days on a given weekday are up to 40 years apart.
_HORIZON_MONTHS = 50 * 12
_HORIZON = _HORIZON_MONTHS * 31 * _DAY

# What a datetime can hold in every zone.
_FIRST_MOMENT = to_millis(datetime(1, 1, 3, tzinfo=UTC))
_LAST_MOMENT = to_millis(datetime(9999, 12, 30, tzinfo=UTC))


# --------------------------------------------------------------------------------------------------------
# Triggers


def trigger_for(schedule: Any) -> Trigger:
    """Return the trigger of a schedule, without running any code of a schedule class that is not known.

    :param schedule: a number of seconds, a timedelta, or a schedule object. Celery's ``schedule`` and
        ``crontab`` and django-celery-beat's ``TzAwareCrontab`` and ``clocked`` are computed from their
        fields, also as subclasses that leave the arithmetic alone. A class of this package brings its
        trigger along, by a method ``as_trigger()``. Anything else is asked through its own methods.
    :raises ValueError: when it can never be scheduled: not a schedule at all, an interval below one
        millisecond, a crontab with an empty field, a clocked time without a zone.
    """
    if isinstance(schedule, int | float | timedelta):
        return _interval(schedule)
    carried = getattr(schedule, "as_trigger", None)
    if callable(carried):
        trigger: Trigger = carried()
        return trigger
    match _known_arithmetic(schedule.__class__):
        case "schedule":
            return _relative(schedule) if schedule.relative else _interval(schedule.run_every)
        case "crontab":
            return _crontab(schedule)
        case "clocked":
            return _clocked(schedule)
    if any(callable(getattr(schedule, name, None)) for name in ("remaining_estimate", "is_due")):
        return AskedTrigger(schedule)
    raise ValueError(f"needs a schedule, a number of seconds or a timedelta, got {schedule!r}")


# A class is known by name: importing django-celery-beat would need a configured Django.
_KNOWN_CLASSES = {
    ("celery.schedules", "schedule"): "schedule",
    ("celery.schedules", "crontab"): "crontab",
    ("django_celery_beat.clockedschedule", "clocked"): "clocked",
}
_KNOWN_MODULES = {module for module, _ in _KNOWN_CLASSES} | {"django_celery_beat.tzcrontab"}

# The fields of a crontab, and how many values a complete one has.
_CRONTAB = {"minute": 60, "hour": 24, "day_of_month": 31, "month_of_year": 12, "day_of_week": 7}

# A subclass that defines any of these has fire times of its own.
_ARITHMETIC = {"is_due", "remaining_estimate", "remaining_delta", "_delta_to_next", "now", "maybe_make_aware"}
_ARITHMETIC |= {"run_every", "relative", "clocked_time"} | _CRONTAB.keys()


@lru_cache(maxsize=1024)
def _known_arithmetic(cls: type) -> str | None:
    """Return which arithmetic of ours gives the fire times of this class, None when none does."""
    for base in cls.__mro__:
        if base.__module__ not in _KNOWN_MODULES and not _ARITHMETIC.isdisjoint(vars(base)):
            return None
        if known := _KNOWN_CLASSES.get((base.__module__, base.__qualname__)):
            return known
    return None


@dataclass(frozen=True, slots=True)
class GridTrigger:
    """Fires at the start, and then every `interval`: Quartz's SimpleTrigger, and Celery's intervals.

    :param interval: milliseconds; None when it fires once.
    :param repeat_count: repetitions after the first fire, ``ENDLESS`` for ever, 0 without an interval.
    :param start: the first fire time, also when it is past; None: one interval after first sight, as
        Celery does, and at first sight itself when there is no interval.
    :param end: no fire time at or after it; None for no end.
    """

    interval: int | None
    repeat_count: int = ENDLESS
    start: int | None = None
    end: int | None = None

    @property
    def trigger_type(self) -> TriggerType:
        if self.repeat_count == 0:
            return TriggerType.ONCE
        return TriggerType.ENDLESS if self.repeat_count == ENDLESS else TriggerType.FIXED

    @property
    def fingerprint(self) -> str:
        return f"grid interval={self.interval} repeat={self.repeat_count} start={self.start} end={self.end}"

    def first_state(self, first_seen: int) -> TriggerState:
        start = first_seen + (self.interval or 0) if self.start is None else self.start
        state = TriggerState(None, start, repeat_count=self.repeat_count, end_time=self.end)
        return replace(state, next_fire_time=self.fire_times(state).after(start - 1))

    def fire_times(self, state: TriggerState) -> FireTimes:
        repeat_count = ENDLESS if state.repeat_count is None else state.repeat_count
        return Grid(state.start_time, self.interval, repeat_count, state.end_time)


@dataclass(frozen=True, slots=True)
class RelativeTrigger:
    """Celery's interval with ``relative=True``: the first fire is rounded down to the day, hour, minute or
    second, whichever is the largest that the interval reaches, in the zone of the schedule.

    Whole days stay on local midnight when the clocks change, also after the grid was started anew; other
    intervals are elapsed time from the first fire on.
    """

    interval: int
    zone: Zone

    trigger_type = TriggerType.ENDLESS

    @property
    def fingerprint(self) -> str:
        return f"relative interval={self.interval} zone={self.zone.name}"

    def first_state(self, first_seen: int) -> TriggerState:
        if self.interval >= _DAY:
            # Celery adds days on the wall clock, and all else in elapsed time.
            wall = self.zone.wall(first_seen) + self.interval
            first = FirstPass(Grid(wall - wall % _DAY, _DAY), self.zone).after(first_seen)
        else:
            start = first_seen + self.interval
            unit = next((unit for unit in (_HOUR, _MINUTE, _SECOND) if unit <= self.interval), 1)
            first = start - self.zone.wall(start) % unit
        return TriggerState(first, first_seen if first is None else first, repeat_count=ENDLESS)

    def fire_times(self, state: TriggerState) -> FireTimes:
        if self.interval % _DAY:
            return Grid(state.start_time, self.interval)
        # Midnight is looked for again, because a start in a gap stands after it.
        wall = self.zone.wall(state.start_time)
        return FirstPass(Grid(wall - wall % _DAY, self.interval), self.zone)


@dataclass(frozen=True, slots=True)
class CronTrigger:
    """Fires at times that depend on nothing but the schedule."""

    times: FireTimes
    fingerprint: str

    trigger_type = TriggerType.CRON
    interval = None

    def first_state(self, first_seen: int) -> TriggerState:
        return TriggerState(self.times.after(first_seen), first_seen)

    def fire_times(self, state: TriggerState) -> FireTimes:
        return self.times


class AskedTrigger:
    """Fires when the schedule object says so, see :class:`AskedTimes`.

    The fingerprint is the class and a digest of the object's attributes: their values may be secret.
    """

    trigger_type = TriggerType.CRON
    interval = None

    def __init__(self, schedule: Any) -> None:
        self._schedule = schedule

    @cached_property
    def fingerprint(self) -> str:
        cls = self._schedule.__class__
        names = vars(self._schedule).keys() - _HOST_ATTRIBUTES
        if any((base.__module__, base.__qualname__) == ("celery.schedules", "solar") for base in cls.__mro__):
            # Its observer holds the moment that it was last asked about.
            names -= {"cal", "ephem"}
        fields = {name: vars(self._schedule)[name] for name in names}
        digest = hashlib.sha256(_canonical(fields).encode()).hexdigest()[:16]
        return f"{cls.__module__}.{cls.__qualname__} {digest} zone={_zone_of(self._schedule).name}"

    def first_state(self, first_seen: int) -> TriggerState:
        return TriggerState(AskedTimes(self._schedule).after(first_seen), first_seen)

    def fire_times(self, state: TriggerState) -> FireTimes:
        return AskedTimes(self._schedule, state.next_fire_time)


# What Celery hangs on every schedule; the zone is named by itself.
_HOST_ATTRIBUTES = frozenset({"app", "_app", "nowfun", "tz", "utc_enabled"})


def _canonical(value: Any) -> str:
    """Return text that is the same for equal values in any process."""
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{_canonical(k)}:{_canonical(v)}" for k, v in value.items())) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ",".join(sorted(map(_canonical, value))) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_canonical, value)) + "]"
    return _without_addresses(repr(value))


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def interval_millis(value: object) -> int:
    """Return an interval, given as a number of seconds or a timedelta, in whole milliseconds (rounded).

    :raises ValueError: when it is neither, or shorter than a millisecond.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not math.isfinite(seconds)
        or seconds < 0.001
    ):
        raise ValueError(f"needs an interval of at least a millisecond, got {value!r}")
    return round(seconds * 1000)


def _interval(every: object) -> Trigger:
    return GridTrigger(interval_millis(every))


def _relative(schedule: Any) -> Trigger:
    return RelativeTrigger(interval_millis(schedule.run_every), _zone_of(schedule))


def _clocked(schedule: Any) -> Trigger:
    at = schedule.clocked_time
    if not isinstance(at, datetime) or at.utcoffset() is None:
        raise ValueError(f"clocked_time: needs a time zone, got {at}")
    return GridTrigger(None, 0, start=to_millis(at))


def _crontab(schedule: Any) -> Trigger:
    fields = {name: tuple(sorted(getattr(schedule, name))) for name in _CRONTAB}
    for name, values in fields.items():
        if not values:
            raise ValueError(f"crontab: {name} is empty, so it never fires")
    complete = {name for name, size in _CRONTAB.items() if len(fields[name]) == size}
    wildcard = any(name in complete or _is_wildcard(schedule, name) for name in ("minute", "hour"))
    wall, zone = CrontabTimes(*fields.values()), _zone_of(schedule)
    text = " ".join("*" if name in complete else ",".join(map(str, v)) for name, v in fields.items())
    return CronTrigger(
        EveryPass(wall, zone) if wildcard else FirstPass(wall, zone),
        f"crontab {text} {'every' if wildcard else 'first'} pass zone={zone.name}",
    )


def _is_wildcard(schedule: Any, name: str) -> bool:
    written = getattr(schedule, f"_orig_{name}", None)
    return isinstance(written, str) and written.startswith("*")


def _zone_of(schedule: Any) -> Zone:
    return zone_for(getattr(schedule, "tz", None))


# --------------------------------------------------------------------------------------------------------
# Counting in closed form


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
        last = _LAST_MOMENT if end is None else min(end - 1, _LAST_MOMENT)
        self._start = start
        self._interval = interval or 1
        # Rounded down, so a start after the end has no slot.
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


_EPOCH_DAY = date(1970, 1, 1).toordinal()

# Months are numbered from January of the year 0, days from 1970-01-01.
_FIRST_MONTH, _LAST_MONTH = 2 * 12, 9999 * 12


@lru_cache(maxsize=4096)
def _month(month: int) -> tuple[int, int, int]:
    """Return the first day of a month, its length, and the weekday of the first day (0 = Sunday)."""
    first, following = (date(m // 12, m % 12 + 1, 1).toordinal() for m in (month, month + 1))
    return first - _EPOCH_DAY, following - first, first % 7


def _month_and_bit(day: int) -> tuple[int, int]:
    when = date.fromordinal(day + _EPOCH_DAY)
    return when.year * 12 + when.month - 1, when.day - 1


class CrontabTimes:
    """The wall times that a crontab names: every field must match, also both day fields (Celery's rule).

    Days are kept as bits of a month (bit 0 = the first), so that a month costs a few operations; times of
    the day as the sorted hours and minutes, never multiplied out.

    :param weekdays: 0 = Sunday.
    """

    __slots__ = ("_days", "_months", "_per_day", "_weekdays", "hours", "minutes")

    def __init__(
        self,
        minutes: tuple[int, ...],
        hours: tuple[int, ...],
        days: Iterable[int],
        months: Iterable[int],
        weekdays: Iterable[int],
    ) -> None:
        self.minutes, self.hours = minutes, hours
        self._per_day = len(minutes) * len(hours)
        self._days = sum(1 << (day - 1) for day in days)
        self._months = sum(1 << (month - 1) for month in months)
        # Six weeks in a row: shifted by the weekday of its first day, they are the weekdays of a month.
        self._weekdays = sum(1 << (day + 7 * week) for day in weekdays for week in range(6))

    def after(self, moment: int) -> int | None:
        day, rest = divmod(moment, _DAY)
        if self._has_day(day):
            rank = self._rank(rest // _MINUTE + 1)
            if rank < self._per_day:
                return day * _DAY + self._time(rank)
        found = self._day_from(day + 1)
        return None if found is None else found * _DAY + self._time(0)

    def before(self, moment: int) -> int | None:
        day, rest = divmod(moment, _DAY)
        if rank := self._rank_on(day, rest):
            return day * _DAY + self._time(rank - 1)
        found = self._day_to(day - 1)
        return None if found is None else found * _DAY + self._time(self._per_day - 1)

    def count(self, first: int, last: int) -> int:
        if last < first:
            return 0
        (day, time_of_day), (to_day, to_time) = divmod(first, _DAY), divmod(last + 1, _DAY)
        whole_days = self._count_days(day, to_day) * self._per_day
        return whole_days + self._rank_on(to_day, to_time) - self._rank_on(day, time_of_day)

    def _rank_on(self, day: int, time_of_day: int) -> int:
        """Return how many fire times of this day lie before this time of it."""
        return self._rank(-(-time_of_day // _MINUTE)) if self._has_day(day) else 0

    def _rank(self, minute_of_day: int) -> int:
        hour, minute = divmod(minute_of_day, 60)
        at = bisect_left(self.hours, hour)
        rank = at * len(self.minutes)
        if at < len(self.hours) and self.hours[at] == hour:
            rank += bisect_left(self.minutes, minute)
        return rank

    def _time(self, rank: int) -> int:
        hour, minute = divmod(rank, len(self.minutes))
        return self.hours[hour] * _HOUR + self.minutes[minute] * _MINUTE

    def _days_of(self, month: int) -> int:
        if not self._months >> month % 12 & 1:
            return 0
        _, length, weekday = _month(month)
        return self._days & self._weekdays >> weekday & (1 << length) - 1

    def _has_day(self, day: int) -> bool:
        month, bit = _month_and_bit(day)
        return bool(self._days_of(month) >> bit & 1)

    def _day_from(self, day: int) -> int | None:
        month, bit = _month_and_bit(day)
        days = self._days_of(month) >> bit << bit
        horizon = min(month + _HORIZON_MONTHS, _LAST_MONTH)
        while not days and month < horizon:
            month += 1
            days = self._days_of(month)
        return _month(month)[0] + (days & -days).bit_length() - 1 if days else None

    def _day_to(self, day: int) -> int | None:
        month, bit = _month_and_bit(day)
        days = self._days_of(month) & (2 << bit) - 1
        horizon = max(month - _HORIZON_MONTHS, _FIRST_MONTH)
        while not days and month > horizon:
            month -= 1
            days = self._days_of(month)
        return _month(month)[0] + days.bit_length() - 1 if days else None

    def _count_days(self, day: int, to_day: int) -> int:
        (month, bit), (to_month, to_bit) = _month_and_bit(day), _month_and_bit(to_day)
        whole = sum(self._days_of(m).bit_count() for m in range(month, to_month))
        last = self._days_of(to_month) & (1 << to_bit) - 1
        return whole + last.bit_count() - (self._days_of(month) & (1 << bit) - 1).bit_count()


# --------------------------------------------------------------------------------------------------------
# From the wall clock to real moments


class Stretch(NamedTuple):
    """A time, `start` to `end` (left out), during which a zone keeps one offset from UTC.

    :param ceiling: what the clock on the wall had reached, but not shown, at the start. Higher than what it
        shows then: it was put back; lower: it was put forward over a gap.
    """

    start: int
    end: int
    offset: int
    ceiling: int

    def highest(self, moment: int) -> int:
        """Return the highest wall time shown up to this moment, itself included."""
        return max(moment + self.offset, self.ceiling - 1)


class Zone:
    """A time zone as stretches of constant offset. :func:`zone_for` makes it.

    :param name: says which it is, the same in every process.
    """

    def __init__(self, tz: tzinfo) -> None:
        self._tz = tz
        self.name = _without_addresses(str(tz))

    def offset(self, moment: int) -> int:
        """Return what its clocks are ahead of UTC at a moment, in milliseconds."""
        inside = min(max(moment, _FIRST_MOMENT), _LAST_MOMENT)
        offset = from_millis(inside).astimezone(self._tz).utcoffset()
        assert offset is not None
        return offset // timedelta(milliseconds=1)

    def at(self, moment: int) -> Stretch:
        """Return a stretch that holds this moment (the zone may well keep its offset beyond it)."""
        for stretch in _stretches(self, moment // _BLOCK):
            if moment < stretch.end:
                break
        return stretch

    def between(self, first: int, last: int) -> Iterator[Stretch]:
        """Iterate over the stretches that hold any moment from `first` to `last`."""
        while first <= last:
            stretch = self.at(first)
            yield stretch
            first = stretch.end

    def wall(self, moment: int) -> int:
        """Return what its clocks show at a moment."""
        return moment + self.at(moment).offset

    def highest(self, moment: int) -> int:
        """Return the highest wall time that its clocks have shown up to a moment, itself included."""
        return self.at(moment).highest(moment)

    def reached(self, wall: int) -> int:
        """Return when its clocks first show this wall time, or a later one because they jump over it."""
        stretch = self.at(wall - _DAY)
        while wall - stretch.offset >= stretch.end:
            stretch = self.at(stretch.end)
        return max(wall - stretch.offset, stretch.start)


class _SystemZone(Zone):
    """The zone that the operating system is set to; Celery's own class for it errs around changes."""

    def offset(self, moment: int) -> int:
        return time.localtime(moment // _SECOND).tm_gmtoff * _SECOND


_zones: dict[int, Zone] = {}


def zone_for(tz: Any) -> Zone:
    """Return the zone of a tzinfo of any make (zoneinfo, datetime, dateutil, pytz, Celery's), or of a name.

    Everything in the same zone shares what is known about it; None stands for UTC.
    """
    tz = _tzinfo(tz)
    # By identity, as not every tzinfo is hashable; the zone keeps its tzinfo, so the number stays taken.
    zone = _zones.get(id(tz))
    if zone is None:
        if len(_zones) >= 1024:
            _zones.clear()
        is_system = (type(tz).__module__, type(tz).__name__) == ("celery.utils.time", "LocalTimezone")
        zone = _zones[id(tz)] = (_SystemZone if is_system else Zone)(tz)
    return zone


def _tzinfo(tz: Any) -> tzinfo:
    if isinstance(tz, str):
        return ZoneInfo(tz)
    if hasattr(tz, "localize") and getattr(tz, "zone", None):
        # pytz: a datetime that holds one has a fixed offset.
        return ZoneInfo(tz.zone)
    zone: tzinfo = tz or UTC
    return zone


# Stretches are found and kept by blocks of this length.
_BLOCK = 400 * _DAY

# Between two probes the offset is taken to change at most once. The closest two changes in the time zone
# database are a week apart.
_PROBE = 2 * _DAY


@lru_cache(maxsize=4096)
def _stretches(zone: Zone, block: int) -> tuple[Stretch, ...]:
    begin, limit = block * _BLOCK, (block + 1) * _BLOCK
    # Clocks that are put back by up to a day have shown everything again well within three.
    start = begin - 3 * _DAY
    ceiling = start + zone.offset(start)
    found = []
    while start < limit:
        offset = zone.offset(start)
        end = _next_change(zone, start, offset, limit)
        if end > begin:
            if start < begin:
                start, ceiling = begin, max(ceiling, begin + offset)
            found.append(Stretch(start, end, offset, ceiling))
        ceiling = max(ceiling, end + offset)
        start = end
    return tuple(found)


def _next_change(zone: Zone, start: int, offset: int, limit: int) -> int:
    """Return the first moment after `start` with another offset, `limit` when there is none before it."""
    same = start
    while same < limit:
        other = min(same + _PROBE, limit)
        if zone.offset(other) == offset:
            same = other
            continue
        while other - same > 1:
            middle = (same + other) // 2
            if zone.offset(middle) == offset:
                same = middle
            else:
                other = middle
        return other
    return limit


class FirstPass:
    """Every wall time once, whatever the clocks do: Debian cron's rule for fixed times.

    A time that comes twice fires the first time; times inside a gap fire together, at its end.
    """

    __slots__ = ("_wall", "_zone")

    def __init__(self, wall: FireTimes, zone: Zone) -> None:
        self._wall, self._zone = wall, zone

    def after(self, moment: int) -> int | None:
        here = self._zone.at(moment)
        wall = self._wall.after(here.highest(moment))
        if wall is None:
            return None
        soon = wall - here.offset
        return soon if soon < here.end else self._zone.reached(wall)

    def before(self, moment: int) -> int | None:
        wall = self._wall.before(self._zone.highest(moment - 1) + 1)
        return None if wall is None else self._zone.reached(wall)

    def count(self, first: int, last: int) -> int:
        if last < first:
            return 0
        total = self._wall.count(self._zone.highest(first - 1) + 1, self._zone.highest(last))
        for stretch in self._zone.between(first, last):
            shown = stretch.start + stretch.offset
            if stretch.start >= first and shown > stretch.ceiling:
                total -= max(0, self._wall.count(stretch.ceiling, shown) - 1)
        return total


class EveryPass:
    """Every moment whose wall time matches: Debian cron's rule for expressions with a wildcard.

    What comes twice fires twice; what lies inside a gap does not fire.
    """

    __slots__ = ("_wall", "_zone")

    def __init__(self, wall: FireTimes, zone: Zone) -> None:
        self._wall, self._zone = wall, zone

    def after(self, moment: int) -> int | None:
        horizon = moment + _HORIZON
        moment += 1
        while moment <= horizon:
            here = self._zone.at(moment)
            wall = self._wall.after(moment + here.offset - 1)
            if wall is not None and wall - here.offset < here.end:
                return wall - here.offset
            # No clock is a day off UTC: from the end of this stretch on, none shows less than a day before.
            wall = self._wall.after(here.end - _DAY)
            if wall is None:
                return None
            moment = max(here.end, wall - _DAY)
        return None

    def before(self, moment: int) -> int | None:
        horizon = moment - _HORIZON
        moment -= 1
        while moment >= horizon:
            here = self._zone.at(moment)
            wall = self._wall.before(moment + here.offset + 1)
            if wall is not None and wall - here.offset >= here.start:
                return wall - here.offset
            wall = self._wall.before(here.start + _DAY)
            if wall is None:
                return None
            moment = min(here.start - 1, wall + _DAY)
        return None

    def count(self, first: int, last: int) -> int:
        return sum(
            self._wall.count(max(first, s.start) + s.offset, min(last, s.end - 1) + s.offset)
            for s in self._zone.between(first, last)
        )


# --------------------------------------------------------------------------------------------------------
# Schedules that only they themselves understand

# What the virtual clock answers for "never again"; later than any moment.
_NEVER = 1 << 62

# So many fire times are walked through one by one, and so often one question is put to ``is_due``.
_MAX_STEPS = 10_000
_MAX_LOOKS = 1_000


class AskedTimes:
    """The fire times of a schedule object, asked from the object itself on a virtual clock.

    They are found one after the other, each as what follows the one before, beginning with `anchor`. Beyond
    10,000 of them nothing is walked: :meth:`count` estimates the rest by the density of those, and
    :meth:`after` and :meth:`before` take it that what the object answers does not hang on the moment that
    it is asked at.

    What the object raises passes through.

    :param anchor: a known fire time; None when there is none.
    :raises ValueError: by every method, when the object answers no later time than it was asked about.
    """

    def __init__(self, schedule: Any, anchor: int | None = None) -> None:
        self._clock = _VirtualClock(schedule)
        self._chain = [_NEVER if anchor is None else anchor]

    def after(self, moment: int) -> int | None:
        chain = self._chain
        if chain[0] <= moment and self._walk(chain, moment):
            found = chain[bisect_right(chain, moment)]
        else:
            found = self._clock.ask(moment)
        return None if found == _NEVER else found

    def before(self, moment: int) -> int | None:
        chain = self._chain
        if chain[0] < moment:
            if self._walk(chain, moment - 1):
                return chain[bisect_left(chain, moment) - 1]
            return self._last(chain[-1], moment)
        back = _MINUTE
        while back < _HORIZON:
            found = self._clock.ask(moment - back)
            if found < moment:
                return self._last(found, moment)
            back *= 4
        return None

    def count(self, first: int, last: int) -> int:
        if last < first:
            return 0
        chain = self._chain if self._chain[0] <= first else [self._clock.ask(first - 1)]
        complete = self._walk(chain, last)
        walked = bisect_right(chain, last) - bisect_left(chain, first)
        if complete:
            return walked
        gap = (chain[-1] - chain[0]) / (len(chain) - 1)
        return walked + round((last - max(first, chain[-1])) / gap)

    def _walk(self, chain: list[int], moment: int) -> bool:
        """Extend the chain beyond the moment; return False when that takes too many steps."""
        while chain[-1] <= moment:
            if len(chain) >= _MAX_STEPS:
                return False
            chain.append(self._clock.ask(chain[-1]))
        return True

    def _last(self, found: int, moment: int) -> int:
        """Return the last fire time before `moment`, where one was found, in few questions."""
        none_after = moment - 1
        while found < none_after:
            middle = (found + none_after) // 2
            following = self._clock.ask(middle)
            if following < moment:
                found = following
            else:
                none_after = middle
        return found


class _VirtualClock:
    """A copy of a schedule object that takes any moment for now.

    ``remaining_estimate`` is asked, as it names the moment; where a class puts its own ``is_due`` on top of
    another's ``remaining_estimate``, ``is_due`` is, as often as it says it wants to be.
    """

    def __init__(self, schedule: Any) -> None:
        cls = schedule.__class__
        # Not copy.copy: subclasses with other arguments inherit a __reduce__ that does not fit them.
        self._schedule = object.__new__(cls)
        # ``now`` as well, for classes that override it and never look at ``nowfun``.
        vars(self._schedule).update(vars(schedule), nowfun=self._now, now=self._now)
        self._tz = _tzinfo(getattr(schedule, "tz", None))
        self._ask_is_due = _is_due_decides(cls)
        self._moment = 0

    def ask(self, moment: int) -> int:
        """Return what fires next when the last run was at this moment."""
        self._moment = moment
        found = self._by_is_due() if self._ask_is_due else self._by_remaining()
        return found if found <= _LAST_MOMENT else _NEVER

    def _now(self) -> datetime:
        # In the schedule's own zone, as older crontabs take the fields of the moment as they stand.
        return from_millis(self._moment).astimezone(self._tz)

    def _by_remaining(self) -> int:
        asked, found = self._moment, self._remaining()
        if found > asked:
            return found
        # A schedule for one fixed time names it for ever; it has ended. Any other should have moved on.
        self._moment += _DAY
        if self._remaining() == found:
            return _NEVER
        raise self._stuck(asked, f"it answers {from_millis(found)}")

    def _remaining(self) -> int:
        remaining = self._schedule.remaining_estimate(self._now())
        if not isinstance(remaining, timedelta):
            raise ValueError(f"{self._class_name}: needs a timedelta to remain, got {remaining!r}")
        return self._moment + _ceil_millis(remaining)

    def _by_is_due(self) -> int:
        asked, last_run_at = self._moment, self._now()
        for _ in range(_MAX_LOOKS):
            due, wait = self._schedule.is_due(last_run_at)
            if due and self._moment > asked:
                return self._moment
            if not isinstance(wait, int | float) or not wait > 0:
                raise self._stuck(asked, f"is_due wants to be asked again in {wait!r} seconds")
            self._moment += _ceil_millis(timedelta(seconds=min(wait, _HORIZON / _SECOND)))
            if self._moment >= asked + _HORIZON:
                return _NEVER
        raise self._stuck(asked, f"is_due was not due in {_MAX_LOOKS} looks, up to {self._now()}")

    def _stuck(self, asked: int, what: str) -> ValueError:
        return ValueError(f"{self._class_name}: asked for the fire time after {from_millis(asked)}, {what}")

    @property
    def _class_name(self) -> str:
        return type(self._schedule).__qualname__


@lru_cache(maxsize=1024)
def _is_due_decides(cls: type) -> bool:
    """Return whether a class changes ``is_due`` and leaves what a parent estimates as remaining."""
    for base in cls.__mro__:
        own = vars(base)
        if "remaining_estimate" in own or "remaining_delta" in own:
            return False
        if "is_due" in own and base.__module__ not in _KNOWN_MODULES:
            return True
    return False


def _ceil_millis(delta: timedelta) -> int:
    # Up, so that the next question, asked at the answer, does not find the same fire time again.
    return -(delta // timedelta(milliseconds=-1))
