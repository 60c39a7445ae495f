"""The command ``next``: what is coming."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import click

from celery_misfire.agenda import Coming, Hour, hours, runs
from celery_misfire.cli.output import Page, read_length
from celery_misfire.cli.reading import MOST_ROWS
from celery_misfire.cli.session import Session, command, entry_option
from celery_misfire.fleet import Entry, Fleet

#: An hour whose busiest minute has this share of its runs, and so many of them, is told of.
HERD_SHARE, HERD_RUNS = 0.5, 10


@command("next", short_help="Show the next runs, in order or by the hour.")
@entry_option
@click.option("--for", "length", default="24h", show_default=True, metavar="LENGTH", help="90m, 24h, 7d.")
@click.option("--by-hour", is_flag=True, help="Show the runs of each hour, and of its busiest minute.")
@click.option("--limit", type=click.IntRange(1), help=f"Show at most this many rows; {MOST_ROWS} by default.")
def next_(session: Session, entries: Sequence[str], length: str, by_hour: bool, limit: int | None) -> None:
    """Show the next runs, in order or by the hour."""
    fleet = session.fleet
    chosen, until = set(session.names(entries)), fleet.now + read_length(length)
    coming: list[Coming] = []
    failed: list[str] = []
    for entry in fleet.entries.values():
        if entry.name in chosen:
            try:
                coming += _coming(entry, fleet)
            except Exception:
                # The schedule's own code fails, and beat has said so.
                failed.append(entry.name)
    agenda = hours(coming, until)
    shown = list(islice(runs(coming, until), limit or MOST_ROWS))
    total = sum(hour.runs for hour in agenda)
    data: dict[str, Any] = {
        "now": session.time(fleet.now),
        "until": session.time(until),
        "runs": [{"time": session.time(moment), "entry": name} for moment, name in shown],
        "total": total,
        "hours": [_hour_as_json(session, hour) for hour in agenda],
        "unknown": failed,
    }

    def write(page: Page) -> None:
        if by_hour:
            columns = ("hour", "runs", "busiest minute", "at once")
            counts = [(page.time(h.start), h.runs, page.time(h.busiest), h.at_once or "") for h in agenda]
            page.table(columns, counts[: limit or MOST_ROWS], len(counts) - (limit or MOST_ROWS))
        elif shown:
            tasks = {name: fleet.entries[name].task for _, name in shown}
            rows = [(page.time(moment), name, tasks[name]) for moment, name in shown]
            page.table(("time", "entry", "task"), rows, total - len(shown), spare=("task",))
        else:
            page.line(f"nothing comes until {page.time(until)}")
        _write_herd(page, agenda, total)
        if failed:
            page.line(f"schedules that cannot be asked: {', '.join(failed[:10])}")

    session.answer(data, write)


def _coming(entry: Entry, fleet: Fleet) -> list[Coming]:
    """Return when an entry comes; nothing for one that does not, or whose schedule only beat knows."""
    trigger, state = entry.trigger, entry.state(fleet.now)
    if trigger is None or state is None:
        return []
    first = entry.status.next_fire_time if entry.status.is_known else state.next_fire_time
    return [] if first is None else [Coming(entry.name, trigger, state, first)]


def _hour_as_json(session: Session, hour: Hour) -> dict[str, Any]:
    return {
        "start": session.time(hour.start),
        "runs": hour.runs,
        "busiest_minute": session.time(hour.busiest),
        "at_once": hour.at_once,
    }


def _write_herd(page: Page, agenda: Sequence[Hour], total: int) -> None:
    """Tell of the minute in which most runs come, when they could be spread."""
    busiest = max(agenda, key=lambda hour: hour.at_once, default=None)
    if busiest is None or busiest.at_once < max(HERD_RUNS, HERD_SHARE * busiest.runs):
        return
    page.line()
    page.line(
        f"{busiest.at_once:,} of the {busiest.runs:,} runs of that hour come at once, "
        f"at {page.time(busiest.busiest)}. H in a cron expression spreads them."
    )
