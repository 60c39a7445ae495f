"""All beats and all entries of a namespace, in one look: for the command line and the Django admin.

:func:`read` makes one call for the beats, one for the records, one for the counts. Moments are milliseconds
of the store's clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from celery_misfire import records
from celery_misfire.beats import Beat, beats_in
from celery_misfire.conf.entries import ConfiguredEntry
from celery_misfire.conf.settings import Settings
from celery_misfire.control import read_hold
from celery_misfire.misfire import AUTO_THRESHOLD, MisfirePolicy, Trigger, TriggerState, resolve
from celery_misfire.records import EntryRecord, Pause
from celery_misfire.status import Status, state_of, status_of
from celery_misfire.store.owner import name_of
from celery_misfire.store.port import Store
from celery_misfire.store.values import Sight
from celery_misfire.texts import one_line

HOUR = 3600 * 1000
DAY = 24 * HOUR


@dataclass(frozen=True)
class Entry:
    """An entry, as it is configured and as beat has planned it.

    :param schedule: Celery's schedule; None where only beat knows the entry, as is `trigger`.
    :param policy: None when misfire handling is off, and where only beat knows the entry.
    :param record: None when beat has not seen it yet, or its record cannot be read.
    :param counts: how many occurrences had which outcome in the last 24 hours. Runs in time are counted for
        all entries together.
    """

    name: str
    task: str
    schedule: object
    trigger: Trigger | None
    policy: MisfirePolicy | None
    record: EntryRecord | None
    status: Status
    counts: Mapping[str, int]

    @property
    def is_configured(self) -> bool:
        return self.schedule is not None

    @property
    def instruction(self) -> str | None:
        """The instruction as configured; ``off`` without misfire handling, None where it is not known."""
        if self.policy is None:
            return "off" if self.is_configured else None
        return str(self.policy.instruction)

    @property
    def resolved(self) -> str | None:
        """What the instruction stands for."""
        if self.policy is None or self.trigger is None:
            return None
        return str(resolve(self.policy.instruction, self.trigger.trigger_type))

    @property
    def last(self) -> int | None:
        """The last fire time that beat has decided about."""
        return self.record.state.previous_fire_time if self.record else None

    def state(self, now: int) -> TriggerState | None:
        """Return where its trigger stands: as beat has it, else as of an entry that is seen now first."""
        return None if self.trigger is None else state_of(self.record, self.trigger, now)


@dataclass(frozen=True)
class Fleet:
    """The beats and entries of a namespace.

    :param sight: what the store shows of the beats.
    :param counts: what was counted in the last 24 hours, by entry and outcome.
    :param default_threshold: holds where a schedule is not known, in milliseconds.
    """

    sight: Sight
    configured: Mapping[str, ConfiguredEntry] = field(repr=False)
    records: Mapping[str, EntryRecord] = field(repr=False)
    counts: Mapping[tuple[str, str], int] = field(repr=False)
    default_threshold: int = AUTO_THRESHOLD

    @property
    def now(self) -> int:
        return self.sight.now

    @property
    def counted_since(self) -> int:
        """When the 24 hours of the counts begin, which are kept by the full hour."""
        return (self.now - DAY) // HOUR * HOUR

    @cached_property
    def beats(self) -> list[Beat]:
        """The beats that were heard of lately, the leader first."""
        return beats_in(self.sight)

    @property
    def standbys(self) -> list[Beat]:
        """The beats that stand by, and are well."""
        return [beat for beat in self.beats if not beat.leads and beat.is_well]

    @property
    def leader(self) -> str:
        """Host and process of the beat that leads, '' when nobody does."""
        lease = self.sight.lease
        return one_line(name_of(lease.owner)) if lease else ""

    @cached_property
    def hold(self) -> Pause | None:
        """The hold of all entries that is in force."""
        hold = read_hold(self.sight.hold)
        return None if hold is None or hold.is_over(self.now) else hold

    @cached_property
    def names(self) -> list[str]:
        """The names of the entries that are configured or that beat knows."""
        known = (name for name, record in self.records.items() if record.removed_at is None)
        return list(dict.fromkeys([*self.configured, *known]))

    @cached_property
    def totals(self) -> dict[str, int]:
        """How many occurrences had which outcome in the last 24 hours."""
        totals: dict[str, int] = {}
        for (_, outcome), count in self.counts.items():
            totals[outcome] = totals.get(outcome, 0) + count
        return totals

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """The entries by name."""
        counted: dict[str, dict[str, int]] = {}
        for (name, outcome), count in self.counts.items():
            counted.setdefault(name, {})[outcome] = count
        return {name: self._entry(name, counted.get(name, {})) for name in self.names}

    @cached_property
    def overdue(self) -> list[Entry]:
        """The entries that are overdue, those that are late longest first."""
        late = (entry for entry in self.entries.values() if entry.status.is_overdue)
        return sorted(late, key=lambda entry: -entry.status.late_by)

    def in_order(self) -> Iterator[Entry]:
        """Yield the entries: overdue, then by their next fire time, then those that have none."""
        last = 10**15
        yield from sorted(
            self.entries.values(),
            key=lambda e: (not e.status.is_overdue, e.status.next_fire_time or last, e.name),
        )

    def _entry(self, name: str, counts: Mapping[str, int]) -> Entry:
        configured, record = self.configured.get(name), self.records.get(name)
        trigger = configured.trigger if configured else None
        policy = configured.policy if configured else None
        status = status_of(
            record, trigger, policy, self.now, default_threshold=self.default_threshold, hold=self.hold
        )
        keys = configured.keys if configured else {}
        task = str(keys.get("task") or "") or (record.task if record else "")
        return Entry(name, task, keys.get("schedule"), trigger, policy, record, status, counts)


def read(store: Store, settings: Settings, configured: Mapping[str, ConfiguredEntry]) -> Fleet:
    """Read the store, in three calls.

    :param configured: the entries of the schedule, by name.
    :raises StoreUnavailable: as every call of the store.
    """
    sight, found = store.sight(), records.loads_all(store.load())
    counts = store.counts_since((sight.now - DAY) / 1000)
    return Fleet(sight, configured, found, counts, settings.default_threshold)
