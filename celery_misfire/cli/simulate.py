"""The command ``simulate``: what an outage would do, to one entry or to all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

from celery_misfire import records
from celery_misfire.cli.output import Page, length, read_moment
from celery_misfire.cli.reading import cut, limit_option, pause_as_json
from celery_misfire.cli.session import Session, command, fail
from celery_misfire.clocks import wall_clock
from celery_misfire.conf.entries import ConfiguredEntry
from celery_misfire.control import read_hold
from celery_misfire.exceptions import StoreUnavailable
from celery_misfire.misfire import (
    FITTING,
    FireTimes,
    MisfireInstruction,
    MisfirePolicy,
    Outcome,
    Trigger,
    TriggerState,
    resolve,
)
from celery_misfire.records import EntryRecord, Pause
from celery_misfire.simulation import OutageEffect, Pauses, effect_of_outage
from celery_misfire.status import state_of
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.texts import describe_error, quote_name
from celery_misfire.triggers.wall_times import DAY

#: Longest wait for Redis, in seconds: the answer can do without it.
READ_TIMEOUT = 1.0
#: The longest outage that is answered, in years. One of thousands of years takes seconds for each entry.
LONGEST_OUTAGE = 100
#: How many characters the picture of an outage is wide.
PICTURE = 48
#: What stands in a picture for an occurrence of each outcome.
MARKS = {Outcome.FIRED: "+", Outcome.RECOVERED: "R", Outcome.MERGED: "m", Outcome.MISSED: "x"}


@dataclass(frozen=True)
class _Answer:
    """What happens to one entry, or the problem for which nobody can say."""

    name: str
    resolved: str = ""
    problem: str = ""
    effect: OutageEffect | None = None
    times: FireTimes | None = None


@command("simulate", short_help="Show what an outage would do.")
@click.argument("entries", nargs=-1, metavar="[ENTRY]...")
@click.option(
    "--down", required=True, metavar="TIME", help="When beat goes away: 01:30, 2h, 2026-03-01T01:30."
)
@click.option(
    "--up",
    required=True,
    metavar="TIME",
    help="When beat is back: 10:15, or 2h for two hours after --down.",
)
@click.option(
    "--instruction",
    type=click.Choice([str(i) for i in MisfireInstruction]),
    help="Try this instruction in place of the configured one.",
)
@limit_option
def simulate_(
    session: Session, entries: Sequence[str], down: str, up: str, instruction: str | None, limit: int | None
) -> None:
    """Show what an outage would do to entries, all of them if none is named. Needs neither broker nor Redis.

    Where Redis answers, it starts from the state that beat keeps there, else from entries that are seen now
    for the first time.
    """
    known, hold, source = _state(session)
    begin = read_moment(down, session.zone, wall_clock(), past=False)
    end = read_moment(up, session.zone, begin, past=False)
    if end <= begin:
        fail("--up: the outage must end after it begins.")
    if end - begin > LONGEST_OUTAGE * 366 * DAY:
        fail(f"--up: the outage may last {LONGEST_OUTAGE} years at most.")
    names = session.names(entries, known=session.entries)
    what_if = _Outage(begin, end, hold, pauses_misfire=session.settings.on_resume == "misfire")
    answers = [_answer(session.entries[n], n, known.get(n), instruction, what_if) for n in names]
    if entries and instruction is not None and len(answers) == 1 and answers[0].problem:
        fail(f"entry {quote_name(names[0])}: {answers[0].problem}")
    shown, more = cut(session, answers, limit)
    counts = [answer.effect.counts for answer in answers if answer.effect]
    totals = {str(outcome): sum(count[outcome] for count in counts) for outcome in Outcome}
    data: dict[str, Any] = {
        "down": session.time(begin),
        "up": session.time(end),
        "state": source,
        "total": totals,
        "entries": [_as_json(session, answer) for answer in shown],
        "more": more,
    }

    def write(page: Page) -> None:
        page.line(
            f"beat is away from {page.time(begin)} to {page.time(end)} ({length(end - begin)}), {source}"
        )
        page.line(", ".join(f"{MARKS[o]} {totals[o]:,} {o}" for o in Outcome))
        page.line()
        columns = ("entry", "instruction", "due", *map(str, Outcome), "next", "paused", "outage")
        spare = ("instruction", "next", "outage")
        page.table(
            columns, [_row(page, answer, begin, end, len(shown)) for answer in shown], more, spare=spare
        )

    session.answer(data, write)


def _state(session: Session) -> tuple[Mapping[str, EntryRecord], Pause | None, str]:
    """Return the records and the hold that Redis has, and in words where the simulation starts from."""
    store = RedisStore.of(session.settings, READ_TIMEOUT)
    try:
        found, hold = records.loads_all(store.load()), read_hold(store.sight().hold)
    except StoreUnavailable as exc:
        return {}, None, f"as if entries were first seen now ({exc})"
    source = "from the state in Redis" if found else "as if entries were first seen now (no state)"
    return found, hold, source


class _Outage:
    """An outage, which is asked once what it does to entries that are alike.

    :param hold: the hold of all entries, if there is one.
    :param pauses_misfire: what an entry would have run in a pause has misfired when that ends.
    """

    def __init__(self, down: int, up: int, hold: Pause | None, *, pauses_misfire: bool) -> None:
        self.down, self._up, self._hold, self._pauses_misfire = down, up, hold, pauses_misfire
        self._known: dict[object, tuple[OutageEffect, FireTimes]] = {}

    def effect(
        self, record: EntryRecord | None, trigger: Trigger, state: TriggerState, policy: MisfirePolicy | None
    ) -> tuple[OutageEffect, FireTimes]:
        """Return what happens to an entry, and its fire times."""
        pauses = Pauses.of(record, self._hold, own_misfires=self._pauses_misfire)
        alike = (trigger.fingerprint, state, policy, pauses)
        if alike not in self._known:
            effect = effect_of_outage(trigger, state, policy, self.down, self._up, pauses)
            self._known[alike] = effect, trigger.fire_times(state)
        return self._known[alike]


def _answer(
    entry: ConfiguredEntry, name: str, record: EntryRecord | None, instruction: str | None, outage: _Outage
) -> _Answer:
    trigger, policy = entry.trigger, entry.policy
    if trigger is None:
        return _Answer(name, problem="its schedule cannot be asked")
    if instruction is not None:
        chosen = MisfireInstruction(instruction)
        if chosen not in FITTING[trigger.trigger_type]:
            return _Answer(name, problem=f"{chosen} does not fit a schedule of type {trigger.trigger_type}")
        policy = replace(policy or MisfirePolicy(), instruction=chosen)
    resolved = str(resolve(policy.instruction, trigger.trigger_type)) if policy else "off"
    try:
        state = state_of(record, trigger, min(wall_clock(), outage.down))
        return _Answer(name, resolved, "", *outage.effect(record, trigger, state, policy))
    except Exception as exc:
        # A schedule of the app's own may raise anything.
        return _Answer(name, resolved, problem=describe_error(exc))


def _as_json(session: Session, answer: _Answer) -> dict[str, Any]:
    effect = answer.effect
    if effect is None:
        return {"entry": answer.name, "problem": answer.problem}
    return {
        "entry": answer.name,
        "resolved": answer.resolved,
        "due": effect.due,
        "misfired": effect.misfired,
        **effect.counts,
        "missed_runs": [
            {
                "first": session.time(lost.first),
                "last": session.time(lost.last),
                "count": lost.count,
                "reason": str(lost.reason),
            }
            for lost in effect.missed
        ],
        "next": session.time(effect.next_fire_time),
        "paused": pause_as_json(session, effect.paused),
    }


def _row(page: Page, answer: _Answer, down: int, up: int, rows: int) -> list[object]:
    effect = answer.effect
    if effect is None:
        return [answer.name, answer.problem, *[""] * 8]
    counts = [count or "" for count in effect.counts.values()]
    following = page.time(effect.next_fire_time) or ("" if effect.paused else "never")
    paused = page.pause(effect.paused, rows) if effect.paused else ""
    picture = _picture(answer, down, up)
    return [answer.name, answer.resolved, effect.due or "", *counts, following, paused, picture]


def _picture(answer: _Answer, down: int, up: int) -> str:
    """Return a line from the beginning of the outage to its end, with a mark where fire times are."""
    effect, times = answer.effect, answer.times
    assert effect is not None
    assert times is not None
    stretches: list[tuple[int, int, Outcome]] = []
    for run in effect.runs:
        stretches.append((run.first, run.last, run.outcome))
        if run.merged:
            stretches.append((run.first + 1, run.last_missed or run.last, Outcome.MERGED))
    stretches += [(lost.first, lost.last, Outcome.MISSED) for lost in effect.missed]
    cells = ""
    for cell in range(PICTURE):
        begin = down + (up - down) * cell // PICTURE
        end = down + (up - down) * (cell + 1) // PICTURE
        cells += _mark(times, stretches, begin, end if cell + 1 < PICTURE else up + 1)
    return f"[{cells}]"


def _mark(times: FireTimes, stretches: Sequence[tuple[int, int, Outcome]], begin: int, end: int) -> str:
    """Return the mark for the occurrences from `begin` up to `end`."""
    for first, last, outcome in stretches:
        if first < end and last >= begin:
            following = times.after(max(first, begin) - 1)
            if first >= begin or (following is not None and following < min(end, last + 1)):
                return MARKS[outcome]
    return "."
