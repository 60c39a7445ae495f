"""Periodic tasks with the schedule and the policy by which beat plans them, many at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from django.db import close_old_connections
from django_celery_beat.models import PeriodicTask

from celery_misfire.conf.settings import Settings
from celery_misfire.contrib.django.database import with_policies
from celery_misfire.contrib.django.policies import policy_in_force
from celery_misfire.contrib.django.rows import entry_name, key_in_name, trigger_of
from celery_misfire.contrib.django.updates import in_chunks
from celery_misfire.misfire import MisfirePolicy, Trigger
from celery_misfire.worker.watch import finders


def install() -> None:
    """Have those that watch beat in this process know the rows."""
    if find not in finders:
        finders.append(find)


@dataclass(frozen=True)
class Planned:
    """A periodic task with its schedule and its policy.

    :param trigger: None for a task that can never be scheduled.
    """

    task: PeriodicTask
    trigger: Trigger | None = None
    policy: MisfirePolicy | None = None


def planned(keys: Iterable[int], settings: Settings) -> dict[int, Planned]:
    """Return these tasks with schedules and policies, in six queries for each 500."""
    found = {}
    for some in in_chunks(list(keys)):
        tasks = list(PeriodicTask.objects.filter(pk__in=some))
        with_policies(tasks)
        for task in tasks:
            found[task.pk] = _planned(task, settings)
    return found


def _planned(task: PeriodicTask, settings: Settings) -> Planned:
    try:
        trigger = trigger_of(task)
    except ValueError:
        return Planned(task)
    return Planned(task, trigger, policy_in_force(task, trigger, settings)[0])


def keys_of(names: Collection[str]) -> dict[str, int]:
    """Return the primary keys of the rows of these entries."""
    found = {name: key for name in names if (key := key_in_name(name)) is not None}
    for some in in_chunks(list(names)):
        found |= PeriodicTask.objects.filter(name__in=some).values_list("name", "pk")
    return found


def find(
    names: Collection[str], settings: Settings
) -> Mapping[str, tuple[Trigger | None, MisfirePolicy | None]]:
    """Return schedule and policy of the entries that are rows, for a thread that has no request.

    :raises django.db.Error: when the database fails.
    """
    close_old_connections()
    try:
        rows = planned(keys_of(names).values(), settings).values()
        return {entry_name(row.task): (row.trigger, row.policy) for row in rows}
    finally:
        close_old_connections()
