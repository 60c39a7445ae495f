"""When a schedule fires: any Celery schedule as a :class:`~celery_misfire.misfire.Trigger`.

What has fields to compute with is put together from :mod:`~celery_misfire.triggers.wall_times` (times in
closed form) and :mod:`~celery_misfire.triggers.zones` (from the wall clock to real moments);
:class:`AskedTimes` is for schedules that only they themselves understand. Moments are integer milliseconds
UTC.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo
from functools import cached_property, lru_cache
from typing import Any

from celery_misfire.misfire import (
    ENDLESS,
    FireTimes,
    Trigger,
    TriggerState,
    TriggerType,
    from_millis,
    to_millis,
)
from celery_misfire.triggers.wall_times import (
    DAY,
    HORIZON,
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
from celery_misfire.triggers.zones import (
    EveryPass,
    FirstPass,
    OnlyShown,
    Zone,
    tzinfo_of,
    without_addresses,
    zone_for,
)

__all__ = [
    "CALENDAR_UNITS",
    "AskedTimes",
    "AskedTrigger",
    "CalendarTrigger",
    "CronTrigger",
    "GridTrigger",
    "RelativeTrigger",
    "interval_millis",
    "trigger_for",
]


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
        if self.interval >= DAY:
            # Celery adds days on the wall clock, and all else in elapsed time.
            wall = self.zone.wall(first_seen) + self.interval
            first = FirstPass(Grid(wall - wall % DAY, DAY), self.zone).after(first_seen)
        else:
            start = first_seen + self.interval
            unit = next((unit for unit in (HOUR, MINUTE, SECOND) if unit <= self.interval), 1)
            first = start - self.zone.wall(start) % unit
        return TriggerState(first, first_seen if first is None else first, repeat_count=ENDLESS)

    def fire_times(self, state: TriggerState) -> FireTimes:
        if self.interval % DAY:
            return Grid(state.start_time, self.interval)
        # Midnight is looked for again, because a start in a gap stands after it.
        wall = self.zone.wall(state.start_time)
        return FirstPass(Grid(wall - wall % DAY, self.interval), self.zone)


@dataclass(frozen=True, slots=True)
class CronTrigger:
    """Fires at times that depend on nothing but the schedule.

    :param start: the first moment that counts; None: what comes after first sight.
    :param end: the last moment that counts; None for no end.
    :param max_runs: so many runs in all; None for no limit.
    """

    times: FireTimes
    fingerprint: str
    start: int | None = None
    end: int | None = None
    max_runs: int | None = None

    trigger_type = TriggerType.CRON
    interval = None

    def first_state(self, first_seen: int) -> TriggerState:
        state = TriggerState(None, first_seen, end_time=self.end, max_runs=self.max_runs)
        return _beginning(self, state, self.start, first_seen)

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

    @property
    def fingerprint(self) -> str:
        return (
            f"calendar every={self.every} {self.unit} zone={self.zone.name}"
            f" start={self.start} end={self.end} skip={self.skip}"
        )

    def first_state(self, first_seen: int) -> TriggerState:
        return _beginning(self, TriggerState(None, first_seen, end_time=self.end), self.start, first_seen)

    def fire_times(self, state: TriggerState) -> FireTimes:
        start = state.start_time
        after_start = Bounded(self._times(start), start + 1, None if self.end is None else self.end - 1)
        if self.start is None or start >= (LAST_MOMENT if self.end is None else self.end):
            return after_start
        # Not left to the wall clock: a start in the second pass of a repeated hour is none to it.
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


#: The units of :class:`CalendarTrigger`: how long they are, in milliseconds or in months.
CALENDAR_UNITS = {
    "second": SECOND,
    "minute": MINUTE,
    "hour": HOUR,
    "day": DAY,
    "week": 7 * DAY,
    "month": 1,
    "year": 12,
}


def _beginning(trigger: Trigger, state: TriggerState, start: int | None, first_seen: int) -> TriggerState:
    """Return the first state of a trigger that plans from `start`, or from now if that has passed."""
    if start is not None:
        state = replace(state, start_time=start)
    after = first_seen if start is None or start < first_seen else start - 1
    return replace(state, next_fire_time=trigger.fire_times(state).after(after))


class AskedTrigger:
    """Fires when the schedule object says so, see :class:`AskedTimes`.

    The fingerprint is the class and a digest of the object's attributes: their values may be secret.
    """

    trigger_type = TriggerType.CRON
    interval = None

    def __init__(self, schedule: Any) -> None:
        self._schedule = schedule
        self._times: AskedTimes | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AskedTrigger) and self._schedule is other._schedule

    def __hash__(self) -> int:
        return id(self._schedule)

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
        # What a slow schedule has answered once, it is not asked again.
        if self._times is None or not self._times.go_on_from(state.next_fire_time):
            self._times = AskedTimes(self._schedule, state.next_fire_time)
        return self._times


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
    return without_addresses(repr(value))


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
    zone = _zone_of(schedule)
    minutes, hours, days, months, weekdays = fields.values()
    on_days, on_weekdays = day_bits(days), weekday_bits(weekdays)
    # Both must match: Celery's rule.
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


def _zone_of(schedule: Any) -> Zone:
    return zone_for(getattr(schedule, "tz", None))


# --------------------------------------------------------------------------------------------------------
# Schedules that only they themselves understand

# What the virtual clock answers for "never again"; later than any moment.
_NEVER = 1 << 62

# So many fire times are walked through one by one.
_MAX_STEPS = 10_000
# So often one question is put to ``is_due``: enough for a long weekend, looked at every few seconds.
_MAX_LOOKS = 100_000

# So many fire times are kept when the ones before them are not needed any more, and so many other answers.
_KEPT = 100


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

    def go_on_from(self, anchor: int | None) -> bool:
        """Return True when this anchor is one of the fire times that are known already."""
        known = _NEVER if anchor is None else anchor
        return self._chain[0] == known or (len(self._chain) <= _KEPT and known in self._chain)

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
        back = MINUTE
        while back < HORIZON:
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
        self._original = schedule
        # Not copy.copy: subclasses with other arguments inherit a __reduce__ that does not fit them.
        self._schedule = object.__new__(schedule.__class__)
        self._ask_is_due = _is_due_decides(schedule.__class__)
        self._moment = 0
        self._answers: dict[int, int] = {}

    @cached_property
    def _tz(self) -> tzinfo:
        return tzinfo_of(getattr(self._original, "tz", None))

    def ask(self, moment: int) -> int:
        """Return what fires next when the last run was at this moment."""
        found = self._answers.get(moment)
        if found is None:
            # Each time, for the classes that change when they are asked. ``now`` as well, for those that
            # override it and never look at ``nowfun``.
            vars(self._schedule).update(vars(self._original), nowfun=self._now, now=self._now)
            self._moment = moment
            found = self._by_is_due() if self._ask_is_due else self._by_remaining()
            if len(self._answers) >= _KEPT:
                self._answers.clear()
            self._answers[moment] = found = found if found <= LAST_MOMENT else _NEVER
        return found

    def _now(self) -> datetime:
        # In the schedule's own zone, as older crontabs take the fields of the moment as they stand.
        return from_millis(self._moment).astimezone(self._tz)

    def _by_remaining(self) -> int:
        asked, found = self._moment, self._remaining()
        if found > asked:
            return found
        # A schedule for one fixed time names it for ever; it has ended. Any other should have moved on.
        self._moment += DAY
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
            self._moment += _ceil_millis(timedelta(seconds=min(wait, HORIZON / SECOND)))
            if self._moment >= asked + HORIZON:
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
