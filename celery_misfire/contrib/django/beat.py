"""The scheduler class for ``celery beat`` on the tables of django-celery-beat.

It keeps django-celery-beat's rows and the messages that it makes of them, and replaces how it finds out what
is due: :mod:`celery_misfire.beat` has the loop, :mod:`~celery_misfire.contrib.django.table` the rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from celery import Celery, schedules
from celery.beat import ScheduleEntry
from django_celery_beat import schedulers
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.models import PeriodicTask

from celery_misfire.beat import FAREWELL, MisfireMixin
from celery_misfire.by_hand import Sendable
from celery_misfire.conf.entries import ENTRY_KEYS, ConfiguredEntry, policy_keys
from celery_misfire.conf.names import plain_names, plainly_named
from celery_misfire.conf.settings import Settings
from celery_misfire.conf.warnings import unknown_policies
from celery_misfire.contrib.django.database import with_policies
from celery_misfire.contrib.django.models import Instruction
from celery_misfire.contrib.django.moments import millis, now
from celery_misfire.contrib.django.policies import policy_of
from celery_misfire.contrib.django.rows import entry_name, entry_of, trigger_of
from celery_misfire.contrib.django.table import LOOK_EVERY, Row, Table, WrittenEntry
from celery_misfire.contrib.django.updates import in_chunks
from celery_misfire.events import Event, GaveUp, Misfired, Sent
from celery_misfire.exceptions import MisfireConfigError, PublishRejected
from celery_misfire.fire import LONGEST_NAME
from celery_misfire.log_lines import Log
from celery_misfire.records import Definition
from celery_misfire.triggers.asked import AskedTrigger
from celery_misfire.triggers.kinds import trigger_for

__all__ = ["DatabaseScheduler"]

say = Log(__name__, "beat")

#: The keys that an entry of ``beat_schedule`` may have for its row, beside Celery's own.
ROW_KEYS = ("enabled", "one_off", "start_time", "expires", "description")
#: The options for which a row has a column.
ROW_OPTIONS = ("queue", "exchange", "routing_key", "priority", "headers", "expire_seconds")


class DatabaseScheduler(MisfireMixin, schedulers.DatabaseScheduler):  # type: ignore[misc]  # has no types
    """django-celery-beat's scheduler with misfire handling, and its state in Redis.

    ``CELERY_BEAT_SCHEDULER = "celery_misfire.contrib.django.beat:DatabaseScheduler"``
    """

    entry_keys = (*ENTRY_KEYS, *ROW_KEYS)

    @classmethod
    def configured(cls, app: Celery) -> tuple[Settings, dict[str, ConfiguredEntry]]:
        settings, entries = super().configured(app)
        # Beat writes most entries of the configuration as rows; whoever changes a row has the last word.
        rows = list(PeriodicTask._default_manager.all())
        for some in in_chunks(rows):
            with_policies(some)
        names = {task.name for task in rows}
        entries = {n: e for n, e in entries.items() if not names & {n, e.own_name}}
        return settings, entries | {
            entry_name(task): _configured_row(task, settings) for task in rows if task.enabled
        }

    @classmethod
    def sendable(cls, app: Celery, name: str, keys: Mapping[Any, Any]) -> Sendable:
        if (task := keys.get("row")) is None:
            return super().sendable(app, name, keys)
        entry = entry_of(task, app)
        return Sendable(name, entry.task, entry.args, entry.kwargs, entry.options)

    def setup_schedule(self) -> None:
        self._written: list[WrittenEntry] = []
        #: The rows of the current plan, and those of them that are finished some day.
        self._adopted: Mapping[str, Row] = {}
        self._finite: list[Row] = []
        # A beat that stands by has no plan.
        self._schedule = _Schedule(lambda: self._adopted or self._table.rows)
        super().setup_schedule()
        self._table = Table(self.app, self._settings, self._written, self.Entry)
        self._table.start()
        #: True when a row that runs once has just run or was missed.
        self._has_ended = False
        #: The names of rows that never fire, and of which the log says so.
        self._warned: set[str] = set()
        self._next_check_at = 0.0

    # -- the schedule --------------------------------------------------------------------------------------

    @property
    def schedule(self) -> MutableMapping[str, ScheduleEntry]:  # type: ignore[override] # dict, and not to be set
        """The entries: of the enabled rows, and those of the configuration that are no rows."""
        return self._schedule

    def _own_entries(self) -> Mapping[str, ScheduleEntry]:
        return self._schedule.own

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        """Take entries of the configuration: as rows, if there is a model for their schedule."""
        plain = plain_names(dict_)
        for own_name, entry in dict(dict_).items():
            shown = plain.get(own_name, own_name)
            # A row keeps Celery's own name, if the column has room for it.
            name = shown if len(own_name) > LONGEST_NAME else own_name
            self._take(name, shown, entry if isinstance(entry, Mapping) else _keys_of(entry))
        self.schedule_has_changed()

    def _take(self, name: str, shown: str, entry: Mapping[str, Any]) -> None:
        entry = self._entries.stripped(name, entry)
        own = {key: entry[key] for key in ROW_KEYS if key in entry}
        given = {key: value for key, value in entry.items() if key not in own and key != "last_run_at"}
        place, options = f"beat_schedule[{shown!r}]", given.get("options") or {}
        schedule = schedules.maybe_schedule(given["schedule"], given.get("relative", False), app=self.app)
        if _has_model(schedule):
            if dropped := sorted(options.keys() - set(ROW_OPTIONS)):
                hint = " Use 'expire_seconds'." if "expires" in dropped else ""
                what = ", ".join(map(repr, dropped))
                say.warning("advice", "%s.options: a row has no column for %s.%s", place, what, hint)
            if isinstance(schedule, clocked):
                own["one_off"] = True
            policy = _policy_fields(self._entries.misfire_keys.pop(name, None))
            self._written.append(WrittenEntry(name, given | own | {"schedule": schedule}, policy))
            return
        if unused := sorted(own.keys() - {"enabled", "description"}):
            what = ", ".join(map(repr, unused))
            say.warning("advice", "%s: its schedule has no model, so %s has no effect", place, what)
        if own.get("enabled", True):
            fields = {**given, "name": name, "schedule": schedule, "app": self.app}
            self._schedule[name] = ScheduleEntry(**{k: v for k, v in fields.items() if k not in ROW_KEYS})

    def _warnings(self, entries: Mapping[str, ConfiguredEntry]) -> list[str]:
        # A policy for a name that is no entry may be for a row. The table warns when it has read the rows.
        early = unknown_policies(self.app, self._settings, entries.keys())
        return [warning for warning in super()._warnings(entries) if warning not in early]

    def _keep_checked(self, entries: Mapping[str, ConfiguredEntry]) -> None:
        """Keep nothing: most entries of the configuration are rows."""

    def _definitions(self) -> Iterator[Definition]:
        self._adopted = self._table.rows
        self._finite = []
        own = plainly_named(self._schedule.own)
        for name, row in self._adopted.items():
            if name in own:
                why = "beat_schedule has an entry of this name, whose schedule has no model"
                self._member.remind(f"periodic task {name!r} is not used: {why}")
            elif row.definition is None:
                continue
            elif row.ran_before and self._leader.record(name) is None:
                # It ran by another scheduler, or before the store was lost. Once is enough.
                self._table.finish(row)
            else:
                if row.is_single_run or row.task.expires is not None:
                    self._finite.append(row)
                yield row.definition
        yield from super()._definitions()

    # -- the loop ------------------------------------------------------------------------------------------

    def _tick(self) -> float:
        if not self._table.was_read.wait(0.2):
            return 0.0
        if self._member.holds_lease and self._table.rows is not self._adopted:
            self.schedule_has_changed()
        delay = super()._tick()
        if self._member.holds_lease and (self._has_ended or time.monotonic() >= self._next_check_at):
            self._next_check_at = time.monotonic() + LOOK_EVERY
            self._finish_rows()
        if self._has_ended:
            # The table must know it before anything else happens: Redis may lose what it knows.
            self._has_ended = False
            self._table.write_now()
        return min(delay, LOOK_EVERY)

    def _finish_rows(self) -> None:
        """Disable the rows that never fire again, when all is done that was decided for them."""
        finished = [row for row in self._finite if self._is_finished(row)]
        for row in finished:
            self._table.finish(row)
        if finished:
            self._finite = [row for row in self._finite if row not in finished]

    def _is_finished(self, row: Row) -> bool:
        name = entry_name(row.task)
        record = self._leader.record(name)
        if record is None or record.runs or record.intents or record.state.next_fire_time is not None:
            return False
        if row.task.expires is not None and millis(row.task.expires) <= now():
            return True
        if row.is_single_run and record.state.previous_fire_time is None and name not in self._warned:
            self._warned.add(name)
            told = "periodic task %r never fires: its time had passed when beat saw it"
            say.warning("problem", told, name, entry=name)
        # A row that neither ran nor was missed stays enabled: somebody may want to give it another time.
        return row.is_single_run and record.state.previous_fire_time is not None

    def reserve(self, entry: Any) -> Any:
        """Advance the counters of an entry in memory; the table has those of the rows written."""
        if entry.name in self._schedule.own:
            self._schedule[entry.name] = entry = next(entry)
        else:
            entry.total_run_count += 1
            entry.last_run_at = entry.default_now()
        return entry

    def _count_runs(self, events: Sequence[Event]) -> None:
        for event in events:
            if not isinstance(event, Sent | Misfired | GaveUp):
                continue
            if self._entries.own_name(event.entry) in self._schedule.own:
                continue
            if isinstance(event, Sent):
                self._table.ran(event.entry, event.fire_time)
            row = self._adopted.get(event.entry)
            self._has_ended = self._has_ended or (row is not None and row.is_single_run)
        super()._count_runs(events)

    def should_sync(self) -> bool:
        return False

    def sync(self) -> None:
        """Do nothing: the table has a thread that writes."""

    def close(self) -> None:
        super().close()
        if hasattr(self, "_table"):
            self._table.stop(FAREWELL)


def _configured_row(task: PeriodicTask, settings: Settings) -> ConfiguredEntry:
    """Return a row as an entry; without a trigger when it cannot be planned as it is."""
    keys = {"task": task.task, "schedule": None, "row": task}
    try:
        trigger = trigger_of(task)
        keys["schedule"] = task.schedule
        policy = policy_of(task, trigger, settings)
    except (ValueError, MisfireConfigError):
        return ConfiguredEntry(task.name, keys, None, None)
    return ConfiguredEntry(task.name, keys, trigger, policy)


def _keys_of(entry: ScheduleEntry) -> dict[str, Any]:
    return {key: getattr(entry, key) for key in ("task", "schedule", "args", "kwargs", "options")}


class _Schedule(MutableMapping[str, ScheduleEntry]):
    """The entries that are no rows, and those of the rows; a change goes to the former.

    :param rows: returns the rows by the names of their entries, as they are now.
    """

    def __init__(self, rows: Callable[[], Mapping[str, Row]]) -> None:
        self.own: dict[str, ScheduleEntry] = {}
        self._rows = rows

    def __getitem__(self, name: str) -> ScheduleEntry:
        return self.own[name] if name in self.own else self._rows()[name].entry

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self._rows()

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        for name, row in self._rows().items():
            # A row that cannot be read has no entry, as in django-celery-beat.
            with suppress(PublishRejected):
                if name not in self.own and row.entry is not None:
                    yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __setitem__(self, name: str, entry: ScheduleEntry) -> None:
        self.own[name] = entry

    def __delitem__(self, name: str) -> None:
        del self.own[name]


def _has_model(schedule: Any) -> bool:
    """Return True when a row can hold the whole schedule."""
    if type(schedule) is schedules.solar:
        return True
    # A schedule that is not valid is written all the same, and refused as a row.
    with suppress(ValueError):
        if isinstance(trigger_for(schedule), AskedTrigger):
            return False
    if isinstance(schedule, schedules.schedule):
        every: timedelta = schedule.run_every  # type: ignore[attr-defined]  # not in the stubs
        return not schedule.relative and not every % timedelta(seconds=1)
    return isinstance(schedule, schedules.crontab | clocked)


def _policy_fields(misfire: object) -> dict[str, Any] | None:
    """Return the ``misfire`` key of an entry as the fields of a policy's row; None when it says nothing."""
    keys = policy_keys(misfire)
    if keys is None:
        return None
    if keys is False:
        keys = {"instruction": Instruction.OFF}
    said = {key: value for key, value in keys.items() if value not in (None, "auto")}
    nothing: dict[str, Any] = {"instruction": "", "threshold": None, "max_catch_up": None}
    return nothing | {"max_lateness": None, "on_missed": ""} | said
