"""A checker of histories: what became of each occurrence, and every promise that was broken on the way.

A history is a list of events in the order in which they took place. A simulation writes them down one by one.
What a real run leaves can be turned into events as well: :func:`from_log`, :func:`from_queue` and
:func:`from_workers`, put into order by :func:`in_order`. The fire times that are due come from elsewhere
than the code under test.

What a verdict rests on:

- Two messages are two when their nonces differ; one that is seen in the queue and by a worker is one.
- What Redis wrote between a snapshot and its restart from that has not happened; that a worker ran it has.
- Once the queues are drained, the log says what a message stands for: one that was in doubt may run although
  its run was decided anew.
- A misfire is one episode: all that was overdue when it was detected, up to a run that had been sent by then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from celery_misfire.misfire import Outcome, to_millis
from tests.support.log_lines import one_by_one
from tests.support.processes import Message


class What(StrEnum):
    """What an event says; times are in milliseconds UTC."""

    DUE = "due"  # `first` is a fire time of the entry
    PUSHED = "pushed"  # a message of this occurrence stands in the queue
    RECORDED = "recorded"  # the state says that the message was sent
    RAN = "ran"  # a worker began to run a message
    MISSED = "missed"  # the occurrences from `first` to `last` are recorded as missed
    MISFIRED = "misfired"  # those from `first` to `last` were found to have misfired, `at` that time
    CRASHED = "crashed"  # a beat died
    LED = "led"  # a beat took over
    SNAPSHOT = "snapshot"  # Redis keeps what it holds now
    ROLLED_BACK = "rolled back"  # Redis begins anew from the last snapshot
    FLUSHED = "flushed"  # Redis has lost everything
    COLD_START = "cold start"  # every entry is planned from `at`


@dataclass(frozen=True)
class Event:
    """One event.

    :param at: when it took place; what is not early, late or put in order by it needs none.
    :param first: the scheduled fire time, or the first of several.
    :param last: the last of several that the event is about; of a message, the last one merged into its run.
    :param count: how many the event says that there are, `first` included.
    :param nonce: what tells two messages of one occurrence apart.
    """

    what: What
    entry: str = ""
    first: int = 0
    last: int = 0
    count: int = 1
    outcome: Outcome = Outcome.FIRED
    task_id: str = ""
    nonce: str = ""
    at: int | None = None


class Fault(StrEnum):
    """A promise that was broken."""

    LOST = "neither run nor missed"
    QUEUED_TWICE = "stands in the queue twice"
    RAN_TWICE = "ran twice"
    NEVER_RAN = "its message was never taken by a worker"
    RUN_AND_MISSED = "run, and recorded as missed"
    MISSED_TWICE = "recorded as missed twice"
    MERGED_AND_ENDED = "merged into another run, and ended by itself as well"
    MESSAGE_WITHOUT_RECORD = "a message without its record"
    RECORD_WITHOUT_MESSAGE = "a record without its message"
    NOT_EXPECTED = "no fire time of its entry"
    TOO_EARLY = "sent before it was due"
    TWO_IDS = "has two task ids"
    SHARED_ID = "its task id is that of another occurrence"
    WRONG_COUNT = "more or fewer occurrences than it says"
    SPLIT_EPISODE = "one outage, two episodes"
    OUTSIDE_OF_EPISODE = "overdue in an episode, and not part of it"


@dataclass(frozen=True, order=True)
class Problem:
    entry: str
    scheduled: int
    fault: Fault


@dataclass
class Findings:
    """What came out.

    :param outcomes: by entry and scheduled fire time; None for what went with the data that Redis lost.
    :param problems: all broken promises, in order.
    """

    outcomes: dict[tuple[str, int], Outcome | None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def check(history: Iterable[Event], *, queued_once: bool = True, drained: bool = False) -> Findings:
    """Return the outcome of each occurrence that was due, and what is wrong.

    :param queued_once: broker and state are one Redis database: no second message while Redis keeps its data.
        Else a second message is in order, as long as one of them runs.
    :param drained: workers have taken all that they were to take: only what ran has run.
    """
    kept = _Kept(history)
    findings = Findings()
    due = defaultdict(list)
    for event in kept.events[What.DUE]:
        due[event.entry].append(event.first)
    # An entry may have outcomes, and no fire time at all.
    for entry in {e.entry for events in kept.events.values() for e in events if e.entry}:
        _Entry(entry, sorted(due[entry]), kept, findings).check(queued_once, drained)
    _check_ids(kept, findings)
    findings.problems = sorted(set(findings.problems))
    return findings


class _Kept:
    """The history without what Redis has forgotten.

    :ivar events: those that count, by kind.
    :ivar ran: messages that ran, those in a stretch that was lost not among them.
    :ivar ran_before_loss: runs in a stretch that was lost, by entry and fire time: each may take place again.
    :ivar gone: entry, first and last fire time of messages and misses that an empty Redis has lost.
    :ivar cold: latest moment from which everything was planned anew.
    """

    def __init__(self, history: Iterable[Event]) -> None:
        self.ran_before_loss: dict[tuple[str, int], list[Event]] = defaultdict(list)
        self.gone: set[tuple[str, int, int]] = set()
        self.cold: int | None = None
        held: list[Event] = []  # what Redis holds, and runs since its data began
        snapshot = 0
        told: list[Event] = []
        for event in history:
            if event.what is What.SNAPSHOT:
                snapshot = len(held)
            elif event.what is What.ROLLED_BACK:
                self._lose(held[snapshot:])
                del held[snapshot:]
            elif event.what is What.FLUSHED:
                self._lose(held)
                lost = (e for e in held if e.what in (What.PUSHED, What.MISSED))
                self.gone |= {(e.entry, e.first, max(e.first, e.last)) for e in lost}
                held, snapshot = [], 0
            elif event.what is What.COLD_START:
                self.cold = max(self.cold or 0, event.at or 0)
            elif event.what in (What.DUE, What.CRASHED, What.LED):
                told.append(event)
            else:
                held.append(event)
        self.events: dict[What, list[Event]] = defaultdict(list)
        for event in told + held:
            self.events[event.what].append(event)

    def _lose(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.what is What.RAN:
                self.ran_before_loss[event.entry, event.first].append(event)


class _Entry:
    """One entry's part of the check."""

    def __init__(self, name: str, due: Sequence[int], kept: _Kept, findings: Findings) -> None:
        self._name, self._due, self._kept, self._findings = name, due, kept, findings
        self._of = {what: [e for e in kept.events[what] if e.entry == name] for what in What}
        self._pushed = _by_fire_time(self._of[What.PUSHED])
        self._ran = _by_fire_time(self._of[What.RAN])
        self._recorded = _by_fire_time(self._of[What.RECORDED])
        self._missed = self._covered(self._of[What.MISSED])
        self._merged = self._merged_into(self._of[What.PUSHED] + self._of[What.RAN])
        lost = [e for (n, _), events in kept.ran_before_loss.items() if n == name for e in events]
        #: Merged into runs of a stretch that was lost: it counts where nothing else became of an occurrence.
        self._merged_before_loss = self._merged_into(lost)
        #: What the log says of merged occurrences; the message that ran may be older.
        self._merged_in_log = {
            scheduled
            for run in self._of[What.RECORDED]
            for scheduled in [s for s in self._due if s > run.first][: run.count - 1]
        }

    def check(self, queued_once: bool, drained: bool) -> None:
        for scheduled in self._due:
            self._check_outcome(scheduled, drained)
        ended = (
            set(self._pushed) | set(self._ran) | set(self._recorded) | set(self._missed) | set(self._merged)
        )
        for scheduled in ended:
            self._check_messages(scheduled, queued_once, drained)
            if scheduled not in self._due:
                self._say(scheduled, Fault.NOT_EXPECTED)
        self._check_counts()
        self._check_episodes()

    def _check_outcome(self, scheduled: int, drained: bool) -> None:
        queued = [] if drained else self._pushed.get(scheduled, [])
        messages = queued + self._ran.get(scheduled, [])
        lost = self._kept.ran_before_loss.get((self._name, scheduled), [])
        missed, merged = self._missed.get(scheduled, 0), self._merged.get(scheduled, 0)
        found: Outcome | None = None
        if messages:
            told = self._recorded.get(scheduled) if drained else None
            found = (told or messages)[0].outcome
        elif merged or scheduled in self._merged_in_log:
            found = Outcome.MERGED
        elif missed:
            found = Outcome.MISSED
        elif lost:
            found = lost[0].outcome
        elif self._merged_before_loss.get(scheduled):
            found = Outcome.MERGED
        elif not self._is_excused(scheduled):
            self._say(scheduled, Fault.LOST)
        self._findings.outcomes[self._name, scheduled] = found
        if messages and missed:
            self._say(scheduled, Fault.RUN_AND_MISSED)
        if missed > 1:
            self._say(scheduled, Fault.MISSED_TWICE)
        if merged > 1 or (merged and (messages or missed)):
            self._say(scheduled, Fault.MERGED_AND_ENDED)

    def _is_excused(self, scheduled: int) -> bool:
        """True for what was lost with the data, or was due when everything was planned from now."""
        cold = self._kept.cold is not None and scheduled <= self._kept.cold
        gone = (span for span in self._kept.gone if span[0] == self._name)
        return cold or any(first <= scheduled <= last for _, first, last in gone)

    def _check_messages(self, scheduled: int, queued_once: bool, drained: bool) -> None:
        pushed, ran = self._pushed.get(scheduled, []), self._ran.get(scheduled, [])
        messages = {e.nonce for e in pushed + ran}
        recorded = scheduled in self._recorded
        if queued_once and len(messages) > 1:
            self._say(scheduled, Fault.QUEUED_TWICE)
        # A worker that gets the same message again does as Celery's rules say.
        if len({e.nonce for e in ran}) > 1:
            self._say(scheduled, Fault.RAN_TWICE)
        # A worker gives up, or merges, what began too late.
        ended = scheduled in self._missed or scheduled in self._merged
        if drained and pushed and not ran and not ended:
            self._say(scheduled, Fault.NEVER_RAN)
        # A run that never ran is missed; beat may have ended before it could write that it was sent.
        is_missed = drained and not ran and scheduled in self._missed
        if messages and not recorded and not is_missed:
            self._say(scheduled, Fault.MESSAGE_WITHOUT_RECORD)
        if recorded and not messages and not self._is_excused(scheduled):
            self._say(scheduled, Fault.RECORD_WITHOUT_MESSAGE)
        if any(e.at is not None and e.at < scheduled for e in pushed + ran):
            self._say(scheduled, Fault.TOO_EARLY)

    def _check_counts(self) -> None:
        spans = self._of[What.MISSED] + self._of[What.MISFIRED] + self._of[What.PUSHED]
        for event in spans:
            if event.count != len(self._between(event.first, max(event.first, event.last))):
                self._say(event.first, Fault.WRONG_COUNT)

    def _check_episodes(self) -> None:
        seen_until: int | None = None
        for episode in sorted(self._of[What.MISFIRED], key=lambda e: (e.at or 0, e.first)):
            if episode.at is None:
                raise ValueError(f"a misfire needs the time when it was detected: {episode}")
            if seen_until is not None and episode.first <= seen_until:
                self._say(episode.first, Fault.SPLIT_EPISODE)
            # A run that had been sent by then had ended the episode.
            later = self._between(episode.last + 1, episode.at)
            ended = next((s for s in later if self._was_sent_before(s, episode.at)), episode.at + 1)
            seen_until = max(seen_until or 0, ended - 1)
            for scheduled in self._between(episode.first, ended - 1):
                fired = self._findings.outcomes[self._name, scheduled] is Outcome.FIRED
                if fired or scheduled > episode.last:
                    self._say(scheduled, Fault.OUTSIDE_OF_EPISODE)

    def _was_sent_before(self, scheduled: int, moment: int) -> bool:
        fired = self._findings.outcomes[self._name, scheduled] is Outcome.FIRED
        return fired and any(e.at is not None and e.at < moment for e in self._recorded.get(scheduled, ()))

    def _merged_into(self, messages: Sequence[Event]) -> dict[int, int]:
        """Return into how many of these messages each fire time is merged."""
        # A message that is seen in several places counts once.
        return self._covered([replace(m, first=m.first + 1) for m in _distinct(messages) if m.last > m.first])

    def _covered(self, spans: Iterable[Event]) -> dict[int, int]:
        """Return how many of the spans each fire time lies in; an end that is no fire time counts as well."""
        found: dict[int, int] = defaultdict(int)
        for span in spans:
            last = max(span.first, span.last)
            inside = self._between(span.first, last)
            for scheduled in {*inside, *({last} if last not in inside else ())}:
                found[scheduled] += 1
        return dict(found)

    def _between(self, first: int, last: int) -> list[int]:
        return [scheduled for scheduled in self._due if first <= scheduled <= last]

    def _say(self, scheduled: int, fault: Fault) -> None:
        self._findings.problems.append(Problem(self._name, scheduled, fault))


def _check_ids(kept: _Kept, findings: Findings) -> None:
    ids: dict[tuple[str, int], set[str]] = defaultdict(set)
    owners: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for event in (e for events in kept.events.values() for e in events if e.task_id):
        occurrence = (event.entry, event.first)
        ids[occurrence].add(event.task_id)
        owners[event.task_id].add(occurrence)
    findings.problems += [Problem(*o, Fault.TWO_IDS) for o, found in ids.items() if len(found) > 1]
    shared = [o for found in owners.values() if len(found) > 1 for o in found]
    findings.problems += [Problem(*o, Fault.SHARED_ID) for o in shared]


def _by_fire_time(events: Iterable[Event]) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        found[event.first].append(event)
    return dict(found)


def _distinct(messages: Iterable[Event]) -> list[Event]:
    """Return one event for each occurrence that has messages: a second one merges the same again."""
    return list({message.first: message for message in messages}.values())


# -- what a real run leaves --------------------------------------------------------------------------------


def in_order(*parts: Iterable[Event]) -> list[Event]:
    """Return all events by their time; those without one come first."""
    return sorted((e for part in parts for e in part), key=lambda e: -1 if e.at is None else e.at)


def from_times(entry: str, fire_times: Iterable[int]) -> list[Event]:
    """Return the expected fire times of an entry as events."""
    return [Event(What.DUE, entry, first=scheduled) for scheduled in fire_times]


def from_log(lines: Iterable[Mapping[str, Any]]) -> list[Event]:
    """Return what the store's log says (``RedisStore.log``), in its order."""
    found: list[Event] = []
    for line in one_by_one(lines):
        entry = line.get("entry", "")
        span = {name: line[name] for name in ("first", "last", "count") if name in line}
        match line["event"]:
            case "lead":
                found.append(Event(What.COLD_START if line["cold"] else What.LED, at=line["now"]))
            case "sent":
                outcome, sent = Outcome(line["outcome"]), line["fire_time"]
                count = line.get("merged", 0) + 1
                event = Event(What.RECORDED, entry, line["scheduled"], count=count, outcome=outcome, at=sent)
                found.append(replace(event, task_id=line["id"]))
            case "missed":
                found.append(Event(What.MISSED, entry, **span, outcome=Outcome.MISSED, task_id=line["id"]))
            case "misfire":
                found.append(Event(What.MISFIRED, entry, **span, at=line["now"]))
    return found


def from_queue(messages: Iterable[Message]) -> list[Event]:
    """Return what stands in a queue (``published``), without messages that beat did not send."""
    return [_message(What.PUSHED, m.misfire, m.id) for m in messages if m.misfire is not None]


def from_workers(records: Iterable[Mapping[str, Any]]) -> list[Event]:
    """Return what the recorder task has written (``Project.records``); a retry is no run of its own."""
    return [
        replace(_message(What.RAN, r["misfire"], r["task_id"]), at=round(r["started"] * 1000))
        for r in records
        if r["misfire"] is not None and not r["retries"]
    ]


def _message(what: What, header: Mapping[str, Any], task_id: str) -> Event:
    scheduled, outcome = _millis(header["scheduled_fire_time"]), Outcome(header["outcome"])
    last = header["last_missed_fire_time"]
    return Event(
        what,
        header["entry"],
        first=scheduled,
        last=scheduled if last is None else _millis(last),
        count=header["missed_count"] + (outcome is Outcome.FIRED),
        outcome=outcome,
        task_id=task_id,
        nonce=header["nonce"],
        at=_millis(header["fire_time"]),
    )


def _millis(text: str) -> int:
    return to_millis(datetime.fromisoformat(text))
