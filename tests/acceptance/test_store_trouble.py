"""Redis freezes, dies, forgets, or holds what beat cannot read: nothing is lost and beat goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.outcomes import assert_each_ended_once, of_entry, outcomes, scheduled, settle
from tests.support.processes import CeleryProcess, Message, Project, drain, published, wait_for, warnings
from tests.support.redis_server import RedisServer

EVERY_SECOND = {"type": "interval", "seconds": 1}
NEW_STATE = "every schedule is planned from now"

STATE = "celery-misfire:{acceptance}:state"
LEASE = "celery-misfire:{acceptance}:lease"
LOG = "celery-misfire:{acceptance}:log"

#: The first loses no occurrence to a misfire, the second runs none of them late.
REPORTS_AND_STOCKS = {
    # Both late when Redis is away for a while, and not yet when the machine is busy.
    "reports": {
        "schedule": EVERY_SECOND,
        "misfire": {"instruction": "ignore_misfire_policy", "threshold": 2},
    },
    "stocks": {"schedule": EVERY_SECOND, "misfire": {"threshold": 2}},
}


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


def wait_for_time(project: Project, broker: str) -> None:
    """Wait until both entries run in time (again)."""
    now = time.time() * 1000

    def in_time() -> bool:
        fired = [m for m in published(broker) if m.misfire["outcome"] == "fired" and scheduled(m) > now]
        return all(of_entry(fired, entry) for entry in REPORTS_AND_STOCKS)

    wait_for(in_time, 60, what="runs in time")


def assert_nothing_lost(project: Project, messages: list[Message], reason: str) -> None:
    """Assert that each occurrence of the two entries was published or missed, and why it was late."""
    decisions = project.decisions()
    for entry, allowed in (("reports", {"fired", "recovered"}), ("stocks", {"fired", "missed"})):
        state = project.state(entry)
        found = outcomes(messages, decisions, entry, 1000)
        assert_each_ended_once(found, range(state.generation + 1000, state.state.next_fire_time, 1000))
        assert {kind for ended in found.values() for kind, _ in ended} == allowed
    late = [d for d in decisions if d["event"] in ("misfire", "missed") and d["entry"] in REPORTS_AND_STOCKS]
    assert {d["reason"] for d in late} == {reason}, late
    assert f"({reason})" in project.log()


# -- away for a while --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("append_only", "trouble"),
    [pytest.param("everysec", "freeze and restart", marks=pytest.mark.long), ("always", "kill")],
)
def test_a_redis_that_is_away_for_a_while_costs_no_run(
    tmp_path: Path, redis_binary: Path, append_only: Any, trouble: str
):
    """Broker, results and store in one: judged by the ids that were published."""
    with (
        RedisServer(redis_binary, append_only=append_only) as server,
        Project(tmp_path, server.url) as project,
    ):
        project.configure(REPORTS_AND_STOCKS, broker_transport_options={"visibility_timeout": 3})
        beat = project.leading_beat()
        wait_for_time(project, server.url)
        if trouble == "kill":
            server.kill()
            time.sleep(5)
            server.start()
        else:
            server.freeze()
            time.sleep(20)
            assert beat.alive
            server.thaw()
            wait_for_time(project, server.url)
            server.restart()
        wait_for_time(project, server.url)
        assert beat.alive
        settle(project, *REPORTS_AND_STOCKS)
        beat.stop()
        assert_nothing_lost(project, published(server.url), "store_unavailable")
        assert project.log().count("beat: Starting") == 1
        assert "Traceback" not in project.log()


def test_a_broker_that_is_away_for_a_while_costs_no_run(
    project: Project, redis_server: RedisServer, redis_binary: Path, tmp_path: Path
):
    with RedisServer(redis_binary, append_only="always") as broker:
        # Goes wrong in the meantime, with runs that wait to be sent.
        trap = tmp_path / "trap"
        fickle = {"type": "raising", "during": str(trap), "every": 0.2}
        project.configure(
            {**REPORTS_AND_STOCKS, "fickle": {"schedule": fickle}},
            broker_url=broker.url,
            misfire_redis_url=redis_server.url,
        )
        beat = project.leading_beat()
        wait_for_time(project, broker.url)
        broker.kill()
        time.sleep(4)
        trap.touch()
        broker.start()
        wait_for_time(project, broker.url)
        trap.unlink()
        late = len(of_entry(published(broker.url), "fickle"))
        wait_for(lambda: len(of_entry(published(broker.url), "fickle")) > late + 3)
        assert beat.alive
        settle(project, *REPORTS_AND_STOCKS)
        beat.stop()
        assert_nothing_lost(project, published(broker.url), "broker_unavailable")
        assert len(project.terms()) == 1
        assert "Traceback" not in project.log()


def test_a_broker_that_takes_nothing_while_beat_catches_up_costs_no_run(
    project: Project, redis_server: RedisServer, redis_binary: Path
):
    with RedisServer(redis_binary, "--maxmemory-policy", "noeviction") as broker:
        reports = {**REPORTS_AND_STOCKS["reports"], "schedule": {"type": "interval", "seconds": 0.25}}
        project.configure({"reports": reports}, broker_url=broker.url, misfire_redis_url=redis_server.url)
        beat = project.leading_beat()
        wait_for(lambda: published(broker.url))
        # A kill between a message and its ack would send that run again, late.
        beat.stop()
        time.sleep(4)
        # It can be connected to, and refuses every message.
        broker.client().config_set("maxmemory", 1)
        beat = project.leading_beat()
        wait_for(lambda: "the broker failed" in project.log())
        time.sleep(3)
        broker.client().config_set("maxmemory", 0)
        healed = time.time() * 1000
        # Far sooner than beat would trust a broker by itself that has failed with a message.
        wait_for(lambda: [m for m in published(broker.url) if scheduled(m) > healed])
        settle(project, "reports")
        beat.stop()
        state = project.state("reports")
        found = outcomes(published(broker.url), project.decisions(), "reports", 250)
        assert_each_ended_once(found, range(state.generation + 250, state.state.next_fire_time, 250))
        assert {kind for ended in found.values() for kind, _ in ended} == {"fired", "recovered"}
        assert "Traceback" not in project.log()


def test_a_beat_that_starts_without_a_redis_stands_by_and_works_when_it_comes(
    tmp_path: Path, redis_binary: Path
):
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer(redis_binary, append_only="always"))
        # Redis takes any password from a user that needs none.
        url = server.url.replace("//", "//default:top-secret@")
        project = stack.enter_context(Project(tmp_path, url))
        project.configure(REPORTS_AND_STOCKS)
        beat = project.leading_beat()
        wait_for_time(project, server.url)
        beat.kill()
        server.kill()

        seen = len(project.log())
        beat = project.beat("--loglevel=DEBUG")
        wait_for(lambda: "standing by" in project.log()[seen:], 60)
        time.sleep(3)
        assert beat.alive
        (warning,) = warnings(project.log()[seen:])
        assert (
            f"Redis at 127.0.0.1:{server.port}: ConnectionError (Connection refused); standing by" in warning
        )

        server.start()
        wait_for_time(project, server.url)
        settle(project, *REPORTS_AND_STOCKS)
        beat.stop()
        assert_nothing_lost(project, published(server.url), "scheduler_down")
        assert project.log().count("answers again after") == 1
        assert "Traceback" not in project.log()
        assert "top-secret" not in project.log()
        assert "top-secret" not in str(project.decisions())


# -- forgetful ---------------------------------------------------------------------------------------------


def test_a_store_that_loses_everything_under_a_live_beat_is_restored_from_its_memory(
    project: Project, redis_server: RedisServer, redis_binary: Path
):
    with RedisServer(redis_binary) as broker:
        fixed = {"type": "simple", "interval": 1, "repeat_count": 500}
        entries = {**REPORTS_AND_STOCKS, "fixed": {"schedule": fixed, "misfire": {"threshold": 2}}}
        project.configure(entries, broker_url=broker.url, misfire_redis_url=redis_server.url)
        beat = project.leading_beat()
        wait_for_time(project, broker.url)
        before = {name: project.state(name) for name in entries}
        redis_server.client().flushall()
        wait_for_time(project, broker.url)
        assert beat.alive
        beat.stop()
        messages, decisions = published(broker.url), project.decisions()
        for name, old in before.items():
            new = project.state(name)
            assert (new.generation, new.state.start_time) == (old.generation, old.state.start_time)
            found = outcomes(messages, decisions, name, 1000)
            assert_each_ended_once(found, range(old.generation + 1000, new.state.next_fire_time, 1000))
            assert {kind for ended in found.values() for kind, _ in ended} == {"fired"}
            assert len(of_entry(messages, name)) == len(found), "sent twice"
            assert new.state.times_triggered == len(found)
        assert project.log().count("was lost; it is restored from memory") == 1
        assert project.log().count(NEW_STATE) == 1
        # Beside the two, the way to the second may lead past the loss of the lease.
        others = [w for w in warnings(project.log()) if NEW_STATE not in w and "was lost; it" not in w]
        assert [w for w in others if "the lease is lost; standing by" not in w] == []
        assert len(others) <= 1


def test_a_store_that_lost_everything_while_beat_was_away_begins_anew_from_now(
    project: Project, redis_server: RedisServer
):
    project.configure(
        {
            **REPORTS_AND_STOCKS,
            "crontab": {"schedule": {"type": "crontab"}, "misfire": "ignore_misfire_policy"},
            "over": {"schedule": {"type": "simple", "start": time.time() - 60}},
        }
    )
    beat = project.leading_beat()
    wait_for_time(project, redis_server.url)
    beat.kill()
    old_ids = {m.id for m in drain(redis_server.url)}
    time.sleep(2)
    redis_server.client().flushall()
    seen = len(project.log())
    project.leading_beat()
    wait_for_time(project, redis_server.url)
    back = project.terms()[-1]["now"]
    messages = published(redis_server.url)
    assert [m for m in messages if scheduled(m) <= back] == []
    assert {m.misfire["outcome"] for m in messages} == {"fired"}
    assert old_ids.isdisjoint(m.id for m in messages)
    assert {line["event"] for line in project.decisions()} == {"lead", "sent"}
    # Nothing in the store tells it from a first start.
    assert "first start, or Redis has lost its data" in project.log()[seen:]
    assert NEW_STATE in project.log()[seen:]


# -- unreadable --------------------------------------------------------------------------------------------


def everything(server: RedisServer) -> dict[str, bytes]:
    """Return all that a Redis holds."""
    client = server.client()
    # Binary values need a client that decodes nothing.
    raw = type(client).from_url(server.url)
    return {key: raw.dump(key) for key in sorted(client.keys())}


def test_a_state_of_a_newer_version_is_left_alone(project: Project, redis_server: RedisServer):
    project.configure(REPORTS_AND_STOCKS)
    beat = project.leading_beat()
    wait_for_time(project, redis_server.url)
    beat.stop()
    client = redis_server.client()
    ours = client.hget(STATE, "_meta")
    client.hset(STATE, "_meta", json.dumps({**json.loads(ours), "schema": 99}))
    before, seen = everything(redis_server), len(project.log())
    beat = project.beat()
    wait_for(lambda: "standing by" in project.log()[seen:], 60)
    time.sleep(2)
    assert beat.alive
    assert everything(redis_server) == before
    (warning,) = warnings(project.log()[seen:])
    assert f"{STATE} has schema 99, this version works with 1; standing by" in warning
    # The newer version has gone, and taken its state with it.
    client.hset(STATE, "_meta", ours)
    wait_for_time(project, redis_server.url)


@pytest.mark.parametrize(
    ("key", "command", "words"),
    [
        pytest.param(STATE, "SET", "state is a string, expected a hash", marks=pytest.mark.long),
        pytest.param(LEASE, "LPUSH", "lease is a list, expected a string", marks=pytest.mark.long),
        (LOG, "SADD", "log is a set, expected a stream"),
    ],
)
def test_a_key_that_another_program_uses_is_named_and_nothing_is_written(
    project: Project, redis_server: RedisServer, key: str, command: str, words: str
):
    client = redis_server.client()
    client.execute_command(command, key, "not ours")
    before = everything(redis_server)
    project.configure(REPORTS_AND_STOCKS)
    beat = project.beat()
    wait_for(lambda: "standing by" in project.log(), 60)
    time.sleep(2)
    assert beat.alive
    assert everything(redis_server) == before
    (warning,) = warnings(project.log())
    assert words in warning
    client.delete(key)
    wait_for_time(project, redis_server.url)


def _with(**changed: Any) -> Any:
    return lambda text: json.dumps(json.loads(text) | changed)


def _with_state(**changed: Any) -> Any:
    def change(text: str) -> str:
        record = json.loads(text)
        return json.dumps({**record, "state": record["state"] | changed})

    return change


INTENT = {
    "scheduled": 1_700_000_000_000,
    "generation": 1_700_000_000_000,
    "outcome": "fired",
    "claimed_at": 1_700_000_000_000,
    "merged": 0,
    "last_missed": None,
    "unsent": False,
}

#: What is done to the record of an entry, by what the entry is then called.
DAMAGE = {
    "garbage": lambda text: "\x00 not a record",
    "bytes": lambda text: b"\xff\xfe" + text.encode("utf-16"),
    "empty list": lambda text: "[]",
    "number": lambda text: "7",
    "truncated": lambda text: text[:-20],
    "5 MB": lambda text: text[:-1] + " " * 5_000_000 + "}",
    "deep": lambda text: "[" * 60_000,
    "other entry": _with(name="reports"),
    "other version": _with(v=0),
    "text for a moment": _with_state(next_fire_time="soon"),
    "fraction for a moment": _with_state(start_time=1.5),
    "the year 9999": _with_state(next_fire_time=253_370_764_800_000),
    "no state": _with(state=None),
    "list of nothing": _with(intents=[None]),
    "text in an intent": _with(intents=[INTENT | {"last_missed": "soon"}]),
    "no word": _with(intents=[INTENT | {"outcome": "Done!"}]),
    "true for a number": _with(intents=[INTENT | {"merged": True}]),
    "text for true": _with(intents=[INTENT | {"unsent": "no"}]),
}


def test_a_record_that_cannot_be_read_costs_its_entry_the_past_and_no_other_anything(
    project: Project, redis_server: RedisServer
):
    entries: dict[str, Any] = {name: {"schedule": EVERY_SECOND} for name in DAMAGE}
    # What is over must not run (again) because nobody remembers it.
    entries["5 MB"] = {"schedule": {"type": "simple", "start": time.time() - 60}}
    project.configure({**entries, **REPORTS_AND_STOCKS}, misfire_threshold=2)
    beat = project.leading_beat()
    wait_for_time(project, redis_server.url)
    beat.kill()
    client = redis_server.client()
    for name, damage in DAMAGE.items():
        client.hset(STATE, f"e:{name}", damage(client.hget(STATE, f"e:{name}")))
    before, seen = drain(redis_server.url), len(project.log())
    time.sleep(3)
    begin = time.time() * 1000
    beat = project.leading_beat()
    wait_for_time(project, redis_server.url)
    wait_for(lambda: {m.misfire["entry"] for m in published(redis_server.url)} >= set(entries) - {"5 MB"})
    settle(project, *entries, *REPORTS_AND_STOCKS)
    beat.stop()
    after, log, decisions = published(redis_server.url), project.log()[seen:], project.decisions()
    for name in DAMAGE:
        sent, planned = of_entry(after, name), project.state(name).generation
        assert planned >= begin, name
        assert [m for m in sent if scheduled(m) <= planned] == [], name
        assert {m.misfire["outcome"] for m in sent} <= {"fired"}, name
        (error,) = [
            line for line in log.splitlines() if f"the state of entry {name!r} cannot be used" in line
        ]
        assert "ERROR" in error
        assert len(error) < 300
        assert f"misfire of {name!r}" not in log
    assert of_entry(after, "5 MB") == []
    assert {d["entry"] for d in decisions if d["event"] in ("misfire", "missed")} == set(REPORTS_AND_STOCKS)
    assert "Traceback" not in log
    assert_nothing_lost(project, before + after, "scheduler_down")


def test_beat_can_be_stopped_while_redis_is_frozen(project: Project, redis_server: RedisServer):
    project.configure(REPORTS_AND_STOCKS)
    beat: CeleryProcess = project.leading_beat()
    wait_for_time(project, redis_server.url)
    redis_server.freeze()
    time.sleep(1)
    begin = time.monotonic()
    beat.stop(timeout=30)
    took = time.monotonic() - begin
    redis_server.thaw()
    assert beat.exit_code == 0
    assert took < 20
