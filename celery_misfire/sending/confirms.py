"""What RabbitMQ answers to the messages of one channel: taken, refused by a queue, or for no queue at all.

An answer comes some time after its message, and one answer may be for many. So many messages are published
first, and their answers are awaited together; py-amqp's own way waits for each.
"""

from __future__ import annotations

import math
import socket
import time
from dataclasses import dataclass
from typing import Any

from celery_misfire.exceptions import MisfireError

#: The option by which Linux holds back what is written until it fills a packet, for 200 ms at most. In large
#: pieces a message costs a fifth less, and RabbitMQ confirms many of them with one answer.
_CORK = getattr(socket, "TCP_CORK", None)


class Interrupted(MisfireError):
    """The channel was closed, for a fault of one of several messages. This one may have arrived."""


@dataclass
class Receipt:
    """What the broker did with one message.

    :param is_open: it was published, and no answer has come yet.
    :param failure: why it is in doubt.
    :param rejection: why it has not arrived.
    """

    task_id: str
    was_taken: bool = False
    is_open: bool = False
    failure: MisfireError | None = None
    rejection: Exception | None = None

    @property
    def error(self) -> Exception | None:
        """What the broker's answer says against it."""
        return self.failure or self.rejection


class Confirms:
    """The answers that come on one channel, which publishes in confirm mode from its first message on.

    Whoever else publishes on the channel, such as a dispatcher of events, gets the answer at once.
    """

    def __init__(self, channel: Any) -> None:
        self._channel, self._send = channel, channel.basic_publish
        # The method of the instance hides that of the class.
        channel.basic_publish = self._publish
        self._published = 0
        #: What the next message is, whose answer :meth:`wait` awaits; None: one that is awaited at once.
        self.coming: Receipt | None = None
        #: By delivery tag: the broker counts the messages of a channel, as we do.
        self._open: dict[int, Receipt] = {}
        #: True when a message came back because no queue is bound for it.
        self.had_returns = False
        #: True when an answer will never come: the channel counts anew, or is gone.
        self.have_ended = False
        channel.confirm_select()
        channel.events["basic_ack"].add(self._take)
        channel.events["basic_nack"].add(self._refuse)
        channel.events["basic_return"].add(self._return)

    @property
    def are_missing(self) -> bool:
        """True while the answer to a message is still to come."""
        return bool(self._open)

    def _publish(self, *args: Any, **kwargs: Any) -> Any:
        if not self._open:
            self._cork(True)
        result = self._send(*args, **kwargs)
        receipt, is_expected = self.coming or Receipt(""), self.coming is not None
        self._published += 1
        self._open[self._published] = receipt
        receipt.is_open = True
        if not is_expected:
            try:
                self.wait()
            except Exception as exc:
                self.give_up(None, exc)
                raise
            if receipt.error is not None:
                raise receipt.error
        return result

    def wait(self, seconds: float = math.inf) -> None:
        """Read until all answers are there. Raises whatever ends the channel, the connection or the wait."""
        if not self._open:
            return
        self._cork(False)
        deadline = time.monotonic() + seconds
        while self._open:
            if time.monotonic() > deadline:
                raise TimeoutError
            # The limit of the socket holds here; one of py-amqp's own does not in the middle of a frame.
            self._channel.connection.drain_events()

    def _cork(self, is_held: bool) -> None:
        """Hold back what is written until a packet is full, or let it go."""
        if _CORK is not None:
            self._channel.connection.sock.setsockopt(socket.IPPROTO_TCP, _CORK, is_held)

    def give_up(self, failure: MisfireError | None, error: Exception) -> None:
        """Note that no more answers will come.

        :param failure: why what was published is in doubt; None: one of the messages is to blame.
        :param error: what ended the channel.
        """
        left, self._open, self.have_ended = list(self._open.values()), {}, True
        for receipt in left:
            receipt.is_open = False
            if failure is None and len(left) == 1:
                receipt.rejection = error
            else:
                receipt.failure = failure or Interrupted(type(error).__name__)

    def _take(self, delivery_tag: int, multiple: bool) -> None:
        for receipt in self._answered(delivery_tag, multiple):
            # RabbitMQ confirms a message that it returned as well.
            receipt.was_taken = receipt.rejection is None

    def _refuse(self, delivery_tag: int, multiple: bool) -> None:
        for receipt in self._answered(delivery_tag, multiple):
            # A message for several queues may have been taken by some of them.
            receipt.failure = MisfireError("refused by a queue (nack)")

    def _answered(self, delivery_tag: int, multiple: bool) -> list[Receipt]:
        tags = [tag for tag in self._open if tag <= delivery_tag] if multiple else [delivery_tag]
        # Answers to what was given up may still come.
        found = [self._open.pop(tag) for tag in tags if tag in self._open]
        for receipt in found:
            receipt.is_open = False
        return found

    def _return(self, exc: Exception, _exchange: str, _routing_key: str, message: Any) -> None:
        self.had_returns = True
        task_id = message.properties.get("correlation_id") or ""
        for receipt in self._open.values():
            if receipt.task_id == task_id:
                receipt.rejection = exc
