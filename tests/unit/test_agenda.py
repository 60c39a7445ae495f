"""What is coming."""

from __future__ import annotations

from itertools import islice

import pytest
from celery.schedules import crontab

from celery_misfire.agenda import HOUR, MINUTE, Coming, hours, runs
from celery_misfire.schedules import simple
from celery_misfire.triggers.kinds import trigger_for

NOW = 1_772_442_000_000 // HOUR * HOUR


def coming(name: str, schedule: object, seen: int = NOW) -> Coming:
    trigger = trigger_for(schedule)
    state = trigger.first_state(seen)
    assert state.next_fire_time is not None
    return Coming(name, trigger, state, state.next_fire_time)


def test_runs_come_in_their_order_each_with_its_name():
    entries = [coming("ten", 600.0), coming("hour", crontab(minute=30)), coming("late", 9 * 3600.0)]
    found = [((moment - NOW) // MINUTE, name) for moment, name in runs(entries, NOW + HOUR)]
    assert found == [
        (10, "ten"),
        (20, "ten"),
        (30, "hour"),
        (30, "ten"),
        (40, "ten"),
        (50, "ten"),
        (60, "ten"),
    ]
    assert len(list(islice(runs([coming("s", 1.0)], NOW + 10**10), 5))) == 5


@pytest.mark.parametrize("budget", [100_000, 0])
def test_the_hours_have_as_many_runs_as_come(budget: int):
    entries = [coming(f"c{n}", crontab(minute=0)) for n in range(20)]
    entries += [coming(f"g{n}", 60.0 * (n + 1), NOW + n * 1000) for n in range(9)]
    entries.append(coming("counted", simple(interval=300, repeat_count=3)))
    until = NOW + 5 * HOUR + 7 * MINUTE
    found = {hour.start: hour for hour in hours(entries, until, budget)}
    expected: dict[int, int] = {}
    minutes: dict[int, int] = {}
    for moment, _ in runs(entries, until):
        expected[moment // HOUR * HOUR] = expected.get(moment // HOUR * HOUR, 0) + 1
        minutes[moment // MINUTE * MINUTE] = minutes.get(moment // MINUTE * MINUTE, 0) + 1
    assert {start: hour.runs for start, hour in found.items()} == expected
    for start, hour in found.items():
        within = {m: n for m, n in minutes.items() if m // HOUR * HOUR == start}
        if budget:
            assert hour.at_once == max(within.values()) == within[hour.busiest]
        else:
            # Counted by the hour alone.
            assert (hour.busiest, hour.at_once) == (None, 0)


def test_nothing_comes_after_the_end():
    assert hours([coming("x", 3600.0)], NOW + HOUR - 1) == []
    assert list(runs([coming("x", 3600.0)], NOW + HOUR - 1)) == []
