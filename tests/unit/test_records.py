"""The record of an entry: its JSON form, and how decisions are claimed and judged again."""

import copy
import json
import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from celery.schedules import crontab, schedule
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_misfire import records
from celery_misfire.episodes import Episodes
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
from celery_misfire.records import MAX_LENGTH, EntryRecord, Intent, Pause, Unreported, dumps, loads
from celery_misfire.schedules import simple
from celery_misfire.triggers.kinds import trigger_for
from tests.support.old_state import read_dump, records_of
from tests.support.schedules import build_schedule

NOW = to_millis(datetime(2026, 3, 2, tzinfo=UTC))
MINUTE, HOUR = 60_000, 3_600_000

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
        '{"v": NaN}',
    ],
    ids=range(13),
)
def test_a_text_that_is_no_record_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - any text will do
        loads(text)


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


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
        ("runs", {}),
        ("missed", ""),
        ("missed", [{"reason": "boredom"}]),
        ("extra", math.nan),
        ("extra", math.inf),
        ("extra", nested(51)),
        ("extra", nested(900)),
        ("generation", -9 * 10**13),
        ("state", {"next_fire_time": "soon", "start_time": 0}),
        ("state", {"next_fire_time": None}),
        ("state", None),
        ("v", 2),
        ("v", "1"),
    ],
)
def test_a_record_with_a_wrong_field_is_refused(field, value):
    record = records.first_seen("a", "t", trigger_for(schedule(60)), NOW, from_now=False)
    data = json.loads(dumps(record)) | {field: value}
    with pytest.raises(ValueError):  # noqa: PT011
        loads(json.dumps(data))


def test_a_number_that_could_not_be_written_back_is_refused():
    text = PINNED[0].replace('"v":1', '"v":1,"w":1e999')
    with pytest.raises(ValueError, match="out of range"):
        loads(text)


@pytest.mark.parametrize("word", ["", "Boredom", "two words", "-", "a" * 51, "né", 7, None, ["fired"]])
@pytest.mark.parametrize(
    ("items", "field"),
    [("missed", "reason"), ("missed", "instruction"), ("runs", "outcome"), ("intents", "outcome")],
)
def test_what_is_no_word_is_refused(items, field, word):
    data = json.loads(PINNED[1])
    data[items][0][field] = word
    with pytest.raises(ValueError):  # noqa: PT011
        loads(json.dumps(data))


# -- the text as it stands in Redis -------------------------------------------------------------------------

#: A new text needs a new schema, or readers of this one have to get along with it.
PINNED = [
    '{"fingerprint":"f","generation":1,"intents":[],"missed":[],"name":"n","paused_from":null,'
    '"removed_at":null,"runs":[],"state":{"end_time":null,"max_runs":null,"next_fire_time":2,'
    '"previous_fire_time":null,"repeat_count":null,"start_time":3,"times_triggered":0},"task":"t","v":1}',
    '{"fingerprint":"f \\u00fc","generation":1,"intents":[{"claimed_at":4,"generation":3,"last_missed":6,'
    '"merged":5,"outcome":"recovered","scheduled":2,"unsent":true}],"missed":[{"count":9,"detected_at":10,'
    '"first":7,"generation":11,"instruction":"do_nothing","last":8,"reason":"too_old"}],"name":"n",'
    '"paused_from":13,"removed_at":12,"runs":[{"count":16,"first":14,"last":15,"last_missed":18,"merged":17,'
    '"outcome":"fired"}],"state":{"end_time":24,"max_runs":25,"next_fire_time":19,"previous_fire_time":21,'
    '"repeat_count":23,"start_time":20,"times_triggered":22},"task":"t","v":1}',
]


def test_the_text_of_a_record_stays_what_it_is():
    plain = EntryRecord("n", "t", 1, "f", TriggerState(2, 3))
    full = EntryRecord(
        name="n",
        task="t",
        generation=1,
        fingerprint="f ü",
        state=TriggerState(19, 20, 21, 22, 23, 24, 25),
        runs=(Runs(14, 15, 16, Outcome.FIRED, 17, 18),),
        intents=(Intent(2, 3, Outcome.RECOVERED, 4, 5, 6, unsent=True),),
        missed=(Unreported(7, 8, 9, Reason.TOO_OLD, MisfireInstruction.DO_NOTHING, 10, 11),),
        removed_at=12,
        paused_from=13,
    )
    assert [dumps(plain), dumps(full)] == PINNED
    assert [loads(text) for text in PINNED] == [plain, full]


def test_a_pause_is_a_field_of_its_own_which_another_version_keeps():
    plain = EntryRecord("n", "t", 1, "f", TriggerState(2, 3))
    paused = replace(plain, paused=Pause(4, 5, "upgrade", "ann"))
    pause = '"paused":{"by":"ann","reason":"upgrade","since":4,"until":5},'
    text = PINNED[0].replace('"paused_from"', f'{pause}"paused_from"')
    assert dumps(paused) == text
    assert loads(text) == paused
    newer = text.replace('"by"', '"approved":true,"by"')
    assert dumps(loads(newer)) == json.dumps(json.loads(newer), sort_keys=True, separators=(",", ":"))
    assert [Pause(4, until).is_over(5) for until in (None, 5, 6)] == [False, True, False]
    for wrong in ('{"since":"x"}', '{"until":5}', "7", '{"since":4,"by":7}'):
        with pytest.raises(ValueError):  # noqa: PT011
            loads(text.replace(pause, f'"paused":{wrong},'))


def test_an_entry_that_wakes_up_in_time_goes_on_as_it_was_and_a_counted_one_keeps_its_count():
    trigger = trigger_for(simple(datetime.fromtimestamp(NOW / 1000, UTC), interval=60, repeat_count=5))
    record = records.first_seen("a", "t", trigger, NOW - 1, from_now=False)
    paused = replace(record, paused=Pause(NOW - 1))
    assert records.awakened(paused, trigger, NOW - 1, NOW, misfires=False) == record
    late = records.awakened(paused, trigger, NOW + MINUTE, NOW + MINUTE, misfires=False)
    assert (late.state.next_fire_time, late.state.times_triggered) == (NOW + 2 * MINUTE, 0)
    assert late.missed == ()
    # All of its fire times were in the pause.
    over = records.awakened(paused, trigger, NOW + 9 * MINUTE, NOW + 9 * MINUTE, misfires=False)
    assert over.state.next_fire_time is None


def test_a_renamed_entry_keeps_its_fire_times_and_its_intents_the_name_of_their_ids():
    record = replace(claimed(unsent(NOW + MINUTE)), key="7")
    missed = (Unreported(1, 2, 2, Reason.TOO_OLD, MisfireInstruction.DO_NOTHING, 3, 4),)
    record = replace(record, missed=missed, begun_at=NOW)
    moved, left = records.renamed(record, "new", None), records.vacated(record, NOW + 1)
    assert (moved.name, moved.key, moved.state, moved.missed) == ("new", "7", record.state, ())
    assert [i.entry for i in moved.intents] == [record.name]
    assert moved.generation > record.generation
    assert moved.begin == record.begin
    assert (left.name, left.key, left.missed, left.intents) == (record.name, None, missed, ())
    assert left.removed_at == NOW + 1
    for one in (moved, left):
        assert loads(dumps(one)) == one
    again = records.renamed(moved, "newer", left)
    assert [i.entry for i in again.intents] == [record.name]
    assert again.missed == left.missed
    lost = records.with_unsent(moved, [moved.intents], Reason.PAUSED, MisfireInstruction.DO_NOTHING, NOW)
    assert lost.missed[0].entry == record.name


def test_the_begin_of_a_generation_is_written_only_where_the_generation_does_not_tell_it():
    record = EntryRecord("n", "t", 5, "f", TriggerState(2, 3), begun_at=4)
    assert dumps(record).startswith('{"begun_at":4,"fingerprint":"f","generation":5,')
    assert loads(dumps(record)) == record
    assert (record.begin, replace(record, begun_at=None).begin) == (4, 5)


def test_what_was_merged_into_a_run_that_is_given_up_is_missed_with_it():
    given_up = Intent(NOW, NOW, Outcome.RECOVERED, NOW, merged=2, last_missed=NOW + 2 * MINUTE)
    waits = Runs(NOW + 3 * MINUTE, NOW + 3 * MINUTE, 1, Outcome.RECOVERED, 4, NOW + 7 * MINUTE)
    record = replace(claimed(given_up), runs=(waits,))
    gone = records.removed(record, NOW + HOUR)
    spans = [(m.first, m.last, m.count) for m in gone.missed]
    assert spans == [(NOW, NOW + 2 * MINUTE, 3), (NOW + 3 * MINUTE, NOW + 7 * MINUTE, 5)]


def test_a_run_keeps_the_state_that_it_has_put_an_end_to():
    before = TriggerState(14, 3, times_triggered=1, repeat_count=7)
    runs = Runs(14, 14, 1, Outcome.RECOVERED, before=before)
    intent = Intent(2, 3, Outcome.RECOVERED, 4, before=before)
    record = EntryRecord("n", "t", 1, "f", TriggerState(19, 20), runs=(runs,), intents=(intent,))
    assert loads(dumps(record)) == record


def test_fields_that_an_older_version_did_not_have_take_their_defaults():
    data = json.loads(PINNED[1])
    for field in ("removed_at", "paused_from"):
        del data[field]
    for field in ("previous_fire_time", "times_triggered", "repeat_count", "end_time", "max_runs"):
        del data["state"][field]
    for field in ("merged", "last_missed"):
        del data["runs"][0][field], data["intents"][0][field]
    del data["intents"][0]["unsent"]
    found = loads(json.dumps(data))
    assert (found.removed_at, found.paused_from) == (None, None)
    assert found.state == TriggerState(19, 20)
    assert found.runs == (Runs(14, 15, 16, Outcome.FIRED),)
    assert found.intents == (Intent(2, 3, Outcome.RECOVERED, 4),)


def test_words_are_stored_as_they_are_spelled_here():
    stored = {str(word) for word in (*Outcome, *Reason, *MisfireInstruction)}
    assert stored == {
        *("fired", "recovered", "merged", "missed"),
        *("scheduler_down", "failover", "store_unavailable", "broker_unavailable", "scheduler_busy"),
        *("queue_late", "paused", "too_old", "capped", "ended", "schedule_error", "publish_rejected"),
        *("entry_deleted", "clock_jump", "expired", "start_in_past", "restarted"),
        *("smart_policy", "ignore_misfire_policy", "fire_once_now", "do_nothing", "fire_now"),
        *("reschedule_now_with_existing_repeat_count", "reschedule_now_with_remaining_repeat_count"),
        *("reschedule_next_with_existing_count", "reschedule_next_with_remaining_count"),
    }


# -- what a newer version has written ------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=6,
)
new_fields = st.dictionaries(
    st.text().map("x{}".format) | st.sampled_from(["", "a", "zz"]), json_values, max_size=2
)
new_words = st.from_regex(r"[a-z][a-z0-9_]{0,30}", fullmatch=True)


@settings(deadline=None)
@given(entry_records(), st.data())
def test_fields_and_words_of_a_newer_version_are_kept_and_written_back(record, data):
    known = json.loads(dumps(record))
    newer = copy.deepcopy(known)
    for part in (newer, newer["state"], *newer["runs"], *newer["intents"], *newer["missed"]):
        part.update(data.draw(new_fields))
        for field in {"outcome", "reason", "instruction"} & part.keys():
            part[field] = data.draw(st.just(part[field]) | new_words)
    text = json.dumps(newer, sort_keys=True, separators=(",", ":"))
    found = loads(text)
    assert dumps(found) == text
    assert hash(found) == hash(loads(text))
    assert found.state == replace(record.state, unknown_fields=found.state.unknown_fields)
    assert [m.count for m in found.missed] == [m.count for m in record.missed]


def test_an_unknown_word_equals_no_known_one_and_is_told_as_it_is():
    word = Reason.read("boredom")
    assert (str(word), f"{word}", word.value, json.dumps(word)) == (
        "boredom",
        "boredom",
        "boredom",
        '"boredom"',
    )
    assert word not in list(Reason)
    assert word == Reason.read("boredom")
    assert Reason.read("too_old") is Reason.TOO_OLD
    with pytest.raises(ValueError, match="boredom"):
        Reason("boredom")


def with_new_fields(record: EntryRecord) -> EntryRecord:
    data = json.loads(dumps(record))
    for part in (data, data["state"], *data["runs"], *data["intents"], *data["missed"]):
        part["x"] = {"y": [1]}
    return loads(json.dumps(data))


def test_a_record_with_new_fields_is_planned_claimed_and_judged_and_keeps_them():
    trigger = trigger_for(schedule(60))
    lost = Unreported(NOW, NOW, 1, Reason.read("boredom"), MisfireInstruction.read("dance"), NOW, NOW)
    record = with_new_fields(replace(claimed(unsent(NOW)), missed=(lost,)))
    policy = MisfirePolicy("ignore_misfire_policy")
    late = NOW + 5 * MINUTE + 1
    record = records.with_plan(record, plan(trigger, record.state, policy, late), late)
    assert record.state.next_fire_time == NOW + 6 * MINUTE
    record = records.claim(record, trigger, late, 3)
    later = late + 2 * MINUTE
    episodes = Episodes(trigger, policy, later, lambda *_: Reason.FAILOVER)
    *_, (record, misfire) = episodes.judge(record, record.intents)
    assert misfire is not None
    data = json.loads(dumps(record))
    intents = {intent["scheduled"]: intent for intent in data["intents"]}
    kept = [data, data["state"], intents[NOW], data["missed"][0]]
    assert [part["x"] for part in kept] == [{"y": [1]}] * 4
    assert (data["missed"][0]["reason"], data["missed"][0]["instruction"]) == ("boredom", "dance")
    assert sorted(intents) == [NOW, NOW + MINUTE, NOW + 2 * MINUTE, NOW + 3 * MINUTE]


def test_an_edit_and_a_pause_keep_what_a_newer_version_knows_of_the_entry():
    trigger = trigger_for(schedule(60))
    record = with_new_fields(claimed(unsent(NOW)))
    gone = records.removed(record, NOW)
    for changed in (
        records.edited(record, "t", trigger_for(schedule(30)), NOW),
        gone,
        records.returned(gone, "t", trigger, NOW),
        records.resumed(gone, "t", NOW),
    ):
        assert changed.unknown_fields == '{"x":{"y":[1]}}'


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


# -- entries that change ------------------------------------------------------------------------------------


def claimed(*intents: Intent) -> EntryRecord:
    record = records.first_seen("a", "t", trigger_for(schedule(60)), NOW, from_now=False)
    return replace(record, intents=intents)


def unsent(scheduled: int, **changes) -> Intent:
    return Intent(scheduled, NOW, Outcome.FIRED, scheduled, unsent=True, **changes)


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


def test_paused_from_is_the_first_fire_time_of_a_pause_until_that_is_planned():
    trigger = trigger_for(schedule(60))
    record = records.first_seen("a", "t", trigger, NOW, from_now=False)
    assert record.paused_from is None
    gone = records.removed(record, NOW)
    assert gone.paused_from == NOW + MINUTE
    misfired = records.resumed(gone, "t", NOW + 5 * MINUTE)
    assert misfired.paused_from == misfired.state.next_fire_time == NOW + MINUTE
    planned = plan(trigger, misfired.state, MisfirePolicy("do_nothing"), NOW + 5 * MINUTE)
    assert records.with_plan(misfired, planned, NOW + 5 * MINUTE).paused_from is None
    in_time = records.resumed(gone, "t", NOW + MINUTE - 1)
    assert (in_time.paused_from, in_time.state.next_fire_time) == (None, NOW + MINUTE)


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
