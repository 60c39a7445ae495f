"""Where runs go is what the broker itself tells, whatever it is called: the mark of the state has it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_misfire.beat import MisfireScheduler
from celery_misfire.exceptions import BrokerUnavailable
from celery_misfire.sending.broker import Broker
from celery_misfire.store.state_mark import Destination
from tests.support.one_redis import World, fire_all, run, store_of
from tests.support.processes import wait_for
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.redis_server import RedisServer

KEY = "celery-misfire:{shop}:place"


@pytest.fixture
def ask() -> Iterator[Any]:
    """Return a function that asks the broker of an app with these settings."""
    brokers: list[Broker] = []

    def ask(url: str | list[str], **settings: Any) -> Destination:
        app = Celery("shop", broker=url, set_as_current=False)
        app.conf.update(settings)
        brokers.append(Broker(app))
        return brokers[-1].destination((KEY, KEY))

    yield ask
    for broker in brokers:
        broker.close()


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == level and "elsewhere" in r.getMessage()]


def test_one_database_of_a_redis_is_one_place_by_whatever_name_and_user(
    ask: Any, redis_server: RedisServer
) -> None:
    port = redis_server.port
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "canary", "on", ">first", "~*", "&*", "+@all")
        first = ask(f"redis://127.0.0.1:{port}/0")
        assert first == ask(f"redis://localhost:{port}")
        assert first == ask(f"redis://canary:first@localhost:{port}/0")
        client.execute_command("ACL", "SETUSER", "canary", "resetpass", ">second")
        assert first == ask(f"redis://canary:second@localhost:{port}/0")
        assert "canary" not in str(first)
        assert first.place != ask(f"redis://localhost:{port}/1").place
        client.flushall()
        assert first.place != ask(f"redis://127.0.0.1:{port}/0").place


def test_a_redis_that_restarts_with_its_data_stays_the_same_place(ask: Any, redis_binary: Path) -> None:
    with RedisServer(redis_binary, append_only="always") as server:
        first = ask(server.url)
        server.restart()
        assert ask(server.url) == first


def test_a_redis_that_lets_us_keep_no_word_tells_no_place(ask: Any, redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "limited", "on", ">p", "~celery", "&*", "+@all")
        found = ask(f"redis://limited:p@localhost:{redis_server.port}")
    assert found == Destination("", "", "celery")


def test_a_redis_that_refuses_the_question_tells_no_place(redis_server: RedisServer) -> None:
    rights = ("on", ">p", "~*", "&*", "+@all")
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "limited", *rights)
        url = f"redis://limited:p@localhost:{redis_server.port}/1"
        app = Celery("shop", broker=url, set_as_current=False)
        broker = Broker(app)
        try:
            broker.connect()
            # The next connection of the pool may not choose its database.
            client.execute_command("ACL", "SETUSER", "limited", "-select")
            client.execute_command("CLIENT", "KILL", "USER", "limited")
            assert broker.destination((KEY, KEY)) == Destination("", "", "celery")
        finally:
            broker.close()


def test_prefix_and_default_queue_are_those_that_celery_uses(ask: Any, redis_server: RedisServer) -> None:
    prefix = {"broker_transport_options": {"global_keyprefix": "acme:"}}
    found = ask(redis_server.url, task_default_queue="night", **prefix)
    assert (found.prefix, found.queue) == ("acme:", "night")
    with redis_server.client() as client:
        assert client.keys("*place*") == [KEY]
    assert ask(redis_server.url, task_routes={"*": {"queue": "blue"}}).queue == "blue"

    def router(*_: Any, **__: Any) -> Any:
        raise AssertionError("it may say something else each time")

    routes = [("shop.*", {"queue": "x"}), ("*", {"queue": "y"})]
    assert ask(redis_server.url, task_routes=(routes,)).queue == "y"
    assert ask(redis_server.url, task_routes=routes).queue == "celery", "Celery cannot read these either"
    assert ask(redis_server.url, task_routes=(router,), task_default_queue="night").queue == "night"


def test_of_a_list_of_brokers_the_place_is_not_compared(ask: Any, redis_server: RedisServer) -> None:
    assert ask(f"{redis_server.url};redis://localhost:1").place == ""


@pytest.mark.takes(20)
def test_rabbitmq_tells_its_cluster_and_the_virtual_host(ask: Any, rabbitmq_server: RabbitMQ) -> None:
    port = rabbitmq_server.port
    first = ask(f"amqp://guest:guest@127.0.0.1:{port}//")
    assert first == ask(f"amqp://guest:guest@localhost:{port}/")
    assert first.place.startswith("py-amqp test@")
    assert first.place.endswith(" /")
    assert "guest" not in str(first)
    rabbitmq_server.control("add_vhost", "staging")
    rabbitmq_server.control("set_permissions", "--vhost", "staging", "guest", ".*", ".*", ".*")
    try:
        assert ask(f"amqp://guest:guest@127.0.0.1:{port}/staging").difference(first)
    finally:
        rabbitmq_server.control("delete_vhost", "staging")


def test_a_broker_that_is_away_is_said_to_be(ask: Any) -> None:
    with pytest.raises(BrokerUnavailable):
        ask("redis://localhost:1")


# -- what beat does with it --------------------------------------------------------------------------------


def destination(beat: MisfireScheduler) -> Destination | None:
    mark, _ = store_of(beat).look()
    return mark.destination if mark else None


def test_a_state_that_tells_no_destination_is_adopted_in_silence(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    beat = world.beat()
    run(beat, lambda: destination(beat))
    assert destination(beat) == Destination(f"redis {world.client.get(KEY)}", "", "celery")
    assert said(caplog, logging.WARNING) == []


def test_fields_of_the_mark_that_a_later_version_adds_are_kept(world: World) -> None:
    world.client.hset("celery-misfire:{shop}:state", "_meta", '{"app": "shop", "new": [1], "schema": 1}')
    beat = world.beat()
    run(beat, lambda: destination(beat))
    assert '"new": [1]' in world.client.hget("celery-misfire:{shop}:state", "_meta")


def test_a_beat_that_comes_after_one_that_sent_elsewhere_adopts_its_state_with_a_warning(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    first = world.beat(task_default_queue="old", misfire_lease_ttl=1)
    run(first, lambda: destination(first))
    world.beats.remove(first)
    first.close()
    second = world.beat(task_default_queue="new", misfire_lease_ttl=1)
    fire_all(second)
    [warning] = said(caplog, logging.WARNING)
    assert "the default queue is 'old' there and 'new' here" in warning
    assert "misfire_namespace" in warning
    assert world.runs("new") == {"a": 1}
    assert said(caplog, logging.ERROR) == []


def test_a_broker_that_loses_its_data_keeps_its_beats_together(
    world: World, redis_binary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The leader notes the new word; the one that stands by asks for it before it says anything."""
    with RedisServer(redis_binary) as broker:
        leader = world.beat(broker=broker.url)
        run(leader, lambda: destination(leader))
        standby = MisfireScheduler(world.app(broker=broker.url))
        world.beats.append(standby)
        standby.tick()
        broker.restart()
        leader._leader._dispatch._token = ""
        known = destination(leader)
        run(leader, lambda: destination(leader) != known)
        standby._member._ask_again_at = 0.0
        wait_for(lambda: standby.tick() >= 0 and "another beat leads" in caplog.text)
        leader.close()
        run(standby, lambda: standby._member.holds_lease)
    assert said(caplog, logging.ERROR) == []


# -- a list of brokers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_list", [False, True])
def test_of_a_list_whose_first_broker_is_down_the_next_one_gets_the_runs(
    world: World, redis_binary: Path, as_list: bool
) -> None:
    with RedisServer(redis_binary) as second, second.client() as client:
        urls = ["redis://127.0.0.1:1/0", second.url]
        beat = world.beat(broker=urls if as_list else ";".join(urls))
        fire_all(beat)
        assert client.llen("celery") == 1


def test_runs_follow_the_broker_when_it_fails_over_and_the_state_stays_where_it_is(
    world: World, redis_binary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with RedisServer(redis_binary) as second, Proxy(world.server.port) as proxy:
        beat = world.beat(broker=f"redis://127.0.0.1:{proxy.port}/0;{second.url}")
        fire_all(beat, "a")
        assert "in one transaction" in caplog.text
        # Celery does not reach the first broker any more; beat still reaches the state, which is there.
        proxy.refusing = True
        proxy.cut()
        run(beat, lambda: "in two steps" in caplog.text)
        fire_all(beat, "b")
        assert world.runs() == {"a": 1}
        with second.client() as client:
            assert client.llen("celery") == 1
    assert said(caplog, logging.WARNING) == []
