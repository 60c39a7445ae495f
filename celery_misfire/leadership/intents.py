"""Intents that were not sent in time: judged again by their instruction, and through their registers.

An intent is a run that was claimed and is not known to have been sent: a crash, a failure or a refusal left
it. A run becomes missed only by its register, so that "it ran" and "it was missed" cannot both become true.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from celery_misfire import records
from celery_misfire.events import Event, Sent
from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.ledger import Ledger
from celery_misfire.leadership.pending_misses import explain, give_up
from celery_misfire.misfire import MisfireInstruction, Outcome, Reason
from celery_misfire.records import EntryRecord, Intent
from celery_misfire.store import registers
from celery_misfire.store.port import Store
from celery_misfire.store.registers import Register

__all__ = ["Intents"]


class Intents:
    """Judges the intents of one beat."""

    def __init__(self, store: Store, lease: Lease, ledger: Ledger) -> None:
        self._store, self._lease, self._ledger = store, lease, ledger

    def judge_again(
        self, name: str, now: int, reason: Callable[[int, int], Reason], *, was_refused: bool
    ) -> tuple[EntryRecord, list[Event]]:
        """Return the record of an entry after its late intents were judged, and what explains the change.

        What is known not to have been sent and is too late by now gets what its instruction says.

        :param reason: why an occurrence is late, by its scheduled time and the begin of its generation.
        :param was_refused: this beat knows that the entry's message cannot be sent as it is.
        """
        definition, record = self._ledger.definitions[name], self._ledger.with_certainty(self._ledger[name])
        hopeless = [i for i in record.intents if self._cannot_be_sent(name, i, now, was_refused)]
        record, begin = _without(record, hopeless), record.begin
        judge = partial(
            records.judge_again,
            trigger=definition.trigger,
            policy=definition.policy,
            now=now,
            reason=lambda intent: reason(intent.scheduled, min(intent.generation, begin)),
            arbitrable={i.scheduled for i in record.intents if self._is_for_the_register(name, i, now)},
        )
        events: list[Event] = []
        judged, misfire = judge(record)
        while started := self._close(events, name, _missing(record, judged), Reason.QUEUE_LATE):
            # The oldest of what is left is still the oldest, so the verdict stands.
            record = _without(record, started)
            judged, misfire = judge(record)
        if misfire is not None:
            events.append(explain(self._ledger, judged, len(record.missed), misfire, now))
        sent = self._close(events, name, hopeless, Reason.PUBLISH_REJECTED)
        lost = [(i, Reason.PUBLISH_REJECTED) for i in hopeless if i not in sent]
        known = len(judged.missed)
        judged = records.with_unsent(judged, lost, MisfireInstruction.DO_NOTHING, now)
        events += give_up(self._ledger, judged, known)
        return judged, events

    def close_registers(self, name: str, intents: Sequence[Intent], reason: Reason) -> list[Intent]:
        """See to it that no worker starts what is to be missed; return what one has started already."""
        ids = [self._ledger.task_id(i.entry or name, i.generation, i.scheduled) for i in intents]
        held = self._store.settle(ids, registers.Missed(reason), token=self._lease.token)
        return [i for i, value in zip(intents, held, strict=True) if not isinstance(value, registers.Missed)]

    def _close(
        self, events: list[Event], name: str, intents: Sequence[Intent], reason: Reason
    ) -> list[Intent]:
        """Close registers; return the intents that were sent after all, and add that to the events."""
        started = self.close_registers(name, intents, reason)
        # The beat that sent them could not write so.
        events += [
            Sent(
                entry=name,
                outcome=i.outcome,
                scheduled=i.scheduled,
                fire_time=i.claimed_at,
                merged=i.merged,
                id=self._ledger.task_id(i.entry or name, i.generation, i.scheduled),
            )
            for i in started
        ]
        return started

    def _is_for_the_register(self, name: str, intent: Intent, now: int) -> bool:
        """True for a late run that may be judged again although it is in doubt: its register decides.

        So it does where workers ask the registers, and where a beat closed the register and then died.
        """
        if intent.unsent or intent.outcome is not Outcome.FIRED:
            return False
        if now - intent.scheduled < self._ledger.threshold(name, intent.scheduled):
            return False
        return self._store.is_guarded() or isinstance(self._register(name, intent), registers.Missed)

    def _cannot_be_sent(self, name: str, intent: Intent, now: int, was_refused: bool) -> bool:
        """True for a run whose message was refused for longer than the run may be late.

        Also for one of which a beat has said so in its register, and then died.
        """
        since = intent.scheduled if intent.outcome is Outcome.FIRED else intent.claimed_at
        if not intent.unsent or now - since < self._ledger.threshold(name, intent.scheduled):
            return False
        return was_refused or self._register(name, intent) == registers.Missed(Reason.PUBLISH_REJECTED)

    def _register(self, name: str, intent: Intent) -> Register | None:
        return self._store.register(
            self._ledger.task_id(intent.entry or name, intent.generation, intent.scheduled)
        )


def _missing(before: EntryRecord, after: EntryRecord) -> list[Intent]:
    """Return the intents that are gone."""
    left = {i.scheduled for i in after.intents}
    return [i for i in before.intents if i.scheduled not in left]


def _without(record: EntryRecord, intents: Collection[Intent]) -> EntryRecord:
    return replace(record, intents=tuple(i for i in record.intents if i not in intents))
