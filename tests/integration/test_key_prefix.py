"""``misfire_key_prefix``: goes before every key, and a state that had none is found and kept."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from celery_misfire.beat import MisfireScheduler
from celery_misfire.store.port import LeaseValue
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.store.registers import Missed, Started, StartRequest
from celery_misfire.store.state_mark import StateMark
from tests.support.one_redis import World, fire_all, run, store_of
from tests.support.processes import wait_for

PLAIN = "celery-misfire:{shop}:"
HOURLY = {"a": {"task": "shop.reports", "schedule": 3600.0}}
PREFIX = {"broker_transport_options": {"global_keyprefix": "acme:"}}


def beat_of(world: World, **settings: Any) -> MisfireScheduler:
    """Return a beat that has not begun yet."""
    world.beats.append(MisfireScheduler(world.app(**({"misfire_lease_ttl": 1} | settings))))
    return world.beats[-1]


def leads(beat: MisfireScheduler) -> bool:
    return beat.tick() >= 0 and beat._member.holds_lease


def lead(beat: MisfireScheduler) -> MisfireScheduler:
    wait_for(lambda: leads(beat), every=0.005)
    return beat


def end(world: World, beat: MisfireScheduler) -> None:
    world.beats.remove(beat)
    beat.close()


def without_destination(world: World) -> None:
    """Make a state look like that of a version that notes no destination."""
    world.client.hset(PLAIN + "state", "_meta", str(StateMark("shop")))


def warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)


def test_the_prefix_goes_before_every_key(world: World) -> None:
    # The leader takes a note away when it renews its lease.
    beat = lead(beat_of(world, misfire_lease_ttl=60, **PREFIX))
    fire_all(beat, "ab")
    store = store_of(beat)
    store.settle(["an-id"], Missed("too_old"))
    store.start(
        "other-id",
        StartRequest(Started("n", "h"), entry="a", sent_at=1, late_start=2, line={"event": "late"}),
    )
    store.tell_leader("a note")
    store.request({"1": "please"})
    store.watch("w", 60, 60, alarm="1")
    names = world.client.keys()
    assert {name for name in names if not name.startswith("acme:")} == set()
    kinds = {name.split(":")[3] for name in names if name.startswith("acme:" + PLAIN)}
    assert kinds == {
        *("state", "lease", "log", "counts", "place", "fire", "late", "note", "watch", "watcher", "guard"),
        *("beats", "control"),
    }
    assert world.runs("acme:celery") == {"a": 1, "b": 1}


def test_a_user_who_may_touch_nothing_else_is_enough(world: World, caplog: pytest.LogCaptureFixture) -> None:
    # What others keep without a prefix is none of this user's business.
    end(world, lead(beat_of(world)))
    world.client.execute_command("ACL", "SETUSER", "acme", "on", ">p", "~acme:*", "&acme:*", "+@all")
    url = f"redis://acme:p@127.0.0.1:{world.server.port}/0"
    caplog.clear()
    caplog.set_level(logging.INFO)
    beat = lead(beat_of(world, broker=url, misfire_redis_url=None, **PREFIX))
    fire_all(beat)
    assert world.runs("acme:celery") == {"a": 1}
    assert "share a database" in caplog.text
    assert "NOPERM" not in warnings(caplog)
    assert "ermission" not in warnings(caplog)


@pytest.mark.parametrize(
    "prefix",
    [{"misfire_key_prefix": "acme:"}, PREFIX],
    ids=["of our keys alone", "of the queues as well"],
)
def test_a_state_that_had_no_prefix_is_kept(
    world: World, caplog: pytest.LogCaptureFixture, prefix: dict[str, Any]
) -> None:
    first = lead(beat_of(world, beat_schedule=HOURLY))
    fire_all(first, "b")
    records, lines = store_of(first).load(["a"]), store_of(first).log()
    done = Started("nonce", "host")
    store_of(first).start("an-id", StartRequest(done, "a"))
    end(world, first)
    without_destination(world)
    # A worker that was replaced before beat has written here already.
    early = RedisStore(world.server.url, "shop", key_prefix="acme:")
    early.start("late-id", StartRequest(done, "a", line={"event": "late"}))

    second = lead(beat_of(world, beat_schedule=HOURLY, **prefix))
    store = store_of(second)
    assert store.state_key == f"acme:{PLAIN}state"
    assert records
    assert store.load(["a"]) == records
    assert [line for line in store.log() if line["event"] != "lead"] == [
        *(line for line in lines if line["event"] != "lead"),
        {"event": "late"},
    ]
    assert store.register("an-id") == done
    counted = {entry for entry, _ in store.counts_since(0)}
    assert counted
    assert "has moved" in warnings(caplog)
    left = {key for key in world.client.keys(PLAIN + "*") if not key.endswith(":place")}
    assert left == {PLAIN + "state"}
    assert "elsewhere" not in warnings(caplog)


def test_a_beat_that_was_not_replaced_yet_does_not_begin_anew(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    end(world, lead(beat_of(world)))
    lead(beat_of(world, misfire_key_prefix="acme:"))
    late = beat_of(world)
    for _ in range(3):
        assert not leads(late)
    assert "has moved to keys with the prefix 'acme:'" in warnings(caplog)
    assert 0 < world.client.ttl(PLAIN + "state") <= 600
    assert world.client.hget(PLAIN + "state", "_meta") == '{"moved_to": "acme:", "schema": 2}'


def test_a_beat_that_still_leads_without_a_prefix_is_not_robbed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    old = lead(beat_of(world, misfire_lease_ttl=60))
    run(old, lambda: store_of(old).look()[0].destination)
    new = beat_of(world, misfire_key_prefix="acme:")
    for _ in range(3):
        assert not leads(new)
    assert "another beat leads, with keys that have no prefix" in caplog.text
    assert f"acme:{PLAIN}state" not in world.client.keys("*")
    end(world, old)
    lead(new)
    assert "has moved" in caplog.text


def test_another_deployment_that_lives_without_a_prefix_is_left_alone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    prod = lead(beat_of(world, misfire_lease_ttl=60, misfire_lease_renew=0.1))
    fire_all(prod)
    staging = lead(beat_of(world, **PREFIX))
    fire_all(staging, "b")
    assert store_of(prod).load(["a", "b"]).keys() == {"a"}
    assert store_of(staging).load(["a", "b"]).keys() == {"b"}
    assert "moved" not in warnings(caplog)
    fire_all(prod, "c")


def test_a_state_whose_runs_went_elsewhere_is_kept_with_a_warning_when_nobody_is_alive(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    first = lead(beat_of(world, beat_schedule=HOURLY))
    run(first, lambda: store_of(first).look()[0].destination)
    records = store_of(first).load(["a"])
    end(world, first)
    second = lead(beat_of(world, beat_schedule=HOURLY, **PREFIX))
    assert store_of(second).load(["a"]) == records
    assert "the prefix of the queues is '' there and 'acme:' here" in warnings(caplog)


def test_a_state_that_cannot_be_moved_is_left_and_said(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    end(world, lead(beat_of(world)))
    world.client.execute_command("ACL", "SETUSER", "default", "-rename")
    lead(beat_of(world, misfire_key_prefix="acme:"))
    assert "cannot be moved" in warnings(caplog)
    assert world.client.hget(PLAIN + "state", "_meta")


def test_a_move_is_done_by_one(world: World) -> None:
    end(world, lead(beat_of(world)))
    stores = [RedisStore(world.server.url, "shop", key_prefix="acme:") for _ in range(2)]
    assert [store.take_former() for store in stores] == [True, False]
    world.client.delete(f"acme:{PLAIN}state")
    # What was left there is no state.
    assert not stores[0].take_former()


def test_a_lease_there_forbids_the_move(world: World) -> None:
    end(world, lead(beat_of(world)))
    world.client.set(PLAIN + "lease", str(LeaseValue("t", 1, 0, "old:1")))
    assert not RedisStore(world.server.url, "shop", key_prefix="acme:").take_former()
