"""The pages "Timeline" and "What if": a real Redis, with a past in it that the real leader made."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import pytest
from celery import current_app

from celery_misfire.conf.settings import read_settings
from celery_misfire.misfire import FITTING, MisfirePolicy, TriggerType, from_millis, to_millis
from celery_misfire.records import Definition
from tests.support.admin_site import NAMESPACE, AdminSite
from tests.support.past import Past
from tests.support.redis_server import RedisServer

HOUR, MINUTE = 3_600_000, 60_000
#: The pages are asked for at this moment: ten past twelve, and ten past one in Berlin.
NOW = to_millis(datetime(2026, 3, 10, 12, 10, tzinfo=UTC))
NOON = NOW - 10 * MINUTE
#: Beat was away from twenty to nine to a quarter past ten.
DOWN, UP = NOON - 3 * HOUR - 20 * MINUTE, NOON - HOUR - 45 * MINUTE


@pytest.fixture
def site(admin_of_the_module: AdminSite, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AdminSite:
    """The site, with nothing in its database and in Redis."""
    from django.core.management import call_command

    from celery_misfire.contrib.django import moments, state

    # A busy machine is no Redis that is away.
    monkeypatch.setattr(state, "READ_TIMEOUT", 20.0)
    call_command("flush", interactive=False, verbosity=0)
    server.client().flushall()
    monkeypatch.setattr(moments, "now", lambda: NOW)
    return admin_of_the_module


def make_task(name: str = "reports", instruction: str = "", **fields: Any) -> Any:
    from django_celery_beat.models import CrontabSchedule, PeriodicTask

    from celery_misfire.contrib.django.models import MisfirePolicy as PolicyRow

    if not fields.keys() & {"interval", "clocked", "crontab"}:
        fields["crontab"] = CrontabSchedule.objects.create(minute="0", timezone="UTC")
    task = PeriodicTask.objects.create(name=name, task="shop.reports", **fields)
    if instruction:
        PolicyRow.objects.create(periodic_task=task, instruction=instruction)
    return task


def every(**interval: Any) -> Any:
    from django_celery_beat.models import IntervalSchedule

    return IntervalSchedule.objects.create(**interval)


def past_of(server: RedisServer, *tasks: Any, begin: int = NOON - 30 * HOUR) -> Past:
    from celery_misfire.contrib.django.policies import policy_of
    from celery_misfire.contrib.django.rows import trigger_of

    settings = read_settings(current_app)
    definitions = [
        Definition(t.name, t.task, trigger_of(t), policy_of(t, trigger_of(t), settings)) for t in tasks
    ]
    return Past(server.url, NAMESPACE, definitions, begin)


def with_an_outage(server: RedisServer, *tasks: Any) -> None:
    """Beat runs, is away, and runs again."""
    past = past_of(server, *tasks)
    past.beat_runs(DOWN)
    past.pass_to(UP)
    past.beat_runs(NOW)


def get(client: Any, task: Any, page: str, **query: Any) -> Any:
    response = client.get(f"/admin/django_celery_beat/periodictask/{task.pk}/{page}/", query)
    return response


def timeline_of(client: Any, task: Any) -> Any:
    response = get(client, task, "timeline")
    assert response.status_code == 200
    return response


def outcomes(response: Any) -> dict[str, int]:
    return {str(outcome): n for outcome, n in response.context_data["timeline"].counts.items() if n}


def pictures(text: str) -> list[ElementTree.Element]:
    """Return our pictures on a page; each has to be well-formed by itself."""
    return [
        ElementTree.fromstring(found) for found in re.findall('<svg [^>]*class="mf .*?</svg>', text, re.S)
    ]


def notes(response: Any) -> str:
    return " ".join(map(str, response.context_data["notes"]))


def problems(response: Any) -> str:
    return " ".join(map(str, response.context_data["problems"]))


# -- the timeline ------------------------------------------------------------------------------------------


def test_the_last_day_is_shown_with_its_outage_and_with_what_is_expected(site, server):
    task = make_task(instruction="fire_once_now")
    with_an_outage(server, task)
    response = timeline_of(site.client("view_periodictask"), task)
    text = response.content.decode()
    assert outcomes(response) == {"fired": 22, "recovered": 1, "merged": 1, "None": 6}
    assert problems(response) == ""
    # In the time zone of the admin.
    assert "Next: Tue 10 Mar, 14:00." in text
    assert "Beat was down: Tue 10 Mar, 10:00 \u2013 11:15, 1\xa0hour, 15\xa0minutes" in text
    assert "No sign of life: Tue 10 Mar, 09:00 \u2013 10:00" in text
    assert "Times in Europe/Berlin, UTC+1." in text
    late = [row for row in response.context_data["timeline"].rows if row.late_by]
    assert [(row.scheduled, row.outcome, row.fire_time) for row in late] == [
        ("Tue 10 Mar, 10:00", "recovered", "Tue 10 Mar, 11:15:00"),
        ("Tue 10 Mar, 11:00", "merged", "Tue 10 Mar, 11:15:00"),
    ]
    assert [picture.get("class") for picture in pictures(text)] == ["mf mf-wide", "mf mf-tall"]


@pytest.mark.parametrize("schedule", ["crontab", "interval"])
def test_history_and_simulation_agree_for_every_instruction(site, server, schedule):
    from celery_misfire.contrib.django.rows import trigger_of
    from celery_misfire.contrib.django.state import open_store, read
    from celery_misfire.contrib.django.timeline import history, whatif

    fields = {"interval": every(every=30, period="minutes")} if schedule == "interval" else {}
    kind = "endless" if schedule == "interval" else "cron"
    tasks = [make_task(f"task {i}", str(i), **fields) for i in FITTING[TriggerType(kind)]]
    with_an_outage(server, *tasks)
    store = open_store(current_app)
    for instruction, task in zip(FITTING[TriggerType(kind)], tasks, strict=True):
        trigger = trigger_of(task)
        stored = read(store, task.name, NOW - 24 * HOUR, NOW)
        past = history.history(
            stored.events, task.name, NOW - 24 * HOUR, NOW, trigger=trigger, record=stored.record
        )
        state = trigger.first_state(NOON - 30 * HOUR)
        question = whatif.Question.of(trigger, state, from_millis(DOWN), from_millis(UP))
        answer = question.ask("x", MisfirePolicy(instruction))
        shown = answer.timeline
        told = {(o.scheduled, str(o.outcome), o.fire_time) for o in shown.occurrences if o.scheduled <= NOW}
        found = {
            (o.scheduled, str(o.outcome), o.fire_time)
            for o in past.occurrences
            if shown.start <= o.scheduled <= shown.end
        }
        assert len(told) >= 3
        assert found == told, instruction


def test_a_dense_schedule_makes_a_small_page_with_counts(site, server):
    task = make_task(interval=every(every=10, period="seconds"), instruction="fire_once_now")
    past = past_of(server, task, begin=NOON - 5 * HOUR)
    past.beat_runs(NOON - 4 * HOUR)
    past.pass_to(NOW - 60_000)
    past.beat_runs(NOW)
    response = timeline_of(site.client("view_periodictask"), task)
    counts = outcomes(response)
    assert counts["fired"] + counts["recovered"] + counts["merged"] == (5 * 60 + 10) * 6
    assert counts["merged"] > 1000
    assert len(response.content) < 100_000


def test_names_are_escaped_everywhere(site, server):
    name = "<script>alert('x')</script> \"q\" & \U0001f642 " + "x" * 150
    task = make_task(name)
    with_an_outage(server, task)
    client = site.client("view_periodictask", "change_periodictask")
    for page in ("timeline", "what-if"):
        text = get(client, task, page).content.decode()
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert" in text
        assert len(pictures(text)) == (2 if page == "timeline" else 6)


def test_a_strict_content_security_policy_lets_everything_through(site, server):
    task = make_task()
    with_an_outage(server, task)
    client = site.client("view_periodictask")
    for page in ("timeline", "what-if"):
        text = get(client, task, page).content.decode()
        assert "celery_misfire/picture.css" in text
        assert not re.search(r"<style| style=|<script>| on[a-z]+=", text)


def test_a_log_that_begins_later_says_from_when_on_it_knows(site, server):
    task = make_task()
    past = past_of(server, task, begin=NOON - 5 * HOUR)
    past.beat_runs(NOW)
    response = timeline_of(site.client("view_periodictask"), task)
    assert "History starts Tue 10 Mar, 08:00." in notes(response)
    # The picture begins there as well.
    shown = response.context_data["timeline"]
    assert shown.start == shown.known_from


def test_of_a_log_that_is_too_long_the_newest_lines_are_read(site, server, monkeypatch):
    from celery_misfire.contrib.django import state

    monkeypatch.setattr(state, "TIMELINE_LINES", 10)
    task = make_task()
    with_an_outage(server, task)
    response = timeline_of(site.client("view_periodictask"), task)
    assert "History starts" in notes(response)
    rows = [row for row in response.context_data["timeline"].rows if row.kind == "fired"]
    assert rows[-1].scheduled == "Tue 10 Mar, 13:00"


def test_a_page_asks_redis_a_few_times_only(site, server):
    tasks = [make_task(), *(make_task(f"other {n}") for n in range(5))]
    with_an_outage(server, *tasks)
    client = site.client("view_periodictask")
    redis_client = server.client()
    redis_client.config_resetstat()
    timeline_of(client, tasks[0])
    asked = {name: stats["calls"] for name, stats in redis_client.info("commandstats").items()}
    assert asked.get("cmdstat_xrange", 0) <= 2
    assert asked.get("cmdstat_hmget") == 1
    # The two calls read the beats, and what they are asked to do.
    assert asked.get("cmdstat_hgetall", 0) <= 2


@pytest.fixture
def elsewhere(site: AdminSite, redis_server: RedisServer) -> Iterator[RedisServer]:
    """A Redis for one test alone, which the site reads."""
    before = site.app.conf.misfire_redis_url
    site.app.conf.update(misfire_redis_url=redis_server.url)
    yield redis_server
    site.app.conf.update(misfire_redis_url=before)


def test_without_redis_the_pages_say_so_and_do_not_hang(site, elsewhere, monkeypatch):
    from celery_misfire.contrib.django import state

    task = make_task()
    with_an_outage(elsewhere, task)
    monkeypatch.setattr(state, "READ_TIMEOUT", 1.0)
    client = site.client("view_periodictask")
    elsewhere.freeze()
    try:
        for page in ("timeline", "what-if"):
            began = time.monotonic()
            response = get(client, task, page)
            assert response.status_code == 200
            assert "Redis does not answer" in problems(response)
            assert time.monotonic() - began < 10
    finally:
        elsewhere.thaw()
    elsewhere.kill()
    response = timeline_of(client, task)
    assert "Redis does not answer" in problems(response)
    # The expected times can be computed all the same.
    assert outcomes(response) == {"None": 6}


def test_what_should_have_run_by_now_is_overdue(site, server):
    task = make_task()
    past = past_of(server, task)
    past.beat_runs(NOON - 2 * HOUR - MINUTE)
    response = timeline_of(site.client("view_periodictask"), task)
    assert "3 runs are overdue. Beat is down or overloaded." in problems(response)
    assert outcomes(response) == {"fired": 21, "overdue": 3, "None": 6}
    assert "No sign of life: Tue 10 Mar, 10:00" in response.content.decode()


@pytest.mark.parametrize(
    ("threshold", "late_by", "is_overdue"),
    [
        (5, 30, True),
        (300, 30, False),
        (300, 120, False),
        (300, 300, True),
        (None, 30, False),
        (None, 60, True),
    ],
)
def test_the_list_and_the_timeline_agree_on_what_is_overdue(
    site, server, monkeypatch, threshold, late_by, is_overdue
):
    from celery_misfire.contrib.django import moments
    from celery_misfire.contrib.django.models import MisfirePolicy as PolicyRow

    task = make_task()
    PolicyRow.objects.create(periodic_task=task, threshold=threshold)
    past_of(server, task).beat_runs(NOON - MINUTE)
    monkeypatch.setattr(moments, "now", lambda: NOON + late_by * 1000)
    client = site.client("view_periodictask")
    listed = client.get("/admin/django_celery_beat/periodictask/").content.decode()
    response = timeline_of(client, task)
    shown = response.context_data["timeline"]
    silence = [o for o in shown.outages if o.end == shown.now]
    assert ('class="misfire-overdue"' in listed) is is_overdue
    assert ("1 run is overdue" in problems(response)) is is_overdue
    assert bool(silence) is is_overdue


def test_a_task_that_is_disabled_new_or_edited_says_so(site, server):
    from django_celery_beat.models import CrontabSchedule

    disabled, edited, new = make_task("disabled"), make_task("edited"), make_task("new")
    with_an_outage(server, disabled, edited)
    disabled.enabled = False
    disabled.save()
    edited.crontab = CrontabSchedule.objects.create(minute="30", timezone="UTC")
    edited.save()
    client = site.client("view_periodictask")
    response = timeline_of(client, disabled)
    assert "This task is disabled" in notes(response)
    assert "This task is disabled" in notes(get(client, disabled, "what-if"))
    assert "None" not in outcomes(response)
    response = timeline_of(client, edited)
    assert "The task was edited, and beat has not seen that yet." in notes(response)
    assert "Next: Tue 10 Mar, 13:30." in response.content.decode()
    assert "Beat has not seen this task yet." in notes(timeline_of(client, new))


def test_a_row_that_can_never_be_scheduled_has_pages_all_the_same(site, server):
    from django_celery_beat.models import PeriodicTask

    PeriodicTask.objects.bulk_create([PeriodicTask(name="none", task="x")])
    task = PeriodicTask.objects.get(name="none")
    client = site.client("view_periodictask")
    for page in ("timeline", "what-if"):
        response = get(client, task, page)
        assert response.status_code == 200
        assert "can never be scheduled" in problems(response)


# -- what if -----------------------------------------------------------------------------------------------


def test_the_first_look_covers_the_next_two_fire_times_under_the_policy_of_the_task(site, server):
    task = make_task(instruction="do_nothing")
    with_an_outage(server, task)
    response = get(site.client("view_periodictask"), task, "what-if")
    assert response.context_data["answer"].sentence == (
        "2 fire times fall into the outage. 2 runs are missed, 14:00 to 15:00. Next: 16:00."
    )
    labels = [other["label"] for other in response.context_data["others"]]
    assert labels == [
        "Smart policy: Run once for all missed",
        "Skip missed runs",
        "Run once for all missed",
        "Run every missed one",
    ]
    assert [other["chosen"] for other in response.context_data["others"]] == [False, True, False, False]


def test_another_instruction_gives_another_answer_and_saves_nothing(site, server):
    from celery_misfire.contrib.django.models import MisfirePolicy as PolicyRow

    task = make_task(instruction="do_nothing")
    with_an_outage(server, task)
    client = site.client("view_periodictask", "change_periodictask")
    window = {"down": "2026-03-10T13:30", "up": "2026-03-10T15:15"}
    first = get(client, task, "what-if", **window)
    second = get(client, task, "what-if", **window, instruction="fire_once_now")
    assert second.context_data["answer"].sentence == (
        "2 fire times fall into the outage. One run is made at 15:15 for 14:00; 15:00 is merged into it. "
        "Next: 16:00."
    )
    assert first.context_data["picture"] != second.context_data["picture"]
    assert PolicyRow.objects.get().instruction == "do_nothing"


def test_a_moved_grid_is_where_beat_has_it(site, server):
    task = make_task(
        interval=every(every=1, period="hours"), instruction="reschedule_now_with_existing_repeat_count"
    )
    with_an_outage(server, task)
    response = get(site.client("view_periodictask"), task, "what-if", instruction="do_nothing")
    # It started again at a quarter past.
    assert "2 runs are missed, 13:15 to 14:15. Next: 15:15." in response.context_data["answer"].sentence


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"down": "soon"}, "Enter a valid date/time."),
        ({"up": "2026-03-09T00:00"}, "The outage has to end after it begins."),
        ({"instruction": "fire_later"}, "Select a valid choice."),
        ({"threshold": "much"}, "Enter a number."),
    ],
)
def test_wrong_input_is_told_on_the_page(site, server, query, told):
    task = make_task()
    response = get(site.client("view_periodictask"), task, "what-if", **query)
    assert response.status_code == 200
    assert told in response.content.decode()
    assert "answer" not in response.context_data


@pytest.mark.parametrize("schedule", [{"every": 1, "period": "seconds"}, None])
def test_the_longest_outage_that_can_be_chosen_is_answered(site, server, schedule):
    task = make_task(**({"interval": every(**schedule)} if schedule else {}))
    client = site.client("view_periodictask")
    begins = "2026-03-10T14:00"
    pages = {f"django_celery_beat/periodictask/{task.pk}": 2126, "celery_misfire/fleet": 2027}
    for page, year in pages.items():
        for last, is_too_long in ((year, False), (year + 1, True), (8999, True)):
            window = {"down": begins, "up": f"{last}-03-10T14:00"}
            text = client.get(f"/admin/{page}/what-if/", window).content.decode()
            assert ("Choose an outage of at most" in text) is is_too_long, (page, last)
            assert "Choose a date" not in text


def test_an_outage_of_any_length_is_answered(site, server):
    task = make_task(interval=every(every=1, period="seconds"))
    window = {"down": "2026-03-10T14:00", "up": "2029-03-10T14:00"}
    response = get(site.client("view_periodictask"), task, "what-if", **window)
    assert "94,694,401 fire times fall into the outage." in response.context_data["answer"].sentence
    assert len(response.content) < 100_000


def test_the_past_of_a_task_is_not_invented(site, server):
    task = make_task()
    client = site.client("view_periodictask")
    # Beat has never seen it.
    response = get(client, task, "what-if", down="2026-03-09T00:00", up="2026-03-09T12:00")
    assert "Choose an outage that ends later." in response.content.decode()
    # One o'clock was before that, and stands for nothing that was.
    response = get(client, task, "what-if", down="2026-03-10T12:30", up="2026-03-10T14:30")
    assert response.context_data["answer"].sentences[0] == "1 fire time falls into the outage."
    response = get(client, task, "what-if")
    assert min(o.scheduled for o in response.context_data["timeline"].occurrences) > NOW


def test_the_policy_that_was_tried_is_the_one_that_the_form_begins_with(site, server):
    from html import unescape

    task = make_task()
    edit = ("view_periodictask", "change_periodictask", "add_misfirepolicy")
    client = site.client(*edit)
    policy = {"instruction": "ignore_misfire_policy", "threshold": "7", "max_catch_up": "3"}
    text = get(client, task, "what-if", **policy).content.decode()
    link = re.search(r'href="([^"]*misfire_instruction[^"]*)">Use this policy', text)
    assert link
    form = client.get(unescape(link[1]).partition("#")[0]).content.decode()
    assert re.search(r'name="misfire_policy-0-threshold" value="7"', form)
    assert re.search(r'name="misfire_policy-0-max_catch_up" value="3"', form)
    assert '<option value="ignore_misfire_policy" selected>' in form


def test_a_day_of_the_past_can_be_chosen_and_the_overdue_are_not_on_it(site, server):
    task = make_task()
    past = past_of(server, task, begin=NOON - 60 * HOUR)
    past.beat_runs(NOON - 2 * HOUR - MINUTE)
    client = site.client("view_periodictask")
    response = get(client, task, "timeline", day="2026-03-08")
    shown = response.context_data["timeline"]
    assert outcomes(response) == {"fired": 23}
    assert (shown.date_and_time(shown.start), shown.date_and_time(shown.end)) == (
        "Sun 8 Mar, 01:00",
        "Mon 9 Mar, 00:00",
    )
    text = response.content.decode()
    assert "?day=2026-03-07" in text
    assert "?day=2026-03-09" in text
    # A day that has not been, or is none: the last 24 hours.
    for day in ("2026-03-10", "2027-01-01", "soon", "0001-01-01", "9999-12-31"):
        assert "overdue" in outcomes(get(client, task, "timeline", day=day))


def test_a_year_is_told_that_is_not_this_one(site, server, monkeypatch):
    from celery_misfire.contrib.django import moments

    task = make_task()
    past_of(server, task).beat_runs(NOW)
    monkeypatch.setattr(moments, "now", lambda: NOW + 330 * 24 * HOUR)
    response = get(site.client("view_periodictask"), task, "timeline", day="2026-03-10")
    assert response.context_data["timeline"].rows[0].scheduled.startswith("10 Mar 2026, ")


def test_the_sun_at_78_degrees_north_is_asked_as_seldom_as_can_be(site, server):
    from celery.schedules import solar
    from django_celery_beat.models import SolarSchedule

    sunrise = SolarSchedule.objects.create(event="sunrise", latitude=78.2, longitude=15.6)
    task = make_task(crontab=None, solar=sunrise)
    asked = []
    real = solar.remaining_estimate

    def counted(self, last_run_at):
        asked.append(last_run_at)
        return real(self, last_run_at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solar, "remaining_estimate", counted)
        get(site.client("view_periodictask"), task, "what-if")
    # Each takes some 10 ms there, as the sun is months away.
    assert len(asked) < 150


# -- who may look ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["timeline", "what-if"])
def test_only_who_may_see_the_task_sees_its_pages(site, server, page):
    from django.test import Client

    task = make_task()
    answer = get(Client(), task, page)
    assert (answer.status_code, answer.url.startswith("/admin/login/")) == (302, True)
    assert get(site.client(), task, page).status_code == 403
    assert get(site.client("view_missedfire"), task, page).status_code == 403
    looks = get(site.client("view_periodictask"), task, page)
    changes = get(site.client("change_periodictask"), task, page)
    assert looks.status_code == changes.status_code == 200
    assert "Use this policy" not in looks.content.decode()
    # To change the task is not to change its policy.
    assert "Use this policy" not in changes.content.decode()
    both = get(site.client("change_periodictask", "add_misfirepolicy"), task, page)
    assert ("Use this policy" in both.content.decode()) == (page == "what-if")


@pytest.mark.parametrize("page", ["timeline", "what-if"])
def test_a_task_that_is_not_there_is_not_found(site, server, page):
    client = site.client("view_periodictask")
    for key in ("4711", "x", "_5B", "1/2"):
        response = client.get(f"/admin/django_celery_beat/periodictask/{key}/{page}/")
        assert response.status_code == 404
