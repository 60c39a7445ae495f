"""The commands that read: ``status``, ``missed``, ``log``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

from celery_misfire.beats import Beat, problem_of
from celery_misfire.cli.output import Page, ago, length, read_moment
from celery_misfire.cli.session import FINE, NOT_FINE, Session, command, entry_option
from celery_misfire.events import Event, GaveUp, Merged, Misfired, Missed, Sent, decode
from celery_misfire.fleet import Entry
from celery_misfire.misfire import Outcome, Reason
from celery_misfire.records import Pause
from celery_misfire.sending.missed_record import missed_of
from celery_misfire.store.port import Store
from celery_misfire.store.url import address
from celery_misfire.texts import one_line, schedule_in_words

#: So many rows of a table are shown, unless --limit says otherwise.
MOST_ROWS = 100
#: Lines of the log are read in pages of this many.
PAGE = 2000
#: With --follow the log is read so often, in seconds.
FOLLOW_EVERY = 1.0

T = TypeVar("T")

limit_option = click.option(
    "--limit",
    type=click.IntRange(1),
    help=f"Show at most this many rows; by default {MOST_ROWS} in a table, all in JSON.",
)
since_option = click.option(
    "--since", default="24h", show_default=True, metavar="TIME", help="How far back: 2h, 09:30, 2026-03-01."
)


def cut(
    session: Session, rows: Sequence[T], limit: int | None, *, newest: bool = False
) -> tuple[Sequence[T], int]:
    """Return the first rows, or the last ones, that are shown, and how many others there are."""
    number = limit or (len(rows) if session.as_json else MOST_ROWS)
    shown = rows[-number:] if newest else rows[:number]
    return shown, len(rows) - len(shown)


# -- status ------------------------------------------------------------------------------------------------


@command("status", short_help="Show who leads, and where each entry stands.")
@entry_option
@limit_option
def status_(session: Session, entries: Sequence[str], limit: int | None) -> int:
    """Show who leads, which beats stand by, and where each entry stands."""
    fleet = session.fleet
    chosen = set(session.names(entries))
    shown = [entry for entry in fleet.in_order() if entry.name in chosen]
    rows, more = cut(session, shown, limit)
    lines = _NewestLines.read(session, rows)
    if session.as_json:
        session.echo_json(_beats_as_json(session) | _entries_as_json(session, rows, lines, more))
    else:
        page = session.page
        _write_beats(session, page)
        page.table(_COLUMNS, [_row(page, entry, lines, len(rows)) for entry in rows], more, spare=_SPARE)
    return NOT_FINE if fleet.overdue or problem_of(fleet.sight, None) else FINE


@dataclass
class _NewestLines:
    """What the newest lines of the log tell of entries.

    :param outcomes: how the last run of each ended, by name.
    :param in_time: how many runs of each were sent in time since counts begin, by name.
    :param is_whole: the lines reach back so far.
    """

    outcomes: dict[str, str] = field(default_factory=dict)
    in_time: Counter[str] = field(default_factory=Counter)
    is_whole: bool = True

    @classmethod
    def read(cls, session: Session, entries: Sequence[Entry]) -> _NewestLines:
        """Read the newest lines of the log."""
        found, begin = cls(), session.fleet.counted_since
        last = {entry.name: entry.last for entry in entries}
        events = [decode(line) for line in session.store.log(PAGE)] if last else []
        moments = [at for whole in events if whole and (at := whole.written_at) is not None]
        # A log that is shorter than it may be has lost nothing.
        is_short = len(events) < min(PAGE, session.settings.history)
        found.is_whole = is_short or min(moments, default=begin) < begin
        # Runs that were sent together share a line.
        for event in (part for whole in events if whole for part in whole.split()):
            if isinstance(event, Sent):
                found.in_time[event.entry] += event.outcome == Outcome.FIRED and event.fire_time >= begin
                if last.get(event.entry) == event.scheduled:
                    found.outcomes[event.entry] = event.outcome
            elif isinstance(event, Misfired | GaveUp) and last.get(event.entry) == event.last:
                found.outcomes[event.entry] = _worst(event)
        return found

    def counts(self, entry: Entry) -> dict[str, int | None]:
        """Return how many occurrences of an entry ended in which way; None where that is not known."""
        in_time = {"fired": self.in_time[entry.name] if self.is_whole else None}
        return in_time | {o: entry.counts.get(o, 0) for o in ("recovered", "merged", "missed")}


def _worst(event: Misfired | GaveUp) -> str:
    outcomes = event.outcomes if isinstance(event, Misfired) else {Outcome.MISSED: 1}
    return next((str(o) for o in (Outcome.MISSED, Outcome.MERGED) if outcomes.get(o)), Outcome.RECOVERED)


def beat_as_json(beat: Beat) -> dict[str, Any]:
    """Return a beat as it is written in JSON."""
    told = {"host": beat.host, "pid": beat.pid, "leads": beat.leads, "well": beat.is_well}
    return told | {"silent_for": beat.silent_for / 1000}


def _beats_as_json(session: Session) -> dict[str, Any]:
    fleet, sight = session.fleet, session.fleet.sight
    beats = [beat_as_json(beat) | {"started": session.time(beat.started)} for beat in fleet.beats]
    lease = sight.lease
    leader = lease and {
        "name": fleet.leader,
        "since": session.time(lease.epoch),
        "lease_left": None if sight.lease_left is None else sight.lease_left / 1000,
    }
    return {
        "now": session.time(fleet.now),
        "namespace": session.settings.namespace,
        "redis": address(session.settings.redis_url),
        "leader": leader,
        "beats": beats,
        "guard": sight.is_guarded,
        "hold": pause_as_json(session, fleet.hold),
        "requests": len(sight.requests),
        "overdue": len(fleet.overdue),
        "last_24h": {str(outcome): fleet.totals.get(outcome, 0) for outcome in Outcome},
    }


def _entries_as_json(
    session: Session, rows: Sequence[Entry], lines: _NewestLines, more: int
) -> dict[str, Any]:
    return {
        "entries": [
            {
                "name": entry.name,
                "task": entry.task,
                "schedule": schedule_in_words(entry.schedule) if entry.is_configured else None,
                "instruction": entry.instruction,
                "resolved": entry.resolved,
                "planned": entry.status.is_known,
                "last": session.time(entry.last),
                "last_outcome": lines.outcomes.get(entry.name),
                "next": session.time(entry.status.next_fire_time),
                "late_by": entry.status.late_by / 1000,
                "overdue": entry.status.is_overdue,
                "paused": pause_as_json(session, entry.status.paused),
                "last_24h": lines.counts(entry),
            }
            for entry in rows
        ],
        "more": more,
    }


def pause_as_json(session: Session, pause: Pause | None) -> dict[str, Any] | None:
    """Return a pause or a hold as it is written in JSON."""
    if pause is None:
        return None
    times = {"since": session.time(pause.since), "until": session.time(pause.until)}
    return times | {"reason": pause.reason, "by": pause.by}


def _write_beats(session: Session, page: Page) -> None:
    fleet, sight = session.fleet, session.fleet.sight
    lines = [("namespace", session.settings.namespace), ("redis", address(session.settings.redis_url))]
    if sight.lease is None:
        lines.append(("leader", "nobody leads"))
    else:
        left = "" if sight.lease_left is None else f", lease left {length(sight.lease_left)}"
        lines.append(("leader", f"{fleet.leader}, since {page.time(sight.lease.epoch)}{left}"))
    for beat in fleet.beats:
        if not beat.leads or beat.trouble:
            told = beat.trouble or f"stands by, last sign {ago(beat.silent_for)}"
            lines.append(("leader" if beat.leads else "standby", f"{beat} {told}"))
    drop = "workers drop" if sight.is_guarded else "no worker drops"
    lines.append(("guard", f"{drop} second messages of a run"))
    if fleet.hold:
        lines.append(("hold", page.pause(fleet.hold)))
    if sight.requests:
        lines.append(("requests", f"{len(sight.requests)} wait for the leader"))
    counted = ", ".join(f"{fleet.totals.get(outcome, 0):,} {outcome}" for outcome in Outcome)
    lines.append(("last 24 h", counted))
    lines.append(("entries", f"{len(fleet.names):,}, overdue {len(fleet.overdue):,}"))
    page.pairs(lines)
    page.line()


_COLUMNS = (
    *("entry", "task", "schedule", "instruction", "last", "ended", "next", "late by", "paused"),
    "last 24 h",
)
_SPARE = ("task", "schedule", "instruction", "last", "ended", "last 24 h")


def _row(page: Page, entry: Entry, lines: _NewestLines, rows: int) -> list[object]:
    status, instruction = entry.status, entry.instruction or ""
    if entry.resolved not in (None, instruction):
        instruction += f" -> {entry.resolved}"
    counts = {outcome: "-" if n is None else n for outcome, n in lines.counts(entry).items()}
    late_by = length(status.late_by) if status.late_by else ""
    paused = status.paused
    return [
        entry.name,
        entry.task,
        schedule_in_words(entry.schedule) if entry.is_configured else "known to beat alone",
        instruction,
        page.time(entry.last),
        lines.outcomes.get(entry.name, ""),
        page.time(status.next_fire_time) if status.is_known else "not planned yet",
        f"{late_by}, overdue" if status.is_overdue else late_by,
        page.pause(paused, rows) if paused else "",
        ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n),
    ]


# -- missed ------------------------------------------------------------------------------------------------


@command("missed", short_help="List the runs that never happened.")
@entry_option
@since_option
@click.option("--reason", type=click.Choice([str(r) for r in Reason]), help="Only those with this reason.")
@limit_option
def missed_(
    session: Session, entries: Sequence[str], since: str, reason: str | None, limit: int | None
) -> None:
    """List the runs that never happened, the newest last.

    Each id is a task id, under which the result is. `run --missed` takes it, too.
    """
    chosen = set(session.names(entries)) if entries else None
    begin = read_moment(since, session.zone, session.now, past=True)
    found = [
        (at, event, False)
        for at, line in lines_since(session.store, begin)
        if isinstance(event := decode(line), Missed)
    ]
    found += [(event.now or 0, event, True) for event in _unreported(session)]
    found = [
        item
        for item in found
        if (chosen is None or item[1].entry in chosen)
        and reason in (None, item[1].reason)
        and item[0] >= begin
    ]
    rows, more = cut(session, found, limit, newest=True)
    data = {
        "since": session.time(begin),
        "missed": [_missed_as_json(session, event, pending) for _, event, pending in rows],
        "occurrences": sum(event.count for _, event, _ in found),
        "more": more,
    }

    def write(page: Page) -> None:
        columns = ("entry", "first", "last", "count", "reason", "instruction", "detected", "id")
        shown = [
            (
                event.entry,
                page.time(event.first),
                page.time(event.last) if event.count > 1 else "",
                event.count,
                event.reason,
                event.instruction,
                page.time(at),
                event.id,
            )
            for at, event, _ in rows
        ]
        if shown:
            page.table(columns, shown, more, spare=("instruction", "detected"))
        else:
            page.line(f"nothing was missed since {page.time(begin)}")

    session.answer(data, write)


def _unreported(session: Session) -> Iterator[Missed]:
    """Yield the misses whose record beat has still to make."""
    for record in session.fleet.records.values():
        for lost in record.missed:
            yield Missed.of(missed_of(session.settings.namespace, record, lost))


def _missed_as_json(session: Session, event: Missed, pending: bool) -> dict[str, Any]:
    return {
        "entry": event.entry,
        "task": event.task,
        "first": session.time(event.first),
        "last": session.time(event.last),
        "count": event.count,
        "reason": event.reason,
        "instruction": event.instruction,
        "id": event.id,
        "detected": session.time(event.now),
        "worker": event.worker,
        "pending": pending,
    }


def lines_since(store: Store, begin: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the lines of the log that were written since then, each with the moment of that."""
    seen = f"{max(0, begin - 1)}-0"
    while page := store.log_after(seen, PAGE):
        for seen, line in page:
            at = int(seen.partition("-")[0])
            if at >= begin and line:
                yield at, line
        if len(page) < PAGE:
            return


# -- log ---------------------------------------------------------------------------------------------------


@command("log", short_help="List what beat and the workers decided.")
@click.argument("entries", nargs=-1, metavar="[ENTRY]...")
@since_option
@click.option("--outcome", type=click.Choice([str(o) for o in Outcome]), help="Only this outcome.")
@click.option("--follow", is_flag=True, help="Keep showing new lines; with --json one object on each line.")
@limit_option
def log_(
    session: Session, entries: Sequence[str], since: str, outcome: str | None, follow: bool, limit: int | None
) -> None:
    """List what beat and the workers decided, the newest last. ENTRY is a name, or a pattern with * and ?."""
    chosen = set(session.names(entries)) if entries else None
    begin = read_moment(since, session.zone, session.now, past=True)

    def meant(line: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Event | None]]:
        """Yield what is asked for of a line, part by part where single entries are asked for."""
        event = decode(line)
        parts = [(line, event)]
        if chosen is not None:
            # Runs that were sent together share a line.
            parts = [(part.encode(), part) for part in event.split()] if event else parts
            parts = [part for part in parts if part[0].get("entry") in chosen]
        yield from (part for part in parts if outcome is None or outcome in _outcomes(part[1]))

    # Lines that are written meanwhile are followed from here.
    seen = session.store.last_log_id() if follow else ""
    found = [(at, *part) for at, line in lines_since(session.store, begin) for part in meant(line)]
    rows, _ = cut(session, found, limit, newest=True)
    if not follow:
        lines = [_line_as_json(session, *row) for row in rows]
        session.answer(
            {"since": session.time(begin), "lines": lines}, lambda page: _write(page, session, rows)
        )
        return
    page = session.page
    while True:
        for row in rows:
            if session.as_json:
                session.echo_json(_line_as_json(session, *row))
            else:
                _write(page, session, [row])
        rows = []
        for id_, line in session.store.log_after(seen, PAGE):
            seen = id_
            rows += [(int(seen.partition("-")[0]), *part) for part in meant(line)]
        if not rows:
            time.sleep(FOLLOW_EVERY)


def _outcomes(event: Event | None) -> set[str]:
    """Return how the occurrences of which an event tells have ended."""
    match event:
        case Sent():
            return {event.outcome}
        case Misfired():
            return set(event.outcomes)
        case GaveUp() | Missed():
            return {"missed"}
        case Merged():
            return {"merged"}
    return {outcome for _, outcome in event.counts} if event else set()


def _line_as_json(session: Session, at: int, line: Mapping[str, Any], event: Event | None) -> dict[str, Any]:
    return {
        "time": session.time(at),
        "event": str(line.get("event")),
        "entry": line.get("entry") or None,
        "sentence": event.sentence(session.zone) if event else None,
        "fields": {key: value for key, value in line.items() if key not in ("event", "entry")},
    }


def _write(page: Page, session: Session, rows: Sequence[tuple[int, Mapping[str, Any], Event | None]]) -> None:
    for at, line, event in rows:
        told = event.sentence(session.zone) if event else f"{line.get('event')} {line.get('entry', '')}"
        page.line(f"{page.time(at)}  {one_line(told, 1000)}")
    if not rows:
        page.line("the log has nothing like that")
