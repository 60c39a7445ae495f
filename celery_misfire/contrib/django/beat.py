"""The scheduler class for ``celery beat`` on the tables of django-celery-beat.

It keeps django-celery-beat's rows and the messages that it makes of them, and replaces how it finds out what
is due: :mod:`celery_misfire.beat` has the loop, :mod:`~celery_misfire.contrib.django.table` the rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from celery import schedules
from celery.beat import ScheduleEntry
from django_celery_beat import schedulers
from django_celery_beat.clockedschedule import clocked

from celery_misfire.beat import FAREWELL, MisfireMixin
from celery_misfire.conf import settings as conf
from celery_misfire.contrib.django.models import Instruction
from celery_misfire.contrib.django.moments import millis, now
from celery_misfire.contrib.django.table import LOOK_EVERY, Row, Table, WrittenEntry
from celery_misfire.leadership.intents import Message
from celery_misfire.records import Definition
from celery_misfire.triggers.asked import AskedTrigger
from celery_misfire.triggers.kinds import trigger_for

__all__ = ["DatabaseScheduler"]

logger = logging.getLogger(__name__)

#: What an entry of ``beat_schedule`` may say of its row, beside what Celery knows.
ROW_KEYS = ("enabled", "one_off", "start_time", "expires", "description")
#: The options that a row has a column for.
ROW_OPTIONS = ("queue", "exchange", "routing_key", "priority", "headers", "expire_seconds")


class DatabaseScheduler(MisfireMixin, schedulers.DatabaseScheduler):  # type: ignore[misc]  # has no types
    """django-celery-beat's scheduler with misfire handling, and its state in Redis.

    ``CELERY_BEAT_SCHEDULER = "celery_misfire.contrib.django.beat:DatabaseScheduler"``
    """

    entry_keys = (*conf.ENTRY_KEYS, *ROW_KEYS)

    def setup_schedule(self) -> None:
        self._written: list[WrittenEntry] = []
        self._schedule = _Schedule(lambda name: self._adopted[name].entry)
        super().setup_schedule()
        self._table = Table(self.app, self._settings, self._written)
        self._table.start()
        #: The rows that are planned by, those of them that end some day, and those that never fire.
        self._adopted: Mapping[str, Row] = {}
        self._mortal: list[Row] = []
        self._hopeless: set[str] = set()
        self._look_at = 0.0

    # -- the schedule --------------------------------------------------------------------------------------

    @property
    def schedule(self) -> dict[str, ScheduleEntry]:  # type: ignore[override]  # read-only in django-celery-beat
        """The entries: all of them by name, and those that are no rows when gone through."""
        return self._schedule

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        """Take entries of the configuration: as rows, if there is a model for their schedule."""
        for name, entry in dict(dict_).items():
            self._take(name, entry if isinstance(entry, Mapping) else _keys_of(entry))
        self._changed = True

    def _take(self, name: str, entry: Mapping[str, Any]) -> None:
        entry = self._stripped(name, entry)
        own = {key: entry[key] for key in ROW_KEYS if key in entry}
        given = {key: value for key, value in entry.items() if key not in own and key != "last_run_at"}
        place, options = f"beat_schedule[{name!r}]", given.get("options") or {}
        schedule = schedules.maybe_schedule(given["schedule"], given.get("relative", False), app=self.app)
        if _has_model(schedule):
            if dropped := sorted(options.keys() - set(ROW_OPTIONS)):
                hint = " Use 'expire_seconds'." if "expires" in dropped else ""
                what = ", ".join(map(repr, dropped))
                logger.warning("beat: %s.options: a row has no column for %s.%s", place, what, hint)
            if isinstance(schedule, clocked):
                own["one_off"] = True
            policy = _policy_fields(self._misfire_keys.pop(name, None))
            self._written.append(WrittenEntry(name, given | own | {"schedule": schedule}, policy))
            return
        if unused := sorted(own.keys() - {"enabled", "description"}):
            what = ", ".join(map(repr, unused))
            logger.warning("beat: %s: its schedule has no model, so %s has no effect", place, what)
        if own.get("enabled", True):
            fields = {**given, "name": name, "schedule": schedule, "app": self.app}
            self._schedule[name] = ScheduleEntry(**{k: v for k, v in fields.items() if k not in ROW_KEYS})

    def _warnings(self) -> list[str]:
        # A name that is no entry of the configuration may be a row's: that is known when they have been read.
        early = conf.unknown_policies(self._settings, self._configured.keys())
        return [warning for warning in super()._warnings() if warning not in early]

    def _definitions(self) -> Iterator[Definition]:
        self._adopted = self._table.rows
        self._mortal = []
        for name, row in self._adopted.items():
            if name in self._schedule:
                why = "beat_schedule has an entry of this name, whose schedule has no model"
                self._trouble.mention(f"periodic task {name!r} is not used: {why}", key=name)
            elif row.definition is None:
                continue
            elif row.ran_before and self._leader.record(name) is None:
                # By another scheduler, or before the store was lost: once is enough.
                self._table.finish(row)
            else:
                if row.is_single_run or row.task.expires is not None:
                    self._mortal.append(row)
                yield row.definition
        yield from super()._definitions()

    # -- the loop ------------------------------------------------------------------------------------------

    def _tick(self) -> float:
        if not self._table.was_read.wait(0.2):
            return 0.0
        if self._lease.held and self._table.rows is not self._adopted:
            self._changed = True
        delay = super()._tick()
        if self._lease.held and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_EVERY
            self._finish_rows()
        return min(delay, LOOK_EVERY)

    def _finish_rows(self) -> None:
        """Have those rows disabled that never fire again, when all is done that was decided for them."""
        finished = [row for row in self._mortal if self._is_finished(row)]
        for row in finished:
            self._table.finish(row)
        if finished:
            self._mortal = [row for row in self._mortal if row not in finished]

    def _is_finished(self, row: Row) -> bool:
        name, record = row.task.name, self._leader.record(row.task.name)
        if record is None or record.runs or record.intents or record.state.next_fire_time is not None:
            return False
        if row.task.expires is not None and millis(row.task.expires) <= now():
            return True
        if row.is_single_run and record.state.previous_fire_time is None and name not in self._hopeless:
            self._hopeless.add(name)
            logger.warning("beat: periodic task %r never fires: its time had passed when beat saw it", name)
        # What neither ran nor was missed may still be wanted: somebody gives it another time, or disables it.
        return row.is_single_run and record.state.previous_fire_time is not None

    def publish(self, message: Message) -> None:
        super().publish(message)
        if message.definition.name not in self._schedule:
            self._table.ran(message.definition.name, message.fire_time)

    def should_sync(self) -> bool:
        return False

    def sync(self) -> None:
        """Do nothing: the table writes what there is to be written."""

    def close(self) -> None:
        super().close()
        if hasattr(self, "_table"):
            self._table.stop(FAREWELL)


def _keys_of(entry: ScheduleEntry) -> dict[str, Any]:
    return {key: getattr(entry, key) for key in ("task", "schedule", "args", "kwargs", "options")}


class _Schedule(dict[str, ScheduleEntry]):
    """The entries that are no rows; the entry of a row is made when it is asked for by name."""

    def __init__(self, entry_of_row: Callable[[str], ScheduleEntry]) -> None:
        super().__init__()
        self._entry_of_row = entry_of_row

    def __missing__(self, name: str) -> ScheduleEntry:
        return self._entry_of_row(name)


def _has_model(schedule: Any) -> bool:
    """True when a row can hold this schedule whole."""
    if type(schedule) is schedules.solar:
        return True
    # What makes no sense is written all the same, and refused as a row.
    with suppress(ValueError):
        if isinstance(trigger_for(schedule), AskedTrigger):
            return False
    if isinstance(schedule, schedules.schedule):
        every: timedelta = schedule.run_every  # type: ignore[attr-defined]  # not in the stubs
        return not schedule.relative and not every % timedelta(seconds=1)
    return isinstance(schedule, schedules.crontab | clocked)


def _policy_fields(misfire: object) -> dict[str, Any] | None:
    """Return the ``misfire`` key of an entry as the fields of a policy's row; None when it says nothing."""
    keys = conf.policy_keys(misfire)
    if keys is None:
        return None
    if keys is False:
        keys = {"instruction": Instruction.OFF}
    said = {key: value for key, value in keys.items() if value not in (None, "auto")}
    nothing: dict[str, Any] = {"instruction": "", "threshold": None, "max_catch_up": None}
    return nothing | {"max_lateness": None, "on_missed": ""} | said
