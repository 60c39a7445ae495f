"""What is told of misfires and misses: to the log at once, to everybody else by the reporter.

A miss stays in its entry's record until the reporter is done with it, so that a crash leaves it to the next
leader.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from typing import Any, Protocol, cast

from celery_misfire import records
from celery_misfire.events import Misfired, Missed
from celery_misfire.fire import task_id
from celery_misfire.leadership.ledger import Commit, Ledger
from celery_misfire.misfire import Misfire, MissedFire, Outcome, from_millis
from celery_misfire.records import Definition, EntryRecord, Unreported
from celery_misfire.sending.missed_runs import Report
from celery_misfire.texts import describe_error, one_line, quote

__all__ = ["Reporter", "Reports"]

logger = logging.getLogger(__name__)

#: So many occurrences of one miss are handed over at a time, where each has a report of its own.
PORTION = 100


class Reporter(Protocol):
    def submit(self, report: Report) -> None:
        """Take over the reporting of a miss; never waits."""

    def finished(self) -> list[Report]:
        """Return the reports done since the last call."""

    def announce(self, misfire: Misfired) -> None:
        """Send ``misfire_detected``; never waits."""


class Reports:
    """What is being reported, for all entries.

    :param definitions: the entries of the schedule; shared with the leader.
    :param each: report every missed occurrence by itself, not one record per outage and entry.
    """

    def __init__(
        self,
        ledger: Ledger,
        definitions: Mapping[str, Definition],
        reporter: Reporter,
        *,
        namespace: str,
        each: bool,
    ) -> None:
        self._ledger, self._definitions, self._reporter = ledger, definitions, reporter
        self._namespace, self._each = namespace, each
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
        record, definition = self._ledger[name], self._definitions.get(name)
        on_missed = definition.policy.on_missed if definition and definition.policy else None
        for lost in record.missed:
            if (name, lost) not in self._left:
                spans, rest = self._portion(record, lost)
                self._left[name, lost] = len(spans), rest
                for span in spans:
                    fire = self.fire(record, lost, *span)
                    self._reporter.submit(Report(missed=fire, on_missed=on_missed, key=(name, lost)))

    def _portion(
        self, record: EntryRecord, lost: Unreported
    ) -> tuple[list[tuple[int, int, int]], tuple[Unreported, ...]]:
        """Return first, last and count of each record to be made now, and what is left for later."""
        together = [(lost.first, lost.last, lost.count)]
        # After an edit the old fire times are not known any more.
        known = record.name in self._definitions and lost.generation == record.generation
        if not self._each or lost.count == 1 or not known:
            return together, ()
        trigger = self._definitions[record.name].trigger
        try:
            times = records.occurrences(trigger, record.state, lost.first, lost.last)
            found = list(islice(times, PORTION + 1))
        except Exception as exc:
            # A schedule of the app's own may raise anything. No occurrence goes without a record for that.
            logger.warning(
                "beat: the missed runs of %r are reported together: %s", record.name, describe_error(exc)
            )
            return together, ()
        rest = (replace(lost, first=following, count=lost.count - PORTION) for following in found[PORTION:])
        return [(moment, moment, 1) for moment in found[:PORTION]], tuple(rest)

    def fire(self, record: EntryRecord, lost: Unreported, first: int, last: int, count: int) -> MissedFire:
        """Return the record of a miss, or of a part of it."""
        return MissedFire(
            entry=record.name,
            task=record.task,
            task_id=task_id(self._namespace, record.name, lost.generation, first),
            first=from_millis(first),
            last=from_millis(last),
            count=count,
            reason=lost.reason,
            instruction=lost.instruction,
            detected_at=from_millis(lost.detected_at),
        )

    def tell_misfire(
        self,
        commit: Commit,
        record: EntryRecord,
        known: int,
        misfire: Misfire,
        now: int,
        following: int | None,
    ) -> None:
        """Add the news of a misfire to a commit: it is told when the commit is done.

        :param known: how many of the record's misses are of something else.
        :param following: the next fire time, None when there is none.
        """
        commit.log.append(_misfire_line(record.name, misfire, now))
        lost = record.missed[known:]
        commit.then.append(partial(self._tell_now, record.name, misfire, lost, now, following))

    def tell_missed(self, commit: Commit, record: EntryRecord, known: int) -> None:
        """Add a line for what is missed without a misfire: what ended, was refused, or is gone.

        :param known: how many of the record's misses have been told already.
        """
        for lost in record.missed[known:]:
            fire = self.fire(record, lost, lost.first, lost.last, lost.count)
            commit.then.append(partial(logger.warning, "beat: %s", Missed.of(fire).sentence()))

    def _tell_now(
        self, name: str, misfire: Misfire, lost: Sequence[Unreported], now: int, following: int | None
    ) -> None:
        task = self._definitions[name].task
        instruction = str(misfire.instruction)
        if misfire.resolved is not misfire.instruction:
            instruction += f" -> {misfire.resolved}"
        outcomes = [f"{n} {o}" for o, n in misfire.outcomes.items() if o is not Outcome.MISSED]
        for reason, alike in groupby(lost, lambda miss: miss.reason):
            first, *more = alike
            count = first.count + sum(miss.count for miss in more)
            id_ = task_id(self._namespace, name, first.generation, first.first)
            outcomes.append(f"{count} missed ({reason}, result {id_})")
        logger.warning(
            "beat: misfire of %s (%s): scheduled %s, now %s, late by %.3f s (%s), %s: %s; next %s",
            quote(name),
            one_line(task),
            from_millis(misfire.first).isoformat(),
            from_millis(now).isoformat(),
            misfire.late_by / 1000,
            misfire.reason,
            instruction,
            ", ".join(outcomes),
            "never" if following is None else from_millis(following).isoformat(),
        )
        self._reporter.announce(
            Misfired(
                entry=name,
                task=task,
                first=misfire.first,
                last=misfire.last,
                count=misfire.count,
                now=now,
                late_by=misfire.late_by,
                reason=misfire.reason,
                instruction=misfire.instruction,
                resolved=misfire.resolved,
                outcomes={str(outcome): count for outcome, count in misfire.outcomes.items()},
                next=following,
            )
        )

    def acknowledge(self) -> None:
        """Strike from the records what the reporter has finished."""
        commit = Commit()
        for report in self._reporter.finished():
            name, lost = cast("tuple[str, Unreported]", report.key)
            if (name, lost) not in self._left:
                continue
            commit.log.append(_missed_line(report.missed))
            count, rest = self._left.pop((name, lost))
            if count > 1:
                self._left[name, lost] = count - 1, rest
            else:
                record = commit.new.get(name, self._ledger[name])
                commit.new[name] = replace(record, missed=tuple(m for m in record.missed if m != lost) + rest)
                commit.then.append(partial(self.hand_over, name))
        if commit.new or commit.log:
            self._ledger.commit(commit)


def _missed_line(missed: MissedFire) -> dict[str, Any]:
    return {
        "event": "missed",
        "entry": missed.entry,
        "first": round(missed.first.timestamp() * 1000),
        "last": round(missed.last.timestamp() * 1000),
        "count": missed.count,
        "reason": missed.reason,
        "instruction": missed.instruction,
        "id": missed.task_id,
    }


def _misfire_line(name: str, misfire: Misfire, now: int) -> dict[str, Any]:
    return {
        "event": "misfire",
        "entry": name,
        "first": misfire.first,
        "last": misfire.last,
        "count": misfire.count,
        "now": now,
        "reason": misfire.reason,
        "instruction": misfire.instruction,
        "resolved": misfire.resolved,
        "outcomes": misfire.outcomes,
    }
