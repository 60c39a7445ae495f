"""Messages that are published as a batch: each has a fate of its own, and none is lost with another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.schedules import schedule
from kombu import Queue

from celery_misfire.exceptions import BrokerUnavailable, PublishRejected
from celery_misfire.leadership import broker_link
from celery_misfire.leadership.decisions import LARGEST_BATCH
from celery_misfire.misfire import MisfirePolicy
from celery_misfire.schedules import simple
from celery_misfire.sending import broker as broker_module
from celery_misfire.sending.broker import Broker
from celery_misfire.sending.confirms import Interrupted, Receipt
from celery_misfire.sending.dispatch import Attempt, Fate, Message
from celery_misfire.sending.errors import LONGEST_OF_MOST
from celery_misfire.store.port import Push
from tests.integration.test_leader import DAY, MINUTE, SECOND
from tests.integration.test_leader import World as VirtualWorld
from tests.support.log_lines import one_by_one
from tests.support.one_redis import World, due_now, fire_all, is_done, run, sent_lines, store_of
from tests.support.processes import published, wait_for
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.takes(20)


@pytest.fixture
def proxy(rabbitmq_server: RabbitMQ) -> Iterator[Proxy]:
    with Proxy(rabbitmq_server.port) as proxy:
        yield proxy


@pytest.fixture
def broker(proxy: Proxy, rabbitmq_server: RabbitMQ, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    monkeypatch.setattr(broker_module, "TIMEOUT", 30.0)
    app = Celery("broker", broker=proxy.amqp_url, set_as_current=False)
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    # Declared by the server, it is removed with the test.
    rabbitmq_server.declare("full", **arguments)
    app.conf.task_queues = [Queue("celery"), Queue("full", routing_key="full", queue_arguments=arguments)]
    broker = Broker(app)
    yield broker
    broker.drop()
    app.close()


def publish(broker: Broker, task_id: str, **options: Any) -> Receipt:
    """Publish a message of a batch."""
    producer = broker.producer
    receipt = producer.expect(task_id, batched=True)
    options = {"mandatory": True, "ignore_result": True, "retry": False} | options
    broker._app.send_task("tick", task_id=task_id, producer=producer, **options)
    return receipt


def ids(server: RabbitMQ, queue: str = "celery") -> list[str]:
    return [m.id for m in server.published(queue)]


# -- RabbitMQ ----------------------------------------------------------------------------------------------


def test_messages_are_published_before_rabbitmq_has_answered_to_any(
    broker: Broker, rabbitmq_server: RabbitMQ
) -> None:
    publish(broker, "declares the queue")
    broker.await_answers()
    rabbitmq_server.freeze()
    names = [f"{n}" for n in range(50)]
    receipts = [publish(broker, name) for name in names]
    assert all(receipt.is_open for receipt in receipts)
    rabbitmq_server.thaw()
    broker.await_answers()
    assert all(receipt.was_taken and not receipt.is_open and not receipt.error for receipt in receipts)
    assert ids(rabbitmq_server) == ["declares the queue", *names]


def test_each_answer_of_rabbitmq_concerns_its_own_message(
    broker: Broker, proxy: Proxy, rabbitmq_server: RabbitMQ
) -> None:
    publish(broker, "fills the queue", queue="full")
    publish(broker, "declares the queue")
    broker.await_answers()
    rabbitmq_server.freeze()
    first, full = publish(broker, "1"), publish(broker, "full", queue="full")
    unbound = publish(broker, "unbound", exchange="amq.fanout", routing_key="x")
    last = publish(broker, "2")
    rabbitmq_server.thaw()
    broker.await_answers()
    assert first.was_taken
    assert last.was_taken
    assert (full.was_taken, str(full.failure)) == (False, "refused by a queue (nack)")
    assert (unbound.was_taken, unbound.failure) == (False, None)
    assert "NO_ROUTE" in str(unbound.rejection)
    assert ids(rabbitmq_server) == ["declares the queue", "1", "2"]
    assert proxy.connections == 1


def test_a_queue_that_was_deleted_is_made_again_after_the_batch_that_came_back(
    broker: Broker, rabbitmq_server: RabbitMQ
) -> None:
    publish(broker, "1")
    broker.await_answers()
    rabbitmq_server.delete("celery")
    lost = [publish(broker, task_id) for task_id in "23"]
    broker.await_answers()
    assert all("NO_ROUTE" in str(receipt.rejection) for receipt in lost)
    publish(broker, "4")
    broker.await_answers()
    assert ids(rabbitmq_server) == ["4"]


def test_a_message_that_ends_the_channel_leaves_the_others_of_its_batch_in_doubt(
    broker: Broker, proxy: Proxy, rabbitmq_server: RabbitMQ
) -> None:
    publish(broker, "declares the queue")
    broker.await_answers()
    rabbitmq_server.freeze()
    before = publish(broker, "before")
    faulty = publish(broker, "faulty", exchange="nowhere", routing_key="x")
    after = publish(broker, "after")
    rabbitmq_server.thaw()
    broker.await_answers()
    assert before.was_taken or isinstance(before.failure, Interrupted)
    assert not faulty.was_taken
    assert not after.was_taken
    assert isinstance(after.failure, Interrupted)
    publish(broker, "next")
    broker.await_answers()
    assert proxy.connections == 2
    assert ids(rabbitmq_server) == ["declares the queue", "before", "next"]


def test_a_message_that_ends_the_channel_by_itself_is_to_blame(broker: Broker) -> None:
    faulty = publish(broker, "faulty", exchange="nowhere", routing_key="x")
    broker.await_answers()
    assert "NOT_FOUND" in str(faulty.rejection)
    assert faulty.failure is None


def test_a_connection_that_is_cut_leaves_in_doubt_what_was_not_answered(
    broker: Broker, proxy: Proxy, rabbitmq_server: RabbitMQ
) -> None:
    publish(broker, "declares the queue")
    broker.await_answers()
    rabbitmq_server.freeze()
    receipts = [publish(broker, task_id) for task_id in "12"]
    proxy.cut()
    # The next message finds it out.
    rabbitmq_server.thaw()
    assert not publish(broker, "3").error
    broker.await_answers()
    assert all(isinstance(receipt.failure, BrokerUnavailable) for receipt in receipts)
    assert not any(receipt.was_taken for receipt in receipts)
    assert proxy.connections == 2


def test_an_entry_that_ends_the_channel_costs_no_other_its_run(
    world: World, rabbitmq_server: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    beat = world.beat(broker=rabbitmq_server.url)
    names = [f"{n:02}" for n in range(40)]
    patient = {"misfire": {"instruction": "do_nothing", "threshold": 600}}
    faulty = {"options": {"exchange": "nowhere", "routing_key": "x"}}
    entries = {name: due_now(**patient) for name in names}
    beat.update_from_dict({**entries, "20": due_now(**patient, **faulty)})
    good = [name for name in names if name != "20"]
    run(beat, lambda: is_done(beat, good))
    assert sent_lines(beat) == Counter(good)
    stand = Counter(m.misfire["entry"] for m in rabbitmq_server.published() if m.misfire)
    assert stand.keys() == set(good)
    assert "the broker failed" not in caplog.text
    run(beat, lambda: [line for line in store_of(beat).log() if line["event"] == "refused"])
    refused = [line["entry"] for line in store_of(beat).log() if line["event"] == "refused"]
    assert refused == ["20"]


# On a busy machine rabbitmqctl alone takes a minute.
@pytest.mark.timeout(600)
def test_a_memory_alarm_in_the_middle_of_a_batch_loses_nothing(
    world: World,
    rabbitmq_server: RabbitMQ,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    beat = world.beat(broker=rabbitmq_server.url)
    fire_all(beat, "z")
    names, tried = [f"{n:02}" for n in range(40)], list[str]()
    publish = beat._publisher.publish

    def short_of_memory_after_ten(message: Message) -> Attempt:
        tried.append(message.definition.name)
        if len(tried) == 10:
            rabbitmq_server.control("set_vm_memory_high_watermark", "0")
        return publish(message)

    monkeypatch.setattr(beat._publisher, "publish", short_of_memory_after_ten)
    patient = {"misfire": {"instruction": "do_nothing", "threshold": 3600}}
    beat.update_from_dict({name: due_now(**patient) for name in names})
    try:
        run(beat, lambda: [m for m in caplog.messages if "memory or disk is short" in m], timeout=200)
        assert sent_lines(beat).total() < len(names)
    finally:
        rabbitmq_server.control("set_vm_memory_high_watermark", "0.4")
    run(beat, lambda: is_done(beat, names))
    copies = Counter(m.id for m in rabbitmq_server.published())
    assert len(copies) == 1 + len(names)
    # What RabbitMQ had not answered to was in doubt, and was sent again.
    assert copies.total() <= 1 + 2 * len(names)
    assert sent_lines(beat) == Counter(["z", *names])


def test_late_runs_do_not_wait_for_one_in_time_when_rabbitmq_confirms_again(
    world: World,
    proxy: Proxy,
    rabbitmq_server: RabbitMQ,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing else is due that could tell beat that the broker takes messages."""
    monkeypatch.setattr(broker_module, "TIMEOUT", 1.0)
    monkeypatch.setattr(broker_link, "TRIAL", 3600.0)
    beat = world.beat(broker=proxy.amqp_url)
    fire_all(beat, "z")
    proxy.loses_confirms = True
    proxy.cut()
    before = proxy.connections
    beat.update_from_dict({"a": due_now(misfire={"instruction": "fire_now", "threshold": 0.5})})
    run(beat, lambda: proxy.connections > before + 3)
    assert not is_done(beat)
    proxy.loses_confirms = False
    run(beat, lambda: is_done(beat))
    assert {m.id for m in rabbitmq_server.published()} == {
        line["id"] for line in one_by_one(store_of(beat).log()) if line["event"] == "sent"
    }
    assert len([m for m in caplog.messages if "the broker failed" in m]) == 1


def test_an_event_for_each_message_hides_no_answer_of_rabbitmq(
    world: World, rabbitmq_server: RabbitMQ
) -> None:
    """An event is awaited at once, and with it the message before it."""
    beat = world.beat(broker=rabbitmq_server.url, task_send_sent_event=True)
    patient = {"misfire": {"instruction": "do_nothing", "threshold": 600}}
    options = {"unbound": {"exchange": "amq.fanout"}, "nowhere": {"exchange": "nowhere"}, "a": {}, "b": {}}
    entries = {
        name: due_now(**patient, options=each | {"routing_key": "celery"}) for name, each in options.items()
    }
    beat.update_from_dict(entries)

    def refused() -> list[str]:
        return [line["entry"] for line in store_of(beat).log() if line["event"] == "refused"]

    run(beat, lambda: is_done(beat, "ab") and len(refused()) >= 2)
    assert sorted(refused()) == ["nowhere", "unbound"]
    assert sent_lines(beat) == Counter("ab")


# -- another Redis -----------------------------------------------------------------------------------------


def pushes(name: str, *queues: str) -> list[Push]:
    return [Push(name, "lpush", queue, name) for queue in queues]


@pytest.fixture
def redis_broker(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    monkeypatch.setattr(broker_module, "TIMEOUT", 2.0)
    app = Celery("broker", broker=redis_server.url, set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": "ours:"}
    broker = Broker(app)
    yield broker
    broker.drop()
    app.close()


def test_each_answer_of_redis_concerns_its_own_message(
    redis_broker: Broker, redis_server: RedisServer
) -> None:
    client = redis_server.client()
    client.set("wrong", "no list")
    batch = [pushes("1", "right"), pushes("2", "wrong"), pushes("3", "right", "wrong"), pushes("4", "right")]
    first, wrong, both, last = redis_broker.push(batch)
    assert first.was_taken
    assert last.was_taken
    assert (wrong.was_taken, wrong.failure) == (False, None)
    assert "WRONGTYPE" in str(wrong.rejection)
    assert not both.was_taken
    assert both.failure is not None
    # The keys are pushed as recorded: the recorder has put the prefix before them.
    assert client.lrange("right", 0, -1) == ["4", "3", "1"]


def test_a_redis_without_memory_has_failed_unless_the_message_is_large(
    redis_broker: Broker, redis_server: RedisServer
) -> None:
    client = redis_server.client()
    assert redis_broker.push([pushes("0", "right")])[0].was_taken
    client.config_set("maxmemory", 1)
    try:
        (large,) = redis_broker.push([pushes("1" * (LONGEST_OF_MOST + 1), "right")])
        with pytest.raises(BrokerUnavailable, match="maxmemory"):
            redis_broker.push([pushes("2", "right"), pushes("3", "right")])
    finally:
        client.config_set("maxmemory", 0)
    assert (large.was_taken, large.failure) == (False, None)
    assert "OOM" in str(large.rejection)
    assert redis_broker.push([pushes("4", "right")])[0].was_taken
    assert client.lrange("right", 0, -1) == ["4", "0"]


@pytest.mark.parametrize(
    ("trouble", "end"),
    [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    ],
    ids=["memory", "replicas", "replica"],
)
def test_a_redis_that_takes_no_messages_is_away_until_it_does(
    redis_broker: Broker, redis_server: RedisServer, trouble: str, end: str
) -> None:
    client = redis_server.client()
    redis_broker.connect()
    client.execute_command(*trouble.split())
    try:
        with pytest.raises(BrokerUnavailable):
            redis_broker.push([pushes("1", "right"), pushes("2", "right")])
        # Without a message.
        for _ in range(3):
            with pytest.raises(BrokerUnavailable):
                redis_broker.connect()
    finally:
        client.execute_command(*end.split())
    redis_broker.connect()
    assert redis_broker.push([pushes("3", "right")])[0].was_taken
    assert client.keys() == ["right"]


def test_a_redis_that_does_not_let_us_ask_whether_it_takes_messages_is_used(
    redis_broker: Broker, redis_server: RedisServer
) -> None:
    client = redis_server.client()
    client.execute_command("ACL", "SETUSER", "default", "-lpushx")
    try:
        redis_broker.connect()
    finally:
        client.execute_command("ACL", "SETUSER", "default", "+lpushx")
    assert redis_broker.push([pushes("1", "right")])[0].was_taken


def test_a_batch_that_redis_does_not_answer_is_in_doubt_and_not_repeated_behind_our_back(
    redis_broker: Broker, redis_server: RedisServer
) -> None:
    assert redis_broker.push([pushes("0", "right")])[0].was_taken
    redis_server.freeze()
    receipts = redis_broker.push([pushes("1", "right"), pushes("2", "right")])
    redis_server.thaw()
    assert all(isinstance(receipt.failure, BrokerUnavailable) for receipt in receipts)
    client = redis_server.client()
    wait_for(lambda: client.llen("right") == 3)
    assert redis_broker.push([pushes("3", "right")])[0].was_taken
    assert client.lrange("right", 0, -1) == ["3", "2", "1", "0"]


def test_in_another_database_a_batch_is_pushed_between_its_claim_and_its_ack(world: World) -> None:
    beat = world.beat(misfire_redis_url=world.server.url.replace("/0", "/1"))
    # Declares the queue.
    fire_all(beat)
    names = [f"{n:02}" for n in range(40)]
    beat.update_from_dict({name: due_now() for name in names})
    # Adopted without being carried out.
    beat._member._adopt()
    with world.server.recorded_commands(of_scripts=False) as commands:
        run(beat, lambda: world.client.llen("celery") == len(names) + 1)
    verbs = [command.split()[0].upper() for command in commands]
    assert [verb for verb in verbs if verb in ("EVALSHA", "LPUSH", "MULTI")] == [
        "EVALSHA",
        *["LPUSH"] * len(names),
        "EVALSHA",
    ]
    assert world.runs() == sent_lines(beat) == Counter(["a", *names])


def test_a_pipeline_that_is_not_answered_is_sent_again_one_by_one_under_the_same_ids(
    world: World, redis_binary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{n:02}" for n in range(20)]
    with RedisServer(redis_binary) as other:
        beat = world.beat(broker=other.url)
        push, lengths = beat._broker.push, list[int]()

        def answers_the_second_time(messages: Sequence[Sequence[Push]]) -> list[Receipt]:
            lengths.append(len(messages))
            if len(lengths) > 1:
                return push(messages)
            other.freeze()
            try:
                return push(messages)
            finally:
                other.thaw()

        monkeypatch.setattr(beat._broker, "push", answers_the_second_time)
        patient = {"misfire": {"instruction": "do_nothing", "threshold": 600}}
        beat.update_from_dict({name: due_now(**patient) for name in names})
        run(beat, lambda: is_done(beat, names))
        copies = Counter(m.id for m in published(other.url))
    assert sum(lengths) == 20
    assert len(copies) == 20
    # Frozen, Redis had got it all the same; what comes after that goes one by one.
    assert copies.total() == 20 + lengths[0]
    assert sent_lines(beat) == Counter(names)
    assert [m for m in caplog.messages if "the broker failed" in m] != []


# -- what two steps make of it -----------------------------------------------------------------------------


class Batching(VirtualWorld):
    """Its publisher says later what became of a message."""

    fate: Callable[[Message], Attempt] = staticmethod(lambda _: Attempt(Fate.SENT))

    def publish(self, message: Message) -> Attempt:
        self.under_way = [*getattr(self, "under_way", ()), message]
        return Attempt(Fate.UNDER_WAY)

    def settle(self, *, may_send: bool) -> dict[str, Attempt]:
        batch, self.under_way = self.under_way, []
        if not may_send:
            return {message.task_id: Attempt(Fate.NOT_TRIED) for message in batch}
        self.sent += batch
        return {message.task_id: self.fate(message) for message in batch}


@pytest.fixture
def batching(redis_server: RedisServer) -> Iterator[Batching]:
    world = Batching(redis_server.url)
    yield world
    if world.leader is not None:
        world.stop()


def test_only_what_is_in_doubt_is_sent_again_when_another_message_was_at_fault(batching: Batching) -> None:
    for name in "abc":
        batching.entry(name, simple(start=DAY + timedelta(seconds=10), repeat_count=0))
    tries = Counter[str]()

    def fate(message: Message) -> Attempt:
        name = message.definition.name
        tries[name] += 1
        return Attempt(Fate.IN_DOUBT if tries[name] == 1 and name != "a" else Fate.SENT)

    batching.fate = fate
    batching.start()
    # No time passes: nobody waits for a next try.
    batching.run(batching.now + 10 * SECOND)
    assert tries == {"a": 1, "b": 2, "c": 2}
    assert len({m.task_id for m in batching.sent}) == 3
    assert all(not batching.leader.record(name).intents for name in "abc")


def test_a_refusal_in_a_batch_is_the_refused_entrys_own(batching: Batching) -> None:
    for name in "ab":
        batching.entry(name, schedule(60))
    begin = batching.now

    def fate(message: Message) -> Attempt:
        if message.definition.name == "b":
            return Attempt(Fate.REFUSED, PublishRejected("NO_ROUTE"))
        return Attempt(Fate.SENT)

    batching.fate = fate
    batching.start()
    batching.run(begin + 5 * MINUTE + SECOND)
    assert batching.scheduled("a") == [begin + n * MINUTE for n in range(1, 6)]
    assert {(r.missed.entry, r.missed.reason) for r in batching.missed} == {("b", "publish_rejected")}


def test_no_batch_exceeds_its_limit_when_many_entries_have_many_runs_in_time(batching: Batching) -> None:
    for n in range(90):
        batching.entry(f"{n:02}", schedule(60), MisfirePolicy("do_nothing", threshold=3600))
    begin = batching.now
    batching.start()
    batching.run(begin + SECOND)
    sizes = list[int]()
    settle = batching.settle

    def measured(*, may_send: bool) -> dict[str, Attempt]:
        sizes.append(len(batching.under_way))
        return settle(may_send=may_send)

    batching.settle = measured  # type: ignore[method-assign]
    # Beat stood still for five minutes.
    batching.now += 5 * MINUTE
    batching.run(batching.now + 30 * SECOND)
    assert sum(sizes) == 90 * 5
    assert max(sizes) <= LARGEST_BATCH


def test_what_never_left_before_the_broker_failed_is_known_not_to_have_been_sent(batching: Batching) -> None:
    batching.entry("a", schedule(60), MisfirePolicy("do_nothing", threshold=10))
    begin = batching.now
    leader = batching.start()
    publish = batching.publish

    def fails_meanwhile(message: Message) -> Attempt:
        batching.broker_is_up = False
        leader._broker.failed(BrokerUnavailable())
        return publish(message)

    batching.publish = fails_meanwhile  # type: ignore[method-assign]
    batching.run(begin + MINUTE + 30 * SECOND)
    assert batching.sent == []
    batching.publish, batching.broker_is_up = publish, True  # type: ignore[method-assign]
    batching.run(begin + 2 * MINUTE + SECOND)
    # In doubt, it would be sent however late.
    assert batching.scheduled() == [begin + 2 * MINUTE]
    (report,) = batching.missed
    assert report.missed.count == 1
