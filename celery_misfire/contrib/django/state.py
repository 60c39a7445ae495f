"""What Redis knows of periodic tasks, for a page that does not wait long for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery

from celery_misfire import records
from celery_misfire.conf import settings as conf
from celery_misfire.contrib.django.timeline.history import moment_of
from celery_misfire.records import EntryRecord
from celery_misfire.store.redis_store import RedisStore

__all__ = ["Stored", "log_of", "open_store", "read", "records_of"]

#: Longest wait for one answer of Redis, in seconds: somebody is waiting for a page.
PATIENCE = 2.0
#: So many lines of the log are read at most for a timeline: a little more than a log keeps by default.
LINES = 12_000
#: For the log of an outage: so many lines are read at a time, and so often at most.
PAGE, PAGES = 1000, 10


@dataclass(frozen=True)
class Stored:
    """What the store holds of one entry.

    :param lines: the log of all entries from `since` on, oldest first.
    :param known_from: where the log begins, if that is later than `since`; now, when it is empty.
    :param record: None: beat has not seen the entry yet, or its record cannot be read.
    """

    lines: Sequence[Mapping[str, Any]]
    known_from: int | None
    record: EntryRecord | None


def open_store(app: Celery) -> RedisStore:
    """Return the store of an app, for a page: with little patience.

    :raises MisfireConfigError: when the settings are wrong.
    """
    settings = conf.read_settings(app)
    options = {**settings.redis_options, "socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE}
    return RedisStore(settings.redis_url, settings.namespace, options, settings.history, PATIENCE)


def records_of(store: RedisStore, names: Sequence[str]) -> dict[str, EntryRecord]:
    """Return the records of these entries, as far as there are any, in one round trip.

    :raises StoreUnavailable: Redis is away, or too slow.
    """
    found = {}
    for name, text in store.load(names).items():
        try:
            found[name] = records.loads(text)
        except ValueError:
            # Beat says so in its log, and plans it anew.
            continue
    return found


def read(store: RedisStore, entry: str, since: int, now: int) -> Stored:
    """Read what the store holds of an entry, in four calls at most.

    :raises StoreUnavailable: Redis is away, or too slow.
    """
    oldest = store.log_after("0-0", 1)
    begins = int(oldest[0][0].partition("-")[0]) if oldest else now
    lines: list[dict[str, Any]] = [line for _id, line in store.log_after(f"{since}-0", LINES + 1)]
    if len(lines) > LINES:
        lines = store.log(LINES)
        begins = next((t for t in map(moment_of, lines) if t is not None), begins)
    return Stored(lines, None if begins <= since else begins, records_of(store, [entry]).get(entry))


def log_of(store: RedisStore, entry: str, since: int, until: int) -> list[tuple[int, dict[str, Any]]]:
    """Return the lines of the log about an entry, and about who led, with the moments of their writing.

    :param since: milliseconds UTC, as `until`.
    :raises StoreUnavailable: Redis is away, or too slow.
    """
    lines: list[tuple[int, dict[str, Any]]] = []
    seen = f"{since}-0"
    for _ in range(PAGES):
        page = store.log_after(seen, PAGE)
        for seen, line in page:
            written = int(seen.partition("-")[0])
            if written > until:
                return lines
            if line.get("entry") == entry or line.get("event") == "lead":
                lines.append((written, line))
        if len(page) < PAGE:
            break
    return lines
