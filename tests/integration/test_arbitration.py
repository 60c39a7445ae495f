"""A run of which a dead beat left in doubt whether it was sent, and which is too late by now.

Where workers ask the registers, the register decides: closed by beat, the run is judged by its instruction;
written by a worker, it was a run. The leader on a virtual clock and a real Redis, as in ``test_leader``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from celery.schedules import schedule

from celery_misfire import records
from celery_misfire.fire import task_id
from celery_misfire.misfire import Outcome, to_millis
from celery_misfire.records import Intent
from celery_misfire.sending.dispatch import Message
from celery_misfire.store import registers
from celery_misfire.store.port import Change
from celery_misfire.store.redis_store import RedisStore
from tests.integration.test_leader import MINUTE, SECOND, World
from tests.support.log_lines import one_by_one

LATE = 30 * SECOND


class PowerCut(BaseException):
    """Beat dies."""


@pytest.fixture
def world(redis_server: Any) -> World:
    return World(redis_server.url)


def die_while_sending(world: World) -> list[Message]:
    """Let beat die while it sends a run; return the message, which may have arrived or not."""
    sent: list[Message] = []

    def cut(message: Message) -> None:
        sent.append(message)
        raise PowerCut

    world.start()
    world.run(world.now + MINUTE - SECOND)
    world.refuses = cut
    with pytest.raises(PowerCut):
        world.run(world.now + 2 * SECOND)
    world.refuses = lambda _: None
    world.crash()
    return sent


def guard(world: World) -> None:
    assert world.store.watch("worker", 3600, 3600) is not None


def decisions(world: World, event: str) -> list[dict[str, Any]]:
    return [line for line in one_by_one(world.store.log()) if line["event"] == event]


def test_without_a_guard_it_is_sent_again(world: World) -> None:
    world.entry("tick", schedule(60), "do_nothing")
    [message] = die_while_sending(world)
    world.now += LATE
    world.start()
    world.run(world.now + SECOND)

    assert [m.task_id for m in world.sent] == [message.task_id]
    assert world.missed == []


def test_with_a_guard_it_is_judged_by_its_instruction(world: World) -> None:
    world.entry("tick", schedule(60), "do_nothing")
    [message] = die_while_sending(world)
    guard(world)
    world.now += LATE
    world.start()
    world.run(world.now + SECOND)

    assert world.sent == []
    [report] = world.missed
    assert report.missed.task_id == message.task_id
    # The message that did arrive finds its register closed.
    assert isinstance(world.store.register(message.task_id), registers.Missed)


def test_what_a_worker_has_started_was_a_run(world: World) -> None:
    world.entry("tick", schedule(60), "do_nothing")
    [message] = die_while_sending(world)
    guard(world)
    assert world.store.start(
        message.task_id, registers.StartRequest(registers.Started("nonce", "worker@test"), entry="tick")
    )[1]
    world.now += LATE
    world.start()
    world.run(world.now + SECOND)

    assert world.sent == []
    assert world.missed == []
    [line] = decisions(world, "sent")
    assert (line["id"], line["outcome"]) == (message.task_id, "fired")
    assert decisions(world, "misfire") == []
    assert not world.leader.record("tick").intents


def test_what_is_in_time_is_sent_again_all_the_same(world: World) -> None:
    world.entry("tick", schedule(60), "do_nothing")
    [message] = die_while_sending(world)
    guard(world)
    world.now += SECOND
    world.start()
    world.run(world.now + SECOND)

    assert [m.task_id for m in world.sent] == [message.task_id]


@pytest.mark.parametrize("instruction", ["ignore_misfire_policy", "fire_once_now"])
def test_what_is_to_run_late_is_sent_under_its_own_id_and_its_register_stays_open(
    world: World, instruction: str
) -> None:
    world.entry("tick", schedule(60), instruction)
    [message] = die_while_sending(world)
    guard(world)
    world.now += LATE
    world.start()
    world.run(world.now + SECOND)

    [again] = world.sent
    assert again.task_id == message.task_id
    assert again.intent.outcome == "recovered"
    assert world.store.register(message.task_id) is None


def test_a_beat_that_dies_after_closing_the_register_leaves_no_run_without_a_fate(world: World) -> None:
    world.entry("tick", schedule(60), "do_nothing")
    [message] = die_while_sending(world)
    # The register is closed and the commit never came; the workers are gone by now.
    world.store.settle([message.task_id], registers.Missed("failover"))
    world.now += LATE
    world.start()
    world.run(world.now + SECOND)

    assert world.sent == []
    assert [report.missed.task_id for report in world.missed] == [message.task_id]


@pytest.mark.parametrize("started", [(), (0,), (1,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("instruction", ["do_nothing", "fire_once_now", "ignore_misfire_policy"])
def test_of_several_each_has_one_fate(world: World, instruction: str, started: tuple[int, ...]) -> None:
    world.entry("tick", schedule(60), instruction)
    leader = world.start()
    record = leader.record("tick")
    first = record.state.next_fire_time
    times = [first, first + MINUTE, first + 2 * MINUTE]
    intents = tuple(Intent(t, record.generation, Outcome.FIRED, t) for t in times)
    state = replace(record.state, next_fire_time=times[-1] + MINUTE, previous_fire_time=times[-1])
    changed = replace(record, state=state, intents=intents)
    change = Change("tick", records.dumps(record), records.dumps(changed))
    assert not world.store.commit(world.lease.token, [change]).conflicts
    world.crash()
    guard(world)
    ids = [task_id("test", "tick", record.generation, t) for t in times]
    for n in started:
        world.store.start(
            ids[n], registers.StartRequest(registers.Started(str(n), "worker@test"), entry="tick")
        )
    world.now = times[-1] + LATE
    world.start()
    world.run(world.now + SECOND)

    fates: dict[str, set[str]] = {id_: set() for id_ in ids}
    for line in decisions(world, "sent"):
        fates[line["id"]].add("ran")
        if line["merged"]:
            later = [id_ for id_ in ids if id_ not in {x["id"] for x in decisions(world, "sent")}]
            assert len(later) == line["merged"]
            for id_ in later:
                fates[id_].add("merged")
    for report in world.missed:
        covered = range(to_millis(report.missed.first), to_millis(report.missed.last) + 1, MINUTE)
        assert len(covered) == report.missed.count
        assert report.missed.task_id == ids[times.index(covered[0])]
        for moment in covered:
            fates[ids[times.index(moment)]].add("missed")
    assert all(len(fate) == 1 for fate in fates.values()), fates
    for n in started:
        assert fates[ids[n]] == {"ran"}
    for id_, fate in fates.items():
        closed = isinstance(world.store.register(id_), registers.Missed)
        assert closed == (fate in ({"missed"}, {"merged"}))


def test_the_guard_is_forgotten_after_a_while(redis_server: Any) -> None:
    store = RedisStore(redis_server.url, "test")
    assert not store.is_guarded()
    store.watch("worker", ttl=60, guard_ttl=0)
    assert not store.is_guarded()
    store.watch("worker", ttl=60, guard_ttl=30)
    assert store.is_guarded()
    assert 0 < redis_server.client().pttl("celery-misfire:{test}:guard") <= 30_000
