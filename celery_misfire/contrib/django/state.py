"""What Redis knows of periodic tasks, for a page that does not wait long for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery
from django_celery_beat.models import PeriodicTask

from celery_misfire import records
from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib.django.rows import entry_name
from celery_misfire.events import Event, Led, Sent, SentTogether, decode
from celery_misfire.fleet import Fleet
from celery_misfire.records import EntryRecord, Pause
from celery_misfire.store.redis_store import RedisStore

#: Longest wait for one answer of Redis, in seconds: somebody is waiting for a page.
READ_TIMEOUT = 2.0
#: A timeline reads at most this many lines of the log: a little more than a log keeps by default.
TIMELINE_LINES = 12_000
#: The log is read in pages of this many lines; that of an outage, at most this many pages.
PAGE_LINES, MAX_PAGES = 1000, 10


@dataclass(frozen=True)
class Stored:
    """What the store holds of one entry.

    :param events: the log of all entries from `since` on, oldest first.
    :param known_from: where the log begins, if that is later than `since`; now, when it is empty.
    :param record: None: beat has not seen the entry yet, or its record cannot be read.
    :param hold: the hold of all entries, if there is one.
    """

    events: Sequence[Event]
    known_from: int | None
    record: EntryRecord | None
    hold: Pause | None = None


@dataclass(frozen=True)
class LogLine:
    """A line of the log.

    :param written_at: when Redis took it, in milliseconds UTC.
    :param kind: its event's word in the log.
    :param event: None when a newer version wrote a kind that this one does not know.
    """

    written_at: int
    kind: str
    event: Event | None


def open_store(app: Celery) -> RedisStore:
    """Return the store of an app, which gives up early.

    :raises MisfireConfigError: when the settings are wrong.
    """
    return RedisStore.of(read_settings(app), READ_TIMEOUT)


def records_of(store: RedisStore, names: Sequence[str] | None) -> dict[str, EntryRecord]:
    """Return the records of these entries, as far as there are any, in one round trip.

    :param names: None: of all entries.
    :raises StoreUnavailable: Redis is away, or too slow.
    """
    return records.loads_all(store.load(names))


def fleet_of(store: RedisStore, names: Sequence[str] | None = None) -> Fleet:
    """Return the beats, the hold and these records: what is configured or counted is left out.

    :param names: of these entries; None: of all.
    :raises StoreUnavailable: Redis is away, or too slow.
    """
    return Fleet(store.sight(), {}, records_of(store, names), {})


def record_of(store: RedisStore, task: PeriodicTask) -> EntryRecord | None:
    """Return the record of a row, as :func:`records_of` finds it."""
    name = entry_name(task)
    return records_of(store, [name]).get(name)


def read(store: RedisStore, entry: str, since: int, now: int) -> Stored:
    """Read what the store holds of an entry.

    :raises StoreUnavailable: Redis is away, or too slow.
    """
    oldest = store.log_after("0-0", 1)
    begins = _written_at(oldest[0][0]) if oldest else now
    events: list[Event] = []
    last_id = f"{since}-0"
    # Page by page: a line may tell of a hundred runs.
    for _ in range(TIMELINE_LINES // PAGE_LINES):
        page = store.log_after(last_id, PAGE_LINES)
        events += _about(entry, (line for _id, line in page))
        if len(page) < PAGE_LINES:
            break
        last_id = page[-1][0]
    else:
        events = _about(entry, store.log(TIMELINE_LINES))
        begins = next((e.written_at for e in events if e.written_at is not None), begins)
    fleet = fleet_of(store, [entry])
    return Stored(events, None if begins <= since else begins, fleet.records.get(entry), fleet.hold)


def _about(entry: str, lines: Iterable[Mapping[str, Any]]) -> list[Event]:
    """Return the events of these lines, and of runs that were sent together only those of one entry."""
    found: list[Event] = []
    for event in filter(None, map(decode, lines)):
        own = list(event.split(entry))
        if not own and event.written_at is not None:
            # It shows that beat was there.
            own = [Sent(entry="", outcome="", scheduled=event.written_at, fire_time=event.written_at, id="")]
        found += own
    return found


def log_of(store: RedisStore, entry: str, since: int, until: int) -> list[LogLine]:
    """Return the lines of the log about an entry, and about who led.

    :param since: milliseconds UTC, as `until`.
    :raises StoreUnavailable: Redis is away, or too slow.
    """
    found: list[LogLine] = []
    last_id = f"{since}-0"
    for _ in range(MAX_PAGES):
        page = store.log_after(last_id, PAGE_LINES)
        for last_id, line in page:
            written_at = _written_at(last_id)
            if written_at > until:
                return found
            event = decode(line)
            if line.get("entry") == entry or isinstance(event, Led):
                found.append(LogLine(written_at, str(line["event"]), event))
            elif isinstance(event, SentTogether):
                found += (LogLine(written_at, one.kind, one) for one in event.split(entry))
        if len(page) < PAGE_LINES:
            break
    return found


def _written_at(line_id: str) -> int:
    """Return when Redis took a line of the log, which is the first part of its id."""
    return int(line_id.partition("-")[0])
