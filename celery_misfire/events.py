"""What was decided and what happened: one frozen class per line of the log.

Pure. The leader and the workers make events. Each one is written to the log in Redis together with the
records that it explains. After that, everybody who wants to know of it (log lines, signals, metrics, pages)
gets the same object. Moments are milliseconds since 1970 UTC.

Words (reasons, instructions, outcomes) are plain strings here, so that an event of another version keeps the
words that this one does not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, tzinfo
from typing import Any, ClassVar

from celery_misfire.misfire import MissedFire, Outcome, from_millis, to_millis
from celery_misfire.texts import one_line, quote_name, word_of

_KINDS: dict[str, type[Event]] = {}


@dataclass(frozen=True, kw_only=True)
class Event:
    """A line of the log."""

    #: The word for this class in the log.
    kind: ClassVar[str]

    def __init_subclass__(cls, kind: str) -> None:
        cls.kind = kind
        _KINDS[kind] = cls

    @property
    def written_at(self) -> int | None:
        """When the event was made, by the clock of its maker; None when it does not say."""
        now: int | None = getattr(self, "now", None)
        return now

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """How many occurrences the event gives which outcome, by entry and outcome.

        Runs in time are counted for all entries together, under ''. One count for each entry would take more
        memory than everything else that is kept of it.
        """
        return {}

    def split(self, entry: str | None = None) -> Iterable[Event]:
        """Return the events that this one stands for: itself, but for a :class:`SentTogether`.

        :param entry: only what may concern this entry.
        """
        return (self,)

    def encode(self) -> dict[str, Any]:
        """Return the line as plain JSON types; what is None is left out."""
        return {"event": self.kind} | {
            name: value for name, value in vars(self).items() if value not in (None, ())
        }

    def sentence(self, zone: tzinfo = UTC) -> str:
        """Return the event in words, on one line; moments are in this time zone."""
        raise NotImplementedError


def decode(line: Mapping[str, Any]) -> Event | None:
    """Return the event that a line of the log tells of.

    :returns: None for a line that is not ours, or of a kind that this version does not know. Unknown fields
        are passed over.
    """
    kind = line.get("event")
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        return None
    given = {field.name: line[field.name] for field in fields(cls) if line.get(field.name) is not None}
    types = {field.name: str(field.type).removesuffix(" | None") for field in fields(cls)}
    if not all(_is_one(types[name], value) for name, value in given.items()):
        return None
    try:
        return cls(**given)
    except TypeError:
        # A field is missing.
        return None


_TYPES = {"int": int, "str": str, "bool": bool, "Mapping[str, int]": dict, "Mapping[str, Any]": dict}


def _is_one(type_: str, value: object) -> bool:
    if type_.startswith("Sequence["):
        return isinstance(value, list | tuple) and all(_is_one(type_[9:-1], item) for item in value)
    # A bool is an int as well.
    return isinstance(value, _TYPES[type_]) and (type_ == "bool" or not isinstance(value, bool))


def encode(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return the lines of the log for the events of one commit.

    Messages that were sent together share a line, so that they do not push out what matters.
    """
    lines: list[Event] = []
    together: dict[str, list[Sent]] = {}
    for event in events:
        if isinstance(event, Sent) and not event.merged:
            together.setdefault(event.outcome, []).append(event)
        else:
            lines.append(event)
    lines += (sent[0] if len(sent) == 1 else SentTogether.of(sent) for sent in together.values())
    return [event.encode() for event in lines]


@dataclass(frozen=True, kw_only=True)
class Led(Event, kind="lead"):
    """A beat began to lead.

    :param epoch: number of its term of leadership.
    :param reason: why runs up to now are late.
    :param cold: there was no state.
    """

    epoch: int
    reason: str
    cold: bool
    now: int

    def sentence(self, zone: tzinfo = UTC) -> str:
        return f"beat leads since {time_in(self.now, zone)} ({word_of(self.reason)})"


@dataclass(frozen=True, kw_only=True)
class Misfired(Event, kind="misfire"):
    """An entry misfired, and its instruction was applied.

    :param first: scheduled time of the oldest occurrence that misfired; `last` of the newest.
    :param late_by: how late the oldest one is, in milliseconds.
    :param resolved: what the instruction stands for.
    :param outcomes: how many occurrences end in which way.
    :param next: the next fire time, None for never (or, in a line of an older version, unknown).
    :param lost: for each reason that occurrences never run: `reason`, `count`, and the `id` of their result.
    """

    entry: str
    task: str = ""
    first: int
    last: int
    count: int
    now: int
    late_by: int | None = None
    reason: str
    instruction: str
    resolved: str
    outcomes: Mapping[str, int]
    next: int | None = None
    lost: Sequence[Mapping[str, Any]] = ()

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        # A recovered run counts when it is sent.
        return {(self.entry, o): n for o, n in self.outcomes.items() if o != Outcome.RECOVERED}

    def sentence(self, zone: tzinfo = UTC) -> str:
        instruction = word_of(self.instruction)
        if self.resolved != self.instruction:
            instruction += f" -> {word_of(self.resolved)}"
        told = self.outcomes.items()
        outcomes = [
            f"{word_of(n)} {word_of(word)}" for word, n in told if not self.lost or word != Outcome.MISSED
        ]
        for part in self.lost:
            reason, count, id_ = (part.get(name, "") for name in ("reason", "count", "id"))
            why = "" if reason == self.reason else f"{word_of(reason)}, "
            outcomes.append(f"{word_of(count)} missed ({why}result {word_of(id_)})")
        late_by = self.now - self.first if self.late_by is None else self.late_by
        return (
            f"misfire of {quote_name(self.entry)} ({one_line(self.task)}): "
            f"scheduled {time_in(self.first, zone)}, now {time_in(self.now, zone)}, "
            f"late by {late_by / 1000:.3f} s ({word_of(self.reason)}), {instruction}: {', '.join(outcomes)}; "
            f"next {'never' if self.next is None else time_in(self.next, zone)}"
        )


@dataclass(frozen=True, kw_only=True)
class GaveUp(Event, kind="gave_up"):
    """Occurrences will never run, although their entry did not misfire: it ended, is gone, or was refused.

    :param id: task id of the first of them, which is the id of their result.
    """

    entry: str
    task: str
    first: int
    last: int
    count: int
    now: int
    reason: str
    instruction: str
    id: str

    @classmethod
    def of(cls, missed: MissedFire) -> GaveUp:
        """Return the event of a record that is still to be made."""
        return cls(**_fields_of(missed))

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        return {(self.entry, Outcome.MISSED): self.count}

    def sentence(self, zone: tzinfo = UTC) -> str:
        return _missed_sentence(self, zone)


@dataclass(frozen=True, kw_only=True)
class Missed(Event, kind="missed"):
    """Occurrences that never run, and whose record has been made.

    :param now: when they were given up; None in a line of an older version.
    :param instruction: the instruction that was applied.
    :param id: task id of the first of them, which is the id of their result.
    :param worker: the worker that gave the run up, None for beat.
    """

    entry: str
    task: str = ""
    first: int
    last: int
    count: int
    reason: str
    instruction: str
    id: str
    now: int | None = None
    worker: str | None = None

    @classmethod
    def of(cls, missed: MissedFire, worker: str | None = None) -> Missed:
        """Return the event of a record."""
        return cls(**_fields_of(missed), worker=worker)

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        # What beat records was counted when it was decided.
        return {} if self.worker is None else {(self.entry, Outcome.MISSED): self.count}

    def sentence(self, zone: tzinfo = UTC) -> str:
        return _missed_sentence(self, zone)


def _fields_of(missed: MissedFire) -> dict[str, Any]:
    same = {name: getattr(missed, name) for name in ("entry", "task", "count", "reason", "instruction")}
    moments = {"first": missed.first, "last": missed.last, "now": missed.detected_at}
    return same | {name: to_millis(moment) for name, moment in moments.items()} | {"id": missed.task_id}


def _missed_sentence(event: GaveUp | Missed, zone: tzinfo) -> str:
    runs = "1 run" if event.count == 1 else f"{event.count} runs"
    when = time_in(event.first, zone)
    if event.count > 1:
        when += f" to {time_in(event.last, zone)}"
    of = f" of {one_line(event.task, 120)}" if event.task else ""
    return (
        f"{quote_name(event.entry)} missed {runs}{of}, scheduled {when}, "
        f"reason {word_of(event.reason)}, instruction {word_of(event.instruction)}, "
        f"result {word_of(event.id)}"
    )


@dataclass(frozen=True, kw_only=True)
class Sent(Event, kind="sent"):
    """The broker took the message of a run.

    :param merged: how many further occurrences the run stands for.
    """

    entry: str
    outcome: str
    scheduled: int
    fire_time: int
    merged: int = 0
    id: str

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        return {("" if self.outcome == Outcome.FIRED else self.entry, self.outcome): 1}

    @property
    def written_at(self) -> int:
        return self.fire_time

    def sentence(self, zone: tzinfo = UTC) -> str:
        return (
            f"{quote_name(self.entry)} {word_of(self.outcome)}: scheduled {time_in(self.scheduled, zone)}, "
            f"sent {time_in(self.fire_time, zone)}, id {word_of(self.id)}"
        )


@dataclass(frozen=True, kw_only=True)
class SentTogether(Event, kind="sent_together"):
    """The broker took the messages of several runs in one commit. None of them stands for other occurrences.

    :param first: scheduled time of the oldest of them; `last` of the newest.
    :param ids: their task ids, with their `entries` in the same order.
    :param after: how long after `first` each was scheduled, in milliseconds; `late`, how late it was sent.
    """

    outcome: str
    count: int
    first: int
    last: int
    ids: Sequence[str]
    entries: Sequence[str]
    after: Sequence[int]
    late: Sequence[int]

    @classmethod
    def of(cls, sent: Sequence[Sent]) -> SentTogether:
        """Return the event that stands for these."""
        first = min(one.scheduled for one in sent)
        return cls(
            outcome=sent[0].outcome,
            count=len(sent),
            first=first,
            last=max(one.scheduled for one in sent),
            ids=[one.id for one in sent],
            entries=[one.entry for one in sent],
            after=[one.scheduled - first for one in sent],
            late=[one.fire_time - one.scheduled for one in sent],
        )

    @property
    def written_at(self) -> int:
        return max(map(sum, zip(self.after, self.late, strict=False)), default=0) + self.first

    def split(self, entry: str | None = None) -> Iterator[Sent]:
        for name, id_, after, late in zip(self.entries, self.ids, self.after, self.late, strict=False):
            if entry is None or name == entry:
                at = self.first + after
                yield Sent(entry=name, outcome=self.outcome, scheduled=at, fire_time=at + late, id=id_)

    def sentence(self, zone: tzinfo = UTC) -> str:
        return (
            f"{self.count} runs {word_of(self.outcome)}: scheduled {time_in(self.first, zone)} "
            f"to {time_in(self.last, zone)}"
        )


@dataclass(frozen=True, kw_only=True)
class StartedLate(Event, kind="late"):
    """A worker started a run later than its threshold allows.

    :param late_by: in milliseconds.
    :param outcome: as what beat has sent it.
    :param now: when it started. Both are None in a line of an older version.
    """

    entry: str
    scheduled: int
    late_by: int
    id: str
    worker: str = ""
    outcome: str | None = None
    now: int | None = None

    def sentence(self, zone: tzinfo = UTC) -> str:
        outcome = f" ({word_of(self.outcome)})" if self.outcome else ""
        now = "" if self.now is None else f", started {time_in(self.now, zone)}"
        return (
            f"{quote_name(self.entry)}{outcome} started late by {self.late_by / 1000:.3f} s: scheduled "
            f"{time_in(self.scheduled, zone)}{now}, id {word_of(self.id)}"
        )


@dataclass(frozen=True, kw_only=True)
class Merged(Event, kind="merged"):
    """A worker dropped a run, as a late run of its entry stands for it."""

    entry: str
    scheduled: int
    id: str
    worker: str = ""

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        return {(self.entry, Outcome.MERGED): 1}

    def sentence(self, zone: tzinfo = UTC) -> str:
        return (
            f"{quote_name(self.entry)} merged the run scheduled {time_in(self.scheduled, zone)} "
            f"into a late run, id {word_of(self.id)}"
        )


@dataclass(frozen=True, kw_only=True)
class Broken(Event, kind="broken"):
    """The schedule of an entry failed.

    :param error: kind of the error.
    """

    entry: str
    error: str

    def sentence(self, zone: tzinfo = UTC) -> str:
        return f"{quote_name(self.entry)} cannot be planned ({word_of(self.error)})"


@dataclass(frozen=True, kw_only=True)
class Refused(Event, kind="refused"):
    """The message of an entry could not be sent.

    :param error: kind of the error.
    """

    entry: str
    error: str

    def sentence(self, zone: tzinfo = UTC) -> str:
        return f"{quote_name(self.entry)} cannot be sent ({word_of(self.error)})"


def time_in(moment: int, zone: tzinfo, timespec: str = "milliseconds") -> str:
    """Return milliseconds UTC as a time in a zone, with the offset."""
    try:
        return from_millis(moment).astimezone(zone).isoformat(timespec=timespec)
    except (OverflowError, ValueError):
        # No calendar has it: the line was damaged, or is not ours.
        return f"{moment} ms"
