"""What the package asks of the place where its state is kept.

:class:`Store` is the port. Behind it is Redis (:mod:`~celery_misfire.store.redis_store`) or memory
(:mod:`~celery_misfire.store.memory`, for simulations and tests).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from celery_misfire.store.changes import Change, CommitResult, Push, Refusal, by_queue
from celery_misfire.store.registers import Register, StartRequest
from celery_misfire.store.state_mark import Destination, StateMark
from celery_misfire.store.values import Held, LeaseValue, NoState, Renewed, Sight, Taken, Watched

__all__ = [
    "Change",
    "CommitResult",
    "Held",
    "LeaseValue",
    "NoState",
    "Push",
    "Refusal",
    "Store",
    "Taken",
    "Watched",
    "by_queue",
]

#: No counts.
NOTHING: Mapping[tuple[str, str], int] = MappingProxyType({})
#: No runs are acknowledged.
NO_ACKS: Mapping[str, int] = MappingProxyType({})


class Store(Protocol):
    """The state of one namespace: lease, records, log, registers, notes of the watching worker.

    Each write is done as a whole or not at all, and may be repeated: done twice, it has worked once. `str()`
    names the state and its place, without secrets. Every method may raise
    :class:`~celery_misfire.exceptions.StoreUnavailable`; whether a write took place then is unknown.
    """

    #: What keeps the state, for people: kind, host and port.
    server: str
    #: The name under which the lease is found in a Redis.
    lease_key: str
    #: This process, as the lease will name it, see :mod:`~celery_misfire.store.owner`.
    owner: str
    #: The same for people: host and pid.
    process: str
    #: Where a Redis broker may keep a word that tells its database from all others: now, and before the keys
    #: got a prefix. Only the first is ever written.
    place_keys: tuple[str, str]

    def advice(self) -> Sequence[str]:
        """Return what is unwise about this store: one line each, for the log.

        :raises StoreRefused: when it can never work.
        """

    def time(self) -> int:
        """Return the store's clock, in milliseconds UTC."""

    # The lease.

    def acquire(
        self,
        token: str,
        ttl: float,
        seen: LeaseValue | None = None,
        *,
        needs_state: bool = False,
        sign: str = "",
    ) -> Taken | Held | NoState:
        """Take the lease if it is free, or if it still has the value `seen`.

        :param ttl: seconds after which the lease is free unless renewed.
        :param needs_state: leave a free lease alone when the store holds no state.
        :param sign: is kept as the sign of life of this beat, in either case; '' for none.
        :raises NewerSchema: when another version has written the state. Nothing has been written then.
        """

    def renew(self, lease: LeaseValue, ttl: float, known: int = 0, *, sign: str = "") -> Renewed:
        """Prolong the lease with this token and give it this value.

        :param known: how many renewals the store is known to have had.
        :param sign: as in :meth:`acquire`.
        :raises LeaseLost: when the lease is not ours any more, or has had fewer renewals: the store went back
            in time.
        """

    def release(self, token: str, in_time_since: int | None = None) -> None:
        """Give the lease up, if it is ours, and take the sign of life back.

        :param in_time_since: leave a mark of a clean stop, see :class:`~.values.CleanStop`. The next one
            that takes the lease is told of it, nobody after.
        """

    def sight(self) -> Sight:
        """Return what is to be seen of the namespace, in one call that writes nothing."""

    # People ask the leader for something.

    def request(self, requests: Mapping[str, str]) -> None:
        """Leave requests for the leader, by id. They are carried out in the order of their ids."""

    def drop_requests(self, ids: Sequence[str]) -> None:
        """Take requests back, or away when they are carried out."""

    def write_hold(self, token: str, old: str, new: str) -> bool:
        """Replace the hold in force ('' for none); False when `old` is not in force.

        :raises LeaseLost: as :meth:`commit`.
        """

    def claim_by_hand(self, task_id: str, who: str) -> str:
        """Note who has an occurrence run by hand, unless somebody had it run before; return who that is.

        It is noted in the register of the id ``by-hand:<task id>``.
        """

    def unclaim_by_hand(self, task_id: str, who: str) -> None:
        """Take that back, if it was `who`: the occurrence was not sent."""

    # The records, which only the leader writes.

    def load(self, names: Sequence[str] | None = None) -> dict[str, str]:
        """Return the records as texts, by entry name.

        :param names: read the records of these entries alone.
        """

    def commit(
        self,
        token: str,
        changes: Sequence[Change],
        log: Sequence[Mapping[str, Any]] = (),
        pushes: Sequence[Push] = (),
        counts: Mapping[tuple[str, str], int] = NOTHING,
        acks: Mapping[str, int] = NO_ACKS,
    ) -> CommitResult:
        """Replace records and push messages into their queues, all of it or nothing; write to log and counts.

        When all records are the new ones already, the commit was done before: nothing is pushed, and log and
        counts stay as they are. When, in a commit with pushes, only some of them are, these are in conflict.
        What is written without a change of records is written each time.

        :param pushes: each goes with a change of its entry's record. Queues are those of the database where
            the state is.
        :param counts: added to the counts of this hour, by entry and outcome.
        :param acks: the runs whose intents are taken out as they were sent: when that was, in milliseconds
            UTC, by task id. Nothing is written when a worker has left one of them to beat.
        :raises LeaseLost: when the lease is not ours any more. Nothing has been written then.
        :raises ValueError: for a push without a change of records.
        """

    def counts_since(self, moment: float) -> dict[tuple[str, str], int]:
        """Return what was counted by entry and outcome since the beginning of the hour of `moment`.

        :param moment: in seconds since 1970. Counts are kept for eight days.
        """

    def write_meta(self, token: str, app: str) -> None:
        """Mark a new state as complete, see :class:`StateMark`.

        :raises LeaseLost: as :meth:`commit`.
        """

    # Whose state it is.

    def look(self) -> tuple[StateMark | None, LeaseValue | None]:
        """Return the mark of the state and the lease in force, None for what is not there.

        :raises NewerSchema: when another version has written the state.
        """

    def look_at_former(self) -> tuple[StateMark | None, LeaseValue | None]:
        """Return the same of the keys that had no prefix yet; by default there are none."""
        return None, None

    def take_former(self) -> bool:
        """Move the state from there to here; False when a beat leads there, or there is nothing to move.

        :raises StoreRefused: when it cannot be moved.
        """
        return False

    def write_destination(self, token: str, destination: Destination) -> None:
        """Note in the mark of the state where its runs go.

        :raises LeaseLost: as :meth:`commit`.
        """

    # Two beats compare their configurations.

    def describe(self, token: str, beat: str, entries: str) -> None:
        """Leave a description of the leading beat and of its entries, for the standbys to compare.

        :raises LeaseLost: as :meth:`commit`.
        """

    def description(self) -> tuple[str, str]:
        """Return the description of the leading beat and of its entries, '' for none."""

    def tell_leader(self, text: str) -> None:
        """Leave a line that the leading beat logs at its next renewal."""

    # The registers: which of two decided first about an occurrence.

    def settle(self, task_ids: Sequence[str], value: Register, *, token: str | None = None) -> list[Register]:
        """Write `value` into the register of each occurrence that has none yet; return what they hold.

        :param token: of the beat that leads. A beat that was frozen must close no register: the run that its
            successor sends would be dropped.
        :raises LeaseLost: when the lease has another token. Nothing has been written then.
        """

    def start(self, task_id: str, request: StartRequest) -> tuple[Register, int]:
        """Write into the register of an occurrence that has none yet.

        What is missed or merged, and has a line, is counted. The log takes a tenth of its length of such
        lines in an hour.

        :returns: what the register holds, and 0 when it had been written before; else 1 or, for a run with a
            line, how many there were in this hour, which are counted as ``("", "late")``.
        """

    def close(self, task_id: str, value: Register, entry: str, record: str) -> Register | None:
        """Write into the register of an occurrence that has none yet, while an intent stands for it.

        A commit that takes the intent out looks at the register. So one of the two sees the other.

        :param record: the record with the intent.
        :returns: what the register holds; None when the entry has another record by now. Nothing has been
            written then.
        """

    def register(self, task_id: str) -> Register | None:
        """Return what the register of an occurrence holds, None when nothing has been written there."""

    # The log.

    def log(self, count: int | None = None) -> list[dict[str, Any]]:
        """Return the newest lines of the log, oldest first, without those that are not ours."""

    def log_after(self, seen: str, count: int) -> list[tuple[str, dict[str, Any]]]:
        """Return the lines of the log that follow the one with the id `seen`, oldest first, with their ids.

        An id is ``milliseconds UTC-number``. A line that is not ours comes as {}.
        """

    def last_log_id(self) -> str:
        """Return the id of the newest line of the log; one before all others when there is none."""

    # Workers watch beat, one at a time.

    def watch(
        self, token: str, ttl: float, guard_ttl: float = 0, *, alarm: str | None = None
    ) -> Watched | None:
        """Become the worker that watches, or stay it; None when another one does.

        :param ttl: seconds after which another one may take over.
        :param guard_ttl: seconds for which beat may count on workers that ask the registers; 0: it may not.
        :param alarm: is noted, see :class:`Watched`. None: the note stays.
        """

    def is_guarded(self) -> bool:
        """Return True when a worker that asks the registers has been there lately."""
