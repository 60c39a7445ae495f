"""Which misfires are those of a deploy: each condition by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from celery.schedules import schedule

from celery_misfire.leadership.outages import Outages
from celery_misfire.leadership.restart import Restart
from celery_misfire.misfire import Outcome, Reason
from celery_misfire.records import EntryRecord, Intent, first_seen
from celery_misfire.store.values import CleanStop
from celery_misfire.triggers.kinds import trigger_for

SECOND = 1000
BEGIN = 1_700_000_000_000
#: Beat stopped cleanly 12 s ago, and had sent in time since an hour before.
NOW = BEGIN + 3612 * SECOND
GRACE = 60 * SECOND
TRIGGER = trigger_for(schedule(5))
RESTART = Restart(GRACE, BEGIN)


def record(last: int | None = NOW - 14 * SECOND, **fields: Any) -> EntryRecord:
    known = first_seen("tick", "shop.tick", TRIGGER, BEGIN, from_now=True)
    return replace(known, state=replace(known.state, previous_fire_time=last), **fields)


def explains(known: EntryRecord, scheduled: int = NOW - 9 * SECOND, restart: Restart = RESTART) -> bool:
    return restart.explains(known, TRIGGER.fire_times(known.state), scheduled, NOW)


def test_a_run_that_was_due_while_beat_was_restarted_is_explained_by_that():
    assert explains(record())


@pytest.mark.parametrize(
    ("ago", "is_one"), [(0, True), (60 * SECOND, True), (60 * SECOND + 1, False), (-1, False)]
)
def test_the_take_over_comes_within_the_grace_of_the_clean_stop(ago: int, is_one: bool):
    assert Restart.of(CleanStop(ago, BEGIN), GRACE) == (RESTART if is_one else None)
    assert Restart.of(None, GRACE) is None


@pytest.mark.parametrize(("period", "explained"), [(5, True), (59, True), (3600, False), (86400, False)])
def test_the_next_run_comes_within_the_grace(period: int, explained: bool):
    trigger = trigger_for(schedule(period))
    known = first_seen("tick", "shop.tick", trigger, NOW - (period - 1) * SECOND, from_now=True)
    due = known.state.next_fire_time
    assert due == NOW + SECOND
    known = replace(known, state=replace(known.state, previous_fire_time=due - 2 * period * SECOND))
    restart = Restart(GRACE, known.state.previous_fire_time - 1)
    assert restart.explains(known, trigger.fire_times(known.state), due, due + SECOND) is explained


@pytest.mark.parametrize(("last", "explained"), [(BEGIN + 1, True), (BEGIN, False), (None, False)])
def test_the_entry_has_fired_in_time_since_the_restart_before(last: int | None, explained: bool):
    assert explains(record(last)) is explained


@pytest.mark.parametrize(("late_by", "explained"), [(60 * SECOND, True), (60 * SECOND + 1, False)])
def test_what_is_later_than_the_grace_was_held_up_by_something_else(late_by: int, explained: bool):
    assert explains(record(), NOW - late_by) is explained


def test_what_beat_could_not_send_before_it_stopped_is_no_matter_of_the_restart():
    sent = Intent(NOW - 14 * SECOND, BEGIN, Outcome.FIRED, NOW - 14 * SECOND)
    assert explains(record(intents=(sent,)))
    assert not explains(record(intents=(sent, replace(sent, unsent=True))))


def test_an_entry_that_has_ended_is_an_alarm():
    trigger = trigger_for(schedule(5))
    known = record()
    ended = replace(known, state=replace(known.state, end_time=NOW))
    assert not RESTART.explains(ended, trigger.fire_times(ended.state), NOW - 9 * SECOND, NOW)


def test_without_a_grace_no_restart_is_explained():
    assert not explains(record(), restart=Restart(0, BEGIN))


def test_a_beat_sends_in_time_from_when_it_has_judged_all_that_was_late_at_its_start():
    outages = Outages(0)
    outages.began(Reason.SCHEDULER_DOWN, NOW, None)
    assert outages.in_time_since == NOW
    # With many entries that takes a while, and each batch finds more of them late.
    outages.found_late(NOW - 9 * SECOND, NOW + SECOND)
    outages.found_late(NOW + SECOND, NOW + 2 * SECOND)
    assert outages.in_time_since == NOW + 2 * SECOND
    # This one was late for something else.
    outages.found_late(NOW + 60 * SECOND, NOW + 90 * SECOND)
    assert outages.in_time_since == NOW + 2 * SECOND


def test_another_outage_ends_what_the_restart_explains():
    outages = Outages(0)
    outages.began(Reason.SCHEDULER_DOWN, NOW, RESTART)
    assert outages.restart is RESTART
    outages.note(Reason.BROKER_UNAVAILABLE, NOW + SECOND)
    assert outages.restart is None
