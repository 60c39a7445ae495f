"""What an outage would do to a periodic task: the questions that can be asked, and the answers in words.

The answer comes from :mod:`celery_misfire.simulation`, that is from the planner that beat itself works with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from celery_misfire.contrib.django.models import reason_in_words
from celery_misfire.contrib.django.policies import policy_in_words
from celery_misfire.contrib.django.timeline.history import expand
from celery_misfire.contrib.django.timeline.timeline import Occurrence, Outage, Timeline, format_number
from celery_misfire.misfire import (
    FITTING,
    FireTimes,
    MisfirePolicy,
    Outcome,
    Reason,
    Trigger,
    TriggerState,
    from_millis,
    threshold_millis,
    to_millis,
)
from celery_misfire.records import EntryRecord
from celery_misfire.simulation import Simulation, simulate_trigger
from celery_misfire.status import is_current
from celery_misfire.triggers.wall_times import DAY, HOUR, MINUTE, SECOND

__all__ = ["Answer", "TooMany", "WhatIfForm", "ask", "defaults", "first_state"]

#: The longest outage, in days.
LONGEST = 400
#: So many fire times are simulated at most: each instruction has to be tried while somebody waits.
MOST = 2_000
#: An outage is offered as long as a threshold of so many periods makes it, at most.
MANY = 100

_INPUT = "%Y-%m-%dT%H:%M:%S"


class TooMany(Exception):
    """There are more fire times than can be simulated for a page."""


class WhatIfForm(forms.Form):
    """An outage, and what is to be done about it."""

    down = forms.DateTimeField(
        label=gettext_lazy("Beat is away from"),
        widget=forms.DateTimeInput({"type": "datetime-local", "step": "1"}, format=_INPUT),
    )
    up = forms.DateTimeField(
        label=gettext_lazy("until"),
        widget=forms.DateTimeInput({"type": "datetime-local", "step": "1"}, format=_INPUT),
    )
    instruction = forms.ChoiceField(label=gettext_lazy("Misfire instruction"))
    threshold = forms.FloatField(
        label=gettext_lazy("Misfire threshold"),
        required=False,
        min_value=0.001,
        max_value=366 * 86_400,
        help_text=gettext_lazy("Seconds late from which a run counts as misfired; empty: automatic."),
    )
    max_catch_up = forms.IntegerField(
        label=gettext_lazy("Most runs to catch up"),
        required=False,
        min_value=1,
        max_value=1_000_000,
    )
    max_lateness = forms.FloatField(
        label=gettext_lazy("Longest lateness"),
        required=False,
        min_value=0.001,
        max_value=366 * 86_400,
        help_text=gettext_lazy("In seconds; what is older is not run any more."),
    )

    def __init__(self, data: Mapping[str, Any], trigger: Trigger) -> None:
        super().__init__(data)
        fitting = FITTING[trigger.trigger_type]
        choices = [(str(i), policy_in_words(MisfirePolicy(i), trigger.trigger_type)) for i in fitting]
        self.fields["instruction"].choices = choices  # type: ignore[attr-defined] # of a ChoiceField

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        down, up = data.get("down"), data.get("up")
        if down and up:
            # Without USE_TZ they are naive.
            down, up = data["down"], data["up"] = _aware(down), _aware(up)
            if up <= down:
                self.add_error("up", _("The outage has to end after it begins."))
            elif up - down > timedelta(days=LONGEST):
                self.add_error("up", _("The outage can be at most %(days)s days long.") % {"days": LONGEST})
            elif not 1970 < down.year < up.year + 1 < 9000:
                self.add_error("down", _("Choose a time of these years."))
        return data

    @property
    def policy(self) -> MisfirePolicy:
        """The policy that was asked for; only when the form is valid."""
        data = self.cleaned_data
        return MisfirePolicy(
            data["instruction"],
            threshold=data["threshold"] or "auto",
            max_catch_up=data["max_catch_up"],
            max_lateness=data["max_lateness"],
        )


def _aware(moment: datetime) -> datetime:
    return moment if timezone.is_aware(moment) else timezone.make_aware(moment)


def first_state(trigger: Trigger, record: EntryRecord | None, now: int) -> TriggerState:
    """Return the state a task is in: the one that beat keeps, or else that of a task seen now first."""
    return record.state if record is not None and is_current(record, trigger) else trigger.first_state(now)


def defaults(trigger: Trigger, state: TriggerState, policy: MisfirePolicy | None, now: int) -> dict[str, str]:
    """Return what the form holds at first: an outage over the next two fire times, and the policy."""
    times = trigger.fire_times(state)
    first = times.after(now)
    second = None if first is None else times.after(first)
    margin = HOUR
    if first is None or second is None or second - first > LONGEST * DAY - 2 * HOUR:
        first = second = now + 2 * margin if first is None else first
    else:
        margin = min(HOUR, (second - first) // 4)
    down, up = first - margin, second + margin
    late = first + threshold_millis(policy, first, second if second != first else None)
    if up < late and late - first <= MANY * max(1, second - first):
        up = late + margin
    # As round as can be, and in whole seconds, which is what the form has.
    unit = MINUTE if margin >= 2 * MINUTE else SECOND
    down, up = down // unit * unit, -(-up // unit) * unit
    chosen = policy or MisfirePolicy()
    given = {
        "instruction": str(chosen.instruction),
        "threshold": "" if chosen.threshold == "auto" else f"{chosen.threshold:g}",
        "max_catch_up": "" if chosen.max_catch_up is None else str(chosen.max_catch_up),
        "max_lateness": "" if chosen.max_lateness is None else f"{chosen.max_lateness:g}",
    }
    zone = timezone.get_current_timezone()
    return {
        "down": f"{from_millis(down).astimezone(zone):{_INPUT}}",
        "up": f"{from_millis(up).astimezone(zone):{_INPUT}}",
        **given,
    }


@dataclass(frozen=True)
class Answer:
    """What would happen."""

    timeline: Timeline
    sentences: tuple[str, ...]

    @property
    def sentence(self) -> str:
        return " ".join(self.sentences)

    @property
    def outcome(self) -> str:
        """Without the first sentence, which is the same whatever is done."""
        return " ".join(self.sentences[1:])


def ask(
    name: str, trigger: Trigger, state: TriggerState, policy: MisfirePolicy, down: datetime, up: datetime
) -> Answer:
    """Return what an outage does to a trigger.

    :param state: where the trigger stands; its grid and counts matter, not its next fire time.
    :raises TooMany: the outage, with a time before and after it, holds too many fire times.
    """
    begin, end = to_millis(down), to_millis(up)
    times = trigger.fire_times(state)
    start, until = _around(trigger, times, begin, end)
    # From the first fire time in the picture on; a task that is finished stays so.
    if state.next_fire_time is not None:
        state = replace(state, next_fire_time=times.after(start - 1))
    simulation = simulate_trigger(
        trigger,
        state,
        policy=policy,
        start=from_millis(start),
        down_at=down,
        up_at=up,
        until=from_millis(until),
    )
    due = times.count(begin, end - 1) if state.next_fire_time is not None else 0
    timeline = Timeline(
        name=name,
        start=start,
        end=until,
        zone=timezone.get_current_timezone(),
        occurrences=tuple(_occurrences(simulation, trigger, state, end)),
        outages=(Outage(begin, end, _("Beat is away")),),
    )
    return Answer(timeline, tuple(_sentences(simulation, timeline, due, end)))


def _around(trigger: Trigger, times: FireTimes, begin: int, end: int) -> tuple[int, int]:
    """Return from when to when to show: the outage, and one or two fire times on both sides."""
    margin = max(MINUTE, (end - begin) // 5)
    start, until, near = begin - margin, end + margin, max(end - begin, HOUR) * 3 // 2
    previous = times.before(begin)
    if previous is not None and begin - previous <= near:
        start = min(start, previous - margin // 4)
    for _step in range(2):
        following = times.after(until)
        if following is not None and following - end <= near:
            until = following + margin // 4
    if trigger.interval is not None and trigger.interval <= near:
        # It may start again from the end of the outage.
        until = max(until, end + trigger.interval + margin // 4)
    found, moment = 0, start - 1
    while (following := times.after(moment)) is not None and following <= until:
        found, moment = found + 1, following
        if found > MOST:
            raise TooMany
    return start, until


def _occurrences(simulation: Simulation, trigger: Trigger, state: TriggerState, up: int) -> list[Occurrence]:
    found: list[Occurrence] = []
    for fire in simulation.fires:
        scheduled, sent = to_millis(fire.scheduled_fire_time), to_millis(fire.fire_time)
        outcome = Outcome.FIRED if fire.outcome is Outcome.FIRED else fire.outcome
        found.append(Occurrence(scheduled, outcome, sent))
        if fire.merged:
            # The run stands for all that was overdue with it.
            last = trigger.fire_times(state).before(sent + 1) or scheduled
            stretch = Occurrence(scheduled, Outcome.MERGED, sent, max(last, scheduled), fire.merged + 1)
            found += list(expand(trigger, state, stretch, MOST))[1:]
    for lost in simulation.missed:
        first, last = to_millis(lost.first), to_millis(lost.last)
        reason = reason_in_words(lost.reason)
        stretch = Occurrence(first, Outcome.MISSED, None, last, lost.count, reason)
        found += expand(trigger, state, stretch, MOST)
    return sorted(found, key=lambda o: o.scheduled)


def _sentences(simulation: Simulation, timeline: Timeline, due: int, up: int) -> list[str]:
    """Tell it in words, in the order in which it happens."""
    told = [
        ngettext("%(n)s fire time falls into the outage.", "%(n)s fire times fall into the outage.", due)
        % {"n": format_number(due)}
    ]
    clock = _Clock(timeline)
    for lost in simulation.missed:
        first, last = (clock(to_millis(t)) for t in (lost.first, lost.last))
        words = {"first": first, "last": last, "n": format_number(lost.count)}
        if lost.count == 1:
            told.append(_("%(first)s is missed.") % words)
        else:
            told.append(_("%(n)s runs are missed, %(first)s to %(last)s.") % words)
        # That beat was away goes without saying.
        if lost.reason is not Reason.SCHEDULER_DOWN:
            told.append(_("Reason: %(reason)s.") % {"reason": reason_in_words(lost.reason)})
    late = [f for f in simulation.fires if f.outcome is Outcome.RECOVERED]
    if len(late) == 1:
        told.append(_one_run(late[0], timeline, clock))
    elif late:
        words = {
            "n": format_number(len(late)),
            "at": clock(to_millis(late[0].fire_time)),
            "first": clock(to_millis(late[0].scheduled_fire_time)),
            "last": clock(to_millis(late[-1].scheduled_fire_time)),
        }
        told.append(
            _("%(n)s runs are made at %(at)s, one for each fire time from %(first)s to %(last)s.") % words
        )
    in_time = [
        f for f in simulation.fires if f.outcome is Outcome.FIRED and f.fire_time > f.scheduled_fire_time
    ]
    if in_time:
        told.append(
            ngettext(
                "%(n)s run is late by less than the misfire threshold, and counts as on time.",
                "%(n)s runs are late by less than the misfire threshold, and count as on time.",
                len(in_time),
            )
            % {"n": format_number(len(in_time))}
        )
    after = [to_millis(f.scheduled_fire_time) for f in simulation.fires]
    following = next((t for t in after if t > up), None)
    if following is None and simulation.next_fire_time is not None:
        following = to_millis(simulation.next_fire_time)
    if following is None:
        told.append(_("It does not fire any more."))
    else:
        told.append(_("Next: %(time)s.") % {"time": clock(following)})
    return told


def _one_run(run: Any, timeline: Timeline, clock: _Clock) -> str:
    words = {"at": clock(to_millis(run.fire_time)), "for": clock(to_millis(run.scheduled_fire_time))}
    merged = [o for o in timeline.occurrences if o.outcome is Outcome.MERGED]
    if not merged:
        return _("One run is made at %(at)s for %(for)s.") % words
    words |= {
        "n": format_number(run.merged),
        "first": clock(merged[0].scheduled),
        "last": clock(merged[-1].end),
    }
    if run.merged == 1:
        return _("One run is made at %(at)s for %(for)s; %(first)s is merged into it.") % words
    text = _("One run is made at %(at)s for %(for)s; %(n)s more are merged into it, %(first)s to %(last)s.")
    return text % words


class _Clock:
    """Tells moments: only the time, for what is on the one day of the outage."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline, self._outage = timeline, timeline.outages[0]

    def __call__(self, moment: int) -> str:
        t, outage = self._timeline, self._outage
        one_day = t.same_day(outage.start, outage.end) and t.same_day(outage.end, moment)
        return t.clock(moment) if one_day and len(t.offsets) == 1 else t.date_and_time(moment)
