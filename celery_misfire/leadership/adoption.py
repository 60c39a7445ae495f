"""The records brought in line with the schedule: entries added, edited, removed, and back again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from celery_misfire import records
from celery_misfire.events import Event
from celery_misfire.leadership.intents import Intents
from celery_misfire.leadership.ledger import Commit, Ledger
from celery_misfire.leadership.pending_misses import give_up
from celery_misfire.misfire import Reason
from celery_misfire.records import Definition, EntryRecord
from celery_misfire.triggers.time_limit import TimeLimit

#: The record of a removed entry is kept so long, in milliseconds, so that its return is noticed.
KEEP_REMOVED = 7 * 24 * 3600 * 1000


class Adoption:
    """Takes entries into the ledger.

    :param resume_misfires: what an entry would have run while it was gone has misfired, as in Quartz; else
        that was no outage, and it is planned from now.
    """

    def __init__(self, ledger: Ledger, intents: Intents, *, resume_misfires: bool) -> None:
        self._ledger, self._intents, self._resume_misfires = ledger, intents, resume_misfires
        self._time_limit = TimeLimit()
        #: Entries whose record is not in line with the schedule yet, as it could not be asked: whether they
        #: have no past.
        self.unfinished: dict[str, bool] = {}

    def adopt(
        self,
        definitions: Iterable[Definition],
        now: int,
        *,
        from_now: bool,
        failed: Callable[[str, Exception], None],
    ) -> list[str]:
        """Bring the records in line with these definitions; return the entries that have changed.

        :param from_now: no entry has a past (the store was empty).
        :param failed: told of an entry whose schedule cannot be asked.
        """
        self._ledger.definitions = {d.name: self._limited(d) for d in definitions}
        self._move_renamed(now)
        before, self.unfinished = self.unfinished, {}
        changed: dict[str, EntryRecord] = {}
        for name in self._ledger.definitions:
            cold = from_now or before.get(name, False)
            try:
                record = self.adopted(name, now, from_now=cold)
            except Exception as exc:
                self.unfinished[name] = cold
                failed(name, exc)
            else:
                if record is not None:
                    changed[name] = record
        mended = list(changed)
        events: dict[str, Sequence[Event]] = {}
        for name, record in self._ledger.items():
            if name not in self._ledger.definitions and record.removed_at is None:
                started = self._intents.close_registers(name, record.intents, Reason.ENTRY_DELETED)
                changed[name] = gone = records.removed(record, now, started)
                events[name] = give_up(self._ledger, gone, len(record.missed))
        strangers = self._ledger.unusable - self._ledger.definitions.keys()
        changed |= {name: records.unknown(name, now) for name in strangers}
        self._ledger.write(changed, events)
        self._ledger.forget([n for n, r in self._ledger.items() if r.is_over(now - KEEP_REMOVED)])
        return mended

    def follow_clock(self, now: int, failed: Callable[[str, Exception], None]) -> int:
        """Plan from now what a clock that was set back would leave silent; return how many entries.

        :param failed: as in :meth:`adopt`.
        """
        step = records.clock_step(self._ledger.values(), now)
        changed: dict[str, EntryRecord] = {}
        for name, definition in self._ledger.definitions.items() if step > 0 else ():
            if (record := self._ledger.get(name)) is None:
                continue
            try:
                planned = records.set_back(record, definition.trigger, now, step)
            except Exception as exc:
                failed(name, exc)
            else:
                if planned is not None:
                    changed[name] = planned
        self._ledger.write(changed)
        return len(changed)

    def _limited(self, definition: Definition) -> Definition:
        """Return the definition with a trigger that cannot hold beat up."""
        trigger = self._time_limit.limited(definition.trigger)
        if trigger is definition.trigger:
            return definition
        known = self._ledger.definitions.get(definition.name)
        # The same one may still be at work on an answer.
        same = known is not None and known.trigger == trigger
        return replace(definition, trigger=known.trigger if known and same else trigger)

    def _move_renamed(self, now: int) -> None:
        """Move the records of entries that have another name now, each in one commit."""
        names = {record.key: name for name, record in self._ledger.items() if record.key is not None}
        moves = {
            name: names[definition.key]
            for name, definition in self._ledger.definitions.items()
            if definition.key in names and not self._is_of(name, definition.key)
        }
        while taken := [new for new in moves if self._is_taken(new) and new not in moves.values()]:
            # The entry that had this name is gone, with runs under way. They are given up first.
            del moves[taken[0]]
        chain: dict[str, EntryRecord] = {}
        for new, old in moves.items():
            pair = {new: records.renamed(self._ledger[old], new, self._ledger.get(new))}
            if old not in moves:
                pair[old] = records.vacated(self._ledger[old], now)
            if old in moves or new in moves.values():
                chain |= pair
            else:
                self._ledger.commit(Commit(pair))
        self._ledger.commit(Commit(chain))

    def _is_of(self, name: str, key: str | None) -> bool:
        record = self._ledger.get(name)
        return record is not None and record.key == key

    def _is_taken(self, name: str) -> bool:
        record = self._ledger.get(name)
        return record is not None and bool(record.runs or record.intents)

    def adopted(self, name: str, now: int, *, from_now: bool) -> EntryRecord | None:
        """Return the new record of an entry; None when its record is in line with the schedule."""
        record, key = self._adopted(name, now, from_now=from_now), self._ledger.definitions[name].key
        known = record or self._ledger[name]
        return record if known.key == key else replace(known, key=key)

    def _adopted(self, name: str, now: int, *, from_now: bool) -> EntryRecord | None:
        definition, record = self._ledger.definitions[name], self._ledger.get(name)
        task, trigger = definition.task, definition.trigger
        if record is None:
            # An entry whose record cannot be read is not new: its runs may have been sent.
            from_now = from_now or name in self._ledger.unusable
            anchor, since = definition.anchor, definition.due_since
            return records.first_seen(
                name, task, trigger, now, from_now=from_now, anchor=anchor, due_since=since
            )
        if from_now or record.fingerprint != trigger.fingerprint:
            return records.edited(record, task, trigger, now)
        if record.removed_at is None:
            return None if record.task == task else replace(record, task=task)
        if self._resume_misfires:
            return records.resumed(record, task, now)
        return records.returned(record, task, trigger, now)
