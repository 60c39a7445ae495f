"""What people ask the leader for, as it waits in the store."""

from __future__ import annotations

import pytest

from celery_misfire import control
from celery_misfire.control import Request, read_hold, write_hold
from celery_misfire.records import Pause
from celery_misfire.store.memory import MemoryStore
from celery_misfire.store.memory_database import MemoryDatabase


def test_requests_are_left_in_their_order():
    store = MemoryStore(MemoryDatabase(clock=lambda: 7.0))
    ids = control.pause(store, ["b", "a"], until=9_000, reason="upgrade", by="ann")
    ids += control.hold(store, until=8_000, by="ann")
    store.database.clock = lambda: 8.0
    ids += control.resume(store, ["a"], by="bob") + control.release(store)
    requests = store.sight().requests
    assert set(requests) == set(ids)
    found = [Request.parse(text) for text in requests.values()]
    # Those of one moment may change places, but for those of one call.
    assert [r.entry for r in found if r and r.do == "pause"] == ["b", "a"]
    assert [r.at for r in found if r] == [7000, 7000, 7000, 8000, 8000]
    assert {(r.do, r.entry, r.at) for r in found if r} == {
        ("pause", "a", 7000),
        ("pause", "b", 7000),
        ("hold", "", 7000),
        ("resume", "a", 8000),
        ("release", "", 8000),
    }
    paused = next(r for r in found if r and r.entry == "b")
    assert paused.as_pause == Pause(7000, 9000, "upgrade", "ann")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        "{}",
        '{"do":"dance","at":1}',
        '{"do":"pause","at":"1"}',
        '{"do":"pause","at":1,"until":"x"}',
    ],
)
def test_what_is_no_request_is_none(text: str):
    assert Request.parse(text) is None


def test_what_a_newer_version_asks_for_is_read_as_far_as_it_is_known():
    assert Request.parse('{"do":"pause","at":1,"entry":"a","ticket":7}') == Request(
        do="pause", at=1, entry="a"
    )


def test_a_hold_is_read_as_it_was_written():
    hold = Pause(1, 2, "upgrade", "ann")
    assert read_hold(write_hold(hold)) == hold
    assert write_hold(None) == ""
    for text in ("", "x", "[]", "{}", '{"since":1}', '{"since":1,"until":null}', '{"since":"1","until":2}'):
        assert read_hold(text) is None
