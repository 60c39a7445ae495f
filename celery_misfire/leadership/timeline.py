"""The next fire times of all entries, in the order in which they come."""

from __future__ import annotations

import heapq
from collections.abc import Iterable


class Timeline:
    """A heap of next fire times, in milliseconds UTC; each entry has one at most."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        #: Where each entry stands; an item of the heap that says otherwise is passed over.
        self._current: dict[str, int] = {}

    def rebuild(self, moments: Iterable[tuple[str, int]]) -> None:
        """Begin anew with these entries."""
        self._current = dict(moments)
        self._heap = [(moment, name) for name, moment in self._current.items()]
        heapq.heapify(self._heap)

    def put(self, name: str, moment: int | None) -> None:
        """Give an entry another place; None takes it off."""
        if moment is None:
            self._current.pop(name, None)
        elif self._current.get(name) != moment:
            self._current[name] = moment
            heapq.heappush(self._heap, (moment, name))

    def next(self) -> int | None:
        """Return the earliest fire time, None when there is none."""
        heap, current = self._heap, self._current
        while heap and current.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take(self, now: int) -> str | None:
        """Take the entry off whose fire time comes first; None when none has come."""
        moment = self.next()
        if moment is None or moment > now:
            return None
        _, name = heapq.heappop(self._heap)
        del self._current[name]
        return name
