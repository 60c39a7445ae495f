"""Messages that a commit pushes, in a real Redis: rights, memory, lost answers, and what is in the keys.

What every store promises is in test_store_pushes.py.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from celery_misfire.exceptions import LeaseLost, StoreRefused, StoreUnavailable
from celery_misfire.store.port import Change, CommitResult, Push, Taken
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.store.values import COUNTS_TTL
from tests.support.lossy_link import LossyLink
from tests.support.processes import wait_for
from tests.support.redis_server import ClusterNode, RedisServer

LINE = {"event": "sent"}
FIRED = {("a", "fired"): 1}


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis_server.client() as client:
        yield client


@pytest.fixture
def store(redis_server: RedisServer) -> RedisStore:
    return leading(RedisStore(redis_server.url, "test"))


def leading(store: RedisStore) -> RedisStore:
    assert isinstance(store.acquire("token", 60), Taken)
    return store


def contents(server: RedisServer) -> dict[bytes, bytes]:
    with redis.Redis.from_url(server.url) as client:
        return {key: client.dump(key) for key in client.scan_iter()}


def changes(names: str, old: str = "", new: str = "1") -> list[Change]:
    return [Change(name, old, new) for name in names]


def push(entry: str, queue: str = "celery", message: bytes | str = "") -> Push:
    return Push(entry, "lpush", queue, message or f"message of {entry}")


# -- rights ------------------------------------------------------------------------------------------------


def store_of_user(server: RedisServer, client: redis.Redis, *rules: str) -> RedisStore:
    client.execute_command("ACL", "SETUSER", "beat", "on", ">secret", "+@all", *rules)
    return leading(RedisStore(f"redis://beat:secret@127.0.0.1:{server.port}/0", "test"))


def test_a_queue_whose_key_is_forbidden_is_refused_alone(redis_server: RedisServer, client: redis.Redis):
    store = store_of_user(redis_server, client, "~celery-misfire:{test}:*", "~celery")
    before = contents(redis_server)
    pushes = [push("a"), push("b", "other"), push("c", "third"), push("a", "other")]
    result = store.commit("token", changes("abcd"), [LINE], pushes)
    assert contents(redis_server) == before
    assert [(one.queue, one.entries) for one in result.refused] == [("other", ("b", "a")), ("third", ("c",))]
    for refusal in result.refused:
        assert "permission" in refusal.error
        assert "127.0.0.1" not in refusal.error
    assert store.commit("token", changes("ad"), [LINE], [push("a")]).queue_lengths == {"celery": 1}


def test_a_push_that_fails_after_others_is_undone_before_a_worker_sees_them(
    redis_server: RedisServer, client: redis.Redis
):
    """All probes have passed: the user may pop everywhere, and push to one queue alone."""
    if client.info()["redis_version"] < "7":
        pytest.skip("ACL selectors need Redis 7")
    rules = ("~*", "-lpush", "(+lpush ~celery)", "(+lpush ~third)")
    store = store_of_user(redis_server, client, *rules)
    client.lpush("celery", "before")
    client.pexpire("celery", 60_000)
    client.lpush("other", "before")
    before = contents(redis_server)
    pushes = [push("a"), push("b"), push("c", "other"), push("d", "third"), push("a")]
    with redis_server.client() as worker:
        waiting = worker.connection_pool.make_connection()
        waiting.send_command("BRPOP", "third", 0)
        wait_for(lambda: client.info("clients")["blocked_clients"] == 1, what="the worker")
        (refusal,) = store.commit("token", changes("abcd"), [LINE], pushes, FIRED).refused
        assert contents(redis_server) == before
        client.lpush("third", "the next")
        assert waiting.read_response() == ["third", "the next"]
        waiting.disconnect()
    assert (refusal.queue, refusal.entries) == ("other", ("c",))
    assert refusal.error.startswith("LPUSH: ")
    assert 30_000 < client.pttl("celery") <= 60_000


@pytest.mark.parametrize(("right", "new"), [("hset", "2"), ("hdel", "")])
def test_without_the_right_to_write_records_nothing_is_pushed(
    redis_server: RedisServer, client: redis.Redis, right: str, new: str
):
    store = store_of_user(redis_server, client, "~*", "&*")
    store.commit("token", changes("ab"))
    before = contents(redis_server)
    client.execute_command("ACL", "SETUSER", "beat", f"-{right}")
    attempt = [*changes("a", "1", new), *changes("c")], [LINE], [push("a"), push("c")]
    with pytest.raises(StoreRefused):
        store.commit("token", *attempt)
    assert contents(redis_server) == before
    client.execute_command("ACL", "SETUSER", "beat", f"+{right}")
    assert store.commit("token", *attempt).queue_lengths == {"celery": 2}


def test_in_a_cluster_a_queue_of_another_slot_is_refused(redis_binary: Path):
    with ClusterNode(redis_binary) as server:
        store = leading(RedisStore(server.url, "test"))
        before = contents(server)
        pushes = [push("a"), push("b", "{test}celery"), push("c")]
        (refusal,) = store.commit("token", changes("abc"), [LINE], pushes).refused
        assert contents(server) == before
        assert (refusal.queue, refusal.entries) == ("celery", ("a", "c"))
        assert "slot" in refusal.error
        assert store.commit("token", changes("b"), [LINE], [push("b", "{test}celery")]).queue_lengths == {
            "{test}celery": 1
        }


# -- a Redis that refuses all writes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "end", "words"),
    [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "used memory > 'maxmemory'"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0", "NOREPLICAS|replicas"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "read only replica"),
    ],
    ids=["memory", "replicas", "replica"],
)
def test_a_redis_that_refuses_writes_is_no_trouble_of_the_queues(
    redis_server: RedisServer, client: redis.Redis, store: RedisStore, trouble: str, end: str, words: str
):
    store.commit("token", changes("z"), pushes=[push("z")])
    before = contents(redis_server)
    attempts = [
        (changes("a"), [LINE], [push("a"), push("a", "other")], FIRED),
        # Without a list push, with a removal, and to a queue that would be refused.
        (changes("a"), [LINE], [Push("a", "publish", "news", "message")]),
        ([*changes("z", "1", ""), *changes("a")], [LINE], [push("z"), push("a")]),
        (changes("a"), [LINE], [push("a", "celery-misfire:{test}:state")]),
    ]
    client.execute_command(*trouble.split())
    for attempt in attempts:
        with pytest.raises(StoreUnavailable, match=words):
            store.commit("token", *attempt)
        assert contents(redis_server) == before
    client.execute_command(*end.split())
    assert store.commit("token", *attempts[0]).queue_lengths == {"celery": 2, "other": 1}


def test_memory_that_runs_out_in_the_middle_stops_nothing_half_way(client: redis.Redis, store: RedisStore):
    """Redis looks at its memory once, when the script begins to write."""
    names, megabyte = "abcdefghijklmnopqrst", 1 << 20
    sent = changes(names), [LINE], [push(name, message=name.encode() * megabyte) for name in names]
    for refused in range(50):
        client.config_set("maxmemory", client.info("memory")["used_memory"] + refused * 4 * megabyte)
        try:
            # It just fits when the script begins, by 4 MB at most, and the queue then takes 20.
            store.commit("token", *sent)
            break
        except StoreUnavailable:
            assert (store.load(), client.exists("celery"), store.log()) == ({}, 0, [])
    assert refused
    assert store.load().keys() == set(names)
    assert client.llen("celery") == len(names)


# -- answers that get lost ---------------------------------------------------------------------------------


@pytest.mark.parametrize("losses", [1, 2])
@pytest.mark.parametrize("cuts", [True, False], ids=["cut", "silent"])
def test_a_lost_answer_doubles_no_message(
    redis_server: RedisServer, client: redis.Redis, store: RedisStore, losses: int, cuts: bool
):
    link = LossyLink(("127.0.0.1", redis_server.port))
    far = RedisStore(f"redis://127.0.0.1:{link.port}/0", "test", call_timeout=0.5)
    attempt = changes("ab"), [LINE], [push("a"), push("b", "other")], FIRED
    # Redis knows the script, so that there is one request.
    store.commit("token", changes("z"))
    link.losses, link.cuts = losses, cuts
    try:
        # A connection that was cut is made again, once.
        assert far.commit("token", *attempt).queue_lengths == {"celery": 1, "other": 1}
        assert (losses, cuts) == (1, True)
    except StoreUnavailable:
        assert (losses, cuts) != (1, True)
    link.losses = 0
    assert link.lost == (losses if cuts else 1)
    assert store.load() == {"a": "1", "b": "1", "z": "1"}
    assert far.commit("token", *attempt) == CommitResult(queue_lengths={"celery": 1, "other": 1})
    assert client.lrange("celery", 0, -1) == ["message of a"]
    assert client.lrange("other", 0, -1) == ["message of b"]
    assert store.log() == [LINE]
    assert store.counts_since(time.time() - 3600) == FIRED
    link.close()


def test_a_script_that_a_frozen_redis_carries_out_late_does_all_or_nothing(
    redis_server: RedisServer, client: redis.Redis, store: RedisStore
):
    """Meanwhile its leader takes the lease again under a new token, and settles what became of it."""
    impatient = RedisStore(redis_server.url, "test", call_timeout=0.3)
    assert impatient.load() == {}
    lease = impatient.acquire("other", 60)
    redis_server.freeze()
    with pytest.raises(StoreUnavailable):
        impatient.commit("token", changes("a"), [LINE], [push("a")])
    settling = threading.Thread(target=lambda: store.acquire("new", 60, lease.lease))
    settling.start()
    redis_server.thaw()
    settling.join()
    # From here on nothing of the old token can happen.
    with pytest.raises(LeaseLost):
        store.commit("token", changes("a"), [LINE], [push("a")])
    sent = client.llen("celery")
    assert store.load() == ({"a": "1"} if sent else {})
    if not sent:
        store.commit("new", changes("a"), [LINE], [push("a")])
    assert client.lrange("celery", 0, -1) == ["message of a"]


# -- sizes -------------------------------------------------------------------------------------------------


def test_a_large_message_goes_as_it_is(client: redis.Redis, store: RedisStore):
    message = bytes(range(256)) * 20_000
    store.commit("token", changes("a"), [LINE], [push("a", message=message), push("a")])
    with redis.Redis(port=client.connection_pool.connection_kwargs["port"]) as raw:
        assert raw.rpop("celery") == message
        assert raw.rpop("celery") == b"message of a"


@pytest.mark.parametrize("many", [100, 10_000])
def test_many_messages_are_one_call_and_keep_their_order(client: redis.Redis, store: RedisStore, many: int):
    store.commit("token", changes("z"))
    client.config_resetstat()
    names = [f"entry {n}" for n in range(many)]
    pushes = [push(name, f"queue {n % 3}") for n, name in enumerate(names)]
    assert store.commit("token", [Change(name, "", "1") for name in names], [LINE], pushes).queue_lengths == {
        f"queue {n}": len(range(n, many, 3)) for n in range(3)
    }
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == 1
    for n in range(3):
        expected = [f"message of entry {m}" for m in range(n, many, 3)]
        assert client.lrange(f"queue {n}", 0, -1)[::-1] == expected


# -- counts ------------------------------------------------------------------------------------------------


def counts_keys(client: redis.Redis) -> list[str]:
    return sorted(client.scan_iter("celery-misfire:{test}:counts:*"))


def test_counts_are_kept_by_the_hour_for_eight_days(client: redis.Redis, store: RedisStore):
    store.commit("token", changes("a"), counts={("a:b", "fired"): 2, ("ü", "missed"): 1})
    (key,) = counts_keys(client)
    assert re.fullmatch(r"celery-misfire:\{test\}:counts:\d{4}-\d\d-\d\dT\d\d", key)
    assert client.hgetall(key) == {"fired:a:b": "2", "missed:ü": "1"}
    assert COUNTS_TTL - 60 < client.ttl(key) <= COUNTS_TTL

    now = time.time()
    for hours in (2, 7 * 24, 9 * 24):
        hour = time.strftime("%Y-%m-%dT%H", time.gmtime(now - hours * 3600))
        client.hset(f"celery-misfire:{{test}}:counts:{hour}", mapping={"fired:a:b": 10, "merged:c": hours})
    assert store.counts_since(now - 3600) == {("a:b", "fired"): 2, ("ü", "missed"): 1}
    two_hours = {("a:b", "fired"): 12, ("ü", "missed"): 1, ("c", "merged"): 2}
    assert store.counts_since(now - 2 * 3600) == two_hours
    assert store.counts_since(0) == two_hours | {("a:b", "fired"): 22, ("c", "merged"): 2 + 7 * 24}


@pytest.mark.parametrize("right", ["hincrby", "pexpire"])
def test_without_the_rights_to_count_everything_else_is_done(
    redis_server: RedisServer, client: redis.Redis, right: str
):
    store = store_of_user(redis_server, client, "~*", f"-{right}")
    result = store.commit("token", changes("a"), [LINE], [push("a")], FIRED)
    assert result == CommitResult(queue_lengths={"celery": 1})
    assert (store.load(), store.log(), counts_keys(client)) == ({"a": "1"}, [LINE], [])


def test_counts_that_are_not_ours_stop_nothing(client: redis.Redis, store: RedisStore):
    store.commit("token", changes("a"), counts=FIRED)
    (key,) = counts_keys(client)
    client.delete(key)
    client.set(key, "not ours")
    result = store.commit("token", changes("b"), [LINE], [push("b")], FIRED)
    assert result == CommitResult(queue_lengths={"celery": 1})
    assert (set(store.load()), store.log()) == ({"a", "b"}, [LINE])


# -- calls that come too late ------------------------------------------------------------------------------


def test_a_redis_that_was_frozen_pushes_nothing_for_which_nobody_waits_any_more(redis_server: RedisServer):
    with redis_server.client() as client:
        store = leading(RedisStore(redis_server.url, "test", call_timeout=0.5))
        store.time()
        scripts = scripts_run(client)
        redis_server.freeze()
        with pytest.raises(StoreUnavailable):
            store.commit("token", changes("a"), [LINE], [push("a")])
        redis_server.thaw()
        wait_for(lambda: scripts_run(client) > scripts, what="the script that came too late")
        assert (client.llen("celery"), store.load(), store.log()) == (0, {}, [])
        assert store.commit("token", changes("a"), [LINE], [push("a")]).queue_lengths == {"celery": 1}


def scripts_run(client: redis.Redis) -> int:
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


def test_a_clock_of_redis_that_was_set_costs_one_try(store: RedisStore):
    store.time()
    store._connection.clock.offset -= 60_000
    with pytest.raises(StoreUnavailable, match="too late"):
        store.commit("token", changes("a"), pushes=[push("a")])
    assert store.load() == {}
    assert store.commit("token", changes("a"), pushes=[push("a")]).queue_lengths == {"celery": 1}
