"""Which entries have something to be done, and in what order: due, to be sent, to be caught up."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from celery_misfire.leadership.timeline import Timeline
from celery_misfire.records import EntryRecord


class Queues:
    """The queues of one beat; they follow from the records alone."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        #: Entries with runs that are decided and not claimed. A dict, for its order.
        self.catch_up: dict[str, None] = {}
        #: Entries with intents. A dict, for its order.
        self.unsent: dict[str, None] = {}

    def rebuild(self, present: Mapping[str, EntryRecord], unfinished: Collection[str]) -> None:
        """Begin anew.

        :param present: the records of the entries that are in the schedule.
        :param unfinished: those whose record is not in line with the schedule yet.
        """
        planned = {n: r for n, r in present.items() if n not in unfinished}
        moments = ((n, _next_moment(r)) for n, r in planned.items())
        self.timeline.rebuild((n, moment) for n, moment in moments if moment is not None)
        self.catch_up = {n: None for n, r in planned.items() if r.runs and r.paused is None}
        self.unsent = {n: None for n, r in present.items() if r.intents}

    def put(self, name: str, record: EntryRecord, *, is_finished: bool) -> None:
        """Put an entry where its new record belongs.

        :param is_finished: its record is in line with the schedule.
        """
        if is_finished:
            self.timeline.put(name, _next_moment(record))
            _set(self.catch_up, name, bool(record.runs) and record.paused is None)
        _set(self.unsent, name, bool(record.intents))


def _next_moment(record: EntryRecord) -> int | None:
    """Return when there is something to be decided about an entry: its pause ends, or it is due."""
    return record.state.next_fire_time if record.paused is None else record.paused.until


def _set(queue: dict[str, None], name: str, is_in: bool) -> None:
    if is_in:
        queue.setdefault(name)
    else:
        queue.pop(name, None)
