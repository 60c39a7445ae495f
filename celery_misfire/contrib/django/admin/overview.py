"""What the list of periodic tasks says about the tasks of one page.

However many rows: four queries at most, and three calls of Redis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celery import current_app
from django.db.models import BigIntegerField, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce
from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask

from celery_misfire.conf.settings import Settings, read_settings
from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.open_runs import with_open_runs
from celery_misfire.contrib.django.database import with_policies
from celery_misfire.contrib.django.models import MissedFire
from celery_misfire.contrib.django.policies import policy_in_force, short_label_of
from celery_misfire.contrib.django.rows import entry_name, key_in_name, trigger_of
from celery_misfire.contrib.django.state import fleet_of, open_store
from celery_misfire.entry_record import EntryRecord, Pause
from celery_misfire.exceptions import MisfireConfigError, NewerSchema, StoreUnavailable
from celery_misfire.status import Status, status_of

#: The list counts misses that were detected within this many milliseconds.
MISSED_WITHIN = 24 * 3600 * 1000
#: One query asks for at most this many rows.
ROWS_AT_ONCE = 500


@dataclass
class Overview:
    """What the list says about one periodic task.

    :param status: None where nobody knows it, as Redis does not answer, and for a disabled task.
    :param policy: the policy in two words, resolved; '' where it is not known.
    :param problem: what is wrong with its schedule or its policy.
    """

    status: Status | None = None
    policy: str = ""
    problem: str = ""


def standing(status: Status | None) -> str:
    """Return in words that a task is paused or late, '' for one that is neither."""
    if status is None:
        return ""
    if status.paused is not None:
        return pause_in_words(status.paused, _("paused"))
    if not status.late_by:
        return ""
    text = _("%(length)s overdue") if status.is_overdue else _("%(length)s late")
    return text % {"length": moments.as_duration(status.late_by, parts=1)}


def pause_in_words(pause: Pause, what: str = "") -> str:
    """Return until when a pause is, who said so, and why."""
    parts = [what] if what else []
    if pause.until is not None:
        parts.append(_("until %(time)s") % {"time": moments.as_short(pause.until, moments.now())})
    if pause.by:
        parts.append(_("by %(who)s") % {"who": pause.by})
    if pause.reason:
        parts.append(f"({pause.reason})")
    return " ".join(parts)


def with_missed(tasks: QuerySet[Any], now: int) -> QuerySet[Any]:
    """Return the rows with how many of their runs were missed lately and wait for somebody."""
    since = moments.as_stored(now - MISSED_WITHIN)
    missed = MissedFire.objects.filter(periodic_task=OuterRef("pk"), detected_at__gte=since).order_by()
    counted = with_open_runs(missed).values("periodic_task_id").annotate(n=Sum("open_runs")).values("n")
    count = Coalesce(Subquery(counted, output_field=BigIntegerField()), 0, output_field=BigIntegerField())
    counting: QuerySet[Any] = tasks.annotate(misfire_missed=count)
    return counting


def overviews_of(tasks: Sequence[PeriodicTask], now: int) -> tuple[dict[int, Overview], list[str]]:
    """Return what is known of these tasks, by primary key, and what is wrong with all of them."""
    with_policies(tasks)
    found = {task.pk: Overview() for task in tasks}
    try:
        settings = read_settings(current_app)
    except MisfireConfigError as exc:
        return found, [str(exc)]
    problems, records, hold = [], None, None
    try:
        store = open_store(current_app)
        fleet = fleet_of(store, list(map(entry_name, tasks)))
        # It refuses a state of a newer version.
        store.look()
        records, hold = fleet.records, fleet.hold
        if not fleet.leader:
            problems.append(_("No beat is running: nothing is sent."))
        if hold is not None:
            problems.append(_("All tasks are held %(hold)s.") % {"hold": pause_in_words(hold)})
    except StoreUnavailable as exc:
        problems.append(_("Redis does not answer; next runs are unknown. %(error)s") % {"error": exc})
    except NewerSchema as exc:
        problems.append(_("The state in Redis is not of this version: %(error)s.") % {"error": exc})
    for task in tasks:
        record = None if records is None else records.get(entry_name(task))
        found[task.pk] = _overview(task, settings, record, now, hold)
        if records is None:
            found[task.pk].status = None
    return found, problems


def _overview(
    task: PeriodicTask, settings: Settings, record: EntryRecord | None, now: int, hold: Pause | None
) -> Overview:
    overview = Overview()
    try:
        trigger = trigger_of(task)
    except ValueError:
        # Beat leaves out such a row, too.
        return Overview(problem=_("schedule not valid"))
    policy, is_valid = policy_in_force(task, trigger, settings)
    if is_valid:
        overview.policy = short_label_of(policy, trigger.trigger_type)
    else:
        # The form of the row shows what is wrong.
        overview.problem = _("policy not valid")
    if task.enabled:
        overview.status = status_of(record, trigger, policy, now, hold=hold)
    return overview


def overdue_keys(now: int) -> list[int]:
    """Return the primary keys of all rows that are overdue; none when that is not known."""
    try:
        settings, fleet = read_settings(current_app), fleet_of(open_store(current_app))
    except (MisfireConfigError, StoreUnavailable):
        return []
    late = [
        name
        for name, record in fleet.records.items()
        if record.state.next_fire_time is not None and record.state.next_fire_time < now
    ]
    found = []
    for start in range(0, len(late), ROWS_AT_ONCE):
        part = late[start : start + ROWS_AT_ONCE]
        keys = [key for key in map(key_in_name, part) if key is not None]
        tasks = list(PeriodicTask.objects.filter(Q(name__in=part) | Q(pk__in=keys), enabled=True))
        with_policies(tasks)
        for task in tasks:
            record = fleet.records.get(entry_name(task))
            status = _overview(task, settings, record, now, fleet.hold).status
            if status is not None and status.is_overdue:
                found.append(task.pk)
    return found
