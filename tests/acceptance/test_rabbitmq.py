"""Beat sends to RabbitMQ, its store is a Redis, and each of the three fails in turn.

What became of each occurrence is told by the messages in the queue and the store's log.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_crash import TWO, Burst
from tests.acceptance.test_store_trouble import REPORTS_AND_STOCKS
from tests.support.outcomes import assert_each_ended_once, of_entry, outcomes, scheduled, settle
from tests.support.processes import Message, Project, wait_for, warnings
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ, RabbitTap
from tests.support.redis_server import RedisServer

EVERY_SECOND = {"type": "interval", "seconds": 1}


@pytest.fixture
def store(redis_binary: Path) -> Iterator[RedisServer]:
    """A Redis that keeps what it was told, killed or not."""
    with RedisServer(redis_binary, append_only="always") as server:
        yield server


@pytest.fixture
def project(tmp_path: Path, store: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, store.url) as project:
        yield project


@pytest.fixture
def proxy(rabbitmq_server: RabbitMQ) -> Iterator[Proxy]:
    with Proxy(rabbitmq_server.port) as proxy:
        yield proxy


def wait_for_time(server: RabbitMQ) -> None:
    """Wait until both entries run in time (again)."""
    now = time.time() * 1000

    def in_time() -> bool:
        fired = [m for m in server.published() if m.misfire["outcome"] == "fired" and scheduled(m) > now]
        return all(of_entry(fired, entry) for entry in REPORTS_AND_STOCKS)

    wait_for(in_time, 60, every=0.2, what="runs in time")


def assert_nothing_lost(project: Project, messages: list[Message], entries: Any = REPORTS_AND_STOCKS) -> None:
    """Assert that each occurrence was published or missed, and never both."""
    decisions = project.decisions()
    for entry in entries:
        state = project.state(entry)
        found = outcomes(messages, decisions, entry, 1000)
        assert_each_ended_once(found, range(state.generation + 1000, state.state.next_fire_time, 1000))


def broker_warnings(project: Project) -> list[str]:
    return [line for line in warnings(project.log()) if "beat: the broker" in line]


def reasons(project: Project) -> set[str]:
    """Return why runs were late or missed."""
    return {d["reason"] for d in project.decisions() if d["event"] in ("misfire", "missed")}


# -- restarts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        "unreachable",
        pytest.param("killed", marks=pytest.mark.long),
        pytest.param("restarted", marks=pytest.mark.long),
        pytest.param("frozen", marks=pytest.mark.long),
    ],
)
def test_a_rabbitmq_and_then_a_store_that_are_away_for_a_while_cost_no_run(
    project: Project, store: RedisServer, rabbitmq_server: RabbitMQ, proxy: Proxy, trouble: str
) -> None:
    project.configure(REPORTS_AND_STOCKS, broker_url=proxy.amqp_url)
    beat = project.leading_beat()
    wait_for_time(rabbitmq_server)
    assert broker_warnings(project) == []

    match trouble:
        case "unreachable":
            proxy.refusing = True
            proxy.cut()
            time.sleep(3)
            proxy.refusing = False
        case "killed":
            rabbitmq_server.kill()
            time.sleep(3)
            rabbitmq_server.start()
        case "restarted":
            rabbitmq_server.restart()
        case "frozen":
            rabbitmq_server.freeze()
            time.sleep(20)
            rabbitmq_server.thaw()
    wait_for_time(rabbitmq_server)
    settle(project, *REPORTS_AND_STOCKS)
    assert reasons(project) == {"broker_unavailable"}
    (warning,) = broker_warnings(project)
    assert "the broker failed, nothing is sent until it is back. amqp://127.0.0.1:" in warning
    assert project.log().count("the broker is there again") == 1
    # It has led all the time.
    assert len(project.terms()) == 1

    store.kill()
    time.sleep(3)
    store.start()
    wait_for_time(rabbitmq_server)
    assert beat.alive
    settle(project, *REPORTS_AND_STOCKS)
    beat.stop()
    messages = rabbitmq_server.drain()
    assert_nothing_lost(project, messages)
    assert {m.misfire["outcome"] for m in of_entry(messages, "reports")} == {"fired", "recovered"}
    assert "Traceback" not in project.log()


@pytest.mark.long
def test_a_rabbitmq_that_was_restarted_while_beat_was_idle_gets_the_next_run_in_time_and_once(
    project: Project, rabbitmq_server: RabbitMQ
) -> None:
    start = round(time.time()) + 5
    entries = {"rare": {"schedule": {"type": "simple", "start": start, "interval": 30}}}
    project.configure(entries, broker_url=rabbitmq_server.url)
    beat = project.leading_beat()
    wait_for(rabbitmq_server.published, 30)
    rabbitmq_server.restart()
    assert time.time() < start + 30, "too slow a machine for this test"
    first, second = wait_for(lambda: len(m := rabbitmq_server.published()) == 2 and m, 60, every=0.2)
    beat.stop()
    assert [scheduled(first), scheduled(second)] == [start * 1000, (start + 30) * 1000]
    assert {m.misfire["outcome"] for m in (first, second)} == {"fired"}
    assert broker_warnings(project) == []


# -- beat is killed ----------------------------------------------------------------------------------------


class RabbitBurst(Burst):
    """500 entries that are due at once, sent to RabbitMQ."""

    def __init__(self, project: Project, store: RedisServer, server: RabbitMQ) -> None:
        quick = {"misfire_lease_ttl": 1.2, "misfire_lease_renew": 0.3, "misfire_standby_poll": 0.1}
        super().__init__(project, store, TWO, broker_url=server.url, **quick)
        self.tap = RabbitTap(server)  # type: ignore[assignment] # it is used as one


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_after_kills_in_a_burst_every_occurrence_has_exactly_one_fate(
    project: Project, store: RedisServer, rabbitmq_server: RabbitMQ, kills: int
) -> None:
    burst = RabbitBurst(project, store, rabbitmq_server)
    in_the_middle = 0
    start_beat = project.beat_at_gate()
    for number in range(1, kills + 1):
        beat = start_beat()
        start_beat = project.beat_at_gate(wait=False)
        burst.wait_for_messages(random.randint(1, 150))
        match number % 10:
            case 5:
                rabbitmq_server.restart()
                burst.wait_for_messages(1)
            case 0:
                store.kill()
                store.start()
                burst.wait_for_messages(1)
        assert beat.alive
        beat.kill()
        in_the_middle += burst.unpublished() > 0
    beat = start_beat()
    until = burst.wait_until_settled()
    beat.stop()

    counts = burst.check(until)
    assert in_the_middle >= kills // 2
    assert all(counts[fate] for fate in ("fired", "recovered", "merged", "missed"))


# -- what gets lost on the way -----------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_whose_confirmation_was_lost_is_sent_again_under_the_same_id(
    project: Project, rabbitmq_server: RabbitMQ, proxy: Proxy
) -> None:
    tick = {"schedule": EVERY_SECOND, "misfire": {"threshold": 30}}
    project.configure({"tick": tick}, broker_url=proxy.amqp_url)
    beat = project.leading_beat()
    wait_for(lambda: len(rabbitmq_server.published()) >= 2)
    proxy.swallow("to_client")
    wait_for(lambda: "the broker failed" in project.log())
    proxy.heal()
    now = time.time() * 1000
    wait_for(lambda: [m for m in rabbitmq_server.published() if scheduled(m) > now])
    settle(project, "tick")
    beat.stop()
    messages = rabbitmq_server.drain()
    assert_nothing_lost(project, messages, ["tick"])
    again = [m for m in messages if [other.id for other in messages].count(m.id) > 1]
    assert len(again) == 2
    assert len({m.misfire["nonce"] for m in again}) == 2
    assert len(project.terms()) == 1
    (warning,) = broker_warnings(project)
    assert "TimeoutError" in warning


# -- what is wrong with one entry --------------------------------------------------------------------------


def test_an_entry_that_cannot_be_sent_leaves_the_others_alone(
    project: Project, rabbitmq_server: RabbitMQ
) -> None:
    rabbitmq_server.declare("other arguments", **{"x-max-length": 7})
    bad = {
        "arguments": {"unserialisable": True},
        "queue": {"options": {"queue": "other arguments"}},
        "exchange": {"options": {"exchange": "nowhere", "routing_key": "x"}},
        "unroutable": {"options": {"exchange": "amq.fanout", "routing_key": "x"}},
        "priority": {"options": {"priority": "high"}},
    }
    entries = {name: {"schedule": EVERY_SECOND, "misfire": {"threshold": 2}, **e} for name, e in bad.items()}
    project.configure({**entries, "good": {"schedule": EVERY_SECOND}}, broker_url=rabbitmq_server.url)
    beat = project.leading_beat()
    wait_for(lambda: len(rabbitmq_server.published()) >= 4, every=0.2)
    wait_for(lambda: {d["entry"] for d in project.decisions() if d["event"] == "missed"} >= set(bad), 60)
    settle(project, "good")
    beat.stop()
    messages = rabbitmq_server.drain()
    assert {m.misfire["entry"] for m in messages} == {"good"}
    assert_nothing_lost(project, messages, ["good"])
    assert {m.misfire["outcome"] for m in messages} == {"fired"}
    assert "the broker failed" not in project.log()
    refused = {d["entry"] for d in project.decisions() if d["event"] == "refused"}
    assert refused == set(bad)
    for name, kind in (
        ("arguments", "EncodeError"),
        ("queue", "PreconditionFailed"),
        ("exchange", "NotFound"),
    ):
        assert f"entry {name!r} cannot be sent and is tried again: PublishRejected: {kind}" in project.log()
