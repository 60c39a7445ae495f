"""The texts that a store keeps: other versions of the package read them, so none may change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_misfire.exceptions import NewerSchema
from celery_misfire.misfire import Reason
from celery_misfire.store import registers
from celery_misfire.store.port import LeaseValue, Watched
from celery_misfire.store.registers import Merged, Missed, Register, Started, Unknown
from celery_misfire.store.state_mark import StateMark

WORDS = st.text(st.characters(exclude_characters="|:"), min_size=1)
NUMBERS = st.integers(0, 10**18)
LIKE_A_LEASE = st.lists(
    st.sampled_from(["", "token", "0", "7", "007", "-1", "٣", "1" * 30, "host:1"]), max_size=6
)


def test_the_text_of_a_lease():
    lease = LeaseValue("f00", 1_700_000_000_000, 12, "host:4711")
    assert str(lease) == "f00|1700000000000|12|host:4711"
    assert LeaseValue.parse("f00|1700000000000|12|host:4711") == lease
    assert str(lease.renewed()) == "f00|1700000000000|13|host:4711"
    # The owner may grow, without a bar.
    assert LeaseValue.parse("f00|1|2|host:4711:boot;id 5").owner == "host:4711:boot;id 5"


@given(WORDS, NUMBERS, NUMBERS, st.text(st.characters(exclude_characters="|")))
def test_a_lease_is_read_as_it_was_written(token: str, epoch: int, renewals: int, owner: str):
    lease = LeaseValue(token, epoch, renewals, owner)
    assert LeaseValue.parse(str(lease)) == lease


@given(st.text() | LIKE_A_LEASE.map("|".join))
def test_any_text_in_the_place_of_a_lease_is_kept_as_it_is(text: str):
    """It is compared with the text in the store, when a dead beat's lease is taken over."""
    assert str(LeaseValue.parse(text)) == text


@pytest.mark.parametrize(
    ("register", "text"),
    [
        (Started("n0nce", "worker@host"), "started:n0nce:worker@host"),
        (Started("n0nce", "worker@::1"), "started:n0nce:worker@::1"),
        (Missed("scheduler_down"), "missed:scheduler_down"),
        (Missed(Reason.FAILOVER), "missed:failover"),
        (Missed("a_reason_of_another_version", "n0nce"), "missed:a_reason_of_another_version:n0nce"),
        (Merged("5f0c3a1e-an-id"), "merged:5f0c3a1e-an-id"),
        (Unknown(), "unknown"),
        (Unknown("of another version"), "of another version"),
    ],
)
def test_the_text_of_a_register(register: Register, text: str):
    assert str(register) == text
    assert registers.parse(text) == register


@given(st.text())
def test_any_text_in_the_place_of_a_register_can_be_read(text: str):
    assert isinstance(registers.parse(text), Register)
    for word in ("started", "missed", "merged"):
        assert not isinstance(registers.parse(f"{word}:{text}"), Unknown)


def test_the_mark_of_a_complete_state():
    assert str(StateMark("shop")) == '{"app": "shop", "schema": 1}'
    assert StateMark.parse('{"app": "shop", "schema": 1}', "here") == StateMark("shop")
    # A field that a later version adds under the same schema does no harm.
    assert StateMark.parse('{"schema": 1, "destination": "0"}', "here") == StateMark("")
    with pytest.raises(NewerSchema, match="here has schema 2"):
        StateMark.parse('{"app": "shop", "schema": 2}', "here")


@given(st.text())
def test_any_text_in_the_place_of_the_mark_is_another_version(text: str):
    with pytest.raises(NewerSchema):
        StateMark.parse(text, "here")


def test_notes_of_the_watch_that_are_not_ours_count_as_none():
    assert Watched.parse(True, "1700000000000") == Watched(True, "1700000000000")
    assert Watched.parse(True, "soon") == Watched(True, "")
    assert Watched.parse(False, "") == Watched(False, "")
