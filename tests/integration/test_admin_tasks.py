"""The admin of periodic tasks: what its list says, and the misfire policy in its form."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
import redis

from celery_misfire.events import Missed, encode
from celery_misfire.misfire import MisfireInstruction, MissedFire, Reason, from_millis
from tests.support.admin_site import NAMESPACE, AdminSite, now
from tests.support.processes import published

LIST = "/admin/django_celery_beat/periodictask/"
VIEW = ("view_periodictask", "view_missedfire")
EDIT = (*VIEW, "add_periodictask", "change_periodictask", "add_misfirepolicy", "change_misfirepolicy")

HOUR = 3_600_000
RESTART = "“Run once now and restart the interval”"


@pytest.fixture
def site(admin: AdminSite) -> AdminSite:
    return admin


def crontab(**fields: Any) -> Any:
    from django_celery_beat.models import CrontabSchedule

    return CrontabSchedule.objects.get_or_create(timezone="Europe/Berlin", **fields)[0]


def hourly(name: str, **fields: Any) -> Any:
    from django_celery_beat.models import PeriodicTask

    defaults = {"task": "shop.reports", "crontab": crontab(minute="0")}
    return PeriodicTask.objects.create(name=name, **{**defaults, **fields})


def every(name: str, minutes: int, **fields: Any) -> Any:
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    interval = IntervalSchedule.objects.get_or_create(every=minutes, period="minutes")[0]
    return PeriodicTask.objects.create(name=name, task="shop.stocks", interval=interval, **fields)


def policy(task: Any, **fields: Any) -> Any:
    from celery_misfire.contrib.django.models import MisfirePolicy

    return MisfirePolicy.objects.create(periodic_task=task, **fields)


def missed(task: Any, *, count: int = 1, hours_ago: float = 1) -> Any:
    from celery_misfire.contrib.django.models import MissedFire

    moment = datetime.now(UTC) - timedelta(hours=hours_ago)
    return MissedFire.objects.create(
        task_id=f"{task.name} {moment}",
        entry=task.name,
        periodic_task=task,
        task=task.task,
        first=moment,
        last=moment,
        count=count,
        reason="scheduler_down",
        instruction="do_nothing",
        detected_at=moment,
    )


def cells(page: str, column: str) -> list[str]:
    """Return the text of a column, row by row, as one sees it."""
    found = re.findall(rf'class="field-{column}[^"]*">(.*?)</t[dh]>', page, re.S)
    return [unescape(re.sub(r"<[^>]+>", "", cell)).replace("\xa0", " ") for cell in found]


def body(client: Any, url: str) -> str:
    answer = client.get(url)
    assert answer.status_code == 200
    return str(answer.content.decode())


def test_a_task_that_celery_named_is_known_by_a_name_without_arguments(site: AdminSite) -> None:
    from celery_misfire.contrib.django.recording import keep

    task = hourly("shop.reports('hunter2')", args='["hunter2"]')
    policy(task, instruction="ignore_misfire_policy")
    shown, begin = f"shop.reports(...) row {task.pk}", now() - 3 * HOUR
    site.plan(task, next_fire_time=begin)
    moment = from_millis(begin - HOUR)
    record = MissedFire(
        entry=shown,
        task=task.task,
        task_id="of the miss",
        first=moment,
        last=moment,
        count=1,
        reason=Reason.CAPPED,
        instruction=MisfireInstruction.IGNORE_MISFIRE_POLICY,
        detected_at=from_millis(now()),
    )
    site.write([], *encode([Missed.of(record)]))
    keep(record)
    client = site.client(*VIEW, "run_missedfire")
    listed = body(client, f"{LIST}?misfires=overdue")
    assert cells(listed, "misfire_state")[0].startswith("3 hours overdue · 1 missed · run every")
    from celery_misfire.contrib.django.models import MissedFire as Model

    pages = [body(client, f"{LIST}{task.pk}/{page}/") for page in ("timeline", "what-if")]
    kept = Model.objects.get()
    assert kept.periodic_task_id == task.pk
    of_record = f"/admin/celery_misfire/missedfire/{kept.pk}/change/"
    pages += [body(client, of_record), body(client, "/admin/celery_misfire/missedfire/")]
    assert all(shown in page for page in pages)
    assert "overdue" in pages[0]
    assert "Over the catch-up limit" in pages[0]
    assert "Beat has not seen this task yet" not in pages[0]
    client.post("/admin/celery_misfire/missedfire/run/", {"run": [str(kept.pk)]}, follow=True)
    pages.append(body(client, of_record))
    assert [page for page in pages if "hunter" in page or "(now:" in page] == []
    [message] = published(site.url)
    assert message.headers["periodic_task_name"] == message.misfire["entry"] == shown


def test_a_state_of_a_newer_version_is_told(site: AdminSite) -> None:
    site.plan(hourly("reports"))
    with redis.Redis.from_url(site.url) as client:
        client.hset(f"celery-misfire:{{{NAMESPACE}}}:state", "_meta", '{"schema": 99}')
    page = unescape(body(site.client(*VIEW), LIST))
    assert "The state in Redis is not of this version" in page
    assert "schema 99" in page
    assert cells(page, "misfire_next") == ["-"]
    assert cells(page, "name") == ["reports"]


# -- the list ----------------------------------------------------------------------------------------------


def test_the_list_tells_the_next_fire_time_in_local_time_with_its_offset(site: AdminSite) -> None:
    moment = int(datetime(2037, 1, 15, 1, tzinfo=UTC).timestamp() * 1000)
    site.plan(hourly("winter"), next_fire_time=moment)
    site.plan(hourly("summer"), next_fire_time=moment + 180 * 24 * HOUR)
    page = body(site.client(*VIEW), LIST)
    assert cells(page, "misfire_next") == ["14 Jul 2037, 03:00", "15 Jan 2037, 02:00"]
    assert re.findall(r'title="(20[^"]*)"', page) == [
        "2037-07-14 03:00:00+02:00",
        "2037-01-15 02:00:00+01:00",
    ]
    assert cells(page, "misfire_state") == ["run once", "run once"]


def test_our_columns_stand_where_they_are_seen(site: AdminSite) -> None:
    hourly("a")
    found = re.findall(r'<t[dh] class="field-(\w+)', body(site.client(*VIEW), LIST))
    assert found[:4] == ["name", "enabled", "misfire_next", "misfire_state"]


def test_a_task_that_is_late_by_its_threshold_is_overdue_and_a_word_says_so(site: AdminSite) -> None:
    site.plan(hourly("two hours"), next_fire_time=now() - 2 * HOUR)
    patient = hourly("patient")
    policy(patient, threshold=3 * 3600)
    site.plan(patient, next_fire_time=now() - 2 * HOUR)
    page = body(site.client(*VIEW), LIST)
    assert cells(page, "misfire_state") == ["2 hours late · run once", "2 hours overdue · run once"]
    assert page.count('class="misfire-overdue"') == 1


def test_a_disabled_task_is_never_overdue(site: AdminSite) -> None:
    site.plan(hourly("off", enabled=False), next_fire_time=now() - 2 * HOUR)
    page = body(site.client(*VIEW), LIST)
    assert (cells(page, "misfire_next"), cells(page, "misfire_state")) == (["-"], ["run once"])


def test_what_beat_has_not_planned_yet_is_said_to_be_so(site: AdminSite) -> None:
    hourly("new")
    edited = hourly("edited")
    site.plan(edited)
    edited.crontab = crontab(minute="30")
    edited.save()
    assert cells(body(site.client(*VIEW), LIST), "misfire_next") == ["Not planned yet"] * 2


def test_the_policy_is_shown_resolved_in_two_words(site: AdminSite) -> None:
    hourly("a")
    policy(hourly("b"), instruction="do_nothing")
    policy(hourly("c"), instruction="off")
    every("d", 15)
    policy(hourly("e"), threshold=5)
    policy(hourly("f"), instruction="fire_now")
    policy(every("g", 15), instruction="reschedule_now_with_existing_repeat_count")
    hourly("h", one_off=True)
    with site.settings(misfire_policies={"a": "ignore_misfire_policy"}):
        page = body(site.client(*VIEW), LIST)
    assert cells(page, "misfire_state")[::-1] == [
        "run every",
        "skip missed",
        "off",
        "skip missed",
        "run once",
        "policy not valid",
        "run and restart",
        "run late",
    ]


def test_the_number_of_missed_runs_leads_to_their_list(site: AdminSite) -> None:
    task = hourly("<b>'quoted' & \"more\"</b>")
    missed(task, count=3)
    missed(task, count=2, hours_ago=5)
    missed(task, count=100, hours_ago=30)
    missed(task, count=1000).__class__.objects.filter(count=1000).update(dismissed_at=datetime.now(UTC))
    missed(hourly("other"), count=7)
    client = site.client(*VIEW)
    page = body(client, LIST)
    assert cells(page, "misfire_state") == ["7 missed · run once", "5 missed · run once"]
    link = next(
        unescape(found)
        for found in re.findall(r'href="([^"]*missedfire/\?[^"]*)"', page)
        if f"periodic_task={task.pk}&" in found
    )
    assert cells(body(client, link), "count") == ["3", "2"]
    # Who may not see the records gets no link to them.
    page = body(site.client("view_periodictask"), LIST)
    assert cells(page, "misfire_state") == ["7 missed · run once", "5 missed · run once"]
    assert "missedfire/" not in page


def test_a_rename_keeps_the_missed_runs_of_a_row(site: AdminSite) -> None:
    task = hourly("old")
    missed(task, count=3)
    task.name = "new"
    task.save()
    missed(hourly("old"), count=1)
    page = body(site.client(*VIEW), LIST)
    assert cells(page, "name") == ["old", "new"]
    assert cells(page, "misfire_state") == ["1 missed · run once", "3 missed · run once"]


def test_the_list_is_filtered_and_sorted_by_overdue_and_missed(site: AdminSite) -> None:
    site.plan(hourly("fine"), next_fire_time=now() + HOUR)
    site.plan(hourly("overdue"), next_fire_time=now() - 2 * HOUR)
    site.plan(hourly("off", enabled=False), next_fire_time=now() - 2 * HOUR)
    missed(hourly("few"), count=1)
    missed(hourly("many"), count=9)
    client = site.client(*VIEW)
    assert cells(body(client, f"{LIST}?misfires=overdue"), "name") == ["overdue"]
    assert cells(body(client, f"{LIST}?misfires=missed"), "name") == ["many", "few"]
    # The fifth column, after the check box; backwards.
    columns = re.findall(r'class="[^"]*column-(\w+)', body(client, LIST))
    number = columns.index("misfire_state") + ("action_checkbox" not in columns)
    ordered = cells(body(client, f"{LIST}?o=-{number}"), "name")
    assert ordered[:3] == ["overdue", "many", "few"]


def test_a_word_is_said_when_nobody_leads(site: AdminSite) -> None:
    hourly("a")
    client = site.client(*VIEW)
    assert "No beat is running: nothing is sent." in body(client, LIST)
    site.plan(hourly("b"))
    assert "No beat is running" not in body(client, LIST)


def test_without_redis_the_list_shows_dashes_and_one_message(site: AdminSite) -> None:
    task = hourly("a")
    missed(task)
    site.plan(task)
    with site.settings(misfire_redis_url="redis://:secret@127.0.0.1:1/0"):
        page = body(site.client(*VIEW), LIST)
        assert cells(body(site.client(*VIEW), f"{LIST}?misfires=overdue&o=4"), "name") == []
    assert cells(page, "misfire_next") == ["-"]
    assert cells(page, "misfire_state") == ["1 missed · run once"]
    assert page.count("Redis does not answer; next runs are unknown.") == 1
    assert "secret" not in page


def test_with_wrong_settings_the_list_says_what_is_wrong(site: AdminSite) -> None:
    hourly("a")
    with site.settings(misfire_threshold="soon"):
        page = body(site.client(*VIEW), LIST)
    assert "misfire_threshold" in page
    assert cells(page, "misfire_state") == ["-"]


def test_a_schedule_that_nobody_can_read_breaks_no_page(site: AdminSite) -> None:
    from django_celery_beat.models import CrontabSchedule, IntervalSchedule, SolarSchedule

    def row(name: str, **schedule: Any) -> Any:
        # Written past the forms, as by SQL.
        [(field, made)] = schedule.items()
        type(made).objects.bulk_create([made])
        return hourly(name, **{"crontab": None, field: made})

    tasks = [
        row("hour 99", crontab=CrontabSchedule(minute="0", hour="99")),
        row("lustra", interval=IntervalSchedule(every=5, period="lustra")),
        row("too long", interval=IntervalSchedule(every=2**31 - 1, period="days")),
        row("at the pole", solar=SolarSchedule(event="sunrise", latitude=89, longitude=0)),
    ]
    client = site.client(superuser=True)
    assert cells(body(client, LIST), "misfire_state").count("schedule not valid") == 3
    for task in tasks:
        pages = [f"{LIST}{task.pk}/{page}/" for page in ("change", "timeline", "what-if")]
        records = [missed(task, count=count, hours_ago=count) for count in (1, 3, 300)]
        pages += [f"/admin/celery_misfire/missedfire/{record.pk}/change/" for record in records]
        pages += [f"/admin/celery_misfire/missedfire/run/?run={record.pk}" for record in records]
        for url in pages:
            body(client, url)


def test_a_policy_that_does_not_fit_is_not_valid_and_the_task_is_expected_all_the_same(
    site: AdminSite,
) -> None:
    task = hourly("a")
    policy(task, instruction="fire_now")
    [record] = site.plan(task)
    page = body(site.client(*VIEW), LIST)
    assert cells(page, "misfire_state") == ["policy not valid"]
    [text] = re.findall(r'title="(20[^"]*)"', page)
    assert datetime.fromisoformat(text).timestamp() == record.state.next_fire_time // 1000
    page = body(site.client(*VIEW), f"{LIST}{task.pk}/what-if/")
    assert "Smart policy: Run once for all missed" in page


def test_a_thousand_rows_cost_as_many_queries_as_ten(site: AdminSite, monkeypatch: Any) -> None:
    from django.contrib import admin
    from django.db import connection
    from django.test.utils import CaptureQueriesContext
    from django_celery_beat.models import PeriodicTask

    from celery_misfire.contrib.django.models import MisfirePolicy

    monkeypatch.setattr(admin.site._registry[PeriodicTask], "list_per_page", 1000, raising=False)
    client = site.client(*VIEW)
    schedule = crontab(minute="0")

    def add(first: int, last: int) -> None:
        rows = [
            PeriodicTask(name=f"task {n}", task="shop.reports", crontab=schedule) for n in range(first, last)
        ]
        PeriodicTask.objects.bulk_create(rows)
        created = list(PeriodicTask.objects.filter(name__in=[row.name for row in rows]))
        MisfirePolicy.objects.bulk_create(
            [MisfirePolicy(periodic_task=row, instruction="do_nothing") for row in created[::2]]
        )
        site.plan(*created)

    def asked() -> tuple[int, int]:
        calls = redis_calls(site)
        with CaptureQueriesContext(connection) as queries:
            page = body(client, LIST)
        assert "Not planned yet" not in page
        return len(queries), redis_calls(site) - calls

    add(0, 10)
    few = asked()
    add(10, 1000)
    assert asked() == few
    assert few[0] <= 12
    # The records, the mark of the state, and what a look at the beats reads.
    assert few[1] <= 6


def redis_calls(site: AdminSite) -> int:
    """Return how often the state has been read."""
    import redis

    with redis.Redis.from_url(site.url) as client:
        stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("hmget", "hgetall", "hget"))


def test_another_apps_columns_inlines_and_fieldsets_stay(site: AdminSite) -> None:
    from django.contrib import admin
    from django_celery_beat.admin import PeriodicTaskAdmin
    from django_celery_beat.models import PeriodicTask

    from celery_misfire.contrib.django.admin import PeriodicTaskMixin, PolicyInline, replace_registered
    from celery_misfire.contrib.django.models import MissedFire

    class TheirInline(admin.TabularInline):  # type: ignore[type-arg]
        model = MissedFire

    class TheirAdmin(PeriodicTaskAdmin):  # type: ignore[misc]
        list_display = ("name", "theirs")
        inlines = (TheirInline,)
        fieldsets = (("Theirs", {"fields": ("name",)}),)

        def theirs(self, task: Any) -> str:
            return "theirs"

    their_site = admin.AdminSite("theirs")
    their_site.register(PeriodicTask, TheirAdmin)
    replace_registered(their_site)
    replace_registered(their_site)
    found = their_site._registry[PeriodicTask]
    assert isinstance(found, TheirAdmin)
    assert isinstance(found, PeriodicTaskMixin)
    request: Any = None
    assert found.get_list_display(request)[:2] == ["name", "theirs"]
    assert "misfire_next" in found.get_list_display(request)
    assert found.get_inlines(request, None) == [TheirInline, PolicyInline]
    assert found.fieldsets == TheirAdmin.fieldsets
    assert their_site.is_registered(MissedFire)


@pytest.fixture(params=["none", "those of an older version"])
def not_migrated(request: pytest.FixtureRequest, site: AdminSite, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A site with a task, whose tables of ours are not those of this version; which they are."""
    from django.apps import apps
    from django.db import connection

    from celery_misfire.contrib.django import database

    site.plan(hourly("a"))
    monkeypatch.setattr(database, "_migrated", set())
    models: Any = apps.get_app_config("celery_misfire").get_models()
    tables = [model._meta.db_table for model in models if not model._meta.proxy]
    away = [f"ALTER TABLE {table} RENAME TO gone_{table}" for table in tables]
    back = [f"ALTER TABLE gone_{table} RENAME TO {table}" for table in tables]
    if request.param != "none":
        # As if the last migration had not been run.
        away = ["ALTER TABLE celery_misfire_missedfire DROP COLUMN note"]
        back = ["ALTER TABLE celery_misfire_missedfire ADD COLUMN note text NOT NULL DEFAULT ''"]
    with connection.cursor() as cursor:
        for statement in away:
            cursor.execute(statement)
        yield request.param
        for statement in back:
            cursor.execute(statement)


def test_tables_that_are_not_migrated_are_told_and_break_no_page(site: AdminSite, not_migrated: str) -> None:
    from django_celery_beat.models import PeriodicTask

    task = PeriodicTask.objects.get()
    client, told = site.client(superuser=True), "Run: manage.py migrate"
    for url in (LIST, f"{LIST}?misfires=missed", f"{LIST}?o=1", f"{LIST}add/", f"{LIST}{task.pk}/change/"):
        assert body(client, url).count(told) == 1, url
    ours = "/admin/celery_misfire/"
    pages = [
        f"{LIST}{task.pk}/timeline/",
        f"{LIST}{task.pk}/what-if/",
        f"{ours}fleet/",
        f"{ours}fleet/what-if/",
    ]
    pages += [f"{ours}{name}/" for name in ("missedfire", "rerun", "missedfire/run", "fleet/control")]
    pages += [f"{ours}{name}/1/change/" for name in ("missedfire", "rerun")]
    pages += [
        f"{LIST}{task.pk}/delete/",
        f"{ours}missedfire/1/history/",
        f"{ours}rerun/1/history/",
        f"{ours}missedfire/1/dismiss/",
    ]
    for url in pages:
        answer = client.get(url, follow=True)
        assert (answer.status_code, told in answer.content.decode()) == (200, True), url
    # Django deletes the policy of a task with it, and its table is missing.
    chosen = {"action": "delete_selected", "_selected_action": [task.pk], "post": "yes"}
    assert client.post(LIST, chosen, follow=True).status_code == 200
    assert client.post(f"{LIST}{task.pk}/delete/", {"post": "yes"}).status_code == 302
    assert PeriodicTask.objects.filter(pk=task.pk).exists()
    assert client.get(f"{ours}fleet/health.json").json()["reason"] == "migrations are missing"
    assert b"not known" in client.get(f"{ours}fleet/badge.svg").content
    answer = client.post(f"{LIST}{task.pk}/change/", form(body(client, f"{LIST}{task.pk}/change/")))
    assert answer.status_code == 302


# -- the form ----------------------------------------------------------------------------------------------


def offered(page: str) -> list[str]:
    select = re.search(r'<select name="misfire_policy-0-instruction".*?</select>', page, re.S)
    assert select
    return re.findall(r'<option value="([^"]*)"', select[0])


def form(page: str, **changes: Any) -> dict[str, str]:
    """Return what a browser would send for the form of the page, with these changes."""
    data: dict[str, str] = {}
    for tag in re.findall(r"<input [^>]*>", page):
        fields = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        is_sent = fields.get("type") != "submit" and (fields.get("type") != "checkbox" or " checked" in tag)
        if "name" in fields and is_sent:
            data[fields["name"]] = unescape(fields.get("value", "on" if " checked" in tag else ""))
    for name, inner in re.findall(r'<textarea name="([^"]*)"[^>]*>(.*?)</textarea>', page, re.S):
        data[name] = unescape(inner).lstrip("\n")
    for name, inner in re.findall(r'<select name="([^"]*)"[^>]*>(.*?)</select>', page, re.S):
        chosen = re.search(r'value="([^"]*)" selected', inner)
        data[name] = unescape(chosen[1]) if chosen else ""
    return data | {name.replace("policy_", "misfire_policy-0-"): value for name, value in changes.items()}


def labels(page: str) -> list[str]:
    select = re.search(r'<select name="misfire_policy-0-instruction".*?</select>', page, re.S)
    assert select
    return [unescape(label) for label in re.findall(r"<option[^>]*>([^<]*)<", select[0])]


def test_the_drop_down_offers_one_choice_for_each_thing_that_can_happen(site: AdminSite) -> None:
    client = site.client(*EDIT)
    assert labels(body(client, f"{LIST}{hourly('cron').pk}/change/")) == [
        "Site default (now: Run once for all missed)",
        "Smart policy (here: Run once for all missed)",
        "Skip missed runs",
        "Run once for all missed",
        "Run every missed one",
        "Off: drop late runs without a record",
    ]
    assert labels(body(client, f"{LIST}{every('interval', 15).pk}/change/")) == [
        "Site default (now: Skip missed runs)",
        "Smart policy (here: Skip missed runs)",
        "Skip missed runs",
        "Run once for all missed",
        "Run every missed one",
        "Run once now and restart the interval",
        "Off: drop late runs without a record",
    ]
    assert labels(body(client, f"{LIST}{hourly('once', one_off=True).pk}/change/")) == [
        "Site default (now: Run it late)",
        "Smart policy (here: Run it late)",
        "Skip missed runs",
        "Run it late",
        "Off: drop late runs without a record",
    ]


def test_a_choice_that_was_made_before_stays_one(site: AdminSite) -> None:
    task = every("a", 15)
    policy(task, instruction="reschedule_next_with_existing_count")
    page = body(site.client(*EDIT), f"{LIST}{task.pk}/change/")
    assert '<option value="reschedule_next_with_existing_count" selected>' in page
    data = form(page)
    assert site.client(*EDIT).post(f"{LIST}{task.pk}/change/", data).status_code == 302
    task.misfire_policy.refresh_from_db()
    assert task.misfire_policy.instruction == "reschedule_next_with_existing_count"


def test_a_new_task_is_offered_what_fits_some_schedule(site: AdminSite) -> None:
    page = body(site.client(*EDIT), f"{LIST}add/")
    assert offered(page) == [
        "",
        "smart_policy",
        "do_nothing",
        "fire_once_now",
        "ignore_misfire_policy",
        "fire_now",
        "off",
    ]
    assert "Site default" in labels(page)


def test_each_choice_is_explained_by_what_it_would_do_to_this_very_task(site: AdminSite) -> None:
    task = every("stocks", 15)
    due = now() - now() % 60_000 + 10 * 60_000
    site.plan(task, next_fire_time=due, start_time=due)
    page = unescape(body(site.client(*EDIT), f"{LIST}{task.pk}/change/"))

    def clock(moment: int) -> str:
        from zoneinfo import ZoneInfo

        return f"{datetime.fromtimestamp(moment / 1000, ZoneInfo('Europe/Berlin')):%H:%M}"

    told = re.search(r"<dt>Run every missed one.*?</dd>", page, re.S)
    assert told
    first, second, third = (clock(due + n * 15 * 60_000) for n in range(3))
    assert first in told[0]
    assert second in told[0]
    assert f"Next: {third}" in re.sub(r"Next: .*, (\d\d:\d\d)", r"Next: \1", told[0])
    assert "2 fire times fall into the outage" in page


def test_the_form_works_without_redis(site: AdminSite) -> None:
    task = hourly("a")
    with site.settings(misfire_redis_url="redis://127.0.0.1:1/0"):
        page = body(site.client(*EDIT), f"{LIST}{task.pk}/change/")
    assert "2 fire times fall into the outage" in page


def test_a_policy_is_made_with_its_task_and_beat_is_told(site: AdminSite) -> None:
    from django_celery_beat.models import PeriodicTask, PeriodicTasks

    client = site.client(*EDIT)
    data = form(
        body(client, f"{LIST}add/"),
        name="nightly",
        task="shop.billing",
        crontab=crontab(minute="0", hour="2").pk,
        policy_instruction="ignore_misfire_policy",
        policy_threshold="90",
        policy_max_catch_up="10",
        policy_max_lateness="7200",
        policy_on_missed="shop.tell",
        policy_mail_to="a@example.org, b@example.org",
    )
    answer = client.post(f"{LIST}add/", data)
    assert answer.status_code == 302, re.findall(r"errorlist.*?</ul>", answer.content.decode(), re.S)
    made = PeriodicTask.objects.get(name="nightly").misfire_policy
    assert made.as_entry_key() == {
        "instruction": "ignore_misfire_policy",
        "threshold": 90.0,
        "max_catch_up": 10,
        "max_lateness": 7200.0,
        "on_missed": "shop.tell",
    }
    told = PeriodicTasks.last_change()
    data = form(body(client, f"{LIST}{made.periodic_task_id}/change/"), policy_instruction="do_nothing")
    assert client.post(f"{LIST}{made.periodic_task_id}/change/", data).status_code == 302
    made.refresh_from_db()
    assert made.instruction == "do_nothing"
    assert PeriodicTasks.last_change() > told


def test_a_policy_that_somebody_else_has_chosen_meanwhile_stays_and_is_told(site: AdminSite) -> None:
    task = hourly("a")
    client, url = site.client(*EDIT), f"{LIST}{task.pk}/change/"
    shown = body(client, url)
    theirs = policy(task, instruction="do_nothing")
    # A user who has not touched the policy does not hear of it.
    assert client.post(url, form(shown, description="changed")).status_code == 302
    answer = client.post(url, form(shown, policy_instruction="fire_once_now"))
    assert answer.status_code == 200
    assert "Somebody else has chosen a policy meanwhile. Load this page again." in answer.content.decode()
    theirs.refresh_from_db()
    assert theirs.instruction == "do_nothing"


def test_a_task_saved_without_a_choice_has_no_policy_of_its_own(site: AdminSite) -> None:
    from celery_misfire.contrib.django.models import MisfirePolicy

    task = hourly("a")
    client = site.client(*EDIT)
    data = form(body(client, f"{LIST}{task.pk}/change/"), description="changed")
    assert client.post(f"{LIST}{task.pk}/change/", data).status_code == 302
    assert not MisfirePolicy.objects.exists()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("policy_threshold", "0", "Enter a number of seconds greater than 0"),
        ("policy_max_catch_up", "0", "To run nothing, choose another instruction"),
        ("policy_max_lateness", "1e12", "at most 100 years"),
        (
            "policy_mail_to",
            "a@example.org, nobody",
            "“nobody” is not a valid address",
        ),
        ("policy_instruction", "sometimes", "Select a valid choice"),
        (
            "policy_instruction",
            "fire_now",
            f"{RESTART} does not fit this schedule. Choose one of: Site",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(site: AdminSite, field: str, value: str, told: str) -> None:
    from celery_misfire.contrib.django.models import MisfirePolicy

    task = hourly("a")
    client = site.client(*EDIT)
    data = form(body(client, f"{LIST}{task.pk}/change/"), **{field: value})
    answer = client.post(f"{LIST}{task.pk}/change/", data)
    assert answer.status_code == 200
    assert told in unescape(answer.content.decode())
    assert not MisfirePolicy.objects.exists()


def test_an_instruction_is_judged_by_the_schedule_that_is_saved_with_it(site: AdminSite) -> None:
    task = every("a", 15)
    policy(task, instruction="fire_now")
    client = site.client(*EDIT)
    data = form(body(client, f"{LIST}{task.pk}/change/"), interval="", crontab=crontab(minute="0").pk)
    answer = client.post(f"{LIST}{task.pk}/change/", data)
    assert f"{RESTART} does not fit this schedule" in unescape(answer.content.decode())
    data["misfire_policy-0-instruction"] = "fire_once_now"
    assert client.post(f"{LIST}{task.pk}/change/", data).status_code == 302


def test_whoever_may_only_look_can_change_nothing(site: AdminSite) -> None:
    task = hourly("a")
    policy(task, instruction="do_nothing")
    page = body(site.client(*VIEW, "view_misfirepolicy"), f"{LIST}{task.pk}/change/")
    assert "Skip missed runs" in page
    assert "misfire_policy-0-instruction" not in page


@pytest.mark.parametrize(
    ("permissions", "may"),
    [
        (("view_misfirepolicy",), False),
        (("view_misfirepolicy", "add_misfirepolicy", "change_misfirepolicy"), False),
        (("change_periodictask", "view_misfirepolicy"), False),
        (("change_periodictask", "view_misfirepolicy", "change_misfirepolicy"), False),
        (("change_periodictask", "view_misfirepolicy", "add_misfirepolicy"), True),
    ],
)
def test_nobody_gets_fields_that_are_not_saved(site: AdminSite, permissions: Any, may: bool) -> None:
    from celery_misfire.contrib.django.models import MisfirePolicy

    task = hourly("a")
    client = site.client(*VIEW, *permissions)
    page = body(client, f"{LIST}{task.pk}/change/")
    assert ('name="misfire_policy-0-instruction"' in page) == may
    data = form(page, policy_instruction="do_nothing")
    client.post(f"{LIST}{task.pk}/change/", data)
    assert MisfirePolicy.objects.exists() == may


def test_a_minute_that_never_comes_is_wrong_as_a_schedule_and_not_as_a_policy(site: AdminSite) -> None:
    task = hourly("a", crontab=crontab(minute="99"))
    client = site.client(*EDIT)
    assert cells(body(client, LIST), "misfire_state") == ["schedule not valid"]
    page = body(client, f"{LIST}{task.pk}/what-if/")
    assert "This task can never be scheduled" in page


def test_names_are_escaped_wherever_they_are_shown(site: AdminSite) -> None:
    from django_celery_beat.models import PeriodicTask

    names = ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "🎉" * 50, "x" * 200]
    for name in names:
        task = hourly(name, task=name[:200])
        missed(task)
        site.plan(task)
    client = site.client(superuser=True)
    pages = [LIST, "/admin/celery_misfire/missedfire/"]
    pages += [
        f"{LIST}{task.pk}/{page}/" for task in PeriodicTask.objects.all() for page in ("change", "timeline")
    ]
    for url in pages:
        page = body(client, url)
        assert "<script>alert" not in page
        assert "<img src=x" not in page


def test_timeline_and_what_if_are_a_click_away(site: AdminSite) -> None:
    task = hourly("a")
    site.plan(task)
    client = site.client(*EDIT)
    page = body(client, f"{LIST}{task.pk}/change/")
    for name in ("timeline", "what-if"):
        assert f'href="{LIST}{task.pk}/{name}/"' in page
        assert body(client, f"{LIST}{task.pk}/{name}/")
    assert f'href="{LIST}{task.pk}/timeline/"' in body(client, LIST)
