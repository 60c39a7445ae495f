"""The schedule changes between two starts of beat; or holds an entry that cannot work."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from celery_misfire.misfire import from_millis, to_millis
from tests.support.outcomes import of_entry, scheduled, settle
from tests.support.processes import Message, Project, drain, published, wait_for
from tests.support.redis_server import RedisServer

STATE = "celery-misfire:{acceptance}:state"
HOUR = 3_600_000

HOURLY = {"type": "interval", "seconds": 3600}
ON_THE_HOUR = {"type": "crontab", "minute": 0}


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


def run_once(project: Project, schedules: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Let beat see this schedule (every run is recovered, if late), and kill it; return the entries."""
    entries = {
        name: {"misfire": "ignore_misfire_policy", **(s if "schedule" in s else {"schedule": s})}
        for name, s in schedules.items()
    }
    project.configure(entries, **settings)
    beat = project.leading_beat()
    for name in entries:
        wait_for(lambda n=name: project.state(n).state.next_fire_time > time.time() * 1000, what=name)
    settle(project, *entries)
    beat.kill()
    return entries


def let_hours_pass(server: RedisServer, hours: int = 3) -> None:
    """Move all that the store remembers into the past; to beat it is as if it had been away so long."""
    client = server.client()
    for field, text in client.hgetall(STATE).items():
        if field.startswith("e:"):
            record = json.loads(text)
            record["generation"] -= hours * HOUR
            if record["removed_at"]:
                record["removed_at"] -= hours * HOUR
            for moment in ("next_fire_time", "previous_fire_time", "start_time"):
                if record["state"][moment]:
                    record["state"][moment] -= hours * HOUR
            client.hset(STATE, field, json.dumps(record))


def assert_planned_from_now(project: Project, entry: str, following: datetime | timedelta) -> None:
    """Assert that an entry began anew at the last start of beat, ran nothing and missed nothing.

    :param following: its next fire time, or how long after its beginning that is.
    """
    record, begun = project.state(entry), project.terms()[-1]["now"]
    assert record.generation >= begun, entry
    assert record.settled
    assert record.state.previous_fire_time is None
    if isinstance(following, timedelta):
        following = from_millis(record.generation) + following
    assert record.state.next_fire_time == to_millis(following), entry
    assert [d for d in project.decisions() if d.get("entry") == entry] == [], entry
    assert of_entry(published(project.url), entry) == []
    assert f"{entry!r}" not in project.log()


def on_the_half_hour(project: Project) -> datetime:
    """Return the next half or full hour after the last start of beat."""
    begun = project.terms()[-1]["now"]
    return from_millis(begun - begun % (HOUR // 2) + HOUR // 2)


def test_an_edited_schedule_is_planned_from_now(project: Project, redis_server: RedisServer):
    run_once(
        project,
        {
            "crontab": ON_THE_HOUR,
            "interval": HOURLY,
            "other kind": HOURLY,
            "to the past": ON_THE_HOUR,
            "same": HOURLY,
            "other policy": {"schedule": HOURLY, "misfire": "ignore_misfire_policy"},
            "other task": HOURLY,
        },
    )
    let_hours_pass(redis_server)
    run_once(
        project,
        {
            "crontab": {"type": "crontab", "minute": "*/30"},
            "interval": {"type": "interval", "seconds": 1800},
            "other kind": {"type": "crontab", "minute": "0,30"},
            "to the past": {"type": "simple", "start": time.time() - 900, "interval": 1800},
            "same": HOURLY,
            "other policy": {"schedule": HOURLY, "misfire": "do_nothing"},
            "other task": {"schedule": HOURLY, "task": "another"},
        },
    )
    assert_planned_from_now(project, "crontab", on_the_half_hour(project))
    assert_planned_from_now(project, "interval", timedelta(minutes=30))
    assert_planned_from_now(project, "other kind", on_the_half_hour(project))
    start = project.state("to the past").state.start_time
    assert_planned_from_now(project, "to the past", from_millis(start + HOUR // 2))
    # A change outside the schedule is no edit of it: these have been away for three hours.
    messages = published(redis_server.url)
    assert Counter((m.misfire["entry"], m.misfire["outcome"], m.task) for m in messages) == {
        ("same", "recovered", "record"): 3,
        ("other task", "recovered", "another"): 3,
    }
    (missed,) = [d for d in project.decisions() if d["event"] == "missed"]
    assert (missed["entry"], missed["count"], missed["instruction"]) == ("other policy", 3, "do_nothing")


def test_a_changed_time_zone_is_an_edit_of_each_crontab_and_of_no_interval(
    project: Project, redis_server: RedisServer
):
    schedules = {
        "at four": {"type": "crontab", "minute": 0, "hour": 4},
        "on the hour": ON_THE_HOUR,
        "interval": HOURLY,
    }
    run_once(project, schedules, timezone="UTC")
    at_four = from_millis(project.state("at four").state.next_fire_time)
    assert (at_four.hour, at_four.minute) == (4, 0)
    let_hours_pass(redis_server, 30)
    kathmandu = ZoneInfo("Asia/Kathmandu")
    run_once(project, schedules, timezone="Asia/Kathmandu")
    begun = from_millis(project.terms()[-1]["now"]).astimezone(kathmandu)
    four = begun.replace(hour=4, minute=0, second=0, microsecond=0)
    assert_planned_from_now(project, "at four", four if four > begun else four + timedelta(days=1))
    hour = begun.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    assert_planned_from_now(project, "on the hour", hour)
    assert [m.misfire["entry"] for m in published(redis_server.url)] == ["interval"] * 30


def test_an_entry_that_is_added_or_renamed_is_planned_from_now(project: Project, redis_server: RedisServer):
    run_once(project, {"old name": HOURLY, "old crontab": ON_THE_HOUR, "same": HOURLY})
    let_hours_pass(redis_server)
    run_once(
        project,
        {
            "new name": HOURLY,
            "new crontab": {"type": "crontab", "minute": "*/30"},
            "added": {"type": "interval", "seconds": 60},
            "same": HOURLY,
        },
    )
    assert_planned_from_now(project, "new name", timedelta(hours=1))
    assert_planned_from_now(project, "new crontab", on_the_half_hour(project))
    assert_planned_from_now(project, "added", timedelta(minutes=1))
    messages = published(redis_server.url)
    assert [(m.misfire["entry"], m.misfire["outcome"]) for m in messages] == [("same", "recovered")] * 3
    assert {line["event"] for line in project.decisions()} == {"lead", "misfire", "sent"}


def test_an_entry_that_was_gone_for_one_start_and_comes_back_is_planned_from_now(
    project: Project, redis_server: RedisServer
):
    both = {"away": HOURLY, "crontab": {"type": "crontab", "minute": "*/30"}, "same": HOURLY}
    run_once(project, both)
    first_ids = {name: project.state(name).generation for name in both}
    run_once(project, {"same": HOURLY})
    let_hours_pass(redis_server)
    run_once(project, both)
    assert_planned_from_now(project, "away", timedelta(hours=1))
    assert_planned_from_now(project, "crontab", on_the_half_hour(project))
    assert project.state("away").generation > first_ids["away"]
    assert [m.misfire["entry"] for m in published(redis_server.url)] == ["same"] * 3


def test_an_edited_schedule_goes_on_by_the_new_times_and_under_new_ids(
    project: Project, redis_server: RedisServer
):
    project.configure({"tick": {"schedule": {"type": "interval", "seconds": 1}}})
    beat = project.leading_beat()
    wait_for(lambda: published(redis_server.url))
    beat.kill()
    time.sleep(1)
    before = drain(redis_server.url)
    project.configure({"tick": {"schedule": {"type": "interval", "seconds": 0.7}}}, misfire_threshold=30)
    project.leading_beat()
    after = wait_for(lambda: [m for m in [published(redis_server.url)] if len(m) >= 3])[0]
    generation = project.state("tick").generation
    assert [scheduled(m) for m in after[:3]] == [generation + 700 * n for n in (1, 2, 3)]
    assert {m.misfire["outcome"] for m in after} == {"fired"}
    assert {m.id for m in before}.isdisjoint(m.id for m in after)


def lag(message: Message) -> float:
    """Return how late a message was sent, in seconds."""
    fire = message.misfire
    sent, due = (datetime.fromisoformat(fire[k]) for k in ("fire_time", "scheduled_fire_time"))
    return (sent - due).total_seconds()


@pytest.mark.takes(18)
def test_one_broken_schedule_and_one_unserialisable_message_cost_398_other_entries_nothing(
    project: Project, redis_server: RedisServer, tmp_path: Path
):
    repaired = tmp_path / "repaired"
    # First due four to eight seconds after first sight, all at different times.
    periods = {f"good {n}": 4000 + 10 * n for n in range(398)}
    project.configure(
        {
            **{n: {"schedule": {"type": "interval", "seconds": p / 1000}} for n, p in periods.items()},
            "broken": {"schedule": {"type": "raising", "until": str(repaired)}},
            "unserialisable": {
                "schedule": {"type": "interval", "seconds": 1},
                "unserialisable": str(repaired),
                "misfire": {"threshold": 1},
            },
        },
        misfire_threshold=30,
    )
    beat = project.leading_beat()
    begun = project.state("good 0").generation
    wait_for(lambda: of_entry(published(redis_server.url), "good 397"), 60, what="the last of them")
    wait_for(lambda: "publish_rejected" in {d.get("reason") for d in project.decisions()}, 60)
    messages = published(redis_server.url)
    times: dict[str, list[int]] = {name: [] for name in periods}
    for message in messages:
        times[message.misfire["entry"]].append(scheduled(message))
    for name, period in periods.items():
        assert times[name] == [begun + period * (n + 1) for n in range(len(times[name]))], name
        assert times[name]
    assert {m.misfire["outcome"] for m in messages} == {"fired"}
    assert max(map(lag, messages)) < 10

    decisions, log = project.decisions(), project.log()
    broken = [d for d in decisions if d["event"] == "broken"]
    refused = [d for d in decisions if d["event"] == "refused"]
    assert (broken[0]["entry"], broken[0]["error"]) == ("broken", "RuntimeError")
    assert refused[0]["entry"] == "unserialisable"
    assert {d["entry"] for d in broken + refused} == {"broken", "unserialisable"}
    assert "ERROR/MainProcess] beat: entry 'broken' cannot be planned and is tried again: RuntimeError" in log
    assert "ERROR/MainProcess] beat: entry 'unserialisable' cannot be sent and is tried again" in log
    missed = [d for d in decisions if d["event"] == "missed"]
    assert {d["entry"] for d in missed} == {"unserialisable"}
    assert "on purpose" not in str(missed)

    repaired.touch()
    for name in ("broken", "unserialisable"):
        wait_for(lambda n=name: len(of_entry(published(redis_server.url), n)) >= 2, 60, what=name, every=0.5)
    healed = of_entry(published(redis_server.url), "unserialisable")
    assert {tuple(m.args) for m in healed} == {("serialised",)}
    # None of those that were refused for longer than they may be late.
    assert max(map(lag, healed)) < 3
    beat.stop()
    given_up = {m["id"] for m in project.decisions() if m["event"] == "missed"}
    assert given_up.isdisjoint(m.id for m in healed)
    assert "Traceback" not in project.log()
    lags = sorted(map(lag, messages))
    print(f"lag of {len(lags)} runs: median {lags[len(lags) // 2]:.3f} s, most {lags[-1]:.3f} s")
