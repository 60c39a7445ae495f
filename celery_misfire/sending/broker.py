"""A connection to the broker that waits for no answer for ever.

Celery's own may: a producer goes on connecting until it can, a socket has no time limit, and RabbitMQ is not
asked whether it has taken a message.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery
from kombu import Connection, Producer

from celery_misfire.exceptions import BrokerUnavailable, MisfireError, PublishRejected
from celery_misfire.sending.confirms import Confirms, Interrupted, Receipt
from celery_misfire.sending.destination import destination_of, offer_nothing, place_of, redis_get
from celery_misfire.sending.errors import (
    about_message,
    broker_address,
    is_large,
    lacks_memory,
    name_error,
    takes_nothing,
)
from celery_misfire.sending.recording import PushRecorder
from celery_misfire.store.port import Push
from celery_misfire.store.state_mark import Destination

__all__ = ["TIMEOUT", "Broker", "WatchedProducer", "name_error"]

logger = logging.getLogger(__name__)

#: Longest wait for one answer of the broker, in seconds.
TIMEOUT = 5.0
#: Which one of several brokers Celery has gone to is looked at so often, in seconds.
LOOK_AT_SEVERAL_EVERY = 1.0


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
        #: Tells whether RabbitMQ has sent something; None for another broker. It is asked of the socket, as
        #: py-amqp spins for ever on half a frame.
        self._selector: selectors.BaseSelector | None = None
        #: The producer of the connection over which the broker was found to take messages.
        self._taking: WatchedProducer | None = None
        #: The producer of the connection that was asked last what it reads, see :meth:`read`.
        self._asked: WatchedProducer | None = None
        self._asked_at = 0.0
        #: Records what is pushed into a Redis.
        self.recorder = PushRecorder()

    @property
    def producer(self) -> WatchedProducer:
        """A producer on an open channel. On RabbitMQ each message is confirmed before ``publish`` returns,
        but for those of a batch (:meth:`WatchedProducer.expect`).

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
                raise self._failed(exc) from None
        return self._producer

    def connect(self) -> None:
        """Make sure that the broker can be reached.

        :raises BrokerUnavailable: when it can't be, or takes no messages.
        """
        producer = self.producer
        if producer is not self._taking:
            try:
                offer_nothing(producer)
            except Exception as exc:
                raise self._failed(exc) from None
            self._taking = producer

    def read(self, key: str) -> str | None:
        """Return what the broker's own connection reads under a key of Redis, without kombu's prefix.

        :returns: None when there is nothing, when we may not read it, and for a broker that is no Redis.
        :raises BrokerUnavailable: when the broker failed.
        """
        self._asked = producer = self.producer
        self._asked_at = time.monotonic()
        if not self.is_redis:
            return None
        found = self._ask(lambda: redis_get(producer.channel, key))
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else found

    def destination(self, keys: Sequence[str]) -> Destination:
        """Return where the runs of the app go.

        :param keys: see :attr:`Store.place_keys`.
        :raises BrokerUnavailable: when the broker failed.
        """
        producer = self.producer
        place = self._ask(lambda: place_of(producer, keys))
        return destination_of(self._app, producer, place or "")

    def _ask(self, question: Callable[[], Any]) -> Any:
        """Return the broker's answer, None when we may not ask that."""
        try:
            return question()
        except Exception as exc:
            if about_message(exc):
                return None
            raise self._failed(exc) from None

    def _failed(self, exc: Exception) -> BrokerUnavailable:
        """Let go of the connection, unless RabbitMQ says that it waits; return what it failed with."""
        if self._blocked:
            return self._unavailable(_BLOCKED)
        error = self._unavailable(name_error(exc))
        self.drop()
        return error

    @property
    def was_asked(self) -> bool:
        """True while the connection is still the one that :meth:`read` has used, and leads to that server."""
        return self._producer is not None and self._producer is self._asked

    @property
    def may_have_moved(self) -> bool:
        """True when Celery has several brokers, and :meth:`read` has not looked lately which one it is."""
        several = self._connection is not None and len(self._connection.alt) > 1
        return several and time.monotonic() - self._asked_at >= LOOK_AT_SEVERAL_EVERY

    def declare_again(self) -> None:
        """Have exchanges, queues and their bindings declared anew with the next message."""
        if self._producer is not None:
            self._producer.declare_again()

    @property
    def is_redis(self) -> bool:
        """True for a broker that is a Redis, once it has been connected to."""
        return self._connection is not None and _is_redis(self._connection)

    def push(self, messages: Sequence[Sequence[Push]]) -> list[Receipt]:
        """Do what was recorded of several messages, in one round trip; return what became of each.

        :raises BrokerUnavailable: when the broker can't be reached, or is full; nothing has left.
        """
        producer = self.producer
        channel: Any = producer.channel
        try:
            with channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipeline:
                # The recorder has put it before each key.
                pipeline.global_keyprefix = ""
                for push in (push for pushes in messages for push in pushes):
                    pipeline.execute_command(push.kind.upper(), push.key, push.value)
                answers = pipeline.execute(raise_on_error=False)
        except Exception as exc:
            failure = producer.failure_of(exc) or Interrupted(name_error(exc))
            self.drop()
            return [Receipt("", failure=failure) for _ in messages]
        values = (push.value for pushes in messages for push in pushes)
        if all(map(takes_nothing, answers)) and not (lacks_memory(answers[0]) and all(map(is_large, values))):
            self._taking = None
            raise self._unavailable(name_error(answers[0]))
        left = iter(answers)
        return [_receipt([next(left) for _ in pushes], producer) for pushes in messages]

    def await_answers(self) -> None:
        """Wait until the broker has said what became of all messages of a batch."""
        if self._producer is not None:
            self._producer.await_answers()

    def _look(self) -> None:
        """Find out what has become of the connection since it was used last."""
        connection, producer = self._connection, self._producer
        if connection is None or producer is None:
            return
        if self._selector is not None:
            try:
                while connection.connected and self._can_be_read():
                    connection.drain_events(timeout=TIMEOUT)
            except BrokerUnavailable:
                pass
            except Exception as exc:
                logger.debug("the connection to the broker has ended: %s", name_error(exc))
                producer.give_up(exc)
                return self.drop()
            if self._blocked:
                raise self._unavailable(_BLOCKED)
        # The broker may still answer to a message that failed; the next one would take that answer.
        if producer.has_ended or not connection.connected:
            self.drop()

    def _can_be_read(self) -> bool:
        return self._selector is not None and bool(self._selector.select(0))

    def _connect(self) -> WatchedProducer:
        self._connection = connection = self._app.connection_for_write()
        options = connection.transport_options or {}
        if _is_amqp(connection):
            options = {"connect_timeout": connection.connect_timeout or TIMEOUT} | options
            # Heartbeats have to be sent while nothing else is, and no wait would end while they come.
            # Py-amqp's confirmations are awaited one by one; ours are not.
            options |= {"confirm_publish": False, "heartbeat": 0}
            options |= {"on_blocked": self._block, "on_unblocked": self._unblock}
        elif _is_redis(connection):
            options = _time_limits(TIMEOUT) | options
            # Repeated by redis-py, a message would be there twice and look like one that came again.
            options["retry_on_timeout"] = False
        # Each broker of the URL gets one try. A producer would try for ever.
        tries = max(1, len(connection.alt))
        if connection.transport_cls == "sentinel":
            # Each try asks them all, one after the other, and of the limits above none holds for them.
            given = options.get("sentinel_kwargs") or {}
            options["sentinel_kwargs"] = _time_limits(TIMEOUT / tries) | given | {"retry": None}
            tries = 1
        connection.transport_options = options
        connection.ensure_connection(max_retries=tries - 1, interval_start=0)
        if _is_amqp(connection):
            # The socket gets the limit: py-amqp's own option does not hold in the middle of a frame.
            connection.connection.sock.settimeout(options.get("read_timeout") or TIMEOUT)
            # Otherwise py-amqp would look for a block before each message, too, and spin on half a frame.
            connection.connection.client_properties["capabilities"] = {}
            self._selector = selectors.DefaultSelector()
            self._selector.register(connection.connection.sock, selectors.EVENT_READ)
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
        connection, producer = self._connection, self._producer
        self._connection = self._producer = None
        self._blocked = False
        if producer is not None:
            producer.give_up(BrokerUnavailable("the connection has ended"))
        if self._selector is not None:
            self._selector.close()
            self._selector = None
        if connection is not None:
            try:
                getattr(connection, how)()
            except Exception as exc:
                logger.debug("closing a connection to the broker failed: %s", name_error(exc))


class WatchedProducer(Producer):
    """Tells what the broker does to a message from what is wrong with it, where the two can be told apart."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection.channel(), auto_declare=False)
        self._client = connection
        self._failures = (*connection.connection_errors, *connection.recoverable_connection_errors)
        self._confirms = Confirms(self.channel) if _is_amqp(connection) else None
        #: Of the message that is expected, and of the one that is being published: it may be an event.
        self._receipt = self._current = Receipt("")
        #: What this channel has declared: kombu would work out a hash of each queue for each message.
        self._declared: dict[int, Any] = {}
        self._unfinished = False
        self._is_batched = False

    @property
    def has_ended(self) -> bool:
        """True when a message was begun and it is not known to have been taken, so nothing may follow it."""
        return self._unfinished or (self._confirms is not None and self._confirms.have_ended)

    def expect(self, task_id: str, *, batched: bool = False) -> Receipt:
        """Return what will say what became of the message with this id.

        :param batched: RabbitMQ's answer is awaited by :meth:`await_answers`, not before ``publish`` returns.
        """
        self._receipt, self._is_batched = Receipt(task_id), batched
        return self._receipt

    def maybe_declare(self, entity: Any, retry: bool = False, **retry_policy: Any) -> Any:
        """Declare an exchange or a queue, unless this channel has declared this very object before."""
        if self._declared.get(id(entity)) is entity and entity is not None:
            return False
        # Earlier messages are finished first: if the channel closes now, the declaration is to blame.
        self._finish_others()
        declared = super().maybe_declare(entity, retry, **retry_policy)
        if getattr(entity, "can_cache_declaration", False):
            self._declared[id(entity)] = entity
        return declared

    def declare_again(self) -> None:
        """Forget what has been declared."""
        self._declared.clear()
        if self._client.declared_entities:
            self._client.declared_entities.clear()
        # Kombu's virtual transports bind a queue once in the life of a process.
        state = getattr(self.channel, "state", None)
        if state is not None:
            state.bindings.clear()
            state.queue_index.clear()

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        # Other messages may be sent meanwhile, such as events.
        task_id = kwargs.get("correlation_id") or ""
        self._current = self._receipt if task_id == self._receipt.task_id else Receipt(task_id)
        return super().publish(*args, **kwargs)

    def _publish(self, *args: Any, **kwargs: Any) -> Any:
        receipt = self._current
        waits = not (self._is_batched and receipt is self._receipt)
        # Here, not in publish(): what fails before it, while a message is made, is no failure of the broker.
        self._unfinished = True
        try:
            if waits:
                self._finish_others()
            if self._confirms is not None:
                self._confirms.coming = receipt
            result = super()._publish(*args, **kwargs)
        except Exception as exc:
            if (about := about_message(exc)) and (not lacks_memory(exc) or is_large(args[0])):
                self._unfinished = False
                raise PublishRejected(about) from None
            failure = self.failure_of(exc)
            if failure is None:
                # The connection is given up for this, and the others have nothing to do with it.
                self.await_answers()
                raise
            if self._receipt.error is None:
                # A message that has its answer already is not in doubt: an event after it failed.
                self._receipt.failure = failure
            raise failure from None
        finally:
            if self._confirms is not None:
                self._confirms.coming = None
        self._unfinished = False
        if self._confirms is None:
            receipt.was_taken = True
            return result
        if waits:
            self.await_answers()
            if receipt.error is not None:
                raise receipt.error
        return result

    def _finish_others(self) -> None:
        """Await what was published before. :raises MisfireError: the channel has ended with that."""
        if (failure := self.await_answers()) is not None:
            raise failure

    def await_answers(self) -> MisfireError | None:
        """Wait until the broker has said what became of each message; return what ended the channel."""
        if self._confirms is None:
            return None
        failure = None
        try:
            self._confirms.wait(TIMEOUT)
        except Exception as exc:
            failure = self.give_up(exc)
        if self._confirms.had_returns:
            # Queues can be deleted at any time.
            self._confirms.had_returns = False
            self.declare_again()
        return failure

    def give_up(self, exc: Exception) -> MisfireError:
        """Note that what ended the channel left messages without an answer; return why they are in doubt."""
        failure = self.failure_of(exc)
        if self._confirms is not None and self._confirms.are_missing:
            self._confirms.give_up(failure, exc)
        return failure or Interrupted(name_error(exc))

    def failure_of(self, exc: Exception) -> MisfireError | None:
        """Return what leaves a message in doubt, None for an error that is the message's own."""
        if isinstance(exc, MisfireError):
            return exc
        # Py-amqp may raise anything when a connection has ended.
        if isinstance(exc, self._failures) or takes_nothing(exc) or not self._client.connected:
            return _unavailable(self._client, name_error(exc))
        return None


def _receipt(answers: Sequence[Any], producer: WatchedProducer) -> Receipt:
    """Return what a Redis did with a message, from its answers to the pushes of this message."""
    errors = [answer for answer in answers if isinstance(answer, Exception)]
    if not errors:
        return Receipt("", was_taken=True)
    reasons = [about_message(error) for error in errors]
    if not all(reasons):
        return Receipt("", failure=producer.failure_of(errors[0]) or MisfireError(name_error(errors[0])))
    if len(errors) < len(answers):
        # The message is for several queues, and some have taken it.
        return Receipt("", failure=MisfireError(reasons[0]))
    return Receipt("", rejection=PublishRejected(reasons[0]))


def _time_limits(seconds: float) -> dict[str, float]:
    return {"socket_timeout": seconds, "socket_connect_timeout": seconds}


_BLOCKED = "RabbitMQ takes no messages, its memory or disk is short"


def _is_amqp(connection: Connection) -> bool:
    return bool(connection.transport.driver_name == "py-amqp")


def _is_redis(connection: Connection) -> bool:
    return bool(connection.transport.driver_name == "redis")


def _unavailable(connection: Connection | None, reason: str) -> BrokerUnavailable:
    return BrokerUnavailable(reason, broker_address(connection) if connection else "")
