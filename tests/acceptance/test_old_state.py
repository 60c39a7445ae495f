"""A beat of an older version was stopped over fire times; today's beat takes its state over."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from celery_misfire.fire import task_id
from celery_misfire.misfire import Trigger, TriggerState, to_millis
from celery_misfire.triggers.kinds import trigger_for
from tests.support.old_state import moved_to, read_dump, records_of, write_dump
from tests.support.outcomes import assert_each_ended_once, scheduled, settle
from tests.support.processes import NAMESPACE, Message, Project, published, wait_for
from tests.support.redis_server import RedisServer
from tests.support.schedules import build_schedule


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


class Expected:
    """The fire times of an entry whose outcome was open when the old beat stopped.

    They are read from the JSON text and from the schedule, with nothing of the code that is tested.
    """

    def __init__(self, trigger: Trigger, record: dict[str, Any]) -> None:
        self._trigger, self._state = trigger, TriggerState(**record["state"])
        self._next: int | None = record["state"]["next_fire_time"]
        self.generation = record["generation"]
        self._open = {intent["scheduled"] for intent in record["intents"]}
        for run in record["runs"]:
            ran = self.span(run["first"], run["last"])
            assert len(ran) == run["count"]
            self._open |= ran | self.span(run["first"], run["last_missed"] or run["last"])
        for lost in record["missed"]:
            missed = self.span(lost["first"], lost["last"])
            assert len(missed) == lost["count"]
            self._open |= missed

    def until(self, moment: int) -> set[int]:
        """Return all that must have an outcome when the entry has been planned at this moment."""
        if self._next is None or self._next > moment:
            return self._open
        return self._open | self.span(self._next, moment)

    def span(self, first: int, last: int) -> set[int]:
        """Return `first` and the fire times that follow it, up to `last`."""
        if self._trigger.interval is not None:
            # Decided runs may be of a grid that has been started anew since.
            return set(range(first, last + 1, self._trigger.interval))
        times, found = self._trigger.fire_times(self._state), {first}
        while (following := times.after(max(found))) is not None and following <= last:
            found.add(following)
        return found


@pytest.mark.timeout(180)
@pytest.mark.parametrize("newer", [False, True], ids=["older", "newer"])
def test_nothing_is_lost_or_doubled_when_another_version_has_written_the_state(
    project: Project, redis_server: RedisServer, newer: bool
) -> None:
    """The state is that of an older beat, or of a newer one that has more fields and words: a rollback."""
    dump = moved_to(read_dump(), round(time.time() * 1000))
    written = {name: json.loads(text) for name, text in records_of(dump).items()}
    if newer:
        dump["state"] = as_of_a_newer_version(dump["state"])
    entries = {name: entry for name, entry in dump["entries"].items() if name != "removed"}
    write_dump(redis_server.client(), dump, lease_ttl=2)
    project.configure(entries, **dump["settings"])
    beat = project.leading_beat()
    back = project.terms()[-1]["now"]

    def all_planned() -> bool:
        following = [project.state(name).state.next_fire_time for name in entries]
        return all(moment is None or moment > back for moment in following)

    wait_for(all_planned, 60, what="all entries to be planned")
    settle(project, *dump["entries"], timeout=60)
    beat.stop()
    assert beat.exit_code == 0

    decisions = project.decisions()[len(dump["log"]) :]
    sent = by_entry(published(redis_server.url))
    misfires = lines_by_entry(decisions, "misfire")
    missed = lines_by_entry(decisions, "missed")
    assert sum(map(len, sent.values())) > 50, "the test says little"
    assert sum(map(len, missed.values())) > 10, "the test says little"
    assert sent.keys() <= entries.keys(), "the removed entry has run"
    assert [line["reason"] for line in misfires["paused"]] == ["paused"]
    if newer:
        assert {line["reason"] for line in missed["endless"]} == {"boredom", "scheduler_down"}
        assert {project.state(name).unknown_fields for name in entries} == {'{"later":[1]}'}
    for lines in missed.values():
        assert_missed_results(redis_server, lines)
    for name, entry in entries.items():
        horizon = max([back, *(line["now"] for line in misfires[name])])
        expected = Expected(trigger_for(build_schedule(entry["schedule"])), written[name]).until(horizon)
        if entry.get("misfire") is False:
            # Misfire handling is off: what is late is dropped.
            expected = set()
        assert_ids_are_right_and_none_comes_twice(name, written[name]["generation"], sent[name])
        found = outcomes_of(expected, sent[name], missed[name])
        by_then = {moment: outcome for moment, outcome in found.items() if moment <= horizon}
        if expected:
            assert_each_ended_once(by_then, expected)
        else:
            assert by_then == {}, name


def as_of_a_newer_version(state: dict[str, str]) -> dict[str, str]:
    found = {}
    for field, text in state.items():
        found[field] = text
        if field.startswith("e:"):
            record = json.loads(text)
            for part in (record, record["state"], *record["runs"], *record["intents"], *record["missed"]):
                part["later"] = [1]
            for lost in record["missed"]:
                lost["reason"] = "boredom"
            found[field] = json.dumps(record)
    return found


def outcomes_of(
    expected: set[int], messages: list[Message], missed: list[dict[str, Any]]
) -> dict[int, set[tuple[str, str]]]:
    """Return what messages and lines of the log make of each fire time."""
    found: dict[int, set[tuple[str, str]]] = defaultdict(set)
    for message in messages:
        due, fire = scheduled(message), message.misfire
        found[due].add((fire["outcome"], message.id))
        if last := fire["last_missed_fire_time"]:
            merged = [t for t in expected if due < t <= to_millis(datetime.fromisoformat(last))]
            assert len(merged) == fire["missed_count"] - 1
            for moment in merged:
                found[moment].add(("merged", message.id))
    for line in missed:
        lost = [t for t in expected if line["first"] <= t <= line["last"]]
        assert len(lost) == line["count"], line
        for moment in lost:
            found[moment].add(("missed", line["id"]))
    return found


def assert_ids_are_right_and_none_comes_twice(name: str, generation: int, messages: list[Message]) -> None:
    due = [scheduled(message) for message in messages]
    assert [m.id for m in messages] == [task_id(NAMESPACE, name, generation, moment) for moment in due]
    assert len(set(due)) == len(due), f"{name} was sent twice"


def assert_missed_results(server: RedisServer, lines: list[dict[str, Any]]) -> None:
    for line in lines:
        result = json.loads(server.client().get(f"celery-task-meta-{line['id']}"))
        assert result["status"] == "MISSED"
        assert (result["result"]["count"], result["result"]["reason"]) == (line["count"], line["reason"])


def by_entry(messages: list[Message]) -> dict[str, list[Message]]:
    found: dict[str, list[Message]] = defaultdict(list)
    for message in messages:
        assert message.misfire is not None
        found[message.misfire["entry"]].append(message)
    return found


def lines_by_entry(decisions: list[dict[str, Any]], event: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in decisions:
        if line["event"] == event:
            found[line["entry"]].append(line)
    return found
