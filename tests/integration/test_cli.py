"""The command line on a real Redis: each command with a state, without one, and in trouble."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery.schedules import crontab

from celery_misfire import by_hand, records
from celery_misfire.misfire import MisfirePolicy, from_millis
from celery_misfire.pause_events import Paused
from celery_misfire.sending.broker import Broker
from celery_misfire.store.port import Change, Taken
from celery_misfire.store.registers import Started, StartRequest
from example_project.child_process import free_port
from tests.integration.test_leader import HOUR, MINUTE, World
from tests.support.command_line import ENTRIES, CommandLine, check_answer
from tests.support.processes import published, wait_for
from tests.support.redis_server import RedisServer

COMMANDS = {
    "status": ["status"],
    "next": ["next"],
    "missed": ["missed"],
    "log": ["log"],
    "simulate": ["simulate", "--down", "01:30", "--up", "10:15"],
    "run": ["run", "reports", "--at", "00:00"],
    "pause": ["pause", "reports", "--no-wait"],
    "resume": ["resume", "reports", "--no-wait"],
    "hold": ["hold", "--until", "2h", "--no-wait"],
    "health": ["health"],
    "doctor": ["doctor", "--no-workers"],
    "watch": ["watch", "--once"],
}


@pytest.fixture(autouse=True)
def empty(server: RedisServer) -> None:
    server.client().flushall()


@pytest.fixture
def shop(server: RedisServer) -> CommandLine:
    return CommandLine(server.url)


@pytest.fixture
def world(server: RedisServer) -> Iterator[World]:
    """A beat of these entries, which led, was away for three hours, and leads again."""
    hour = int(time.time() * 1000) // HOUR * HOUR
    world = World(server.url, now=hour - 6 * HOUR - 30 * MINUTE)
    for name, entry in ENTRIES.items():
        misfire = entry.get("misfire", "smart_policy")
        world.entry(name, entry["schedule"], MisfirePolicy(misfire) if misfire else None)
    world.start()
    world.run(hour - 4 * HOUR - 30 * MINUTE)
    world.crash()
    world.now = hour - HOUR - 30 * MINUTE
    world.start()
    world.run(int(time.time() * 1000))
    yield world
    if world.leader is not None:
        world.stop()


def make_late(world: World, name: str, late_by: int) -> None:
    """Let the next fire time of an entry have passed, and nobody lead."""
    store, now = world.store, int(time.time() * 1000)
    assert isinstance(store.acquire("past", 60), Taken)
    text = store.load()[name]
    record = records.loads(text)
    late = replace(record, state=replace(record.state, next_fire_time=now - late_by))
    assert store.commit("past", [Change(name, text, records.dumps(late))]).conflicts == ()
    store.release("past")


# -- happy paths -------------------------------------------------------------------------------------------


def test_status_says_who_leads_and_where_each_entry_stands(shop: CommandLine, world: World):
    answer = shop.json("status")
    assert (answer["namespace"], answer["redis"]) == ("test", f"127.0.0.1:{shop.url.rsplit(':')[2][:-2]}")
    assert answer["leader"]["name"] == world.store.process
    assert answer["overdue"] == 0
    entries = {entry["name"]: entry for entry in answer["entries"]}
    assert entries.keys() == ENTRIES.keys()
    reports, stocks = entries["reports"], entries["stocks"]
    assert (reports["schedule"], stocks["schedule"]) == ("crontab 0 * * * *", "every 15 minutes")
    assert (reports["instruction"], entries["off"]["instruction"]) == ("ignore_misfire_policy", "off")
    night = entries["night"]
    assert (night["instruction"], night["resolved"]) == ("smart_policy", "fire_once_now")
    assert (reports["last_24h"]["recovered"], stocks["last_24h"]["missed"]) == (3, 12)
    assert datetime.fromisoformat(reports["next"]) > datetime.now(UTC)
    assert reports["last_outcome"] == "fired"
    assert answer["last_24h"]["recovered"] >= 3
    # World's beat publishes what it counts.
    in_time = [m.intent.scheduled for m in world.sent if m.definition.name == "stocks"]
    assert stocks["last_24h"]["fired"] == len(in_time) > 0
    text = shop.text("status")
    assert re.search(r"^leader +\S+:\d+, since \d{4}-", text, re.MULTILINE)
    assert re.search(rf"stocks .* do_nothing .* {len(in_time)} fired, 12 missed", text)


def test_runs_in_time_of_an_entry_are_not_known_where_the_log_is_too_short(shop: CommandLine, world: World):
    shop.settings["misfire_history"] = 20
    entries = {entry["name"]: entry["last_24h"] for entry in shop.json("status")["entries"]}
    assert entries["stocks"] == {"fired": None, "recovered": 0, "merged": 0, "missed": 12}
    assert shop.json("status")["last_24h"]["fired"] > 0
    assert re.search(r"stocks .* - fired, 12 missed", shop.text("status"))


def test_status_counts_what_is_overdue_and_its_exit_code_says_so(shop: CommandLine, world: World):
    world.crash()
    store, late = world.store, HOUR + 30 * MINUTE
    make_late(world, "stocks", late)
    assert isinstance(store.acquire("token", 60), Taken)
    answer = shop.json("status", code=1)
    assert answer["overdue"] == 1
    # What is overdue comes first.
    first = answer["entries"][0]
    assert (first["name"], first["overdue"]) == ("stocks", True)
    assert late / 1000 <= first["late_by"] < late / 1000 + 60
    assert "1 h 30 min, overdue" in shop.text("status", code=1)
    store.release("token")
    answer = shop.json("status", code=1)
    assert answer["leader"] is None
    assert "nobody leads" in shop.text("status", code=1)
    assert "nobody leads" in shop.text("status", "--entry", "night", code=1)


DEAD_BEAT = """
import os, socket, sys
from celery_misfire.beats import Sign
from celery_misfire.store.redis_store import RedisStore
sign = Sign(host=socket.gethostname(), pid=os.getpid(), every=5, clock=0, started=0)
RedisStore(sys.argv[1], "test").acquire("token", 60, sign=str(sign))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells whether a process is the same one")
def test_status_is_not_fine_while_the_lease_is_that_of_a_beat_that_was_killed(
    shop: CommandLine, world: World
):
    world.crash()
    subprocess.run([sys.executable, "-c", DEAD_BEAT, shop.url], check=True)
    assert "has ended without a word" in shop.text("status", code=1)
    assert shop.json("status", code=1)["overdue"] == 0


def test_next_is_in_order_and_by_the_hour(shop: CommandLine, world: World):
    answer = shop.json("next", "--for", "24h", "--limit", "1000")
    times = [run["time"] for run in answer["runs"]]
    assert times == sorted(times)
    names = [run["entry"] for run in answer["runs"]]
    assert (names.count("reports"), names.count("stocks"), names.count("night")) == (24, 96, 1)
    assert answer["total"] == len(names) == sum(hour["runs"] for hour in answer["hours"])
    assert len(shop.json("next", "--limit", "5")["runs"]) == 5
    assert "more; --limit shows them" in shop.text("next", "--limit", "5")
    assert {run["entry"] for run in shop.json("next", "--entry", "n*t")["runs"]} == {"night"}
    assert "busiest minute" in shop.text("next", "--by-hour")
    text = shop.text("next", "--for", "7d", "--by-hour", "--limit", "3")
    assert re.search(r"^16[56] more; --limit shows them$", text, re.MULTILINE)


def test_next_finds_the_herd_at_minute_0(shop: CommandLine, world: World):
    shop.entries |= {f"herd{n}": {"task": "shop.herd", "schedule": crontab(minute=0)} for n in range(40)}
    assert max(hour["at_once"] for hour in shop.json("next")["hours"]) >= 41
    assert re.search(r"\d+ of the \d+ runs of that hour come at once, at .*:00:00\S+ ", shop.text("next"))


def test_missed_has_each_record_with_the_id_of_its_result(shop: CommandLine, world: World):
    answer = shop.json("missed")
    (record,) = answer["missed"]
    assert (record["entry"], record["count"], record["reason"]) == ("stocks", 12, "scheduler_down")
    assert record["id"] == world.missed[0].missed.task_id
    assert datetime.fromisoformat(record["first"]) == world.missed[0].missed.first
    assert answer["occurrences"] == 12
    assert record["id"] in shop.text("missed")
    assert shop.json("missed", "--reason", "paused")["missed"] == []
    assert shop.json("missed", "--entry", "reports")["missed"] == []
    assert shop.json("missed", "--since", "2099-01-01")["missed"] == []
    assert "nothing was missed since" in shop.text("missed", "--since", "2099-01-01")


def test_the_log_can_be_asked_for_an_entry_and_an_outcome(shop: CommandLine, world: World):
    lines = shop.json("log", "--limit", "5000")["lines"]
    assert [line["event"] for line in lines].count("lead") == 2
    recovered = shop.json("log", "reports", "--outcome", "recovered")["lines"]
    assert {line["event"] for line in recovered} == {"misfire", "sent"}
    assert {line["entry"] for line in recovered} == {"reports"}
    assert shop.json("log", "night", "--outcome", "missed")["lines"] == []
    assert "misfire of 'stocks'" in shop.text("log", "st*", "--outcome", "missed")
    assert "the log has nothing like that" in shop.text("log", "night", "--outcome", "missed")


def test_times_are_in_the_zone_of_the_app(shop: CommandLine, world: World):
    shop.settings["timezone"] = "Asia/Kolkata"
    assert shop.json("status")["now"].endswith("+05:30")
    assert all(run["time"].endswith("+05:30") for run in shop.json("next")["runs"])
    assert "+05:30" in shop.text("status")


def test_simulate_starts_from_the_state_and_tries_other_instructions(shop: CommandLine, world: World):
    answer = shop.json("simulate", "--down", "1h", "--up", "12h")
    assert answer["state"] == "from the state in Redis"
    entries = {entry["entry"]: entry for entry in answer["entries"]}
    assert (entries["stocks"]["due"], entries["stocks"]["missed"]) == (48, 48)
    assert entries["reports"]["recovered"] == entries["reports"]["due"] == 12
    one = shop.json("simulate", "stocks", "--down", "1h", "--up", "12h", "--instruction", "fire_once_now")
    (stocks,) = one["entries"]
    assert (stocks["recovered"], stocks["merged"], stocks["missed"]) == (1, 47, 0)
    text = shop.text("simulate", "stocks", "reports", "--down", "1h", "--up", "12h")
    assert "[" + "x" * 48 + "]" in text
    assert re.search(r"\[[.R]{48}\]", text)
    options = ("--down", "1h", "--up", "2h", "--instruction", "fire_now")
    problem = shop.error("simulate", "night", *options, code=2)
    assert problem == "entry 'night': fire_now does not fit a schedule of type cron"
    # For all of them, those that it does not fit say so.
    told = {e["entry"]: e for e in shop.json("simulate", *options)["entries"]}
    assert "does not fit" in told["night"]["problem"]
    assert told["stocks"]["resolved"] == "fire_now"


def test_simulate_knows_pauses_and_a_hold(shop: CommandLine, at_work: World):
    def entries(down: str, up: str) -> dict[str, dict[str, object]]:
        answer = shop.json("simulate", "reports", "stocks", "--down", down, "--up", up)
        return {entry["entry"]: entry for entry in answer["entries"]}

    before = entries("1h", "12h")
    pause = shop.json("pause", "stocks", "--until", "7h", "--reason", "month end")
    # It ends in the outage: what would have come before is no occurrence.
    during = entries("1h", "12h")
    assert during["reports"] == before["reports"]
    # The two commands look at the clock one after the other.
    assert during["stocks"]["due"] == during["stocks"]["missed"] in (24, 25)
    assert during["stocks"]["paused"] is None
    # It ends after the outage, and before it.
    after = entries("1h", "2h")["stocks"]
    assert (after["due"], after["missed"], after["paused"]["reason"]) == (0, 0, "month end")
    assert datetime.fromisoformat(after["next"]) > datetime.fromisoformat(pause["until"])
    assert entries("8h", "2h")["stocks"]["due"] == 8
    assert "(month end)" in shop.text("simulate", "stocks", "--down", "1h", "--up", "2h")
    # Runs that came due in the pause have misfired, as in Quartz.
    shop.settings["misfire_on_resume"] = "misfire"
    assert entries("1h", "12h")["stocks"]["missed"] in (52, 53)
    shop.settings["misfire_on_resume"] = "reschedule"
    assert shop.json("resume", "stocks")["done"]
    assert shop.json("hold", "--until", "7h")["done"]
    held = entries("1h", "12h")
    assert held["reports"]["recovered"] in (6, 7)
    assert held["stocks"]["missed"] in (24, 25)
    assert shop.json("pause", "stocks")["done"]
    endless = entries("1h", "12h")["stocks"]
    assert (endless["due"], endless["next"], endless["paused"]["until"]) == (0, None, None)


# -- run ---------------------------------------------------------------------------------------------------


def test_an_occurrence_is_run_with_its_own_time_and_once(shop: CommandLine, world: World):
    before = len(published(shop.url))
    begin = int(time.time() * 1000) // HOUR * HOUR
    at = from_millis(begin - 2 * HOUR).isoformat(timespec="milliseconds")
    dry = shop.json("run", "reports", "--at", at, "--dry-run")
    assert (dry["dry_run"], dry["task"], dry["runs"][0]["problem"]) == (True, "shop.reports", None)
    assert len(published(shop.url)) == before
    done = shop.json("run", "reports", "--at", at)
    assert done["runs"][0]["id"] == dry["runs"][0]["id"]
    message = published(shop.url)[-1]
    assert (message.id, message.task) == (done["runs"][0]["id"], "shop.reports")
    assert message.misfire["scheduled_fire_time"] == at
    again = shop.json("run", "reports", "--at", at, code=1)
    assert again["runs"][0]["problem"].startswith("has been run already (")
    assert shop.json("run", "reports", "--at", at, "--dry-run", code=1)["runs"][0]["problem"]
    assert "has been run already" in shop.text("run", "reports", "--at", at, code=1)
    assert len(published(shop.url)) == before + 1


def test_a_time_is_found_as_it_is_shown_without_its_milliseconds(shop: CommandLine, world: World):
    world.crash()
    store = world.store
    assert isinstance(store.acquire("past", 60), Taken)
    text = store.load()["stocks"]
    record = records.loads(text)
    # A grid begins when its entry is first seen, which is at no whole second.
    late = replace(record, state=replace(record.state, start_time=record.state.start_time + 777))
    assert store.commit("past", [Change("stocks", text, records.dumps(late))]).conflicts == ()
    scheduled = from_millis(late.state.start_time + 2 * HOUR)
    shown = scheduled.replace(microsecond=0)
    done = shop.json("run", "stocks", "--at", shown.isoformat(), "--dry-run")
    assert datetime.fromisoformat(done["runs"][0]["scheduled"]) == scheduled
    for wrong in (shown - timedelta(seconds=1), shown + timedelta(seconds=1)):
        assert "is no fire time" in shop.error("run", "stocks", "--at", wrong.isoformat(), code=2)


def test_all_occurrences_of_a_record_are_run(shop: CommandLine, world: World):
    (record,) = shop.json("missed")["missed"]
    before = len(published(shop.url))
    done = shop.json("run", "--missed", record["id"])
    assert (done["entry"], len(done["runs"]), done["more"], done["was_edited"]) == ("stocks", 12, 0, False)
    assert (done["runs"][0]["scheduled"], done["runs"][-1]["scheduled"]) == (record["first"], record["last"])
    assert len(published(shop.url)) == before + 12
    # Edited, it gives other fire times.
    shop.entries["stocks"] = shop.entries["stocks"] | {"schedule": 700.0}
    edited = shop.json("run", "--missed", record["id"], code=1)
    assert (edited["was_edited"], len(edited["runs"])) == (True, 2)
    del shop.entries["stocks"]
    assert "any more, so nobody knows what to send" in shop.error("run", "--missed", record["id"], code=4)


def test_what_an_admin_had_run_is_not_run_again_and_what_was_not_sent_can_be(shop: CommandLine, world: World):
    scheduled = int(time.time() * 1000) // HOUR * HOUR - 2 * HOUR
    at, id_ = from_millis(scheduled).isoformat(), by_hand.task_id("test", "reports", scheduled)
    shop.settings["broker_transport_options"] = {}
    port = free_port()
    shop.settings |= {"misfire_redis_url": shop.url, "broker_url": f"redis://127.0.0.1:{port}/0"}
    assert "could not be sent" in shop.text("run", "reports", "--at", at, code=1)
    shop.settings.pop("broker_url")
    world.store.start(id_, StartRequest(Started("nonce", "worker@host"), "reports", by_hand=True))
    assert "has been run already (worker@host)" in shop.text("run", "reports", "--at", at, code=1)


@pytest.mark.parametrize(
    ("arguments", "error", "code"),
    [
        (["run"], "say which occurrence", 2),
        (["run", "--at", "1h"], "which entry?", 2),
        (["run", "reports", "--at", "2099-01-01T00:00+00:00"], "is still to come", 2),
        (["run", "reports", "--at", "2026-03-02T09:01+00:00"], "is no fire time of 'reports'. Near: ", 2),
        (["run", "reports", "--at", "yesterday"], "is no time", 2),
        (["run", "--missed", "nothing"], "the log has no record 'nothing'", 2),
        (["run", "report", "--at", "1h"], "no entry 'report'. Did you mean 'reports'?", 4),
        (["pause", "report"], "no entry 'report'. Did you mean 'reports'?", 4),
        (["pause", "x*"], "no entry 'x*'.", 4),
        (["resume", "stock"], "Did you mean 'stocks'?", 4),
        (["status", "--entry", "nigth"], "Did you mean 'night'?", 4),
        (["next", "--entry", "nigth"], "Did you mean 'night'?", 4),
        (["missed", "--entry", "nigth"], "Did you mean 'night'?", 4),
        (["log", "nigth"], "Did you mean 'night'?", 4),
        (["simulate", "nigth", "--down", "1h", "--up", "2h"], "Did you mean 'night'?", 4),
        (["simulate", "--down", "2026-03-02", "--up", "2026-03-01"], "must end after it begins", 2),
        (["simulate", "--down", "2026-03-01", "--up", "2127-03-01"], "may last 100 years at most", 2),
        (["next", "--for", "soon"], "is no length of time", 2),
        (["missed", "--since", "24"], "is no time", 2),
        (["health", "--max-late", "nan"], "expected a number of seconds", 2),
        (["hold"], "say until when", 2),
        (["hold", "--until", "2h", "--end"], "say until when", 2),
        (["hold", "--until", "2020-01-01"], "has passed", 2),
        (["pause", "reports", "--reason", "x" * 201], "at most 200 characters", 2),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    shop: CommandLine, world: World, arguments: list[str], error: str, code: int
):
    assert error in shop.error(*arguments, code=code)


# -- pause, resume, hold -----------------------------------------------------------------------------------


def carry_out(world: World, stop: threading.Event) -> threading.Thread:
    """Let the leader carry out what is asked of it, until the test says stop."""

    def work() -> None:
        while not stop.wait(0.02):
            world.now = int(time.time() * 1000)
            world.lease.is_asked = True
            world.leader.tick()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.fixture
def at_work(world: World) -> Iterator[World]:
    stop = threading.Event()
    thread = carry_out(world, stop)
    yield world
    stop.set()
    thread.join()


def test_entries_are_paused_and_resumed_by_the_leader(shop: CommandLine, at_work: World):
    answer = shop.json("pause", "re*", "night", "--until", "2h", "--reason", "month end")
    assert (answer["entries"], answer["done"], answer["led"]) == (["reports", "night"], True, True)
    entries = {entry["name"]: entry for entry in shop.json("status")["entries"]}
    paused = entries["reports"]["paused"]
    assert (paused["reason"], paused["until"]) == ("month end", answer["until"])
    assert "@" in paused["by"]
    assert entries["stocks"]["paused"] is None
    assert "(month end)" in shop.text("status")
    until = datetime.fromisoformat(answer["until"])
    coming = [run for run in shop.json("next")["runs"] if run["entry"] == "reports"]
    assert all(datetime.fromisoformat(run["time"]) > until for run in coming)
    events = [line for line in shop.json("log", "reports")["lines"] if line["event"] == "paused"]
    assert "'reports' is paused until" in events[0]["sentence"]
    assert "resumed reports" in shop.text("resume", "reports")
    assert shop.json("status", "--entry", "reports")["entries"][0]["paused"] is None
    assert shop.json("resume", "*")["entries"] == ["night"]


def test_all_entries_are_held_and_released(shop: CommandLine, at_work: World):
    assert "all entries held until" in shop.text("hold", "--until", "3h", "--reason", "upgrade")
    status = shop.json("status")
    assert status["hold"]["reason"] == "upgrade"
    assert all(entry["paused"] == status["hold"] for entry in status["entries"])
    assert re.search(r"^hold +since .* until .* \(upgrade\)$", shop.text("status"), re.MULTILINE)
    assert shop.json("hold", "--end")["do"] == "release"
    assert shop.json("status")["hold"] is None


def test_a_command_about_one_entry_does_not_read_the_others(
    server: RedisServer, shop: CommandLine, at_work: World
):
    with server.recorded_commands() as commands:
        assert shop.json("pause", "stocks")["done"]
        assert shop.json("resume", "stocks")["entries"] == ["stocks"]
        shop.json("run", "reports", "--at", f"{datetime.now(UTC):%H}:00", "--dry-run")
    assert [command for command in commands if command.startswith("HGETALL") and ":state" in command] == []
    assert any(command.startswith("HMGET") for command in commands)


def test_what_is_not_paused_or_held_is_not_said_to_go_on(shop: CommandLine, at_work: World):
    answer = shop.json("resume", "*")
    assert (answer["entries"], answer["done"]) == ([], True)
    assert shop.text("resume", "*") == "none of these entries is paused\n"
    before = len(shop.json("log")["lines"])
    assert shop.text("hold", "--end") == "there is no hold\n"
    assert shop.json("hold", "--end")["done"]
    assert len(shop.json("log")["lines"]) == before
    # A hold that is asked for can be taken back before the leader has heard of it.
    shop.text("hold", "--until", "1h", "--no-wait")
    assert shop.text("hold", "--end") == "hold ended\n"
    assert shop.json("status")["hold"] is None


def test_what_nobody_carries_out_waits_for_the_next_leader(shop: CommandLine, world: World):
    world.crash()
    answer = shop.json("pause", "reports", code=1)
    assert (answer["led"], answer["done"]) == (False, False)
    text = shop.text("hold", "--until", "1h", code=1)
    assert "Nobody leads; the next beat that does does this first" in text
    assert shop.json("status", code=1)["requests"] == 2
    world.now = int(time.time() * 1000)
    world.start()
    assert shop.json("status")["requests"] == 0
    assert shop.json("status")["hold"] is not None


# -- without a state, in trouble ---------------------------------------------------------------------------

#: What each command does where no beat has ever led.
IN_EMPTY = {
    "status": (1, "nobody leads"),
    "next": (0, "reports"),
    "missed": (0, "nothing was missed since"),
    "log": (0, "the log has nothing like that"),
    "simulate": (0, "as if entries were first seen now"),
    "run": (0, "sent"),
    "pause": (1, "Nobody leads"),
    "resume": (0, "none of these entries is paused"),
    "hold": (1, "Nobody leads"),
    "health": (1, "not healthy: no beat leads"),
    "doctor": (1, "no beat leads"),
    "watch": (0, ""),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_without_a_state_each_command_says_what_there_is(shop: CommandLine, name: str):
    code, text = IN_EMPTY[name]
    assert text in shop.text(*COMMANDS[name], code=code)
    if name not in ("run", "watch"):
        assert shop.json(*COMMANDS[name], code=code)["command"] == name


@pytest.mark.parametrize("name", COMMANDS)
def test_without_entries_no_command_fails(shop: CommandLine, name: str):
    shop.entries = {}
    if name in ("run", "pause", "resume"):
        assert "no entry 'reports'." in shop.error(*COMMANDS[name], code=4)
    else:
        assert shop.call(*COMMANDS[name]).exit_code in (0, 1)


@pytest.mark.parametrize("name", COMMANDS)
def test_without_redis_each_command_ends_with_3_and_one_line(name: str):
    shop = CommandLine(f"redis://:top-secret@127.0.0.1:{free_port()}/0")
    if name == "simulate":
        assert "Connection refused" in shop.text(*COMMANDS[name])
        return
    error = shop.error(*COMMANDS[name], code=3)
    assert re.fullmatch(r"Redis at 127\.0\.0\.1:\d+: ConnectionError \(Connection refused\)", error)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_user_without_rights_is_told_so_in_one_line(server: RedisServer, shop: CommandLine, name: str):
    client = server.client()
    client.execute_command("ACL", "SETUSER", "nobody", "on", ">pw", "resetkeys", "-@all", "+ping", "+select")
    try:
        url = shop.url.replace("redis://", "redis://nobody:pw@")
        poor = CommandLine(url)
        if name == "simulate":
            assert "as if entries were first seen now (Redis at" in poor.text(*COMMANDS[name])
            return
        error = poor.error(*COMMANDS[name], code=3)
        assert "Give the user the rights that are listed in the documentation." in error
        assert "pw" not in error
    finally:
        client.execute_command("ACL", "DELUSER", "nobody")


def test_the_documented_rights_are_enough(server: RedisServer, world: World):
    redis_page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
    rule = re.search(r"^\$ redis-cli (ACL SETUSER beat on .*?)^```", redis_page, re.MULTILINE | re.DOTALL)
    assert rule
    words = shlex.split(rule[1].replace("\\\n", " ").replace("{shop}", "{test}"))
    client = server.client()
    client.execute_command(*[">pw" if word == ">PASSWORD" else word for word in words])
    more = ("+lpush", "+lpop", "+sadd", "~celery", "~_kombu*", "+multi", "+exec")
    client.execute_command("ACL", "SETUSER", "beat", *more)
    try:
        shop = CommandLine(server.url.replace("redis://", "redis://beat:pw@"))
        for name, arguments in COMMANDS.items():
            if name != "run":
                assert shop.call(*arguments).exit_code in (0, 1), (name, shop.call(*arguments).output)
        assert shop.json("status")["leader"]["lease_left"] is not None
    finally:
        client.execute_command("ACL", "DELUSER", "beat")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_configuration_is_one_line_and_2(shop: CommandLine, name: str):
    shop.settings |= {"misfire_threshold": "soon", "misfire_lease_ttl": -1}
    error = shop.error(*COMMANDS[name], code=2)
    assert "the configuration has 2 problems" in error
    assert "misfire_threshold" in error


def test_a_wrong_scheduler_is_said(shop: CommandLine):
    assert "has no misfire handling" in shop.error("-S", "celery.beat:Scheduler", "status", code=2)
    assert "scheduler 'nowhere:Thing'" in shop.error("-S", "nowhere:Thing", "status", code=2)
    # Beat may be started with -S.
    shop.settings["beat_scheduler"] = "celery.beat:PersistentScheduler"
    assert shop.json("status", code=1)["leader"] is None


def test_commands_that_do_not_exist_and_options_that_are_wrong_are_one_line(shop: CommandLine):
    assert shop.call("statsu").stderr == "Error: no command 'statsu'. Did you mean 'status'?\n"
    for arguments in (["status", "--limit", "0"], ["next", "--nothing"], ["missed", "--reason", "boredom"]):
        result = shop.call(*arguments)
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output


# -- health, watch, doctor ---------------------------------------------------------------------------------


def test_health_looks_at_lateness_too(shop: CommandLine, world: World):
    assert shop.json("health")["healthy"]
    assert shop.text("health", "--max-late", "60") == "healthy\n"
    assert shop.json("health", "--this-host", code=1)["reason"].startswith("no beat of host")


def test_watch_raises_an_alarm_once_and_calls_the_command(shop: CommandLine, world: World, tmp_path: Path):
    world.crash()
    make_late(world, "stocks", HOUR)
    told = tmp_path / "told"
    alert = f'echo "$MISFIRE_ALARM $MISFIRE_ENTRIES" >> {told}; test "$MISFIRE_ALARM" != over'
    answer = shop.json("watch", "--once", "--alert", alert, code=1)
    assert (answer["alarm"], answer["entries"]) == ("raised", ["stocks"])
    # The alarm is on, and has been told.
    assert shop.text("watch", "--once", "--alert", alert, code=1) == ""
    world.start()
    result = shop.call("watch", "--once", "--alert", alert)
    assert "beat is back" in result.stdout
    assert "ended with exit code 1" in result.stderr
    assert told.read_text() == "raised stocks\nover \n"
    # No guard works here.
    assert not world.store.is_guarded()


@pytest.mark.parametrize("how", ["pause", "hold"])
def test_what_is_paused_or_held_raises_no_alarm(shop: CommandLine, world: World, how: str):
    asked = ["pause", "stocks"] if how == "pause" else ["hold"]
    shop.text(*asked, "--until", "2h", "--no-wait")
    world.lease.is_asked = True
    world.now = int(time.time() * 1000)
    world.leader.tick()
    world.crash()
    make_late(world, "stocks", HOUR)
    assert shop.json("status", code=1)["overdue"] == 0
    assert shop.text("watch", "--once") == ""


def test_doctor_says_what_would_bite_later_with_its_fix(shop: CommandLine, server: RedisServer, world: World):
    server.client().config_set("maxmemory-policy", "allkeys-lru")
    shop.settings |= {
        "broker_transport_options": {"visibility_timeout": 200_000},
        "misfire_redis_url": shop.url.replace("/0", "/0"),
    }
    shop.entries["stocks"] = shop.entries["stocks"] | {"misfire": {"threshold": 1000}}
    try:
        answer = shop.json("doctor", "--no-workers", code=1)
    finally:
        server.client().config_set("maxmemory-policy", "noeviction")
    found = {(f["check"], f["text"]): f["fix"] for f in answer["findings"]}
    texts = " ".join(text for _, text in found)
    for expected in (
        "may drop the state",
        "keeps nothing on disk",
        "keeps no MISSED results",
        "is not less than the interval",
        "visibility_timeout (200000 s) is longer than registers are kept",
        "gives no sign of life",
    ):
        assert expected in texts
    assert all(fix or check == "configuration" for (check, _), fix in found.items())
    # In the text, too.
    assert "may drop the state" not in shop.text("doctor", "--no-workers", code=1)


def test_doctor_compares_with_the_deployment_of_the_state_also_when_nobody_leads(
    shop: CommandLine, world: World
):
    broker = Broker(shop.app())
    world.store.write_destination(world.lease.token, broker.destination(world.store.place_keys))
    broker.close()
    world.crash()

    def found() -> list[str]:
        findings = shop.json("doctor", "--no-workers", code=1)["findings"]
        return [f["text"] for f in findings if f["check"] == "broker"]

    assert found() == []
    shop.settings["task_default_queue"] = "other"
    (text,) = found()
    assert text.endswith("the default queue is 'celery' there and 'other' here")
    shop.settings |= {"misfire_redis_url": shop.url, "broker_url": shop.url.replace("/0", "/1")}
    elsewhere, two_steps = found()
    assert "the broker, its database or virtual host is another one" in elsewhere
    assert "another Redis database than the state" in two_steps


def test_doctor_sees_that_the_broker_is_another_database(shop: CommandLine, world: World):
    shop.settings |= {"misfire_redis_url": shop.url, "broker_url": shop.url.replace("/0", "/1")}
    findings = [f["text"] for f in shop.json("doctor", "--no-workers", code=1)["findings"]]
    assert any("another Redis database than the state" in text for text in findings)
    shop.settings["broker_url"] = f"redis://127.0.0.1:{free_port()}/0"
    findings = [f for f in shop.json("doctor", "--no-workers", code=1)["findings"] if f["check"] == "broker"]
    assert "Connection refused" in findings[0]["text"]


# -- as people call it -------------------------------------------------------------------------------------


def test_celery_finds_the_command_and_tells_of_it(server: RedisServer, tmp_path: Path):
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\n"
        f"app = Celery('proj', broker={server.url!r})\n"
        "app.conf.beat_schedule = {'tick': {'task': 't', 'schedule': 60.0}}\n"
    )

    def celery(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "celery", "-A", "proj", *arguments]
        environment = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    assert "misfire" in celery("--help").stdout
    status = celery("misfire", "status")
    assert (status.returncode, status.stderr) == (1, "")
    assert "nobody leads" in status.stdout
    assert "tick" in status.stdout
    unknown = celery("misfire", "pause", "tock")
    assert (unknown.returncode, unknown.stderr) == (4, "Error: no entry 'tock'. Did you mean 'tick'?\n")


def test_a_reader_may_go_and_a_terminal_may_lack_letters(server: RedisServer, tmp_path: Path):
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\n"
        f"app = Celery('proj', broker={server.url!r})\n"
        "app.conf.beat_schedule = {'größe-日本': {'task': 't', 'schedule': 1.0}}\n"
    )
    command = [sys.executable, "-m", "celery", "-A", "proj", "misfire", "next", "--limit", "5000"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        lines = [process.stdout.readline() for _ in range(10)]
        # More is to come than a pipe holds.
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
    assert "gr\\xf6\\xdfe-\\u65e5\\u672c" in lines[-1]


@pytest.mark.parametrize("command", [["log", "--follow"], ["watch"], ["watch", "--json"]])
def test_a_command_that_goes_on_ends_quietly_when_it_is_interrupted(
    server: RedisServer, world: World, tmp_path: Path, command: list[str]
):
    world.crash()
    make_late(world, "stocks", HOUR)
    code = f"from celery import Celery\napp = Celery('test', broker={server.url!r})\n"
    (tmp_path / "proj.py").write_text(code)
    # A process that a shell starts in the background ignores the signal, and so do its children.
    celery = ["env", "--default-signal=INT", sys.executable, "-m", "celery", "-A", "proj", "misfire"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*celery, *command], cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline()
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
        finally:
            # A process that goes on shows what it has said so far.
            process.kill()
            _, errors = process.communicate()
    assert (process.returncode, errors) == (130, "")


def test_watch_says_that_another_one_watches(server: RedisServer, world: World, tmp_path: Path):
    world.store.watch("worker@host:1", 60, 0)
    code = f"from celery import Celery\napp = Celery('test', broker={server.url!r})\n"
    (tmp_path / "proj.py").write_text(code)
    command = [sys.executable, "-m", "celery", "-A", "proj", "misfire", "watch"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            assert process.stderr.readline().startswith("another one watches;")
        finally:
            process.kill()


def test_watch_says_that_redis_is_away_and_back(redis_server: RedisServer, tmp_path: Path):
    code = f"from celery import Celery\napp = Celery('test', broker={redis_server.url!r})\n"
    (tmp_path / "proj.py").write_text(code + "app.conf.misfire_check_rate = 0.2\n")
    redis_server.kill()
    command = [sys.executable, "-m", "celery", "-A", "proj", "misfire", "watch"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            away = process.stderr.readline()
            assert away.startswith("watch: nobody can see whether beat is overdue: Redis at 127.0.0.1:")
            redis_server.restart()
            assert re.fullmatch(r"watch: Redis at \S+ answers again after \d+ s\n", process.stderr.readline())
        finally:
            process.kill()


def test_the_log_is_followed(server: RedisServer, shop: CommandLine, world: World, tmp_path: Path):
    code = f"from celery import Celery\napp = Celery('test', broker={server.url!r})\n"
    (tmp_path / "proj.py").write_text(code)
    celery = [sys.executable, "-m", "celery", "-A", "proj"]
    command = [*celery, "misfire", "log", "--follow", "--json", "--since", "1s", "reports"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines: list[str] = []
            reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))
            reader.start()

            def told() -> bool:
                # Written again and again: the command may not be listening yet.
                world.leader._ledger.note(Paused(entry="reports", now=world.now))
                return any("paused" in line for line in lines)

            wait_for(told, every=0.3)
        finally:
            process.kill()
            reader.join()
    answer = json.loads(lines[-1])
    check_answer(answer)
    assert (answer["event"], answer["entry"]) == ("paused", "reports")
