"""A record of missed runs, for the tests of what is made of one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from celery_misfire.misfire import MisfireInstruction, MissedFire, Reason

NINE = datetime(2026, 3, 2, 9, tzinfo=UTC)

#: What the error says of it.
MESSAGE = (
    "'stocks' missed 2 runs scheduled from 2026-03-02T09:00:00+00:00 to 2026-03-02T10:00:00+00:00 "
    "(scheduler_down, do_nothing)"
)

#: What a result holds of it, beside its task id.
RECORD = {
    "entry": "stocks",
    "task": "shop.stocks",
    "first_scheduled_fire_time": "2026-03-02T09:00:00.000+00:00",
    "last_scheduled_fire_time": "2026-03-02T10:00:00.000+00:00",
    "count": 2,
    "reason": "scheduler_down",
    "instruction": "do_nothing",
    "detected_at": "2026-03-02T10:15:00.000+00:00",
}


def make_missed(task_id: str | None = None, **changes: Any) -> MissedFire:
    """Return the record of two hourly runs, found missed at a quarter past ten.

    :param task_id: None for a new one.
    """
    missed = MissedFire(
        entry="stocks",
        task="shop.stocks",
        task_id=task_id or str(uuid4()),
        first=NINE,
        last=NINE + timedelta(hours=1),
        count=2,
        reason=Reason.SCHEDULER_DOWN,
        instruction=MisfireInstruction.DO_NOTHING,
        detected_at=NINE + timedelta(minutes=75),
    )
    return replace(missed, **changes)
