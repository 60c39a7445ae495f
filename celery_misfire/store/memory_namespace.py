"""Calls to a database in memory, which may fail; what people see of it, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial, wraps
from typing import Concatenate, ParamSpec, TypeVar

from celery_misfire.exceptions import LeaseLost, MisfireError, StoreUnavailable
from celery_misfire.store.memory_database import Fault, MemoryDatabase
from celery_misfire.store.owner import name_of
from celery_misfire.store.registers import BY_HAND_REGISTER_TTL
from celery_misfire.store.values import LeaseValue, Sight, Watched

P = ParamSpec("P")
S = TypeVar("S", bound="MemoryNamespace")
T = TypeVar("T")


def one_call(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[S, P], T]:
    """Make a method one call to the database, which may fail."""

    @wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        database = self.database
        with database.lock:
            fault = database.fault(self.owner, method.__name__)
            if fault is None:
                return method(self, *args, **kwargs)
            if fault is Fault.LATE:
                database.late_calls.append(partial(method, self, *args, **kwargs))
            elif fault is Fault.ANSWER_LOST:
                with suppress(MisfireError):
                    method(self, *args, **kwargs)
            raise StoreUnavailable(f"{self}: {fault.name.lower().replace('_', ' ')}")

    return call


class MemoryNamespace:
    """One namespace in memory: what people and the watch see and ask for.

    :param owner: the beat or worker whose store it is.
    :param history: how many lines the log keeps.
    """

    def __init__(self, database: MemoryDatabase, owner: str = "localhost:1", history: int = 10_000) -> None:
        self.database, self.owner, self.process, self._history = database, owner, name_of(owner), history
        self.server, self.lease_key, self.place_keys = "memory", "lease", ("place", "place")

    def __str__(self) -> str:
        return "state in memory"

    @one_call
    def sight(self) -> Sight:
        contents, lease = self.database.contents, self._get("lease")
        _, until = contents.expiring.get("lease", ("", 0.0))
        return Sight(
            now=self._now(),
            lease=LeaseValue.parse(lease) if lease else None,
            lease_left=round((until - self.database.clock()) * 1000) if lease else None,
            is_guarded=self._get("guard") != "",
            is_cold=not contents.meta,
            hold=contents.hold,
            beats=dict(contents.beats),
            requests=dict(sorted(contents.requests.items())),
        )

    @one_call
    def request(self, requests: Mapping[str, str]) -> None:
        self.database.contents.requests |= requests

    @one_call
    def drop_requests(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            self.database.contents.requests.pop(id_, None)

    @one_call
    def write_hold(self, token: str, old: str, new: str) -> bool:
        self._check(token)
        contents = self.database.contents
        if contents.hold not in (old, new):
            return False
        contents.hold = new
        return True

    @one_call
    def claim_by_hand(self, task_id: str, who: str) -> str:
        name = f"fire:by-hand:{task_id}"
        if not self._get(name):
            self._set(name, who, BY_HAND_REGISTER_TTL)
        return self._get(name)

    @one_call
    def unclaim_by_hand(self, task_id: str, who: str) -> None:
        if self._get(f"fire:by-hand:{task_id}") == who:
            del self.database.contents.expiring[f"fire:by-hand:{task_id}"]

    @one_call
    def watch(
        self, token: str, ttl: float, guard_ttl: float = 0, *, alarm: str | None = None
    ) -> Watched | None:
        if guard_ttl:
            self._set("guard", "1", guard_ttl)
        if self._get("watcher") not in ("", token):
            return None
        self._set("watcher", token, ttl)
        notes = self.database.contents.watch_notes
        if alarm is not None:
            notes["alarm"] = alarm
        return Watched.parse(self._get("lease") != "", notes.get("alarm", ""))

    @one_call
    def is_guarded(self) -> bool:
        return self._get("guard") != ""

    def _check(self, token: str) -> None:
        if not token or LeaseValue.parse(self._get("lease")).token != token:
            raise LeaseLost

    def _now(self) -> int:
        return round(self.database.clock() * 1000)

    def _get(self, name: str, *, take: bool = False) -> str:
        """Return a text that is kept for a time, or take it; '' when there is none (any more)."""
        text, until = self.database.contents.expiring.get(name, ("", 0.0))
        is_over = until <= self.database.clock()
        if text and (take or is_over):
            del self.database.contents.expiring[name]
        return "" if is_over else text

    def _set(self, name: str, text: str, ttl: float) -> None:
        self.database.contents.expiring[name] = (text, self.database.clock() + ttl)
