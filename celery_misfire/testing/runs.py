"""A task that runs for a fire, and records of runs that never happen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from celery import Task
from celery.app.task import Context

from celery_misfire import fire as fires
from celery_misfire.fire import HEADER, Fire
from celery_misfire.misfire import MisfireInstruction, MissedFire, Outcome, Reason, to_millis


class _Requests:
    """The requests of a task, each with the header of a fire."""

    def __init__(self, stack: Any, header: Mapping[str, Any]) -> None:
        # The innermost of nested blocks counts.
        self._stack: Any = stack._stack if isinstance(stack, _Requests) else stack
        self._header = header

    def push(self, request: Context) -> None:
        # A worker merges headers into the request. An eager call leaves them in a dict.
        request.update({HEADER: self._header}, headers={**(request.headers or {}), HEADER: self._header})
        self._stack.push(request)

    def __len__(self) -> int:
        return len(self._stack)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stack, name)


@contextmanager
def fire(
    task: Task[Any, Any],
    *,
    scheduled: datetime,
    outcome: str = "fired",
    entry: str = "",
    fire_time: datetime | None = None,
    missed_count: int | None = None,
    last_missed: datetime | None = None,
) -> Iterator[Fire]:
    """Let :func:`celery_misfire.current_fire` work in `task` inside of the block, however it is called here.

    ``task()``, ``task.apply()`` and, where tasks run at once, ``task.delay()``.

    :param scheduled: its scheduled fire time; aware.
    :param outcome: ``"fired"`` or ``"recovered"``.
    :param entry: name of the entry; '' is the name of the task.
    :param fire_time: when beat sent it; None: at `scheduled`.
    :param missed_count: how many misfired occurrences it stands for; None: none for ``"fired"``, else 1.
    :param last_missed: scheduled fire time of the last one merged into it.
    :returns: what ``current_fire()`` returns.
    :raises ValueError: for naive datetimes and other outcomes.
    """
    if outcome not in ("fired", "recovered"):
        raise ValueError(f"outcome: a run is 'fired' or 'recovered', got {outcome!r}")
    count = int(outcome == "recovered") if missed_count is None else missed_count
    header = fires.header(
        entry=entry or str(task.name),
        scheduled=to_millis(scheduled),
        fire_time=to_millis(fire_time or scheduled),
        outcome=Outcome(outcome),
        merged=count - (outcome == "recovered"),
        last_missed=None if last_missed is None else to_millis(last_missed),
        generation=1,
        instruction=None,
        resolved=None,
        threshold=None,
    )
    told = fires.read(header)
    if told is None:
        raise ValueError(f"no fire is like this: entry {entry!r}, missed_count {count}")
    stack = task.request_stack
    task.request_stack = _Requests(stack, header)  # type: ignore[assignment]  # it is one for all who ask
    try:
        yield told
    finally:
        task.request_stack = stack


def make_missed(
    entry: str = "reports",
    *,
    task: str | Task[Any, Any] = "shop.reports",
    first: datetime,
    last: datetime | None = None,
    count: int = 1,
    reason: str = "scheduler_down",
    instruction: str = "do_nothing",
    detected_at: datetime | None = None,
) -> MissedFire:
    """Return a record of missed runs, for tests of whoever receives one.

    :param last: scheduled fire time of the last run; None: that of the first.
    :param detected_at: when it was found out; None: at `last`.
    :raises ValueError: for naive datetimes and unknown words.
    """
    last = last or first
    return MissedFire(
        entry=entry,
        task=task if isinstance(task, str) else str(task.name),
        task_id=fires.task_id("testing", entry, 1, to_millis(first)),
        first=first,
        last=last,
        count=count,
        reason=Reason(reason),
        instruction=MisfireInstruction(instruction),
        detected_at=detected_at or last,
    )
