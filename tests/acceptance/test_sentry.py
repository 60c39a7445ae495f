"""Sentry beside us: real beat and worker with the real SDK, whose envelopes end in a file."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_misfire.records import dumps, loads
from celery_misfire.store.redis_store import RedisStore
from tests.support.outcomes import of_entry
from tests.support.processes import NAMESPACE, Message, Project, published, wait_for
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("sentry_sdk"), reason="needs sentry_sdk")

HOUR = 3600

#: How an app that uses Sentry may look; `tell_sentry` and `own_schedule` are what the documentation shows.
HOOK = """
import json, os
import sentry_sdk
from celery import shared_task
from celery.signals import after_task_publish
from sentry_sdk.crons import monitor
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport


def note(kind, payload):
    with open(os.environ["SENTRY_TEST_FILE"], "a") as file:
        file.write(json.dumps({"kind": kind, "payload": payload}, default=repr) + "\\n")


class Kept(Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            note(item.type, item.payload.json)


def init(**_):
    sentry_sdk.init(
        "http://key@localhost/1",
        transport=Kept,
        traces_sample_rate=1.0,
        integrations=[CeleryIntegration(monitor_beat_tasks=True, exclude_beat_tasks=["quiet-.*"])],
    )


def set_up():
    from celery import current_app
    from celery_misfire.exceptions import TaskMissed
    from celery_misfire.signals import task_missed

    def tell_sentry(sender, missed, **kwargs):
        with sentry_sdk.new_scope() as scope:
            scope.fingerprint = ["missed", missed.entry]
            sentry_sdk.capture_exception(TaskMissed.from_missed(missed))

    def note_options(**_):
        schedule = current_app.conf.beat_schedule
        note("options", {name: entry.get("options") for name, entry in schedule.items()})

    task_missed.connect(tell_sentry, weak=False)
    after_task_publish.connect(note_options, weak=False)


@shared_task(name="own_schedule")
@monitor(monitor_slug="own", monitor_config={"schedule": {"type": "crontab", "value": "0 * * * *"}})
def own_schedule():
    pass
"""

#: Where Sentry is started: before anything of ours is imported, or when Celery's signals say so.
WAYS = {
    "first": {"sitecustomize": "import hook\nhook.init()\n", "wiring": "import hook\nhook.set_up()\n"},
    "by signal": {
        "wiring": "import hook\nhook.set_up()\n"
        "from celery.signals import beat_init, celeryd_init\n"
        "beat_init.connect(hook.init, weak=False)\n"
        "celeryd_init.connect(hook.init, weak=False)\n"
    },
}


def entries() -> dict[str, Any]:
    hourly = {"type": "interval", "seconds": HOUR}
    # Far from now, whenever that is.
    half_past = (datetime.now(UTC).minute + 30) % 60
    in_time = {"instruction": "do_nothing", "threshold": 2 * HOUR}
    simple = {"type": "simple", "start": time.time() - 60, "interval": HOUR, "repeat_count": 9}
    mine = {"headers": {"mine": 1}}
    return {
        "cron": {"schedule": {"type": "crontab", "minute": half_past}, "misfire": in_time},
        "interval": {"schedule": hourly, "misfire": in_time, "options": mine},
        "each": {"schedule": hourly, "misfire": "ignore_misfire_policy", "options": mine},
        "lost": {"schedule": hourly, "misfire": "do_nothing"},
        "expiring": {"schedule": hourly, "misfire": in_time, "options": {"expires": 0.5}},
        "quiet-one": {"schedule": hourly, "misfire": in_time},
        "own": {"task": "own_schedule", "schedule": simple, "misfire": in_time},
    }


#: By entry, how many hours its next fire time is set back while beat is away.
OVERDUE = {"cron": 1, "interval": 1, "each": 3, "lost": 3, "expiring": 1, "quiet-one": 1}


@dataclass
class Told:
    """What Sentry was told."""

    path: Path

    def all(self, kind: str) -> list[dict[str, Any]]:
        # A process may be in the middle of its last line.
        lines = self.path.read_text().split("\n")[:-1] if self.path.exists() else []
        return [line["payload"] for line in map(json.loads, lines) if line["kind"] == kind]

    def check_ins(self, status: str) -> list[dict[str, Any]]:
        return [told for told in self.all("check_in") if told["status"] == status]


def set_back(project: Project, hours: dict[str, int]) -> None:
    """Let entries be overdue: rewrite what the store holds of them."""
    store = RedisStore(project.url, NAMESPACE)
    with redis.Redis.from_url(project.url) as client:
        for name, text in store.load().items():
            record = loads(text)
            ago = hours.get(name, 0) * HOUR * 1000
            state = record.state
            moved = replace(
                state, next_fire_time=(state.next_fire_time or 0) - ago, start_time=state.start_time - ago
            )
            client.hset(store.state_key, f"e:{name}", dumps(replace(record, state=moved)))


@pytest.fixture(params=WAYS)
def project(request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    (tmp_path / "hook.py").write_text(HOOK)
    for name, text in WAYS[request.param].items():
        (tmp_path / f"{name}.py").write_text(text)
    with Project(tmp_path, redis_server.url) as project:
        yield project


def test_one_check_in_for_each_run_and_none_for_a_missed_one(project: Project) -> None:
    told = Told(project.directory / "sentry.jsonl")
    path = os.pathsep.join((str(project.directory), project.env["PYTHONPATH"]))
    env = {"PYTHONPATH": path, "SENTRY_TEST_FILE": str(told.path)}
    described = entries()
    project.make_state()
    project.configure(described, imports=["wiring"])
    beat = project.beat(env=env)
    wait_for(lambda: all(map(project.state, described)), 60, what="beat to know its entries")
    beat.stop()
    set_back(project, OVERDUE)
    project.beat(env=env)

    expected = {"cron": 1, "interval": 1, "each": 3, "expiring": 1, "quiet-one": 1, "own": 1}
    wait_for(lambda: len(published(project.url)) >= sum(expected.values()), 60, what="the runs")
    wait_for(lambda: project.signals("task_missed"), 60, what="the record")
    messages = published(project.url)
    assert Counter(m.misfire["entry"] for m in messages) == expected

    # One for each message, with the schedule of its entry; not for those that Sentry is to leave alone, or
    # knows no schedule of.
    opened = told.check_ins("in_progress")
    assert Counter(each["monitor_slug"] for each in opened) == {
        "cron": 1,
        "interval": 1,
        "each": 3,
        "expiring": 1,
    }
    minute = described["cron"]["schedule"]["minute"]
    schedules = {each["monitor_slug"]: each["monitor_config"]["schedule"] for each in opened}
    assert schedules["cron"] == {"type": "crontab", "value": f"{minute} * * * *"}
    assert schedules["interval"] == schedules["each"] == {"type": "interval", "value": 1, "unit": "hour"}
    ids = {name: {_check_in_id(m) for m in of_entry(messages, name)} for name in expected}
    assert {each["check_in_id"] for each in opened} == set().union(*ids.values()) - {None}
    assert len(ids["each"]) == 3
    assert ids["quiet-one"] == ids["own"] == {None}
    # What Sentry adds stays with the message.
    assert all(m.headers["mine"] == 1 for m in of_entry(messages, "each"))
    for options in told.all("options"):
        assert options["interval"] == options["each"] == {"headers": {"mine": 1}}
        assert options["expiring"] == {"expires": 0.5}
        assert not options["cron"]

    project.worker(env=env)
    wait_for(lambda: len(told.check_ins("ok")) >= 6 and told.check_ins("error"), 60, what="the ends")
    wait_for(lambda: len(project.records()) >= 6, 20, what="the runs")
    closed = [(each["monitor_slug"], each["check_in_id"]) for each in told.check_ins("ok")]
    done = {(name, id_) for name in ("cron", "interval", "each") for id_ in ids[name]}
    own = [each for each in told.all("check_in") if each["monitor_slug"] == "own"]
    assert [each["status"] for each in own] == ["in_progress", "ok"]
    assert sorted(closed) == sorted(done | {("own", own[0]["check_in_id"])})
    # A run that the worker gave up fails its check-in.
    (given_up,) = told.check_ins("error")
    assert {given_up["check_in_id"]} == ids["expiring"]

    # One event for each record of missed runs, and only by the receiver that the app has for it.
    missed = {line["entry"]: line["count"] for line in project.signals("task_missed")}
    assert missed == {"lost": 3, "expiring": 1}
    events = wait_for(lambda: _at_least(2, told.all("event")), 20, what="the events")
    assert [each["exception"]["values"][-1]["type"] for each in events] == ["TaskMissed"] * 2
    assert [each["fingerprint"] for each in events] == [["missed", "lost"], ["missed", "expiring"]]


def _check_in_id(message: Message) -> str | None:
    return message.headers.get("sentry-monitor-check-in-id")


def _at_least(count: int, found: list[Any]) -> list[Any]:
    return found if len(found) >= count else []
