"""Mail about missed runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from celery_misfire.misfire import MisfireInstruction, MissedFire, Reason
from tests.support.admin_site import AdminSite

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
    detected_at=FIRST,
)


@pytest.fixture
def site(admin: AdminSite) -> AdminSite:
    return admin


@pytest.fixture
def outbox(site: AdminSite) -> Iterator[list[Any]]:
    from django.core import mail
    from django.test.utils import override_settings

    with override_settings(EMAIL_BACKEND="django.core.mail.backends.locmem.EmailBackend"):
        mail.outbox = []
        yield mail.outbox


def keep(record: MissedFire) -> None:
    from celery_misfire.contrib.django.recording import keep

    keep(record)


def policy(name: str, mail_to: str) -> None:
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    from celery_misfire.contrib.django.models import MisfirePolicy

    hourly = IntervalSchedule.objects.create(every=1, period="hours")
    task = PeriodicTask.objects.create(name=name, task="shop.reports", interval=hourly)
    MisfirePolicy.objects.create(periodic_task=task, mail_to=mail_to)


def test_nobody_gets_mail_who_has_not_asked_for_it(site: AdminSite, outbox: list[Any]) -> None:
    policy("nightly", " , ")
    keep(MISSED)
    assert outbox == []


def test_one_mail_tells_of_one_outage_of_one_entry(site: AdminSite, outbox: list[Any]) -> None:
    with site.settings(misfire_mail_to=["ops@example.com", "boss@example.com"]):
        keep(MISSED)
        keep(MISSED)
    [mail] = outbox
    assert mail.to == ["ops@example.com", "boss@example.com"]
    assert mail.subject == "[Django] 4 missed runs of nightly"
    for fact in ("nightly", "shop.reports", "03:00:00+01:00", "06:00:00+01:00", "/missedfire/"):
        assert fact in mail.body


def test_a_deploy_is_no_reason_for_a_mail(site: AdminSite, outbox: list[Any]) -> None:
    with site.settings(misfire_mail_to=["ops@example.com"]):
        keep(replace(MISSED, reason=Reason.RESTARTED, task_id="0"))
        assert outbox == []
        keep(MISSED)
    assert len(outbox) == 1


def test_a_policy_names_others_than_the_setting(site: AdminSite, outbox: list[Any]) -> None:
    policy("nightly", "me@example.com, you@example.com")
    with site.settings(misfire_mail_to=["ops@example.com"]):
        keep(MISSED)
        keep(replace(MISSED, entry="hourly", task_id="2"))
    assert [mail.to for mail in outbox] == [["me@example.com", "you@example.com"], ["ops@example.com"]]


def test_the_next_mail_of_an_entry_waits_and_counts_what_was_left_out(
    site: AdminSite, outbox: list[Any]
) -> None:
    from celery_misfire.contrib.django.mail import MAIL_INTERVAL
    from celery_misfire.contrib.django.models import MissedFire as Row

    with site.settings(misfire_mail_to=["ops@example.com"]):
        keep(MISSED)
        keep(replace(MISSED, task_id="2"))
        keep(replace(MISSED, task_id="3", count=1))
        assert len(outbox) == 1
        told = Row.objects.get(task_id="1")
        Row.objects.filter(pk=told.pk).update(mailed_at=told.mailed_at - MAIL_INTERVAL)
        keep(replace(MISSED, task_id="4"))
    assert len(outbox) == 2
    assert "earlier" not in outbox[0].body
    assert "5 earlier runs" in outbox[1].body


def test_a_mail_server_that_fails_costs_no_record(
    site: AdminSite, outbox: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    from django.test.utils import override_settings

    from celery_misfire.contrib.django.models import MissedFire as Row

    nobody = {"EMAIL_BACKEND": "django.core.mail.backends.smtp.EmailBackend", "EMAIL_HOST": "127.0.0.1"}
    secret = {"EMAIL_PORT": 1, "EMAIL_HOST_PASSWORD": "canary"}
    with site.settings(misfire_mail_to=["ops@example.com"]):
        with override_settings(**nobody, **secret):
            keep(MISSED)
        assert Row.objects.get().mailed_at is None
        assert "no mail about the missed runs of 'nightly': ConnectionRefusedError" in caplog.text
        assert "canary" not in caplog.text
        keep(replace(MISSED, task_id="2"))
    assert len(outbox) == 1


def test_a_name_cannot_write_headers(site: AdminSite, outbox: list[Any]) -> None:
    with site.settings(misfire_mail_to=["ops@example.com"]):
        keep(replace(MISSED, entry="a\r\nBcc: all@example.com"))
    [mail] = outbox
    assert mail.subject == "[Django] 4 missed runs of a Bcc: all@example.com"
    assert mail.message()["Bcc"] is None
