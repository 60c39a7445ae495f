"""The beats of a namespace: what each says of itself, and which of them are well.

Pure, but for one question: whether a process of this host lives. A beat gives its sign of life with the calls
that it makes anyway: the leader when it renews its lease, a standby when it looks at it. A beat that is
frozen, stuck or cut off from Redis gives none. Moments are milliseconds of the store's clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from celery_misfire.store import owner as owners
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
    :param broker_has_answered: since then. A beat that does not say so is trusted.
    """

    host: str
    pid: int
    every: float
    clock: int
    started: int
    broker_has_answered: bool = True

    def __str__(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Sign | None:
        """Return the sign with this text, None for one that is not ours. Unknown fields are passed over."""
        try:
            found = json.loads(text)
            named = (f.name for f in fields(cls) if f.name in found or f.default is MISSING)
            sign = cls(**{name: found[name] for name in named})
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        numbers: Iterable[Any] = (sign.pid, sign.every, sign.clock, sign.started)
        is_ours = isinstance(sign.host, str) and all(type(n) in (int, float) for n in numbers)
        return sign if is_ours and type(sign.broker_has_answered) is bool else None


@dataclass(frozen=True)
class Beat:
    """A beat as others see it.

    :param owner: the name by which the store knows it.
    :param silent_for: milliseconds since its last sign.
    :param leads: it holds the lease.
    :param clock_ahead: by how much its clock is ahead of the store's, in milliseconds.
    :param is_alive: whether its process lives, None where nobody can know.
    """

    owner: str
    host: str
    pid: int
    started: int
    every: float
    silent_for: int
    leads: bool
    clock_ahead: int
    is_alive: bool | None = None

    @property
    def limit(self) -> int:
        """How long it may be silent, in milliseconds."""
        return round(max(self.every, LONGEST_TICK) * TICKS * 1000)

    @property
    def is_well(self) -> bool:
        return self.is_alive is not False and self.silent_for <= self.limit

    @property
    def trouble(self) -> str:
        """What is wrong with it in words, '' when it is well."""
        if self.is_well:
            return ""
        if self.is_alive is False:
            return "has ended without a word"
        silent_for, limit = self.silent_for / 1000, self.limit / 1000
        return f"has given no sign of life for {silent_for:.0f} s (limit {limit:.0f} s)"

    def __str__(self) -> str:
        return f"{one_line(self.host)}:{self.pid}"


IsAlive = Callable[[str], bool | None]


def beats_in(sight: Sight, is_alive: IsAlive = owners.is_alive) -> list[Beat]:
    """Return the beats that were heard of lately, the leader first.

    One that is known to have ended is left out, unless the lease is still its own.

    :param is_alive: returns whether the process with this name lives, None when nobody can know.
    """
    found = []
    for owner, (at, text) in sight.beats.items():
        leads = sight.lease is not None and sight.lease.owner == owner
        alive = is_alive(owner)
        if (sign := Sign.parse(text)) is not None and (leads or alive is not False):
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
                    alive,
                )
            )
    return sorted(found, key=lambda beat: (not beat.leads, beat.silent_for, beat.owner))


def problem_of(sight: Sight, host: str | None, is_alive: IsAlive = owners.is_alive) -> str:
    """Return why a probe should fail, '' when all is well.

    :param host: look at the beats of this host alone, and at all of them; None: it is enough that one leads.
    :param is_alive: as in :func:`beats_in`. A beat of this host whose process nobody knows may be gone, as
        after the restart of a container. What matters then is who came after it.
    """
    beats = beats_in(sight, is_alive)
    if host is None:
        if sight.lease is None:
            return "no beat leads"
        return next((f"beat {beat} {beat.trouble}" for beat in beats if beat.leads and beat.trouble), "")
    ours = [beat for beat in beats if beat.host == host]
    is_served = any(beat.is_well for beat in ours)
    for beat in ours:
        if not beat.is_well and (beat.is_alive or not is_served):
            return f"beat {beat} {beat.trouble}"
    return "" if is_served else f"no beat of host {one_line(host)} has given a sign of life"
