"""Beats and workers of this version and of an older one share a queue: nothing is lost, and nothing doubled.

The older side is played by the texts that it writes, see :mod:`tests.support.old_messages`.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery import Signature
from celery.schedules import schedule

from celery_misfire import fire
from celery_misfire.misfire import MisfireInstruction, Outcome, to_millis
from celery_misfire.store import registers
from tests.integration.test_arbitration import LATE, decisions, die_while_sending, guard
from tests.integration.test_leader import SECOND, World
from tests.support.old_messages import OLD, OldWorker, old_header, old_register
from tests.support.processes import NAMESPACE
from tests.support.redis_server import RedisServer
from tests.support.shop import Shop


@pytest.fixture
def old_worker(shop: Shop) -> OldWorker:
    return OldWorker(shop.client)


def by_old_beat(shop: Shop, entry: str, due: float, kind: str = "in time") -> Signature:
    """Return a message of the older beat."""
    return shop.fires.signature(entry, scheduled=due, headers={"misfire": old_header(kind, entry, due)})


def nonce_of(message: Signature) -> str:
    return message.options["headers"]["misfire"]["nonce"]


def register_of(shop: Shop, message: Signature) -> str | None:
    """Return the text of a run's register."""
    return shop.client.get(f"celery-misfire:{{{NAMESPACE}}}:fire:{message.options['task_id']}")


# -- the texts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OLD["headers"])
@pytest.mark.parametrize("once", [False, True])
def test_a_header_is_an_old_one_with_at_most_one_more_field(kind: str, once: bool) -> None:
    arguments: dict[str, Any] = dict(OLD["arguments"][kind])
    arguments["outcome"] = Outcome(arguments["outcome"])
    for name in ("instruction", "resolved"):
        arguments[name] = arguments[name] and MisfireInstruction(arguments[name])

    header = fire.header(**arguments, once=once)

    more = {"once": True} if once else {}
    assert header == OLD["headers"][kind] | {"nonce": header["nonce"]} | more


def test_an_old_header_is_read_and_its_task_id_is_the_same() -> None:
    read = fire.read(OLD["headers"]["recovered"])

    assert read is not None
    assert (read.outcome, read.missed_count) == (Outcome.RECOVERED, 2)
    assert fire.task_id(NAMESPACE, read.entry, 1, to_millis(read.scheduled_fire_time)) == OLD["task_id"]


@pytest.mark.parametrize(
    ("kind", "register"),
    [
        ("started", registers.Started("NONCE", "worker@old")),
        ("given_up", registers.Missed("queue_late", "NONCE")),
        ("closed_by_beat", registers.Missed("failover")),
        ("merged", registers.Merged(OLD["task_id"])),
    ],
)
def test_a_register_has_the_text_that_it_had(kind: str, register: registers.Register) -> None:
    assert registers.parse(OLD["registers"][kind]) == register
    assert str(register) == OLD["registers"][kind]


# -- an older beat, this worker ----------------------------------------------------------------------------


def test_two_messages_of_an_old_beat_are_one_run(shop: Shop) -> None:
    due = time.time()
    first, second = (by_old_beat(shop, "old beat, twice", due) for _ in range(2))
    first.apply_async()
    second.apply_async()

    assert [run["task_id"] for run in shop.runs("old beat, twice")] == [first.options["task_id"]]
    assert register_of(shop, first) == old_register("started", nonce_of(first)).replace("@old", "@test")


def test_one_message_of_an_old_beat_and_one_of_this_are_one_run(shop: Shop) -> None:
    """The old beat died while it sent the run, so that this one sends it again."""
    due = time.time()
    first = by_old_beat(shop, "both beats", due)
    first.apply_async()
    again = shop.send("both beats", scheduled=due, instruction="smart_policy")

    assert [run["task_id"] for run in shop.runs("both beats")] == [again] == [first.options["task_id"]]


def test_a_late_message_of_an_old_beat_is_missed(shop: Shop) -> None:
    message = by_old_beat(shop, "old beat, late", time.time() - 60, "strict")
    message.apply_async()

    assert shop.runs("old beat, late") == []
    shop.assert_missed(message.options["task_id"], "queue_late")
    assert register_of(shop, message) == old_register("given_up", nonce_of(message))


def test_what_an_old_beat_has_closed_does_not_run(shop: Shop) -> None:
    message = by_old_beat(shop, "old beat, closed", time.time())
    key = f"celery-misfire:{{{NAMESPACE}}}:fire:{message.options['task_id']}"
    shop.client.set(key, old_register("closed_by_beat"))
    message.apply_async()

    assert shop.runs("old beat, closed") == []


# -- this beat, an older worker ----------------------------------------------------------------------------


def test_an_old_worker_runs_a_message_of_this_beat_once(shop: Shop, old_worker: OldWorker) -> None:
    due = time.time()
    once = shop.fires.signature("old worker, once", scheduled=due, once=True)
    first, second = (shop.fires.signature("old worker, twice", scheduled=due) for _ in range(2))

    assert old_worker.runs(once)
    assert [old_worker.runs(message) for message in (first, second)] == [True, False]
    assert not old_worker.runs(shop.fires.signature("old worker, late", late=60, once=True), late=True)


def test_what_an_old_worker_has_started_is_a_run_for_this_beat(redis_server: RedisServer) -> None:
    world = World(redis_server.url)
    world.entry("tick", schedule(60), "do_nothing")
    [message] = die_while_sending(world)
    guard(world)
    key = f"celery-misfire:{{test}}:fire:{message.task_id}"
    redis_server.client().set(key, old_register("started", "0a"))
    world.now += LATE
    world.start()
    world.run(world.now + SECOND)

    assert (world.sent, world.missed) == ([], [])
    [line] = decisions(world, "sent")
    assert (line["id"], line["outcome"]) == (message.task_id, "fired")


# -- workers of both versions ------------------------------------------------------------------------------


def test_a_run_that_dies_with_this_worker_runs_again_in_an_old_one(shop: Shop, old_worker: OldWorker) -> None:
    """In time, it had no register; the broker gives the message to whoever is there."""
    message = shop.fires.signature("dies here", instruction="smart_policy", threshold=600, once=True)
    message.apply_async()
    assert len(shop.runs("dies here")) == 1

    assert register_of(shop, message) is None
    assert old_worker.runs(message)


def test_a_run_that_dies_with_this_worker_is_not_given_up_by_an_old_one(
    shop: Shop, old_worker: OldWorker
) -> None:
    """An older worker judges a redelivery, unless its register says that the run has started."""
    message = shop.fires.signature("dies here, strict", task="record.late_ack", threshold=600, once=True)
    message.apply_async()
    assert len(shop.runs("dies here, strict")) == 1

    assert old_worker.runs(message, late=True)


def test_a_run_that_dies_with_an_old_worker_runs_again_here(shop: Shop, old_worker: OldWorker) -> None:
    message = shop.fires.signature("dies there", late=60, once=True)
    assert old_worker.runs(message)
    shop.fires.redeliver(message, shop.client)

    assert [run["redelivered"] for run in shop.runs("dies there")] == [True]


def test_a_second_message_runs_in_neither(shop: Shop, old_worker: OldWorker) -> None:
    due = time.time()
    assert old_worker.runs(shop.fires.signature("started there", scheduled=due))
    shop.send("started there", scheduled=due)
    shop.send("started here", scheduled=due)

    assert shop.runs("started there") == []
    assert len(shop.runs("started here")) == 1
    assert not old_worker.runs(shop.fires.signature("started here", scheduled=due))


def test_what_one_has_given_up_runs_in_neither(shop: Shop, old_worker: OldWorker) -> None:
    due = time.time() - 60
    here = shop.fires.signature("given up here", scheduled=due, once=True)
    here.apply_async()
    there = shop.fires.signature("given up there", scheduled=due, once=True)
    assert not old_worker.runs(there, late=True)
    shop.fires.redeliver(there, shop.client)

    assert shop.runs("given up here") == []
    assert not old_worker.runs(here)
    assert shop.runs("given up there") == []
    # The worker that gave it up may have died before it reported that.
    assert len(shop.signals("task_missed", there.options["task_id"])) == 1
