from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery, Task, signals, states
from celery.exceptions import TaskRevokedError

from celery_misfire.exceptions import TaskMissed
from celery_misfire.misfire import MisfireInstruction, MissedFire, Reason
from celery_misfire.sending import broker as broker_module
from celery_misfire.sending import missed_runs as missed_module
from celery_misfire.sending.missed_runs import (
    MISSED,
    Part,
    Report,
    Reporter,
    log_line,
    missed_dict,
    missed_from_dict,
    report,
)
from celery_misfire.signals import misfire_detected, task_missed
from tests.support.missed import MESSAGE, NINE, RECORD, make_missed
from tests.support.processes import drain, published, wait_for
from tests.support.redis_server import RedisServer

ROOT = Path(__file__).parents[2]

SETTINGS: Any = SimpleNamespace(result_state=MISSED, send_task_failure=True)


@pytest.fixture
def app(server: RedisServer) -> Iterator[Celery]:
    server.client().flushall()
    app = Celery("missed", broker=server.url, backend=server.url, set_as_current=False)
    yield app
    app.close()


def register(app: Celery, **options: Any) -> None:
    """Register the task of the records with the app."""

    @app.task(name="shop.stocks", shared=False, **options)
    def stocks() -> None: ...


@contextmanager
def connected(signal: Any, receiver: Callable[..., Any]) -> Iterator[None]:
    signal.connect(receiver, weak=False)
    try:
        yield
    finally:
        signal.disconnect(receiver)


@contextmanager
def collected(signal: Any) -> Iterator[list[dict[str, Any]]]:
    """What is sent of a signal in the block."""
    sent: list[dict[str, Any]] = []
    with connected(signal, lambda **arguments: sent.append(arguments)):
        yield sent


#: What ends a thread, and is no Exception.
UNUSUAL = [SystemExit, KeyboardInterrupt, asyncio.CancelledError]


def raising(error: type[BaseException]) -> Callable[..., None]:
    def broken(**_: object) -> None:
        raise error

    return broken


def run_script(script: str, *arguments: str) -> str:
    """Run a script in an interpreter of its own; return what it prints."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- the record --------------------------------------------------------------------------------------------


def test_the_record_is_plain_json_and_can_be_read_back() -> None:
    missed = make_missed()

    record = json.loads(json.dumps(missed_dict(missed)))

    assert record == {"task_id": missed.task_id, **RECORD}
    assert missed_from_dict(record) == missed


@pytest.mark.parametrize("record", [{}, {"entry": "stocks"}, missed_dict(make_missed()) | {"reason": None}])
def test_what_is_no_record_is_a_value_error(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        missed_from_dict(record)


def test_the_log_line_tells_all_of_it() -> None:
    assert log_line(make_missed()) == (
        "'stocks' missed 2 runs of 'shop.stocks', scheduled 2026-03-02T09:00:00.000+00:00 to "
        "2026-03-02T10:00:00.000+00:00, reason scheduler_down, instruction do_nothing"
    )


def test_the_log_line_of_one_run_has_one_time() -> None:
    assert log_line(make_missed(count=1, last=NINE)) == (
        "'stocks' missed 1 run of 'shop.stocks', scheduled 2026-03-02T09:00:00.000+00:00, "
        "reason scheduler_down, instruction do_nothing"
    )


NAMES = {
    "newline": "a\nbeat: all is well",
    "escape": "\x1b[2J",
    "controls": "a\r\x00b",
    "line separator": "\u2028",
    "right to left": "\u202e",
    "surrogate": "\ud800",
    "cyrillic": "день" * 100,
    "newlines": "\n" * 1000,
    "long": "x" * 1000,
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_no_name_breaks_the_log_line(name: str) -> None:
    line = log_line(make_missed(entry=name, task=name))

    assert line.isprintable()
    assert len(line) <= 500
    assert line.endswith("reason scheduler_down, instruction do_nothing")
    line.encode()


# -- the result --------------------------------------------------------------------------------------------


def test_the_result_is_stored_under_the_id_of_the_run(app: Celery) -> None:
    missed = make_missed()

    assert report(app, SETTINGS, Report(missed)) == {}

    meta = app.backend.get_task_meta(missed.task_id)
    assert meta["status"] == MISSED
    assert meta["result"] == {
        "exc_type": "TaskMissed",
        "exc_message": [MESSAGE],
        "exc_module": "celery_misfire.exceptions",
        **missed_dict(missed),
    }


def test_an_extended_result_names_task_and_worker_and_no_arguments(app: Celery) -> None:
    app.conf.result_extended = True
    missed = make_missed()

    report(app, SETTINGS, Report(missed))

    meta = app.backend.get_task_meta(missed.task_id)
    assert meta["name"] == "shop.stocks"
    assert meta["worker"].startswith("beat@")
    assert (meta["args"], meta["kwargs"]) == (None, None)


@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize("state", [MISSED, states.FAILURE])
def test_every_serializer_can_store_it(app: Celery, serializer: str, state: str) -> None:
    app.conf.update(result_serializer=serializer, result_accept_content=[serializer])
    settings: Any = SimpleNamespace(result_state=state, send_task_failure=False)
    missed = make_missed()

    assert report(app, settings, Report(missed)) == {}

    assert app.AsyncResult(missed.task_id).state == state


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_failure_can_be_read_where_this_package_is_not(
    app: Celery, server: RedisServer, serializer: str
) -> None:
    app.conf.update(result_serializer=serializer, result_accept_content=[serializer])
    settings: Any = SimpleNamespace(result_state=states.FAILURE, send_task_failure=False)
    missed = make_missed()
    report(app, settings, Report(missed))

    script = """if True:
        import sys
        sys.modules["celery_misfire"] = None
        from celery import Celery
        url, task_id, serializer = sys.argv[1:]
        app = Celery(backend=url)
        app.conf.update(result_serializer=serializer, result_accept_content=[serializer])
        result = app.AsyncResult(task_id)
        assert result.ready() and result.failed()
        try:
            result.get(timeout=10)
        except Exception as error:
            print(type(error).__name__, error)
    """
    assert run_script(script, server.url, missed.task_id, serializer) == f"TaskMissed {MESSAGE}\n"


@pytest.mark.parametrize(
    ("state", "value"),
    [
        (states.SUCCESS, 42),
        (states.FAILURE, KeyError("gone")),
        (states.REVOKED, TaskRevokedError("revoked")),
    ],
)
def test_the_result_of_a_run_is_never_overwritten(app: Celery, state: str, value: object) -> None:
    missed = make_missed()
    app.backend.store_result(missed.task_id, value, state)
    before = app.backend.client.get(app.backend.get_key_for_task(missed.task_id))

    assert report(app, SETTINGS, Report(missed)) == {}

    assert app.backend.client.get(app.backend.get_key_for_task(missed.task_id)) == before


def test_a_report_that_is_made_again_changes_nothing(app: Celery) -> None:
    missed = make_missed()
    report(app, SETTINGS, Report(missed))
    before = app.backend.get_task_meta(missed.task_id)

    report(app, SETTINGS, Report(missed))

    assert app.backend.get_task_meta(missed.task_id) == before


def test_the_result_goes_where_the_task_keeps_its_results(app: Celery, tmp_path: Path) -> None:
    own = Celery(backend=f"file://{tmp_path}", set_as_current=False).backend
    register(app, backend=own)
    missed = make_missed()

    report(app, SETTINGS, Report(missed))

    assert own.get_state(missed.task_id) == MISSED
    assert app.backend.get_state(missed.task_id) == states.PENDING


@pytest.mark.parametrize("url", ["disabled://", "rpc://"])
def test_without_a_result_backend_the_rest_is_done(app: Celery, server: RedisServer, url: str) -> None:
    app.conf.result_backend = url

    with collected(task_missed) as sent:
        assert report(app, SETTINGS, Report(make_missed(), on_missed="ops.alarm")) == {}

    assert len(sent) == 1
    assert [message.task for message in published(server.url)] == ["ops.alarm"]
    assert not [key for key in server.client().scan_iter() if "reply" in key or "meta" in key]


@pytest.mark.parametrize(("store_errors", "stored"), [(False, states.PENDING), (True, MISSED)])
def test_a_task_that_ignores_its_results_is_taken_at_its_word(
    app: Celery, store_errors: bool, stored: str
) -> None:
    register(app, ignore_result=True, store_errors_even_if_ignored=store_errors)
    missed = make_missed()

    assert report(app, SETTINGS, Report(missed)) == {}

    assert app.backend.get_state(missed.task_id) == stored


# -- task_failure ------------------------------------------------------------------------------------------


@pytest.fixture(params=["known", "unknown"])
def task_name(request: pytest.FixtureRequest, app: Celery) -> str:
    """The name of a task that beat's process has loaded, or has not."""
    if request.param == "known":
        register(app)
    return "shop.stocks"


def test_task_failure_is_sent_as_a_worker_would(app: Celery, task_name: str) -> None:
    missed, requests = make_missed(task=task_name), []

    with (
        connected(signals.task_failure, lambda sender, **_: requests.append(sender.request)),
        collected(signals.task_failure) as sent,
    ):
        assert report(app, SETTINGS, Report(missed)) == {}

    (arguments,) = sent
    sender = arguments["sender"]
    assert isinstance(sender, Task)
    assert sender.name == "shop.stocks"
    assert sender.app is app
    assert arguments["task_id"] == missed.task_id
    assert isinstance(arguments["exception"], TaskMissed)
    assert arguments["exception"].missed == missed
    assert (arguments["args"], arguments["kwargs"]) == ((), {})
    assert arguments["traceback"] is arguments["exception"].__traceback__ is not None
    assert isinstance(arguments["einfo"], ExceptionInfo)
    assert arguments["einfo"].type is TaskMissed
    assert f"TaskMissed: {MESSAGE}" in str(arguments["einfo"])
    (request,) = requests
    assert (request.id, request.task) == (missed.task_id, "shop.stocks")
    assert request.headers == {"periodic_task_name": "stocks"}
    assert request.periodic_task_name == "stocks"
    assert not request.args
    assert sender.request.id is None


def test_a_task_that_stands_for_an_unknown_one_is_not_registered(app: Celery) -> None:
    report(app, SETTINGS, Report(make_missed()))

    assert "shop.stocks" not in app.tasks


def test_the_traceback_holds_no_variable_but_the_error(app: Celery) -> None:
    # Sentry and others send the variables of every frame.
    with collected(signals.task_failure) as sent:
        report(app, SETTINGS, Report(make_missed()))

    trace = sent[0]["traceback"]
    assert trace.tb_next is None
    assert list(trace.tb_frame.f_locals) == ["error"]


def test_the_error_can_be_pickled(app: Celery) -> None:
    with collected(signals.task_failure) as sent:
        report(app, SETTINGS, Report(make_missed()))

    assert str(pickle.loads(pickle.dumps(sent[0]["exception"]))) == MESSAGE


def test_task_failure_can_be_switched_off(app: Celery) -> None:
    settings: Any = SimpleNamespace(result_state=MISSED, send_task_failure=False)

    with collected(signals.task_failure) as failures, collected(task_missed) as misses:
        report(app, settings, Report(make_missed()))

    assert not failures
    assert len(misses) == 1


# -- task_missed -------------------------------------------------------------------------------------------


def test_task_missed_is_sent_with_the_record(app: Celery) -> None:
    missed = make_missed()

    with collected(task_missed) as sent:
        report(app, SETTINGS, Report(missed))

    assert sent == [{"signal": task_missed, "sender": "shop.stocks", "missed": missed}]


@pytest.mark.parametrize("signal", [signals.task_failure, task_missed], ids=lambda s: s.name)
def test_a_receiver_that_raises_stops_nothing(app: Celery, server: RedisServer, signal: Any) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("broken receiver")

    missed = make_missed()
    with connected(signal, broken), collected(signal) as sent:
        assert report(app, SETTINGS, Report(missed, on_missed="ops.alarm")) == {}

    assert len(sent) == 1
    assert app.backend.get_state(missed.task_id) == MISSED
    assert len(published(server.url)) == 1


@pytest.mark.parametrize("error", UNUSUAL)
def test_a_receiver_that_ends_its_thread_fails_its_part_alone(
    app: Celery, server: RedisServer, error: type[BaseException]
) -> None:
    with connected(task_missed, raising(error)):
        failed = report(app, SETTINGS, Report(make_missed(), on_missed="ops.alarm"))

    assert list(failed) == [Part.TASK_MISSED]
    assert len(published(server.url)) == 1


# -- the event ---------------------------------------------------------------------------------------------


def test_monitors_see_the_task_as_missed(app: Celery) -> None:
    missed = make_missed()
    state = app.events.State()
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": state.event})
        with receiver.consumer_context() as (listening, _, _):
            # Redis hands events to those who listen, and the first look is what makes it listen.
            with suppress(TimeoutError):
                listening.drain_events(timeout=0.1)
            report(app, SETTINGS, Report(missed))
            while not state.tasks:
                listening.drain_events(timeout=20)

    task = state.tasks[missed.task_id]
    assert (task.state, task.name, task.exception) == (MISSED, "shop.stocks", MESSAGE)
    assert task.worker.hostname.startswith("beat@")
    assert (task.entry, task.count, task.reason) == ("stocks", 2, "scheduler_down")
    assert task.first_scheduled_fire_time == "2026-03-02T09:00:00.000+00:00"


# -- the handler task --------------------------------------------------------------------------------------


def test_the_handler_task_gets_the_record(app: Celery, server: RedisServer) -> None:
    missed = make_missed()

    report(app, SETTINGS, Report(missed, on_missed="ops.alarm"))

    (message,) = published(server.url)
    assert message.task == "ops.alarm"
    assert message.args == []
    assert message.kwargs == {"missed": missed_dict(missed)}
    assert UUID(message.id).version == 5


def test_the_handler_task_has_one_id_for_one_record(app: Celery, server: RedisServer) -> None:
    missed, other = make_missed(), make_missed()

    for which in (missed, missed, other):
        report(app, SETTINGS, Report(which, on_missed="ops.alarm"))

    first, again, another = [message.id for message in published(server.url)]
    assert first == again
    assert len({first, another, missed.task_id, other.task_id}) == 4


def test_the_handler_task_is_routed_as_any_other(app: Celery, server: RedisServer) -> None:
    app.conf.task_routes = {"ops.*": {"queue": "urgent"}}

    report(app, SETTINGS, Report(make_missed(), on_missed="ops.alarm"))

    assert len(published(server.url, "urgent")) == 1


def test_without_a_handler_nothing_is_sent(app: Celery, server: RedisServer) -> None:
    report(app, SETTINGS, Report(make_missed()))

    assert published(server.url) == []


# -- parts that fail ---------------------------------------------------------------------------------------


def test_a_dead_broker_fails_the_parts_that_need_it(app: Celery) -> None:
    app.conf.broker_url = "redis://127.0.0.1:1/0"
    missed = make_missed()

    with collected(task_missed) as sent:
        failed = report(app, SETTINGS, Report(missed, on_missed="ops.alarm"))

    assert set(failed) == {Part.EVENT, Part.HANDLER}
    assert app.backend.get_state(missed.task_id) == MISSED
    assert len(sent) == 1


def test_a_broker_that_does_not_answer_fails_them_in_time(
    app: Celery, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "TIMEOUT", 0.2)
    app.conf.broker_url = redis_server.url
    redis_server.freeze()

    failed = report(app, SETTINGS, Report(make_missed(), on_missed="ops.alarm"))
    redis_server.thaw()

    assert set(failed) == {Part.EVENT, Part.HANDLER}


def test_a_dead_result_backend_fails_the_result_alone(app: Celery, server: RedisServer) -> None:
    app.conf.result_backend = "redis://127.0.0.1:1/0"

    with collected(task_missed) as sent:
        failed = report(app, SETTINGS, Report(make_missed(), on_missed="ops.alarm"))

    assert list(failed) == [Part.RESULT]
    assert len(sent) == 1
    assert len(published(server.url)) == 1


# -- the reporter ------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missed_module, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(missed_module, "LONGEST_PAUSE", 0.2)


@pytest.fixture
def reporter(app: Celery, quick: None) -> Iterator[Reporter]:
    reporter = Reporter(app, SETTINGS)
    reporter.start()
    yield reporter
    reporter.stop(5)


def all_finished(reporter: Reporter, count: int) -> list[Report]:
    done: list[Report] = []
    wait_for(lambda: done.extend(reporter.finished()) or len(done) >= count)
    return done


def lines(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [
        r.getMessage()
        for r in caplog.records
        if r.name == "celery_misfire.sending.missed_runs" and text in r.message
    ]


def test_the_reporter_makes_every_report_once(app: Celery, reporter: Reporter, server: RedisServer) -> None:
    reports = [Report(make_missed(), on_missed="ops.alarm", key=("stocks", n)) for n in range(20)]

    with collected(task_missed) as sent:
        for each in reports:
            reporter.submit(each)
        done = all_finished(reporter, 20)

    assert done == reports
    assert reporter.finished() == []
    assert [arguments["missed"] for arguments in sent] == [each.missed for each in reports]
    assert len(drain(server.url)) == 20


def test_the_reporter_works_in_a_thread_of_its_own(reporter: Reporter) -> None:
    threads = []

    with connected(task_missed, lambda **_: threads.append(threading.current_thread())):
        reporter.submit(Report(make_missed()))
        all_finished(reporter, 1)

    assert threads[0] is not threading.main_thread()
    assert threads[0].daemon


def test_the_caller_never_waits_for_a_receiver(reporter: Reporter) -> None:
    go_on = threading.Event()

    with connected(task_missed, lambda **_: go_on.wait(20)):
        reporter.submit(Report(make_missed()))
        reporter.submit(Report(make_missed()))
        # Had submit() or finished() waited for the receiver, this line would come only after it.
        assert reporter.finished() == []
        go_on.set()
        assert len(all_finished(reporter, 2)) == 2


def test_a_result_backend_that_is_away_holds_up_the_result_alone(
    app: Celery, quick: None, redis_server: RedisServer, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app.conf.result_backend = redis_server.url
    redis_server.kill()
    reports = [Report(make_missed(), on_missed="ops.alarm") for _ in range(3)]
    reporter = Reporter(app, SETTINGS)
    reporter.start()

    with collected(task_missed) as misses, collected(signals.task_failure) as failures:
        for each in reports:
            reporter.submit(each)
        wait_for(lambda: len(published(server.url)) == 3)
        assert reporter.finished() == []
        tries = wait_for(lambda: reporter._waiting and reporter._waiting[0].tries)
        wait_for(lambda: reporter._waiting and max(job.tries for job in reporter._waiting) > tries + 1)
        redis_server.start()
        done = all_finished(reporter, 3)
        reporter.stop(5)

    assert sorted(map(id, done)) == sorted(map(id, reports))
    assert {app.backend.get_state(each.missed.task_id) for each in reports} == {MISSED}
    assert (len(misses), len(failures), len(published(server.url))) == (3, 3, 3)
    assert lines(caplog, "cannot be reported") == [
        "beat: missed runs cannot be reported (result fails), trying until they can"
    ]
    assert lines(caplog, "again") == ["beat: missed runs can be reported again"]


def test_a_result_backend_that_does_not_answer_holds_up_the_result_alone(
    app: Celery, quick: None, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missed_module, "BACKEND_TIMEOUT", 0.2)
    go_on, waiting = threading.Event(), []

    class Frozen(type(app.backend)):  # type: ignore[misc]
        def get_task_meta(self, *args: Any, **kwargs: Any) -> Any:
            waiting.append(1)
            assert go_on.wait(30)
            return super().get_task_meta(*args, **kwargs)

    register(app, backend=Frozen(app=app, url=server.url))
    reports = [Report(make_missed(), on_missed="ops.alarm") for _ in range(3)]
    reporter = Reporter(app, SETTINGS)
    reporter.start()

    with collected(task_missed) as misses, collected(signals.task_failure) as failures:
        for each in reports:
            reporter.submit(each)
        wait_for(lambda: len(published(server.url)) == 3)
        tries = wait_for(lambda: reporter._waiting and reporter._waiting[0].tries)
        wait_for(lambda: reporter._waiting and max(job.tries for job in reporter._waiting) > tries + 1)
        # What waits in line behind the one that hangs is not begun later, when nobody waits for it.
        assert len(waiting) == 1
        # Nothing depends on runs that were never sent.
        wait_for(lambda: reporter._broken == {Part.RESULT})
        assert reporter.finished() == []
        go_on.set()
        all_finished(reporter, 3)
        reporter.stop(5)

    assert {app.backend.get_state(each.missed.task_id) for each in reports} == {MISSED}
    assert (len(misses), len(failures), len(published(server.url))) == (3, 3, 3)


def test_a_recorder_that_does_not_come_back_holds_up_the_record_alone(
    app: Celery, quick: None, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missed_module, "BACKEND_TIMEOUT", 0.2)
    go_on, kept = threading.Event(), []

    def keep(missed: MissedFire) -> None:
        assert go_on.wait(30)
        kept.append(missed)

    monkeypatch.setattr(missed_module, "recorders", [keep])
    reports = [Report(make_missed(), on_missed="ops.alarm") for _ in range(3)]
    reporter = Reporter(app, SETTINGS)
    reporter.start()

    with collected(task_missed) as misses, collected(signals.task_failure) as failures:
        for each in reports:
            reporter.submit(each)
        wait_for(lambda: len(published(server.url)) == 3)
        assert {app.backend.get_state(each.missed.task_id) for each in reports} == {MISSED}
        wait_for(lambda: reporter._broken == {Part.RECORD})
        assert reporter.finished() == []
        go_on.set()
        all_finished(reporter, 3)
        reporter.stop(5)

    assert {missed.task_id for missed in kept} == {each.missed.task_id for each in reports}
    assert (len(misses), len(failures), len(published(server.url))) == (3, 3, 3)


def test_a_broker_that_is_away_holds_up_event_and_handler_alone(
    app: Celery, quick: None, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app.conf.broker_url = redis_server.url
    redis_server.kill()
    reports = [Report(make_missed(), on_missed="ops.alarm") for _ in range(3)]
    reporter = Reporter(app, SETTINGS)
    reporter.start()

    with collected(task_missed) as misses:
        for each in reports:
            reporter.submit(each)
        for each in reports:
            wait_for(lambda each=each: app.backend.get_state(each.missed.task_id) == MISSED)
        assert reporter.finished() == []
        redis_server.start()
        all_finished(reporter, 3)
        reporter.stop(5)

    assert len(misses) == 3
    assert len(published(redis_server.url)) == 3
    assert len(lines(caplog, "cannot be reported")) == 1
    assert len(lines(caplog, "again")) == 1


def test_what_works_again_is_used_again_at_once(app: Celery, quick: None, redis_server: RedisServer) -> None:
    app.conf.update(broker_url=redis_server.url, result_backend="redis://127.0.0.1:1/0")
    redis_server.kill()
    reporter = Reporter(app, SETTINGS)
    reporter.start()
    reporter.submit(Report(make_missed(), on_missed="ops.alarm"))
    wait_for(lambda: reporter._broken == {Part.RESULT, Part.EVENT, Part.HANDLER})

    redis_server.start()

    wait_for(lambda: reporter._broken == {Part.RESULT})
    assert len(published(redis_server.url)) == 1
    reporter.stop(5)


def test_a_record_that_cannot_be_stored_is_given_up_and_holds_up_nobody(
    app: Celery, reporter: Reporter, caplog: pytest.LogCaptureFixture
) -> None:
    unstorable, storable = make_missed(count=Fraction(2)), make_missed()

    for missed in (unstorable, storable):
        reporter.submit(Report(missed))
    done = all_finished(reporter, 2)

    assert {each.missed.task_id for each in done} == {unstorable.task_id, storable.task_id}
    assert app.backend.get_state(storable.task_id) == MISSED
    result, event = lines(caplog, "given up")
    assert result.startswith("beat: result of a report is given up (EncodeError): 'stocks' missed")
    assert event.startswith("beat: event of a report is given up (EncodeError): 'stocks' missed")


@pytest.mark.parametrize("error", UNUSUAL)
def test_a_receiver_that_ends_its_thread_does_not_end_the_reporter(
    reporter: Reporter, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    with connected(task_missed, raising(error)):
        reporter.submit(Report(make_missed()))
        all_finished(reporter, 1)
    reporter.submit(Report(make_missed()))

    assert len(all_finished(reporter, 1)) == 1
    assert len(lines(caplog, f"task_missed of a report is given up ({error.__name__})")) == 1


def test_a_misfire_is_announced(reporter: Reporter) -> None:
    misfire = {
        "sender": "shop.stocks",
        "entry": "stocks",
        "scheduled_fire_time": NINE,
        "late_by": 4500.0,
        "instruction": MisfireInstruction.SMART_POLICY,
        "resolved": MisfireInstruction.FIRE_ONCE_NOW,
        "outcomes": {},
        "reason": Reason.SCHEDULER_DOWN,
    }

    with collected(misfire_detected) as sent:
        reporter.announce(misfire)
        wait_for(lambda: sent)

    assert sent == [misfire | {"signal": misfire_detected}]
    assert set(misfire) - {"sender"} == misfire_detected.providing_args


@pytest.mark.parametrize("error", [RuntimeError, *UNUSUAL])
def test_an_announcement_whose_receiver_raises_stops_nothing(
    reporter: Reporter, error: type[BaseException]
) -> None:
    with connected(misfire_detected, raising(error)):
        reporter.announce({"sender": "shop.stocks"})
        reporter.submit(Report(make_missed()))
        assert len(all_finished(reporter, 1)) == 1


def test_stop_finishes_what_is_there(app: Celery, quick: None) -> None:
    reporter = Reporter(app, SETTINGS)
    for _ in range(10):
        reporter.submit(Report(make_missed()))
    reporter.start()

    reporter.stop(20)

    assert len(reporter.finished()) == 10


def test_stop_gives_what_failed_a_last_try(
    app: Celery, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missed_module, "FIRST_PAUSE", 3600.0)
    app.conf.result_backend = redis_server.url
    redis_server.kill()
    reporter = Reporter(app, SETTINGS)
    reporter.start()
    reporter.submit(Report(make_missed()))
    wait_for(lambda: reporter._pause)
    redis_server.start()

    reporter.stop(20)

    assert len(reporter.finished()) == 1


def test_stop_does_not_wait_longer_than_asked(reporter: Reporter) -> None:
    go_on = threading.Event()

    with connected(task_missed, lambda **_: go_on.wait(20)):
        reporter.submit(Report(make_missed()))
        began = time.monotonic()
        reporter.stop(0.2)
        elapsed = time.monotonic() - began
        go_on.set()

    assert elapsed < 10


def test_start_and_stop_may_be_called_at_any_time(app: Celery) -> None:
    reporter = Reporter(app, SETTINGS)
    reporter.stop(1)
    for _ in range(2):
        reporter.start()
        reporter.start()
        reporter.submit(Report(make_missed()))
        reporter.stop(20)
        reporter.stop(1)
        assert len(reporter.finished()) == 1


#: What Django's settings look like in an app that uses it.
USED_DJANGO = SimpleNamespace(settings=SimpleNamespace(configured=True))


def test_broken_database_connections_are_let_go(
    app: Celery, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    database = SimpleNamespace(close_old_connections=lambda: closed.append(threading.current_thread().name))
    monkeypatch.setitem(sys.modules, "django.db", database)
    monkeypatch.setitem(sys.modules, "django.conf", USED_DJANGO)
    reporter = Reporter(app, SETTINGS)
    reporter.submit(Report(make_missed()))
    reporter.start()
    reporter.stop(20)

    # Signal receivers use those of one thread, recorders and a result backend those of the others.
    assert set(closed) == {"misfire-reporter", "misfire-records", "misfire-results"}
    assert closed[0] == closed[-1] == "misfire-reporter"


def test_a_database_that_cannot_be_let_go_stops_nothing(
    app: Celery, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("the connection is in a state of its own")

    monkeypatch.setitem(sys.modules, "django.db", SimpleNamespace(close_old_connections=broken))
    monkeypatch.setitem(sys.modules, "django.conf", USED_DJANGO)
    reporter = Reporter(app, SETTINGS)
    reporter.submit(Report(make_missed()))
    reporter.start()
    reporter.stop(20)

    assert len(reporter.finished()) == 1


# -- other packages ----------------------------------------------------------------------------------------


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not importlib.util.find_spec(module), reason=f"needs {module}")


OTHERS = """if True:
    import sys
    from datetime import UTC, datetime
    from types import SimpleNamespace
    from celery import Celery
    from celery_misfire.misfire import MisfireInstruction, MissedFire, Reason
    from celery_misfire.sending.missed_runs import Report, report
    settings = SimpleNamespace(result_state="MISSED", send_task_failure=True)
    nine = datetime(2026, 3, 2, 9, tzinfo=UTC)
    missed = MissedFire("stocks", "shop.stocks", "7c3c0f2e-0000-5000-8000-000000000000", nine, nine, 1,
                        Reason.SCHEDULER_DOWN, MisfireInstruction.DO_NOTHING, nine)
"""


@needs("sentry_sdk")
def test_sentry_takes_the_failure() -> None:
    script = """
    import logging, sentry_sdk
    from celery.signals import task_failure
    from sentry_sdk.integrations.celery import CeleryIntegration
    from sentry_sdk.transport import Transport

    class Kept(Transport):
        envelopes = []
        def capture_envelope(self, envelope):
            self.envelopes.append(envelope)

    sentry_sdk.init("http://key@localhost/1", transport=Kept, send_default_pii=True,
                    integrations=[CeleryIntegration(monitor_beat_tasks=True)])
    task_failure.connect(lambda exception, **_: sentry_sdk.capture_exception(exception), weak=False)
    errors = []
    logging.getLogger("celery").addHandler(logging.NullHandler())
    logging.getLogger("celery.utils.dispatch.signal").error = lambda *a, **k: errors.append(a)
    app = Celery(broker="memory://", backend="cache+memory://")
    assert report(app, settings, Report(missed, on_missed="ops.alarm")) == {}
    assert not errors, errors
    (event,) = [item.payload.json for e in Kept.envelopes for item in e.items if item.type == "event"]
    error = event["exception"]["values"][-1]
    print(error["type"], [sorted(frame["vars"]) for frame in error["stacktrace"]["frames"]])
    """
    assert run_script(OTHERS + script) == "TaskMissed [['error']]\n"


@needs("django")
def test_a_django_that_is_imported_and_not_used_stops_nothing() -> None:
    # Sentry imports it wherever it is installed.
    script = """
    import django.db
    from celery_misfire.sending.missed_runs import Reporter
    app = Celery(broker="memory://", backend="cache+memory://")
    reporter = Reporter(app, settings)
    reporter.submit(Report(missed))
    reporter.start()
    reporter.stop(20)
    print(len(reporter.finished()))
    """
    assert run_script(OTHERS + script) == "1\n"


@needs("django_celery_results")
def test_django_celery_results_shows_entry_task_and_worker(tmp_path: Path) -> None:
    script = """
    import django
    from django.conf import settings as django_settings
    django_settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}},
        INSTALLED_APPS=["django_celery_results"], USE_TZ=True,
    )
    django.setup()
    from django.core.management import call_command
    call_command("migrate", verbosity=0)
    app = Celery(broker="memory://", backend="django-db")
    app.conf.result_extended = True
    for _ in range(2):
        assert report(app, settings, Report(missed)) == {}
    from django_celery_results.models import TaskResult
    row = TaskResult.objects.get()
    print(row.status, row.periodic_task_name, row.task_name, row.worker[:5], row.task_args, row.task_kwargs)
    TaskResult.objects.update(status="SUCCESS", result="42")
    assert report(app, settings, Report(missed)) == {}
    print(TaskResult.objects.get().status)
    """
    told = "MISSED stocks shop.stocks beat@ None None\nSUCCESS\n"
    assert run_script(OTHERS + script, str(tmp_path / "db.sqlite3")) == told
