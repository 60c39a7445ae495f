"""What people ask the leader for: to pause an entry, to let it go on, to hold all of them.

A request waits in the store until a leader carries it out (:mod:`celery_misfire.leadership.control`). So it
may also be made while no beat runs. The command line and the Django admin both make theirs here. Moments are
milliseconds UTC.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from celery_misfire.records import Pause
from celery_misfire.store.port import Store

#: Most characters of the reason that somebody gives.
LONGEST_REASON = 200


@dataclass(frozen=True, kw_only=True)
class Request:
    """Something that the leader is to do.

    :param do: ``pause`` or ``resume`` an entry, ``hold`` all entries or ``release`` them.
    :param at: when it was asked for, by the store's clock.
    :param until: when a pause or a hold ends by itself; None: when somebody says so.
    :param by: who asks.
    """

    do: str
    at: int
    entry: str = ""
    until: int | None = None
    reason: str = ""
    by: str = ""

    def __str__(self) -> str:
        # With asdict(), it takes three times as long, and there may be one for each of thousands of entries.
        return json.dumps(vars(self), separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Request | None:
        """Return the request with this text; None for one that this version does not understand."""
        try:
            found = json.loads(text)
            request = cls(**{f.name: found[f.name] for f in fields(cls) if f.name in found})
        except (ValueError, TypeError, RecursionError):
            return None
        texts = (request.do, request.entry, request.reason, request.by)
        until = 0 if request.until is None else request.until
        is_ours = all(isinstance(t, str) for t in texts) and type(request.at) is type(until) is int
        return request if is_ours and request.do in ("pause", "resume", "hold", "release") else None

    @property
    def as_pause(self) -> Pause:
        """The pause that is asked for."""
        return Pause(self.at, self.until, self.reason[:LONGEST_REASON], self.by)


def _ask(store: Store, requests: Iterable[Request]) -> list[str]:
    """Leave requests for the leader; return their ids.

    :raises StoreUnavailable: as every call of the store.
    """
    left = {
        f"{request.at:015d}-{number:05d}-{secrets.token_hex(4)}": str(request)
        for number, request in enumerate(requests)
    }
    store.request(left)
    return list(left)


def pause(
    store: Store, entries: Iterable[str], *, until: int | None = None, reason: str = "", by: str = ""
) -> list[str]:
    """Have entries paused; return the ids of the requests.

    :param until: when the pause ends by itself, None for not before :func:`resume`.
    """
    at = store.time()
    wanted = [Request(do="pause", at=at, entry=e, until=until, reason=reason, by=by) for e in entries]
    return _ask(store, wanted)


def resume(store: Store, entries: Iterable[str], *, by: str = "") -> list[str]:
    """Have the pauses of entries ended; return the ids of the requests."""
    at = store.time()
    return _ask(store, [Request(do="resume", at=at, entry=entry, by=by) for entry in entries])


def hold(store: Store, *, until: int, reason: str = "", by: str = "") -> list[str]:
    """Have all entries held: planned downtime, of which nothing is caught up. Returns the request's id."""
    return _ask(store, [Request(do="hold", at=store.time(), until=until, reason=reason, by=by)])


def release(store: Store, *, by: str = "") -> list[str]:
    """Have the hold ended; return the id of the request."""
    return _ask(store, [Request(do="release", at=store.time(), by=by)])


def read_hold(text: str) -> Pause | None:
    """Return the hold in force, which :func:`write_hold` wrote; None for none."""
    try:
        found: Any = json.loads(text) if text else {}
        since, until = found["since"], found["until"]
        if type(since) is not int or type(until) is not int:
            return None
        return Pause(since, until, str(found.get("reason") or ""), str(found.get("by") or ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_hold(hold: Pause | None) -> str:
    """Return a hold as the store keeps it."""
    if hold is None:
        return ""
    kept = {"by": hold.by, "reason": hold.reason, "since": hold.since, "until": hold.until}
    return json.dumps(kept, separators=(",", ":"))
