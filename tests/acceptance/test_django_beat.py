"""Real ``celery beat`` processes on the rows of django-celery-beat."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest

from celery_misfire.misfire import from_millis, to_millis
from tests.support.django_project import DjangoProject, let_pass, now, put_next
from tests.support.outcomes import assert_each_ended_once, outcomes, settle
from tests.support.postgres import Postgres
from tests.support.processes import published, wait_for
from tests.support.redis_server import RedisServer

HOUR = timedelta(hours=1)


def rows() -> Any:
    from django_celery_beat.models import PeriodicTask

    return PeriodicTask.objects


def missed() -> Any:
    from celery_misfire.contrib.django.models import MissedFire

    return MissedFire.objects


def missed_lines(site: DjangoProject) -> list[dict[str, Any]]:
    return [line for line in site.decisions() if line["event"] in ("missed", "misfire")]


def ten_in_the_morning() -> tuple[str, datetime]:
    """Return a zone in which it is between 10 and 11 now, and when it was 02:00 there.

    Or between 11 and 12: stock loads what is due at 04:00 UTC at any hour, for Celery's clean-up.
    """
    moment = now()
    hour = 11 if moment.hour == 12 else 10
    offset = (hour - moment.hour + 11) % 24 - 11
    two = moment.replace(minute=0, second=0, microsecond=0) - (hour - 2) * HOUR
    # Its sign is the other way round there.
    return f"Etc/GMT{-offset:+d}", two


def test_a_nightly_task_that_stock_does_not_even_load_is_reported_and_made_up_for(
    site: DjangoProject, redis_server: RedisServer
) -> None:
    zone, two = ten_in_the_morning()
    nightly = {"minute": "0", "hour": "2", "timezone": zone}
    site.add("run late", crontab=nightly)
    site.add("leave out", crontab=nightly, misfire={"instruction": "do_nothing"})
    site.add("quarterly", crontab={"minute": "*/15"})
    site.configure({})
    beat = site.leading_beat()
    settle(site, "run late", "leave out")
    beat.kill()
    # It is as if that had been at 01:30.
    for name in ("run late", "leave out"):
        put_next(redis_server, name, two)

    from celery import Celery
    from django_celery_beat.schedulers import DatabaseScheduler

    stock = DatabaseScheduler(app=Celery(set_as_current=False), lazy=True)
    assert "quarterly" in {row.name for row in stock.enabled_models()}
    assert not {"run late", "leave out"} & {row.name for row in stock.enabled_models()}

    beat = site.leading_beat()
    wait_for(lambda: site.runs_of("run late"))
    record = wait_for(lambda: missed().first())
    assert site.runs_of("run late") == ["recovered"]
    [message] = [m for m in published(site.url) if m.misfire["entry"] == "run late"]
    assert datetime.fromisoformat(message.misfire["scheduled_fire_time"]) == two
    assert (record.entry, record.first, record.count) == ("leave out", two, 1)
    assert (record.reason, record.instruction) == ("scheduler_down", "do_nothing")
    wait_for(lambda: "misfire of 'run late'" in site.log())
    wait_for(lambda: rows().get(name="run late").total_run_count == 1)
    assert site.runs_of("leave out") == []
    assert rows().get(name="leave out").total_run_count == 0
    beat.stop()


@pytest.mark.long
def test_a_nightly_task_on_postgresql(postgres_site: DjangoProject, redis_server: RedisServer) -> None:
    test_a_nightly_task_that_stock_does_not_even_load_is_reported_and_made_up_for(postgres_site, redis_server)


@pytest.mark.takes(11)
def test_editing_and_disabling_runs_nothing_at_once_and_misses_nothing(
    site: DjangoProject, redis_server: RedisServer
) -> None:
    from django_celery_beat.models import IntervalSchedule, PeriodicTasks

    names = ("by form", "bulk off and on", "off all the while", "untouched")
    for name in names:
        site.add(name, interval=3600, misfire={"instruction": "ignore_misfire_policy"})
    site.configure({})
    beat = site.leading_beat()
    settle(site, *names)
    generation = site.state("bulk off and on").generation
    begun = now()

    row = rows().get(name="by form")
    row.interval = IntervalSchedule.objects.create(every=1800, period="seconds")
    row.save()
    # As the actions in the admin do it.
    rows().filter(name__contains="off").update(enabled=False, last_run_at=None)
    PeriodicTasks.update_changed()
    site.misses("bulk off and on", "off all the while")
    rows().filter(name="bulk off and on").update(enabled=True)
    PeriodicTasks.update_changed()
    site.sees("bulk off and on")
    # A fire time passes while beat is away and the row disabled.
    beat.stop()
    let_pass(redis_server, 2 * HOUR)
    rows().filter(name="off all the while").update(enabled=True)
    PeriodicTasks.update_changed()
    beat = site.leading_beat()
    settle(site, "off all the while", "untouched", "by form", "bulk off and on")
    beat.stop()

    following = from_millis(site.state("off all the while").state.next_fire_time)
    assert begun + HOUR <= following <= now() + HOUR
    assert site.state("bulk off and on").generation > generation - 2 * HOUR // timedelta(milliseconds=1)
    assert site.runs_of("off all the while") == []
    # Those that were enabled had an outage of two hours, each on its own schedule.
    assert Counter(m.misfire["entry"] for m in published(site.url)) == {
        "untouched": 2,
        "bulk off and on": 2,
        "by form": 4,
    }
    assert [line for line in site.decisions() if line["event"] == "missed"] == []


def test_where_a_pause_is_an_outage_what_passed_while_a_row_was_disabled_misfires(
    site: DjangoProject, redis_server: RedisServer
) -> None:
    from django_celery_beat.models import PeriodicTasks

    from celery_misfire.contrib.django.models import MissedFire

    site.add("run", interval=3600, misfire={"instruction": "ignore_misfire_policy"})
    site.add("lose", interval=3600, misfire={"instruction": "do_nothing"})
    site.configure({}, misfire_on_resume="misfire")
    beat = site.leading_beat()
    settle(site, "run", "lose")
    rows().update(enabled=False)
    PeriodicTasks.update_changed()
    site.misses("run", "lose")
    beat.stop()
    let_pass(redis_server, 2 * HOUR)
    rows().update(enabled=True)
    site.leading_beat()
    wait_for(lambda: site.runs_of("run") == ["recovered"] * 2)
    wait_for(lambda: MissedFire.objects.filter(entry="lose").exists())
    found = MissedFire.objects.get()
    assert (found.count, found.reason) == (2, "paused")
    assert site.runs_of("lose") == []


@pytest.mark.long
def test_toggling_by_sql_runs_nothing_at_once_and_misses_nothing(any_site: DjangoProject) -> None:
    from django.db import connection

    site = any_site
    site.add("toggled", interval=20, misfire={"instruction": "ignore_misfire_policy"})
    site.configure({})
    site.leading_beat()
    site.sees("toggled")

    def switch(on: bool) -> None:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE django_celery_beat_periodictask SET enabled = %s", [on])

    switch(False)
    site.misses("toggled")
    sent = len(published(site.url))
    time.sleep(25)
    assert len(published(site.url)) == sent
    switch(True)
    site.sees("toggled")
    back = time.time() * 1000
    wait_for(lambda: len(published(site.url)) > sent, 60)
    message = published(site.url)[sent]
    assert message.misfire["outcome"] == "fired"
    assert to_millis(datetime.fromisoformat(message.misfire["scheduled_fire_time"])) > back - 2000
    assert missed_lines(site) == []


@pytest.mark.takes(12)
def test_rows_that_end_are_disabled_and_a_kill_loses_nothing(site: DjangoProject) -> None:
    second = {"instruction": "ignore_misfire_policy"}
    site.make_state()
    site.add("every second", interval=1, misfire=second)
    site.add("once", interval=2, one_off=True)
    site.add("clocked", clocked=now() + timedelta(seconds=4))
    site.add("past", clocked=now() - timedelta(hours=1))
    site.add("past, left out", clocked=now() - timedelta(hours=1), misfire={"instruction": "do_nothing"})
    site.add("expires", interval=1, expires=now() + timedelta(seconds=8), misfire=second)
    site.add("ran under stock", interval=1, one_off=True, total_run_count=1)
    site.configure({})
    beat = site.leading_beat()
    wait_for(lambda: len(site.runs_of("every second")) >= 2, 60)
    beat.kill()
    time.sleep(2.5)
    beat = site.leading_beat()
    ending = ("once", "clocked", "past", "past, left out", "expires", "ran under stock")
    wait_for(lambda: not rows().filter(name__in=ending, enabled=True).exists(), 60, what="disabled rows")
    # Until beat has read that; so there is nothing more to come of them.
    site.misses(*ending)
    beat.stop()

    for name in ("once", "clocked", "past"):
        assert len(site.runs_of(name)) == 1, name
    assert site.runs_of("past") == ["recovered"]
    assert site.runs_of("past, left out") == site.runs_of("ran under stock") == []
    assert [record.entry for record in missed().all()] == ["past, left out"]
    for row in rows().filter(one_off=True):
        assert (row.enabled, row.total_run_count, row.last_run_at) == (False, 0, None), row.name
    found = outcomes(published(site.url), site.decisions(), "every second", 1000)
    assert_each_ended_once(found, range(min(found), max(found) + 1, 1000))
    assert "missed" not in {outcome for ended in found.values() for outcome, _ in ended}
    # What was sent right before the kill, and not written yet, is not counted.
    counted = rows().get(name="every second").total_run_count
    assert len(found) - 4 <= counted <= len(found)


def test_rows_that_run_once_and_have_not_are_due_although_redis_knows_nothing(
    site: DjangoProject, redis_server: RedisServer
) -> None:
    past, skip = now() - timedelta(hours=1), {"instruction": "do_nothing"}
    site.add("clocked", clocked=past)
    site.add("clocked, left out", clocked=past, misfire=skip)
    site.add("one-off", interval=60, one_off=True)
    site.add("one-off crontab", crontab={"minute": "*"}, one_off=True)
    site.add("one-off with a start", interval=60, start_time=past, one_off=True)
    site.add("later", interval=7200, one_off=True)
    # Rows are as old as their last edit.
    rows().update(date_changed=past)
    site.add("ran", interval=1, one_off=True, total_run_count=1)
    site.add("every hour", crontab={"minute": "30"})
    site.configure({})
    beat = site.leading_beat()
    ran = ("clocked", "one-off", "one-off crontab", "one-off with a start")
    wait_for(lambda: not rows().filter(name__in=[*ran, "clocked, left out", "ran"], enabled=True).exists())
    site.misses("clocked, left out")
    assert [site.runs_of(name) for name in ran] == [["recovered"]] * 4
    assert [record.entry for record in missed().all()] == ["clocked, left out"]
    assert site.runs_of("ran") == site.runs_of("later") == site.runs_of("every hour") == []
    beat.stop()

    redis_server.client().flushall()
    site.add("every second", interval=1)
    beat = site.leading_beat()
    wait_for(lambda: len(site.runs_of("every second")) >= 2)
    assert [site.runs_of(name) for name in (*ran, "clocked, left out", "ran", "later")] == [[]] * 7
    beat.stop()


def test_a_row_that_is_renamed_while_beat_is_down_goes_on_as_it_was(any_site: DjangoProject) -> None:
    site, every = any_site, {"instruction": "ignore_misfire_policy"}
    row = site.add("old", interval=3, misfire=every)
    site.configure({})
    beat = site.leading_beat()
    wait_for(lambda: len(site.runs_of("old")) >= 2)
    beat.kill()
    rows().filter(pk=row.pk).update(name="new")
    time.sleep(4)
    beat = site.leading_beat()
    wait_for(lambda: len(site.runs_of("new")) >= 3)
    beat.stop()
    old, new = (outcomes(published(site.url), site.decisions(), name, 3000) for name in ("old", "new"))
    # No occurrence ran under both names.
    assert not old.keys() & new.keys()
    found = old | new
    assert_each_ended_once(found, range(min(found), max(found) + 1, 3000))


def test_entries_of_the_settings_run_beside_the_rows(site: DjangoProject) -> None:
    site.add("row", interval=1)
    site.add("shadowed", interval=1)
    later = time.time() + 3600
    site.configure(
        {
            "as a row": {
                "schedule": {"type": "interval", "seconds": 1},
                "misfire": {"instruction": "do_nothing", "threshold": 7},
                "options": {"queue": "celery", "expires": 9},
            },
            "quartz": {"schedule": {"type": "simple", "interval": 1}, "misfire": "fire_now"},
            "shadowed": {"schedule": {"type": "simple", "start": later, "interval": 1}},
            "half a second": {"schedule": {"type": "interval", "seconds": 0.5}},
        }
    )
    beat = site.leading_beat()
    for name in ("row", "as a row", "quartz", "half a second"):
        wait_for(lambda n=name: len(site.runs_of(n)) >= 2, what=name)
    beat.stop()
    assert set(rows().values_list("name", flat=True)) == {
        "row",
        "shadowed",
        "as a row",
        "celery.backend_cleanup",
    }
    policy = rows().get(name="as a row").misfire_policy
    assert (policy.instruction, policy.threshold) == ("do_nothing", 7)
    assert site.runs_of("shadowed") == []
    assert "'shadowed' is not used" in site.log()
    assert "no column for 'expires'. Use 'expire_seconds'." in site.log()
    counts = dict(rows().values_list("name", "total_run_count"))
    assert counts["row"] == len(site.runs_of("row"))
    assert counts["as a row"] == len(site.runs_of("as a row"))


@pytest.mark.long
def test_beat_goes_on_while_the_database_is_away(postgres_site: DjangoProject, postgres: Postgres) -> None:
    from django.db import connection

    site = postgres_site
    site.add("tick", interval=1)
    site.configure({})
    beat = site.leading_beat()
    wait_for(lambda: len(site.runs_of("tick")) >= 2)
    for away, back in ((postgres.halt, postgres.start), (postgres.freeze, postgres.thaw)):
        away()
        sent = len(site.runs_of("tick"))
        wait_for(lambda n=sent: len(site.runs_of("tick")) >= n + 6)
        back()
        time.sleep(3)
    assert set(site.runs_of("tick")) == {"fired"}
    assert site.log().count("periodic tasks cannot be read") == 1
    wait_for(lambda: "the database answers again after" in site.log())
    beat.stop()
    # Our own connection did not live through it.
    connection.close()
    assert rows().get(name="tick").total_run_count == len(site.runs_of("tick"))
    assert missed_lines(site) == []


@pytest.mark.long
def test_beat_waits_for_a_database_that_is_away_at_its_start(
    postgres_site: DjangoProject,
    postgres: Postgres,
) -> None:
    site = postgres_site
    site.add("tick", interval=1)
    site.configure({})
    first = site.leading_beat()
    wait_for(lambda: site.runs_of("tick"))
    first.kill()
    postgres.halt()
    beat = site.beat()
    wait_for(lambda: "cannot be read" in site.log(), 60)
    time.sleep(3)
    assert beat.alive
    assert len(site.terms()) == 1
    postgres.start()
    wait_for(lambda: len(site.terms()) == 2, 60)
    sent = len(site.runs_of("tick"))
    wait_for(lambda: len(site.runs_of("tick")) >= sent + 2)
    assert [line for line in missed_lines(site) if line.get("reason") == "entry_deleted"] == []


@pytest.mark.parametrize(
    ("use_tz", "enable_utc", "tz_aware"),
    [
        pytest.param(use_tz, enable_utc, tz_aware, marks=[] if quick else pytest.mark.long)
        for use_tz, enable_utc, tz_aware, quick in [
            (False, False, False, True),
            (False, False, True, False),
            (False, True, False, False),
            (False, True, True, False),
            (True, False, True, False),
            (True, False, False, False),
            (True, True, False, False),
        ]
    ],
)
def test_moments_are_right_in_every_mode_of_time_zones(
    site: DjangoProject, use_tz: bool, enable_utc: bool, tz_aware: bool
) -> None:
    from django.test import override_settings

    zone = "Asia/Tokyo"
    modes = {"USE_TZ": use_tz, "TIME_ZONE": zone, "DJANGO_CELERY_BEAT_TZ_AWARE": tz_aware}
    site.django = modes
    with override_settings(**modes):
        from django.utils import timezone

        from celery_misfire.contrib.django.rows import from_last_run_at

        moment = timezone.now()
        site.make_state()
        site.add("clocked", clocked=moment + timedelta(seconds=5))
        site.add("started", interval=3600, start_time=moment + timedelta(seconds=5))
        site.add("expired", interval=1, expires=moment - timedelta(seconds=1))
        site.add("tick", interval=1)
        site.configure({}, timezone=zone, enable_utc=enable_utc)
        begun = time.time()
        beat = site.leading_beat()
        wait_for(lambda: site.runs_of("clocked") and site.runs_of("started") and site.runs_of("tick"))
        for message in published(site.url):
            if message.misfire["entry"] != "tick":
                at = datetime.fromisoformat(message.misfire["scheduled_fire_time"]).timestamp()
                assert begun + 2 < at < begun + 8
                assert message.misfire["outcome"] == "fired"
        wait_for(lambda: rows().get(name="tick").last_run_at is not None)
        assert abs(from_last_run_at(rows().get(name="tick").last_run_at) / 1000 - time.time()) < 10
        wait_for(lambda: not rows().filter(name__in=("clocked", "expired"), enabled=True).exists())
        assert site.runs_of("expired") == []
        beat.stop()


@pytest.mark.long
def test_two_beats_take_over_from_each_other(site: DjangoProject) -> None:
    site.add("tick", interval=1, misfire={"instruction": "ignore_misfire_policy"})
    site.configure({})
    first = site.leading_beat("first")
    second = site.beat(name="second")
    wait_for(lambda: len(site.runs_of("tick")) >= 2 and "standing by" in site.log("second"))
    first.kill()
    wait_for(lambda: len(site.terms()) == 2, 30)
    # A row of the time in between is seen as well.
    site.add("new", interval=1)
    wait_for(lambda: len(site.runs_of("new")) >= 2)
    second.stop()
    found = outcomes(published(site.url), site.decisions(), "tick", 1000)
    assert_each_ended_once(found, range(min(found), max(found) + 1, 1000))


@pytest.mark.long
def test_beat_inside_a_worker_with_the_alias(site: DjangoProject) -> None:
    from importlib.metadata import entry_points

    found = entry_points(group="celery.beat_schedulers")
    alias = "misfire-django" if "misfire-django" in found.names else None
    site.add("tick", interval=1)
    site.configure({})
    options = ["-S", alias] if alias else []
    site.worker("-B", *options, "-s", str(site.directory / "schedule"), pool="prefork")
    wait_for(lambda: len(site.records()) >= 2, 60)
    wait_for(lambda: rows().get(name="tick").total_run_count >= 2)
