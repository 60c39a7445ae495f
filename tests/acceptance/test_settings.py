"""Settings that no other file of these tests is about, each on real processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.outcomes import assert_each_ended_once, of_entry, outcomes, settle
from tests.support.processes import Project, published, wait_for
from tests.support.redis_server import RedisServer

EVERY_SECOND = {"type": "interval", "seconds": 1}
#: Of a class that is not Celery's, and so a cron trigger.
CRON = {"type": "own", "every": 1}


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


def fired(project: Project, entry: str) -> int:
    return len(of_entry(published(project.url), entry))


def test_where_a_pause_is_an_outage_the_fire_times_of_a_removed_entry_misfire_when_it_comes_back(
    project: Project,
) -> None:
    def policy(instruction: str) -> dict[str, Any]:
        # Later than it is on a busy machine, and earlier than the end of the pause.
        return {"schedule": EVERY_SECOND, "misfire": {"instruction": instruction, "threshold": 2}}

    stays = {"stays": {"schedule": {"type": "interval", "seconds": 3600}}}
    paused = {"run": policy("ignore_misfire_policy"), "lose": policy("do_nothing")}
    project.configure(stays | paused, misfire_on_resume="misfire")
    beat = project.leading_beat()
    wait_for(lambda: fired(project, "run") and fired(project, "lose"), 30)
    settle(project, *paused)
    beat.stop()

    project.configure(stays, misfire_on_resume="misfire")
    beat = project.leading_beat()
    removed = {name: fired(project, name) for name in paused}
    time.sleep(3)
    assert {name: fired(project, name) for name in paused} == removed
    beat.stop()

    project.configure(stays | paused, misfire_on_resume="misfire")
    project.leading_beat()
    back = project.terms()[-1]["now"]
    for name, kind in (("run", "recovered"), ("lose", "missed")):
        wait_for(lambda name=name: project.state(name).state.next_fire_time > back + 2000, 30)
        settle(project, name)
        messages, decisions = published(project.url), project.decisions()
        record = project.state(name)
        found = outcomes(messages, decisions, name, 1000)
        times = range(record.generation + 1000, record.state.next_fire_time, 1000)
        assert_each_ended_once({t: o for t, o in found.items() if t in times}, times)
        assert {k for ended in found.values() for k, _ in ended} == {"fired", kind}
        late = [d for d in decisions if d["event"] == "misfire" and d["entry"] == name]
        assert [d["reason"] for d in late] == ["paused"]
    assert "(paused)" in project.log()


def test_policies_come_from_the_entry_then_by_name_then_by_trigger_type_then_from_the_app(
    project: Project, redis_server: RedisServer
) -> None:
    entries: dict[str, Any] = {
        "own": {"schedule": CRON, "misfire": "fire_once_now"},
        "by name": {"schedule": CRON},
        "both": {"schedule": CRON, "misfire": {"threshold": 1}},
        "off": {"schedule": EVERY_SECOND},
        "by type": {"schedule": EVERY_SECOND},
        "by app": {"schedule": CRON},
    }
    settings: dict[str, Any] = {
        "misfire_policies": {
            "own": "ignore_misfire_policy",
            "by name": {"instruction": "ignore_misfire_policy"},
            "both": {"instruction": "ignore_misfire_policy", "threshold": 3600},
            "off": False,
        },
        "misfire_instructions": {"endless": "fire_now"},
        "misfire_instruction": "do_nothing",
        "misfire_threshold": 1.5,
        "misfire_send_task_failure": False,
        "misfire_result_state": "FAILURE",
    }
    project.configure(entries, **settings)
    beat = project.leading_beat()
    wait_for(lambda: all(fired(project, name) for name in entries), 30)
    beat.kill()
    time.sleep(4)
    project.leading_beat()
    back = project.terms()[-1]["now"]
    wait_for(lambda: all(project.state(n).state.next_fire_time > back + 1000 for n in entries), 30)
    settle(project, *entries)
    told = {d["entry"]: d["instruction"] for d in project.decisions() if d["event"] == "misfire"}
    assert told == {
        "own": "fire_once_now",
        "by name": "ignore_misfire_policy",
        "both": "ignore_misfire_policy",
        "by type": "fire_now",
        "by app": "do_nothing",
    }
    (missed,) = [d for d in project.decisions() if d["event"] == "missed"]
    assert missed["entry"] == "by app"
    # As for any failure, for whoever reads results without this package; and nobody is told of it as of one.
    result = redis_server.client().get(f"celery-task-meta-{missed['id']}")
    assert '"status": "FAILURE"' in result
    assert "TaskMissed" in result
    assert [s["task_id"] for s in project.signals("task_missed")] == [missed["id"]]
    assert project.signals("task_failure") == []


def test_the_log_in_redis_keeps_about_as_many_lines_as_it_is_told_to(
    project: Project, redis_server: RedisServer
) -> None:
    often = {"schedule": {"type": "interval", "seconds": 0.05}, "misfire": "ignore_misfire_policy"}
    # Those that are due at the same moment share a line.
    project.configure({f"{n}": often for n in range(4)}, misfire_history=50)
    beat = project.beat()
    log, client = "celery-misfire:{acceptance}:log", redis_server.client()
    wait_for(lambda: client.llen("celery") > 800, 60, what="more than 200 lines")
    beat.stop()
    # Redis drops whole nodes, of 100 lines.
    assert 50 <= client.xlen(log) <= 150
    sent = {d["id"] for d in project.decisions() if d["event"] == "sent"}
    assert {m.id for m in published(project.url)[-20:]} <= sent


@pytest.mark.parametrize(
    ("settings", "entries", "problem"),
    [
        # One is found by the scheduler of Celery's banner, the other by the one that would run.
        ({"misfire_history": "much"}, {}, "misfire_history: expected a whole number >= 0, got 'much'."),
        ({}, {"misfire": "skip"}, "beat_schedule['often'].misfire: 'skip' is unknown."),
        # Redis itself refuses this one, when beat is at work.
        ({"misfire_redis_options": {"db": 999}}, {}, "misfire_redis_url: "),
    ],
)
def test_a_wrong_setting_ends_beat_with_a_sentence_and_no_traceback(
    project: Project, settings: dict[str, Any], entries: dict[str, Any], problem: str
) -> None:
    project.configure({"often": {"schedule": EVERY_SECOND} | entries}, **settings)
    beat = project.beat()
    wait_for(lambda: not beat.alive, 60, what="the end of beat")
    log = project.log()
    assert "Traceback" not in log
    assert f"Error: celery_misfire: {problem}" in log.splitlines()[-1]
    assert beat.exit_code == 1
