"""Schedules that are not computed but asked, in a real beat: sound ones and such that do everything wrong."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from celery.schedules import solar

from celery_misfire.misfire import from_millis, to_millis
from tests.support.outcomes import assert_each_ended_once, of_entry, outcomes, scheduled, settle
from tests.support.processes import Message, Project, published, wait_for
from tests.support.redis_server import RedisServer

HOUR = 3_600_000
STATE = "celery-misfire:{acceptance}:state"
SUNSET = {"type": "solar", "event": "sunset", "lat": 52.5, "lon": 13.4}

#: What each of them says in the log, once.
HOPELESS = {
    "hangs": "NoAnswer: the schedule has not answered for",
    "spins": "NoAnswer: the schedule has not answered for",
    "exits": "RuntimeError: it raised SystemExit",
    "stuck": "ValueError: OddSchedule: asked for the fire time after",
    "text": "ValueError: OddSchedule: needs a timedelta to remain, got 'soon'",
}


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


def odd(kind: str, every: float = 1) -> dict[str, object]:
    return {"schedule": {"type": "odd", "kind": kind, "every": every}, "misfire": "ignore_misfire_policy"}


def lag(message: Message) -> float:
    assert message.misfire is not None
    sent, due = (datetime.fromisoformat(message.misfire[k]) for k in ("fire_time", "scheduled_fire_time"))
    return (sent - due).total_seconds()


def test_hopeless_schedules_cost_the_others_nothing_at_the_start_in_the_loop_and_at_the_end(
    project: Project, redis_server: RedisServer
):
    every_second = {"schedule": {"type": "interval", "seconds": 1}, "misfire": "ignore_misfire_policy"}
    good = {"good": every_second, "changes": odd("changes"), "slow": odd("slow", 2)}
    project.configure({**good, **{kind: odd(kind) for kind in HOPELESS}})
    beat = project.leading_beat()
    begun = project.terms()[-1]["now"]
    wait_for(lambda: len(of_entry(published(redis_server.url), "good")) >= 7, 40)
    wait_for(lambda: len(of_entry(published(redis_server.url), "slow")) >= 3, 40)
    assert beat.alive
    stopping = time.monotonic()
    beat.stop(timeout=20)
    assert time.monotonic() - stopping < 15

    messages, log = published(redis_server.url), project.log()
    assert {m.misfire["entry"] for m in messages} == good.keys()
    for name, period in {"good": 1000, "changes": 1000, "slow": 2000}.items():
        ran = sorted({scheduled(m) for m in of_entry(messages, name)})
        assert len(ran) >= 3
        assert ran == [ran[0] + n * period for n in range(len(ran))], name
        assert ran[0] <= begun + 12_000, name
    # However slow the machine is: not by the hour of the one, and not by the minute of waiting in Celery.
    assert max(lag(m) for m in messages if m.misfire["entry"] == "good") < 5
    for name, error in HOPELESS.items():
        assert log.count(f"entry {name!r} cannot be planned and is tried again: {error}") == 1, name
    told = Counter(d["entry"] for d in project.decisions() if d["event"] == "broken")
    assert {n: told[n] for n in HOPELESS} == dict.fromkeys(HOPELESS, 1)
    assert told["good"] == 0
    assert "Traceback" not in log


def test_asked_schedules_are_handled_like_any_other_after_an_outage(
    project: Project, redis_server: RedisServer, tmp_path: Path
):
    pytest.importorskip("django_celery_beat")
    pytest.importorskip("ephem")
    project.make_state()
    now = float(int(time.time()))
    own = {"type": "own", "every": 1}
    project.configure(
        {
            "all": {"schedule": own, "misfire": "ignore_misfire_policy"},
            "none": {"schedule": own, "misfire": {"instruction": "do_nothing", "threshold": 0.9}},
            "once, before": {"schedule": {"type": "clocked", "at": now - 3600}},
            "once, within": {"schedule": {"type": "clocked", "at": now + 3600}},
            "once, later": {"schedule": {"type": "clocked", "at": now + 3600}},
            "sunset": {"schedule": SUNSET},
        }
    )
    beat = project.leading_beat()
    for name in ("all", "none"):
        wait_for(lambda n=name: len(of_entry(published(redis_server.url), n)) >= 2)
    first = min(scheduled(m) for m in published(redis_server.url) if m.misfire["entry"] == "all")
    beat.kill()
    assert project.state("once, within").state.next_fire_time == round((now + 3600) * 1000)
    sunset = from_millis(project.state("sunset").state.next_fire_time)
    before = sunset - timedelta(hours=3)
    judge = solar("sunset", 52.5, 13.4, nowfun=lambda: before)
    assert abs(before + judge.remaining_estimate(before) - sunset) < timedelta(seconds=1)
    # Three days pass for the sun, an hour for the one run, and some seconds for the rest.
    three_days_ago = to_millis(sunset) - 3 * 24 * HOUR
    let_it_be(redis_server, "sunset", three_days_ago)
    let_it_be(redis_server, "once, within", round(now * 1000) - HOUR)
    time.sleep(2)

    beat = project.leading_beat()
    restarted = project.terms()[-1]["now"]
    for name in ("all", "none"):
        wait_for(lambda n=name: max(map(scheduled, of_entry(published(redis_server.url), n))) > restarted)
    settle(project, "all", "none", "sunset", "once, within")
    beat.kill()
    messages, decisions = published(redis_server.url), project.decisions()
    for name in ("all", "none"):
        found = outcomes(messages, decisions, name, 1000)
        assert_each_ended_once(found, range(first, max(found) + 1, 1000))
    ended = {
        name: [m.misfire["outcome"] for m in of_entry(messages, name)] for name in project_names(messages)
    }
    assert set(ended["all"]) == {"fired", "recovered"}
    assert set(ended["none"]) == {"fired"}
    assert ended["once, before"] == ["recovered"]
    assert ended["once, within"] == ["recovered"]
    assert "once, later" not in ended
    # The smart policy of a cron type: one run for the sunsets that were missed.
    (run,) = of_entry(messages, "sunset")
    assert run.misfire["outcome"] == "recovered"
    assert scheduled(run) == three_days_ago
    (misfire,) = [d for d in decisions if d["event"] == "misfire" and d["entry"] == "sunset"]
    assert misfire["outcomes"]["merged"] in (2, 3)
    assert project.state("once, within").state.next_fire_time is None
    assert "Traceback" not in project.log()


def let_it_be(server: RedisServer, entry: str, due: int) -> None:
    """Move the next fire time that the store remembers, as if beat had been away since."""
    client = server.client()
    record = json.loads(client.hget(STATE, f"e:{entry}"))
    record["state"] |= {"next_fire_time": due, "start_time": due}
    client.hset(STATE, f"e:{entry}", json.dumps(record))


def project_names(messages: list[Message]) -> set[str]:
    return {m.misfire["entry"] for m in messages if m.misfire is not None}


def test_what_was_due_while_a_schedule_was_broken_is_recorded_with_that_reason(
    project: Project, redis_server: RedisServer, tmp_path: Path
):
    trap = tmp_path / "trap"
    policy = {"instruction": "do_nothing", "threshold": 0.9}
    fickle = {"type": "raising", "during": str(trap), "every": 1}
    project.configure({"fickle": {"schedule": fickle, "misfire": policy}})
    project.leading_beat()
    wait_for(lambda: len(published(redis_server.url)) >= 2)
    trap.touch()
    wait_for(lambda: [d for d in project.decisions() if d["event"] == "broken"])
    time.sleep(1.5)
    known = len(published(redis_server.url))
    trap.unlink()
    wait_for(lambda: len(published(redis_server.url)) >= known + 2, 40)
    settle(project, "fickle")
    messages, decisions = published(redis_server.url), project.decisions()
    missed = [d for d in decisions if d["event"] == "missed"]
    assert "schedule_error" in {d["reason"] for d in missed}
    assert sum(d["count"] for d in missed) >= 2
    found = outcomes(messages, decisions, "fickle", 1000)
    assert_each_ended_once(found, range(min(found), max(found) + 1, 1000))
    assert len([d for d in decisions if d["event"] == "broken"]) == 1
