"""The recorded behaviour of the real Quartz 2.3.2 (tests/data/quartz_*.jsonl.gz), case by case.

Each line of the first file holds a trigger, an outage, an instruction, and what Quartz did; each of the other
a cron expression and its first fire times, or that Quartz refuses it. Where we differ on purpose
(docs/quartz.md) a case is judged by our own rule here, or by the tests of that rule.
"""

import gzip
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from celery_misfire import MisfirePolicy, calendars, schedules, simulate
from celery_misfire.misfire import Outcome, from_millis, to_millis
from celery_misfire.simulation import Simulation
from celery_misfire.triggers.kinds import trigger_for

DATA = Path(__file__).parent.parent / "data"


def moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def lines(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(DATA / name, "rt") as file:
        for line in file:
            yield json.loads(line)


# -- from a line to a schedule -------------------------------------------------------------------------------


def schedule(trigger: dict[str, Any]):
    t = trigger
    bounds = {"start": moment(t["start"]), "end": moment(t["end"])}
    match t["type"]:
        case "simple":
            interval = t["interval_s"] or None
            made = schedules.simple(interval=interval, repeat_count=t["repeat_count"], **bounds)
        case "cron":
            made = schedules.cron(t["expression"], t["timezone"], **bounds)
        case "daily_time_interval":
            made = schedules.daily_time_interval(
                t["interval"],
                t["unit"],
                t["start_time_of_day"],
                t["end_time_of_day"],
                t["days_of_week"],
                t["repeat_count"],
                t["timezone"],
                **bounds,
            )
        case "calendar_interval":
            made = schedules.calendar_interval(
                t["interval"],
                t["unit"],
                t["timezone"],
                skip_day_if_hour_does_not_exist=t["skip_day_if_hour_does_not_exist"],
                **bounds,
            )
    return schedules.excluding(made, calendar(t["calendar"])) if t["calendar"] else made


def calendar(described: dict[str, Any] | None) -> calendars.Calendar | None:
    if described is None:
        return None
    c = described
    where = {"timezone": c["timezone"], "base": calendar(c["base"])}
    match c["type"]:
        case "holiday":
            return calendars.holiday(map(date.fromisoformat, c["dates"]), **where)
        case "weekly":
            return calendars.weekly(c["excluded_days"], **where)
        case "daily":
            return calendars.daily(c["range_start"], c["range_end"], c["invert"], **where)
        case "annual":
            return calendars.annual(c["days"], **where)
        case "monthly":
            return calendars.monthly(c["days"], **where)
        case "cron":
            return calendars.cron(c["expression"], **where)
    raise ValueError(f"no such calendar: {c}")


def calendars_of(trigger: dict[str, Any]) -> Iterator[dict[str, Any]]:
    found = trigger["calendar"]
    while found:
        yield found
        found = found["base"]


def simulated(vector: dict[str, Any]) -> Simulation:
    return simulate(
        schedule(vector["trigger"]),
        policy=MisfirePolicy(vector["instruction"], threshold=vector["misfire_threshold_s"]),
        down_at=moment(vector["down_at"]),
        up_at=moment(vector["up_at"]),
        until=moment(vector["horizon"]),
        start=moment(vector["trigger"]["start"]),
    )


# -- where we differ on purpose ------------------------------------------------------------------------------


@lru_cache(maxsize=10_000)
def clocks_change(zone: str, first: datetime, last: datetime) -> bool:
    here = ZoneInfo(zone)
    offsets = set()
    while first < last:
        offsets.add(first.astimezone(here).utcoffset())
        first += timedelta(hours=6)
    return len(offsets) > 1


def difference(vector: dict[str, Any]) -> str | None:
    """Return which of the deliberate differences this case is about, None when it must agree."""
    trigger = vector["trigger"]
    start, end = moment(trigger["start"]), moment(trigger["end"])
    if vector["first_fire"] is None:
        return "never fires"
    zones = [trigger["timezone"], *(c["timezone"] for c in calendars_of(trigger))]
    seen = start - timedelta(days=2), moment(vector["horizon"]) + timedelta(days=2)
    if trigger["type"] != "simple" and any(z and clocks_change(z, *seen) for z in zones):
        return "dst"
    if trigger.get("unit") in ("month", "year") and start.astimezone(ZoneInfo(trigger["timezone"])).day > 28:
        return "drift"
    late_is_missed = vector["instruction"] != "ignore_misfire_policy"
    if end and late_is_missed and any(moment(f["fired"]) > end for f in vector["fires"]):
        return "after the end"
    if trigger["type"] == "cron" and start.microsecond:
        return "start within a second"
    if any(c["type"] == "daily" and not c["invert"] for c in calendars_of(trigger)) and at_midnight(vector):
        return "midnight"
    return None


def at_midnight(vector: dict[str, Any]) -> bool:
    """True when it is to run at 00:00:00 of a daily calendar's zone, which that does not exclude."""
    zone = ZoneInfo(next(c["timezone"] for c in calendars_of(vector["trigger"]) if c["type"] == "daily"))
    return any(f.scheduled_fire_time.astimezone(zone).time() == time(0) for f in simulated(vector).fires)


CASES = list(lines("quartz_vectors.jsonl.gz"))
DIFFERENCES = {v["id"]: difference(v) for v in CASES}
AGREEING = [v for v in CASES if DIFFERENCES[v["id"]] is None]


def about(name: str) -> list[dict[str, Any]]:
    return [v for v in CASES if DIFFERENCES[v["id"]] == name]


def by_id(case: dict[str, Any]) -> str:
    return case["id"]


# -- vectors -------------------------------------------------------------------------------------------------


def test_the_file_is_whole():
    assert Counter(DIFFERENCES.values()) == {
        None: 1151,
        "dst": 217,
        "after the end": 21,
        "drift": 10,
        "midnight": 6,
        "never fires": 5,
        "start within a second": 3,
    }


def disagreements(vector: dict[str, Any]) -> list[str]:
    """Return in what ours is not as Quartz's; the scheduled time of a recovered run aside."""
    simulation = simulated(vector)
    ignoring = vector["instruction"] == "ignore_misfire_policy"
    up = moment(vector["up_at"])
    before = [f for f in simulation.fires if f.fire_time < up][-3:]
    fires = before + [f for f in simulation.fires if f.fire_time >= up]
    wanted = [(moment(f["scheduled"]), moment(f["fired"])) for f in vector["fires"]]
    found = []
    if [f.fire_time for f in fires] != [fired for _, fired in wanted]:
        found.append("fires")
    elif any(
        fire.scheduled_fire_time != scheduled
        for fire, (scheduled, _) in zip(fires, wanted, strict=True)
        if ignoring or fire.outcome is Outcome.FIRED
    ):
        found.append("scheduled fire times")
    if simulation.next_fire_time != moment(vector["next_fire_after_horizon"]):
        found.append("next fire time")
    # Under this instruction Quartz tells nobody.
    if not ignoring and simulation.misfired != vector["misfired"]:
        found.append("misfired")
    return found


@pytest.mark.parametrize("vector", AGREEING, ids=by_id)
def test_as_quartz(vector):
    assert disagreements(vector) == []


def keeps_count(vector: dict[str, Any]) -> bool:
    """True when Quartz has a counter to compare, and it was not found finished (there ours stand)."""
    end = moment(vector["trigger"]["end"])
    return vector["times_triggered"] is not None and (end is None or moment(vector["up_at"]) <= end)


@pytest.mark.parametrize("vector", list(filter(keeps_count, AGREEING)), ids=by_id)
def test_the_trigger_state_ends_as_quartz_leaves_it(vector):
    state = simulated(vector).state
    assert state.times_triggered == vector["times_triggered"]
    if vector["trigger"]["type"] == "simple":
        assert state.repeat_count == vector["repeat_count_after"]
        assert state.start_time == to_millis(moment(vector["start_after"]))


# -- where we differ on purpose ------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", about("after the end"), ids=by_id)
def test_no_run_starts_after_the_end(vector):
    end = moment(vector["trigger"]["end"])
    simulation = simulated(vector)
    assert all(f.fire_time <= end for f in simulation.fires)
    assert [m.reason for m in simulation.missed] == ["ended"]


@pytest.mark.parametrize("vector", about("drift"), ids=by_id)
def test_a_day_that_a_month_lacks_is_its_last_one_in_that_month_alone(vector):
    start = moment(vector["trigger"]["start"])
    for fire in simulated(vector).fires:
        when = fire.scheduled_fire_time
        if fire.outcome is Outcome.FIRED and when.day != start.day:
            assert when.day < start.day
            assert (when + timedelta(days=1)).day == 1
    wanted = [moment(f["fired"]) for f in vector["fires"]]
    assert len(simulated(vector).fires) >= len(wanted)


@pytest.mark.parametrize("vector", about("midnight"), ids=by_id)
def test_a_daily_calendar_leaves_midnight_in(vector):
    midnight = moment("2026-03-03T00:00:00Z")
    assert midnight in [f.fire_time for f in simulated(vector).fires]


@pytest.mark.parametrize("vector", about("never fires"), ids=by_id)
def test_what_quartz_refuses_as_it_never_fires_has_no_next_fire_time(vector):
    simulation = simulated(vector)
    assert (simulation.fires, simulation.missed, simulation.next_fire_time) == ((), (), None)


@pytest.mark.parametrize("vector", about("start within a second"), ids=by_id)
def test_a_start_counts_to_the_millisecond(vector):
    """Quartz cuts it to the second, and fires before it."""
    first, *rest = vector["fires"]
    assert moment(first["scheduled"]) < moment(vector["trigger"]["start"])
    assert [f.fire_time for f in simulated(vector).fires] == [moment(f["fired"]) for f in rest]


def test_most_cases_around_a_change_of_the_clocks_agree_all_the_same():
    agreeing = Counter(v["family"] for v in about("dst") if not disagreements(v))
    assert agreeing == {
        "calendar_interval": 66,
        "cron": 50,
        "daily_time_interval": 35,
        "excl_calendar_interval": 5,
        "excl_cron": 1,
        "excl_daily_time_interval": 2,
    }


# -- cron expressions ----------------------------------------------------------------------------------------

EXPRESSIONS = list(lines("quartz_cron.jsonl.gz"))

# Quartz's own answers to these are not to be had from it: see "cron syntax" in docs/quartz.md.
HALF_ACCEPTED = {
    "0 0 12 1,15W * ?",
    "0 0 12 1 JANUARY ?",
    "0 0 12 */0 * ?",
    "*/0 * * * * ?",
    "0 0 12 31 2,4,6 ?",
}


def is_unix(case: dict[str, Any]) -> bool:
    # Quartz refuses 5 fields and aliases; here they are Unix cron's.
    return len(case["expression"].split()) == 5 or case["expression"] == "@daily"


def refuses(case: dict[str, Any]) -> bool:
    return not case["valid"] or "crash" in case or case["expression"] in HALF_ACCEPTED


def fires(case: dict[str, Any], many: int) -> list[datetime]:
    with warnings.catch_warnings():
        # Years that are past, and steps that do nothing, are told of; here they are meant.
        warnings.simplefilter("ignore")
        trigger = trigger_for(schedules.cron(case["expression"], case["timezone"]))
    state = trigger.first_state(to_millis(moment(case["from"])))
    found, times = [], trigger.fire_times(state)
    following = state.next_fire_time
    while following is not None and len(found) < many:
        found.append(from_millis(following))
        following = times.after(following)
    return found


ANSWERED = [c for c in EXPRESSIONS if not is_unix(c) and not refuses(c)]
AROUND_A_CHANGE = [c for c in ANSWERED if c["group"] == "dst"]


@pytest.mark.parametrize("case", [c for c in ANSWERED if c not in AROUND_A_CHANGE], ids=by_id)
def test_an_expression_fires_as_in_quartz(case):
    wanted = [moment(f) for f in case["fires"]]
    if len(case["expression"].split()) == 7:
        # Our years end with 2099.
        assert fires(case, 20) == [f for f in wanted if f < datetime(2100, 1, 1, tzinfo=UTC)]
    else:
        # Quartz looks no further than a hundred years.
        assert fires(case, len(wanted)) == wanted


def by_cronsim(case: dict[str, Any]) -> list[datetime]:
    """Return what Debian's cron does, or elapsed time where the seconds are not 0."""
    second, *fields = case["expression"].replace("0/", "*/").replace("?", "*").split()
    expression = " ".join(fields if second == "0" else [second, *fields])
    start = moment(case["from"]).astimezone(ZoneInfo(case["timezone"]))
    found = [when.astimezone(UTC) for when in islice(CronSim(expression, start), 40)]
    # It names each of several fixed times in one gap, and from a second pass it looks back into the first.
    return [when for when in dict.fromkeys(found) if when > start][:20]


def can_be_asked(case: dict[str, Any]) -> bool:
    """False with seconds, for which it has no such rule, and where it loses a start in the repeated hour."""
    return case["expression"][:2] != "30" and case["id"] != "cron.0317"


@pytest.mark.parametrize("case", list(filter(can_be_asked, AROUND_A_CHANGE)), ids=by_id)
def test_an_expression_follows_debians_cron_around_a_change_of_the_clocks(case):
    assert fires(case, 20) == by_cronsim(case)


#: Lists that Quartz 2.3.2, from which the facts come, refused, and that 2.5 reads in full.
READ_SINCE_2_5 = {"0 0 12 L,15 * ?", "0 0 12 15,L * ?", "0 0 12 LW,15 * ?"}
REFUSED = [c for c in EXPRESSIONS if refuses(c) and not is_unix(c)]


@pytest.mark.parametrize("case", [c for c in REFUSED if c["expression"] not in READ_SINCE_2_5], ids=by_id)
def test_an_expression_that_quartz_refuses_or_takes_by_half_is_refused(case):
    with pytest.raises(ValueError, match="allowed"):
        schedules.cron(case["expression"])


def test_lists_that_quartz_reads_since_2_5_are_read():
    assert {c["expression"] for c in REFUSED} >= READ_SINCE_2_5
    for expression in READ_SINCE_2_5:
        schedules.cron(expression)


def test_every_expression_is_judged():
    assert Counter(
        "unix" if is_unix(c) else "refused" if refuses(c) else "dst" if c in AROUND_A_CHANGE else "as Quartz"
        for c in EXPRESSIONS
    ) == {"as Quartz": 162, "dst": 64, "refused": 37, "unix": 4}
