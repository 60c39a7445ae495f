"""Who leads: a lease in the store, renewed by a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable

from celery_misfire.conf.problems import MAX_LINE_LENGTH
from celery_misfire.exceptions import LeaseLost, StoreUnavailable
from celery_misfire.store.redis_store import NO_STATE, Acquired, RedisStore
from celery_misfire.texts import describe_error, one_line

__all__ = ["Lease", "uptime"]

logger = logging.getLogger(__name__)

#: The thread stops renewing when the main loop has not been seen for so long, in seconds: a beat that is
#: stuck must not keep the others from working.
STALL_LIMIT = 60.0

#: Share of the time to live for which the lease is trusted without asking again.
TRUST = 0.8


def uptime() -> float:
    """Return seconds on a clock that nobody sets and that counts suspended time, where there is one."""
    return time.clock_gettime(_CLOCK) if _CLOCK is not None else time.monotonic()


_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)


class Lease:
    """The right to decide, for as long as it is renewed.

    That it is held is an optimisation: what makes a decision safe is that every commit checks the token.

    :param ttl: seconds for which the store keeps the lease without a renewal.
    :param renew_every: seconds between two renewals.
    """

    def __init__(
        self, store: RedisStore, ttl: float, renew_every: float, clock: Callable[[], float] = uptime
    ) -> None:
        self._store, self._ttl, self._renew_every, self._clock = store, ttl, renew_every, clock
        self._lock = threading.Lock()
        self._token: str | None = None
        self._value = ""
        self._renewals = 0
        self._trusted_until = 0.0
        self._main_loop_seen = clock()
        self._seen: tuple[str, float] = ("", clock())
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        #: True when the lease was seen to be renewed by somebody else since we last led.
        self.other_was_alive = False
        #: True when somebody else has had the lease since then: what we remember is old.
        self.superseded = False

    @property
    def token(self) -> str:
        """The token of the lease; '' when it is not ours. A commit with '' is refused by the store."""
        return self._token or ""

    @property
    def held(self) -> bool:
        """True when the lease is ours as far as we know."""
        return self._token is not None and self._clock() < self._trusted_until

    @property
    def holder(self) -> str:
        """Host and process of the other beat that holds the lease, as last seen; '' if its state is gone."""
        return one_line(self._seen[0].split("|")[-1])

    def main_loop_is_alive(self) -> None:
        """Tell the renewing thread that the main loop goes on."""
        self._main_loop_seen = self._clock()

    def acquire(self) -> Acquired | None:
        """Try to take the lease; None when another beat holds it.

        A lease that has not changed for a whole time to live on our own clock is taken over, whatever the
        store's clock says (it may have been set back). Our own, when its trust ran out, is taken again. A
        store that lost its state under another beat is left to that one for as long: if it is alive, it
        restores the state from its memory.

        :raises StoreUnavailable, NewerSchema: as :meth:`RedisStore.acquire`.
        """
        value, since = self._seen
        stale = value if value and self._clock() - since >= self._ttl else ""
        token, asked = uuid.uuid4().hex, self._clock()
        answer = self._store.acquire(token, self._ttl, self._value or stale, yields=value != "")
        if isinstance(answer, str) and self._value and answer.startswith(f"{self._token}|"):
            # Renewed by the thread in the meantime.
            answer = self._store.acquire(token, self._ttl, answer)
        if isinstance(answer, str):
            if answer != value:
                self.other_was_alive = self.other_was_alive or (value != "" and answer != NO_STATE)
                self._seen = (answer, self._clock())
            self.superseded = True
            self._forget()
            return None
        with self._lock:
            self._token, self._value, self._renewals = token, answer.value, 0
            self._trusted_until = asked + self._ttl * TRUST
            self._main_loop_seen = self._clock()
            self._seen = ("", self._clock())
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._keep, name="misfire-lease", daemon=True)
            self._thread.start()
        return answer

    def lost(self) -> None:
        """Note that the store says that the lease is not ours any more."""
        self._forget()

    def release(self) -> None:
        """Stop renewing and give the lease up, if the store can be reached."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=self._ttl)
        self._thread, self._stop = None, threading.Event()
        self._trusted_until = 0.0
        if self._token is not None:
            try:
                self._store.release(self._token)
            except StoreUnavailable as exc:
                # It stays ours, and is taken again if we go on.
                logger.warning("beat: the lease could not be given up and will run out: %s", exc)
                return
        self._forget()

    def _forget(self) -> None:
        with self._lock:
            self._token, self._value, self._trusted_until = None, "", 0.0

    def _keep(self) -> None:
        stop = self._stop
        while not stop.wait(self._renew_every):
            if self._token is not None and self._clock() - self._main_loop_seen < STALL_LIMIT:
                try:
                    self._renew()
                except Exception as exc:
                    # Without this thread the lease would run out again and again.
                    logger.error("beat: the lease could not be renewed: %s", describe_error(exc))

    def _renew(self) -> None:
        with self._lock:
            token, value = self._token, self._value
            if token is None:
                return
            _, epoch, _, owner = value.split("|")
            self._renewals += 1
            new_value = f"{token}|{epoch}|{self._renewals}|{owner}"
        asked = self._clock()
        try:
            told = self._store.renew(token, new_value, self._ttl)
        except LeaseLost:
            with self._lock:
                if self._token == token:
                    self._token, self._value, self._trusted_until = None, "", 0.0
        except StoreUnavailable:
            # The main loop finds out by itself when the trust has run out, or at its next commit.
            return
        else:
            with self._lock:
                if self._token == token:
                    self._value, self._trusted_until = new_value, asked + self._ttl * TRUST
            if told:
                logger.warning("beat: %s", one_line(told, MAX_LINE_LENGTH))
