"""Something that fails and is tried again: say it once, back off, remind, say that it is over."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Trouble:
    """What is wrong at one place, and for how long. Times are seconds on a clock that nobody sets.

    :param first_wait: wait before the first new try; each failure in a row doubles it.
    :param longest_wait: no wait is longer.
    :param remind_every: time after which a trouble that goes on is said again.
    :param quiet_for: time for which a new trouble is not said, after the last that was.
    """

    first_wait: float = 1.0
    longest_wait: float = 60.0
    remind_every: float = math.inf
    quiet_for: float = 0.0
    #: When the next try is due.
    until: float = 0.0
    _since: float | None = None
    _wait: float = 0.0
    _said_at: float = -math.inf
    _was_said: bool = False

    @property
    def is_on(self) -> bool:
        """True from the first failure to the next success."""
        return self._since is not None

    def is_waiting(self, now: float) -> bool:
        """Return True while the next try is still to come."""
        return self.until > now

    def length(self, now: float) -> float:
        """Return how long the trouble has been on, 0.0 when it is not."""
        return 0.0 if self._since is None else now - self._since

    def fail(self, now: float, wait: float | None = None) -> bool:
        """Note a failure; return True when it is to be said, as it is new or a reminder is due.

        :param wait: time to the next try; None: twice the last wait.
        """
        if self._since is None:
            self._since, self._was_said = now, False
        self._wait = min(self.longest_wait, self._wait * 2 or self.first_wait) if wait is None else wait
        self.until = now + self._wait
        if now - self._said_at < (self.remind_every if self._was_said else self.quiet_for):
            return False
        self._said_at, self._was_said = now, True
        return True

    def end(self, now: float) -> float | None:
        """Note a success; return how long the trouble was, None when there is nothing to say of it."""
        since, self._since = self._since, None
        self.until, self._wait = 0.0, 0.0
        return now - since if since is not None and self._was_said else None


class Reminders:
    """Several things that stay wrong: each is to be said at once, and again from time to time.

    :param every: time between two reminders of one thing, in seconds.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._troubles: dict[str, Trouble] = {}

    def is_due(self, text: str, now: float) -> bool:
        """Return True when this is to be said now."""
        return self._troubles.setdefault(text, Trouble(remind_every=self._every)).fail(now)
