"""The store, against a real Redis: what is written, what is refused, and what a lost answer does."""

from __future__ import annotations

import json
import logging
import os
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from celery_misfire import records
from celery_misfire.events import Broken
from celery_misfire.exceptions import LeaseLost, StoreUnavailable
from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.ledger import LARGEST_WRITE, Commit, Ledger
from celery_misfire.records import EntryRecord
from celery_misfire.store import registers
from celery_misfire.store.port import Change, CommitResult, LeaseValue, Taken
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.store.url import address
from celery_misfire.triggers.kinds import trigger_for
from tests.support.lossy_link import LossyLink
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


def record(name: str, now: int = 1_700_000_000_000) -> EntryRecord:
    return records.first_seen(name, "a.task", trigger_for(60), now, from_now=True)


# -- what is in Redis --------------------------------------------------------------------------------------


def test_bytes_that_are_no_text_can_be_read_and_replaced(store: RedisStore, client: redis.Redis):
    take(store)
    client.hset(STATE, "e:a", b"\xff\xfe\x00{")
    old = store.load()["a"]
    assert not store.commit("token", [Change("a", old, "1")]).conflicts
    assert store.load() == {"a": "1"}


def test_keys_and_their_texts_are_what_other_versions_know(store: RedisStore, client: redis.Redis):
    """None of them may change: two versions of beat and of the workers share them during a deploy."""
    lease = take(store).lease
    store.write_meta("token", "shop")
    store.describe("token", "beat", "entries")
    store.commit("token", [Change("a", "", "record")], [{"event": "sent", "entry": "a"}])
    store.tell_leader("a note")
    started, missed = registers.Started("nonce", "worker@test"), registers.Missed("expired", "nonce")
    store.start(
        "1", registers.StartRequest(started, entry="a", sent_at=5, late_start=10, line={"event": "late"})
    )
    store.start("2", registers.StartRequest(started, entry="a", sent_at=9, merged_line={"event": "merged"}))
    store.start("3", registers.StartRequest(missed, entry="b"))
    store.settle(["4"], registers.Missed("failover"))
    store.watch("watcher", 60, 60, alarm="7")

    def read(key: str) -> object:
        match client.type(key):
            case "string":
                return client.get(key)
            case "hash":
                return client.hgetall(key)
            case "stream":
                return [fields for _, fields in client.xrange(key)]

    prefix = "celery-misfire:{test}:"
    found = {key.removeprefix(prefix): read(key) for key in client.scan_iter()}
    [counts] = [found.pop(name) for name in list(found) if name.startswith("counts:")]
    assert counts == {"late:": "2", "merged:a": "1"}
    assert found == {
        "lease": f"token|{lease.epoch}|0|{store.owner}",
        "state": {
            "_meta": '{"app": "shop", "schema": 1}',
            "_epoch": str(lease.epoch),
            "_beat": "beat",
            "_beat_entries": "entries",
            "e:a": "record",
        },
        "log": [
            {"d": '{"event":"sent","entry":"a"}'},
            {"d": '{"event":"late"}'},
            {"d": '{"event":"merged"}'},
        ],
        "note": "a note",
        "fire:1": "started:nonce:worker@test",
        "fire:2": "merged:1",
        "fire:3": "missed:expired:nonce",
        "fire:4": "missed:failover",
        # SHA-1 of the entry's name.
        "late:86f7e437faa5a7fce15d1ddcb9eaeaea377667b8": "10|1",
        "watcher": "watcher",
        "watch": {"alarm": "7"},
        "guard": "1",
    }
    day = 24 * 3600
    for key, ttl in {
        "lease": 60,
        "note": 300,
        "fire:1": day,
        "fire:3": 7 * day,
        "fire:4": 7 * day,
        "guard": 60,
    }.items():
        assert ttl - 30 < client.pttl(prefix + key) / 1000 <= ttl, key
    assert client.ttl(f"{prefix}state") == client.ttl(f"{prefix}log") == -1


def test_lines_of_the_log_that_are_not_ours_are_left_out(store: RedisStore, client: redis.Redis):
    take(store)
    for fields in ({"x": "1"}, {"d": "garbage"}, {"d": "[1]"}, {"d": '{"event": 1}'}):
        client.xadd(LOG, fields)
    store.commit("token", [], [{"event": "1"}])
    assert store.log() == [{"event": "1"}]
    assert [line for _, line in store.log_after("0-0", 10)] == [{}, {}, {}, {}, {"event": "1"}]


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
    assert store.start("an-id", registers.StartRequest(started, entry="e")) == (unknown, False)
    assert store.start("an-id", registers.StartRequest(started, entry="e", sent_at=1)) == (unknown, False)
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


def test_scripts_that_redis_forgets_are_sent_again(store: RedisStore, client: redis.Redis):
    for attempt in [lambda: take(store), *attempts(store).values(), lambda: store.release("token")]:
        client.script_flush()
        attempt()
    assert store.load() == {"a": "1"}
    assert client.exists(REGISTER)
    assert not client.exists(LEASE)


# -- answers that get lost ---------------------------------------------------------------------------------


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

    def overtaken(token: str, changes: list[Change], log: Any = (), *rest: Any) -> CommitResult:
        held = store.load()["a"]
        assert not commit(token, [Change("a", held, f"theirs {next(theirs)}")]).conflicts
        return commit(token, changes, log, *rest)

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


# -- the connection of the commits -------------------------------------------------------------------------


def test_commits_keep_a_connection_of_their_own(store: RedisStore, client: redis.Redis):
    take(store)
    store.commit("token", [Change("a", "", "1")])
    (kept,) = committing(client)
    # Other calls take other connections, so its last command is still the commit.
    store.time()
    assert committing(client) == {kept}
    store.commit("token", [Change("a", "1", "2")])
    assert committing(client) == {kept}
    assert store.load() == {"a": "2"}


def test_what_is_acknowledged_soon_takes_no_more_of_redis_than_any_commit(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
):
    """Workers leave nothing to beat so soon, and no late run costs those in time anything."""
    take(store)
    sent = list[tuple[list[str], list[str]]]()
    right = store._connection.run_often

    def note(script: str, keys: list[str], args: list[object]) -> object:
        sent.append((keys, list(map(str, args))))
        return right(script, keys, args)

    monkeypatch.setattr(store._connection, "run_often", note)
    now = store.time()
    store.commit("token", [Change("a", "", "1")])
    store.commit("token", [Change("b", "", "1")], acks={"1": now, "2": now})
    store.commit("token", [Change("c", "", "1")], acks={"1": now, "2": now - 10_000})
    keys, lengths = [keys for keys, _ in sent], [len(args) for _, args in sent]
    assert keys[0] == keys[1] == keys[2][:3]
    assert len(keys[2]) == 5
    assert len(set(lengths)) == 1


def test_a_redis_that_was_frozen_takes_no_intent_out_that_a_worker_has_left_to_beat_meanwhile(
    store: RedisStore,
):
    take(store)
    store.commit("token", [Change("a", "", "1")])
    now = store.time()
    store.settle(["1"], registers.Missed("queue_late"))
    # The clock says that the call was made ten seconds ago.
    offset = store._connection.clock.offset
    store._connection.clock.offset -= 10_000
    assert store.commit("token", [Change("a", "1", "2")], acks={"1": now}) == CommitResult(closed=("1",))
    # The clock of Redis is known again.
    assert abs(store._connection.clock.offset - offset) < 1_000
    assert store.commit("token", [Change("a", "1", "2")], acks={"2": now}) == CommitResult()
    assert store.load() == {"a": "2"}


def test_a_connection_that_redis_has_ended_costs_no_commit(store: RedisStore, client: redis.Redis):
    take(store)
    store.commit("token", [Change("a", "", "1")])
    (ended,) = committing(client)
    client.client_kill_filter(_id=ended)
    store.commit("token", [Change("a", "1", "2")], [{"event": "once"}])
    assert committing(client) != {ended}
    assert (store.load(), store.log()) == ({"a": "2"}, [{"event": "once"}])


def test_after_an_error_commits_go_on_over_another_connection(store: RedisStore, client: redis.Redis):
    """The one before may lead to a server that is the master no more."""
    take(store)
    store.commit("token", [Change("a", "", "1")])
    (before,) = committing(client)
    client.rename(STATE, f"{STATE}:elsewhere")
    client.set(STATE, "of another type")
    with pytest.raises(StoreUnavailable):
        store.commit("token", [Change("a", "1", "2")])
    client.rename(f"{STATE}:elsewhere", STATE)
    store.commit("token", [Change("a", "1", "2")])
    assert store.load() == {"a": "2"}
    assert before not in {one["id"] for one in client.client_list()}


def test_a_fork_commits_over_another_connection(store: RedisStore, client: redis.Redis):
    take(store)
    store.commit("token", [Change("a", "", "1")])
    connections = client.info("stats")["total_connections_received"]
    if (child := os.fork()) == 0:
        store.commit("token", [Change("b", "", "1")])
        os._exit(0)
    os.waitpid(child, 0)
    assert client.info("stats")["total_connections_received"] > connections
    store.commit("token", [Change("a", "1", "2")])
    assert store.load() == {"a": "2", "b": "1"}


def committing(client: redis.Redis) -> set[str]:
    """Return the ids of the connections whose last command was a script."""
    return {one["id"] for one in client.client_list() if one["cmd"] == "evalsha"}
