"""What the store keeps of one entry, and the JSON text in which it keeps it.

The text is a contract between versions: beats of two versions share one state while a deploy goes on, and a
deploy can be rolled back. So every field is written and read by name here, and no name of a class or of an
attribute reaches the store. Fields and words that a newer version has added are kept, and written back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from celery_misfire.misfire import MisfireInstruction, Outcome, Reason, Runs, TriggerState
from celery_misfire.policy import Word

__all__ = [
    "MAX_LENGTH",
    "SCHEMA",
    "EntryRecord",
    "Intent",
    "Pause",
    "Unreported",
    "dumps",
    "loads",
    "loads_all",
]

#: Version of the state in Redis. A beat refuses to work on another one.
SCHEMA = 1

#: Most characters in the text of a record: 20,000 runs that wait to be sent take less.
MAX_LENGTH = 4_000_000

#: How deep the fields of a newer version may be nested.
MAX_DEPTH = 50

#: Moments lie between these two, in milliseconds UTC: the years 1 and 5138.
FIRST_MOMENT, LAST_MOMENT = -62_135_596_800_000, 10**14


@dataclass(frozen=True, slots=True)
class Intent:
    """An occurrence that was claimed to be sent and is not known to have been sent.

    :param unsent: True when it was certainly not sent: nobody tried, or the attempt failed. Then it may be
        judged again. Else it is in doubt, and the only safe thing is to send it (again) under the same id.
    :param entry: the name that its id was made of, when the entry was renamed since; else ''.
    :param before: as in :class:`~celery_misfire.misfire.Runs`.
    :param unknown_fields: as in :class:`EntryRecord`.
    """

    scheduled: int
    generation: int
    outcome: Outcome
    claimed_at: int
    merged: int = 0
    last_missed: int | None = None
    unsent: bool = False
    entry: str = ""
    before: TriggerState | None = None
    unknown_fields: str = ""

    @property
    def end(self) -> int:
        """The last occurrence that is decided with this run."""
        return self.scheduled if self.last_missed is None else self.last_missed


@dataclass(frozen=True, slots=True)
class Unreported:
    """Missed occurrences whose result and signals are still to come.

    :param entry: as in :class:`Intent`.
    :param unknown_fields: as in :class:`EntryRecord`.
    """

    first: int
    last: int
    count: int
    reason: Reason
    instruction: MisfireInstruction
    detected_at: int
    generation: int
    entry: str = ""
    unknown_fields: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """A time in which an entry does not fire, because somebody said so.

    :param since: what was due before is not part of the pause.
    :param until: when it ends by itself, None for not before somebody says so.
    :param reason: why, in the words of whoever paused it; `by` says who.
    :param unknown_fields: as in :class:`EntryRecord`.
    """

    since: int
    until: int | None = None
    reason: str = ""
    by: str = ""
    unknown_fields: str = ""

    def is_over(self, now: int) -> bool:
        """Return True when it has ended by itself."""
        return self.until is not None and self.until <= now


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """All that is known of one entry. Moments are milliseconds UTC.

    :param generation: grows when its fire times take on another meaning (an edit, a clock that was set back);
        part of every task id, so that ids never repeat. As a rule it is the moment of that.
    :param begun_at: the moment at which its fire times took on their present meaning, when the generation is
        another number; else None, see :attr:`begin`.
    :param removed_at: when the entry was found to be gone from the schedule, None while it is there.
    :param paused_from: the first fire time of a pause that has not been planned yet, None when there is none.
        An entry is paused while it is gone from the schedule. So for a removed entry it is the fire time that
        was to come next, and for one that came back, the oldest that came due meanwhile.
    :param paused: the pause that somebody asked for, None when there is none. An older version ignores it.
    :param key: what the entry is known by, whatever its name, where it has such a thing; else None.
    :param unknown_fields: the JSON object of what a newer version has written beside the other fields, '' for
        nothing. A text, as records can be compared and hashed.
    """

    name: str
    task: str
    generation: int
    fingerprint: str
    state: TriggerState
    runs: tuple[Runs, ...] = ()
    intents: tuple[Intent, ...] = ()
    missed: tuple[Unreported, ...] = ()
    begun_at: int | None = None
    removed_at: int | None = None
    paused_from: int | None = None
    key: str | None = None
    paused: Pause | None = None
    unknown_fields: str = ""

    @property
    def begin(self) -> int:
        """The moment at which its fire times took on their present meaning."""
        return self.generation if self.begun_at is None else self.begun_at

    @property
    def settled(self) -> bool:
        """True when every decision has been carried out."""
        return not (self.runs or self.intents or self.missed)

    def is_over(self, since: int) -> bool:
        """Return True when the entry has been gone since then, and nothing is left to be done for it."""
        return self.removed_at is not None and self.removed_at < since and self.settled


# -- writing ------------------------------------------------------------------------------------------------

# Speed matters: this runs twice for every run that is sent. The keys stand in alphabetical order, so that the
# encoder does not have to sort them.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def dumps(record: EntryRecord) -> str:
    """Return the record as JSON; equal records give equal texts."""
    fields: dict[str, Any] = {} if record.begun_at is None else {"begun_at": record.begun_at}
    fields |= {
        "fingerprint": record.fingerprint,
        "generation": record.generation,
        "intents": [_intent_fields(intent) for intent in record.intents],
        **({} if record.key is None else {"key": record.key}),
        "missed": [_missed_fields(missed) for missed in record.missed],
        "name": record.name,
        **({} if record.paused is None else {"paused": _pause_fields(record.paused)}),
        "paused_from": record.paused_from,
        "removed_at": record.removed_at,
        "runs": [_runs_fields(runs) for runs in record.runs],
        "state": _state_fields(record.state),
        "task": record.task,
        "v": SCHEMA,
    }
    return _encode(_with_unknown(fields, record.unknown_fields))


def _pause_fields(pause: Pause) -> dict[str, Any]:
    fields = {"by": pause.by, "reason": pause.reason, "since": pause.since, "until": pause.until}
    return _with_unknown(fields, pause.unknown_fields)


def _state_fields(state: TriggerState) -> dict[str, Any]:
    fields = {
        "end_time": state.end_time,
        "max_runs": state.max_runs,
        "next_fire_time": state.next_fire_time,
        "previous_fire_time": state.previous_fire_time,
        "repeat_count": state.repeat_count,
        "start_time": state.start_time,
        "times_triggered": state.times_triggered,
    }
    return _with_unknown(fields, state.unknown_fields)


def _before_fields(before: TriggerState | None) -> dict[str, Any]:
    return {} if before is None else {"before": _state_fields(before)}


def _runs_fields(runs: Runs) -> dict[str, Any]:
    fields = {
        **_before_fields(runs.before),
        "count": runs.count,
        "first": runs.first,
        "last": runs.last,
        "last_missed": runs.last_missed,
        "merged": runs.merged,
        "outcome": runs.outcome,
    }
    return _with_unknown(fields, runs.unknown_fields)


def _intent_fields(intent: Intent) -> dict[str, Any]:
    fields = {
        **_before_fields(intent.before),
        "claimed_at": intent.claimed_at,
        **({"entry": intent.entry} if intent.entry else {}),
        "generation": intent.generation,
        "last_missed": intent.last_missed,
        "merged": intent.merged,
        "outcome": intent.outcome,
        "scheduled": intent.scheduled,
        "unsent": intent.unsent,
    }
    return _with_unknown(fields, intent.unknown_fields)


def _missed_fields(missed: Unreported) -> dict[str, Any]:
    fields = {
        "count": missed.count,
        "detected_at": missed.detected_at,
        **({"entry": missed.entry} if missed.entry else {}),
        "first": missed.first,
        "generation": missed.generation,
        "instruction": missed.instruction,
        "last": missed.last,
        "reason": missed.reason,
    }
    return _with_unknown(fields, missed.unknown_fields)


def _with_unknown(fields: dict[str, Any], unknown: str) -> dict[str, Any]:
    return dict(sorted((fields | json.loads(unknown)).items())) if unknown else fields


# -- reading ------------------------------------------------------------------------------------------------


def loads(text: str) -> EntryRecord:
    """Return the record that :func:`dumps` wrote, in this version or in another one of the same schema.

    :raises ValueError: when the text is anything else.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"longer than {MAX_LENGTH} characters")
    try:
        return _record(_decode(text))
    except (KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ValueError(f"not a record: {type(exc).__name__}") from None


def loads_all(texts: Mapping[str, str]) -> dict[str, EntryRecord]:
    """Return the records of these texts, by entry name.

    One that cannot be used is left out: beat says so in its log, and plans the entry anew.
    """
    found = {}
    for name, text in texts.items():
        with suppress(ValueError):
            found[name] = loads(text)
    return found


# Each of these functions takes the fields that it knows out of the object. A newer version wrote the others.


def _record(data: dict[str, Any]) -> EntryRecord:
    take = data.pop
    if take("v") != SCHEMA:
        raise ValueError("another schema")
    return EntryRecord(
        name=_text(take("name")),
        task=_text(take("task")),
        generation=_moment(take("generation")),
        fingerprint=_text(take("fingerprint")),
        state=_state(take("state")),
        runs=_each(_runs, take("runs")),
        intents=_each(_intent, take("intents")),
        missed=_each(_missed, take("missed")),
        begun_at=_moment_or_none(take("begun_at", None)),
        removed_at=_moment_or_none(take("removed_at", None)),
        paused_from=_moment_or_none(take("paused_from", None)),
        paused=None if (pause := take("paused", None)) is None else _pause(pause),
        key=None if (key := take("key", None)) is None else _text(key),
        unknown_fields=_rest(data),
    )


def _pause(data: dict[str, Any]) -> Pause:
    take = data.pop
    return Pause(
        since=_moment(take("since")),
        until=_moment_or_none(take("until", None)),
        reason=_text(take("reason", "")),
        by=_text(take("by", "")),
        unknown_fields=_rest(data),
    )


def _state(data: dict[str, Any]) -> TriggerState:
    take = data.pop
    return TriggerState(
        next_fire_time=_moment_or_none(take("next_fire_time")),
        start_time=_moment(take("start_time")),
        previous_fire_time=_moment_or_none(take("previous_fire_time", None)),
        times_triggered=_moment(take("times_triggered", 0)),
        repeat_count=_moment_or_none(take("repeat_count", None)),
        end_time=_moment_or_none(take("end_time", None)),
        max_runs=_moment_or_none(take("max_runs", None)),
        unknown_fields=_rest(data),
    )


def _runs(data: dict[str, Any]) -> Runs:
    take = data.pop
    return Runs(
        first=_moment(take("first")),
        last=_moment(take("last")),
        count=_moment(take("count")),
        outcome=_word(Outcome, take("outcome")),
        merged=_moment(take("merged", 0)),
        last_missed=_moment_or_none(take("last_missed", None)),
        before=_before(take("before", None)),
        unknown_fields=_rest(data),
    )


def _before(data: dict[str, Any] | None) -> TriggerState | None:
    return None if data is None else _state(data)


def _intent(data: dict[str, Any]) -> Intent:
    take = data.pop
    return Intent(
        scheduled=_moment(take("scheduled")),
        generation=_moment(take("generation")),
        outcome=_word(Outcome, take("outcome")),
        claimed_at=_moment(take("claimed_at")),
        merged=_moment(take("merged", 0)),
        last_missed=_moment_or_none(take("last_missed", None)),
        unsent=_flag(take("unsent", False)),
        entry=_text(take("entry", "")),
        before=_before(take("before", None)),
        unknown_fields=_rest(data),
    )


def _missed(data: dict[str, Any]) -> Unreported:
    take = data.pop
    return Unreported(
        first=_moment(take("first")),
        last=_moment(take("last")),
        count=_moment(take("count")),
        reason=_word(Reason, take("reason")),
        instruction=_word(MisfireInstruction, take("instruction")),
        detected_at=_moment(take("detected_at")),
        generation=_moment(take("generation")),
        entry=_text(take("entry", "")),
        unknown_fields=_rest(data),
    )


T = TypeVar("T")
W = TypeVar("W", bound=Word)


def _each(read: Callable[[dict[str, Any]], T], items: object) -> tuple[T, ...]:
    if type(items) is not list:
        raise ValueError("not a record: a list is missing")
    return tuple([read(item) for item in items])


def _text(value: object) -> str:
    if type(value) is not str:
        raise ValueError("not a record: a text is missing")
    return value


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError("not a record: neither true nor false")
    return value


def _word(words: type[W], value: object) -> W:
    return words.read(_text(value))


def _moment(value: object) -> int:
    if type(value) is int and FIRST_MOMENT <= value < LAST_MOMENT:
        return value
    raise ValueError("not a record: a moment or a count is not a whole number in range")


def _moment_or_none(value: object) -> int | None:
    return None if value is None else _moment(value)


def _rest(data: dict[str, Any]) -> str:
    if not data:
        return ""
    if _depth(data) > MAX_DEPTH:
        raise ValueError(f"a field of a newer version is nested deeper than {MAX_DEPTH}")
    return _encode(data)


def _depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _finite(text: str) -> float:
    # Python reads 1e999 as infinity, which could not be written again.
    if math.isinf(number := float(text)):
        raise ValueError("not a record: a number out of range")
    return number


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"not a record: {constant}")


_decode = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse).decode
