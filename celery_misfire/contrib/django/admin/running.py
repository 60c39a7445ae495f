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
from celery_misfire.contrib.django.database import with_schedules
from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun, Rerun
from celery_misfire.contrib.django.rows import entry_of, trigger_of
from celery_misfire.contrib.django.state import open_store
from celery_misfire.exceptions import PublishRejected, StoreUnavailable

__all__ = [
    "AlreadyRun",
    "CannotRun",
    "Occurrences",
    "Runner",
    "Sendables",
    "Unavailable",
    "no_task",
    "occurrences_of",
    "tasks_of",
]


class CannotRun(Exception):
    """An occurrence was not sent; the text says why, without arguments."""


class Unavailable(CannotRun):
    """The broker or Redis does not answer: nothing can be sent at the moment."""


class AlreadyRun(CannotRun):
    """Somebody has had it run before."""


def tasks_of(records: Iterable[MissedFire]) -> dict[int, PeriodicTask]:
    """Return the rows of records by primary key; none for one that is gone, or in the settings alone."""
    keys = {missed.periodic_task_id for missed in records if missed.periodic_task_id is not None}
    tasks = list(PeriodicTask.objects.filter(pk__in=keys))
    with_schedules(tasks)
    return {task.pk: task for task in tasks}


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


class Sendables:
    """What is sent of each row, each time."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        #: By primary key, what is sent, or why it cannot be sent.
        self._known: dict[int, by_hand.Sendable | str] = {}

    def of(self, task: PeriodicTask) -> by_hand.Sendable:
        """Return what is sent of a row.

        :raises CannotRun: it can never be sent.
        """
        if task.pk not in self._known:
            self._known[task.pk] = self._read(task)
        found = self._known[task.pk]
        if isinstance(found, str):
            raise CannotRun(found)
        return found

    def _read(self, task: PeriodicTask) -> by_hand.Sendable | str:
        try:
            entry = entry_of(task, self._app)
        except PublishRejected as exc:
            return _("The periodic task cannot be sent: %(problem)s.") % {"problem": exc}
        return by_hand.Sendable(entry.name, entry.task, entry.args, entry.kwargs, entry.options)


class Runner:
    """Runs occurrences one after the other, over one connection to the broker.

    :param user: who asks for it, of the site's user model; None for nobody.
    """

    def __init__(self, app: Celery, user: Any, rerun: Rerun | None = None) -> None:
        self._app, self._user, self._rerun = app, user, rerun
        self.sendables = Sendables(app)
        self._sender: by_hand.Sender | None = None

    def close(self) -> None:
        if self._sender is not None:
            self._sender.close()

    def run(self, missed: MissedFire, task: PeriodicTask | None, scheduled: int) -> OccurrenceRun:
        """Send the task of a missed occurrence, with the arguments and options that its row has now.

        Once: whoever is second finds the note of the first, or its claim in Redis, which the command line
        makes as well. The note is written and the message sent in one transaction. When sending fails, note
        and claim are gone again; and should the message have arrived all the same, the next one has the same
        task id, and a worker with our side installed drops it. A re-run that goes on after it was killed
        finds claims of its own, and sends these again.

        :param scheduled: its scheduled fire time, in milliseconds UTC.
        :raises AlreadyRun, CannotRun: nothing was sent, as far as one can know.
        :raises Unavailable: the same, and nothing can be sent at the moment.
        """
        if task is None:
            raise CannotRun(no_task(missed))
        sendable = self.sendables.of(task)
        try:
            id_ = by_hand.task_id(read_settings(self._app).namespace, missed.entry, scheduled)
            self._sender = self._sender or self._open()
        except ImproperlyConfigured as exc:
            raise CannotRun(str(exc)) from None
        note = OccurrenceRun(
            missed=missed,
            rerun=self._rerun,
            scheduled_fire_time=moments.as_stored(scheduled),
            task_id=id_,
            requested_by=self._user,
        )
        try:
            with transaction.atomic(using=router.db_for_write(OccurrenceRun)):
                note.save()
                is_ours = self._send(self._sender, sendable, id_, scheduled)
                if not is_ours:
                    # It was run from the command line: it is no longer open, and no run of this re-run.
                    note.rerun = note.requested_by = None
                    note.save()
        except IntegrityError:
            if not missed.runs.filter(scheduled_fire_time=note.scheduled_fire_time).exists():
                raise CannotRun(_("Its record is gone.")) from None
            is_ours = False
        if not is_ours:
            raise AlreadyRun(_("It was already re-run."))
        return note

    def _open(self) -> by_hand.Sender:
        who = "" if self._user is None else self._user.get_username().replace("|", "")
        request = f"rerun {self._rerun.pk}" if self._rerun else ""
        return by_hand.Sender(self._app, open_store(self._app), who, request)

    def _send(self, sender: by_hand.Sender, sendable: by_hand.Sendable, id_: str, scheduled: int) -> bool:
        """Send a row under this task id, for this scheduled fire time; return False when it was run before.

        :raises CannotRun, Unavailable: it was not sent, as far as one can know.
        """
        try:
            sender.run_once(sendable, id_, scheduled)
        except by_hand.AlreadyRun:
            return False
        except by_hand.BrokerAway as exc:
            raise Unavailable(_("The broker does not answer: %(problem)s.") % {"problem": exc}) from None
        except by_hand.CannotSend as exc:
            raise CannotRun(_("The message could not be sent (%(error)s).") % {"error": exc}) from None
        except StoreUnavailable as exc:
            text = _("Redis does not answer, so nobody knows whether it was re-run. %(error)s")
            raise Unavailable(text % {"error": exc}) from None
        return True

    def run_all(
        self, wanted: Sequence[tuple[MissedFire, PeriodicTask | None, int]]
    ) -> list[OccurrenceRun | CannotRun]:
        """Run these in order, in one transaction: a database writes many notes in the time of one.

        :returns: what became of each. The last may be :class:`Unavailable`; then the rest was not tried.
        """
        ends: list[OccurrenceRun | CannotRun] = []
        with transaction.atomic(using=router.db_for_write(OccurrenceRun)):
            for missed, task, scheduled in wanted:
                try:
                    ends.append(self.run(missed, task, scheduled))
                except CannotRun as exc:
                    ends.append(exc)
                    if isinstance(exc, Unavailable):
                        break
        return ends
