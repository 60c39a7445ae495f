"""What the list of periodic tasks says about the tasks of one page.

However many rows: four queries at most, and two calls of Redis.
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
from celery_misfire.contrib.django.admin.open_runs import with_open_runs
from celery_misfire.contrib.django.database import with_policies
from celery_misfire.contrib.django.models import MissedFire
from celery_misfire.contrib.django.moments import as_stored
from celery_misfire.contrib.django.policies import policy_of, short_label_of
from celery_misfire.contrib.django.rows import entry_name, key_in_name, site_policy, trigger_of
from celery_misfire.contrib.django.state import open_store, records_of
from celery_misfire.entry_record import EntryRecord
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


def with_missed(tasks: QuerySet[Any], now: int) -> QuerySet[Any]:
    """Return the rows with how many of their runs were missed lately and wait for somebody."""
    since = as_stored(now - MISSED_WITHIN)
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
    problems, records = [], None
    try:
        store = open_store(current_app)
        records = records_of(store, list(map(entry_name, tasks)))
        if store.look()[1] is None:
            problems.append(_("No beat is running: nothing is sent."))
    except StoreUnavailable as exc:
        problems.append(_("Redis does not answer; next runs are unknown. %(error)s") % {"error": exc})
    except NewerSchema as exc:
        # Records of another version may mean something else.
        records = None
        problems.append(_("The state in Redis is not of this version: %(error)s.") % {"error": exc})
    for task in tasks:
        record = None if records is None else records.get(entry_name(task))
        found[task.pk] = _overview(task, settings, record, now)
        if records is None:
            found[task.pk].status = None
    return found, problems


def _overview(task: PeriodicTask, settings: Settings, record: EntryRecord | None, now: int) -> Overview:
    overview = Overview()
    try:
        trigger = trigger_of(task)
    except ValueError:
        # Beat leaves out such a row, too.
        return Overview(problem=_("schedule not valid"))
    try:
        policy = policy_of(task, trigger, settings)
        overview.policy = short_label_of(policy, trigger.trigger_type)
    except MisfireConfigError:
        # The form of the row shows what is wrong.
        policy, overview.problem = site_policy(task, trigger, settings), _("policy not valid")
    if task.enabled:
        overview.status = status_of(record, trigger, policy, now)
    return overview


def overdue_keys(now: int) -> list[int]:
    """Return the primary keys of all rows that are overdue; none when that is not known."""
    try:
        settings, store = read_settings(current_app), open_store(current_app)
        records = records_of(store, None)
    except (MisfireConfigError, StoreUnavailable):
        return []
    late = [
        name
        for name, record in records.items()
        if record.state.next_fire_time is not None and record.state.next_fire_time < now
    ]
    found = []
    for start in range(0, len(late), ROWS_AT_ONCE):
        part = late[start : start + ROWS_AT_ONCE]
        keys = [key for key in map(key_in_name, part) if key is not None]
        tasks = list(PeriodicTask.objects.filter(Q(name__in=part) | Q(pk__in=keys), enabled=True))
        with_policies(tasks)
        for task in tasks:
            status = _overview(task, settings, records.get(entry_name(task)), now).status
            if status is not None and status.is_overdue:
                found.append(task.pk)
    return found
