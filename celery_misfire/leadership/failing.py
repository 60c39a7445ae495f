"""Entries that fail by themselves: those that cannot be planned, and those whose runs cannot be sent.

Each is left aside and tried again, more and more seldom, so that it never holds up the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from celery_misfire.events import Broken, Refused
from celery_misfire.exceptions import PublishRejected
from celery_misfire.leadership.ledger import Ledger
from celery_misfire.log_lines import Log
from celery_misfire.sending.dispatch import Attempt
from celery_misfire.texts import describe_error
from celery_misfire.triggers.time_limit import NoAnswer
from celery_misfire.trouble import Trouble

say = Log(__name__, "beat")

#: An entry that cannot be planned is mentioned so often, in seconds.
REMIND_EVERY = 3600.0
#: A schedule that gives no answer is asked again after so many seconds, at the latest.
LONGEST_WAIT_FOR_ANSWER = 60.0

_broken_trouble = partial(Trouble, remind_every=REMIND_EVERY, quiet_for=REMIND_EVERY)


@dataclass
class _Refusal:
    """Why the runs of an entry cannot be sent.

    :param own_fault: the message was refused for what it is; else the broker failed on it.
    """

    trouble: Trouble = field(default_factory=Trouble)
    own_fault: bool = False


class FailingEntries:
    """The entries that fail, for one beat.

    :param steady: a clock that nobody sets, in seconds.
    """

    def __init__(self, ledger: Ledger, steady: Callable[[], float]) -> None:
        self._ledger, self._steady = ledger, steady
        #: Those that were broken once, with those that still are in the order of their last failure.
        self._troubles: dict[str, Trouble] = {}
        self._broken: dict[str, None] = {}
        self._refusals: dict[str, _Refusal] = {}

    def keep(self, names: Collection[str], pending: Collection[str]) -> None:
        """Forget entries that are gone, and refusals of those that have nothing to be sent any more."""
        self._troubles = {n: t for n, t in self._troubles.items() if n in names}
        self._broken = {n: None for n in self._broken if n in names}
        self._refusals = {n: r for n, r in self._refusals.items() if n in pending}

    def forget(self, name: str) -> None:
        """Give an entry that was edited a new chance."""
        self._troubles.pop(name, None)
        self._broken.pop(name, None)

    def next_tries(self) -> Iterable[float]:
        """Yield when, on the steady clock, something that failed is tried again."""
        yield from (refusal.trouble.until for refusal in self._refusals.values())
        yield from (self._troubles[name].until for name in self._broken)

    # -- entries that cannot be planned --------------------------------------------------------------------

    def broke(self, name: str, exc: Exception) -> None:
        """Leave out an entry that cannot be planned, and try again later."""
        steady, trouble = self._steady(), self._troubles.setdefault(name, _broken_trouble())
        # At the end of the line.
        self._broken.pop(name, None)
        self._broken[name] = None
        # A schedule that is still at work is asked again soon, as it costs nothing and may be there.
        wait = min(LONGEST_WAIT_FOR_ANSWER, exc.waited) if isinstance(exc, NoAnswer) else None
        if trouble.fail(steady, wait):
            event = Broken(entry=name, error=type(exc).__name__)
            what = "entry %r cannot be planned and is tried again: %s"
            say.event(logging.ERROR, event, what, name, describe_error(exc))
            self._ledger.note(event)

    def mended(self, name: str) -> None:
        """Note that an entry has been planned."""
        if name in self._broken:
            del self._broken[name]
            if self._troubles[name].end(self._steady()) is not None:
                say.info("mended", "entry %r can be planned again", name, entry=name)

    def is_broken(self, name: str) -> bool:
        return name in self._broken

    def broken_to_try(self) -> Iterator[str]:
        """Yield those broken entries whose next try is due, the one that waits longest first."""
        steady = self._steady()
        return (name for name in self._broken if not self._troubles[name].is_waiting(steady))

    # -- entries whose runs cannot be sent -----------------------------------------------------------------

    def refused(self, name: str, attempt: Attempt) -> None:
        """Leave aside an entry whose message was not sent, and try again later."""
        error = attempt.error or PublishRejected()
        if name not in self._refusals:
            event = Refused(entry=name, error=type(error).__name__)
            what = "entry %r cannot be sent and is tried again: %s"
            say.event(logging.ERROR, event, what, name, describe_error(error))
            self._ledger.note(event)
        refusal = self.leave_aside(name)
        # A schedule that cannot be asked just now says nothing about the message.
        refusal.own_fault = refusal.own_fault or isinstance(error, PublishRejected)

    def leave_aside(self, name: str) -> _Refusal:
        """Let the entry wait before it is tried again."""
        refusal = self._refusals.setdefault(name, _Refusal())
        if not self.waits(name):
            # An entry that waits already does not wait longer because a later run failed as well.
            refusal.trouble.fail(self._steady())
        return refusal

    def sent(self, name: str) -> None:
        """Note that nothing of the entry is left to be sent."""
        self._refusals.pop(name, None)

    def waits(self, name: str) -> bool:
        """Return True while an entry that could not be sent waits for its next try."""
        return name in self._refusals and self._refusals[name].trouble.is_waiting(self._steady())

    def was_refused(self, name: str) -> bool:
        """Return True when the entry's message was refused for what it is."""
        return name in self._refusals and self._refusals[name].own_fault
