"""The numbers of a worker whose runs start in child processes: they are counted in the main process.

A line for each note goes through a pipe. It needs no files, no lock, and nothing from the app.
"""

from __future__ import annotations

import json
import logging
import os
import threading

from celery_misfire.conf.settings import Settings
from celery_misfire.log_lines import Log
from celery_misfire.metrics.exporters import export, is_read
from celery_misfire.metrics.numbers import Note, Numbers

logger = logging.getLogger(__name__)
say = Log(__name__, "worker")


class WorkerNumbers(Numbers):
    """The numbers of a worker, as each of its processes adds to them.

    Made in the main process, before it forks.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(is_read=is_read(settings))
        self._settings = settings
        self._main_process = os.getpid()
        #: None where there is nothing to tell, or no child that would have it (Windows).
        self._pipe = os.pipe() if self.is_read and hasattr(os, "fork") else None
        if self._pipe is not None:
            # A child must not wait for the main process: what does not fit is not counted.
            os.set_blocking(self._pipe[1], False)

    def start(self, *, has_children: bool) -> None:
        """Let the numbers be read, and count what children tell."""
        export(self, self._settings, "worker")
        if has_children and self._pipe is not None:
            lines = (self._pipe[0],)
            threading.Thread(target=self._listen, args=lines, name="misfire-metrics", daemon=True).start()

    def take(self, note: Note) -> None:
        """Count here, or have it counted in the main process."""
        if self._pipe is None or os.getpid() == self._main_process:
            super().take(note)
            return
        try:
            # One write of less than PIPE_BUF: lines of several processes never mix.
            os.write(self._pipe[1], json.dumps(note).encode() + b"\n")
        except OSError as exc:
            logger.debug("worker: a number is lost (%s)", exc)

    def _listen(self, read_end: int) -> None:
        with os.fdopen(read_end) as lines:
            for line in lines:
                try:
                    metric, labels, value = json.loads(line)
                    self.take(Note(metric, tuple(labels), value))
                except Exception:
                    # Without this thread, nothing of the children would be counted any more.
                    say.exception("unexpected_error", "unexpected error in the metrics")
