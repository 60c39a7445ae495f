"""Running missed occurrences after all: which there are, and sending one with its original time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from celery import Celery
from celery.exceptions import ImproperlyConfigured
from django.db import IntegrityError, router, transaction
from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask
from django_celery_beat.schedulers import ModelEntry

from celery_misfire import fire
from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun
from celery_misfire.contrib.django.rows import entry_of, trigger_of
from celery_misfire.exceptions import PublishRejected
from celery_misfire.misfire import Outcome, Trigger
from celery_misfire.records import occurrences
from celery_misfire.sending.broker import Broker

__all__ = ["AlreadyRun", "CannotRun", "Occurrences", "occurrences_of", "run", "tasks_of"]

#: So many occurrences of a record are shown and can be run.
MOST = 100

# In place of the generation of an entry's state, which is a moment: so the id differs from that of the missed
# run, whose register may say "missed", and is the same whoever runs the occurrence, and however often.
_BY_HAND = -1


class CannotRun(Exception):
    """An occurrence was not sent; the text says why, without arguments."""


class AlreadyRun(CannotRun):
    """Somebody has had it run before."""


@dataclass(frozen=True)
class Occurrences:
    """The occurrences of a record that are known.

    :param times: their scheduled fire times in milliseconds UTC, the oldest first, ``MOST`` at most.
    :param was_edited: the schedule gives other fire times now; only the first and the last one are known.
    """

    times: tuple[int, ...]
    was_edited: bool = False


def tasks_of(records: Iterable[MissedFire]) -> dict[str, PeriodicTask]:
    """Return the periodic tasks of records by name; none for one that is gone, or in the settings alone."""
    tasks = PeriodicTask.objects.filter(name__in={missed.entry for missed in records})
    return {task.name: task for task in tasks.select_related("interval", "crontab", "solar", "clocked")}


def occurrences_of(missed: MissedFire, task: PeriodicTask | None) -> Occurrences:
    """Return the occurrences that a record stands for, computed from the schedule as it is now."""
    first, last = moments.millis(missed.first), moments.millis(missed.last)
    if missed.count == 1:
        return Occurrences((first,))
    if task is not None:
        # A schedule may fail in its own code, such as the sun's at the poles.
        with suppress(Exception):
            if times := _computed(trigger_of(task), first, last, missed.count):
                return Occurrences(times)
    return Occurrences((first, last), was_edited=True)


def _computed(trigger: Trigger, first: int, last: int, count: int) -> tuple[int, ...]:
    """Return the first fire times of these; none when the trigger has others."""
    state = trigger.first_state(first)
    times = tuple(islice(occurrences(trigger, state, first, last), MOST + 1))
    if count <= MOST:
        agrees = len(times) == count and times[-1] == last
    elif trigger.interval is not None:
        agrees = first + (count - 1) * trigger.interval == last
    else:
        found = trigger.fire_times(state)
        agrees = (
            found.count(first, last) == count
            and found.after(first - 1) == first
            and found.after(last - 1) == last
        )
    return times[:MOST] if agrees else ()


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
    id_ = fire.task_id(settings.namespace, missed.entry, _BY_HAND, scheduled)
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
    entry = _entry(app, task)
    header = fire.header(
        entry=task.name,
        scheduled=scheduled,
        fire_time=moments.now(),
        outcome=Outcome.RECOVERED,
        generation=_BY_HAND,
        # Late it is on purpose: no worker is to judge that.
        instruction=None,
        resolved=None,
        threshold=None,
    )
    options = {**entry.options, "headers": {**entry.options["headers"], fire.HEADER: header}}
    app.loader.import_default_modules()
    known = app.tasks.get(entry.task)
    broker = Broker(app)
    try:
        send: Callable[..., Any] = known.apply_async if known else _by_name(app, entry.task)
        send(
            args=entry.args,
            kwargs=entry.kwargs,
            task_id=id_,
            producer=broker.producer,
            retry=False,
            **options,
        )
    except Exception as exc:
        # Its text may quote arguments or the URL.
        kind = type(exc).__name__
        raise CannotRun(_("The message could not be sent (%(error)s).") % {"error": kind}) from None
    finally:
        broker.close()


def _by_name(app: Celery, name: str) -> Callable[..., Any]:
    return lambda **options: app.send_task(name, **options)


def _entry(app: Celery, task: PeriodicTask) -> ModelEntry:
    """Return the row as beat would send it."""
    try:
        entry = entry_of(task, app)
    except PublishRejected as exc:
        raise CannotRun(_("The periodic task cannot be sent: %(problem)s.") % {"problem": exc}) from None
    expires = entry.options.get("expires")
    if isinstance(expires, datetime) and moments.millis(expires) <= moments.now():
        # That was the end of the schedule; here it would throw the message away.
        del entry.options["expires"]
    return entry
