"""Why runs are late: the outages of late, each with the moment up to which it lasted."""

from __future__ import annotations

from collections import deque

from celery_misfire.leadership.restart import Restart
from celery_misfire.log_lines import Log
from celery_misfire.misfire import Reason
from celery_misfire.records import EntryRecord

say = Log(__name__, "beat")

#: So many outages are remembered: a run is late because of the first that lasted until it was due.
REMEMBERED = 16
#: A wall clock that gains or loses so much on the steady clock between two looks, in milliseconds, was set.
CLOCK_JUMP = 1_000
#: The clocks of beat and of the store may differ by so much, in milliseconds, before it is said.
CLOCK_DIFFERENCE = 5_000


def clock_ahead(before: int, theirs: int, after: int) -> int:
    """Return by how much our clock is ahead of the store's, in milliseconds; 0 for less than is worth a word.

    :param before: our clock before the store was asked for its own; `after`, when it had answered.
    """
    ahead = before - theirs if theirs < before else min(0, after - theirs)
    return ahead if abs(ahead) > CLOCK_DIFFERENCE else 0


def compare_clocks(before: int, theirs: int, after: int) -> None:
    """Say when beat's clock and the store's differ, see :func:`clock_ahead`."""
    if ahead := clock_ahead(before, theirs, after):
        way = "ahead of" if ahead > 0 else "behind"
        say.warning("clock", "the clock of this host is %.0f s %s the clock of Redis", abs(ahead) / 1000, way)


class Outages:
    """The outages of one beat, oldest first.

    :param clock_offset: wall clock minus steady clock, in milliseconds.
    """

    def __init__(self, clock_offset: float) -> None:
        self._ended: deque[tuple[Reason, int]] = deque(maxlen=REMEMBERED)
        self._clock_offset = clock_offset
        #: The restart that this beat began with, while nothing else has happened since.
        self.restart: Restart | None = None
        #: From when on this beat has sent in time, in milliseconds UTC.
        self.in_time_since = 0

    def began(self, reason: Reason, now: int, restart: Restart | None) -> None:
        """Note that this beat begins to lead, and why what was due up to now is late."""
        self.note(reason, now)
        self.restart, self.in_time_since = restart, now

    def note(self, reason: Reason, now: int) -> None:
        """Note that what was due up to now is late for this reason."""
        self._ended.append((reason, now))
        self.restart = None

    def found_late(self, scheduled: int, now: int) -> None:
        """Note that an occurrence has misfired which was due before this beat sent in time."""
        if scheduled <= self.in_time_since:
            self.in_time_since = now

    def look_at_clock(self, now: int, steady: float) -> bool:
        """Notice when somebody has set the wall clock; return True when it was set back.

        :param steady: a clock that nobody sets, in seconds.
        """
        offset = now - steady * 1000
        gained = offset - self._clock_offset
        if abs(gained) > CLOCK_JUMP:
            way = "forward" if gained > 0 else "back"
            say.warning("clock", "the clock was set %s by %.1f s", way, abs(gained) / 1000)
        if gained > CLOCK_JUMP:
            self.note(Reason.CLOCK_JUMP, now)
        self._clock_offset = offset
        return gained < -CLOCK_JUMP

    def reason_for(self, record: EntryRecord, scheduled: int, begin: int, *, is_broken: bool) -> Reason:
        """Return why an occurrence is late, if it is.

        :param begin: when its fire times took on the meaning by which the occurrence was planned.
        :param is_broken: the schedule of the entry could not be asked.
        """
        if scheduled < begin:
            return Reason.START_IN_PAST
        if record.paused_from is not None:
            return Reason.PAUSED
        otherwise = Reason.SCHEDULE_ERROR if is_broken else Reason.SCHEDULER_BUSY
        return next((reason for reason, until in self._ended if scheduled <= until), otherwise)
