"""What beat writes to the rows of django-celery-beat: how often each ran and when, and which are finished."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from django.db.models import F
from django_celery_beat.models import PeriodicTask

from celery_misfire.contrib.django.rows import entry_name, to_last_run_at
from celery_misfire.log_lines import Log

T = TypeVar("T")

say = Log(__name__, "beat")

#: One statement reads or writes at most this many rows.
ROWS_PER_STATEMENT = 500


class RowUpdates:
    """Updates that wait to be written. Any thread adds to them, one thread writes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: By primary key, how many runs there were, and when the last one was (milliseconds UTC).
        self._runs: dict[int, tuple[int, int]] = {}
        #: By primary key, rows that never fire again.
        self._finished: dict[int, PeriodicTask] = {}

    def __bool__(self) -> bool:
        return bool(self._runs or self._finished)

    @property
    def disables_rows(self) -> bool:
        """True while a finished row is still to be disabled."""
        return bool(self._finished)

    def ran(self, key: int, moment: int) -> None:
        """Have a run counted."""
        with self._lock:
            runs, _ = self._runs.get(key, (0, 0))
            self._runs[key] = runs + 1, moment

    def finish(self, task: PeriodicTask) -> None:
        """Have a row disabled, as django-celery-beat does, unless it is edited first."""
        with self._lock:
            self._finished[task.pk] = task

    def write(self) -> None:
        """Write what waits; what cannot be written goes on waiting.

        :raises django.db.Error: when the database fails.
        """
        with self._lock:
            runs, self._runs = self._runs, {}
            finished, self._finished = self._finished, {}
        try:
            _write_runs(runs)
            _write_finished(finished)
        finally:
            # The updates that are left come again, together with those that came meanwhile.
            with self._lock:
                for key, (count, moment) in runs.items():
                    more, later = self._runs.get(key, (0, moment))
                    self._runs[key] = count + more, later
                self._finished = finished | self._finished


def _write_runs(runs: dict[int, tuple[int, int]]) -> None:
    """Write the runs, and take out of the dict what is written."""
    # Rows that ran as often, and last in the same second, share a statement.
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for key, (count, moment) in runs.items():
        alike[count, moment // 1000].append(key)
    for (count, _), keys in alike.items():
        for chunk in in_chunks(keys):
            last = to_last_run_at(max(runs[key][1] for key in chunk))
            rows = PeriodicTask.objects.filter(pk__in=chunk)
            rows.update(last_run_at=last, total_run_count=F("total_run_count") + count)
            for key in chunk:
                del runs[key]


def _write_finished(finished: dict[int, PeriodicTask]) -> None:
    """Disable these rows, and take out of the dict what is written."""
    for key, task in list(finished.items()):
        unedited = PeriodicTask.objects.filter(
            pk=key,
            enabled=True,
            one_off=task.one_off,
            start_time=task.start_time,
            expires=task.expires,
            clocked=task.clocked_id,
        )
        if task.clocked is not None:
            unedited = unedited.filter(clocked__clocked_time=task.clocked.clocked_time)
        # Django-celery-beat does the same: a disabled row has no last run, a one-off starts from 0.
        values: dict[str, Any] = {"enabled": False, "last_run_at": None}
        if task.one_off:
            values["total_run_count"] = 0
        if unedited.update(**values):
            name = entry_name(task)
            say.info("finished", "periodic task %r is finished, and disabled", name, entry=name)
        del finished[key]


def in_chunks(items: Sequence[T]) -> Iterable[Sequence[T]]:
    """Return keys or names in parts that are short enough for one statement."""
    return (items[start : start + ROWS_PER_STATEMENT] for start in range(0, len(items), ROWS_PER_STATEMENT))
