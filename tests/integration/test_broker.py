"""What beat's own connection does when the broker, or the way to it, does not do what it should."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import amqp
import pytest
from celery import Celery, Task
from celery.beat import BeatLazyFunc
from kombu import Exchange, Queue
from kombu.exceptions import EncodeError

from celery_misfire.beat import MisfireScheduler
from celery_misfire.conf.settings import read_settings
from celery_misfire.exceptions import BrokerUnavailable, MisfireError
from celery_misfire.misfire import MisfireInstruction, MissedFire, Reason
from celery_misfire.sending import broker as broker_module
from celery_misfire.sending.broker import Broker
from celery_misfire.sending.missed_runs import Part, Report, report
from celery_misfire.store.redis_store import RedisStore
from tests.support.log_lines import one_by_one
from tests.support.processes import published, wait_for
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.redis_server import RedisServer

#: A time limit for answers that do not come, in seconds, and what a busy machine may add.
LIMIT, GRACE = 2.0, 8.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "TIMEOUT", 30.0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, patient: None) -> None:
    monkeypatch.setattr(broker_module, "TIMEOUT", LIMIT)


@pytest.fixture
def proxy(rabbitmq_server: RabbitMQ) -> Iterator[Proxy]:
    with Proxy(rabbitmq_server.port) as proxy:
        yield proxy


@pytest.fixture
def app(proxy: Proxy) -> Iterator[Celery]:
    app = Celery("broker", broker=proxy.amqp_url, set_as_current=False)
    app.conf.task_publish_retry = False
    yield app
    app.close()


@pytest.fixture
def broker(app: Celery) -> Iterator[Broker]:
    broker = Broker(app)
    yield broker
    broker.drop()


def send(app: Celery, broker: Broker, id_: str, **options: Any) -> None:
    app.send_task("tick", task_id=id_, producer=broker.producer, ignore_result=True, **options)


def can_be_reached(broker: Broker) -> bool:
    try:
        broker.connect()
    except BrokerUnavailable:
        return False
    return True


def ids(server: RabbitMQ, queue: str = "celery") -> list[str]:
    return [m.id for m in server.published(queue)]


# -- answers that do not come ------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("bytes_of_the_answer", [0, 15])
def test_a_confirmation_that_is_lost_ends_the_wait_and_the_connection(
    app: Celery, broker: Broker, proxy: Proxy, rabbitmq_server: RabbitMQ, bytes_of_the_answer: int
) -> None:
    send(app, broker, "before")
    proxy.to_client = bytes_of_the_answer

    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="TimeoutError"):
        send(app, broker, "in doubt")
    assert LIMIT * 0.9 < time.monotonic() - began < GRACE

    proxy.heal()
    send(app, broker, "in doubt")
    assert proxy.connections == 2
    assert ids(rabbitmq_server) == ["before", "in doubt", "in doubt"]


@pytest.mark.usefixtures("quick")
def test_a_black_hole_ends_the_wait(
    app: Celery, broker: Broker, proxy: Proxy, rabbitmq_server: RabbitMQ
) -> None:
    send(app, broker, "before")
    proxy.swallow("to_server")

    began = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        # More than all buffers on the way hold.
        send(app, broker, "lost", args=["x" * 20_000_000])
    assert time.monotonic() - began < GRACE
    assert ids(rabbitmq_server) == ["before"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("missing", [1, 100, 10_000])
def test_a_broker_that_does_not_answer_ends_the_attempt_to_connect(
    app: Celery, broker: Broker, proxy: Proxy, missing: int
) -> None:
    broker.producer  # noqa: B018
    app.conf.broker_connection_timeout = LIMIT / 2
    proxy.to_client = max(0, proxy.seen["to_client"] - missing)
    broker.drop()

    began = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        broker.producer  # noqa: B018
    assert time.monotonic() - began < GRACE


@pytest.mark.usefixtures("quick")
def test_without_a_time_limit_of_the_apps_connecting_has_one_of_ours(
    app: Celery, broker: Broker, proxy: Proxy
) -> None:
    app.conf.broker_connection_timeout = None
    proxy.swallow()

    began = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        broker.producer  # noqa: B018
    assert time.monotonic() - began < GRACE


# -- connections that have ended ---------------------------------------------------------------------------


def test_a_connection_that_was_cut_while_idle_is_replaced_before_anything_is_sent(
    app: Celery, broker: Broker, proxy: Proxy, rabbitmq_server: RabbitMQ
) -> None:
    send(app, broker, "1")
    proxy.cut()
    send(app, broker, "2")
    assert proxy.connections == 2
    assert ids(rabbitmq_server) == ["1", "2"]


def test_no_heartbeat_is_due_however_the_app_is_configured(app: Celery, broker: Broker, proxy: Proxy) -> None:
    app.conf.broker_transport_options = {"heartbeat": 1}
    send(app, broker, "1")
    seen = dict(proxy.seen)
    # RabbitMQ sends one at half the time, and ends a connection that has sent none at twice the time.
    time.sleep(1.2)
    assert proxy.seen == seen
    assert broker.producer.connection.connection.heartbeat == 0


def test_the_next_broker_is_taken_when_one_is_away(rabbitmq_server: RabbitMQ, proxy: Proxy) -> None:
    gone = "amqp://guest:guest@127.0.0.1:1//"
    app = Celery("failover", broker=[gone, gone, proxy.amqp_url], set_as_current=False)
    broker = Broker(app)
    send(app, broker, "1")
    broker.close()
    assert ids(rabbitmq_server) == ["1"]
    app.close()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (
            "amqp://u:secret@127.0.0.1:1/shop",
            "amqp://127.0.0.1:1/shop: ConnectionRefusedError (Connection refused)",
        ),
        ("amqp://u:secret@nosuch.invalid//", "amqp://nosuch.invalid:5672//: gaierror ("),
        ("redis://u:secret@127.0.0.1:1/2", "redis://127.0.0.1:1/2: ConnectionError (Connection refused)"),
        ("redis://u:secret@nosuch.invalid/2", "redis://nosuch.invalid:6379/2: ConnectionError ("),
        ("nosuch://u:secret@h", "No such transport: nosuch"),
    ],
)
def test_a_broker_that_cannot_be_reached_is_told_with_its_address_and_the_reason(url: str, told: str) -> None:
    app = Celery("away", broker=url, set_as_current=False)
    with pytest.raises(BrokerUnavailable) as error:
        Broker(app).connect()
    assert told in str(error.value)
    assert "secret" not in str(error.value)
    # A name that nobody knows has one of several sentences.
    assert not re.search("Unknown error|gaierror$", str(error.value))


def test_a_wrong_password_is_told(
    rabbitmq_server: RabbitMQ, redis_server: RedisServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.client().config_set("requirepass", "right")
    urls = [
        proxy.amqp_url.replace("guest:guest", "guest:secret"),
        redis_server.url.replace("//", "//:secret@"),
    ]
    told = []
    for url in urls:
        app = Celery("away", broker=url, set_as_current=False)
        with pytest.raises(BrokerUnavailable) as error:
            Broker(app).connect()
        told.append(str(error.value))
    assert "AccessRefused (ACCESS_REFUSED - Login was refused" in told[0]
    assert "WRONGPASS" in told[1] or "invalid username-password" in told[1]
    assert "secret" not in "".join(told)


# -- refusals ----------------------------------------------------------------------------------------------


def test_what_is_wrong_with_one_message_is_not_taken_for_a_failure_of_the_broker(
    app: Celery, broker: Broker, rabbitmq_server: RabbitMQ
) -> None:
    rabbitmq_server.declare("other arguments", **{"x-max-length": 7})

    # Confirmed although the app says otherwise: else nobody would hear of these.
    app.conf.broker_transport_options = {"confirm_publish": False}
    with pytest.raises(amqp.NotFound):
        send(app, broker, "no exchange", exchange="nowhere", routing_key="x")
    send(app, broker, "1")
    with pytest.raises(amqp.PreconditionFailed):
        send(app, broker, "other arguments", queue="other arguments")
    send(app, broker, "2")
    with pytest.raises(EncodeError):
        send(app, broker, "unserialisable", args=[object()])
    send(app, broker, "3")
    with pytest.raises(amqp.ChannelError, match="NO_ROUTE"):
        send(app, broker, "no queue", exchange="amq.fanout", routing_key="x", mandatory=True)
    send(app, broker, "4")
    assert ids(rabbitmq_server) == ["1", "2", "3", "4"]


def test_a_message_that_a_full_queue_refuses_may_be_in_another_one(
    app: Celery, broker: Broker, rabbitmq_server: RabbitMQ
) -> None:
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    rabbitmq_server.declare("full", **arguments)
    app.conf.task_queues = [Queue("full", routing_key="full", queue_arguments=arguments)]
    send(app, broker, "1", queue="full")
    with pytest.raises(MisfireError, match="nack") as refused:
        send(app, broker, "2", queue="full")
    assert type(refused.value) is MisfireError
    rabbitmq_server.drain("full")
    send(app, broker, "3", queue="full")
    assert ids(rabbitmq_server, "full") == ["3"]


def test_a_queue_that_was_deleted_under_a_connection_is_made_again(
    app: Celery, broker: Broker, rabbitmq_server: RabbitMQ
) -> None:
    send(app, broker, "1", mandatory=True)
    rabbitmq_server.delete("celery")
    with pytest.raises(amqp.ChannelError, match="NO_ROUTE"):
        send(app, broker, "2", mandatory=True)
    send(app, broker, "2", mandatory=True)
    assert ids(rabbitmq_server) == ["2"]


def test_an_event_that_cannot_be_sent_leaves_no_answer_behind_for_the_next_message(
    app: Celery, broker: Broker, proxy: Proxy, rabbitmq_server: RabbitMQ
) -> None:
    """Celery keeps quiet about an event that fails."""
    send(app, broker, "1")
    with pytest.raises(amqp.NotFound):
        broker.producer.publish({}, exchange="nowhere", routing_key="x")
    send(app, broker, "2")
    assert proxy.connections == 2
    assert ids(rabbitmq_server) == ["1", "2"]


# On a busy machine rabbitmqctl alone takes a minute.
@pytest.mark.timeout(600)
def test_a_rabbitmq_that_is_short_of_memory_is_given_one_message_and_then_waited_for(
    app: Celery, broker: Broker, proxy: Proxy, rabbitmq_server: RabbitMQ
) -> None:
    def is_taken(id_: str) -> bool:
        try:
            send(app, broker, id_)
        except BrokerUnavailable as error:
            return "memory or disk" not in str(error)
        return True

    rabbitmq_server.control("set_vm_memory_high_watermark", "0")
    try:
        wait_for(lambda: not is_taken("1"))
        sent = proxy.seen["to_server"]
        assert not any(is_taken("2") for _ in range(10))
        assert (proxy.seen["to_server"], proxy.connections) == (sent, 1)
        # Another beat that comes now is told so before it sends anything.
        other = Broker(app)
        for _ in range(3):
            with pytest.raises(BrokerUnavailable, match="memory or disk"):
                other.connect()
        assert proxy.connections == 2
    finally:
        rabbitmq_server.control("set_vm_memory_high_watermark", "0.4")
    wait_for(lambda: is_taken("2"))
    assert ids(rabbitmq_server).count("2") == 1
    connections = proxy.connections
    wait_for(lambda: can_be_reached(other))
    assert proxy.connections == connections
    other.drop()


@pytest.mark.usefixtures("quick")
def test_a_rabbitmq_that_confirms_nothing_is_away_and_back_as_soon_as_it_confirms(
    app: Celery, broker: Broker, proxy: Proxy, rabbitmq_server: RabbitMQ
) -> None:
    proxy.loses_confirms = True
    for _ in range(2):
        with pytest.raises(BrokerUnavailable, match="TimeoutError"):
            broker.connect()
    proxy.loses_confirms = False
    broker.connect()
    seen = proxy.seen["to_server"]
    # It is asked once for each connection.
    broker.connect()
    assert (proxy.seen["to_server"], proxy.connections) == (seen, 3)
    send(app, broker, "1")
    assert ids(rabbitmq_server) == ["1"]


@pytest.mark.timeout(600)
def test_without_the_right_to_ask_rabbitmq_a_message_finds_out(
    proxy: Proxy, rabbitmq_server: RabbitMQ
) -> None:
    rabbitmq_server.control("add_user", "limited", "secret")
    try:
        rabbitmq_server.control("set_permissions", "limited", ".*", "celery", ".*")
        url = proxy.amqp_url.replace("guest:guest", "limited:secret")
        app = Celery("broker", broker=url, set_as_current=False)
        app.conf.task_queues = [Queue("celery", Exchange("celery"), routing_key="celery")]
        broker = Broker(app)
        broker.connect()
        app.send_task("tick", task_id="1", producer=broker.producer, exchange="celery", routing_key="celery")
        broker.drop()
    finally:
        rabbitmq_server.control("delete_user", "limited")
    assert ids(rabbitmq_server) == ["1"]
    assert proxy.connections == 1


def test_a_report_of_missed_runs_reaches_its_handler_whether_or_not_somebody_listens_to_events(
    app: Celery, rabbitmq_server: RabbitMQ
) -> None:
    moment = datetime(2026, 3, 2, 9, tzinfo=UTC)
    reason, instruction = Reason.SCHEDULER_DOWN, MisfireInstruction.DO_NOTHING
    missed = MissedFire("stocks", "tick", "an id", moment, moment, 1, reason, instruction, moment)
    settings: Any = None
    parts = (Part.EVENT, Part.HANDLER)
    assert report(app, settings, Report(missed, on_missed="ops.alarm"), parts) == {}
    (message,) = rabbitmq_server.published()
    assert (message.task, message.kwargs["missed"]["entry"]) == ("ops.alarm", "stocks")


# -- Redis -------------------------------------------------------------------------------------------------


def redis_app(server: RedisServer, **options: Any) -> Celery:
    app = Celery("broker", broker=server.url, set_as_current=False)
    app.conf.broker_transport_options = options
    return app


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("options", [{}, {"retry_on_timeout": True}])
def test_a_message_that_is_not_answered_is_not_repeated_behind_our_back(
    redis_server: RedisServer, options: dict[str, Any]
) -> None:
    app = redis_app(redis_server, **options)
    broker = Broker(app)
    send(app, broker, "first", retry=False)
    redis_server.freeze()
    # This Redis answers late: after the first time limit, and before a second one.
    later = threading.Timer(LIMIT * 1.5, redis_server.thaw)
    later.start()
    with pytest.raises(BrokerUnavailable):
        send(app, broker, "second", retry=False)
    later.join()
    broker.drop()
    wait_for(lambda: len(published(redis_server.url)) == 2)
    app.close()


@pytest.mark.parametrize("options", [{}, {"sentinel_kwargs": {"password": "x"}}])
def test_sentinels_that_do_not_answer_end_the_attempt_to_connect(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "TIMEOUT", 1.5)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        url = ";".join(f"sentinel://127.0.0.1:{one.getsockname()[1]}" for one in silent)
        app = Celery("broker", broker=url, set_as_current=False)
        app.conf.broker_transport_options = {"master_name": "mymaster", **options}
        begin = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            Broker(app).producer  # noqa: B018 - a look connects
        assert time.monotonic() - begin < 1.5 + GRACE


def turn(beat: MisfireScheduler, until: Callable[[], Any]) -> None:
    """Let beat work until this is true."""
    deadline = time.monotonic() + 30
    while not until():
        assert time.monotonic() < deadline
        time.sleep(min(0.05, beat.tick()))


def decisions(beat: MisfireScheduler, event: str) -> list[dict[str, Any]]:
    lines = one_by_one(RedisStore.of(read_settings(beat.app)).log())
    return [line for line in lines if line["event"] == event]


@contextlib.contextmanager
def beat_on(app: Celery, server: RedisServer, entries: dict[str, Any]) -> Iterator[MisfireScheduler]:
    app.conf.misfire_redis_url = server.url
    app.conf.beat_schedule = entries
    beat = MisfireScheduler(app)
    yield beat
    beat.close()
    app.close()


def test_a_message_that_cannot_be_made_is_no_failure_of_redis(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Kombu raises a KeyError for a compression it does not know, and counts one as a failure of Redis."""
    good = {"task": "tick", "schedule": 0.2, "misfire": {"threshold": 60}}
    bad = {**good, "misfire": {"threshold": 0.5}, "options": {"compression": "none such"}}
    entries = {"good": good, "bad": bad}
    with beat_on(redis_app(redis_server), redis_server, entries) as beat:
        turn(beat, lambda: decisions(beat, "missed"))
        assert {line["entry"] for line in decisions(beat, "missed")} == {"bad"}
    assert "the broker failed" not in caplog.text


def two_arguments(shop: str, day: str) -> None:
    """Take a shop and a day."""


class Audited(Task):
    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        super().apply_async(*args, **kwargs)
        raise RuntimeError("the audit table of customer 4711 is away")


def test_an_error_that_comes_when_the_message_was_taken_makes_no_run_a_missed_one(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    app = Celery("broker", broker=redis_server.url, task_cls=Audited, set_as_current=False)
    app.task(name="tick", shared=False)(look_up)
    tick = {"task": "tick", "schedule": 0.2, "misfire": {"threshold": 60}}
    with beat_on(app, redis_server, {"a": tick}) as beat:
        turn(beat, lambda: len(decisions(beat, "sent")) >= 5)
        assert decisions(beat, "missed") == []
        sent = [line["id"] for line in decisions(beat, "sent")]
    assert [m.id for m in published(redis_server.url)][: len(sent)] == sent
    assert "a run of entry 'a' was sent, and an error came after that: RuntimeError" in caplog.text
    assert "4711" not in caplog.text


def test_a_message_whose_arguments_do_not_fit_its_task_is_refused_with_pythons_sentence(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    app = redis_app(redis_server)
    app.task(two_arguments, name="tick", shared=False)
    tick = {"task": "tick", "schedule": 0.2, "args": ["secret"]}
    with beat_on(app, redis_server, {"a": tick}) as beat:
        turn(beat, lambda: refused(caplog))
    (line,) = refused(caplog)
    assert "TypeError" in line
    assert "missing 1 required positional argument: 'day'" in line
    assert "secret" not in line


def test_arguments_that_celery_takes_for_a_name_reach_neither_state_nor_log(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    app = redis_app(redis_server)
    task = app.task(login, name="shop.login", shared=False)
    for user in ("canary-bob", "canary-" + 300 * "x"):
        app.add_periodic_task(0.2, task.s(user, password="canary"))
    app.add_periodic_task(0.2, task.s(object(), password="canary"))
    app.conf.misfire_policies = {name: {"threshold": 0.5} for name in app.conf.beat_schedule}
    app.conf.misfire_redis_url = redis_server.url
    beat = MisfireScheduler(app)
    turn(beat, lambda: decisions(beat, "missed") and len(decisions(beat, "sent")) > 5)
    beat.close()
    app.close()
    messages = published(redis_server.url)
    names = {"shop.login(...)", "shop.login(...) #2", "shop.login(...) #3"}
    assert {m.headers["misfire"]["entry"] for m in messages} < names
    assert "canary-bob" in str([m.args for m in messages])
    client = redis_server.client()
    state = [client.hgetall(k) for k in client.scan_iter("celery-misfire:*:state")]
    state += [client.xrange(k) for k in client.scan_iter("celery-misfire:*:log")]
    assert len(state) == 2
    assert "shop.login(...) #3" in str(state)
    assert "canary" not in str([*client.scan_iter("celery-misfire:*"), *state])
    assert "shop.login(...)" in caplog.text
    assert "canary" not in "".join(r.getMessage() for r in caplog.records if "kombu" not in r.name)


def login(user: str, *, password: str) -> None:
    """Stands for a task with secret arguments."""


# -- in one process ----------------------------------------------------------------------------------------


def read_missing_file() -> str:
    return Path("/nonexistent/list of shops").read_text()


def look_up() -> None:
    try:
        {}["shop"]
    except KeyError:
        raise LookupError("no such shop") from None


@pytest.fixture
def beat(redis_server: RedisServer) -> Iterator[MisfireScheduler]:
    app = Celery("memory", broker="memory://", set_as_current=False)
    app.conf.misfire_redis_url = redis_server.url
    # All memory brokers of a process are one.
    app.conf.task_default_queue = "in one process"
    arguments = {"good": [], "file": [BeatLazyFunc(read_missing_file)], "lookup": [BeatLazyFunc(look_up)]}
    app.conf.beat_schedule = {
        name: {"task": "tick", "schedule": 0.2, "args": args, "misfire": {"threshold": 0.5}}
        for name, args in arguments.items()
    }
    scheduler = MisfireScheduler(app)
    yield scheduler
    scheduler.close()
    app.close()


def test_on_kombus_memory_transport_runs_reach_the_same_process_and_one_bad_entry_no_other(
    beat: MisfireScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    """What an argument raises when it is evaluated may look like the broker's own failure."""
    received: list[dict[str, Any]] = []
    with beat.app.connection_for_read() as connection, connection.channel() as channel:
        channel.queue_declare("in one process")

        def all_have_had_their_turn() -> bool:
            while message := channel.basic_get("in one process", no_ack=True):
                received.append(channel.message_to_python(message).headers)
            return len(received) >= 6 and len({r.split("'")[1] for r in refused(caplog)}) == 2

        turn(beat, all_have_had_their_turn)

    assert {headers["misfire"]["entry"] for headers in received} == {"good"}
    assert len({headers["id"] for headers in received}) == len(received)
    assert not [r for r in caplog.messages if "the broker failed" in r]
    assert sorted(r.partition("again: ")[2] for r in refused(caplog)) == [
        "PublishRejected: FileNotFoundError (No such file or directory)",
        "PublishRejected: LookupError",
    ]


def refused(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r for r in caplog.messages if "cannot be sent and is tried again" in r]
