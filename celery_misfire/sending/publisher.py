"""Messages made by Celery's beat, each with what a fire carries, and what became of them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any, Protocol

from kombu import Producer

from celery_misfire import fire
from celery_misfire.exceptions import BrokerUnavailable, PublishRejected
from celery_misfire.sending.broker import Broker, name_error
from celery_misfire.sending.dispatch import Attempt, Fate, Message
from celery_misfire.texts import quote_name

__all__ = ["EntryPublisher"]

logger = logging.getLogger(__name__)


class Entry(Protocol):
    """Celery's ``ScheduleEntry``."""

    options: Any


class EntryPublisher:
    """Sends the tasks of entries through one function, such as Celery's ``Scheduler.apply_entry``.

    :param entry_of: returns the entry of this name.
    :param apply_entry: sends an entry's task; it reports to :meth:`note`, as Celery's swallows errors.
    """

    def __init__(
        self, broker: Broker, entry_of: Callable[[str], Entry], apply_entry: Callable[[Any, Producer], Any]
    ) -> None:
        self._broker, self._entry_of, self._apply_entry = broker, entry_of, apply_entry
        self._error: Exception | None = None

    def connect(self) -> None:
        """Make sure that the broker can be reached. :raises BrokerUnavailable: when it cannot."""
        self._broker.connect()

    def note(self, error: Exception | None) -> None:
        """Take what the message under way ended with; None for success."""
        self._error = error

    def publish(self, message: Message) -> Attempt:
        """Send the task of an entry, with what a fire carries."""
        try:
            entry = self._entry_of(message.definition.name)
            options: dict[str, Any] = entry.options or {}
            headers = copy.deepcopy(options.get("headers") or {}) | _headers(message)
        except PublishRejected as exc:
            return Attempt(Fate.REFUSED, exc)
        except Exception as exc:
            # Its text is that of the headers' own code, and may repeat them.
            return Attempt(Fate.REFUSED, PublishRejected(name_error(exc)))
        # The options are the configuration's own: what is added must not stay there.
        # Mandatory: else RabbitMQ drops what no queue takes, and a queue can be deleted at any time.
        entry.options = {"mandatory": True, **options} | {
            "task_id": message.task_id,
            "headers": headers,
            "retry": False,
        }
        # Until it is known to have been sent: whoever overrides or patches apply_entry may leave it out.
        self._error = PublishRejected("apply_entry sent nothing")
        try:
            producer = self._broker.producer
            delivery = producer.expect(message.task_id)
            self._apply_entry(entry, producer)
        except BrokerUnavailable as exc:
            return Attempt(Fate.NOT_TRIED, exc)
        finally:
            entry.options = options
        error = self._error
        if error is None:
            return Attempt(Fate.SENT)
        if delivery.was_taken:
            # The error came from an apply_async of the app's own, or from a receiver of a signal.
            name, what = quote_name(message.definition.name), delivery.failure or name_error(error)
            logger.warning("beat: a run of entry %s was sent, and an error came after that: %s", name, what)
            return Attempt(Fate.SENT)
        if delivery.failure is not None:
            return Attempt(Fate.IN_DOUBT, delivery.failure)
        rejected = error if isinstance(error, PublishRejected) else PublishRejected(name_error(error))
        return Attempt(Fate.REFUSED, rejected)


def _headers(message: Message) -> dict[str, Any]:
    intent, policy = message.intent, message.definition.policy
    return {
        "periodic_task_name": message.definition.name,
        fire.HEADER: fire.header(
            entry=intent.entry or message.definition.name,
            scheduled=intent.scheduled,
            fire_time=message.fire_time,
            outcome=intent.outcome,
            merged=intent.merged,
            last_missed=intent.last_missed,
            generation=intent.generation,
            instruction=policy.instruction if policy else None,
            resolved=message.resolved if policy else None,
            threshold=message.threshold / 1000,
            on_missed=policy.on_missed if policy else None,
            once=message.once,
        ),
    }
