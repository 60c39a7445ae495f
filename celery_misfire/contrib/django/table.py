"""The rows of django-celery-beat, as beat has them in memory; read and written by a thread of its own.

Beat's main loop never waits for the database. It plans by what was read last, and leaves here what is to be
written: how often each row ran and when, and which rows are finished. While the database is away, that waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from celery import Celery
from django.db import Error, IntegrityError, connections
from django_celery_beat.models import PeriodicTask, PeriodicTasks
from django_celery_beat.schedulers import ModelEntry

from celery_misfire.conf.names import without_arguments
from celery_misfire.conf.settings import Settings
from celery_misfire.conf.warnings import unknown_policies
from celery_misfire.contrib.django.changes import marks_of_rows
from celery_misfire.contrib.django.database import with_schedules
from celery_misfire.contrib.django.models import MisfirePolicy
from celery_misfire.contrib.django.moments import millis, now
from celery_misfire.contrib.django.recording import forget
from celery_misfire.contrib.django.rows import (
    entry_name,
    entry_of,
    from_last_run_at,
    policy_of_row,
    site_policy,
    trigger_of,
)
from celery_misfire.contrib.django.updates import RowUpdates, in_chunks
from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.log_lines import Log
from celery_misfire.misfire import ENDLESS, Trigger, TriggerType
from celery_misfire.misfire import MisfirePolicy as Policy
from celery_misfire.records import Definition
from celery_misfire.texts import describe_error
from celery_misfire.triggers.kinds import GridTrigger
from celery_misfire.trouble import Trouble

say = Log(__name__, "beat")

#: Seconds between two looks whether django-celery-beat knows of a change, and between two tries.
LOOK_EVERY = 2.5
#: Seconds between two comparisons of all rows: what ``.update()`` and SQL change shows in no other way.
SCAN_EVERY = 30.0
#: Seconds between two searches for records of missed runs that are older than wanted.
FORGET_EVERY = 3600.0
#: Seconds between two writes of what was counted.
WRITE_EVERY = 1.0
#: The longest that beat waits until a row that runs once is known to have run, in seconds.
WRITE_TIMEOUT = 2.0
#: Seconds after which the log says again that the database fails.
REMIND_EVERY = 60.0


@dataclass(frozen=True)
class Row:
    """An enabled periodic task; another object when the row has changed.

    :param definition: None when it cannot be scheduled as it is.
    :param entry_class: what Celery sends is made with it.
    """

    app: Celery
    task: PeriodicTask
    definition: Definition | None
    entry_class: type[ModelEntry] = ModelEntry

    @property
    def is_single_run(self) -> bool:
        return self.definition is not None and self.definition.trigger.trigger_type is TriggerType.ONCE

    @property
    def ran_before(self) -> bool:
        """Whether a row was to run once and did; django-celery-beat resets the count of a new one."""
        return bool(self.task.one_off and self.task.total_run_count > 0)

    @cached_property
    def entry(self) -> ModelEntry:
        """Return what Celery sends, see :func:`~celery_misfire.contrib.django.rows.entry_of`."""
        return entry_of(self.task, self.app, self.entry_class)


@dataclass(frozen=True)
class WrittenEntry:
    """An entry of ``beat_schedule`` that is kept as a row.

    :param name: of the row, and so Celery's own.
    :param fields: as django-celery-beat takes them.
    :param policy: the fields of its misfire policy; None when the setting says nothing.
    """

    name: str
    fields: Mapping[str, Any]
    policy: Mapping[str, Any] | None

    def write(self) -> None:
        """Create or update the row, and its policy if the setting has one."""
        try:
            self._write()
        except IntegrityError:
            # Another beat has written the same schedule in this instant. It is found now.
            self._write()

    def _write(self) -> None:
        defaults = ModelEntry._unpack_fields(**self.fields)
        task, _ = PeriodicTask._default_manager.update_or_create(name=self.name, defaults=defaults)
        if self.policy is not None:
            MisfirePolicy.objects.update_or_create(periodic_task=task, defaults=self.policy)


class Table:
    """The enabled rows by the names of their entries, see :func:`entry_name`.

    :param entries: are written before anything is read, in their order.
    :param entry_class: see :class:`Row`.
    """

    def __init__(
        self,
        app: Celery,
        settings: Settings,
        entries: Iterable[WrittenEntry],
        entry_class: type[ModelEntry] = ModelEntry,
    ) -> None:
        self._app, self._settings, self._entry_class = app, settings, entry_class
        self._entries = list(entries)
        #: Each change makes a new mapping, so that the main loop never sees half of a change.
        self.rows: Mapping[str, Row] = {}
        #: Set when the rows have been read for the first time.
        self.was_read = threading.Event()
        self.updates = RowUpdates()
        self._thread = threading.Thread(target=self._run, name="misfire-rows", daemon=True)
        self._stop = threading.Event()
        #: Set to end the thread's wait, and when nothing is left to be written.
        self._wake, self._written = threading.Event(), threading.Event()
        # The fields below belong to the thread alone.
        self._by_key: dict[int, Row] = {}
        self._marks: dict[int, int] = {}
        self._changed_at: object = None
        self._look_at = self._scan_at = self._forget_at = 0.0
        self._policies: dict[tuple[str, ...], Policy | None] = {}
        self._trouble = Trouble(LOOK_EVERY, LOOK_EVERY, REMIND_EVERY)

    # -- for the main loop ---------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Write what is to be written within `timeout` seconds, and end the thread."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def write_now(self) -> None:
        """Have written what waits, and wait for that; not for long, and not while the database is away."""
        if self._trouble.is_on or not self.updates:
            return
        self._written.clear()
        self._wake.set()
        self._written.wait(WRITE_TIMEOUT)

    def ran(self, entry: str, moment: int) -> None:
        """Have a run of the row with this entry counted, unless there is no such row."""
        if (row := self.rows.get(entry)) is not None:
            self.updates.ran(row.task.pk, moment)

    def finish(self, row: Row) -> None:
        """Have a row disabled, as django-celery-beat does, unless it is edited first."""
        self.updates.finish(row.task)

    # -- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            is_last = self._stop.is_set()
            try:
                self.work(is_last=is_last)
            except Exception as exc:
                self._fail(exc)
                # The connection is kept as long as it works, as making one costs most; CONN_MAX_AGE is for
                # requests.
                with suppress(Exception):
                    connections.close_all()
            if is_last:
                with suppress(Exception):
                    connections.close_all()
                return
            self._wake.wait(WRITE_EVERY)
            self._wake.clear()

    def look_at_once(self, *, scan: bool) -> None:
        """Have the next pass look at the database; with a scan it compares all rows."""
        self._look_at = 0.0
        if scan:
            self._scan_at = 0.0

    def work(self, *, is_last: bool = False) -> None:
        """Make one pass: write what is to be written, and read what has changed, when that is due.

        :param is_last: beat stops, so nothing needs to be read any more.
        :raises django.db.Error: when the database fails.
        """
        now = time.monotonic()
        looks = now >= self._look_at
        # An idle pass asks nothing of the database.
        idle = not (looks or self.updates) or self._trouble.is_waiting(now)
        if idle and not is_last:
            return
        while self._entries:
            self._write_entry(self._entries[0])
            del self._entries[0]
        if self.updates.disables_rows:
            self.look_at_once(scan=True)
        self.updates.write()
        if not self.updates:
            self._written.set()
        if looks and not is_last:
            self._read()
            self._forget()
            self._look_at = time.monotonic() + LOOK_EVERY
        length = self._trouble.end(time.monotonic())
        if length is not None:
            say.info("database_available", "the database answers again after %.0f s", length)

    def _forget(self) -> None:
        keep = self._settings.keep_missed
        if keep is None or time.monotonic() < self._forget_at:
            return
        # A pass deletes one batch: meanwhile nothing else is read or written.
        if not forget(now() - round(keep * 1000)):
            self._forget_at = time.monotonic() + FORGET_EVERY

    def _fail(self, exc: Exception) -> None:
        self.look_at_once(scan=False)
        if not self._trouble.fail(time.monotonic()):
            return
        # The first line names the table or the server; the others may quote values.
        problem = describe_error(exc)
        goes_on = "nothing is planned before they can"
        if self.was_read.is_set():
            goes_on = f"going on with {len(self.rows)} as they were, counters are written later"
        hint = " Has `manage.py migrate` been run?" if "celery_misfire_" in problem else ""
        what = "the periodic tasks cannot be read (%s); %s.%s"
        say.error("database_unavailable", what, problem, goes_on, hint)

    # -- reading -------------------------------------------------------------------------------------------

    def _read(self) -> None:
        changed_at = PeriodicTasks.last_change()
        at = time.monotonic()
        if changed_at == self._changed_at and at < self._scan_at:
            return
        marks = marks_of_rows()
        if marks != self._marks or not self.was_read.is_set():
            self._load(marks)
        self._changed_at, self._scan_at = changed_at, at + SCAN_EVERY
        self.was_read.set()

    def _load(self, marks: dict[int, int]) -> None:
        """Read the rows that have changed. What changes meanwhile is found by the next scan."""
        changed = [key for key, mark in marks.items() if self._marks.get(key) != mark]
        by_key = {key: row for key, row in self._by_key.items() if key in marks}
        # The first load needs no list of keys: it takes all rows.
        parts = in_chunks(changed) if self._marks else [None]
        for keys in parts:
            tasks, policies = PeriodicTask.objects.filter(enabled=True), MisfirePolicy.objects.all()
            if keys is not None:
                tasks, policies = tasks.filter(pk__in=keys), policies.filter(periodic_task__in=keys)
            own = {policy.periodic_task_id: policy.as_entry_key() for policy in policies}
            found = list(tasks)
            with_schedules(found)
            for task in found:
                by_key[task.pk] = self._row(task, own.get(task.pk))
        self._by_key, self._marks = by_key, marks
        self.rows = {entry_name(row.task): row for row in by_key.values()}
        if not self.was_read.is_set():
            self._warn_of_policies()
        what = "%d periodic tasks, %d of them new or changed"
        say.info("tables_read", what, len(by_key), len(changed), count=len(by_key))

    def _warn_of_policies(self) -> None:
        names = {row.task.name for row in self.rows.values()}
        others = {name: policy for name, policy in self._settings.policies.items() if name not in names}
        settings = replace(self._settings, policies=others)
        for warning in unknown_policies(self._app, settings, self.rows.keys()):
            say.warning("advice", "%s", warning)

    def _row(self, task: PeriodicTask, misfire: object) -> Row:
        name = entry_name(task)
        try:
            trigger = trigger_of(task)
        except Exception as exc:
            if isinstance(exc.__cause__, Error):
                # The database failed, not the row.
                raise exc.__cause__ from None
            say.error("problem", "periodic task %r is left out: %s", name, exc, entry=name)
            return Row(self._app, task, None, self._entry_class)
        try:
            policy = self._policy(task, misfire, trigger.trigger_type)
        except MisfireConfigError as exc:
            # A task that runs by the site's policy is better than one that does not run.
            what = "the policy of periodic task %r is not used: %s"
            say.error("problem", what, name, exc, entry=name)
            policy = site_policy(task, trigger, self._settings)
        definition = Definition(
            name,
            str(task.task),
            trigger,
            policy,
            anchor=_anchor(task, trigger),
            due_since=_due_since(task, trigger),
            key=str(task.pk),
        )
        return Row(self._app, task, definition, self._entry_class)

    def _policy(self, task: PeriodicTask, misfire: object, type_: TriggerType) -> Policy | None:
        # Rows of the same policy share one object.
        named = [name for name in (task.name, entry_name(task)) if name in self._settings.policies]
        key = (*named[:1], repr(misfire), type_)
        if key not in self._policies:
            self._policies[key] = policy_of_row(task, misfire, type_, self._settings)
        return self._policies[key]

    # -- writing -------------------------------------------------------------------------------------------

    def _write_entry(self, entry: WrittenEntry) -> None:
        name = without_arguments(entry.name, str(entry.fields.get("task")))
        try:
            entry.write()
        except Exception as exc:
            if isinstance(exc, OSError) or type(exc).__module__ == "django.db.utils":
                raise
            say.error("problem", "entry %r cannot be written as a row: %s", name, exc, entry=name)


def _due_since(task: PeriodicTask, trigger: Trigger) -> int | None:
    """Return since when a row that runs once, and has not, is there: since its last edit, as in stock."""
    if trigger.trigger_type is not TriggerType.ONCE or task.total_run_count:
        return None
    return millis(task.date_changed)


def _anchor(task: PeriodicTask, trigger: Trigger) -> int | None:
    """Return when a row on an interval ran last under another scheduler; a start_time says it better."""
    plain = isinstance(trigger, GridTrigger) and (trigger.start, trigger.repeat_count) == (None, ENDLESS)
    return from_last_run_at(task.last_run_at) if plain else None
