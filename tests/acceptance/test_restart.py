"""Beat stops and starts again: what becomes of the fire times in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from celery import Celery

import celery_misfire
from celery_misfire import MisfirePolicy, simulate
from celery_misfire.exceptions import TaskMissed
from celery_misfire.fire import task_id
from celery_misfire.misfire import from_millis
from tests.support.outcomes import of_entry, outcomes, scheduled, settle
from tests.support.processes import NAMESPACE, CeleryProcess, Message, Project, published, wait_for, warnings
from tests.support.redis_server import RedisServer
from tests.support.schedules import build_schedule

EVERY_SECOND = {"type": "interval", "seconds": 1}

#: A threshold, in seconds, that no hiccup of a busy machine reaches.
PATIENT = 30
NEW_STATE = "every schedule is planned from now"


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


def seen_before(
    project: Project, server: RedisServer, entries: Callable[[int], dict[str, Any]]
) -> tuple[int, dict[str, int]]:
    """Let beat see entries for the first time, and kill it before any of them is due.

    :param entries: makes them, from the moment when the first is due, in milliseconds UTC.
    :returns: that moment, and when each entry was first seen.
    """
    for patience in (4, 8, 16, 32):
        due = round(time.time() + patience) * 1000
        project.configure(entries(due))
        beat = project.leading_beat()
        first_seen = {name: wait_for(lambda n=name: project.state(n)).generation for name in entries(due)}
        beat.kill()
        if time.time() * 1000 < due:
            assert published(server.url) == []
            return due, first_seen
        # A busy machine: once more, with more time.
        server.client().flushall()
    raise AssertionError("beat takes too long to start")


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


# -- the classic example -----------------------------------------------------------------------------------

#: "An hour", in milliseconds; a quarter of it is left between 10:00 and the return at 10:15.
HOUR = 3_000
#: Long enough that a busy machine makes no misfire of a run in time, short enough that 9:00 is one at 10:15.
THRESHOLD = 2.0


class Row(NamedTuple):
    """One entry of the table: what becomes of 9:00 and 10:00, the next fire time, the runs in all."""

    trigger: str
    instruction: str
    nine: str
    ten: str
    next: str | None
    runs: int | None = None

    @property
    def name(self) -> str:
        return f"{self.trigger} {self.instruction}"


FIRST_RUNS, NONE_RUNS, BOTH_RUN = ("recovered", "merged"), ("missed", "missed"), ("recovered", "recovered")
NOW_EXISTING = "reschedule_now_with_existing_repeat_count"
NOW_REMAINING = "reschedule_now_with_remaining_repeat_count"
NEXT_EXISTING = "reschedule_next_with_existing_count"
NEXT_REMAINING = "reschedule_next_with_remaining_count"

TABLE = [
    Row("fixed", "smart_policy", *FIRST_RUNS, "11:15", 8),
    Row("fixed", NOW_EXISTING, *FIRST_RUNS, "11:15", 8),
    Row("fixed", "fire_now", *FIRST_RUNS, "11:15", 7),
    Row("fixed", NOW_REMAINING, *FIRST_RUNS, "11:15", 7),
    Row("fixed", NEXT_EXISTING, *NONE_RUNS, "11:00", 6),
    Row("fixed", NEXT_REMAINING, *NONE_RUNS, "11:00", 6),
    Row("fixed", "ignore_misfire_policy", *BOTH_RUN, "11:00", 8),
    Row("endless", "smart_policy", *NONE_RUNS, "11:00"),
    Row("endless", NEXT_EXISTING, *NONE_RUNS, "11:00"),
    Row("endless", NEXT_REMAINING, *NONE_RUNS, "11:00"),
    Row("endless", "do_nothing", *NONE_RUNS, "11:00"),
    Row("endless", "fire_now", *FIRST_RUNS, "11:15"),
    Row("endless", NOW_EXISTING, *FIRST_RUNS, "11:15"),
    Row("endless", NOW_REMAINING, *FIRST_RUNS, "11:15"),
    Row("endless", "ignore_misfire_policy", *BOTH_RUN, "11:00"),
    Row("endless", "fire_once_now", *FIRST_RUNS, "11:00"),
    Row("cron", "fire_once_now", *FIRST_RUNS, "11:00"),
    Row("cron", "smart_policy", *FIRST_RUNS, "11:00"),
    Row("cron", "do_nothing", *NONE_RUNS, "11:00"),
    Row("cron", "ignore_misfire_policy", *BOTH_RUN, "11:00"),
    Row("once", NEXT_EXISTING, "missed", "", None, 0),
    Row("once", NEXT_REMAINING, "missed", "", None, 0),
    Row("once", "do_nothing", "missed", "", None, 0),
    Row("once", "smart_policy", "recovered", "", None, 1),
    Row("once", "ignore_misfire_policy", "recovered", "", None, 1),
    Row("once", "fire_once_now", "recovered", "", None, 1),
    Row("once", "fire_now", "recovered", "", None, 1),
    Row("once", NOW_EXISTING, "recovered", "", None, 1),
    Row("once", NOW_REMAINING, "recovered", "", None, 1),
]


def _described(row: Row, nine: int) -> dict[str, Any]:
    start, interval = nine / 1000, HOUR / 1000
    match row.trigger:
        case "fixed":
            return {"type": "simple", "start": start, "interval": interval, "repeat_count": 7}
        case "endless":
            return {"type": "simple", "start": start, "interval": interval}
        case "cron":
            return {"type": "own", "start": start, "every": interval}
        case _:
            return {"type": "simple", "start": start}


@pytest.mark.takes(28)
@pytest.mark.timeout(300)
def test_the_classic_example_comes_out_as_in_the_table(project: Project, redis_server: RedisServer):
    nine, first_seen = seen_before(
        project,
        redis_server,
        lambda due: {
            row.name: {
                "schedule": _described(row, due),
                "misfire": {"instruction": row.instruction, "threshold": THRESHOLD},
            }
            for row in TABLE
        },
    )
    ten, eleven = nine + HOUR, nine + 2 * HOUR
    start_again = project.beat_at_gate()
    sleep_until((ten + HOUR / 4) / 1000)
    beat = start_again()
    fixed = [row.name for row in TABLE if row.trigger == "fixed"]
    wait_for(lambda: all(not project.state(n).state.next_fire_time for n in fixed), 60, what="the last runs")
    settle(project, *(row.name for row in TABLE))
    beat.stop()

    messages, decisions = published(redis_server.url), project.decisions()
    misfires = {line["entry"]: line for line in decisions if line["event"] == "misfire"}
    assert beat.exit_code == 0
    for row in TABLE:
        # 10:15 is when this entry was decided, to the millisecond.
        misfire, sent = misfires.pop(row.name), of_entry(messages, row.name)
        back = misfire["now"]
        assert ten < back < eleven, "this machine is too slow: beat was not back before 11:00"
        assert misfire["reason"] == "scheduler_down"

        found = outcomes(messages, decisions, row.name, HOUR)
        assert [kind for kind, _ in found[nine]] == [row.nine], row
        if row.ten:
            assert [kind for kind, _ in found[ten]] == [row.ten], row
        later = sorted(scheduled(m) for m in sent if scheduled(m) > ten)
        following = {"11:00": eleven, "11:15": back + HOUR, None: None}[row.next]
        assert (later[0] if later else None) == following, row
        if row.runs is not None:
            assert len(sent) == row.runs, row
        if row.trigger == "fixed":
            last = eleven + 5 * HOUR if row.next == "11:00" else back + (6 if row.runs == 7 else 7) * HOUR
            assert later[-1] == last, row

        assert_as_simulated(row, nine, first_seen[row.name], back, sent, decisions)
    assert misfires == {}, "misfired after the return"


def assert_as_simulated(
    row: Row, nine: int, first_seen: int, back: int, sent: list[Message], decisions: list[dict[str, Any]]
) -> None:
    until = max([back, *map(scheduled, sent)])
    simulation = simulate(
        build_schedule(_described(row, nine)),
        policy=MisfirePolicy(row.instruction, THRESHOLD),
        start=from_millis(first_seen),
        down_at=from_millis(nine),
        up_at=from_millis(back),
        until=from_millis(until),
    )

    def story(fire: dict[str, Any]) -> tuple[datetime, str, int]:
        merged = fire["missed_count"] - (fire["outcome"] == "recovered")
        return datetime.fromisoformat(fire["scheduled_fire_time"]), fire["outcome"], merged

    expected = [(f.scheduled_fire_time, str(f.outcome), f.merged) for f in simulation.fires]
    assert [story(m.misfire or {}) for m in sent] == expected, row
    missed = [
        (from_millis(line["first"]), from_millis(line["last"]), line["count"])
        for line in decisions
        if line["event"] == "missed" and line["entry"] == row.name
    ]
    assert missed == [(m.first, m.last, m.count) for m in simulation.missed], row


# -- what is no misfire ------------------------------------------------------------------------------------


def test_a_first_start_on_an_empty_redis_runs_nothing_at_once_and_misses_nothing(
    project: Project, redis_server: RedisServer
):
    begin = time.time()
    project.configure(
        {
            "interval": {"schedule": EVERY_SECOND, "misfire": "ignore_misfire_policy"},
            "crontab": {"schedule": {"type": "crontab"}, "misfire": "ignore_misfire_policy"},
            "long since begun": {
                "schedule": {"type": "simple", "start": begin - 3600, "interval": 1},
                "misfire": "ignore_misfire_policy",
            },
            "long over": {"schedule": {"type": "simple", "start": begin - 3600}},
        },
        misfire_threshold=PATIENT,
    )
    project.beat()
    first = wait_for(lambda: of_entry(published(redis_server.url), "interval"), 60)[0]
    wait_for(lambda: of_entry(published(redis_server.url), "long since begun"))
    seen = project.state("interval").generation
    assert seen >= begin * 1000
    assert scheduled(first) == seen + 1000
    for message in published(redis_server.url):
        assert scheduled(message) > seen
        assert message.misfire["outcome"] == "fired"
    assert {line["event"] for line in project.decisions()} == {"lead", "sent"}
    assert project.state("long over").state.next_fire_time is None
    assert project.log().count(NEW_STATE) == 1
    assert warnings(project.log()) == []


def test_a_beat_that_comes_back_inside_the_threshold_runs_once_and_without_a_misfire(
    project: Project, redis_server: RedisServer
):
    def entries(due: int) -> dict[str, Any]:
        start = due / 1000
        schedules = {
            "endless": {"type": "simple", "start": start, "interval": 120},
            "cron": {"type": "own", "start": start, "every": 120},
            "once": {"type": "simple", "start": start},
        }
        return {
            f"{kind} {instruction}": {"schedule": schedule, "misfire": instruction}
            for kind, schedule in schedules.items()
            for instruction in ("smart_policy", "do_nothing", "ignore_misfire_policy")
        }

    due, names = seen_before(project, redis_server, entries)
    start_again = project.beat_at_gate()
    sleep_until(due / 1000 + 1)
    start_again()
    wait_for(lambda: len(published(redis_server.url)) >= len(names))
    settle(project, *names)
    messages = published(redis_server.url)
    assert sorted(m.misfire["entry"] for m in messages) == sorted(names)
    for message in messages:
        assert (scheduled(message), message.misfire["outcome"]) == (due, "fired")
        assert message.misfire["missed_count"] == 0
        assert datetime.fromisoformat(message.misfire["fire_time"]) >= from_millis(due + 1000)
    assert {line["event"] for line in project.decisions()} == {"lead", "sent"}
    assert project.signals() == []


def test_a_restart_with_nothing_due_runs_nothing(project: Project, redis_server: RedisServer):
    project.configure(
        {
            "hourly interval": {"schedule": {"type": "interval", "seconds": 3600}},
            "yearly": {"schedule": {"type": "own", "every": 366 * 86400}},
            "later": {"schedule": {"type": "simple", "start": time.time() + 3600}},
            "over": {"schedule": {"type": "simple", "interval": 1, "repeat_count": 1}},
        },
        misfire_threshold=PATIENT,
    )
    names = ["hourly interval", "yearly", "later", "over"]
    beat = project.beat()
    # That an entry has run before is no reason to run it again.
    wait_for(lambda: len(of_entry(published(redis_server.url), "over")) == 2, 60)
    settle(project, *names)
    beat.kill()
    before = {name: project.state(name) for name in names}
    beat = project.leading_beat()
    # Time for all that a take-over could bring up.
    time.sleep(1.5)
    beat.stop()
    assert {name: project.state(name) for name in names} == before
    assert len(published(redis_server.url)) == 2
    assert [line["event"] for line in project.decisions()] == ["lead", "sent", "sent", "lead"]
    assert project.log().count(NEW_STATE) == 1


def test_an_entry_without_misfire_handling_is_planned_from_now_without_a_trace(
    project: Project, redis_server: RedisServer
):
    project.configure(
        {
            "off": {"schedule": EVERY_SECOND, "misfire": False},
            "on": {"schedule": EVERY_SECOND, "misfire": "do_nothing"},
        }
    )
    beat = project.beat()
    wait_for(lambda: of_entry(published(redis_server.url), "off"), 60)
    beat.kill()
    down = time.time()
    sleep_until(down + 3)
    project.beat()
    wait_for(lambda: [d for d in project.decisions() if d["event"] == "missed"], 60)
    back = project.terms()[-1]["now"]
    wait_for(lambda: [m for m in of_entry(published(redis_server.url), "off") if scheduled(m) > back])
    settle(project, "on", "off")
    messages, decisions = published(redis_server.url), project.decisions()
    times = sorted(scheduled(m) for m in of_entry(messages, "off"))
    grid = project.state("off").state.start_time
    assert {(t - grid) % 1000 for t in times} == {0}
    # What was late by less than the automatic threshold of half a second may have run.
    assert [t for t in times if down * 1000 + 100 < t < back - 500] == []
    assert {m.misfire["outcome"] for m in of_entry(messages, "off")} == {"fired"}
    assert {d["event"] for d in decisions if d.get("entry") == "off"} == {"sent"}
    assert [s for s in project.signals() if s.get("entry") == "off"] == []
    assert "misfire of 'off'" not in project.log()


# -- what a missed run leaves ------------------------------------------------------------------------------


def reader(url: str) -> Celery:
    """Return an app that reads results, as a web process would."""
    app = Celery("reader", broker=url, backend=url, set_as_current=False)
    return celery_misfire.install(app)


def miss_some(project: Project, entries: dict[str, Any], **settings: Any) -> CeleryProcess:
    """Let beat run these entries once, be away for three seconds, and report what was missed then."""
    # What waits for the worker is not this file's business.
    project.configure(entries, misfire_threshold=2, misfire_worker_guard=False, **settings)
    beat = project.leading_beat()
    wait_for(lambda: all(project.state(name).state.previous_fire_time for name in entries), 60)
    beat.kill()
    time.sleep(3)
    beat = project.beat()
    wait_for(lambda: {d["entry"] for d in project.decisions() if d["event"] == "missed"} == set(entries), 60)
    settle(project, *entries)
    return beat


def test_missed_runs_leave_a_result_signals_a_handler_task_and_a_log_line(
    project: Project, redis_server: RedisServer
):
    miss_some(
        project,
        {
            "stocks": {"schedule": EVERY_SECOND, "misfire": "do_nothing"},
            "watched": {
                "schedule": EVERY_SECOND,
                "args": ["user data"],
                "misfire": {"instruction": "do_nothing", "on_missed": "on_missed"},
            },
        },
    )
    project.worker()
    handled = wait_for(lambda: project.signals("on_missed"), 60)
    decisions, signals = project.decisions(), project.signals()
    for entry in ("stocks", "watched"):
        (missed,) = [d for d in decisions if d["event"] == "missed" and d["entry"] == entry]
        (misfire,) = [d for d in decisions if d["event"] == "misfire" and d["entry"] == entry]
        assert missed["count"] == misfire["count"] >= 2
        assert (missed["first"], missed["last"]) == (misfire["first"], misfire["last"])
        assert missed["reason"] == "scheduler_down"
        generation = project.state(entry).generation
        assert missed["id"] == task_id(NAMESPACE, entry, generation, missed["first"])

        result = reader(redis_server.url).AsyncResult(missed["id"])
        assert (result.state, result.ready(), result.failed()) == ("MISSED", True, True)
        with pytest.raises(TaskMissed, match=f"'{entry}' missed {missed['count']} runs .*scheduler_down"):
            result.get(timeout=10)
        record = result.backend.get_task_meta(missed["id"])["result"]
        assert (record["entry"], record["count"]) == (entry, missed["count"])

        mine = [s for s in signals if s.get("entry") == entry or s.get("task_id") == missed["id"]]
        kinds = sorted(s["signal"] for s in mine)
        also = ["on_missed"] if entry == "watched" else []
        assert kinds == sorted(["misfire_detected", "task_failure", "task_missed", *also])
        by_kind = {s["signal"]: s for s in mine}
        assert by_kind["misfire_detected"]["outcomes"] == {"missed": missed["count"]}
        assert by_kind["task_missed"]["task_id"] == missed["id"]
        failure = by_kind["task_failure"]
        assert (failure["sender"], failure["kind"]) == ("record", "TaskMissed")
        assert "Traceback" in failure["traceback"]
        assert project.log().count(f"misfire of '{entry}'") == 1
    (handled,) = handled
    assert {k: v for k, v in handled.items() if k != "signal"} == {
        k: v for k, v in by_kind["task_missed"].items() if k not in ("signal", "sender")
    }
    state = "".join(redis_server.client().hvals("celery-misfire:{acceptance}:state"))
    for text in (project.log(), str(decisions), str(signals), state):
        assert "user data" not in text
    assert "Traceback" not in project.log()


def test_a_deploy_leaves_the_same_but_raises_no_alarm(project: Project, redis_server: RedisServer):
    misfire = {"instruction": "do_nothing", "threshold": 0.5, "on_missed": "on_missed"}
    project.configure({"tick": {"schedule": EVERY_SECOND, "misfire": misfire}}, misfire_worker_guard=False)
    beat = project.leading_beat()
    for done in range(1, 4):
        sent = len(of_entry(published(redis_server.url), "tick"))
        wait_for(lambda n=sent: len(of_entry(published(redis_server.url), "tick")) > n + 1, 60, what="runs")
        beat.stop()
        assert beat.exit_code == 0
        # Longer than the threshold, and than the time for which nothing more is due.
        start_again = project.beat_at_gate()
        sleep_until(project.state("tick").state.next_fire_time / 1000 + 2)
        beat = start_again()
        wait_for(lambda n=done: len(project.signals("task_missed")) >= n, 60, what="the miss")
    settle(project, "tick")
    assert {line["reason"] for line in project.terms()[1:]} == {"restarted"}
    missed = [line for line in project.decisions() if line["event"] == "missed"]
    assert {line["reason"] for line in missed} == {"restarted"}
    assert len(missed) == 3
    assert {s["reason"] for s in project.signals("task_missed")} == {"restarted"}
    assert project.signals("task_failure") == []
    assert [line for line in project.log().splitlines() if "misfire of 'tick'" in line and "INFO" in line]
    assert [line for line in warnings(project.log()) if NEW_STATE not in line] == []
    project.worker()
    wait_for(lambda: len(project.signals("on_missed")) == 3, 60, what="the handler task")
    result = reader(redis_server.url).AsyncResult(missed[0]["id"])
    assert (result.state, result.ready(), result.failed()) == ("MISSED", True, True)


def test_each_missed_run_has_a_result_of_its_own_where_that_is_wanted(
    project: Project, redis_server: RedisServer
):
    miss_some(
        project,
        {"stocks": {"schedule": EVERY_SECOND, "misfire": "do_nothing"}},
        misfire_missed_results="each",
    )
    decisions = project.decisions()
    (misfire,) = [d for d in decisions if d["event"] == "misfire"]
    generation = project.state("stocks").generation
    times = range(misfire["first"], misfire["last"] + 1, 1000)
    assert len(times) == misfire["count"] >= 2
    ids = [task_id(NAMESPACE, "stocks", generation, t) for t in times]
    missed = [d for d in decisions if d["event"] == "missed"]
    assert [(d["first"], d["last"], d["count"], d["id"]) for d in missed] == [
        (t, t, 1, id_) for t, id_ in zip(times, ids, strict=True)
    ]
    app = reader(redis_server.url)
    for id_ in ids:
        with pytest.raises(TaskMissed, match="'stocks' missed 1 run "):
            app.AsyncResult(id_).get(timeout=10)
    for signal in ("task_missed", "task_failure"):
        assert [s["task_id"] for s in project.signals(signal)] == ids
    assert len(project.signals("misfire_detected")) == 1


@pytest.mark.parametrize(
    "disabled", [{"result_backend": None}, pytest.param({"task_ignore_result": True}, marks=pytest.mark.long)]
)
def test_without_results_a_missed_run_is_signalled_all_the_same_and_nothing_is_stored(
    project: Project, redis_server: RedisServer, disabled: dict[str, Any]
):
    miss_some(
        project,
        {"stocks": {"schedule": EVERY_SECOND, "misfire": {"instruction": "do_nothing"}}},
        misfire_on_missed="on_missed",
        **disabled,
    )
    (missed,) = [d for d in project.decisions() if d["event"] == "missed"]
    for signal in ("task_missed", "task_failure"):
        assert [s["task_id"] for s in project.signals(signal)] == [missed["id"]]
    assert [m.kwargs["missed"]["task_id"] for m in published(redis_server.url) if m.task == "on_missed"] == [
        missed["id"]
    ]
    assert redis_server.client().keys("celery-task-meta-*") == []
    assert "Traceback" not in project.log()
    assert "ERROR" not in project.log()
