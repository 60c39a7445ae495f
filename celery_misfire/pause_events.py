"""The lines of the log about pauses and holds, as :mod:`celery_misfire.events` has the others."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, tzinfo

from celery_misfire.events import Event, time_in
from celery_misfire.texts import quote_name, word_of


@dataclass(frozen=True, kw_only=True)
class Paused(Event, kind="paused"):
    """Somebody paused an entry, or holds them all.

    :param entry: '' for all of them.
    :param until: when it ends by itself, None for not before somebody says so.
    """

    entry: str = ""
    now: int
    until: int | None = None
    reason: str | None = None
    by: str | None = None

    def sentence(self, zone: tzinfo = UTC) -> str:
        until = "" if self.until is None else f" until {time_in(self.until, zone)}"
        what = f"{quote_name(self.entry)} is paused{until}" if self.entry else f"hold of all entries{until}"
        what += f" by {word_of(self.by)}" if self.by else ""
        what += f" ({word_of(self.reason)})" if self.reason else ""
        return what if self.entry else f"{what}: nothing is sent, and nothing is caught up afterwards"


@dataclass(frozen=True, kw_only=True)
class Resumed(Event, kind="resumed"):
    """The pause of an entry, or the hold of all of them, is over.

    :param entry: '' for all of them.
    :param by: who ended it, None when it ended by itself.
    :param count: how many entries would have fired during a hold.
    """

    entry: str = ""
    now: int
    since: int
    by: str | None = None
    count: int | None = None

    def sentence(self, zone: tzinfo = UTC) -> str:
        by = f", ended by {word_of(self.by)}" if self.by else ""
        if self.entry:
            return (
                f"{quote_name(self.entry)} fires again{by}; it was paused since {time_in(self.since, zone)}"
            )
        count = f"; entries that go on from its end: {self.count}" if self.count is not None else ""
        return f"the hold since {time_in(self.since, zone)} is over{by}{count}"
