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
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Generic, NoReturn, TypeVar

from celery_misfire.misfire import MisfireInstruction, Outcome, Reason, Runs, TriggerState
from celery_misfire.policy import Word

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


# -- the text -----------------------------------------------------------------------------------------------


def dumps(record: EntryRecord) -> str:
    """Return the record as JSON; equal records give equal texts."""
    return _encode(record)


def loads(text: str) -> EntryRecord:
    """Return the record that :func:`dumps` wrote, in this version or in another one of the same schema.

    :raises ValueError: when the text is anything else.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"longer than {MAX_LENGTH} characters")
    try:
        data = _decode(text)
        if data.pop("v") != SCHEMA:
            raise ValueError("another schema")
        return _RECORD.read(data)
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


# -- what a value must be ----------------------------------------------------------------------------------

T = TypeVar("T")
Read = Callable[[Any], Any]


def _text(value: object) -> str:
    if type(value) is not str:
        raise ValueError("not a record: a text is missing")
    return value


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError("not a record: neither true nor false")
    return value


def _word(words: type[Word]) -> Read:
    return lambda value: words.read(_text(value))


def _moment(value: object) -> int:
    if type(value) is int and FIRST_MOMENT <= value < LAST_MOMENT:
        return value
    raise ValueError("not a record: a moment or a count is not a whole number in range")


def _moment_or_none(value: object) -> int | None:
    return None if value is None else _moment(value)


def _or_none(read: Read) -> Read:
    return lambda value: None if value is None else read(value)


# -- objects and their fields -------------------------------------------------------------------------------


class _Codec(Generic[T]):
    """Writes objects of one class as JSON objects, and reads them.

    A text without a field gives it its default. What no field here is called was written by a newer version.

    :param read: for each field how its value is read, by the name that the field has in the text.
    :param sparse: fields that are written only when they differ from this value.
    :param constant: fields that are the same in each text.
    """

    def __init__(
        self,
        cls: Callable[..., T],
        read: Mapping[str, Read],
        sparse: Mapping[str, object] = MappingProxyType({}),
        constant: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        self._cls, self._read, self._sparse, self._constant = cls, read, sparse.items(), constant
        # In alphabetical order, so that the keys need not be sorted: a record is written twice for each run.
        self._names = tuple(sorted(read))
        self._values = attrgetter(*self._names)

    def write(self, value: Any) -> dict[str, Any]:
        fields = dict(zip(self._names, self._values(value), strict=True), **self._constant)
        for name, absent in self._sparse:
            if fields[name] == absent:
                del fields[name]
        if value.unknown_fields:
            fields = dict(sorted((fields | json.loads(value.unknown_fields)).items()))
        return fields

    def read(self, data: dict[str, Any]) -> T:
        found = {name: read(data.pop(name)) for name, read in self._read.items() if name in data}
        return self._cls(**found, unknown_fields=_rest(data))

    def read_each(self, items: object) -> tuple[T, ...]:
        if type(items) is not list:
            raise ValueError("not a record: a list is missing")
        return tuple([self.read(item) for item in items])


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


_PAUSE = _Codec(Pause, {"since": _moment, "until": _moment_or_none, "reason": _text, "by": _text})
_STATE = _Codec(
    TriggerState,
    {
        "next_fire_time": _moment_or_none,
        "start_time": _moment,
        "previous_fire_time": _moment_or_none,
        "times_triggered": _moment,
        "repeat_count": _moment_or_none,
        "end_time": _moment_or_none,
        "max_runs": _moment_or_none,
    },
)
_RUNS = _Codec(
    Runs,
    {
        "first": _moment,
        "last": _moment,
        "count": _moment,
        "outcome": _word(Outcome),
        "merged": _moment,
        "last_missed": _moment_or_none,
        "before": _or_none(_STATE.read),
    },
    sparse={"before": None},
)
_INTENT = _Codec(
    Intent,
    {
        "scheduled": _moment,
        "generation": _moment,
        "outcome": _word(Outcome),
        "claimed_at": _moment,
        "merged": _moment,
        "last_missed": _moment_or_none,
        "unsent": _flag,
        "entry": _text,
        "before": _or_none(_STATE.read),
    },
    sparse={"before": None, "entry": ""},
)
_MISSED = _Codec(
    Unreported,
    {
        "first": _moment,
        "last": _moment,
        "count": _moment,
        "reason": _word(Reason),
        "instruction": _word(MisfireInstruction),
        "detected_at": _moment,
        "generation": _moment,
        "entry": _text,
    },
    sparse={"entry": ""},
)
_RECORD = _Codec(
    EntryRecord,
    {
        "name": _text,
        "task": _text,
        "generation": _moment,
        "fingerprint": _text,
        "state": _STATE.read,
        "runs": _RUNS.read_each,
        "intents": _INTENT.read_each,
        "missed": _MISSED.read_each,
        "begun_at": _moment_or_none,
        "removed_at": _moment_or_none,
        "paused_from": _moment_or_none,
        "paused": _or_none(_PAUSE.read),
        "key": _or_none(_text),
    },
    sparse={"begun_at": None, "key": None, "paused": None},
    constant={"v": SCHEMA},
)
_WRITERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    Pause: _PAUSE.write,
    TriggerState: _STATE.write,
    Runs: _RUNS.write,
    Intent: _INTENT.write,
    Unreported: _MISSED.write,
    EntryRecord: _RECORD.write,
}
# The encoder looks for circles unless it is told not to. Records have none.
_encode = json.JSONEncoder(
    separators=(",", ":"),
    allow_nan=False,
    check_circular=False,
    default=lambda value: _WRITERS[type(value)](value),
).encode
