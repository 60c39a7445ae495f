"""What the mails say: subject and text, in the language of the site."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from django.conf import settings
from django.urls import NoReverseMatch, reverse
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from celery_misfire.contrib.django.models import Alarm, MissedFire, reason_in_words
from celery_misfire.contrib.django.moments import as_duration, as_range, as_text, millis

#: A table of a mail has at most this many rows.
MOST_ROWS = 50

Mail = tuple[str, str]


def overdue(told: Sequence[tuple[str, int | None, int | None]], since: int, site_url: str) -> Mail:
    """Return the mail that no beat runs.

    :param told: the entries that are overdue: name, primary key of the row, and when they were due.
    """
    n = len(told)
    subject = ngettext("Beat is down: %(n)d task is overdue", "Beat is down: %(n)d tasks are overdue", n) % {
        "n": n
    }
    rows = [(name, "" if due is None else as_text(due), _task_link(key, site_url)) for name, key, due in told]
    lines = [
        _("No beat is running, so nothing is sent. Overdue since %s:") % as_text(since),
        "",
        *_table((_("Periodic task"), _("Due at"), ""), rows),
    ]
    return _subject(subject), _text(lines, _link(site_url, "fleet_changelist"))


def missed(over: Sequence[Alarm], records: Sequence[MissedFire], site_url: str) -> Mail:
    """Return the mail about missed runs and, if there is one in `over`, about the end of an outage."""
    count, of_tasks = sum(record.count for record in records), _by_task(records)
    n_missed = ngettext("%(n)d missed run", "%(n)d missed runs", count) % {"n": count}
    names = {record.entry for record in records}
    if over:
        subject = _("Beat is back: %(missed)s") % {"missed": n_missed if count else _("no missed runs")}
    elif len(names) == 1:
        subject = ngettext("%(n)d missed run of %(entry)s", "%(n)d missed runs of %(entry)s", count) % {
            "n": count,
            "entry": records[0].entry,
        }
    else:
        subject = _("%(missed)s of %(n)d tasks") % {"missed": n_missed, "n": len(names)}
    lines = []
    for alarm in over:
        assert alarm.over_at is not None
        since, until = millis(alarm.since), millis(alarm.over_at)
        words = {"time": as_text(since), "length": as_duration(until - since)}
        lines += [_("Beat is back. Runs had been overdue since %(time)s, for %(length)s.") % words, ""]
    if not records:
        lines.append(_("No run was missed."))
        return _subject(subject), _text(lines, _link(site_url, "fleet_changelist"))
    rows = [
        (
            some[0].entry,
            str(sum(record.count for record in some)),
            as_range(min(millis(r.first) for r in some), max(millis(r.last) for r in some)),
            reason_in_words(some[0].reason),
            _link(site_url, "missedfire_change", some[-1].pk),
        )
        for some in of_tasks
    ]
    head = (_("Periodic task"), _("Missed"), _("Scheduled"), _("Reason"), "")
    lines += _table(head, rows)
    found = min(record.detected_at for record in records)
    link = _link(site_url, "missedfire_changelist")
    query = urlencode({"state": "open", "detected_at__gte": found.isoformat()})
    return _subject(subject), _text(lines, link and f"{link}?{query}")


def _by_task(records: Sequence[MissedFire]) -> list[list[MissedFire]]:
    """Return the records of each task and reason together."""
    found: dict[tuple[str, str], list[MissedFire]] = {}
    for record in records:
        found.setdefault((record.entry, record.reason), []).append(record)
    return list(found.values())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; the last column is a link, and may be as long as it likes."""
    shown = [[" ".join(cell.split()) for cell in row] for row in rows[:MOST_ROWS]]
    widths = [max(map(len, column)) for column in zip_longest(head, *shown, fillvalue="")]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *shown)
    ]
    more = len(rows) - len(shown)
    if more > 0:
        lines.append(ngettext("and %(n)d more", "and %(n)d more", more) % {"n": more})
    return lines


def _text(lines: Sequence[str], link: str) -> str:
    end = ["", _("In the admin: %s") % link] if link else []
    return "\n".join([*lines, *end]) + "\n"


def _subject(text: str) -> str:
    # A header may not have line breaks.
    return " ".join(f"{settings.EMAIL_SUBJECT_PREFIX}{text}".split())


def _task_link(key: int | None, site_url: str) -> str:
    return "" if key is None else _link(site_url, "timeline", key, app="django_celery_beat_periodictask")


def _link(site_url: str, page: str, *args: int, app: str = "celery_misfire") -> str:
    """Return the address of a page, without the site where that is not known; '' where there is no admin."""
    try:
        return site_url + reverse(f"admin:{app}_{page}", args=args)
    except NoReverseMatch:
        return ""
