"""The beats of a namespace: what each says of itself, and which of them are well.

Pure. A beat gives its sign of life with the calls that it makes anyway: the leader when it renews its lease,
a standby when it looks at it. A beat that is frozen, stuck or cut off from Redis gives none. Moments are
milliseconds of the store's clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from celery_misfire.store.owner import name_of
from celery_misfire.store.values import Sight
from celery_misfire.texts import one_line

#: The longest that the main loop of a beat sleeps, in seconds: no beat is silent before that.
LONGEST_TICK = 5.0
#: A beat that has given no sign for so many of its longest ticks is not well.
TICKS = 2


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What a beat says of itself.

    :param every: it gives a sign at least so often, in seconds.
    :param clock: its wall clock, in milliseconds UTC.
    :param started: when it began, by that clock.
    """

    host: str
    pid: int
    every: float
    clock: int
    started: int

    def __str__(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Sign | None:
        """Return the sign with this text, None for one that is not ours. Unknown fields are passed over."""
        try:
            found = json.loads(text)
            sign = cls(**{f.name: found[f.name] for f in fields(cls)})
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        numbers: Iterable[Any] = (sign.pid, sign.every, sign.clock, sign.started)
        is_ours = isinstance(sign.host, str) and all(type(n) in (int, float) for n in numbers)
        return sign if is_ours else None


@dataclass(frozen=True)
class Beat:
    """A beat as others see it.

    :param owner: the name by which the store knows it.
    :param silent_for: milliseconds since its last sign.
    :param leads: it holds the lease.
    :param clock_ahead: by how much its clock is ahead of the store's, in milliseconds.
    """

    owner: str
    host: str
    pid: int
    started: int
    every: float
    silent_for: int
    leads: bool
    clock_ahead: int

    @property
    def limit(self) -> int:
        """How long it may be silent, in milliseconds."""
        return round(max(self.every, LONGEST_TICK) * TICKS * 1000)

    @property
    def is_well(self) -> bool:
        return self.silent_for <= self.limit

    def __str__(self) -> str:
        return f"{one_line(self.host)}:{self.pid}"


def beats_in(sight: Sight) -> list[Beat]:
    """Return the beats that were heard of lately, the leader first."""
    found = []
    for owner, (at, text) in sight.beats.items():
        if (sign := Sign.parse(text)) is not None:
            leads = sight.lease is not None and sight.lease.owner == owner
            found.append(
                Beat(
                    owner,
                    sign.host,
                    sign.pid,
                    sign.started,
                    sign.every,
                    max(0, sight.now - at),
                    leads,
                    sign.clock - at,
                )
            )
    return sorted(found, key=lambda beat: (not beat.leads, beat.silent_for, beat.owner))


def leader_in(sight: Sight) -> str:
    """Return host and process of the beat that leads, '' when nobody does."""
    if sight.lease is None:
        return ""
    return next((str(beat) for beat in beats_in(sight) if beat.leads), one_line(name_of(sight.lease.owner)))


def problem_of(sight: Sight, host: str | None, alive: Mapping[int, bool]) -> str:
    """Return why a probe should fail, '' when all is well.

    :param host: look at the beats of this host alone, and at all of them; None: it is enough that one leads.
    :param alive: for the processes of this host, whether they are there. One that is gone has died, and what
        matters is who came after it.
    """
    beats = beats_in(sight)
    if host is None:
        if sight.lease is None:
            return "no beat leads"
        leader = next((beat for beat in beats if beat.leads), None)
        return "" if leader is None or leader.is_well else _silent(leader)
    ours = [beat for beat in beats if beat.host == host]
    well = [beat for beat in ours if beat.is_well]
    for beat in ours:
        if not beat.is_well and (alive.get(beat.pid, False) or not well):
            return _silent(beat)
    return "" if well else f"no beat of host {one_line(host)} has given a sign of life"


def _silent(beat: Beat) -> str:
    seconds, limit = beat.silent_for / 1000, beat.limit / 1000
    return f"beat {beat} has given no sign of life for {seconds:.0f} s (limit {limit:.0f} s)"
