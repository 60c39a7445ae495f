"""Messages made by Celery's beat, each with what a fire carries, and what became of them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any, Protocol

from celery import Celery
from celery.app.task import Task
from kombu import Producer

from celery_misfire import fire
from celery_misfire.exceptions import BrokerUnavailable, PublishRejected
from celery_misfire.sending.broker import Broker, name_error
from celery_misfire.sending.dispatch import Attempt, Fate, Message
from celery_misfire.store.port import Push
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
        self,
        app: Celery,
        broker: Broker,
        entry_of: Callable[[str], Entry],
        apply_entry: Callable[[Any, Producer], Any],
    ) -> None:
        self._broker, self._entry_of, self._apply_entry = broker, entry_of, apply_entry
        self._app = app
        self._error: Exception | None = None
        #: True when the last message went through the producer that it was given.
        self._producer_took_it = False

    def connect(self) -> None:
        """Make sure that the broker can be reached. :raises BrokerUnavailable: when it cannot."""
        self._broker.connect()

    def read(self, key: str) -> str | None:
        """Return what the broker's own connection reads under this key, see :class:`RecordingPublisher`."""
        return self._broker.read(key)

    @property
    def was_asked(self) -> bool:
        """True while the connection is still the one that :meth:`read` has used."""
        return self._broker.was_asked

    def sends_early(self, task: str) -> bool:
        """Return True for a task that leaves, or runs, while its message is built.

        So does every task of an app that runs its tasks at once, and one that does not send by Celery's own
        ``Task.apply_async`` or ``Celery.send_task``.
        """
        if self._app.conf.task_always_eager:
            return True
        known = self._app.tasks.get(task)
        # Asked of Celery's own class each time: Sentry puts a function of its own there.
        ours, celerys = (
            (self._app.send_task, Celery.send_task)
            if known is None
            else (known.apply_async, Task.apply_async)
        )
        return getattr(ours, "__func__", None) is not celerys

    def build(self, message: Message) -> tuple[Attempt, list[Push]]:
        """Build a message; return the pushes that send it, see :class:`RecordingPublisher`."""
        with self._broker.recorder.recording(message.definition.name) as pushes:
            attempt = self.publish(message)
        if pushes and not self.was_asked:
            # Connected anew, the broker may be another server than that of the script.
            return Attempt(Fate.NOT_TRIED, BrokerUnavailable("the connection has ended")), []
        if attempt.fate is Fate.IN_DOUBT:
            # Nothing has left. What failed may be the entry's own queue, so it does not come first again.
            return Attempt(Fate.REFUSED, attempt.error), []
        if attempt.fate is Fate.SENT and not pushes and self._producer_took_it:
            # Kombu drops what no queue is bound for; bindings can be lost, and made again.
            self._broker.declare_again()
            return Attempt(Fate.REFUSED, PublishRejected("no queue is bound for it")), []
        return attempt, pushes if attempt.fate is Fate.SENT else []

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
        error, self._producer_took_it = self._error, delivery.was_taken
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
