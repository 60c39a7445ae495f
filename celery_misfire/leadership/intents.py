"""Intents that were not sent in time: judged with all that is overdue, and through their registers.

An intent is a run that was claimed and is not known to have been sent: a crash, a failure or a refusal left
it. A run becomes missed only by its register, so that "it ran" and "it was missed" cannot both become true.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from celery_misfire import records
from celery_misfire.episodes import Episodes, stretches
from celery_misfire.events import Event, Sent
from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.ledger import Ledger
from celery_misfire.leadership.pending_misses import explain, give_up
from celery_misfire.misfire import Misfire, Outcome, Reason
from celery_misfire.records import EntryRecord, Intent
from celery_misfire.sending.dispatch import event_of
from celery_misfire.store import registers
from celery_misfire.store.port import Store
from celery_misfire.store.registers import Register


class Intents:
    """Judges the intents of one beat."""

    def __init__(self, store: Store, lease: Lease, ledger: Ledger) -> None:
        self._store, self._lease, self._ledger = store, lease, ledger

    def is_late(self, record: EntryRecord, now: int) -> bool:
        """Return True when an intent is too late to be sent as it is, or what is due has misfired."""
        return self.any_late(record, [*map(_since, record.intents), record.state.next_fire_time], now)

    def would_be_judged(self, record: EntryRecord, now: int) -> bool:
        """Return True when runs in time are among the intents that are too late, and need not be sent."""
        in_time = [i for i in self._ledger.with_certainty(record).intents if i.outcome is Outcome.FIRED]
        certain = [i.scheduled for i in in_time if i.unsent]
        if self.any_late(record, certain, now):
            return True
        doubtful = [i.scheduled for i in in_time if not i.unsent]
        return self.any_late(record, doubtful, now) and self._store.is_guarded()

    def any_late(self, record: EntryRecord, moments: Iterable[int | None], now: int) -> bool:
        """Return True when a run that should be sent at one of these moments would be too late."""
        return any(
            m is not None and now - m >= self._ledger.threshold(record.name, m, record) for m in moments
        )

    def judge(
        self, record: EntryRecord, episodes: Episodes, *, was_refused: bool, only_new: bool = False
    ) -> tuple[EntryRecord, list[Event]]:
        """Return the record of an entry after all that is overdue was judged, and what explains the change.

        An intent in doubt is judged where workers ask the registers, and where a beat closed its register and
        then died. Elsewhere it stays as it is: sent again under the same id it is the same run, while a
        record that says "missed" could be wrong.

        :param was_refused: this beat knows that the entry's message cannot be sent as it is.
        :param only_new: leave all intents as they are.
        """
        if not record.intents:
            # The usual case.
            steps = episodes.judge(record)
            return (steps[-1][0] if steps else record), self._explained(record, steps, episodes.now)
        record, name = self._ledger.with_certainty(record), record.name
        intents = () if only_new else record.intents
        held = {i: self._store.register(self._id(name, i)) for i in intents}
        refused = [i for i in held if self._cannot_be_sent(name, i, held[i], episodes.now, was_refused)]
        started = [i for i in held if _has_left(held[i])]
        started += self.close_registers(name, refused, Reason.PUBLISH_REJECTED)
        left, stopped = _without(record, started + refused), list[Intent]()
        asks = any(not i.unsent for i in held) and self._store.is_guarded()
        while True:
            unsent = [i for i in left.intents if i in held and (i.unsent or asks or held[i] is not None)]
            steps = episodes.judge(left, unsent)
            judged = steps[-1][0] if steps else left
            gone = self.close_registers(
                name, [i for i in left.intents if not _runs(judged, i)], Reason.QUEUE_LATE
            )
            # A worker would drop a run whose register is closed.
            closed = [i for i in unsent if held[i] is not None and _runs(judged, i)]
            if not gone and not closed:
                break
            started, stopped = started + gone, stopped + closed
            left = _without(left, gone + closed)
        # The beat that sent them could not write so.
        events: list[Event] = [self._sent(name, i) for i in dict.fromkeys(started)]
        events += self._explained(record, steps, episodes.now)
        known = len(judged.missed)
        self._note_doubt(left, judged)
        instruction = records.resolved(record, episodes.policy)
        refused = [i for i in refused if i not in started]
        for lost, reason in ((refused, Reason.PUBLISH_REJECTED), (stopped, Reason.FAILOVER)):
            together = stretches(record, episodes.trigger, lost)
            judged = records.with_unsent(judged, together, reason, instruction, episodes.now)
        return judged, [*events, *give_up(self._ledger, judged, known)]

    def _explained(
        self, record: EntryRecord, steps: Iterable[tuple[EntryRecord, Misfire | None]], now: int
    ) -> list[Event]:
        """Return what explains the steps by which a record was judged."""
        events, known = list[Event](), len(record.missed)
        for after, misfire in steps:
            if misfire is None:
                events += give_up(self._ledger, after, known)
            else:
                events.append(explain(self._ledger, after, known, misfire, now))
            known = len(after.missed)
        return events

    def close_registers(self, name: str, intents: Sequence[Intent], reason: Reason) -> list[Intent]:
        """See to it that no worker starts what is to be missed; return what has reached one already."""
        if not intents:
            return []
        ids = [self._id(name, intent) for intent in intents]
        held = self._store.settle(ids, registers.Missed(reason), token=self._lease.token)
        return [intent for intent, register in zip(intents, held, strict=True) if _has_left(register)]

    def _cannot_be_sent(
        self, name: str, intent: Intent, register: Register | None, now: int, was_refused: bool
    ) -> bool:
        """True for a run whose message was refused for longer than the run may be late.

        Also for one of which a beat has said so in its register, and then died.
        """
        if not intent.unsent or now - _since(intent) < self._ledger.threshold(name, intent.scheduled):
            return False
        return was_refused or register == registers.Missed(Reason.PUBLISH_REJECTED)

    def _note_doubt(self, before: EntryRecord, after: EntryRecord) -> None:
        """Note the runs of which a message may stand in a queue, although they are no intents any more."""
        intents = {i.scheduled for i in after.intents}
        moments = [i.scheduled for i in before.intents if not i.unsent and i.scheduled not in intents]
        self._ledger.doubtful_until = max([self._ledger.doubtful_until, *moments])

    def _id(self, name: str, intent: Intent) -> str:
        return self._ledger.id_of(name, intent)

    def _sent(self, name: str, intent: Intent) -> Sent:
        return event_of(name, intent, intent.claimed_at, self._id(name, intent))


def _since(intent: Intent) -> int:
    """Return since when the intent should have been sent."""
    return intent.scheduled if intent.outcome is Outcome.FIRED else intent.claimed_at


def _has_left(register: Register | None) -> bool:
    """True when a worker has written the register: it started the run, or gave it up itself."""
    return register is not None and not registers.is_left_to_beat(register)


def _runs(record: EntryRecord, intent: Intent) -> bool:
    """Return True when this run is still to be sent."""
    if any(i.scheduled == intent.scheduled and i.generation == intent.generation for i in record.intents):
        return True
    ours = intent.generation == record.generation
    return ours and any(r.first <= intent.scheduled <= r.last for r in record.runs)


def _without(record: EntryRecord, intents: Collection[Intent]) -> EntryRecord:
    if not intents:
        return record
    return replace(record, intents=tuple(i for i in record.intents if i not in intents))
