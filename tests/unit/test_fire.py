from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from celery import Celery

from celery_misfire import Fire, current_fire
from celery_misfire.fire import HEADER, header, isoformat, task_id
from celery_misfire.misfire import MisfireInstruction, Outcome, to_millis

NINE = datetime(2026, 3, 2, 9, tzinfo=UTC)
TEN = NINE + timedelta(hours=1)
QUARTER_PAST_TEN = datetime(2026, 3, 2, 10, 15, 0, 250_000, tzinfo=UTC)


def make_header(**changes: Any) -> dict[str, Any]:
    """The header of the classic example under fire_once_now, with changes."""
    arguments: dict[str, Any] = {
        "entry": "reports",
        "scheduled": to_millis(NINE),
        "fire_time": to_millis(QUARTER_PAST_TEN),
        "outcome": Outcome.RECOVERED,
        "merged": 1,
        "last_missed": to_millis(TEN),
        "generation": 7,
        "instruction": MisfireInstruction.SMART_POLICY,
        "resolved": MisfireInstruction.FIRE_ONCE_NOW,
        "threshold": 60.0,
    }
    return header(**arguments | changes)


app = Celery("fires", broker="memory://", set_as_current=False)
app.conf.task_always_eager = True


@app.task(name="read")
def read() -> Fire | None:
    return current_fire()


@app.task(name="parent")
def parent() -> Fire | None:
    return read.delay().get(disable_sync_subtasks=False)


@app.task(name="again", bind=True, max_retries=2)
def again(self: Any) -> Fire | None:
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return current_fire()


def fire_of(raw: object, task: Any = read) -> Fire | None:
    """What `task` reads when it is sent with this header."""
    return task.apply_async(headers={HEADER: raw}).get()


# -- the header --------------------------------------------------------------------------------------------


def test_the_header_says_all_that_the_worker_needs() -> None:
    content = make_header(on_missed="ops.alarm")

    nonce = content.pop("nonce")
    assert len(bytes.fromhex(nonce)) == 8
    assert content == {
        "v": 1,
        "entry": "reports",
        "scheduled_fire_time": "2026-03-02T09:00:00.000+00:00",
        "fire_time": "2026-03-02T10:15:00.250+00:00",
        "outcome": "recovered",
        "missed_count": 2,
        "last_missed_fire_time": "2026-03-02T10:00:00.000+00:00",
        "instruction": "smart_policy",
        "resolved": "fire_once_now",
        "threshold": 60.0,
        "generation": 7,
        "on_missed": "ops.alarm",
    }


def test_a_run_that_stands_in_the_queue_once_says_so_in_one_more_field() -> None:
    once, again = make_header(once=True), make_header()

    assert once | {"nonce": ""} == again | {"nonce": "", "once": True}


def test_the_header_is_plain_json_and_needs_no_class_of_ours_to_be_unpickled() -> None:
    content = make_header()

    assert json.loads(json.dumps(content)) == content
    assert b"celery_misfire" not in pickle.dumps(content)


def test_each_publish_attempt_has_a_nonce_of_its_own() -> None:
    assert len({make_header()["nonce"] for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("outcome", "merged", "missed_count"),
    [(Outcome.FIRED, 0, 0), (Outcome.RECOVERED, 0, 1), (Outcome.RECOVERED, 1, 2)],
)
def test_the_missed_count_includes_the_run_itself_when_it_misfired(
    outcome: Outcome, merged: int, missed_count: int
) -> None:
    assert make_header(outcome=outcome, merged=merged)["missed_count"] == missed_count


def test_an_entry_without_misfire_handling_has_a_header_too() -> None:
    raw = make_header(
        instruction=None, resolved=None, threshold=None, outcome=Outcome.FIRED, merged=0, last_missed=None
    )

    fire = fire_of(raw)

    assert fire is not None
    assert (fire.outcome, fire.missed_count, fire.last_missed_fire_time) == (Outcome.FIRED, 0, None)


# -- current_fire ------------------------------------------------------------------------------------------


def test_the_task_reads_its_fire() -> None:
    assert fire_of(make_header()) == Fire(
        scheduled_fire_time=NINE,
        fire_time=QUARTER_PAST_TEN,
        entry="reports",
        outcome=Outcome.RECOVERED,
        missed_count=2,
        last_missed_fire_time=TEN,
    )


def test_a_retry_reads_the_same_fire() -> None:
    fire = fire_of(make_header(), task=again)

    assert fire is not None
    assert fire.scheduled_fire_time == NINE


def test_times_are_read_in_utc() -> None:
    fire = fire_of(make_header() | {"fire_time": "2026-03-02T12:15:00.250+02:00"})

    assert fire is not None
    assert fire.fire_time == QUARTER_PAST_TEN
    assert fire.fire_time.tzinfo is UTC


def test_outside_of_a_task_there_is_no_fire() -> None:
    assert current_fire() is None


def test_a_task_that_beat_did_not_send_has_no_fire() -> None:
    assert read.delay().get() is None


def test_a_task_that_a_scheduled_task_sends_has_no_fire() -> None:
    assert fire_of(make_header(), task=parent) is None


def test_a_task_called_as_a_function_has_no_fire() -> None:
    assert read() is None


@pytest.mark.parametrize(
    "raw",
    [
        "misfire",
        7,
        True,
        [],
        [make_header()],
        {},
        make_header() | {"v": 2},
        make_header() | {"v": None},
        make_header() | {"v": []},
        *(
            {k: v for k, v in make_header().items() if k != left_out}
            for left_out in ("v", "entry", "scheduled_fire_time", "fire_time", "outcome", "missed_count")
        ),
        make_header() | {"scheduled_fire_time": None},
        make_header() | {"scheduled_fire_time": 1_700_000_000},
        make_header() | {"scheduled_fire_time": "yesterday"},
        make_header() | {"scheduled_fire_time": "9" * 100_000},
        make_header() | {"scheduled_fire_time": "2026-03-02T09:00:00"},
        make_header() | {"fire_time": "0001-01-01T00:00:00+23:59"},
        make_header() | {"last_missed_fire_time": {"$ne": None}},
        make_header() | {"entry": 7},
        make_header() | {"entry": None},
        make_header() | {"outcome": "exploded"},
        make_header() | {"outcome": []},
        make_header() | {"missed_count": "2"},
        make_header() | {"missed_count": -1},
        make_header() | {"missed_count": True},
        make_header() | {"missed_count": 1.5},
    ],
)
def test_a_header_that_makes_no_sense_is_no_fire_and_no_error(raw: object) -> None:
    assert fire_of(raw) is None


@pytest.mark.parametrize("headers", ["misfire", 7, [HEADER], {"headers": None}])
def test_headers_that_are_no_headers_are_no_error(headers: Any) -> None:
    read.push_request(headers=headers)
    try:
        assert read.run() is None
    finally:
        read.pop_request()


# -- ids ---------------------------------------------------------------------------------------------------


def test_the_task_id_of_an_occurrence_never_changes() -> None:
    # A new release must not give a run that was claimed under an older one another id.
    assert task_id("shop", "reports", 7, to_millis(NINE)) == "73385998-2806-5743-bed4-3378d53c83d4"


def test_every_part_of_an_occurrence_counts_in_its_task_id() -> None:
    ids = {
        task_id(*parts)
        for parts in [
            ("shop", "reports", 7, 1000),
            ("shop2", "reports", 7, 1000),
            ("shop", "reports2", 7, 1000),
            ("shop", "reports", 8, 1000),
            ("shop", "reports", 7, 1001),
            ("shop", "reports", 71, 0),
            ("shop,reports", "", 7, 1000),
            ("shop", "reports\n7", 7, 1000),
            ("shop", 'reports", 7', 7, 1000),
        ]
    }

    assert len(ids) == 9
    assert all(UUID(id_).version == 5 for id_ in ids)


@pytest.mark.parametrize("entry", ["", "день", "a\x00b", "\ud800", "x" * 100_000])
def test_any_name_gives_a_task_id(entry: str) -> None:
    assert UUID(task_id("shop", entry, 7, 1000))


def test_isoformat_cuts_to_the_millisecond_and_keeps_the_moment() -> None:
    moment = datetime(2026, 3, 2, 10, 0, 0, 999_999, tzinfo=UTC).astimezone(None)

    assert isoformat(moment) == "2026-03-02T10:00:00.999+00:00"
