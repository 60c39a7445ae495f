"""A trouble: said once, tried again more and more seldom, reminded of, and over."""

from __future__ import annotations

from celery_misfire.trouble import Trouble


def test_it_is_said_once():
    trouble = Trouble()
    assert [trouble.fail(now) for now in (0.0, 1.0, 100.0)] == [True, False, False]


def test_it_is_said_again_when_a_reminder_is_due():
    trouble = Trouble(remind_every=60.0)
    assert [trouble.fail(now) for now in (0.0, 59.0, 60.0, 61.0, 120.0)] == [True, False, True, False, True]


def test_each_failure_doubles_the_wait_up_to_the_longest():
    trouble = Trouble(first_wait=1.0, longest_wait=5.0)
    waits = []
    for now in range(5):
        trouble.fail(float(now))
        waits.append(trouble.until - now)
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert trouble.is_waiting(8.9)
    assert not trouble.is_waiting(9.0)


def test_a_success_ends_it_and_tells_how_long_it_was():
    trouble = Trouble()
    assert trouble.end(1.0) is None
    trouble.fail(10.0)
    trouble.fail(20.0)
    assert trouble.is_on
    assert trouble.end(35.0) == 25.0
    assert not trouble.is_on
    assert not trouble.is_waiting(35.0)
    assert trouble.end(36.0) is None


def test_after_its_end_it_is_new():
    trouble = Trouble(remind_every=60.0)
    trouble.fail(0.0)
    trouble.end(1.0)
    assert trouble.fail(2.0)
    assert trouble.until == 3.0


def test_one_that_comes_and_goes_is_said_once_in_a_while_if_that_is_wanted():
    trouble = Trouble(remind_every=60.0, quiet_for=60.0)
    assert trouble.fail(0.0)
    assert trouble.end(1.0) == 1.0
    assert not trouble.fail(2.0)
    assert trouble.end(3.0) is None
    assert not trouble.fail(59.0)
    assert trouble.fail(60.0)
    assert trouble.end(61.0) == 2.0


def test_a_wait_that_is_given_replaces_the_doubled_one():
    trouble = Trouble()
    trouble.fail(0.0, wait=7.5)
    assert trouble.until == 7.5
