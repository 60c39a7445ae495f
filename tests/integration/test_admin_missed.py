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

from celery_misfire import fire
from celery_misfire.events import Sent, SentTogether
from celery_misfire.misfire import to_millis
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
    assert text.count(">Run this occurrence<") == 3
    assert "Run these 3 occurrences in order" in text


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
    assert text.count(">Run this occurrence<") == 100
    assert f"And {count - 100} more." in text


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
    assert log.count("misfired. Beat was not running. Do nothing until the next fire time: 2 missed.") == 1
    for words in (
        "A beat began to lead",
        "missed. Beat was not running.",
        "later version",
    ):
        assert words in log
    # One by itself, and one together with that of another entry.
    assert log.count("was sent (fired)") == 2


def test_without_redis_the_page_is_there_without_the_log(site: AdminSite) -> None:
    hourly()
    record = missed(count=2)
    with site.settings(misfire_redis_url="redis://:secret@127.0.0.1:1/0"):
        text = page(site.client(*RUN), f"{LIST}{record.pk}/change/")
    assert "The log cannot be read at the moment" in text
    assert text.count(">Run this occurrence<") == 2
    assert "secret" not in text


# -- running -----------------------------------------------------------------------------------------------


def test_an_occurrence_is_sent_as_beat_would_have_sent_it_with_its_original_time(site: AdminSite) -> None:
    from celery_misfire.contrib.django.models import OccurrenceRun

    hourly(queue="slow", priority=3, headers='{"x": 1}', expire_seconds=600)
    record = missed()
    client = site.client(*RUN)
    question = page(client, f"{LIST}run/?run={name_of(record)}")
    assert "Run this occurrence?" in question
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
    assert "1 occurrence had been run already." in run(bob, name_of(record))
    assert "1 occurrence had been run already." in run(ann, name_of(record))
    assert len(sent(site)) == 1
    text = page(bob, f"{LIST}{record.pk}/change/")
    assert re.search(r"by user0 at .*, task id ", text)
    assert "Run this occurrence" not in text
    assert "There is nothing to run" in page(bob, f"{LIST}run/?run={record.pk}")


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
    names = re.findall(r'name="run" value="([^"]*)"', question)
    assert len(names) == 3
    assert "3 occurrences were sent." in run(client, *names)
    assert times(sent(site)) == ["09:00", "08:00", "10:00", "11:00"]


def test_the_action_asks_first_and_runs_the_selected_oldest_first(site: AdminSite) -> None:
    hourly()
    records = [missed(first=NINE + n * HOUR) for n in (2, 0, 1)]
    client = site.client(*RUN)
    chosen = {"action": "run_selected", "_selected_action": [record.pk for record in records]}
    question = client.post(LIST, chosen, follow=True)
    assert sent(site) == []
    names = re.findall(r'name="run" value="([^"]*)"', question.content.decode())
    run(client, *names)
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
    with CaptureQueriesContext(connection) as queries:
        text = page(client, f"{LIST}run/?" + "&".join(f"run={record.pk}" for record in records))
    assert text.count("10:00:00+01:00") == 30
    assert len(queries) < 20


def test_too_many_are_refused_before_anything_is_sent(site: AdminSite) -> None:
    hourly()
    records = [missed(first=NINE + n * HOUR) for n in range(101)]
    client = site.client(*RUN)
    chosen = {"action": "run_selected", "_selected_action": [record.pk for record in records]}
    assert "Select 100 records at most" in client.post(LIST, chosen, follow=True).content.decode()


def test_who_may_only_look_cannot_run(site: AdminSite) -> None:
    hourly()
    record = missed()
    client = site.client(*SEE)
    assert client.post(f"{LIST}run/", {"run": name_of(record)}).status_code == 403
    assert client.get(f"{LIST}run/?run={record.pk}").status_code == 403
    assert "Run this occurrence" not in page(client, f"{LIST}{record.pk}/change/")
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
    "name", ["", "x", "999999", "999999:1", "{pk}:1", "{pk}:x", "-1:2", "²:1", "{pk}:{pk}:1"]
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
    record = missed("<script>gone</script>")
    client = site.client(*RUN)
    assert "There is no periodic task of this name any more" in page(client, f"{LIST}{record.pk}/change/")
    answer = client.get(f"{LIST}run/?run={record.pk}").content.decode()
    assert "&lt;script&gt;gone" in answer
    assert "<script>gone" not in answer
    assert "nobody knows what to send" in run(client, name_of(record))
    assert sent(site) == []


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
    assert text.count("not sent. The message could not be sent") == 1
    assert "secret" not in text
    assert "3 occurrences were sent." in run(client, *names)
    assert times(sent(site)) == ["08:00", "09:00", "10:00"]


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
        # The row is gone, as if sending had failed after the message had left.
        OccurrenceRun.objects.all().delete()
        run(site.client(*RUN), name_of(record))
        assert len(sent(site)) == 2
        project.worker()
        wait_for(lambda: "is dropped" in project.log("worker"), 60, what="the second message")
        (line,) = wait_for(project.records, 60, what="the run")
    assert line["label"] == "by hand"
    assert line["fire"]["scheduled_fire_time"] == fire.isoformat(NINE)
    assert line["fire"]["outcome"] == "recovered"
    assert line["task_id"] != lost


# -- forgetting --------------------------------------------------------------------------------------------


def purge(*options: str) -> str:
    from django.core.management import call_command

    out = io.StringIO()
    call_command("purge_missed_fires", *options, stdout=out)
    return out.getvalue().strip()


def test_old_records_are_forgotten_with_who_had_them_run(site: AdminSite) -> None:
    from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun

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
    assert purge("--older-than", "12h") == "2 records deleted."
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
