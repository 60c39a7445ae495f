"""The store, against a real Redis: what is written, what is refused, and what a lost answer does."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from celery_misfire import records
from celery_misfire.events import Broken
from celery_misfire.exceptions import LeaseLost, NewerSchema, StoreUnavailable
from celery_misfire.leadership.lease import STALL_LIMIT, TRUST, Lease
from celery_misfire.leadership.ledger import LARGEST_WRITE, Commit, Ledger
from celery_misfire.records import EntryRecord
from celery_misfire.store import registers
from celery_misfire.store.port import REGISTER_TTL, Change, CommitResult, Held, LeaseValue, Taken
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.store.url import address
from celery_misfire.triggers.kinds import trigger_for
from tests.support.processes import wait_for
from tests.support.redis_server import ClusterNode, RedisServer

STATE, LEASE, LOG = (f"celery-misfire:{{test}}:{key}" for key in ("state", "lease", "log"))
REGISTER = "celery-misfire:{test}:fire:an-id"


@pytest.fixture(
    params=[
        "redis",
        pytest.param("cluster", marks=pytest.mark.long),
        pytest.param("valkey", marks=pytest.mark.long),
    ]
)
def redis_server(request: pytest.FixtureRequest, redis_binary: Path) -> Iterator[RedisServer]:
    """A fresh, empty server of each kind."""
    match request.param:
        case "cluster":
            server: RedisServer = ClusterNode(redis_binary)
        case "valkey":
            server = RedisServer(request.getfixturevalue("valkey_binary"))
        case _:
            server = RedisServer(redis_binary)
    with server:
        yield server


@pytest.fixture
def store(redis_server: RedisServer) -> RedisStore:
    return RedisStore(redis_server.url, "test")


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis_server.client() as client:
        yield client


def take(store: RedisStore, token: str = "token", ttl: float = 60) -> Taken:
    taken = store.acquire(token, ttl)
    assert isinstance(taken, Taken), taken
    return taken


def contents(server: RedisServer) -> dict[bytes, bytes]:
    """Return all that a Redis holds."""
    with redis.Redis.from_url(server.url) as client:
        return {key: client.dump(key) for key in client.scan_iter()}


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def record(name: str, now: int = 1_700_000_000_000) -> EntryRecord:
    return records.first_seen(name, "a.task", trigger_for(60), now, from_now=True)


# -- the lease ---------------------------------------------------------------------------------------------


def test_one_lease_at_a_time_and_its_holder_is_told_to_the_others(store: RedisStore, client: redis.Redis):
    taken = take(store, "mine", ttl=60)
    assert store.acquire("other", 60) == Held(taken.lease)
    assert client.get(LEASE) == str(taken.lease) == f"mine|{taken.epoch}|0|{store.owner}"
    assert 55_000 < client.pttl(LEASE) <= 60_000


def test_a_lease_that_was_given_up_or_ran_out_can_be_taken(store: RedisStore):
    first = take(store, "mine")
    store.release("other")
    assert isinstance(store.acquire("other", 60), Held)
    store.release("mine")
    second = take(store, "other", ttl=0.05)
    third = wait_for(lambda: isinstance(a := store.acquire("third", 60), Taken) and a)
    assert first.epoch < second.epoch < third.epoch
    assert (second.previous_epoch, third.previous_epoch) == (first.epoch, second.epoch)


def test_a_renewal_prolongs_ones_own_lease_alone(store: RedisStore, client: redis.Redis):
    take(store, "mine", ttl=1)
    store.renew(LeaseValue("mine", 7, 1, "here"), 60)
    assert client.get(LEASE) == "mine|7|1|here"
    assert client.pttl(LEASE) > 55_000
    with pytest.raises(LeaseLost):
        store.renew(LeaseValue("other", 7, 1, "there"), 60)
    # Neither may one that begins like it.
    with pytest.raises(LeaseLost):
        store.renew(LeaseValue("min", 7, 1, "there"), 60)
    assert client.get(LEASE) == "mine|7|1|here"
    client.delete(LEASE)
    with pytest.raises(LeaseLost):
        store.renew(LeaseValue("mine", 7, 2, "here"), 60)
    assert not client.exists(LEASE)


def test_the_epoch_grows_through_a_flush_and_through_a_clock_that_was_set_back(
    store: RedisStore, client: redis.Redis
):
    first = take(store, "1")
    client.flushall()
    second = take(store, "2")
    assert second.epoch > first.epoch
    assert second.previous_epoch == 0
    store.release("2")
    # As if Redis's clock had been an hour ahead at that time.
    ahead = second.epoch + 3_600_000
    client.hset(STATE, "_epoch", ahead)
    assert take(store, "3").epoch == ahead + 1


def test_a_state_is_cold_until_it_was_marked_as_complete(store: RedisStore):
    assert take(store, "1").cold
    store.release("1")
    assert take(store, "2").cold
    store.write_meta("2", "shop")
    store.release("2")
    assert not take(store, "3").cold


@pytest.mark.parametrize("changes", [False, True])
def test_a_lease_that_has_not_changed_for_its_time_to_live_on_ones_own_clock_is_taken_over(
    store: RedisStore, client: redis.Redis, changes: bool
):
    """Redis's own clock may have been set back, and then it keeps the lease of a dead beat for hours."""
    take(store, "dead", ttl=3600)
    clock = Clock()
    standby = Lease(store, ttl=30, renew_every=10, clock=clock)
    assert standby.acquire() is None
    assert standby.holder
    clock.now += 29.9
    if changes:
        store.renew(LeaseValue("dead", 1, 1, "alive after all"), 3600)
    assert standby.acquire() is None
    assert standby.other_was_alive is changes
    clock.now += 0.2
    if changes:
        assert standby.acquire() is None
        clock.now += 30
    assert standby.acquire()
    try:
        assert standby.held
        with pytest.raises(LeaseLost):
            store.renew(LeaseValue("dead", 1, 2, "here"), 3600)
    finally:
        standby.release()
    assert not client.exists(LEASE)


def test_a_store_that_lost_its_state_under_another_beat_is_left_to_that_one_for_a_time_to_live(
    store: RedisStore, client: redis.Redis
):
    clock = Clock()
    leader, standby = (Lease(store, ttl=30, renew_every=1000, clock=clock) for _ in range(2))
    try:
        assert leader.acquire()
        store.write_meta(leader.token, "test")
        assert standby.acquire() is None
        # However long it took to come back.
        clock.now += 100
        client.flushall()
        assert standby.acquire() is None
        assert (standby.holder, client.exists(STATE)) == ("", 0)
        clock.now += 29
        assert standby.acquire() is None
        assert leader.acquire()
        store.write_meta(leader.token, "test")
        clock.now += 2
        assert standby.acquire() is None
        assert standby.holder == store.owner
        client.flushall()
        assert standby.acquire() is None
        clock.now += 30
        assert standby.acquire()
    finally:
        standby.release()
        leader.release()


def test_a_lease_that_could_not_be_given_up_is_still_ones_own(redis_server: RedisServer, client: redis.Redis):
    store = RedisStore(redis_server.url, "test")
    lease = Lease(store, ttl=300, renew_every=100)
    assert lease.acquire()
    release, store.release = store.release, unavailable
    lease.release()
    assert client.exists(LEASE)
    store.release = release
    assert lease.acquire()
    assert not lease.superseded
    lease.release()
    assert not client.exists(LEASE)


def unavailable(*_: Any) -> None:
    raise StoreUnavailable("away")


def test_a_lease_that_changes_in_the_last_moment_is_not_taken_over(store: RedisStore):
    seen, renewed = take(store, "other").lease, LeaseValue("other", 1, 1, "here")
    store.renew(renewed, 60)
    assert store.acquire("mine", 60, seen) == Held(renewed)


def test_a_lease_is_trusted_for_less_than_the_store_keeps_it(store: RedisStore):
    clock = Clock()
    lease = Lease(store, ttl=30, renew_every=1000, clock=clock)
    assert not lease.held
    assert lease.acquire()
    clock.now += 30 * TRUST - 0.1
    assert lease.held
    clock.now += 0.2
    assert not lease.held
    # It is still there, and ours, and so it is taken again.
    assert lease.acquire()
    assert lease.held
    lease.release()
    assert lease.token == ""


def test_a_thread_renews_the_lease_until_the_main_loop_stands_still(store: RedisStore, client: redis.Redis):
    clock = Clock()
    lease = Lease(store, ttl=300, renew_every=0.05, clock=clock)
    assert lease.acquire()
    try:
        first = client.get(LEASE)
        wait_for(lambda: client.get(LEASE) != first, what="a renewal")

        def unchanged_for_a_while() -> str | None:
            before = client.get(LEASE)
            time.sleep(0.5)
            return before if client.get(LEASE) == before else None

        clock.now += STALL_LIMIT + 1
        last = wait_for(unchanged_for_a_while, what="the end of the renewals")
        lease.main_loop_is_alive()
        wait_for(lambda: client.get(LEASE) != last, what="a renewal")
    finally:
        lease.release()
    assert not client.exists(LEASE)


def test_the_thread_outlives_an_error_and_a_dead_one_is_replaced(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    lease = Lease(store, ttl=300, renew_every=0.05)
    lease.acquire()

    def fail(*_: Any) -> str:
        raise RuntimeError("no idea")

    with monkeypatch.context() as patch:
        patch.setattr(store, "renew", fail)
        wait_for(lambda: "the lease could not be renewed: RuntimeError" in caplog.text)
    before = lease._ours
    wait_for(lambda: lease._ours != before, what="a renewal")
    lease._stop.set()
    lease._thread.join()
    lease._stop.clear()
    lease.acquire()
    before = lease._ours
    wait_for(lambda: lease._ours != before, what="a renewal")
    lease.release()


def test_the_thread_notices_that_the_lease_was_lost(store: RedisStore, client: redis.Redis):
    lease = Lease(store, ttl=300, renew_every=0.05)
    assert lease.acquire()
    client.set(LEASE, "other|1|0|there")
    wait_for(lambda: not lease.held, what="the loss")
    assert lease.token == ""
    assert lease.acquire() is None
    assert lease.holder == "there"
    lease.release()
    assert client.get(LEASE) == "other|1|0|there"


def test_giving_up_a_lease_without_a_redis_waits_for_nothing(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
):
    lease = Lease(RedisStore(redis_server.url, "test", call_timeout=0.2), ttl=30, renew_every=10)
    assert lease.acquire()
    redis_server.kill()
    lease.release()
    assert not lease.held
    assert [r.message for r in caplog.records if "the lease could not be given up" in r.message]


# -- records -----------------------------------------------------------------------------------------------


def test_a_commit_writes_its_records_and_its_log(store: RedisStore):
    take(store)
    events = [{"event": str(n)} for n in range(3)]
    assert not store.commit("token", [Change("a", "", "1"), Change("b", "", "2")], events[:2]).conflicts
    assert store.load() == {"a": "1", "b": "2"}
    assert not store.commit("token", [Change("a", "1", "3"), Change("b", "2", "")], events[2:]).conflicts
    assert store.load() == {"a": "3"}
    assert store.log() == events
    assert store.log(2) == events[1:]


@pytest.mark.parametrize("token", ["", "other", "toke", "token|"])
def test_a_commit_without_the_lease_writes_nothing(store: RedisStore, redis_server: RedisServer, token: str):
    take(store)
    store.commit("token", [Change("a", "", "1")])
    before = contents(redis_server)
    with pytest.raises(LeaseLost):
        store.commit(token, [Change("a", "1", "2"), Change("b", "", "1")], [{"event": "1"}])
    assert contents(redis_server) == before


def test_a_commit_after_the_lease_has_gone_writes_nothing(
    store: RedisStore, client: redis.Redis, redis_server: RedisServer
):
    take(store)
    client.delete(LEASE)
    before = contents(redis_server)
    for token in ("token", ""):
        with pytest.raises(LeaseLost):
            store.commit(token, [Change("a", "", "1")], [{"event": "1"}])
    assert contents(redis_server) == before


def test_a_commit_with_one_conflict_writes_nothing_at_all(store: RedisStore, redis_server: RedisServer):
    take(store)
    store.commit("token", [Change(name, "", "1") for name in "abc"])
    before = contents(redis_server)
    changes = [Change("a", "1", "2"), Change("b", "0", "2"), Change("c", "", "2"), Change("d", "1", "2")]
    assert store.commit("token", changes, [{"event": "1"}]) == CommitResult(("b", "c", "d"))
    assert contents(redis_server) == before


def test_a_commit_that_is_sent_twice_works_once(store: RedisStore, redis_server: RedisServer):
    take(store)
    store.commit("token", [Change("c", "", "1")])
    commit = [Change("a", "", "1"), Change("c", "1", "")], [{"event": "1"}]
    assert not store.commit("token", *commit).conflicts
    before = contents(redis_server)
    assert not store.commit("token", *commit).conflicts
    assert contents(redis_server) == before
    assert store.log() == [{"event": "1"}]


def test_names_and_records_may_hold_any_text(store: RedisStore):
    take(store)
    names = ["_meta", "e:x", "ünï|:{}", "\x00\n", "💥" * 100, "a" * 5000]
    changes = [Change(name, "", f"ö {name}") for name in names]
    assert not store.commit("token", changes, [{"event": name} for name in names]).conflicts
    assert store.load() == {name: f"ö {name}" for name in names}
    assert [line["event"] for line in store.log()] == names


def test_bytes_that_are_no_text_can_be_read_and_replaced(store: RedisStore, client: redis.Redis):
    take(store)
    client.hset(STATE, "e:a", b"\xff\xfe\x00{")
    old = store.load()["a"]
    assert not store.commit("token", [Change("a", old, "1")]).conflicts
    assert store.load() == {"a": "1"}


def test_the_log_is_capped(redis_server: RedisServer, client: redis.Redis):
    store = RedisStore(redis_server.url, "test", history=50)
    take(store)
    for n in range(20):
        store.commit("token", [], [{"event": str(n)}] * 50)
    # Redis drops whole nodes of a stream, of 100 lines each.
    assert 50 <= client.xlen(LOG) <= 200
    assert store.log(1) == [{"event": "19"}]
    RedisStore(redis_server.url, "off", history=0).acquire("token", 60)
    RedisStore(redis_server.url, "off", history=0).commit("token", [], [{"event": "1"}])
    assert not client.exists(LOG.replace("test", "off"))


# -- registers ---------------------------------------------------------------------------------------------


def test_a_register_is_written_once(store: RedisStore, client: redis.Redis):
    capped, paused, started = (
        registers.Missed("capped"),
        registers.Missed("paused"),
        registers.Started("x", "h"),
    )
    assert store.settle(["1"], capped) == [capped]
    assert store.settle(["1", "2"], started) == [capped, started]
    assert store.settle(["2", "1"], paused) == [started, capped]
    assert store.settle([], paused) == []
    for id_ in "12":
        left = client.pttl(f"celery-misfire:{{test}}:fire:{id_}")
        assert REGISTER_TTL - 60 < left / 1000 <= REGISTER_TTL


# -- refusals ----------------------------------------------------------------------------------------------


def attempts(store: RedisStore) -> dict[str, Callable[[], Any]]:
    """Return everything that writes, by name."""
    return {
        "acquire": lambda: store.acquire("another", 60),
        "renew": lambda: store.renew(LeaseValue("token", 1, 1, "here"), 60),
        "commit": lambda: store.commit("token", [Change("a", "", "1")], [{"event": "1"}]),
        "settle": lambda: store.settle(["an-id"], registers.Missed("capped")),
    }


@pytest.mark.parametrize(
    ("key", "expected", "refused"),
    [
        (STATE, "hash", ("acquire", "commit")),
        (LEASE, "string", ("acquire", "commit")),
        (LOG, "stream", ("acquire", "commit")),
    ],
)
def test_a_key_of_a_wrong_type_is_named_and_nothing_is_written(
    store: RedisStore,
    client: redis.Redis,
    redis_server: RedisServer,
    key: str,
    expected: str,
    refused: tuple[str, ...],
):
    take(store)
    client.delete(key)
    client.sadd(key, "not ours")
    before = contents(redis_server)
    for name in refused:
        with pytest.raises(StoreUnavailable, match=re.escape(f"{key} is a set, expected a {expected}")):
            attempts(store)[name]()
    assert contents(redis_server) == before


def test_a_register_of_a_wrong_type_is_told_as_such_and_left_alone(store: RedisStore, client: redis.Redis):
    client.sadd(REGISTER, "not ours")
    unknown, started = registers.Unknown(), registers.Started("n", "h")
    assert store.settle(["an-id"], registers.Missed("capped")) == [unknown]
    assert store.start("an-id", started, entry="e") == (unknown, False)
    assert store.start("an-id", started, entry="e", sent_at=1) == (unknown, False)
    assert store.register("an-id") == unknown
    assert client.smembers(REGISTER) == {"not ours"}


def test_a_redis_without_memory_leaves_nothing_half_written(
    store: RedisStore, client: redis.Redis, redis_server: RedisServer
):
    take(store)
    store.commit("token", [Change("b", "", "1")], [{"event": "0"}])
    attempt = attempts(store)
    # A write, a removal and the log: whichever came first must not be done alone.
    attempt["mixed commit"] = lambda: store.commit(
        "token", [Change("b", "1", ""), Change("a", "", "1")], [{"event": "1"}]
    )
    # Nobody leads there: who cannot decide had better not begin to.
    attempt["acquire"] = lambda: RedisStore(redis_server.url, "other").acquire("token", 60)
    before = contents(redis_server)
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    for name, do in attempt.items():
        with pytest.raises(StoreUnavailable, match="used memory > 'maxmemory'"):
            do()
        assert contents(redis_server) == before, name
    client.config_set("maxmemory", 0)
    for do in attempt.values():
        do()


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ('{"schema": 2, "app": "shop"}', "has schema 2, this version works with 1"),
        ('{"schema": "1"}', "has schema '1', this version works with 1"),
        ("{}", "holds a _meta that is not ours"),
        ("[1]", "holds a _meta that is not ours"),
        ("garbage", "holds a _meta that is not ours"),
    ],
)
@pytest.mark.parametrize("held", [False, True])
def test_a_state_that_another_version_wrote_is_refused_and_left_alone(
    store: RedisStore, client: redis.Redis, redis_server: RedisServer, meta: str, words: str, held: bool
):
    lease = take(store, "newer").lease
    if not held:
        store.release("newer")
    client.hset(STATE, "_meta", meta)
    before = contents(redis_server)
    for seen in (None, lease):
        with pytest.raises(NewerSchema, match=words):
            store.acquire("older", 60, seen)
    assert contents(redis_server) == before


def test_scripts_that_redis_forgets_are_sent_again(store: RedisStore, client: redis.Redis):
    for attempt in [lambda: take(store), *attempts(store).values(), lambda: store.release("token")]:
        client.script_flush()
        attempt()
    assert store.load() == {"a": "1"}
    assert client.exists(REGISTER)
    assert not client.exists(LEASE)


# -- answers that get lost ---------------------------------------------------------------------------------


class LossyLink:
    """A TCP link to a server that can lose the answer to a command; the command itself arrives.

    :param target: host and port.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        #: How many more answers get lost.
        self.losses = 0
        #: Cut the connection then; else it stays open and silent.
        self.cuts = True
        #: How many requests were passed on whose answer got lost.
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with suppress(OSError), near, socket.create_connection(self._target) as far:
            # One request, one answer; all of them are small enough for one packet on the loopback.
            while request := near.recv(1 << 20):
                far.sendall(request)
                answer = far.recv(1 << 20)
                if self.losses and b"EVALSHA" in request:
                    self.losses, self.lost = self.losses - 1, self.lost + 1
                    if self.cuts:
                        return
                    continue
                near.sendall(answer)


@pytest.fixture
def link(redis_server: RedisServer) -> Iterator[LossyLink]:
    link = LossyLink(("127.0.0.1", redis_server.port))
    yield link
    link.close()


NEWS, OLD_NEWS = Broken(entry="a", error="E"), Broken(entry="old", error="E")


def ledger_of(store: RedisStore, lease: Lease, done: list[str] | None = None) -> Ledger:
    """A ledger that notes the entries of those commits that have been done and have something to tell."""
    seen = [] if done is None else done
    return Ledger(store, lease, "test", after=lambda c: seen.extend(c.records if c.events else ()))


@pytest.fixture
def done() -> list[str]:
    return []


@pytest.fixture
def ledger(link: LossyLink, done: list[str]) -> Iterator[Ledger]:
    store = RedisStore(f"redis://127.0.0.1:{link.port}/0", "test", call_timeout=0.5)
    lease = Lease(store, ttl=300, renew_every=100)
    assert lease.acquire()
    yield ledger_of(store, lease, done)
    link.losses = 0
    lease.release()


def test_a_connection_that_breaks_before_the_answer_is_made_again_and_the_commit_works_once(
    ledger: Ledger, link: LossyLink, store: RedisStore, done: list[str]
):
    link.losses = 1
    ledger.commit(Commit({"a": record("a")}, [NEWS]))
    assert link.lost == 1
    assert store.load() == {"a": records.dumps(record("a"))}
    assert store.log() == [NEWS.encode()]
    assert done == ["a"]
    assert not ledger.repeat_unanswered()


@pytest.mark.parametrize("cuts", [True, False], ids=["cut", "silent"])
def test_a_commit_without_an_answer_is_kept_and_repeated_and_works_once(
    ledger: Ledger, link: LossyLink, store: RedisStore, done: list[str], cuts: bool
):
    link.losses, link.cuts = 3, cuts
    with pytest.raises(StoreUnavailable):
        ledger.commit(Commit({"a": record("a")}, [NEWS]))
    assert "a" not in ledger
    assert done == []
    with suppress(StoreUnavailable):
        ledger.repeat_unanswered()
    link.losses = 0
    ledger.repeat_unanswered()
    assert ledger["a"] == record("a")
    assert store.load() == {"a": records.dumps(record("a"))}
    assert store.log() == [NEWS.encode()]
    assert done == ["a"]
    assert not ledger.repeat_unanswered()
    ledger.commit(Commit({"a": record("a", 1_700_000_000_001)}))


def test_a_commit_without_an_answer_is_made_good_in_a_store_that_has_lost_everything(
    ledger: Ledger, link: LossyLink, store: RedisStore, client: redis.Redis, done: list[str]
):
    ledger.commit(Commit({"old": record("old")}, [OLD_NEWS]))
    link.losses = 2
    with pytest.raises(StoreUnavailable):
        ledger.commit(Commit({"a": record("a")}, [NEWS]))
    lease = client.get(LEASE)
    client.flushall()
    client.set(LEASE, lease)
    ledger.restore()
    assert {name: records.loads(text) for name, text in store.load().items()} == dict(ledger)
    assert set(ledger) == {"old", "a"}
    assert store.log() == [NEWS.encode()]
    assert done.count("a") == 1


# -- the records in memory ---------------------------------------------------------------------------------


@pytest.fixture
def leading(store: RedisStore) -> Iterator[Lease]:
    lease = Lease(store, ttl=300, renew_every=100)
    assert lease.acquire()
    yield lease
    lease.release()


def test_a_ledger_reads_what_another_has_written(store: RedisStore, leading: Lease):
    names = [f"entry {n}" for n in range(2 * LARGEST_WRITE + 1)]
    ledger_of(store, leading).write({name: record(name) for name in names})
    ledger = ledger_of(store, leading)
    ledger.load()
    assert dict(ledger) == {name: record(name) for name in names}


def test_a_record_that_cannot_be_read_is_left_out_named_and_can_be_replaced(
    store: RedisStore, leading: Lease, client: redis.Redis, caplog: pytest.LogCaptureFixture
):
    ledger_of(store, leading).write({name: record(name) for name in ("sound", "garbage", "swapped")})
    client.hset(STATE, "e:garbage", b"\xff garbage")
    client.hset(STATE, "e:swapped", client.hget(STATE, "e:sound"))
    caplog.set_level(logging.ERROR)
    ledger = ledger_of(store, leading)
    ledger.load()
    assert dict(ledger) == {"sound": record("sound")}
    assert len(caplog.records) == 2
    assert all("planned from now" in r.message for r in caplog.records)
    assert ledger.unusable == {"garbage", "swapped"}
    ledger.write({name: record(name) for name in ("garbage", "swapped")})
    assert ledger.unusable == set()
    assert set(store.load()) == {"sound", "garbage", "swapped"}


def test_a_commit_that_finds_an_older_state_under_its_own_lease_brings_all_of_it_up_to_date(
    store: RedisStore, leading: Lease, client: redis.Redis, caplog: pytest.LogCaptureFixture
):
    """As after a failover to a replica that lagged behind: nobody else has led."""
    done: list[str] = []
    ledger = ledger_of(store, leading, done)
    ledger.write({name: record(name) for name in "abc"})
    earlier = client.hgetall(STATE)
    ledger.write({name: record(name, 1_700_000_060_000) for name in "abc"})
    client.hset(STATE, mapping=earlier)
    ledger.commit(Commit({"a": record("a", 1_700_000_120_000)}, [NEWS]))
    assert done == ["a"]
    assert ledger["a"] == record("a", 1_700_000_120_000)
    assert {name: records.loads(text) for name, text in store.load().items()} == dict(ledger)
    assert store.log() == [NEWS.encode()]
    (warning,) = caplog.records
    assert f"{STATE} in Redis at " in warning.message
    assert "went back in time" in warning.message


def test_a_commit_against_somebody_who_keeps_writing_is_given_up(store: RedisStore, leading: Lease):
    ledger = ledger_of(store, leading)
    ledger.write({"a": record("a")})
    commit, theirs = store.commit, iter(range(100))

    def overtaken(token: str, changes: list[Change], log: Any = ()) -> CommitResult:
        held = store.load()["a"]
        assert not commit(token, [Change("a", held, f"theirs {next(theirs)}")]).conflicts
        return commit(token, changes, log)

    store.commit = overtaken
    with pytest.raises(LeaseLost, match="written by somebody else"):
        ledger.commit(Commit({"a": record("a", 1), "b": record("b")}, [NEWS]))
    assert store.load().keys() == {"a"}
    assert dict(ledger) == {"a": record("a")}


def test_a_store_that_went_back_in_time_is_brought_up_to_date(
    store: RedisStore, leading: Lease, client: redis.Redis
):
    ledger = ledger_of(store, leading)
    ledger.write({name: record(name) for name in "abc"})
    earlier = client.hgetall(STATE)
    ledger.write({"a": record("a", 1_700_000_060_000)})
    ledger.forget(["b"])
    client.hset(STATE, mapping=earlier)
    client.hdel(STATE, "e:c")
    ledger.restore()
    assert {name: records.loads(store.load()[name]) for name in "ac"} == dict(ledger)


# -- what shows --------------------------------------------------------------------------------------------


def test_all_keys_share_one_hash_tag(redis_server: RedisServer, client: redis.Redis):
    store = RedisStore(redis_server.url, "shop, the second")
    for attempt in [lambda: take(store), *attempts(store).values()]:
        attempt()
    keys = client.keys("*")
    assert len(keys) >= 4
    assert all(key.startswith("celery-misfire:{shop, the second}:") for key in keys)
    assert len({key_slot(key.encode()) for key in keys}) == 1


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@redis.example:7000/3", "redis.example:7000"),
        ("redis://:secret@redis.example", "redis.example:6379"),
        ("rediss://:se%40cret@redis.example/1?ssl_cert_reqs=none", "redis.example:6379"),
        ("unix://:secret@/run/redis.sock?db=2", "/run/redis.sock"),
        ("sentinel://:secret@one.example,:secret@two.example:26380/0", "one.example:26379"),
        ("redis://:secret@[::1]:6380/0", "::1:6380"),
        ("redis:///2", "localhost:6379"),
    ],
)
def test_an_address_tells_the_place_and_no_secret(url: str, shown: str):
    assert address(url) == shown


@pytest.mark.parametrize("trouble", ["away", "wrong password", "frozen", "refuses"])
def test_no_error_carries_the_password(redis_server: RedisServer, client: redis.Redis, trouble: str):
    url = f"redis://default:top-secret@127.0.0.1:{redis_server.port}/0"
    store = RedisStore(url, "test", call_timeout=0.3)
    match trouble:
        case "away":
            redis_server.kill()
        case "wrong password":
            client.config_set("requirepass", "another")
        case "frozen":
            redis_server.freeze()
        case "refuses":
            client.set(STATE, "not ours")
    for attempt in (
        lambda: store.acquire("token", 60),
        lambda: store.commit("token", [Change("a", "", "1")]),
        store.load,
        store.log,
    ):
        if trouble == "refuses" and attempt == store.log:
            continue
        with pytest.raises(StoreUnavailable) as caught:
            attempt()
        shown = "".join(traceback.format_exception(caught.value))
        assert "top-secret" not in shown
        assert f"Redis at 127.0.0.1:{redis_server.port}: " in str(caught.value)
        assert json.dumps(str(caught.value)).count("\\n") == 0
    assert "top-secret" not in str(store) + repr(store)
    redis_server.thaw()
