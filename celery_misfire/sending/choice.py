"""Which way runs are carried out: in one transaction, or in two steps.

One transaction is possible where messages and state share a database.
"""

from __future__ import annotations

from collections.abc import Iterable

from celery_misfire.exceptions import LeaseLost
from celery_misfire.leadership.deployment import redirect
from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.ledger import Commit, Ledger
from celery_misfire.log_lines import Log
from celery_misfire.sending.dispatch import Oversight, Publisher, Run, TwoStep
from celery_misfire.sending.transactional import Transactional
from celery_misfire.store.port import LeaseValue, Store
from celery_misfire.store.state_mark import Destination

say = Log(__name__, "beat")

#: The place of the broker is looked at so often, in seconds: it may have failed over to another server.
LOOK_EVERY = 60.0


class DispatchChoice:
    """A dispatch that finds out by itself which way is safe.

    The lease is a random token. Where the broker's own connection reads it under the store's key, the two are
    one database, whatever their URLs say.
    """

    def __init__(
        self, store: Store, lease: Lease, ledger: Ledger, publisher: Publisher, oversight: Oversight
    ) -> None:
        self._store, self._lease, self._ledger, self._publisher = store, lease, ledger, publisher
        self._steady, self._two_step = oversight.steady, TwoStep(ledger, publisher, oversight)
        self._transactional = Transactional(ledger, publisher, self._two_step, oversight)
        #: What was looked at last: the token, and when it is to be looked at again.
        self._token, self._look_at = "", 0.0
        self._said: bool | None = None
        #: Where the runs of the state go, as this beat has noted it or found it to be right.
        self._noted: Destination | None = None

    def connect(self) -> None:
        """Make sure that the broker can be reached. :raises BrokerUnavailable: when it cannot."""
        self._publisher.connect()
        self._token = ""

    def look(self) -> None:
        """Find out where the broker is, if that is not known for this lease.

        :raises BrokerUnavailable: when the broker failed.
        :raises StoreUnavailable, LeaseLost: as :meth:`Store.commit`.
        """
        known = self._token == self._lease.token and self._steady() < self._look_at
        if known and self._publisher.was_asked:
            return
        # Until the answer is there, nothing is sent, and messages are where they were.
        found = self._publisher.read(self._store.lease_key)
        shared = found is not None and LeaseValue.parse(found).token == self._lease.token
        if self._ledger.holds_messages and not shared:
            # A lease that is gone says nothing about the place.
            self._store.commit(self._lease.token, [])
        self._ledger.holds_messages = shared
        self._note_destination()
        self._token, self._look_at = self._lease.token, self._steady() + LOOK_EVERY
        if shared is not self._said:
            text = _IN_ONE if shared else _IN_TWO
            say.info("dispatch", "%s", text)
        self._said = shared

    def _note_destination(self) -> None:
        """Note in the state where its runs go, so that a beat of another deployment leaves it alone.

        :raises LeaseLost: they go elsewhere, and the broker did not tell so when this beat began to lead.
        """
        ours, (mark, _) = self._publisher.destination(self._store.place_keys), self._store.look()
        known = mark.destination if mark else None
        difference = ours.difference(known) if known else ""
        if difference and known != self._noted:
            self._lease.release()
            raise LeaseLost(f"given up: the runs of {self._store} go elsewhere, {difference}")
        if difference:
            # The broker has become another one under this beat.
            redirect(self._store, self._lease.token, ours, difference)
        elif known is None or (ours.place and not known.place):
            self._store.write_destination(self._lease.token, ours)
        else:
            ours = known
        self._noted = ours

    @property
    def queue_length(self) -> int:
        """Messages in the longest queue that the last runs went to; 0 where that is not known."""
        return self._transactional.queue_length if self._ledger.holds_messages else 0

    def carry_out(self, commit: Commit, runs: Iterable[Run]) -> None:
        way = self._transactional if self._ledger.holds_messages else self._two_step
        way.carry_out(commit, runs)


_IN_ONE = "messages and state share a database: each run is sent in one transaction with its record"
_IN_TWO = "messages and state are in different places: each run is sent in two steps, claim and ack around it"
