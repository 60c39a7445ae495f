"""What is decided next: entries that are due, runs to be sent again, runs to be caught up.

Each answer is a commit and the runs whose intents are in it; the leader has them carried out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice

from celery_misfire import records
from celery_misfire.episodes import Episodes
from celery_misfire.events import Event
from celery_misfire.exceptions import MisfireError
from celery_misfire.leadership.adoption import Adoption
from celery_misfire.leadership.failing import FailingEntries
from celery_misfire.leadership.intents import Intents
from celery_misfire.leadership.ledger import Commit, Ledger
from celery_misfire.leadership.outages import Outages
from celery_misfire.leadership.queues import Queues
from celery_misfire.misfire import Outcome, Reason
from celery_misfire.records import EntryRecord
from celery_misfire.sending.dispatch import Attempt, Fate, Run

#: The most runs that are claimed and sent at a time; so many are sent again after a crash, at most.
LARGEST_BATCH = 100
#: The most of them that one entry may have when it catches up, so that all entries get their turn.
LARGEST_SHARE = 20
#: The most broken entries that are tried again in one step: each may take its time to fail again.
MOST_BROKEN_TRIES = LARGEST_BATCH // 10
#: An entry whose runs cannot be sent is looked at again so soon, in milliseconds.
LOOK_AGAIN = 1_000

Work = tuple[Commit, list[Run]]


class Decisions:
    """Makes the decisions of one beat."""

    def __init__(
        self,
        ledger: Ledger,
        adoption: Adoption,
        intents: Intents,
        failing: FailingEntries,
        outages: Outages,
        queues: Queues,
    ) -> None:
        self._ledger, self._adoption, self._intents = ledger, adoption, intents
        self._failing, self._outages, self._queues = failing, outages, queues

    def due(self, now: int) -> list[str]:
        """Take the entries to be planned now off the timeline, oldest first, one batch at most."""
        due = dict.fromkeys(islice(self._failing.broken_to_try(), MOST_BROKEN_TRIES))
        full = []
        while len(due) < LARGEST_BATCH and (name := self._queues.timeline.take(now)) is not None:
            if self._failing.is_broken(name):
                continue
            if self._is_full(name):
                full.append(name)
            else:
                due[name] = None
        for name in full:
            self._queues.timeline.put(name, now + LOOK_AGAIN)
        return list(due)

    def _is_full(self, name: str) -> bool:
        """True for an entry whose runs cannot be sent, and of which enough are waiting for that.

        What is due meanwhile is decided when it is judged by its instruction, not to be sent as well.
        """
        return len(self._ledger[name].intents) >= LARGEST_BATCH

    def may_catch_up(self, name: str) -> bool:
        """Return True when more late runs of this entry may be claimed."""
        return not self._failing.waits(name) and not self._is_full(name)

    def plan_due(self, names: Sequence[str], now: int, *, hold: bool = False) -> Work:
        """Plan entries that are due, and claim their runs in time.

        :param hold: judge nothing that is late, the broker may be away.
        """
        commit, runs = Commit(), list[Run]()
        for others, name in zip(reversed(range(len(names))), names, strict=True):
            try:
                # Each entry that follows keeps room for one run.
                if hold and self._has_misfired(name, now):
                    self._queues.timeline.put(name, now + LOOK_AGAIN)
                    continue
                runs += self._plan(name, now, LARGEST_BATCH - len(runs) - others, commit, hold=hold)
            except MisfireError:
                for each in names:
                    self._queues.timeline.put(each, now)
                raise
            except Exception as exc:
                self._failing.broke(name, exc)
        return commit, runs

    def _plan(self, name: str, now: int, room: int, commit: Commit, *, hold: bool) -> list[Run]:
        """Add what happens to this entry to the commit; return the runs that are to be sent."""
        unfinished, record = self._adoption.unfinished, self._ledger.get(name)
        if name in unfinished:
            record = self._adoption.adopted(name, now, from_now=unfinished[name]) or record
        assert record is not None
        decided, events = self._judge(record, now, is_new=name in unfinished, hold=hold)
        in_time = sum(r.count for r in decided.runs if r.outcome is Outcome.FIRED and r not in record.runs)
        if in_time:
            # Claimed at once; what is late waits until nothing is due.
            trigger = self._ledger.definitions[name].trigger
            decided = records.claim(decided, trigger, now, min(in_time, room))
        unfinished.pop(name, None)
        self._failing.mended(name)
        commit.records[name] = decided
        commit.events += events
        return _claimed(record, decided)

    def _reason(
        self, record: EntryRecord, now: int, scheduled: int, begin: int, *, is_broken: bool
    ) -> Reason:
        """Return why an occurrence is late, if it is."""
        reason = self._outages.reason_for(record, scheduled, begin, is_broken=is_broken)
        restart = self._outages.restart
        if restart is None or reason not in (Reason.SCHEDULER_DOWN, Reason.FAILOVER):
            return reason
        times = self._ledger.definitions[record.name].trigger.fire_times(record.state)
        return Reason.RESTARTED if restart.explains(record, times, scheduled, now) else reason

    def _judge(
        self, record: EntryRecord, now: int, *, is_new: bool = False, hold: bool = False
    ) -> tuple[EntryRecord, list[Event]]:
        """Judge all that is overdue of an entry.

        :param is_new: its record is in line with the schedule only now.
        """
        definition = self._ledger.definitions[record.name]
        is_broken = is_new or self._failing.is_broken(record.name)
        reason = partial(self._reason, record, now, is_broken=is_broken)
        episodes = Episodes(definition.trigger, definition.policy, now, reason)
        was_refused = self._failing.was_refused(record.name)
        # Refused runs are given up together, when their turn comes.
        only_new = hold or (was_refused and self._failing.waits(record.name))
        return self._intents.judge(record, episodes, was_refused=was_refused, only_new=only_new)

    def _has_misfired(self, name: str, now: int) -> bool:
        record = self._ledger.get(name)
        return record is not None and self._intents.any_late(record, [record.state.next_fire_time], now)

    def may_send_again(self, name: str, now: int, *, hold: bool) -> bool:
        """Return True when the intents of this entry have their turn.

        :param hold: as for :meth:`plan_due`.
        """
        return not self._failing.waits(name) and not (
            hold and self._intents.would_be_judged(self._ledger[name], now)
        )

    def judge_again(self, names: Sequence[str], now: int, *, hold: bool = False) -> Work:
        """Send again what was claimed and not sent, after a crash, a failure or a refusal, unless it is late.

        The entries for which a batch has no room wait for the next one.
        """
        commit, runs = Commit(), list[Run]()
        for name in names:
            if len(runs) >= LARGEST_BATCH:
                break
            record, events = self._ledger[name], list[Event]()
            try:
                if not hold and self._intents.is_late(record, now):
                    record, events = self._judge(record, now)
            except MisfireError:
                raise
            except Exception as exc:
                self._failing.refused(name, Attempt(Fate.NOT_TRIED, exc))
                continue
            commit.records[name] = record
            commit.events += events
            runs += [Run(name, intent) for intent in record.intents]
        return commit, runs

    def catch_up(self, now: int, room: int) -> tuple[Work, list[str]]:
        """Claim late runs; each entry has its share, then waits for its next turn.

        :param room: the most runs.
        :returns: with the entries that have to be judged again before their runs are sent.
        """
        commit, runs = Commit(), list[Run]()
        # With one run each, this many entries fit.
        for name in list(islice(filter(self.may_catch_up, self._queues.catch_up), room)):
            if len(runs) >= room:
                break
            record, trigger = self._ledger[name], self._ledger.definitions[name].trigger
            # At the end of the line, if there is more of it.
            del self._queues.catch_up[name]
            try:
                share = min(LARGEST_SHARE, room - len(runs))
                commit.records[name] = records.claim(record, trigger, now, share)
            except Exception as exc:
                self._failing.refused(name, Attempt(Fate.NOT_TRIED, exc))
                self._queues.catch_up[name] = None
                continue
            runs += _claimed(record, commit.records[name])
        # A run that was in time when it was decided may be too late by now.
        again = {n for n, r in commit.records.items() if any(i.outcome is Outcome.FIRED for i in r.intents)}
        return (commit, [run for run in runs if run.entry not in again]), sorted(again)


def _claimed(before: EntryRecord, after: EntryRecord) -> list[Run]:
    """Return the runs that became intents between the two."""
    known = {intent.scheduled for intent in before.intents}
    return [Run(after.name, intent) for intent in after.intents if intent.scheduled not in known]
