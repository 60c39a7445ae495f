"""Whether the broker can be reached, as far as the leading beat knows."""

from __future__ import annotations

from collections.abc import Callable

from celery_misfire.exceptions import BrokerUnavailable
from celery_misfire.leadership.outages import Outages
from celery_misfire.log_lines import Log
from celery_misfire.misfire import Reason
from celery_misfire.trouble import Trouble

say = Log(__name__, "beat")

#: A broker that stays away is mentioned again so often, in seconds.
REMIND_EVERY = 60.0
#: A broker that has taken no message is trusted again when nothing has failed for so many seconds.
TRIAL = 60.0


class BrokerLink:
    """Says when it is worth deciding: what cannot be sent is better judged when it can be.

    :param connect: raises BrokerUnavailable when the broker cannot be reached.
    :param wall: the wall clock, in milliseconds UTC.
    :param steady: a clock that nobody sets, in seconds.
    """

    def __init__(
        self,
        connect: Callable[[], None],
        outages: Outages,
        wall: Callable[[], int],
        steady: Callable[[], float],
    ) -> None:
        self._connect, self._outages, self._wall, self._steady = connect, outages, wall, steady
        self._trouble = Trouble(first_wait=0.2, longest_wait=5.0, remind_every=REMIND_EVERY)
        self._place = ""
        #: False when the broker has failed, or was not asked yet.
        self.is_up = False
        #: True when it has ever been up.
        self.has_answered = False
        #: True when the last thing that was said of the trouble is that it is over.
        self._was_said_back = False
        #: True when it has failed again without taking a message: only with a message it is back then.
        self._flaps, self._failed_at = False, 0.0

    @property
    def next_try(self) -> float:
        """When, on the steady clock, a broker that has failed is tried again."""
        return self._trouble.until

    @property
    def is_flapping(self) -> bool:
        """True while the broker can be reached, as before its last failure, and has taken no message since.

        Its outage may go on. So nothing is judged that was late then; what is in time is tried.
        """
        return self._flaps and self._steady() - self._failed_at < TRIAL

    def connect(self, look: Callable[[], None]) -> bool:
        """Return True when messages can be sent; try to connect if it is time for that.

        :param look: looks at a broker that can be reached; raises BrokerUnavailable.
        """
        if not self.is_up and self._trouble.is_waiting(self._steady()):
            return False
        try:
            if not self.is_up:
                self._connect()
            look()
        except BrokerUnavailable as exc:
            self.failed(exc)
            return False
        if not self.is_up and self._trouble.is_on:
            self._outages.note(Reason.BROKER_UNAVAILABLE, self._wall())
            if not self._flaps:
                # Before what follows from it.
                self._say_back()
        self.is_up = self.has_answered = True
        return True

    def _say_back(self) -> None:
        if not self._was_said_back:
            place, length = self._place and f": {self._place}", self._trouble.length(self._steady())
            say.info("broker_available", "the broker is there again after %.0f s%s", length, place)
        self._was_said_back = True

    def failed(self, error: Exception) -> None:
        """Note that the broker has failed."""
        self._flaps, self._failed_at = self._flaps or (self.is_up and self._trouble.is_on), self._steady()
        if isinstance(error, BrokerUnavailable):
            self._place = error.place or self._place
        if self._trouble.fail(self._steady()) or self._was_said_back:
            what = "the broker failed, nothing is sent until it is back. %s"
            say.warning("broker_unavailable", what, error)
        self.is_up = self._was_said_back = False

    def works(self) -> None:
        """Note that the broker took a message."""
        if self._trouble.is_on:
            self._say_back()
            self._trouble.end(self._steady())
            self._flaps = self._was_said_back = False
