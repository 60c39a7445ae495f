"""The intents of all entries: runs that are claimed and not known to have been sent.

Each is sent and then acknowledged: struck from its record. What a crash, a failure or a refusal leaves is
judged again, and sent again under the same id.

Nothing here knows Celery: sending is the :class:`Publisher`'s business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from celery_misfire import records
from celery_misfire.exceptions import BrokerUnavailable, MisfireError, PublishRejected
from celery_misfire.fire import task_id
from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.ledger import Commit, Ledger
from celery_misfire.leadership.pending_misses import Reports
from celery_misfire.misfire import (
    MisfireInstruction,
    Outcome,
    Reason,
    resolve,
    threshold_millis,
)
from celery_misfire.records import Definition, EntryRecord, Intent
from celery_misfire.store import registers
from celery_misfire.store.port import Store
from celery_misfire.texts import describe_error

__all__ = ["Intents", "Message", "Pause", "Publisher"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Message:
    """A run to be sent.

    :param fire_time: now, in milliseconds UTC.
    :param threshold: how late it may be, in milliseconds; with the policy, for the worker to judge by.
    """

    definition: Definition
    intent: Intent
    task_id: str
    fire_time: int
    threshold: int
    resolved: MisfireInstruction


class Publisher(Protocol):
    def connect(self) -> None:
        """Make sure that the broker can be reached. :raises BrokerUnavailable: when it cannot."""

    def publish(self, message: Message) -> None:
        """Send the task of an entry.

        :raises BrokerUnavailable: when the broker failed; the message may have arrived all the same.
        :raises PublishRejected: when this message cannot be sent; it has not arrived.
        """


@dataclass
class Pause:
    """When something that failed is tried again; each failure in a row doubles the wait.

    :param own_fault: it was refused for what it is; else the broker failed.
    :param told: the log was told so; it will want to know of the end.
    """

    until: float = 0.0
    length: float = 0.0
    own_fault: bool = False
    told: bool = False

    def prolong(self, now: float, first: float = 1.0, longest: float = 60.0) -> None:
        self.length = min(longest, self.length * 2 or first)
        self.until = now + self.length


class Intents:
    """What is to be sent, for all entries.

    :param definitions: the entries of the schedule; shared with the leader.
    :param outages: why runs are late, and up to when; shared with the leader.
    :param reason: why an occurrence is late, by entry, scheduled time and generation.
    :param wall: the wall clock, in milliseconds UTC.
    :param steady: a clock that nobody sets, in seconds.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        ledger: Ledger,
        definitions: Mapping[str, Definition],
        publisher: Publisher,
        reports: Reports,
        *,
        namespace: str,
        outages: MutableSequence[tuple[Reason, int]],
        reason: Callable[[str, int, int], Reason],
        wall: Callable[[], int],
        steady: Callable[[], float],
    ) -> None:
        self._store, self._lease, self._ledger = store, lease, ledger
        self._definitions, self._publisher, self._reports = definitions, publisher, reports
        self._namespace, self._outages, self._reason = namespace, outages, reason
        self._wall, self._steady = wall, steady
        #: Entries that have any. A dict, for its order.
        self._unsent: dict[str, None] = {}
        self._refused: dict[str, Pause] = {}
        #: The wait for the broker; without length as long as messages get through.
        self._broker = Pause()
        #: False when the broker has failed, or was not asked yet.
        self.connected = False

    def rebuild(self, present: Mapping[str, EntryRecord]) -> None:
        """Begin anew with the records of the entries that are there."""
        self._unsent = {n: None for n, r in present.items() if r.intents}
        # One that somebody else has sent by now is not waited for.
        pending = {n for n, r in present.items() if r.intents or r.runs}
        self._refused = {n: p for n, p in self._refused.items() if n in pending}

    def unsent(self, limit: int) -> list[str]:
        """Return entries with intents that are to be sent now."""
        return [n for n in self._unsent if not self.is_paused(n)][:limit]

    # -- the broker ----------------------------------------------------------------------------------------

    def connect(self, now: int) -> bool:
        """Return True when it is worth claiming: what cannot be sent is better judged when it can be."""
        if self.connected:
            return True
        if self._steady() < self._broker.until:
            return False
        try:
            self._publisher.connect()
        except BrokerUnavailable as exc:
            self._broker_failed(exc)
            return False
        if self._broker.length:
            self._outages.append((Reason.BROKER_UNAVAILABLE, now))
        self.connected = True
        return True

    def _broker_failed(self, exc: Exception) -> None:
        if not self._broker.length:
            logger.warning("beat: the broker failed, nothing is sent until it is back: %s", exc)
        self._broker.prolong(self._steady(), first=0.2, longest=5.0)
        self.connected = False

    def _broker_works(self) -> None:
        if self._broker.length:
            logger.info("beat: the broker is there again")
            self._broker = Pause()

    # -- refusals ------------------------------------------------------------------------------------------

    def refuse(self, name: str, exc: Exception) -> None:
        """Leave an entry aside that cannot be sent, and try again later."""
        if name not in self._refused:
            logger.error("beat: entry %r cannot be sent and is tried again: %s", name, describe_error(exc))
            self._ledger.log({"event": "refused", "entry": name, "error": type(exc).__name__})
        pause = self._leave_aside(name)
        # A schedule that cannot be asked just now says nothing about the message.
        pause.own_fault = pause.own_fault or isinstance(exc, PublishRejected)

    def _leave_aside(self, name: str) -> Pause:
        pause = self._refused.setdefault(name, Pause())
        if not self.is_paused(name):
            # Else it was a later run that failed as well: those before it do not wait longer for that.
            pause.prolong(self._steady())
        return pause

    def is_paused(self, name: str) -> bool:
        """Return True while an entry that could not be sent waits for its next try."""
        return name in self._refused and self._refused[name].until > self._steady()

    def next_tries(self) -> Iterable[float]:
        """Yield when, on the steady clock, something that failed is tried again."""
        if not self.connected:
            yield self._broker.until
        else:
            yield from (pause.until for pause in self._refused.values())

    # -- judging again -------------------------------------------------------------------------------------

    def send_again(self, names: Sequence[str], now: int) -> None:
        """Send what was claimed before and not acknowledged: after a crash, a failure, a refusal."""
        commit = Commit()
        for name in names:
            try:
                self._judge_again(name, now, commit)
            except MisfireError:
                raise
            except Exception as exc:
                self.refuse(name, exc)
        self._ledger.commit(commit)
        self.publish(list(commit.new))

    def _judge_again(self, name: str, now: int, commit: Commit) -> None:
        """What is known not to have been sent and is too late by now, gets what its instruction says."""
        definition, record = self._definitions[name], self._ledger.with_certainty(self._ledger[name])
        hopeless = [i for i in record.intents if self._is_hopeless(name, i, now)]
        record = _without(record, hopeless)
        judge = partial(
            records.judge_again,
            trigger=definition.trigger,
            policy=definition.policy,
            now=now,
            reason=lambda i: self._reason(name, i.scheduled, i.generation),
            arbitrable={i.scheduled for i in record.intents if self._is_arbitrable(name, i, now)},
        )
        judged, misfire = judge(record)
        while started := self._started(commit, name, _missing(record, judged), Reason.QUEUE_LATE):
            # What is left does not change by that: the oldest stays the oldest.
            record = _without(record, started)
            judged, misfire = judge(record)
        if misfire is not None:
            next_, known = record.state.next_fire_time, len(record.missed)
            self._reports.tell_misfire(commit, judged, known, misfire, now, next_)
        sent = self._started(commit, name, hopeless, Reason.PUBLISH_REJECTED)
        refused = [(i, Reason.PUBLISH_REJECTED) for i in hopeless if i not in sent]
        known = len(judged.missed)
        judged = records.with_unsent(judged, refused, MisfireInstruction.DO_NOTHING, now)
        self._reports.tell_missed(commit, judged, known)
        commit.new[name] = judged
        commit.then.append(partial(self._reports.hand_over, name))

    def _is_arbitrable(self, name: str, intent: Intent, now: int) -> bool:
        """True for a late run that may be judged again although it is in doubt: its register decides.

        So it does where workers ask the registers, and where a beat closed it and then died.
        """
        late = intent.outcome is Outcome.FIRED and now - intent.scheduled >= self._threshold(name, intent)
        in_doubt = late and not intent.unsent
        if not in_doubt or self._store.is_guarded():
            return in_doubt
        return isinstance(self._store.register(self._id(name, intent)), registers.Missed)

    def _is_hopeless(self, name: str, intent: Intent, now: int) -> bool:
        """True for a run whose message was refused for longer than it may be late.

        Also for one of which a beat has said so in its register, and then died.
        """
        since = intent.scheduled if intent.outcome is Outcome.FIRED else intent.claimed_at
        if not intent.unsent or now - since < self._threshold(name, intent):
            return False
        pause = self._refused.get(name)
        if pause is not None and pause.own_fault:
            return True
        return self._store.register(self._id(name, intent)) == registers.Missed(Reason.PUBLISH_REJECTED)

    def _threshold(self, name: str, intent: Intent) -> int:
        definition = self._definitions[name]
        times = definition.trigger.fire_times(self._ledger[name].state)
        return threshold_millis(definition.policy, intent.scheduled, times.after(intent.scheduled))

    def _started(self, commit: Commit, name: str, intents: Sequence[Intent], reason: Reason) -> list[Intent]:
        """Close registers, and add what was sent after all to the log; return that."""
        started = self.close_registers(name, intents, reason)
        # By a beat that could not write it.
        commit.log += [_sent_line(name, i, i.claimed_at, self._id(name, i)) for i in started]
        return started

    def close_registers(self, name: str, intents: Sequence[Intent], reason: Reason) -> list[Intent]:
        """See to it that no worker starts what is to be missed; return what one has started already."""
        held = self._store.settle([self._id(name, i) for i in intents], registers.Missed(reason))
        return [i for i, value in zip(intents, held, strict=True) if not isinstance(value, registers.Missed)]

    # -- sending -------------------------------------------------------------------------------------------

    def publish(self, names: Sequence[str], claimed_at: int | None = None) -> None:
        """Send the intents of these entries and acknowledge what was sent.

        :param claimed_at: only those that were claimed then; older ones have to be judged again before.
        """
        work = [(i, n) for n in names for i in self._ledger[n].intents if claimed_at in (None, i.claimed_at)]
        # On time before late, oldest first.
        work.sort(key=lambda w: (w[0].outcome is not Outcome.FIRED, w[0].scheduled))
        sent: dict[tuple[str, int], Message] = {}
        tried: dict[tuple[str, int], bool] = {}
        try:
            for intent, name in work:
                if not (self._lease.held and self.connected):
                    break
                key = (name, intent.scheduled)
                if self.is_paused(name) and key not in self._ledger.untried:
                    # Refused before: it waits for its time, and holds up no later run.
                    continue
                try:
                    self._publisher.connect()
                    message = self._message(name, intent)
                    # In doubt from here on: whatever interrupts the attempt, the message may have arrived.
                    tried[key] = False
                    self._publisher.publish(message)
                    sent[key] = message
                    self._broker_works()
                except PublishRejected as exc:
                    tried[key] = True
                    self.refuse(name, exc)
                except BrokerUnavailable as exc:
                    if key in tried:
                        # The failure may be this entry's own: it does not come first again.
                        self._leave_aside(name)
                    self._broker_failed(exc)
                    break
                except Exception as exc:
                    # A schedule of the app's own may raise anything, and must not keep the others waiting.
                    self.refuse(name, exc)
        finally:
            self._acknowledge(names, sent, tried)

    def _message(self, name: str, intent: Intent) -> Message:
        definition, type_ = self._definitions[name], self._ledger[name].state.trigger_type
        asked = definition.policy.instruction if definition.policy else MisfireInstruction.DO_NOTHING
        return Message(
            definition,
            intent,
            self._id(name, intent),
            self._wall(),
            self._threshold(name, intent),
            resolve(asked, type_),
        )

    def _acknowledge(
        self,
        names: Sequence[str],
        sent: Mapping[tuple[str, int], Message],
        tried: Mapping[tuple[str, int], bool],
    ) -> None:
        """Take what was sent out of the records.

        :param tried: for each attempt that was made, whether it is certain that the message did not arrive.
        """
        self._ledger.untried -= tried.keys()
        log = [_sent_line(m.definition.name, m.intent, m.fire_time, m.task_id) for m in sent.values()]
        commit = Commit(log=log)
        for name in names:
            record = self._ledger.with_certainty(self._ledger[name])
            left = tuple(
                replace(i, unsent=tried.get((name, i.scheduled), i.unsent))
                for i in record.intents
                if (name, i.scheduled) not in sent
            )
            commit.new[name] = replace(record, intents=left)
            if left:
                self._unsent[name] = None
            else:
                self._unsent.pop(name, None)
                self._refused.pop(name, None)
        self._ledger.commit(commit)

    def _id(self, name: str, intent: Intent) -> str:
        return task_id(self._namespace, name, intent.generation, intent.scheduled)


def _missing(before: EntryRecord, after: EntryRecord) -> list[Intent]:
    """Return the intents that are gone."""
    left = {i.scheduled for i in after.intents}
    return [i for i in before.intents if i.scheduled not in left]


def _without(record: EntryRecord, intents: Collection[Intent]) -> EntryRecord:
    return replace(record, intents=tuple(i for i in record.intents if i not in intents))


def _sent_line(entry: str, intent: Intent, fire_time: int, id_: str) -> dict[str, Any]:
    return {
        "event": "sent",
        "entry": entry,
        "outcome": intent.outcome,
        "scheduled": intent.scheduled,
        "fire_time": fire_time,
        "merged": intent.merged,
        "id": id_,
    }
