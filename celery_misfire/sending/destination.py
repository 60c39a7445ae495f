"""Where the runs of an app go, as its broker tells it.

Two beats may name one broker differently (``localhost``, a service's name, another user), and two brokers may
have equal names in different networks. So the server itself is asked. A Redis keeps a random word of ours in
each database; its own run id changes at each restart. RabbitMQ tells the name of its cluster.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from celery import Celery
from celery.app.routes import MapRoute
from kombu import Producer

from celery_misfire.sending.errors import takes_nothing
from celery_misfire.store.state_mark import Destination

#: A key under which nothing is ever kept, and the name of no queue.
NO_QUEUE = "celery-misfire:no-queue"
#: Stands for a task that the app's routes do not know.
ANY_TASK = "celery_misfire.any_task"


def destination_of(app: Celery, producer: Producer, place: str) -> Destination:
    """Return where the runs of an app go that a producer of its own sends.

    :param place: as :func:`place_of` tells it.
    """
    channel: Any = producer.channel
    prefix = getattr(channel, "global_keyprefix", "") or getattr(channel, "queue_name_prefix", "") or ""
    return Destination(place, str(prefix), _default_queue(app))


def place_of(producer: Producer, keys: Sequence[str]) -> str:
    """Return the server of a producer and its part, as the broker tells it; '' when it does not.

    :param keys: where a Redis may have the word for its database; the first is written if none is there.
    """
    connection: Any = producer.connection
    driver = connection.transport.driver_name
    if len(connection.alt) > 1:
        # After a failover the beats of one deployment may stand at different ones of them.
        return ""
    if driver == "redis":
        return _word_of(producer.channel, keys)
    properties = getattr(connection.connection, "server_properties", None) or {}
    return f"{driver} {properties.get('cluster_name', '')} {connection.virtual_host or '/'}"


def redis_get(channel: Any, key: str) -> Any:
    """Return what a Redis has under a key, without kombu's prefix; None when there is nothing."""
    with channel.conn_or_acquire() as client:
        return client.get(key)


def offer_nothing(producer: Producer) -> None:
    """Send something to a queue that is not there. Raises what a broker answers that takes no messages.

    Else only a message could find that out, and what is late waits until one was taken. RabbitMQ is asked on
    a channel of its own, which ends when we lack the right to ask.
    """
    connection: Any = producer.connection
    channel: Any = producer.channel
    try:
        match connection.transport.driver_name:
            case "redis":
                with channel.conn_or_acquire() as client:
                    client.lpushx(NO_QUEUE, "")
            case "py-amqp":
                other = connection.channel()
                # It confirms what no queue takes as well.
                other.basic_publish_confirm(other.prepare_message(b""), "", NO_QUEUE)
                other.close()
    except connection.channel_errors as exc:
        # Without the right to ask, a message finds out.
        if takes_nothing(exc):
            raise


def _word_of(channel: Any, keys: Sequence[str]) -> str:
    """Return the word for this database, '' when it cannot be kept there."""
    found = next(filter(None, _commands(channel, *(("GET", key) for key in keys))), "")
    if not found:
        new = ("SET", keys[0], uuid.uuid4().hex, "NX"), ("GET", keys[0])
        found = _commands(channel, *new)[1]
    return f"redis {found}" if found else ""


def _commands(channel: Any, *commands: Sequence[str]) -> list[str]:
    """Return the answers to commands whose keys get no prefix from kombu; '' for errors and for nothing."""
    with channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipeline:
        pipeline.global_keyprefix = ""
        for command in commands:
            pipeline.execute_command(*command)
        answers = pipeline.execute(raise_on_error=False)
    texts = (a.decode("utf-8", "replace") if isinstance(a, bytes) else a for a in answers)
    return [text if isinstance(text, str) else "" for text in texts]


def _default_queue(app: Celery) -> str:
    queue: Any = app.conf.task_default_queue
    # Routes that are wrong are refused with the messages that need them.
    with suppress(Exception):
        router: Any = app.amqp.router
        # A router of the app's own is not asked: it may answer differently each time.
        routes = [route(ANY_TASK) for route in router.routes if isinstance(route, MapRoute)]
        queue = next((route["queue"] for route in routes if route and "queue" in route), queue)
    return str(getattr(queue, "name", queue))
