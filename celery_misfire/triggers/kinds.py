"""When a schedule fires: any Celery schedule as a :class:`~celery_misfire.misfire.Trigger`.

A schedule with fields is computed: :mod:`~celery_misfire.triggers.wall_times` has the times in closed form,
:mod:`~celery_misfire.triggers.zones` turns times on the wall clock into moments. Any other schedule is asked
(:mod:`~celery_misfire.triggers.asked`). Moments are integer milliseconds UTC.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from celery_misfire.misfire import ENDLESS, FireTimes, Trigger, TriggerState, TriggerType, to_millis
from celery_misfire.triggers.asked import KNOWN_MODULES, AskedTrigger
from celery_misfire.triggers.planned import PlannedSchedule
from celery_misfire.triggers.wall_times import (
    DAY,
    HOUR,
    LAST_MOMENT,
    MINUTE,
    SECOND,
    Bounded,
    ClockTimes,
    Days,
    Grid,
    MonthGrid,
    Preceded,
    WallTimes,
    day_bits,
    weekday_bits,
)
from celery_misfire.triggers.zones import EveryPass, FirstPass, OnlyShown, Zone, zone_of


def trigger_for(schedule: Any, entry: str | None = None) -> Trigger:
    """Return the trigger of a schedule, without running any code of a schedule class that is not known.

    :param schedule: a number of seconds, a timedelta, or a schedule object. Celery's ``schedule`` and
        ``crontab`` and django-celery-beat's ``TzAwareCrontab`` and ``clocked`` are computed from their
        fields, also as subclasses that leave the arithmetic alone. A class of this package brings its
        trigger along, by a method ``as_trigger()``. Anything else is asked through its own methods.
    :param entry: the name of the entry that has the schedule, for ``H`` in cron expressions; None when there
        is no entry.
    :raises ValueError: when it can never be scheduled: not a schedule at all, an interval below one
        millisecond, a crontab with an empty field, a clocked time without a zone, an ``H`` without an entry.
    """
    if isinstance(schedule, int | float | timedelta):
        return _interval(schedule)
    if entry is not None and isinstance(schedule, PlannedSchedule):
        schedule = schedule.bound_to(entry)
    as_trigger = getattr(schedule, "as_trigger", None)
    if callable(as_trigger):
        trigger: Trigger = as_trigger()
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

# The fields of a crontab, and how many values each has at most.
_CRONTAB = {"minute": 60, "hour": 24, "day_of_month": 31, "month_of_year": 12, "day_of_week": 7}

# A subclass that defines any of these has fire times of its own.
_ARITHMETIC = {"is_due", "remaining_estimate", "remaining_delta", "_delta_to_next", "now", "maybe_make_aware"}
_ARITHMETIC |= {"run_every", "relative", "clocked_time"} | _CRONTAB.keys()


@lru_cache(maxsize=1024)
def _known_arithmetic(cls: type) -> str | None:
    """Return whose arithmetic gives the fire times of this class; None when that is not known."""
    for base in cls.__mro__:
        if base.__module__ not in KNOWN_MODULES and not _ARITHMETIC.isdisjoint(vars(base)):
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

    runs_foreign_code = False
    follows_elapsed_time = True

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
    runs_foreign_code = False
    follows_elapsed_time = True

    @property
    def fingerprint(self) -> str:
        return f"relative interval={self.interval} zone={self.zone.name}"

    def first_state(self, first_seen: int) -> TriggerState:
        if self.interval >= DAY:
            # Celery adds days on the wall clock; it adds anything shorter in elapsed time.
            wall = self.zone.wall(first_seen) + self.interval
            first = FirstPass(Grid(wall - wall % DAY, DAY), self.zone).after(first_seen)
        else:
            first = start = first_seen + self.interval
            unit = next((unit for unit in (HOUR, MINUTE, SECOND) if unit <= self.interval), None)
            if unit is not None:
                # Never at or before first sight: the clock may have been set back in between.
                grid = Grid(0, unit)
                marks = EveryPass(grid, self.zone)
                # The hour that a clock leaves out when it goes forward begins after that, as in Celery.
                first = max(p.before(start + 1) or 0 for p in (marks, FirstPass(grid, self.zone))) or start
                first = first if first > first_seen else marks.after(first_seen) or start
        return TriggerState(first, first_seen if first is None else first, repeat_count=ENDLESS)

    def fire_times(self, state: TriggerState) -> FireTimes:
        if self.interval % DAY:
            return Grid(state.start_time, self.interval)
        # The start is rounded down to midnight again: when midnight lies in a gap, the start is after it.
        wall = self.zone.wall(state.start_time)
        return FirstPass(Grid(wall - wall % DAY, self.interval), self.zone)


@dataclass(frozen=True, slots=True)
class CronTrigger:
    """Fires at times that depend on nothing but the schedule.

    :param start: the first moment that counts; None: what comes after first sight.
    :param end: the last moment that counts; None for no end.
    :param max_runs: the number of runs in all; None for no limit.
    """

    times: FireTimes
    fingerprint: str
    start: int | None = None
    end: int | None = None
    max_runs: int | None = None

    trigger_type = TriggerType.CRON
    interval = None
    runs_foreign_code = False

    @property
    def follows_elapsed_time(self) -> bool:
        return isinstance(self.times, EveryPass)

    def first_state(self, first_seen: int) -> TriggerState:
        state = TriggerState(None, first_seen, end_time=self.end, max_runs=self.max_runs)
        return _first_state(self, state, self.start, first_seen)

    def fire_times(self, state: TriggerState) -> FireTimes:
        if self.start is None and self.end is None:
            return self.times
        return Bounded(self.times, self.start, self.end)


@dataclass(frozen=True, slots=True)
class CalendarTrigger:
    """Quartz's CalendarIntervalTrigger: every so many units of the calendar, counted from the start.

    Seconds, minutes and hours are elapsed time; days, weeks, months and years keep the time on the wall, also
    after the clocks were changed in between.

    :param unit: one of :data:`CALENDAR_UNITS`.
    :param start: the first fire time; None: one interval after first sight.
    :param end: no fire time at or after it; None for no end.
    :param skip: leave out a time that the clocks jump over; else it fires at the end of the gap.
    """

    every: int
    unit: str
    zone: Zone
    start: int | None = None
    end: int | None = None
    skip: bool = False

    trigger_type = TriggerType.CRON
    interval = None
    runs_foreign_code = False

    @property
    def follows_elapsed_time(self) -> bool:
        return self.unit in ("second", "minute", "hour")

    @property
    def fingerprint(self) -> str:
        return (
            f"calendar every={self.every} {self.unit} zone={self.zone.name}"
            f" start={self.start} end={self.end} skip={self.skip}"
        )

    def first_state(self, first_seen: int) -> TriggerState:
        return _first_state(self, TriggerState(None, first_seen, end_time=self.end), self.start, first_seen)

    def fire_times(self, state: TriggerState) -> FireTimes:
        start = state.start_time
        after_start = Bounded(self._times(start), start + 1, None if self.end is None else self.end - 1)
        if self.start is None or start >= (LAST_MOMENT if self.end is None else self.end):
            return after_start
        # The start is added, because the wall clock does not find one in the second pass of a repeated hour.
        return Preceded(start, after_start)

    def _times(self, start: int) -> FireTimes:
        length = self.every * CALENDAR_UNITS[self.unit]
        match self.unit:
            case "second" | "minute" | "hour":
                return Grid(start, length)
            case "day" | "week":
                wall: FireTimes = Grid(self.zone.wall(start), length)
            case _:
                wall = MonthGrid(self.zone.wall(start), length)
        return (OnlyShown if self.skip else FirstPass)(wall, self.zone)


#: The units of :class:`CalendarTrigger` and their length, in milliseconds; months and years in months.
CALENDAR_UNITS = {
    "second": SECOND,
    "minute": MINUTE,
    "hour": HOUR,
    "day": DAY,
    "week": 7 * DAY,
    "month": 1,
    "year": 12,
}


def _first_state(trigger: Trigger, state: TriggerState, start: int | None, first_seen: int) -> TriggerState:
    """Return the first state of a trigger that plans from `start`, or from now if that has passed."""
    if start is not None:
        state = replace(state, start_time=start)
    after = first_seen if start is None or start < first_seen else start - 1
    return replace(state, next_fire_time=trigger.fire_times(state).after(after))


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
    return RelativeTrigger(interval_millis(schedule.run_every), zone_of(schedule))


def _clocked(schedule: Any) -> Trigger:
    at = schedule.clocked_time
    if not isinstance(at, datetime) or at.utcoffset() is None:
        raise ValueError(f"clocked_time: needs a time zone, got {at}")
    return GridTrigger(None, 0, start=to_millis(at))


def _crontab(schedule: Any) -> Trigger:
    fields = tuple(tuple(sorted(getattr(schedule, name))) for name in _CRONTAB)
    return _cron_of(fields, any(_is_wildcard(schedule, n) for n in ("minute", "hour")), zone_of(schedule))


@lru_cache(maxsize=4096)
def _cron_of(values: tuple[tuple[int, ...], ...], wildcard: bool, zone: Zone) -> CronTrigger:
    """Return the trigger of a crontab with these fields; kept, because many entries say the same.

    :param wildcard: minute or hour was written with an asterisk.
    """
    fields = dict(zip(_CRONTAB, values, strict=True))
    if empty := [name for name, found in fields.items() if not found]:
        raise ValueError(f"crontab: {empty[0]} is empty, so it never fires")
    complete = {name for name, size in _CRONTAB.items() if len(fields[name]) == size}
    wildcard = wildcard or not complete.isdisjoint(("minute", "hour"))
    minutes, hours, days, months, weekdays = values
    on_days, on_weekdays = day_bits(days), weekday_bits(weekdays)
    # Celery's rule: both the day of the month and the day of the week must match.
    wall = WallTimes(
        Days(lambda month: on_days & on_weekdays >> month.weekday, months), ClockTimes(hours, minutes, (0,))
    )
    text = " ".join("*" if name in complete else ",".join(map(str, v)) for name, v in fields.items())
    return CronTrigger(
        EveryPass(wall, zone) if wildcard else FirstPass(wall, zone),
        f"crontab {text} {'every' if wildcard else 'first'} pass zone={zone.name}",
    )


def _is_wildcard(schedule: Any, name: str) -> bool:
    written = getattr(schedule, f"_orig_{name}", None)
    return isinstance(written, str) and written.startswith("*")
