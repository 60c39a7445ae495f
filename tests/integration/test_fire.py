from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery import Celery

from celery_misfire import MisfireInstruction
from celery_misfire.fire import HEADER, header
from celery_misfire.misfire import Outcome, to_millis
from example_project.child_process import Child
from tests.support.redis_server import RedisServer
from tests.support.results import let_go

ROOT = Path(__file__).parents[2]

NINE = datetime(2026, 3, 2, 9, tzinfo=UTC)
FIRE = {
    HEADER: header(
        entry="reports",
        scheduled=to_millis(NINE),
        fire_time=to_millis(NINE + timedelta(minutes=75)),
        outcome=Outcome.RECOVERED,
        merged=1,
        last_missed=to_millis(NINE + timedelta(hours=1)),
        generation=7,
        instruction=MisfireInstruction.SMART_POLICY,
        resolved=MisfireInstruction.FIRE_ONCE_NOW,
        threshold=60.0,
    )
}

WORKER = """
import os
from celery import Celery
from celery.exceptions import Reject
from celery_misfire import current_fire

app = Celery("fires", broker=os.environ["URL"], backend=os.environ["URL"])

def told():
    fire = current_fire()
    return fire and [fire.entry, fire.outcome, fire.missed_count, fire.scheduled_fire_time.isoformat()]

@app.task(name="read")
def read():
    return told()

@app.task(name="again", bind=True)
def again(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries, told()

@app.task(name="redelivered", bind=True, acks_late=True)
def redelivered(self):
    if not self.request.delivery_info["redelivered"]:
        raise Reject(requeue=True)
    return told()

@app.task(name="parent")
def parent():
    return read.delay().id
"""

TOLD = ["reports", "recovered", 2, "2026-03-02T09:00:00+00:00"]


@pytest.fixture(params=["prefork", "threads"])
def client(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> Iterator[Celery]:
    """An app whose worker runs with each kind of pool."""
    (tmp_path / "fires.py").write_text(WORKER)
    worker = Child(
        [sys.executable, "-m", "celery", "-A", "fires", "worker", "-c2", f"--pool={request.param}"],
        log=tmp_path / "worker.log",
        cwd=tmp_path,
        env={**os.environ, "URL": redis_server.url, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )
    client = Celery("client", broker=redis_server.url, backend=redis_server.url, set_as_current=False)
    try:
        yield client
    finally:
        let_go(client)
        client.close()
        worker.stop()


def test_a_task_in_a_worker_reads_its_fire(client: Celery) -> None:
    first = client.send_task("read", headers=FIRE)
    retried = client.send_task("again", headers=FIRE)
    redelivered = client.send_task("redelivered", headers=FIRE)
    by_hand = client.send_task("read")
    parent = client.send_task("parent", headers=FIRE)

    assert first.get(timeout=30) == TOLD
    assert retried.get(timeout=30) == [2, TOLD]
    assert redelivered.get(timeout=30) == TOLD
    assert by_hand.get(timeout=30) is None
    assert client.AsyncResult(parent.get(timeout=30)).get(timeout=30) is None
