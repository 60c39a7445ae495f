"""Keeps the records of missed runs in the database, for the admin; fed by beat and by workers."""

from __future__ import annotations

from typing import Any

from django.db.models import CharField

from celery_misfire.contrib.django.mail import tell
from celery_misfire.contrib.django.models import MissedFire
from celery_misfire.contrib.django.moments import as_stored
from celery_misfire.misfire import MissedFire as Record
from celery_misfire.misfire import to_millis
from celery_misfire.missed import recorders

__all__ = ["install", "keep"]


def install() -> None:
    """Have every record of missed runs of this process kept."""
    if keep not in recorders:
        recorders.append(keep)


def keep(missed: Record) -> None:
    """Write a record, unless it is there already, and have mail sent about it.

    :raises django.db.Error: when the database fails; it is to be called again then.
    """
    values: dict[str, Any] = {
        "task_id": missed.task_id,
        "entry": missed.entry,
        "task": missed.task,
        "first": as_stored(to_millis(missed.first)),
        "last": as_stored(to_millis(missed.last)),
        "count": missed.count,
        "reason": missed.reason.value,
        "instruction": missed.instruction.value,
        "detected_at": as_stored(to_millis(missed.detected_at)),
    }
    for column in MissedFire._meta.concrete_fields:
        # A name may be longer than its column, and PostgreSQL takes no NUL.
        if isinstance(column, CharField):
            values[column.name] = values[column.name].replace("\0", "")[: column.max_length]
    MissedFire.objects.bulk_create([MissedFire(**values)], ignore_conflicts=True)
    tell(MissedFire.objects.get(task_id=values["task_id"]))
