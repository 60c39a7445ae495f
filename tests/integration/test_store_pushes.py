"""What every store promises of a commit that puts messages into queues, whether it is Redis or memory."""

from __future__ import annotations

import re

import pytest

from celery_misfire.exceptions import LeaseLost
from celery_misfire.store.port import Change, CommitResult, Push, Store, Taken
from tests.support.stores import StorePlace

#: In a Cluster, only queues of the state's own slot can be pushed to.
FIRST, SECOND, THIRD = (f"{{test}}{name}" for name in ("celery", "other", "third"))
LINE = {"event": "sent"}


@pytest.fixture
def store(place: StorePlace) -> Store:
    store = place.store()
    assert isinstance(store.acquire("token", 60), Taken)
    return store


def changes(names: str, old: str = "", new: str = "1") -> list[Change]:
    return [Change(name, old, new) for name in names]


def push(entry: str, queue: str = FIRST, message: bytes | str = "") -> Push:
    return Push(entry, "lpush", queue, message or f"message of {entry}")


def messages(entries: str) -> list[bytes]:
    return [f"message of {entry}".encode() for entry in entries]


def test_a_commit_puts_its_messages_into_their_queues(place: StorePlace, store: Store):
    pushes = [push("a"), push("b", SECOND), push("c"), push("a", SECOND), push("a")]
    result = store.commit("token", changes("abcd"), [LINE], pushes)
    assert result == CommitResult(queue_lengths={FIRST: 3, SECOND: 2})
    assert store.load() == dict.fromkeys("abcd", "1")
    assert store.log() == [LINE]
    # A worker takes out first what was put in first.
    assert place.take_messages(FIRST) == messages("aca")
    assert place.take_messages(SECOND) == messages("ba")


def test_the_lengths_of_queues_count_what_stood_there_before(store: Store):
    store.commit("token", changes("a"), pushes=[push("a")] * 3)
    result = store.commit("token", changes("a", "1", "2"), pushes=[push("a"), push("a", SECOND)])
    assert result.queue_lengths == {FIRST: 4, SECOND: 1}


def test_a_message_is_not_changed_on_its_way(place: StorePlace, store: Store):
    sent = [b"", b"\x00\xff\r\n", "ünï 💥", "[1]", "-ERR", b"a" * 100_000]
    pushes = [Push("a", "lpush", FIRST, message) for message in sent]
    assert store.commit("token", changes("a"), pushes=pushes).queue_lengths == {FIRST: 6}
    assert place.take_messages(FIRST) == [m.encode() if isinstance(m, str) else m for m in sent]


@pytest.mark.parametrize("broken", [FIRST, SECOND, THIRD])
def test_when_one_queue_takes_no_messages_nothing_is_done_at_all(
    place: StorePlace, store: Store, broken: str
):
    store.commit(
        "token", changes("a"), pushes=[push("a", queue) for queue in {FIRST, SECOND, THIRD} - {broken}]
    )
    place.spoil(broken)
    before = place.contents()
    pushes = [push("a", FIRST), push("b", SECOND), push("c", THIRD), push("d", FIRST), push("a", broken)]
    concerned = {FIRST: ("a", "d"), SECOND: ("b", "a"), THIRD: ("c", "a")}[broken]
    result = store.commit("token", [*changes("a", "1", "2"), *changes("bcd")], [LINE], pushes)
    assert place.contents() == before
    (refusal,) = result.refused
    assert result == CommitResult(refused=(refusal,))
    assert (refusal.queue, refusal.entries) == (broken, concerned)
    assert "WRONGTYPE" in refusal.error
    # Without the entries concerned, the rest goes.
    rest = [entry for entry in "bcd" if entry not in concerned]
    pushes = [one for one in pushes if one.entry in rest]
    assert not store.commit("token", changes("".join(rest)), [LINE], pushes).refused
    assert store.load().keys() == {"a", *rest}


def test_a_commit_that_is_repeated_pushes_once(place: StorePlace, store: Store):
    attempt = changes("ab"), [LINE], [push("a"), push("b", SECOND)]
    first = store.commit("token", *attempt)
    before = place.contents()
    assert store.commit("token", *attempt) == first == CommitResult(queue_lengths={FIRST: 1, SECOND: 1})
    assert place.contents() == before
    # Also when workers have taken the messages meanwhile.
    place.take_messages(FIRST)
    assert store.commit("token", *attempt).queue_lengths == {FIRST: 0, SECOND: 1}
    assert place.take_messages(FIRST) == []


@pytest.mark.parametrize("pushes", [[push("b")], [Push("b", "publish", "news", "message")]])
def test_a_message_goes_with_its_own_record_or_not_at_all(
    place: StorePlace, store: Store, pushes: list[Push]
):
    """One of the records is the new one already: with or without its messages, nobody can tell."""
    store.commit("token", changes("a"))
    before = place.contents()
    assert store.commit("token", changes("ab"), [LINE], pushes) == CommitResult(("a",))
    assert place.contents() == before


def test_records_in_conflict_hold_back_all_messages(place: StorePlace, store: Store):
    store.commit("token", changes("ab"))
    before = place.contents()
    attempt = [*changes("b", "0", "2"), *changes("c")]
    result = store.commit("token", attempt, [LINE], [push("b"), push("c"), push("c", SECOND)])
    assert result == CommitResult(("b",))
    assert place.contents() == before


@pytest.mark.parametrize("how", ["other", "", "given up", "taken over"])
def test_who_does_not_hold_the_lease_pushes_nothing(place: StorePlace, store: Store, how: str):
    if how == "given up":
        store.release("token")
    elif how == "taken over":
        store.release("token")
        assert isinstance(store.acquire("new", 60), Taken)
    before = place.contents()
    with pytest.raises(LeaseLost):
        store.commit("token" if " " in how else how, changes("a"), [LINE], [push("a")])
    assert place.contents() == before


@pytest.mark.parametrize("kind", ["lpush", "publish", "pexpire"])
@pytest.mark.parametrize("change", [[], changes("b"), changes("a", "1", "1")])
def test_a_push_without_a_change_of_its_record_is_refused(
    place: StorePlace, store: Store, kind: str, change: list[Change]
):
    store.commit("token", changes("a"))
    before = place.contents()
    with pytest.raises(ValueError, match=f"{kind} without a change of the record of 'a'"):
        store.commit("token", change, [LINE], [Push("a", kind, FIRST, "1")])
    assert place.contents() == before


def test_a_record_that_stays_as_it_is_does_not_stop_the_others(place: StorePlace, store: Store):
    store.commit("token", changes("a"))
    result = store.commit("token", [*changes("a", "1", "1"), *changes("b")], [LINE], [push("b")])
    assert result == CommitResult(queue_lengths={FIRST: 1})


@pytest.mark.parametrize("right", ["lpush", "lpop"])
def test_without_the_rights_no_queue_takes_messages(place: StorePlace, store: Store, right: str):
    """Without the right to pop, nothing could be undone."""
    before = place.contents()
    place.forbid(right)
    pushes = [push("a"), push("b", SECOND), push("b"), push("c", SECOND)]
    result = store.commit("token", changes("abcd"), [LINE], pushes)
    assert place.contents() == before
    assert [(one.queue, one.entries) for one in result.refused] == [(FIRST, ("a", "b")), (SECOND, ("b", "c"))]
    for refusal in result.refused:
        assert refusal.error.lower().startswith(f"{right}: ")
        assert re.search("permission|can't run", refusal.error)
    assert store.commit("token", changes("d"), [LINE]) == CommitResult()
    assert store.load() == {"d": "1"}


# -- queues that expire, and subscribers -------------------------------------------------------------------


def test_a_queue_expires_with_its_own_time_and_subscribers_hear_their_message(
    place: StorePlace, store: Store
):
    others = [Push("a", "pexpire", FIRST, "60000"), Push("b", "publish", "news", "message of b")]
    with place.subscribe("news") as heard:
        result = store.commit("token", changes("ab"), [LINE], [push("a"), *others])
        assert result == CommitResult(queue_lengths={FIRST: 1})
        assert heard() == b"message of b"
    assert 30 < place.ends_in(FIRST) <= 60


def test_a_queue_without_a_message_expires_too(place: StorePlace, store: Store):
    store.commit("token", changes("a"), [LINE], [push("a")])
    others = [Push("a", "pexpire", queue, "60000") for queue in (FIRST, SECOND)]
    assert store.commit("token", changes("a", "1", "2"), [LINE], others) == CommitResult()
    assert 30 < place.ends_in(FIRST) <= 60


@pytest.mark.parametrize("command", ["publish", "pexpire"])
def test_a_publish_or_an_expiry_that_fails_changes_nothing_else(
    place: StorePlace, store: Store, command: str
):
    place.forbid(command)
    others = [Push("a", "pexpire", FIRST, "60000"), Push("b", "publish", "news", "message")]
    result = store.commit("token", changes("ab"), [LINE], [push("a"), *others])
    ((failed, error),) = result.failed
    assert failed.kind == command
    assert re.search("permission|can't run", error)
    assert result == CommitResult(queue_lengths={FIRST: 1}, failed=((failed, error),))
    assert store.load() == {"a": "1", "b": "1"}
    assert store.log() == [LINE]
    assert place.take_messages(FIRST) == messages("a")


# -- counts ------------------------------------------------------------------------------------------------


def test_outcomes_are_counted_by_the_hour(place: StorePlace, store: Store):
    begin = place.time()
    assert store.counts_since(begin) == {}
    counts = {("a", "fired"): 3, ("a", "missed"): 2, ("", "fired"): 1, ("x:ünï\n", "fired"): 10**12}
    attempt = changes("ab"), [LINE], [push("a")], counts
    for _ in range(2):
        # Repeated, it counts once.
        store.commit("token", *attempt)
        assert store.counts_since(begin) == counts
    # Without changes it counts each time.
    for _ in range(2):
        store.commit("token", [], counts={("a", "fired"): 1})
    assert store.counts_since(begin) == counts | {("a", "fired"): 5}
    assert store.counts_since(0) == counts | {("a", "fired"): 5}
    assert store.counts_since(begin + 7200) == {}
    assert store.load().keys() == {"a", "b"}


def test_what_was_not_done_is_not_counted(place: StorePlace, store: Store):
    begin, counts = place.time(), {("a", "fired"): 1}
    store.commit("token", changes("a", "", "0"))
    assert store.commit("token", changes("a"), counts=counts).conflicts
    with pytest.raises(LeaseLost):
        store.commit("other", changes("b"), counts=counts)
    place.spoil(FIRST)
    assert store.commit("token", changes("b"), pushes=[push("b")], counts=counts).refused
    assert store.counts_since(begin) == {}
