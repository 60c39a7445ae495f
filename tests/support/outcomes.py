"""What became of each occurrence, told from outside: by the messages and by the reports of misses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from celery_misfire.misfire import to_millis
from tests.support.processes import Message, Project, wait_for

#: By scheduled fire time (milliseconds UTC): what it ended as, and the task id that says so.
Outcomes = Mapping[int, set[tuple[str, str]]]


def scheduled(message: Message) -> int:
    """Return the scheduled fire time of a message, in milliseconds UTC."""
    assert message.misfire is not None
    return to_millis(datetime.fromisoformat(message.misfire["scheduled_fire_time"]))


def of_entry(messages: Iterable[Message], entry: str) -> list[Message]:
    """Return the messages that beat sent for an entry."""
    return [m for m in messages if m.misfire is not None and m.misfire["entry"] == entry]


def outcomes(
    messages: Iterable[Message], decisions: Iterable[Mapping[str, Any]], entry: str, interval: int
) -> Outcomes:
    """Return every outcome of every occurrence of an entry that fires each `interval` milliseconds.

    All is well when each expected fire time has exactly one. A message sent twice under one id is one.
    """
    found: dict[int, set[tuple[str, str]]] = defaultdict(set)
    for message in of_entry(messages, entry):
        fire = message.misfire
        assert fire is not None
        found[scheduled(message)].add((fire["outcome"], message.id))
        if fire["last_missed_fire_time"]:
            last = to_millis(datetime.fromisoformat(fire["last_missed_fire_time"]))
            for merged in range(scheduled(message) + interval, last + 1, interval):
                found[merged].add(("merged", message.id))
    for line in decisions:
        if line["event"] == "missed" and line["entry"] == entry:
            span = range(line["first"], line["last"] + 1, interval)
            assert len(span) == line["count"], line
            for missed in span:
                found[missed].add(("missed", line["id"]))
    return found


def assert_each_ended_once(found: Outcomes, expected: Iterable[int]) -> None:
    """Assert that each expected fire time ended as one outcome, and that there are no others."""
    wanted = set(expected)
    assert wanted
    assert {t: o for t, o in found.items() if len(o) > 1} == {}, "ended twice"
    assert sorted(wanted - found.keys()) == [], f"lost, of {len(wanted)}"
    assert sorted(found.keys() - wanted) == [], "not expected"


def settle(project: Project, *entries: str, timeout: float = 30.0) -> None:
    """Wait until every decision about these entries has been carried out, as the store sees it."""

    def all_settled() -> bool:
        states = [project.state(entry) for entry in entries]
        return all(state is not None and state.settled for state in states)

    wait_for(all_settled, timeout, what=f"{', '.join(entries)} to settle")
