"""The numbers of a worker whose runs start in child processes: they are counted in the main process.

A line for each note goes through a pipe. It needs no files, no lock, and nothing from the app.
"""

from __future__ import annotations

import json
import logging
import os
import threading

from celery_misfire.conf.settings import Settings
from celery_misfire.metrics.exporters import export, is_read
from celery_misfire.metrics.numbers import Note, Numbers

__all__ = ["WorkerNumbers"]

logger = logging.getLogger(__name__)


class WorkerNumbers(Numbers):
    """The numbers of a worker, as each of its processes adds to them.

    Made in the main process, before it forks.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(is_read=is_read(settings))
        self._settings = settings
        self._main_process = os.getpid()
        self._read_end, self._write_end = os.pipe()
        # A child must not wait for the main process: what does not fit is not counted.
        os.set_blocking(self._write_end, False)

    def start(self, *, has_children: bool) -> None:
        """Let the numbers be read, and count what children tell."""
        export(self, self._settings, "worker")
        if has_children and self.is_read:
            threading.Thread(target=self._listen, name="misfire-metrics", daemon=True).start()

    def take(self, note: Note) -> None:
        """Count here, or have it counted in the main process."""
        if os.getpid() == self._main_process or not self.is_read:
            super().take(note)
            return
        try:
            # One write of less than PIPE_BUF: lines of several processes never mix.
            os.write(self._write_end, json.dumps(note).encode() + b"\n")
        except OSError as exc:
            logger.debug("worker: a number is lost (%s)", exc)

    def _listen(self) -> None:
        with os.fdopen(self._read_end) as lines:
            for line in lines:
                try:
                    metric, labels, value = json.loads(line)
                    self.take(Note(metric, tuple(labels), value))
                except Exception:
                    # Without this thread, nothing of the children would be counted any more.
                    logger.exception("worker: unexpected error in the metrics")
