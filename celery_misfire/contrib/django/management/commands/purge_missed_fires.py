"""``manage.py purge_missed_fires``: forget missed runs that were found long ago."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from datetime import timedelta
from typing import Any

from celery import current_app
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.translation import ngettext

from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.models import MissedFire
from celery_misfire.contrib.django.recording import forget
from celery_misfire.exceptions import MisfireConfigError

#: Older ones are deleted, when neither the command line nor the setting ``misfire_keep_missed`` says more.
KEEP = timedelta(days=90)

_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes"}


def age(text: str) -> timedelta:
    """Return ``90d`` as a length of time; also w, h and m."""
    found = re.fullmatch(r"(\d{1,6})([wdhm])", text)
    if found is None:
        raise ArgumentTypeError(f"expected a number with w, d, h or m, for example 90d; got {text!r}")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _kept() -> timedelta:
    try:
        seconds = read_settings(current_app).keep_missed
    except MisfireConfigError as exc:
        raise CommandError(str(exc)) from None
    return KEEP if seconds is None else timedelta(seconds=seconds)


class Command(BaseCommand):
    help = "Deletes the records of missed runs, and who had them run after all, that were found long ago."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--older-than",
            type=age,
            metavar="AGE",
            help="for example 12h, 90d or 52w; if not given, as CELERY_MISFIRE_KEEP_MISSED says, or else 90d",
        )
        parser.add_argument("--dry-run", action="store_true", help="count only")

    def handle(self, *args: Any, older_than: timedelta | None, dry_run: bool, **options: Any) -> None:
        limit = moments.now() - (_kept() if older_than is None else older_than) // timedelta(milliseconds=1)
        if dry_run:
            count = MissedFire.objects.filter(detected_at__lt=moments.as_stored(limit)).count()
            text = ngettext("%(n)d record would be deleted.", "%(n)d records would be deleted.", count)
            self.stdout.write(text % {"n": count})
            return
        deleted = 0
        while found := forget(limit):
            deleted += found
        text = ngettext("%(n)d record deleted.", "%(n)d records deleted.", deleted)
        self.stdout.write(text % {"n": deleted})
