"""Mail about missed runs: one for each outage and entry, through Django's mail API.

Off until the setting ``misfire_mail_to`` or a policy names an address.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from celery import current_app
from django.conf import settings
from django.core.mail import send_mail
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib.django.models import MisfirePolicy, MissedFire
from celery_misfire.contrib.django.moments import as_stored, as_text, millis, now
from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.log_lines import log_fields

__all__ = ["MAIL_INTERVAL", "send_mail_about"]

logger = logging.getLogger(__name__)

#: The shortest time between two mails about one entry; the later one counts the runs of the records between.
MAIL_INTERVAL = timedelta(hours=1)


def send_mail_about(record: MissedFire) -> None:
    """Send the mail about a record, if anybody wants one, and none has been sent lately.

    A mail that cannot be sent is not tried again: the record stays, and the next mail counts it.

    :raises django.db.Error: when the database fails.
    """
    recipients = _recipients(record.entry)
    if not recipients:
        return
    at = as_stored(now())
    of_entry = MissedFire.objects.filter(entry=record.entry)
    if of_entry.filter(mailed_at__gt=at - MAIL_INTERVAL).exists():
        return
    # Beat, a worker or a repeated report may be here at once. The one that sets the mark sends the mail.
    if not MissedFire.objects.filter(pk=record.pk, mailed_at=None).update(mailed_at=at):
        return
    last_mailed = of_entry.filter(mailed_at__lt=at).order_by("mailed_at").last()
    unmailed = of_entry.filter(mailed_at=None, pk__lt=record.pk, pk__gt=last_mailed.pk) if last_mailed else ()
    try:
        send_mail(_subject(record), _text(record, sum(r.count for r in unmailed)), None, recipients)
    except Exception as exc:
        # The log leaves out the text of the error, which may have the address or the password of the server.
        name, extra = record.entry, log_fields("no_mail", entry=record.entry, task_id=record.task_id)
        logger.error("no mail about the missed runs of %r: %s", name, type(exc).__name__, extra=extra)
        MissedFire.objects.filter(pk=record.pk).update(mailed_at=None)


def _recipients(entry: str) -> list[str]:
    own = MisfirePolicy.objects.filter(periodic_task__name=entry).values_list("mail_to", flat=True).first()
    addresses = [address.strip() for address in (own or "").split(",")]
    if any(addresses):
        return [address for address in addresses if address]
    try:
        return list(read_settings(current_app).mail_to)
    except MisfireConfigError:
        # Beat has reported it at its start.
        return []


def _subject(record: MissedFire) -> str:
    subject = ngettext(
        "%(prefix)s%(n)d missed run of %(entry)s", "%(prefix)s%(n)d missed runs of %(entry)s", record.count
    )
    words = {"prefix": settings.EMAIL_SUBJECT_PREFIX, "n": record.count, "entry": record.entry}
    # A header may not have line breaks.
    return " ".join((subject % words).split())


def _text(record: MissedFire, earlier: int) -> str:
    lines = [
        _("Periodic task: %s") % record.entry,
        _("Task: %s") % record.task,
        _("Missed runs: %d") % record.count,
        _("First scheduled at: %s") % as_text(millis(record.first)),
        _("Last scheduled at: %s") % as_text(millis(record.last)),
        _("Reason: %s") % record.get_reason_display(),
        _("Misfire instruction: %s") % record.get_instruction_display(),
        _("Detected at: %s") % as_text(millis(record.detected_at)),
    ]
    if earlier:
        more = ngettext(
            "%d earlier run was missed since the last mail.",
            "%d earlier runs were missed since the last mail.",
            earlier,
        )
        lines.append(more % earlier)
    try:
        path = reverse("admin:celery_misfire_missedfire_change", args=[record.pk])
    except NoReverseMatch:
        pass
    else:
        lines += ["", _("In the admin: %s") % path]
    return "\n".join(lines) + "\n"
