"""What the spans of runs tell, in a real worker with the instrumentation of Celery."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Project, wait_for
from tests.support.redis_server import RedisServer
from tests.support.shop import Shop

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.instrumentation.celery")

SHOP = """
from celery.signals import worker_init
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from tests.support.apps import app

@worker_init.connect
def trace_runs(**_):
    file = open("spans", "a", buffering=1)
    exporter = ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(None) + "\\n")
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()
"""


@pytest.mark.takes(10)
def test_the_span_of_a_run_carries_its_fire_and_no_arguments(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    with Project(tmp_path, redis_server.url) as project:
        (tmp_path / "shop.py").write_text(SHOP)
        shop = Shop(project, redis_server.url)
        command = ("worker", "--pool=solo", "--without-mingle", "--hostname=worker@test", "--loglevel=INFO")
        shop.worker = worker = project.celery(*command, app="shop", name="worker")
        # The time in which the runs are to be done does not include the start of the worker.
        wait_for(lambda: " ready." in shop.log() or not worker.alive, 60, what="the worker")
        due = time.time()
        in_time = shop.send("in time", scheduled=due)
        late = shop.send("late", late=60, instruction="smart_policy")
        recovered = shop.send("recovered", late=60, instruction="fire_once_now", outcome="recovered")
        other = shop.fires.app.send_task("record", args=["top-secret"]).id
        shop.wait_until_done()

        def spans() -> dict[str, dict[str, Any]]:
            text = (tmp_path / "spans").read_text()
            found = [json.loads(line)["attributes"] for line in text.splitlines()]
            return {attributes["messaging.message.id"]: attributes for attributes in found}

        wait_for(lambda: {in_time, late, recovered, other} <= spans().keys(), what="the spans")
        found = {
            id_: {name: value for name, value in spans()[id_].items() if name.startswith("misfire.")}
            for id_ in (in_time, late, recovered, other)
        }
    assert found[other] == {}
    assert found[in_time]["misfire.entry"] == "in time"
    assert found[in_time]["misfire.outcome"] == "fired"
    assert found[late]["misfire.late_by"] >= 60
    assert found[recovered]["misfire.outcome"] == "recovered"
    scheduled = datetime.fromisoformat(found[in_time]["misfire.scheduled"])
    assert abs(scheduled.timestamp() - due) < 0.001
    assert "top-secret" not in (tmp_path / "spans").read_text()
