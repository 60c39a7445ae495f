"""What a monitor makes of the events about missed runs, by Celery's own picture of the cluster."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.app.task import Context
from celery.events.state import State

from celery_misfire.misfire import MisfireInstruction, MissedFire, Reason
from celery_misfire.sending.missed_record import MISSED
from celery_misfire.sending.missed_runs import Part, Report, report
from tests.support.redis_server import RedisServer

SETTINGS: Any = SimpleNamespace(result_state=MISSED, send_task_failure=False)


def make_missed() -> MissedFire:
    now = datetime.now(UTC)
    what = (Reason.QUEUE_LATE, MisfireInstruction.DO_NOTHING)
    return MissedFire("reports", "shop.reports", str(uuid4()), now, now, 1, *what, now)


@pytest.fixture
def app(redis_server: RedisServer) -> Celery:
    app = Celery("monitored", broker=redis_server.url, set_as_current=False)
    # A shared task would reach every later app of this process.
    app.task(name="shop.reports", shared=False)(_nothing)
    return app


def _nothing() -> None: ...


def test_beat_is_no_worker_that_is_online_and_a_worker_stays_one(app: Celery) -> None:
    state = State()
    by_beat, by_worker = make_missed(), make_missed()
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": state.event})
        with receiver.consumer_context() as (listening, _channel, _consumers):
            # Redis's broker subscribes when it is first asked for messages.
            with suppress(TimeoutError):
                listening.drain_events(timeout=1)
            assert report(app, SETTINGS, Report(by_beat), [Part.EVENT]) == {}
            request = Context(id=by_worker.task_id, hostname="celery@real")
            assert report(app, SETTINGS, Report(by_worker, request=request), [Part.EVENT]) == {}
            while len(state.tasks) < 2:
                listening.drain_events(timeout=20)

    assert {task.state for task in state.tasks.values()} == {MISSED}
    assert [worker.hostname for worker in state.alive_workers()] == ["celery@real"]
