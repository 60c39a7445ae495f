"""Hostile names, headers and stored state cost nobody else anything, and nothing is written elsewhere."""

from __future__ import annotations

import json
import pickle
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_misfire.fire import HEADER
from celery_misfire.store import registers
from celery_misfire.store.redis_store import RedisStore
from tests.support.fires import Fires
from tests.support.outcomes import of_entry, settle
from tests.support.processes import NAMESPACE, Project, published, wait_for
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.takes(25)

PREFIX = "celery-misfire:{acceptance}:"
STATE, LEASE, LOG = (PREFIX + key for key in ("state", "lease", "log"))
OURS = re.compile(
    r"celery-misfire:\{acceptance\}:"
    r"(state|lease|log|note|place|stopped|beats|control|watcher|watch|guard|counts:\d{4}-\d\d-\d\dT\d\d|late:[0-9a-f]{40}"
    r"|fire:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})"
)
#: What broker and result backend keep there.
CELERYS = re.compile(r"celery|nowhere|unacked\w*|_kombu\..*|celery-task-meta-.*")

EVERY_SECOND = {"type": "interval", "seconds": 1}

#: A line of the log would begin with this, if a name could make one.
INJECTED = "INJECTED"
NAMES = [
    *("'", '"', "`", "\\", " ", "*", "{}", "}", "{acceptance}", ":", "a:b", "\x00", "\x7f", "\x1b[31mred"),
    *(f"x\n{INJECTED}", f"x\r{INJECTED}", f"x\r\n{INJECTED}", f"x\x0b{INJECTED}", f"x\u2028{INJECTED}"),
    *("_meta", "_epoch", "_beat", "_beat_entries", "e:_meta", "e:'", LEASE, STATE, f"{PREFIX}fire:x"),
    *("%s %(x)s %d", "{0.__class__}", "__class__", "../../etc/passwd", "<script>", "redis://u:p@h/1"),
    *("é", "\U0001f600", "\u202egnp", "\x80\x04\x95", "n" * 200, "\U0001f600" * 200, "0", "None", "null"),
]  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


def assert_lines_are_ours(log: str) -> None:
    """Assert that every line of a log was begun by a logger or is of Celery's banner, and is short."""
    for line in re.split(r"[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", log):
        assert not line.startswith(INJECTED), line
        assert len(line) < 1200, line[:300]
        assert "\x1b[31mred" not in line
    assert "Traceback" not in log


def assert_keys_are_ours(client: redis.Redis) -> None:
    keys = client.keys()
    assert [key for key in keys if not OURS.fullmatch(key) and not CELERYS.fullmatch(key)] == []


def test_no_name_of_an_entry_or_of_a_task_leaves_its_place(
    project: Project, redis_server: RedisServer
) -> None:
    every_one = {"schedule": EVERY_SECOND, "misfire": "ignore_misfire_policy"}
    entries: dict[str, Any] = dict.fromkeys(NAMES, every_one)
    entries["missed"] = {"schedule": EVERY_SECOND, "misfire": "do_nothing"}
    nowhere = {"queue": "nowhere"}
    entries["task"] = {"schedule": EVERY_SECOND, "task": f"x\n{INJECTED}", "options": nowhere}
    entries[f"broken\n{INJECTED}"] = {"schedule": {"type": "raising", "until": "/nonexistent"}}
    entries[f"refused\n{INJECTED}"] = {"schedule": EVERY_SECOND, "unserialisable": True}
    project.configure(entries, misfire_check_rate=1)
    worker = project.worker()
    beat = project.leading_beat()
    wait_for(lambda: {r["fire"]["entry"] for r in project.records()} >= set(NAMES), 60, what="a run of each")
    beat.kill()
    time.sleep(2.5)
    beat = project.leading_beat()
    wait_for(lambda: project.log().count("misfire of") >= len(NAMES), 60, what="a misfire of each")
    wait_for(lambda: project.signals("task_missed"), 30)
    settle(project, *NAMES, timeout=60)
    assert beat.alive
    assert worker.alive

    client = redis_server.client()
    assert_keys_are_ours(client)
    # Celery's own entry may be there, and of one that cannot be planned there is nothing to remember.
    known = entries.keys() | {"celery.backend_cleanup"}
    fields = {"_meta", "_epoch", "_beat", "_beat_entries"} | {f"e:{name}" for name in known}
    assert {f"e:{name}" for name in NAMES} <= set(client.hkeys(STATE)) <= fields
    assert json.loads(client.hget(STATE, "_meta"))["schema"] == 1
    for line in (*project.decisions(), *project.signals("misfire_detected")):
        assert line.get("entry", "task") in known
    worker.stop()
    beat.stop()
    assert_lines_are_ours(project.log())
    assert_lines_are_ours(project.log("worker"))
    assert not {m.misfire["entry"] for m in published(redis_server.url, "nowhere")} - {"task"}


# -- what is in Redis --------------------------------------------------------------------------------------


class Gadget:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_state_that_is_not_ours_is_left_alone_and_told_in_one_line(
    project: Project, redis_server: RedisServer, tmp_path: Path
) -> None:
    hostile: dict[str, bytes] = {
        "pickle": pickle.dumps(Gadget(tmp_path / "unpickled")),
        "deep": b"[" * 100_000,
        "huge": b'{"schema": "' + b"x" * 5_000_000 + b'"}',
        "bytes": b"\xff\x00\n" * 20,
        "wrong": b'{"event": "missed", "count": "x", "settings": 7, "schema": null}',
        "number": b"7",
    }
    client, binary = redis_server.client(), redis.Redis.from_url(redis_server.url)
    project.configure({"tick": {"schedule": EVERY_SECOND}}, misfire_check_rate=1)
    beat = project.beat("--loglevel=DEBUG")
    for text in hostile.values():
        client.hset(STATE, mapping={"_meta": text, "x": text})
        said = len(project.log())
        wait_for(lambda said=said: len(project.log()) > said, 60, what="beat to look")
        time.sleep(0.5)
        assert binary.hgetall(STATE) == {b"_meta": text, b"x": text}
    refused = [line[line.index("beat:") :] for line in project.log().splitlines() if "standing by" in line]
    assert len(refused) == len(set(refused)) >= 1
    assert any("state holds a _meta that is not ours" in line for line in refused)
    beat.kill()
    client.delete(STATE)

    # From here on it is all the rest.
    for n, text in enumerate(hostile.values()):
        client.hset(STATE, mapping={f"e:gone {n}": text, f"other {n}": text})
        for fields in ({"d": text}, {"other": text}, {"d": b"null"}, {"d": b'{"event": []}'}):
            client.xadd(LOG, fields)
    client.hset(STATE, mapping={"_epoch": "nan", "_beat": hostile["deep"], "_beat_entries": hostile["wrong"]})
    client.hset(PREFIX + "watch", mapping={"other": hostile["bytes"], "alarm": hostile["huge"]})
    client.set(PREFIX + "note", b"a\nb" + hostile["bytes"])
    client.set(LEASE, hostile["bytes"])
    worker = project.worker()
    beat = project.leading_beat()
    wait_for(lambda: len(project.records()) >= 2, 60, what="runs")
    beat.kill()
    for text in hostile.values():
        client.xadd(LOG, {"d": text})
        client.xadd(LOG, {"other": text})
    wait_for(lambda: "beat is overdue" in project.log("worker"), 30, what="the watcher's alarm")
    beat = project.leading_beat()
    wait_for(lambda: "beat is back" in project.log("worker"), 30, what="the watcher's relief")
    beat.stop()
    worker.stop()
    assert not (tmp_path / "unpickled").exists()
    own = {"_meta", "_epoch", "_beat", "_beat_entries", "e:tick", "e:celery.backend_cleanup"}
    known = own | {f"{what} {n}" for n in range(len(hostile)) for what in ("e:gone", "other")}
    assert set(client.hkeys(STATE)) <= known
    for n, text in enumerate(hostile.values()):
        assert binary.hget(STATE, f"other {n}") == text
        assert project.log().count(f"the state of entry 'gone {n}' cannot be used") == 1
    for name in ("beat", "worker"):
        assert_lines_are_ours(project.log(name))


# -- what a worker is sent ---------------------------------------------------------------------------------

ODD_TEXTS = ["x" * 1000, "a\nb:c", "\ud800", "9999-12-31T23:59:59+00:00"]
HEADERS: dict[str, Any] = {
    **{f"all {value!r:.20}": value for value in (None, 7, "text", [], {}, ["x"] * 1000, "x" * 1_000_000)},
    "newer": lambda header: header | {"v": 2},
    "no version": lambda header: {k: v for k, v in header.items() if k != "v"},
    "more": lambda header: header | {"colour": "red", "size": "x" * 100_000},
    **{
        f"{field} {value!r:.20}": lambda header, field=field, value=value: header | {field: value}
        for field in (
            *("v", "entry", "scheduled_fire_time", "fire_time", "outcome", "missed_count"),
            *("last_missed_fire_time", "instruction", "threshold", "generation", "nonce", "on_missed"),
        )
        for value in (*(None, True, -1, 10**30, 1.5, [], {}, ""), *ODD_TEXTS)
    },
}


def test_no_header_stops_a_run_or_the_worker(project: Project, redis_server: RedisServer) -> None:
    project.configure({})
    worker = project.worker()
    fires, client, sent = Fires(redis_server.url), redis_server.client(), dict[str, str]()
    for name, change in HEADERS.items():
        # In time, for an instruction by which a run may be discarded.
        signature = fires.signature(name, late=0, threshold=600.0, instruction="do_nothing")
        headers = signature.options["headers"]
        header = change(headers[HEADER]) if callable(change) else change
        result = signature.apply_async(headers=headers | {HEADER: header})
        sent[name] = str(result.id)
    ran = Counter[str]()

    def all_ran() -> bool:
        ran.update(r["task_id"] for r in project.records()[ran.total() :])
        return ran.total() >= len(sent)

    wait_for(all_ran, 60, what="all runs")
    assert [name for name, id_ in sent.items() if ran[id_] != 1] == []
    assert len(project.records()) == len(sent)
    assert worker.alive
    worker.stop()
    assert_keys_are_ours(client)
    for key in client.keys(PREFIX + "fire:*"):
        assert re.fullmatch(r"started:\w{1,64}:worker@test", client.get(key)), key
    assert_lines_are_ours(project.log("worker"))


def test_a_register_that_is_not_ours_costs_no_other_run_its_register(
    project: Project, redis_server: RedisServer
) -> None:
    project.configure({})
    worker = project.worker()
    fires, client = Fires(redis_server.url), redis_server.client()
    store = RedisStore(redis_server.url, NAMESPACE)
    due = time.time()
    for name, put in (
        ("a list", lambda key: client.rpush(key, "x")),
        ("a hash", lambda key: client.hset(key, "x", "y")),
        ("a text", lambda key: client.set(key, "\x80\x04\n not ours")),
    ):
        for instruction in ("do_nothing", "fire_once_now"):
            entry = f"{name} {instruction}"
            put(f"{PREFIX}fire:{fires.task_id(entry, due)}")
            fires.send(entry, scheduled=due, threshold=600.0, instruction=instruction)
        fires.send(f"after {name}", scheduled=due, threshold=600.0)
    wait_for(lambda: len(project.records()) >= 9, 30, what="the runs")
    for name in ("a list", "a hash", "a text"):
        assert isinstance(store.register(fires.task_id(f"after {name}", due)), registers.Started)
    worker.stop()
    assert len(project.records()) == 9
    assert project.log("worker").count("cannot be read; the run starts") == 6
    assert_lines_are_ours(project.log("worker"))
    assert of_entry(published(redis_server.url), "a list") == []
