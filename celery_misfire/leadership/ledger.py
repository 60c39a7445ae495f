"""The records of all entries in memory, and their copy in the store: kept equal, whatever gets lost between.

A commit that gets no answer is kept and sent again as it is; the store does it once. While nobody else has
led, memory is the newer of the two and restores a store that lost its data or went back in time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from celery_misfire import records
from celery_misfire.exceptions import LeaseLost, StoreUnavailable
from celery_misfire.leadership.lease import Lease
from celery_misfire.records import EntryRecord
from celery_misfire.store.port import Change, Store
from celery_misfire.texts import one_line, quote

__all__ = ["Commit", "Ledger"]

logger = logging.getLogger(__name__)

#: How many records are written in one call.
WRITE = 200


@dataclass
class Commit:
    """Records to be replaced together, the lines of the log that say why, and what follows from it.

    :param then: called once, when the commit is known to have been done.
    """

    new: dict[str, EntryRecord] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    then: list[Callable[[], None]] = field(default_factory=list)


class Ledger(Mapping[str, EntryRecord]):
    """The records by entry name."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self._store, self._lease = store, lease
        self._records: dict[str, EntryRecord] = {}
        self._texts: dict[str, str] = {}
        self._unanswered: Commit | None = None
        self._restoring = False
        #: Entries for which the store holds something that is no record of ours.
        self.unusable: set[str] = set()
        #: Intents that this process has claimed and never tried to send: (entry, scheduled).
        self.untried: set[tuple[str, int]] = set()

    def __getitem__(self, name: str) -> EntryRecord:
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def load(self) -> None:
        """Forget what is in memory and read the store. A text that is no record of ours is left out."""
        self._unanswered = None
        self._records, self._texts = {}, self._store.load()
        self.untried.clear()
        for name, text in self._texts.items():
            try:
                record = records.loads(text)
                if record.name != name:
                    raise ValueError("it belongs to another entry")
            except ValueError as exc:
                what = f"the state of entry {quote(name)} cannot be used: {one_line(str(exc))}"
                logger.error("beat: %s; planned from now", what)
            else:
                self._records[name] = record
        self.unusable = self._texts.keys() - self._records.keys()

    def restore(self) -> None:
        """Write to the store what it lacks. Only for a beat that knows that nobody else has led."""
        self._restoring = True
        try:
            self._texts = self._store.load()
            self.unusable = self._texts.keys() - self._records.keys()
            self.repeat_unanswered()
            self.write({n: r for n, r in self._records.items() if records.dumps(r) != self._texts.get(n)})
        finally:
            self._restoring = False

    def write(self, changed: Mapping[str, EntryRecord]) -> None:
        """Commit any number of records, in pieces."""
        names = list(changed)
        for start in range(0, len(names), WRITE):
            self.commit(Commit({n: changed[n] for n in names[start : start + WRITE]}))

    def commit(self, commit: Commit) -> None:
        """Replace records in the store, then in memory.

        :raises StoreUnavailable: whether it was done is unknown; :meth:`repeat_unanswered` finds out.
        :raises LeaseLost: it was not done; somebody else leads, or keeps writing.
        """
        if not commit.new and not commit.log:
            return
        self._unanswered = commit
        texts = {n: records.dumps(r) for n, r in commit.new.items()}
        changes = [Change(n, self._texts.get(n, ""), text) for n, text in texts.items()]
        conflicts = self._store.commit(self._lease.token, changes, commit.log).conflicts
        if not conflicts:
            self._done(commit, texts)
        elif self._restoring:
            raise LeaseLost(f"the state of {len(conflicts)} entries was written by somebody else")
        else:
            # Only who leads writes, and the lease was found to be ours.
            logger.warning("beat: %s went back in time; it is brought up to date from memory", self._store)
            self.restore()

    def repeat_unanswered(self) -> bool:
        """Send the commit again that got no answer; True when there was one and it is done now."""
        if self._unanswered is None:
            return False
        self.commit(self._unanswered)
        return True

    def log(self, *lines: Mapping[str, Any]) -> None:
        """Write to the log only; what cannot be written is not worth stopping for."""
        try:
            self._store.commit(self._lease.token, [], lines)
        except StoreUnavailable as exc:
            logger.debug("beat: a line of the log could not be written: %s", exc)

    def forget(self, names: Sequence[str]) -> None:
        """Delete the records of entries that are gone for good."""
        for start in range(0, len(names), WRITE):
            piece = names[start : start + WRITE]
            changes = [Change(n, self._texts[n], "") for n in piece]
            if not self._store.commit(self._lease.token, changes).conflicts:
                for name in piece:
                    del self._records[name], self._texts[name]

    def with_certainty(self, record: EntryRecord) -> EntryRecord:
        """Mark the intents of which this process knows that no attempt was made."""
        intents = tuple(
            replace(i, unsent=i.unsent or (record.name, i.scheduled) in self.untried) for i in record.intents
        )
        return replace(record, intents=intents)

    def _done(self, commit: Commit, texts: Mapping[str, str]) -> None:
        self._unanswered = None
        self._texts.update(texts)
        self.unusable -= texts.keys()
        for name, record in commit.new.items():
            before = self._records.get(name)
            known = {i.scheduled for i in before.intents} if before else set()
            self.untried |= {(name, i.scheduled) for i in record.intents if i.scheduled not in known}
            self._records[name] = record
        for follow_up in commit.then:
            follow_up()
