"""Carrying runs out in one transaction: records, log and messages are written by one script, or none of them.

For a broker that is the Redis of the state. No run becomes an intent, so nothing is in doubt but the answer
of the script, and the ledger settles that under a new token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from celery_misfire.events import Sent
from celery_misfire.exceptions import StoreRefused, StoreUnavailable
from celery_misfire.frozen import replaced
from celery_misfire.leadership.ledger import Commit, Ledger
from celery_misfire.log_lines import Log
from celery_misfire.records import EntryRecord
from celery_misfire.sending.dispatch import (
    Attempt,
    Fate,
    Oversight,
    Publisher,
    Run,
    TwoStep,
    in_order,
    message_of,
)
from celery_misfire.sending.portions import MOST_CHARACTERS, Portions
from celery_misfire.store.port import Push, Refusal
from celery_misfire.texts import quote_name
from celery_misfire.trouble import Reminders

say = Log(__name__, "beat")

#: A queue that refuses messages is mentioned so often, in seconds.
REMIND_EVERY = 3600.0


@dataclass(frozen=True)
class _Built:
    """A run whose message has been built."""

    run: Run
    event: Sent
    pushes: Sequence[Push]
    length: int


class Transactional:
    """One script for the records, the log and the messages.

    :param two_step: carries out what cannot be pushed by the script.
    """

    def __init__(self, ledger: Ledger, publisher: Publisher, two_step: TwoStep, oversight: Oversight) -> None:
        self._ledger, self._publisher, self._two_step = ledger, publisher, two_step
        self._oversight = oversight
        #: Tasks that were found to leave while their messages are built.
        self._early_tasks: set[str] = set()
        self._portions = Portions()
        #: Entries whose messages fail in a script; what is found out stays so.
        self._unfit: set[str] = set()
        self._reminders = Reminders(REMIND_EVERY)
        #: Messages in the longest queue that the last runs went to.
        self.queue_length = 0

    def carry_out(self, commit: Commit, runs: Iterable[Run]) -> None:
        ordered, in_two_steps = list[Run](), list[Run]()
        for run in in_order(runs):
            (in_two_steps if self._goes_in_two_steps(run) else ordered).append(run)
        built, failed = self._build(commit, ordered)
        records = self._without_sent(commit, built, failed)
        later = {run.entry for run in in_two_steps}
        lengths = dict[str, list[int]]()
        for one in built:
            lengths.setdefault(one.run.entry, []).append(one.length)
        for names in self._portions.cut([name for name in records if name not in later], lengths):
            later |= self._commit(commit, records, names, built)
        by_entry = [run for run in ordered if run.entry in later]
        if later:
            self._two_step.carry_out(_part_of(commit, commit.records, later), [*in_two_steps, *by_entry])

    def _goes_in_two_steps(self, run: Run) -> bool:
        """True for a run that a script cannot send.

        A task may be sent, or run, while its message is built: its record has to come first.
        """
        task = self._ledger.definitions[run.entry].task
        return task in self._early_tasks or self._publisher.sends_early(task) or run.entry in self._unfit

    # -- building ------------------------------------------------------------------------------------------

    def _build(self, commit: Commit, runs: Iterable[Run]) -> tuple[list[_Built], set[tuple[str, int]]]:
        """Return the runs whose messages could be built, and entry and time of those whose could not."""
        built, failed, lengths = list[_Built](), set[tuple[str, int]](), dict[str, int]()
        for run in runs:
            if not self._oversight.may_send():
                break
            if lengths.get(run.entry, 0) > MOST_CHARACTERS:
                # The script of this entry is long enough; the rest is sent right after it.
                continue
            record = commit.records.get(run.entry) or self._ledger[run.entry]
            try:
                now = self._oversight.wall()
                message = message_of(self._ledger, run, record, now, once=self._is_once(run))
            except Exception as exc:
                # A schedule of the app's own fails: this says nothing about the message.
                attempt, pushes = Attempt(Fate.NOT_TRIED, exc), list[Push]()
            else:
                attempt, pushes = self._publisher.build(message)
            if attempt.fate is not Fate.SENT:
                failed.add((run.entry, run.intent.scheduled))
                self._oversight.note(run, attempt)
                continue
            if not pushes:
                self._early_tasks.add(message.definition.task)
            length = sum(len(push.value) for push in pushes)
            lengths[run.entry] = lengths.get(run.entry, 0) + length
            built.append(_Built(run, message.event, pushes, length))
        return built, failed

    def _is_once(self, run: Run) -> bool:
        """True for a run that has never been an intent, and of which no message can stand in the queue."""
        known = self._ledger.get(run.entry)
        intents = known.intents if known else ()
        scheduled = run.intent.scheduled
        return scheduled > self._ledger.doubtful_until and all(i.scheduled != scheduled for i in intents)

    def _without_sent(
        self, commit: Commit, built: Iterable[_Built], failed: Collection[tuple[str, int]]
    ) -> dict[str, EntryRecord]:
        """Return the records without the intents of the runs that are pushed with them."""
        records, sent = dict(commit.records), dict[str, set[int]]()
        for one in built:
            sent.setdefault(one.run.entry, set()).add(one.run.intent.scheduled)
        for name in sent.keys() | {name for name, _ in failed}:
            record, gone = records.get(name) or self._ledger[name], sent.get(name, ())
            left = [i for i in record.intents if i.scheduled not in gone]
            if left:
                # An intent that the record had before may have been sent then.
                known = {i.scheduled for i in self._ledger[name].intents} if name in self._ledger else ()
                unsent = {n for n in failed if n[0] == name and n[1] not in known}
                left = [replaced(i, unsent=True) if (name, i.scheduled) in unsent else i for i in left]
            records[name] = replaced(record, intents=tuple(left))
        return records

    # -- the script ----------------------------------------------------------------------------------------

    def _commit(
        self,
        commit: Commit,
        records: dict[str, EntryRecord],
        names: Collection[str],
        built: Sequence[_Built],
    ) -> set[str]:
        """Commit the records of these entries with their messages; return those that must go in two steps."""
        refused: set[str] = set()
        while names := {name: None for name in names if name not in refused}:
            messages = [one for one in built if one.run.entry in names]
            part = _part_of(commit, records, names)
            part.events += [one.event for one in messages]
            pushes = [push for one in messages for push in one.pushes]
            try:
                result = self._ledger.commit(part, pushes)
            except StoreUnavailable as exc:
                if pushes and not isinstance(exc, StoreRefused):
                    self._script_failed(_runs_of(messages), exc)
                raise
            if result.queue_lengths:
                self.queue_length = max(result.queue_lengths.values())
            # A worker has left these runs to beat. The script may not take their intents out.
            refused |= {one.run.entry for one in messages if one.event.id in result.closed}
            if not (result.refused or result.closed):
                self._portions.succeeded(_runs_of(messages))
                for one in messages:
                    self._oversight.note(one.run, Attempt(Fate.SENT))
                for push, error in result.failed:
                    self._remind(f"{push.kind.upper()} {quote_name(push.key)} failed in a script ({error})")
                break
            for refusal in result.refused:
                self._say(refusal)
                refused |= set(refusal.entries)
        return refused

    def _script_failed(self, runs: Collection[tuple[str, int]], error: StoreUnavailable) -> None:
        """Note a script that failed; the lease that is taken next shows whether Redis answers otherwise."""
        name = self._portions.failed(runs)
        if name is not None:
            self._unfit.add(name)
            what = f"a script with the message of entry {quote_name(name)} alone fails again and again"
            say.warning("dispatch", "%s (%s); its runs are sent in two steps", what, error, entry=name)

    def _say(self, refusal: Refusal) -> None:
        queue, error = quote_name(refusal.queue), refusal.error
        self._remind(
            f"queue {queue} takes no message from a script ({error}); its runs are sent in two steps"
        )

    def _remind(self, text: str) -> None:
        if self._reminders.is_due(text, self._oversight.steady()):
            say.warning("problem", "%s", text)


def _runs_of(messages: Iterable[_Built]) -> set[tuple[str, int]]:
    return {(one.run.entry, one.run.intent.scheduled) for one in messages}


def _part_of(commit: Commit, records: dict[str, EntryRecord], names: Collection[str]) -> Commit:
    """Return the part of a commit that concerns these entries."""
    events = [event for event in commit.events if getattr(event, "entry", None) in names]
    return Commit({name: records[name] for name in names if name in records}, events)
