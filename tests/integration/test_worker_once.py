"""When a real worker asks the register of a run: not for one that stands in the queue once, as a rule.

And what it does with a message that was delivered before, which may be that of a run without a register.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from celery_misfire.store import registers
from tests.support.processes import NAMESPACE, wait_for
from tests.support.redis_server import RedisServer
from tests.support.shop import Shop


@pytest.mark.parametrize(
    ("instruction", "task", "asks"),
    [
        ("smart_policy", "record", False),
        ("ignore_misfire_policy", "record", False),
        (None, "record", False),
        ("do_nothing", "record", False),
        ("smart_policy", "record.late_ack", False),
        ("do_nothing", "record.late_ack", True),
        ("fire_once_now", "record", True),
    ],
)
def test_a_run_in_time_that_stands_in_the_queue_once_asks_nobody_unless_it_may_be_judged_again(
    shop: Shop, server: RedisServer, instruction: str | None, task: str, asks: bool
) -> None:
    entry = f"once, {instruction}, {task}"
    # The watch over beat has had its look at the store.
    wait_for(lambda: shop.client.exists(f"celery-misfire:{{{NAMESPACE}}}:watcher"))
    with server.recorded_commands() as commands:
        id_ = shop.send(entry, instruction=instruction, task=task, threshold=600, once=True)
        assert len(shop.runs(entry)) == 1

    ours = [command for command in commands if "celery-misfire:" in command]
    assert bool(ours) == asks, ours
    assert (shop.store.register(id_) is not None) == asks


def test_late_runs_that_stand_in_the_queue_once_get_what_their_instruction_says(shop: Shop) -> None:
    now = time.time()
    strict = shop.send("once, strict", late=60, once=True)
    merging = {"instruction": "fire_once_now", "once": True}
    ids = [shop.send("once, merging", scheduled=now - age, **merging) for age in (9, 8, 0.5)]
    smart = shop.send("once, smart", late=60, instruction="smart_policy", once=True)

    assert shop.runs("once, strict") == []
    shop.assert_missed(strict, "queue_late")
    assert [run["task_id"] for run in shop.runs("once, merging")] == ids[:1]
    assert {shop.store.register(id_) for id_ in ids[1:]} == {registers.Merged(ids[0])}
    assert [run["task_id"] for run in shop.runs("once, smart")] == [smart]
    assert len(shop.lines("'once, smart'", "started late by 60.")) == 1


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("instruction", ["do_nothing", "smart_policy", "fire_once_now"])
def test_a_late_redelivery_with_an_empty_register_runs_and_is_not_told_late(
    shop: Shop, instruction: str, once: bool
) -> None:
    entry = f"redelivered, {instruction}, {once}"
    message = shop.fires.signature(entry, late=60, instruction=instruction, once=once)
    if instruction == "fire_once_now":
        # A late run that was sent later than this message.
        shop.send(entry, late=30, instruction=instruction)
    id_ = shop.fires.redeliver(message, shop.client)

    runs = [run for run in shop.runs(entry) if run["task_id"] == id_]
    assert [run["redelivered"] for run in runs] == [True]
    assert shop.lines(id_, "late") == []
    assert not isinstance(shop.store.register(id_), registers.Missed | registers.Merged)
    assert [s for s in shop.project.signals("task_missed") if s["task_id"] == id_] == []


def test_of_two_messages_one_redelivered_one_runs(shop: Shop) -> None:
    due = time.time() - 60
    message = shop.fires.signature("redelivered and sent again", scheduled=due)
    shop.fires.redeliver(message, shop.client)
    shop.wait_until_done()
    shop.send("redelivered and sent again", scheduled=due)

    assert [run["redelivered"] for run in shop.runs("redelivered and sent again")] == [True]
    assert len(shop.lines("a message of 'redelivered and sent again'", "is dropped")) == 1


def test_a_redelivery_obeys_its_register(shop: Shop) -> None:
    due = time.time()
    by_beat = shop.fires.task_id("closed by beat", due)
    shop.store.settle([by_beat], registers.Missed("failover"))
    shop.fires.redeliver(shop.fires.signature("closed by beat", scheduled=due), shop.client)
    # A worker has given the run up, and was killed before it could report that.
    message = shop.fires.signature("given up", late=60)
    nonce = message.options["headers"]["misfire"]["nonce"]
    given_up = message.options["task_id"]
    shop.store.settle([given_up], registers.Missed("queue_late", nonce))
    shop.fires.redeliver(message, shop.client)

    assert shop.runs("closed by beat") == []
    assert shop.runs("given up") == []
    assert len(shop.signals("task_missed", given_up)) == 1
    assert [s for s in shop.project.signals("task_missed") if s["task_id"] == by_beat] == []


def test_an_expired_redelivery_with_an_empty_register_is_revoked_as_celery_does_it(shop: Shop) -> None:
    past = datetime.now(UTC) - timedelta(seconds=5)
    message = shop.fires.signature("expired again", expires=past, instruction="smart_policy", once=True)
    id_ = shop.fires.redeliver(message, shop.client)

    [told] = shop.signals("task_revoked", id_)
    assert told["expired"]
    assert shop.runs("expired again") == []
    assert [s for s in shop.project.signals("task_missed") if s["task_id"] == id_] == []


def test_the_register_of_a_run_by_hand_is_kept_as_long_as_its_record(shop: Shop) -> None:
    by_hand = shop.send("by hand", outcome="recovered", instruction=None, generation=-1)
    by_beat = shop.send("by beat")
    late = shop.send("by beat, late", late=60)
    assert len(shop.runs("by hand")) == 1

    def days(id_: str) -> int:
        return round(shop.client.ttl(f"celery-misfire:{{{NAMESPACE}}}:fire:{id_}") / 86_400)

    assert (days(by_beat), days(late), days(by_hand)) == (1, 7, 90)
