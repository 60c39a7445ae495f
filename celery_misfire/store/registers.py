"""The register of an occurrence: which of beat and the workers decided first what becomes of it.

A register is written once. Its text may never change: beats and workers of different versions read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: The register of a run that started is kept for so many seconds, longer than a broker may hold a message.
REGISTER_TTL = 24 * 3600.0

#: The same for a missed run, whose message may still stand in a queue that no worker reads.
MISSED_REGISTER_TTL = 7 * REGISTER_TTL

#: The same for a run by hand: as long as the record is kept from which it may be asked for again.
BY_HAND_REGISTER_TTL = 90 * REGISTER_TTL

#: A worker leaves a late run to beat at the earliest so many seconds after its message was sent: by then, a
#: beat that is well has written that it was sent.
LEFT_AFTER = 1.0


@dataclass(frozen=True)
class Started:
    """A worker has started the run, from the message with this nonce."""

    nonce: str
    host: str

    def __str__(self) -> str:
        return f"started:{self.nonce}:{self.host}"


@dataclass(frozen=True)
class Missed:
    """The occurrence is missed, and no worker may start it.

    :param nonce: of the message that a worker gave up, '' when beat has decided it.
    """

    reason: str
    nonce: str = ""

    def __str__(self) -> str:
        return f"missed:{self.reason}:{self.nonce}" if self.nonce else f"missed:{self.reason}"


@dataclass(frozen=True)
class Merged:
    """The message is merged into a late run, the one with this task id."""

    task_id: str

    def __str__(self) -> str:
        return f"merged:{self.task_id}"


@dataclass(frozen=True)
class Unknown:
    """The register holds something that is not ours."""

    text: str = "unknown"

    def __str__(self) -> str:
        return self.text


#: What is known of one occurrence. The first one to write it decides; it is never changed.
Register = Started | Missed | Merged | Unknown


def is_left_to_beat(register: Register | None) -> bool:
    """Return True when a worker has left the run to beat. A beat that closes a register writes the same."""
    return isinstance(register, Missed) and not register.nonce


@dataclass(frozen=True)
class StartRequest:
    """What a worker has a store write when it starts a run, or gives it up instead.

    With `sent_at`, a message that was sent before the entry's last late run started is merged into that run:
    its register says so, not `value`.

    :param value: for the register, if it has none yet.
    :param sent_at: when the message was sent, in milliseconds UTC; None: it cannot be merged.
    :param late_start: when the run starts, in milliseconds UTC; None: it is in time.
    :param line: goes to the log with `value`; `merged_line`, if the message is merged.
    :param by_hand: the run was asked for by hand; its register is kept as long as the log's record.
    """

    value: Register
    entry: str
    sent_at: int | None = None
    late_start: int | None = None
    line: Mapping[str, Any] | None = None
    merged_line: Mapping[str, Any] | None = None
    by_hand: bool = False


def parse(text: str) -> Register:
    """Return what the text of a register says."""
    word, _, rest = text.partition(":")
    first, _, second = rest.partition(":")
    match word:
        case "started":
            return Started(first, second)
        case "missed":
            return Missed(first, second)
        case "merged":
            return Merged(rest)
    return Unknown(text)


def register_ttl(value: Register, *, by_hand: bool = False) -> float:
    """Return for how many seconds a register with this value is kept."""
    if by_hand:
        return BY_HAND_REGISTER_TTL
    return MISSED_REGISTER_TTL if isinstance(value, Missed) else REGISTER_TTL
