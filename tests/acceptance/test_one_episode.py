"""Broker, store or beat is away for a while: each entry has one misfire, and one late run or one record.

Entries of all nine instructions, with the worker side installed. What became of each occurrence is told by
the log of the store, and by what the worker has started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from celery_misfire.misfire import MisfireInstruction
from tests.support.outcomes import settle
from tests.support.processes import Project, wait_for
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer

#: Seconds between two fire times, and how late a run may be.
EVERY, THRESHOLD = 4, 2

ENTRIES = {
    str(instruction): {
        "schedule": {"type": "interval", "seconds": EVERY},
        "misfire": {"instruction": str(instruction), "threshold": THRESHOLD},
    }
    for instruction in MisfireInstruction
}
RUNS_ALL = {"ignore_misfire_policy"}
RUNS_ONE = {
    "fire_once_now",
    "fire_now",
    "reschedule_now_with_existing_repeat_count",
    "reschedule_now_with_remaining_repeat_count",
}


Outage = Callable[[float], None]


def frozen(*processes: Any) -> Outage:
    def take_away(seconds: float) -> None:
        for process in processes:
            process.freeze()
        time.sleep(seconds)
        for process in processes:
            process.thaw()

    return take_away


def killed(server: RedisServer) -> Outage:
    def take_away(seconds: float) -> None:
        server.kill()
        time.sleep(seconds)
        server.start()

    return take_away


def cut_off(proxy: Proxy) -> Outage:
    def take_away(seconds: float) -> None:
        proxy.refusing = True
        proxy.cut()
        time.sleep(seconds)
        proxy.refusing = False

    return take_away


@dataclass
class Place:
    """Where beat and the worker are at work, and what a test may take away from them."""

    project: Project
    take_away: Outage


@contextmanager
def at_work(
    directory: Path, redis_binary: Path, request: pytest.FixtureRequest, what: str
) -> Iterator[Place]:
    """Start all that is needed, and beat and a worker with it.

    :param what: what is to be taken away.
    """
    with ExitStack() as stack:
        store = stack.enter_context(RedisServer(redis_binary, append_only="always"))
        broker, outage = store, frozen(store)
        broker_url = store.url
        match what:
            case "Redis is killed":
                outage = killed(store)
            case "the broker, another Redis, is frozen":
                broker = stack.enter_context(RedisServer(redis_binary))
                broker_url, outage = broker.url, frozen(broker)
            case "RabbitMQ is frozen" | "RabbitMQ is cut off" | "the store is frozen":
                rabbit = request.getfixturevalue("rabbitmq_server")
                proxy = stack.enter_context(Proxy(rabbit.port))
                broker_url = proxy.amqp_url
                if "RabbitMQ" in what:
                    outage = frozen(rabbit) if what == "RabbitMQ is frozen" else cut_off(proxy)
        project = stack.enter_context(Project(directory, store.url))
        lease = {"misfire_lease_ttl": 30, "misfire_lease_renew": 10}
        project.configure(ENTRIES, broker_url=broker_url, misfire_redis_url=store.url, **lease)
        project.worker()
        beat = project.leading_beat()
        wait_for_time(project)
        yield Place(project, frozen(beat) if what == "beat is frozen" else outage)


def wait_for_time(project: Project) -> None:
    """Wait until the worker runs all entries in time (again); it finds a broker later than beat does."""
    now = time.time() * 1000

    def in_time() -> bool:
        sent = {d["id"]: d for d in project.decisions() if d["event"] == "sent" and d["scheduled"] > now}
        started = [sent[r["task_id"]] for r in project.records() if r["task_id"] in sent]
        return {d["entry"] for d in started if d["outcome"] == "fired"} == ENTRIES.keys()

    wait_for(in_time, 90, every=0.3, what="runs in time")


def assert_one_episode(project: Project, since: float) -> None:
    """Assert that each entry had one misfire since then, and what its instruction makes of that."""
    decisions = [d for d in project.decisions() if d.get("entry") in ENTRIES]
    for entry in ENTRIES:
        told = [d for d in decisions if d["entry"] == entry]
        new = [d for d in told if d.get("now", d.get("fire_time", 0)) > since]
        misfires = [d for d in new if d["event"] == "misfire"]
        assert len(misfires) == 1, (entry, new)
        [misfire] = misfires
        # A worker that finds the broker later than beat does may give up what was sent in time since.
        of_outage = [d for d in new if d.get("first", d.get("scheduled", 0)) <= misfire["now"]]
        missed = [d for d in of_outage if d["event"] == "missed"]
        late = [d for d in of_outage if d["event"] == "sent" and d["outcome"] == "recovered"]
        if entry in RUNS_ALL:
            assert (len(late), missed) == (misfire["count"], []), (entry, new)
        elif entry in RUNS_ONE:
            assert (len(late), missed) == (1, []), (entry, new)
            assert late[0]["merged"] == misfire["count"] - 1, (entry, new)
        else:
            assert (late, len(missed)) == ([], 1), (entry, new)
            assert missed[0]["count"] == misfire["count"], (entry, new)
            assert missed[0]["reason"] == misfire["reason"], (entry, new)


def wait_for_quiet(project: Project) -> None:
    """Wait until all runs that were due are under way: a message that no worker has is late on its own."""
    times = [project.state(entry).state.next_fire_time for entry in ENTRIES]
    period, pause = EVERY * 1000, 500
    wait_for(
        lambda: all((t - time.time() * 1000) % period < period - pause for t in times),
        what="a pause between the runs",
    )


def outages(
    directory: Path, redis_binary: Path, request: pytest.FixtureRequest, what: str, lengths: Sequence[float]
) -> None:
    with at_work(directory, redis_binary, request, what) as place:
        for seconds in lengths:
            wait_for_quiet(place.project)
            since = time.time() * 1000
            place.take_away(seconds)
            wait_for_time(place.project)
            settle(place.project, *ENTRIES)
            assert_one_episode(place.project, since)
        told = {d["reason"] for d in place.project.decisions() if d["event"] == "misfire"}
        assert ("scheduler_down" in told) == (what == "beat is frozen"), told


@pytest.mark.takes(45)
@pytest.mark.parametrize("what", ["Redis is frozen", "RabbitMQ is frozen", "beat is frozen"])
def test_an_outage_is_one_episode_whatever_the_instruction(
    tmp_path: Path, redis_binary: Path, request: pytest.FixtureRequest, what: str
) -> None:
    outages(tmp_path, redis_binary, request, what, [11])


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "what",
    [
        "Redis is frozen",
        "Redis is killed",
        "the broker, another Redis, is frozen",
        "RabbitMQ is frozen",
        "RabbitMQ is cut off",
        "the store is frozen",
        "beat is frozen",
    ],
)
def test_each_of_twenty_outages_is_one_episode(
    tmp_path: Path, redis_binary: Path, request: pytest.FixtureRequest, what: str
) -> None:
    outages(tmp_path, redis_binary, request, what, [10 + 0.7 * n for n in range(20)])
