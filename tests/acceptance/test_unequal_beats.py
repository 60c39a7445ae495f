"""Two beats of one namespace that were configured differently say so, once each; equal ones say nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Project, wait_for
from tests.support.redis_server import RedisServer

HOURLY = {"type": "interval", "seconds": 3600}
AT_NIGHT = {"type": "crontab", "minute": 0, "hour": 3}
ENTRIES: dict[str, Any] = {
    "same": {"schedule": HOURLY},
    "crontab": {"schedule": AT_NIGHT},
    "policy": {"schedule": AT_NIGHT, "misfire": "do_nothing"},
    "removed": {"schedule": HOURLY},
}
SAID = "two beats of one namespace are configured differently"


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


def said(project: Project, name: str) -> list[str]:
    return [line for line in project.log(name).splitlines() if SAID in line]


def renewals(project: Project, server: RedisServer, count: int) -> None:
    """Wait until the lease has been renewed so often: by then each beat has looked at the other."""
    seen = set[str]()
    wait_for(
        lambda: seen.add(server.client().get("celery-misfire:{acceptance}:lease")) or len(seen) > count, 30
    )


def test_beats_that_were_configured_differently_say_once_each_what_differs(
    project: Project, redis_server: RedisServer
) -> None:
    project.configure(ENTRIES, misfire_check_rate=30, misfire_redis_options={"client_name": "canary-1"})
    project.leading_beat("a")
    edited = ENTRIES | {
        "crontab": {"schedule": AT_NIGHT | {"hour": 4}},
        "policy": {"schedule": AT_NIGHT, "misfire": "fire_once_now"},
        "new\nline": {"schedule": HOURLY},
    }
    del edited["removed"]
    # The last may differ: it leads to the same Redis.
    settings = {"misfire_missed_results": "each", "misfire_redis_options": {"client_name": "canary-2"}}
    project.configure(edited, **settings)
    b = project.beat(name="b")
    wait_for(lambda: said(project, "b") and said(project, "a"), 30, what="both to say so")
    renewals(project, redis_server, 3)
    [by_a], [by_b] = said(project, "a"), said(project, "b")
    for line in (by_a, by_b):
        what = line.partition(", which leads: ")[2].split("; ")
        assert what == [
            "misfire_check_rate, misfire_missed_results",
            "unequal: entries 'crontab', 'policy'",
            "only here: entry 'new\\nline'",
            "only there: entry 'removed'. If they are two projects, give each a misfire_namespace of its "
            "own.",
        ]
        assert "canary" not in line
        assert f":{b.pid}, which stands by" in line


def test_equal_beats_and_a_restart_with_a_new_configuration_say_nothing(
    project: Project, redis_server: RedisServer
) -> None:
    project.configure(ENTRIES, misfire_lease_ttl=5)
    a = project.leading_beat("a")
    b = project.beat(name="b")
    wait_for(lambda: "another beat leads" in project.log("b"), 30)
    renewals(project, redis_server, 3)
    b.stop()
    # Its lease outlives it for a while, and looks as if somebody led.
    project.kill_elsewhere(a)
    project.configure({}, misfire_lease_ttl=5, misfire_threshold=5)
    project.beat(name="c")
    wait_for(lambda: "another beat leads" in project.log("c"), 30)
    wait_for(lambda: "beat: leading" in project.log("c"), 30)
    assert [said(project, name) for name in "abc"] == [[], [], []]
