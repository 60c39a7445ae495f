"""What the page of all tasks knows: the beats, where each task stands, and what is open.

However many tasks: a fixed number of queries, and of calls of Redis. Moments are milliseconds UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from celery import current_app
from django.db.models import Count, Sum
from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask

from celery_misfire.beats import problem_of
from celery_misfire.conf.settings import Settings, read_settings
from celery_misfire.contrib.django.admin.overview import ROWS_AT_ONCE
from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun
from celery_misfire.contrib.django.planned import planned
from celery_misfire.contrib.django.rows import entry_name
from celery_misfire.contrib.django.state import fleet_of, open_store
from celery_misfire.exceptions import MisfireConfigError, NewerSchema, StoreUnavailable
from celery_misfire.fleet import Fleet
from celery_misfire.records import Pause
from celery_misfire.status import Status, status_of
from celery_misfire.store.redis_store import RedisStore

#: Of at most this many late tasks the schedules are asked how late they may be; the others: a minute.
MOST_EXACT = ROWS_AT_ONCE

#: What the page can be narrowed to.
STATES = ("overdue", "missed", "paused", "disabled")


@dataclass(frozen=True)
class Line:
    """A periodic task on the page.

    :param missed: how many of its missed runs wait for somebody.
    :param status: where it stands; None where nobody knows, and for a disabled task.
    """

    key: int
    name: str
    enabled: bool
    missed: int = 0
    status: Status | None = None

    @property
    def next(self) -> int | None:
        return None if self.status is None else self.status.next_fire_time

    @property
    def is_overdue(self) -> bool:
        return self.status is not None and self.status.is_overdue

    @property
    def paused(self) -> Pause | None:
        return None if self.status is None else self.status.paused

    def is_in(self, state: str) -> bool:
        """Return True when it has this state, one of :data:`STATES`."""
        has = {"overdue": self.is_overdue, "missed": self.missed > 0, "paused": self.paused is not None}
        return has.get(state, not self.enabled)

    @property
    def rank(self) -> tuple[Any, ...]:
        """Its place: overdue, missed, then by the next fire time, disabled at the end."""
        following = self.next
        return (
            not self.is_overdue,
            not self.missed,
            not self.enabled,
            following is None,
            following or 0,
            self.name,
        )


@dataclass(frozen=True)
class FleetState:
    """All tasks, and the beats.

    :param fleet: None when Redis does not answer, or cannot be read; `problem` says so then.
    :param way: how runs are sent, in words; '' when that is not known.
    """

    lines: Sequence[Line]
    now: int
    problem: str = ""
    fleet: Fleet | None = None
    way: str = ""

    @property
    def alarm(self) -> str:
        """Why somebody should look, '' when beat is well."""
        return self.problem if self.fleet is None else problem_of(self.fleet.sight, None)

    def count(self, state: str) -> int:
        return sum(line.is_in(state) for line in self.lines)

    @property
    def missed(self) -> int:
        """How many missed runs of all tasks wait for somebody."""
        return sum(line.missed for line in self.lines)


def look(now: int) -> FleetState:
    """Return where all tasks stand.

    :raises django.db.Error: when the database fails.
    """
    missed = _open_runs()
    rows = PeriodicTask.objects.order_by().values_list("pk", "name", "task", "enabled")
    lines = [
        Line(key, _entry_name(key, name, task), enabled, missed.get(key, 0))
        for key, name, task, enabled in rows
    ]
    try:
        settings = read_settings(current_app)
        store = open_store(current_app)
        # The schedules of all tasks would take seconds, and what was counted is not shown.
        fleet = fleet_of(store)
        way = _way(store)
    except MisfireConfigError as exc:
        return FleetState(lines, now, str(exc))
    except StoreUnavailable as exc:
        text = _("Redis does not answer; past and next runs are unknown. %(error)s")
        return FleetState(lines, now, text % {"error": exc})
    except NewerSchema as exc:
        text = _("The state in Redis is not of this version: %(error)s.")
        return FleetState(lines, now, text % {"error": exc})
    return FleetState(_with_status(lines, fleet, now, settings), now, "", fleet, way)


def _entry_name(key: int, name: str, task: str) -> str:
    # A row takes time to make, and most names are plain.
    return entry_name(PeriodicTask(pk=key, name=name, task=task)) if "(" in name else name


def _open_runs() -> dict[int, int]:
    """Return how many missed runs wait for somebody, by primary key."""
    waiting = MissedFire.objects.filter(dismissed_at=None, periodic_task__isnull=False).order_by()
    made = OccurrenceRun.objects.filter(missed__dismissed_at=None).order_by()
    found = dict(waiting.values_list("periodic_task_id").annotate(n=Sum("count")))
    for key, n in made.values_list("missed__periodic_task_id").annotate(n=Count("pk")):
        if key in found:
            found[key] -= n
    return {key: n for key, n in found.items() if n > 0}


def _with_status(lines: Sequence[Line], fleet: Fleet, now: int, settings: Settings) -> list[Line]:
    hold, records = fleet.hold, fleet.records
    found, late = [], []
    for line in lines:
        status = None
        if line.enabled:
            # Without the schedule, which takes no time; it is asked only by those that are late.
            status = status_of(records.get(line.name), None, None, now, hold=hold)
            if status.late_by:
                late.append(line.key)
        found.append(replace(line, status=status))
    of_late = planned(late[:MOST_EXACT], settings)
    return [
        replace(line, status=status_of(records.get(line.name), p.trigger, p.policy, now, hold=hold))
        if (p := of_late.get(line.key)) is not None
        else line
        for line in found
    ]


def _way(store: RedisStore) -> str:
    mark, _lease = store.look()
    if mark is None or mark.destination is None or not mark.destination.place:
        return ""
    if store.has_queues_of(mark.destination):
        return _("in one transaction with their record")
    return _("in two steps, claim and ack around them")
