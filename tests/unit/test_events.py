"""Events: their text in the log, what is read back from it, and their sentences."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from celery_misfire.events import (
    Broken,
    Event,
    GaveUp,
    Led,
    Merged,
    Misfired,
    Missed,
    Refused,
    Sent,
    SentTogether,
    StartedLate,
    decode,
    encode,
)
from celery_misfire.misfire import MisfireInstruction, MissedFire, Outcome, Reason, from_millis

NINE = 1_772_442_000_000  # 2026-03-02 09:00 UTC
HOUR = 3_600_000
BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")

MISFIRED = Misfired(
    entry="reports",
    task="shop.reports",
    first=NINE,
    last=NINE + HOUR,
    count=2,
    now=NINE + 4_500_000,
    late_by=4_500_000,
    reason=Reason.SCHEDULER_DOWN,
    instruction=MisfireInstruction.SMART_POLICY,
    resolved=MisfireInstruction.FIRE_ONCE_NOW,
    outcomes={Outcome.RECOVERED: 1, Outcome.MERGED: 1},
    next=NINE + 2 * HOUR,
)
MISSED = Missed(
    entry="stocks",
    task="shop.stocks",
    first=NINE,
    last=NINE + HOUR,
    count=5,
    reason=Reason.FAILOVER,
    instruction=MisfireInstruction.DO_NOTHING,
    id="abc",
    now=NINE + 2 * HOUR,
)
EVENTS = [
    Led(epoch=7, reason=Reason.FAILOVER, cold=False, now=NINE),
    MISFIRED,
    MISSED,
    Sent(entry="a", outcome=Outcome.FIRED, scheduled=NINE, fire_time=NINE + 3, merged=2, id="i"),
    SentTogether(
        outcome="fired",
        count=2,
        first=NINE,
        last=NINE + 60_000,
        ids=["i", "j"],
        entries=["a", "b"],
        after=[0, 60_000],
        late=[61_000, 2],
    ),
    StartedLate(entry="a", scheduled=NINE, late_by=1_500, id="i", worker="w@h"),
    Merged(entry="a", scheduled=NINE, id="i", worker="w@h"),
    Broken(entry="a", error="ValueError"),
    Refused(entry="a", error="PublishRejected"),
    GaveUp(
        entry="a",
        task="t",
        first=NINE,
        last=NINE,
        count=1,
        now=NINE + 5,
        reason=Reason.ENDED,
        instruction=MisfireInstruction.DO_NOTHING,
        id="i",
    ),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e.kind)
def test_an_event_survives_its_text(event: Event):
    assert decode(json.loads(json.dumps(event.encode()))) == event


def test_the_texts_in_the_log_stay_what_they_are():
    texts = [json.dumps(event.encode()) for event in EVENTS]
    assert texts == [
        '{"event": "lead", "epoch": 7, "reason": "failover", "cold": false, "now": 1772442000000}',
        '{"event": "misfire", "entry": "reports", "task": "shop.reports", "first": 1772442000000, '
        '"last": 1772445600000, "count": 2, "now": 1772446500000, "late_by": 4500000, '
        '"reason": "scheduler_down", "instruction": "smart_policy", "resolved": "fire_once_now", '
        '"outcomes": {"recovered": 1, "merged": 1}, "next": 1772449200000}',
        '{"event": "missed", "entry": "stocks", "task": "shop.stocks", "first": 1772442000000, '
        '"last": 1772445600000, "count": 5, "reason": "failover", "instruction": "do_nothing", "id": "abc", '
        '"now": 1772449200000}',
        '{"event": "sent", "entry": "a", "outcome": "fired", "scheduled": 1772442000000, '
        '"fire_time": 1772442000003, "merged": 2, "id": "i"}',
        '{"event": "sent_together", "outcome": "fired", "count": 2, "first": 1772442000000, '
        '"last": 1772442060000, "ids": ["i", "j"], "entries": ["a", "b"], "after": [0, 60000], '
        '"late": [61000, 2]}',
        '{"event": "late", "entry": "a", "scheduled": 1772442000000, "late_by": 1500, "id": "i", '
        '"worker": "w@h"}',
        '{"event": "merged", "entry": "a", "scheduled": 1772442000000, "id": "i", "worker": "w@h"}',
        '{"event": "broken", "entry": "a", "error": "ValueError"}',
        '{"event": "refused", "entry": "a", "error": "PublishRejected"}',
        '{"event": "gave_up", "entry": "a", "task": "t", "first": 1772442000000, "last": 1772442000000, '
        '"count": 1, "now": 1772442000005, "reason": "ended", "instruction": "do_nothing", "id": "i"}',
    ]


@pytest.mark.parametrize(
    "line",
    [
        # The version before this one wrote them like this.
        {"event": "missed", "entry": "a", "first": 1, "last": 2, "count": 2, "reason": "capped"}
        | {"instruction": "do_nothing", "id": "i"},
        {"event": "misfire", "entry": "a", "first": 1, "last": 1, "count": 1, "now": 9, "reason": "failover"}
        | {"instruction": "do_nothing", "resolved": "do_nothing", "outcomes": {"missed": 1}},
        # A later version may write them like this.
        {"event": "broken", "entry": "a", "error": "E", "since": 12, "colour": "red"},
        {"event": "lead", "epoch": 1, "reason": "a_word_of_tomorrow", "cold": True, "now": 3},
    ],
)
def test_lines_of_other_versions_are_read_as_far_as_they_go(line: dict):
    event = decode(line)
    assert event is not None
    assert event.sentence()
    assert {k: v for k, v in event.encode().items() if k in line and v != line[k]} == {}


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"event": "invented", "entry": "a"},
        {"event": ["lead"]} | {"epoch": 1},
        {"event": "sent", "entry": "a"},
        {"event": "lead", "epoch": "1", "reason": "failover", "cold": False, "now": 3},
        {"event": "lead", "epoch": True, "reason": "failover", "cold": False, "now": 3},
        {"event": "broken", "entry": "a", "error": {"text": "a dict"}},
        {"event": "sent_together", "outcome": "fired", "count": 1, "first": 1, "last": 1, "ids": [7]}
        | {"entries": ["a"], "after": [0], "late": [0]},
        {"event": "sent_together", "outcome": "fired", "count": 1, "first": 1, "last": 1, "ids": ["i"]}
        | {"entries": ["a"], "after": [True], "late": [0]},
        {"event": "sent_together", "outcome": "fired", "count": 1, "first": 1, "last": 1, "ids": "i"}
        | {"entries": ["a"], "after": [0], "late": [0]},
    ],
)
def test_what_is_no_line_of_ours_is_none(line: dict):
    assert decode(line) is None


def test_a_misfire_is_one_sentence_in_the_zone_of_the_app():
    assert MISFIRED.sentence(BERLIN) == (
        "misfire of 'reports' (shop.reports): scheduled 2026-03-02T10:00:00.000+01:00, "
        "now 2026-03-02T11:15:00.000+01:00, late by 4500.000 s (scheduler_down), "
        "smart_policy -> fire_once_now: 1 recovered, 1 merged; next 2026-03-02T12:00:00.000+01:00"
    )


def test_what_a_misfire_left_is_in_its_sentence_and_its_own_reason_is_not_said_twice():
    lost = [{"reason": "too_old", "count": 2, "id": "x"}, {"reason": "scheduler_down", "count": 3, "id": "y"}]
    misfire = Misfired(**vars(MISFIRED) | {"outcomes": {"recovered": 1, "missed": 5}, "lost": lost})
    assert ": 1 recovered, 2 missed (too_old, result x), 3 missed (result y); next" in misfire.sentence()


def sent(entry: str, **changed: Any) -> Sent:
    known = {
        "entry": entry,
        "outcome": "fired",
        "scheduled": NINE,
        "fire_time": NINE + 3,
        "id": f"id {entry}",
    }
    return Sent(**known | changed)


def test_runs_that_were_sent_together_are_one_line_and_come_apart_again():
    runs = [sent("a"), sent("b", scheduled=NINE - 5), sent("c", fire_time=NINE + 90), sent("a", id="more")]
    [line] = encode(runs)
    assert (line["event"], line["count"], line["first"], line["last"]) == ("sent_together", 4, NINE - 5, NINE)
    assert line["ids"] == ["id a", "id b", "id c", "more"]
    together = decode(json.loads(json.dumps(line)))
    assert list(together.split()) == runs
    assert list(together.split("a")) == [runs[0], runs[3]]
    assert list(together.split("another")) == []
    assert together.written_at == NINE + 90


def test_a_single_run_and_one_that_stands_for_others_keep_their_own_lines():
    late, merging = sent("b", outcome="recovered"), sent("c", merged=3)
    lines = encode([MISFIRED, sent("a"), late, merging, MISSED])
    assert sorted(line["event"] for line in lines) == ["misfire", "missed", "sent", "sent", "sent"]
    assert {line["entry"]: line["outcome"] for line in lines if line["event"] == "sent"} == {
        "a": "fired",
        "b": "recovered",
        "c": "fired",
    }


def test_runs_in_time_and_late_ones_do_not_share_a_line():
    lines = encode([sent("a"), sent("b", outcome="recovered"), sent("c"), sent("d", outcome="recovered")])
    assert {(line["outcome"], *line["entries"]) for line in lines} == {
        ("fired", "a", "c"),
        ("recovered", "b", "d"),
    }


def test_any_other_event_stands_for_itself():
    for event in EVENTS:
        assert isinstance(event, SentTogether) or list(event.split("x")) == [event]


def test_what_a_worker_gives_up_is_counted_and_what_beat_records_was_counted_before():
    assert MISSED.counts == {}
    assert replace(MISSED, worker="w@h").counts == {("stocks", "missed"): 5}
    assert Merged(entry="a", scheduled=NINE, id="i").counts == {("a", "merged"): 1}


def test_a_late_start_tells_when_it_was_and_what_it_was_sent_as():
    event = StartedLate(
        entry="a", scheduled=NINE, late_by=1_500, id="i", outcome="recovered", now=NINE + 1_500
    )
    assert event.sentence() == (
        "'a' (recovered) started late by 1.500 s: scheduled 2026-03-02T09:00:00.000+00:00, "
        "started 2026-03-02T09:00:01.500+00:00, id i"
    )


def test_what_is_missed_is_one_sentence():
    told = "missed 5 runs of shop.stocks, scheduled 2026-03-02T09:00:00.000+00:00 to "
    assert MISSED.sentence() == (
        f"'stocks' {told}2026-03-02T10:00:00.000+00:00, reason failover, instruction do_nothing, result abc"
    )


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e.kind)
def test_a_sentence_is_one_line_whatever_its_texts_say(event: Event):
    """An entry may have any name, and the words of a line may come from another version, or from anybody."""
    hostile = "a\nb\x1b[31m" + "x" * 300
    texts = {name: hostile for name, value in vars(event).items() if isinstance(value, str)}
    if isinstance(event, Misfired):
        lost = [{"reason": hostile, "count": 2, "id": hostile}, {"reason": 7}]
        texts |= {"outcomes": {hostile: 2, "merged": 1}, "lost": lost}
    told = decode(json.loads(json.dumps((type(event)(**vars(event) | texts)).encode())))
    assert told is not None

    assert told.sentence().isprintable()
    assert len(told.sentence()) <= 1200


FIRE = MissedFire(
    entry="stocks",
    task="shop.stocks",
    task_id="abc",
    first=from_millis(NINE),
    last=from_millis(NINE + HOUR),
    count=2,
    reason=Reason.FAILOVER,
    instruction=MisfireInstruction.DO_NOTHING,
    detected_at=from_millis(NINE + 2 * HOUR),
)


def test_a_record_becomes_an_event():
    event = Missed.of(FIRE, worker="w@h")
    assert event == Missed(**vars(MISSED) | {"count": 2, "worker": "w@h"})
    assert event.sentence() == (
        "'stocks' missed 2 runs of shop.stocks, scheduled 2026-03-02T09:00:00.000+00:00 to "
        "2026-03-02T10:00:00.000+00:00, reason failover, instruction do_nothing, result abc"
    )


NAMES = {
    "newline": "a\nbeat: all is well",
    "escape": "\x1b[2J",
    "controls": "a\r\x00b",
    "line separator": "\u2028",
    "right to left": "\u202e",
    "surrogate": "\ud800",
    "cyrillic": "день" * 100,
    "newlines": "\n" * 1000,
    "long": "x" * 1000,
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_no_name_breaks_the_sentence_of_a_miss(name: str):
    sentence = Missed.of(replace(FIRE, entry=name, task=name)).sentence()
    assert sentence.isprintable()
    assert len(sentence) <= 500
    assert sentence.endswith(", reason failover, instruction do_nothing, result abc")
    sentence.encode()


@pytest.mark.parametrize("moment", [10**20, -(10**20), -62_135_596_800_000])
def test_a_moment_that_no_calendar_has_breaks_no_sentence(moment: int):
    event = decode(Missed(**vars(MISSED) | {"first": moment}).encode())
    assert event is not None
    assert f"scheduled {moment} ms to 2026" in event.sentence(NEW_YORK)


def test_each_occurrence_is_counted_once_where_its_outcome_is_known():
    sent = next(e for e in EVENTS if isinstance(e, Sent))
    recovered = Sent(**vars(sent) | {"outcome": Outcome.RECOVERED})
    misfired = Misfired(**vars(MISFIRED) | {"outcomes": {"recovered": 1, "merged": 2, "missed": 3}})
    [given_up] = [e for e in EVENTS if isinstance(e, GaveUp)]
    assert sent.counts == {("", "fired"): 1}
    assert recovered.counts == {("a", "recovered"): 1}
    assert misfired.counts == {("reports", "merged"): 2, ("reports", "missed"): 3}
    assert given_up.counts == {("a", "missed"): 1}
    assert MISSED.counts == {}
