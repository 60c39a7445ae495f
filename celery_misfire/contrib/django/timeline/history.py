"""What became of an entry's occurrences, put together from the log and from the entry's record. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from celery_misfire import records
from celery_misfire.contrib.django.models import MissReason
from celery_misfire.contrib.django.timeline.timeline import Occurrence, Outage
from celery_misfire.misfire import AUTO_THRESHOLD, FireTimes, Outcome, Reason, Trigger, TriggerState
from celery_misfire.records import EntryRecord

__all__ = ["History", "expand", "expected", "history", "is_current", "moment_of", "why"]

#: A stretch of more occurrences than this stays one.
EXPANDED = 500

#: Reasons that tell of a time in which beat could not work.
OUTAGES: Mapping[str, str | Promise] = {
    Reason.SCHEDULER_DOWN: gettext_lazy("Beat was down"),
    Reason.FAILOVER: gettext_lazy("Failover"),
    Reason.STORE_UNAVAILABLE: gettext_lazy("Redis was away"),
    Reason.BROKER_UNAVAILABLE: gettext_lazy("Broker was away"),
}


@dataclass(frozen=True)
class History:
    """What is known of one entry.

    :param known_from: the log does not reach further back than this; None: it covers all that was asked for.
    :param overdue: how many occurrences should have been decided by now, and are not.
    """

    occurrences: tuple[Occurrence, ...]
    outages: tuple[Outage, ...]
    known_from: int | None = None
    overdue: int = 0


def is_current(record: EntryRecord, trigger: Trigger) -> bool:
    """Return False for a record of another schedule: it was edited, and beat has not seen that yet."""
    return record.removed_at is None and record.fingerprint == trigger.fingerprint


def history(
    lines: Iterable[Mapping[str, Any]],
    entry: str,
    start: int,
    now: int,
    *,
    trigger: Trigger | None = None,
    record: EntryRecord | None = None,
    known_from: int | None = None,
) -> History:
    """Return what became of an entry's occurrences from `start` to `now`.

    :param lines: the log of all entries, oldest first; those of others tell when beat was there.
    :param trigger: the schedule as it is now, to name each occurrence of a stretch; None: stretches stay.
    :param record: what the store keeps of the entry, for what is decided and not in the log yet.
    """
    lines = list(lines)
    known = None if record is None or trigger is None else _Known(trigger, record)
    found = _Found(known)
    for line in lines:
        if line.get("entry") == entry:
            found.add(line)
    if record is not None:
        found.add_pending(record)
    # A log that reaches further back has nothing to tell between the start and its next line.
    outages = list(_outages(lines, start if known_from is None else None))
    overdue = 0
    if known is not None and record is not None:
        due = record.state.next_fire_time
        if due is not None and due < now and known.is_current:
            times = known.times
            if now - due >= AUTO_THRESHOLD:
                overdue = times.count(due, now)
                last_sign = max([t for t in map(_sign, lines) if t is not None], default=start)
                outages.append(Outage(min(last_sign, due), now, _("No sign of life"), sure=False))
    occurrences = [o for o in found.occurrences() if (o.fire_time or o.end) >= start and o.scheduled <= now]
    return History(tuple(occurrences), tuple(outages), known_from, overdue)


def why(reason: str) -> str:
    """Return a reason in words; one that a newer version has written, as it is."""
    return str(dict(MissReason.choices).get(reason, reason))


def expected(trigger: Trigger, state: TriggerState, until: int) -> list[Occurrence]:
    """Return the fire times from the next one to `until`."""
    first = state.next_fire_time
    if first is None or first > until:
        return []
    times = trigger.fire_times(state)
    last = times.before(until + 1)
    if last is None or last <= first:
        return [Occurrence(first, None)]
    stretch = Occurrence(first, None, last=last, count=times.count(first, last))
    return list(expand(trigger, state, stretch))


def expand(
    trigger: Trigger, state: TriggerState, stretch: Occurrence, limit: int = EXPANDED
) -> Iterator[Occurrence]:
    """Return each occurrence of a stretch by itself, or the stretch, if there are more than `limit`."""
    if not 1 < stretch.count <= limit:
        yield stretch
        return
    for moment in records.occurrences(trigger, state, stretch.scheduled, stretch.end):
        yield replace(stretch, scheduled=moment, last=None, count=1)


@dataclass(frozen=True)
class _Known:
    """A schedule, and the record that beat keeps of it."""

    trigger: Trigger
    record: EntryRecord

    @property
    def is_current(self) -> bool:
        return is_current(self.record, self.trigger)

    @property
    def times(self) -> FireTimes:
        return self.trigger.fire_times(self.record.state)

    def split(self, stretch: Occurrence) -> Iterable[Occurrence]:
        # The fire times of an earlier schedule are not known any more.
        if not self.is_current or stretch.scheduled < self.record.generation:
            return (stretch,)
        return expand(self.trigger, self.record.state, stretch)


class _Found:
    """The occurrences of one entry, as the lines of the log tell of them."""

    def __init__(self, known: _Known | None) -> None:
        self._known = known
        #: By task id: a line may come twice.
        self._runs: dict[str, tuple[Occurrence, int]] = {}
        self._missed: dict[str, Occurrence] = {}
        self._last_of_misfire: dict[int, int] = {}
        self._misfires: list[tuple[int, int]] = []
        self._pending: list[Occurrence] = []
        #: When the last late run started in a worker.
        self._late: int | None = None

    def add(self, line: Mapping[str, Any]) -> None:
        id_ = str(line.get("id"))
        match line.get("event"):
            case "sent" if id_ not in self._runs:
                run = Occurrence(line["scheduled"], Outcome(line["outcome"]), line["fire_time"])
                self._runs[id_] = run, line.get("merged", 0)
            case "misfire":
                self._misfires.append((line["first"], line["last"]))
            case "missed":
                # A worker may refuse what was sent.
                self._runs.pop(id_, None)
                self._missed[id_] = Occurrence(
                    line["first"], Outcome.MISSED, None, line["last"], line["count"], why(line["reason"])
                )
            case "late" if id_ in self._runs:
                self._late = self._runs[id_][0].fire_time
            case "merged" if id_ in self._runs:
                run, merged = self._runs[id_]
                stands = run.fire_time if self._late is None else self._late
                self._runs[id_] = replace(run, outcome=Outcome.MERGED, fire_time=stands), merged

    def add_pending(self, record: EntryRecord) -> None:
        """What is decided, and is not in the log yet."""
        for runs in record.runs:
            self._pending.append(Occurrence(runs.first, None, last=runs.last, count=runs.count))
        sent = {run.scheduled for run, _merged in self._runs.values()}
        for intent in record.intents:
            if intent.scheduled not in sent:
                self._pending.append(Occurrence(intent.scheduled, None))
        told = {o.scheduled for o in self._missed.values()}
        for lost in record.missed:
            if lost.first not in told:
                self._pending.append(
                    Occurrence(lost.first, Outcome.MISSED, None, lost.last, lost.count, why(lost.reason))
                )

    def occurrences(self) -> list[Occurrence]:
        found: list[Occurrence] = []
        for run, merged in self._runs.values():
            found.append(run)
            if merged:
                found += self._merged(run, merged)
        for stretch in (*self._missed.values(), *self._pending):
            found += (stretch,) if self._known is None else self._known.split(stretch)
        return sorted(found, key=lambda o: (o.scheduled, o.end))

    def _merged(self, run: Occurrence, count: int) -> list[Occurrence]:
        """Return those that a run stands for: they follow it, up to the last that had misfired with it."""
        last = next((last for first, last in self._misfires if first <= run.scheduled <= last), run.scheduled)
        with_run = Occurrence(run.scheduled, Outcome.MERGED, run.fire_time, last, count + 1)
        parts = [with_run] if self._known is None else list(self._known.split(with_run))
        if len(parts) == 1:
            # The first of them is the run itself.
            return [replace(with_run, count=count)]
        return parts[1:]


def _outages(lines: Sequence[Mapping[str, Any]], last_sign: int | None) -> Iterator[Outage]:
    """Tell when beat was not there: what misfires say, and the silence before each lead.

    :param last_sign: the last sign of life before these lines, as far as that is known.
    """
    sure: list[tuple[str, int, int]] = []
    for reason, first, now in sorted(
        (line["reason"], line["first"], line["now"])
        for line in lines
        if line.get("event") == "misfire" and line.get("reason") in OUTAGES
    ):
        if sure and sure[-1][0] == reason and first <= sure[-1][2]:
            sure[-1] = (reason, sure[-1][1], max(now, sure[-1][2]))
        else:
            sure.append((reason, first, now))
    for reason, first, now in sure:
        yield Outage(first, now, str(OUTAGES[reason]))
    for line in lines:
        sign = _sign(line)
        if sign is None:
            continue
        if line["event"] == "lead" and last_sign is not None and line.get("reason") in OUTAGES:
            # From the first fire time that was not met, it is more than silence.
            ends = min((max(a, last_sign) for _r, a, b in sure if a <= sign <= b), default=sign)
            if ends - last_sign >= AUTO_THRESHOLD:
                yield Outage(last_sign, ends, _("No sign of life"), sure=False)
        last_sign = max(sign, last_sign or sign)


def _sign(line: Mapping[str, Any]) -> int | None:
    """Return when beat gave a sign of life by this line; a worker's line is none."""
    return None if "worker" in line else moment_of(line)


def moment_of(line: Mapping[str, Any]) -> int | None:
    """Return when a line was written, by the clock of its writer; None when it does not say."""
    found = line.get("now", line.get("fire_time"))
    return found if isinstance(found, int) else None
