"""Cron expressions against the facts of other projects' test tables, and against our own earlier readings.

tests/data/cron_tables.jsonl.gz has one fact a line, from Quartz, Quartz.NET, Cronos, cronsim, croniter,
cron-utils, robfig/cron, Spring and APScheduler, without those that we differ from on purpose.
tests/data/cron_fingerprints.jsonl.gz has an expression and its fingerprint a line: a fingerprint that changed
would plan the entries of a running site anew.
"""

from __future__ import annotations

import gzip
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from celery_misfire.misfire import FireTimes, TriggerState, from_millis, to_millis
from celery_misfire.schedules import cron
from celery_misfire.triggers.kinds import trigger_for

DATA = Path(__file__).parent.parent / "data"


def lines(name: str) -> Iterator[Any]:
    with gzip.open(DATA / name, "rt") as file:
        for line in file:
            yield json.loads(line)


def made(expression: str, zone: str = "UTC") -> cron:
    with warnings.catch_warnings():
        # Some name years that are past, or a step that does nothing.
        warnings.simplefilter("ignore")
        return cron(expression, zone)


def answer(fact: dict[str, Any]) -> Any:
    """Return what the table has under "expected", or whether the fact holds."""
    if fact["kind"] in ("valid", "invalid"):
        try:
            made(fact["expression"])
        except ValueError:
            return fact["kind"] == "invalid"
        return fact["kind"] == "valid"
    try:
        trigger = trigger_for(made(fact["expression"], fact["zone"]))
    except ValueError as refused:
        # A date that never comes is refused here.
        return fact["kind"] == "never" and "never comes" in str(refused)
    times: FireTimes = trigger.fire_times(TriggerState(None, 0))
    if fact["kind"] in ("match", "nomatch"):
        at = to_millis(datetime.fromisoformat(fact["at"]))
        return bool(times.count(at, at + 999)) == (fact["kind"] == "match")
    moment: int | None = to_millis(datetime.fromisoformat(fact["from"]))
    assert moment is not None
    forward = fact["kind"] in ("next", "never")
    if fact.get("inclusive"):
        moment += -1 if forward else 1
    if fact["kind"] == "never":
        return times.after(moment) is None
    found: list[datetime | None] = []
    for _ in fact["expected"]:
        moment = None if moment is None else times.after(moment) if forward else times.before(moment)
        found.append(None if moment is None else from_millis(moment))
    return found


def agrees(fact: dict[str, Any]) -> bool:
    expected = fact.get("expected")
    if expected is None:
        return answer(fact) is True
    return answer(fact) == [None if e is None else datetime.fromisoformat(e) for e in expected]


FACTS = list(lines("cron_tables.jsonl.gz"))


@pytest.mark.parametrize("suite", sorted({fact["suite"] for fact in FACTS}))
def test_an_expression_means_what_other_projects_take_it_for(suite: str) -> None:
    assert [fact for fact in FACTS if fact["suite"] == suite and not agrees(fact)] == []


def test_every_kind_of_fact_is_there() -> None:
    assert Counter(fact["kind"] for fact in FACTS) == {
        "next": 1403,
        "invalid": 298,
        "nomatch": 117,
        "prev": 98,
        "match": 27,
        "valid": 24,
        "never": 3,
    }


def test_a_fingerprint_is_what_it_has_been() -> None:
    known = list(lines("cron_fingerprints.jsonl.gz"))
    assert Counter(len(expression.split()) for expression, _ in known) == {5: 4246, 6: 1483, 7: 489}
    found = [(e, trigger_for(made(e)).fingerprint, fingerprint) for e, fingerprint in known]
    assert [one for one in found if one[1] != one[2]] == []
