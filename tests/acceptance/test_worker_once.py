"""One occurrence, one run: what a dying beat sends twice runs once, what a dying worker held runs again."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from celery_misfire import records
from celery_misfire.misfire import to_millis
from celery_misfire.store.redis_store import RedisStore
from tests.support.fires import Fires
from tests.support.processes import NAMESPACE, CeleryProcess, Project, Tap, wait_for
from tests.support.rabbitmq import RabbitMQ
from tests.support.redis_server import RedisServer

QUICK = {"misfire_lease_ttl": 1.2, "misfire_lease_renew": 0.3, "misfire_standby_poll": 0.1}


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get("MISFIRE_TEST_SEED") or random.SystemRandom().randrange(10**6))
    print(f"MISFIRE_TEST_SEED={seed}")
    return random.Random(seed)


def wait_until_idle(server: RedisServer, timeout: float = 60) -> None:
    """Wait until every message has been taken and acknowledged."""
    client = server.client()
    wait_for(lambda: not client.llen("celery") and not client.hlen("unacked"), timeout, what="an idle worker")


def wait_until_settled(server: RedisServer, entries: int) -> None:
    """Wait until, at one moment, every decision of beat has been carried out."""
    store = RedisStore(server.url, NAMESPACE)

    def is_settled() -> bool:
        found = [records.loads(text) for text in store.load().values()]
        return len(found) == entries and all(record.settled for record in found)

    wait_for(is_settled, 60, what="beat to have nothing left to do")


def test_what_beat_sent_twice_because_it_was_killed_runs_once(
    project: Project, redis_server: RedisServer
) -> None:
    project.make_state()
    period = 600
    start = round(time.time()) - 9 * period
    grid = {"type": "simple", "start": start, "interval": period, "repeat_count": 9}
    names = [f"entry {n:02}" for n in range(60)]
    entry = {"schedule": grid, "misfire": "ignore_misfire_policy"}
    # Where messages and state share a database, none is sent twice.
    messages_at = f"{redis_server.url.removesuffix('/0')}/1"
    apart = {"broker_url": messages_at, "misfire_redis_url": redis_server.url}
    project.configure({name: {**entry, "args": [name]} for name in names}, **QUICK, **apart)
    tap = Tap(messages_at)
    for _ in range(5):
        # A beat that dies does not give its lease up.
        beat = project.beat(env={"MISFIRE_TEST_DIES": "1"})
        wait_for(
            lambda beat=beat: not beat.alive, 60, what="beat to die with a batch claimed and not acknowledged"
        )
    project.beat()
    wait_until_settled(redis_server, len(names))
    messages = tap.read()
    ids = {message.id for message in messages}
    assert len(ids) == len(names) * 10
    twice = len(messages) - len(ids)
    print(f"{twice} messages too many")
    assert twice >= 5 * 50

    project.worker("--concurrency=2", pool="prefork")
    wait_for(lambda: len(tap) == 0 and len(project.records()) >= len(ids), 60, what="every run")
    wait_for(lambda: project.log("worker").count("started it from another message") == twice, what="the log")
    runs = Counter(run["task_id"] for run in project.records())
    assert runs.keys() == ids
    assert set(runs.values()) == {1}


def test_a_run_whose_worker_was_killed_runs_again(project: Project, redis_server: RedisServer) -> None:
    project.configure({}, broker_transport_options={"visibility_timeout": 1})
    gate = project.directory / "gate"
    first = project.worker(name="first")
    id_ = Fires(redis_server.url).send("cut short", task="record.late_ack", kwargs={"until": str(gate)})
    wait_for(project.records, what="the start")
    first.kill()
    gate.touch()
    # Redis's broker gives a message back when nobody has acknowledged it in time.
    client = redis_server.client()
    wait_for(lambda: client.zrangebyscore("unacked_index", 0, time.time() - 1), what="the message's time")
    project.worker(name="second")

    wait_for(lambda: len(project.records()) == 2, 30, what="the second start")
    assert [run["task_id"] for run in project.records()] == [id_, id_]
    wait_until_idle(redis_server)
    assert "dropped" not in project.log("second")


@pytest.mark.takes(17)
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("broker", "once"),
    [
        ("redis", True),
        ("rabbitmq", False),
        pytest.param("redis", False, marks=pytest.mark.long),
        pytest.param("rabbitmq", True, marks=pytest.mark.long),
    ],
)
def test_what_a_killed_worker_held_runs_however_late_under_do_nothing(
    project: Project, redis_server: RedisServer, request: pytest.FixtureRequest, broker: str, once: bool
) -> None:
    """It holds a run that it has started, and one that waits for its turn; both come again."""
    client, threshold = redis_server.client(), 8.0
    if broker == "redis":
        url, options = redis_server.url, {"visibility_timeout": 1}
    else:
        rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq_server")
        url, options = rabbitmq.url, {}
    project.configure({}, broker_url=url, broker_transport_options=options)
    gate = project.directory / "gate"
    first = project.worker("--concurrency=1", pool="prefork", name="first")
    fires, due = Fires(redis_server.url, broker=url), time.time()
    how = {"instruction": "do_nothing", "threshold": threshold, "once": once, "scheduled": due}
    ids = [fires.send("begun", task="record.late_ack", kwargs={"until": str(gate)}, **how)]
    wait_for(project.records, what="the start")
    ids.append(fires.send("waiting", **how))
    if broker == "redis":
        wait_for(lambda: client.hlen("unacked") == 2, what="the worker to hold both")
    else:
        wait_for(lambda: not rabbitmq.published(), what="the worker to hold both")
    first.kill()
    gate.touch()
    wait_for(lambda: time.time() > due + threshold + 1, what="the end of the threshold")
    if broker == "redis":
        # It gives a message back when nobody has acknowledged it in time.
        wait_for(lambda: client.zcount("unacked_index", 0, time.time() - 1) == 2, what="the messages' time")
    project.worker("--concurrency=1", pool="prefork", name="second")

    wait_for(lambda: len(project.records()) == 3, 30, what="the second start")
    begun, *again = project.records()
    assert not begun["redelivered"]
    assert begun["started"] < due + threshold
    assert {run["task_id"] for run in again} == set(ids)
    assert all(run["redelivered"] and run["started"] > due + threshold for run in again)
    assert project.signals("task_missed") == []
    assert [line for line in project.decisions() if line["event"] in ("missed", "late")] == []
    assert "dropped" not in project.log("second")


def check_two_beats_and_a_worker(
    project: Project, server: RedisServer, dice: random.Random, *, entries: int, kills: int
) -> None:
    """Kill a beat again and again, and check that every occurrence ran once."""
    every_second = {"schedule": {"type": "interval", "seconds": 1}, "misfire": "ignore_misfire_policy"}
    names = [f"entry {n:02}" for n in range(entries)]
    scheduled = {name: {**every_second, "args": [name]} for name in names}
    project.configure(scheduled, misfire_history=1_000_000, **QUICK)
    project.worker("--concurrency=2", pool="prefork")
    beats: dict[str, CeleryProcess] = {"a": project.leading_beat("a"), "b": project.beat(name="b")}
    wait_for(lambda: "standing by" in project.log("b"), 60, what="b to stand by")
    for _ in range(kills):
        time.sleep(dice.uniform(0.2, 2.5))
        name = dice.choice("ab")
        terms = len(project.terms())
        led = f":{beats[name].pid}" in (server.client().get("celery-misfire:{acceptance}:lease") or "")
        beats[name].kill()
        if led:
            wait_for(lambda terms=terms: len(project.terms()) > terms, 60, what="the other one to lead")
        ready = project.log(name).count("beat: Starting")
        beats[name] = project.beat(name=name)
        wait_for(lambda n=name, r=ready: project.log(n).count("beat: Starting") > r, 60, what="a new beat")
    time.sleep(2)
    for beat in beats.values():
        beat.stop()
    # What the last one claimed and could not send is sent by the next.
    beat = project.leading_beat("last")
    wait_until_settled(server, entries)
    beat.stop()
    wait_until_idle(server)

    sent = {line["id"] for line in project.decisions() if line["event"] == "sent"}
    wait_for(lambda: sent <= {run["task_id"] for run in project.records()}, what="every run")
    runs = project.records()
    print(f"{len(runs)} runs, {project.log('worker').count('is dropped')} messages dropped")
    assert max(Counter(run["task_id"] for run in runs).values()) == 1
    for name in names:
        fires = [datetime.fromisoformat(r["fire"]["scheduled_fire_time"]) for r in runs if r["label"] == name]
        times = sorted(map(to_millis, fires))
        assert len(times) >= kills
        assert times == list(range(times[0], times[-1] + 1, 1000)), name


@pytest.mark.takes(17)
@pytest.mark.timeout(240)
def test_with_two_beats_of_which_one_is_killed_now_and_then_every_occurrence_runs_once(
    project: Project, redis_server: RedisServer, dice: random.Random
) -> None:
    check_two_beats_and_a_worker(project, redis_server, dice, entries=20, kills=3)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_with_two_beats_and_twelve_kills_every_occurrence_of_100_entries_runs_once(
    project: Project, redis_server: RedisServer, dice: random.Random
) -> None:
    check_two_beats_and_a_worker(project, redis_server, dice, entries=100, kills=12)
