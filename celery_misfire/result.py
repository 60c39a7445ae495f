"""``AsyncResult``, ``ResultSet`` and ``GroupResult`` for which MISSED is a final state, as FAILURE is.

Celery keeps its final states in module constants that several libraries copy at import. A state of our own
therefore never becomes ready in the stock classes, and ``get()`` waits for ever. To patch those constants
would change every app of the process; subclasses on one app do not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import celery.result
from celery import Celery, states
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.exceptions import TimeoutError

from celery_misfire.exceptions import TaskMissed
from celery_misfire.sending.missed_record import MISSED, missed_from_dict

#: Time between two looks of a waiting ``get()`` whether its run has been missed, in seconds.
LOOK_EVERY = 1.0

# The shortest timeout and interval. Up to Celery 5.6 a timeout of 0 means to wait for ever, and intervals of
# 0 s never add up to a timeout.
_SHORTEST = 0.01


def install(app: Celery) -> None:
    """Put the classes of this module in front of those that the app has."""
    for ours in (AsyncResult, ResultSet, GroupResult):
        name = ours.__name__
        theirs = getattr(app, name)
        if not issubclass(theirs, ours):
            both = type(name, (ours, theirs), {"__doc__": theirs.__doc__})
            setattr(app, name, app.subclass_with_self(both, name=name))


if TYPE_CHECKING:
    _AsyncResult = celery.result.AsyncResult[Any]
else:
    # Generic from Celery 5.7 on.
    _AsyncResult = celery.result.AsyncResult


class AsyncResult(_AsyncResult):
    """A result that ends in MISSED as it would in FAILURE, with a :class:`TaskMissed`."""

    _cache: dict[str, Any] | None
    _get_task_meta: Callable[[], dict[str, Any]]

    def ready(self) -> bool:
        """Return True when the run has ended, or never happens."""
        # The cache holds a final state and nothing else.
        return self.state in self.backend.READY_STATES or self._cache is not None

    def failed(self) -> bool:
        """Return True when the run failed, or never happens."""
        return self.state in (states.FAILURE, MISSED) and self._cache is not None

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[..., Any] | None = None,
        on_message: Callable[..., Any] | None = None,
        on_interval: Callable[..., Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Wait for the run and return its result, as in Celery.

        :raises TaskMissed: when the run never happens, also when that turns out while waiting.
        """
        backend: Any = self.backend
        # Nobody can store MISSED for an RPC result, and a look would take messages that others wait for.
        if self.ignored or isinstance(backend, RPCBackend | DisabledBackend):
            how = (propagate, interval, no_ack, follow_parents, callback, on_message, on_interval)
            return super().get(timeout, *how, *args, **kwargs)
        interval = interval or _SHORTEST
        # The callback is called below: Celery leaves it out when the result is known already.
        how = (propagate, interval, no_ack, follow_parents, None, _marked(on_message), _marked(on_interval))
        # A backend that is polled is not asked much more often than the caller wishes.
        look_every = LOOK_EVERY if backend.is_async else max(LOOK_EVERY, interval)
        deadline = _deadline(timeout)
        while True:
            left = min(look_every, deadline - time.monotonic())
            if left <= 0 or not backend.is_async:
                # An asynchronous backend looks by itself when the wait begins.
                self.ready()
            known = self._cache is not None
            if left <= 0 and not known:
                raise TimeoutError("The operation timed out.")
            try:
                value = super().get(left, *how, *args, **kwargs)
            except TimeoutError as exc:
                # When the result is known, the error is the run's own.
                if known or _is_marked(exc):
                    raise
            else:
                if callback is not None:
                    callback(self.id, value)
                return value

    wait = get

    def maybe_throw(self, propagate: bool = True, callback: Any = None) -> Any:
        """Raise the error of a run that has failed or never happens; else return its result."""
        meta = self._get_task_meta()
        if propagate and meta["status"] == MISSED and isinstance(meta["result"], TaskMissed):
            self.throw(meta["result"])
        return super().maybe_throw(propagate=propagate, callback=callback)

    maybe_reraise = maybe_throw

    def _maybe_set_cache(self, meta: dict[str, Any] | None) -> dict[str, Any] | None:
        """Keep the meta data of a final result; all of Celery's ways to a result come through here."""
        error = _error_in(meta)
        if meta is None or error is None:
            kept: dict[str, Any] | None = super()._maybe_set_cache(meta)  # type: ignore[misc]
            return kept
        self._cache = {**meta, "result": error}
        self.on_ready(self)
        return self._cache

    def _maybe_reraise_parent_error(self) -> None:
        with _mark_timeouts():
            super()._maybe_reraise_parent_error()  # type: ignore[misc]


class ResultSet(celery.result.ResultSet):
    """Results of which some may end in MISSED."""

    def iter_native(
        self,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Callable[..., Any] | None = None,
        on_interval: Callable[..., Any] | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Yield the id and the meta data of each member as it ends, as in Celery.

        A missed member comes as a failure with a :class:`TaskMissed`, and so ``get()`` raises it.
        """
        backend: Any = self.backend
        if isinstance(backend, RPCBackend):
            yield from super().iter_native(timeout, interval, no_ack, on_message, on_interval)
            return
        # An asynchronous backend sleeps this long before it listens, here in each slice.
        interval = 0 if backend.is_async else interval or _SHORTEST
        how = (interval, no_ack, _marked(on_message), _marked(on_interval))
        deadline = _deadline(timeout)
        seen: set[str] = set()
        while True:
            left = max(_SHORTEST, min(LOOK_EVERY, deadline - time.monotonic()))
            ended = False
            try:
                for id_, meta in super().iter_native(left, *how):
                    if id_ not in seen:
                        seen.add(id_)
                        yield id_, _as_failure(meta)
                ended = True
            except TimeoutError as exc:
                if _is_marked(exc):
                    raise
                self._look_for_missed(seen)
            for member in self.results or ():
                meta = getattr(member, "_cache", None)
                if meta and meta["status"] == MISSED and member.id not in seen:
                    seen.add(member.id)
                    yield member.id, _as_failure(meta)
            if ended or seen.issuperset(member.id for member in self.results or ()):
                return
            if time.monotonic() >= deadline:
                raise TimeoutError("The operation timed out.")

    def _look_for_missed(self, seen: set[str]) -> None:
        backend: Any = self.backend
        members: dict[str, Any] = {m.id: m for m in self.results or () if m.id not in seen}
        found = backend.get_many(set(members), interval=0, max_iterations=1, READY_STATES={MISSED})
        for id_, meta in found:
            members[id_]._maybe_set_cache(meta)


class GroupResult(ResultSet, celery.result.GroupResult):
    """A group whose members may end in MISSED."""


@contextmanager
def _mark_timeouts() -> Iterator[None]:
    """Mark a TimeoutError of the block. One without a mark is Celery's, and ends one slice of a wait."""
    try:
        yield
    except TimeoutError as exc:
        vars(exc)["_misfire_marked"] = True
        raise


def _marked(callback: Callable[..., Any] | None) -> Callable[..., Any] | None:
    return callback and _mark_timeouts()(callback)


def _is_marked(error: TimeoutError) -> bool:
    return "_misfire_marked" in vars(error)


def _deadline(timeout: float | None) -> float:
    return math.inf if timeout is None else time.monotonic() + timeout


def _as_failure(meta: Any) -> Any:
    """Return a missed member as a failed one: Celery raises the errors of its own states only."""
    # For a group in a group Celery gives the list of its members, and each of them has its own meta data.
    missed = isinstance(meta, dict) and meta["status"] == MISSED and isinstance(meta["result"], TaskMissed)
    return {**meta, "status": states.FAILURE} if missed else meta


def _error_in(meta: dict[str, Any] | None) -> TaskMissed | None:
    """Return the error of a MISSED result, None when it is not ours: an app may have a state of this name."""
    result = meta["result"] if meta and meta["status"] == MISSED else None
    if not isinstance(result, dict) or result.get("exc_type") != TaskMissed.__name__:
        return None
    try:
        return TaskMissed.from_missed(missed_from_dict(result))
    except ValueError:
        # Another version has written it.
        message = result.get("exc_message") or ()
        return TaskMissed(" ".join(map(str, message)) if isinstance(message, list | tuple) else str(message))
