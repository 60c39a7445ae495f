"""What beat says of a broker that fails, comes back, and fails again."""

from __future__ import annotations

import logging

import pytest

from celery_misfire.exceptions import BrokerUnavailable
from celery_misfire.leadership.broker_link import REMIND_EVERY, BrokerLink
from celery_misfire.leadership.outages import Outages

PLACE = "amqp://host:5672//"


class Site:
    """A broker and a clock."""

    def __init__(self) -> None:
        self.now, self.is_there = 0.0, True
        self.link = BrokerLink(self._connect, Outages(0), lambda: self.now)

    def _connect(self) -> None:
        if not self.is_there:
            raise BrokerUnavailable("Connection refused", PLACE)

    def connect(self) -> bool:
        return self.link.connect(round(self.now * 1000), lambda: None)


@pytest.fixture
def site() -> Site:
    return Site()


def test_it_is_back_as_soon_as_it_can_be_reached(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    site.is_there = False
    for _ in range(100):
        assert not site.connect()
        site.now += 0.1
    site.is_there, site.now = True, 12.0
    site.now = max(site.now, site.link.next_try)
    assert site.connect()
    failed, back = caplog.messages
    assert failed == (
        f"beat: the broker failed, nothing is sent until it is back. {PLACE}: Connection refused"
    )
    assert back == f"beat: the broker is there again after {site.now:.0f} s: {PLACE}"
    site.link.works()
    assert len(caplog.messages) == 2


def test_one_that_can_be_reached_and_takes_nothing_is_not_said_to_be_back_again_and_again(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    while site.now < 2 * REMIND_EVERY:
        if site.connect():
            site.link.failed(BrokerUnavailable("it takes no messages", PLACE))
        site.now += 0.1
    assert site.connect() or site.now < site.link.next_try
    site.link.works()
    told = ["again" if "is there again" in message else "failed" for message in caplog.messages]
    assert told == ["failed", "again", "failed", "failed", "again"]


def test_one_that_stays_away_is_mentioned_from_time_to_time(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.is_there = False
    while site.now < 10 * REMIND_EVERY:
        site.connect()
        site.now += 0.1
    assert 9 <= len(caplog.messages) <= 11
