"""One report of missed runs: what each part of it leaves."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery, Task, signals, states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError

from celery_misfire.exceptions import TaskMissed
from celery_misfire.misfire import Reason
from celery_misfire.sending import broker as broker_module
from celery_misfire.sending.missed_record import MISSED, missed_dict, missed_from_dict
from celery_misfire.sending.missed_runs import Part, Report, report
from celery_misfire.signals import task_missed
from tests.support.missed import (
    MESSAGE,
    SCRIPT,
    SETTINGS,
    UNUSUAL,
    collected,
    connected,
    make_missed,
    needs,
    raising,
    register,
    run_script,
)
from tests.support.processes import published
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="module")
def server(redis_binary: Path) -> Iterator[RedisServer]:
    """Broker of all tests here, and the result backend of most."""
    with RedisServer(redis_binary) as server:
        yield server


@pytest.fixture
def app(server: RedisServer) -> Iterator[Celery]:
    server.client().flushall()
    app = Celery("missed", broker=server.url, backend=server.url, set_as_current=False)
    yield app
    app.close()


# -- the record --------------------------------------------------------------------------------------------


def test_the_record_is_plain_json_and_can_be_read_back() -> None:
    missed = make_missed()

    record = json.loads(json.dumps(missed_dict(missed)))

    assert record == {
        "entry": "stocks",
        "task": "shop.stocks",
        "task_id": missed.task_id,
        "first_scheduled_fire_time": "2026-03-02T09:00:00.000+00:00",
        "last_scheduled_fire_time": "2026-03-02T10:00:00.000+00:00",
        "count": 2,
        "reason": "scheduler_down",
        "instruction": "do_nothing",
        "detected_at": "2026-03-02T10:15:00.000+00:00",
    }
    assert missed_from_dict(record) == missed


@pytest.mark.parametrize("record", [{}, {"entry": "stocks"}, missed_dict(make_missed()) | {"reason": None}])
def test_what_is_no_record_is_a_value_error(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        missed_from_dict(record)


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


@pytest.mark.parametrize(("of_task", "of_entry", "stored"), [(True, False, MISSED), (False, True, "PENDING")])
@pytest.mark.parametrize("was_received", [False, True])
def test_an_entry_says_whether_its_result_is_ignored_before_its_task_does(
    app: Celery, of_task: bool, of_entry: bool, stored: str, was_received: bool
) -> None:
    register(app, ignore_result=of_task)
    missed = make_missed()
    request = Context(id=missed.task_id, ignore_result=of_entry) if was_received else None

    item = Report(missed, request=request, ignore_result=None if was_received else of_entry)
    assert report(app, SETTINGS, item) == {}

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


def test_a_deploy_raises_no_task_failure_and_leaves_everything_else(app: Celery, server: RedisServer) -> None:
    missed = make_missed(reason=Reason.RESTARTED)

    with collected(signals.task_failure) as failures, collected(task_missed) as misses:
        assert report(app, SETTINGS, Report(missed, on_missed="ops.alarm")) == {}

    assert not failures
    assert [sent["missed"] for sent in misses] == [missed]
    assert app.backend.get_state(missed.task_id) == MISSED
    assert [message.task for message in published(server.url)] == ["ops.alarm"]


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


# -- other packages ----------------------------------------------------------------------------------------


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
    assert run_script(SCRIPT + script) == "TaskMissed [['error']]\n"


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
    from celery_misfire.sending.missed_runs import connection_closers
    from django.db import close_old_connections
    print(connection_closers == [close_old_connections])
    """
    told = "MISSED stocks shop.stocks beat@ None None\nSUCCESS\nTrue\n"
    assert run_script(SCRIPT + script, str(tmp_path / "db.sqlite3")) == told
