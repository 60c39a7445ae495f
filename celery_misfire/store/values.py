"""The values that the store keeps beside records, registers and log, and what it answers.

The texts of what is kept may never change: beats and workers of different versions share them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

#: The counts of an hour are kept for so many seconds.
COUNTS_TTL = 8 * 24 * 3600.0
#: A note for the leading beat waits so many seconds for its renewal.
NOTE_TTL = 300.0
#: The sign of life of a beat is kept for so many seconds after the beat was last heard of.
SIGN_TTL = 3600.0
#: The mark of a clean stop is kept for so many seconds, longer than any deploy takes.
STOP_TTL = 24 * 3600.0


@dataclass(frozen=True)
class LeaseValue:
    """What the lease holds: ``token|epoch|renewals|owner``.

    :param token: secret of the beat that took the lease; each of its commits proves itself with it.
    :param epoch: number of this term of leadership, greater than every one before.
    :param renewals: how often the lease was renewed. A standby sees by it that the leader is alive.
    :param owner: the process of that beat, see :mod:`~celery_misfire.store.owner`.
    """

    token: str
    epoch: int
    renewals: int
    owner: str

    @classmethod
    def parse(cls, text: str) -> LeaseValue:
        """Return the value with this text.

        A text of another form is not ours. It is kept whole as the owner, under an empty token.
        """
        found = _LEASE.fullmatch(text)
        return cls(found[1], int(found[2]), int(found[3]), found[4]) if found else cls("", 0, 0, text)

    def __str__(self) -> str:
        return f"{self.token}|{self.epoch}|{self.renewals}|{self.owner}" if self.token else self.owner

    def renewed(self) -> LeaseValue:
        """Return the value after one more renewal."""
        return replace(self, renewals=self.renewals + 1)


_NUMBER = r"(0|[1-9][0-9]{0,18})"
_LEASE = re.compile(rf"([^|]+)\|{_NUMBER}\|{_NUMBER}\|([^|]*)", re.DOTALL)


@dataclass(frozen=True)
class CleanStop:
    """The term before ended with a clean stop. Its mark is ``epoch|at|in_time_since``.

    :param ago: how long ago that is, by the store's clock, in milliseconds.
    :param in_time_since: from when on that beat has sent in time, by its own clock, in milliseconds UTC.
    """

    ago: int
    in_time_since: int

    @classmethod
    def parse(cls, mark: str, previous_epoch: int, now: int) -> CleanStop | None:
        """Return the clean stop that a mark tells of; None when it is not of the term just before.

        :param now: the store's clock, in milliseconds UTC.
        """
        found = _MARK.fullmatch(mark)
        if found is None or int(found[1]) != previous_epoch:
            return None
        return cls(now - int(found[2]), int(found[3]))


_MARK = re.compile(r"([0-9]{1,19})\|([0-9]{1,19})\|([0-9]{1,19})")


@dataclass(frozen=True)
class Taken:
    """The lease is ours now.

    :param previous_epoch: number of the term before, 0 when the store remembers none.
    :param cold: True when the store holds no state: it is new, or it was lost.
    :param app: name of the app whose beat began the state, '' when that is not known.
    :param stop: how the term before ended, None unless it was in an orderly way.
    """

    lease: LeaseValue
    previous_epoch: int
    cold: bool
    app: str = ""
    stop: CleanStop | None = None

    @property
    def epoch(self) -> int:
        """The number of this term of leadership."""
        return self.lease.epoch


@dataclass(frozen=True)
class Held:
    """Another beat holds the lease.

    :param description: what that beat has said of its configuration, '' for nothing.
    """

    lease: LeaseValue
    description: str = ""


@dataclass(frozen=True)
class NoState:
    """The lease is free and the store holds no state, so the lease was not taken."""


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


@dataclass(frozen=True)
class Watched:
    """What the worker that watches beat finds, and what it has noted itself.

    :param led: True when a beat leads.
    :param alarm: what was noted when beat was found to be overdue, '' when all is well.
    """

    led: bool
    alarm: str

    @classmethod
    def parse(cls, led: bool, alarm: str) -> Watched:
        """Return what was found. A note that is not ours counts as none, and will be replaced."""
        return cls(led, alarm if re.fullmatch("[0-9]{1,13}", alarm) else "")
