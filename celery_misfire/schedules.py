"""Quartz's kinds of schedule, as Celery schedules.

Each is a subclass of Celery's ``BaseSchedule``: under the misfire scheduler it brings its trigger along
(``as_trigger``); under any other beat it runs as Celery's own schedules do, without misfire handling.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from celery import Celery
from celery.schedules import BaseSchedule, schedstate

from celery_misfire.fire_times import GridTrigger, interval_millis
from celery_misfire.misfire import ENDLESS, FireTimes, Trigger, from_millis, to_millis

__all__ = ["simple"]

# What stock beat is told about a schedule that never fires again: look again some day, and in so long.
_NEVER = timedelta(days=36_500)
_LOOK_AGAIN = timedelta(days=1)


class simple(BaseSchedule):  # noqa: N801 - in lower case like Celery's own schedules
    """Quartz's SimpleTrigger: at `start`, and then every `interval`, so many times.

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
        self.start = _aware("start", start)
        self.end = _aware("end", end)
        if self.start and self.end and self.end < self.start:
            raise ValueError(f"end: {end} is before start, {start}")
        if isinstance(repeat_count, bool) or not isinstance(repeat_count, int) or repeat_count < ENDLESS:
            raise ValueError(f"repeat_count: expected a whole number from -1 on, got {repeat_count!r}")
        if interval is None:
            if repeat_count > 0:
                raise ValueError(f"repeat_count: needs an interval to repeat after, got {repeat_count}")
            repeat_count = 0
        else:
            try:
                interval = timedelta(milliseconds=interval_millis(interval))
            except ValueError:
                raise ValueError(
                    f"interval: expected a timedelta or seconds, at least a millisecond, got {interval!r}"
                ) from None
        self.interval: timedelta | None = interval
        self.repeat_count = repeat_count
        self._begun_at: datetime | None = None

    def as_trigger(self) -> Trigger:
        """Return what the misfire scheduler plans by."""
        repeated = self.interval is not None and self.repeat_count != 0
        return GridTrigger(
            interval_millis(self.interval) if repeated else None,
            self.repeat_count,
            None if self.start is None else to_millis(self.start),
            None if self.end is None else to_millis(self.end),
        )

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return the time to the first fire after `last_run_at`; a hundred years when there is none."""
        due = self._due(last_run_at)[0]
        return _NEVER if due is None else due - self._now()

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Return whether a fire time has been reached since `last_run_at`, and the seconds to the next."""
        due, times = self._due(last_run_at)
        now = self._now()
        reached = due is not None and due <= now
        if reached:
            due = _moment(times.after(to_millis(now)))
        wait = _LOOK_AGAIN if due is None else due - now
        return schedstate(is_due=reached, next=wait.total_seconds())

    def _due(self, last_run_at: datetime) -> tuple[datetime | None, FireTimes]:
        """Return what to run next when the last run was then, and all fire times."""
        last_run_at = self.maybe_make_aware(last_run_at)
        if self._begun_at is None:
            self._begun_at = last_run_at
        trigger = self.as_trigger()
        state = trigger.first_state(to_millis(self._begun_at))
        times = trigger.fire_times(state)
        if self.start is None and last_run_at == self._begun_at:
            # What stock beat gives as the last run before there was one is when it first saw the entry.
            return _moment(state.next_fire_time), times
        return _moment(times.after(to_millis(last_run_at))), times

    def _now(self) -> datetime:
        return self.maybe_make_aware(self.now())

    def _fields(self) -> tuple[Any, ...]:
        return self.start, self.interval, self.repeat_count, self.end

    def __repr__(self) -> str:
        return "<simple: start {}, interval {}, repeat_count {}, end {}>".format(*self._fields())

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if isinstance(other, simple) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._fields()


def _aware(name: str, moment: object) -> datetime | None:
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        raise ValueError(f"{name}: expected an aware datetime, got {moment!r}")
    if moment.utcoffset() is None:
        raise ValueError(f"{name}: needs a time zone, got {moment}")
    return moment


def _moment(millis: int | None) -> datetime | None:
    return None if millis is None else from_millis(millis)
