"""The two clocks of a process: one that people set, and one that nobody does."""

from __future__ import annotations

import time

_UPTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def wall_clock() -> int:
    """Return the time of this host, in milliseconds UTC."""
    return time.time_ns() // 1_000_000


def uptime() -> float:
    """Return seconds on a clock that nobody sets and that counts suspended time, where there is one."""
    return time.clock_gettime(_UPTIME) if _UPTIME is not None else time.monotonic()
