"""``manage.py purge_missed_fires``: forget missed runs that were found long ago."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils.translation import ngettext

from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.models import MissedFire

#: So many records go in one transaction.
BATCH = 1000

_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes"}


def age(text: str) -> timedelta:
    """Return ``90d`` as a length of time; also w, h and m."""
    found = re.fullmatch(r"(\d{1,6})([wdhm])", text)
    if found is None:
        raise ArgumentTypeError(f"expected a number with w, d, h or m, for example 90d; got {text!r}")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


class Command(BaseCommand):
    help = "Deletes the records of missed runs, and who had them run after all, that were found long ago."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--older-than",
            type=age,
            default=timedelta(days=90),
            metavar="AGE",
            help="for example 12h, 90d or 52w; 90d if not given",
        )
        parser.add_argument("--dry-run", action="store_true", help="count only")

    def handle(self, *args: Any, older_than: timedelta, dry_run: bool, **options: Any) -> None:
        limit = moments.now() - older_than // timedelta(milliseconds=1)
        old = MissedFire.objects.filter(detected_at__lt=moments.as_stored(limit)).order_by("pk")
        if dry_run:
            count = old.count()
            text = ngettext("%(n)d record would be deleted.", "%(n)d records would be deleted.", count)
            self.stdout.write(text % {"n": count})
            return
        deleted = 0
        while keys := list(old.values_list("pk", flat=True)[:BATCH]):
            _all, of_each = MissedFire.objects.filter(pk__in=keys).delete()
            deleted += of_each.get(MissedFire._meta.label, 0)
        text = ngettext("%(n)d record deleted.", "%(n)d records deleted.", deleted)
        self.stdout.write(text % {"n": deleted})
