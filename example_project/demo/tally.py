"""The count: every fire time that should have been, against what became of it."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

OUTCOMES = ("fired", "recovered", "merged", "missed")


@dataclass
class Tally:
    """What is known of one entry: what should have happened, and what did.

    Moments are milliseconds since 1970, as beat writes them.

    :param sent: the outcome of each run that was sent, by its scheduled time.
    """

    entry: str
    period: int | None
    asked: str
    resolved: str = ""
    outcomes: Counter[str] = field(default_factory=Counter)
    sent: dict[int, str] = field(default_factory=dict)
    started_again: int | None = None

    def expected(self, horizon: int) -> set[int]:
        """Return the fire times up to `horizon`, counted from the schedule alone.

        The first one tells where the grid begins, and an instruction that starts the schedule again where
        the second grid does.
        """
        first = min(self.sent, default=horizon + 1)
        if self.period is None:
            return {first} if first <= horizon else set()
        if self.started_again is None:
            return set(range(first, horizon + 1, self.period))
        again = range(self.started_again + self.period, horizon + 1, self.period)
        return set(range(first, self.started_again + 1, self.period)) | set(again)


def tally(lines: Sequence[dict[str, Any]], horizon: int) -> dict[str, Tally]:
    """Count the decisions about fire times up to `horizon`."""
    from example_project.shop.beat_schedule import beat_schedule

    tallies = {}
    for name, entry in beat_schedule().items():
        schedule = entry["schedule"]
        interval = timedelta(seconds=schedule) if isinstance(schedule, float) else schedule.interval
        period = None if interval is None else interval // timedelta(milliseconds=1)
        tallies[name] = Tally(name, period, entry["misfire"])
    seen = set()
    for line in lines:
        match line["event"]:
            # After a crash one run may have been sent twice, under one id.
            case "sent" if line["scheduled"] <= horizon and line["id"] not in seen:
                seen.add(line["id"])
                entry = tallies[line["entry"]]
                entry.sent[line["scheduled"]] = line["outcome"]
                entry.outcomes[line["outcome"]] += 1
                entry.outcomes["merged"] += line["merged"]
            case "misfire":
                entry = tallies[line["entry"]]
                entry.resolved = line["resolved"]
                if line["resolved"].startswith("reschedule_now"):
                    entry.started_again = line["now"]
            case "missed":
                entry = tallies[line["entry"]]
                entry.outcomes["missed"] += line["count"]
                # A worker that is busy for long gives a run up that beat has sent.
                if line["reason"] == "queue_late" and (outcome := entry.sent.pop(line["first"], None)):
                    entry.outcomes[outcome] -= 1
    return tallies


def check(tallies: dict[str, Tally], runs: Sequence[sqlite3.Row], horizon: int) -> list[str]:
    """Return what does not add up, in words."""
    wrong = []
    done: dict[str, set[int]] = {name: set() for name in tallies}
    for run in runs:
        moment = datetime.fromisoformat(run["scheduled_fire_time"]).replace(tzinfo=UTC)
        done[run["entry"]].add(round(moment.timestamp() * 1000))
    for name, entry in tallies.items():
        expected = entry.expected(horizon)
        if sum(entry.outcomes.values()) != len(expected) or not expected:
            wrong.append(f"{name}: {len(expected)} fire times, but {dict(entry.outcomes)}")
        if extra := entry.sent.keys() - expected:
            wrong.append(f"{name}: {len(extra)} runs at times that are no fire times")
        if lost := entry.sent.keys() - done[name]:
            wrong.append(f"{name}: {len(lost)} runs were sent and left nothing in the database")
        if not entry.resolved:
            wrong.append(f"{name}: did not misfire")
    return wrong


def table(tallies: Iterable[Tally], horizon: int) -> Iterator[str]:
    """Yield the lines of the result, 80 columns wide at most."""
    head = f"{'entry':<22}{'expected':>9} ={'fired':>7} +{'recovered':>11} +{'merged':>8} +{'missed':>8}"
    yield head
    yield "-" * len(head)
    for entry in tallies:
        fired, recovered, merged, missed = (entry.outcomes[outcome] for outcome in OUTCOMES)
        counts = f"{fired:>7} +{recovered:>11} +{merged:>8} +{missed:>8}"
        yield f"{entry.entry:<22}{len(entry.expected(horizon)):>9} ={counts}"
        resolved = "" if entry.resolved == entry.asked else f" -> {entry.resolved}"
        yield f"  {entry.asked}{resolved}"
