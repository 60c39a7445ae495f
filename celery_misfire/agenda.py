"""What is coming: fire times in their order, and how many there are in each hour and in its busiest minute.

Pure. Entries that fire at the same times are looked at together, and what fires very often is counted by the
hour alone, so that ten thousand entries take a fraction of a second.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from celery_misfire.misfire import FireTimes, Trigger, TriggerState
from celery_misfire.triggers.kinds import CronTrigger

MINUTE, HOUR = 60_000, 3_600_000

#: So many fire times are looked at one by one for the busiest minutes; what has more is counted by the hour.
MOST_FIRE_TIMES = 100_000


@dataclass(frozen=True)
class Coming:
    """An entry that fires next at `first`, and then as its trigger says."""

    name: str
    trigger: Trigger
    state: TriggerState
    first: int

    @property
    def times(self) -> FireTimes:
        return self.trigger.fire_times(self.state)


@dataclass
class Hour:
    """How many runs come in an hour.

    :param start: its first moment.
    :param busiest: the minute in which most of them come, None when there is none.
    :param at_once: how many come in that minute.
    """

    start: int
    runs: int = 0
    busiest: int | None = None
    at_once: int = 0


def runs(coming: Iterable[Coming], until: int) -> Iterator[tuple[int, str]]:
    """Yield each fire time up to `until`, and whose it is, in their order."""
    heap = [(c.first, c.name, c) for c in coming if c.first <= until]
    heapq.heapify(heap)
    while heap:
        moment, name, entry = heap[0]
        yield moment, name
        following = entry.times.after(moment)
        if following is None or following > until:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (following, name, entry))


@dataclass
class _Count:
    budget: int
    minutes: Counter[int] = field(default_factory=Counter)
    hours: Counter[int] = field(default_factory=Counter)

    def add(self, entry: Coming, until: int, alike: int) -> None:
        """Count the fire times of so many entries that fire alike."""
        times = entry.times
        count = times.count(entry.first, until)
        if count <= self.budget:
            self.budget -= count
            moment: int | None = entry.first
            while moment is not None and moment <= until:
                self.minutes[moment // MINUTE] += alike
                self.hours[moment // HOUR] += alike
                moment = times.after(moment)
            return
        begin = entry.first // HOUR * HOUR
        for start, end in pairwise(range(begin, until + 2 * HOUR, HOUR)):
            first, last = max(start, entry.first), min(end - 1, until)
            if first <= last and (found := times.count(first, last)):
                self.hours[start // HOUR] += alike * found


def hours(coming: Iterable[Coming], until: int, budget: int = MOST_FIRE_TIMES) -> list[Hour]:
    """Return the hours (of UTC) in which anything comes up to `until`, oldest first.

    :param budget: so many fire times are looked at one by one.
    """
    alike: dict[tuple[str, int, int], list[Coming]] = {}
    for entry in coming:
        if entry.first <= until:
            # The fire times of others depend on when they were first seen.
            start = 0 if isinstance(entry.trigger, CronTrigger) else entry.state.start_time
            alike.setdefault((entry.trigger.fingerprint, start, entry.first), []).append(entry)
    counted = _Count(budget)
    for group in alike.values():
        counted.add(group[0], until, len(group))
    found = {hour: Hour(hour * HOUR, n) for hour, n in sorted(counted.hours.items())}
    for minute, n in counted.minutes.items():
        hour = found[minute * MINUTE // HOUR]
        if n > hour.at_once:
            hour.busiest, hour.at_once = minute * MINUTE, n
    return list(found.values())
