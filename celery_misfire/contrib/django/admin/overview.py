"""Where the periodic tasks of a page stand: what their list says about each of them.

However many rows: five queries at most, and one round trip to Redis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from celery import current_app
from django.db.models import Sum, prefetch_related_objects
from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask

from celery_misfire.conf import settings as conf
from celery_misfire.contrib.django.models import MissedFire
from celery_misfire.contrib.django.moments import as_stored
from celery_misfire.contrib.django.policies import named, policy_of
from celery_misfire.contrib.django.rows import site_policy, trigger_of
from celery_misfire.contrib.django.state import open_store, records_of
from celery_misfire.exceptions import MisfireConfigError, StoreUnavailable
from celery_misfire.misfire import MisfirePolicy, Trigger, threshold_millis
from celery_misfire.records import EntryRecord

__all__ = ["LATELY", "Standing", "look_at"]

#: For how long a miss is counted in the list, in milliseconds.
LATELY = 24 * 3600 * 1000


@dataclass
class Standing:
    """Where one periodic task stands; moments and lengths are milliseconds.

    :param is_new: True when beat has not planned the row yet, as it is now.
    :param next_fire_time: the next expected fire time, which may be past; None when there is none.
    :param late_by: how long ago that was, None when it is still to come.
    :param is_overdue: that is the misfire threshold or more.
    :param policy: the policy in words, resolved.
    :param missed: how many runs were found to be missed lately.
    """

    is_new: bool = False
    next_fire_time: int | None = None
    late_by: int | None = None
    is_overdue: bool = False
    policy: str = ""
    missed: int = 0


def look_at(tasks: Sequence[PeriodicTask], now: int) -> tuple[dict[int, Standing], str]:
    """Return where these tasks stand, by primary key, and what kept us from knowing it ('' for nothing)."""
    prefetch_related_objects(tasks, "interval", "crontab", "solar", "clocked", "misfire_policy")
    missed = MissedFire.objects.filter(
        entry__in=[task.name for task in tasks], detected_at__gte=as_stored(now - LATELY)
    )
    counts = dict(missed.order_by().values_list("entry").annotate(Sum("count")))
    standings = {task.pk: Standing(missed=counts.get(task.name, 0)) for task in tasks}
    try:
        settings = conf.read_settings(current_app)
    except MisfireConfigError as exc:
        return standings, str(exc)
    problem, records = "", None
    try:
        records = records_of(open_store(current_app), [task.name for task in tasks])
    except StoreUnavailable as exc:
        problem = str(exc)
    for task in tasks:
        standing = standings[task.pk]
        try:
            trigger = trigger_of(task)
        except ValueError:
            # Beat leaves it out as well.
            standing.policy = _("Not valid")
            continue
        try:
            policy = policy_of(task, trigger, settings)
            standing.policy = named(policy, trigger.trigger_type)
        except MisfireConfigError:
            # Its form says what is wrong.
            policy, standing.policy = site_policy(task, trigger, settings), _("Not valid")
        if records is not None and task.enabled:
            _look(standing, trigger, policy, records.get(task.name), now)
    return standings, problem


def _look(
    standing: Standing, trigger: Trigger, policy: MisfirePolicy | None, record: EntryRecord | None, now: int
) -> None:
    if record is None or record.removed_at is not None or record.fingerprint != trigger.fingerprint:
        standing.is_new = True
        return
    due = standing.next_fire_time = record.state.next_fire_time
    if due is not None and due < now:
        try:
            following = trigger.fire_times(record.state).after(due)
        except Exception:
            # A schedule may fail in its own code, such as the sun's at the poles.
            following = None
        standing.late_by = now - due
        standing.is_overdue = now - due >= threshold_millis(policy, due, following)
