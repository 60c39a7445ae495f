"""What became of an entry's occurrences, put together from the log and from the entry's record. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from celery_misfire import records
from celery_misfire.contrib.django.models import reason_in_words
from celery_misfire.contrib.django.timeline.timeline import Occurrence, Outage, Waiting
from celery_misfire.events import Event, Led, Merged, Misfired, Missed, Sent, StartedLate
from celery_misfire.misfire import AUTO_THRESHOLD, Outcome, Reason, Trigger, TriggerState
from celery_misfire.records import EntryRecord
from celery_misfire.status import Status, is_current

#: A stretch of more occurrences than this is not expanded.
EXPAND_LIMIT = 500
#: Beat is silent for at least this long before the timeline shows it, in milliseconds.
SHORTEST_SILENCE = AUTO_THRESHOLD

#: The reasons that mean that beat could not work, and how their outages are called.
OUTAGES: Mapping[str, str | Promise] = {
    Reason.SCHEDULER_DOWN: gettext_lazy("Beat was down"),
    Reason.RESTARTED: gettext_lazy("Beat was down"),
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


def history(
    events: Iterable[Event],
    entry: str,
    start: int,
    now: int,
    *,
    trigger: Trigger | None = None,
    status: Status | None = None,
    record: EntryRecord | None = None,
    known_from: int | None = None,
    until: int | None = None,
) -> History:
    """Return what became of an entry's occurrences from `start` to `now`.

    :param events: the log of all entries, oldest first; the events of other entries show when beat was there.
    :param trigger: the schedule as it is now, to name each occurrence of a stretch; None: stretches stay.
    :param status: where the entry stands; None: nothing of it is overdue.
    :param record: what the store keeps of the entry, for what is decided and not in the log yet.
    :param until: what was due later is left out; None: until now.
    """
    events = list(events)
    known = None if record is None or trigger is None else _Known(trigger, record)
    found = _Found(entry, known)
    for event in events:
        found.add(event)
    if record is not None:
        found.add_pending(record)
    # A log that begins before `start` is complete, so the silence up to its first event is known.
    outages = list(outages_in(events, start if known_from is None else None))
    overdue = 0
    due = None if status is None else status.overdue_since
    if due is not None and known is not None:
        overdue = known.count(due, now)
        found.add_overdue(due, known.last(now) or due, overdue)
        last_sign = max([t for t in map(_sign_of_life, events) if t is not None], default=start)
        outages.append(Outage(min(last_sign, due), now, _("No sign of life"), sure=False))
    end = now if until is None else min(now, until)
    occurrences = [o for o in found.occurrences() if (o.fire_time or o.end) >= start and o.scheduled <= end]
    return History(tuple(occurrences), tuple(outages), known_from, overdue)


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
    trigger: Trigger, state: TriggerState, stretch: Occurrence, limit: int = EXPAND_LIMIT
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

    def count(self, first: int, last: int) -> int:
        return self.trigger.fire_times(self.record.state).count(first, last)

    def last(self, now: int) -> int | None:
        return self.trigger.fire_times(self.record.state).before(now + 1)

    def split(self, stretch: Occurrence) -> Iterable[Occurrence]:
        # The fire times of an earlier schedule are not known any more.
        if not is_current(self.record, self.trigger) or stretch.scheduled < self.record.begin:
            return (stretch,)
        return expand(self.trigger, self.record.state, stretch)


class _Found:
    """The occurrences of one entry, as the events of the log tell of them."""

    def __init__(self, entry: str, known: _Known | None) -> None:
        self._entry, self._known = entry, known
        # The key is the task id, as an event may be in the log twice.
        self._runs: dict[str, tuple[Occurrence, int]] = {}
        self._missed: dict[str, Occurrence] = {}
        self._misfires: list[tuple[int, int]] = []
        self._pending: list[Occurrence] = []
        #: When the late run was sent that a worker started last.
        self._late_run: int | None = None

    def add(self, event: Event) -> None:
        match event:
            case Sent(entry=self._entry) if event.id not in self._runs:
                run = Occurrence(event.scheduled, _outcome_of(event), event.fire_time, task_id=event.id)
                self._runs[event.id] = run, event.merged
            case Misfired(entry=self._entry):
                self._misfires.append((event.first, event.last))
            case Missed(entry=self._entry):
                # A worker may refuse what was sent.
                self._runs.pop(event.id, None)
                self._missed[event.id] = _missed(event.first, event.last, event.count, event.reason)
            case StartedLate(entry=self._entry) if event.id in self._runs:
                self._late_run = self._runs[event.id][0].fire_time
            case Merged(entry=self._entry) if event.id in self._runs:
                run, merged = self._runs[event.id]
                fire_time = run.fire_time if self._late_run is None else self._late_run
                self._runs[event.id] = replace(run, outcome=Outcome.MERGED, fire_time=fire_time), merged

    def add_pending(self, record: EntryRecord) -> None:
        """Add what is decided, and is not in the log yet."""
        for runs in record.runs:
            self._pending.append(Occurrence(runs.first, None, last=runs.last, count=runs.count))
        sent = {run.scheduled for run, _merged in self._runs.values()}
        for intent in record.intents:
            if intent.scheduled not in sent:
                self._pending.append(Occurrence(intent.scheduled, None))
        logged = {o.scheduled for o in self._missed.values()}
        for lost in record.missed:
            if lost.first not in logged:
                self._pending.append(_missed(lost.first, lost.last, lost.count, lost.reason))

    def add_overdue(self, first: int, last: int, count: int) -> None:
        """Add what beat should have decided about, and has not."""
        self._pending.append(Occurrence(first, Waiting.OVERDUE, last=last, count=count))

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
            return [replace(with_run, count=count)]
        # The first of them is the run itself.
        return parts[1:]


def _outcome_of(event: Sent) -> Outcome:
    # Whatever a newer version calls it, it was sent.
    return Outcome(event.outcome) if event.outcome in list(Outcome) else Outcome.FIRED


def _missed(first: int, last: int, count: int, reason: str) -> Occurrence:
    return Occurrence(first, Outcome.MISSED, None, last, count, reason_in_words(reason))


def outages_in(events: Sequence[Event], last_sign: int | None) -> Iterator[Outage]:
    """Yield when beat was not there: what misfires say, and the silence before each lead.

    :param last_sign: the last sign of life before these events, as far as that is known.
    """
    sure: list[tuple[str, int, int]] = []
    for reason, first, now in sorted(
        (event.reason, event.first, event.now)
        for event in events
        if isinstance(event, Misfired) and event.reason in OUTAGES
    ):
        if sure and sure[-1][0] == reason and first <= sure[-1][2]:
            sure[-1] = (reason, sure[-1][1], max(now, sure[-1][2]))
        else:
            sure.append((reason, first, now))
    for reason, first, now in sure:
        yield Outage(first, now, str(OUTAGES[reason]))
    for event in events:
        sign = _sign_of_life(event)
        if sign is None:
            continue
        if isinstance(event, Led) and last_sign is not None and event.reason in OUTAGES:
            # From the first fire time that was not met on, it is an outage and no mere silence.
            ends = min((max(a, last_sign) for _r, a, b in sure if a <= sign <= b), default=sign)
            if ends - last_sign >= SHORTEST_SILENCE:
                yield Outage(last_sign, ends, _("No sign of life"), sure=False)
        last_sign = max(sign, last_sign or sign)


def _sign_of_life(event: Event) -> int | None:
    """Return when beat made this event; None for an event of a worker."""
    return None if getattr(event, "worker", None) is not None else event.written_at
