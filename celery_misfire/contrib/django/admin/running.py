"""Missed occurrences that are run after all: which there are, and how one is sent with its original time."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from celery import Celery
from celery.exceptions import ImproperlyConfigured
from django.db import IntegrityError, router, transaction
from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask

from celery_misfire import by_hand
from celery_misfire.by_hand import Occurrences, occurrences_between
from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun
from celery_misfire.contrib.django.rows import entry_of, trigger_of
from celery_misfire.exceptions import PublishRejected

__all__ = ["AlreadyRun", "CannotRun", "Occurrences", "occurrences_of", "run", "tasks_of"]

#: A page shows, and runs, at most this many missed occurrences.
MAX_OCCURRENCES = 100


class CannotRun(Exception):
    """An occurrence was not sent; the text says why, without arguments."""


class AlreadyRun(CannotRun):
    """Somebody has had it run before."""


def tasks_of(records: Iterable[MissedFire]) -> dict[str, PeriodicTask]:
    """Return the periodic tasks of records by name; none for one that is gone, or in the settings alone."""
    tasks = PeriodicTask.objects.filter(name__in={missed.entry for missed in records})
    return {task.name: task for task in tasks.select_related("interval", "crontab", "solar", "clocked")}


def occurrences_of(missed: MissedFire, task: PeriodicTask | None) -> Occurrences:
    """Return the occurrences that a record stands for, at most ``MAX_OCCURRENCES``."""
    trigger = None
    if task is not None:
        with suppress(ValueError):
            trigger = trigger_of(task)
    first, last = moments.millis(missed.first), moments.millis(missed.last)
    return occurrences_between(trigger, first, last, missed.count, MAX_OCCURRENCES)


def run(app: Celery, missed: MissedFire, scheduled: int, user: Any) -> OccurrenceRun:
    """Send the task of a missed occurrence, with the arguments and options that its row has now.

    Once: whoever is second finds the row of the first. The row is written and the message sent in one
    transaction. When sending fails, the row is gone again; and should the message have arrived all the same,
    the next one has the same task id, and a worker with our side installed drops it.

    :param scheduled: its scheduled fire time, in milliseconds UTC.
    :param user: who asks for it, of the site's user model; None for nobody.
    :raises AlreadyRun, CannotRun: nothing was sent, as far as one can know.
    """
    try:
        settings = read_settings(app)
    except ImproperlyConfigured as exc:
        raise CannotRun(str(exc)) from None
    task = tasks_of([missed]).get(missed.entry)
    if task is None:
        raise CannotRun(_("There is no periodic task of this name any more, so nobody knows what to send."))
    id_ = by_hand.task_id(settings.namespace, missed.entry, scheduled)
    try:
        with transaction.atomic(using=router.db_for_write(OccurrenceRun)):
            claimed = OccurrenceRun.objects.create(
                missed=missed,
                scheduled_fire_time=moments.as_stored(scheduled),
                task_id=id_,
                requested_by=user,
            )
            _send(app, task, id_, scheduled)
    except IntegrityError:
        if not missed.runs.filter(scheduled_fire_time=moments.as_stored(scheduled)).exists():
            raise CannotRun(_("Its record is gone.")) from None
        raise AlreadyRun(_("It has been run already.")) from None
    return claimed


def _send(app: Celery, task: PeriodicTask, id_: str, scheduled: int) -> None:
    try:
        # The row as beat would send it.
        entry = entry_of(task, app)
    except PublishRejected as exc:
        raise CannotRun(_("The periodic task cannot be sent: %(problem)s.") % {"problem": exc}) from None
    sendable = by_hand.Sendable(task.name, entry.task, entry.args, entry.kwargs, entry.options)
    try:
        by_hand.send(app, sendable, id_, scheduled, moments.now())
    except by_hand.CannotSend as exc:
        raise CannotRun(_("The message could not be sent (%(error)s).") % {"error": exc}) from None
