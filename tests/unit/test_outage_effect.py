"""What an outage does, counted: the same as the simulation that walks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from celery.schedules import crontab, schedule

from celery_misfire.misfire import FITTING, MisfirePolicy, Outcome, Reason, from_millis, to_millis
from celery_misfire.records import Pause
from celery_misfire.schedules import cron, simple
from celery_misfire.simulation import Pauses, effect_of_outage, simulate_trigger
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


HOUR = 3_600_000
HOURLY = trigger_for(crontab(minute=0))


@pytest.mark.parametrize(
    ("own", "hold", "misses", "following"),
    [
        pytest.param(Pause(1, 10 * HOUR), None, [11, 20], 21, id="it ends before"),
        pytest.param(Pause(1, 13 * HOUR), None, [14, 20], 21, id="it ends in the outage"),
        pytest.param(Pause(1, 20 * HOUR), None, [], 21, id="it ends with the outage"),
        pytest.param(Pause(1, 30 * HOUR), None, [], 31, id="it ends later"),
        pytest.param(Pause(1), None, [], None, id="it does not end"),
        pytest.param(None, Pause(1, 13 * HOUR), [14, 20], 21, id="a hold"),
        pytest.param(Pause(1, 13 * HOUR), Pause(1, 16 * HOUR), [17, 20], 21, id="a hold that is longer"),
        pytest.param(Pause(1, 13 * HOUR), Pause(1, 30 * HOUR), [], 31, id="a hold that goes on"),
        pytest.param(Pause(21 * HOUR), None, [11, 20], 21, id="it begins later"),
    ],
)
def test_fire_times_within_a_pause_are_no_occurrences(
    own: Pause | None, hold: Pause | None, misses: list[int], following: int | None
):
    state = HOURLY.first_state(1)
    policy, begin, end = MisfirePolicy("do_nothing"), 10 * HOUR + 1, 20 * HOUR
    found = effect_of_outage(HOURLY, state, policy, begin, end, Pauses(own, hold))
    ends = [moment for lost in found.missed for moment in (lost.first, lost.last)]
    assert ends == [n * HOUR for n in misses]
    assert found.due == found.counts[Outcome.MISSED] == (misses[1] - misses[0] + 1 if misses else 0)
    assert found.next_fire_time == (following and following * HOUR)
    lasts = [pause for pause in (own, hold) if pause and pause.since <= end and not pause.is_over(end)]
    assert found.paused == (lasts[0] if lasts else None)


def test_what_an_outage_made_late_before_a_pause_is_missed_when_that_ends():
    state, pauses = HOURLY.first_state(1), Pauses(Pause(13 * HOUR - 1, 15 * HOUR))
    policy = MisfirePolicy("fire_once_now")
    found = effect_of_outage(HOURLY, state, policy, 10 * HOUR + 1, 17 * HOUR, pauses)
    assert [(lost.first, lost.count, lost.reason) for lost in found.missed] == [(11 * HOUR, 2, Reason.PAUSED)]
    assert [(run.first, run.merged) for run in found.runs] == [(16 * HOUR, 1)]
    assert found.due == 4
    # A run that was late before the outage is missed without it as well.
    later = effect_of_outage(HOURLY, state, policy, 14 * HOUR, 17 * HOUR, pauses)
    assert (later.missed, later.runs, later.due) == ((), found.runs, 2)


@pytest.mark.parametrize(
    ("pause", "first", "due"),
    [
        # What is late from before the pause is judged with it.
        pytest.param(Pause(5 * HOUR - 1, 13 * HOUR), 1, 20, id="it ends in the outage"),
        pytest.param(Pause(5 * HOUR - 1, 10 * HOUR), 11, 10, id="it ends before"),
        pytest.param(Pause(12 * HOUR - 1, 13 * HOUR), 11, 10, id="it begins in the outage"),
        pytest.param(Pause(5 * HOUR - 1, 30 * HOUR), None, 0, id="it ends later"),
        pytest.param(Pause(5 * HOUR - 1), None, 0, id="it does not end"),
    ],
)
def test_a_pause_whose_runs_misfire_is_judged_with_the_outage(pause: Pause, first: int | None, due: int):
    state, policy = HOURLY.first_state(1), MisfirePolicy("fire_once_now")
    pauses = Pauses(pause, None, own_misfires=True)
    found = effect_of_outage(HOURLY, state, policy, 10 * HOUR + 1, 20 * HOUR, pauses)
    expected = [] if first is None else [(first * HOUR, due - 1)]
    assert [(run.first, run.merged) for run in found.runs] == expected
    assert (found.due, found.missed) == (due, ())
