"""Keeps a beat away from the state of another deployment, whose runs go elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from celery_misfire.beats import Sign
from celery_misfire.clocks import uptime
from celery_misfire.exceptions import StoreRefused
from celery_misfire.log_lines import Log
from celery_misfire.store import owner
from celery_misfire.store.port import LeaseValue, Store
from celery_misfire.store.state_mark import Destination
from celery_misfire.texts import one_line
from celery_misfire.trouble import Reminders

say = Log(__name__, "beat")

#: A refusal is repeated, and the broker asked again where our runs go, so often, in seconds.
REMIND_EVERY = 60.0

#: The way out.
TWO_DEPLOYMENTS = "If these are two deployments, give each a misfire_namespace of its own."


class Deployment:
    """Compares where our runs go with where those of the state go; for a beat that does not lead.

    :param ask: returns where our runs go, None when the broker does not answer.
    :param ttl: seconds for which a beat may be silent.
    :param clock: returns seconds on a clock that nobody sets.
    """

    def __init__(
        self,
        store: Store,
        ask: Callable[[], Destination | None],
        ttl: float,
        clock: Callable[[], float] = uptime,
    ) -> None:
        self._store, self._ask, self._ttl, self._clock = store, ask, ttl, clock
        self._ours: Destination | None = None
        #: The destination of the state when the broker was asked last, and when it is asked again.
        self._asked_about: Destination | None = None
        self._ask_at = 0.0
        #: When the state was found to be another one's, and the lease of that moment.
        self._found: tuple[float, LeaseValue | None] | None = None
        #: How the destination of a state that may be adopted differs from ours, '' when it does not.
        self._adopts = ""
        #: True when there is no state with other keys that we could go on with.
        self._former_is_settled = False
        #: True when our broker has answered since the start.
        self.broker_has_answered = False
        #: The term of the beat that leads, if its broker has not answered, else 0; and when to look again.
        self._silent_term, self._look_at = 0, 0.0
        #: What is said once a beat whose runs go elsewhere has been seen alive, '' before.
        self._refusal = ""
        self._reminders = Reminders(REMIND_EVERY)

    def why_not(self) -> str:
        """Return why this beat must not lead, '' when it may.

        A state whose runs go elsewhere is left to its own beat. It is adopted only where that beat gives no
        sign of life for as long as a lease lasts. So is one of which the broker does not tell whether it is
        ours.

        :raises StoreUnavailable, NewerSchema: as :meth:`Store.look`.
        """
        mark, lease = self._store.look()
        self._adopts = ""
        if mark is None and not self._refusal and not self._former_is_settled:
            return self._about_former()
        theirs = mark.destination if mark else None
        is_free = lease is None or owner.is_dead(lease.owner)
        difference = self._difference(theirs, is_free=is_free) if theirs else ""
        if theirs and self._ours is None and is_free:
            return self._wait("the broker does not tell whether this state is ours", lease)
        # A state that is gone may be written again by the beat that was seen.
        if not difference and (theirs is not None or not self._refusal):
            self._found, self._refusal = None, ""
            return ""
        if not self._refusal and self._is_alive(lease):
            self._refusal = self._refused(lease, difference)
            self._store.tell_leader(self._refusal)
        if self._refusal:
            if self._reminders.is_due(self._refusal, self._clock()):
                say.error("deployments", "%s", self._refusal)
            return "the state is that of another deployment"
        if not (reason := self._wait("the runs of this state go elsewhere", lease)):
            self._adopts = difference
        return reason

    def relieved(self) -> LeaseValue | None:
        """Return the lease of a beat that is to lead no more: its broker never answers it, and ours does.

        That is one whose broker has not answered since it was started, at two looks of ours, which are one
        time to live apart. Two beats do not take it from each other by turns: the broker of the one that
        takes it has answered.

        :raises StoreUnavailable: as :meth:`Store.sight`.
        """
        if self._clock() < self._look_at:
            return None
        self._look_at = self._clock() + self._ttl
        sight, before = self._store.sight(), self._silent_term
        lease, self._silent_term = sight.lease, 0
        sign = Sign.parse(sight.beats.get(lease.owner, (0, ""))[1]) if lease else None
        if lease is None or sign is None or sign.broker_has_answered:
            return None
        self._silent_term = lease.epoch
        if lease.epoch != before:
            return None
        mark, _ = self._store.look()
        ours, theirs = self._ask_broker(), mark.destination if mark else None
        if ours is None or (theirs and ours.difference(theirs)):
            return None
        what = "the lease is taken over: the broker of %s, which holds it, has not answered since its start"
        say.info("takes_over", what, one_line(owner.name_of(lease.owner)))
        return lease

    def adopt(self, token: str) -> None:
        """Note that the runs of a state that was another deployment's go elsewhere from now on.

        :param token: of the lease, which is ours by now.
        :raises StoreUnavailable, LeaseLost: as :meth:`Store.write_destination`.
        """
        if self._adopts and self._ours:
            redirect(self._store, token, self._ours, self._adopts)

    def forget(self) -> None:
        """Ask again whose state it is: the lease that we had is lost."""
        self._ours, self._found = None, None

    def _about_former(self) -> str:
        """Look after a state that has other keys, as ours have got a prefix: keep it, if it is ours."""
        mark, lease = self._store.look_at_former()
        theirs = mark.destination if mark else None
        difference = self._difference(theirs, is_free=lease is None) if theirs else ""
        if mark is None or (difference and self._is_alive(lease)):
            self._found, self._former_is_settled = None, True
            return ""
        if mark.destination and self._ours is None:
            return "a state has keys without a prefix, and the broker does not tell whether it is ours"
        if lease is not None:
            return f"another beat leads, with keys that have no prefix ({one_line(lease.owner)})"
        if difference and (reason := self._wait("the runs of this state go elsewhere", lease)):
            return reason
        try:
            moved = self._store.take_former()
        except StoreRefused as exc:
            what = "a state with keys that have no prefix cannot be moved"
            say.warning("moved", "%s: %s", what, exc)
            moved, self._former_is_settled = False, True
        if moved:
            what = "a state was found with keys that have no prefix, and has moved to those that have it"
            where = f"; {difference}. {TWO_DEPLOYMENTS}" if difference else ""
            say.warning("moved", "%s%s", what, where)
            self._adopts = difference
        self._found = None
        return "" if moved or self._former_is_settled else "a state with keys that have no prefix has changed"

    def _is_alive(self, lease: LeaseValue | None) -> bool:
        """Return True when the beat of the state that was found has given a sign of life since then."""
        self._found = self._found or (self._clock(), lease)
        return lease not in (None, self._found[1])

    def _wait(self, why: str, lease: LeaseValue | None) -> str:
        """Return why we must still wait for the beat of the state that was found, '' when it had its time."""
        self._found = self._found or (self._clock(), lease)
        return "" if self._clock() - self._found[0] >= self._ttl else f"{why}; waiting for its beat"

    def _difference(self, theirs: Destination, *, is_free: bool) -> str:
        """Return in words how our destination differs from that of the state, '' if not that we know.

        :param is_free: nobody leads.
        """
        is_news = theirs != self._asked_about or self._clock() >= self._ask_at
        is_known = self._ours is not None and not self._ours.difference(theirs)
        if (is_news and not is_known) or (is_free and self._ours is None):
            self._asked_about, self._ask_at = theirs, self._clock() + REMIND_EVERY
            self._ours = self._ask_broker() or self._ours
        return self._ours.difference(theirs) if self._ours else ""

    def _ask_broker(self) -> Destination | None:
        destination = self._ask()
        self.broker_has_answered |= destination is not None
        return destination

    def _refused(self, lease: LeaseValue | None, difference: str) -> str:
        owner = one_line(lease.owner) if lease else ""
        return (
            f"{self._store} is that of another beat ({owner}), whose runs go elsewhere: {difference}. "
            f"{self._store.process} sends nothing, so that no run lands in the wrong queue. "
            f"{TWO_DEPLOYMENTS} "
            "If the other one was this beat before its configuration changed, end it and restart this one."
        )


def redirect(store: Store, token: str, ours: Destination, difference: str) -> None:
    """Note in the state that its runs go elsewhere from now on, and say so.

    :param difference: what differs from where they went.
    :raises StoreUnavailable, LeaseLost: as :meth:`Store.write_destination`.
    """
    what = "the runs of %s go elsewhere from now on: %s (there: until now, here: from now on). %s"
    say.warning("deployments", what, store, difference, TWO_DEPLOYMENTS)
    store.write_destination(token, ours)
