"""Two beats on one state: one leads, the other stands by, and no change of roles loses or doubles anything.

What must hold is read from the broker. ``ignore_misfire_policy`` runs every occurrence, late or not, so one
that was not published is one that was lost.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from celery_misfire.leadership.decisions import LARGEST_BATCH
from celery_misfire.store.redis_store import RedisStore
from tests.support.outcomes import scheduled
from tests.support.processes import NAMESPACE, CeleryProcess, Message, Project, Tap, wait_for
from tests.support.redis_server import RedisServer

TTL, POLL = 3.0, 0.2
#: What a busy machine may add to a bound, in seconds.
TOLERANCE = 4.0
PERIOD = 1000


class Pair:
    """Beats ``a`` and ``b`` on an entry that fires every second."""

    def __init__(self, project: Project, server: RedisServer, **settings: Any) -> None:
        self.project, self.store, self.tap = project, RedisStore(server.url, NAMESPACE), Tap(server.url)
        self._client = server.client()
        self.messages: list[Message] = []
        every_second = {"type": "interval", "seconds": PERIOD / 1000}
        entries = {"tick": {"schedule": every_second, "misfire": "ignore_misfire_policy"}}
        project.configure(entries, **settings)

    def start(self) -> tuple[CeleryProcess, CeleryProcess]:
        """Start both, and return them when the first leads and the second has seen it alive for a while."""
        a = self.project.beat(name="a")
        self.wait_for_log("a", "beat: leading")
        b = self.project.beat(name="b")
        self.wait_for_log("b", "another beat leads")
        first = self.lease()
        wait_for(lambda: first != self.lease(), what="a renewal")
        self.wait_for_fires(2)
        return a, b

    def lease(self) -> str:
        return self._client.get(self.store.lease_key) or ""

    def wait_for_log(self, name: str, text: str, times: int = 1) -> None:
        wait_for(lambda: self.project.log(name).count(text) >= times, 60, what=f"{text!r} from {name}")

    def wait_for_fires(self, count: int, timeout: float = 60) -> None:
        """Wait until so many more messages have been published."""
        wanted = len(self.tap) + count
        wait_for(lambda: len(self.tap) >= wanted, timeout, what=f"{count} fires")

    def leads(self) -> list[dict[str, Any]]:
        """Return the log's lines about who took over, oldest first."""
        return [line for line in self.project.decisions() if line["event"] == "lead"]

    def check(self) -> Counter[int]:
        """Check that no occurrence is missing, early or off the grid; return how often each was published."""
        self.messages += self.tap.read()
        fires = Counter(scheduled(m) for m in self.messages)
        assert sorted(fires) == list(range(min(fires), max(fires) + 1, PERIOD))
        for message in self.messages:
            assert fire_time(message) >= scheduled(message)
        assert len({m.id for m in self.messages}) == len(fires)
        return fires


def fire_time(message: Message) -> float:
    """Return when a message was sent, in milliseconds UTC."""
    return datetime.fromisoformat(message.misfire["fire_time"]).timestamp() * 1000


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


@pytest.mark.takes(12)
@pytest.mark.parametrize(
    "seconds", [10, pytest.param(60, marks=[pytest.mark.long, pytest.mark.timeout(240)])]
)
def test_two_live_beats_publish_each_occurrence_once(
    project: Project, redis_server: RedisServer, seconds: int
) -> None:
    pair = Pair(project, redis_server, misfire_lease_ttl=10)
    a, b = pair.start()

    pair.wait_for_fires(seconds, timeout=seconds + 60)

    assert a.alive
    assert b.alive
    assert set(pair.check().values()) == {1}
    assert len(pair.leads()) == 1
    assert "beat: leading" not in project.log("b")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells that a process is dead")
def test_after_a_kill_of_the_leader_the_other_of_this_host_goes_on_at_once(
    project: Project, redis_server: RedisServer
) -> None:
    pair = Pair(project, redis_server, misfire_lease_ttl=3600, misfire_standby_poll=POLL)
    a, b = pair.start()

    a.kill()
    pair.wait_for_log("b", "beat: leading")
    pair.wait_for_fires(4)

    assert b.alive
    fires = pair.check()
    assert sum(fires.values()) - len(fires) <= 1
    assert [line["reason"] for line in pair.leads()] == ["scheduler_down", "failover"]


def test_a_beat_that_cannot_reach_its_broker_makes_way_for_one_that_can(
    project: Project, redis_server: RedisServer
) -> None:
    # Nobody listens on this port.
    nowhere = "redis://127.0.0.1:1/0"
    pair = Pair(project, redis_server, misfire_redis_url=redis_server.url, broker_url=nowhere)
    a = project.beat(name="a")
    pair.wait_for_log("a", "the broker failed")
    pair = Pair(project, redis_server)
    b = project.beat(name="b")
    pair.wait_for_log("b", "beat: leading")
    pair.wait_for_fires(4)

    assert "the lease is taken over" in project.log("b")
    assert a.alive
    assert b.alive
    # Nothing is lost of what came due meanwhile.
    assert set(pair.check().values()) == {1}
    assert [line["reason"] for line in pair.leads()] == ["scheduler_down", "failover"]


def test_after_a_kill_of_the_leader_on_another_host_the_other_goes_on_in_time_and_nothing_is_lost(
    project: Project, redis_server: RedisServer
) -> None:
    pair = Pair(project, redis_server, misfire_lease_ttl=TTL, misfire_standby_poll=POLL)
    a, b = pair.start()

    project.kill_elsewhere(a)
    killed = time.time()
    pair.wait_for_log("b", "beat: leading")
    pair.wait_for_fires(4)

    assert b.alive
    fires = pair.check()
    later = [m for m in pair.messages if fire_time(m) > killed * 1000]
    assert fire_time(later[0]) / 1000 - killed <= TTL + POLL + TOLERANCE
    # The one that was claimed and not acknowledged, if the kill hit it.
    assert sum(fires.values()) - len(fires) <= 1
    assert [line["reason"] for line in pair.leads()] == ["scheduler_down", "failover"]
    # A lease that was renewed until the kill cannot end sooner than the misfire threshold, half a second.
    misfires = [line for line in project.decisions() if line["event"] == "misfire"]
    assert "failover" in [line["reason"] for line in misfires]
    assert "(failover)" in project.log("b")


@pytest.mark.takes(16)
def test_a_frozen_leader_stands_by_when_it_wakes_up_and_can_lead_again(
    project: Project, redis_server: RedisServer
) -> None:
    pair = Pair(project, redis_server, misfire_lease_ttl=TTL, misfire_standby_poll=POLL)
    a, b = pair.start()

    a.freeze()
    pair.wait_for_log("b", "beat: leading")
    pair.wait_for_fires(3)
    assert "standing by" not in project.log("a")
    a.thaw()
    pair.wait_for_log("a", "standing by")
    pair.wait_for_fires(3)
    b.kill()
    pair.wait_for_log("a", "beat: leading", times=2)
    pair.wait_for_fires(3)

    assert a.alive
    assert len(pair.leads()) == 3
    fires = pair.check()
    # Each of the two that ended without a word may have left one claimed and not acknowledged.
    assert sum(fires.values()) - len(fires) <= 2


def test_the_late_commit_of_a_leader_frozen_in_a_burst_is_refused(
    project: Project, redis_server: RedisServer
) -> None:
    # Where messages and state share a database, no batch is ever sent in part.
    messages_at = f"{redis_server.url.removesuffix('/0')}/1"
    apart = {"broker_url": messages_at, "misfire_redis_url": redis_server.url}
    project.make_state()
    once_an_hour = {"type": "simple", "start": time.time(), "interval": 3600}
    entry = {"schedule": once_an_hour, "misfire": "ignore_misfire_policy"}
    project.configure({f"{i:03}": entry for i in range(600)}, misfire_lease_ttl=TTL, **apart)
    tap = Tap(messages_at)
    start_a, start_b = project.beat_at_gate("a"), project.beat_at_gate("b")

    def acknowledged() -> Counter[str]:
        return Counter(line["id"] for line in project.decisions() if line["event"] == "sent")

    a = start_a()
    wait_for(lambda: len(tap) > 10, 60, every=0.002, what="the burst")
    a.freeze()
    while len(tap) == acknowledged().total():
        # Between two batches; what is asked for here is a batch that was sent in part.
        assert len(tap) < 600
        a.thaw()
        time.sleep(0.02)
        a.freeze()
    start_b()
    wait_for(lambda: len(acknowledged()) == 600, 60, what="the rest of the burst, from b")
    before = len(tap)
    a.thaw()
    wait_for(lambda: "beat: the lease is lost; standing by" in project.log("a"), 30, what="a to stand by")

    assert a.alive
    # What was in flight: the rest of one batch, which goes in one pipeline.
    assert len(tap) - before <= LARGEST_BATCH
    assert set(acknowledged().values()) == {1}
    copies = Counter(m.id for m in tap.read())
    assert len(copies) == 600
    assert 1 <= copies.total() - len(copies) <= LARGEST_BATCH + 1


def test_the_late_script_of_a_leader_frozen_in_a_burst_pushes_nothing(
    project: Project, redis_server: RedisServer
) -> None:
    project.make_state()
    once_an_hour = {"type": "simple", "start": time.time(), "interval": 3600}
    entry = {"schedule": once_an_hour, "misfire": "ignore_misfire_policy"}
    project.configure({f"{i:03}": entry for i in range(600)}, misfire_lease_ttl=TTL)
    tap = Tap(redis_server.url)
    start_a, start_b = project.beat_at_gate("a"), project.beat_at_gate("b")
    a = start_a()
    wait_for(lambda: len(tap) > 10, 60, every=0.002, what="the burst")
    a.freeze()
    start_b()
    wait_for(lambda: len(tap) >= 600, 60, what="the rest of the burst, from b")
    a.thaw()
    wait_for(lambda: "standing by" in project.log("a"), 30, what="a to stand by")
    assert a.alive
    sent = [line["id"] for line in project.decisions() if line["event"] == "sent"]
    messages = [message.id for message in tap.read()]
    assert len(messages) == len(set(messages)) == 600
    assert sorted(messages) == sorted(sent)


def test_a_clean_stop_of_the_leader_hands_over_within_one_poll(
    project: Project, redis_server: RedisServer
) -> None:
    poll = 0.5
    pair = Pair(
        project, redis_server, misfire_lease_ttl=60, misfire_lease_renew=0.5, misfire_standby_poll=poll
    )
    a, b = pair.start()

    a.signal(signal.SIGTERM)
    wait_for(lambda: not a.alive, what="the end of a")
    stopped = time.time()
    pair.wait_for_log("b", "beat: leading")
    pair.wait_for_fires(3)

    assert a.exit_code == 0
    assert b.alive
    assert pair.leads()[-1]["now"] / 1000 - stopped <= poll + TOLERANCE
    assert set(pair.check().values()) == {1}
