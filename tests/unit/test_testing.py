"""What the package gives to the tests of its users."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab

from celery_misfire import current_fire, simulate
from celery_misfire import fire as fires
from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.misfire import FITTING, MisfirePolicy, TriggerType
from celery_misfire.schedules import simple
from celery_misfire.sending.missed_record import missed_dict, missed_from_dict
from celery_misfire.sending.publisher import _headers
from celery_misfire.testing import Beat, check_config, fire, make_missed

DAY = datetime(2026, 3, 2, tzinfo=UTC)
HOURLY = crontab(minute=0)


def at(hour: int, minute: int = 0) -> datetime:
    return DAY + timedelta(hours=hour, minutes=minute)


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("shop", set_as_current=False)
    yield app
    app.close()


def with_entries(app: Celery, **schedules: Any) -> Celery:
    """Let the app have an entry of each name, with a schedule and an instruction."""
    app.conf.beat_schedule = {
        name: {"task": f"shop.{name}", "schedule": schedule, "misfire": misfire}
        for name, (schedule, misfire) in schedules.items()
    }
    return app


# -- beat --------------------------------------------------------------------------------------------------


def test_an_outage_ends_as_the_instruction_says(app, outage):
    with_entries(
        app,
        reports=(HOURLY, "ignore_misfire_policy"),
        basket=(HOURLY, "fire_once_now"),
        stocks=(HOURLY, "do_nothing"),
    )
    beat = outage(app, start=at(6, 30), down_at=at(8, 30), up_at=at(10, 15), until=at(11))
    assert beat.now == at(11)
    assert beat.sent("reports").outcomes == ["fired", "fired", "recovered", "recovered", "fired"]
    assert [run.scheduled_fire_time for run in beat.sent("basket")] == [at(7), at(8), at(9), at(11)]
    assert [run.fire_time for run in beat.sent("basket")] == [at(7), at(8), at(10, 15), at(11)]
    [missed] = beat.missed()
    assert (missed.entry, missed.first, missed.last) == ("stocks", at(9), at(10))
    assert (missed.count, missed.reason, missed.detected_at) == (2, "scheduler_down", at(10, 15))
    assert beat.counts("basket") == {"fired": 3, "recovered": 1, "merged": 1}
    assert beat.counts("stocks") == {"fired": 3, "missed": 2}
    assert beat.next_fire_time("reports") == at(12)
    assert len(beat.sent()) == 5 + 4 + 3


KINDS: dict[str, Any] = {
    "once": simple(start=at(9)),
    "fixed": simple(start=at(6), interval=3600, repeat_count=9),
    "endless": simple(start=at(6), interval=1800),
    "cron": crontab(minute="*/20"),
}


@pytest.mark.parametrize(
    ("kind", "instruction"), [(kind, i) for kind in KINDS for i in FITTING[TriggerType(kind)]]
)
def test_an_outage_and_simulate_agree(app, outage, kind, instruction):
    with_entries(app, one=(KINDS[kind], str(instruction)))
    times = {"start": at(5, 50), "down_at": at(8), "up_at": at(10, 15), "until": at(13)}
    beat, expected = outage(app, **times), simulate(KINDS[kind], policy=MisfirePolicy(instruction), **times)
    told = [(f.scheduled_fire_time, f.fire_time, f.outcome, f.merged) for f in expected.fires]
    found = [(f.scheduled_fire_time, f.fire_time, f.outcome, max(0, f.missed_count - 1)) for f in beat.sent()]
    assert found == told
    assert [(m.first, m.last, m.count) for m in beat.missed()] == [
        (m.first, m.last, m.count) for m in expected.missed
    ]
    assert beat.next_fire_time("one") == expected.next_fire_time


def test_each_outage_is_told_by_itself(app):
    beat = Beat(with_entries(app, stocks=(HOURLY, "do_nothing")), start=at(0, 30))
    for hour in (2, 6, 12):
        beat.run_until(at(hour, 30))
        beat.down(until=at(hour + 2, 30))
    assert [missed.first for missed in beat.missed("stocks")] == [at(3), at(7), at(13)]
    assert beat.counts("stocks") == {"fired": 8, "missed": 6}


def test_entries_are_paused_and_held_as_from_the_command_line(app):
    entries = {"reports": (HOURLY, "ignore_misfire_policy"), "stocks": (HOURLY, "do_nothing")}
    beat = Beat(with_entries(app, **entries), start=at(8, 30))
    beat.run_until(at(9, 30))
    beat.pause("reports")
    beat.run_until(at(12, 30))
    beat.resume("reports")
    beat.pause("reports", "stocks", until=at(13, 30))
    beat.run_until(at(14, 30))
    beat.hold(until=at(16, 30))
    beat.down(until=at(17, 30))
    assert [run.scheduled_fire_time for run in beat.sent("reports")] == [at(9), at(14), at(17)]
    assert [run.scheduled_fire_time.hour for run in beat.sent("stocks")] == [9, 10, 11, 12, 14]
    assert [missed.first for missed in beat.missed("stocks")] == [at(17)]
    with pytest.raises(KeyError, match="Did you mean 'stocks'"):
        beat.pause("reports", "stock")


def test_a_fire_time_on_the_edge_belongs_to_the_outage(app, outage):
    with_entries(app, reports=(HOURLY, "ignore_misfire_policy"))
    beat = outage(app, start=at(7, 30), down_at=at(9), up_at=at(11))
    assert beat.sent("reports").outcomes == ["fired", "recovered", "recovered", "recovered"]


def test_the_fires_are_those_that_a_worker_reads(app, outage):
    beat = outage(with_entries(app, reports=(HOURLY, "fire_once_now")), down_at=at(8, 30), up_at=at(10, 15))
    told = [fires.read(_headers(message)[fires.HEADER]) for message in beat._messages]
    assert list(beat.sent()) == told
    assert (told[-1].missed_count, told[-1].last_missed_fire_time) == (2, at(10))


def test_beat_reads_the_schedule_again_when_it_comes_back(app):
    beat = Beat(with_entries(app, reports=(HOURLY, "ignore_misfire_policy")), start=at(7, 30))
    with_entries(app, reports=(HOURLY, "do_nothing"), baskets=(HOURLY, "do_nothing"))
    with pytest.raises(KeyError):
        beat.sent("baskets")
    beat.down(until=at(9, 30))
    assert beat.counts("reports") == {"missed": 2}
    assert beat.next_fire_time("baskets") == at(10)


def test_a_year_of_a_daily_entry_is_complete(app):
    beat = Beat(with_entries(app, reports=(crontab(minute=0, hour=3), "do_nothing")), start=at(0))
    beat.run_until(DAY + timedelta(days=365))
    assert beat.counts("reports") == {"fired": 365}


def test_an_entry_that_is_off_drops_late_runs_and_records_nothing(app, outage):
    beat = outage(with_entries(app, noise=(60.0, False)), start=at(8), down_at=at(9), up_at=at(10))
    assert set(beat.sent("noise").outcomes) == {"fired"}
    assert beat.missed() == []


def test_the_policies_and_defaults_of_the_app_count(app, outage):
    app.conf.misfire_instruction = "do_nothing"
    app.conf.misfire_policies = {"reports": "fire_once_now"}
    app.conf.misfire_missed_results = "each"
    app.conf.misfire_instructions = {"once": "fire_now", "fixed": "fire_now", "endless": "fire_now"}
    app.conf.beat_schedule = {n: {"task": n, "schedule": HOURLY} for n in ("reports", "stocks")}
    beat = outage(app, down_at=at(8, 30), up_at=at(10, 15))
    assert beat.sent("reports").outcomes[-1] == "recovered"
    assert [missed.first for missed in beat.missed()] == [at(9), at(10)]


@pytest.mark.parametrize("ask", [Beat.sent, Beat.missed, Beat.counts, Beat.next_fire_time])
def test_a_name_that_no_entry_has_is_an_error_with_the_right_one(app, ask):
    beat = Beat(with_entries(app, reports=(HOURLY, "do_nothing")), start=at(0))
    with pytest.raises(KeyError, match="Did you mean 'reports'"):
        ask(beat, "reprots")


def test_time_goes_forward_and_has_a_zone(app):
    beat = Beat(with_entries(app, reports=(HOURLY, "do_nothing")), start=at(9))
    with pytest.raises(ValueError, match="is past"):
        beat.run_until(at(8))
    with pytest.raises(ValueError, match="needs a time zone"):
        beat.down(until=datetime(2026, 3, 3))
    with pytest.raises(ValueError, match="needs a time zone"):
        Beat(app, start=datetime(2026, 3, 3))


def test_a_wrong_configuration_is_told_with_all_its_problems_but_needs_no_redis(app):
    with_entries(app, reports=(HOURLY, "run_them_all"), stocks=("hourly", "do_nothing"))
    with pytest.raises(MisfireConfigError) as caught:
        Beat(app, start=at(0))
    assert len(caught.value.problems) == 2
    assert "Redis" not in str(caught.value)


# -- a run -------------------------------------------------------------------------------------------------


@pytest.fixture
def told(app) -> Any:
    """A task that returns its fire and its arguments."""

    @app.task(bind=True, name="shop.told", shared=False)
    def told(self: Any, *args: Any) -> Any:
        return current_fire(), self.request.get("misfire") is not None, args

    return told


def test_a_task_reads_its_fire_however_it_is_called(app, told):
    app.conf.task_always_eager = True
    with fire(told, scheduled=at(9), outcome="recovered", missed_count=2, last_missed=at(10)) as expected:
        assert told(1) == told.apply((1,)).get() == told.delay(1).get() == (expected, True, (1,))
    assert expected.scheduled_fire_time == expected.fire_time == at(9)
    assert (expected.entry, expected.outcome, expected.missed_count) == ("shop.told", "recovered", 2)
    assert expected.last_missed_fire_time == at(10)


def test_outside_of_the_block_there_is_no_fire_and_blocks_may_be_nested(app, told):
    with fire(told, scheduled=at(9), entry="outer", fire_time=at(9, 1)) as outer:
        with fire(told, scheduled=at(10)) as inner:
            assert told()[0] == inner
        assert told()[0] == outer
    assert told()[0] is None
    assert (outer.entry, outer.fire_time, outer.missed_count) == ("outer", at(9, 1), 0)


def test_another_task_that_is_called_has_no_fire(app, told):
    @app.task(name="shop.caller", shared=False)
    def caller() -> Any:
        return current_fire(), told()[0]

    with fire(caller, scheduled=at(9)) as expected:
        assert caller() == (expected, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"outcome": "missed"},
        {"scheduled": datetime(2026, 3, 2)},
        {"entry": "x" * 201},
        {"outcome": "recovered", "missed_count": -1},
    ],
)
def test_a_fire_that_beat_would_not_send_is_refused(told, wrong):
    with (
        pytest.raises(ValueError, match=r"outcome|time zone|no fire"),
        fire(told, **{"scheduled": DAY} | wrong),
    ):
        pass  # pragma: no cover
    assert told()[0] is None


# -- a record ----------------------------------------------------------------------------------------------


def test_a_record_is_one_that_a_handler_can_get(told):
    missed = make_missed("reports", task=told, first=at(9), last=at(10), count=2, reason="paused")
    assert missed_from_dict(missed_dict(missed)) == missed
    assert (missed.task, missed.count, missed.reason, missed.detected_at) == (
        "shop.told",
        2,
        "paused",
        at(10),
    )
    with pytest.raises(ValueError, match="bad luck"):
        make_missed(first=at(9), reason="bad luck")


# -- the configuration -------------------------------------------------------------------------------------


def test_a_configuration_without_problems_has_none(app, told):
    app.conf.update(broker_url="redis://", beat_schedule={"a": {"task": told.name, "schedule": 60.0}})
    assert check_config(app) == []
    assert not [line for line in check_config(app, warnings=True) if "no task" in line]


def test_all_problems_are_returned(app):
    with_entries(app, reports=(HOURLY, "run_them_all"), stocks=("hourly", "do_nothing"))
    app.conf.misfire_threshold = "soon"
    problems = check_config(app)
    assert len(problems) == 4
    for part in ("misfire_redis_url", "misfire_threshold", "['reports']", "['stocks']"):
        assert any(part in line for line in problems)


def test_warnings_name_what_beat_would_warn_of_and_tasks_that_are_not_there(app, told):
    app.conf.broker_url = "redis://"
    app.conf.beat_schedule = {
        "renamed": {"task": "shop.tol", "schedule": 60.0, "options": {"countdown": 5}},
    }
    assert check_config(app) == []
    unknown, delayed = sorted(check_config(app, warnings=True), key=lambda line: "countdown" in line)
    assert "['renamed'].task: the app has no task 'shop.tol'. Did you mean 'shop.told'?" in unknown
    assert "['renamed'].options: 'countdown'" in delayed


def test_entries_that_are_added_when_the_app_is_complete_are_checked_too(app, told):
    app.conf.broker_url = "redis://"

    @app.on_after_finalize.connect
    def add(sender: Celery, **_: Any) -> None:
        sender.conf.beat_schedule["late"] = {"task": told.name, "schedule": "hourly"}

    assert ["'late'" in line for line in check_config(app)] == [True]


def test_a_virtual_beat_has_the_entries_that_are_added_when_the_app_is_complete(app, told):
    @app.on_after_finalize.connect
    def add(sender: Celery, **_: Any) -> None:
        sender.add_periodic_task(HOURLY, sender.tasks[told.name].s(), name="late")

    beat = Beat(app, start=at(8, 30))
    beat.run_until(at(9))
    assert beat.sent("late").outcomes == ["fired"]
