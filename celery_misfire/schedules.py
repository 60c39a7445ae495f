"""Quartz's kinds of schedule, as Celery schedules.

Each is a subclass of Celery's ``BaseSchedule``: under the misfire scheduler it brings its trigger along
(``as_trigger``); under any other beat it runs as Celery's own schedules do, without misfire handling.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Any

from celery import Celery
from celery.schedules import BaseSchedule
from celery.schedules import schedule as every

from celery_misfire.calendars import Calendar, millis_of_day, time_of_day, weekday_names
from celery_misfire.misfire import ENDLESS, Trigger, to_millis
from celery_misfire.triggers.cron import LAST_YEAR, WEEKDAYS, parse_cron
from celery_misfire.triggers.excluding import ExcludingTrigger
from celery_misfire.triggers.kinds import (
    CALENDAR_UNITS,
    CalendarTrigger,
    CronTrigger,
    GridTrigger,
    interval_millis,
    trigger_for,
)
from celery_misfire.triggers.planned import PlannedSchedule
from celery_misfire.triggers.wall_times import HOUR, MINUTE, SECOND, Days, StepTimes, WallTimes, weekday_bits
from celery_misfire.triggers.zones import EveryPass, FirstPass, checked_timezone

__all__ = ["calendar_interval", "cron", "daily_time_interval", "excluding", "simple"]


class simple(PlannedSchedule):  # noqa: N801 - in lower case like Celery's own schedules
    """Quartz's SimpleTrigger: fires at `start`, then every `interval`, `repeat_count` times more.

    ::

        simple(start=datetime(2026, 3, 2, 9, tzinfo=UTC), interval=3600, repeat_count=7)   # 9:00 to 16:00

    The grid stands on `start` and never drifts. Under the misfire scheduler a `start` in the past is a
    misfire at first sight, as in Quartz. Under any other beat, which remembers nothing but the last run,
    a schedule without `start` begins when that beat does.

    :param start: the first fire time, an aware datetime. None: one interval after the entry is first
        seen, as with Celery's intervals, and at once when there is no interval.
    :param interval: between two fire times, a timedelta or a number of seconds, in whole milliseconds.
        None: fires once.
    :param repeat_count: how many fire times follow the first one; -1 for ever (once, without an interval).
    :param end: no fire time at or after it, an aware datetime, None for no end. One that equals `start`
        leaves that single fire, as in Quartz.
    :raises ValueError: for naive datetimes, an end before the start, an interval shorter than a
        millisecond, a repeat_count that is no whole number from -1, repetitions without an interval.
    """

    _arguments = ("start", "interval", "repeat_count", "end")

    def __init__(
        self,
        start: datetime | None = None,
        interval: timedelta | float | None = None,
        repeat_count: int = ENDLESS,
        end: datetime | None = None,
        *,
        nowfun: Callable[[], datetime] | None = None,
        app: Celery | None = None,
    ) -> None:
        super().__init__(nowfun=nowfun, app=app)
        self.start, self.end = _bounds(start, end)
        self.repeat_count = _repeat_count(repeat_count)
        if interval is None:
            if repeat_count > 0:
                raise ValueError(f"repeat_count: needs an interval to repeat after, got {repeat_count}")
            self.repeat_count = 0
        else:
            try:
                interval = timedelta(milliseconds=interval_millis(interval))
            except ValueError:
                raise ValueError(
                    f"interval: expected a timedelta or seconds, at least a millisecond, got {interval!r}"
                ) from None
        self.interval: timedelta | None = interval

    def as_trigger(self) -> Trigger:
        repeated = self.interval is not None and self.repeat_count != 0
        return GridTrigger(
            interval_millis(self.interval) if repeated else None,
            self.repeat_count,
            _millis(self.start),
            _millis(self.end),
        )


class cron(PlannedSchedule):  # noqa: N801
    """Quartz's CronTrigger, and Unix cron.

    ::

        cron("0 0 9-17 ? * MON-FRI", timezone="Europe/Berlin")    # Quartz: seconds first, 1 = SUN
        cron("0 0 12 L-3 * ? 2026-2030")                          # three days before the last of the month
        cron("0 9-17 * * 1-5")                                    # Unix: minutes first, 1 = MON
        cron("@daily")                                            # the same as "0 0 * * *"
        cron("H H(1-4) * * *")                                    # some time from 1:00 to 4:59

    When the clocks change it does as Debian's cron: a fixed time in the gap runs once, at the end of the gap;
    a fixed time that comes twice runs the first time; and what has a wildcard for its minute or hour (``*``,
    ``*/20``, Quartz's ``0/20``) follows elapsed time through both.

    :param expression: 6 or 7 fields are Quartz's: second minute hour day_of_month month day_of_week [year].
        5 fields are Unix's: minute hour day_of_month month day_of_week. Each of the 5 may also be ``H``,
        ``H(1-4)``, ``H/15`` or ``H(0-29)/10``, which spreads load: a hash of the entry's name chooses the
        value, or where the steps begin. Not every month has each day: write ``H(1-28)``. A schedule with H
        needs the misfire scheduler, as stock beat tells it no name. @hourly, @daily, @midnight, @weekly,
        @monthly, @yearly and @annually are short for 5 fields.
    :param timezone: a name or a tzinfo; None: the app's.
    :param start: no fire time before it, an aware datetime, None: from when the entry is first seen.
    :param end: no fire time after it, an aware datetime, None for no end.
    :raises ValueError: for an expression that is not understood, naming the field, the value and what is
        allowed; for a date that does not exist; for naive datetimes and an end before the start.
    :warns UserWarning: for years that are all past or beyond 2099, so that it never fires.
    """

    _arguments = ("expression", "timezone", "start", "end")

    def __init__(
        self,
        expression: str,
        timezone: str | tzinfo | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        nowfun: Callable[[], datetime] | None = None,
        app: Celery | None = None,
    ) -> None:
        super().__init__(nowfun=nowfun, app=app)
        # An empty name draws the lowest value for each H; the name of the entry comes later.
        parsed = parse_cron(expression, "")
        self.expression = expression
        self.timezone = checked_timezone(timezone)
        self.start, self.end = _bounds(start, end)
        notes = list(parsed.notes)
        if parsed.years is not None and max(parsed.years, default=0) < datetime.now(UTC).year:
            notes.append(f"year: all past, or after {LAST_YEAR}, so it never fires")
        for note in notes:
            warnings.warn(f"cron expression {expression!r}: {note}", stacklevel=2)

    def as_trigger(self) -> Trigger:
        parsed = parse_cron(self.expression, self._entry)
        wall = WallTimes(parsed.days, parsed.times)
        return _cron_trigger(self, wall, parsed.is_wildcard, f"cron {parsed.text}")


_UNITS_OF_DAY = {"second": SECOND, "minute": MINUTE, "hour": HOUR}


class daily_time_interval(PlannedSchedule):  # noqa: N801
    """Quartz's DailyTimeIntervalTrigger: every so often between two times of the day.

    ::

        daily_time_interval(72, "minute", "08:00", "17:00", days_of_week=["MON", "TUE"])   # 8:00, 9:12, ...

    Every day begins anew at `start_time_of_day`. When the clocks change it does as a wildcard of
    :class:`cron`: a time that comes twice fires twice, and a time in the gap does not fire. If there is only
    one time a day, that is a fixed time of :class:`cron`.

    :param interval: a whole number of units, one day at most.
    :param unit: "second", "minute" or "hour".
    :param start_time_of_day: "HH:MM", "HH:MM:SS" or a :class:`datetime.time`.
    :param end_time_of_day: the last time of the day that counts; the same.
    :param days_of_week: names, "MON" to "SUN"; None: every day.
    :param repeat_count: how many runs follow the first one; -1 for ever. Missed runs do not count.
    :param timezone: a name or a tzinfo; None: the app's.
    :param start: no fire time before it, an aware datetime, None: from when the entry is first seen.
    :param end: no fire time after it, an aware datetime, None for no end.
    :raises ValueError: for any other value. The message names the argument.
    """

    _arguments = (
        "interval",
        "unit",
        "start_time_of_day",
        "end_time_of_day",
        "days_of_week",
        "repeat_count",
        "timezone",
        "start",
        "end",
    )

    def __init__(
        self,
        interval: int,
        unit: str,
        start_time_of_day: str | time,
        end_time_of_day: str | time,
        days_of_week: Iterable[str] | None = None,
        repeat_count: int = ENDLESS,
        timezone: str | tzinfo | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        nowfun: Callable[[], datetime] | None = None,
        app: Celery | None = None,
    ) -> None:
        super().__init__(nowfun=nowfun, app=app)
        self.interval, self.unit = _interval(interval, unit, _UNITS_OF_DAY)
        if self.interval * _UNITS_OF_DAY[unit] > 24 * HOUR:
            raise ValueError(f"interval: expected a day at most, got {interval} {unit}s")
        self.start_time_of_day = time_of_day("start_time_of_day", start_time_of_day)
        self.end_time_of_day = time_of_day("end_time_of_day", end_time_of_day)
        if self.end_time_of_day < self.start_time_of_day:
            raise ValueError(
                f"end_time_of_day: {self.end_time_of_day} is before start_time_of_day,"
                f" {self.start_time_of_day}"
            )
        self.days_of_week = None if days_of_week is None else weekday_names("days_of_week", days_of_week)
        if self.days_of_week == ():
            raise ValueError("days_of_week: expected a day at least, got none")
        self.repeat_count = _repeat_count(repeat_count)
        self.timezone = checked_timezone(timezone)
        self.start, self.end = _bounds(start, end)

    def as_trigger(self) -> Trigger:
        weeks = weekday_bits(map(WEEKDAYS.index, self.days_of_week or WEEKDAYS))
        times = StepTimes(
            millis_of_day(self.start_time_of_day),
            millis_of_day(self.end_time_of_day),
            self.interval * _UNITS_OF_DAY[self.unit],
        )
        text = (
            f"daily every={self.interval} {self.unit} {self.start_time_of_day}-{self.end_time_of_day}"
            f" days={','.join(self.days_of_week or '*')} repeat={self.repeat_count}"
        )
        wall = WallTimes(Days(lambda month: weeks >> month.weekday), times)
        max_runs = None if self.repeat_count == ENDLESS else self.repeat_count + 1
        return _cron_trigger(self, wall, times.size > 1, text, max_runs)


def _cron_trigger(
    schedule: cron | daily_time_interval,
    wall: WallTimes,
    every_pass: bool,
    text: str,
    max_runs: int | None = None,
) -> CronTrigger:
    """Return the trigger of a schedule with these wall times.

    :param every_pass: wall times that the clock shows twice fire twice.
    :param text: what the fingerprint says of the wall times.
    """
    zone, start, end = schedule._zone, _millis(schedule.start), _millis(schedule.end)
    times = (EveryPass if every_pass else FirstPass)(wall, zone)
    return CronTrigger(times, f"{text} zone={zone.name} start={start} end={end}", start, end, max_runs)


class calendar_interval(PlannedSchedule):  # noqa: N801
    """Quartz's CalendarIntervalTrigger: every so many days, weeks, months or years, counted from `start`.

    ::

        calendar_interval(1, "month", timezone="UTC", start=datetime(2026, 1, 31, 9, tzinfo=UTC))

    That is 31 January, 28 February, 31 March: a month that lacks the day uses its last one. Days and longer
    units keep the local time when the clocks change. Seconds, minutes and hours are elapsed time.

    :param interval: a whole number of units.
    :param unit: "second", "minute", "hour", "day", "week", "month" or "year".
    :param timezone: a name or a tzinfo; None: the app's.
    :param start: the first fire time, an aware datetime. None: one interval after the entry is first seen.
    :param end: no fire time at or after it, an aware datetime, None for no end.
    :param skip_day_if_hour_does_not_exist: leave out a time that the clocks jump over; else it fires at the
        end of the gap. Matters for days and longer units.
    :raises ValueError: for any other value. The message names the argument.
    """

    _arguments = ("interval", "unit", "timezone", "start", "end", "skip_day_if_hour_does_not_exist")

    def __init__(
        self,
        interval: int,
        unit: str,
        timezone: str | tzinfo | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        skip_day_if_hour_does_not_exist: bool = False,
        *,
        nowfun: Callable[[], datetime] | None = None,
        app: Celery | None = None,
    ) -> None:
        super().__init__(nowfun=nowfun, app=app)
        self.interval, self.unit = _interval(interval, unit, CALENDAR_UNITS)
        self.timezone = checked_timezone(timezone)
        self.start, self.end = _bounds(start, end)
        self.skip_day_if_hour_does_not_exist = bool(skip_day_if_hour_does_not_exist)

    def as_trigger(self) -> Trigger:
        return CalendarTrigger(
            self.interval,
            self.unit,
            self._zone,
            _millis(self.start),
            _millis(self.end),
            self.skip_day_if_hour_does_not_exist,
        )


class excluding(PlannedSchedule):  # noqa: N801
    """A schedule without the times that a calendar excludes.

    ::

        excluding(crontab(hour=9, minute=0), calendars.weekly(["SAT", "SUN"], base=calendars.holiday(dates)))

    It is of the type of `schedule`, and takes the misfire instructions that fit that. An excluded
    time never runs and is never missed. A recovered run may start on an excluded day, as in Quartz.

    :param schedule: any Celery schedule, a number of seconds or a timedelta.
    :param calendar: one of :mod:`celery_misfire.calendars`.
    :raises ValueError: when one of them is something else.
    """

    _arguments = ("schedule", "calendar")

    def __init__(
        self,
        schedule: Any,
        calendar: Calendar,
        *,
        nowfun: Callable[[], datetime] | None = None,
        app: Celery | None = None,
    ) -> None:
        super().__init__(nowfun=nowfun, app=app)
        if isinstance(schedule, int | float | timedelta):
            schedule = every(timedelta(milliseconds=interval_millis(schedule)))
        if not isinstance(schedule, BaseSchedule):
            raise ValueError(f"schedule: expected a schedule, seconds or a timedelta, got {schedule!r}")
        if not isinstance(calendar, Calendar):
            raise ValueError(f"calendar: expected one of celery_misfire.calendars, got {calendar!r}")
        self.schedule = schedule
        self.calendar = calendar

    def as_trigger(self) -> Trigger:
        if app := vars(self)["_app"]:
            self.schedule.app = app
        return ExcludingTrigger(
            trigger_for(self.schedule, self._entry), self.calendar.excluded(self._default_zone)
        )

    def _default_zone(self) -> Any:
        timezone = getattr(self.schedule, "timezone", None)
        return self.schedule.tz if timezone is None else timezone

    @property
    def start(self) -> datetime | None:
        """Where the schedule itself begins."""
        start: datetime | None = getattr(self.schedule, "start", None)
        return start


def _bounds(start: object, end: object) -> tuple[datetime | None, datetime | None]:
    first, last = _aware("start", start), _aware("end", end)
    if first and last and last < first:
        raise ValueError(f"end: {last} is before start, {first}")
    return first, last


def _repeat_count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < ENDLESS:
        raise ValueError(f"repeat_count: expected a whole number from -1 on, got {value!r}")
    return value


def _interval(interval: object, unit: object, units: Iterable[str]) -> tuple[int, str]:
    if not isinstance(unit, str) or unit not in units:
        raise ValueError(f"unit: expected {', '.join(units)}, got {unit!r}")
    if isinstance(interval, bool) or not isinstance(interval, int) or not 0 < interval <= _LONGEST_INTERVAL:
        raise ValueError(f"interval: expected a whole number from 1 to {_LONGEST_INTERVAL}, got {interval!r}")
    return interval, unit


# The longest interval, in its own units; a longer one is a mistake.
_LONGEST_INTERVAL = 10**9


def _aware(name: str, moment: object) -> datetime | None:
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        raise ValueError(f"{name}: expected an aware datetime, got {moment!r}")
    if moment.utcoffset() is None:
        raise ValueError(f"{name}: needs a time zone, got {moment}")
    return moment


def _millis(moment: datetime | None) -> int | None:
    return None if moment is None else to_millis(moment)
