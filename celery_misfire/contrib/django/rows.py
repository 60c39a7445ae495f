"""Rows of django-celery-beat: a periodic task as the planner sees it, and as Celery sends it.

Pure: nothing here reads the clock or the database, but for the schedule that a row refers to.

Moments that were typed in (``start_time``, ``expires``, a clocked time) mean what Django means by them: with
``USE_TZ = False`` they are wall time in ``TIME_ZONE``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from celery import Celery, current_app
from django.conf import settings
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask
from django_celery_beat.schedulers import ModelEntry
from django_celery_beat.utils import make_aware
from kombu.utils.json import loads

from celery_misfire.conf.names import shows_arguments
from celery_misfire.conf.settings import Settings
from celery_misfire.contrib.django.moments import as_stored, millis
from celery_misfire.exceptions import PublishRejected
from celery_misfire.fire import LONGEST_NAME
from celery_misfire.misfire import (
    AUTO_THRESHOLD,
    FireTimes,
    MisfirePolicy,
    Trigger,
    TriggerState,
    TriggerType,
    from_millis,
)
from celery_misfire.triggers.kinds import CronTrigger, GridTrigger, trigger_for
from celery_misfire.triggers.wall_times import Bounded, Grid

#: What :func:`entry_name` puts in the place of arguments.
_INSTEAD = re.compile(r".*\(\.\.\.\) row (?P<key>\d+)", re.DOTALL)


def entry_name(task: PeriodicTask) -> str:
    """Return what the entry of a row is called in the state, the log, the results and on our pages.

    That is the name of the row, unless Celery made it of the arguments of an entry without a name
    (:mod:`celery_misfire.conf.names`): then it is ``shop.login(...) row 7``. The 7 is the row's primary key,
    so that no other row can take the name over.
    """
    name, of = str(task.name), str(task.task)
    # A row that somebody named like another one's entry gets a name of that kind as well.
    if "(" not in name or not (shows_arguments(name, of) or _INSTEAD.fullmatch(name)):
        return name
    tail = f"(...) row {task.pk}"
    return of[: LONGEST_NAME - len(tail)] + tail


def key_in_name(entry: str) -> int | None:
    """Return the primary key that an entry's name tells, see :func:`entry_name`; None when it tells none."""
    found = _INSTEAD.fullmatch(entry)
    return None if found is None else int(found["key"])


def trigger_of(task: PeriodicTask) -> Trigger:
    """Return the trigger of a periodic task; ``enabled`` is not looked at.

    =================================  =====================================================================
    interval                           a grid: one interval after first sight, and so on
    interval with ``start_time``       a grid from there; one that is past when first seen only lends the
                                       grid its beat, but for one that is past by seconds, which is due
    crontab, solar                     its fire times from ``start_time`` on; a crontab in its own zone, or
                                       in the app's when ``DJANGO_CELERY_BEAT_TZ_AWARE`` is off, as stock
    clocked                            once, not before ``start_time``; also when it is past
    ``one_off``                        once, at the first of the fire times above; with an interval and a
                                       ``start_time``: then, also when that is past
    ``expires``                        no fire time at or after it
    =================================  =====================================================================

    With several schedules in one row the first of interval, crontab, solar and clocked counts, as in
    django-celery-beat.

    :raises ValueError: when it can never be scheduled, for example without any schedule.
    """
    try:
        return _trigger_of(task)
    except ValueError:
        raise
    except Exception as exc:
        # A row may have been written without its form, and a schedule may be of another class.
        raise ValueError(f"its schedule cannot be read ({type(exc).__name__}: {exc})") from exc


def _trigger_of(task: PeriodicTask) -> Trigger:
    start, end = _millis(task.start_time), _millis(task.expires)
    if task.interval is not None:
        every = _every(task.interval.every, task.interval.period)
        if start is None:
            trigger: Trigger = GridTrigger(every, end=end)
        elif task.one_off:
            return GridTrigger(None, 0, start, end)
        else:
            trigger = _StartedGrid(every, start=start, end=end)
    elif task.crontab is not None:
        trigger = _crontab(task.crontab)
        if start is not None or end is not None:
            last = None if end is None else end - 1
            text = f"{trigger.fingerprint} start={start} end={end}"
            trigger = replace(trigger, fingerprint=text, start=start, end=last)
    elif task.solar is not None:
        trigger = trigger_for(task.solar.schedule)
        if start is not None or end is not None:
            trigger = _Within(trigger, start, end)
    elif task.clocked is not None:
        if (at := _millis(task.clocked.clocked_time)) is None:
            raise ValueError("its clocked schedule has no time")
        return GridTrigger(None, 0, at if start is None else max(at, start), end)
    else:
        raise ValueError("it has no schedule; choose an interval, a crontab, a solar event or a clocked time")
    return _OneRun(trigger) if task.one_off else trigger


@lru_cache(maxsize=4096)
def _every(every: int, period: str) -> int | None:
    """Return an interval in milliseconds; kept, because many rows say the same."""
    return trigger_for(IntervalSchedule(every=every, period=period).schedule).interval


def _crontab(crontab: CrontabSchedule) -> CronTrigger:
    app_zone = None if _tz_aware() else str(current_app.timezone)
    return _crontab_of(app_zone, *(getattr(crontab, name) for name in _CRONTAB))


_CRONTAB = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year", "timezone")


@lru_cache(maxsize=4096)
def _crontab_of(app_zone: str | None, *fields: Any) -> CronTrigger:
    """Return the trigger of a crontab; kept, because parsing is slow and many rows say the same.

    :param app_zone: what the schedule itself asks the settings for.
    """
    trigger = trigger_for(CrontabSchedule(**dict(zip(_CRONTAB, fields, strict=True))).schedule)
    assert isinstance(trigger, CronTrigger)
    return trigger


class _StartedGrid(GridTrigger):
    """A grid that began at the ``start_time`` of its row."""

    __slots__ = ()

    def first_state(self, first_seen: int) -> TriggerState:
        state = GridTrigger.first_state(self, first_seen)
        assert self.interval is not None
        # Somebody who presses "Now" in a form means a start that is past before beat reads it.
        grace = min(AUTO_THRESHOLD, self.interval // 2)
        if state.next_fire_time is None or first_seen - state.next_fire_time < grace:
            return state
        return replace(state, next_fire_time=self.fire_times(state).after(first_seen))


@dataclass(frozen=True, slots=True)
class _Within:
    """The fire times of a solar event from `start` on and before `end`."""

    trigger: Trigger
    start: int | None
    end: int | None

    trigger_type = TriggerType.CRON
    interval = None

    @property
    def runs_foreign_code(self) -> bool:
        return self.trigger.runs_foreign_code

    @property
    def follows_elapsed_time(self) -> bool:
        return self.trigger.follows_elapsed_time

    @property
    def fingerprint(self) -> str:
        return f"{self.trigger.fingerprint} start={self.start} end={self.end}"

    def first_state(self, first_seen: int) -> TriggerState:
        last = None if self.end is None else self.end - 1
        state = replace(self.trigger.first_state(first_seen), next_fire_time=None, end_time=last)
        after = first_seen if self.start is None else max(first_seen, self.start - 1)
        return replace(state, next_fire_time=self.fire_times(state).after(after))

    def fire_times(self, state: TriggerState) -> FireTimes:
        last = None if self.end is None else self.end - 1
        return Bounded(self.trigger.fire_times(state), self.start, last)


@dataclass(frozen=True, slots=True)
class _OneRun:
    """The first fire time of another trigger, and no more."""

    trigger: Trigger

    trigger_type = TriggerType.ONCE
    interval = None

    @property
    def runs_foreign_code(self) -> bool:
        return self.trigger.runs_foreign_code

    @property
    def follows_elapsed_time(self) -> bool:
        return self.trigger.follows_elapsed_time

    @property
    def fingerprint(self) -> str:
        return f"one run of {self.trigger.fingerprint}"

    def first_state(self, first_seen: int) -> TriggerState:
        found = self.trigger.first_state(first_seen)
        start, end = found.next_fire_time, found.end_time
        if start is None:
            # A grid that ends before it begins never fires.
            return TriggerState(None, first_seen, repeat_count=0, end_time=first_seen - 1)
        return TriggerState(start, start, repeat_count=0, end_time=end)

    def fire_times(self, state: TriggerState) -> FireTimes:
        return Grid(state.start_time, None, 0, state.end_time)


def policy_of_row(
    task: PeriodicTask, misfire: object, type_: TriggerType, settings: Settings
) -> MisfirePolicy | None:
    """Return the policy of a row, None for off; the settings may call the row by either of its names.

    :param misfire: what its own policy says, as :meth:`Settings.policy_for` takes it.
    :raises MisfireConfigError: when that does not fit its schedule.
    """
    name, own = entry_name(task), settings.policies.get(str(task.name))
    if name not in settings.policies and own is not None:
        settings = replace(settings, policies={name: own})
    return settings.policy_for(name, misfire, type_)


def site_policy(task: PeriodicTask, trigger: Trigger, settings: Settings) -> MisfirePolicy | None:
    """Return what the settings say for all, None for off: in force where the policy of a row is not valid."""
    return policy_of_row(task, None, trigger.trigger_type, replace(settings, policies={}))


def entry_of(task: PeriodicTask, app: Celery, entry_class: type[ModelEntry] = ModelEntry) -> ModelEntry:
    """Return what Celery sends, as django-celery-beat makes it of the row; the row stays as it is.

    It goes by :func:`entry_name`.

    :param entry_class: django-celery-beat's, or one of the app's own.
    :raises PublishRejected: when a field is not JSON of its kind, or when the schedule cannot be read.
        django-celery-beat would disable the row, or fail.
    """
    for name, kind in (("args", list), ("kwargs", dict), ("headers", dict)):
        try:
            fits = isinstance(loads(getattr(task, name) or "null"), kind | None)
        except ValueError:
            fits = False
        if not fits:
            # The error leaves out the text, which may be secret.
            what = "list" if kind is list else "object"
            raise PublishRejected(f"its field {name!r} is not a JSON {what}")
    try:
        entry = None if task.scheduler is None else entry_class(task, app=app)
    except Exception as exc:
        raise PublishRejected(f"its row cannot be read ({exc})") from exc
    if entry is None:
        raise PublishRejected("it has no schedule")
    if (name := entry_name(task)) != task.name:
        entry.name = entry.options["headers"]["periodic_task_name"] = name
    if task.expires is not None:
        entry.options["expires"] = make_aware(task.expires)
    return entry


def from_last_run_at(value: datetime | None) -> int | None:
    """Return a row's ``last_run_at`` in milliseconds UTC; None when it never ran.

    Without ``USE_TZ`` its naive values are UTC when ``DJANGO_CELERY_BEAT_TZ_AWARE`` is off, and wall time in
    ``TIME_ZONE`` when it is on: so django-celery-beat writes them.
    """
    if value is not None and timezone.is_naive(value) and not _tz_aware():
        value = value.replace(tzinfo=UTC)
    return _millis(value)


def to_last_run_at(moment: int) -> datetime:
    """Return milliseconds UTC as a row's ``last_run_at``; what :func:`from_last_run_at` reads."""
    if settings.USE_TZ or _tz_aware():
        return as_stored(moment)
    return from_millis(moment).replace(tzinfo=None)


def _tz_aware() -> bool:
    return bool(getattr(settings, "DJANGO_CELERY_BEAT_TZ_AWARE", True))


def _millis(value: datetime | None) -> int | None:
    return None if value is None else millis(value)
