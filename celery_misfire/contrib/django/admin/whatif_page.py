"""The page that tells what an outage would do to one periodic task; nothing is saved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from celery import current_app
from django.contrib.admin import ModelAdmin
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask

from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.overview import pause_in_words
from celery_misfire.contrib.django.admin.policy_form import may_edit_policy, proposal
from celery_misfire.contrib.django.admin.read_only import needs_tables
from celery_misfire.contrib.django.admin.task_page import (
    ask_store,
    find_policy,
    find_task,
    find_trigger,
    not_computed,
    render,
)
from celery_misfire.contrib.django.models import Instruction
from celery_misfire.contrib.django.policies import choices_for, policy_in_words
from celery_misfire.contrib.django.rows import entry_name
from celery_misfire.contrib.django.state import fleet_of
from celery_misfire.contrib.django.timeline import whatif
from celery_misfire.contrib.django.timeline.picture import picture, strip
from celery_misfire.misfire import MisfireInstruction, from_millis, to_millis
from celery_misfire.records import EntryRecord
from celery_misfire.simulation import NO_PAUSES, Pauses
from celery_misfire.status import state_of


@needs_tables
def whatif_view(
    model_admin: ModelAdmin[PeriodicTask], request: HttpRequest, object_id: str
) -> TemplateResponse:
    """Show what an outage would do to a task under each misfire instruction."""
    task, now = find_task(model_admin, request, object_id), moments.now()
    problems, notes = list[str](), list[str]()
    context: dict[str, Any] = {"title": _("What if beat were away?"), "problems": problems, "notes": notes}
    trigger = find_trigger(task, problems)
    if trigger is not None:
        name = entry_name(task)
        record, pauses = _look(name, problems)
        if not task.enabled:
            notes.append(whatif.disabled_in_words(trigger, record))
        elif (pause := pauses.lasting(now)) is not None:
            notes.append(capfirst(pause_in_words(pause, _("paused"))) + ".")
        try:
            state = state_of(record, trigger, now)
            defaults = whatif.defaults(trigger, state, find_policy(task, trigger), now)
            since = whatif.known_since(trigger, record, now)
            form = whatif.WhatIfForm({**defaults, **request.GET.dict()}, trigger, since)
            context["form"] = form
            if form.is_valid():
                # Nothing of what is still to come stands before it.
                since = max(since, min(now, to_millis(form.cleaned_data["down"])))
                down, up = form.cleaned_data["down"], form.cleaned_data["up"]
                question = whatif.Question.of(trigger, state, down, up, since, pauses)
                context |= _answers(name, question, form, now)
        except Exception as exc:
            problems.append(not_computed(exc))
    context["can_use"] = may_edit_policy(request, task)
    return render(model_admin, request, task, "whatif", context)


def _look(entry: str, problems: list[str]) -> tuple[EntryRecord | None, Pauses]:
    """Return the record of an entry, None for none, and its pauses."""
    fleet = ask_store(lambda store: fleet_of(store, [entry]), problems)
    if fleet is None:
        return None, NO_PAUSES
    record, on_resume = fleet.records.get(entry), read_settings(current_app).on_resume
    return record, Pauses.of(record, fleet.hold, own_misfires=on_resume == "misfire")


def _answers(entry: str, question: whatif.Question, form: whatif.WhatIfForm, now: int) -> dict[str, Any]:
    policy, type_ = form.policy, question.trigger.trigger_type
    this_year = from_millis(now).astimezone(timezone.get_current_timezone()).year
    name = _("Simulated fire times of %(task)s") % {"task": entry}
    answer = question.ask(name, policy, this_year)
    others = []
    for choice in choices_for(type_, policy.instruction):
        if choice in (Instruction.DEFAULT, Instruction.OFF):
            continue
        other = replace(policy, instruction=MisfireInstruction(choice.value))
        label = policy_in_words(other, type_)
        tried = question.ask(label, other, this_year)
        others.append(
            {
                "label": label,
                "chosen": other.instruction is policy.instruction,
                "strip": strip(tried.timeline, f"mf-{choice.value}"),
                "sentence": tried.outcome,
                "query": urlencode({**form.data, "instruction": choice.value}),
            }
        )
    return {
        "answer": answer,
        "timeline": answer.timeline,
        "picture": picture(answer.timeline),
        "others": others,
        "chosen": policy_in_words(policy, type_),
        "use_query": urlencode(proposal(policy)),
    }
