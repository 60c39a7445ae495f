"""One process of beat on a clock that somebody else turns, for virtual beats and our own simulations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from celery_misfire.leadership.deployment import Deployment
from celery_misfire.leadership.leader import Leader
from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.member import Member
from celery_misfire.records import Definition
from celery_misfire.sending.dispatch import Attempt, Fate, Message, Publisher
from celery_misfire.sending.missed_runs import Report
from celery_misfire.store.port import LeaseValue, Push, Store, Taken
from celery_misfire.store.state_mark import Destination

#: The lease of the only beat lasts as long as any test, in seconds: nobody renews it.
_FOR_EVER = 1e9


class _Lease(Lease):
    """A lease that whoever turns the clock renews, from its taking to its release."""

    is_kept = False

    def acquire(self, relieved: LeaseValue | None = None) -> Taken | None:
        taken = super().acquire(relieved)
        self.is_kept |= taken is not None
        return taken

    def release(self, in_time_since: int | None = None) -> None:
        self.is_kept = False
        super().release(in_time_since)

    def renew(self) -> None:
        self._renew()

    def _keep(self) -> None:
        """Do nothing: no thread."""


class BeatProcess:
    """One process of beat, from the lease to the plan, on a clock that somebody else turns.

    :param publisher: stands in for Celery and its broker.
    :param now: returns the time, in milliseconds UTC.
    :param definitions: returns the entries as they are now.
    :param lease_times: time to live, time between two renewals, time between two looks of a standby, in
        seconds.
    :param hear: gets each report of missed runs that is to be made.
    :param deployment: see :class:`Member`.
    :param sign: what it says of itself with each call for the lease.
    :param options: further keywords for :class:`Leader`.
    """

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        now: Callable[[], int],
        definitions: Callable[[], Iterable[Definition]],
        *,
        namespace: str = "testing",
        lease_times: tuple[float, float, float] = (_FOR_EVER, _FOR_EVER, 1.0),
        hear: Callable[[Report], object] = lambda report: None,
        deployment: Deployment | None = None,
        sign: Callable[[], str] = str,
        **options: Any,
    ) -> None:
        def steady() -> float:
            return now() / 1000

        ttl, self._renew_every, poll = lease_times
        self._now, self._next_renewal, self._hear = now, 0, hear
        #: Reports that are made, and of which beat has not heard yet.
        self.reports: list[Report] = []
        self.lease = _Lease(store, ttl, self._renew_every, steady, sign=sign)
        self.leader = Leader(
            store, self.lease, publisher, self, namespace=namespace, wall=now, steady=steady, **options
        )
        self.member = Member(
            store,
            self.lease,
            self.leader,
            app="",
            namespace=namespace,
            poll=poll,
            description=("", ""),
            definitions=definitions,
            deployment=deployment,
            steady=steady,
        )

    def tick(self) -> float:
        """Renew the lease if it is time for that, and do one piece of work; return the time to sleep."""
        if self.lease.is_kept and self._next_renewal <= self._now():
            self.lease.renew()
            self._next_renewal = self._now() + round(self._renew_every * 1000)
        return self.member.tick()

    # The reporter

    def submit(self, report: Report) -> None:
        self._hear(report)
        self.reports.append(report)

    def finished(self) -> list[Report]:
        done, self.reports = self.reports, []
        return done


class Unsent(Publisher):
    """A broker that takes every message and hands it to a list.

    :param messages: gets the messages, in the order of sending.
    """

    was_asked = True

    def __init__(self, messages: list[Message]) -> None:
        self._messages = messages

    def connect(self) -> None:
        pass

    def read(self, key: str) -> str | None:
        return None

    def destination(self, keys: Sequence[str]) -> Destination:
        return Destination("memory", "", "celery")

    def publish(self, message: Message) -> Attempt:
        self._messages.append(message)
        return Attempt(Fate.SENT)

    def settle(self, *, may_send: bool) -> Mapping[str, Attempt]:
        return {}

    def build(self, message: Message) -> tuple[Attempt, list[Push]]:
        raise NotImplementedError("its messages and the state are in different places")

    def sends_early(self, task: str) -> bool:
        return False
