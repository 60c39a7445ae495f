"""Misses that are decided and not reported yet: handed to the reporter, and struck when it is done.

A miss stays in its entry's record until the reporter is done with it, so that a crash leaves it to the next
leader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, islice
from typing import Protocol, cast

from celery_misfire import records
from celery_misfire.events import GaveUp, Misfired, Missed
from celery_misfire.leadership.ledger import Commit, Ledger
from celery_misfire.log_lines import Log
from celery_misfire.misfire import Misfire
from celery_misfire.records import EntryRecord, Unreported
from celery_misfire.sending.missed_record import missed_of
from celery_misfire.sending.missed_runs import Report
from celery_misfire.texts import describe_error

say = Log(__name__, "beat")

#: The most occurrences of one miss that are handed over at a time, where each has a report of its own.
LARGEST_PORTION = 100


class Reporter(Protocol):
    """Makes what a missed run leaves behind."""

    def submit(self, report: Report) -> None:
        """Take over the reporting of a miss; never waits."""

    def finished(self) -> list[Report]:
        """Return the reports done since the last call."""


class PendingMisses:
    """What is being reported, for all entries.

    :param each: report every missed occurrence by itself, not one record per outage and entry.
    """

    def __init__(self, ledger: Ledger, reporter: Reporter, *, each: bool) -> None:
        self._ledger, self._reporter, self._each = ledger, reporter, each
        #: How many reports of each miss are still to be made, and what of it is to be handed over after them.
        self._left: dict[tuple[str, Unreported], tuple[int, tuple[Unreported, ...]]] = {}

    @property
    def waiting(self) -> bool:
        """True while the reporter has something that is not struck from the records."""
        return bool(self._left)

    def forget(self) -> None:
        """Forget what was handed over: the records have been read anew."""
        self._left.clear()

    def hand_over(self, name: str) -> None:
        """Hand the misses of an entry to the reporter, unless it has them already."""
        record, definition = self._ledger[name], self._ledger.definitions.get(name)
        on_missed = definition.policy.on_missed if definition and definition.policy else None
        ignored = definition.ignore_result if definition else None
        for lost in record.missed:
            if (name, lost) in self._left:
                continue
            spans, rest = self._portion(record, lost)
            self._left[name, lost] = len(spans), rest
            for first, last, count in spans:
                part = replace(lost, first=first, last=last, count=count)
                missed = missed_of(self._ledger.namespace, record, part)
                self._reporter.submit(Report(missed, on_missed, (name, lost), ignore_result=ignored))

    def _portion(
        self, record: EntryRecord, lost: Unreported
    ) -> tuple[list[tuple[int, int, int]], tuple[Unreported, ...]]:
        """Return first, last and count of each record to be made now, and what is left for later."""
        together = [(lost.first, lost.last, lost.count)]
        definition = self._ledger.definitions.get(record.name)
        # After an edit the old fire times are not known any more.
        known = definition is not None and lost.generation == record.generation
        if not self._each or lost.count == 1 or definition is None or not known:
            return together, ()
        try:
            times = records.occurrences(definition.trigger, record.state, lost.first, lost.last)
            found = list(islice(times, LARGEST_PORTION + 1))
        except Exception as exc:
            # A schedule of the app's own may raise anything. No occurrence goes without a record for that.
            what = f"the missed runs of {record.name!r} are reported together"
            say.warning("problem", "%s: %s", what, describe_error(exc), entry=record.name)
            return together, ()
        following = found[LARGEST_PORTION:]
        rest = tuple(replace(lost, first=f, count=lost.count - LARGEST_PORTION) for f in following)
        return [(moment, moment, 1) for moment in found[:LARGEST_PORTION]], rest

    def acknowledge(self) -> None:
        """Strike from the records what the reporter has finished."""
        commit = Commit()
        for report in self._reporter.finished() if self._left else ():
            name, lost = cast("tuple[str, Unreported]", report.key)
            if (name, lost) not in self._left:
                continue
            commit.events.append(Missed.of(report.missed))
            count, rest = self._left.pop((name, lost))
            if count > 1:
                self._left[name, lost] = count - 1, rest
            else:
                record = commit.records.get(name, self._ledger[name])
                left = tuple(miss for miss in record.missed if miss != lost)
                commit.records[name] = replace(record, missed=left + rest)
        if commit.records or commit.events:
            self._ledger.commit(commit)


def explain(ledger: Ledger, record: EntryRecord, known: int, misfire: Misfire, now: int) -> Misfired:
    """Return the event of a misfire.

    :param record: the record after it.
    :param known: how many of the record's misses are of something else.
    """
    lost = []
    for reason, alike in groupby(record.missed[known:], lambda miss: miss.reason):
        first, *more = alike
        count = first.count + sum(miss.count for miss in more)
        lost.append({"reason": reason, "count": count, "id": ledger.id_of(record.name, first)})
    return Misfired(
        entry=record.name,
        task=record.task,
        first=misfire.first,
        last=misfire.last,
        count=misfire.count,
        now=now,
        late_by=misfire.late_by,
        reason=misfire.reason,
        instruction=misfire.instruction,
        resolved=misfire.resolved,
        outcomes={str(outcome): n for outcome, n in misfire.outcomes.items()},
        next=record.state.next_fire_time,
        lost=tuple(lost),
    )


def give_up(ledger: Ledger, record: EntryRecord, known: int) -> Sequence[GaveUp]:
    """Return the events of what is missed without a misfire: what ended, was refused, or is gone.

    :param known: how many of the record's misses are of something else.
    """
    return [GaveUp.of(missed_of(ledger.namespace, record, lost)) for lost in record.missed[known:]]
