"""Mail about a real beat that is killed, from a real worker, and about its return."""

from __future__ import annotations

import email
import email.policy
import time
from email.message import EmailMessage

import pytest

from tests.support.django_project import DjangoProject
from tests.support.processes import wait_for

RATE, THRESHOLD, LEASE = 0.5, 2.0, 2.0
#: What a busy machine may add, in seconds.
TOLERANCE = 10.0
NAMES = [f"task {n}" for n in range(10)]


def mails(site: DjangoProject) -> list[EmailMessage]:
    """Return the mails that have been sent, oldest first."""
    found = sorted((site.directory / "mails").glob("*.log"), key=lambda path: path.stat().st_mtime)
    texts = [text for path in found for text in path.read_text().split("-" * 79) if text.strip()]
    return [email.message_from_string(text.strip(), policy=email.policy.default) for text in texts]


@pytest.mark.takes(25)
@pytest.mark.timeout(180)
def test_an_outage_of_ten_tasks_is_one_mail_and_its_end_another(site: DjangoProject) -> None:
    place = str(site.directory / "mails")
    site.django = {
        "EMAIL_BACKEND": "django.core.mail.backends.filebased.EmailBackend",
        "EMAIL_FILE_PATH": place,
        "ROOT_URLCONF": "tests.support.admin_urls",
    }
    site.configure(
        {},
        misfire_check_rate=RATE,
        misfire_lease_ttl=LEASE,
        misfire_threshold=THRESHOLD,
        misfire_mail_to=["ops@example.com"],
        misfire_site_url="https://shop.example.com",
    )
    for name in NAMES:
        site.add(name, interval=1, misfire={"instruction": "do_nothing", "threshold": THRESHOLD})
    site.worker()
    beat = site.leading_beat()
    site.sees(*NAMES)
    wait_for(lambda: {run["misfire"]["entry"] for run in site.records()} >= {*NAMES}, 60, what="runs")
    assert mails(site) == []
    beat.kill()
    killed = time.time()

    [down] = wait_for(lambda: mails(site), 60, what="the mail that beat is down")
    assert time.time() - killed < 1 + max(THRESHOLD, LEASE) + RATE + TOLERANCE
    assert down["to"] == "ops@example.com"
    assert "Beat is down" in down["subject"]
    text = down.get_content()
    assert "https://shop.example.com/admin/" in text
    # All that ticked each second were late by the same.
    assert all(f"{name} " in text for name in NAMES)
    time.sleep(4 * RATE)
    assert len(mails(site)) == 1

    site.leading_beat()
    wait_for(lambda: len(mails(site)) > 1, 60, what="the mail that beat is back")
    time.sleep(8)
    [_, back] = mails(site)
    assert "Beat is back: " in back["subject"]
    text = back.get_content()
    assert all(f"{name} " in text for name in NAMES)
    assert "Beat was not running" in text
