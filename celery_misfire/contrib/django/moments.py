"""Moments on their way between the planner, the database and a page.

The planner counts milliseconds UTC. With ``USE_TZ = False`` the database has wall time in ``TIME_ZONE``. A
page shows the current time zone of Django, always with its offset from UTC.
"""

from __future__ import annotations

import time
from datetime import datetime

from django.conf import settings
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.timesince import timesince
from django.utils.translation import gettext as _
from django.utils.translation import pgettext
from django_celery_beat.utils import make_aware

from celery_misfire.misfire import from_millis, to_millis


def now() -> int:
    return time.time_ns() // 1_000_000


def millis(value: datetime) -> int:
    """Return what a date field holds, in milliseconds UTC."""
    return to_millis(value if timezone.is_aware(value) else make_aware(value))


def as_stored(moment: int) -> datetime:
    """Return milliseconds UTC as a date field takes them."""
    value = from_millis(moment)
    return value if settings.USE_TZ else timezone.make_naive(value, timezone.get_default_timezone())


def as_text(moment: int) -> str:
    """Return local date and time to the second, with the offset: ``2026-03-29 02:00:00+01:00``."""
    return timezone.localtime(from_millis(moment)).isoformat(" ", "seconds")


def as_short(moment: int, now: int) -> str:
    """Return local date and time as short as can be: seconds for today alone, no year for this one."""
    local, today = (timezone.localtime(from_millis(at)) for at in (moment, now))
    if local.date() == today.date():
        return date_format(local, "H:i:s" if local.second else "H:i")
    form = (
        pgettext("as Django's filter date takes it", "j M")
        if local.year == today.year
        else pgettext("as Django's filter date takes it", "j M Y")
    )
    return f"{date_format(local, form)}, {date_format(local, 'H:i')}"


def as_short_range(first: int, last: int, now: int) -> str:
    """Return from when to when as short as can be."""
    start, end = as_short(first, now), as_short(last, now)
    ends = [timezone.localtime(from_millis(at)) for at in (first, last)]
    if ends[0].date() == ends[1].date() and ends[0].utcoffset() == ends[1].utcoffset():
        # The day is told once.
        end = end.rpartition(", ")[2]
    return start if first == last else f"{start}\u00a0\u2013 {end}"


def as_duration(length: int, parts: int = 2) -> str:
    """Return milliseconds in words, in so many of the largest units."""
    if length < 60_000:
        return _("%(n)d s") % {"n": length // 1000}
    return timesince(from_millis(0), from_millis(length), depth=parts)


def as_range(first: int, last: int) -> str:
    """Return from when to when, both included, in local time."""
    if first == last:
        return as_text(first)
    return _("%(first)s to %(last)s") % {"first": as_text(first), "last": as_text(last)}
