"""The lines that beat and the workers log of events: their fields for structured logs, and how loud they are.

Each line carries its fields as attributes of the log record, under names that begin with ``misfire.``. They
are texts, numbers and booleans. The names and their meaning are documented, and do not change.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any

from celery_misfire.events import Event, GaveUp, Misfired, Sent, time_in
from celery_misfire.misfire import Outcome, from_millis
from celery_misfire.pause_events import Paused, Resumed
from celery_misfire.texts import one_line, word_of

#: Begins the name of each field.
PREFIX = "misfire."
#: An outage of more entries than this is one line, and the lines of the entries are at INFO.
MOST_SINGLE_LINES = 10
#: What comes within so many seconds after the last line of an outage belongs to it.
STRAGGLERS = 10.0
#: Nothing waits longer than so many seconds for the rest of its outage.
LONGEST_WAIT = 30.0

_NAMES = {"id": "task_id", "first": "scheduled", "worker": "owner"}
_MOMENTS = {"first", "last", "scheduled", "fire_time", "next", "since", "until"}
#: Of no use to a reader of a line: what the record's own time says, and parts that have fields of their own.
_LEFT_OUT = {"now", "outcomes", "lost"}


def log_fields(event: str, **values: object) -> dict[str, Any]:
    """Return the fields of a line, for ``extra``; those that are None are left out.

    :param event: what the line tells of, in a word.
    """
    return {PREFIX + name: v for name, v in {"event": event, **values}.items() if v is not None}


def event_fields(event: Event) -> dict[str, Any]:
    """Return the fields of a line about an event, for ``extra``."""
    values: dict[str, object] = {}
    for name, value in vars(event).items():
        if name in _LEFT_OUT or value in (None, ""):
            continue
        values[_NAMES.get(name, name)] = _plain(name, value)
    if isinstance(event, Misfired):
        values |= {str(outcome): event.outcomes.get(outcome, 0) for outcome in _OF_A_MISFIRE}
        values["outcome"] = next((str(o) for o in _OF_A_MISFIRE if event.outcomes.get(o)), None)
        values["task_id"] = next((part.get("id") for part in event.lost), None)
    elif isinstance(event, GaveUp):
        values["outcome"] = str(Outcome.MISSED)
    return log_fields(event.kind, **values)


class Log:
    """The log lines of one module. Each has its word and its fields, for structured logs.

    :param name: of the logger.
    :param who: stands in front of each line: ``beat``, ``worker`` and so on.
    """

    def __init__(self, name: str, who: str) -> None:
        self._logger, self._who = logging.getLogger(name), who

    def info(self, word: str, text: str, /, *args: object, **fields: object) -> None:
        self._write(logging.INFO, text, args, log_fields(word, **fields))

    def warning(self, word: str, text: str, /, *args: object, **fields: object) -> None:
        self._write(logging.WARNING, text, args, log_fields(word, **fields))

    def error(self, word: str, text: str, /, *args: object, **fields: object) -> None:
        self._write(logging.ERROR, text, args, log_fields(word, **fields))

    def store_available(self, server: str, away: float, owner: str | None) -> None:
        """Log that what keeps the state answers again, after so many seconds."""
        self.info("store_available", "%s answers again after %.0f s", server, away, owner=owner)

    def exception(self, word: str, text: str, /, *args: object, **fields: object) -> None:
        """Log an error with its traceback."""
        self._write(logging.ERROR, text, args, log_fields(word, **fields), exc_info=True)

    def at(self, level: int, word: str, text: str, /, *args: object, **fields: object) -> None:
        self._write(level, text, args, log_fields(word, **fields))

    def event(
        self, level: int, event: Event, text: str, /, *args: object, word: str = "", **fields: object
    ) -> None:
        """Log a line about an event, with its fields. Its word is the event's own, or another one."""
        self._write(level, text, args, event_fields(event) | log_fields(word or event.kind, **fields))

    def shows(self, level: int) -> bool:
        return self._logger.isEnabledFor(level)

    def _write(
        self,
        level: int,
        text: str,
        args: Iterable[object],
        fields: Mapping[str, Any],
        exc_info: bool | None = None,
    ) -> None:
        line = f"{self._who}: {text}"
        # Two calls up is whoever has something to say.
        self._logger.log(level, line, *args, extra=fields, exc_info=exc_info, stacklevel=3)


#: What is worst comes first: it is the outcome of the line.
_OF_A_MISFIRE = (Outcome.MISSED, Outcome.RECOVERED, Outcome.MERGED)


def _plain(name: str, value: Any) -> object:
    if name in _MOMENTS:
        return _time(value)
    if name == "late_by":
        return value / 1000
    return one_line(str(value)) if isinstance(value, str) else value


def _time(moment: int) -> str | None:
    try:
        return from_millis(moment).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError):
        return None


@dataclass
class _Outage:
    """What has one reason, from the first entry that it touched until nothing more has come for a while.

    :param held: events that are not logged yet, as it is not known how loud they are.
    :param waits_until: when it is told even if it is not complete, in seconds on a clock that nobody sets.
    :param ends_at: when nothing more belongs to it.
    """

    waits_until: float

    held: list[Misfired | GaveUp] = field(default_factory=list)
    entries: set[str] = field(default_factory=set)
    outcomes: Counter[str] = field(default_factory=Counter)
    since: int = 0
    is_large: bool = False
    is_untold: bool = False
    ends_at: float = 0.0

    def add(self, event: Misfired | GaveUp) -> None:
        self.since = min(self.since, event.first) if self.entries else event.first
        self.entries.add(event.entry)
        outcomes = event.outcomes if isinstance(event, Misfired) else {Outcome.MISSED: event.count}
        self.outcomes.update(outcomes)
        self.held.append(event)
        self.is_untold = True
        self.is_large = self.is_large or len(self.entries) > MOST_SINGLE_LINES


class EventLog:
    """The log of one beat, as far as it tells of events.

    A misfire is a warning of its own, unless its outage touches more than ten entries: then the outage is one
    warning, and each misfire is told at INFO. An outage is what has one reason, and is planned in one go.

    :param owner: the beat.
    """

    def __init__(self, log: Log, zone: tzinfo, owner: str) -> None:
        self._log, self._zone, self._owner = log, zone, owner
        self._heard: list[Event] = []
        self._outages: dict[str, _Outage] = {}

    def listen(self, events: Sequence[Event]) -> None:
        """Take over the events of a commit. They are logged by :meth:`write`."""
        self._heard += (e for e in events if isinstance(e, _TOLD) or _is_late_run(e))

    def write(self, now: float, *, is_complete: bool) -> None:
        """Log what was heard.

        :param now: in seconds, on a clock that nobody sets.
        :param is_complete: all that was overdue is planned.
        """
        if not (self._heard or self._outages):
            return
        heard, self._heard = self._heard, []
        for event in heard:
            if isinstance(event, Misfired | GaveUp):
                self._outages.setdefault(event.reason, _Outage(now + LONGEST_WAIT)).add(event)
            elif isinstance(event, Paused | Resumed):
                # Somebody has stopped entries, or let them go on.
                self._say(logging.WARNING, event)
        for reason, outage in list(self._outages.items()):
            is_due = is_complete or now >= outage.waits_until
            if outage.is_large or is_due:
                for event in outage.held:
                    self._say(logging.INFO if outage.is_large else _level(reason), event)
                outage.held.clear()
            if now >= outage.ends_at and outage.is_untold and is_due:
                outage.ends_at, outage.waits_until = now + STRAGGLERS, now + LONGEST_WAIT
                self._tell(reason, outage)
            elif now >= outage.ends_at and not outage.is_untold:
                del self._outages[reason]
        # Late runs are told after the misfires that they come from.
        for event in heard:
            if isinstance(event, Sent):
                self._say(logging.INFO, event)

    def close(self, now: float) -> None:
        """Log what is left."""
        for outage in self._outages.values():
            outage.ends_at = now
        self.write(now, is_complete=True)

    def _say(self, level: int, event: Event) -> None:
        if self._log.shows(level):
            self._log.event(level, event, "%s", event.sentence(self._zone), owner=self._owner)

    def _tell(self, reason: str, outage: _Outage) -> None:
        """Say once what a large outage was; of a small one, each misfire was told by itself."""
        outage.is_untold = False
        if not outage.is_large:
            return
        since = time_in(outage.since, self._zone)
        counts = {str(outcome): outage.outcomes[outcome] for outcome in _SUMMARY}
        told = "{recovered} runs recovered, {merged} merged, {missed} missed".format(**counts)
        self._log.at(
            _level(reason),
            "outage",
            "%d entries missed their times since %s (%s): %s",
            len(outage.entries),
            since,
            word_of(reason),
            told,
            reason=word_of(reason),
            scheduled=_time(outage.since),
            entries=len(outage.entries),
            owner=self._owner,
            **counts,
        )
        outage.entries.clear()
        outage.outcomes.clear()


#: The events of which the log tells, but for late runs.
_TOLD = (Misfired, GaveUp, Paused, Resumed)
_SUMMARY = (Outcome.RECOVERED, Outcome.MERGED, Outcome.MISSED)
#: A restart on purpose is no alarm.
_QUIET_REASONS = {"restarted"}


def _level(reason: str) -> int:
    return logging.INFO if reason in _QUIET_REASONS else logging.WARNING


def _is_late_run(event: Event) -> bool:
    return isinstance(event, Sent) and event.outcome == Outcome.RECOVERED
