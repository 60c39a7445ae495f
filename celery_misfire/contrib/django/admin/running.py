"""Missed occurrences that are run after all: which there are, and how one is sent with its original time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from celery import Celery
from celery.exceptions import ImproperlyConfigured
from django.db import IntegrityError, router, transaction
from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask

from celery_misfire import by_hand
from celery_misfire.by_hand import Occurrences
from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.sending import (
    BrokerAway,
    CannotRun,
    Sender,
)
from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun, Rerun
from celery_misfire.contrib.django.rows import trigger_of

__all__ = ["AlreadyRun", "Occurrences", "Runner", "no_task", "occurrences_of", "run", "tasks_of"]


class AlreadyRun(CannotRun):
    """Somebody has had it run before."""


def tasks_of(records: Iterable[MissedFire]) -> dict[int, PeriodicTask]:
    """Return the rows of records by primary key; none for one that is gone, or in the settings alone."""
    keys = {missed.periodic_task_id for missed in records if missed.periodic_task_id is not None}
    tasks = PeriodicTask.objects.select_related("interval", "crontab", "solar", "clocked")
    return {task.pk: task for task in tasks.filter(pk__in=keys)}


def no_task(missed: MissedFire) -> str:
    """Return why there is no row to send for a record."""
    if missed.periodic_task_id is None:
        return _("It is an entry of the settings alone, so it cannot be sent from here.")
    return _("Its periodic task was deleted, so it cannot be sent.")


def occurrences_of(missed: MissedFire, task: PeriodicTask | None) -> Occurrences:
    """Return the occurrences that a record stands for, computed from the schedule as it is now."""
    trigger = None
    if task is not None:
        with suppress(ValueError):
            trigger = trigger_of(task)
    first, last = moments.millis(missed.first), moments.millis(missed.last)
    return by_hand.occurrences_of(trigger, first, last, missed.count)


class Runner:
    """Runs occurrences one after the other, over one connection to the broker.

    :param user: who asks for it, of the site's user model; None for nobody.
    """

    def __init__(self, app: Celery, user: Any, rerun: Rerun | None = None) -> None:
        self._app, self._user, self._rerun = app, user, rerun
        self.sender = Sender(app)

    def close(self) -> None:
        self.sender.close()

    def run(self, missed: MissedFire, task: PeriodicTask | None, scheduled: int) -> OccurrenceRun:
        """Send the task of a missed occurrence, with the arguments and options that its row has now.

        Once: whoever is second finds the note of the first. The note is written and the message sent in one
        transaction. When sending fails, the note is gone again; and should the message have arrived all the
        same, the next one has the same task id, and a worker with our side installed drops it.

        :param scheduled: its scheduled fire time, in milliseconds UTC.
        :raises AlreadyRun, CannotRun: nothing was sent, as far as one can know.
        :raises BrokerAway: the same, and nothing can be sent at the moment.
        """
        if task is None:
            raise CannotRun(no_task(missed))
        try:
            namespace = read_settings(self._app).namespace
        except ImproperlyConfigured as exc:
            raise CannotRun(str(exc)) from None
        message = self.sender.message(task)
        id_ = by_hand.task_id(namespace, missed.entry, scheduled)
        try:
            with transaction.atomic(using=router.db_for_write(OccurrenceRun)):
                claimed = OccurrenceRun.objects.create(
                    missed=missed,
                    rerun=self._rerun,
                    scheduled_fire_time=moments.as_stored(scheduled),
                    task_id=id_,
                    requested_by=self._user,
                )
                self.sender.send(message, id_, scheduled)
        except IntegrityError:
            if not missed.runs.filter(scheduled_fire_time=moments.as_stored(scheduled)).exists():
                raise CannotRun(_("Its record is gone.")) from None
            raise AlreadyRun(_("It was already re-run.")) from None
        return claimed

    def run_all(
        self, wanted: Sequence[tuple[MissedFire, PeriodicTask | None, int]]
    ) -> list[OccurrenceRun | CannotRun]:
        """Run these in order, in one transaction: a database writes many notes in the time of one.

        :returns: what became of each. The last may be a :class:`BrokerAway`; then the rest was not tried.
        """
        ends: list[OccurrenceRun | CannotRun] = []
        with transaction.atomic(using=router.db_for_write(OccurrenceRun)):
            for missed, task, scheduled in wanted:
                try:
                    ends.append(self.run(missed, task, scheduled))
                except CannotRun as exc:
                    ends.append(exc)
                    if isinstance(exc, BrokerAway):
                        break
        return ends


def run(app: Celery, missed: MissedFire, scheduled: int, user: Any) -> OccurrenceRun:
    """Run one occurrence, see :meth:`Runner.run`."""
    runner = Runner(app, user)
    try:
        return runner.run(missed, tasks_of([missed]).get(missed.periodic_task_id or 0), scheduled)
    finally:
        runner.close()
