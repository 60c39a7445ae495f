"""Carrying runs out: claim them in the store, send their messages, acknowledge what was sent.

:class:`TwoStep` is the way that works with every broker: a *claim* (one commit with an intent for each run),
the messages, an *ack* (a second commit without the intents that were sent). A crash in between leaves
intents, which the next leader sends again under the same ids.

Nothing here knows Celery: that is the :class:`Publisher`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from celery_misfire.events import Sent
from celery_misfire.exceptions import BrokerUnavailable
from celery_misfire.frozen import replaced
from celery_misfire.leadership.ledger import Commit, Ledger
from celery_misfire.misfire import MisfireInstruction, Outcome, resolve
from celery_misfire.records import Definition, EntryRecord, Intent
from celery_misfire.store.port import Push
from celery_misfire.store.state_mark import Destination


@dataclass(frozen=True)
class Run:
    """One run of one entry that is to be sent."""

    entry: str
    intent: Intent


@dataclass(frozen=True)
class Message:
    """A run as it is handed to the publisher.

    :param fire_time: now, in milliseconds UTC.
    :param threshold: how late it may be, in milliseconds; with the policy, for the worker to judge by.
    :param once: no other message of this run can stand in the queue.
    """

    definition: Definition
    intent: Intent
    task_id: str
    fire_time: int
    threshold: int
    resolved: MisfireInstruction
    once: bool = False

    @property
    def due(self) -> int:
        """When the run should start, in milliseconds UTC."""
        return self.intent.scheduled if self.intent.outcome is Outcome.FIRED else self.fire_time

    @property
    def event(self) -> Sent:
        """The event that tells that the message was sent."""
        return event_of(self.definition.name, self.intent, self.fire_time, self.task_id)


class Fate(Enum):
    """What became of a message."""

    #: The broker has it.
    SENT = "sent"
    #: It has not arrived, and the message or its queue is to blame.
    REFUSED = "refused"
    #: It may have arrived.
    IN_DOUBT = "in doubt"
    #: No attempt was made: the broker could not be reached, or the message could not be worked out.
    NOT_TRIED = "not tried"
    #: It is known later, together with the fates of others (:meth:`Publisher.settle`).
    UNDER_WAY = "under way"


@dataclass(frozen=True)
class Attempt:
    """One attempt to send a message.

    :param error: why it failed; None when it was sent, and when the fault is another message's.
    """

    fate: Fate
    error: Exception | None = None

    @property
    def broker_failed(self) -> bool:
        """True when the broker is to blame, and so the next message would fare no better."""
        return isinstance(self.error, BrokerUnavailable)


class Publisher(Protocol):
    """Builds messages and sends them to the broker."""

    def connect(self) -> None:
        """Make sure that the broker can be reached. :raises BrokerUnavailable: when it cannot."""

    def publish(self, message: Message) -> Attempt:
        """Send a message, now or with :meth:`settle`. Raises nothing but what is to end the process."""

    def settle(self, *, may_send: bool) -> Mapping[str, Attempt]:
        """Send what has not left yet; return what became of each message under way, by task id.

        :param may_send: False: what has not left yet never does.
        """

    # For a broker that is a Redis: messages are built without being sent.

    @property
    def was_asked(self) -> bool:
        """True while the connection is still the one that :meth:`read` has used."""

    def read(self, key: str) -> str | None:
        """Return what the broker's own connection reads under this key of Redis, without any prefix.

        :returns: None when there is nothing, and for a broker that is none.
        :raises BrokerUnavailable: when the broker failed.
        """

    def destination(self, keys: Sequence[str]) -> Destination:
        """Return where runs go.

        :param keys: see :attr:`Store.place_keys`.
        :raises BrokerUnavailable: when the broker failed.
        """

    def build(self, message: Message) -> tuple[Attempt, list[Push]]:
        """Build a message; return the pushes that send it.

        A message without pushes that counts as sent has left already, by other ways.
        """

    def sends_early(self, task: str) -> bool:
        """Return True for a task that is known to leave, or to run, while its message is built."""


@dataclass
class _Try:
    """An attempt to send the message of a run, and what is known of it by now."""

    run: Run
    message: Message
    attempt: Attempt

    @property
    def was_made(self) -> bool:
        """False when it is still certain that the message was not sent."""
        return self.attempt.fate is not Fate.NOT_TRIED


@dataclass(frozen=True)
class Oversight:
    """What the leader has to say about sending, whichever way it is done.

    :param may_send: whether the lease is still ours and the broker is there, as far as we know.
    :param note: told of each attempt as soon as its fate is known.
    :param wall: the wall clock, in milliseconds UTC.
    :param steady: a clock that nobody sets, in seconds.
    """

    may_send: Callable[[], bool]
    note: Callable[[Run, Attempt], None]
    wall: Callable[[], int]
    steady: Callable[[], float]


class TwoStep:
    """Claim, send, acknowledge."""

    def __init__(self, ledger: Ledger, publisher: Publisher, oversight: Oversight) -> None:
        self._ledger, self._publisher, self._oversight = ledger, publisher, oversight

    def carry_out(self, commit: Commit, runs: Iterable[Run]) -> None:
        """Do a commit and send these runs, whose intents are in it or in the records already.

        :raises StoreUnavailable, LeaseLost: as :meth:`Ledger.commit`.
        """
        self._ledger.commit(commit)
        ordered, tries = in_order(runs), list[_Try]()
        try:
            self._send_all(ordered, tries)
            self._settle(tries)
        finally:
            self._acknowledge(ordered, tries)

    def _send_all(self, runs: Sequence[Run], tries: list[_Try]) -> None:
        failed: set[str] = set()
        for run in runs:
            if not self._oversight.may_send():
                break
            if run.entry in failed and (run.entry, run.intent.scheduled) not in self._ledger.untried:
                # It waits for its next try, and holds up no later run.
                continue
            attempt = self._send(run, tries)
            if attempt.fate is Fate.UNDER_WAY:
                continue
            if attempt.fate is not Fate.SENT:
                failed.add(run.entry)
            self._oversight.note(run, attempt)
            if attempt.broker_failed:
                break

    def _send(self, run: Run, tries: list[_Try]) -> Attempt:
        try:
            if not any(one.was_made for one in tries):
                self._publisher.connect()
            message = message_of(self._ledger, run, self._ledger[run.entry], self._oversight.wall())
        except Exception as exc:
            # The broker is away, or a schedule of the app's own fails: this says nothing about the message.
            return Attempt(Fate.NOT_TRIED, exc)
        # Whatever interrupts the attempt, the message may have arrived.
        tries.append(one := _Try(run, message, Attempt(Fate.IN_DOUBT)))
        one.attempt = self._publisher.publish(message)
        return one.attempt

    def _settle(self, tries: Iterable[_Try]) -> None:
        """Find out what became of the messages under way."""
        under_way = [one for one in tries if one.attempt.fate is Fate.UNDER_WAY]
        if not under_way:
            return
        settled = self._publisher.settle(may_send=self._oversight.may_send())
        for one in under_way:
            one.attempt = settled[one.message.task_id]
        # The failure of the broker comes last: it is what is known of it now.
        for one in sorted(under_way, key=lambda one: one.attempt.broker_failed):
            if one.attempt.fate is Fate.SENT or one.attempt.error is not None:
                self._oversight.note(one.run, one.attempt)

    def _acknowledge(self, runs: Sequence[Run], tries: Iterable[_Try]) -> None:
        """Take what was sent out of the records, and note what is certain of the rest."""
        made = {(one.run.entry, one.run.intent.scheduled): one.attempt.fate for one in tries if one.was_made}
        self._ledger.untried -= made.keys()
        sent = [one.message for one in tries if one.attempt.fate is Fate.SENT]
        commit = Commit(events=[message.event for message in sent])
        for name in dict.fromkeys(run.entry for run in runs):
            record = self._ledger.with_certainty(self._ledger[name])
            left = []
            for intent in record.intents:
                fate = made.get((name, intent.scheduled))
                if fate is None:
                    left.append(intent)
                elif fate is not Fate.SENT:
                    left.append(replaced(intent, unsent=fate is Fate.REFUSED))
            commit.records[name] = replaced(record, intents=tuple(left))
        self._ledger.commit(commit)


def in_order(runs: Iterable[Run]) -> list[Run]:
    """Return runs in the order of sending: on time before late, oldest first."""
    return sorted(runs, key=lambda r: (r.intent.outcome is not Outcome.FIRED, r.intent.scheduled))


def message_of(ledger: Ledger, run: Run, record: EntryRecord, now: int, *, once: bool = False) -> Message:
    """Return a run as it is handed to the publisher. Asks the schedule, which may raise anything.

    :param record: the record of its entry, as it is when the message is sent.
    """
    definition, intent = ledger.definitions[run.entry], run.intent
    asked = definition.policy.instruction if definition.policy else MisfireInstruction.DO_NOTHING
    return Message(
        definition,
        intent,
        ledger.id_of(run.entry, intent),
        now,
        ledger.threshold(run.entry, intent.scheduled, record),
        resolve(asked, record.state.trigger_type),
        once,
    )


def event_of(entry: str, intent: Intent, fire_time: int, id_: str) -> Sent:
    """Return the event that tells that the message of a run was sent."""
    return Sent(
        entry=entry,
        outcome=intent.outcome,
        scheduled=intent.scheduled,
        fire_time=fire_time,
        merged=intent.merged,
        id=id_,
    )
