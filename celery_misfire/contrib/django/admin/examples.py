"""What each misfire instruction does: a sentence, and what it would make of one task's next outage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from celery import current_app
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django_celery_beat.models import PeriodicTask

from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.models import Instruction
from celery_misfire.contrib.django.rows import entry_name, policy_of_row
from celery_misfire.contrib.django.state import open_store, record_of
from celery_misfire.contrib.django.timeline import whatif
from celery_misfire.exceptions import MisfireConfigError, StoreUnavailable
from celery_misfire.misfire import MisfireInstruction, MisfirePolicy, Trigger
from celery_misfire.status import state_of

_SKIP = gettext_lazy("No late run is made; each is recorded as missed. The schedule goes on as it was.")
_RESTART = gettext_lazy("One late run stands for all of them, and the interval starts again from there.")
_SENTENCES = {
    Instruction.DEFAULT: gettext_lazy("What the settings say, also when they change."),
    Instruction.SMART_POLICY: gettext_lazy("The usual choice for each kind of schedule, as in Quartz."),
    Instruction.IGNORE_MISFIRE_POLICY: gettext_lazy("Every late run is made, oldest first, however many."),
    Instruction.FIRE_ONCE_NOW: gettext_lazy(
        "One late run stands for all of them, and the schedule goes on as it was."
    ),
    Instruction.DO_NOTHING: _SKIP,
    Instruction.FIRE_NOW: _RESTART,
    Instruction.NOW_EXISTING: _RESTART,
    Instruction.NOW_REMAINING: _RESTART,
    Instruction.NEXT_EXISTING: _SKIP,
    Instruction.NEXT_REMAINING: _SKIP,
    Instruction.OFF: gettext_lazy("Late runs are dropped, and nothing is recorded."),
}


@dataclass(frozen=True)
class Explained:
    """A choice, what it does, and what came of the outage."""

    choice: Instruction
    sentence: str
    outcome: str = ""


@dataclass(frozen=True)
class Example:
    """What the choices do.

    :param outage: an outage over the task's next two fire times; '' when there is no task, or no fire time.
    :param problem: why there is no outage.
    """

    choices: Sequence[Explained]
    outage: str = ""
    problem: str = ""


def explain(
    choices: Sequence[Instruction],
    task: PeriodicTask | None = None,
    trigger: Trigger | None = None,
) -> Example:
    """Explain these choices, for a task if there is one, with the rest of its policy as it is."""
    plain = Example([Explained(choice, str(_SENTENCES[choice])) for choice in choices])
    if task is None or trigger is None:
        return plain
    try:
        settings = read_settings(current_app)
        own = getattr(task, "misfire_policy", None)
        key = own.as_entry_key() if own is not None else None
        rest = {k: v for k, v in key.items() if k != "instruction"} if isinstance(key, dict) else None
        site = policy_of_row(task, rest, trigger.trigger_type, settings)
    except MisfireConfigError as exc:
        return replace(plain, problem=str(exc))
    policies: dict[Instruction, MisfirePolicy | None] = {Instruction.DEFAULT: site, Instruction.OFF: None}
    for choice in set(choices) - policies.keys():
        policies[choice] = replace(site or MisfirePolicy(), instruction=MisfireInstruction(choice.value))
    try:
        outage, outcome_of = _outage(task, trigger)
    except Exception as exc:
        # A schedule of the site's own may raise any error.
        outage, outcome_of = "", lambda policy: ""
        plain = replace(plain, problem=str(exc))
    explained = []
    for one in plain.choices:
        policy = policies[one.choice]
        outcome = "" if policy is None else outcome_of(policy)
        explained.append(replace(one, outcome=outcome))
    return replace(plain, choices=explained, outage=outage)


def _outage(task: PeriodicTask, trigger: Trigger) -> tuple[str, Callable[[MisfirePolicy], str]]:
    """Return an outage in words, and what a policy would make of it; '' for a task that never fires again."""
    now = moments.now()
    try:
        record = record_of(open_store(current_app), task)
    except StoreUnavailable:
        record = None
    state = state_of(record, trigger, now)
    form = whatif.WhatIfForm(whatif.defaults(trigger, state, None, now), trigger)
    if state.next_fire_time is None or not form.is_valid():
        return "", lambda policy: ""
    down, up = form.cleaned_data["down"], form.cleaned_data["up"]

    question = whatif.Question.of(trigger, state, down, up, whatif.known_since(trigger, record, now))
    answer = question.ask(entry_name(task), MisfirePolicy())
    window = {
        key: answer.timeline.date_and_time(moments.millis(moment))
        for key, moment in (("down", down), ("up", up))
    }
    outage = _("Beat is away from %(down)s to %(up)s.") % window
    # The first sentence says how many fire times there are, whatever the policy.
    return f"{outage} {answer.sentences[0]}", lambda policy: question.ask(entry_name(task), policy).outcome
