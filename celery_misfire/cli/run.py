"""The command ``run``: an occurrence once more, with its original scheduled time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import click

from celery_misfire import by_hand
from celery_misfire.cli.output import Page, read_moment
from celery_misfire.cli.reading import lines_since
from celery_misfire.cli.session import FINE, NO_ENTRY, NOT_FINE, Session, command, fail, who
from celery_misfire.entry_record import EntryRecord
from celery_misfire.events import GaveUp, Misfired, Missed, decode
from celery_misfire.exceptions import PublishRejected
from celery_misfire.misfire import Trigger, TriggerState
from celery_misfire.status import state_of
from celery_misfire.texts import one_line, quote, quote_name, suggestion

#: The most occurrences that one call sends.
MOST_RUNS = 1000


@dataclass(frozen=True)
class _Wanted:
    """Occurrences of one entry that are to be run."""

    entry: str
    times: tuple[int, ...]
    more: int = 0
    was_edited: bool = False


@command("run", short_help="Run an occurrence by hand, with its original time.")
@click.argument("entry", required=False)
@click.option("--at", "at", metavar="TIME", help="The scheduled time of the occurrence.")
@click.option("--missed", "missed", metavar="ID", help="Run every occurrence of this record of missed runs.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
def run_(session: Session, entry: str | None, at: str | None, missed: str | None, dry_run: bool) -> int:
    """Run an occurrence by hand, with its original scheduled time. Each can be run by hand once.

    Either ENTRY with --at, or --missed with an id as `missed` shows it.
    """
    if (at is None) == (missed is None):
        fail("say which occurrence: ENTRY --at TIME, or --missed ID.")
    wanted = _at(session, entry, at) if at is not None else _missed(session, str(missed), entry)
    configured = session.entries.get(wanted.entry)
    if configured is None:
        fail(
            f"no entry {quote_name(wanted.entry)} any more, so nobody knows what to send."
            f"{suggestion(wanted.entry, session.entries)}",
            NO_ENTRY,
        )
    results = [_run(session, wanted.entry, scheduled, dry_run) for scheduled in wanted.times]
    data = {
        "entry": wanted.entry,
        "task": str(configured.keys["task"]),
        "dry_run": dry_run,
        "runs": [result | {"scheduled": session.time(result["scheduled"])} for result in results],
        "more": wanted.more,
        "was_edited": wanted.was_edited,
    }

    def write(page: Page) -> None:
        done = "would be sent" if dry_run else "sent"
        rows = [(page.time(r["scheduled"]), r["id"], r["problem"] or done) for r in results]
        page.line(f"entry {quote_name(wanted.entry)}, task {data['task']}")
        page.table(("scheduled", "id", "result"), rows)
        if wanted.was_edited:
            page.line("The schedule has other fire times now; only the first and the last one are known.")
        if wanted.more:
            page.line(f"{wanted.more:,} more are left; call this again for the next.")

    session.answer(data, write)
    return FINE if all(result["problem"] is None for result in results) else NOT_FINE


def _at(session: Session, name: str | None, text: str) -> _Wanted:
    """Return the occurrence of an entry at a time, which has to be a fire time of its schedule."""
    if name is None:
        fail("which entry? Write run ENTRY --at TIME.")
    if name not in session.entries:
        fail(f"no entry {quote_name(name)}.{suggestion(name, session.entries)}", NO_ENTRY)
    scheduled = read_moment(text, session.zone, session.now, past=True)
    if scheduled > session.now:
        fail(f"--at: {session.time(scheduled)} is still to come.")
    trigger = session.entries[name].trigger
    if trigger is None:
        fail(f"entry {quote_name(name)}: its schedule cannot be asked.")
    state = _state_before(session.records([name]).get(name), trigger, scheduled)
    times = trigger.fire_times(state)
    found = times.after(scheduled - 1)
    if scheduled % 1000 == 0 and found is not None and found < scheduled + 1000:
        # A time is shown, and so written, without the milliseconds that a grid may have.
        scheduled = found
    if found != scheduled:
        near = [session.time(t) for t in (times.before(scheduled), times.after(scheduled)) if t is not None]
        what = f"--at: {session.time(scheduled)} is no fire time of {quote_name(name)}"
        fail(f"{what}. Near: {', '.join(map(str, near)) or 'none'}.")
    return _Wanted(name, (scheduled,))


def _state_before(record: EntryRecord | None, trigger: Trigger, moment: int) -> TriggerState:
    """Return a state whose fire times reach back to a moment."""
    state = state_of(record, trigger, moment - 1)
    interval = trigger.interval
    if interval is not None and state.start_time > moment:
        # The grid as it is now, laid back.
        steps = -(-(state.start_time - moment) // interval)
        return replace(state, start_time=state.start_time - steps * interval)
    return state


def _missed(session: Session, id_: str, name: str | None) -> _Wanted:
    """Return the occurrences of the record of missed runs with this id."""
    found = _record(session, id_)
    if found is None:
        fail(f"--missed: the log has no record {quote(id_)}. See `missed --since 7d`.")
    entry, first, last, count = found
    if name not in (None, entry):
        fail(f"--missed: that record is of {quote_name(entry)}, not of {quote_name(str(name))}.")
    configured = session.entries.get(entry)
    trigger = configured.trigger if configured else None
    known = by_hand.occurrences_of(trigger, first, last, count)
    times = tuple(islice(known.between(first, last), MOST_RUNS))
    more = 0 if known.was_edited else count - len(times)
    return _Wanted(entry, times, more, known.was_edited)


def _record(session: Session, id_: str) -> tuple[str, int, int, int] | None:
    """Return entry, first, last and count of a record of missed runs, None when nothing is known of it."""
    for _, line in lines_since(session.store, 0):
        event = decode(line)
        if isinstance(event, Missed | GaveUp) and event.id == id_:
            return event.entry, event.first, event.last, event.count
        if isinstance(event, Misfired) and [lost.get("id") for lost in event.lost] == [id_]:
            return event.entry, event.first, event.last, event.count
    return None


def _run(session: Session, name: str, scheduled: int, dry_run: bool) -> dict[str, Any]:
    """Send one occurrence, unless somebody has had it run before."""
    id_ = by_hand.task_id(session.settings.namespace, name, scheduled)
    result: dict[str, Any] = {"scheduled": scheduled, "id": id_, "problem": None}
    try:
        if dry_run:
            by_hand.check(session.store, id_)
        else:
            sendable = session.scheduler.sendable(session.app, name, session.entries[name].keys)
            by_hand.run_once(session.app, session.store, sendable, id_, scheduled, who())
    except by_hand.AlreadyRun as exc:
        result["problem"] = f"has been run already ({one_line(str(exc))})"
    except by_hand.CannotSend as exc:
        result["problem"] = f"could not be sent ({exc})"
    except PublishRejected as exc:
        result["problem"] = f"cannot be sent: {exc}"
    return result
