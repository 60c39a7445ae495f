"""One beat among those of its namespace: it leads, or it stands by and waits for its turn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

from celery_misfire.clocks import uptime
from celery_misfire.exceptions import LeaseLost, MisfireError, NewerSchema, StoreRefused, StoreUnavailable
from celery_misfire.leadership.deployment import Deployment
from celery_misfire.leadership.leader import Leader
from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.ledger import Outdated
from celery_misfire.leadership.peers import difference
from celery_misfire.log_lines import Log
from celery_misfire.records import Definition
from celery_misfire.store.port import Store
from celery_misfire.texts import quote_name
from celery_misfire.trouble import Reminders, Trouble

say = Log(__name__, "beat")

#: A trouble that goes on is mentioned again so often, in seconds.
REMIND_EVERY = 60.0
#: Longest sleep while the store is away, in seconds.
LONGEST_WAIT_FOR_STORE = 1.0
_NAMESPACES = "If they are two projects, give each a misfire_namespace of its own."


class Member:
    """Takes the lease, leads, and stands by.

    :param app: name of the app.
    :param namespace: for the log.
    :param poll: time between two looks at the lease of another beat, in seconds.
    :param description: what this beat and its entries are configured like, see :mod:`.peers`.
    :param definitions: returns the entries as they are now.
    :param deployment: says why this beat must not begin to lead; None: it may.
    :param steady: a clock that nobody sets, in seconds.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        leader: Leader,
        *,
        app: str,
        namespace: str,
        poll: float,
        description: tuple[str, str],
        definitions: Callable[[], Iterable[Definition]],
        deployment: Deployment | None = None,
        steady: Callable[[], float] = uptime,
    ) -> None:
        self._store, self._lease, self._leader = store, lease, leader
        self._app, self._namespace, self._poll = app, namespace, poll
        self._description, self._definitions = description, definitions
        self._deployment, self._steady = deployment, steady
        #: True when the entries have changed since they were adopted.
        self.has_changed = False
        #: True while this beat leads, as far as it has been told.
        self._leads = False
        self._store_has_answered = False
        self._ask_again_at = 0.0
        self._trouble, self._failures = Trouble(), Reminders(REMIND_EVERY)
        self._reminders = Reminders(REMIND_EVERY)
        self._standby_text = ""
        self._compared_with = ""

    @property
    def holds_lease(self) -> bool:
        """True while this beat may decide."""
        return self._lease.held

    @property
    def broker_has_answered(self) -> bool:
        """True when the broker has answered since the start, whether this beat led or not."""
        asked = self._deployment is not None and self._deployment.broker_has_answered
        return asked or self._leader.broker_has_answered

    @property
    def store_is_up(self) -> bool:
        """True while the store answers."""
        return self._store_has_answered and not self._trouble.is_on

    def tick(self) -> float:
        """Do one piece of work; return how many seconds may pass before the next.

        :raises StoreRefused: when the store refuses us, and has done so since the start.
        """
        self._lease.main_loop_is_alive()
        try:
            if not self._lease.held and not self._take_over():
                return max(0.05, min(self._ask_again_at - self._steady(), self._poll))
            if self.has_changed:
                self._adopt()
            delay = self._leader.tick()
        except LeaseLost as exc:
            self._lease.lost()
            if self._deployment:
                self._deployment.forget()
            self._stand_by(f"the lease is lost ({exc})" if str(exc) else "the lease is lost")
            return 0.05
        except Outdated:
            # The lease is taken again, and what was begun is begun anew.
            return 0.0
        except (StoreUnavailable, NewerSchema) as exc:
            if isinstance(exc, StoreRefused) and not self._store_has_answered:
                # Somebody has just started beat: an end is seen at once, a line in the log later.
                raise
            if self._leads:
                # Our own lease is taken again as soon as the store answers.
                self._ask_again_at = 0.0
            self._store_failed(exc)
            return min(LONGEST_WAIT_FOR_STORE, self._poll)
        self._store_answers()
        return delay

    def close(self) -> None:
        """Give the lease up, so that another beat can go on at once."""
        stands_by = not self._lease.token
        # A beat in trouble leaves no mark: what it could not send is no matter of a restart.
        works = self._leads and self._lease.held
        self._lease.release(self._leader.in_time_since if works else None)
        if stands_by and self._store_has_answered and not self._trouble.is_on:
            # The lease is not ours. What is taken back is the sign of life.
            with suppress(StoreUnavailable):
                self._store.release("")

    def _adopt(self) -> None:
        self.has_changed = False
        try:
            self._leader.adopt(self._definitions())
        except BaseException:
            # Half of it is done.
            self.has_changed = True
            raise

    # -- taking over ---------------------------------------------------------------------------------------

    def _take_over(self) -> bool:
        """Ask for the lease; True when it is ours and the state is in memory."""
        if self._steady() < self._ask_again_at:
            return False
        self._ask_again_at = self._steady() + self._poll
        advice = () if self._store_has_answered else self._store.advice()
        if self._deployment and not self._leads and (reason := self._deployment.why_not()):
            self._pass_on(advice)
            self._store_answers()
            self._stand_by(reason)
            return False
        taken = self._lease.acquire()
        if taken is None and self._deployment and (relieved := self._deployment.relieved()):
            taken = self._lease.acquire(relieved)
        if taken is None:
            self._pass_on(advice)
            self._store_answers()
            leader = self._lease.holder
            self._stand_by(f"another beat leads ({leader})" if leader else "the other beat's state has gone")
            self._compare()
            return False
        if taken.app not in ("", self._app):
            begun, ours = quote_name(taken.app), quote_name(self._app)
            what = f"the state of {self._namespace!r} was begun by the app {begun}, this is {ours}"
            self.remind(f"{what}. {_NAMESPACES}")
        try:
            self.has_changed = False
            self._leader.take_over(taken, self._definitions())
            self._store.describe(self._lease.token, *self._description)
            if self._deployment:
                self._deployment.adopt(taken.lease.token)
        except BaseException:
            # Half a take-over is none: the lease must not be trusted, or tick() would go on without it.
            self._lease.release()
            self._ask_again_at = 0.0
            raise
        self._pass_on(advice)
        self._ask_again_at = 0.0
        if not self._leads:
            say.info("lead", "leading, with %s", self._store, owner=self._store.process, epoch=taken.epoch)
        self._leads = True
        return True

    def _pass_on(self, advice: Iterable[str]) -> None:
        """Say, once, what is unwise about a store that works otherwise."""
        self._store_has_answered = True
        for line in advice:
            say.warning("advice", "%s", line)

    def _compare(self) -> None:
        """Say once to both, if the beat that leads is configured otherwise than this one."""
        theirs = self._lease.holder_description
        # A beat that died, as the predecessor of this one may have, does not matter.
        if not self._lease.other_was_alive or theirs in ("", self._compared_with, self._description[0]):
            return
        self._compared_with = theirs
        if found := difference(self._description, (theirs, self._store.description()[1])):
            beats = f"{self._store.process}, which stands by, and {self._lease.holder}, which leads"
            text = f"two beats of one namespace are configured differently, {beats}: {found}. {_NAMESPACES}"
            say.warning("beats_differ", "%s", text, owner=self._store.process)
            self._store.tell_leader(text)

    # -- what is said --------------------------------------------------------------------------------------

    def remind(self, text: str) -> None:
        """Say what stays wrong, now and from time to time."""
        if self._reminders.is_due(text, self._steady()):
            say.warning("problem", "%s", text, owner=self._store.process)

    def _stand_by(self, why: str) -> None:
        if self._leads or why != self._standby_text:
            level = logging.WARNING if self._leads else logging.INFO
            say.at(level, "standby", "%s; standing by", why, owner=self._store.process)
        self._standby_text, self._leads = why, False

    def _store_failed(self, exc: MisfireError) -> None:
        self._trouble.fail(self._steady())
        if self._failures.is_due(str(exc), self._steady()):
            say.warning("store_unavailable", "%s; standing by", exc, owner=self._store.process)

    def _store_answers(self) -> None:
        length = self._trouble.end(self._steady())
        if length is not None:
            say.store_available(self._store.server, length, self._store.process)
            self._failures = Reminders(REMIND_EVERY)
