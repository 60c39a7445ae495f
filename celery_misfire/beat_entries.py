"""The entries of Celery's scheduler as definitions, and what they have beside Celery's own fields."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from operator import is_
from typing import Any, Protocol

from celery_misfire.conf.entries import ConfiguredEntry
from celery_misfire.conf.settings import Settings
from celery_misfire.misfire import ENDLESS, MisfirePolicy, Trigger, to_millis
from celery_misfire.records import Definition
from celery_misfire.triggers.kinds import GridTrigger, trigger_for

__all__ = ["BeatEntries", "Entry"]

#: Pause between two looks for changes, in seconds per entry. A look at one takes about 2 % of it.
PAUSE_PER_ENTRY = 4e-6


class Entry(Protocol):
    """Celery's ``ScheduleEntry``."""

    task: Any
    schedule: Any


class BeatEntries:
    """Knows what has become of the keys that Celery's entries have no place for."""

    def __init__(self) -> None:
        #: By entry name: the key `misfire`, and the key `last_run_at`, as configured.
        self.misfire_keys: dict[str, Any] = {}
        self.last_runs: dict[str, Any] = {}
        # What was found out about an entry, and the schedule that it is true of.
        self._known: dict[str, tuple[Any, Trigger, MisfirePolicy | None]] = {}
        self._seen: dict[str, Entry] = {}
        self._next_look = 0.0

    def stripped(self, name: str, entry: Any) -> Any:
        """Take our key out of an entry that is about to be added: Celery's own class does not know it."""
        self._known.pop(name, None)
        if not isinstance(entry, Mapping):
            return entry
        for key, kept in (("misfire", self.misfire_keys), ("last_run_at", self.last_runs)):
            kept.pop(name, None)
            if key in entry:
                kept[name] = entry[key]
        return {k: v for k, v in entry.items() if k != "misfire"}

    def keep(self, checked: Mapping[str, ConfiguredEntry], schedule: Mapping[str, Entry]) -> None:
        """Spare the first plan what the check of the configuration has found out."""
        for name, configured in checked.items():
            if configured.trigger is not None and (entry := schedule.get(name)) is not None:
                self._known[name] = entry.schedule, configured.trigger, configured.policy

    def definition(
        self, name: str, entry: Entry, settings: Settings, last_run_of: Callable[[Any], datetime | None]
    ) -> Definition:
        """Return how an entry is planned.

        :param last_run_of: asked where a grid goes on from its last run.
        :raises Exception: when the entry cannot be planned.
        """
        schedule, trigger, policy = self._known.get(name, (None, None, None))
        if trigger is None or schedule is not entry.schedule:
            trigger = trigger_for(entry.schedule, name)
            policy = settings.policy_for(name, self.misfire_keys.get(name), trigger.trigger_type)
            self._known[name] = entry.schedule, trigger, policy
        anchor = None
        # Only intervals without a start go on from a last run.
        if isinstance(trigger, GridTrigger) and (trigger.start, trigger.repeat_count) == (None, ENDLESS):
            anchor = _anchor(last_run_of(entry))
        return Definition(name, str(entry.task), trigger, policy, anchor)

    # -- changes -------------------------------------------------------------------------------------------

    def saw(self, schedule: Mapping[str, Entry]) -> None:
        """Take note of the entries that are planned from now on."""
        self._seen = dict(schedule)

    def replaced(self, name: str, before: Entry, after: Entry) -> None:
        """Take note of an entry that has been replaced by one that is planned alike."""
        if self._seen.get(name) is before:
            self._seen[name] = after

    def have_changed(self, schedule: Mapping[str, Entry]) -> bool:
        """Look whether entries were put in, taken out or replaced since they were planned.

        Anybody may do that, as the schedule is a mapping. A large one is not looked at in every tick.
        """
        now, seen = time.monotonic(), self._seen
        if now < self._next_look:
            return False
        self._next_look = now + len(schedule) * PAUSE_PER_ENTRY
        same = len(schedule) == len(seen) and all(map(is_, seen, schedule))
        return not (same and all(map(is_, seen.values(), schedule.values())))


def _anchor(moment: Any) -> int | None:
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        raise ValueError(f"last_run_at: expected a datetime, got {type(moment).__name__}")
    return to_millis(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
