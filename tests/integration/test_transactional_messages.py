"""Messages that beat pushes with its records are Celery's own; what cannot be pushed goes in two steps."""

from __future__ import annotations

import base64
import json
import logging
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery, Task
from celery.beat import BeatLazyFunc, ScheduleEntry, Scheduler
from celery.canvas import Signature
from celery.signals import after_task_publish, before_task_publish
from kombu import Exchange, Queue, binding

from celery_misfire.records import loads
from tests.support.one_redis import World, body, due_now, fire_all, run, sent_lines, store_of
from tests.support.rabbitmq import RabbitMQ

pytestmark = pytest.mark.takes(20)

IN_ONE, IN_TWO = "in one transaction with its record", "in two steps, claim and ack around it"


def ways(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return which ways of sending beat has announced."""
    return [way for r in caplog.records for way in (IN_ONE, IN_TWO) if r.message.endswith(way)]


# -- what Redis gets ---------------------------------------------------------------------------------------


def test_a_batch_is_one_script_and_nothing_is_pushed_beside_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The contract with kombu's Redis transport: whatever it writes for a message is recorded."""
    caplog.set_level(logging.INFO)
    beat = world.beat()
    fire_all(beat)
    names = [f"{n:03}" for n in range(60)]
    beat.update_from_dict({name: due_now() for name in names})
    # Adopted without being carried out.
    beat._member._adopt()
    with world.server.recorded_commands(of_scripts=False) as commands:
        run(beat, lambda: world.client.llen("celery") == 61)
    verbs = Counter(command.split()[0].upper() for command in commands)
    assert verbs.keys() - {"HELLO", "CLIENT"} == {"EVALSHA", "LLEN"}
    assert verbs["EVALSHA"] == 1
    assert world.runs() == sent_lines(beat) == Counter(["a", *names])
    assert all(m["headers"]["misfire"]["once"] for m in world.messages())
    assert ways(caplog) == [IN_ONE]


def test_in_another_database_each_run_is_claimed_sent_and_acknowledged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    beat = world.beat(misfire_redis_url=world.server.url.replace("/0", "/1"))
    fire_all(beat, "ab")
    assert world.runs() == sent_lines(beat) == Counter("ab")
    assert not any(m["headers"]["misfire"].get("once") for m in world.messages())
    assert ways(caplog) == [IN_TWO]


def test_rabbitmq_gets_runs_in_two_steps(
    world: World, rabbitmq_server: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    beat = world.beat(broker=rabbitmq_server.url)
    fire_all(beat, "ab")
    assert Counter(m.misfire["entry"] for m in rabbitmq_server.published() if m.misfire) == Counter("ab")
    assert ways(caplog) == [IN_TWO]


# -- messages are Celery's own -----------------------------------------------------------------------------

#: What differs between two messages of one task.
OWN = {"id", "root_id", "misfire", "periodic_task_name", "expires"}


def everything(world: World) -> dict[str, list[dict[str, Any]]]:
    """Take all messages out of all queues; return them by key, without what differs."""
    found = {}
    for key in sorted(world.client.scan_iter(_type="list")):
        found[key] = [comparable(message) for message in world.messages(key)]
        world.client.delete(key)
    return found


def comparable(message: dict[str, Any]) -> dict[str, Any]:
    headers = message["headers"]
    message["headers"] = {k: v for k, v in headers.items() if k not in OWN}
    message["expires"] = bool(headers.get("expires"))
    if message["headers"].keys() <= {"celery_beat_task"}:
        # Protocol 1 has it all in the body.
        content = json.loads(base64.b64decode(message["body"]))
        message["body"] = content | {"id": None, "correlation_id": None}
    message["properties"] = {
        k: v for k, v in message["properties"].items() if k not in ("correlation_id", "delivery_tag")
    }
    return message


def signature(app: Celery) -> Signature:
    return app.signature("shop.after", (1,), queue="celery")


TOPIC, DIRECT = Exchange("topic", "topic"), Exchange("direct", "direct")
QUEUES = [
    Queue("celery"),
    Queue("short", expires=600),
    Queue("both", DIRECT, routing_key="x"),
    Queue("too", DIRECT, bindings=[binding(DIRECT, routing_key="x"), binding(DIRECT, routing_key="y")]),
    Queue("news", TOPIC, routing_key="news.#"),
    Queue("sport", TOPIC, routing_key="*.sport"),
]

SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "priority": ({}, {"options": {"priority": 7}}),
    "priority steps": (
        {
            "broker_transport_options": {
                "priority_steps": [0, 4, 9],
                "sep": ":",
                "queue_order_strategy": "priority",
            }
        },
        {"options": {"priority": 5}},
    ),
    "prefix": ({"broker_transport_options": {"global_keyprefix": "shop-"}}, {}),
    "prefix and expiry": (
        {"broker_transport_options": {"global_keyprefix": "shop-"}},
        {"options": {"queue": "short", "priority": 3}},
    ),
    "expiry": ({}, {"options": {"queue": "short"}}),
    "direct": ({}, {"options": {"exchange": "direct", "routing_key": "x"}}),
    "topic": ({}, {"options": {"queue": "news", "routing_key": "news.sport"}}),
    "compression": ({"task_compression": "gzip"}, {"kwargs": {"text": "x" * 5000}}),
    "pickle": ({}, {"args": (datetime(2026, 1, 1, tzinfo=UTC), {1, 2}), "options": {"serializer": "pickle"}}),
    "protocol 1": ({"task_protocol": 1}, {}),
    "extended results": ({"result_extended": True, "result_backend": "cache+memory://"}, {"args": (1,)}),
    "expires": ({}, {"options": {"expires": 600, "time_limit": 30}}),
    "headers": ({}, {"options": {"headers": {"tenant": "north"}, "shadow": "name", "ignore_result": False}}),
    "sent events": ({"task_send_sent_event": True}, {}),
}


@pytest.mark.parametrize("case", SAME)
def test_messages_are_those_of_apply_async_but_for_ids_and_times(world: World, case: str) -> None:
    settings, entry = SAME[case]
    app = world.app(
        task_queues=QUEUES, task_default_queue="celery", accept_content=["json", "pickle", "yaml"], **settings
    )
    check_same(world, app, entry)


@pytest.mark.parametrize("option", ["link", "link_error", "chord", "chain"])
def test_signatures_in_the_options_go_along(world: World, option: str) -> None:
    app = world.app()
    value: Any = signature(app) if option == "chord" else [signature(app)]
    check_same(world, app, {"options": {option: value}})


def stock_beat_sends(app: Celery, task: str = "shop.reports", **entry: Any) -> None:
    """Send a task as Celery's own beat does."""
    scheduler = Scheduler(app, lazy=True)
    scheduler.apply_async(ScheduleEntry("a", task, schedule=60.0, app=app, **entry), advance=False)


def check_same(world: World, app: Celery, entry: dict[str, Any]) -> None:
    app.task(name="shop.reports", shared=False)(body)
    with app.connection_for_write() as connection:
        for queue in app.conf.task_queues or ():
            queue(connection.default_channel).declare()
    beat = world.beat(app)
    with world.server.recorded_commands(of_scripts=False) as commands:
        fire_all(beat, **entry)
    assert not [c for c in commands if c.startswith(("LPUSH", "PEXPIRE"))]
    expiry = {key: world.client.ttl(key) for key in world.client.scan_iter(_type="list")}
    by_beat = everything(world)
    stock_beat_sends(app, **entry)
    assert expiry == {
        key: pytest.approx(world.client.ttl(key), abs=20) for key in world.client.scan_iter(_type="list")
    }
    assert by_beat == everything(world)
    assert by_beat


def test_a_task_that_beat_does_not_know_is_sent_by_name(world: World) -> None:
    app = world.app()
    fire_all(world.beat(app), args=(1,), task="shop.elsewhere")
    by_beat = everything(world)
    stock_beat_sends(app, args=(1,), task="shop.elsewhere")
    assert by_beat == everything(world)


@pytest.mark.parametrize("prefix", ["", "shop-"])
def test_a_fanout_exchange_gets_the_message(world: World, prefix: str) -> None:
    app = world.app(
        task_queues=[Queue("all", Exchange("all", "fanout"))],
        broker_transport_options={"global_keyprefix": prefix} if prefix else {},
    )
    app.task(name="shop.reports", shared=False)(body)
    with app.connection_for_write() as connection:
        app.conf.task_queues[0](connection.default_channel).declare()
    beat = world.beat(app)
    with world.client.pubsub() as subscription:
        subscription.psubscribe("*")
        subscription.get_message(timeout=10)
        fire_all(beat, options={"queue": "all"})
        stock_beat_sends(app, options={"queue": "all"})
        heard = [subscription.get_message(timeout=10) for _ in range(2)]
        assert subscription.get_message(timeout=0.2) is None
    ours, celerys = (comparable(json.loads(one["data"])) for one in heard)
    assert ours == celerys
    assert heard[0]["channel"] == heard[1]["channel"]


@BeatLazyFunc
def lazy_argument() -> int:
    return 4711


def test_arguments_that_are_worked_out_when_they_are_sent(world: World) -> None:
    fire_all(world.beat(), args=(lazy_argument,))
    (message,) = world.messages()
    assert json.loads(base64.b64decode(message["body"]))[0] == [4711]


def test_receivers_of_signals_that_fail_stop_nothing(world: World) -> None:
    def fail(**_: Any) -> None:
        raise ValueError

    for signal in (before_task_publish, after_task_publish):
        signal.connect(fail)
    try:
        fire_all(world.beat(), "ab")
    finally:
        for signal in (before_task_publish, after_task_publish):
            signal.disconnect(fail)
    assert world.runs() == Counter("ab")


# -- tasks that leave while their message is built ---------------------------------------------------------


class Dropping(Task):
    """Sends without beat's producer."""

    def apply_async(self, *args: Any, **options: Any) -> Any:
        options.pop("producer", None)
        return super().apply_async(*args, **options)


class Renaming(Task):
    """Sends under an id of its own."""

    def apply_async(self, *args: Any, **options: Any) -> Any:
        return super().apply_async(*args, **options | {"task_id": f"own-{options['task_id']}"})


class ByName(Task):
    """Sends another task."""

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        kept = {key: options[key] for key in ("headers", "task_id")}
        return self.app.send_task("shop.elsewhere", args, kwargs, **kept)


class Failing(Task):
    """Raises after it has sent."""

    def apply_async(self, *args: Any, **options: Any) -> Any:
        super().apply_async(*args, **options)
        raise ValueError


@pytest.mark.parametrize("whole_app", [False, True], ids=["one task", "all tasks"])
@pytest.mark.parametrize("base", [Dropping, Renaming, ByName, Failing])
def test_a_task_that_sends_by_its_own_ways_is_sent_once(
    world: World, base: type[Task], whole_app: bool
) -> None:
    app = world.app(task_cls=base if whole_app else None)
    app.task(name="shop.reports", base=None if whole_app else base, shared=False)(body)
    beat = world.beat(app)
    fire_all(beat, "ab")
    assert world.runs() == sent_lines(beat) == Counter("ab")
    # It left before its record was written.
    assert not any(m["headers"]["misfire"].get("once") for m in world.messages())


def test_an_apply_async_of_the_task_itself_counts_as_well(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = world.app()
    task = app.task(name="shop.reports", shared=False)(body)
    monkeypatch.setattr(task, "apply_async", lambda *_, **o: Task.apply_async(task, headers=o["headers"]))
    fire_all(world.beat(app))
    assert world.runs() == Counter("a")
    assert not world.messages()[0]["headers"]["misfire"].get("once")


def test_an_app_that_runs_its_tasks_at_once_runs_each_after_its_claim(world: World) -> None:
    ran = []
    app = world.app(task_always_eager=True)

    def look() -> None:
        record = loads(store_of(beat).load()["a"])
        ran.append([intent.scheduled for intent in record.intents])

    app.task(name="shop.reports", shared=False)(look)
    beat = world.beat(app)
    fire_all(beat)
    assert [len(claimed) for claimed in ran] == [1]
    assert not world.messages()


def test_an_app_with_a_send_task_of_its_own_sends_unknown_tasks_once(world: World) -> None:
    class Sending(Celery):
        def send_task(self, *args: Any, **options: Any) -> Any:
            options.pop("producer", None)
            return super().send_task(*args, **options)

    app = Sending("shop", broker=world.server.url, set_as_current=False)
    app.conf.update(world.app().conf.changes)
    fire_all(world.beat(app), "ab")
    assert world.runs() == Counter("ab")
    assert not any(m["headers"]["misfire"].get("once") for m in world.messages())
