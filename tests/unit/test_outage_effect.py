"""What an outage does, counted: the same as the simulation that walks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from celery.schedules import crontab, schedule

from celery_misfire.misfire import FITTING, MisfirePolicy, Outcome, from_millis, to_millis
from celery_misfire.schedules import cron, simple
from celery_misfire.simulation import effect_of_outage, simulate_trigger
from celery_misfire.triggers.kinds import trigger_for

START = datetime(2026, 3, 2, 8, 30, tzinfo=UTC)
SCHEDULES = [
    crontab(minute=0),
    cron("0 0/20 * * * ?"),
    schedule(timedelta(minutes=45)),
    simple(START, interval=3600, repeat_count=7),
    simple(START, interval=3600, repeat_count=2),
    simple(START + timedelta(hours=3)),
]
OUTAGES = [(0, 60), (29, 31), (60, 600), (200, 201), (90, 5000)]


@pytest.mark.parametrize("planned", SCHEDULES, ids=str)
def test_it_counts_what_the_simulation_finds(planned: object):
    trigger = trigger_for(planned)
    state = trigger.first_state(to_millis(START))
    for instruction in FITTING[trigger.trigger_type]:
        policy = MisfirePolicy(instruction, max_catch_up=5, max_lateness=4 * 3600.0)
        for begin, end in OUTAGES:
            down, up = (START + timedelta(minutes=n) for n in (begin, end))
            walked = simulate_trigger(
                trigger, state, policy=policy, start=START, down_at=down, up_at=up, until=up
            )
            counted = effect_of_outage(trigger, state, policy, to_millis(down), to_millis(up))
            late = [f for f in walked.fires if f.fire_time == up]
            for outcome in (Outcome.FIRED, Outcome.RECOVERED):
                assert counted.counts[outcome] == sum(f.outcome is outcome for f in late)
            assert counted.counts[Outcome.MERGED] == sum(f.merged for f in late)
            assert counted.counts[Outcome.MISSED] == sum(lost.count for lost in walked.missed)
            assert [lost.reason for lost in counted.missed] == [lost.reason for lost in walked.missed]
            following = counted.next_fire_time
            assert (None if following is None else from_millis(following)) == walked.next_fire_time
            assert counted.misfired == walked.misfired


def test_a_second_for_a_year_is_counted_at_once():
    trigger = trigger_for(1.0)
    state = trigger.first_state(0)
    year = 366 * 86_400
    found = effect_of_outage(trigger, state, MisfirePolicy("do_nothing"), 10_000, year * 1000)
    assert (found.due, found.counts[Outcome.MISSED]) == (year - 9, year - 9)


def test_a_finished_entry_and_one_that_is_off_lose_nothing():
    trigger = trigger_for(crontab(minute=0))
    state = trigger.first_state(0)
    finished = replace(state, next_fire_time=None)
    assert effect_of_outage(trigger, finished, MisfirePolicy(), 1, 10**9).due == 0
    off = effect_of_outage(trigger, state, None, 1, 10**9)
    assert (off.due > 200, off.runs, off.missed, off.misfired) == (True, (), (), False)


def test_what_makes_no_sense_is_refused():
    trigger = trigger_for(crontab(minute=0))
    state = trigger.first_state(0)
    with pytest.raises(ValueError, match="must end after it begins"):
        effect_of_outage(trigger, state, None, 5, 5)
    with pytest.raises(ValueError, match="fire_now does not fit a schedule of type cron"):
        effect_of_outage(trigger, state, MisfirePolicy("fire_now"), 1, 2)
