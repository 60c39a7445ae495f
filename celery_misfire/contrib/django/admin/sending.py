"""Sending a periodic task by hand, as beat would send it, for a scheduled fire time of its past."""

from __future__ import annotations

from celery import Celery
from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask

from celery_misfire import by_hand
from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.rows import entry_of
from celery_misfire.exceptions import PublishRejected

__all__ = ["BrokerAway", "CannotRun", "Sender"]


class CannotRun(Exception):
    """An occurrence was not sent; the text says why, without arguments."""


class BrokerAway(CannotRun):
    """The broker or the way to it failed: nothing can be sent at the moment."""


class Sender:
    """Sends periodic tasks over one connection."""

    def __init__(self, app: Celery) -> None:
        self._app, self._sender = app, by_hand.Sender(app)
        #: By primary key, what is sent of each row, or why it cannot be sent.
        self._messages: dict[int, by_hand.Sendable | str] = {}

    def close(self) -> None:
        self._sender.close()

    def message(self, task: PeriodicTask) -> by_hand.Sendable:
        """Return what is sent of a row, each time.

        :raises CannotRun: it can never be sent.
        """
        if task.pk not in self._messages:
            self._messages[task.pk] = self._prepare(task)
        message = self._messages[task.pk]
        if isinstance(message, str):
            raise CannotRun(message)
        return message

    def _prepare(self, task: PeriodicTask) -> by_hand.Sendable | str:
        try:
            entry = entry_of(task, self._app)
        except PublishRejected as exc:
            return _("The periodic task cannot be sent: %(problem)s.") % {"problem": exc}
        return by_hand.Sendable(entry.name, entry.task, entry.args, entry.kwargs, entry.options)

    def send(self, message: by_hand.Sendable, id_: str, scheduled: int) -> None:
        """Send a row under this task id, for this scheduled fire time.

        :raises CannotRun: it was not sent, as far as one can know.
        """
        try:
            self._sender.send(message, id_, scheduled, moments.now())
        except by_hand.BrokerAway as exc:
            raise BrokerAway(_("The broker does not answer: %(problem)s.") % {"problem": exc}) from None
        except by_hand.CannotSend as exc:
            raise CannotRun(_("The message could not be sent (%(error)s).") % {"error": exc}) from None
