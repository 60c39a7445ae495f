"""Troubles of a beat whose messages and state share a Redis: nothing twice in the queue, nothing lost."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Exchange, Queue

from celery_misfire.events import Sent
from celery_misfire.exceptions import BrokerUnavailable, PublishRejected, StoreUnavailable
from celery_misfire.records import loads
from celery_misfire.schedules import simple
from celery_misfire.sending.dispatch import Attempt, Fate
from celery_misfire.store.redis_store import RedisStore
from tests.support.one_redis import World, body, due_now, fire, fire_all, is_done, run, sent_lines, store_of
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.takes(20)

BACK = "went back in time, and its queues with it"


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [r.message for r in caplog.records if text in r.message]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[str], list[str]]]:
    caplog.set_level(logging.INFO)
    yield lambda text: said(caplog, text)
    # Whatever happens, no error is unexpected.
    assert "Traceback" not in caplog.text


Log = Callable[[str], list[str]]


# -- answers that get lost ---------------------------------------------------------------------------------


class Losing:
    """Loses the answers of the store, by its methods.

    :param arrives: whether the call is carried out.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, arrives: bool, **losses: int) -> None:
        self.left = losses
        self._arrives = arrives
        for name in losses:
            monkeypatch.setattr(RedisStore, name, self._losing(name, getattr(RedisStore, name)))

    def _losing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def losing(store: RedisStore, *args: Any, **kwargs: Any) -> Any:
            # A commit counts when it has messages.
            if self.left[name] and (name != "commit" or (len(args) > 3 and args[3])):
                self.left[name] -= 1
                if self._arrives:
                    call(store, *args, **kwargs)
                raise StoreUnavailable("no answer")
            return call(store, *args, **kwargs)

        return losing


@pytest.mark.parametrize("arrives", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize(
    "also", [{}, {"load": 1}, {"acquire": 1}, {"acquire": 2, "load": 2}], ids=["", "load", "lease", "all"]
)
def test_a_script_without_an_answer_is_settled_under_a_new_token(
    world: World, monkeypatch: pytest.MonkeyPatch, log: Log, arrives: bool, also: dict[str, int]
) -> None:
    beat = world.beat(misfire_lease_ttl=600)
    heard: list[Any] = []
    beat._leader._listeners += (heard.extend,)
    fire_all(beat, "z")
    token = beat._leader._lease.token
    losing = Losing(monkeypatch, arrives, commit=1, **also)
    fire_all(beat, "abc")
    assert not any(losing.left.values())
    assert world.runs() == sent_lines(beat) == Counter("abcz")
    if not also.get("acquire"):
        assert Counter(event.entry for event in heard if isinstance(event, Sent)) == Counter("abcz")
    assert beat._leader._lease.token not in ("", token)
    assert not log(BACK)
    # A second message of a run cannot be there.
    assert all(m["headers"]["misfire"]["once"] for m in world.messages())


def test_an_acknowledgement_without_an_answer_is_repeated_under_a_new_token(
    world: World, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """The run of an eager task stands in no queue: without the acknowledgement it would take place again."""
    ran: list[int] = []
    app = world.app(task_always_eager=True)

    @app.task(name="shop.reports", shared=False)
    def count() -> None:
        ran.append(1)

    beat = world.beat(app)
    fire_all(beat, "z")
    calls = [0]
    commit = RedisStore.commit

    def losing(store: RedisStore, token: str, changes: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += any('"intents":[{' in c.old for c in changes)
        if calls[0] == 1:
            calls[0] += 1
            beat._leader._lease.distrust()
            raise StoreUnavailable("no answer")
        return commit(store, token, changes, *args, **kwargs)

    monkeypatch.setattr(RedisStore, "commit", losing)
    fire_all(beat, "a")
    assert calls[0] > 1
    assert len(ran) == 2


@pytest.mark.parametrize("eager", [False, True], ids=["one transaction", "two steps"])
def test_runs_that_are_sent_together_share_a_line_of_the_log_and_are_counted_each(
    world: World, eager: bool
) -> None:
    app = world.app(task_always_eager=eager)
    app.task(name="shop.reports", shared=False)(body)
    beat, since = world.beat(app), time.time() - 3600
    heard: list[Any] = []
    beat._leader._listeners += (heard.extend,)
    names = [f"e{n}" for n in range(40)]
    fire_all(beat, names)
    lines = [line for line in store_of(beat).log() if line["event"].startswith("sent")]
    [line] = lines
    assert (line["event"], line["count"], line["outcome"]) == ("sent_together", 40, "fired")
    assert sorted(line["entries"]) == sorted(names)
    sent = {event.id for event in heard if isinstance(event, Sent)}
    assert set(line["ids"]) == sent
    assert line["first"] <= line["last"]
    assert store_of(beat).counts_since(since) == {("", "fired"): 40}


# -- a Redis that forgets ----------------------------------------------------------------------------------


def snapshot(world: World) -> dict[bytes, bytes]:
    with redis.Redis.from_url(world.server.url) as client:
        return {key: client.dump(key) for key in client.scan_iter()}


def put_back(world: World, snapshot: dict[bytes, bytes], keep_lease: bool) -> None:
    """Let Redis go back in time."""
    with redis.Redis.from_url(world.server.url) as client:
        lease = next(key for key in client.scan_iter() if key.endswith(b":lease"))
        now = client.get(lease)
        client.flushdb()
        for key, value in snapshot.items():
            if key != lease:
                client.restore(key, 0, value)
        if keep_lease:
            client.set(lease, now, px=60_000)


TICK = {"misfire": {"instruction": "ignore_misfire_policy", "threshold": 600}}


def due_each_second() -> dict[str, Any]:
    """Return an entry that is due at this moment and then each second, and whose every run is sent."""
    return TICK | {"task": "shop.reports", "schedule": simple(start=datetime.now(UTC), interval=1.0)}


def fire_times(world: World) -> list[tuple[str, str]]:
    fires = [m["headers"]["misfire"] for m in world.messages()]
    return sorted((fire["entry"], fire["scheduled_fire_time"]) for fire in fires)


@pytest.mark.parametrize("keep_lease", [True, False], ids=["lease kept", "lease lost"])
def test_a_state_that_went_back_with_its_queue_is_followed_and_planned_again(
    world: World, log: Log, keep_lease: bool
) -> None:
    beat = world.beat()
    beat.update_from_dict({"a": due_each_second()})
    run(beat, lambda: world.client.llen("celery") == 2)
    before = snapshot(world)
    run(beat, lambda: world.client.llen("celery") == 4)
    fire_all(beat, "b")
    lost = [m["headers"]["id"] for m in world.messages()[2:4]]
    expected = fire_times(world)
    put_back(world, before, keep_lease)
    assert world.client.llen("celery") == 2
    run(beat, lambda: world.client.llen("celery") >= 7)
    found = fire_times(world)
    assert len(set(found)) == len(found)
    assert set(found) > set(expected)
    assert log(BACK)
    # A worker may have run what stood in the queue before.
    once = {m["headers"]["id"]: m["headers"]["misfire"].get("once") for m in world.messages()}
    assert {once[id_] for id_ in lost} == {None}
    assert world.messages()[-1]["headers"]["misfire"]["once"]
    assert Counter(m["headers"]["misfire"]["entry"] for m in world.messages())["b"] == 1


@pytest.mark.parametrize("what", ["everything", "the state alone"])
def test_a_state_that_is_gone_is_restored_by_the_beat_that_leads(world: World, log: Log, what: str) -> None:
    beat = world.beat()
    beat.update_from_dict({"a": due_each_second()})
    fire_all(beat, "b")
    run(beat, lambda: world.client.llen("celery") >= 3)
    before = fire_times(world)
    if what == "everything":
        world.client.flushall()
    else:
        world.client.delete(store_of(beat).state_key)
    run(beat, lambda: world.client.llen("celery") >= 5)
    assert store_of(beat).load().keys() >= {"a", "b"}
    assert log("it is restored from memory")
    assert not log("planned from now")
    found = fire_times(world)
    assert len(set(found)) == len(found)
    assert (set(found) & set(before)) == (set() if what == "everything" else set(before))


def test_a_leader_that_was_fenced_sends_nothing(world: World, log: Log) -> None:
    beat = world.beat()
    fire_all(beat, "z")
    other = RedisStore(world.server.url, "shop")
    other.release(beat._leader._lease.token)
    other.acquire("other", 60)
    fire(beat, "ab")
    run(beat, lambda: log("standing by"))
    assert world.runs() == Counter("z")
    other.release("other")
    run(beat, lambda: is_done(beat, "ab"))
    assert world.runs() == sent_lines(beat) == Counter("abz")


# -- queues and brokers that do not take part --------------------------------------------------------------


def test_a_queue_key_of_a_wrong_type_concerns_its_entries_alone(world: World, log: Log) -> None:
    beat = world.beat()
    fire_all(beat, "z", options={"queue": "spoilt"})
    world.client.delete("spoilt")
    world.client.sadd("spoilt", "x")
    fire(beat, "x", options={"queue": "spoilt"}, misfire={"instruction": "do_nothing", "threshold": 2})
    fire(beat, "ab")
    run(beat, lambda: is_done(beat, "ab"))
    assert world.runs() == Counter("ab")
    assert len(log("takes no message from a script")) == 1
    # And neither do they by themselves.
    run(beat, lambda: log("reason publish_rejected"))
    (line,) = log("entry 'x' cannot be sent and is tried again")
    assert "a key of its queue in Redis holds something else" in line
    assert not log("the broker failed")
    assert sent_lines(beat) == Counter("abz")
    assert world.client.smembers("spoilt") == {"x"}


def test_a_queue_that_cannot_be_declared_concerns_its_entries_alone(world: World, log: Log) -> None:
    beat = world.beat()
    world.client.sadd("spoilt", "x")
    fire(beat, "x", options={"queue": "spoilt"}, misfire={"instruction": "do_nothing", "threshold": 2})
    fire(beat, "yz")
    run(beat, lambda: is_done(beat, "yz") and log("reason publish_rejected"))
    assert world.runs() == Counter("yz")
    assert len(log("entry 'x' cannot be sent and is tried again")) == 1
    assert not log("the broker failed")


@pytest.mark.parametrize("right", ["lpush", "lpop"])
def test_without_the_rights_of_the_script_beat_sends_in_two_steps(world: World, log: Log, right: str) -> None:
    world.client.execute_command("ACL", "SETUSER", "beat", "on", ">secret", "~*", "&*", "+@all", f"-{right}")
    beat = world.beat(misfire_redis_url=world.server.url.replace("//", "//beat:secret@"))
    fire_all(beat, "abc")
    assert world.runs() == sent_lines(beat) == Counter("abc")
    (line,) = log("takes no message from a script")
    assert right.upper() in line
    assert "in two steps" in line


def test_without_the_right_to_publish_one_line_says_so(world: World, log: Log) -> None:
    world.client.execute_command("ACL", "SETUSER", "beat", "on", ">secret", "~*", "+@all", "-publish")
    beat = world.beat(
        misfire_redis_url=world.server.url.replace("//", "//beat:secret@"),
        task_queues=[Queue("all", Exchange("all", "fanout"))],
    )
    fire_all(beat, "ab", options={"queue": "all"})
    (line,) = log("failed in a script")
    assert "PUBLISH" in line


@pytest.mark.parametrize("rules", [("+@all", "~celery", "~celery\x06*", "~_kombu*"), ("+@all", "-get", "~*")])
def test_a_broker_user_who_may_not_read_the_lease_gets_runs_in_two_steps(
    world: World, log: Log, rules: tuple[str, ...]
) -> None:
    world.client.execute_command("ACL", "SETUSER", "broker", "on", ">secret", "&*", *rules)
    beat = world.beat(
        broker=world.server.url.replace("//", "//broker:secret@"), misfire_redis_url=world.server.url
    )
    fire_all(beat, "ab")
    assert world.runs() == Counter("ab")
    assert log("in two steps")
    assert not log("the broker failed")


def test_memory_that_runs_out_stops_all_until_it_is_there_again(world: World, log: Log) -> None:
    beat = world.beat()
    fire_all(beat, "z")
    world.client.config_set("maxmemory", 1)
    fire(beat, "abc")
    run(beat, lambda: log("standing by"))
    for _ in range(20):
        beat.tick()
    assert world.runs() == Counter("z")
    world.client.config_set("maxmemory", 0)
    run(beat, lambda: is_done(beat, "abc"))
    assert world.runs() == sent_lines(beat) == Counter("abcz")
    assert len(log("standing by")) <= 3


def test_a_message_that_no_script_gets_through_stops_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    beat = world.beat()
    commit = RedisStore.commit

    def cut(store: RedisStore, *args: Any, **kwargs: Any) -> Any:
        if len(args) > 3 and any(push.entry == "bad" for push in args[3]):
            raise StoreUnavailable("the connection was closed")
        return commit(store, *args, **kwargs)

    monkeypatch.setattr(RedisStore, "commit", cut)
    names = [f"{n:02}" for n in range(30)]
    fire(beat, ["bad"], schedule=simple(start=datetime.now(UTC), interval=1))
    fire_all(beat, names)
    run(beat, lambda: is_done(beat, ["bad"]))
    assert world.runs() - Counter(bad=99) == sent_lines(beat) - Counter(bad=99) == Counter(names)
    (line,) = log("alone fails again and again")
    assert "'bad'" in line
    # From now on nobody waits for it.
    failures, runs = len(log("standing by")), world.runs()["bad"]
    run(beat, lambda: world.runs()["bad"] >= runs + 2)
    assert len(log("standing by")) == failures


def test_a_message_for_which_redis_lacks_the_memory_stops_no_other(world: World, log: Log) -> None:
    beat = world.beat()
    fire_all(beat, "z")
    spare = 10_000_000
    world.client.config_set("maxmemory", world.client.info("memory")["used_memory"] + spare)
    fire(beat, ["huge"], kwargs={"text": "x" * spare})
    fire(beat, "abc")
    run(beat, lambda: is_done(beat, "abc") and log("cannot be sent"))
    assert world.runs() == sent_lines(beat) == Counter("abcz")
    assert log("alone fails again and again")
    assert not log("the broker failed")
    world.client.config_set("maxmemory", 0)
    run(beat, lambda: is_done(beat, ["huge"]))
    assert world.runs() == sent_lines(beat) == Counter([*"abcz", "huge"])


def test_bindings_that_were_flushed_are_declared_again(world: World, log: Log) -> None:
    topic = Exchange("topic", "topic")
    beat = world.beat(task_queues=[Queue("celery"), Queue("news", topic, routing_key="news.#")])
    fire_all(beat, "a", options={"queue": "news", "routing_key": "news.x"})
    world.client.delete("_kombu.binding.topic")
    fire_all(beat, "b", options={"queue": "news", "routing_key": "news.x"})
    assert world.runs("news") == sent_lines(beat) == Counter("ab")


def test_large_messages_go_in_scripts_of_limited_size(world: World, log: Log) -> None:
    beat = world.beat()
    fire_all(beat, "z")
    fire(beat, "abcde", kwargs={"text": "x" * 500_000})
    fire(beat, "f", kwargs={"text": "x" * 5_000_000})
    beat._member._adopt()
    with world.server.recorded_commands(of_scripts=False) as commands:
        run(beat, lambda: is_done(beat, "abcdef"))
    scripts = [len(command) for command in commands if command.startswith("EVALSHA") and "xxx" in command]
    assert len(scripts) >= 5
    assert sorted(scripts)[-2] < 1_800_000
    assert world.runs() == Counter("abcdefz")


def test_a_run_in_doubt_stays_so_when_its_message_cannot_be_built(
    world: World, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """A beat that sent in two steps died, so a message may be there: only the register may call it missed."""
    beat = world.beat()
    schedule = {"a": due_now(misfire="do_nothing")}
    beat.update_from_dict(schedule)
    with monkeypatch.context() as dying:
        dying.setattr(beat._leader._ledger, "holds_messages", False)
        dying.setattr(beat._leader._dispatch, "look", lambda: None)
        dying.setattr(type(beat._publisher), "publish", _die)
        with pytest.raises(KeyboardInterrupt):
            run(beat, lambda: False)
    (intent,) = loads(store_of(beat).load()["a"]).intents
    assert not intent.unsent
    beat.close()
    refused = Attempt(Fate.REFUSED, PublishRejected("too large"))
    monkeypatch.setattr(type(beat._publisher), "build", lambda *_: (refused, []))
    other = world.beat(beat_schedule=schedule)
    run(other, lambda: log("cannot be sent and is tried again"))
    (intent,) = loads(store_of(other).load()["a"]).intents
    assert not intent.unsent


def _die(*_: Any) -> None:
    raise KeyboardInterrupt


# -- a look that fails -------------------------------------------------------------------------------------


def test_a_look_at_the_broker_that_fails_does_not_make_memory_right(
    world: World, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis goes down while beat looks where the broker is, and comes back as it was some time ago."""
    beat = world.beat()
    beat.update_from_dict({"a": due_each_second()})
    run(beat, lambda: world.client.llen("celery") == 2)
    before = snapshot(world)
    run(beat, lambda: world.client.llen("celery") == 4)
    expected = fire_times(world)
    beat._leader._dispatch._token = ""
    with monkeypatch.context() as away:
        away.setattr(beat._broker, "read", _fail)
        run(beat, lambda: log("the broker failed"))
    put_back(world, before, keep_lease=False)
    run(beat, lambda: world.client.llen("celery") >= 5)
    assert set(fire_times(world)) > set(expected)
    assert log(BACK)


def _fail(*_: Any) -> None:
    raise BrokerUnavailable("away")


def test_a_broker_that_moved_between_two_looks_gets_its_runs_in_two_steps(
    world: World, log: Log, redis_binary: Path
) -> None:
    """Kombu connects to the next broker of its list, and nobody has asked where that is."""
    with RedisServer(redis_binary) as second:
        beat = world.beat(broker=world.server.url)
        fire_all(beat, "z")
        beat.app.conf.broker_url = beat.app.conf.broker_write_url = second.url
        beat.app.__dict__.pop("pool", None)
        beat._broker.drop()
        fire_all(beat, "ab")
        with second.client() as client:
            assert client.llen("celery") == 2
    assert world.runs() == Counter("z")
    assert log("in two steps")
