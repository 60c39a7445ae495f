"""What Redis knows of periodic tasks, for a page that does not wait long for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_misfire import records
from celery_misfire.records import EntryRecord
from celery_misfire.store import RedisStore

__all__ = ["log_of", "records_of"]

#: Lines of the log that are read at a time, and how often at most.
LINES, READS = 1000, 10


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


def log_of(store: RedisStore, entry: str, since: int, until: int) -> list[tuple[int, dict[str, Any]]]:
    """Return the lines of the log about an entry, and about who led, with the moments of their writing.

    :param since: milliseconds UTC, as `until`.
    :raises StoreUnavailable: Redis is away, or too slow.
    """
    lines: list[tuple[int, dict[str, Any]]] = []
    seen = f"{since}-0"
    for _ in range(READS):
        page = store.log_after(seen, LINES)
        for seen, line in page:
            written = int(seen.partition("-")[0])
            if written > until:
                return lines
            if line.get("entry") == entry or line.get("event") == "lead":
                lines.append((written, line))
        if len(page) < LINES:
            break
    return lines
