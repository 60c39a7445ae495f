"""The planner: what happens to late fire times, whatever the schedule is."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

import pytest
from celery.schedules import crontab, schedule
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_misfire.misfire import (
    FITTING,
    MisfireInstruction,
    MisfirePolicy,
    Outcome,
    Reason,
    TriggerType,
    from_millis,
    plan,
    resolve,
    to_millis,
)
from celery_misfire.records import occurrences
from celery_misfire.schedules import simple
from celery_misfire.simulation import simulate
from celery_misfire.triggers.kinds import trigger_for

SECOND = 1_000
HOUR = 3600 * SECOND
DAY = datetime(2026, 3, 2, tzinfo=UTC)


def at(hour: int, minute: int = 0) -> datetime:
    return DAY + timedelta(hours=hour, minutes=minute)


# -- the classic example ------------------------------------------------------------------------------------

FIXED = simple(start=at(9), interval=3600, repeat_count=7)
ENDLESS = simple(start=at(9), interval=3600)
CRON = crontab(minute=0, hour="9-17")
ONCE = simple(start=at(9), repeat_count=0)

NOW_EXISTING = "reschedule_now_with_existing_repeat_count"
NOW_REMAINING = "reschedule_now_with_remaining_repeat_count"
NEXT_EXISTING = "reschedule_next_with_existing_count"
NEXT_REMAINING = "reschedule_next_with_remaining_count"

# schedule, instructions, outcome of 9:00 and of 10:00, next, last run and number of runs (fixed only)
CLASSIC = [
    (FIXED, ["smart_policy", NOW_EXISTING], "recovered", "merged", at(11, 15), at(17, 15), 8),
    (FIXED, ["fire_now", NOW_REMAINING], "recovered", "merged", at(11, 15), at(16, 15), 7),
    (FIXED, [NEXT_EXISTING, NEXT_REMAINING, "do_nothing"], "missed", "missed", at(11), at(16), 6),
    (FIXED, ["ignore_misfire_policy"], "recovered", "recovered", at(11), at(16), 8),
    (FIXED, ["fire_once_now"], "recovered", "merged", at(11), at(16), 7),
    (ENDLESS, ["smart_policy", NEXT_EXISTING], "missed", "missed", at(11), None, None),
    (ENDLESS, ["do_nothing", NEXT_REMAINING], "missed", "missed", at(11), None, None),
    (ENDLESS, ["fire_now", NOW_EXISTING, NOW_REMAINING], "recovered", "merged", at(11, 15), None, None),
    (ENDLESS, ["ignore_misfire_policy"], "recovered", "recovered", at(11), None, None),
    (ENDLESS, ["fire_once_now"], "recovered", "merged", at(11), None, None),
    (CRON, ["fire_once_now", "smart_policy"], "recovered", "merged", at(11), None, None),
    (CRON, ["do_nothing"], "missed", "missed", at(11), None, None),
    (CRON, ["ignore_misfire_policy"], "recovered", "recovered", at(11), None, None),
    (ONCE, [NEXT_EXISTING, NEXT_REMAINING, "do_nothing"], "missed", None, None, None, 0),
    (
        ONCE,
        ["smart_policy", "ignore_misfire_policy", "fire_now", "fire_once_now", NOW_EXISTING, NOW_REMAINING],
        "recovered",
        None,
        None,
        at(10, 15),
        1,
    ),
]  # fmt: skip


def outcomes_of(simulation) -> dict[datetime, str]:
    """Return the outcome of each occurrence by its scheduled time; merged and missed ones by their hours."""
    found: dict[datetime, str] = {}
    for fire in simulation.fires:
        found[fire.scheduled_fire_time] = str(fire.outcome)
        for hour in range(1, fire.merged + 1):
            found[fire.scheduled_fire_time + timedelta(hours=hour)] = "merged"
    for missed in simulation.missed:
        for hour in range(missed.count):
            found[missed.first + timedelta(hours=hour)] = "missed"
    return found


@pytest.mark.parametrize(
    ("schedule_", "instruction", "nine", "ten", "following", "last", "runs"),
    [(s, i, *rest) for s, instructions, *rest in CLASSIC for i in instructions],
)
def test_the_classic_example(schedule_, instruction, nine, ten, following, last, runs):
    policy = MisfirePolicy(instruction=instruction, threshold=60)
    away = {"down_at": at(8, 30), "up_at": at(10, 15), "start": at(8, 30)}
    simulation = simulate(schedule_, policy=policy, until=at(10, 16), **away)
    found = outcomes_of(simulation)
    assert found.get(at(9)) == nine
    assert found.get(at(10)) == ten
    assert simulation.next_fire_time == following
    assert simulation.misfired
    if runs is not None:
        whole = simulate(schedule_, policy=policy, until=at(23), **away)
        assert len(whole.fires) == runs
        assert (whole.fires[-1].fire_time if whole.fires else None) == last
        assert whole.next_fire_time is None


def test_every_fitting_instruction_has_its_row_in_the_classic_example():
    covered = {(trigger_for(s).trigger_type, i) for s, instructions, *_ in CLASSIC for i in instructions}
    assert covered == {(t, str(i)) for t, fitting in FITTING.items() for i in fitting}


# -- the verdict --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instruction", FITTING[TriggerType.FIXED])
def test_late_by_exactly_the_threshold_is_a_misfire_and_a_millisecond_less_is_none(instruction):
    trigger = trigger_for(FIXED)
    state = trigger.first_state(to_millis(at(8)))
    policy = MisfirePolicy(instruction=instruction, threshold=60)
    due = to_millis(at(9))
    in_time = plan(trigger, state, policy, due + 59_999)
    assert in_time.misfire is None
    assert [(r.first, r.outcome) for r in in_time.runs] == [(due, Outcome.FIRED)]
    assert plan(trigger, state, policy, due + 60_000).misfire is not None


@pytest.mark.parametrize("instruction", FITTING[TriggerType.ENDLESS])
def test_below_the_threshold_every_due_occurrence_fires_whatever_the_instruction(instruction):
    trigger = trigger_for(simple(start=DAY, interval=5))
    state = trigger.first_state(to_millis(DAY))
    made = plan(trigger, state, MisfirePolicy(instruction=instruction, threshold=60), to_millis(DAY) + 30_000)
    assert made.misfire is None
    assert [(r.count, r.outcome) for r in made.runs] == [(7, Outcome.FIRED)]


def test_one_late_occurrence_makes_all_due_ones_misfire_even_one_that_is_a_second_late():
    trigger = trigger_for(ENDLESS)
    state = trigger.first_state(to_millis(at(8)))
    made = plan(trigger, state, MisfirePolicy("ignore_misfire_policy"), to_millis(at(10)) + SECOND)
    assert [(r.count, r.outcome) for r in made.runs] == [(2, Outcome.RECOVERED)]


@pytest.mark.parametrize(
    ("schedule_", "seconds"),
    [(simple(start=DAY, interval=1), 0.5), (ENDLESS, 60), (ONCE, 60), (simple(start=DAY, interval=100), 50)],
)
def test_the_automatic_threshold_is_half_the_gap_and_a_minute_at_most(schedule_, seconds):
    trigger = trigger_for(schedule_)
    state = trigger.first_state(to_millis(DAY))
    late = state.next_fire_time + round(seconds * 1000)
    assert plan(trigger, state, MisfirePolicy(), late - 1).misfire is None
    assert plan(trigger, state, MisfirePolicy(), late).misfire is not None


def test_without_misfire_handling_late_fires_are_dropped_without_a_trace():
    trigger = trigger_for(ENDLESS)
    state = trigger.first_state(to_millis(at(8)))
    made = plan(trigger, state, None, to_millis(at(10, 15)))
    assert (made.runs, made.missed, made.misfire) == ((), (), None)
    assert made.state.next_fire_time == to_millis(at(11))


# -- limits -------------------------------------------------------------------------------------------------


def test_max_catch_up_keeps_the_newest_and_records_the_rest():
    policy = MisfirePolicy("ignore_misfire_policy", max_catch_up=3)
    simulation = simulate(
        ENDLESS, policy=policy, down_at=at(8), up_at=at(18, 30), until=at(18, 31), start=at(8)
    )
    assert [f.scheduled_fire_time for f in simulation.fires] == [at(16), at(17), at(18)]
    assert [(m.first, m.last, m.count, m.reason) for m in simulation.missed] == [
        (at(9), at(15), 7, Reason.CAPPED)
    ]


def test_max_lateness_leaves_out_what_is_too_old():
    policy = MisfirePolicy("fire_once_now", max_lateness=2 * 3600)
    simulation = simulate(CRON, policy=policy, down_at=at(8), up_at=at(12, 30), until=at(12, 31), start=at(8))
    assert [(f.scheduled_fire_time, f.merged) for f in simulation.fires] == [(at(11), 1)]
    assert [(m.first, m.last, m.count, m.reason) for m in simulation.missed] == [
        (at(9), at(10), 2, Reason.TOO_OLD)
    ]


def test_when_all_is_too_old_nothing_runs_and_the_grid_stays():
    policy = MisfirePolicy("fire_now", max_lateness=60)
    simulation = simulate(
        ENDLESS, policy=policy, down_at=at(8), up_at=at(10, 30), until=at(10, 31), start=at(8)
    )
    assert simulation.fires == ()
    assert [m.reason for m in simulation.missed] == [Reason.TOO_OLD]
    assert simulation.next_fire_time == at(11)


def test_nothing_starts_after_the_end_but_what_ignore_still_owes():
    bounded = simple(start=at(9), interval=3600, end=at(12, 30))
    away = {"down_at": at(8), "up_at": at(14), "until": at(14), "start": at(8)}
    owed = simulate(bounded, policy=MisfirePolicy("ignore_misfire_policy"), **away)
    assert [f.scheduled_fire_time for f in owed.fires] == [at(9), at(10), at(11), at(12)]
    ended = simulate(bounded, policy=MisfirePolicy("fire_once_now"), **away)
    assert (ended.fires, [m.reason for m in ended.missed]) == ((), [Reason.ENDED])


def test_a_run_in_time_that_would_start_after_the_end_is_missed():
    bounded = simple(start=at(9), interval=3600, end=at(9) + timedelta(seconds=10))
    late = at(9) + timedelta(seconds=20)
    simulation = simulate(bounded, policy=MisfirePolicy(), down_at=at(8), up_at=late, until=late, start=at(8))
    assert (simulation.fires, [m.reason for m in simulation.missed]) == ((), [Reason.ENDED])
    assert not simulation.misfired


# -- laws ---------------------------------------------------------------------------------------------------

ZONES = ["UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe"]


@dataclass(frozen=True)
class Situation:
    schedule: object
    first_seen: int
    now: int


@st.composite
def situations(draw) -> Situation:
    first_seen = to_millis(DAY) + draw(st.integers(0, 400 * 24)) * HOUR + draw(st.integers(0, HOUR))
    kind = draw(st.sampled_from(["simple", "once", "interval", "crontab"]))
    if kind == "simple":
        interval = draw(st.integers(1, 5000)) / 10
        count = draw(st.integers(-1, 12))
        start = from_millis(first_seen + draw(st.integers(-500, 500)) * SECOND)
        end = draw(st.none() | st.integers(1, 3000).map(lambda s: start + timedelta(seconds=s)))
        made = simple(start=start, interval=interval, repeat_count=count, end=end)
        away = draw(st.integers(0, 20_000)) * SECOND
    elif kind == "once":
        made = simple(start=from_millis(first_seen + draw(st.integers(-500, 500)) * SECOND), repeat_count=0)
        away = draw(st.integers(0, 2_000)) * SECOND
    elif kind == "interval":
        made = schedule(draw(st.integers(1, 600)))
        away = draw(st.integers(0, 20_000)) * SECOND
    else:
        made = crontab(
            minute=draw(st.sampled_from(["0", "*/5", "*/20", "7,37", "30"])),
            hour=draw(st.sampled_from(["*", "*/3", "2", "9-17", "1,2,3"])),
            day_of_week=draw(st.sampled_from(["*", "mon-fri", "0"])),
        )
        made.tz = __import__("zoneinfo").ZoneInfo(draw(st.sampled_from(ZONES)))
        away = draw(st.integers(0, 40 * 24)) * HOUR + draw(st.integers(0, HOUR))
    return Situation(made, first_seen, first_seen + away)


@st.composite
def policies(draw, trigger_type: TriggerType) -> MisfirePolicy:
    return MisfirePolicy(
        instruction=draw(st.sampled_from(FITTING[trigger_type])),
        threshold=draw(st.just("auto") | st.integers(1, 200).map(float)),
        max_catch_up=draw(st.none() | st.integers(1, 30)),
        max_lateness=draw(st.none() | st.integers(1, 10_000).map(float)),
    )


def expected(trigger, state, now: int) -> list[int]:
    """Every fire time that is due, by walking."""
    times, found, moment = trigger.fire_times(state), [], state.next_fire_time
    while moment is not None and moment <= now:
        found.append(moment)
        moment = times.after(moment)
    return found


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_every_due_occurrence_has_exactly_one_outcome_and_counts_are_exact(data):
    situation = data.draw(situations())
    trigger = trigger_for(situation.schedule)
    policy = data.draw(policies(trigger.trigger_type))
    state, now = trigger.first_state(situation.first_seen), situation.now
    due = expected(trigger, state, now)
    made = plan(trigger, state, policy, now)

    found: list[tuple[int, str]] = []
    for run in made.runs:
        ran = list(occurrences(trigger, state, run.first, run.last))
        assert len(ran) == run.count
        found += [(moment, str(run.outcome)) for moment in ran]
        if run.merged:
            merged = [m for m in due if run.first < m <= run.last_missed]
            assert len(merged) == run.merged
            found += [(moment, "merged") for moment in merged]
    for missed in made.missed:
        lost = list(occurrences(trigger, state, missed.first, missed.last))
        assert len(lost) == missed.count
        found += [(moment, "missed") for moment in lost]
    assert sorted(moment for moment, _ in found) == due
    if made.misfire is not None:
        assert sum(made.misfire.outcomes.values()) == made.misfire.count == len(due)
        assert made.misfire.resolved is resolve(policy.instruction, state.trigger_type)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_planning_again_at_the_same_moment_decides_nothing_and_next_is_in_the_future(data):
    situation = data.draw(situations())
    trigger = trigger_for(situation.schedule)
    policy = data.draw(policies(trigger.trigger_type))
    made = plan(trigger, trigger.first_state(situation.first_seen), policy, situation.now)
    assert made.state.next_fire_time is None or made.state.next_fire_time > situation.now
    again = plan(trigger, made.state, policy, situation.now)
    assert (again.state, again.runs, again.missed, again.misfire) == (made.state, (), (), None)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_two_outages_in_a_row_end_as_one_after_the_other(data):
    """Cutting an outage in two leaves no occurrence out and counts none twice."""
    situation = data.draw(situations())
    trigger = trigger_for(situation.schedule)
    kept = [
        i for i in FITTING[trigger.trigger_type] if not i.startswith(("reschedule_now", "fire_now", "smart"))
    ]
    policy = MisfirePolicy(data.draw(st.sampled_from(kept)), threshold=1)
    state = trigger.first_state(situation.first_seen)
    halfway = data.draw(st.integers(situation.first_seen, situation.now))
    first = plan(trigger, state, policy, halfway)
    second = plan(trigger, first.state, policy, situation.now)
    whole = plan(trigger, state, policy, situation.now)

    def total(*plans) -> int:
        return sum(r.count + r.merged for p in plans for r in p.runs) + sum(
            m.count for p in plans for m in p.missed
        )

    assert total(first, second) == total(whole) == len(expected(trigger, state, situation.now))
    assert second.state.next_fire_time == whole.state.next_fire_time


# -- counting is arithmetic ---------------------------------------------------------------------------------


class CountedTimes:
    """Fire times that count how often they are asked."""

    def __init__(self, times, calls: list[str]) -> None:
        self._times, self._calls = times, calls

    def __getattr__(self, name: str):
        self._calls.append(name)
        return getattr(self._times, name)


class CountedTrigger:
    def __init__(self, trigger) -> None:
        self._trigger, self.calls = trigger, []

    def fire_times(self, state):
        return CountedTimes(self._trigger.fire_times(state), self.calls)

    def __getattr__(self, name: str):
        return getattr(self._trigger, name)


@pytest.mark.parametrize("instruction", FITTING[TriggerType.CRON])
@pytest.mark.parametrize(
    ("schedule_", "away", "count"),
    [
        (schedule(1), timedelta(days=30), 30 * 86_400),
        (crontab(), timedelta(days=365), 365 * 1440),
    ],
)
def test_a_long_outage_is_counted_without_walking_through_it(schedule_, away, count, instruction):
    trigger = CountedTrigger(trigger_for(schedule_))
    state = trigger.first_state(to_millis(DAY))
    made = plan(trigger, state, MisfirePolicy(instruction), to_millis(DAY + away))
    assert made.misfire.count == count
    assert len(trigger.calls) < 12


# -- policies and moments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"instruction": "fire_twice"},
        {"threshold": 0},
        {"threshold": -1},
        {"threshold": "60"},
        {"threshold": True},
        {"threshold": float("nan")},
        {"threshold": 10**400},
        {"max_catch_up": 0},
        {"max_catch_up": True},
        {"max_catch_up": 2.0},
        {"max_lateness": 0},
        {"max_lateness": float("inf")},
        {"on_missed": ""},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_field_and_value(wrong):
    ((field, value),) = wrong.items()
    with pytest.raises(ValueError, match=field) as error:
        MisfirePolicy(**wrong)
    assert repr(value)[:70] in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            {"instruction": "fire_once"},
            r"'fire_once' is unknown\. Did you mean 'fire_once_now'\? Allowed: smart",
        ),
        ({"instruction": "redis://:canary@h"}, r"'redis://\*\*\*@h' is unknown"),
        ({"threshold": "password=canary"}, r"got 'password=\*\*\*"),
        ({"on_missed": ["canary"]}, r"on_missed: expected the name of a task, got list\.$"),
    ],
)
def test_a_policy_that_makes_no_sense_is_told_the_way_out_and_no_secret(wrong, words):
    with pytest.raises(ValueError, match=words) as error:
        MisfirePolicy(**wrong)
    assert "canary" not in str(error.value)


def test_a_simulation_takes_the_name_of_an_instruction_and_refuses_what_is_no_policy():
    away = {"down_at": at(9), "up_at": at(11), "until": at(12)}
    named = simulate(crontab(minute=0), policy="do_nothing", **away)
    assert named == simulate(crontab(minute=0), policy=MisfirePolicy("do_nothing"), **away)
    assert named.missed
    with pytest.raises(ValueError, match="Did you mean 'do_nothing'"):
        simulate(crontab(minute=0), policy="do_nothin", **away)
    with pytest.raises(TypeError, match="expected a MisfirePolicy or the name of an instruction, got dict"):
        simulate(crontab(minute=0), policy={"instruction": "do_nothing"}, **away)


def test_seconds_may_be_given_as_a_timedelta():
    policy = MisfirePolicy(threshold=timedelta(minutes=2), max_lateness=timedelta(hours=1))
    assert (policy.threshold, policy.max_lateness) == (120.0, 3600.0)


def test_milliseconds_and_datetimes_convert_both_ways():
    moment = datetime(2026, 3, 2, 9, 0, 0, 250_999, tzinfo=timezone(timedelta(hours=2)))
    assert from_millis(to_millis(moment)) == moment.replace(microsecond=250_000)
    with pytest.raises(ValueError, match="time zone"):
        to_millis(datetime(2026, 3, 2))


def test_smart_policy_is_resolved_by_type_and_the_others_stand_for_themselves():
    smart = {t: str(resolve(MisfireInstruction.SMART_POLICY, t)) for t in TriggerType}
    assert smart == {
        "once": "fire_now",
        "fixed": NOW_EXISTING,
        "endless": NEXT_REMAINING,
        "cron": "fire_once_now",
    }
    assert all(
        resolve(i, t) is i
        for t in TriggerType
        for i in MisfireInstruction
        if i is not MisfireInstruction.SMART_POLICY
    )
