from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import celery.result
import pytest
from celery import Celery, chain, states
from celery._state import _set_task_join_will_block, task_join_will_block
from celery.contrib.testing.worker import start_worker
from celery.exceptions import TimeoutError
from celery.worker import state as worker_state

import celery_misfire
import celery_misfire.result
from celery_misfire.exceptions import TaskMissed
from celery_misfire.sending.missed_record import MISSED, result_of
from tests.support.missed import make_missed
from tests.support.redis_server import RedisServer
from tests.support.results import let_go

pytestmark = pytest.mark.takes(14)

#: Long enough for a slow machine, short enough to tell "late" from "never".
SOON = 15.0


def store_missed(app: Celery, task_id: str | None = None) -> str:
    """Store a MISSED result, as beat does; return its id."""
    task_id = task_id or str(uuid4())
    app.backend.store_result(task_id, result_of(make_missed(task_id=task_id)), MISSED)
    return task_id


def store_success(app: Celery, value: object) -> str:
    task_id = str(uuid4())
    app.backend.mark_as_done(task_id, value)
    return task_id


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery_misfire.result, "LOOK_EVERY", 0.2)


@pytest.fixture(scope="module")
def server(redis_binary: Path) -> Iterator[RedisServer]:
    """One for all tests here: each has ids of its own."""
    with RedisServer(redis_binary) as server:
        yield server


@pytest.fixture(params=["redis", "file", "cache"])
def url(request: pytest.FixtureRequest, server: RedisServer, tmp_path: Path) -> str:
    """A backend of each kind: one that pushes, one that is polled, one that is polled for many at once."""
    match request.param:
        case "redis":
            return server.url
        case "file":
            return f"file://{tmp_path}"
        case _:
            return "cache+memory://"


@pytest.fixture
def app(url: str, server: RedisServer) -> Iterator[Celery]:
    app = Celery("results", broker=server.url, backend=url, set_as_current=False)
    yield celery_misfire.install(app)
    let_go(app)
    app.close()


@pytest.fixture
def elsewhere(app: Celery) -> Iterator[Callable[..., Any]]:
    """Do something in a while, as another process would: with an app, and so a backend, of its own."""
    other = Celery("elsewhere", backend=app.conf.result_backend, set_as_current=False)
    timers: list[threading.Timer] = []

    def do(delay: float, what: Callable[..., Any], *args: Any) -> None:
        timers.append(threading.Timer(delay, what, (other, *args)))
        timers[-1].start()

    yield do
    for timer in timers:
        timer.join()
    other.close()


class Clock:
    """How long the block took, in seconds."""

    def __enter__(self) -> Clock:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.elapsed = time.monotonic() - self._began


# -- one result --------------------------------------------------------------------------------------------


def test_missed_is_an_end_and_a_failure(app: Celery) -> None:
    result = app.AsyncResult(store_missed(app))

    assert result.state == MISSED
    assert result.ready()
    assert result.failed()
    assert not result.successful()


def test_get_raises_task_missed_with_the_record(app: Celery) -> None:
    result = app.AsyncResult(store_missed(app))

    with pytest.raises(TaskMissed, match="'stocks' missed 2 runs") as caught:
        result.get(timeout=SOON)

    assert caught.value.missed == make_missed(task_id=result.id)


def test_get_without_propagate_returns_it(app: Celery) -> None:
    error = app.AsyncResult(store_missed(app)).get(timeout=SOON, propagate=False)

    assert isinstance(error, TaskMissed)
    assert error.missed is not None
    assert error.missed.count == 2


@pytest.mark.parametrize("read_first", [True, False])
def test_the_result_is_the_error(app: Celery, read_first: bool) -> None:
    result = app.AsyncResult(store_missed(app))
    if read_first:
        assert result.ready()

    assert isinstance(result.result, TaskMissed)
    assert result.info is result.result
    assert result.traceback is None
    assert result.get(propagate=False) is result.result


def test_get_ends_when_missed_arrives_while_it_waits(app: Celery, elsewhere: Callable[..., Any]) -> None:
    result = app.AsyncResult(str(uuid4()))
    elsewhere(0.3, store_missed, result.id)

    with pytest.raises(TaskMissed):
        result.get()


def test_wait_is_get(app: Celery, elsewhere: Callable[..., Any]) -> None:
    result = app.AsyncResult(str(uuid4()))
    elsewhere(0.5, store_missed, result.id)

    with pytest.raises(TaskMissed):
        result.wait()


def test_all_who_wait_for_one_run_learn_that_it_was_missed(
    app: Celery, elsewhere: Callable[..., Any]
) -> None:
    task_id = str(uuid4())
    elsewhere(0.3, store_missed, task_id)

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(app.AsyncResult(task_id).get, SOON, False) for _ in range(3)]

    assert [type(w.result()) for w in waiting] == [TaskMissed] * 3


def test_callback_is_called_for_a_missed_run_as_for_a_failed_one(
    app: Celery, elsewhere: Callable[..., Any]
) -> None:
    result, calls = app.AsyncResult(str(uuid4())), []
    elsewhere(0.3, store_missed, result.id)

    result.get(propagate=False, callback=lambda *args: calls.append(args))

    assert calls == [(result.id, result.result)]


def test_then_is_called_as_at_any_end(app: Celery) -> None:
    result, ended = app.AsyncResult(store_missed(app)), []
    result.then(ended.append)

    with pytest.raises(TaskMissed):
        result.get(timeout=SOON)

    assert ended == [result]


@pytest.mark.parametrize("timeout", [0, 0.7])
def test_the_timeout_is_kept(app: Celery, timeout: float) -> None:
    with Clock() as clock, pytest.raises(TimeoutError):
        app.AsyncResult(str(uuid4())).get(timeout=timeout)

    assert timeout <= clock.elapsed < timeout + SOON


def test_a_run_that_is_missed_after_the_last_look_before_the_timeout_is_missed(
    app: Celery, elsewhere: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celery_misfire.result, "LOOK_EVERY", 60.0)
    result = app.AsyncResult(str(uuid4()))
    elsewhere(0.3, store_missed, result.id)

    with pytest.raises(TaskMissed):
        result.get(timeout=0.9)


def test_forget_removes_it(app: Celery) -> None:
    result = app.AsyncResult(store_missed(app))
    assert result.ready()

    result.forget()

    assert result.state == states.PENDING
    assert not result.ready()


def test_a_missed_parent_is_raised_like_a_failed_one(app: Celery) -> None:
    parent = app.AsyncResult(store_missed(app))

    with pytest.raises(TaskMissed):
        app.AsyncResult(str(uuid4()), parent=parent).get(timeout=SOON)


def stop() -> None:
    raise TimeoutError("the caller has enough")


def test_a_timeout_error_of_a_parent_is_told_from_ours(app: Celery) -> None:
    parent = str(uuid4())
    app.backend.store_result(parent, TimeoutError("of the parent"), states.FAILURE)

    with pytest.raises(TimeoutError, match="of the parent"):
        app.AsyncResult(str(uuid4()), parent=celery.result.AsyncResult(parent, app=app)).get(timeout=SOON)


def test_a_timeout_error_of_a_callback_is_told_from_ours(app: Celery) -> None:
    with pytest.raises(TimeoutError, match="has enough"):
        app.AsyncResult(str(uuid4())).get(timeout=SOON, on_interval=stop)


def test_no_interval_is_no_reason_to_wait_for_ever(app: Celery, elsewhere: Callable[..., Any]) -> None:
    result = app.AsyncResult(str(uuid4()))
    elsewhere(0.3, store_missed, result.id)

    with pytest.raises(TaskMissed):
        result.get(timeout=SOON, interval=0)


def test_a_state_of_the_same_name_that_is_not_ours_stays_as_it_was(app: Celery) -> None:
    task_id = str(uuid4())
    app.backend.store_result(task_id, {"trains": 3}, MISSED)
    result = app.AsyncResult(task_id)

    assert (result.state, result.result) == (MISSED, {"trains": 3})
    assert not result.ready()
    assert not result.failed()
    with pytest.raises(TimeoutError):
        result.get(timeout=0.2)


@pytest.mark.parametrize(
    "changes",
    [
        {"reason": "a reason of the year 2030"},
        {"first_scheduled_fire_time": 7},
        {"entry": None, "count": None},
        {"exc_message": 7},
        {"exc_message": None},
        {"exc_message": 7, "reason": "new"},
        {"exc_message": None, "reason": "new"},
    ],
)
def test_a_record_that_makes_no_sense_is_still_an_end(app: Celery, changes: dict[str, Any]) -> None:
    task_id = str(uuid4())
    app.backend.store_result(task_id, result_of(make_missed(task_id=task_id)) | changes, MISSED)

    with pytest.raises(TaskMissed):
        app.AsyncResult(task_id).get(timeout=SOON)


@pytest.mark.parametrize("message", [["the trains were late"], "the trains were late"])
def test_a_record_of_another_version_keeps_its_message(app: Celery, message: object) -> None:
    task_id = str(uuid4())
    stored = {"exc_type": "TaskMissed", "exc_message": message, "exc_module": "x"}
    app.backend.store_result(task_id, stored, MISSED)

    error = app.AsyncResult(task_id).result

    assert (str(error), error.missed) == ("the trains were late", None)


# -- groups ------------------------------------------------------------------------------------------------


def group_of(app: Celery, *ids: str) -> celery.result.GroupResult:
    return app.GroupResult(str(uuid4()), [app.AsyncResult(id_) for id_ in ids])


def test_a_group_with_a_missed_member_is_ready_and_failed(app: Celery) -> None:
    group = group_of(app, store_success(app, 1), store_missed(app), store_success(app, 3))

    assert group.ready()
    assert group.failed()
    assert not group.successful()
    assert not group.waiting()
    assert group.completed_count() == 2


@pytest.mark.parametrize("method", ["get", "join"])
def test_a_group_raises_what_its_member_missed(app: Celery, method: str) -> None:
    group = group_of(app, store_success(app, 1), store_missed(app))

    with pytest.raises(TaskMissed):
        getattr(group, method)(timeout=SOON)


@pytest.mark.parametrize("method", ["get", "join"])
def test_a_group_raises_it_again(app: Celery, method: str) -> None:
    group = group_of(app, store_success(app, 1), store_missed(app))
    getattr(group, method)(timeout=SOON, propagate=False)

    for _ in range(2):
        with pytest.raises(TaskMissed):
            getattr(group, method)(timeout=SOON)


@pytest.mark.parametrize("method", ["get", "join"])
def test_a_group_without_propagate_returns_it_in_its_place(app: Celery, method: str) -> None:
    group = group_of(app, store_success(app, 1), store_missed(app), store_success(app, 3))

    one, missed, three = getattr(group, method)(timeout=SOON, propagate=False)

    assert (one, three) == (1, 3)
    assert isinstance(missed, TaskMissed)


def test_a_group_ends_when_members_end_while_it_waits(app: Celery, elsewhere: Callable[..., Any]) -> None:
    missed, later = str(uuid4()), str(uuid4())
    elsewhere(0.2, store_missed, missed)
    elsewhere(0.6, lambda other: other.backend.mark_as_done(later, "late"))

    results = group_of(app, store_success(app, 1), missed, later).get(propagate=False)

    assert [results[0], type(results[1]), results[2]] == [1, TaskMissed, "late"]


def test_a_group_hands_each_member_to_the_callback_once(app: Celery, elsewhere: Callable[..., Any]) -> None:
    missed, later = str(uuid4()), str(uuid4())
    elsewhere(0.2, store_missed, missed)
    elsewhere(0.8, lambda other: other.backend.mark_as_done(later, "late"))
    seen: list[tuple[str, Any]] = []

    group_of(app, missed, later).get(propagate=False, callback=lambda *args: seen.append(args))

    assert sorted(id_ for id_, _ in seen) == sorted([missed, later])


def test_a_group_keeps_its_timeout(app: Celery) -> None:
    group = group_of(app, store_success(app, 1), store_missed(app), str(uuid4()))

    with Clock() as clock, pytest.raises(TimeoutError):
        group.get(timeout=0.7, propagate=False)

    assert 0.7 <= clock.elapsed < SOON


def test_a_group_ends_without_an_interval_too(app: Celery, elsewhere: Callable[..., Any]) -> None:
    missed = str(uuid4())
    elsewhere(0.3, store_missed, missed)

    one, error = group_of(app, store_success(app, 1), missed).get(timeout=SOON, interval=0, propagate=False)

    assert (one, type(error)) == (1, TaskMissed)


@pytest.mark.parametrize("after", [0.0, 2.5])
def test_a_timeout_error_of_a_callback_ends_the_wait_for_a_group(app: Celery, after: float) -> None:
    began = time.monotonic()

    def stop_after() -> None:
        if time.monotonic() >= began + after:
            stop()

    with pytest.raises(TimeoutError, match="has enough"):
        group_of(app, str(uuid4())).get(timeout=SOON, on_interval=stop_after)


@pytest.mark.parametrize("method", ["get", "join"])
@pytest.mark.parametrize("later", [False, True])
def test_a_group_in_a_group_raises_what_was_missed(
    app: Celery, elsewhere: Callable[..., Any], method: str, later: bool
) -> None:
    missed = str(uuid4()) if later else store_missed(app)
    inner = group_of(app, store_success(app, 2), missed)
    group = app.GroupResult(str(uuid4()), [app.AsyncResult(store_success(app, 1)), inner])
    if later:
        elsewhere(0.5, store_missed, missed)

    with pytest.raises(TaskMissed):
        getattr(group, method)(timeout=SOON)


@pytest.mark.parametrize("method", ["get", "join"])
def test_a_set_of_results_is_as_a_group(app: Celery, elsewhere: Callable[..., Any], method: str) -> None:
    later = str(uuid4())
    elsewhere(0.3, store_missed, later)
    ids = [store_success(app, 1), store_missed(app), later]
    results = app.ResultSet([app.AsyncResult(id_) for id_ in ids])

    one, *missed = getattr(results, method)(timeout=SOON, propagate=False)

    assert (one, [type(error) for error in missed]) == (1, [TaskMissed] * 2)
    with pytest.raises(TaskMissed):
        getattr(results, method)(timeout=SOON)


def test_a_restored_group_knows_missed_members(app: Celery, url: str) -> None:
    group = group_of(app, store_success(app, 1), store_missed(app))
    group.save()

    with pytest.raises(TaskMissed):
        app.GroupResult.restore(group.id, app=app).get(timeout=SOON)


# -- what Celery's own states do, with a real worker -------------------------------------------------------


@pytest.fixture
def working(app: Celery) -> Iterator[Celery]:
    @app.task(name="add", shared=False)
    def add(x: int, y: int, after: float = 0) -> int:
        time.sleep(after)
        return x + y

    @app.task(name="fail", shared=False)
    def fail() -> None:
        raise KeyError("gone")

    @app.task(name="time_out", shared=False)
    def time_out() -> None:
        raise TimeoutError("of the task itself")

    # A worker forbids its process to wait for results, and one that fails to start leaves it so. One that
    # took too long to stop leaves the order to stop, and the next one would never be ready.
    forbids, worker_state.should_stop = task_join_will_block(), None
    worker_state.should_terminate = None
    try:
        with start_worker(app, pool="threads", concurrency=4, perform_ping_check=False, loglevel="ERROR"):
            yield app
    finally:
        _set_task_join_will_block(forbids)


def test_success_comes_through(working: Celery) -> None:
    result = working.tasks["add"].delay(2, 2)

    assert isinstance(result, celery_misfire.result.AsyncResult)
    assert result.get(timeout=SOON) == 4
    assert result.get() == 4
    assert (result.successful(), result.failed(), result.ready()) == (True, False, True)


def test_success_comes_through_after_some_looks(working: Celery) -> None:
    assert working.tasks["add"].delay(2, 2, after=1.3).get() == 4


def test_failure_comes_through(working: Celery) -> None:
    result = working.tasks["fail"].delay()

    with pytest.raises(KeyError, match="gone"):
        result.get(timeout=SOON)
    assert (result.successful(), result.failed(), result.ready()) == (False, True, True)
    assert isinstance(result.get(propagate=False), KeyError)


def test_a_timeout_error_of_the_task_is_told_from_ours(working: Celery) -> None:
    result = working.tasks["time_out"].delay()

    for _ in range(2):
        with pytest.raises(TimeoutError, match="of the task itself"):
            result.get(timeout=SOON)
    assert isinstance(result.get(timeout=SOON, propagate=False), TimeoutError)


def test_a_group_of_real_runs_and_a_missed_one(working: Celery) -> None:
    add = working.tasks["add"]
    runs = [add.delay(n, n, after=n / 10) for n in range(6)]
    group = working.GroupResult(str(uuid4()), [*runs, working.AsyncResult(store_missed(working))])

    *sums, missed = group.get(timeout=SOON, propagate=False)

    assert sums == [0, 2, 4, 6, 8, 10]
    assert isinstance(missed, TaskMissed)


def test_a_canvas_group_comes_through(working: Celery) -> None:
    add = working.tasks["add"]
    group = celery.group([add.s(n, n, after=0.3) for n in range(6)], app=working).delay()

    assert isinstance(group, celery_misfire.result.GroupResult)
    assert group.get(timeout=SOON) == [0, 2, 4, 6, 8, 10]


def test_a_group_in_a_canvas_group_comes_through(working: Celery) -> None:
    add = working.tasks["add"]
    inner = chain(add.s(1, 1), celery.group(add.s(1), add.s(2), app=working), app=working)
    group = celery.group([add.s(0, 1), inner], app=working).delay()

    assert group.get(timeout=SOON) == [1, [3, 4]]


# -- install -----------------------------------------------------------------------------------------------


def test_install_may_come_before_the_configuration_and_forces_nothing() -> None:
    app = Celery("early", set_as_current=False)

    assert celery_misfire.install(app) is app

    assert not app.configured
    assert not app.finalized
    app.conf.result_backend = "cache+memory://"
    with pytest.raises(TaskMissed):
        app.AsyncResult(store_missed(app)).get(timeout=SOON)


def test_install_twice_is_install_once() -> None:
    app = celery_misfire.install(Celery("twice", set_as_current=False))
    classes = app.AsyncResult, app.ResultSet, app.GroupResult

    celery_misfire.install(app)

    assert (app.AsyncResult, app.ResultSet, app.GroupResult) == classes


def test_install_leaves_other_apps_and_celery_alone() -> None:
    installed, other = (Celery(name, backend="cache+memory://", set_as_current=False) for name in "ab")
    celery_misfire.install(installed)
    task_id = store_missed(installed)

    assert installed.AsyncResult(task_id).ready()
    assert not other.AsyncResult(task_id).ready()
    assert MISSED not in states.READY_STATES | installed.backend.READY_STATES | states.EXCEPTION_STATES
    assert celery.result.AsyncResult.get is not installed.AsyncResult.get


def test_install_keeps_classes_that_the_app_has_already() -> None:
    app = Celery("own", backend="cache+memory://", set_as_current=False)
    base = app.AsyncResult

    class Own(base):  # type: ignore[misc, valid-type]
        def shout(self) -> str:
            return self.state + "!"

    app.AsyncResult = Own
    celery_misfire.install(app)
    result = app.AsyncResult(store_missed(app))

    assert result.shout() == "MISSED!"
    with pytest.raises(TaskMissed):
        result.get(timeout=SOON)


def test_results_of_an_app_can_be_pickled() -> None:
    app = celery_misfire.install(Celery("pickled", backend="cache+memory://", set_as_current=False))
    app.set_current()
    result = app.AsyncResult(store_missed(app))

    copy = pickle.loads(pickle.dumps(result))

    assert copy == result
    assert copy.ready()
