"""The records of missed runs in the database, for the admin: beat and workers write them; age ends them."""

from __future__ import annotations

from typing import Any

from django.db.models import CharField
from django_celery_beat.models import PeriodicTask

from celery_misfire.contrib.django.mail import is_wanted, mail_soon
from celery_misfire.contrib.django.models import Alarm, MissedFire, Rerun
from celery_misfire.contrib.django.moments import as_stored
from celery_misfire.contrib.django.rows import key_in_name
from celery_misfire.misfire import MissedFire as Record
from celery_misfire.misfire import Reason, to_millis
from celery_misfire.sending.missed_runs import recorders

#: One transaction deletes at most this many records.
RECORDS_PER_TRANSACTION = 1000


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
    values["periodic_task_id"] = _row_of(values["entry"])
    MissedFire.objects.bulk_create([MissedFire(**values)], ignore_conflicts=True)
    # A deploy is no alarm.
    if missed.reason != Reason.RESTARTED and is_wanted():
        mail_soon()


def _row_of(entry: str) -> int | None:
    """Return the primary key of the row of this entry, None when there is none."""
    if (told := key_in_name(entry)) is not None:
        return told
    row = PeriodicTask.objects.filter(name=entry).values_list("pk", flat=True)
    key: int | None = row.first()
    if key is None:
        # It was renamed or deleted in the meantime: then earlier records know whose the name was.
        earlier = MissedFire.objects.filter(entry=entry).exclude(periodic_task=None)
        key = earlier.order_by("-pk").values_list("periodic_task_id", flat=True).first()
    return key


def forget(before: int) -> int:
    """Delete records that were found before this moment (milliseconds UTC), with who had them run after all,
    and with the alarms of that time.

    :returns: how many; 0 when there are no more of them.
    """
    Alarm.objects.filter(over_at__lt=as_stored(before)).delete()
    Rerun.objects.filter(requested_at__lt=as_stored(before)).delete()
    old = MissedFire.objects.filter(detected_at__lt=as_stored(before)).order_by("pk")
    _all, of_each = MissedFire.objects.filter(
        pk__in=list(old.values_list("pk", flat=True)[:RECORDS_PER_TRANSACTION])
    ).delete()
    return of_each.get(MissedFire._meta.label, 0)
