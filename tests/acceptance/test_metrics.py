"""Prometheus reads a real beat and a real worker, and finds what Redis has counted."""

from __future__ import annotations

import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_misfire.store.redis_store import RedisStore
from tests.support.metrics import free_port, scrape, values
from tests.support.processes import NAMESPACE, Project, published, wait_for
from tests.support.redis_server import RedisServer
from tests.support.shop import Shop

INSTRUCTIONS = {
    "every": "ignore_misfire_policy",
    "merging": "fire_now",
    "strict": "reschedule_next_with_remaining_count",
    "smart": "smart_policy",
}
RUNS = 14


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


def counted(url: str, since: float) -> Counter[tuple[str, str]]:
    """Return what Redis has counted; it counts runs in time for all entries together, under ''."""
    return Counter(RedisStore(url, NAMESPACE).counts_since(since))


def of_metrics(port: int) -> Counter[tuple[str, str]]:
    """Return the same of a beat."""
    found: Counter[tuple[str, str]] = Counter()
    for (entry, outcome), count in values(scrape(port), "occurrences_total").items():
        found["" if outcome == "fired" else entry, outcome] += round(count)
    return +found


@pytest.mark.takes(25)
def test_what_prometheus_reads_after_an_outage_is_what_redis_has_counted(project: Project) -> None:
    begin = time.time()
    port, first = free_port(), begin + 3
    schedule = {"type": "simple", "start": first, "interval": 1, "repeat_count": RUNS - 1}
    entries = {
        name: {"schedule": schedule, "misfire": {"instruction": instruction, "threshold": 1}}
        for name, instruction in INSTRUCTIONS.items()
    }
    project.configure(entries, misfire_metrics_port=port)
    beat = project.leading_beat()
    wait_for(lambda: sum(counted(project.url, begin).values()) >= 8, what="runs")
    before = scrape(port)
    assert values(before, "leader") == values(before, "store_up") == values(before, "broker_up") == {(): 1}
    assert 0 < values(before, "lease_remaining_seconds")[()] <= 2
    assert values(before, "occurrences_total", outcome="missed") == dict.fromkeys(
        ((name,) for name in INSTRUCTIONS), 0
    )
    assert values(before, "leadership_changes_total") == {("scheduler_down",): 1}
    assert set(values(before, "next_fire_timestamp_seconds")) == {(name,) for name in INSTRUCTIONS}
    assert min(values(before, "next_fire_timestamp_seconds").values()) > begin
    beat.kill()
    of_the_first = counted(project.url, begin)

    wait_for(lambda: time.time() > first + 9, what="the end of the outage")
    project.leading_beat()

    def is_over() -> bool:
        records = [project.state(name) for name in INSTRUCTIONS]
        return all(r is not None and r.settled and r.state.next_fire_time is None for r in records)

    wait_for(is_over, 60, what="the last runs")
    found, since_then = of_metrics(port), counted(project.url, begin) - of_the_first
    assert found == since_then
    assert {outcome for _, outcome in found} == {"fired", "recovered", "merged", "missed"}

    after = scrape(port)
    missed = {entry: n for (entry, outcome), n in found.items() if outcome == "missed"}
    assert values(after, "missed_total", reason="scheduler_down") == {(e,): n for e, n in missed.items()}
    runs = sum(n for (_, outcome), n in found.items() if outcome in ("fired", "recovered"))
    assert values(after, "lateness_seconds_count") == {("beat",): runs}
    # Those of the outage were late by seconds, but for the last ones before its end.
    late = runs - values(after, "lateness_seconds_bucket", stage="beat")[("1.0",)]
    recovered = sum(n for (_, outcome), n in found.items() if outcome == "recovered")
    assert recovered - len(INSTRUCTIONS) <= late <= recovered
    assert values(after, "catch_up_pending") == values(after, "overdue_entries") == {(): 0}
    assert values(after, "next_fire_timestamp_seconds") == {}
    assert values(after, "tick_seconds_count")[()] > 1


@pytest.mark.takes(6)
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_prometheus_reads_a_worker_with_what_its_children_do(project: Project, pool: str) -> None:
    shop, port = Shop(project, project.url), free_port()
    project.configure({}, misfire_metrics_port=port)
    shop.worker = project.worker("--concurrency=2", "--max-tasks-per-child=2", pool=pool)
    for number in range(5):
        # The pool may take five seconds to replace a child, which must not be too late for them.
        shop.send(f"tick {number}", instruction="ignore_misfire_policy")
    shop.send("slow", late=40, instruction="smart_policy")
    shop.send("strict", late=60)
    for _ in range(3):
        shop.send("twice", scheduled=1_700_000_000, instruction="ignore_misfire_policy")
    shop.wait_until_done()

    def found(name: str, **labels: str) -> dict[tuple[str, ...], float]:
        return values(scrape(port), name, **labels)

    # What a child tells arrives a little later.
    wait_for(lambda: found("lateness_seconds_count", stage="worker").get(()) == 7, what="the runs")
    wait_for(lambda: found("duplicates_dropped_total") == {(): 2}, what="the second messages")
    assert found("missed_total") == {("strict", "queue_late"): 1}
    in_time = found("lateness_seconds_bucket", stage="worker")
    assert (in_time[("30.0",)], in_time[("60.0",)], in_time[("+Inf",)]) == (5, 6, 7)
    assert found("store_up") == {(): 1}
    assert found("leader") == {}


@pytest.mark.takes(8)
def test_a_beat_that_stands_by_says_so_and_nothing_of_entries(project: Project) -> None:
    ports = {"leads": free_port(), "waits": free_port()}
    entries = {"tick": {"schedule": {"type": "interval", "seconds": 1}}}
    for name, port in ports.items():
        project.configure(entries, misfire_metrics_port=port)
        if name == "leads":
            project.leading_beat(name)
        else:
            project.beat(name=name)
    wait_for(lambda: "standing by" in project.log("waits"), 60, what="the standby")
    families = scrape(ports["waits"])
    assert values(families, "leader") == {(): 0}
    assert values(families, "store_up") == {(): 1}
    for name in ("broker_up", "overdue_entries", "next_fire_timestamp_seconds", "occurrences_total"):
        assert values(families, name) == {}, name
    assert values(scrape(ports["leads"]), "leader") == {(): 1}


def test_a_port_that_is_taken_is_one_line_and_beat_goes_on(project: Project) -> None:
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        entries = {"tick": {"schedule": {"type": "interval", "seconds": 1}}}
        project.configure(entries, misfire_metrics_port=port)
        beat = project.leading_beat()
        wait_for(lambda: published(project.url), what="a run")
        assert beat.alive
    lines = [line for line in project.log().splitlines() if re.search(r": (ERROR|CRITICAL)/", line)]
    assert len(lines) == 1
    assert f"misfire_metrics_port: port {port} cannot be had (Address already in use)" in lines[0]


def test_redis_that_is_away_is_told(project: Project, redis_server: RedisServer) -> None:
    port = free_port()
    project.configure({"tick": {"schedule": {"type": "interval", "seconds": 60}}}, misfire_metrics_port=port)
    project.leading_beat()
    redis_server.stop()

    def up() -> dict[Any, float]:
        return values(scrape(port), "store_up") | values(scrape(port), "leader")

    wait_for(lambda: set(up().values()) == {0}, 60, what="the trouble to be seen")
