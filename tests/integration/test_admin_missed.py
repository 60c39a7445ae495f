"""The admin of missed runs: what is told of them, running one after all, and forgetting them."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from celery_misfire import by_hand, fire
from celery_misfire.events import Sent, SentTogether
from celery_misfire.misfire import to_millis
from example_project.child_process import free_port
from tests.support.admin_site import NAMESPACE as ADMIN_NAMESPACE
from tests.support.admin_site import AdminSite, now
from tests.support.processes import NAMESPACE, Message, Project, published, wait_for

LIST = "/admin/celery_misfire/missedfire/"
SEE = ("view_missedfire",)
RUN = (*SEE, "run_missedfire")

HOUR = timedelta(hours=1)
NINE = datetime(2026, 3, 2, 8, tzinfo=UTC)


@pytest.fixture
def site(admin: AdminSite) -> AdminSite:
    return admin


def hourly(name: str = "reports", **fields: Any) -> Any:
    from django_celery_beat.models import CrontabSchedule, PeriodicTask

    crontab = CrontabSchedule.objects.get_or_create(minute="0", timezone="Europe/Berlin")[0]
    defaults = {"task": "shop.reports", "crontab": crontab, "args": '["a"]', "kwargs": '{"b": 2}'}
    return PeriodicTask.objects.create(name=name, **{**defaults, **fields})


def missed(entry: str = "reports", first: datetime = NINE, count: int = 1, **fields: Any) -> Any:
    from django_celery_beat.models import PeriodicTask

    from celery_misfire.contrib.django.models import MissedFire

    step = fields.pop("step", HOUR)
    last = first + (count - 1) * step
    defaults = {
        "task_id": f"{entry} {first}"[:255],
        "task": "shop.reports",
        "last": last,
        "count": count,
        "reason": "scheduler_down",
        "instruction": "do_nothing",
        "detected_at": last + timedelta(minutes=15),
        "periodic_task": PeriodicTask.objects.filter(name=entry).first(),
    }
    return MissedFire.objects.create(entry=entry, first=first, **{**defaults, **fields})


def page(client: Any, url: str) -> str:
    answer = client.get(url)
    assert answer.status_code == 200, url
    return unescape(answer.content.decode())


def name_of(record: Any, moment: datetime = NINE) -> str:
    return f"{record.pk}:{to_millis(moment)}"


def run(client: Any, *names: Any) -> str:
    """Confirm that these are to be run, and return the text of the page that follows."""
    answer = client.post(f"{LIST}run/", {"run": [str(name) for name in names]}, follow=True)
    assert answer.status_code == 200
    return unescape(answer.content.decode())


def confirmed(client: Any, question: Any, url: str = LIST) -> Any:
    """Say yes to the question of an action, and return the page that follows."""
    found = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', question.content.decode())
    data: dict[str, list[str]] = {}
    for name, value in found:
        data.setdefault(name, []).append(value)
    answer = client.post(url, data, follow=True)
    assert answer.status_code == 200
    return answer


def finished(client: Any, answer: Any) -> str:
    """Take the steps of a re-run that are left, as somebody without JavaScript would."""
    while found := re.search(r'data-rerun action="([^"]*)"', answer.content.decode()):
        answer = client.post(found[1], follow=True)
    return unescape(answer.content.decode())


def sent(site: AdminSite) -> list[Message]:
    return published(site.url)


def times(messages: list[Message]) -> list[str]:
    return [message.headers["misfire"]["scheduled_fire_time"][11:16] for message in messages]


# -- seeing ------------------------------------------------------------------------------------------------


def test_the_list_can_be_filtered_searched_and_walked_by_date(site: AdminSite) -> None:
    missed("reports", count=3)
    missed("stocks", task="shop.stocks", reason="capped", instruction="ignore_misfire_policy")
    missed("reports", first=NINE - timedelta(days=400))
    client = site.client(*SEE)
    assert page(client, LIST).count('class="field-count"') == 3
    for query in (
        "?reason__exact=capped",
        "?instruction__exact=ignore_misfire_policy",
        "?task=shop.stocks",
        "?entry=stocks",
        "?q=stock",
        "?detected_at__year=2025",
    ):
        assert page(client, LIST + query).count('class="field-count"') == 1, query
    everything = page(client, LIST)
    assert "Beat was not running" in everything
    assert "2026-03-02 09:00:00+01:00 to 2026-03-02 11:00:00+01:00" in everything
    assert "The clock was set forward" not in everything


@pytest.mark.parametrize(
    ("key", "status"), [("x", 302), ("9" * 5000, 400), ("9" * 30, 400), ("-1", 200), ("9" * 18, 200)]
)
def test_a_task_that_cannot_be_is_no_server_error(site: AdminSite, key: str, status: int) -> None:
    assert site.client(*SEE).get(LIST, {"periodic_task": key}).status_code == status


def test_a_filter_offers_the_most_frequent_values_and_the_chosen_one(site: AdminSite) -> None:
    for n in range(31):
        missed(f"entry {n:02}")
    missed("rare")
    for n in range(31):
        missed(f"entry {n:02}", first=NINE + HOUR)
    client = site.client(*SEE)
    assert page(client, LIST).count("?entry=") == 30
    text = page(client, f"{LIST}?entry=rare&_facets=True")
    assert re.search(r'<li class="selected">\s*<a href="\?[^"]*"[^>]*>\s*rare', text)
    assert text.count('class="field-count"') == 1


def test_nobody_adds_changes_or_deletes_a_record_here(site: AdminSite) -> None:
    from celery_misfire.contrib.django.models import MissedFire

    record = missed()
    client = site.client(superuser=True)
    assert client.get(f"{LIST}add/").status_code == 403
    assert client.post(f"{LIST}{record.pk}/delete/", {"post": "yes"}).status_code == 403
    assert client.post(f"{LIST}{record.pk}/change/", {"entry": "other"}).status_code == 403
    everything = page(client, LIST)
    assert "delete_selected" not in everything
    assert MissedFire.objects.get().entry == "reports"


def test_without_permission_nothing_is_seen_and_nobody_is_let_in_without_login(site: AdminSite) -> None:
    from django.test import Client

    record = missed()
    for url in (LIST, f"{LIST}{record.pk}/change/", f"{LIST}run/?run={record.pk}"):
        assert site.client("view_periodictask").get(url).status_code == 403
        answer = Client().get(url)
        assert answer.status_code == 302
        assert answer["Location"].startswith("/admin/login/")


def test_a_summary_is_expanded_into_its_occurrences(site: AdminSite) -> None:
    hourly()
    text = page(site.client(*RUN), f"{LIST}{missed(count=3).pk}/change/")
    shown = re.findall(r'<th scope="row">(2026-03-02 \d\d:\d\d)', text)
    assert shown == ["2026-03-02 09:00", "2026-03-02 10:00", "2026-03-02 11:00"]
    assert text.count("Re-run the occurrence of") == 3
    assert "Re-run all 3 in order" in text


def test_an_interval_is_expanded_along_the_grid_that_it_had_then(site: AdminSite) -> None:
    from django_celery_beat.models import IntervalSchedule

    every = IntervalSchedule.objects.create(every=7, period="minutes")
    hourly(crontab=None, interval=every)
    record = missed(count=3, step=timedelta(minutes=7))
    text = page(site.client(*RUN), f"{LIST}{record.pk}/change/")
    assert re.findall(r'<th scope="row">2026-03-02 (\d\d:\d\d)', text) == ["09:00", "09:07", "09:14"]


@pytest.mark.parametrize("count", [1000, 5_000_000])
def test_a_hundred_occurrences_are_shown_of_many(site: AdminSite, count: int) -> None:
    from django_celery_beat.models import IntervalSchedule

    seconds = IntervalSchedule.objects.create(every=1, period="seconds")
    hourly(crontab=None, interval=seconds)
    record = missed(count=count, step=timedelta(seconds=1))
    text = page(site.client(*RUN), f"{LIST}{record.pk}/change/")
    assert text.count("Re-run the occurrence of") == 100
    assert f"1 to 100 of {count}" in text
    assert f"Re-run all {count} in order" in text


def test_an_edited_schedule_is_not_taken_for_the_one_that_was_missed(site: AdminSite) -> None:
    hourly()
    record = missed(count=3, step=timedelta(minutes=20))
    text = page(site.client(*RUN), f"{LIST}{record.pk}/change/")
    assert "The schedule was edited since" in text
    assert re.findall(r'<th scope="row">2026-03-02 (\d\d:\d\d)', text) == ["09:00", "09:40"]


def test_the_page_tells_the_log_of_the_outage(site: AdminSite) -> None:
    hourly()
    at = now()
    first, last = at - at % 3_600_000 - 3_600_000, at - at % 3_600_000
    span = {"first": first, "last": last, "count": 2, "reason": "scheduler_down"}
    told = {"instruction": "smart_policy", "resolved": "do_nothing", "outcomes": {"missed": 2}}
    site.write(
        [],
        {"event": "lead", "epoch": 2, "reason": "scheduler_down", "cold": False, "now": at},
        {"event": "misfire", "entry": "reports", **span, "now": at, **told},
        {"event": "misfire", "entry": "other", **span, "now": at, **told},
        {"event": "missed", "entry": "reports", **span, "instruction": "do_nothing", "id": "x"},
        {
            "event": "sent",
            "entry": "reports",
            "outcome": "fired",
            "scheduled": at,
            "fire_time": at,
            "id": "y",
        },
        SentTogether.of(
            [
                Sent(entry=name, outcome="fired", scheduled=at, fire_time=at, id=name)
                for name in ("other", "reports")
            ]
        ).encode(),
        {"event": "a word of a later version", "entry": "reports"},
    )
    moments = [datetime.fromtimestamp(t / 1000, UTC) for t in (first, last, at)]
    record = missed(first=moments[0], last=moments[1], count=2, detected_at=moments[2])
    text = page(site.client(*SEE), f"{LIST}{record.pk}/change/")
    log = text[text.index('id="misfire-log"') :]
    assert log.count("came due late. Beat was not running. Skip missed runs: 2 missed.") == 1
    for words in (
        "Beat started. Before that: Beat was not running.",
        "missed. Beat was not running.",
        "later version",
    ):
        assert words in log
    # One by itself, and one together with that of another entry; here they share a line.
    assert log.count("2 runs were sent (fired)") == 1


def test_many_runs_push_nothing_out_of_the_log_of_the_outage(site: AdminSite) -> None:
    hourly()
    at = now()
    lost = {"first": at, "last": at, "count": 1, "reason": "scheduler_down", "now": at}
    told = {"instruction": "do_nothing", "resolved": "do_nothing", "outcomes": {"missed": 1}}

    def runs(count: int) -> list[dict[str, Any]]:
        run_ = {"event": "sent", "entry": "reports", "outcome": "fired", "fire_time": at}
        return [{**run_, "scheduled": at + n * 1000, "id": f"id {n}"} for n in range(count)]

    late = {"event": "late", "entry": "reports", "scheduled": at, "late_by": 9000}
    site.write(
        [],
        {"event": "lead", "epoch": 2, "reason": "scheduler_down", "cold": False, "now": at},
        {"event": "misfire", "entry": "reports", **lost, **told},
        *runs(60),
        *({**late, "id": f"late {n}"} for n in range(60)),
    )
    moment = datetime.fromtimestamp(at / 1000, UTC)
    text = page(site.client(*SEE), f"{LIST}{missed(first=moment, detected_at=moment).pk}/change/")
    log = text[text.index('id="misfire-log"') :]
    assert "Beat started. Before that" in log
    assert "came due late" in log
    # All of them in one line, which gave way to newer ones of its kind.
    assert log.count("was sent") == 0
    assert log.count("started late by") == 48


def test_without_redis_the_page_is_there_without_the_log(site: AdminSite) -> None:
    hourly()
    record = missed(count=2)
    with site.settings(misfire_redis_url="redis://:secret@127.0.0.1:1/0"):
        text = page(site.client(*RUN), f"{LIST}{record.pk}/change/")
    assert "The log cannot be read at the moment" in text
    assert text.count("Re-run the occurrence of") == 2
    assert "secret" not in text


# -- running -----------------------------------------------------------------------------------------------


def test_an_occurrence_is_sent_as_beat_would_have_sent_it_with_its_original_time(site: AdminSite) -> None:
    from celery_misfire.contrib.django.models import OccurrenceRun

    hourly(queue="slow", priority=3, headers='{"x": 1}', expire_seconds=600)
    record = missed()
    client = site.client(*RUN)
    question = page(client, f"{LIST}run/?run={name_of(record)}")
    assert "Re-run this occurrence?" in question
    assert OccurrenceRun.objects.count() == 0
    assert "1 occurrence was sent." in run(client, name_of(record))
    (message,) = published(site.url, "slow\x06\x163")
    assert (message.task, message.args, message.kwargs) == ("shop.reports", ["a"], {"b": 2})
    assert message.headers["periodic_task_name"] == "reports"
    assert message.headers["x"] == 1
    assert message.headers["expires"] is not None
    told = fire.read(message.headers["misfire"])
    assert told is not None
    assert (told.scheduled_fire_time, told.outcome, told.entry) == (NINE, "recovered", "reports")
    made = OccurrenceRun.objects.get()
    assert made.task_id == message.id != record.task_id
    assert made.requested_by.username == "user0"


def test_without_time_zone_support_it_is_the_same_moment(site: AdminSite) -> None:
    from django.test import override_settings

    with override_settings(USE_TZ=False):
        hourly()
        record = missed(first=NINE.replace(hour=9, tzinfo=None), count=2)
        client = site.client(*RUN)
        assert "2026-03-02 09:00:00+01:00" in page(client, f"{LIST}{record.pk}/change/")
        assert "2 occurrences were sent." in run(client, name_of(record), name_of(record, NINE + HOUR))
        assert "There is nothing to run" in page(client, f"{LIST}run/?run={record.pk}")
        assert purge("--dry-run", "--older-than=1h").startswith("1 ")
        assert page(client, LIST).count('class="field-count"') == 1
    assert [m.headers["misfire"]["scheduled_fire_time"] for m in sent(site)] == [
        fire.isoformat(NINE),
        fire.isoformat(NINE + HOUR),
    ]


def test_an_occurrence_is_run_once_whoever_asks(site: AdminSite) -> None:
    hourly()
    record = missed()
    ann, bob = site.client(*RUN), site.client(*RUN)
    run(ann, name_of(record))
    assert "it was already re-run" in run(bob, name_of(record))
    assert "it was already re-run" in run(ann, name_of(record))
    assert len(sent(site)) == 1
    text = page(bob, f"{LIST}{record.pk}/change/")
    assert re.search(
        r"by user0 at [^<]*,\s*<a href=\"[^\"]*/rerun/\d+/change/\">Re-run \d+</a>,\s*task id ", text
    )
    assert "Re-run the occurrence" not in text
    assert "There is nothing to run" in page(bob, f"{LIST}run/?run={record.pk}")


def test_what_the_command_line_has_run_is_not_run_again_and_no_longer_open(site: AdminSite) -> None:
    from celery_misfire.contrib.django.models import OccurrenceRun

    hourly()
    record = missed(count=2)
    sendable = by_hand.Sendable("reports", "shop.reports")
    id_ = by_hand.task_id(ADMIN_NAMESPACE, "reports", to_millis(NINE))
    by_hand.run_once(site.app, site.store, sendable, id_, to_millis(NINE), "ann@shop")
    client = site.client(*RUN)
    text = run(client, record.pk)
    assert "1 was already re-run; not sent again." in text
    assert "1 occurrence was sent." in text
    assert [message.id for message in sent(site)].count(id_) == 1
    assert len(sent(site)) == OccurrenceRun.objects.count() == 2
    assert "2 missed runs, 0 open." in page(client, LIST)


def test_the_command_line_does_not_run_what_the_admin_has_run(site: AdminSite) -> None:
    hourly()
    run(site.client(*RUN), name_of(missed()))
    [message] = sent(site)
    with pytest.raises(by_hand.AlreadyRun, match="user0"):
        by_hand.check(site.store, message.id)


def test_without_redis_nobody_knows_what_was_run_so_nothing_is_sent(site: AdminSite) -> None:
    from celery_misfire.contrib.django.models import OccurrenceRun

    hourly()
    record = missed()
    client = site.client(*RUN)
    with site.settings(misfire_redis_url=f"redis://127.0.0.1:{free_port()}"):
        text = run(client, record.pk)
    assert "Redis does not answer, so nobody knows whether it was re-run." in text
    assert "Go on" in text
    assert sent(site) == []
    assert not OccurrenceRun.objects.exists()


def test_the_history_says_who_ran_what(site: AdminSite) -> None:
    from django.contrib.admin.models import LogEntry

    hourly()
    record = missed()
    client = site.client(*RUN)
    run(client, name_of(record))
    (entry,) = LogEntry.objects.all()
    assert entry.user.username == "user0"
    assert "2026-03-02 09:00:00+01:00" in entry.change_message
    assert sent(site)[0].id in page(client, f"{LIST}{record.pk}/history/")


def test_all_of_a_summary_are_run_in_their_order_but_for_those_that_have_been(site: AdminSite) -> None:
    hourly()
    record = missed(count=4)
    client = site.client(*RUN)
    run(client, name_of(record, NINE + HOUR))
    question = page(client, f"{LIST}run/?run={record.pk}")
    assert question.count("2026-03-02 ") == 3
    names = re.findall(r'name="run" value="([^"]*)"', question)
    assert "3 occurrences were sent." in run(client, *names)
    assert times(sent(site)) == ["09:00", "08:00", "10:00", "11:00"]


def test_the_action_asks_first_and_runs_the_selected_oldest_first(site: AdminSite) -> None:
    hourly()
    records = [missed(first=NINE + n * HOUR) for n in (2, 0, 1)]
    client = site.client(*RUN)
    chosen = {"action": "run_selected", "_selected_action": [record.pk for record in records]}
    question = client.post(LIST, chosen, follow=True)
    assert sent(site) == []
    confirmed(client, question)
    assert times(sent(site)) == ["08:00", "09:00", "10:00"]


def test_the_question_about_many_records_costs_a_few_queries(site: AdminSite) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    client = site.client(*RUN)
    names = [f"task {n}" for n in range(30)]
    records = []
    for name in names:
        hourly(name)
        records.append(missed(name, count=2))
    # The first page of a process looks at all tables.
    page(client, LIST)
    with CaptureQueriesContext(connection) as queries:
        text = page(client, f"{LIST}run/?" + "&".join(f"run={record.pk}" for record in records))
    assert text.count("10:00:00+01:00") == 30
    assert len(queries) < 20


def test_all_of_a_filter_are_run_in_order_whatever_their_number(site: AdminSite) -> None:
    hourly()
    hourly("other")
    for n in reversed(range(120)):
        missed(first=NINE + n * HOUR)
    missed("other")
    client = site.client(*RUN)
    chosen = {"action": "run_selected", "select_across": "1", "_selected_action": ["1"]}
    question = client.post(f"{LIST}?entry=reports", chosen)
    assert "Re-run these 120 occurrences?" in question.content.decode()
    late = missed(first=NINE - HOUR)
    page_of_it = finished(client, confirmed(client, question, f"{LIST}?entry=reports"))
    assert "120 of 120: 120 sent, 0 not sent." in page_of_it
    # What was found after the question is not part of the answer.
    assert late.runs.count() == 0
    moments = [message.headers["misfire"]["scheduled_fire_time"] for message in sent(site)]
    assert len(moments) == 120
    assert moments == sorted(moments)


def test_every_occurrence_of_a_long_record_can_be_reached_and_run(site: AdminSite) -> None:
    hourly()
    record = missed(count=360)
    client = site.client(*RUN)
    url = f"{LIST}{record.pk}/change/"
    seen: list[str] = []
    text = page(client, url)
    while True:
        seen += re.findall(r'run/\?run=(\d+%3A\d+)"', text)
        later = re.search(r'href="(\?from=\d+)#misfire-occurrences">Later', text)
        if not later:
            break
        text = page(client, url + later[1])
    assert len(seen) == len(set(seen)) == 360
    assert "301 to 360 of 360" in text
    assert "from=" in text
    last = NINE + 359 * HOUR
    assert "1 occurrence was sent." in run(client, name_of(record, last))
    assert sent(site)[0].headers["misfire"]["scheduled_fire_time"] == fire.isoformat(last)


def test_any_range_of_a_record_can_be_run(site: AdminSite) -> None:
    hourly()
    record = missed(count=5)
    client = site.client(*RUN)
    assert 'name="first" id="misfire-first" value="2026-03-02T09:00:00"' in page(
        client, f"{LIST}{record.pk}/change/"
    )
    query = f"?record={record.pk}&first=2026-03-02T10:00:00&last=2026-03-02T12:00:00"
    question = page(client, f"{LIST}run/{query}")
    assert "Re-run these 3 occurrences?" in question
    run(client, *re.findall(r'name="run" value="([^"]*)"', question))
    assert times(sent(site)) == ["09:00", "10:00", "11:00"]
    for wrong in ("record=x", f"record={record.pk}&first=soon&last=now", "record=1&first=&last="):
        assert "There is nothing to run" in page(client, f"{LIST}run/?{wrong}")


def test_who_may_only_look_cannot_run(site: AdminSite) -> None:
    hourly()
    record = missed()
    client = site.client(*SEE)
    assert client.post(f"{LIST}run/", {"run": name_of(record)}).status_code == 403
    assert client.get(f"{LIST}run/?run={record.pk}").status_code == 403
    assert "Re-run the occurrence" not in page(client, f"{LIST}{record.pk}/change/")
    assert "run_selected" not in page(client, LIST)
    assert sent(site) == []


def test_nothing_runs_without_the_token_of_the_form_or_by_get(site: AdminSite) -> None:
    hourly()
    record = missed()
    client = site.client(*RUN, enforce_csrf_checks=True)
    assert client.post(f"{LIST}run/", {"run": name_of(record)}).status_code == 403
    page(client, f"{LIST}run/?run={name_of(record)}")
    assert sent(site) == []


@pytest.mark.parametrize(
    "name",
    [
        *("", "x", "999999", "999999:1", "{pk}:1", "{pk}:x", "-1:2", "²:1", "{pk}:{pk}:1"),
        *("{pk}:999999999999999999", "{pk}:1:0", "{pk}:999999999999999999:1"),
    ],
)
def test_what_was_never_missed_is_not_run(site: AdminSite, name: str) -> None:
    hourly()
    record = missed()
    client = site.client(*RUN)
    name = name.format(pk=record.pk)
    assert "There is nothing to run" in page(client, f"{LIST}run/?run={name}") or name == ""
    run(client, name)
    assert sent(site) == []


@pytest.mark.parametrize("name", ["9" * 30, "9" * 5000, "7:" + "9" * 5000, "٣", "-1", "x:y", ":"])
def test_a_name_of_no_record_is_nothing_to_run(site: AdminSite, name: str) -> None:
    client = site.client(*RUN)
    assert "There is nothing to run" in unescape(client.get(f"{LIST}run/", {"run": name}).content.decode())
    run(client, name)
    assert sent(site) == []


# A day that never comes is one as well, but not to Celery 5.5.
@pytest.mark.parametrize("fields", [{"hour": "99"}, {"minute": "a-b"}])
def test_a_row_whose_schedule_nobody_can_read_is_told(site: AdminSite, fields: Any) -> None:
    from django_celery_beat.models import CrontabSchedule

    hourly(crontab=CrontabSchedule.objects.bulk_create([CrontabSchedule(**fields)])[0])
    text = run(site.client(*RUN), name_of(missed()))
    assert "not sent. The periodic task cannot be sent: its row cannot be read" in text
    assert sent(site) == []


def test_a_task_that_is_gone_is_said_to_be_gone(site: AdminSite) -> None:
    task = hourly("<script>gone</script>")
    record = missed(task.name)
    task.delete()
    # Another row may get the name; it is another task.
    hourly("<script>gone</script>")
    told = "Its periodic task was deleted, so it cannot be sent."
    client = site.client(*RUN)
    assert "<script>gone</script> (deleted)" in page(client, LIST)
    assert told in page(client, f"{LIST}{record.pk}/change/")
    answer = client.get(f"{LIST}run/?run={record.pk}").content.decode()
    assert told in answer
    assert "&lt;script&gt;gone" in answer
    assert "<script>gone" not in answer
    assert "not sent. " + told in run(client, name_of(record))
    assert sent(site) == []


def test_an_entry_of_the_settings_alone_cannot_be_sent_from_here(site: AdminSite) -> None:
    record = missed("in the settings")
    assert "an entry of the settings alone" in page(site.client(*RUN), f"{LIST}{record.pk}/change/")


def test_a_row_that_is_renamed_keeps_its_misses(site: AdminSite) -> None:
    task = hourly("old")
    record = missed("old")
    task.name = "new"
    task.save()
    client = site.client(*RUN, "view_periodictask")
    assert "old (now: new)" in page(client, LIST)
    assert "1 occurrence was sent." in run(client, name_of(record))
    assert sent(site)[0].headers["periodic_task_name"] == "new"


def test_an_end_of_the_schedule_that_is_past_does_not_throw_the_run_away(site: AdminSite) -> None:
    hourly(expires=NINE + HOUR)
    run(site.client(*RUN), name_of(missed()))
    assert sent(site)[0].headers["expires"] is None


@pytest.mark.parametrize("fields", [{"args": "[secret"}, {"headers": "[1]"}, {"args": '{"secret": 1}'}])
def test_a_row_that_cannot_be_sent_is_told_and_stays_as_it_is(site: AdminSite, fields: Any) -> None:
    from celery_misfire.contrib.django.models import OccurrenceRun

    task = hourly(**fields)
    text = run(site.client(*RUN), name_of(missed()))
    task.refresh_from_db()
    assert task.enabled
    if sent(site) == []:
        assert "not sent" in text
        assert "secret" not in text
        assert OccurrenceRun.objects.count() == 0


def test_what_could_not_be_sent_can_be_run_again_and_the_rest_is_left(site: AdminSite) -> None:
    hourly()
    record = missed(count=3)
    names = [name_of(record, NINE + n * HOUR) for n in range(3)]
    client = site.client(*RUN)
    with site.settings(broker_url="redis://:secret@127.0.0.1:1/0"):
        text = run(client, *names)
        assert "0 of 3: 0 sent, 0 not sent." in text
        page_of_it = re.search(r'data-rerun action="([^"]*)"', text)
        assert page_of_it
        text = unescape(client.post(page_of_it[1], follow=True).content.decode())
        assert "The broker does not answer" in text
        assert "secret" not in text
    # The page of the re-run goes on where it was.
    assert "3 of 3: 3 sent, 0 not sent." in finished(client, client.get(page_of_it[1]))
    assert times(sent(site)) == ["08:00", "09:00", "10:00"]


def test_a_broker_that_fails_in_the_middle_loses_nothing_and_doubles_nothing(
    site: AdminSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    from celery_misfire.contrib.django.models import Rerun

    hourly("gone").delete()
    hourly()
    record, names = missed(count=4), []
    real = by_hand.Sender.run_once

    def fails_at_the_third(self: Any, message: Any, id_: str, scheduled: int) -> None:
        if len(names) == 2:
            raise by_hand.BrokerAway("away")
        names.append(id_)
        real(self, message, id_, scheduled)

    client = site.client(*RUN)
    with monkeypatch.context() as patch:
        patch.setattr(by_hand.Sender, "run_once", fails_at_the_third)
        run(client, missed("gone").pk, record.pk)
    rerun = Rerun.objects.get()
    assert (rerun.runs.count(), rerun.finished_at) == (2, None)
    assert "5 of 5: 4 sent, 1 not sent." in finished(client, client.get(f"{RERUNS}{rerun.pk}/change/"))
    assert times(sent(site)) == ["08:00", "09:00", "10:00", "11:00"]


def test_one_that_cannot_be_sent_ends_nothing_and_is_told_before_and_after(site: AdminSite) -> None:
    hourly("a")
    gone, broken = hourly("b"), hourly("c", args="[secret")
    hourly("d")
    records = [missed(name, first=NINE + n * HOUR) for n, name in enumerate("abcd")]
    missed_of_the_past = missed("d", first=NINE + 9 * HOUR, dismissed_at=NINE)
    gone.delete()
    client = site.client(*RUN)
    names = [record.pk for record in (*records, missed_of_the_past)]
    question = page(client, f"{LIST}run/?" + "&".join(f"run={name}" for name in names))
    refused = question[question.index("misfire-refused") : question.index("misfire-confirm")]
    assert "Re-run these 2 occurrences?" in question
    for told in ("was deleted", "'args' is not a JSON list", "It was dismissed. Reopen it first."):
        assert refused.count(told) == 1
    text = run(client, *names)
    assert "5 of 5: 2 sent, 3 not sent." in text
    assert text.count("not sent. ") >= 3
    assert "b, 2026-03-02 10:00:00+01:00: not sent. Its periodic task was deleted" in text
    assert [message.headers["periodic_task_name"] for message in sent(site)] == ["a", "d"]
    assert "secret" not in text
    assert broken.enabled


def test_what_an_edit_has_made_unknown_is_told_before_and_after(site: AdminSite) -> None:
    hourly()
    record = missed(count=5, step=timedelta(minutes=20))
    client = site.client(*RUN)
    question = page(client, f"{LIST}run/?run={record.pk}")
    assert "Re-run these 2 occurrences?" in question
    assert re.search(r">3</td><td>The schedule was edited since", question)
    text = run(client, record.pk)
    assert "2 occurrences were sent." in text
    assert "3 not sent. The schedule was edited since" in text


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [500, pytest.param(5000, marks=pytest.mark.long)])
def test_many_records_are_run_in_order_with_progress(site: AdminSite, count: int) -> None:
    from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun, Rerun

    task = hourly()
    MissedFire.objects.bulk_create(
        MissedFire(
            task_id=f"id {n}",
            entry="reports",
            periodic_task=task,
            task="shop.reports",
            first=NINE + n * HOUR,
            last=NINE + n * HOUR,
            count=1,
            reason="scheduler_down",
            instruction="do_nothing",
            detected_at=NINE + n * HOUR,
        )
        for n in range(count)
    )
    client = site.client(*RUN)
    chosen = {"action": "run_selected", "select_across": "1", "_selected_action": ["1"]}
    question = client.post(LIST, chosen)
    assert f"Re-run these {count} occurrences?" in question.content.decode()
    answer = confirmed(client, question)
    url, seen = answer.request["PATH_INFO"], []
    while True:
        step = client.post(url, headers={"accept": "application/json"}).json()
        assert step["problem"] == ""
        seen.append(step["done"])
        if step["finished"]:
            break
    assert seen == sorted(seen)
    assert step["sent"] == count
    moments = [message.headers["misfire"]["scheduled_fire_time"] for message in sent(site)]
    assert len(moments) == count
    assert moments == sorted(moments)
    assert OccurrenceRun.objects.filter(rerun=Rerun.objects.get()).count() == count


def test_a_message_that_arrived_in_spite_of_an_error_has_the_same_id_the_next_time(
    site: AdminSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    hourly()
    record = missed()
    client = site.client(*RUN)
    real = type(site.app.amqp).send_task_message.__get__(site.app.amqp)

    def arrives_and_fails(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise OperationalError("gone")

    with monkeypatch.context() as patch:
        patch.setitem(vars(site.app.amqp), "send_task_message", arrives_and_fails)
        assert "not sent" in run(client, name_of(record))
    assert "1 occurrence was sent." in run(client, name_of(record))
    first, second = sent(site)
    assert first.id == second.id
    assert first.headers["misfire"]["nonce"] != second.headers["misfire"]["nonce"]


def test_a_worker_runs_it_once_with_its_original_time_and_never_takes_it_for_the_missed_run(
    site: AdminSite, tmp_path: Path
) -> None:
    from celery_misfire.contrib.django.models import OccurrenceRun
    from celery_misfire.store import registers
    from celery_misfire.store.redis_store import RedisStore

    hourly(task="record", args='["by hand"]', kwargs="{}")
    record = missed(task="record")
    lost = fire.task_id(NAMESPACE, "reports", 1, to_millis(NINE))
    with Project(tmp_path, site.url) as project, site.settings(misfire_namespace=NAMESPACE):
        project.configure({}, misfire_instruction="do_nothing", misfire_threshold=0.001)
        RedisStore(site.url, NAMESPACE).settle([lost], registers.Missed("scheduler_down"))
        run(site.client(*RUN), name_of(record))
        # Note and claim are gone, as if sending had failed after the message had left.
        OccurrenceRun.objects.all().delete()
        [claim] = site.store._redis.keys("*by-hand:*")  # type: ignore[union-attr,misc]
        site.store._redis.delete(claim)
        run(site.client(*RUN), name_of(record))
        assert len(sent(site)) == 2
        project.worker()
        wait_for(lambda: "is dropped" in project.log("worker"), 60, what="the second message")
        (line,) = wait_for(project.records, 60, what="the run")
    assert line["label"] == "by hand"
    assert line["fire"]["scheduled_fire_time"] == fire.isoformat(NINE)
    assert line["fire"]["outcome"] == "recovered"
    assert line["task_id"] != lost


# -- dismissing --------------------------------------------------------------------------------------------


DISMISS = (*RUN, "dismiss_missedfire")


def open_cells(client: Any, query: str = "") -> list[str]:
    return re.findall(r'class="field-still_open">([^<]*)<', page(client, LIST + query))


def test_a_record_is_dismissed_with_a_note_and_reopened(site: AdminSite) -> None:
    hourly()
    record = missed(count=2)
    client = site.client(*DISMISS)
    assert open_cells(client) == ["2 of 2"]
    url = f"{LIST}{record.pk}/"
    answer = client.post(f"{url}dismiss/", {"note": "<b>nobody</b> needs it"}, follow=True)
    text = answer.content.decode()
    assert "1 record was dismissed." in text
    assert "&lt;b&gt;nobody&lt;/b&gt; needs it" in text
    assert re.search(r"By user0 at \d{4}-", text)
    # What is dismissed is not offered any more, and not sent.
    assert "Re-run the occurrence" not in text
    assert open_cells(client) == ["dismissed"]
    run(client, record.pk)
    assert sent(site) == []
    assert "nobody" in page(client, f"{url}history/")
    client.post(f"{url}dismiss/", {"reopen": "Reopen"})
    record.refresh_from_db()
    assert (record.dismissed_at, record.dismissed_by, record.note) == (None, None, "")
    assert "Reopened." in page(client, f"{url}history/")
    assert "2 occurrences were sent." in run(client, record.pk)
    assert open_cells(client) == ["all re-run"]


def test_many_are_dismissed_by_the_action_and_the_list_counts_what_is_open(site: AdminSite) -> None:
    hourly()
    records = [missed(first=NINE + n * 10 * HOUR, count=2) for n in range(4)]
    client = site.client(*DISMISS)
    run(client, name_of(records[0]))
    assert "4 records, 8 missed runs, 7 open." in page(client, LIST)
    chosen = {"action": "dismiss_selected", "_selected_action": [record.pk for record in records[1:3]]}
    question = client.post(LIST, chosen)
    assert "Dismiss 2 records?" in question.content.decode()
    assert "7 open." in page(client, LIST)
    confirmed(client, question)
    assert "4 records, 8 missed runs, 3 open." in page(client, LIST)
    assert open_cells(client, "?state=open") == ["2 of 2", "1 of 2"]
    assert open_cells(client, "?state=dismissed") == ["dismissed"] * 2
    run(client, records[0].pk)
    assert open_cells(client, "?state=rerun") == ["all re-run"]
    assert open_cells(client, "?o=2") == ["dismissed", "dismissed", "all re-run", "2 of 2"]


def test_who_may_not_dismiss_is_not_asked_to(site: AdminSite) -> None:
    hourly()
    record = missed()
    client = site.client(*RUN)
    assert client.post(f"{LIST}{record.pk}/dismiss/").status_code == 403
    assert "dismiss" not in page(client, LIST).replace("state=dismissed", "").replace("dismissed", "")
    assert "misfire-dismiss" not in page(client, f"{LIST}{record.pk}/change/")
    chosen = {"action": "dismiss_selected", "_selected_action": [record.pk], "confirmed": str(record.pk)}
    client.post(LIST, chosen)
    allowed = site.client(*DISMISS, enforce_csrf_checks=True)
    assert allowed.post(f"{LIST}{record.pk}/dismiss/").status_code == 403
    assert site.client(*DISMISS).get(f"{LIST}{record.pk}/dismiss/").status_code == 403
    record.refresh_from_db()
    assert record.dismissed_at is None


# -- the page of a re-run ----------------------------------------------------------------------------------


RERUNS = "/admin/celery_misfire/rerun/"


def test_a_re_run_is_seen_by_whoever_sees_missed_runs_and_continued_by_whoever_may_run(
    site: AdminSite,
) -> None:
    from celery_misfire.contrib.django.admin.reruns import Part, previews, start

    hourly()
    rerun = start(previews(site.app, [Part(missed(count=3))]), None)
    url = f"{RERUNS}{rerun.pk}/change/"
    for client in (site.client("view_periodictask"), site.client()):
        assert client.get(url).status_code == client.get(RERUNS).status_code == 403
        assert client.post(url).status_code == 403
    viewer = site.client(*SEE)
    assert "not finished: 0 of 1 records" in page(viewer, RERUNS)
    assert "data-rerun" not in page(viewer, url)
    assert viewer.post(url).status_code == 403
    assert site.client(*RUN, enforce_csrf_checks=True).post(url).status_code == 403
    assert sent(site) == []
    assert "3 of 3: 3 sent, 0 not sent." in finished(site.client(*RUN), site.client(*RUN).get(url))
    assert "finished" in page(viewer, RERUNS)
    assert viewer.get(f"{RERUNS}4711/change/").status_code == 404


def test_two_pages_of_one_re_run_do_not_work_at_the_same_time(site: AdminSite) -> None:
    from celery_misfire.contrib.django import moments
    from celery_misfire.contrib.django.admin.reruns import LONGEST_STEP, Part, previews, start

    hourly()
    rerun = start(previews(site.app, [Part(missed(count=3))]), None)
    rerun.busy_until = moments.as_stored(moments.now()) + LONGEST_STEP
    rerun.save()
    client, url = site.client(*RUN), f"{RERUNS}{rerun.pk}/change/"
    client.post(url)
    assert sent(site) == []
    # It was killed: after a while another one goes on.
    rerun.busy_until = moments.as_stored(moments.now() - 1)
    rerun.save()
    client.post(url)
    assert len(sent(site)) == 3


def test_what_others_ran_after_the_question_is_told(site: AdminSite) -> None:
    from celery_misfire.contrib.django.admin.reruns import Part, previews, start

    hourly()
    record = missed(count=3)
    client = site.client(*RUN)
    run(client, name_of(record, NINE))
    rerun = start(previews(site.app, [Part(record)]), None)
    run(client, name_of(record, NINE + HOUR))
    told = finished(client, client.get(f"{RERUNS}{rerun.pk}/change/"))
    assert "2 of 2: 1 sent, 0 not sent. 1 was already re-run; not sent again." in told
    assert len(sent(site)) == 3


def test_a_step_that_was_killed_sends_nothing_twice(site: AdminSite) -> None:
    from celery_misfire.contrib.django.admin.reruns import Part, previews, start
    from celery_misfire.contrib.django.admin.running import Runner

    task = hourly()
    record = missed(count=3)
    rerun = start(previews(site.app, [Part(record)]), None)
    # It has sent one, and not noted how far it was.
    runner = Runner(site.app, None, rerun)
    runner.run(record, task, to_millis(NINE))
    runner.close()
    client = site.client(*RUN)
    told = finished(client, client.get(f"{RERUNS}{rerun.pk}/change/"))
    assert "3 of 3: 3 sent, 0 not sent." in told
    assert times(sent(site)) == ["08:00", "09:00", "10:00"]


def test_a_step_that_was_killed_before_its_notes_were_kept_sends_under_the_same_ids(site: AdminSite) -> None:
    from celery_misfire.contrib.django.admin.reruns import Part, previews, start
    from celery_misfire.contrib.django.admin.running import Runner
    from celery_misfire.contrib.django.models import OccurrenceRun

    task = hourly()
    record = missed(count=2)
    client = site.client(*RUN)
    rerun = start(previews(site.app, [Part(record)]), None)
    runner = Runner(site.app, None, rerun)
    runner.run(record, task, to_millis(NINE))
    runner.close()
    OccurrenceRun.objects.all().delete()
    told = finished(client, client.get(f"{RERUNS}{rerun.pk}/change/"))
    assert "2 of 2: 2 sent, 0 not sent." in told
    assert times(sent(site)) == ["08:00", "08:00", "09:00"]
    first, again, _ = sent(site)
    assert first.id == again.id


# -- forgetting --------------------------------------------------------------------------------------------


def purge(*options: str) -> str:
    from django.core.management import call_command

    out = io.StringIO()
    call_command("purge_missed_fires", *options, stdout=out)
    return out.getvalue().strip()


def test_old_records_are_forgotten_with_who_had_them_run(site: AdminSite) -> None:
    from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun, Rerun

    hourly()
    today = datetime.now(UTC)
    for days in (1, 89, 91, 400):
        missed(first=today - timedelta(days=days), detected_at=today - timedelta(days=days))
    old = MissedFire.objects.order_by("first").first()
    assert old is not None
    run(site.client(*RUN), name_of(old, old.first))
    assert OccurrenceRun.objects.count() == 1
    assert purge("--dry-run") == "2 records would be deleted."
    with site.settings(misfire_keep_missed=3600 * 24 * 365):
        assert purge() == "1 record deleted."
    assert purge() == "1 record deleted."
    assert OccurrenceRun.objects.count() == 0
    assert Rerun.objects.count() == 1
    Rerun.objects.update(requested_at=today - timedelta(days=1))
    assert purge("--older-than", "12h") == "2 records deleted."
    assert Rerun.objects.count() == 0
    missed(first=today, detected_at=today)
    assert purge("--older-than", "0d") == "1 record deleted."
    assert not MissedFire.objects.exists()


def test_with_wrong_settings_nothing_is_forgotten(site: AdminSite) -> None:
    from django.core.management import CommandError

    missed()
    with site.settings(misfire_keep_missed=-1), pytest.raises(CommandError, match="misfire_keep_missed"):
        purge()


@pytest.mark.parametrize("text", ["90", "-1d", "d", "1y", ""])
def test_an_age_without_a_unit_is_refused(site: AdminSite, text: str) -> None:
    from django.core.management import CommandError

    with pytest.raises(CommandError, match="for example 90d"):
        purge(f"--older-than={text}")
