"""Where the entries of a leading beat stand, in a few figures. Other threads may ask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from celery_misfire.misfire import threshold_millis
from celery_misfire.records import Definition, EntryRecord, Pause
from celery_misfire.status import status_of


@dataclass(frozen=True)
class Figures:
    """The figures of one moment.

    :param next_fire_times: in milliseconds UTC, by entry.
    :param overdue: how many entries are late by their threshold. "auto" counts as 60 seconds here.
    :param catch_up: late runs that are decided and not claimed yet.
    """

    next_fire_times: Mapping[str, int]
    overdue: int
    catch_up: int


def figures_of(
    records: Mapping[str, EntryRecord],
    definitions: Mapping[str, Definition],
    catch_up: Iterable[str],
    now: int,
    hold: Pause | None = None,
) -> Figures:
    """Return the figures; no schedule is asked, as its code may be slow, and no thread of its own.

    :param catch_up: the entries with late runs.
    :param hold: the hold of all entries, if there is one.
    """
    next_fire_times: dict[str, int] = {}
    overdue = 0
    for name, definition in definitions.items():
        record = records.get(name)
        due = None if record is None else record.state.next_fire_time
        if record is None or due is None:
            continue
        next_fire_times[name] = due
        if due < now and definition.policy is not None:
            threshold = threshold_millis(definition.policy, due, None)
            overdue += status_of(record, None, None, now, default_threshold=threshold, hold=hold).is_overdue
    pending = sum(runs.count for name in catch_up if name in records for runs in records[name].runs)
    return Figures(next_fire_times, overdue, pending)
