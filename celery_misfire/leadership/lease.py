"""Who leads: a lease in the store, renewed by a thread of its own."""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Callable

from celery_misfire.clocks import uptime
from celery_misfire.conf.problems import MAX_LINE_LENGTH
from celery_misfire.exceptions import LeaseLost, StoreUnavailable
from celery_misfire.log_lines import Log
from celery_misfire.store import owner
from celery_misfire.store.port import Held, LeaseValue, NoState, Store, Taken
from celery_misfire.texts import describe_error, one_line

say = Log(__name__, "beat")

#: The thread stops renewing when the main loop has not been seen for so many seconds: a beat that is stuck
#: must not keep the others from working.
STALL_LIMIT = 60.0

#: The thread wakes so often, in seconds. When it has not for longer than FROZEN, the process was not running.
PULSE = 0.5
FROZEN = 2.0

#: So many tokens that got no answer are remembered.
MOST_ASKED = 100

#: Share of the time to live for which the lease is trusted without asking again.
TRUST = 0.8


class Lease:
    """The right to decide, for as long as it is renewed.

    To hold it is an optimisation: a decision is safe because every commit checks the token.

    :param ttl: seconds for which the store keeps the lease without a renewal.
    :param renew_every: seconds between two renewals.
    :param clock: returns seconds on a clock that nobody sets.
    :param is_dead: returns whether the owner of a lease is known to have ended.
    :param sign: returns what this beat says of itself with each call (:mod:`celery_misfire.beats`).
    """

    def __init__(
        self,
        store: Store,
        ttl: float,
        renew_every: float,
        clock: Callable[[], float] = uptime,
        is_dead: Callable[[str], bool] = owner.is_dead,
        sign: Callable[[], str] = str,
    ) -> None:
        self._store, self._ttl, self._renew_every, self._clock = store, ttl, renew_every, clock
        self._is_dead, self._sign = is_dead, sign
        #: True when somebody has left a request for the leader.
        self.is_asked = False
        #: Guards `_ours`, `_known` and `_trusted_until`, which the thread changes too.
        self._lock = threading.Lock()
        self._ours: LeaseValue | None = None
        #: How many renewals the store is known to have had of it.
        self._known = 0
        self._trusted_until = 0.0
        self._main_loop_seen = clock()
        #: When the thread has woken last, None while it is at work; and whether it woke too late since the
        #: last look.
        self._pulse: float | None = None
        self._has_frozen = False
        #: The last tokens that were asked for without an answer. A lease that has one of them is ours.
        self._asked_for: deque[str] = deque(maxlen=MOST_ASKED)
        #: What was found in the place of our lease, and since when it has been the same.
        self._found: LeaseValue | NoState | None = None
        self._found_since = clock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        #: What the beat that leads has said of its configuration, as last seen.
        self.holder_description = ""
        #: True when another beat was seen to renew the lease since this one last led.
        self.other_was_alive = False
        #: True when another beat has had the lease since this one last led: what is in memory is old.
        self.superseded = False

    @property
    def token(self) -> str:
        """The token of the lease; '' when it is not ours. A commit with '' is refused by the store."""
        ours = self._ours
        return ours.token if ours else ""

    @property
    def held(self) -> bool:
        """True when the lease is ours as far as we know."""
        return self._ours is not None and self._clock() < self._trusted_until

    @property
    def remaining(self) -> float:
        """For how many seconds the lease is ours without a renewal, as far as we know."""
        return max(0.0, self._trusted_until - self._clock()) if self._ours is not None else 0.0

    @property
    def holder(self) -> str:
        """Host and process of the other beat that holds the lease, as last seen; '' if its state is gone."""
        return one_line(owner.name_of(self._found.owner)) if isinstance(self._found, LeaseValue) else ""

    def main_loop_is_alive(self) -> None:
        """Tell the renewing thread that the main loop goes on."""
        self._main_loop_seen = self._clock()

    def acquire(self, relieved: LeaseValue | None = None) -> Taken | None:
        """Try to take the lease; None when another beat holds it.

        A lease that has not changed for a whole time to live on our own clock is taken over, whatever the
        store's clock says (it may have been set back). Our own, when its trust ran out, is taken again, and
        that of a process that is known to have ended is taken at once. A
        store that lost its state under another beat is left to that beat for one time to live: if it is
        alive, it restores the state from its memory.

        :param relieved: the lease of a beat that is of no use, see :meth:`.Deployment.relieved`. It is taken
            over as well.
        :raises StoreUnavailable, NewerSchema: as :meth:`Store.acquire`.
        """
        unchanged = self._clock() - self._found_since >= self._ttl
        stale = self._found if unchanged and isinstance(self._found, LeaseValue) else None
        left_alone = self._found is not None and not (unchanged and self._found == NoState())
        token, asked, ours = uuid.uuid4().hex, self._clock(), self._ours
        # A new token each time: none that was used may become valid again.
        self._asked_for.append(token)
        seen = ours or stale or relieved
        answer = self._store.acquire(token, self._ttl, seen, needs_state=left_alone, sign=self._sign())
        if isinstance(answer, Held) and self._may_be_taken(answer.lease):
            answer = self._store.acquire(token, self._ttl, answer.lease)
        if not isinstance(answer, Taken):
            self._note_other(answer)
            return None
        with self._lock:
            self._ours, self._known = answer.lease, 0
            self._trusted_until = asked + self._ttl * TRUST
        self._main_loop_seen = self._clock()
        self._found = None
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._keep, name="misfire-lease", daemon=True)
            self._thread.start()
        return answer

    def _may_be_taken(self, lease: LeaseValue) -> bool:
        """True for a lease that nobody else will renew."""
        if lease.token in {self.token, *self._asked_for} - {""}:
            # The thread has renewed it in the meantime, or it was taken and we were not told.
            return True
        if is_dead := self._is_dead(lease.owner):
            name = one_line(owner.name_of(lease.owner))
            say.info("takes_over", "the lease is taken over at once: %s, which held it, has ended", name)
        return is_dead

    def _note_other(self, answer: Held | NoState) -> None:
        found: LeaseValue | NoState = answer.lease if isinstance(answer, Held) else answer
        self.holder_description = answer.description if isinstance(answer, Held) else ""
        if found != self._found:
            renewed = self._found is not None and isinstance(found, LeaseValue)
            self.other_was_alive = self.other_was_alive or renewed
            self._found, self._found_since = found, self._clock()
        self.superseded = True
        self.lost()

    def distrust(self) -> None:
        """Have the lease taken again, under another token, before anything is decided."""
        with self._lock:
            self._trusted_until = 0.0

    def lost(self) -> None:
        """Note that the store says that the lease is not ours any more."""
        with self._lock:
            self._ours, self._trusted_until = None, 0.0

    def release(self, in_time_since: int | None = None) -> None:
        """Stop renewing and give the lease up, if the store can be reached.

        :param in_time_since: this is a clean stop, see :meth:`Store.release`.
        """
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=self._ttl)
        self._thread, self._stop = None, threading.Event()
        self._trusted_until = 0.0
        if self.token:
            try:
                self._store.release(self.token, in_time_since)
            except StoreUnavailable as exc:
                # It stays ours, and is taken again if we go on.
                say.warning("store_unavailable", "the lease could not be given up and will run out: %s", exc)
                return
        self.lost()

    def was_frozen(self) -> bool:
        """Return True when this process was stopped or suspended for a while since the last call."""
        has_frozen, self._has_frozen = self._has_frozen, False
        return has_frozen or self._is_overdue()

    def _is_overdue(self) -> bool:
        pulse = self._pulse
        return pulse is not None and self._clock() - pulse > FROZEN

    def _keep(self) -> None:
        stop, pulse = self._stop, min(PULSE, self._renew_every)
        renew_in = pulses = round(self._renew_every / pulse)
        self._pulse = self._clock()
        while not stop.wait(pulse):
            is_late = self._is_overdue()
            self._has_frozen |= is_late
            renew_in -= 1
            if is_late or not renew_in:
                # A call that takes its time is no freeze.
                self._pulse, renew_in = None, pulses
                self._renew_safely()
            self._pulse = self._clock()
        self._pulse = None

    def _renew_safely(self) -> None:
        if self._clock() - self._main_loop_seen < STALL_LIMIT:
            try:
                self._renew()
            except Exception as exc:
                # Without this thread the lease would run out again and again.
                say.error("unexpected_error", "the lease could not be renewed: %s", describe_error(exc))

    def _renew(self) -> None:
        with self._lock:
            ours, known, asked = self._ours, self._known, self._clock()
        if ours is None:
            return
        renewed = ours.renewed()
        try:
            note, asked_for = self._store.renew(renewed, self._ttl, known, sign=self._sign())
        except LeaseLost:
            self._replace(ours, None, 0, 0.0)
        except StoreUnavailable:
            # The trust runs out by itself, or the main loop's next commit fails. The renewal may have
            # arrived, so the next one needs another number: a standby must see that the leader is alive.
            self._replace(ours, renewed, known, self._trusted_until)
        else:
            self._replace(ours, renewed, renewed.renewals, asked + self._ttl * TRUST)
            self.is_asked = self.is_asked or asked_for
            if note:
                say.warning("beats_differ", "%s", one_line(note, MAX_LINE_LENGTH))

    def _replace(self, ours: LeaseValue, value: LeaseValue | None, known: int, trusted_until: float) -> None:
        """Keep what became of our lease, unless the main loop has taken or lost it in the meantime."""
        with self._lock:
            if self._ours is ours:
                self._ours, self._known, self._trusted_until = value, known, trusted_until
