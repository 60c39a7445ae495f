"""Messages made by Celery's beat, each with what a fire carries, and what became of them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

from celery import Celery
from celery.app.task import Task
from celery.signals import task_prerun
from kombu import Producer

from celery_misfire import fire
from celery_misfire.exceptions import BrokerUnavailable, MisfireError, PublishRejected
from celery_misfire.log_lines import Log
from celery_misfire.sending.broker import Broker, name_error
from celery_misfire.sending.confirms import Interrupted, Receipt
from celery_misfire.sending.dispatch import Attempt, Fate, Message
from celery_misfire.sending.portions import MOST_CHARACTERS, MOST_MESSAGES
from celery_misfire.store.port import Push
from celery_misfire.store.state_mark import Destination
from celery_misfire.texts import quote_name

say = Log(__name__, "beat")


class Entry(Protocol):
    """Celery's ``ScheduleEntry``."""

    options: Any


class _UnderWay(NamedTuple):
    """A message of which it is not known yet whether the broker has it.

    :param pushes: what is still to be done to send it.
    :param error: what came after it was handed over.
    """

    message: Message
    receipt: Receipt
    pushes: Sequence[Push] = ()
    error: Exception | None = None


class EntryPublisher:
    """Sends the tasks of entries through one function, such as Celery's ``Scheduler.apply_entry``.

    :param entry_of: returns the entry of this name.
    :param apply_entry: sends an entry's task; what does not raise has succeeded.
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
        #: By task, whether it leaves or runs while its message is built; what is found out stays so.
        self._early: dict[str, bool] = {}
        #: True when the last message went through the producer that it was given.
        self._producer_took_it = False
        self._under_way: list[_UnderWay] = []
        self._length = 0
        self._settled: dict[str, Attempt] = {}
        #: Entries of which a message was in a batch that failed: each is sent alone, until that works.
        self._apart: set[str] = set()

    def connect(self) -> None:
        """Make sure that the broker can be reached. :raises BrokerUnavailable: when it cannot."""
        self._broker.connect()

    def read(self, key: str) -> str | None:
        """Return what the broker's own connection reads under this key, see :class:`Publisher`."""
        return self._broker.read(key)

    @property
    def was_asked(self) -> bool:
        """True while the connection is still the one that :meth:`read` has used, and leads there."""
        return self._broker.was_asked and not self._broker.may_have_moved

    def destination(self, keys: Sequence[str]) -> Destination:
        """Return where runs go, see :class:`Publisher`."""
        return self._broker.destination(keys)

    def sends_early(self, task: str) -> bool:
        """Return True for a task that leaves, or runs, while its message is built.

        So does every task of an app that runs its tasks at once, and one that does not send by Celery's own
        ``Task.apply_async`` or ``Celery.send_task``.
        """
        if (early := self._early.get(task)) is None:
            early = self._early[task] = self._is_early(task)
        return early

    def _is_early(self, task: str) -> bool:
        if self._app.conf.task_always_eager:
            return True
        known = self._app.tasks.get(task)
        # Celery's own class is asked, too: Sentry puts a function of its own there.
        ours, celerys = (
            (self._app.send_task, Celery.send_task)
            if known is None
            else (known.apply_async, Task.apply_async)
        )
        return getattr(ours, "__func__", None) is not celerys

    def build(self, message: Message) -> tuple[Attempt, list[Push]]:
        """Build a message; return the pushes that send it, see :class:`Publisher`."""
        attempt, pushes = self._record(message)
        if pushes and not self._broker.was_asked:
            # Connected anew, the broker may be another server than that of the script.
            return Attempt(Fate.NOT_TRIED, BrokerUnavailable("the connection has ended")), []
        return attempt, pushes

    def _record(self, message: Message) -> tuple[Attempt, list[Push]]:
        attempt, pushes = self._broker.recorder.record(message.definition.name, partial(self._send, message))
        if attempt.fate is Fate.IN_DOUBT:
            # Nothing has left. What failed may be the entry's own queue, so it does not come first again.
            return Attempt(Fate.REFUSED, attempt.error), []
        if attempt.fate is Fate.SENT and not pushes and self._producer_took_it:
            # Kombu drops what no queue is bound for; bindings can be lost, and made again.
            self._broker.declare_again()
            return Attempt(Fate.REFUSED, PublishRejected("no queue is bound for it")), []
        return attempt, pushes if attempt.fate is Fate.SENT else []

    def publish(self, message: Message) -> Attempt:
        """Send the task of an entry, with what a fire carries, now or with a batch (:meth:`settle`)."""
        definition, is_redis = message.definition, self._broker.is_redis
        early = self.sends_early(definition.task)
        if definition.name in self._apart or (is_redis and early):
            # In their order.
            self._finish()
            attempt = self._send(message, early=early)
            if attempt.fate is Fate.SENT:
                self._apart.discard(definition.name)
            return attempt
        attempt = self._hold_back(message) if is_redis else self._send(message, batched=True, early=early)
        if len(self._under_way) >= MOST_MESSAGES or self._length > MOST_CHARACTERS:
            self._finish()
        return attempt

    def _hold_back(self, message: Message) -> Attempt:
        """Build a message that is pushed with others."""
        attempt, pushes = self._record(message)
        if not pushes:
            return attempt
        self._under_way.append(_UnderWay(message, Receipt(message.task_id), pushes))
        self._length += sum(len(push.value) for push in pushes)
        return Attempt(Fate.UNDER_WAY)

    def settle(self, *, may_send: bool) -> Mapping[str, Attempt]:
        """Send what has not left yet; return what became of each message, see :class:`Publisher`."""
        self._finish(may_send=may_send)
        settled, self._settled = self._settled, {}
        return settled

    def _finish(self, *, may_send: bool = True) -> None:
        """Find out what became of the messages under way."""
        batch, self._under_way, self._length = self._under_way, [], 0
        if not batch:
            return
        self._broker.await_answers()
        self._take_receipts([one for one in batch if not one.pushes])
        if held := [one for one in batch if one.pushes]:
            self._push(held, may_send=may_send)

    def _push(self, held: Sequence[_UnderWay], *, may_send: bool) -> None:
        """Push what was held back."""
        refusal: BrokerUnavailable | None = None
        try:
            receipts = self._broker.push([one.pushes for one in held]) if may_send else []
        except BrokerUnavailable as exc:
            receipts, refusal = [], exc
        if receipts:
            pairs = zip(held, receipts, strict=True)
            return self._take_receipts([one._replace(receipt=receipt) for one, receipt in pairs])
        for one in held:
            # The refusal stopped the whole batch, and is said once.
            self._settled[one.message.task_id] = Attempt(Fate.NOT_TRIED, refusal)
            refusal = None

    def _take_receipts(self, batch: Sequence[_UnderWay]) -> None:
        """Note what became of the messages of a batch, now that it is known."""
        interruption: MisfireError | None = None
        for message, receipt, _pushes, error in batch:
            attempt = _attempt(message, receipt, receipt.error or error)
            if isinstance(receipt.failure, BrokerUnavailable | Interrupted):
                self._apart.add(message.definition.name)
                # Any message of the batch may be the cause of this failure, which is said once.
                if interruption is not None or isinstance(receipt.failure, Interrupted):
                    attempt = Attempt(Fate.IN_DOUBT)
                interruption = interruption or receipt.failure
            self._settled[message.task_id] = attempt
        if isinstance(interruption, Interrupted):
            what = "a message ended the channel (%s); its batch is sent again, one by one"
            say.warning("problem", what, interruption)

    def _send(self, message: Message, *, batched: bool = False, early: bool = False) -> Attempt:
        try:
            producer = self._broker.producer
        except BrokerUnavailable as exc:
            return Attempt(Fate.NOT_TRIED, exc)
        try:
            entry = self._entry_of(message.definition.name)
            options: dict[str, Any] = entry.options or {}
            headers = _headers(message)
            if own := options.get("headers"):
                headers = copy.deepcopy(own) | headers
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
        error: Exception | None = None
        receipt = producer.expect(message.task_id, batched=batched)
        watched = _starts() if early else nullcontext(list[str]())
        try:
            with watched as starts:
                self._apply_entry(entry, producer)
        except Exception as exc:
            error = exc
        finally:
            entry.options = options
        if error is not None and starts:
            what, name = "a run of entry %s was run here at once and failed: %s", message.definition.name
            say.warning("ran_here", what, quote_name(name), name_error(error), entry=name)
            error = None
        self._producer_took_it = receipt.was_taken
        if receipt.is_open or isinstance(receipt.failure, Interrupted):
            self._under_way.append(_UnderWay(message, receipt, error=error))
            return Attempt(Fate.UNDER_WAY)
        if batched and not receipt.was_taken:
            # It may have been answered meanwhile, and nobody was told.
            error = receipt.error or error
        return _attempt(message, receipt, error)


def _attempt(message: Message, receipt: Receipt, error: Exception | None) -> Attempt:
    """Return what became of a message that the broker has answered, or that was never handed to it.

    :param error: what the attempt to send it ended with.
    """
    if error is None:
        return Attempt(Fate.SENT)
    if receipt.was_taken:
        # The error came from an apply_async of the app's own, or from a receiver of a signal.
        name, why = message.definition.name, receipt.failure or name_error(error)
        what = "a run of entry %s was sent, and an error came after that: %s"
        say.warning("problem", what, quote_name(name), why, entry=name, task_id=message.task_id)
        return Attempt(Fate.SENT)
    if receipt.failure is not None or isinstance(error, BrokerUnavailable):
        return Attempt(Fate.IN_DOUBT, receipt.failure or error)
    rejected = error if isinstance(error, PublishRejected) else PublishRejected(name_error(error))
    return Attempt(Fate.REFUSED, rejected)


@contextmanager
def _starts() -> Iterator[list[str]]:
    """Give a list of the tasks that start in the block, in this thread: of an app that runs tasks at once."""
    started, here = list[str](), threading.get_ident()

    def note(task_id: str = "", **_: Any) -> None:
        if threading.get_ident() == here:
            started.append(task_id)

    task_prerun.connect(note, weak=False)
    try:
        yield started
    finally:
        task_prerun.disconnect(note)


def refuse_coroutine(result: Any) -> Any:
    """Return what a function has returned. :raises PublishRejected: when it is still to be awaited."""
    if isinstance(result, Coroutine):
        result.close()
        raise PublishRejected(
            "apply_async is 'async def', and beat can await nothing. Make it a plain function"
        )
    return result


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
