"""The entries of Celery's scheduler as definitions, and what they have beside Celery's own fields."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from operator import is_
from typing import Any, Protocol, TypeVar

from celery import Celery
from kombu import Producer

from celery_misfire.by_hand import Sendable
from celery_misfire.conf.entries import ENTRY_KEYS, ConfiguredEntry
from celery_misfire.conf.names import plain_names
from celery_misfire.conf.problems import as_line
from celery_misfire.conf.settings import Settings, read_config
from celery_misfire.conf.warnings import evaluated
from celery_misfire.log_lines import Log
from celery_misfire.misfire import ENDLESS, MisfirePolicy, Trigger, to_millis
from celery_misfire.records import Definition
from celery_misfire.texts import quote
from celery_misfire.triggers.kinds import GridTrigger, trigger_for

say = Log(__name__, "beat")

#: Pause between two looks for changes, in seconds: for each entry, and at most. A look takes less than 1 %.
PAUSE_PER_ENTRY, LONGEST_PAUSE = 5e-4, 5.0

#: What is wrong with an ``is_due()`` of the app's own, but for one of a schedule.
_NOT_ASKED = "is not asked, as fire times are planned ahead. Give a schedule class such an is_due()."


class Entry(Protocol):
    """Celery's ``ScheduleEntry``."""

    task: Any
    schedule: Any
    options: Any


T = TypeVar("T", bound=Entry)


@lru_cache(maxsize=1024)
def _own_is_due(cls: type) -> str:
    """Return the full name of the method of a class of schedulers or entries that decides what is due.

    '' when that is Celery's, or django-celery-beat's.
    """
    owner = next(c for c in cls.__mro__ if "is_due" in vars(c))
    # They are known by their modules, as monitors put functions of their own in the place of methods.
    is_known = owner.__module__ in ("celery.beat", "django_celery_beat.schedulers")
    return "" if is_known else f"{owner.__module__}.{owner.__qualname__}.is_due"


def refused_classes(scheduler: Any) -> list[str]:
    """Return what classes of the app's own would do in vain, one line each."""
    classes: tuple[type, ...] = (type(scheduler), scheduler.Entry)
    found = [as_line(own, _NOT_ASKED) for cls in classes if (own := _own_is_due(cls))]
    producer = scheduler.Producer
    if not (isinstance(producer, type) and issubclass(producer, Producer)):
        found.append(as_line("Producer", f"expected a subclass of kombu.Producer, got {quote(producer)}."))
    return found


class ConfiguredEntries:
    """A class of schedulers that can be asked for its entries without being started."""

    #: What an entry of ``beat_schedule`` may hold.
    entry_keys: Collection[str] = ENTRY_KEYS

    @classmethod
    def configured(cls, app: Celery) -> tuple[Settings, dict[str, ConfiguredEntry]]:
        """Return the settings, and the entries that the scheduler would have, by name.

        :raises MisfireConfigError: with every problem.
        """
        return read_config(app, app.conf.beat_schedule or {}, cls.entry_keys)

    @classmethod
    def sendable(cls, app: Celery, name: str, keys: Mapping[Any, Any]) -> Sendable:
        """Return what an entry sends now.

        :param keys: of the entry, as :meth:`configured` has found it.
        :raises PublishRejected: when it cannot be sent.
        """
        args, kwargs = evaluated(keys.get("args") or ()), evaluated(keys.get("kwargs") or {})
        return Sendable(name, str(keys["task"]), args, kwargs, keys.get("options"))


class BeatEntries:
    """Knows what has become of the keys that Celery's entries have no place for.

    :param filename: where Celery's own scheduler keeps its last runs.
    """

    def __init__(self, filename: str) -> None:
        self._filename = filename
        # These two map a name in Celery's schedule to the plain name, where it is another one, and back.
        self._plain_names: dict[str, str] = {}
        self._own_names: dict[str, str] = {}
        #: By the name in Celery's schedule: the key `misfire`, and the key `last_run_at`, as configured.
        self.misfire_keys: dict[str, Any] = {}
        self._given_last_runs: dict[str, Any] = {}
        # Each value is what was found out about an entry, with the schedule that it is true of.
        self._known: dict[str, tuple[Any, Trigger, MisfirePolicy | None]] = {}
        self._seen: dict[str, Entry] = {}
        self._next_look = 0.0

    def plain_name(self, own_name: str) -> str:
        """Return what an entry is called in the state and the log, see :mod:`celery_misfire.conf.names`."""
        return self._plain_names.get(own_name, own_name)

    def own_name(self, name: str) -> str:
        """Return the name in Celery's schedule of the entry that we call so."""
        return self._own_names.get(name, name)

    def stripped(self, name: str, entry: Any) -> Any:
        """Take our key out of an entry that is about to be added: Celery's own class does not know it."""
        self._known.pop(name, None)
        if not isinstance(entry, Mapping):
            return entry
        for key, kept in (("misfire", self.misfire_keys), ("last_run_at", self._given_last_runs)):
            kept.pop(name, None)
            if key in entry:
                kept[name] = entry[key]
        return {k: v for k, v in entry.items() if k != "misfire"}

    def last_run(self, name: str) -> datetime | None:
        """Return what Celery's file says of an entry, else its configuration; None for neither."""
        return self._last_runs.get(name) or self._given_last_runs.get(name)

    @cached_property
    def _last_runs(self) -> Mapping[str, datetime]:
        # Needed once in a lifetime, by those who come from Celery's own scheduler.
        from celery_misfire.beat_file import last_runs

        try:
            found = last_runs(self._filename)
        except ValueError as exc:
            say.warning("problem", "the schedule file %r is left alone: %s", self._filename, exc)
            return {}
        if found:
            say.info("continues", "new intervals go on from the last runs in %r", self._filename)
        return found

    def keep(self, checked: Mapping[str, ConfiguredEntry], schedule: Mapping[str, Entry]) -> None:
        """Spare the first plan what the check of the configuration has found out."""
        self._find_names(schedule)
        for name, configured in checked.items():
            own_name = configured.own_name
            # Numbered among more entries, a plain name may be another one's.
            if configured.trigger is None or name != self.plain_name(own_name):
                continue
            if (entry := schedule.get(own_name)) is not None:
                self._known[own_name] = entry.schedule, configured.trigger, configured.policy

    def _find_names(self, schedule: Mapping[str, Entry]) -> None:
        found = plain_names(schedule)
        if found != self._plain_names:
            # Policies go by plain names.
            self._known.clear()
            self._plain_names, self._own_names = found, {plain: own for own, plain in found.items()}

    def definition(
        self, own_name: str, entry: Entry, settings: Settings, last_run_of: Callable[[Any], datetime | None]
    ) -> Definition:
        """Return how an entry is planned.

        :param own_name: its name in Celery's schedule.
        :param last_run_of: asked where a grid goes on from its last run.
        :raises Exception: when the entry cannot be planned.
        """
        if own := _own_is_due(type(entry)):
            raise ValueError(f"{own}: {_NOT_ASKED}")
        name = self.plain_name(own_name)
        schedule, trigger, policy = self._known.get(own_name, (None, None, None))
        if trigger is None or schedule is not entry.schedule:
            trigger = trigger_for(entry.schedule, name)
            policy = settings.policy_for(name, self.misfire_keys.get(own_name), trigger.trigger_type)
            self._known[own_name] = entry.schedule, trigger, policy
        anchor = None
        # An interval goes on from a last run unless it has a start or a number of runs.
        if isinstance(trigger, GridTrigger) and (trigger.start, trigger.repeat_count) == (None, ENDLESS):
            anchor = _anchor(last_run_of(entry))
        ignored = entry.options.get("ignore_result") if entry.options else None
        return Definition(name, str(entry.task), trigger, policy, anchor, ignore_result=ignored)

    # -- changes -------------------------------------------------------------------------------------------

    def taken(self, schedule: Mapping[str, T]) -> dict[str, T]:
        """Take note of the entries that are planned from now on, and return them."""
        taken = dict(schedule)
        self._seen = {**taken}
        self._find_names(taken)
        if len(self._known) > len(taken):
            self._known = {name: known for name, known in self._known.items() if name in taken}
        return taken

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
        self._next_look = now + min(LONGEST_PAUSE, len(schedule) * PAUSE_PER_ENTRY)
        same = len(schedule) == len(seen) and all(map(is_, seen, schedule))
        return not (same and all(map(is_, seen.values(), schedule.values())))


def _anchor(moment: Any) -> int | None:
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        raise ValueError(f"last_run_at: expected a datetime, got {type(moment).__name__}")
    return to_millis(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
