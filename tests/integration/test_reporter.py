"""The thread that makes reports of missed runs: what fails waits, and the rest goes on."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, signals

from celery_misfire.events import Misfired
from celery_misfire.misfire import MisfireInstruction, MissedFire, Outcome, Reason, to_millis
from celery_misfire.sending import missed_runs as missed_module
from celery_misfire.sending import reporter as reporter_module
from celery_misfire.sending.missed_record import MISSED
from celery_misfire.sending.missed_runs import Part, Report
from celery_misfire.sending.reporter import Reporter
from celery_misfire.signals import misfire_detected, task_missed
from tests.support.missed import (
    NINE,
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
from tests.support.processes import drain, published, wait_for
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter_module, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(reporter_module, "LONGEST_PAUSE", 0.2)


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
        if r.name == "celery_misfire.sending.reporter" and text in r.message
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
    [broken] = lines(caplog, "cannot be reported")
    assert broken.startswith("beat: missed runs cannot be reported in full, result fails (ConnectionError")
    assert broken.endswith("; trying again until it works")
    [over] = lines(caplog, "can be reported again")
    assert re.fullmatch(r"beat: missed runs can be reported again; result failed for \d+ s", over)


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
        # A report in line behind the one that hangs is not begun later, when nobody waits for it.
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
    # Event and handler find out apart that the broker is back.
    [again] = lines(caplog, "can be reported again; ")
    assert "failed for" in again


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
    why = "given up (EncodeError (Object of type Fraction is not JSON serializable)): 'stocks' missed"
    assert result.startswith(f"beat: result of a report is {why}")
    assert event.startswith(f"beat: event of a report is {why}")


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


MISFIRED = Misfired(
    entry="stocks",
    task="shop.stocks",
    first=to_millis(NINE),
    last=to_millis(NINE),
    count=1,
    now=to_millis(NINE) + 4_500_000,
    late_by=4_500_000,
    reason=Reason.SCHEDULER_DOWN,
    instruction=MisfireInstruction.SMART_POLICY,
    resolved=MisfireInstruction.FIRE_ONCE_NOW,
    outcomes={"recovered": 1},
)


def test_a_misfire_is_announced(reporter: Reporter) -> None:
    with collected(misfire_detected) as sent:
        reporter.announce(MISFIRED)
        wait_for(lambda: sent)

    [arguments] = sent
    assert arguments == {
        "signal": misfire_detected,
        "sender": "shop.stocks",
        "entry": "stocks",
        "scheduled_fire_time": NINE,
        "late_by": 4500.0,
        "instruction": MisfireInstruction.SMART_POLICY,
        "resolved": MisfireInstruction.FIRE_ONCE_NOW,
        "outcomes": {Outcome.RECOVERED: 1},
        "reason": Reason.SCHEDULER_DOWN,
    }
    assert {name: type(arguments[name]) for name in ("instruction", "resolved", "reason")} == {
        "instruction": MisfireInstruction,
        "resolved": MisfireInstruction,
        "reason": Reason,
    }
    assert set(arguments) - {"signal", "sender"} == misfire_detected.providing_args


@pytest.mark.parametrize("error", [RuntimeError, *UNUSUAL])
def test_an_announcement_whose_receiver_raises_stops_nothing(
    reporter: Reporter, error: type[BaseException]
) -> None:
    with connected(misfire_detected, raising(error)):
        reporter.announce(MISFIRED)
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
    monkeypatch.setattr(reporter_module, "FIRST_PAUSE", 3600.0)
    app.conf.result_backend = redis_server.url
    redis_server.kill()
    reporter = Reporter(app, SETTINGS)
    reporter.start()
    reporter.submit(Report(make_missed()))
    wait_for(lambda: reporter._trouble.is_on)
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


def test_old_connections_are_closed_in_each_thread_that_makes_reports(
    app: Celery, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    closers = [lambda: closed.append(threading.current_thread().name)]
    monkeypatch.setattr(missed_module, "connection_closers", closers)
    reporter = Reporter(app, SETTINGS)
    reporter.submit(Report(make_missed()))
    reporter.start()
    reporter.stop(20)

    # Signal receivers use the connections of one thread, recorders and a result backend those of the others.
    assert set(closed) == {"misfire-reporter", "misfire-records", "misfire-results"}
    assert closed[0] == closed[-1] == "misfire-reporter"


def test_connections_that_cannot_be_closed_stop_nothing(
    app: Celery, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("the connection is in a state of its own")

    monkeypatch.setattr(missed_module, "connection_closers", [broken])
    reporter = Reporter(app, SETTINGS)
    reporter.submit(Report(make_missed()))
    reporter.start()
    reporter.stop(20)

    assert len(reporter.finished()) == 1


ONE_REPORT = """
    from celery_misfire.sending import missed_runs
    from celery_misfire.sending.reporter import Reporter
    app = Celery(broker="memory://", backend="cache+memory://")
    reporter = Reporter(app, settings)
    reporter.submit(Report(missed))
    reporter.start()
    reporter.stop(20)
    print(len(reporter.finished()), [close.__module__ for close in missed_runs.connection_closers])
"""


@needs("django")
def test_a_django_that_is_imported_and_not_used_stops_nothing() -> None:
    # Sentry imports it wherever it is installed.
    assert run_script(SCRIPT + "\n    import django.db" + ONE_REPORT) == "1 []\n"


@needs("django")
@pytest.mark.parametrize("module", ["example_project.shop.settings", "no.such.settings"])
def test_old_connections_are_closed_for_a_django_site_that_has_not_installed_our_app(module: str) -> None:
    script = f"""
    import os
    os.environ["DJANGO_SETTINGS_MODULE"] = {module!r}
    """
    assert run_script(SCRIPT + script + ONE_REPORT) == "1 ['django.db']\n"


def test_a_site_whose_django_is_not_installed_stops_nothing() -> None:
    script = """
    import os
    os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
    sys.modules["django"] = sys.modules["django.db"] = None
    import warnings
    warnings.simplefilter("ignore")
    """
    assert run_script(SCRIPT + script + ONE_REPORT) == "1 []\n"
