"""The picture of an entry's fire times: what is drawn, what is told, and where it comes from."""

from __future__ import annotations

import re
import runpy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab, schedule
from django.test import override_settings
from django.utils import timezone, translation
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_misfire.events import Event, Led, Merged, Misfired, Missed, Sent, StartedLate
from celery_misfire.misfire import (
    FITTING,
    MisfireInstruction,
    MisfirePolicy,
    Outcome,
    Reason,
    from_millis,
    to_millis,
)
from celery_misfire.records import Unreported, first_seen
from celery_misfire.schedules import simple
from celery_misfire.status import status_of
from celery_misfire.triggers.kinds import trigger_for
from celery_misfire.triggers.zones import zone_for
from tests.support.django_settings import set_up

set_up()

from celery_misfire.contrib.django.moments import as_short_range  # noqa: E402
from celery_misfire.contrib.django.timeline import (  # noqa: E402
    Occurrence,
    Outage,
    Timeline,
    fleet,
    whatif,
)
from celery_misfire.contrib.django.timeline.ground import ticks  # noqa: E402
from celery_misfire.contrib.django.timeline.history import expected, history  # noqa: E402
from celery_misfire.contrib.django.timeline.picture import picture, strip, svg  # noqa: E402

BERLIN = ZoneInfo("Europe/Berlin")
SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
SVG = "{http://www.w3.org/2000/svg}"


def at(text: str, zone: Any = UTC) -> int:
    return to_millis(datetime.fromisoformat(text).replace(tzinfo=zone))


START = at("2026-03-10 00:00")


def timeline(*occurrences: Occurrence, **changes: Any) -> Timeline:
    fields = {"name": "reports", "start": START, "end": START + DAY, "zone": UTC} | changes
    return Timeline(occurrences=occurrences, **fields)


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def marks(text: str) -> list[tuple[str, str, int]]:
    """Return what is drawn on both lanes: the outcome, the text and the count of each mark."""
    found = []
    for group in parsed(text).iter(f"{SVG}g"):
        title = group.find(f"{SVG}title")
        if title is not None and title.text is not None:
            told = re.search(r": ([\d,]+) (\w+)", title.text)
            assert told
            found.append((group.get("class", ""), title.text, int(told[1].replace(",", ""))))
    return found


@pytest.fixture(autouse=True)
def _in_english():
    with translation.override("en"):
        yield


# -- the picture -------------------------------------------------------------------------------------------


def test_each_outcome_has_a_shape_of_its_own():
    outcomes = (*Outcome, None)
    shapes = set()
    for outcome in outcomes:
        drawn = next(
            g
            for g in parsed(svg(timeline(Occurrence(START + HOUR, outcome)))).iter(f"{SVG}g")
            if g.find(f"{SVG}title") is not None
        )
        shape = drawn[1]
        points = len(shape.get("points", "").split())
        shapes.add((shape.tag, points, shape.get("class", "")))
    assert len(shapes) == len(outcomes)


def test_bars_of_different_outcomes_differ_in_shape_as_well():
    bars = set()
    for outcome in (*Outcome, None):
        stretch = Occurrence(START + HOUR, outcome, last=START + 20 * HOUR, count=600)
        bar = next(
            g for g in parsed(svg(timeline(stretch))).iter(f"{SVG}g") if g.find(f"{SVG}title") is not None
        )
        bars.add((bar[1].get("points"), bar[1].get("class")))
    assert len(bars) == 5


def test_a_recovered_run_is_joined_to_the_time_at_which_it_ran_and_the_merged_one_to_that_run():
    due, ran = START + 9 * HOUR, START + 11 * HOUR
    text = svg(timeline(Occurrence(due, Outcome.RECOVERED, ran), Occurrence(due + HOUR, Outcome.MERGED, ran)))
    lines = {
        line.get("class"): [tuple(map(float, p.split(","))) for p in line.get("points", "").split()]
        for line in parsed(text).iter(f"{SVG}polyline")
        if line.get("class") in ("mf-recovered", "mf-merged")
    }
    (due_x, due_y), (ran_x, ran_y) = lines["mf-recovered"]
    (_merged_x, merged_y), merged_end = lines["mf-merged"]
    assert due_x < ran_x
    assert due_y == merged_y < ran_y
    assert merged_end == (ran_x, ran_y)


def test_a_day_of_a_one_second_entry_is_a_small_picture_that_says_how_many():
    text = picture(timeline(*(Occurrence(START + n * SECOND, Outcome.FIRED) for n in range(86_400))))
    assert len(text) < 50_000
    # Lying and standing, each with the number in its bar.
    assert text.count(">86,400<") == 2


def test_two_outcomes_that_take_turns_every_second_stay_below_the_limit_and_both_are_seen():
    occurrences = [
        Occurrence(START + n * SECOND, Outcome.MISSED if n % 2 else Outcome.FIRED) for n in range(86_400)
    ]
    text = svg(timeline(*occurrences))
    assert len(text) < 200_000
    counts = {kind: count for kind, _, count in marks(text)}
    assert counts == {"mf-fired": 43_200, "mf-missed": 43_200}


moments = st.integers(START - HOUR, START + DAY + HOUR)
occurrences_ = st.builds(
    Occurrence,
    scheduled=moments,
    outcome=st.sampled_from([*Outcome, None]),
    fire_time=st.none() | moments,
    count=st.integers(1, 10**6),
)


@settings(max_examples=60, deadline=None)
@given(
    name=st.text(st.characters(), max_size=200),
    occurrences=st.lists(occurrences_, max_size=40),
    outages=st.lists(
        st.builds(
            Outage,
            start=moments,
            end=moments,
            label=st.text(st.characters(), max_size=20),
            sure=st.booleans(),
        ),
        max_size=5,
    ),
)
def test_whatever_is_drawn_is_well_formed(name, occurrences, outages):
    shown = timeline(*occurrences, name=name, outages=outages, now=START + HOUR, known_from=START + MINUTE)
    for text in (svg(shown), str(picture(shown)), str(strip(shown, "x"))):
        assert len(text.encode("utf-8")) < 200_000
        parsed(text)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, DAY - 1), st.sampled_from([Outcome.FIRED, Outcome.MISSED, None])),
        max_size=300,
    )
)
def test_every_fire_time_is_in_the_picture_and_in_the_table(pairs):
    shown = timeline(*(Occurrence(START + offset, outcome) for offset, outcome in pairs))
    assert sum(count for _, _, count in marks(svg(shown))) == len(pairs)
    if not shown.rows_left_out:
        assert sum(int(row.count.replace(",", "")) for row in shown.rows) == len(pairs)


def test_a_name_cannot_leave_its_place():
    name = "</title><script>alert('x')</script> & \"quotes\" \x00\ud800 \U0001f642"
    text = svg(timeline(name=name))
    assert "<script" not in text
    title = parsed(text).find(f"{SVG}title")
    assert title is not None
    assert title.text == "</title><script>alert('x')</script> & \"quotes\" �� \U0001f642"


def test_a_picture_has_a_name_and_a_description_for_those_who_do_not_see_it():
    shown = timeline(
        Occurrence(START, Outcome.MISSED), outages=[Outage(START, START + HOUR, "Beat was down")]
    )
    root = parsed(svg(shown))
    ids = {e.get("id"): e.text for e in root if e.get("id")}
    told = [ids[part] for part in root.get("aria-labelledby", "").split()]
    assert root.get("role") == "img"
    assert told == [
        "reports",
        "Tue 10 Mar, 00:00 \u2013 Wed 11 Mar, 00:00: 1 missed. "
        "Beat was down: Tue 10 Mar, 00:00 \u2013 01:00, 1\xa0hour.",
    ]


def test_two_pictures_on_one_page_have_different_ids():
    text = str(picture(timeline(), "a")) + str(picture(timeline(), "b")) + str(strip(timeline(), "c"))
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) == 10


def test_the_picture_in_the_documents_is_made_by_this_code():
    docs = Path(__file__).parents[2] / "docs"
    made = runpy.run_path(str(docs / "timeline_example.py"))["draw"]()
    assert (docs / "timeline-example.svg").read_text() == f"{made}\n"


# -- time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "told"),
    [
        ("2026-03-10 08:27:17", "2026-03-10 08:34:31", "08:27:17\xa0\u2013 08:34:31"),
        ("2026-03-10 08:27", "2026-03-10 08:35", "08:27\xa0\u2013 08:35"),
        ("2026-03-09 23:00:05", "2026-03-10 00:10:05", "9 Mar, 23:00\xa0\u2013 00:10:05"),
        ("2026-03-09 21:00:05", "2026-03-09 22:10:05", "9 Mar, 21:00\xa0\u2013 22:10"),
        ("2026-03-09 21:00:05", "2026-03-09 21:00:05", "9 Mar, 21:00"),
        ("2025-03-09 21:00", "2026-03-09 21:00", "9 Mar 2025, 21:00\xa0\u2013 9 Mar, 21:00"),
    ],
)
def test_a_range_is_told_as_short_as_can_be_and_both_ends_alike(first: str, last: str, told: str):
    with timezone.override(UTC):
        assert as_short_range(at(first), at(last), at("2026-03-10 09:00")) == told


@pytest.mark.parametrize("hour", range(24))
@pytest.mark.parametrize("days", [1, 7])
def test_the_days_above_all_tasks_have_room_and_midnight_has_its_own(hour: int, days: int):
    window = fleet.Window.around(START + hour * HOUR + 33 * MINUTE, days)
    texts = list(ElementTree.fromstring(fleet.axis(window, UTC)))
    told = [(float(t.get("x", "").rstrip("%")), t.text) for t in texts if t.get("class") is None]
    places = [place for place, _day in told]
    # On a small screen a day takes a fifth of the axis, a clock a tenth.
    for kind, width in ((None, 20), ("mf-quiet", 10)):
        taken = []
        for text in texts:
            if text.get("class") == kind:
                hangs_over = width / 2 if text.get("text-anchor") == "middle" else 0
                begin = float(text.get("x", "").rstrip("%")) - hangs_over
                taken.append((begin, begin + width))
        assert all(begin >= 0 and end <= 101 for begin, end in taken)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(taken))
    if days == 1:
        midnights = [(24 - hour - 33 / 60 + 24 * n) / 48 * 100 for n in (0, 1)]
        assert all(any(abs(m - place) < 0.1 for place in places) for m in midnights if m < 90)


def test_the_axis_shows_the_repeated_hour_twice_and_says_that_the_clocks_changed():
    start, end = at("2026-10-25 00:00", BERLIN), at("2026-10-25 06:00", BERLIN)
    found = ticks(zone_for(BERLIN), start, end, HOUR)
    assert [f"{from_millis(t).astimezone(BERLIN):%H:%M}" for t in found] == (
        ["00:00", "01:00", "02:00", "02:00", "03:00", "04:00", "05:00", "06:00"]
    )
    shown = timeline(start=start, end=end, zone=BERLIN)
    assert "UTC+2 → UTC+1" in svg(shown)
    assert shown.zone_in_words == "Europe/Berlin, UTC+2, from Sun 25 Oct, 03:00 on UTC+1"
    assert shown.date_and_time(at("2026-10-25 00:30")) == "Sun 25 Oct, 02:30 (UTC+2)"
    assert shown.date_and_time(at("2026-10-25 01:30")) == "Sun 25 Oct, 02:30 (UTC+1)"


def test_the_axis_leaves_out_the_hour_that_does_not_exist():
    start, end = at("2026-03-29 00:00", BERLIN), at("2026-03-29 05:00", BERLIN)
    found = ticks(zone_for(BERLIN), start, end, HOUR)
    assert [f"{from_millis(t).astimezone(BERLIN):%H:%M}" for t in found] == (
        ["00:00", "01:00", "03:00", "04:00", "05:00"]
    )


def test_an_offset_with_half_an_hour_is_told():
    shown = timeline(zone=ZoneInfo("Asia/Kolkata"))
    assert shown.zone_in_words == "Asia/Kolkata, UTC+5:30"
    assert timeline(zone=ZoneInfo("America/St_Johns")).zone_in_words.startswith("America/St_Johns, UTC-2:30")


@settings(max_examples=80, deadline=None)
@given(
    start=st.integers(at("2020-01-01 00:00"), at("2030-01-01 00:00")),
    length=st.integers(MINUTE, 400 * DAY),
    zone=st.sampled_from(
        ["UTC", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu", "America/St_Johns"]
    ),
)
def test_an_axis_has_some_ticks_and_never_too_many(start, length, zone):
    found = ticks(zone_for(zone), start, start + length, length / 10)
    assert found == sorted(found)
    assert all(start <= t <= start + length for t in found)
    # Each change of the clocks may add one, and a year has two.
    assert len(found) <= 14


# -- the table ---------------------------------------------------------------------------------------------


def test_a_row_says_when_it_was_due_when_it_ran_and_how_late_that_was():
    row = timeline(Occurrence(START + 9 * HOUR, Outcome.RECOVERED, START + 9 * HOUR + 75 * MINUTE)).rows[0]
    assert (row.scheduled, row.outcome, row.count) == ("Tue 10 Mar, 09:00", "recovered", "1")
    assert (row.fire_time, row.late_by) == ("Tue 10 Mar, 10:15:00", "1\xa0hour, 15\xa0minutes")


def test_a_long_table_puts_neighbours_together_and_keeps_the_missed_one_apart():
    fired = [Occurrence(START + n * MINUTE, Outcome.FIRED, START + n * MINUTE) for n in range(1000)]
    fired[500] = Occurrence(START + 500 * MINUTE, Outcome.MISSED, reason="scheduler_down")
    shown = timeline(*fired)
    told = [(row.count, row.outcome) for row in shown.rows]
    assert told == [("500", "fired"), ("1", "missed (scheduler_down)"), ("499", "fired")]


def test_a_table_ends_after_200_rows_and_says_how_many_are_left_out():
    turns = [Occurrence(START + n * MINUTE, Outcome.MISSED if n % 2 else Outcome.FIRED) for n in range(300)]
    shown = timeline(*turns)
    assert (len(shown.rows_shown), shown.rows_left_out) == (200, 100)


# -- from the log ------------------------------------------------------------------------------------------

CRON = trigger_for(crontab(minute=0))


def sent(scheduled: int, fire_time: int | None = None, outcome: str = "fired", merged: int = 0) -> Sent:
    return Sent(
        entry="reports",
        outcome=outcome,
        scheduled=scheduled,
        fire_time=scheduled if fire_time is None else fire_time,
        merged=merged,
        id=f"id-{scheduled}",
    )


def lead(now: int, reason: str = "scheduler_down") -> Led:
    return Led(epoch=2, reason=reason, cold=False, now=now)


def misfire(
    first: int, last: int, now: int, reason: str = "scheduler_down", entry: str = "reports"
) -> Misfired:
    done = {"instruction": "smart_policy", "resolved": "fire_once_now", "outcomes": {"recovered": 1}}
    return Misfired(entry=entry, first=first, last=last, count=1, now=now, reason=reason, **done)


def missed(first: int, last: int, count: int, reason: str = "scheduler_down", **fields: Any) -> Missed:
    fields = {"entry": "reports", "instruction": "do_nothing", "id": "x"} | fields
    return Missed(first=first, last=last, count=count, reason=reason, **fields)


def past(*events: Event, policy: Any = None, enabled: bool = True, **fields: Any):
    status = status_of(fields.get("record"), fields.get("trigger"), policy, START + DAY)
    return history(events, "reports", START, START + DAY, status=status if enabled else None, **fields)


def record_at(moment: int, trigger: Any = CRON, **state: Any):
    record = first_seen("reports", "shop.reports", trigger, moment, from_now=True)
    return replace(record, state=replace(record.state, **state))


#: All of the day has been decided.
DONE = record_at(START - DAY, next_fire_time=START + DAY + HOUR)


def fates(found: Any) -> list[tuple[int, str]]:
    return [((o.scheduled - START) // HOUR, str(o.outcome)) for o in found.occurrences]


def test_the_classic_example_is_read_back_from_the_log():
    back = START + 10 * HOUR + 15 * MINUTE
    found = past(
        sent(START + 8 * HOUR),
        lead(back),
        misfire(START + 9 * HOUR, START + 10 * HOUR, back),
        sent(START + 9 * HOUR, back, "recovered", merged=1),
        sent(START + 11 * HOUR),
        trigger=CRON,
        record=DONE,
    )
    assert fates(found) == [(8, "fired"), (9, "recovered"), (10, "merged"), (11, "fired")]
    assert [o.fire_time for o in found.occurrences[1:3]] == [back, back]
    told = [(o.start, o.end, o.sure) for o in found.outages]
    assert told == [
        (START + 9 * HOUR, back, True),
        (START + 8 * HOUR, START + 9 * HOUR, False),
    ]


def test_a_restart_between_two_fire_times_is_a_silence_and_no_outage():
    found = past(sent(START + 8 * HOUR), lead(START + 8 * HOUR + 30 * MINUTE), sent(START + 9 * HOUR))
    assert [(o.label, o.end - o.start, o.sure) for o in found.outages] == [
        ("No sign of life", 30 * MINUTE, False)
    ]


def test_a_line_of_a_worker_is_no_sign_of_life_of_beat():
    found = past(
        sent(START + 8 * HOUR),
        StartedLate(entry="reports", scheduled=START + 8 * HOUR, late_by=99, id="x", worker="w1"),
        missed(START + 7 * HOUR, START + 7 * HOUR, 1, worker="w1", now=START + 8 * HOUR + 50 * MINUTE),
        lead(START + 9 * HOUR),
    )
    assert [(o.start, o.end) for o in found.outages] == [(START + 8 * HOUR, START + 9 * HOUR)]


def test_a_log_that_reaches_back_knows_of_the_silence_before_its_first_line_and_a_younger_one_does_not():
    assert [(o.start, o.end) for o in past(lead(START + 5 * HOUR)).outages] == [(START, START + 5 * HOUR)]
    young = past(lead(START + 5 * HOUR), known_from=START + 5 * HOUR)
    assert (young.outages, young.known_from) == ((), START + 5 * HOUR)


def test_the_outages_of_all_entries_are_one():
    back = START + 10 * HOUR
    lines = [misfire(START + 9 * HOUR + n, START + 9 * HOUR + n, back + n, entry=f"e{n}") for n in range(500)]
    assert [(o.start, o.end) for o in past(*lines).outages] == [(START + 9 * HOUR, back + 499)]


def test_a_line_that_comes_twice_counts_once():
    lost = missed(START + HOUR, START + 2 * HOUR, 2)
    found = past(sent(START), sent(START), lost, lost, trigger=CRON, record=DONE)
    assert fates(found) == [(0, "fired"), (1, "missed"), (2, "missed")]


def test_what_a_worker_gives_up_is_missed_and_what_it_merges_is_merged():
    worker = {"entry": "reports", "worker": "w1"}
    late = START + HOUR
    found = past(
        sent(late),
        sent(START + 2 * HOUR),
        sent(START + 3 * HOUR),
        StartedLate(scheduled=late, late_by=99, id=f"id-{late}", **worker),
        Merged(scheduled=START + 2 * HOUR, id=f"id-{START + 2 * HOUR}", **worker),
        missed(START + 3 * HOUR, START + 3 * HOUR, 1, "queue_late", id=f"id-{START + 3 * HOUR}", worker="w1"),
    )
    assert fates(found) == [(1, "fired"), (2, "merged"), (3, "missed")]
    assert found.occurrences[1].fire_time == late


def test_after_an_edit_the_old_fire_times_stay_a_stretch():
    lost = missed(START + HOUR, START + 5 * HOUR, 9)
    found = past(lost, trigger=CRON, record=record_at(START + 12 * HOUR), enabled=False)
    assert [(o.scheduled, o.end, o.count) for o in found.occurrences] == [(START + HOUR, START + 5 * HOUR, 9)]


def test_a_run_whose_outcome_only_a_newer_version_knows_was_sent_all_the_same():
    assert fates(past(sent(START + HOUR, outcome="a word of tomorrow"))) == [(1, "fired")]


def test_what_should_have_been_decided_by_now_is_overdue():
    found = past(sent(START + 2 * HOUR), trigger=CRON, record=record_at(START + 2 * HOUR))
    # From 3 o'clock to midnight.
    assert found.overdue == 22
    assert fates(found) == [(2, "fired"), *((hour, "overdue") for hour in range(3, 25))]
    disabled = past(sent(START + 2 * HOUR), trigger=CRON, record=record_at(START + 2 * HOUR), enabled=False)
    assert (disabled.overdue, fates(disabled), disabled.outages) == (0, [(2, "fired")], ())
    assert [(o.start, o.end, o.sure) for o in found.outages] == [(START + 2 * HOUR, START + DAY, False)]


def test_a_run_that_is_late_by_less_than_its_threshold_is_not_overdue():
    record = record_at(START, next_fire_time=START + DAY - HOUR)
    for threshold, overdue in ((3600, 2), (3601, 0)):
        found = past(trigger=CRON, record=record, policy=MisfirePolicy(threshold=threshold))
        assert found.overdue == overdue
        assert len(found.outages) == (overdue > 0)


def test_missed_runs_that_are_not_reported_yet_are_known():
    lost = Unreported(
        START + HOUR,
        START + 3 * HOUR,
        3,
        Reason.SCHEDULER_DOWN,
        MisfireInstruction.DO_NOTHING,
        START + 4 * HOUR,
        0,
    )
    record = replace(DONE, missed=(lost,))
    assert fates(past(trigger=CRON, record=record)) == [(1, "missed"), (2, "missed"), (3, "missed")]


def test_expected_fire_times_are_named_one_by_one_or_counted_when_they_are_many():
    found = expected(CRON, record_at(START).state, START + 3 * HOUR)
    assert [(o.scheduled - START) // HOUR for o in found] == [1, 2, 3]
    every_second = trigger_for(schedule(1))
    found = expected(every_second, record_at(START, every_second).state, START + 6 * HOUR)
    assert [(o.count, o.outcome) for o in found] == [(6 * 3600, None)]


# -- what if -----------------------------------------------------------------------------------------------


def ask(trigger: Any, instruction: str, down: str, up: str, **policy: Any) -> whatif.Answer:
    begin, end = (datetime.fromisoformat(t).replace(tzinfo=UTC) for t in (down, up))
    state = trigger.first_state(START)
    with timezone.override(UTC):
        question = whatif.Question.of(trigger, state, begin, end)
        return question.ask("x", MisfirePolicy(instruction, **policy))


OUTAGE = ("2026-03-10 08:30", "2026-03-10 10:15")


@pytest.mark.parametrize(
    ("instruction", "told"),
    [
        ("smart_policy", "One run is made at 10:15 for 09:00; 10:00 is merged into it. Next: 11:00."),
        ("fire_once_now", "One run is made at 10:15 for 09:00; 10:00 is merged into it. Next: 11:00."),
        ("do_nothing", "2 runs are missed, 09:00 to 10:00. Next: 11:00."),
        (
            "ignore_misfire_policy",
            "2 runs are made at 10:15, one for each fire time from 09:00 to 10:00. Next: 11:00.",
        ),
    ],
)
def test_the_classic_example_is_told_in_words(instruction, told):
    assert ask(CRON, instruction, *OUTAGE).sentence == f"2 fire times fall into the outage. {told}"


def test_a_moment_with_seconds_is_told_with_them():
    answer = ask(CRON, "smart_policy", "2026-03-10 08:30:45", "2026-03-10 10:00:15")
    assert "One run is made at 10:00:15 for 09:00; 10:00 is merged into it." in answer.sentence
    assert answer.timeline.outages_in_words == [
        "Beat is away: Tue 10 Mar, 08:30:45 \u2013 10:00:15, 1\xa0hour, 29\xa0minutes"
    ]


def test_what_starts_again_from_now_is_told():
    hourly = trigger_for(simple(start=from_millis(START), interval=timedelta(hours=1)))
    answer = ask(hourly, "reschedule_now_with_existing_repeat_count", *OUTAGE)
    assert answer.outcome == "One run is made at 10:15 for 09:00; 10:00 is merged into it. Next: 11:15."


def test_limits_of_the_policy_are_told():
    answer = ask(CRON, "ignore_misfire_policy", "2026-03-10 01:30", "2026-03-10 10:15", max_catch_up=2)
    assert "7 runs are missed, 02:00 to 08:00. Reason: Over the catch-up limit." in answer.sentence
    assert "2 runs are made at 10:15" in answer.sentence


def test_a_run_late_by_less_than_the_threshold_is_no_misfire():
    answer = ask(CRON, "do_nothing", "2026-03-10 08:59:50", "2026-03-10 09:00:20")
    assert (
        answer.outcome
        == "1 run is late by less than the misfire threshold, and counts as on time. Next: 10:00."
    )


def test_a_task_that_is_finished_says_so():
    once = trigger_for(simple(start=from_millis(START + 9 * HOUR)))
    answer = ask(once, "do_nothing", *OUTAGE)
    assert answer.outcome == "09:00 is missed. No further runs."


def test_a_fire_time_at_the_end_of_the_outage_is_one_of_those_that_are_told():
    answer = ask(CRON, "do_nothing", "2026-03-10 06:00", "2026-03-10 14:00")
    assert answer.sentence == (
        "9 fire times fall into the outage. 9 runs are missed, 06:00 to 14:00. Next: 15:00."
    )


@pytest.mark.parametrize(
    ("instruction", "told"),
    [
        ("do_nothing", "31,536,001 runs are missed, 10 Mar 2026, 08:00:00 to 10 Mar 2027, 08:00:00."),
        ("ignore_misfire_policy", "31,536,001 runs are made at"),
        ("fire_once_now", "31,536,000 more are merged into it"),
    ],
)
def test_an_outage_of_a_year_is_counted_and_not_walked_through(instruction, told):
    every_second = trigger_for(schedule(1))
    answer = ask(every_second, instruction, "2026-03-10 08:00", "2027-03-10 08:00")
    assert answer.sentences[0] == "31,536,001 fire times fall into the outage."
    assert told in answer.outcome
    # Beside the outage only a few are shown.
    assert len(answer.timeline.occurrences) < 200
    assert len(picture(answer.timeline)) < 100_000


def test_a_bar_does_not_run_over_an_outage():
    every_minute = [Occurrence(START + n * MINUTE, Outcome.FIRED, START + n * MINUTE) for n in range(24 * 60)]
    outage = Outage(START + 10 * HOUR, START + 11 * HOUR, "Beat was down")
    kept = [o for o in every_minute if not outage.start <= o.scheduled < outage.end]

    def bars(*outages: Outage) -> int:
        shown = Timeline("x", START, START + 4 * DAY, UTC, kept, outages)
        return len(re.findall('<g class="mf-fired"><title>', strip(shown, "x")))

    assert (bars(), bars(outage)) == (1, 2)


def test_no_past_is_invented():
    begin, end = (datetime.fromisoformat(f"2026-03-10 {t}").replace(tzinfo=UTC) for t in ("08:30", "10:15"))
    with timezone.override(UTC):
        question = whatif.Question.of(CRON, CRON.first_state(START), begin, end, START + 9 * HOUR + 1)
        answer = question.ask("x", MisfirePolicy("do_nothing"))
    # The task is there since nine.
    assert answer.sentence == "1 fire time falls into the outage. 10:00 is missed. Next: 11:00."
    assert answer.timeline.occurrences[0].scheduled == START + 10 * HOUR


@pytest.mark.parametrize(
    "trigger", [CRON, trigger_for(schedule(1800)), trigger_for(simple(from_millis(START + 9 * HOUR)))]
)
def test_each_answer_accounts_for_every_fire_time_in_the_outage(trigger):
    for instruction in FITTING[trigger.trigger_type]:
        answer = ask(trigger, instruction, *OUTAGE)
        inside = [o for o in answer.timeline.occurrences if at(OUTAGE[0]) <= o.scheduled < at(OUTAGE[1])]
        due = trigger.fire_times(trigger.first_state(START)).count(at(OUTAGE[0]), at(OUTAGE[1]))
        assert sum(o.count for o in inside) == due
        assert all(o.outcome in (Outcome.RECOVERED, Outcome.MERGED, Outcome.MISSED) for o in inside)


@pytest.mark.parametrize(
    "schedule_",
    [
        crontab(minute=0),
        crontab(hour=2, minute=0),
        crontab(0, 0, month_of_year=1, day_of_month=1),
        schedule(1),
        schedule(0.2),
        simple(from_millis(START + HOUR)),
        simple(from_millis(START - HOUR)),
    ],
)
def test_the_form_begins_with_an_outage_that_can_be_simulated(schedule_):
    trigger = trigger_for(schedule_)
    state = trigger.first_state(START)
    with timezone.override(BERLIN):
        form = whatif.WhatIfForm(whatif.defaults(trigger, state, None, START), trigger)
        assert form.is_valid(), form.errors
        data = form.cleaned_data
        answer = whatif.Question.of(trigger, state, data["down"], data["up"]).ask("x", form.policy)
    is_over = trigger.fire_times(state).after(START) is None
    assert answer.sentence.startswith("No run of this task would be affected.") == is_over


@pytest.mark.parametrize(
    ("given", "field", "told"),
    [
        ({"down": "yesterday"}, "down", "Enter a valid date/time."),
        ({"up": ""}, "up", "This field is required."),
        ({"up": "2026-03-09T00:00"}, "up", "The outage has to end after it begins."),
        ({"down": "2026-03-29T02:30"}, "down", "may be ambiguous or it may not exist"),
        ({"down": "0001-01-01T00:00", "up": "0001-01-01T01:00"}, "down", "Choose a date between"),
        ({"down": "9999-12-31T00:00", "up": "9999-12-31T23:00"}, "down", "Choose a date between"),
        ({"instruction": "fire_now"}, "instruction", "Select a valid choice"),
        ({"threshold": "-1"}, "threshold", "greater than or equal"),
        ({"threshold": "nan"}, "threshold", "Enter a number."),
        ({"max_catch_up": "0"}, "max_catch_up", "greater than or equal"),
        ({"max_lateness": "1e300"}, "max_lateness", "less than or equal"),
    ],
)
def test_wrong_input_is_told_in_words(given, field, told):
    with timezone.override(BERLIN):
        defaults = whatif.defaults(CRON, CRON.first_state(START), None, START)
        form = whatif.WhatIfForm({**defaults, **given}, CRON)
        assert not form.is_valid()
    assert told in " ".join(form.errors[field])


def test_without_use_tz_the_times_of_the_form_are_local_as_well():
    with override_settings(USE_TZ=False, TIME_ZONE="Europe/Berlin"):
        form = whatif.WhatIfForm(whatif.defaults(CRON, CRON.first_state(START), None, START), CRON)
        assert form.is_valid(), form.errors
        assert to_millis(form.cleaned_data["down"]) == START + 45 * MINUTE
