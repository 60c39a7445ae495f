"""One Redis in memory, which is both store and broker, with troubles on demand."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from celery_misfire.exceptions import MisfireError
from celery_misfire.store.changes import Push, Refusal
from celery_misfire.store.values import COUNTS_TTL


class Fault(Enum):
    """What may happen to a call. Its caller gets a :class:`StoreUnavailable` each time."""

    #: The call never arrives.
    UNREACHABLE = auto()
    #: The call is carried out, and its answer gets lost.
    ANSWER_LOST = auto()
    #: The call is carried out later, by :meth:`MemoryDatabase.carry_out_late`.
    LATE = auto()


@dataclass
class Contents:
    """All that a database holds.

    :param expiring: texts that are kept for a time, each with the moment when it goes: the lease, registers
        and the like, by name.
    :param log: lines as JSON, each with its id.
    :param queues: messages by the name of their queue, oldest first.
    :param queue_ends: when queues end that nobody uses, in seconds since 1970.
    :param published: what was sent to subscribers: channel and message, oldest first.
    :param counts: for each hour since 1970, by entry and outcome.
    :param hold: the hold in force, '' for none.
    :param beats: when each beat was last heard of, and what it said of itself.
    :param requests: what the leader has not carried out yet, by id.
    """

    meta: str = ""
    epoch: int = 0
    description: tuple[str, str] = ("", "")
    records: dict[str, str] = field(default_factory=dict)
    expiring: dict[str, tuple[str, float]] = field(default_factory=dict)
    log: list[tuple[tuple[int, int], str]] = field(default_factory=list)
    watch_notes: dict[str, str] = field(default_factory=dict)
    queues: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    queue_ends: dict[str, float] = field(default_factory=dict)
    published: list[tuple[str, Any]] = field(default_factory=list)
    counts: dict[int, Counter[tuple[str, str]]] = field(default_factory=dict)
    hold: str = ""
    beats: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)


class MemoryDatabase:
    """One database: the state of one namespace, and the queues of its broker.

    :param clock: returns the time of the database in seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.contents = Contents()
        #: Asked before each call, with the owner of the store and the name of the method.
        self.fault: Callable[[str, str], Fault | None] = lambda owner, call: None
        #: Asked about each push: why the broker refuses it, '' for one that it takes.
        self.refuse: Callable[[Push], str] = lambda push: ""
        #: Calls that are still under way, see :attr:`Fault.LATE`.
        self.late_calls: list[Callable[[], Any]] = []
        #: One call at a time. Whoever looks at `contents` from another thread needs it too.
        self.lock = threading.RLock()

    def lose(self) -> None:
        """Forget everything, queues included."""
        self.put_back(Contents())

    def snapshot(self) -> Contents:
        """Return a copy of everything."""
        with self.lock:
            return deepcopy(self.contents)

    def put_back(self, snapshot: Contents) -> None:
        """Go back to a snapshot, queues included."""
        with self.lock:
            self.contents = deepcopy(snapshot)

    def carry_out_late(self) -> None:
        """Carry out the calls that were under way. Nobody hears their answers."""
        with self.lock:
            calls, self.late_calls = self.late_calls, []
            for call in calls:
                with suppress(MisfireError):
                    call()

    def refusals(self, queues: Mapping[str, Sequence[Push]]) -> tuple[Refusal, ...]:
        """Return the queues that do not take these messages."""
        errors = (
            (messages, next(filter(None, map(self.refuse, messages)), "")) for messages in queues.values()
        )
        return tuple(Refusal.of(messages, error) for messages, error in errors if error)

    def count(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Add to the counts of this hour, and drop those that are too old."""
        if counts:
            kept, hour = self.contents.counts, int(self.clock() // 3600)
            kept.setdefault(hour, Counter()).update(counts)
            for old in [one for one in kept if one < hour - COUNTS_TTL // 3600]:
                del kept[old]

    def push(self, push: Push) -> str:
        """Carry out one command to the broker; return the error of one that cannot be carried out."""
        if error := self.refuse(push):
            return error
        match push.kind:
            case "lpush":
                self.contents.queues[push.key].append(push.value)
            case "pexpire":
                self.contents.queue_ends[push.key] = self.clock() + int(push.value) / 1000
            case "publish":
                self.contents.published.append((push.key, push.value))
        return ""
