"""Catching up waits while the queue is too long, and runs in time do not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from celery_misfire.leadership import catch_up, decisions
from celery_misfire.schedules import simple
from tests.support.one_redis import World, run
from tests.support.redis_server import RedisServer

LIMIT, LATE = 10, 40


@pytest.fixture
def world(redis_server: RedisServer) -> Iterator[World]:
    world = World(redis_server)
    yield world
    world.close()


def test_catching_up_waits_while_the_queue_is_long_and_goes_on_when_it_is_short(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(decisions, "LARGEST_SHARE", 5)
    monkeypatch.setattr(catch_up, "LOOK_AT_QUEUE_EVERY", 3600.0)
    beat = world.beat(misfire_catch_up_queue=LIMIT)
    begin = datetime.now(UTC) - timedelta(seconds=60 * (LATE - 1) + 1)
    beat.update_from_dict(
        {
            "late": {
                "task": "shop.reports",
                "schedule": simple(start=begin, interval=60, repeat_count=LATE - 1),
                "misfire": {"instruction": "ignore_misfire_policy", "threshold": 1},
            }
        }
    )
    run(beat, lambda: world.runs()["late"] > LIMIT)
    stopped_at = world.runs()["late"]
    assert stopped_at < LATE

    # Runs in time do not wait, and tell how long the queue is by now.
    now = {"task": "shop.stocks", "schedule": simple(start=datetime.now(UTC), interval=3600)}
    beat.update_from_dict({"now": {**now, "misfire": {"threshold": 600}}})
    run(beat, lambda: world.runs()["now"] == 1)
    assert world.runs()["late"] == stopped_at

    world.client.delete("celery")
    beat.update_from_dict({"again": {**now, "misfire": {"threshold": 600}}})
    run(beat, lambda: world.client.llen("celery") > LIMIT)
    assert 0 < world.runs()["late"] < LATE - stopped_at
