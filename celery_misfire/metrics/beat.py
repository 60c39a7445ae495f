"""The numbers of a beat, and those that are not counted but asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from celery_misfire.conf.settings import Settings
from celery_misfire.leadership.leader import Leader
from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.member import Member
from celery_misfire.metrics.exporters import export, is_read
from celery_misfire.metrics.numbers import Note, Numbers


class BeatNumbers(Numbers):
    """The numbers of a beat."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(is_read=is_read(settings))
        self._settings = settings
        #: Ends what :meth:`start` began.
        self.stop: Callable[[], None] = lambda: None

    def start(self, member: Member, lease: Lease, leader: Leader) -> None:
        """Let the numbers be read, with those of these three."""

        def gauges() -> Iterator[Note]:
            yield Note("store_up", value=member.store_is_up)
            yield Note("leader", value=lease.held)
            yield Note("lease_remaining_seconds", value=lease.remaining)
            # The leader alone knows of entries and broker.
            if not lease.held:
                return
            figures = leader.figures()
            self.expect(figures.next_fire_times)
            yield Note("broker_up", value=leader.broker_is_up)
            yield Note("overdue_entries", value=figures.overdue)
            yield Note("catch_up_pending", value=figures.catch_up)
            for entry, moment in figures.next_fire_times.items():
                yield Note("next_fire_timestamp_seconds", (entry,), moment / 1000)

        self.gauges.append(gauges)
        self.stop = export(self, self._settings, "beat")
