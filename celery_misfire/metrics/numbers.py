"""The metrics and their numbers. Pure: events and observations come in, exporters read what came of them."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

from celery_misfire.events import Event, GaveUp, Led, Misfired, Missed, Sent
from celery_misfire.misfire import Outcome

PREFIX = "celery_misfire_"
#: So many entries have labels of their own, those that come first. The others share :data:`OTHER`.
MOST_ENTRIES = 1000
OTHER = "other"

#: Bounds of the buckets, in seconds: from a beat that is in time to one that was away for days.
LATENESS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 21600, 86400)
TICKS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30)


@dataclass(frozen=True)
class Metric:
    """A metric without the prefix of its name.

    :param buckets: the upper bounds of a histogram.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS = {
    metric.name: metric
    for metric in (
        Metric("occurrences_total", "counter", "Occurrences that ended so", ("entry", "outcome")),
        Metric("missed_total", "counter", "Occurrences that never run", ("entry", "reason")),
        Metric(
            "lateness_seconds",
            "histogram",
            "How late runs were sent by beat, and started by a worker",
            ("stage",),
            LATENESS,
        ),
        Metric("next_fire_timestamp_seconds", "gauge", "When the entry is due next", ("entry",)),
        Metric("overdue_entries", "gauge", "Entries that are due, and late by their threshold or more"),
        Metric("leader", "gauge", "1 while this beat leads"),
        Metric("lease_remaining_seconds", "gauge", "For how long this beat may lead without a renewal"),
        Metric("leadership_changes_total", "counter", "How often this beat began to lead", ("reason",)),
        Metric("tick_seconds", "histogram", "How long beat works at a time", (), TICKS),
        Metric("catch_up_pending", "gauge", "Late runs that are decided and not sent yet"),
        Metric("duplicates_dropped_total", "counter", "Second messages of a run that a worker dropped"),
        Metric("store_up", "gauge", "1 while the Redis with the state answers"),
        Metric("broker_up", "gauge", "1 while the broker takes messages"),
    )
}


class Note(NamedTuple):
    """An addition to a counter, or an observation of a histogram."""

    metric: str
    labels: tuple[str, ...] = ()
    value: float = 1.0


@dataclass
class Histogram:
    """What was observed.

    :param counts: observations for each bucket alone; the last one has no bound.
    """

    counts: list[int]
    total: float = 0.0

    def cumulated(self) -> Iterator[int]:
        """Yield for each bucket how many observations are in it or in one before."""
        so_far = 0
        for count in self.counts:
            so_far += count
            yield so_far


Labels = tuple[str, ...]
Gauges = Iterable[Note]


def notes_of(event: Event) -> Iterator[Note]:
    """Yield what an event adds to the numbers."""
    if isinstance(event, Sent):
        # Its own counts take runs in time of all entries together.
        yield Note("occurrences_total", (event.entry, event.outcome))
        yield Note("lateness_seconds", ("beat",), (event.fire_time - event.scheduled) / 1000)
        return
    for (entry, outcome), count in event.counts.items():
        yield Note("occurrences_total", (entry, outcome), count)
    if isinstance(event, Led):
        yield Note("leadership_changes_total", (event.reason,))
    elif isinstance(event, Misfired):
        for part in event.lost:
            yield Note("missed_total", (event.entry, part["reason"]), part["count"])
    elif isinstance(event, GaveUp) or (isinstance(event, Missed) and event.worker is not None):
        # What beat records as missed was counted when it was decided.
        yield Note("missed_total", (event.entry, event.reason), event.count)


class Numbers:
    """The numbers of one process, and of the children that it hears of. Threads may share it.

    :param is_read: False: nobody does, and nothing is counted.
    """

    def __init__(self, *, is_read: bool = True) -> None:
        self.is_read = is_read
        self._lock = threading.Lock()
        self._entries: set[str] = set()
        self._expected: set[str] = set()
        self._totals: dict[str, defaultdict[Labels, float]] = {
            name: defaultdict(float) for name, metric in METRICS.items() if metric.kind == "counter"
        }
        self._histograms: dict[str, dict[Labels, Histogram]] = {
            name: {} for name, metric in METRICS.items() if metric.kind == "histogram"
        }
        #: Asked whenever the numbers are read.
        self.gauges: list[Callable[[], Gauges]] = []
        #: Told of each observation of a histogram.
        self.observers: list[Callable[[Note], object]] = []
        for name, metric in METRICS.items():
            if metric.kind == "counter" and not metric.labels:
                self._totals[name][()] = 0.0

    def hear(self, events: Sequence[Event]) -> None:
        """Count what was decided."""
        if self.is_read:
            for event in events:
                for note in notes_of(event):
                    self.take(note)

    def timed(self, name: str) -> AbstractContextManager[None]:
        """Observe how long the block takes."""
        return self._timed(name) if self.is_read else nullcontext()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.take(Note(name, value=time.monotonic() - began))

    def take(self, note: Note) -> None:
        """Add to a counter, or observe."""
        if not self.is_read:
            return
        metric, value = METRICS[note.metric], note.value
        with self._lock:
            labels = self._limited(metric, note.labels)
            if metric.kind == "counter":
                self._totals[metric.name][labels] += value
                return
            known = self._histograms[metric.name]
            if (histogram := known.get(labels)) is None:
                histogram = known[labels] = Histogram([0] * (len(metric.buckets) + 1))
            histogram.counts[bisect_left(metric.buckets, value)] += 1
            histogram.total += value
        for observe in self.observers:
            observe(note)

    def expect(self, entries: Iterable[str]) -> None:
        """Begin with 0 for these entries: a counter that begins with more is not seen to grow."""
        new = set(entries) - self._expected
        self._expected |= new
        for entry in new:
            for outcome in Outcome:
                self.take(Note("occurrences_total", (entry, str(outcome)), 0.0))

    def _limited(self, metric: Metric, labels: Labels) -> Labels:
        if not metric.labels or metric.labels[0] != "entry":
            return labels
        entry = labels[0]
        if entry not in self._entries:
            if len(self._entries) >= MOST_ENTRIES:
                return (OTHER, *labels[1:])
            self._entries.add(entry)
        return labels

    # -- for exporters -------------------------------------------------------------------------------------

    def totals(self, name: str) -> Mapping[Labels, float]:
        """Return the counts of a counter by its labels."""
        with self._lock:
            return dict(self._totals[name])

    def histograms(self, name: str) -> Mapping[Labels, Histogram]:
        """Return what was observed, by labels."""
        with self._lock:
            return {
                labels: Histogram(list(one.counts), one.total)
                for labels, one in self._histograms[name].items()
            }

    def states(self) -> Mapping[str, Mapping[Labels, float]]:
        """Return the gauges that have a value now, by name and labels; the least where labels are shared."""
        found: dict[str, dict[Labels, float]] = {}
        for gauges in self.gauges:
            for name, given, value in gauges():
                with self._lock:
                    labels = self._limited(METRICS[name], given)
                known = found.setdefault(name, {})
                known[labels] = min(value, known.get(labels, value))
        return found
