"""What a commit changes: records, messages for queues, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from celery_misfire.texts import quote


@dataclass(frozen=True)
class Change:
    """The record of one entry is replaced: `old` must be in force. '' stands for no record."""

    entry: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Push:
    """One command to the broker that goes with the record of an entry, as the broker's client would send it.

    :param entry: whose record it goes with.
    :param kind: ``lpush`` puts the message `value` into the queue `key`; a worker takes out first what was
        put in first. ``pexpire`` lets the key `key` end `value` milliseconds from now. ``publish`` sends the
        message `value` to the subscribers of the channel `key`.
    """

    entry: str
    kind: Literal["lpush", "pexpire", "publish"]
    key: str
    value: bytes | str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A queue that takes no messages from us: its key holds something else, or we lack the rights.

    :param queue: the queue's key.
    :param error: what the broker says, in words.
    :param entries: the entries whose messages were to go there.
    """

    queue: str
    error: str
    entries: tuple[str, ...]

    @classmethod
    def of(cls, messages: Sequence[Push], error: str) -> Refusal:
        """Return the refusal of a queue for which there were these messages."""
        return cls(messages[0].key, error, tuple(dict.fromkeys(push.entry for push in messages)))


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What became of a commit.

    :param conflicts: entries whose record in force is not the old one. If there are any, nothing was written.
    :param refused: queues that take no messages. If there are any, nothing was written.
    :param queue_lengths: messages in each queue to which some were pushed, as far as it is known.
    :param closed: runs that were to be acknowledged, and that a worker has left to beat. If there are any,
        nothing was written.
    :param failed: each ``pexpire`` and ``publish`` that failed, with its error in words. The rest was done.
    """

    conflicts: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    closed: tuple[str, ...] = ()
    queue_lengths: Mapping[str, int] = field(default_factory=dict)
    failed: tuple[tuple[Push, str], ...] = ()


def by_queue(changes: Sequence[Change], pushes: Sequence[Push]) -> dict[str, list[Push]]:
    """Return the messages for each queue, in their order.

    :raises ValueError: when one of the pushes has no change of its entry's record to go with. It is by the
        record that a store knows what it has pushed already.
    """
    queues: dict[str, list[Push]] = {}
    changed = {change.entry for change in changes if change.old != change.new} if pushes else ()
    for push in pushes:
        if push.entry not in changed:
            raise ValueError(f"{push.kind} without a change of the record of {quote(push.entry)}")
        if push.kind == "lpush":
            queues.setdefault(push.key, []).append(push)
    return queues
