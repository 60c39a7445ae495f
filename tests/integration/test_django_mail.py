"""Mail about a beat that is down, about its return, and about missed runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from celery_misfire.misfire import MisfireInstruction, MissedFire, Reason
from tests.support.admin_site import AdminSite

NOW = time.time_ns() // 1_000_000
FIRST = datetime(2026, 3, 10, 2, 0, tzinfo=UTC)
MISSED = MissedFire(
    entry="nightly",
    task="shop.reports",
    task_id="1",
    first=FIRST,
    last=FIRST + timedelta(hours=3),
    count=4,
    reason=Reason.SCHEDULER_DOWN,
    instruction=MisfireInstruction.DO_NOTHING,
    detected_at=datetime.fromtimestamp(NOW / 1000, UTC),
)
LATE = replace(MISSED, reason=Reason.QUEUE_LATE)
MINUTE = 60_000
OPS = ["ops@example.com"]


@pytest.fixture
def site(admin: AdminSite) -> AdminSite:
    return admin


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often mail was asked for; it is sent when the test says so."""
    from celery_misfire.contrib.django import recording

    asked: list[str] = []
    monkeypatch.setattr(recording, "mail_soon", lambda: asked.append("asked"))
    return asked


@pytest.fixture
def outbox(site: AdminSite, soon: list[str]) -> Iterator[list[Any]]:
    from django.core import mail
    from django.test.utils import override_settings

    with override_settings(EMAIL_BACKEND="django.core.mail.backends.locmem.EmailBackend"):
        mail.outbox = []
        yield mail.outbox


def keep(*found: MissedFire) -> None:
    from celery_misfire.contrib.django.recording import keep

    for record in found:
        keep(record)


def send(minutes: int = 0) -> None:
    from celery_misfire.contrib.django.mail import send_due

    send_due(NOW + 1000 + minutes * MINUTE)


def missed(name: str, **fields: Any) -> MissedFire:
    """Return a record with an id of its own."""
    return replace(MISSED, **{"entry": name, "task_id": f"{name} {fields}", **fields})


def task(name: str, mail_to: str = "") -> Any:
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    from celery_misfire.contrib.django.models import MisfirePolicy

    hourly = IntervalSchedule.objects.get_or_create(every=1, period="hours")[0]
    row = PeriodicTask.objects.create(name=name, task="shop.reports", interval=hourly)
    if mail_to:
        MisfirePolicy.objects.create(periodic_task=row, mail_to=mail_to)
    return row


# -- missed runs -------------------------------------------------------------------------------------------


def test_nobody_gets_mail_who_has_not_asked_for_it(site: AdminSite, outbox: list[Any], soon: list[str]):
    task("nightly", " , ")
    keep(MISSED)
    send()
    assert outbox == []
    with site.settings(misfire_mail_to=OPS):
        keep(missed("other"))
    assert soon[-1:] == ["asked"]


def test_one_mail_tells_of_one_outage_of_all_tasks(site: AdminSite, outbox: list[Any]):
    task("nightly")
    with site.settings(misfire_mail_to=["ops@example.com", "boss@example.com"]):
        keep(MISSED, MISSED, *(missed(f"task {n}") for n in range(9)))
        send()
        send()
    [mail] = outbox
    assert mail.to == ["ops@example.com", "boss@example.com"]
    assert mail.subject == "[Django] 40 missed runs of 10 tasks"
    line = next(line for line in mail.body.splitlines() if "nightly" in line)
    for fact in (" 4 ", "03:00:00+01:00", "06:00:00+01:00", "Beat was not running", "/missedfire/"):
        assert fact in line
    assert sum("Beat was not running" in line for line in mail.body.splitlines()) == 10


def test_the_records_of_one_task_are_one_line_of_the_mail(site: AdminSite, outbox: list[Any]):
    with site.settings(misfire_mail_to=OPS):
        later = FIRST + timedelta(hours=4)
        keep(MISSED, missed("nightly", first=later, last=later, count=1))
        send()
    [mail] = outbox
    assert mail.subject == "[Django] 5 missed runs of nightly"
    [line] = [line for line in mail.body.splitlines() if "nightly" in line]
    assert "03:00:00+01:00 to 2026-03-10 07:00:00+01:00" in line


def test_a_long_table_ends_with_how_many_more(site: AdminSite, outbox: list[Any]):
    from celery_misfire.contrib.django.mail_texts import MOST_ROWS

    with site.settings(misfire_mail_to=OPS):
        keep(*(missed(f"task {n}") for n in range(MOST_ROWS + 7)))
        send()
    [mail] = outbox
    assert "and 7 more" in mail.body
    assert mail.body.count("Beat was not running") == MOST_ROWS


def test_the_links_are_absolute_where_the_site_is_known(site: AdminSite, outbox: list[Any]):
    with site.settings(misfire_mail_to=OPS, misfire_site_url="https://shop.example.com/"):
        keep(MISSED)
        send()
    assert "https://shop.example.com/admin/celery_misfire/missedfire/" in outbox[0].body
    for text in outbox[0].body.split():
        assert "//" not in text.removeprefix("https://"), text


def test_a_deploy_is_no_reason_for_a_mail(site: AdminSite, outbox: list[Any], soon: list[str]):
    with site.settings(misfire_mail_to=OPS):
        keep(replace(MISSED, reason=Reason.RESTARTED, task_id="0"))
        assert soon == []
        keep(MISSED)
        send()
    [mail] = outbox
    assert "4 missed runs" in mail.subject


def test_a_policy_names_others_than_the_setting(site: AdminSite, outbox: list[Any]):
    task("nightly", "me@example.com, you@example.com")
    with site.settings(misfire_mail_to=OPS):
        keep(MISSED, missed("hourly"))
        send()
    assert [(mail.to, mail.subject) for mail in outbox] == [
        (["me@example.com", "you@example.com"], "[Django] 4 missed runs of nightly"),
        (OPS, "[Django] 4 missed runs of hourly"),
    ]


def test_the_next_mail_of_a_task_waits_and_tells_what_was_left_out(site: AdminSite, outbox: list[Any]):
    with site.settings(misfire_mail_to=OPS):
        keep(LATE)
        send()
        keep(missed("nightly", reason=LATE.reason, count=1), missed("other", reason=LATE.reason))
        send(59)
        assert [mail.subject for mail in outbox[1:]] == ["[Django] 4 missed runs of other"]
        keep(missed("nightly", reason=LATE.reason, count=2))
        send(61)
    assert [mail.subject for mail in outbox[2:]] == ["[Django] 3 missed runs of nightly"]


def test_a_later_outage_and_a_new_addressee_do_not_wait(site: AdminSite, outbox: list[Any]):
    row = task("nightly", "me@example.com")
    keep(LATE)
    send()
    keep(missed("nightly", count=7))
    send(1)
    keep(missed("nightly", count=8))
    send(2)
    assert [mail.subject.split()[1] for mail in outbox] == ["4", "7", "8"]
    keep(missed("nightly", reason=LATE.reason, count=9))
    send(3)
    assert len(outbox) == 3
    row.misfire_policy.mail_to = "me@example.com, you@example.com"
    row.misfire_policy.save()
    send(4)
    [mail] = outbox[3:]
    assert mail.to == ["me@example.com", "you@example.com"]
    assert mail.subject.split()[1] == "9"


def test_a_mail_server_that_fails_costs_no_record(
    site: AdminSite, outbox: list[Any], caplog: pytest.LogCaptureFixture
):
    from django.test.utils import override_settings

    from celery_misfire.contrib.django.models import MissedFire as Row

    nobody = {"EMAIL_BACKEND": "django.core.mail.backends.smtp.EmailBackend", "EMAIL_HOST": "127.0.0.1"}
    secret = {"EMAIL_PORT": 1, "EMAIL_HOST_PASSWORD": "canary"}
    with site.settings(misfire_mail_to=OPS):
        keep(MISSED)
        with override_settings(**nobody, **secret):
            send()
        assert Row.objects.get().mailed_at is None
        assert "no mail about misfires: ConnectionRefusedError" in caplog.text
        assert "canary" not in caplog.text
        send(1)
    assert len(outbox) == 1


def test_a_name_cannot_write_headers_or_lines(site: AdminSite, outbox: list[Any]):
    with site.settings(misfire_mail_to=OPS):
        keep(replace(MISSED, entry="a\r\nBcc: all@example.com"))
        send()
    [mail] = outbox
    assert mail.subject == "[Django] 4 missed runs of a Bcc: all@example.com"
    assert mail.message()["Bcc"] is None
    assert not any(line.startswith("Bcc:") for line in mail.body.splitlines())


# -- a beat that is down -----------------------------------------------------------------------------------


def down(*names: str, minutes: int = 0) -> None:
    from celery_misfire.contrib.django.mail import tell_overdue

    tell_overdue(names, NOW + minutes * MINUTE - 2 * MINUTE, NOW + minutes * MINUTE)


def back(minutes: int) -> None:
    from celery_misfire.contrib.django.mail import tell_recovered

    tell_recovered(NOW + minutes * MINUTE)
    send(minutes)


def test_an_outage_is_told_when_it_begins_and_when_it_is_over(site: AdminSite, outbox: list[Any]):
    rows = [task(f"task {n}") for n in range(10)]
    site.plan(*rows, next_fire_time=NOW - 2 * MINUTE)
    with site.settings(misfire_mail_to=OPS, misfire_site_url="https://shop.example.com"):
        down(*(row.name for row in rows))
        [mail] = outbox
        assert mail.subject == "[Django] Beat is down: 10 tasks are overdue"
        lines = [line for line in mail.body.splitlines() if line.startswith("task ")]
        assert len(lines) == 10
        page = f"https://shop.example.com/admin/django_celery_beat/periodictask/{rows[3].pk}/timeline/"
        assert lines[3].endswith(page)
        assert "+01:00" in lines[3]
        assert "https://shop.example.com/admin/celery_misfire/fleet/" in mail.body
        send()
        assert len(outbox) == 1
        # Its misses come one by one; the mail that it is back waits for them and for nothing else.
        after = MISSED.detected_at + timedelta(minutes=3)
        keep(*(missed(row.name, detected_at=after) for row in rows))
        send(3)
        back(4)
    [_, mail] = outbox
    assert mail.subject == "[Django] Beat is back: 40 missed runs"
    assert "for 5\xa0minutes" in mail.body
    assert sum("Beat was not running" in line for line in mail.body.splitlines()) == 10


def test_an_outage_without_missed_runs_is_over_too(site: AdminSite, outbox: list[Any]):
    with site.settings(misfire_mail_to=OPS):
        down("nightly")
        back(3)
        back(4)
        down("nightly", minutes=5)
        back(6)
    told = [mail.subject for mail in outbox]
    assert (
        told
        == [
            "[Django] Beat is down: 1 task is overdue",
            "[Django] Beat is back: no missed runs",
        ]
        * 2
    )


def test_who_hears_of_an_outage_are_those_whose_tasks_wait(site: AdminSite, outbox: list[Any]):
    task("mine", "me@example.com")
    task("not late", "you@example.com")
    with site.settings(misfire_mail_to=OPS):
        down("mine", "another")
        back(3)
    assert [(mail.to, mail.subject.partition(": ")[2]) for mail in outbox] == [
        (["me@example.com"], "1 task is overdue"),
        (OPS, "1 task is overdue"),
        (["me@example.com", *OPS], "no missed runs"),
    ]


def test_an_end_that_nobody_saw_is_not_told_with_the_next_outage(site: AdminSite, outbox: list[Any]):
    with site.settings(misfire_mail_to=OPS):
        down("nightly")
        down("nightly", minutes=60)
        back(63)
    assert [mail.subject.split(":")[0] for mail in outbox] == [
        "[Django] Beat is down",
        "[Django] Beat is down",
        "[Django] Beat is back",
    ]
    assert "for 5\xa0minutes" in outbox[-1].body


class Pauses:
    """Stands for the end of the process: it counts the waits, and makes the mail server answer after some."""

    def __init__(self, answers_after: int) -> None:
        self.waited, self.answers_after = list[float](), answers_after

    def is_away(self) -> bool:
        return len(self.waited) < self.answers_after

    def wait(self, seconds: float) -> bool:
        self.waited.append(seconds)
        return False


@pytest.fixture
def pauses(outbox: list[Any], monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """A mail server that answers at the fourth try; nobody waits for it really."""
    from django.core import mail as django_mail

    from celery_misfire.contrib.django import mail

    pauses, real = Pauses(3), django_mail.send_mail

    def send_mail(*args: Any) -> int:
        if pauses.is_away():
            raise ConnectionRefusedError
        return real(*args)

    monkeypatch.setattr(mail._Waiting, "ends", pauses)
    monkeypatch.setattr(mail, "send_mail", send_mail)
    return pauses


def test_the_mail_that_beat_is_down_is_tried_again_at_growing_intervals(
    site: AdminSite, outbox: list[Any], pauses: Pauses
):
    with site.settings(misfire_mail_to=OPS):
        down("nightly")
        assert len(pauses.waited) == 3
        assert pauses.waited == sorted(set(pauses.waited))
        back(5)
    assert [mail.subject.split(":")[0] for mail in outbox] == [
        "[Django] Beat is down",
        "[Django] Beat is back",
    ]


def test_beat_is_not_said_to_be_down_when_it_is_back_meanwhile(
    site: AdminSite, outbox: list[Any], pauses: Pauses, monkeypatch: pytest.MonkeyPatch
):
    from celery_misfire.contrib.django.mail import tell_recovered

    real = pauses.wait

    def wait(seconds: float) -> bool:
        if len(pauses.waited) == 1:
            tell_recovered(NOW + 2 * MINUTE)
        return real(seconds)

    monkeypatch.setattr(pauses, "wait", wait)
    with site.settings(misfire_mail_to=OPS):
        down("nightly")
        assert len(pauses.waited) == 2
        assert outbox == []
        pauses.waited.append(0)
        send(3)
    # Who has not heard of it yet hears when it was.
    [mail] = outbox
    assert mail.subject == "[Django] Beat is back: no missed runs"
    assert "for 4\xa0minutes" in mail.body


def test_a_mail_server_that_stays_away_is_not_asked_for_ever(
    site: AdminSite, outbox: list[Any], pauses: Pauses, caplog: pytest.LogCaptureFixture
):
    pauses.answers_after = 10**6
    with site.settings(misfire_mail_to=OPS):
        down("nightly")
        assert 3 < len(pauses.waited) < 12
        assert caplog.text.count("no mail about misfires") == len(pauses.waited) + 1
    assert outbox == []


def test_the_mail_about_missed_runs_is_tried_again_too(site: AdminSite, outbox: list[Any], pauses: Pauses):
    from celery_misfire.contrib.django import mail

    with site.settings(misfire_mail_to=OPS):
        keep(MISSED)
        mail._send_when_quiet()
    assert [mail.subject for mail in outbox] == ["[Django] 4 missed runs of nightly"]


def test_alarms_are_forgotten_with_the_records_of_their_time(site: AdminSite, outbox: list[Any]):
    from celery_misfire.contrib.django.models import Alarm
    from celery_misfire.contrib.django.recording import forget

    down("nightly")
    forget(NOW + 60 * MINUTE)
    back(3)
    down("nightly", minutes=5)
    forget(NOW + 2 * MINUTE)
    assert Alarm.objects.count() == 2
    forget(NOW + 60 * MINUTE)
    assert [alarm.over_at for alarm in Alarm.objects.all()] == [None]


def test_nobody_is_told_of_an_outage_who_has_not_asked(site: AdminSite, outbox: list[Any]):
    down("nightly")
    with site.settings(misfire_mail_to=OPS):
        back(3)
    assert outbox == []
