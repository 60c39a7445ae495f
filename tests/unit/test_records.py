"""The record of an entry: its JSON form, and how decisions are claimed and judged again."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from celery.schedules import crontab, schedule
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_misfire import records
from celery_misfire.misfire import (
    MisfireInstruction,
    MisfirePolicy,
    Outcome,
    Reason,
    Runs,
    TriggerState,
    plan,
    to_millis,
)
from celery_misfire.records import MAX_LENGTH, EntryRecord, Intent, Unreported, dumps, loads
from celery_misfire.schedules import simple
from celery_misfire.triggers.kinds import trigger_for
from tests.support.old_state import read_dump, records_of
from tests.support.schedules import build_schedule

NOW = to_millis(datetime(2026, 3, 2, tzinfo=UTC))
MINUTE = 60_000

moments = st.integers(0, 4 * 10**12)
counts = st.integers(0, 10**7)
some = st.none() | moments


@st.composite
def entry_records(draw) -> EntryRecord:
    return EntryRecord(
        name=draw(st.text()),
        task=draw(st.text()),
        generation=draw(moments),
        fingerprint=draw(st.text()),
        state=draw(
            st.builds(TriggerState, some, moments, some, counts, st.none() | st.integers(-1, 99), some)
        ),
        runs=tuple(
            draw(st.lists(st.builds(Runs, moments, moments, counts, st.sampled_from(Outcome), counts, some)))
        ),
        intents=tuple(
            draw(
                st.lists(
                    st.builds(
                        Intent,
                        moments,
                        moments,
                        st.sampled_from(Outcome),
                        moments,
                        counts,
                        some,
                        st.booleans(),
                    )
                )
            )
        ),
        missed=tuple(
            draw(
                st.lists(
                    st.builds(
                        Unreported,
                        moments,
                        moments,
                        counts,
                        st.sampled_from(Reason),
                        st.sampled_from(MisfireInstruction),
                        moments,
                        moments,
                    )
                )
            )
        ),
        removed_at=draw(some),
    )


@settings(deadline=None)
@given(entry_records())
def test_a_record_survives_its_text(record):
    assert loads(dumps(record)) == record
    assert dumps(loads(dumps(record))) == dumps(record)


@pytest.mark.parametrize("name", records_of(read_dump()))
def test_a_record_of_an_older_version_is_read_and_written_as_the_very_same_text(name):
    text = records_of(read_dump())[name]
    assert dumps(loads(text)) == text
    assert loads(text).name == name


@pytest.mark.parametrize("name", read_dump()["entries"])
def test_the_fingerprints_of_an_older_version_still_stand(name):
    """Another fingerprint would count as an edit: the entry would be planned from now."""
    dump = read_dump()
    schedule = build_schedule(dump["entries"][name]["schedule"])
    assert trigger_for(schedule).fingerprint == loads(records_of(dump)[name]).fingerprint


def test_a_record_of_an_entry_that_has_been_refused_for_long_can_be_read():
    """One that runs each second, and may be five hours late."""
    record = claimed(*(unsent(moment) for moment in range(NOW, NOW + 18_000_000, 1000)))
    assert loads(dumps(record)) == record


@settings(deadline=None)
@given(entry_records(), st.data())
def test_a_text_with_one_character_changed_is_refused_or_another_record(record, data):
    text = dumps(record)
    place = data.draw(st.integers(0, len(text) - 1))
    changed = text[:place] + data.draw(st.characters(codec="utf-8")) + text[place + 1 :]
    try:
        found = loads(changed)
    except ValueError:
        return
    assert isinstance(found, EntryRecord)
    assert loads(dumps(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "7",
        '"text"',
        "{}",
        '{"v": 1}',
        '{"v": 2}',
        "[" * 50_000,
        "1e999",
        "\x80\x04\x95",
        "{" + " " * MAX_LENGTH + "}",
    ],
    ids=range(12),
)
def test_a_text_that_is_no_record_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - any text will do
        loads(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("generation", "1"),
        ("generation", 10**15),
        ("generation", True),
        ("generation", 1.5),
        ("name", 7),
        ("runs", 7),
        ("runs", [{}]),
        ("intents", [[1]]),
        ("missed", [{"reason": "boredom"}]),
        ("generation", -9 * 10**13),
        ("state", {"next_fire_time": "soon", "start_time": 0}),
        ("state", {"next_fire_time": None}),
        ("state", None),
        ("extra", 1),
    ],
)
def test_a_record_with_a_wrong_field_is_refused(field, value):
    record = records.first_seen("a", "t", trigger_for(schedule(60)), NOW, from_now=False)
    data = json.loads(dumps(record)) | {field: value}
    with pytest.raises(ValueError):  # noqa: PT011
        loads(json.dumps(data))


# -- claiming -----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 400), st.lists(st.integers(1, 50), min_size=1, max_size=40), st.booleans())
def test_runs_are_claimed_oldest_first_each_once_whatever_the_portions(count, portions, grid):
    trigger = trigger_for(schedule(60) if grid else crontab())
    record = records.first_seen("a", "t", trigger, NOW, from_now=False)
    made = plan(trigger, record.state, MisfirePolicy("ignore_misfire_policy"), NOW + count * MINUTE + 1)
    record = records.with_plan(record, made, NOW)
    for portion in portions:
        before = len(record.intents)
        record = records.claim(record, trigger, NOW, portion)
        assert len(record.intents) - before <= portion
        record = loads(dumps(record))
    record = records.claim(record, trigger, NOW, 10**6)
    assert [i.scheduled for i in record.intents] == [NOW + n * MINUTE for n in range(1, count + 1)]
    assert record.runs == ()


def test_old_decisions_are_carried_out_on_their_own_grid_after_it_has_moved():
    trigger = trigger_for(schedule(60))
    record = records.first_seen("a", "t", trigger, NOW, from_now=False)
    late = NOW + 5 * MINUTE + 1
    record = records.with_plan(
        record, plan(trigger, record.state, MisfirePolicy("ignore_misfire_policy"), late), late
    )
    later = late + 3 * MINUTE + 17_000
    record = records.with_plan(record, plan(trigger, record.state, MisfirePolicy("fire_now"), later), later)
    assert record.state.start_time == later
    record = records.claim(record, trigger, later, 100)
    assert [i.scheduled - NOW for i in record.intents] == [n * MINUTE for n in range(1, 7)]
    assert record.intents[-1].merged == 2


class FewerThanCounted:
    """The fire times of a schedule whose number was estimated."""

    trigger_type, interval, fingerprint = "cron", None, "few"

    def __init__(self, real: int) -> None:
        self.last = NOW + real * MINUTE

    def fire_times(self, state):
        return self

    def after(self, moment):
        return moment + MINUTE if moment < self.last else None


@pytest.mark.parametrize("counted", [35, 40, 45])
def test_what_was_counted_wrong_is_claimed_in_the_same_portions_and_to_the_end(counted):
    trigger = FewerThanCounted(40)
    stretch = Runs(NOW + MINUTE, trigger.last, counted, Outcome.RECOVERED)
    state = TriggerState(next_fire_time=trigger.last + MINUTE, start_time=NOW)
    record = EntryRecord("a", "t", NOW, "few", state, runs=(stretch,))
    portions = []
    while record.runs:
        before = len(record.intents)
        record = records.claim(record, trigger, NOW, 20)
        portions.append(len(record.intents) - before)
    assert portions == [20, 20]


# -- judging again ------------------------------------------------------------------------------------------


def claimed(*intents: Intent) -> EntryRecord:
    record = records.first_seen("a", "t", trigger_for(schedule(60)), NOW, from_now=False)
    return replace(record, intents=intents)


def unsent(scheduled: int, **changes) -> Intent:
    return Intent(scheduled, NOW, Outcome.FIRED, scheduled, unsent=True, **changes)


@pytest.mark.parametrize(
    ("instruction", "run", "merged", "missed"),
    [
        ("ignore_misfire_policy", 2, 0, 0),
        ("fire_once_now", 1, 1, 0),
        ("fire_now", 1, 1, 0),
        ("reschedule_now_with_existing_repeat_count", 1, 1, 0),
        ("do_nothing", 0, 0, 2),
        ("smart_policy", 0, 0, 2),
        ("reschedule_next_with_existing_count", 0, 0, 2),
    ],
)
def test_what_was_surely_not_sent_and_is_too_late_gets_what_its_instruction_says(
    instruction, run, merged, missed
):
    record = claimed(unsent(NOW + MINUTE), unsent(NOW + 2 * MINUTE))
    judged, misfire = records.judge_again(
        record,
        trigger_for(schedule(60)),
        MisfirePolicy(instruction),
        NOW + 5 * MINUTE,
        lambda _: Reason.BROKER_UNAVAILABLE,
    )
    assert [i.outcome for i in judged.intents] == [Outcome.RECOVERED] * run
    assert sum(i.merged for i in judged.intents) == merged
    assert sum(m.count for m in judged.missed) == missed
    assert misfire.reason is Reason.BROKER_UNAVAILABLE
    assert sum(misfire.outcomes.values()) == 2


def test_what_is_in_doubt_in_time_or_late_already_is_sent_as_it_is():
    in_doubt = replace(unsent(NOW + MINUTE), unsent=False)
    in_time = unsent(NOW + 5 * MINUTE - MINUTE)
    recovered = replace(unsent(NOW + 2 * MINUTE), outcome=Outcome.RECOVERED)
    record = claimed(in_doubt, in_time, recovered)
    judged, misfire = records.judge_again(
        record,
        trigger_for(schedule(60)),
        MisfirePolicy("do_nothing"),
        NOW + 4 * MINUTE + 10_000,
        lambda _: Reason.FAILOVER,
    )
    assert (judged, misfire) == (record, None)


# -- entries that change ------------------------------------------------------------------------------------


def test_an_edited_entry_keeps_what_was_claimed_and_gets_a_generation_of_its_own():
    record = claimed(unsent(NOW + MINUTE))
    record = replace(record, runs=(Runs(NOW, NOW, 1, Outcome.RECOVERED),))
    edited = records.edited(record, "t", trigger_for(schedule(30)), NOW)
    assert edited.intents == record.intents
    assert edited.runs == ()
    assert edited.generation == record.generation + 1
    assert edited.state.next_fire_time == NOW + 30_000


def test_nothing_due_before_now_is_left_when_an_entry_begins_anew():
    trigger = trigger_for(simple(start=datetime(2026, 3, 1, tzinfo=UTC), interval=3600))
    begun = records.first_seen("a", "t", trigger, NOW + 1, from_now=True)
    assert begun.state.next_fire_time == NOW + 60 * MINUTE
    quartz = records.first_seen("a", "t", trigger, NOW + 1, from_now=False)
    assert quartz.state.next_fire_time == NOW - 24 * 60 * MINUTE


def test_a_removed_entry_owes_a_record_for_all_that_was_decided_but_what_a_worker_has_started():
    record = claimed(unsent(NOW), unsent(NOW + MINUTE))
    record = replace(record, runs=(Runs(NOW + 2 * MINUTE, NOW + 9 * MINUTE, 8, Outcome.RECOVERED),))
    gone = records.removed(record, NOW, started=record.intents[:1])
    assert [(m.first, m.count, m.reason) for m in gone.missed] == [
        (NOW + MINUTE, 1, Reason.ENTRY_DELETED),
        (NOW + 2 * MINUTE, 8, Reason.ENTRY_DELETED),
    ]
    assert (gone.runs, gone.intents, gone.state.next_fire_time) == ((), (), None)


@pytest.mark.parametrize("periods", [-3, 0, 1, 1000])
def test_an_interval_goes_on_from_an_anchor_with_the_first_fire_time_after_now(periods: int) -> None:
    trigger = trigger_for(60)
    for passed in (0, 1, 59_999):
        now = 10**12
        anchor = now - periods * 60_000 - passed
        record = records.first_seen("a", "t", trigger, now, from_now=False, anchor=anchor)
        assert record.state.next_fire_time == now + 60_000 - passed
        assert record.generation == now
        times = trigger.fire_times(record.state)
        assert times.after(now + 60_000 - passed) == now + 120_000 - passed


def test_an_anchor_means_nothing_to_a_schedule_without_an_interval() -> None:
    once = trigger_for(crontab(minute=0))
    now = 10**12
    plain = records.first_seen("a", "t", once, now, from_now=False)
    assert records.first_seen("a", "t", once, now, from_now=False, anchor=now - 1234) == plain
