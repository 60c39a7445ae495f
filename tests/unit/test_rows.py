"""Rows of django-celery-beat become triggers: what fires when."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.test import override_settings

from celery_misfire.misfire import MisfirePolicy, Reason, Trigger, TriggerType, from_millis, plan, to_millis
from celery_misfire.triggers.time_limit import TimeLimit
from tests.support.django_settings import set_up

set_up()

from django_celery_beat.models import (  # noqa: E402
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)

from celery_misfire.contrib.django.rows import (  # noqa: E402
    entry_name,
    from_last_run_at,
    key_in_name,
    to_last_run_at,
    trigger_of,
)

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def row(**fields: Any) -> PeriodicTask:
    return PeriodicTask(name="row", task="record", **fields)


def hourly(**fields: Any) -> PeriodicTask:
    return row(interval=IntervalSchedule(every=1, period="hours"), **fields)


def nightly(**fields: Any) -> PeriodicTask:
    return row(crontab=CrontabSchedule(minute="0", hour="2", timezone=ZoneInfo("Europe/Berlin")), **fields)


def clocked(at: datetime, **fields: Any) -> PeriodicTask:
    return row(clocked=ClockedSchedule(clocked_time=at), one_off=True, **fields)


def sunrise(**fields: Any) -> PeriodicTask:
    return row(solar=SolarSchedule(event="sunrise", latitude=52.5, longitude=13.4), **fields)


def fires(trigger: Trigger, n: int, first_seen: datetime = NOW) -> list[datetime]:
    """Return the first `n` fire times of a trigger, fewer when there are no more."""
    state = trigger.first_state(to_millis(first_seen))
    times, found = trigger.fire_times(state), state.next_fire_time
    result: list[datetime] = []
    while found is not None and len(result) < n:
        result.append(from_millis(found))
        found = times.after(found)
    return result


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("shop.login('bob', password='x')", "shop.login(...) row 7"),
        ("shop.login(1)", "shop.login(...) row 7"),
        # What somebody has written stays.
        ("shop.login", "shop.login"),
        ("shop.login (nightly)", "shop.login (nightly)"),
        ("nightly (all shops)", "nightly (all shops)"),
        ("shop.login()", "shop.login()"),
        ("shop.login(...)", "shop.login(...)"),
        ("shop.login(...) #2", "shop.login(...) #2"),
        ("other('x')", "other('x')"),
        # But for a name that could be taken for the entry of another row.
        ("shop.login(...) row 8", "shop.login(...) row 7"),
        ("other(...) row 8", "shop.login(...) row 7"),
    ],
)
def test_the_entry_of_a_row_has_no_arguments_in_its_name(name: str, shown: str) -> None:
    assert entry_name(PeriodicTask(pk=7, name=name, task="shop.login")) == shown
    assert key_in_name(shown) == (7 if shown.endswith("7") else None)


def test_the_entry_of_a_row_is_found_by_its_key_however_long_its_task() -> None:
    task = "t" * 195
    name = entry_name(PeriodicTask(pk=123_456, name=f"{task}('x')", task=task))
    assert len(name) == 200
    assert key_in_name(name) == 123_456


def test_signatures_show_no_arguments_either() -> None:
    row = PeriodicTask(pk=7, name="[login(user) for user in ['bob']]", task="celery.map")
    assert entry_name(row) == "celery.map(...) row 7"


def test_an_interval_is_a_grid_from_one_interval_after_first_sight() -> None:
    trigger = trigger_of(hourly())
    assert trigger.trigger_type is TriggerType.ENDLESS
    assert fires(trigger, 2) == [NOW + HOUR, NOW + 2 * HOUR]


def test_an_interval_with_a_start_time_is_a_grid_from_there() -> None:
    start = NOW + timedelta(minutes=17)
    assert fires(trigger_of(hourly(start_time=start)), 3) == [start, start + HOUR, start + 2 * HOUR]


def test_a_start_time_long_past_gives_the_grid_its_beat_and_misses_nothing() -> None:
    trigger = trigger_of(hourly(start_time=NOW - timedelta(days=400, minutes=17)))
    assert fires(trigger, 2) == [NOW + timedelta(minutes=43), NOW + timedelta(minutes=103)]


def test_a_start_time_that_was_now_when_it_was_typed_is_due() -> None:
    trigger = trigger_of(hourly(start_time=NOW - timedelta(seconds=20)))
    state = trigger.first_state(to_millis(NOW))
    decided = plan(trigger, state, MisfirePolicy(), to_millis(NOW))
    assert [r.count for r in decided.runs] == [1]
    assert not decided.missed


def test_a_crontab_runs_in_its_own_zone() -> None:
    trigger = trigger_of(nightly())
    assert trigger.trigger_type is TriggerType.CRON
    assert fires(trigger, 1) == [datetime(2026, 3, 11, 1, 0, tzinfo=UTC)]


def test_without_zones_in_crontabs_the_apps_zone_counts_as_in_stock() -> None:
    with override_settings(DJANGO_CELERY_BEAT_TZ_AWARE=False):
        trigger = trigger_of(nightly())
    assert fires(trigger, 1) == [datetime(2026, 3, 11, 2, 0, tzinfo=UTC)]


@pytest.mark.parametrize("make", [nightly, sunrise], ids=["crontab", "solar"])
def test_nothing_fires_before_start_time(make: Callable[..., PeriodicTask]) -> None:
    start = NOW + timedelta(days=3)
    unbounded = fires(trigger_of(make()), 5)
    assert fires(trigger_of(make(start_time=start)), 1) == [t for t in unbounded if t >= start][:1]


@pytest.mark.parametrize("make", [hourly, nightly, sunrise], ids=["interval", "crontab", "solar"])
def test_nothing_fires_from_expires_on(make: Callable[..., PeriodicTask]) -> None:
    unbounded = fires(trigger_of(make()), 4)
    assert fires(trigger_of(make(expires=unbounded[2])), 9) == unbounded[:2]


@pytest.mark.parametrize("make", [hourly, nightly, sunrise], ids=["interval", "crontab", "solar"])
def test_start_time_and_expires_together_leave_what_is_between(make: Callable[..., PeriodicTask]) -> None:
    unbounded = fires(trigger_of(make()), 6)
    # The sun is not asked for the same millisecond twice.
    margin = timedelta(0) if make is hourly else timedelta(minutes=1)
    bounded = trigger_of(make(start_time=unbounded[1] - margin, expires=unbounded[4] - margin))
    minutes = [
        [t.replace(second=0, microsecond=0) for t in times] for times in (fires(bounded, 9), unbounded)
    ]
    assert minutes[0] == minutes[1][1:4]


@pytest.mark.parametrize("make", [hourly, nightly, sunrise], ids=["interval", "crontab", "solar"])
def test_a_row_that_has_expired_never_fires(make: Callable[..., PeriodicTask]) -> None:
    for one_off in (False, True):
        trigger = trigger_of(make(expires=NOW - HOUR, one_off=one_off))
        assert fires(trigger, 1) == []


def test_a_misfire_found_after_expires_is_missed_as_ended() -> None:
    trigger = trigger_of(nightly(expires=NOW))
    state = trigger.first_state(to_millis(NOW - timedelta(days=1)))
    decided = plan(trigger, state, MisfirePolicy(), to_millis(NOW + HOUR))
    assert [(m.count, m.reason) for m in decided.missed] == [(1, Reason.ENDED)]
    assert decided.state.next_fire_time is None


@pytest.mark.parametrize("make", [hourly, nightly, sunrise], ids=["interval", "crontab", "solar"])
def test_one_off_is_the_first_fire_time_alone(make: Callable[..., PeriodicTask]) -> None:
    trigger = trigger_of(make(one_off=True))
    assert trigger.trigger_type is TriggerType.ONCE
    assert fires(trigger, 9) == fires(trigger_of(make()), 1)


@pytest.mark.parametrize("make", [nightly, sunrise], ids=["crontab", "solar"])
def test_one_off_with_a_start_time_is_the_first_from_there(make: Callable[..., PeriodicTask]) -> None:
    start = NOW + timedelta(days=3)
    assert fires(trigger_of(make(one_off=True, start_time=start)), 9) == fires(
        trigger_of(make(start_time=start)), 1
    )


@pytest.mark.parametrize("late", [timedelta(days=2), -timedelta(days=2)], ids=["past", "to come"])
def test_one_off_with_an_interval_and_a_start_time_is_that_moment(late: timedelta) -> None:
    assert fires(trigger_of(hourly(one_off=True, start_time=NOW - late)), 9) == [NOW - late]


@pytest.mark.parametrize("late", [timedelta(days=2), -timedelta(days=2)], ids=["past", "to come"])
def test_a_clocked_time_fires_once_and_also_when_it_is_past(late: timedelta) -> None:
    trigger = trigger_of(clocked(NOW - late))
    assert trigger.trigger_type is TriggerType.ONCE
    assert fires(trigger, 9) == [NOW - late]


def test_a_clocked_time_waits_for_start_time() -> None:
    assert fires(trigger_of(clocked(NOW, start_time=NOW + HOUR)), 9) == [NOW + HOUR]


def test_a_one_off_that_has_run_is_complete() -> None:
    trigger = trigger_of(hourly(one_off=True))
    state = trigger.first_state(to_millis(NOW))
    after = plan(trigger, state, MisfirePolicy(), to_millis(NOW + HOUR)).state
    assert (after.next_fire_time, after.previous_fire_time) == (None, to_millis(NOW + HOUR))


@pytest.mark.parametrize(
    "changed",
    [
        {"start_time": NOW},
        {"expires": NOW},
        {"one_off": True},
        {"start_time": NOW, "one_off": True},
        {"crontab": CrontabSchedule(minute="0", hour="2", timezone=ZoneInfo("Europe/Paris"))},
    ],
    ids=["start_time", "expires", "one_off", "both", "zone"],
)
def test_an_edit_of_the_schedule_changes_the_fingerprint(changed: dict[str, Any]) -> None:
    before = nightly()
    edited = nightly(**{k: v for k, v in changed.items() if k != "crontab"})
    edited.crontab = changed.get("crontab", edited.crontab)
    assert trigger_of(before).fingerprint == trigger_of(nightly()).fingerprint
    assert trigger_of(before).fingerprint != trigger_of(edited).fingerprint


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (row(), "no schedule"),
        (row(interval=IntervalSchedule(every=0, period="hours")), "at least a millisecond"),
        (row(interval=IntervalSchedule(every=500, period="microseconds")), "at least a millisecond"),
        (row(clocked=ClockedSchedule(clocked_time=None)), "no time"),
        (row(crontab=CrontabSchedule(hour="25")), "25"),
        (row(interval=IntervalSchedule(every=5, period="lustra")), "lustra"),
        (row(interval=IntervalSchedule(every=2**31 - 1, period="days")), "2147483647"),
    ],
    ids=["none", "zero", "too short", "no time", "bad crontab", "no unit", "too long"],
)
def test_a_row_that_cannot_be_scheduled_says_why(wrong: PeriodicTask, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        trigger_of(wrong)


@pytest.mark.parametrize("use_tz", [True, False])
def test_moments_in_a_row_mean_what_django_means_by_them(use_tz: bool) -> None:
    with override_settings(USE_TZ=use_tz, TIME_ZONE="Asia/Tokyo"):
        at = NOW if use_tz else datetime(2026, 3, 10, 21, 0)
        assert fires(trigger_of(clocked(at)), 1) == [NOW]
        assert fires(trigger_of(hourly(start_time=at)), 1) == [NOW]
        assert fires(trigger_of(hourly(expires=at)), 1, NOW - HOUR - timedelta(minutes=1)) == [
            NOW - timedelta(minutes=1)
        ]


@pytest.mark.parametrize(
    ("use_tz", "tz_aware", "written"),
    [
        (True, True, NOW),
        (True, False, NOW),
        # Django-celery-beat writes them like this: in the database's zone, and with datetime.utcnow().
        (False, True, datetime(2026, 3, 10, 21, 0)),
        (False, False, datetime(2026, 3, 10, 12, 0)),
    ],
)
def test_last_run_at_is_written_as_stock_writes_it(use_tz: bool, tz_aware: bool, written: datetime) -> None:
    with override_settings(USE_TZ=use_tz, TIME_ZONE="Asia/Tokyo", DJANGO_CELERY_BEAT_TZ_AWARE=tz_aware):
        assert to_last_run_at(to_millis(NOW)) == written
        assert from_last_run_at(written) == to_millis(NOW)
        assert from_last_run_at(None) is None


# -- what may be slow ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    [
        hourly(),
        hourly(one_off=True),
        hourly(start_time=NOW),
        hourly(start_time=NOW, one_off=True),
        nightly(),
        nightly(one_off=True),
        nightly(one_off=True, start_time=NOW, expires=NOW + HOUR),
        clocked(NOW),
    ],
)
def test_a_row_over_an_interval_a_crontab_or_a_clocked_time_is_asked_without_a_thread(
    task: PeriodicTask,
) -> None:
    trigger = trigger_of(task)
    assert not trigger.runs_foreign_code
    assert TimeLimit().limited(trigger) is trigger


@pytest.mark.parametrize(
    "task", [sunrise(), sunrise(start_time=NOW), sunrise(one_off=True), sunrise(one_off=True, expires=NOW)]
)
def test_a_row_over_a_solar_event_is_asked_with_a_time_limit(task: PeriodicTask) -> None:
    trigger = trigger_of(task)
    assert trigger.runs_foreign_code
    assert TimeLimit().limited(trigger) is not trigger
