"""What one look at a namespace shows, and how long it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from celery_misfire.store.port import LeaseValue

__all__ = ["SIGN_TTL", "Renewed", "Sight"]

#: The sign of life of a beat is kept for so many seconds after the beat was last heard of.
SIGN_TTL = 3600.0


class Renewed(NamedTuple):
    """What the leader is told when it renews its lease.

    :param note: what another beat has to tell it, '' for nothing.
    :param is_asked: somebody has left a request (:meth:`~celery_misfire.store.port.Store.request`).
    """

    note: str = ""
    is_asked: bool = False


@dataclass(frozen=True)
class Sight:
    """A namespace at one moment of the store's clock.

    :param now: that moment, in milliseconds UTC; all other moments are by the same clock.
    :param lease: None when nobody leads.
    :param lease_left: milliseconds until the lease is free; None when that is not known.
    :param is_guarded: a worker that asks the registers has been there lately.
    :param is_cold: there is no state: no beat has led yet, or it was lost.
    :param hold: the hold in force as the leader wrote it, '' for none.
    :param beats: when each beat was last heard of, and what it said of itself; by the owner of its store.
    :param requests: what the leader has not carried out yet, by id.
    """

    now: int
    lease: LeaseValue | None = None
    lease_left: int | None = None
    is_guarded: bool = False
    is_cold: bool = True
    hold: str = ""
    beats: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    requests: Mapping[str, str] = field(default_factory=dict)
