"""What a fire carries to the worker, and the ways to start this beat: by path, by alias, in a worker."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery

from celery_misfire.beat import MisfireScheduler
from celery_misfire.fire import isoformat, task_id
from celery_misfire.store.redis_store import RedisStore
from tests.support.outcomes import of_entry, scheduled
from tests.support.processes import NAMESPACE, Message, Project, published, wait_for
from tests.support.redis_server import RedisServer

EVERY_SECOND = {"type": "interval", "seconds": 1}
PATH = "celery_misfire.beat:MisfireScheduler"

#: It is a quarter past eleven; 9:00, 10:00 and 11:00 are due, and 12:00 is far away.
QUARTER_PAST = datetime.now(UTC).replace(microsecond=0)
NINE, TEN, ELEVEN = (QUARTER_PAST - timedelta(hours=hours, minutes=15) for hours in (2, 1, 0))

POLICIES: dict[str, Any] = {
    "in time": {"instruction": "do_nothing", "threshold": 86_400},
    "each": {"instruction": "ignore_misfire_policy", "on_missed": "on_missed"},
    "one": "fire_once_now",
    "smart": "smart_policy",
}


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


def fires(project: Project) -> dict[str, list[Message]]:
    """Have beat find an entry of each policy overdue, and return what it sends, by entry."""
    hourly = {"type": "simple", "start": NINE.timestamp(), "interval": 3600, "repeat_count": 7}
    project.make_state()
    project.configure({name: {"schedule": hourly, "misfire": policy} for name, policy in POLICIES.items()})
    project.beat()

    def all_sent() -> bool:
        states = [project.state(name) for name in POLICIES]
        return all(s is not None and s.settled and s.state.previous_fire_time for s in states)

    wait_for(all_sent, 60, what="the fires")
    return {name: of_entry(published(project.url), name) for name in POLICIES}


# -- what a message carries --------------------------------------------------------------------------------


def test_the_header_tells_the_outcome_and_what_the_run_stands_for(project: Project) -> None:
    begin = isoformat(datetime.now(UTC))
    sent = fires(project)
    end = isoformat(datetime.now(UTC))

    def header(entry: str, moment: datetime, instruction: str, **others: Any) -> dict[str, Any]:
        return {
            "v": 1,
            "entry": entry,
            "scheduled_fire_time": isoformat(moment),
            "outcome": "recovered",
            "missed_count": 1,
            "last_missed_fire_time": None,
            "instruction": instruction,
            "resolved": instruction,
            "threshold": 60.0,
            "once": True,
            **others,
        }

    all_three = {"missed_count": 3, "last_missed_fire_time": isoformat(ELEVEN)}
    on_time = {"outcome": "fired", "missed_count": 0, "threshold": 86_400.0}
    from_now = {"resolved": "reschedule_now_with_existing_repeat_count"}
    wanted = {
        "in time": [header("in time", m, "do_nothing", **on_time) for m in (NINE, TEN, ELEVEN)],
        "each": [
            header("each", moment, "ignore_misfire_policy", on_missed="on_missed")
            for moment in (NINE, TEN, ELEVEN)
        ],
        "one": [header("one", NINE, "fire_once_now", **all_three)],
        "smart": [header("smart", NINE, "smart_policy", **all_three, **from_now)],
    }
    differs = ("fire_time", "generation", "nonce")
    told = {
        name: [{k: v for k, v in m.misfire.items() if k not in differs} for m in messages]
        for name, messages in sent.items()
    }
    assert told == wanted
    messages = [m for messages in sent.values() for m in messages]
    assert all(begin <= m.misfire["fire_time"] <= end for m in messages)
    assert len({m.misfire["nonce"] for m in messages}) == len(messages)
    for message in messages:
        name, generation = message.misfire["entry"], message.misfire["generation"]
        assert generation == project.state(name).generation
        assert message.id == task_id(NAMESPACE, name, generation, scheduled(message))


def test_a_task_in_a_worker_reads_its_own_fire(project: Project) -> None:
    headers = {m.id: m.misfire for messages in fires(project).values() for m in messages}
    project.worker()
    wait_for(lambda: len(project.records()) >= len(headers), 60, what="the runs")

    told = {record["task_id"]: record["fire"] for record in project.records()}
    fields = (
        "scheduled_fire_time",
        "fire_time",
        "entry",
        "outcome",
        "missed_count",
        "last_missed_fire_time",
    )
    assert told == {id_: {field: header[field] for field in fields} for id_, header in headers.items()}
    assert {fire["missed_count"] for fire in told.values()} == {0, 1, 3}


@pytest.mark.parametrize("declared", [True, False], ids=["own task", "name of a task elsewhere"])
def test_what_the_entry_itself_says_is_sent_and_the_configuration_stays_clean(
    redis_server: RedisServer, declared: bool
) -> None:
    app = Celery("published", broker=redis_server.url, backend=redis_server.url, set_as_current=False)
    if declared:

        @app.task(name="elsewhere.sum")
        def sum_up(*numbers: int, of: str) -> None:
            pass

    options = {"queue": "special", "expires": 300, "ignore_result": True, "headers": {"tenant": {"id": 7}}}
    entry = {
        "task": "elsewhere.sum",
        "schedule": 0.2,
        "args": (1, 2),
        "kwargs": {"of": "all"},
        "misfire": False,
    }
    app.conf.beat_schedule = {"sum": entry | {"options": options}, "plain": entry}
    configured = copy.deepcopy(app.conf.beat_schedule)
    scheduler = MisfireScheduler(app)
    try:
        held = {name: copy.deepcopy(e.options) for name, e in scheduler.schedule.items()}

        def sent() -> list[list[Message]]:
            scheduler.tick()
            found = [published(redis_server.url, queue) for queue in ("special", "celery")]
            return found if min(map(len, found)) >= 3 else []

        special, plain = wait_for(sent, 30, what="three fires of each")
        assert app.conf.beat_schedule == configured
        assert {name: e.options for name, e in scheduler.schedule.items()} == held
    finally:
        scheduler.close()

    for message in special + plain:
        assert (message.task, message.args, message.kwargs) == ("elsewhere.sum", [1, 2], {"of": "all"})
        # Celery's own mark, since 5.7.
        assert message.headers.get("celery_beat_task", False) is (celery.VERSION >= (5, 7))
        assert message.misfire["instruction"] is None
    for message in special:
        assert message.headers["periodic_task_name"] == message.misfire["entry"] == "sum"
        assert message.headers["tenant"] == {"id": 7}
        assert message.headers["expires"]
        assert message.headers["ignore_result"] is True
    for message in plain:
        assert message.headers["periodic_task_name"] == message.misfire["entry"] == "plain"
        assert "tenant" not in message.headers
        assert message.headers["expires"] is None
    assert len({m.misfire["nonce"] for m in special + plain}) == len(special + plain)


# -- how it is started -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["option", "setting"])
def test_beat_finds_the_scheduler_by_its_alias(project: Project, redis_server: RedisServer, way: str) -> None:
    # Needs the package to be installed, for its entry points; then the alias stands for the path.
    setting = "misfire" if way == "setting" else "celery.beat:PersistentScheduler"
    project.configure({"tick": {"schedule": EVERY_SECOND}}, beat_scheduler=setting)
    beat = project.beat(*(["-S", "misfire"] if way == "option" else []))

    wait_for(lambda: published(redis_server.url) or not beat.alive, 60, what="a fire")

    assert beat.alive, project.log()[-2000:]
    assert published(redis_server.url)[0].misfire["entry"] == "tick"


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_worker_can_run_it_and_gives_the_lease_up_when_it_stops(
    project: Project, redis_server: RedisServer, pool: str
) -> None:
    slow = {"misfire_lease_ttl": 600, "misfire_lease_renew": 1}
    every_second = {"tick": {"schedule": EVERY_SECOND, "misfire": "ignore_misfire_policy"}}
    project.configure(every_second, beat_scheduler="celery.beat:PersistentScheduler", **slow)
    worker = project.worker("-B", "--scheduler", PATH, pool=pool)
    wait_for(lambda: len(project.records()) >= 3, 60, what="three runs")
    lease = RedisStore(redis_server.url, NAMESPACE).lease_key
    assert redis_server.client().get(lease)

    # The worker alone: it has to see to its beat itself.
    os.kill(worker.pid, signal.SIGTERM)
    wait_for(lambda: not worker.alive, 60, what="the end of the worker")
    assert worker.exit_code == 0
    wait_for(lambda: not redis_server.client().get(lease), 20, what="the end of the lease")

    # Long before the lease would have run out, and with nothing lost in between.
    project.beat("-S", PATH)
    wait_for(lambda: "beat: leading" in project.log(), 60, what="the next beat")
    wait_for(lambda: len(published(redis_server.url)) >= 2, 60, what="two fires")
    runs = {scheduled(Message(r["task_id"], "record", r, [], {})) for r in project.records()}
    times = sorted(runs | {scheduled(m) for m in published(redis_server.url)})
    assert times == list(range(times[0], times[-1] + 1, 1000))
