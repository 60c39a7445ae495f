"""One outage is one episode: what was decided and not sent is put back, and judged with all that is overdue.

Pure, like the planner. A run that was claimed when an outage began, the runs that wait to be caught up, and
what came due meanwhile get one verdict, from the state before the oldest of them. So what counted triggers
count is right as well. A run that was sent in between ends an episode, and so does an edit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from celery_misfire.entry_record import EntryRecord, Intent
from celery_misfire.misfire import (
    FireTimes,
    Misfire,
    MisfirePolicy,
    Outcome,
    Plan,
    Reason,
    Runs,
    Trigger,
    TriggerState,
    plan,
)
from celery_misfire.records import claim, with_missed, with_plan

Unsent = Intent | Runs


@dataclass(frozen=True)
class Episodes:
    """The rules by which the episodes of one entry are judged, and the moment.

    :param reason: returns why an occurrence is late, by its scheduled time and by when its fire times began.
    """

    trigger: Trigger
    policy: MisfirePolicy | None
    now: int
    reason: Callable[[int, int], Reason]

    def judge(
        self, record: EntryRecord, unsent: Collection[Intent] = ()
    ) -> list[tuple[EntryRecord, Misfire | None]]:
        """Decide what happens to all that is overdue.

        :param unsent: the intents that may be put back; any other counts as sent.
        :returns: the record after each episode, with its misfire if there is one to tell of. Nothing when
            nothing is due and what was claimed is still in time.
        """
        if not unsent and not record.runs:
            # The usual case: nothing is put back.
            step = self._judge_due(record)
            return [] if step is None else [step]
        ours = [i for i in unsent if i.generation == record.generation and not i.entry]
        latest = self._latest(record, [*ours, *record.runs])
        step = self._judge_latest(record, latest)
        steps = [] if step is None else [step]
        # What was decided before an edit, or before a run that was sent.
        apart = [i for i in unsent if i not in latest.unsent and i.outcome is Outcome.FIRED]
        for stretch in stretches(record, self.trigger, apart):
            record = steps[-1][0] if steps else record
            if (step := self._judge_apart(record, stretch)) is not None:
                steps.append(step)
        return steps

    def _judge_due(self, record: EntryRecord) -> tuple[EntryRecord, Misfire | None] | None:
        first = record.state.next_fire_time
        if first is None or first > self.now:
            return None
        made = self._plan(record, record.state, first)
        in_time = any(runs.outcome is Outcome.FIRED for runs in made.runs)
        policy = None if in_time else self.policy
        return with_plan(record, made, self.now, policy), made.misfire

    def _latest(self, record: EntryRecord, unsent: Collection[Unsent]) -> _Latest:
        state = open_state = record.state
        found, opened = list[Unsent](), 0
        for span in sorted(unsent, key=_first, reverse=True):
            if _first(span) > self.now or not _comes_before(span, state, self.trigger):
                break
            state = _state_before(span, state)
            found.append(span)
            if span.outcome is Outcome.FIRED:
                open_state, opened = state, len(found)
        return _Latest(found, found[opened:], state, open_state)

    def _judge_latest(
        self, record: EntryRecord, latest: _Latest
    ) -> tuple[EntryRecord, Misfire | None] | None:
        first = latest.open_state.next_fire_time
        if first is None or first > self.now:
            return None
        made = self._plan(record, latest.open_state, first)
        if any(runs.outcome is Outcome.FIRED for runs in made.runs):
            # What was claimed in time stays as it is.
            if latest.open_state is not record.state:
                made = plan(self.trigger, record.state, self.policy, self.now)
            return None if made.state is record.state else (with_plan(record, made, self.now), None)
        if latest.told:
            made = self._plan(record, latest.state, _first(latest.told[-1]))
        left = replace(
            record,
            intents=tuple(i for i in record.intents if i not in latest.unsent),
            runs=tuple(r for r in record.runs if r not in latest.unsent),
        )
        decided = with_plan(left, made, self.now, self.policy)
        misfire = made.misfire and latest.without_told(made.misfire, first, self.now)
        return self._with_claimed(decided, made.runs, latest.unsent), misfire

    def _plan(self, record: EntryRecord, state: TriggerState, first: int) -> Plan:
        return plan(self.trigger, state, self.policy, self.now, self.reason(first, record.begin))

    def _with_claimed(
        self, record: EntryRecord, runs: Sequence[Runs], before: Iterable[Unsent]
    ) -> EntryRecord:
        """Return the record in which runs that had been claimed are so again, with what was known of them."""
        intents = [span for span in before if isinstance(span, Intent)]
        known = {i.scheduled: i for i in intents if any(r.first <= i.scheduled <= r.last for r in runs)}
        others = tuple(r for r in record.runs if r not in runs)
        part = claim(replace(record, runs=tuple(runs), intents=()), self.trigger, self.now, len(known))
        claimed = [_decided(known.get(i.scheduled, i), i) for i in part.intents]
        return replace(record, runs=others + part.runs, intents=record.intents + tuple(claimed))

    def _judge_apart(
        self, record: EntryRecord, intents: Sequence[Intent]
    ) -> tuple[EntryRecord, Misfire | None] | None:
        """Judge claimed runs without which the trigger has gone on: its state stays as it is."""
        first = intents[0]
        state = replace(record.state, next_fire_time=first.scheduled, end_time=None, max_runs=None)
        stretch = _Stretch(self.trigger, record.state, tuple(i.scheduled for i in intents))
        reason = self.reason(first.scheduled, min(first.generation, record.begin))
        made = plan(cast(Trigger, stretch), state, self.policy, self.now, reason)
        if any(runs.outcome is Outcome.FIRED for runs in made.runs):
            return None
        left = tuple(i for i in record.intents if i not in intents)
        run = tuple(_decided(i, r) for i in intents for r in made.runs if r.first <= i.scheduled <= r.last)
        judged = replace(record, intents=left + run)
        if made.misfire is None:
            return judged, None
        resolved = made.misfire.resolved
        return with_missed(judged, made.missed, resolved, self.now, first), made.misfire


@dataclass(frozen=True)
class _Latest:
    """What an entry has not sent and decided last: nothing was sent after it.

    :param unsent: newest first.
    :param told: the part of it of which a misfire has told; after it come the runs in time.
    :param state: the state before all of it; `open_state`: before what no misfire has told of.
    """

    unsent: Sequence[Unsent]
    told: Sequence[Unsent]
    state: TriggerState
    open_state: TriggerState

    def without_told(self, misfire: Misfire, first: int, now: int) -> Misfire:
        """Return the misfire without what was told before, unless some of that does not run after all.

        :param first: the first occurrence of which no misfire has told.
        """
        told = {
            Outcome.RECOVERED: sum(map(_count, self.told)),
            Outcome.MERGED: sum(s.merged for s in self.told),
        }
        left = {o: misfire.outcomes.get(o, 0) - told.get(o, 0) for o in (*told, Outcome.MISSED)}
        if not self.told or min(left.values()) < 0:
            return misfire
        return replace(
            misfire,
            first=first,
            count=misfire.count - sum(told.values()),
            late_by=now - first,
            outcomes={outcome: n for outcome, n in left.items() if n},
        )


@dataclass(frozen=True)
class _Stretch:
    """Claimed occurrences in the place of the trigger that they are of."""

    trigger: Trigger
    state: TriggerState
    moments: Sequence[int]

    @property
    def interval(self) -> int | None:
        return self.trigger.interval

    def fire_times(self, state: TriggerState) -> FireTimes:
        return self

    def after(self, moment: int) -> int | None:
        following = min((m for m in self.moments if m > moment), default=None)
        return self.trigger.fire_times(self.state).after(moment) if following is None else following

    def before(self, moment: int) -> int | None:
        return max((m for m in self.moments if m < moment), default=None)

    def count(self, first: int, last: int) -> int:
        return sum(first <= moment <= last for moment in self.moments)


def stretches(record: EntryRecord, trigger: Trigger, intents: Iterable[Intent]) -> Iterator[list[Intent]]:
    """Yield the intents that follow one another without a gap.

    Those of another generation count as one stretch: their fire times are not known any more.
    """
    stretch: list[Intent] = []
    for intent in sorted(intents, key=lambda i: (i.entry, i.generation, i.scheduled)):
        if stretch and not _follows(stretch[-1], intent, record, trigger):
            yield stretch
            stretch = []
        stretch.append(intent)
    if stretch:
        yield stretch


def _follows(one: Intent, other: Intent, record: EntryRecord, trigger: Trigger) -> bool:
    if (one.entry, one.generation) != (other.entry, other.generation):
        return False
    state = replace(record.state, next_fire_time=other.scheduled, previous_fire_time=None)
    return one.generation != record.generation or _comes_before(one, state, trigger)


def _comes_before(span: Unsent, state: TriggerState, trigger: Trigger) -> bool:
    """Return True when no occurrence lies between these runs and the next fire time of the state."""
    if span.before is None and state.repeat_count is not None and _first(span) < state.start_time:
        # The grid was started anew since, by a version that did not keep the old one.
        return False
    if state.previous_fire_time is not None:
        return span.end == state.previous_fire_time
    since = span.end if span.before is None else state.start_time
    return trigger.fire_times(state).after(since) == state.next_fire_time


def _state_before(span: Unsent, state: TriggerState) -> TriggerState:
    """Return the state before these runs, which were the last that was decided."""
    if span.before is not None:
        return replace(span.before, previous_fire_time=None)
    # A grid uses up a slot for each occurrence, a cron type one for each run.
    used = _count(span) + (0 if state.repeat_count is None else span.merged)
    triggered = max(0, state.times_triggered - used)
    return replace(state, next_fire_time=_first(span), previous_fire_time=None, times_triggered=triggered)


def _decided(intent: Intent, by: Unsent) -> Intent:
    return replace(intent, outcome=by.outcome, merged=by.merged, last_missed=by.last_missed, before=by.before)


def _first(span: Unsent) -> int:
    return span.scheduled if isinstance(span, Intent) else span.first


def _count(span: Unsent) -> int:
    return 1 if isinstance(span, Intent) else span.count
