"""Occurrences that are run once more because somebody asks for it, with their original scheduled time.

The command line and the Django admin both send theirs here. The task id of such a run differs from that of
the occurrence itself, whose register may say "missed". It is the same for whoever asks, and however often, so
that a worker with our side installed starts it once.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any

from celery import Celery

from celery_misfire import fire
from celery_misfire.exceptions import MisfireError
from celery_misfire.misfire import Outcome, Trigger, to_millis
from celery_misfire.records import occurrences
from celery_misfire.sending.broker import Broker
from celery_misfire.store import registers
from celery_misfire.store.port import Store

__all__ = ["AlreadyRun", "CannotSend", "Occurrences", "Sendable", "occurrences_between", "send", "task_id"]

#: The generation of runs by hand; that of an entry's state is a moment, so never negative.
_GENERATION = -1


class CannotSend(MisfireError):
    """A run by hand was not sent, as far as one can know; the text is the kind of the error."""


class AlreadyRun(MisfireError):
    """An occurrence has been run by hand before; the text says who had that done."""


@dataclass(frozen=True)
class Sendable:
    """An entry, as far as its message depends on it.

    :param args: as they are sent: Celery's lazy ones have been called for their values.
    :param options: as of ``apply_async``.
    """

    name: str
    task: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] | None = None
    options: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Occurrences:
    """The occurrences of a record of missed runs that are known.

    :param times: their scheduled fire times in milliseconds UTC, the oldest first.
    :param was_edited: the schedule gives other fire times now; only the first and the last one are known.
    """

    times: tuple[int, ...]
    was_edited: bool = False


def occurrences_between(
    trigger: Trigger | None, first: int, last: int, count: int, limit: int
) -> Occurrences:
    """Return the occurrences that a record stands for, computed from the schedule as it is now.

    :param trigger: None when there is no such entry any more.
    :param limit: the most that are returned.
    """
    if count == 1:
        return Occurrences((first,))
    if trigger is not None:
        # A schedule may fail in its own code, such as the sun's at the poles.
        with suppress(Exception):
            if times := _computed(trigger, first, last, count, limit):
                return Occurrences(times)
    return Occurrences((first, last), was_edited=True)


def _computed(trigger: Trigger, first: int, last: int, count: int, limit: int) -> tuple[int, ...]:
    """Return the first fire times of these; none when the trigger has others."""
    state = trigger.first_state(first)
    times = tuple(islice(occurrences(trigger, state, first, last), limit + 1))
    if count <= limit:
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
    return times[:limit] if agrees else ()


def task_id(namespace: str, entry: str, scheduled: int) -> str:
    """Return the task id of an occurrence that is run by hand."""
    return fire.task_id(namespace, entry, _GENERATION, scheduled)


def check(store: Store, id_: str) -> None:
    """Find out whether an occurrence has been run by hand before.

    :raises AlreadyRun: when it has.
    """
    if (claim := store.register(f"by-hand:{id_}")) is not None:
        raise AlreadyRun(str(claim).partition("|")[0])
    # The page of the Django admin notes it in its table.
    if isinstance(started := store.register(id_), registers.Started):
        raise AlreadyRun(started.host)


def run_once(app: Celery, store: Store, entry: Sendable, id_: str, scheduled: int, who: str) -> None:
    """Send the task of an entry for one occurrence, unless somebody has had that done before.

    :param who: asks for it.
    :raises AlreadyRun, CannotSend: nothing was sent, as far as one can know.
    """
    check(store, id_)
    claim = f"{who}|{secrets.token_hex(8)}"
    if (before := store.claim_by_hand(id_, claim)) != claim:
        raise AlreadyRun(before.partition("|")[0])
    try:
        send(app, entry, id_, scheduled, store.time())
    except CannotSend:
        store.unclaim_by_hand(id_, claim)
        raise


def send(app: Celery, entry: Sendable, id_: str, scheduled: int, now: int) -> None:
    """Send the task of an entry for one occurrence, with the arguments and options that it has now.

    :param id_: see :func:`task_id`.
    :raises CannotSend: when it cannot be sent.
    """
    header = fire.header(
        entry=entry.name,
        scheduled=scheduled,
        fire_time=now,
        outcome=Outcome.RECOVERED,
        generation=_GENERATION,
        # The run is late on purpose, so no worker may judge it.
        instruction=None,
        resolved=None,
        threshold=None,
    )
    options = copy.deepcopy(dict(entry.options or {}))
    expires = options.get("expires")
    if isinstance(expires, datetime) and expires.tzinfo is not None and to_millis(expires) <= now:
        # The end of the schedule is past; as an option it would discard the message.
        del options["expires"]
    headers = {"periodic_task_name": entry.name, **(options.get("headers") or {}), fire.HEADER: header}
    app.loader.import_default_modules()
    known, broker = app.tasks.get(entry.task), Broker(app)
    try:
        apply: Callable[..., Any] = known.apply_async if known else partial(app.send_task, entry.task)
        apply(
            args=list(entry.args),
            kwargs=dict(entry.kwargs or {}),
            producer=broker.producer,
            **(options | {"task_id": id_, "retry": False, "headers": headers}),
        )
    except Exception as exc:
        # The text of the error may quote arguments or the URL.
        raise CannotSend(type(exc).__name__) from None
    finally:
        broker.close()
