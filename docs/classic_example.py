"""The classic example, made by ``simulate()`` whenever the documentation is built.

A line ``<!-- classic example: fixed -->`` (or once, endless, cron) becomes a table: hourly from 9:00, beat
was away from before that until 10:15.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from celery_misfire import MisfirePolicy, simulate
from celery_misfire.misfire import FITTING, MisfireInstruction, TriggerType, resolve
from celery_misfire.schedules import cron, simple
from celery_misfire.simulation import Simulation

DAY = datetime(2026, 3, 2, tzinfo=UTC)
NINE, UP = DAY + timedelta(hours=9), DAY + timedelta(hours=10, minutes=15)

SCHEDULES = {
    TriggerType.ONCE: simple(start=NINE),
    TriggerType.FIXED: simple(start=NINE, interval=3600, repeat_count=7),
    TriggerType.ENDLESS: simple(start=NINE, interval=3600),
    TriggerType.CRON: cron("0 0 9-17 ? * MON-FRI", timezone="UTC"),
}


def insert_tables(app: Any, name: str, source: list[str]) -> None:
    """Sphinx's event ``source-read``: put the tables where they are asked for."""
    source[0] = re.sub(
        r"<!-- classic example: (\w+) -->", lambda match: table(TriggerType(match[1])), source[0]
    )


def table(kind: TriggerType) -> str:
    """Return the Markdown table of every instruction that fits this type of trigger."""
    occurrences = [NINE] if kind is TriggerType.ONCE else [NINE, NINE + timedelta(hours=1)]
    heads = ["instruction", *map(_clock, occurrences), "next"]
    if kind is TriggerType.FIXED:
        heads += ["last run", "runs"]
    rows = [heads, ["---"] * len(heads)]
    for instruction in FITTING[kind]:
        rows.append(_row(kind, instruction, occurrences))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(kind: TriggerType, instruction: MisfireInstruction, occurrences: list[datetime]) -> list[str]:
    found, whole_day = (_simulated(kind, instruction, until) for until in (UP, DAY + timedelta(days=1)))
    name, stands_for = f"`{instruction}`", resolve(instruction, kind)
    if stands_for is not instruction:
        name += f" (`{stands_for}`)"
    following = _clock(found.next_fire_time) if found.next_fire_time else "none"
    row = [name, *(_outcome(found, when) for when in occurrences), following]
    if kind is TriggerType.FIXED:
        row += [_clock(whole_day.fires[-1].fire_time), str(len(whole_day.fires))]
    return row


def _clock(when: datetime) -> str:
    return f"{when.hour}:{when:%M}"


def _simulated(kind: TriggerType, instruction: MisfireInstruction, until: datetime) -> Simulation:
    policy = MisfirePolicy(instruction=instruction)
    return simulate(SCHEDULES[kind], policy=policy, down_at=DAY, up_at=UP, until=until, start=DAY)


def _outcome(found: Simulation, when: datetime) -> str:
    if any(missed.first <= when <= missed.last for missed in found.missed):
        return "missed"
    return "recovered" if any(fire.scheduled_fire_time == when for fire in found.fires) else "merged"
