"""The lines of the store's log, one for each run that was sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from celery_misfire.events import SentTogether, decode


def one_by_one(lines: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the lines, and in place of one about several runs a line about each."""
    for line in lines:
        event = decode(line)
        if isinstance(event, SentTogether):
            yield from (sent.encode() for sent in event.split())
        else:
            yield dict(line)
