"""What a worker logs of runs that come late: a backlog of thousands is not a thousand warnings."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

from celery import Celery

from celery_misfire.events import Missed, StartedLate
from celery_misfire.log_lines import MOST_SINGLE_LINES, Log

#: In one hour so many runs are a warning each. After them one warning sums up, and again at each of `SUMS`.
SUMS = (MOST_SINGLE_LINES + 1, *(10**power for power in range(2, 12)))


class LateRuns:
    """The lines about late runs in one worker, and in all workers that count together.

    :param owner: the worker.
    """

    def __init__(self, log: Log, app: Celery, owner: str) -> None:
        self._log, self._app, self._owner = log, app, owner
        #: The hour since 1970, and how many late runs this process has seen in it.
        self._counted = (0, 0)

    def log(self, event: StartedLate | Missed, what: str, nth: int | None) -> None:
        """Log a run that came late.

        :param what: follows the event's sentence.
        :param nth: the how-manieth of this hour it is, for all workers; None when only this process can tell.
        """
        hour = int(time.time() // 3600)
        mine = self._counted[1] + 1 if self._counted[0] == hour else 1
        self._counted = hour, mine
        count = nth or mine
        level = logging.WARNING if count <= MOST_SINGLE_LINES else logging.INFO
        sentence = event.sentence(self._app.timezone)
        self._log.event(level, event, "%s; %s", sentence, what, owner=self._owner)
        if count in SUMS:
            since = datetime.fromtimestamp(hour * 3600, UTC)
            self._log.warning(
                "backlog",
                "%d runs have come late out of the queue since %s; each is told at INFO",
                count,
                since.astimezone(self._app.timezone).isoformat(timespec="minutes"),
                count=count,
                since=since.isoformat(timespec="milliseconds"),
                owner=self._owner,
            )
