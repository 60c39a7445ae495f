"""From Celery's own scheduler to ours and back: the same entries, the same file, real processes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import crontab, schedule

from celery_misfire import beat_file
from celery_misfire.beat import MisfireScheduler
from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.misfire import MisfirePolicy, to_millis
from tests.support.outcomes import of_entry, scheduled
from tests.support.processes import CeleryProcess, Project, published, wait_for
from tests.support.redis_server import RedisServer

STOCK = {"beat_scheduler": "celery.beat:PersistentScheduler"}

PERIOD = 2500
ENTRIES = {
    "grid": {"schedule": {"type": "interval", "seconds": PERIOD / 1000}, "args": ["grid"]},
    "hourly": {"schedule": {"type": "interval", "seconds": 3600}, "args": ["hourly"]},
    "cron": {"schedule": {"type": "cron", "expression": "0/2 * * * * ?"}, "args": ["cron"]},
    "simple": {"schedule": {"type": "simple", "interval": 1, "repeat_count": 2}, "args": ["simple"]},
}
#: Both schedulers are given these; one of them knows what to do with them.
POLICIES = {"grid": "ignore_misfire_policy", "hourly": {"instruction": "fire_now", "threshold": 5}}


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "celerybeat-schedule"


def sent(project: Project) -> Counter[str]:
    """Return how many messages there are of each entry, from whatever scheduler."""
    return Counter(m.args[0] for m in published(project.url))


def stock_beat(project: Project) -> tuple[CeleryProcess, float]:
    """Start Celery's own beat; return it, and when it began."""
    project.configure(ENTRIES, misfire_policies=POLICIES, **STOCK)
    starting = project.log("stock").count("beat: Starting")
    beat = project.beat(name="stock")
    wait_for(lambda: project.log("stock").count("beat: Starting") > starting or not beat.alive, 60)
    assert beat.alive, project.log("stock")[-2000:]
    return beat, time.time()


def content(file: Path) -> dict[str, tuple[bytes, int]]:
    # Without the files that SQLite, the dbm of Python 3.13, keeps beside its own for those who read it.
    files = [f for f in file.parent.glob(f"{file.name}*") if not f.name.endswith(("-shm", "-wal"))]
    return {f.name: (f.read_bytes(), f.stat().st_mtime_ns) for f in files}


def remove(file: Path) -> None:
    for part in file.parent.glob(f"{file.name}*"):
        part.unlink()


@pytest.mark.takes(13)
def test_intervals_go_on_from_stock_beat_to_ours_and_nothing_is_repeated_on_the_way_back(
    project: Project, file: Path
):
    stock, _ = stock_beat(project)
    wait_for(lambda: sent(project)["grid"] >= 2, 40)
    stock.stop()
    by_stock = sent(project)
    # Under stock beat our schedules run like its own.
    assert by_stock["simple"] == 3
    assert by_stock["cron"] >= 2
    assert not any(m.misfire for m in published(project.url))
    before, remembered = content(file), beat_file.last_runs(str(file))
    assert before

    project.configure(ENTRIES, misfire_policies=POLICIES)
    ours = project.leading_beat()
    taken_over = project.terms()[-1]["now"]
    wait_for(lambda: len(of_entry(published(project.url), "grid")) >= 2, 40)
    # The first hour goes on as well: it is not counted anew.
    hour = project.state("hourly").state
    ours.stop()
    assert hour.next_fire_time == to_millis(remembered["hourly"]) + 3600_000
    grid, last = of_entry(published(project.url), "grid"), to_millis(remembered["grid"])
    periods = -(-(taken_over - last) // PERIOD)
    assert [scheduled(m) for m in grid] == [last + (periods + n) * PERIOD for n in range(len(grid))]
    assert {m.misfire["outcome"] for m in grid} == {"fired"}
    assert [d for d in project.decisions() if d["event"] in ("misfire", "missed")] == []
    assert "new intervals go on from the last runs in" in project.log()
    assert content(file) == before

    # The way back: without the file, that has seen nothing of the time in between.
    remove(file)
    known = sent(project)
    stock, begun = stock_beat(project)
    wait_for(lambda: sent(project)["grid"] > known["grid"], 40)
    assert time.time() - begun > PERIOD / 1000 - 0.5
    assert sent(project)["hourly"] == 0
    stock.stop()
    assert "Traceback" not in project.log("stock") + project.log()


def test_an_inline_key_stops_stock_beat(project: Project):
    project.configure({"inline": {**ENTRIES["grid"], "misfire": "do_nothing"}}, **STOCK)
    beat = project.beat(name="stock")
    wait_for(lambda: not beat.alive, 60, what="stock beat to end")
    assert "unexpected keyword argument 'misfire'" in project.log("stock")


# -- what our scheduler makes of it -------------------------------------------------------------------------


NINE = datetime(2026, 3, 2, 9, tzinfo=UTC)


def made(url: str, tmp_path: Path, entries: dict[str, Any], **settings: Any) -> MisfireScheduler:
    app = Celery("migrated", broker=url, set_as_current=False)
    app.conf.update({"beat_schedule": entries, "result_backend": url, **settings})
    return MisfireScheduler(app, schedule_filename=str(tmp_path / "celerybeat-schedule"))


def test_a_last_run_given_with_an_interval_anchors_it_and_no_other_schedule(
    redis_server: RedisServer, tmp_path: Path
):
    kathmandu = NINE.astimezone(ZoneInfo("Asia/Kathmandu"))
    scheduler = made(
        redis_server.url,
        tmp_path,
        {
            "aware": {"task": "t", "schedule": 60, "last_run_at": kathmandu},
            "naive": {"task": "t", "schedule": timedelta(hours=1), "last_run_at": NINE.replace(tzinfo=None)},
            "none": {"task": "t", "schedule": 60.0},
            "relative": {"task": "t", "schedule": schedule(60, relative=True), "last_run_at": NINE},
            "crontab": {"task": "t", "schedule": crontab(), "last_run_at": NINE},
        },
    )
    try:
        anchors = {d.name: d.anchor for d in scheduler._definitions()}
    finally:
        scheduler.close()
    nine = to_millis(NINE)
    assert anchors == {
        "aware": nine,
        "naive": nine,
        "none": None,
        "relative": None,
        "crontab": None,
    }
    with pytest.raises(MisfireConfigError, match=r"last_run_at: expected a datetime, got str\."):
        made(redis_server.url, tmp_path, {"a": {"task": "t", "schedule": 60, "last_run_at": "yesterday"}})


def test_a_file_that_cannot_be_read_is_mentioned_once_and_left_alone(
    redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "celerybeat-schedule").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    scheduler = made(redis_server.url, tmp_path, {"a": {"task": "t", "schedule": 60, "last_run_at": NINE}})
    try:
        for _ in range(2):
            assert [d.anchor for d in scheduler._definitions()] == [to_millis(NINE)]
    finally:
        scheduler.close()
    assert caplog.text.count("celerybeat-schedule' is left alone: it cannot be read") == 1
    assert (tmp_path / "celerybeat-schedule").read_bytes() == b"cos\nsystem\n(S'true'\ntR."


def test_the_cleaning_up_that_celery_schedules_by_itself_is_there_and_has_a_policy(
    redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    scheduler = made(
        redis_server.url,
        tmp_path,
        {"a": {"task": "t", "schedule": 60}},
        result_backend=f"db+sqlite:///{tmp_path}/results.sqlite",
        misfire_policies={"celery.backend_cleanup": "fire_once_now"},
        misfire_redis_url=redis_server.url,
    )
    try:
        found = {d.name: d.policy for d in scheduler._definitions()}
    finally:
        scheduler.close()
    assert found == {"a": MisfirePolicy(), "celery.backend_cleanup": MisfirePolicy("fire_once_now")}
    assert "no entry has this name" not in caplog.text
