"""Occurrences that are run once more because somebody asks for it, with their original scheduled time.

The command line and the Django admin both send theirs here. The task id of such a run differs from that of
the occurrence itself, whose register may say "missed". It is the same for whoever asks, and however often, so
that a worker with our side installed starts it once.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from celery import Celery

from celery_misfire import fire
from celery_misfire.exceptions import BrokerUnavailable, MisfireError
from celery_misfire.misfire import ENDLESS, FireTimes, Outcome, Trigger, to_millis
from celery_misfire.sending.broker import Broker
from celery_misfire.store import registers
from celery_misfire.store.port import Store
from celery_misfire.triggers.wall_times import Bounded

#: The generation of runs by hand; that of an entry's state is a moment, so never negative.
_GENERATION = -1


class CannotSend(MisfireError):
    """A run by hand was not sent, as far as one can know; the text is the kind of the error."""


class BrokerAway(CannotSend):
    """The broker does not answer, so nothing can be sent at the moment; the text says why."""


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
    """The occurrences of a record of missed runs that are known, in milliseconds UTC.

    :param times: from the first to the last of them; others than these it does not have.
    :param was_edited: the schedule gives other fire times now; only the first and the last one are known.
    """

    times: FireTimes
    was_edited: bool = False

    def between(self, first: int, last: int) -> Iterator[int]:
        """Yield those from `first` to `last`, both included, the oldest first."""
        moment = self.times.after(first - 1)
        while moment is not None and moment <= last:
            yield moment
            moment = self.times.after(moment)


@dataclass(frozen=True)
class _Few:
    """Fire times that are listed."""

    moments: tuple[int, ...]

    def after(self, moment: int) -> int | None:
        return next((m for m in self.moments if m > moment), None)

    def before(self, moment: int) -> int | None:
        return next((m for m in reversed(self.moments) if m < moment), None)

    def count(self, first: int, last: int) -> int:
        return sum(first <= m <= last for m in self.moments)


def occurrences_of(trigger: Trigger | None, first: int, last: int, count: int) -> Occurrences:
    """Return the occurrences that a record stands for, computed from the schedule as it is now.

    :param trigger: None when there is no such entry any more.
    """
    if count == 1:
        return Occurrences(_Few((first,)))
    if trigger is not None:
        # A schedule may fail in its own code, such as the sun's at the poles.
        with suppress(Exception):
            times = Bounded(_grid_from(trigger, first), first, last)
            ends = (times.after(first - 1), times.after(last - 1))
            if ends == (first, last) and times.count(first, last) == count:
                return Occurrences(times)
    return Occurrences(_Few((first, last)), was_edited=True)


def _grid_from(trigger: Trigger, first: int) -> FireTimes:
    state = trigger.first_state(first)
    if state.repeat_count is not None:
        # The grid may have been started anew since.
        state = replace(state, start_time=first, repeat_count=ENDLESS, end_time=None)
    return trigger.fire_times(replace(state, next_fire_time=first))


def task_id(namespace: str, entry: str, scheduled: int) -> str:
    """Return the task id of an occurrence that is run by hand."""
    return fire.task_id(namespace, entry, _GENERATION, scheduled)


def check(store: Store, id_: str) -> None:
    """Find out whether an occurrence has been run by hand before.

    :raises AlreadyRun: when it has.
    """
    if (claim := store.register(f"by-hand:{id_}")) is not None:
        raise AlreadyRun(str(claim).partition("|")[0])
    _check_started(store, id_)


def _check_started(store: Store, id_: str) -> None:
    if isinstance(started := store.register(id_), registers.Started):
        raise AlreadyRun(started.host)


def run_once(app: Celery, store: Store, entry: Sendable, id_: str, scheduled: int, who: str) -> None:
    """Send one occurrence as :meth:`Sender.run_once` does, for a request of its own."""
    sender = Sender(app, store, who)
    try:
        sender.run_once(entry, id_, scheduled)
    finally:
        sender.close()


class Sender:
    """Sends entries by hand, as beat would send them, over one connection to the broker.

    :param who: asks for it.
    :param request: what was asked for. Under the same name it is sent again, with the same task id: the
        process that sent it may have been killed before it could note that.
    """

    def __init__(self, app: Celery, store: Store, who: str, request: str = "") -> None:
        self._app, self._store, self._broker = app, store, Broker(app)
        self._who, self._request = who, request or secrets.token_hex(8)
        app.loader.import_default_modules()

    def close(self) -> None:
        self._broker.close()

    def run_once(self, entry: Sendable, id_: str, scheduled: int) -> None:
        """Send the task of an entry for one occurrence, unless somebody has had that done before.

        :param id_: see :func:`task_id`.
        :param scheduled: in milliseconds UTC.
        :raises AlreadyRun, BrokerAway, CannotSend: nothing was sent, as far as one can know.
        :raises StoreUnavailable: the same, as nobody can know whether it was run before.
        """
        claim = self._store.claim_by_hand(id_, f"{self._who}|{self._request}")
        who, _, request = claim.partition("|")
        if request != self._request:
            raise AlreadyRun(who)
        _check_started(self._store, id_)
        try:
            self._send(entry, id_, scheduled, self._store.time())
        except CannotSend:
            self._store.unclaim_by_hand(id_, claim)
            raise

    def _send(self, entry: Sendable, id_: str, scheduled: int, now: int) -> None:
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
        known = self._app.tasks.get(entry.task)
        apply: Callable[..., Any] = known.apply_async if known else partial(self._app.send_task, entry.task)
        try:
            apply(
                args=list(entry.args),
                kwargs=dict(entry.kwargs or {}),
                producer=self._broker.producer,
                **(options | {"task_id": id_, "retry": False, "headers": headers}),
            )
        except BrokerUnavailable as exc:
            raise BrokerAway(str(exc)) from None
        except Exception as exc:
            # The text of the error may quote arguments or the URL.
            raise CannotSend(type(exc).__name__) from None
