"""What a missed run leaves, on each result backend: one contract for all of them.

A backend is tried in an interpreter of its own (Django can be configured only once in a process): this file,
run as a script, does what there is to do and prints what came of it; the tests look at that.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, group, states
from celery.exceptions import ChordError, TaskRevokedError, TimeoutError

import celery_misfire
import celery_misfire.result
from celery_misfire.exceptions import TaskMissed
from celery_misfire.sending.missed_record import MISSED
from celery_misfire.sending.missed_runs import Report, report
from celery_misfire.signals import task_missed
from tests.support.missed import MESSAGE, make_missed
from tests.support.processes import Project, published, wait_for
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.takes(20)

ROOT = Path(__file__).parents[2]

#: Long enough for a slow machine, short enough to tell "late" from "never".
SOON = 15.0

BACKENDS = {
    "redis": "redis",
    "database": "sqlalchemy",
    "django-db": "django_celery_results",
    "django-cache": "django_celery_results",
    "file": "celery",
    "cache": "celery",
}

#: What a result holds of a missed run, beside its task id.
RECORD = {
    "entry": "stocks",
    "task": "shop.stocks",
    "first_scheduled_fire_time": "2026-03-02T09:00:00.000+00:00",
    "last_scheduled_fire_time": "2026-03-02T10:00:00.000+00:00",
    "count": 2,
    "reason": "scheduler_down",
    "instruction": "do_nothing",
    "detected_at": "2026-03-02T10:15:00.000+00:00",
}


def settings(state: str = MISSED) -> Any:
    return SimpleNamespace(result_state=state, send_task_failure=False)


# -- in the other interpreter ------------------------------------------------------------------------------


class Trial:
    """What is tried with one backend; each public method tells what came of it."""

    def __init__(self, kind: str, directory: str, redis_url: str) -> None:
        url = {
            "redis": redis_url,
            "database": f"db+sqlite:///{directory}/results.sqlite3",
            "file": f"file://{directory}",
            "cache": "cache+memory://",
        }.get(kind, kind)
        if kind.startswith("django"):
            _set_up_django(directory)
        # With a worker's side, and without: somebody who looks from outside.
        self.app = celery_misfire.install(self._app(url))
        # Up to Celery 5.6 the database backend reads a group as one of the current app.
        self.app.set_current()
        self.stock = self._app(url)
        celery_misfire.result.LOOK_EVERY = 0.2

    @staticmethod
    def _app(url: str) -> Celery:
        app = Celery("backends", broker="memory://", backend=url, set_as_current=False)
        app.conf.result_extended = True
        return app

    def _missed(self, state: str = MISSED, task_id: str | None = None) -> str:
        task_id = task_id or str(uuid4())
        failed = report(self.stock, settings(state), Report(make_missed(task_id=task_id)))
        assert failed == {}, failed
        return task_id

    def result(self) -> Any:
        task_id = self._missed()
        meta = self.stock.backend.get_task_meta(task_id)
        return [meta["status"], meta["result"], meta["result"]["task_id"] == task_id]

    def made_again(self) -> Any:
        task_id = self._missed()
        before = self.stock.backend.get_task_meta(task_id)["result"]
        self._missed(task_id=task_id)
        return self.stock.backend.get_task_meta(task_id)["result"] == before

    def extended(self) -> Any:
        meta = self.stock.backend.get_task_meta(self._missed())
        found = {key: meta.get(key) for key in ("name", "worker", "args", "kwargs")}
        if hasattr(self.stock.backend, "TaskModel"):
            row = self.stock.backend.TaskModel.objects.latest("id")
            found |= {"name": row.task_name, "worker": row.worker, "entry": row.periodic_task_name}
        return found

    def with_install(self) -> Any:
        result = self.app.AsyncResult(self._missed())
        error = _raised(lambda: result.get(timeout=SOON))
        assert isinstance(error, TaskMissed)
        whole = error.missed == make_missed(task_id=result.id)
        given = type(result.get(timeout=SOON, propagate=False)).__name__
        return [result.state, result.ready(), result.failed(), result.successful(), str(error), whole, given]

    def while_waiting(self) -> Any:
        task_id = str(uuid4())
        later = threading.Timer(0.3, self._missed, kwargs={"task_id": task_id})
        later.start()
        error = _raised(lambda: self.app.AsyncResult(task_id).get(interval=0.1))
        later.join()
        return type(error).__name__

    def without_install(self) -> Any:
        result = self.stock.AsyncResult(self._missed())
        error = _raised(lambda: result.get(timeout=0.3, interval=0.1))
        return [result.state, result.ready(), type(error).__name__, result.result["reason"]]

    def as_failure(self) -> Any:
        task_id = self._missed(states.FAILURE)
        found = []
        for app in (self.stock, self.app):
            result = app.AsyncResult(task_id)
            error = _raised(lambda result=result: result.get(timeout=SOON))
            found.append([result.state, result.ready(), result.failed(), type(error).__name__, str(error)])
        return found

    def never_overwritten(self) -> Any:
        found = {}
        values = {
            states.SUCCESS: 42,
            states.FAILURE: KeyError("gone"),
            states.REVOKED: TaskRevokedError("revoked"),
        }
        for state, value in values.items():
            task_id = str(uuid4())
            self.stock.backend.store_result(task_id, value, state)
            self._missed(task_id=task_id)
            self._missed(states.FAILURE, task_id=task_id)
            result = self.stock.AsyncResult(task_id)
            found[state] = [result.state, repr(result.result)]
        return found

    def overwritten_by_success(self) -> Any:
        task_id = self._missed()
        before = self.app.AsyncResult(task_id).state
        self.stock.backend.mark_as_done(task_id, 42)
        result = self.app.AsyncResult(task_id)
        return [before, result.state, result.get(timeout=SOON)]

    def unfinished(self) -> Any:
        found = []
        for state in (states.STARTED, states.RETRY, "OWN"):
            task_id = str(uuid4())
            self.stock.backend.store_result(task_id, None, state)
            self._missed(task_id=task_id)
            found.append(self.stock.AsyncResult(task_id).state)
        return found

    def group(self) -> Any:
        done = str(uuid4())
        self.stock.backend.mark_as_done(done, 1)
        group_id, missed = str(uuid4()), self._missed()
        members = [self.app.AsyncResult(id_) for id_ in (done, missed)]
        self.app.GroupResult(group_id, members).save()
        found = [_told_by(self.app.GroupResult(group_id, members))]
        # Up to Celery 5.6 only the first of two objects for one result is told by Redis.
        members.clear()
        gc.collect()
        return [*found, _told_by(self.app.GroupResult.restore(group_id, app=self.app))]

    def chord(self) -> Any:
        """Have Celery's own task look after a chord with a missed member, as it does for most backends."""
        body = self.app.signature("shop.body", task_id=str(uuid4()))
        body.freeze()
        unlock, missed = self.app.tasks["celery.chord_unlock"], self._missed()
        unlock(str(uuid4()), body, max_retries=0, result=[self.app.AsyncResult(missed)])
        return type(_raised(lambda: self.app.AsyncResult(body.id).get(timeout=SOON))).__name__

    def forgotten(self) -> Any:
        result = self.app.AsyncResult(self._missed())
        ready = result.ready()
        result.forget()
        return [ready, result.state, result.ready()]

    def raced(self) -> Any:
        """Let a run end right between the look at its state and the writing; what holds then?"""
        backend, found = self.stock.backend, []
        if not hasattr(backend, "TaskModel"):
            return None
        store_result = backend.store_result
        for state in (None, states.STARTED):
            task_id = str(uuid4())
            if state:
                store_result(task_id, None, state)
            run = threading.Thread(target=lambda id_=task_id: self.app.backend.mark_as_done(id_, 42))

            def store_late(*args: Any, run: threading.Thread = run, **kwargs: Any) -> Any:
                if run.ident is None:
                    run.start()
                    run.join(0.7)
                return store_result(*args, **kwargs)

            backend.store_result = store_late
            tries = 1
            while report(self.stock, settings(), Report(make_missed(task_id=task_id))):
                tries += 1
            run.join()
            found.append([self.app.AsyncResult(task_id).state, tries < 10])
        return found


def _set_up_django(directory: str) -> None:
    import django
    from django.conf import settings as django_settings
    from django.core.management import call_command

    engine, name = "django.db.backends.sqlite3", f"{directory}/results.sqlite3"
    django_settings.configure(
        DATABASES={"default": {"ENGINE": engine, "NAME": name, "OPTIONS": {"timeout": 20}}},
        INSTALLED_APPS=["django_celery_results"],
        USE_TZ=True,
    )
    django.setup()
    call_command("migrate", verbosity=0)


def _told_by(group: Any) -> list[Any]:
    values = group.get(timeout=SOON, interval=0.1, propagate=False)
    error = _raised(lambda: group.get(timeout=SOON, interval=0.1))
    return [group.ready(), group.failed(), [type(value).__name__ for value in values], type(error).__name__]


def _raised(do: Callable[[], Any]) -> Exception | None:
    try:
        do()
    except Exception as error:
        return error
    return None


def main() -> None:
    logging.disable(logging.CRITICAL)
    trial = Trial(*sys.argv[1:])
    tried = {name: getattr(trial, name)() for name in vars(Trial) if not name.startswith("_")}
    print(json.dumps(tried, default=repr))


# -- the contract ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=BACKENDS)
def tried(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What came of each trial with this backend."""
    kind = request.param
    if not importlib.util.find_spec(BACKENDS[kind]):
        pytest.skip(f"needs {BACKENDS[kind]}")
    told = run(__file__, kind, str(tmp_path_factory.mktemp(kind)), server.url)
    return {"backend": kind, **json.loads(told)}


def run(*arguments: str) -> str:
    """Run Python with these arguments; return what it prints."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_result_is_the_record(tried: dict[str, Any]) -> None:
    state, stored, own_id = tried["result"]

    assert state == MISSED
    assert own_id
    assert stored == {
        "exc_type": "TaskMissed",
        "exc_message": [MESSAGE],
        "exc_module": "celery_misfire.exceptions",
        "task_id": stored["task_id"],
        **RECORD,
    }


def test_a_report_that_is_made_again_changes_nothing(tried: dict[str, Any]) -> None:
    assert tried["made_again"] is True


def test_an_extended_result_names_task_and_worker_and_no_arguments(tried: dict[str, Any]) -> None:
    meta = tried["extended"]

    assert meta["name"] == "shop.stocks"
    assert meta["worker"].startswith("beat@")
    assert meta["args"] in (None, [])
    assert meta["kwargs"] in (None, {})
    assert meta.get("entry", "stocks") == "stocks"


def test_with_install_it_is_an_end_and_raises(tried: dict[str, Any]) -> None:
    assert tried["with_install"] == [MISSED, True, True, False, MESSAGE, True, "TaskMissed"]


def test_with_install_a_waiting_get_ends(tried: dict[str, Any]) -> None:
    assert tried["while_waiting"] == "TaskMissed"


def test_without_install_it_is_a_state_like_any_other(tried: dict[str, Any]) -> None:
    assert tried["without_install"] == [MISSED, False, "TimeoutError", "scheduler_down"]


def test_as_a_failure_it_is_an_end_for_everybody(tried: dict[str, Any]) -> None:
    for state, ready, failed, error, message in tried["as_failure"]:
        assert (state, ready, failed, error, message) == (states.FAILURE, True, True, "TaskMissed", MESSAGE)


def test_the_result_of_a_run_is_never_overwritten(tried: dict[str, Any]) -> None:
    kept = tried["never_overwritten"]

    assert {state: found[0] for state, found in kept.items()} == {state: state for state in kept}
    assert kept[states.SUCCESS][1] == "42"
    assert "gone" in kept[states.FAILURE][1]
    assert "revoked" in kept[states.REVOKED][1]


@pytest.mark.parametrize("tried", ["django-db"], indirect=True)
def test_a_run_that_ends_right_before_the_record_is_written_is_not_overwritten(tried: dict[str, Any]) -> None:
    assert tried["raced"] == [[states.SUCCESS, True]] * 2


def test_a_run_that_ends_after_all_has_the_last_word(tried: dict[str, Any]) -> None:
    assert tried["overwritten_by_success"] == [MISSED, states.SUCCESS, 42]


def test_a_state_that_is_no_end_is_overwritten(tried: dict[str, Any]) -> None:
    assert tried["unfinished"] == [MISSED] * 3


def test_a_group_raises_what_its_member_missed(tried: dict[str, Any]) -> None:
    found = [True, True, ["int", "TaskMissed"], "TaskMissed"]

    assert tried["group"] == [found, found]


def test_a_chord_with_a_missed_member_fails(tried: dict[str, Any]) -> None:
    assert tried["chord"] == ChordError.__name__


def test_forget_removes_it(tried: dict[str, Any]) -> None:
    assert tried["forgotten"] == [True, states.PENDING, False]


# -- where nothing can be stored ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rpc_app(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Celery]:
    """With a worker in a process of its own: Celery waits without a limit for one in a thread."""
    app = celery_misfire.install(Celery("rpc", broker=server.url, backend="rpc://", set_as_current=False))
    with Project(tmp_path_factory.mktemp("rpc"), server.url) as project:
        project.configure({}, result_backend="rpc://")
        project.worker("--concurrency=4", pool="threads")
        yield app
    app.close()


def test_results_by_rpc_come_through_as_ever(rpc_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery_misfire.result, "LOOK_EVERY", 0.1)

    def add(x: int, y: int, after: float) -> Any:
        return rpc_app.signature("add", args=(x, y), kwargs={"after": after})

    assert add(2, 2, after=0.4).delay().get(timeout=SOON) == 4
    sums = group([add(n, n, after=n / 5) for n in range(4)], app=rpc_app)
    assert sums.delay().get(timeout=SOON) == [0, 2, 4, 6]
    assert sums.delay().join(timeout=SOON) == [0, 2, 4, 6]


def test_by_rpc_nobody_is_told_of_a_missed_run(rpc_app: Celery) -> None:
    missed, told = make_missed(), []

    def tell(**arguments: Any) -> None:
        told.append(arguments["missed"])

    task_missed.connect(tell, weak=False)
    try:
        assert report(rpc_app, settings(), Report(missed)) == {}
    finally:
        task_missed.disconnect(tell)

    assert told == [missed]
    with pytest.raises(TimeoutError):
        rpc_app.AsyncResult(missed.task_id).get(timeout=0.5)


@pytest.mark.parametrize("url", ["disabled://", None])
def test_without_a_backend_get_says_so_as_ever(url: str | None) -> None:
    app = celery_misfire.install(Celery(broker="memory://", backend=url, set_as_current=False))
    missed = make_missed()

    assert report(app, settings(), Report(missed)) == {}

    with pytest.raises(NotImplementedError, match="No result backend is configured"):
        app.AsyncResult(missed.task_id).get(timeout=SOON)


# -- a backend that does not answer, and real processes ----------------------------------------------------


@pytest.mark.long
def test_a_frozen_result_backend_holds_up_neither_beat_nor_the_alarm(
    server: RedisServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Left to itself, Celery's backend would wait two minutes for each answer, and twenty times."""
    with Project(tmp_path, redis_server.url) as project:
        hour_ago = datetime.now(UTC) - timedelta(hours=1)
        daily = {"type": "simple", "start": hour_ago.timestamp(), "interval": 86_400, "repeat_count": 3}
        every_second = {"type": "interval", "seconds": 1}
        project.make_state()
        lost = {"schedule": daily, "misfire": {"instruction": "do_nothing", "on_missed": "on_missed"}}
        project.configure(
            {"lost 1": lost, "lost 2": lost, "tick": {"schedule": every_second}}, result_backend=server.url
        )
        server.freeze()
        try:
            began = time.monotonic()
            project.beat()
            # Beat raises the alarms itself: its receiver writes to a file.
            misses = wait_for(lambda: _two(project.signals("task_missed")), 60, what="both alarms")
            wait_for(lambda: len(_of(project, "on_missed")) == 2, 60, what="both handlers")
            elapsed = time.monotonic() - began
            ticks = len(_of(project, "record"))
            wait_for(lambda: len(_of(project, "record")) >= ticks + 3, 60, what="beat to go on")
            assert not [line for line in project.decisions() if line["event"] == "missed"]
        finally:
            server.thaw()
        wait_for(
            lambda: _two([line for line in project.decisions() if line["event"] == "missed"]),
            90,
            what="both records",
        )

    assert elapsed < 60
    reader = Celery(backend=server.url, set_as_current=False)
    assert [reader.AsyncResult(miss["task_id"]).state for miss in misses] == [MISSED] * 2
    assert project.signals("task_missed") == misses
    reader.close()


def _two(found: list[Any]) -> list[Any]:
    return found if len(found) == 2 else []


def _of(project: Project, task: str) -> list[Any]:
    return [message for message in published(project.url) if message.task == task]


if __name__ == "__main__":
    main()
