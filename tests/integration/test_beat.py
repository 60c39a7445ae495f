"""A whole beat in this process, on a real Redis and a broker in memory; the test turns its loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from celery_misfire.beat import MisfireScheduler
from celery_misfire.exceptions import StoreUnavailable
from celery_misfire.ledger import WRITE
from tests.support.processes import wait_for
from tests.support.redis_server import RedisServer

Make = Callable[..., MisfireScheduler]


@pytest.fixture
def make(redis_server: RedisServer) -> Iterator[Make]:
    beats: list[MisfireScheduler] = []

    def make(cls: type[MisfireScheduler] = MisfireScheduler, **settings: Any) -> MisfireScheduler:
        app = Celery("shop", broker="memory://", set_as_current=False)
        entry = {"task": "shop.reports", "schedule": 0.2, "misfire": {"threshold": 1}}
        app.conf.update(
            misfire_redis_url=redis_server.url,
            misfire_standby_poll=0.1,
            beat_schedule={"reports": entry},
            **settings,
        )
        beats.append(cls(app))
        return beats[-1]

    yield make
    for beat in beats:
        beat.close()
        beat.app.close()


def run(beat: MisfireScheduler, true: Callable[[], bool]) -> None:
    wait_for(lambda: beat.tick() >= 0 and true())


def test_a_schedule_that_was_changed_while_the_store_was_away_is_taken_up_whole(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = make()
    beat.tick()
    names = [f"entry {n}" for n in range(2 * WRITE + 1)]
    beat.update_from_dict({name: {"task": "shop.stocks", "schedule": 3600.0} for name in names})

    def away(*_: Any) -> list[str]:
        raise StoreUnavailable("away")

    monkeypatch.setattr(beat._store, "commit", away)
    beat.tick()
    monkeypatch.undo()
    beat.tick()
    assert beat._store.load().keys() >= set(names)


class Sparing(MisfireScheduler):
    """Sends nothing, as it could in a time of maintenance."""

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        pass


def test_what_a_scheduler_of_the_apps_own_does_not_send_does_not_count_as_sent(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    beat = make(Sparing)
    run(beat, lambda: "reason publish_rejected" in caplog.text)
    assert not [line for line in beat._store.log() if line["event"] == "sent"]
    assert "apply_entry sent nothing" in caplog.text


class Uncopyable:
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("cannot copy canary-4711")


@pytest.mark.parametrize("headers", [{"x": Uncopyable()}, [("a", 1)]])
def test_headers_of_which_no_message_can_be_made_are_a_refusal_like_any_other(
    make: Make, caplog: pytest.LogCaptureFixture, headers: Any
) -> None:
    caplog.set_level(logging.WARNING)
    beat = make()
    entry = {"task": "shop.stocks", "schedule": 0.2, "misfire": {"threshold": 0.5}}
    # Later than the configuration is checked, as a row of a database is.
    beat.update_from_dict({"bad": entry | {"options": {"headers": headers}}})
    run(beat, lambda: "reason publish_rejected" in caplog.text)
    assert beat.schedule["bad"].options["headers"] is headers
    assert "canary" not in caplog.text


def test_a_lost_state_is_restored_by_the_beat_that_led_though_another_one_stands_by(
    make: Make, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    leader, standby = (make(misfire_lease_ttl=300, misfire_lease_renew=100) for _ in range(2))
    leader.tick()
    standby.tick()
    assert "another beat leads" in caplog.text
    before = leader._store.load()
    redis_server.client().flushall()
    run(standby, lambda: "the other beat's state has gone" in caplog.text)
    for _ in range(3):
        standby.tick()
    assert not standby._lease.held
    run(leader, lambda: "it is restored from memory" in caplog.text)
    assert leader._store.load().keys() == before.keys()
    standby.tick()
    assert not standby._lease.held
