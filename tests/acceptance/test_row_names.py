"""Rows that Celery named by their arguments: beat and worker keep, send and tell nothing of these."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.support.django_project import DjangoProject, let_pass
from tests.support.outcomes import of_entry, settle
from tests.support.processes import published, wait_for
from tests.support.redis_server import RedisServer

CANARY = "canary-4711"
#: As ``add_periodic_task`` names an entry without a name.
RUNS, SKIPS = f"record(label='{CANARY} runs')", f"record(label='{CANARY} skips')"


def everything_of_ours(server: RedisServer) -> str:
    """Return all that our keys hold, in one text."""
    client, found = server.client(), list[Any]()
    for key in client.scan_iter("celery-misfire:*"):
        kind = client.type(key)
        read = {"hash": client.hgetall, "string": client.get}
        found += [key, client.xrange(key) if kind == "stream" else read[kind](key)]
    assert found
    return str(found)


@pytest.mark.takes(8)
def test_no_argument_is_in_a_key_a_log_a_result_or_a_header_of_ours(
    site: DjangoProject, redis_server: RedisServer
) -> None:
    from django_celery_beat.models import PeriodicTask

    from celery_misfire.contrib.django.models import MissedFire

    every_second, hourly = ({"type": "interval", "seconds": n} for n in (1, 3600))
    site.configure(
        {
            RUNS: {"schedule": every_second, "kwargs": {"label": f"{CANARY} runs"}},
            SKIPS: {"schedule": hourly, "kwargs": {"label": f"{CANARY} skips"}},
        },
        misfire_policies={SKIPS: "do_nothing"},
        misfire_restart_grace=0,
    )
    beat = site.leading_beat("--loglevel=DEBUG")
    wait_for(lambda: PeriodicTask.objects.filter(name__contains=CANARY).count() == 2)
    keys = dict(PeriodicTask.objects.values_list("name", "pk"))
    runs, skips = (f"record(...) row {keys[name]}" for name in (RUNS, SKIPS))
    settle(site, runs, skips)
    wait_for(lambda: len(site.runs_of(runs)) >= 2)
    beat.kill()
    let_pass(redis_server, timedelta(hours=3))
    beat = site.leading_beat("--loglevel=DEBUG")
    record = wait_for(MissedFire.objects.filter(entry=skips).first)
    result = wait_for(lambda: redis_server.client().get(f"celery-task-meta-{record.task_id}"))
    wait_for(lambda: PeriodicTask.objects.get(name=RUNS).total_run_count >= 2)
    messages = of_entry(published(site.url), runs)
    worker = site.worker("--loglevel=DEBUG")
    wait_for(lambda: len(site.records()) >= len(messages))
    beat.stop()
    worker.stop()

    assert (record.periodic_task_id, record.instruction) == (keys[SKIPS], "do_nothing")
    assert skips in result
    assert CANARY not in result + everything_of_ours(redis_server)
    for message in messages:
        assert message.headers["periodic_task_name"] == runs
        assert message.kwargs == {"label": f"{CANARY} runs"}
        assert CANARY not in str(message.headers["misfire"])
    assert CANARY not in str(site.signals())
    # Celery's worker shows the arguments of what it runs; beat shows none, and our own words neither.
    assert CANARY not in site.log()
    assert [line for line in site.log("worker").splitlines() if "worker: " in line and CANARY in line] == []
