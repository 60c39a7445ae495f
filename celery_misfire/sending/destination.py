"""Where the runs of an app go, as its broker tells it.

Two beats may name one broker differently (``localhost``, a service's name, another user), and two brokers may
have equal names in different networks. So the server itself is asked. A Redis keeps a random word of ours in
each database; its own run id changes at each restart. RabbitMQ tells the name of its cluster.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import Any

import redis
from celery import Celery
from kombu import Producer

from celery_misfire.store.state_mark import Destination

__all__ = ["destination_of", "redis_get"]

#: Stands for a task that the app's routes do not know.
ANY_TASK = "celery_misfire.any_task"


def destination_of(app: Celery, producer: Producer, key: str) -> Destination:
    """Return where the runs of an app go that a producer of its own sends.

    :param key: under which a Redis keeps the word for its database.
    """
    connection: Any = producer.connection
    channel: Any = producer.channel
    driver, several = connection.transport.driver_name, len(connection.alt) > 1
    prefix = getattr(channel, "global_keyprefix", "") or getattr(channel, "queue_name_prefix", "") or ""
    if several:
        # After a failover the beats of one deployment may stand at different ones of them.
        place = ""
    elif driver == "redis":
        place = _word_of(channel, key)
    else:
        properties = getattr(connection.connection, "server_properties", None) or {}
        cluster = properties.get("cluster_name", "")
        place = f"{driver} {cluster} {connection.virtual_host or '/'}"
    return Destination(place, str(prefix), _default_queue(app))


def redis_get(channel: Any, key: str) -> Any:
    """Return what a Redis has under a key, without kombu's prefix; None when there is nothing."""
    with channel.conn_or_acquire() as client:
        return client.get(key)


def _word_of(channel: Any, key: str) -> str:
    """Return the word for this database, '' when it cannot be kept there."""
    with channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipeline:
        # Kombu's client would put it before the key of some commands.
        pipeline.global_keyprefix = ""
        pipeline.execute_command("SET", key, uuid.uuid4().hex, "NX")
        pipeline.execute_command("GET", key)
        _, found = pipeline.execute(raise_on_error=False)
    if isinstance(found, redis.ConnectionError | redis.TimeoutError):
        raise found
    text = found.decode("utf-8", "replace") if isinstance(found, bytes) else found
    return f"redis {text}" if isinstance(text, str) else ""


def _default_queue(app: Celery) -> str:
    queue: Any = app.conf.task_default_queue
    # A router of the app's own may fail for a task that it does not know.
    with suppress(Exception):
        queue = app.amqp.router.route({}, ANY_TASK)["queue"]
    return str(getattr(queue, "name", queue))
