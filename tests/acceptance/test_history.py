"""What a real beat and a real worker leave makes a history, in which nothing is lost when beat is killed."""

from __future__ import annotations

import time
from pathlib import Path

from celery_misfire.misfire import Outcome
from tests.simulation.history import What, check, from_log, from_queue, from_times, from_workers, in_order
from tests.support.outcomes import settle
from tests.support.processes import Project, published, wait_for
from tests.support.redis_server import RedisServer


def test_each_occurrence_of_a_beat_that_was_killed_ends_once(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    every_second = {"type": "cron", "expression": "* * * * * ?"}
    with Project(tmp_path, redis_server.url) as project:
        policies = {"skips": "do_nothing", "merges": "fire_once_now", "runs": "ignore_misfire_policy"}
        project.configure(
            {
                name: {
                    "task": "record",
                    "schedule": every_second,
                    "misfire": {"instruction": i, "threshold": 1},
                }
                for name, i in policies.items()
            }
        )
        project.worker()
        beat = project.leading_beat()
        wait_for(lambda: len(project.records()) >= 6, what="runs in time")
        beat.kill()
        # Long enough for an outage of some fire times.
        time.sleep(3)
        runs = len(project.records())
        beat = project.leading_beat()
        wait_for(lambda: len(project.records()) > runs + 10, what="runs after the kill")
        beat.stop()
        settle(project, *policies)
        log = project.decisions()
        wait_for(lambda: not published(redis_server.url), what="the worker to take the rest")
        sent = {line["id"] for line in log if line["event"] == "sent"}
        wait_for(lambda: sent <= {r["task_id"] for r in project.records()}, what="the last runs")
        events = in_order(
            from_log(log), from_queue(published(redis_server.url)), from_workers(project.records())
        )
    due = []
    for name in policies:
        own = [e for e in events if e.entry == name]
        last = max(max(e.first, e.last) for e in own)
        due += from_times(name, range(min(e.first for e in own), last + 1, 1000))
    findings = check([*due, *events], queued_once=False, drained=True)
    assert findings.problems == []
    assert {e.entry for e in events if e.what is What.MISFIRED} == policies.keys()
    for name, late in [("skips", Outcome.MISSED), ("merges", Outcome.MERGED), ("runs", Outcome.RECOVERED)]:
        assert late in {o for (entry, _), o in findings.outcomes.items() if entry == name}
