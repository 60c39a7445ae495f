"""Where an entry stands."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from celery_misfire import records
from celery_misfire.misfire import AUTO_THRESHOLD, MisfirePolicy, Trigger
from celery_misfire.records import Pause
from celery_misfire.status import Status, is_current, status_of
from celery_misfire.triggers.kinds import trigger_for

NOW = 1_772_442_000_000
TRIGGER = trigger_for(timedelta(seconds=60))
RECORD = records.first_seen("e", "t", TRIGGER, NOW, from_now=True)
DUE = NOW + 60_000
POLICY = MisfirePolicy()


@pytest.mark.parametrize(
    ("late_by", "overdue"), [(0, False), (1, False), (29_999, False), (30_000, True), (86_400_000, True)]
)
def test_an_entry_is_overdue_from_its_own_threshold_on(late_by: int, overdue: bool):
    threshold = 30_000 if late_by else AUTO_THRESHOLD
    assert status_of(RECORD, TRIGGER, POLICY, DUE + late_by) == Status(True, DUE, late_by, threshold, overdue)


def test_the_policy_has_the_last_word():
    assert not status_of(RECORD, TRIGGER, MisfirePolicy(threshold=300), DUE + 299_999).is_overdue
    assert status_of(RECORD, TRIGGER, MisfirePolicy(threshold=300), DUE + 300_000).is_overdue


def test_an_entry_that_beat_has_not_seen_or_has_planned_by_another_schedule_is_not_known():
    other = trigger_for(timedelta(seconds=61))
    for status in (
        status_of(None, TRIGGER, POLICY, NOW),
        status_of(RECORD, other, POLICY, DUE + AUTO_THRESHOLD),
        status_of(records.removed(RECORD, NOW), TRIGGER, POLICY, DUE + AUTO_THRESHOLD),
    ):
        assert status == Status()


def test_an_entry_that_never_fires_again_is_known_and_late_for_nothing():
    finished = replace(RECORD, state=replace(RECORD.state, next_fire_time=None))
    assert status_of(finished, TRIGGER, POLICY, DUE + AUTO_THRESHOLD) == Status(is_known=True)


def test_where_the_schedule_is_unknown_or_fails_the_default_threshold_holds():
    class Failing:
        fingerprint = RECORD.fingerprint

        def fire_times(self, state: object) -> object:
            raise RuntimeError("at the poles")

    for trigger in (None, Failing()):
        for late_by, overdue in ((999, False), (1_000, True)):
            status = status_of(RECORD, trigger, POLICY, DUE + late_by, default_threshold=1_000)  # type: ignore[arg-type]
            assert status.is_overdue is overdue


def test_what_is_overdue_says_since_when():
    assert status_of(RECORD, TRIGGER, POLICY, DUE + 30_000).overdue_since == DUE
    for moment in (DUE - 1, DUE, DUE + 29_999):
        assert status_of(RECORD, TRIGGER, POLICY, moment).overdue_since is None


def test_a_record_is_current_until_the_schedule_is_edited_or_the_entry_removed():
    assert is_current(RECORD, TRIGGER)
    assert not is_current(RECORD, trigger_for(timedelta(seconds=61)))
    assert not is_current(records.removed(RECORD, NOW), TRIGGER)


def test_a_paused_entry_is_late_for_nothing_and_comes_next_when_the_pause_is_over():
    open_, until = Pause(NOW), Pause(NOW, DUE + 150_000)
    for hold in (False, True):

        def status(pause: Pause, now: int, trigger: Trigger | None = TRIGGER, hold: bool = hold) -> Status:
            record = RECORD if hold else replace(RECORD, paused=pause)
            return status_of(record, trigger, POLICY, now, hold=pause if hold else None)

        assert status(open_, DUE + 99_000) == Status(True, paused=open_)
        assert status(until, DUE + 149_000) == Status(True, DUE + 180_000, paused=until)
        assert status(until, DUE + 149_000, None) == Status(True, None, paused=until)
        # The leader has not seen yet that it is over.
        assert status(until, DUE + 151_000) == Status(True, DUE + 180_000)
        assert status(until, DUE + 210_000).is_overdue
