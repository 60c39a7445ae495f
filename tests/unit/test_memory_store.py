"""The troubles that a database in memory can be given.

What it promises beside that, as every store does, is in tests/integration/test_store_contract.py.
"""

from __future__ import annotations

import threading

import pytest

from celery_misfire.exceptions import LeaseLost, StoreUnavailable
from celery_misfire.store.memory import Fault, MemoryDatabase, MemoryStore
from celery_misfire.store.port import Change, CommitResult, Push, Refusal, Store, Taken
from celery_misfire.store.registers import Merged, Missed, Register, Started, StartRequest

LINE = {"event": "1"}


@pytest.fixture
def database() -> MemoryDatabase:
    return MemoryDatabase(lambda: 1_700_000_000.0)


@pytest.fixture
def store(database: MemoryDatabase) -> MemoryStore:
    store = MemoryStore(database)
    assert isinstance(store.acquire("token", 60), Taken)
    return store


def commit(store: Store, token: str = "token") -> CommitResult:
    return store.commit(token, [Change("a", "", "1")], [LINE])


@pytest.mark.parametrize("call", ["commit", "load", "advice"])
def test_a_call_that_does_not_arrive_does_nothing(database: MemoryDatabase, store: MemoryStore, call: str):
    database.fault = lambda owner, name: Fault.UNREACHABLE if name == call else None
    before = database.snapshot()
    with pytest.raises(StoreUnavailable, match="state in memory: unreachable"):
        commit(store) if call == "commit" else getattr(store, call)()
    assert database.snapshot() == before
    assert store.register("1") is None


def test_a_call_whose_answer_gets_lost_was_carried_out(database: MemoryDatabase, store: MemoryStore):
    database.fault = lambda owner, name: Fault.ANSWER_LOST
    with pytest.raises(StoreUnavailable, match="answer lost"):
        commit(store)
    # Nobody knows what it would have answered.
    with pytest.raises(StoreUnavailable, match="answer lost"):
        commit(store, "another token")
    database.fault = lambda owner, name: None
    assert store.load() == {"a": "1"}
    assert commit(store) == CommitResult()
    assert store.log() == [LINE]


@pytest.mark.parametrize("fenced", [False, True])
def test_a_call_that_is_late_is_carried_out_afterwards_unless_it_is_fenced(
    database: MemoryDatabase, store: MemoryStore, fenced: bool
):
    database.fault = lambda owner, name: Fault.LATE if name == "commit" else None
    with pytest.raises(StoreUnavailable):
        commit(store)
    assert store.load() == {}
    if fenced:
        store.release("token")
        assert isinstance(store.acquire("new", 60), Taken)
    database.carry_out_late()
    assert store.load() == ({} if fenced else {"a": "1"})
    database.carry_out_late()
    assert len(store.log()) == (0 if fenced else 1)


def test_one_client_may_be_cut_off_while_another_goes_on(database: MemoryDatabase, store: MemoryStore):
    other = MemoryStore(database, owner="elsewhere:2")
    database.fault = lambda owner, name: Fault.UNREACHABLE if owner == other.owner else None
    with pytest.raises(StoreUnavailable):
        other.load()
    assert commit(store) == CommitResult()


def test_a_database_goes_back_to_a_snapshot_with_all_that_it_holds(
    database: MemoryDatabase, store: MemoryStore
):
    database.contents.queues["celery"].append("first")
    commit(store)
    snapshot = database.snapshot()
    database.contents.queues["celery"].append("second")
    store.commit("token", [Change("a", "1", "2")], [LINE])
    for _ in range(2):
        database.put_back(snapshot)
        assert store.load() == {"a": "1"}
        assert store.log() == [LINE]
        assert database.contents.queues == {"celery": ["first"]}
        # The snapshot stays what it was.
        database.contents.queues["celery"].clear()
        store.commit("token", [Change("a", "1", "")], [LINE])


def test_a_database_that_is_lost_has_nothing_left(database: MemoryDatabase, store: MemoryStore):
    database.contents.queues["celery"].append("first")
    commit(store)
    database.lose()
    assert (store.load(), store.log(), database.contents.queues) == ({}, [], {})
    with pytest.raises(LeaseLost):
        commit(store)


# -- messages ----------------------------------------------------------------------------------------------

PUSHES = [Push("a", "lpush", "celery", "first"), Push("a", "lpush", "celery", b"second")]


def send(store: Store, token: str = "token") -> CommitResult:
    return store.commit(token, [Change("a", "", "1")], [LINE], PUSHES, {("a", "fired"): 1})


def queue(database: MemoryDatabase) -> list[str | bytes]:
    return database.contents.queues["celery"]


def test_messages_whose_answer_gets_lost_stand_in_their_queue_once(
    database: MemoryDatabase, store: MemoryStore
):
    database.fault = lambda owner, name: Fault.ANSWER_LOST
    with pytest.raises(StoreUnavailable, match="answer lost"):
        send(store)
    database.fault = lambda owner, name: None
    assert queue(database) == ["first", b"second"]
    assert send(store) == CommitResult(queue_lengths={"celery": 2})
    assert queue(database) == ["first", b"second"]
    assert store.counts_since(0) == {("a", "fired"): 1}


def test_messages_that_get_lost_on_their_way_stand_in_no_queue(database: MemoryDatabase, store: MemoryStore):
    database.fault = lambda owner, name: Fault.UNREACHABLE
    with pytest.raises(StoreUnavailable, match="unreachable"):
        send(store)
    database.fault = lambda owner, name: None
    assert (queue(database), store.load()) == ([], {})


@pytest.mark.parametrize("token", ["token", "new"])
def test_messages_that_are_late_are_fenced_by_a_new_token(
    database: MemoryDatabase, store: MemoryStore, token: str
):
    database.fault = lambda owner, name: Fault.LATE if name == "commit" else None
    with pytest.raises(StoreUnavailable):
        send(store)
    database.fault = lambda owner, name: None
    if token == "new":
        store.release("token")
        assert isinstance(store.acquire("new", 60), Taken)
        assert send(store, "new").queue_lengths == {"celery": 2}
    database.carry_out_late()
    assert queue(database) == ["first", b"second"]
    assert store.log() == [LINE]


def test_a_queue_that_refuses_a_message_gets_none_of_a_commit(database: MemoryDatabase, store: MemoryStore):
    before = database.snapshot()
    database.refuse = lambda push: "no room" if push.value == b"second" else ""
    assert send(store) == CommitResult(refused=(Refusal("celery", "no room", ("a",)),))
    assert database.snapshot() == before


def test_records_and_messages_go_back_together(database: MemoryDatabase, store: MemoryStore):
    snapshot = database.snapshot()
    send(store)
    database.put_back(snapshot)
    assert (store.load(), queue(database), store.counts_since(0)) == ({}, [], {})
    assert send(store).queue_lengths == {"celery": 2}


def test_counts_end_after_eight_days():
    now = 1_700_000_000.0
    database = MemoryDatabase(lambda: now)
    store = MemoryStore(database)
    store.acquire("token", 1e9)
    for days in range(12):
        now = 1_700_000_000.0 + days * 86_400
        store.commit("token", [], counts={("a", "fired"): 1})
    assert store.counts_since(0) == {("a", "fired"): 9}
    assert store.counts_since(now - 86_400) == {("a", "fired"): 2}
    assert len(database.contents.counts) == 9


def test_threads_may_share_a_store(store: MemoryStore):
    def write(name: str) -> None:
        for n in range(200):
            change = Change(name, str(n) if n else "", str(n + 1))
            assert not store.commit("token", [change], [LINE]).conflicts

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.load() == dict.fromkeys("abcd", "200")
    ids = [id_ for id_, _ in store.log_after("0-0", 1000)]
    assert len(set(ids)) == len(ids) == 800


@pytest.mark.parametrize(
    ("value", "by_hand", "days"),
    [
        (Started("nonce", "w"), False, 1),
        (Merged("an-id"), False, 1),
        (Missed("expired", "nonce"), False, 7),
        (Started("nonce", "w"), True, 90),
    ],
)
def test_a_register_is_kept_as_long_as_its_kind(value: Register, by_hand: bool, days: int):
    now = 1_700_000_000.0
    store = MemoryStore(MemoryDatabase(lambda: now))
    store.start("1", StartRequest(value, entry="e", by_hand=by_hand))
    now += days * 86_400 - 1
    assert store.register("1") == value
    now += 2
    assert store.register("1") is None
