"""A deploy is no alarm: which misfires are those of beat's own restart, and no outage. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from celery_misfire.misfire import FireTimes
from celery_misfire.records import EntryRecord
from celery_misfire.store.values import CleanStop


@dataclass(frozen=True)
class Restart:
    """A beat has taken over soon after another one stopped in an orderly way.

    :param grace: in milliseconds.
    :param in_time_since: from when on the beat before has sent in time, in milliseconds UTC.
    """

    grace: int
    in_time_since: int

    @classmethod
    def of(cls, stop: CleanStop | None, grace: int) -> Restart | None:
        """Return the restart that a clean stop makes of a take-over; None when it is too long ago."""
        return cls(grace, stop.in_time_since) if stop is not None and 0 <= stop.ago <= grace else None

    def explains(self, record: EntryRecord, times: FireTimes, scheduled: int, now: int) -> bool:
        """Return True when a run of an entry is late for the restart alone, and nobody has to hear of it.

        It is not so late that something else must have held it up. The next run follows soon. And the entry
        has fired in time since the restart before, so that restarts in a row cannot hide that it never does.

        :param record: what is known of the entry; `times` are its fire times.
        :param scheduled: fire time of the oldest run that is late.
        """
        last = record.state.previous_fire_time
        if now - scheduled > self.grace or last is None or last <= self.in_time_since:
            return False
        # Beat was there when these were due.
        if any(intent.unsent for intent in record.intents):
            return False
        following = times.after(now)
        return following is not None and following - now <= self.grace
