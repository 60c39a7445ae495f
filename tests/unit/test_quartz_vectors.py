"""The recorded behaviour of the real Quartz 2.3.2 (tests/data/quartz_vectors.jsonl.gz), case by case.

Each line holds a trigger, an outage, an instruction, and what Quartz did. On purpose different, and judged
apart here: the scheduled time of a recovered run (Quartz overwrites it with now) and runs after the end.
"""

import gzip
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from celery_misfire import MisfirePolicy, simulate
from celery_misfire.misfire import Outcome, to_millis
from celery_misfire.schedules import simple

VECTORS = Path(__file__).parent.parent / "data" / "quartz_vectors.jsonl.gz"


def moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def vectors() -> Iterator[dict[str, Any]]:
    with gzip.open(VECTORS, "rt") as lines:
        for line in lines:
            vector = json.loads(line)
            if vector["family"].startswith("simple_"):
                yield vector


def simulated(vector: dict[str, Any]):
    trigger = vector["trigger"]
    schedule = simple(
        start=moment(trigger["start"]),
        interval=trigger["interval_s"] or None,
        repeat_count=trigger["repeat_count"],
        end=moment(trigger["end"]),
    )
    return simulate(
        schedule,
        policy=MisfirePolicy(instruction=vector["instruction"], threshold=vector["misfire_threshold_s"]),
        down_at=moment(vector["down_at"]),
        up_at=moment(vector["up_at"]),
        until=moment(vector["horizon"]),
        start=moment(trigger["start"]),
    )


def fires_after_its_end(vector: dict[str, Any]) -> bool:
    end = moment(vector["trigger"]["end"])
    late = vector["instruction"] != "ignore_misfire_policy"
    return bool(end and late and any(moment(f["fired"]) > end for f in vector["fires"]))


CASES = [v for v in vectors() if v["first_fire"] is not None]
AGREEING = [v for v in CASES if not fires_after_its_end(v)]


def test_the_file_is_whole():
    assert len(CASES) == 560
    assert len(AGREEING) == 552


@pytest.mark.parametrize("vector", AGREEING, ids=lambda v: v["id"])
def test_as_quartz(vector):
    simulation = simulated(vector)
    up = moment(vector["up_at"])
    before = [f for f in simulation.fires if f.fire_time < up][-3:]
    after = [f for f in simulation.fires if f.fire_time >= up]
    wanted = [(moment(f["scheduled"]), moment(f["fired"])) for f in vector["fires"]]
    assert [f.fire_time for f in before + after] == [fired for _, fired in wanted]
    for fire, (scheduled, _) in zip(before + after, wanted, strict=True):
        if fire.outcome is Outcome.FIRED or vector["instruction"] == "ignore_misfire_policy":
            assert fire.scheduled_fire_time == scheduled
    assert simulation.next_fire_time == moment(vector["next_fire_after_horizon"])
    if vector["instruction"] != "ignore_misfire_policy":
        assert simulation.misfired == vector["misfired"]


def is_found_after_its_end(vector: dict[str, Any]) -> bool:
    """True when the trigger is finished by then; Quartz still turns its counters, ours stand."""
    end = moment(vector["trigger"]["end"])
    return end is not None and moment(vector["up_at"]) > end


@pytest.mark.parametrize(
    "vector", [v for v in AGREEING if not is_found_after_its_end(v)], ids=lambda v: v["id"]
)
def test_the_trigger_state_ends_as_quartz_leaves_it(vector):
    state = simulated(vector).state
    assert state.times_triggered == vector["times_triggered"]
    assert state.repeat_count == vector["repeat_count_after"]
    assert state.start_time == to_millis(moment(vector["start_after"]))


@pytest.mark.parametrize("vector", [v for v in CASES if fires_after_its_end(v)], ids=lambda v: v["id"])
def test_no_run_starts_after_the_end(vector):
    end = moment(vector["trigger"]["end"])
    simulation = simulated(vector)
    assert all(f.fire_time <= end for f in simulation.fires)
    assert [m.reason for m in simulation.missed] == ["ended"]
