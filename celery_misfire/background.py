"""A thread that does things for another one, which waits for each only so long.

A daemon: at its end the process does not wait for it, as it would for the threads of an executor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

__all__ = ["Aside"]


class Aside(threading.Thread):
    """Does one thing after the other; runs from the beginning."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._inbox: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self.start()

    def do(self, work: Callable[[], Any]) -> Future[Any]:
        """Have something done, unless it is cancelled before its turn."""
        done: Future[Any] = Future()
        self._inbox.put((work, done))
        return done

    def close(self) -> None:
        """Let the thread end when it has done what is there."""
        self._inbox.put(None)

    def run(self) -> None:
        while (item := self._inbox.get()) is not None:
            work, done = item
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(work())
                except BaseException as exc:
                    done.set_exception(exc)
