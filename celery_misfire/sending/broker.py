"""A connection to the broker that waits for no answer for ever.

Celery's own may: a producer goes on connecting until it can, a socket has no time limit, and RabbitMQ is not
asked whether it has taken a message.
"""

from __future__ import annotations

import logging
import re
import selectors
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amqp.exceptions import MessageNacked
from celery import Celery
from kombu import Connection, Producer

from celery_misfire.exceptions import BrokerUnavailable, MisfireError, PublishRejected
from celery_misfire.sending.errors import broker_address, name_error
from celery_misfire.sending.recording import PushRecorder

__all__ = ["TIMEOUT", "Broker", "Receipt", "WatchedProducer", "name_error"]

logger = logging.getLogger(__name__)

#: Longest wait for one answer of the broker, in seconds.
TIMEOUT = 5.0


class Broker:
    """The broker of an app, over one connection that is opened when it is needed; for one thread.

    :param make_producer: makes the producer on the connection; None: :class:`WatchedProducer`.
    """

    def __init__(
        self, app: Celery, make_producer: Callable[[Connection], WatchedProducer] | None = None
    ) -> None:
        self._app, self._make_producer = app, make_producer or WatchedProducer
        self._connection: Connection | None = None
        self._producer: WatchedProducer | None = None
        self._blocked = False
        #: The producer of the connection that was asked last what it reads, see :meth:`read`.
        self._asked: WatchedProducer | None = None
        #: Records what is pushed into a Redis.
        self.recorder = PushRecorder()

    @property
    def producer(self) -> WatchedProducer:
        """A producer on an open channel. On RabbitMQ each message is confirmed before ``publish`` returns.

        Its ``publish`` raises :class:`BrokerUnavailable` when the broker or the way to it failed, a plain
        :class:`MisfireError` when this message was refused and may have arrived all the same, and anything
        else when it has not arrived.

        :raises BrokerUnavailable: when the broker can't be reached, or takes no messages.
        """
        self._look()
        if self._producer is None:
            try:
                self._producer = self._connect()
            except Exception as exc:
                error = self._unavailable(name_error(exc))
                self.drop()
                raise error from None
        return self._producer

    def connect(self) -> None:
        """Make sure that the broker can be reached.

        :raises BrokerUnavailable: when it can't be, or takes no messages.
        """
        self.producer  # noqa: B018 - a look connects

    def read(self, key: str) -> str | None:
        """Return what the broker's own connection reads under a key of Redis, without kombu's prefix.

        :returns: None when there is nothing, when we may not read it, and for a broker that is no Redis.
        :raises BrokerUnavailable: when the broker failed.
        """
        self._asked = producer = self.producer
        channel: Any = producer.channel
        if self._connection is None or not _is_redis(self._connection):
            return None
        try:
            with channel.conn_or_acquire() as client:
                found = client.get(key)
        except Exception as exc:
            if _about_key(exc):
                return None
            error = self._unavailable(name_error(exc))
            self.drop()
            raise error from None
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else found

    @property
    def was_asked(self) -> bool:
        """True while the connection is still the one that :meth:`read` has used, and leads to that server."""
        return self._producer is not None and self._producer is self._asked

    def declare_again(self) -> None:
        """Have exchanges, queues and their bindings declared anew with the next message."""
        if self._connection is not None and self._connection.declared_entities:
            self._connection.declared_entities.clear()
        if self._producer is not None:
            self._producer.declare_again()

    def _look(self) -> None:
        """Find out what has become of the connection since it was used last."""
        connection, producer = self._connection, self._producer
        if connection is None or producer is None:
            return
        if _is_amqp(connection):
            try:
                while connection.connected and _can_be_read(connection):
                    connection.drain_events(timeout=TIMEOUT)
            except BrokerUnavailable:
                pass
            except Exception as exc:
                logger.debug("the connection to the broker has ended: %s", name_error(exc))
                return self.drop()
            if self._blocked:
                raise self._unavailable(_BLOCKED)
        # What the broker may still answer to a message that failed would be taken for the next one's answer.
        if producer.unfinished or not connection.connected:
            self.drop()

    def _connect(self) -> WatchedProducer:
        self._connection = connection = self._app.connection_for_write()
        options = connection.transport_options or {}
        if _is_amqp(connection):
            options = {"connect_timeout": connection.connect_timeout or TIMEOUT} | options
            # Heartbeats have to be sent while nothing else is, and no wait would end while they come.
            options |= {"confirm_publish": True, "heartbeat": 0}
            options |= {"on_blocked": self._block, "on_unblocked": self._unblock}
        elif _is_redis(connection):
            options = _time_limits(TIMEOUT) | options
            # Repeated by redis-py, a message would be there twice and look like one that came again.
            options["retry_on_timeout"] = False
        # One try for each broker of the URL. Left to itself, a producer would go on trying for ever.
        tries = max(1, len(connection.alt))
        if connection.transport_cls == "sentinel":
            # Each try asks them all, one after the other, and of the limits above none holds for them.
            given = options.get("sentinel_kwargs") or {}
            options["sentinel_kwargs"] = _time_limits(TIMEOUT / tries) | given | {"retry": None}
            tries = 1
        connection.transport_options = options
        connection.ensure_connection(max_retries=tries - 1, interval_start=0)
        if _is_amqp(connection):
            # As an option of py-amqp's it does not hold in the middle of a frame.
            connection.connection.sock.settimeout(options.get("read_timeout") or TIMEOUT)
        producer = self._make_producer(connection)
        if _is_redis(connection):
            self.recorder.install(producer.channel)
        return producer

    def _block(self, reason: str) -> None:
        # Raised where an answer is waited for: none will come soon, and what was sent stays on its way. A new
        # connection would be blocked as well, and a second message then be on its way.
        self._blocked = True
        raise self._unavailable(_BLOCKED)

    def _unblock(self) -> None:
        self._blocked = False

    def _unavailable(self, reason: str) -> BrokerUnavailable:
        return _unavailable(self._connection, reason)

    def close(self) -> None:
        """Take leave of the broker."""
        self._end("release")

    def drop(self) -> None:
        """Let go of a connection that has failed, without a word to the broker."""
        self._end("collect")

    def _end(self, how: str) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        self._blocked = False
        if connection is not None:
            try:
                getattr(connection, how)()
            except Exception as exc:
                logger.debug("closing a connection to the broker failed: %s", name_error(exc))


@dataclass
class Receipt:
    """What the broker did with one message.

    :param failure: why it is in doubt.
    """

    task_id: str
    was_taken: bool = False
    failure: MisfireError | None = None


class WatchedProducer(Producer):
    """Tells what the broker does to a message from what is wrong with it, where the two can be told apart."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection.channel(), auto_declare=False)
        self._client = connection
        self._failures = (*connection.connection_errors, *connection.recoverable_connection_errors)
        self._receipt = Receipt("")
        #: What this channel has declared: kombu would work out a hash of each queue for each message.
        self._declared: dict[int, Any] = {}
        #: True when a message was begun and it is not known to have been taken.
        self.unfinished = False

    def expect(self, task_id: str) -> Receipt:
        """Return what will say what became of the message with this id."""
        self._receipt = Receipt(task_id)
        return self._receipt

    def maybe_declare(self, entity: Any, retry: bool = False, **retry_policy: Any) -> Any:
        """Declare an exchange or a queue, unless this channel has declared this very object before."""
        if self._declared.get(id(entity)) is entity and entity is not None:
            return False
        declared = super().maybe_declare(entity, retry, **retry_policy)
        if getattr(entity, "can_cache_declaration", False):
            self._declared[id(entity)] = entity
        return declared

    def declare_again(self) -> None:
        """Forget what has been declared."""
        self._declared.clear()
        # Kombu's virtual transports bind a queue once in the life of a process.
        state = getattr(self.channel, "state", None)
        if state is not None:
            state.bindings.clear()
            state.queue_index.clear()

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        result = super().publish(*args, **kwargs)
        # Other messages may be sent meanwhile, such as events.
        if kwargs.get("correlation_id") == self._receipt.task_id:
            self._receipt.was_taken = True
        return result

    def _publish(self, *args: Any, **kwargs: Any) -> Any:
        # Here, not in publish(): what fails before it, while a message is made, is no failure of the broker.
        self.unfinished = True
        try:
            result = super()._publish(*args, **kwargs)
        except Exception as exc:
            if about_key := _about_key(exc):
                self.unfinished = False
                raise PublishRejected(about_key) from None
            failure = self._failure_of(exc)
            if failure is None:
                raise
            self._receipt.failure = failure
            raise failure from None
        self.unfinished = False
        return result

    def _failure_of(self, exc: Exception) -> MisfireError | None:
        """Return what leaves a message in doubt, None for an error that is the message's own."""
        if isinstance(exc, MessageNacked):
            # Of several queues that it was for, some may have taken it.
            return MisfireError("refused by a queue (nack)")
        if isinstance(exc, MisfireError):
            return exc
        # Py-amqp may raise anything when a connection has ended.
        if isinstance(exc, self._failures) or not self._client.connected:
            return _unavailable(self._client, name_error(exc))
        return None


def _time_limits(seconds: float) -> dict[str, float]:
    return {"socket_timeout": seconds, "socket_connect_timeout": seconds}


_BLOCKED = "RabbitMQ takes no messages, its memory or disk is short"


def _is_amqp(connection: Connection) -> bool:
    return bool(connection.transport.driver_name == "py-amqp")


def _is_redis(connection: Connection) -> bool:
    return bool(connection.transport.driver_name == "redis")


def _can_be_read(connection: Connection) -> bool:
    # Asked of the socket: py-amqp, told not to wait, spins for ever on half a frame.
    with selectors.DefaultSelector() as selector:
        selector.register(connection.connection.sock, selectors.EVENT_READ)
        return bool(selector.select(0))


def _unavailable(connection: Connection | None, reason: str) -> BrokerUnavailable:
    return BrokerUnavailable(f"{broker_address(connection)}: {reason}" if connection else reason)


def _about_key(exc: Exception) -> str:
    """Return what Redis says about one key, without quoting anything; '' for any other error.

    Kombu takes these for failures of the connection.
    """
    found = _ABOUT_KEY.search(str(exc)) if type(exc).__module__ == "redis.exceptions" else None
    return _IN_WORDS[found[0]] if found else ""


_IN_WORDS = {
    "WRONGTYPE": "a key of its queue in Redis holds something else (WRONGTYPE)",
    "o permissions": "the Redis user lacks the rights (NOPERM)",
}
_ABOUT_KEY = re.compile("|".join(_IN_WORDS))
