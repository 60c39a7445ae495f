"""Records of missed runs in the database, and what ``manage.py check`` says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import celery._state
import pytest
from celery import Celery
from django.test import override_settings

from celery_misfire.conf.settings import Settings
from celery_misfire.misfire import MisfireInstruction, MissedFire, Reason
from celery_misfire.sending import missed_runs as missed
from celery_misfire.sending import reporter as reporter_module
from celery_misfire.sending.missed_runs import Report
from celery_misfire.sending.reporter import Reporter
from tests.support.django_project import SCHEDULER, STOCK, DjangoProject, connected, sqlite
from tests.support.processes import wait_for

FIRST = datetime(2026, 3, 10, 2, 0, tzinfo=UTC)
MISSED = MissedFire(
    entry="nightly",
    task="shop.reports",
    task_id="0cd4f0b0-0000-5000-8000-000000000001",
    first=FIRST,
    last=FIRST,
    count=1,
    reason=Reason.SCHEDULER_DOWN,
    instruction=MisfireInstruction.DO_NOTHING,
    detected_at=FIRST,
)


def keep(record: MissedFire) -> None:
    from celery_misfire.contrib.django.recording import keep

    keep(record)


def records() -> Any:
    from celery_misfire.contrib.django.models import MissedFire

    return MissedFire.objects


def test_a_record_is_kept_once_however_often_it_comes(any_site: DjangoProject) -> None:
    for _ in range(3):
        keep(MISSED)
    keep(replace(MISSED, task_id="another", count=10**15))
    assert records().count() == 2
    found = records().get(task_id=MISSED.task_id)
    assert {field.name: getattr(found, field.name) for field in fields(MISSED)} == vars(MISSED)


def test_a_record_belongs_to_the_row_whatever_becomes_of_its_name(any_site: DjangoProject) -> None:
    row = any_site.add("reports", interval=3600)
    keep(replace(MISSED, task_id="first", entry="reports"))
    row.name = "new name"
    row.save()
    # Found out before the rename, and reported after it.
    keep(replace(MISSED, task_id="second", entry="reports"))
    row.delete()
    keep(replace(MISSED, task_id="third", entry="new name"))
    keep(replace(MISSED, task_id="other", entry="never a row"))
    found = dict(records().values_list("task_id", "periodic_task_id"))
    assert found["first"] == found["second"] is not None
    assert (found["third"], found["other"]) == (None, None)


def test_a_record_belongs_to_the_row_whose_key_its_entry_tells(any_site: DjangoProject) -> None:
    row = any_site.add("record('x')", interval=3600)
    keep(replace(MISSED, entry=f"record(...) row {row.pk}"))
    assert records().get().periodic_task_id == row.pk


def test_records_of_an_earlier_version_find_their_rows(any_site: DjangoProject) -> None:
    from django.core.management import call_command

    row = any_site.add("reports", interval=3600)
    keep(replace(MISSED, task_id="a", entry="reports"))
    keep(replace(MISSED, task_id="b", entry="never a row"))
    for target in ("0001", "0003"):
        call_command("migrate", "celery_misfire", target, verbosity=0)
    assert dict(records().values_list("task_id", "periodic_task_id")) == {"a": row.pk, "b": None}
    call_command("makemigrations", "celery_misfire", check=True, dry_run=True, verbosity=0)


def test_missed_runs_are_re_run_on_any_database(any_site: DjangoProject) -> None:
    from celery import Celery
    from django_celery_beat.models import PeriodicTask

    from celery_misfire.contrib.django.admin.open_runs import with_open_runs
    from celery_misfire.contrib.django.admin.overview import with_missed
    from celery_misfire.contrib.django.admin.reruns import Part, previews, start, take_step
    from celery_misfire.contrib.django.models import OccurrenceRun
    from celery_misfire.contrib.django.moments import millis

    any_site.add("reports", interval=3600)
    hours = [MISSED.first + timedelta(hours=n) for n in range(3)]
    keep(replace(MISSED, entry="reports", first=hours[0], last=hours[2], count=3))
    app = Celery("shop", broker=any_site.url, set_as_current=False)
    app.conf.update(misfire_redis_url=any_site.url)
    rerun = start(previews(app, [Part(records().get(), None, millis(hours[1]))]), None)
    take_step(app, rerun, None)
    assert rerun.finished_at is not None
    assert OccurrenceRun.objects.count() == 2
    assert with_open_runs(records().all()).get().open_runs == 1
    [listed] = with_missed(PeriodicTask.objects.filter(name="reports"), millis(MISSED.detected_at))
    assert listed.misfire_missed == 1
    app.close()


def test_any_name_can_be_kept(any_site: DjangoProject) -> None:
    keep(replace(MISSED, entry="é" * 400, task="x\0" * 400))
    found = records().get()
    assert (found.entry, found.task) == ("é" * 255, "x" * 255)


def test_without_use_tz_the_database_has_local_time(site: DjangoProject) -> None:
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
        keep(MISSED)
        assert records().get().first == datetime(2026, 3, 10, 11, 0)


def test_a_record_waits_until_the_database_is_there(
    site: DjangoProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import connections

    from celery_misfire.contrib.django import recording

    recording.install()
    assert missed.recorders.count(recording.keep) == 1
    monkeypatch.setattr(reporter_module, "FIRST_PAUSE", 0.1)
    # A migration or an outage looks like this.
    path = connections.settings["default"]["NAME"]
    connections.settings["default"]["NAME"] = "/nowhere/at.all"
    app = Celery("records", broker="memory://", backend="cache+memory://", set_as_current=False)
    settings = Settings(redis_url="redis://localhost:1/0", namespace="records")
    reporter = Reporter(app, settings)
    reporter.start()
    try:
        reporter.submit(Report(MISSED))
        wait_for(lambda: missed.Part.RECORD in reporter._broken)
        assert reporter.finished() == []
        connections.settings["default"]["NAME"] = path
        wait_for(lambda: [report.missed for report in reporter.finished()] == [MISSED])
    finally:
        reporter.stop(20)
        app.close()
    assert records().get().task_id == MISSED.task_id


# -- checks ------------------------------------------------------------------------------------------------


@pytest.fixture
def app(site: DjangoProject) -> Iterator[Celery]:
    before = celery._state._tls.current_app
    app = Celery("checked", broker=site.url, set_as_current=True)
    app.conf.beat_scheduler = SCHEDULER
    try:
        yield app
    finally:
        celery._state._set_current_app(before)
        app.close()


def said(*, deploy: bool = False) -> list[str]:
    """Return what our checks say: id and text."""
    from django.core.checks import run_checks

    messages = run_checks(tags=["celery_misfire"], include_deployment_checks=deploy)
    return [f"{message.id}: {message.msg} {message.hint or ''}".strip() for message in messages]


def test_a_site_that_is_set_up_right_has_nothing_to_hear(app: Celery) -> None:
    app.conf.beat_schedule = {
        "a": {"task": "t", "schedule": 60, "misfire": "do_nothing", "enabled": False, "description": "x"}
    }
    assert said(deploy=True) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"beat_scheduler": STOCK}, f"W003: CELERY_BEAT_SCHEDULER is {STOCK!r}"),
        ({"beat_scheduler": "celery_misfire.beat:MisfireScheduler"}, "W003: "),
        ({"beat_scheduler": "no.such:Scheduler"}, "W003: "),
        ({"beat_scheduler": "misfire-django"}, "W002: CELERY_BEAT_SCHEDULER is the alias"),
        ({"beat_cron_starting_deadline": 60}, "W004: CELERY_BEAT_CRON_STARTING_DEADLINE"),
        ({"misfire_threshold": "soon"}, "E001: celery_misfire: misfire_threshold"),
        (
            {"beat_schedule": {"a": {"task": "t", "schedule": 60, "misfire": "often"}}},
            "E001: celery_misfire: beat_schedule['a']",
        ),
        (
            {"beat_schedule": {"a": {"task": "t", "schedule": 60, "onoff": 1}}},
            "E001: celery_misfire: beat_schedule['a']",
        ),
    ],
)
def test_what_is_wrong_is_told(app: Celery, settings: dict[str, Any], expected: str) -> None:
    app.conf.update(settings)
    [line] = said()
    assert line.startswith(f"celery_misfire.{expected}")


def test_a_site_without_its_celery_app_is_told_how_to_load_it(site: DjangoProject) -> None:
    before = celery._state._tls.current_app
    celery._state._tls.current_app = None
    celery._state.set_default_app(Celery("default", set_as_current=False))
    try:
        [line] = said()
    finally:
        celery._state._set_current_app(before)
    assert line.startswith("celery_misfire.W001")
    assert "__init__.py" in line


def test_an_app_that_made_itself_the_default_is_taken_for_one(app: Celery) -> None:
    before = celery._state.default_app
    app.set_default()
    try:
        assert said() == []
    finally:
        celery._state.set_default_app(before)


def test_redis_is_looked_for_before_a_deployment_only_and_missing_tables_always(
    app: Celery, site: DjangoProject, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from celery_misfire.contrib.django import checks, database

    monkeypatch.setattr(database, "_migrated", set())
    app.conf.misfire_redis_url = "redis://:hunter2@127.0.0.1:1/0"
    with connected(sqlite(tmp_path / "empty.sqlite3")):
        [line] = said()
        assert line.startswith("celery_misfire.W007: The tables of misfire handling are missing")
        lines = said(deploy=True)[1:]
        # It is about to make them.
        assert checks.check_tables(None, databases=["default"]) == []
    assert [line.split(":")[0] for line in lines] == ["celery_misfire.W005", "celery_misfire.E002"]
    assert "hunter2" not in str(lines)
    assert "celery_misfire, django_celery_beat" in lines[1]


def test_a_database_that_is_away_is_no_problem_of_the_set_up(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import OperationalError

    from celery_misfire.contrib.django import checks

    def away() -> bool:
        raise OperationalError("away")

    monkeypatch.setattr(checks, "is_migrated", away)
    assert said() == []


def test_crontabs_that_run_in_another_zone_than_they_say_are_told(app: Celery) -> None:
    from django.test import override_settings
    from django_celery_beat.models import CrontabSchedule, PeriodicTask

    app.conf.timezone = "Europe/Berlin"
    for zone, enabled in (("Asia/Tokyo", True), ("Europe/Berlin", True), ("Asia/Dubai", False)):
        crontab = CrontabSchedule.objects.create(minute="0", timezone=zone)
        PeriodicTask.objects.create(name=zone, task="x", crontab=crontab, enabled=enabled)
    assert said() == []
    with override_settings(DJANGO_CELERY_BEAT_TZ_AWARE=False):
        [line] = said()
    assert line.startswith("celery_misfire.W008: DJANGO_CELERY_BEAT_TZ_AWARE is off, so 1 crontabs")
