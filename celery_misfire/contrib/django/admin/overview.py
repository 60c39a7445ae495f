"""What the list of periodic tasks says about the tasks of one page.

However many rows: five queries at most, and one round trip to Redis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from celery import current_app
from django.db.models import Sum, prefetch_related_objects
from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask

from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib.django.models import MissedFire
from celery_misfire.contrib.django.moments import as_stored
from celery_misfire.contrib.django.policies import policy_in_words, policy_of
from celery_misfire.contrib.django.rows import site_policy, trigger_of
from celery_misfire.contrib.django.state import open_store, records_of
from celery_misfire.exceptions import MisfireConfigError, StoreUnavailable
from celery_misfire.status import Status, status_of

__all__ = ["MISSED_WITHIN", "Overview", "overviews_of"]

#: The list counts misses that were detected within this many milliseconds.
MISSED_WITHIN = 24 * 3600 * 1000


@dataclass
class Overview:
    """What the list says about one periodic task.

    :param status: None where nobody knows it, as Redis does not answer, and for a disabled task.
    :param policy: the policy in words, resolved.
    :param missed: how many runs were found to be missed lately.
    """

    status: Status | None = None
    policy: str = ""
    missed: int = 0


def overviews_of(tasks: Sequence[PeriodicTask], now: int) -> tuple[dict[int, Overview], str]:
    """Return what is known of these tasks, by primary key, and the problem ('' for none)."""
    prefetch_related_objects(tasks, "interval", "crontab", "solar", "clocked", "misfire_policy")
    missed = MissedFire.objects.filter(
        periodic_task__in=[task.pk for task in tasks], detected_at__gte=as_stored(now - MISSED_WITHIN)
    )
    counts = dict(missed.order_by().values_list("periodic_task_id").annotate(Sum("count")))
    found = {task.pk: Overview(missed=counts.get(task.pk, 0)) for task in tasks}
    try:
        settings = read_settings(current_app)
    except MisfireConfigError as exc:
        return found, str(exc)
    problem, records = "", None
    try:
        records = records_of(open_store(current_app), [task.name for task in tasks])
    except StoreUnavailable as exc:
        problem = str(exc)
    for task in tasks:
        overview = found[task.pk]
        try:
            trigger = trigger_of(task)
        except ValueError:
            # Beat leaves out such a row, too.
            overview.policy = _("Not valid")
            continue
        try:
            policy = policy_of(task, trigger, settings)
            overview.policy = policy_in_words(policy, trigger.trigger_type)
        except MisfireConfigError:
            # The form of the row shows what is wrong.
            policy, overview.policy = site_policy(task, trigger, settings), _("Not valid")
        if records is not None and task.enabled:
            overview.status = status_of(records.get(task.name), trigger, policy, now)
    return found, problem
