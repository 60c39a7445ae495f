"""The mark that a beat leaves when it stops in an orderly way. Its text may never change."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["STOP_TTL", "CleanStop"]

#: The mark is kept for so many seconds, longer than any deploy takes.
STOP_TTL = 24 * 3600.0


@dataclass(frozen=True)
class CleanStop:
    """The term before ended with a clean stop. Its mark is ``epoch|at|in_time_since``.

    :param ago: how long ago that is, by the store's clock, in milliseconds.
    :param in_time_since: from when on that beat has sent in time, by its own clock, in milliseconds UTC.
    """

    ago: int
    in_time_since: int

    @classmethod
    def parse(cls, mark: str, previous_epoch: int, now: int) -> CleanStop | None:
        """Return the clean stop that a mark tells of; None when it is not of the term just before.

        :param now: the store's clock, in milliseconds UTC.
        """
        found = _MARK.fullmatch(mark)
        if found is None or int(found[1]) != previous_epoch:
            return None
        return cls(now - int(found[2]), int(found[3]))


_MARK = re.compile(r"([0-9]{1,19})\|([0-9]{1,19})\|([0-9]{1,19})")
