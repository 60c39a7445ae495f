"""Sending a periodic task by hand, as beat would send it, for a scheduled fire time of its past."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from celery import Celery
from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask
from django_celery_beat.schedulers import ModelEntry

from celery_misfire import fire
from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.rows import entry_of
from celery_misfire.exceptions import BrokerUnavailable, PublishRejected
from celery_misfire.misfire import Outcome
from celery_misfire.sending.broker import Broker

__all__ = ["GENERATION_BY_HAND", "BrokerAway", "CannotRun", "Sender"]

#: The generation of runs by hand; that of an entry's state is a moment, so never negative. The task id of the
#: run so differs from that of the missed run, whose register may say "missed". It is the same for whoever
#: runs the occurrence, and however often.
GENERATION_BY_HAND = -1


class CannotRun(Exception):
    """An occurrence was not sent; the text says why, without arguments."""


class BrokerAway(CannotRun):
    """The broker or the way to it failed: nothing can be sent at the moment."""


class Sender:
    """Sends periodic tasks over one connection."""

    def __init__(self, app: Celery) -> None:
        self._app, self._broker = app, Broker(app)
        #: By primary key, what is sent of each row, or why it cannot be sent.
        self._messages: dict[int, _Message | str] = {}

    def close(self) -> None:
        self._broker.close()

    def message(self, task: PeriodicTask) -> _Message:
        """Return what is sent of a row, each time.

        :raises CannotRun: it can never be sent.
        """
        if task.pk not in self._messages:
            self._app.loader.import_default_modules()
            self._messages[task.pk] = self._prepare(task)
        message = self._messages[task.pk]
        if isinstance(message, str):
            raise CannotRun(message)
        return message

    def _prepare(self, task: PeriodicTask) -> _Message | str:
        try:
            entry = entry_of(task, self._app)
        except PublishRejected as exc:
            return _("The periodic task cannot be sent: %(problem)s.") % {"problem": exc}
        expires = entry.options.get("expires")
        if isinstance(expires, datetime) and moments.millis(expires) <= moments.now():
            # The end of the schedule is past; as an option it would discard the message.
            del entry.options["expires"]
        return _Message(self._app, self._broker, entry)


class _Message:
    """A periodic task that can be sent again and again."""

    def __init__(self, app: Celery, broker: Broker, entry: ModelEntry) -> None:
        self._app, self._broker, self._entry = app, broker, entry

    def send(self, id_: str, scheduled: int) -> None:
        """Send it under this task id, for this scheduled fire time.

        :raises CannotRun: it was not sent, as far as one can know.
        """
        entry = self._entry
        header = fire.header(
            entry=entry.name,
            scheduled=scheduled,
            fire_time=moments.now(),
            outcome=Outcome.RECOVERED,
            generation=GENERATION_BY_HAND,
            # The run is late on purpose, so no worker may judge it.
            instruction=None,
            resolved=None,
            threshold=None,
        )
        options = {**entry.options, "headers": {**entry.options["headers"], fire.HEADER: header}}
        known = self._app.tasks.get(entry.task)
        send: Callable[..., Any] = known.apply_async if known else self._by_name
        try:
            send(
                args=entry.args,
                kwargs=entry.kwargs,
                task_id=id_,
                producer=self._broker.producer,
                retry=False,
                **options,
            )
        except BrokerUnavailable as exc:
            raise BrokerAway(_("The broker does not answer: %(problem)s.") % {"problem": exc}) from None
        except Exception as exc:
            # The message leaves out the text of the error, which may quote arguments or the URL.
            kind = type(exc).__name__
            raise CannotRun(_("The message could not be sent (%(error)s).") % {"error": kind}) from None

    def _by_name(self, **options: Any) -> Any:
        return self._app.send_task(self._entry.task, **options)
