"""A thread that works for another thread, which decides how long it waits for each result.

It is a daemon thread, so the process does not wait for it at exit; it would for the threads of an executor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any


class BackgroundWorker(threading.Thread):
    """A thread that makes one call after the other. It starts by itself."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._queue: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self.start()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Queue a call and return its future; a future that is cancelled in time is not called."""
        future: Future[Any] = Future()
        self._queue.put((call, future))
        return future

    def close(self) -> None:
        """End the thread once it has made the calls that are queued."""
        self._queue.put(None)

    def run(self) -> None:
        while (item := self._queue.get()) is not None:
            call, future = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as exc:
                    future.set_exception(exc)
