"""The schedules of the process tests' app, and how JSON describes them.

An entry is one of ``beat_schedule``, with ``schedule`` described as one of::

    {"type": "interval", "seconds": 2, "relative": false}
    {"type": "crontab", "minute": "*/5", ...}
    {"type": "simple", "start": 1700000000.0, "interval": 1, "repeat_count": 3, "end": null}
    {"type": "cron", "expression": "0/2 * * * * ?"}
    {"type": "own", "every": 3, "start": 1700000000.0}
    {"type": "raising", "until": path, "every": 1}
    {"type": "odd", "kind": "hangs", "every": 1}
    {"type": "solar", "event": "sunset", "lat": 52.5, "lon": 13.4}
    {"type": "clocked", "at": 1700000000.0}
    {"type": "daily_time_interval", "interval": 10, "unit": "minute", "start_time_of_day": "08:00", ...}
    {"type": "calendar_interval", "interval": 1, "unit": "hour"}
    {"type": "excluding", "schedule": {...}, "days": ["12-25"]}

``start``, ``at`` and ``end`` are in seconds since 1970. ``own`` is a class of the app's own, with no start by
default. ``raising`` raises whatever it is asked: for ever, ``until`` a file exists, or ``during`` its
existence; else it is like ``own``. ``odd`` has the kinds of :class:`OddSchedule`. ``excluding`` leaves out
these days of each year, in UTC.

``"unserialisable": true`` stands for arguments that no message can carry, or a path for such that none can
until the file exists.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from celery import Celery
from celery.schedules import BaseSchedule, crontab, schedule, solar

from celery_misfire import calendars
from celery_misfire.misfire import from_millis, to_millis
from celery_misfire.schedules import calendar_interval, cron, daily_time_interval, excluding, simple

#: What every error on purpose says as well.
SAYS = os.environ.get("MISFIRE_TEST_SAYS", "")


class OwnSchedule(BaseSchedule):
    """Fires at `start` and every so many seconds after it."""

    def __init__(self, every: float, start: float = 0, **options: Any) -> None:
        super().__init__(**options)
        self.every, self.start = every, start

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        # In whole milliseconds, which a fraction of a second in floating point would miss.
        every, start = round(self.every * 1000), round(self.start * 1000)
        passed = (to_millis(last_run_at) - start) // every
        return from_millis(start + every * max(0, passed + 1)) - self.now()

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        remaining = self.remaining_estimate(last_run_at).total_seconds()
        return remaining <= 0, remaining if remaining > 0 else self.every


class RaisingSchedule(OwnSchedule):
    """Raises until a file exists, or while it does."""

    def __init__(
        self, until: str | None = None, during: str | None = None, every: float = 1, **options: Any
    ) -> None:
        super().__init__(every, **options)
        self.until, self.during = until, during

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        if _exists(self.during) if self.during else not _exists(self.until):
            raise RuntimeError(f"this schedule is broken on purpose {SAYS}")
        return super().remaining_estimate(last_run_at)


class OddSchedule(OwnSchedule):
    """Like :class:`OwnSchedule`, but for what it does when it is asked."""

    def __init__(self, kind: str, every: float = 1, **options: Any) -> None:
        super().__init__(every, **options)
        self.kind, self.asked = kind, 0

    def remaining_estimate(self, last_run_at: datetime) -> Any:
        match self.kind:
            case "hangs":
                time.sleep(3600)
            case "spins":
                while True:
                    pass
            case "slow":
                time.sleep(0.3)
            case "exits":
                raise SystemExit(3)
            case "stuck":
                return timedelta(0)
            case "text":
                return "soon"
            case "changes":
                self.asked += 1
                self.every *= self.asked
        return super().remaining_estimate(last_run_at)


class Unserialisable:
    """What no message can carry, until a file exists."""

    def __init__(self, until: str | bool) -> None:
        self.until = until if isinstance(until, str) else None

    def __json__(self) -> str:
        # Kombu asks for this, and takes an error here for one of the message.
        if not _exists(self.until):
            raise TypeError(f"cannot be serialised, on purpose {SAYS}")
        return "serialised"


def _exists(path: str | None) -> bool:
    return path is not None and Path(path).exists()


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def build_schedule(described: dict[str, Any], app: Celery | None = None) -> BaseSchedule:
    """Return the schedule that a description stands for."""
    options = dict(described)
    match options.pop("type"):
        case "interval":
            return schedule(options.pop("seconds"), app=app, **options)
        case "crontab":
            return crontab(**options, app=app)
        case "simple":
            moments = {name: _moment(options.pop(name, None)) for name in ("start", "end")}
            return simple(**moments, **options)
        case "cron":
            return cron(**options)
        case "daily_time_interval":
            return daily_time_interval(**options)
        case "calendar_interval":
            return calendar_interval(**options)
        case "excluding":
            inner = build_schedule(options.pop("schedule"), app)
            return excluding(inner, calendars.annual(**options, timezone="UTC"))
        case "own":
            return OwnSchedule(**options, app=app)
        case "raising":
            return RaisingSchedule(**options, app=app)
        case "odd":
            return OddSchedule(**options, app=app)
        case "solar":
            return solar(**options, app=app)
        case "clocked":
            from django_celery_beat.clockedschedule import clocked

            return clocked(_moment(options.pop("at")), **options, app=app)
        case unknown:
            raise ValueError(f"no such schedule type: {unknown!r}")


def build_entry(described: dict[str, Any], app: Celery) -> dict[str, Any]:
    """Return the ``beat_schedule`` entry that a description stands for; without a task it runs ``record``."""
    entry = {"task": "record", **described, "schedule": build_schedule(described["schedule"], app)}
    if until := entry.pop("unserialisable", False):
        entry["args"] = [Unserialisable(until)]
    return entry
