"""The record of missed runs as JSON: in a result, in an event for monitors, for the handler task."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from celery_misfire.exceptions import TaskMissed
from celery_misfire.fire import id_of, isoformat
from celery_misfire.misfire import MisfireInstruction, MissedFire, Reason, from_millis
from celery_misfire.records import EntryRecord, Unreported

#: The result state of a run that never happens.
MISSED = "MISSED"


def missed_of(namespace: str, record: EntryRecord, lost: Unreported) -> MissedFire:
    """Return the record of misses that stand in the record of an entry."""
    return MissedFire(
        entry=record.name,
        task=record.task,
        task_id=id_of(namespace, record.name, lost),
        first=from_millis(lost.first),
        last=from_millis(lost.last),
        count=lost.count,
        reason=lost.reason,
        instruction=lost.instruction,
        detected_at=from_millis(lost.detected_at),
    )


def missed_dict(missed: MissedFire) -> dict[str, Any]:
    """Return the record as plain JSON types; moments are ISO 8601 text in UTC."""
    return {
        "entry": missed.entry,
        "task": missed.task,
        "task_id": missed.task_id,
        "first_scheduled_fire_time": isoformat(missed.first),
        "last_scheduled_fire_time": isoformat(missed.last),
        "count": missed.count,
        "reason": str(missed.reason),
        "instruction": str(missed.instruction),
        "detected_at": isoformat(missed.detected_at),
    }


def missed_from_dict(record: Mapping[str, Any]) -> MissedFire:
    """Return what :func:`missed_dict` was made of.

    :raises ValueError: when it was made of something else.
    """
    try:
        return MissedFire(
            entry=record["entry"],
            task=record["task"],
            task_id=record["task_id"],
            first=datetime.fromisoformat(record["first_scheduled_fire_time"]),
            last=datetime.fromisoformat(record["last_scheduled_fire_time"]),
            count=record["count"],
            reason=Reason(record["reason"]),
            instruction=MisfireInstruction(record["instruction"]),
            detected_at=datetime.fromisoformat(record["detected_at"]),
        )
    except (KeyError, TypeError) as exc:
        raise ValueError(f"not a record of missed runs: {exc}") from None


def result_of(missed: MissedFire) -> dict[str, Any]:
    """Return the result to store: the record, in the form in which Celery stores an exception.

    The exception itself would not do. Celery encodes exceptions in its own states only, and a pickled one
    could not be read where this package is not installed.
    """
    return {
        "exc_type": TaskMissed.__name__,
        "exc_message": [str(TaskMissed.from_missed(missed))],
        "exc_module": TaskMissed.__module__,
        **missed_dict(missed),
    }
