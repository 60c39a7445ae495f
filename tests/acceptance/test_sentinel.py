"""A failover of the Redis that holds the state, made by real sentinels, under two real beats.

The broker is another Redis, which stays; from there is read what was sent.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.outcomes import assert_each_ended_once, of_entry, outcomes, scheduled, settle
from tests.support.processes import CeleryProcess, Message, Project, Tap, wait_for
from tests.support.redis_server import Failover, RedisServer

EVERY_SECOND = {"type": "interval", "seconds": 1}
#: The first loses no occurrence to a misfire, the second runs none of them late.
ENTRIES = {
    "reports": {
        "schedule": EVERY_SECOND,
        "misfire": {"instruction": "ignore_misfire_policy", "threshold": 2},
    },
    "stocks": {"schedule": EVERY_SECOND, "misfire": {"threshold": 2}},
}
NEW_STATE = "every schedule is planned from now"


class Site:
    """Two beats on a state behind sentinels: ``a`` leads, ``b`` stands by."""

    def __init__(self, project: Project, state: Failover, broker: RedisServer) -> None:
        self.project, self.state = project, state
        self.tap = Tap(broker.url)
        self.messages: list[Message] = []
        urls = {"broker_url": broker.url, "result_backend": broker.url, "misfire_redis_url": state.url}
        self._settings = urls | {"misfire_lease_renew": 0.5}

    def start(self, ttl: float) -> tuple[CeleryProcess, CeleryProcess]:
        """Start both, and return them when all is well.

        :param ttl: of the lease; one that is longer than the failover leaves the leader to itself.
        """
        self.project.configure(ENTRIES, **self._settings, misfire_lease_ttl=ttl)
        a = self.project.leading_beat("a")
        b = self.project.beat(name="b")
        wait_for(lambda: "another beat leads" in self.project.log("b"), 60, what="b to stand by")
        self.wait_until_in_time()
        return a, b

    def wait_until_in_time(self) -> None:
        """Wait until both entries run in time (again)."""
        now = time.time() * 1000

        def in_time() -> bool:
            self.messages += self.tap.read()
            fired = [m for m in self.messages if m.misfire["outcome"] == "fired" and scheduled(m) > now]
            return all(of_entry(fired, entry) for entry in ENTRIES)

        wait_for(in_time, 60, what="runs in time")

    def wait_for_a_quiet_moment(self) -> None:
        """Return between two seconds of the schedule, when all that was sent has been acknowledged."""
        self.wait_until_in_time()
        settle(self.project, *ENTRIES)
        self.state.wait_until_in_sync()

    def check(self) -> None:
        """Check that each occurrence of this state was published or missed, and none was both."""
        settle(self.project, *ENTRIES)
        self.messages += self.tap.read()
        decisions = self.project.decisions()
        for entry, allowed in (("reports", {"fired", "recovered"}), ("stocks", {"fired", "missed"})):
            record = self.project.state(entry)
            found = outcomes(self.messages, decisions, entry, 1000)
            until = record.state.next_fire_time
            found = {when: what for when, what in found.items() if record.generation < when < until}
            assert_each_ended_once(found, range(record.generation + 1000, until, 1000))
            assert {kind for ended in found.values() for kind, _ in ended} <= allowed

    def warnings(self, name: str) -> list[str]:
        log = self.project.log(name)
        return [line for line in log.splitlines() if re.search(r": (WARNING|ERROR|CRITICAL)/", line)]

    def told(self, name: str, text: str) -> int:
        return sum(text in line for line in self.warnings(name))


@pytest.fixture
def site(tmp_path: Path, redis_binary: Path, redis_server: RedisServer) -> Iterator[Site]:
    with Failover(redis_binary) as state, Project(tmp_path, state.url) as project:
        yield Site(project, state, redis_server)


@pytest.mark.takes(11)
def test_when_master_and_leader_die_the_other_beat_takes_over_from_the_replica_without_loss(site: Site):
    a, b = site.start(ttl=5)
    site.wait_for_a_quiet_moment()
    a.kill()
    site.state.fail_over()
    site.wait_until_in_time()
    b.stop()
    site.check()
    assert [line["reason"] for line in site.project.terms()] == ["scheduler_down", "failover"]
    assert site.told("b", NEW_STATE) == 0
    assert "Traceback" not in site.project.log("b")


@pytest.mark.long
def test_a_failover_to_a_replica_in_sync_leaves_the_leader_in_its_place_and_loses_nothing(site: Site):
    a, b = site.start(ttl=15)
    site.wait_for_a_quiet_moment()
    site.state.fail_over()
    site.wait_until_in_time()
    assert "beat: leading" not in site.project.log("b")
    a.stop()
    b.stop()
    site.check()
    assert site.project.log("a").count(NEW_STATE) == 1
    for name in "ab":
        assert site.told(name, "MasterNotFoundError") + site.told(name, "ConnectionError") <= 2
        assert "Traceback" not in site.project.log(name)


@pytest.mark.takes(11)
def test_a_promoted_replica_that_is_empty_is_a_cold_start_with_one_warning_and_no_burst(site: Site):
    a, b = site.start(ttl=5)
    site.wait_for_a_quiet_moment()
    site.state.stop_replication()
    with site.state.replica.client() as replica:
        replica.config_set("replica-read-only", "no")
        replica.flushall()
    # With its leader, the state is gone for good.
    a.kill()
    site.state.fail_over()
    site.messages += site.tap.read()
    before = {m.id for m in site.messages}
    site.wait_until_in_time()
    assert b.alive
    since = site.project.terms()[-1]["now"]
    after = [m for m in site.messages if m.id not in before]
    assert {m.misfire["outcome"] for m in after} == {"fired"}
    assert min(map(scheduled, after)) > since
    assert site.told("b", NEW_STATE) == 1
    assert {line["event"] for line in site.project.decisions()} <= {"lead", "sent"}
    b.stop()
    site.check()


@pytest.mark.long
def test_a_promoted_replica_that_lags_behind_is_brought_up_to_date_by_the_leader(site: Site):
    a, b = site.start(ttl=15)
    site.wait_for_a_quiet_moment()
    site.state.stop_replication()
    cut = time.time() * 1000
    site.wait_until_in_time()
    site.wait_until_in_time()
    sent = {m.id for m in site.messages if scheduled(m) > cut}
    assert sent
    site.state.fail_over()
    site.wait_until_in_time()
    assert a.alive
    # It may begin a new term: the lease of the replica has had fewer renewals than it knows of.
    assert "beat: leading" not in site.project.log("b")
    assert site.told("a", "went back in time") == 1
    # From outside: what was sent before the failover, and is unknown to the replica, is not sent again.
    counts: dict[str, int] = {}
    for message in site.messages:
        counts[message.id] = counts.get(message.id, 0) + 1
    assert {id_: counts[id_] for id_ in sent if counts[id_] > 1} == {}
    a.stop()
    b.stop()
    site.check()
