"""What the demo shows while it waits."""

from __future__ import annotations

import sys
import time


class Screen:
    """Progress: on a terminal a line that changes, elsewhere a line now and then."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._last = 0.0

    def say(self, text: str = "") -> None:
        print(f"\r\033[K{text}" if self._live else text, flush=True)

    def status(self, text: str, every: float = 3.0) -> None:
        if self._live:
            print(f"\r\033[K    {text}", end="", flush=True)
        elif time.monotonic() - self._last >= every:
            self._last = time.monotonic()
            print(f"    {text}", flush=True)
