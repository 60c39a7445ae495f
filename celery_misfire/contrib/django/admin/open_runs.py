"""Missed runs that wait for somebody: neither run after all nor dismissed."""

from __future__ import annotations

from django.db.models import BigIntegerField, Case, Count, F, OuterRef, QuerySet, Subquery, When
from django.db.models.functions import Coalesce

from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun


def with_open_runs(records: QuerySet[MissedFire]) -> QuerySet[MissedFire]:
    """Return the records with `runs_made` after all, and with `open_runs`, which wait for somebody."""
    made = OccurrenceRun.objects.filter(missed=OuterRef("pk")).order_by().values("missed")
    runs_made = Coalesce(Subquery(made.annotate(n=Count("pk")).values("n")), 0)
    is_open = When(dismissed_at=None, then=F("count") - F("runs_made"))
    return records.annotate(runs_made=runs_made).annotate(
        open_runs=Case(is_open, default=0, output_field=BigIntegerField())
    )
