"""Which rows of django-celery-beat have changed: a number for each, to compare it with an earlier look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import connections
from django.db.models import QuerySet
from django_celery_beat.models import PeriodicTask

from celery_misfire.contrib.django.database import SCHEDULES
from celery_misfire.contrib.django.models import MisfirePolicy

#: The columns that beat writes itself, or never looks at: a change in them alone changes no run.
_IGNORED_COLUMNS = {"last_run_at", "total_run_count", "date_changed", "description"}


def marks_of_rows() -> dict[int, int]:
    """Return, for each enabled row, a number that changes with all that its runs depend on."""
    # Five queries are cheaper than a join, which would send the same schedules over and over.
    columns = [f.attname for f in PeriodicTask._meta.concrete_fields if f.name not in _IGNORED_COLUMNS]
    related = [columns.index(f"{name}_id") for name in SCHEDULES]
    schedules: list[dict[Any, int]] = []
    for name in SCHEDULES:
        model = PeriodicTask._meta.get_field(name).related_model
        schedules.append({values[0]: hash(values) for values in _raw(model._default_manager.values_list())})
    own = [f.attname for f in MisfirePolicy._meta.concrete_fields if not f.primary_key]
    found = _raw(MisfirePolicy.objects.values_list("periodic_task_id", *own))
    policies = {values[0]: hash(values) for values in found}
    rows = PeriodicTask.objects.filter(enabled=True).values_list("pk", *columns)
    return {
        values[0]: hash(
            (
                values,
                policies.get(values[0]),
                *(marks.get(values[1 + at]) for marks, at in zip(schedules, related, strict=True)),
            )
        )
        for values in _raw(rows)
    }


def _raw(rows: QuerySet[Any, tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
    """Return the values as the driver has them: a comparison needs no conversion."""
    sql, params = rows.query.get_compiler(rows.db).as_sql()
    with connections[rows.db].cursor() as cursor:
        cursor.execute(sql, params)
        values: list[tuple[Any, ...]] = cursor.fetchall()
        return values
