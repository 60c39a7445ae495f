"""The entries and their records in memory, and the copy in the store: kept equal, whatever gets lost between.

A commit that gets no answer is kept. Without messages it is sent again as it is; the store does it once. With
messages it is settled: the lease is taken again, which fences every copy that is still under way, and the
records then say whether it was done.

While nobody else has led, memory restores a store that lost its data. It also restores one that went back in
time, unless the messages are in the same database: they went back together with the records then, and memory
follows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from celery_misfire import fire, records
from celery_misfire.events import Event, Sent, encode
from celery_misfire.exceptions import LeaseLost, MisfireError, StoreUnavailable
from celery_misfire.frozen import replaced
from celery_misfire.leadership.lease import Lease
from celery_misfire.log_lines import Log
from celery_misfire.misfire import threshold_millis
from celery_misfire.records import Definition, EntryRecord, Intent, Unreported
from celery_misfire.store.port import Change, CommitResult, Push, Store, Taken
from celery_misfire.texts import one_line, quote_name

logger = logging.getLogger(__name__)
say = Log(__name__, "beat")

#: The most records in one call.
LARGEST_WRITE = 200


class Outdated(MisfireError):
    """The store holds other records than memory, and is right: they are read when the lease is taken again.

    What was decided from the old ones is void.
    """


@dataclass
class Commit:
    """Records to be replaced together, and the events that say why."""

    records: dict[str, EntryRecord] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)


class Ledger(Mapping[str, EntryRecord]):
    """The records by entry name.

    :param namespace: part of every task id.
    :param after: called once with each commit, when it is known to have been done.
    """

    def __init__(self, store: Store, lease: Lease, namespace: str, after: Callable[[Commit], None]) -> None:
        self.store, self._lease, self.namespace, self._after = store, lease, namespace, after
        #: The entries of the schedule.
        self.definitions: Mapping[str, Definition] = {}
        self._records: dict[str, EntryRecord] = {}
        self._texts: dict[str, str] = {}
        self._unanswered: tuple[Commit, Sequence[Push]] | None = None
        self._restoring = False
        #: True while messages stand in the same database as the records.
        self.holds_messages = False
        #: Messages of runs scheduled up to this moment may stand in a queue, although no record says so.
        self.doubtful_until = 0
        #: The term of leadership that memory is of, 0 while it must not be trusted.
        self.epoch = 0
        #: True when the store had no state at the last take-over.
        self._is_cold = False
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

    def copy(self) -> dict[str, EntryRecord]:
        """Return the records as they are now."""
        return self._records.copy()

    def id_of(self, name: str, decided: Intent | Unreported) -> str:
        """Return the task id of what was decided of an entry."""
        return fire.id_of(self.namespace, name, decided)

    def threshold(self, name: str, scheduled: int, record: EntryRecord | None = None) -> int:
        """Return how late the run scheduled at this time may be, in milliseconds. Asks the schedule.

        :param record: the record of the entry; None: the one in force.
        """
        definition = self.definitions[name]
        times = definition.trigger.fire_times((record or self._records[name]).state)
        return threshold_millis(definition.policy, scheduled, times.after(scheduled))

    # -- taking over ---------------------------------------------------------------------------------------

    def take_over(self, acquired: Taken) -> bool:
        """Bring memory and store together at the beginning of a term.

        :returns: True when this beat goes on, as nobody else has led meanwhile: memory is right then.
        :raises StoreUnavailable, LeaseLost: it is to be done again.
        """
        goes_on = 0 < self.epoch >= acquired.previous_epoch and not self._lease.superseded
        if goes_on:
            # At once: interrupted here, we are still the ones who know best.
            self.epoch = acquired.epoch
            if acquired.cold:
                what, owner = "%s was lost; it is restored from memory", self.store.process
                say.warning("state_restored", what, self.store, owner=owner)
                self._give_up_messages()
                self.restore()
            elif self.holds_messages:
                self._settle()
            else:
                self.restore()
        else:
            # A take-over that was interrupted has said so already.
            if acquired.cold and not (self._is_cold and self.epoch == 0):
                _say_cold(self.store, self._lease)
            self._is_cold, self.epoch = acquired.cold, 0
            self.load()
        return goes_on

    def load(self) -> None:
        """Forget what is in memory and read the store. A text that is no record of ours is left out."""
        self._unanswered = None
        self._records, self._texts = {}, {}
        self.untried.clear()
        self._follow(self.store.load())

    def _follow(self, texts: dict[str, str]) -> None:
        """Take these texts for the records in force."""
        for name in self._texts.keys() - texts.keys():
            self._records.pop(name, None)
        for name, text in texts.items():
            if name in self._records and self._texts.get(name) == text:
                continue
            self._records.pop(name, None)
            try:
                record = records.loads(text)
                if record.name != name:
                    raise ValueError("it belongs to another entry")
            except ValueError as exc:
                if name in self.unusable:
                    # It was said when this beat tried to take over before.
                    continue
                what = f"the state of entry {quote_name(name)} cannot be used: {one_line(str(exc))}"
                say.error("state_unreadable", "%s; planned from now", what, entry=name)
            else:
                self._records[name] = record
        self._texts = texts
        self.unusable = texts.keys() - self._records.keys()

    def _settle(self) -> None:
        """Find out what became of a commit without an answer, and follow the store in everything else.

        Nobody can carry it out any more: the lease has another token by now.
        """
        texts = self.store.load()
        if self._unanswered is not None:
            commit, pushes = self._unanswered
            new = {name: records.dumps(record) for name, record in commit.records.items()}
            if new and all(texts.get(name) == text for name, text in new.items()):
                self._done(commit, new)
            elif pushes or texts != self._texts:
                # It was not done, and is planned again. Without messages it can simply be repeated.
                self._unanswered = None
        if texts != self._texts:
            what = "%s went back in time, and its queues with it; beat plans again from there"
            say.warning("state_went_back", what, self.store)
            self._give_up_messages()
            self._follow(texts)

    def _give_up_messages(self) -> None:
        """Note that messages may stand in queues of which no record tells."""
        if self._unanswered is not None and self._unanswered[1]:
            self._unanswered = None
        moments = [r.state.previous_fire_time or 0 for r in self._records.values()]
        self.doubtful_until = max([self.doubtful_until, *moments])

    def restore(self) -> None:
        """Write to the store what it lacks. Only for a beat that knows that nobody else has led."""
        self._restoring = True
        try:
            self._texts = self.store.load()
            self.unusable = self._texts.keys() - self._records.keys()
            self.repeat_unanswered()
            self.write({n: r for n, r in self._records.items() if records.dumps(r) != self._texts.get(n)})
        finally:
            self._restoring = False

    # -- writing -------------------------------------------------------------------------------------------

    def write(self, changed: Mapping[str, EntryRecord], events: Mapping[str, Sequence[Event]] = {}) -> None:
        """Commit any number of records, in pieces.

        :param events: by entry, what explains its change.
        """
        names = list(changed)
        for start in range(0, len(names), LARGEST_WRITE):
            piece = names[start : start + LARGEST_WRITE]
            explained = [event for name in piece for event in events.get(name, ())]
            self.commit(Commit({name: changed[name] for name in piece}, explained))

    def commit(self, commit: Commit, pushes: Sequence[Push] = ()) -> CommitResult:
        """Replace records in the store, then in memory.

        An intent that it takes out as sent stays if a worker has left its run to beat.

        :param pushes: the messages that go with it.
        :returns: with what was refused, or closed in a commit with messages: nothing was done then.
        :raises StoreUnavailable: whether it was done is unknown; :meth:`repeat_unanswered` finds out.
        :raises LeaseLost: it was not done; somebody else leads, or keeps writing.
        :raises Outdated: it was not done.
        """
        if not commit.records and not commit.events:
            return CommitResult()
        self._unanswered = commit, pushes
        texts = {name: records.dumps(record) for name, record in commit.records.items()}
        changes = [Change(name, self._texts.get(name, ""), text) for name, text in texts.items()]
        log, counts = encode(commit.events), dict[tuple[str, str], int]()
        for key, count in (item for event in commit.events for item in event.counts.items()):
            counts[key] = counts.get(key, 0) + count
        try:
            acks = self._acks(commit)
            result = self.store.commit(self._lease.token, changes, log, pushes, counts, acks)
        except StoreUnavailable:
            if pushes:
                self._lease.distrust()
            raise
        if result.refused or (result.closed and pushes):
            self._unanswered = None
        elif result.closed:
            return self.commit(self._without_acks(commit, result.closed))
        elif not result.conflicts:
            self._done(commit, texts)
        elif self._restoring:
            raise LeaseLost(f"the state of {len(result.conflicts)} entries was written by somebody else")
        elif self.holds_messages:
            self._lease.distrust()
            raise Outdated
        else:
            # The leader alone writes, and the lease was found to be ours, so nobody else changed the records.
            what = "%s went back in time; it is brought up to date from memory"
            say.warning("state_went_back", what, self.store)
            self.restore()
        return result

    def _acks(self, commit: Commit) -> dict[str, int]:
        """Return the runs whose intents a commit takes out as they were sent: when that was, by task id."""
        before = filter(None, map(self._records.get, commit.records))
        intents = {(record.name, intent.scheduled) for record in before for intent in record.intents}
        sent = (event for event in commit.events if isinstance(event, Sent)) if intents else ()
        return {event.id: event.fire_time for event in sent if (event.entry, event.scheduled) in intents}

    def _without_acks(self, commit: Commit, ids: Collection[str]) -> Commit:
        """Return a commit that leaves the intents of these runs where they are."""
        kept, events = dict(commit.records), list[Event]()
        for event in commit.events:
            if not isinstance(event, Sent) or event.id not in ids:
                events.append(event)
                continue
            stays = [i for i in self[event.entry].intents if self.id_of(event.entry, i) == event.id]
            intents = sorted((*stays, *kept[event.entry].intents), key=lambda intent: intent.scheduled)
            kept[event.entry] = replaced(kept[event.entry], intents=tuple(intents))
        return Commit(kept, events)

    def repeat_unanswered(self) -> bool:
        """Send the commit again that got no answer; True when there was one and it is done now."""
        if self._unanswered is None:
            return False
        commit, pushes = self._unanswered
        if pushes:
            self._lease.distrust()
            raise StoreUnavailable("the answer to a commit with messages is missing")
        self.commit(commit)
        return True

    def note(self, event: Event) -> None:
        """Write an event that changes no record. The work goes on when it cannot be written."""
        try:
            self.store.commit(self._lease.token, [], [event.encode()])
        except StoreUnavailable as exc:
            logger.debug("beat: a line of the log could not be written: %s", exc)
        self._after(Commit(events=[event]))

    def forget(self, names: Sequence[str]) -> None:
        """Delete the records of entries that are gone for good."""
        for start in range(0, len(names), LARGEST_WRITE):
            piece = names[start : start + LARGEST_WRITE]
            gone = [Change(name, self._texts[name], "") for name in piece]
            if not self.store.commit(self._lease.token, gone).conflicts:
                for name in piece:
                    del self._records[name], self._texts[name]

    def with_certainty(self, record: EntryRecord) -> EntryRecord:
        """Mark the intents of which this process knows that no attempt was made."""
        if self.untried.isdisjoint((record.name, i.scheduled) for i in record.intents):
            return record
        intents = tuple(
            replaced(i, unsent=True) if (record.name, i.scheduled) in self.untried else i
            for i in record.intents
        )
        return replaced(record, intents=intents)

    def _done(self, commit: Commit, texts: Mapping[str, str]) -> None:
        self._unanswered = None
        self._texts.update(texts)
        self.unusable -= texts.keys()
        for name, record in commit.records.items():
            if record.intents:
                before = self._records.get(name)
                known = {i.scheduled for i in before.intents} if before else set()
                self.untried |= {(name, i.scheduled) for i in record.intents if i.scheduled not in known}
                # An intent that came from a record of another name may have been sent.
                self.untried -= {(name, i.scheduled) for i in record.intents if i.entry}
            self._records[name] = record
        self._after(commit)


def _say_cold(store: Store, lease: Lease) -> None:
    """Say that there is no state, and loudly if there has been one."""
    # Another beat had the lease, or something was decided.
    if lease.superseded or store.last_log_id() != "0-0":
        level, event, what = logging.WARNING, "state_lost", "the saved schedule was lost"
    else:
        level, event = logging.INFO, "first_start"
        what = "first start, or Redis has lost its data: no saved schedule"
    text = "every schedule is planned from now; nothing runs at once, and nothing counts as missed"
    say.at(level, event, "%s (%s): %s", what, store, text, owner=store.process)
