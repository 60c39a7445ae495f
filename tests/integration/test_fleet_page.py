"""The page of all tasks, what if for all of them, hold and pause, and the health, on a real Redis."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree

import pytest
from celery import current_app

from celery_misfire import records
from celery_misfire.beats import Sign
from celery_misfire.conf.settings import read_settings
from celery_misfire.control import Request, write_hold
from celery_misfire.misfire import from_millis, to_millis
from celery_misfire.records import Definition, Pause
from celery_misfire.store.port import Change
from tests.support.admin_site import NAMESPACE, AdminSite
from tests.support.past import Past
from tests.support.redis_server import RedisServer

MINUTE, HOUR = 60_000, 3_600_000
NOW = time.time_ns() // 1_000_000 // HOUR * HOUR + 10 * MINUTE
PAGE = "/admin/celery_misfire/fleet/"
TASKS = "/admin/django_celery_beat/periodictask/"
TOKEN = "a token of a test"


@pytest.fixture
def site(admin: AdminSite, monkeypatch: pytest.MonkeyPatch) -> AdminSite:
    from celery_misfire.contrib.django import moments, state

    # A busy machine is no Redis that is away.
    monkeypatch.setattr(state, "READ_TIMEOUT", 20.0)
    monkeypatch.setattr(moments, "now", lambda: NOW)
    return admin


def task(name: str, instruction: str = "", **fields: Any) -> Any:
    from django_celery_beat.models import CrontabSchedule, PeriodicTask

    from celery_misfire.contrib.django.models import MisfirePolicy

    hourly = CrontabSchedule.objects.get_or_create(minute="0", timezone="UTC")[0]
    if "interval" not in fields:
        fields["crontab"] = hourly
    row = PeriodicTask.objects.create(name=name, task="shop.reports", **fields)
    if instruction:
        MisfirePolicy.objects.create(periodic_task=row, instruction=instruction)
    return row


def missed(row: Any, first: int, count: int = 1, reason: str = "scheduler_down") -> Any:
    from celery_misfire.contrib.django.models import MissedFire
    from celery_misfire.contrib.django.moments import as_stored

    last = first + (count - 1) * HOUR
    return MissedFire.objects.create(
        task_id=f"{row.pk} {first}",
        entry=row.name,
        periodic_task=row,
        task=row.task,
        first=as_stored(first),
        last=as_stored(last),
        count=count,
        reason=reason,
        instruction="do_nothing",
        detected_at=as_stored(last + MINUTE),
    )


def show(client: Any, page: str = "", **query: Any) -> Any:
    response = client.get(PAGE + page, query)
    assert response.status_code == 200
    return response


def rows(response: Any) -> dict[str, str]:
    """Return the tasks of the page in their order, each with its state."""
    return {row.line.name: row.state for row in response.context_data["rows"]}


def marks(response: Any, name: str) -> dict[str, str]:
    """Return the marks of a task: the word of each fate, with its path."""
    [strip] = [row.strip for row in response.context_data["rows"] if row.line.name == name]
    return {path.get("class", ""): path.get("d", "") for path in ElementTree.fromstring(strip)}


# -- the page ----------------------------------------------------------------------------------------------


def test_each_task_has_a_row_and_what_is_wrong_comes_first(site: AdminSite):
    fine, late, lost, off, new = (task(name) for name in ("a", "b", "c", "d", "e"))
    off.enabled = False
    off.save()
    site.plan(fine, lost, off, next_fire_time=NOW + 50 * MINUTE)
    site.plan(late, next_fire_time=NOW - 10 * MINUTE)
    missed(lost, NOW - 5 * HOUR, 3)
    response = show(site.client("view_periodictask", "view_missedfire"))
    assert rows(response) == {
        "b": "10\xa0minutes overdue",
        "c": "3 missed",
        "a": "on time",
        "e": "Not planned yet",
        "d": "disabled",
    }
    facts = dict(response.context_data["facts"])
    assert facts["Overdue tasks"] == "1"
    assert facts["Open missed runs"] == "3"
    text = response.content.decode()
    assert f'href="{TASKS}{late.pk}/timeline/"' in text
    assert f"periodic_task={lost.pk}&amp;state=open" in text
    assert new.name in text


def test_a_strip_has_the_past_the_future_and_the_outage(site: AdminSite, server: RedisServer):
    from celery_misfire.contrib.django.rows import trigger_of
    from celery_misfire.misfire import MisfireInstruction, MisfirePolicy

    row, skips = task("runs late", "fire_once_now"), task("skips", "do_nothing")
    policies = {row: MisfireInstruction.FIRE_ONCE_NOW, skips: MisfireInstruction.DO_NOTHING}
    known = [
        Definition(t.name, t.task, trigger_of(t), MisfirePolicy(i, threshold=30)) for t, i in policies.items()
    ]
    past = Past(server.url, NAMESPACE, known, NOW - 30 * HOUR)
    past.beat_runs(NOW - 6 * HOUR)
    past.pass_to(NOW - 3 * HOUR - 5 * MINUTE)
    past.beat_runs(NOW)
    missed(skips, NOW - 5 * HOUR - 10 * MINUTE, 2)
    response = show(site.client("view_periodictask"))
    late, lost = marks(response, "runs late"), marks(response, "skips")
    assert late.keys() == {"mf-band", "mf-fired", "mf-recovered", "mf-merged", "mf-expected", "mf-now"}
    assert lost.keys() == {"mf-band", "mf-fired", "mf-missed", "mf-expected", "mf-now"}
    assert late["mf-band"] == lost["mf-band"]
    assert late["mf-fired"].count("M") > 15
    assert late["mf-expected"].count("M") == 24
    assert late["mf-recovered"].count("M") == 1
    # The week has room for each hour no more.
    wide = marks(show(site.client("view_periodictask"), days=7), "runs late")
    assert wide["mf-expected"].count("M") < 200


def test_what_the_workers_saw_is_shaded_across_all_rows(site: AdminSite):
    from celery_misfire.contrib.django.mail import tell_overdue, tell_recovered

    site.plan(task("a"), task("b"), next_fire_time=NOW + HOUR)
    response = show(site.client("view_periodictask"))
    assert "mf-band" not in marks(response, "a")
    tell_overdue(["a"], NOW - 4 * HOUR, NOW - 3 * HOUR)
    tell_recovered(NOW - 2 * HOUR)
    response = show(site.client("view_periodictask"))
    assert marks(response, "a")["mf-band"] == marks(response, "b")["mf-band"]


def test_the_page_can_be_narrowed(site: AdminSite):
    late, lost, off = task("late <b>"), task("lost"), task("off", enabled=False)
    site.plan(late, next_fire_time=NOW - HOUR)
    [record] = site.plan(task("rests"), next_fire_time=NOW + HOUR)
    paused = replace(record, paused=Pause(NOW - HOUR, NOW + 2 * HOUR, "<i>why</i>", "ann"))
    site.write([Change(record.name, records.dumps(record), records.dumps(paused))])
    missed(lost, NOW - HOUR)
    client = site.client("view_periodictask")
    for state, name in {
        "overdue": "late <b>",
        "missed": "lost",
        "paused": "rests",
        "disabled": "off",
    }.items():
        assert list(rows(show(client, state=state))) == [name], state
    assert list(rows(show(client, q="LOS"))) == ["lost"]
    text = show(client).content.decode()
    assert "late &lt;b&gt;" in text
    assert "&lt;i&gt;why&lt;/i&gt;" in text
    assert off.name in text
    for wrong in ({"state": "x"}, {"days": "9"}, {"p": "x"}, {"p": "99"}, {"q": "\0"}):
        show(client, **wrong)


def test_what_is_held_or_paused_is_overdue_on_no_page(site: AdminSite):
    row, other = task("<b>held"), task("paused")
    _record, rests = site.plan(row, other, next_fire_time=NOW - HOUR)
    paused = replace(rests, paused=Pause(NOW - 2 * HOUR, None, "", "ann"))
    site.write([Change(rests.name, records.dumps(rests), records.dumps(paused))])
    client = site.client("view_periodictask")

    def shown() -> dict[str, tuple[bool, bool]]:
        """Return whether each page says that something is overdue, and that something is paused."""
        pages = {"fleet": PAGE, "list": TASKS, "filter": f"{TASKS}?misfires=overdue"}
        pages |= {"timeline": f"{TASKS}{row.pk}/timeline/", "paused": f"{TASKS}{other.pk}/timeline/"}
        found = {}
        for name, url in pages.items():
            text = client.get(url).content.decode()
            is_overdue = re.search(r"hour overdue|runs? (?:is|are) overdue", text)
            found[name] = is_overdue is not None, re.search(r"[Pp]aused (?:until|by)", text) is not None
        return found

    assert shown() == {
        "fleet": (True, True),
        "list": (True, True),
        "filter": (True, False),
        "timeline": (True, False),
        "paused": (False, True),
    }
    hold = Pause(NOW - 2 * HOUR, NOW + 100 * HOUR, "<i>the move</i>", "ann")
    assert site.store.write_hold("the test", "", write_hold(hold))
    held = shown()
    assert held.pop("filter") == (False, False)
    assert set(held.values()) == {(False, True)}
    for url in (PAGE, TASKS, f"{TASKS}{row.pk}/timeline/"):
        text = client.get(url).content.decode()
        assert "&lt;i&gt;the move&lt;/i&gt;" in text
    assert "All tasks are held until" in client.get(TASKS).content.decode()
    # The runs to come begin when the hold is over.
    assert "Next: " not in client.get(f"{TASKS}{other.pk}/timeline/").content.decode()


def test_it_says_who_leads_and_who_stands_by(site: AdminSite, server: RedisServer):
    task("a")
    client = site.client("view_periodictask")
    response = show(client)
    assert response.context_data["problem"] == "No beat is running: nothing is sent."
    site.plan(task("b"))
    response = show(client)
    assert response.context_data["problem"] == ""
    facts = dict(response.context_data["facts"])
    assert re.match(r"\S+", facts["Leads"])
    assert facts["Leads"] != "nobody"


def test_a_leader_that_gives_no_sign_of_life_is_told(site: AdminSite, monkeypatch: pytest.MonkeyPatch):
    from celery_misfire.contrib.django.admin import fleet_state

    site.plan(task("a"))
    known = fleet_state.RedisStore.sight
    sign = Sign(host="vm", pid=7, every=5, clock=0, started=0)

    def sight(store: Any) -> Any:
        found = known(store)
        return replace(found, beats={found.lease.owner: (found.now - 3 * MINUTE, str(sign))})

    monkeypatch.setattr(fleet_state.RedisStore, "sight", sight)
    problem = show(site.client("view_periodictask")).context_data["problem"]
    assert problem == "Beat vm:7 leads, and has given no sign of life for 3\xa0minutes."


def test_a_schedule_that_is_not_valid_is_marked_as_wrong(site: AdminSite):
    from django_celery_beat.models import CrontabSchedule

    never = CrontabSchedule.objects.create(minute="99")
    row = task("never")
    row.crontab = never
    row.save()
    [shown] = show(site.client("view_periodictask")).context_data["rows"]
    assert (shown.state, shown.is_wrong) == ("schedule not valid", True)


def test_without_redis_the_page_says_so(site: AdminSite):
    lost = task("a")
    missed(lost, NOW - HOUR)
    with site.settings(misfire_redis_url="redis://127.0.0.1:1/0"):
        response = show(site.client("view_periodictask"))
    assert "Redis does not answer" in response.content.decode()
    assert rows(response) == {"a": "1 missed"}


def test_who_may_not_see_the_tasks_sees_no_page(site: AdminSite):
    stranger = site.client("view_missedfire")
    for page in ("", "what-if/", "control/"):
        assert stranger.get(PAGE + page).status_code == 403
    assert stranger.get(f"{PAGE}health.json").status_code == 403
    assert PAGE not in stranger.get("/admin/").content.decode()


def test_the_index_and_the_list_lead_to_the_page(site: AdminSite):
    client = site.client("view_periodictask")
    assert f'href="{PAGE}"' in client.get("/admin/").content.decode()
    assert f'href="{PAGE}"' in client.get(TASKS).content.decode()


def test_ten_thousand_tasks_take_no_more_queries_and_calls_than_ten(site: AdminSite, server: RedisServer):
    from django.db import connection
    from django.test.utils import CaptureQueriesContext
    from django_celery_beat.models import CrontabSchedule, PeriodicTask

    from celery_misfire.contrib.django.rows import trigger_of

    client, redis = site.client("view_periodictask"), server.client()
    hours = [CrontabSchedule.objects.create(minute=str(n), timezone="UTC") for n in range(60)]

    def fill(count: int) -> None:
        tasks = PeriodicTask.objects.bulk_create(
            PeriodicTask(name=f"task {count} {n}", task="shop.reports", crontab=hours[n % 60])
            for n in range(count)
        )
        changes = []
        for row in tasks:
            record = records.first_seen(row.name, row.task, trigger_of(row), NOW, from_now=True)
            changes.append(Change(row.name, "", records.dumps(record)))
        site.write(changes)

    def measure() -> tuple[int, int]:
        before = redis.info("stats")["total_commands_processed"]
        with CaptureQueriesContext(connection) as queries:
            show(client)
        return len(queries), redis.info("stats")["total_commands_processed"] - before

    fill(10)
    measure()
    few = measure()
    fill(10_000)
    many = measure()
    assert many == few
    assert many[0] <= 20
    assert many[1] <= 20


# -- hold and pause ----------------------------------------------------------------------------------------


def asked(site: AdminSite) -> list[Request]:
    found = [Request.parse(text) for text in site.store.sight().requests.values()]
    return [request for request in found if request is not None]


def local(moment: int) -> str:
    from django.utils import timezone

    return f"{from_millis(moment).astimezone(timezone.get_current_timezone()):%Y-%m-%dT%H:%M}"


def test_staff_that_may_change_tasks_holds_and_pauses(site: AdminSite):
    a, b = task("a"), task("b")
    site.plan(a, b, next_fire_time=NOW + HOUR)
    client = site.client("view_periodictask", "change_periodictask")
    until = local(NOW + 2 * HOUR)
    answer = client.post(f"{PAGE}control/", {"do": "hold", "until": until, "reason": "move"}, follow=True)
    assert "All tasks will be held until" in answer.content.decode()
    client.post(f"{PAGE}control/", {"do": "pause", "task": [a.pk, b.pk], "reason": "<b>"})
    client.post(f"{PAGE}control/", {"do": "resume", "task": [a.pk]})
    client.post(f"{PAGE}control/", {"do": "release"})
    found = asked(site)
    assert [(r.do, r.entry, r.reason) for r in found] == [
        ("hold", "", "move"),
        ("pause", "a", "<b>"),
        ("pause", "b", "<b>"),
        ("resume", "a", ""),
        ("release", "", ""),
    ]
    assert found[0].until == (NOW + 2 * HOUR) // MINUTE * MINUTE
    assert found[1].until is None
    assert {r.by for r in found} == {found[0].by}
    assert found[0].by.startswith("user")


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({"do": "hold"}, "Say until when"),
        ({"do": "pause"}, "Choose the tasks first."),
        ({"do": "pause", "task": ["x", "9" * 30]}, "Choose the tasks first."),
        ({"do": "hold", "until": "2020-01-01T00:00"}, "still to come"),
        ({"do": "hold", "until": "soon"}, "Enter a valid date/time"),
        ({"do": "hold", "reason": "x" * 201}, "at most 200 characters"),
        ({"do": "drop"}, "Nothing was asked for."),
    ],
)
def test_what_cannot_be_asked_for_is_refused(site: AdminSite, form: dict[str, Any], told: str):
    client = site.client("view_periodictask", "change_periodictask")
    answer = client.post(f"{PAGE}control/", form, follow=True)
    assert told in answer.content.decode()
    assert asked(site) == []


def test_a_row_that_celery_named_by_its_arguments_shows_none_of_them(site: AdminSite):
    row = task("shop.reports('canary')")
    site.plan(row, next_fire_time=NOW + HOUR)
    client = site.client("view_periodictask", "change_periodictask")
    assert "canary" not in show(client).content.decode() + show(client, "what-if/").content.decode()
    client.post(f"{PAGE}control/", {"do": "pause", "task": [row.pk]})
    [request] = asked(site)
    assert request.entry == f"shop.reports(...) row {row.pk}"


def test_who_may_only_look_holds_nothing_and_a_foreign_page_cannot_ask(site: AdminSite):
    site.plan(task("a"))
    viewer = site.client("view_periodictask")
    assert viewer.post(f"{PAGE}control/", {"do": "release"}).status_code == 403
    assert 'id="mf-control"' not in show(viewer).content.decode()
    strict = site.client("view_periodictask", "change_periodictask", enforce_csrf_checks=True)
    assert strict.post(f"{PAGE}control/", {"do": "release"}).status_code == 403
    strict.get(f"{PAGE}control/")
    assert asked(site) == []


# -- what if -----------------------------------------------------------------------------------------------


def test_what_if_tells_for_each_task_what_an_outage_does(site: AdminSite):
    run, skip, every = (
        task("run", "fire_once_now"),
        task("skip", "do_nothing"),
        task("all", "ignore_misfire_policy"),
    )
    task("off", "off")
    task("disabled", "do_nothing", enabled=False)
    site.plan(run, skip, every)
    down = datetime(2027, 3, 6, 22, tzinfo=UTC)
    query = {"down": f"{down:%Y-%m-%dT%H:%M}", "up": f"{down + timedelta(hours=8):%Y-%m-%dT%H:%M}"}
    response = show(site.client("view_periodictask"), "what-if/", **query)
    found = {
        e.name: (e.due, e.recovered, e.merged, e.missed, e.in_time) for e in response.context_data["page"]
    }
    assert found == {"skip": (9, 0, 0, 9, 0), "run": (9, 1, 8, 0, 0), "all": (9, 9, 0, 0, 0)}
    assert dict(response.context_data["totals"]) == {
        "Fire times": "27",
        "Recovered": "10",
        "Merged": "8",
        "Missed": "9",
        "On time": "0",
    }
    assert "1 more task is not affected." in response.content.decode()


def test_what_if_agrees_with_the_page_of_the_task(site: AdminSite):
    row = task("skip", "do_nothing")
    site.plan(row)
    client = site.client("view_periodictask")
    query = {"down": "2027-03-06T22:30", "up": "2027-03-07T06:00"}
    [effect] = show(client, "what-if/", **query).context_data["page"]
    single = client.get(f"{TASKS}{row.pk}/what-if/", query)
    assert f"{effect.missed} runs are missed" in single.content.decode()


def test_what_if_knows_pauses_and_a_hold(site: AdminSite):
    free, paused, endless = task("free"), task("paused"), task("endless")
    site.plan(free)
    year = from_millis(NOW).year + 1
    until = to_millis(datetime(year, 2, 7, 0, 30, tzinfo=UTC))
    for row, pause in ((paused, Pause(NOW, until, "month end", "ann@shop")), (endless, Pause(NOW))):
        [record] = site.plan(row)
        changed = records.dumps(replace(record, paused=pause))
        site.write([Change(record.name, records.dumps(record), changed)])
    client = site.client("view_periodictask")
    query = {"down": f"{year}-02-06T22:30", "up": f"{year}-02-07T05:15"}

    def asked(**query: str) -> dict[str, int]:
        page = show(client, "what-if/", **query).context_data["page"]
        found = {effect.name: effect.due for effect in page}
        for row in (free, paused, endless):
            single = client.get(f"{TASKS}{row.pk}/what-if/", query).context_data["answer"]
            count = found.get(row.name, 0)
            told = f"{count} fire times fall into the outage." if count else "No run of this task would be"
            assert single.sentence.startswith(told)
        return found

    assert asked(**query) == {"free": 7, "paused": 4}
    # When the pause ends the outage is over.
    assert asked(down=f"{year}-02-06T22:30", up=f"{year}-02-07T01:15") == {"free": 3}
    page = client.get(f"{TASKS}{paused.pk}/what-if/", query).content.decode()
    assert re.search(r">Paused until .* 01:30 by ann@shop \(month end\)\.<", page)
    single = client.get(f"{TASKS}{endless.pk}/what-if/", query).context_data["answer"]
    assert single.sentence == "No run of this task would be affected."
    held = to_millis(datetime(year, 2, 7, 2, 30, tzinfo=UTC))
    assert site.store.write_hold("the test", "", write_hold(Pause(NOW, held)))
    assert asked(**query) == {"free": 2, "paused": 2}
    # Runs that came due in the pause have misfired, as in Quartz.
    with site.settings(misfire_on_resume="misfire"):
        effects = show(client, "what-if/", **query).context_data["page"]
        assert {effect.name for effect in effects} == {"free", "paused"}
        [together] = (effect.due for effect in effects if effect.name == "paused")
        assert together > 300
        single = client.get(f"{TASKS}{paused.pk}/what-if/", query).context_data["answer"]
        assert f"{together:,} fire times fall into the outage." in single.sentence


def test_what_if_first_asks_about_the_night_of_a_saturday(site: AdminSite):
    form = show(site.client("view_periodictask"), "what-if/").context_data["form"]
    down, up = form.cleaned_data["down"], form.cleaned_data["up"]
    assert (down.weekday(), down.hour, up - down) == (5, 22, timedelta(hours=8))
    assert down > from_millis(NOW)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"down": "2027-03-06T22:00", "up": "2027-03-06T21:00"}, "has to end after it begins"),
        ({"down": "1066-03-06T22:00", "up": "2027-03-06T21:00"}, "between 1971 and 8999"),
        ({"down": "soon"}, "Enter a valid date/time."),
    ],
)
def test_what_if_refuses_what_is_no_outage(site: AdminSite, query: dict[str, str], told: str):
    task("a")
    assert told in show(site.client("view_periodictask"), "what-if/", **query).content.decode()


# -- health ------------------------------------------------------------------------------------------------


def health(client: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    response = client.get(f"{PAGE}health.json", headers=headers)
    return response.status_code, json.loads(response.content)


def test_the_health_of_beat_for_staff(site: AdminSite):
    row = task("a")
    client = site.client("view_periodictask")
    status, found = health(client)
    assert (status, found["healthy"], found["reason"]) == (503, False, "no beat leads")
    [record] = site.plan(row, next_fire_time=NOW + HOUR)
    status, found = health(client)
    assert (status, found["healthy"], found["reason"], found["overdue"]) == (200, True, None, 0)
    late = replace(record, state=replace(record.state, next_fire_time=NOW - HOUR))
    site.write([Change(row.name, records.dumps(record), records.dumps(late))])
    missed(row, NOW - HOUR)
    status, found = health(client)
    assert (status, found["reason"]) == (503, "1 tasks are overdue")
    assert (found["overdue"], found["open_missed_runs"], found["tasks"]) == (1, 1, 1)


def test_a_monitor_shows_the_token(site: AdminSite):
    from django.test import Client

    site.plan(task("a"), next_fire_time=NOW + HOUR)
    nobody = Client()
    assert health(nobody)[0] == 403
    assert health(nobody, authorization=f"Bearer {TOKEN}")[0] == 403
    with site.settings(misfire_health_token=TOKEN):
        assert health(nobody, authorization=f"Bearer {TOKEN}")[0] == 200
        for wrong in ("", "Bearer ", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \u00e9"):
            assert health(nobody, authorization=wrong)[0] == 403
        assert nobody.get(f"{PAGE}badge.svg", {"token": TOKEN}).status_code == 200
        assert nobody.get(f"{PAGE}badge.svg").status_code == 403
        assert nobody.post(f"{PAGE}health.json").status_code == 405
        # The token opens nothing else.
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert nobody.get(PAGE, headers=headers).status_code == 302
        assert TOKEN not in repr(read_settings(current_app))


def test_the_badge_says_how_it_is(site: AdminSite):
    row, client = task("a"), site.client("view_periodictask")

    def badge() -> str:
        response = client.get(f"{PAGE}badge.svg")
        assert response["Content-Type"] == "image/svg+xml"
        return ElementTree.fromstring(response.content).get("aria-label") or ""

    assert badge() == "beat: down"
    site.plan(row, next_fire_time=NOW + HOUR)
    assert badge() == "beat: up"
    missed(row, NOW - HOUR, 2)
    assert badge() == "beat: 2 missed"
    with site.settings(misfire_redis_url="redis://127.0.0.1:1/0"):
        assert badge() == "beat: not known"
        assert health(client)[1]["reason"] == "redis does not answer, or cannot be read"
