"""The rows in beat's memory against a real database: what is seen, what is written, what is left alone."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab, schedule, solar

from celery_misfire.conf.settings import read_settings
from celery_misfire.exceptions import PublishRejected
from celery_misfire.misfire import MisfireInstruction, to_millis
from tests.support.django_project import DjangoProject, now
from tests.support.processes import wait_for


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("rows", broker="redis://localhost:1/0", set_as_current=False)
    app.conf.misfire_policies = {"by name": "do_nothing"}
    yield app
    app.close()


def table_of(app: Celery, *entries: Any) -> Any:
    """Return a table whose thread has not been started: the test does its work."""
    from celery_misfire.contrib.django.table import Table

    return Table(app, read_settings(app), entries)


def look(table: Any, *, scan: bool = True) -> None:
    """Let the table look at the database now; with a scan, as if the time for one had come."""
    table.look_at_once(scan=scan)
    table.work()


def rows() -> Any:
    from django_celery_beat.models import PeriodicTask

    return PeriodicTask.objects


def last_change() -> Any:
    from django_celery_beat.models import PeriodicTasks

    return PeriodicTasks.last_change()


def test_every_enabled_row_is_loaded_at_any_hour(any_site: DjangoProject, app: Celery) -> None:
    for hour in range(24):
        any_site.add(f"at {hour}", crontab={"minute": "0", "hour": str(hour)})
    any_site.add("far", clocked=now() + timedelta(days=30))
    any_site.add("off", interval=60, enabled=False)
    table = table_of(app)
    look(table)
    assert set(table.rows) == {f"at {hour}" for hour in range(24)} | {"far"}
    from django_celery_beat.schedulers import DatabaseScheduler

    stock = DatabaseScheduler(app=app, lazy=True).enabled_models()
    assert len(stock) < len(table.rows)


def test_what_must_be_known_at_once_is_written_at_once(
    site: DjangoProject, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    from celery_misfire.contrib.django import table as module

    monkeypatch.setattr(module, "WRITE_EVERY", 3600.0)
    monkeypatch.setattr(module, "WRITE_TIMEOUT", 60.0)
    site.add("once", clocked=now() - timedelta(hours=1))
    table = table_of(app)
    table.start()
    assert table.was_read.wait(60)
    row = table.rows["once"]
    assert row.definition.due_since == to_millis(row.task.date_changed)
    table.write_now()
    table.ran("once", to_millis(now()))
    table.write_now()
    assert rows().get().total_run_count == 1
    table.finish(row)
    table.write_now()
    assert not rows().get().enabled
    table.stop(60)


def test_while_the_database_is_away_beat_does_not_wait_for_it(site: DjangoProject, app: Celery) -> None:
    site.add("once", clocked=now() - timedelta(hours=1))
    table = table_of(app)
    look(table)
    table._trouble.fail(time.monotonic())
    table.ran("once", to_millis(now()))
    # Nobody would write it: there is no thread.
    table.write_now()
    assert table.updates


def test_any_way_to_change_a_row_is_seen_and_the_others_stay_the_same(
    any_site: DjangoProject, app: Celery
) -> None:
    from django.db import connection
    from django_celery_beat.models import CrontabSchedule, IntervalSchedule

    from celery_misfire.contrib.django.models import MisfirePolicy

    for name in ("saved", "updated", "by sql", "its schedule", "its policy", "policy by sql", "renamed"):
        any_site.add(name, crontab={"minute": "0"}, misfire={"threshold": 30})
    for name in ("same", "disabled", "deleted"):
        any_site.add(name, interval=60)
    table = table_of(app)
    look(table)
    before = dict(table.rows)
    look(table)
    assert table.rows == before

    row = rows().get(name="saved")
    row.args = "[1]"
    row.save()
    rows().filter(name="updated").update(queue="other")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE django_celery_beat_periodictask SET task = 'other' WHERE name = 'by sql'")
    CrontabSchedule.objects.filter(periodictask__name="its schedule").update(minute="5")
    policy = MisfirePolicy.objects.get(periodic_task__name="its policy")
    policy.instruction = "do_nothing"
    policy.save()
    MisfirePolicy.objects.filter(periodic_task__name="policy by sql").update(max_catch_up=3)
    rows().filter(name="renamed").update(name="new name")
    rows().filter(name="disabled").update(enabled=False)
    rows().filter(name="deleted").delete()
    any_site.add("added", interval=IntervalSchedule.objects.get().every)
    look(table)

    after = table.rows
    assert set(after) == set(before) - {"renamed", "disabled", "deleted"} | {"new name", "added"}
    assert after["same"] is before["same"]
    assert after["saved"].entry.args == [1]
    assert after["updated"].entry.options["queue"] == "other"
    assert after["by sql"].definition.task == "other"
    schedules = [rows["its schedule"].definition.trigger.fingerprint for rows in (before, after)]
    assert schedules[0] != schedules[1]
    assert after["its policy"].definition.policy.instruction is MisfireInstruction.DO_NOTHING
    assert after["policy by sql"].definition.policy.max_catch_up == 3


def test_what_django_celery_beat_notes_is_seen_without_a_scan(site: DjangoProject, app: Celery) -> None:
    site.add("first", interval=60)
    table = table_of(app)
    look(table)
    rows().filter(name="first").update(enabled=False)
    look(table, scan=False)
    assert set(table.rows) == {"first"}
    site.add("second", interval=60)
    look(table, scan=False)
    assert set(table.rows) == {"second"}


def test_policies_come_from_the_row_then_by_name_then_from_the_site(site: DjangoProject, app: Celery) -> None:
    site.add("by name", interval=60)
    row = site.add("both", interval=60, misfire={"instruction": "fire_now"})
    app.conf.misfire_policies = {
        "by name": "do_nothing",
        "both": {"instruction": "do_nothing", "threshold": 7},
    }
    site.add("off", interval=60, misfire={"instruction": "off"})
    site.add("mail alone", interval=60, misfire={"mail_to": "ops@example.org"})
    app.conf.misfire_policies["mail alone"] = False
    table = table_of(app)
    look(table)
    policies = {name: row.definition.policy for name, row in table.rows.items()}
    assert policies["by name"].instruction is MisfireInstruction.DO_NOTHING
    assert (policies["both"].instruction, policies["both"].threshold) == (MisfireInstruction.FIRE_NOW, 7)
    assert policies["off"] is None
    assert policies["mail alone"] is None
    assert row.name == "both"


def test_policies_of_a_row_that_celery_named_go_by_either_name(
    site: DjangoProject, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    from celery_misfire.contrib.django.policies import policy_of
    from celery_misfire.contrib.django.rows import trigger_of

    row = site.add("record('hunter2')", interval=60)
    shown = f"record(...) row {row.pk}"
    # The last one is what such an entry is called where it is no row.
    app.conf.beat_schedule = {row.name: {"task": "record", "schedule": 60.0}}
    for name in (row.name, shown, "record(...)"):
        app.conf.misfire_policies = {name: "do_nothing"}
        table = table_of(app)
        with caplog.at_level(logging.INFO):
            look(table)
        assert set(table.rows) == {shown}
        found = table.rows[shown].definition
        assert (found.name, found.policy.instruction) == (shown, MisfireInstruction.DO_NOTHING)
        assert policy_of(row, trigger_of(row), read_settings(app)) == found.policy
    assert "no entry has this name" not in caplog.text
    app.conf.misfire_policies = {"record('hunter1')": "do_nothing", "record": "do_nothing"}
    look(table_of(app))
    assert caplog.text.count("no entry has this name") == 2
    site.add("record('hunter3')", crontab={"minute": "0"}, misfire={"instruction": "fire_now"})
    site.add("record('hunter4')", interval=60, one_off=True)
    broken = site.add("record('hunter5')", interval=50)
    type(broken.interval).objects.filter(pk=broken.interval_id).update(every=0)
    table = table_of(app)
    look(table)
    table.finish(next(r for r in table.rows.values() if r.is_single_run))
    table.work()
    for told in ("is not used", "is left out", "is finished, and disabled"):
        assert told in caplog.text
    assert "hunter" not in caplog.text
    assert "hunter" not in str([vars(line) for line in caplog.records])


def test_a_wrong_row_is_told_and_left_alone_and_the_others_go_on(
    site: DjangoProject, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    from django_celery_beat.models import IntervalSchedule

    site.add("good", interval=60)
    site.add("secret args", interval=60, args="[hunter2")
    site.add("headers", interval=60, headers="[1]")
    site.add("wrong policy", crontab={"minute": "0"}, misfire={"instruction": "fire_now"})
    broken = site.add("no interval", interval=50)
    IntervalSchedule.objects.filter(pk=broken.interval_id).update(every=0)
    kept = list(rows().order_by("pk").values())
    table = table_of(app)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            look(table)
    assert caplog.text.count("'no interval' is left out") == 1
    assert caplog.text.count("policy of periodic task 'wrong policy' is not used") == 1
    assert table.rows["no interval"].definition is None
    assert table.rows["wrong policy"].definition.policy.instruction is MisfireInstruction.SMART_POLICY
    for name, field in (("secret args", "args"), ("headers", "headers")):
        with pytest.raises(PublishRejected, match=field) as caught:
            _ = table.rows[name].entry
        assert "hunter2" not in str(caught.value)
    assert table.rows["good"].entry.args == []
    assert list(rows().order_by("pk").values()) == kept


def test_a_zone_that_this_machine_does_not_know_leaves_out_its_own_rows_alone(
    any_site: DjangoProject, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext
    from django_celery_beat.models import CrontabSchedule

    for n in range(40):
        any_site.add(f"good {n}", crontab={"minute": "0", "hour": str(n % 20)})
    broken = any_site.add("broken", crontab={"minute": "59"})
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE django_celery_beat_crontabschedule SET timezone = 'Mars/Phobos' WHERE id = %s",
            [broken.crontab_id],
        )
    table = table_of(app)
    with caplog.at_level(logging.ERROR), CaptureQueriesContext(connection) as asked:
        look(table)
    assert {name for name, row in table.rows.items() if row.definition is None} == {"broken"}
    assert len(table.rows) == 41
    assert "'broken' is left out: its schedule cannot be read (ValidationError" in caplog.text
    # The others are not read one by one.
    assert len(asked) < 35

    rows().filter(name="good 1").update(queue="other")
    look(table)
    assert table.rows["good 1"].entry.options["queue"] == "other"
    CrontabSchedule.objects.filter(pk=broken.crontab_id).update(timezone="UTC")
    look(table)
    assert table.rows["broken"].definition is not None


def test_a_database_that_fails_in_the_middle_is_no_fault_of_the_rows(
    site: DjangoProject, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.core.exceptions import ValidationError
    from django.db import OperationalError

    from celery_misfire.contrib.django import database
    from celery_misfire.contrib.django import table as module

    def unknown_zone(*_: Any) -> None:
        raise ValidationError("Invalid timezone")

    def gone(*_: Any) -> None:
        raise ValueError("its schedule cannot be read") from OperationalError("gone")

    site.add("good", interval=60)
    table = table_of(app)
    with monkeypatch.context() as patch:
        patch.setattr(database, "prefetch_related_objects", unknown_zone)
        patch.setattr(module, "trigger_of", gone)
        with pytest.raises(OperationalError):
            look(table)
    look(table)

    assert table.rows["good"].definition is not None


class ToBeat:
    """Routes everything to the database ``beat``."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "beat"

    db_for_write = db_for_read


@pytest.fixture
def routed_site(any_site: DjangoProject, monkeypatch: pytest.MonkeyPatch) -> Iterator[DjangoProject]:
    """A site whose tables are in another database than ``default``, which does not even have an engine."""
    from django.db import connections
    from django.test import override_settings

    connections["default"].close()
    monkeypatch.setitem(connections.settings, "beat", dict(connections.settings["default"]))
    monkeypatch.setitem(connections.settings["default"], "ENGINE", "django.db.backends.dummy")
    del connections["default"]
    with override_settings(DATABASE_ROUTERS=[ToBeat()]):
        yield any_site
    connections["beat"].close()
    del connections["beat"]


def test_a_router_decides_where_the_rows_are_read_and_written(
    routed_site: DjangoProject, app: Celery
) -> None:
    from celery_misfire.contrib.django.table import WrittenEntry

    routed_site.add("row", interval=60, misfire={"instruction": "do_nothing"})
    fields = {"task": "shop.x", "schedule": schedule(60), "args": (), "kwargs": {}, "options": {}}
    table = table_of(app, WrittenEntry("written", fields, {"instruction": "fire_now"}))
    look(table)
    assert set(table.rows) == {"row", "written"}
    assert rows().db == "beat"
    for name, instruction in (("row", "do_nothing"), ("written", "fire_now")):
        assert table.rows[name].definition.policy.instruction == instruction
    table.ran("row", to_millis(now()))
    table.finish(table.rows["written"])
    table.updates.write()
    assert rows().get(name="row").total_run_count == 1
    assert not rows().get(name="written").enabled


def test_a_row_is_sent_with_the_options_that_stock_would_use(any_site: DjangoProject, app: Celery) -> None:
    from django_celery_beat.schedulers import ModelEntry

    expires = now() + timedelta(days=1)
    options = {"exchange": "x", "routing_key": "k", "priority": 5, "headers": '{"a": 1}'}
    any_site.add("queue", interval=60, queue="q", expires=expires, kwargs='{"k": "v"}', args="[1, 2]")
    any_site.add("exchange", interval=60, expire_seconds=9, **options)
    table = table_of(app)
    look(table)
    for name in ("queue", "exchange"):
        ours, stock = table.rows[name].entry, ModelEntry(rows().get(name=name), app=app)
        assert (ours.task, ours.args, ours.kwargs) == (stock.task, stock.args, stock.kwargs)
        assert ours.options == stock.options


def test_runs_are_counted_and_nothing_else_of_a_row_is_written(any_site: DjangoProject, app: Celery) -> None:
    any_site.add("counted", interval=60, total_run_count=5)
    table = table_of(app)
    look(table)
    # Meanwhile somebody edits it.
    rows().filter(name="counted").update(args="[3]", total_run_count=7)
    moment, before = now().replace(microsecond=250_000), last_change()
    for second in range(3):
        table.ran("counted", to_millis(moment) + 1000 * second)
    table.ran("nobody", to_millis(moment))
    table.work(is_last=True)
    row = rows().get()
    assert (row.total_run_count, row.last_run_at, row.args) == (10, moment + timedelta(seconds=2), "[3]")
    assert last_change() == before
    table.work(is_last=True)
    assert rows().get().total_run_count == 10


def test_a_thousand_runs_are_written_by_a_few_statements(site: DjangoProject, app: Celery) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    template = site.add("0", interval=60)
    rows().bulk_create(
        type(template)(name=str(n), task="record", interval=template.interval) for n in range(1, 1000)
    )
    table = table_of(app)
    look(table)
    moment = to_millis(now().replace(microsecond=0))
    for n in range(1000):
        table.ran(str(n), moment + n % 100)
    connection.force_debug_cursor = True
    with CaptureQueriesContext(connection) as queries:
        table.updates.write()
    assert len(queries) <= 4
    assert set(rows().values_list("total_run_count", flat=True)) == {1}


def test_counts_wait_for_a_database_that_is_away(
    site: DjangoProject, app: Celery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import connections

    from celery_misfire.contrib.django import table as module

    monkeypatch.setattr(module, "LOOK_EVERY", 0.2)
    monkeypatch.setattr(module, "WRITE_EVERY", 0.1)
    monkeypatch.setitem(connections.settings["default"], "OPTIONS", {"timeout": 0.1})
    site.add("counted", interval=60)
    table = table_of(app)
    table.start()
    try:
        assert table.was_read.wait(20)
        locked = sqlite3.connect(site.database["NAME"])
        locked.execute("BEGIN EXCLUSIVE")
        with caplog.at_level(logging.INFO):
            table.ran("counted", to_millis(now()))
            wait_for(lambda: "cannot be read" in caplog.text)
            table.ran("counted", to_millis(now()))
            time.sleep(1)
            assert set(table.rows) == {"counted"}
            locked.rollback()
            wait_for(lambda: "the database answers again after" in caplog.text)
        assert caplog.text.count("cannot be read") == 1
        wait_for(lambda: rows().get().total_run_count == 2)
    finally:
        table.stop(20)


def test_what_was_counted_is_written_when_beat_stops(site: DjangoProject, app: Celery) -> None:
    site.add("counted", interval=60)
    table = table_of(app)
    table.start()
    assert table.was_read.wait(20)
    table.ran("counted", to_millis(now()))
    table.stop(20)
    assert rows().get().total_run_count == 1


@pytest.mark.parametrize("keep", [timedelta(days=30), None], ids=["30 days", "for ever"])
def test_records_are_kept_as_long_as_the_setting_says(
    site: DjangoProject, app: Celery, monkeypatch: pytest.MonkeyPatch, keep: timedelta | None
) -> None:
    from celery_misfire.contrib.django import recording
    from celery_misfire.contrib.django.models import MissedFire

    monkeypatch.setattr(recording, "RECORDS_PER_TRANSACTION", 2)
    values: dict[str, Any] = {"entry": "a", "task": "x", "count": 1, "reason": "paused", "instruction": "off"}
    for days in (1, 29, 31, 32, 400):
        found = now() - timedelta(days=days)
        moments = dict.fromkeys(("first", "last", "detected_at"), found)
        MissedFire.objects.create(task_id=str(days), **values, **moments)
    app.conf.misfire_keep_missed = keep
    table = table_of(app)
    for left in (3, 2, 2) if keep else (5,):
        look(table)
        assert MissedFire.objects.count() == left
    # The next ones are looked for an hour later.
    MissedFire.objects.update(detected_at=now() - timedelta(days=31))
    look(table)
    assert MissedFire.objects.count() == left


@pytest.mark.parametrize("edited", [False, True], ids=["as it was", "edited"])
def test_a_finished_row_is_disabled_as_by_stock_unless_it_was_edited(
    any_site: DjangoProject, app: Celery, edited: bool
) -> None:
    any_site.add("once", clocked=now(), total_run_count=1, last_run_at=now())
    any_site.add("ended", interval=60, expires=now(), total_run_count=8, last_run_at=now())
    table = table_of(app)
    look(table)
    if edited:
        from django_celery_beat.models import ClockedSchedule

        ClockedSchedule.objects.update(clocked_time=now() + timedelta(days=1))
        rows().filter(name="ended").update(expires=None)
    for row in table.rows.values():
        table.finish(row)
    look(table)
    left = {row.name: (row.enabled, row.total_run_count, row.last_run_at is None) for row in rows().all()}
    if edited:
        assert left == {"once": (True, 1, False), "ended": (True, 8, False)}
        assert set(table.rows) == {"once", "ended"}
    else:
        assert left == {"once": (False, 0, True), "ended": (False, 8, True)}
        assert table.rows == {}


def test_an_interval_goes_on_from_the_last_run_under_stock(site: DjangoProject, app: Celery) -> None:
    ran = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
    site.add("interval", interval=60, last_run_at=ran)
    site.add("started", interval=60, last_run_at=ran, start_time=ran)
    site.add("crontab", crontab={"minute": "0"}, last_run_at=ran)
    table = table_of(app)
    look(table)
    anchors = {name: row.definition.anchor for name, row in table.rows.items()}
    assert anchors == {"interval": to_millis(ran), "started": None, "crontab": None}


def test_a_schedule_with_arithmetic_of_its_own_is_no_row(site: DjangoProject) -> None:
    from django_celery_beat.clockedschedule import clocked
    from django_celery_beat.tzcrontab import TzAwareCrontab

    from celery_misfire.contrib.django.beat import _has_model

    class NamedCrontab(crontab):
        """Leaves the arithmetic alone."""

    class Workdays(crontab):
        def is_due(self, last_run_at: datetime) -> Any: ...

    class Jitter(schedule):
        def remaining_estimate(self, last_run_at: datetime) -> Any: ...

    class Dusk(solar):
        def remaining_estimate(self, last_run_at: datetime) -> Any: ...

    plain = [
        schedule(60),
        crontab(),
        NamedCrontab(),
        TzAwareCrontab(),
        solar("sunset", 52, 13),
        clocked(now()),
    ]
    nonsense = crontab()
    nonsense.minute = set()
    assert [_has_model(each) for each in (*plain, nonsense)] == [True] * 7
    own = [schedule(0.5), Workdays(), Jitter(60), Dusk("sunset", 52, 13)]
    assert [_has_model(each) for each in own] == [False] * 4


def test_entries_of_the_settings_are_rows_with_their_policies(site: DjangoProject, app: Celery) -> None:
    from celery_misfire.contrib.django.beat import _policy_fields
    from celery_misfire.contrib.django.models import MisfirePolicy
    from celery_misfire.contrib.django.table import WrittenEntry

    fields = {"task": "record", "schedule": schedule(60), "args": (1,), "options": {"queue": "q"}}
    policy = _policy_fields({"instruction": "do_nothing", "max_lateness": timedelta(hours=1)})
    look(table_of(app, WrittenEntry("entry", fields, policy)))
    # In the admin, both are changed.
    rows().update(queue="r", description="mine", total_run_count=3)
    MisfirePolicy.objects.update(instruction="fire_now", threshold=5, mail_to="ops@example.org")
    table = table_of(
        app,
        WrittenEntry("entry", fields | {"schedule": crontab(minute="5")}, policy),
        WrittenEntry("wrong", {"task": "record", "schedule": schedule(60), "unknown": 1}, None),
        WrittenEntry("silent", fields, _policy_fields(None)),
        WrittenEntry("off", fields, _policy_fields(False)),
    )
    look(table)
    row = rows().get(name="entry")
    assert (row.queue, row.description, row.total_run_count, row.interval) == ("q", "mine", 3, None)
    found = MisfirePolicy.objects.get(periodic_task=row)
    assert (found.instruction, found.threshold, found.max_lateness) == ("do_nothing", None, 3600)
    assert found.mail_to == "ops@example.org"
    assert set(table.rows) == {"entry", "silent", "off"}
    assert MisfirePolicy.objects.filter(periodic_task__name="silent").count() == 0
    assert table.rows["off"].definition.policy is None
