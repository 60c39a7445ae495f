"""What an outage would do to a periodic task: the questions that can be asked, and the answers in words.

The answer comes from :mod:`celery_misfire.simulation`, that is from the planner that beat itself works with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from celery_misfire.contrib.django.models import reason_in_words
from celery_misfire.contrib.django.moments import as_text
from celery_misfire.contrib.django.policies import policy_in_words
from celery_misfire.contrib.django.timeline.history import expand
from celery_misfire.contrib.django.timeline.timeline import Occurrence, Outage, Timeline, format_number
from celery_misfire.misfire import (
    FITTING,
    FireTimes,
    MisfirePolicy,
    Outcome,
    Reason,
    Runs,
    Trigger,
    TriggerState,
    TriggerType,
    from_millis,
    threshold_millis,
    to_millis,
)
from celery_misfire.records import EntryRecord
from celery_misfire.simulation import NO_PAUSES, Pauses, Step, steps
from celery_misfire.status import is_current
from celery_misfire.triggers.wall_times import DAY, HOUR, MINUTE, SECOND

#: The longest outage of one task that is answered, in years: somebody waits for the page.
LONGEST_OUTAGE = 100
#: The outage that is offered first is no longer than this, in days.
MAX_OUTAGE_DAYS = 400
#: The picture has at most this many fire times before the outage, and as many after it.
MOST_AROUND = 50
#: The outage that is offered first may grow to this many periods, to be longer than the threshold.
MAX_PERIODS = 100

_INPUT = "%Y-%m-%dT%H:%M:%S"


class OutageForm(forms.Form):
    """When beat is away; with aware times when it is valid."""

    #: The longest outage that is answered, in years.
    longest = LONGEST_OUTAGE

    down = forms.DateTimeField(
        label=gettext_lazy("Beat is away from"),
        widget=forms.DateTimeInput({"type": "datetime-local", "step": "1"}, format=_INPUT),
    )
    up = forms.DateTimeField(
        label=gettext_lazy("until"),
        widget=forms.DateTimeInput({"type": "datetime-local", "step": "1"}, format=_INPUT),
    )

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if "down" in data and "up" in data:
            # Without USE_TZ the times are naive.
            down, up = data["down"], data["up"] = [
                moment if timezone.is_aware(moment) else timezone.make_aware(moment)
                for moment in (data["down"], data["up"])
            ]
            if up <= down:
                self.add_error("up", _("The outage has to end after it begins."))
            elif down.year <= 1970 or up.year >= 9000:
                self.add_error("down", _("Choose a date between 1971 and 8999."))
            elif up - down > timedelta(days=366 * self.longest):
                text = ngettext(
                    "Choose an outage of at most %(n)d year.",
                    "Choose an outage of at most %(n)d years.",
                    self.longest,
                )
                self.add_error("up", text % {"n": self.longest})
        return data


class WhatIfForm(OutageForm):
    """An outage, and what is to be done about it.

    :param since: an outage has to end after this moment, in milliseconds UTC.
    """

    instruction = forms.ChoiceField(label=gettext_lazy("Misfire instruction"))
    threshold = forms.FloatField(
        label=gettext_lazy("Misfire threshold (seconds)"),
        required=False,
        min_value=0.001,
        max_value=366 * 86_400,
        help_text=gettext_lazy(
            "A run counts as a misfire when it is this many seconds late. Empty: automatic."
        ),
    )
    max_catch_up = forms.IntegerField(
        label=gettext_lazy("Catch up at most"),
        required=False,
        min_value=1,
        max_value=1_000_000,
    )
    max_lateness = forms.FloatField(
        label=gettext_lazy("Give up after (seconds)"),
        required=False,
        min_value=0.001,
        max_value=366 * 86_400,
        help_text=gettext_lazy("A run that is later than this is missed."),
    )

    def __init__(self, data: Mapping[str, Any], trigger: Trigger, since: int = 0) -> None:
        super().__init__(data)
        self._since = since
        fitting = FITTING[trigger.trigger_type]
        choices = [(str(i), policy_in_words(MisfirePolicy(i), trigger.trigger_type)) for i in fitting]
        self.fields["instruction"].choices = choices  # type: ignore[attr-defined] # of a ChoiceField

    def clean(self) -> dict[str, Any]:
        data = super().clean()
        if not self.errors.keys() & {"down", "up"} and to_millis(data["up"]) <= self._since:
            text = _("The task is known since %(time)s. Choose an outage that ends later.")
            self.add_error("up", text % {"time": as_text(self._since)})
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


def defaults(trigger: Trigger, state: TriggerState, policy: MisfirePolicy | None, now: int) -> dict[str, str]:
    """Return what the form holds at first: an outage over the next two fire times, and the policy."""
    times = trigger.fire_times(state)
    first = times.after(now)
    second = None if first is None else times.after(first)
    margin = HOUR
    if first is None or second is None or second - first > MAX_OUTAGE_DAYS * DAY - 2 * HOUR:
        first = second = now + 2 * margin if first is None else first
    else:
        margin = min(HOUR, (second - first) // 4)
    # An outage of the future, as far as there is room for it.
    down, up = max(first - margin, min(now, first - SECOND)), second + margin
    late = first + threshold_millis(policy, first, second if second != first else None)
    if up < late and late - first <= MAX_PERIODS * max(1, second - first):
        up = late + margin
    # The form has whole seconds; whole minutes are easier to read.
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
        """The answer without its first sentence, which is the same for every instruction."""
        return " ".join(self.sentences[1:])


def disabled_in_words(trigger: Trigger | None, record: EntryRecord | None) -> str:
    """Return what to say of a task that beat leaves out."""
    if trigger is not None and trigger.trigger_type is TriggerType.ONCE and record is not None:
        due = record.state.previous_fire_time
        if due is not None and record.fingerprint == trigger.fingerprint:
            return _("Finished: its one run was due at %(time)s.") % {"time": as_text(due)}
    return _("This task is disabled: beat does not run it.")


def known_since(trigger: Trigger, record: EntryRecord | None, now: int) -> int:
    """Return the first moment at which a task could fire: before that, nothing could have been missed."""
    return 1 + (record.begin if record is not None and is_current(record, trigger) else now)


@dataclass(frozen=True)
class Question:
    """An outage of a trigger, which can be asked about for each policy.

    :param state: the state of the trigger at `start`.
    :param start: from when to show, as `until`, in milliseconds UTC; the outage is from `down` to `up`.
    """

    trigger: Trigger
    state: TriggerState
    start: int
    down: int
    up: int
    until: int
    pauses: Pauses = NO_PAUSES

    @classmethod
    def of(
        cls,
        trigger: Trigger,
        state: TriggerState,
        down: datetime,
        up: datetime,
        since: int | None = None,
        pauses: Pauses = NO_PAUSES,
    ) -> Question:
        """Return the question what an outage does to a trigger, however long it is.

        :param state: where the trigger stands; its grid and counts matter, not its next fire time.
        :param since: the past before this moment is left out; None: nothing is.
        """
        begin, end = to_millis(down), to_millis(up)
        times = trigger.fire_times(state)
        start, until = _around(trigger, times, begin, end)
        if since is not None:
            start = max(start, min(since, end))
        # The simulation begins with the first fire time in the picture. A task that is finished stays so.
        if state.next_fire_time is not None:
            if pauses.hold_back(start):
                start = min(start, state.next_fire_time)
            state = replace(state, next_fire_time=times.after(start - 1))
        return cls(trigger, state, start, begin, end, until, pauses)

    def ask(self, name: str, policy: MisfirePolicy, this_year: int | None = None) -> Answer:
        """Return what happens under a policy.

        :param name: of the picture.
        :param this_year: see :class:`Timeline`.
        """
        window = {"start": self.start, "down_at": self.down, "up_at": self.up, "until": self.until}
        taken = list(steps(self.trigger, self.state, policy, **window, pauses=self.pauses))
        timeline = Timeline(
            name=name,
            start=self.start,
            end=self.until,
            zone=timezone.get_current_timezone(),
            occurrences=tuple(_occurrences(taken, self.trigger, self.state)),
            outages=(Outage(self.down, self.up, _("Beat is away")),),
            this_year=this_year,
        )
        # A fire time that falls on the end of the outage is due then, together with the others.
        back = [step.plan for step in taken if step.now == self.up]
        due = sum(runs.count + runs.merged for plan in back for runs in plan.runs)
        due += sum(lost.count for plan in back for lost in plan.missed)
        state = taken[-1].plan.state if taken else self.state
        following = self.pauses.following(self.trigger, state, self.until)
        sentences = _sentences(taken, timeline, due, following)
        if following is None and self.pauses.lasting(self.until) is None:
            sentences.append(_("No further runs."))
        return Answer(timeline, tuple(sentences))


def _around(trigger: Trigger, times: FireTimes, begin: int, end: int) -> tuple[int, int]:
    """Return from when to when to show: the outage, and some fire times on both sides."""
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
        # The interval may start again from the end of the outage.
        until = max(until, end + trigger.interval + margin // 4)
    # Each of these is planned by itself, so they may not be many.
    if times.count(start, begin - 1) > MOST_AROUND:
        for _step in range(MOST_AROUND):
            begin = times.before(begin) or begin
        start = begin
    if times.count(end + 1, until) > MOST_AROUND:
        for _step in range(MOST_AROUND):
            end = times.after(end) or end
        until = end
    return start, until


def _occurrences(taken: Sequence[Step], trigger: Trigger, state: TriggerState) -> list[Occurrence]:
    found: list[Occurrence] = []
    for step in taken:
        for runs in step.plan.runs:
            stretch = Occurrence(runs.first, runs.outcome, step.now, runs.last, runs.count)
            found += expand(trigger, state, stretch)
            if runs.merged:
                # The run stands for everything that was overdue with it.
                last = runs.first if runs.last_missed is None else runs.last_missed
                with_run = Occurrence(runs.first, Outcome.MERGED, step.now, last, runs.merged + 1)
                parts = list(expand(trigger, state, with_run))
                found += parts[1:] if len(parts) > 1 else [replace(with_run, count=runs.merged)]
        for lost in step.plan.missed:
            reason = reason_in_words(lost.reason)
            stretch = Occurrence(lost.first, Outcome.MISSED, None, lost.last, lost.count, reason)
            found += expand(trigger, state, stretch)
        state = step.plan.state
    # A stretch of one has no end of its own.
    found = [replace(o, last=None) if o.count == 1 else o for o in found]
    return sorted(found, key=lambda o: o.scheduled)


def _sentences(taken: Sequence[Step], timeline: Timeline, due: int, following: int | None) -> list[str]:
    """Return what happens in words, in the order in which it happens."""
    sentences = [
        ngettext("%(n)s fire time falls into the outage.", "%(n)s fire times fall into the outage.", due)
        % {"n": format_number(due)}
    ]
    if not due:
        sentences = [_("No run of this task would be affected.")]
    clock = _Clock(timeline)
    runs = [(step.now, runs) for step in taken for runs in step.plan.runs]
    for lost in (lost for step in taken for lost in step.plan.missed):
        words = {"first": clock(lost.first), "last": clock(lost.last), "n": format_number(lost.count)}
        if lost.count == 1:
            sentences.append(_("%(first)s is missed.") % words)
        else:
            sentences.append(_("%(n)s runs are missed, %(first)s to %(last)s.") % words)
        # The outage itself is no news.
        if lost.reason is not Reason.SCHEDULER_DOWN:
            sentences.append(_("Reason: %(reason)s.") % {"reason": reason_in_words(lost.reason)})
    late = [(now, some) for now, some in runs if some.outcome is Outcome.RECOVERED]
    if late:
        sentences.append(_late_runs(late, timeline, clock))
    # One that falls on the moment of planning is not late at all.
    in_time = sum(
        some.count - (some.last == now)
        for now, some in runs
        if some.outcome is Outcome.FIRED and now > some.first
    )
    if in_time:
        sentences.append(
            ngettext(
                "%(n)s run is late by less than the misfire threshold, and counts as on time.",
                "%(n)s runs are late by less than the misfire threshold, and count as on time.",
                in_time,
            )
            % {"n": format_number(in_time)}
        )
    up = timeline.outages[0].end
    following = next((some.first for _now, some in runs if some.first > up), following)
    if following is not None:
        sentences.append(_("Next: %(time)s.") % {"time": clock(following)})
    return sentences


def _late_runs(late: Sequence[tuple[int, Runs]], timeline: Timeline, clock: _Clock) -> str:
    now, run = late[0]
    count = sum(some.count for _now, some in late)
    words = {"at": clock(now), "first": clock(run.first), "last": clock(late[-1][1].last)}
    if count > 1:
        text = _("%(n)s runs are made at %(at)s, one for each fire time from %(first)s to %(last)s.")
        return text % (words | {"n": format_number(count)})
    words["for"] = words["first"]
    if not run.merged or run.last_missed is None:
        return _("One run is made at %(at)s for %(for)s.") % words
    merged = [o for o in timeline.occurrences if o.outcome is Outcome.MERGED]
    words |= {"n": format_number(run.merged), "last": clock(run.last_missed)}
    words["first"] = clock(merged[0].scheduled) if merged else words["last"]
    if run.merged == 1:
        return _("One run is made at %(at)s for %(for)s; %(last)s is merged into it.") % words
    text = _("One run is made at %(at)s for %(for)s; %(n)s more are merged into it, %(first)s to %(last)s.")
    return text % words


class _Clock:
    """Formats moments: only the time of those that are on the one day of the outage."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline, self._outage = timeline, timeline.outages[0]

    def __call__(self, moment: int) -> str:
        t, outage = self._timeline, self._outage
        one_day = t.same_day(outage.start, outage.end) and t.same_day(outage.end, moment)
        return t.clock(moment) if one_day and len(t.offsets) == 1 else t.date_and_time(moment)
