"""Pages of the admin about one periodic task: its last day, and what an outage would do to it.

Both only look: nothing is changed by them. They are reached through the admin of PeriodicTask, whose
``get_urls`` names them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlencode

from celery import current_app
from django.contrib.admin import ModelAdmin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django_celery_beat.models import PeriodicTask

from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.policies import policy_in_words, policy_of
from celery_misfire.contrib.django.rows import site_policy, trigger_of
from celery_misfire.contrib.django.state import Stored, open_store, read, records_of
from celery_misfire.contrib.django.timeline import timeline, whatif
from celery_misfire.contrib.django.timeline.history import expected, history
from celery_misfire.contrib.django.timeline.picture import picture, strip
from celery_misfire.exceptions import MisfireConfigError, StoreUnavailable
from celery_misfire.misfire import FITTING, MisfirePolicy, Trigger, TriggerState
from celery_misfire.status import is_current
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.triggers.wall_times import DAY, MINUTE

__all__ = ["timeline_view", "whatif_view"]

T = TypeVar("T")

#: How much of the past is shown, in milliseconds.
PAST = DAY
#: How much of the future, if the next fire time is not later: as a share of the past, and at most.
SOON, LATEST = 1 / 4, DAY

_NOT_COMPUTED = gettext_lazy("The fire times cannot be computed: %(error)s")


def timeline_view(
    model_admin: ModelAdmin[PeriodicTask], request: HttpRequest, object_id: str
) -> TemplateResponse:
    """Show what became of a task's fire times in the last 24 hours, and which are expected next."""
    task = _task(model_admin, request, object_id)
    now = moments.now()
    start = now - PAST
    problems: list[str] = []
    trigger = _trigger(task, problems)
    stored = _ask_store(lambda store: read(store, task.name, start, now), problems)
    if stored is None:
        stored = Stored((), now, None)
    elif stored.known_from == now:
        problems.append(_("The log is empty: nothing is known of the past."))
    past = history(
        stored.events,
        task.name,
        start,
        now,
        trigger=trigger,
        policy=None if trigger is None else _policy(task, trigger),
        record=stored.record,
        known_from=stored.known_from,
    )
    if past.known_from is not None and past.known_from < now:
        # What is not known needs no room.
        start = past.known_from
    end = now + max(MINUTE, round((now - start) * SOON))
    future, following, end = _future(task, trigger, stored, now, end, problems)
    if task.enabled and past.overdue:
        problems.append(
            ngettext(
                "%(n)s fire time is overdue: beat is not there, or it is too busy.",
                "%(n)s fire times are overdue: beat is not there, or it is too busy.",
                past.overdue,
            )
            % {"n": timeline.format_number(past.overdue)}
        )
    shown = timeline.Timeline(
        name=_("Fire times of %(task)s") % {"task": task.name},
        start=start,
        end=end,
        zone=timezone.get_current_timezone(),
        occurrences=(*past.occurrences, *future),
        outages=past.outages if task.enabled else tuple(o for o in past.outages if o.end < now),
        now=now,
        known_from=past.known_from,
    )
    if past.known_from is not None and past.known_from < now:
        text = _("The log begins on %(time)s; what was before is not known.")
        problems.append(text % {"time": shown.date_and_time(past.known_from)})
    context = {
        "title": _("Timeline"),
        "timeline": shown,
        "picture": picture(shown),
        "following": None if following is None else shown.date_and_time(following),
        "problems": problems,
    }
    return _page(model_admin, request, task, "timeline", context)


def _future(
    task: PeriodicTask, trigger: Trigger | None, stored: Stored, now: int, end: int, problems: list[str]
) -> tuple[list[timeline.Occurrence], int | None, int]:
    """Return what is expected, what is expected next, and until when to show it: `end`, or a bit later."""
    if not task.enabled:
        problems.append(_("This task is disabled: it is not expected to run."))
    if trigger is None or not task.enabled:
        return [], None, end
    if stored.record is not None and not is_current(stored.record, trigger):
        problems.append(_("The task was edited, and beat has not seen that yet."))
    elif stored.record is None and stored.known_from != now:
        problems.append(_("Beat has not seen this task yet."))
    try:
        state = whatif.first_state(trigger, stored.record, now)
        if state.next_fire_time is None:
            return [], None, end
        following = trigger.fire_times(state).after(max(now, state.next_fire_time - 1))
        if following is not None and following <= now + LATEST:
            end = max(end, following + (following - now) // 10)
        return expected(trigger, state, end), following, end
    except Exception as exc:
        # A schedule may fail in its own code, such as the sun's at the poles.
        problems.append(_NOT_COMPUTED % {"error": exc})
        return [], None, end


def whatif_view(
    model_admin: ModelAdmin[PeriodicTask], request: HttpRequest, object_id: str
) -> TemplateResponse:
    """Show what an outage would do to a task under each misfire instruction; nothing is saved."""
    task = _task(model_admin, request, object_id)
    now = moments.now()
    problems: list[str] = []
    context: dict[str, Any] = {"title": _("What if beat were away?"), "problems": problems}
    trigger = _trigger(task, problems)
    if trigger is not None:
        found = _ask_store(lambda store: records_of(store, [task.name]), problems)
        try:
            state = whatif.first_state(trigger, (found or {}).get(task.name), now)
            defaults = whatif.defaults(trigger, state, _policy(task, trigger), now)
            form = context["form"] = whatif.WhatIfForm({**defaults, **request.GET.dict()}, trigger)
            if form.is_valid():
                context |= _answers(task, trigger, state, form)
        except whatif.TooMany:
            most = timeline.format_number(whatif.MOST)
            problems.append(_("More than %(n)s fire times: choose a shorter outage.") % {"n": most})
        except Exception as exc:
            problems.append(_NOT_COMPUTED % {"error": exc})
    return _page(model_admin, request, task, "whatif", context)


def _answers(
    task: PeriodicTask, trigger: Trigger, state: TriggerState, form: whatif.WhatIfForm
) -> dict[str, Any]:
    down, up, policy = form.cleaned_data["down"], form.cleaned_data["up"], form.policy
    name = _("Simulated fire times of %(task)s") % {"task": task.name}
    answer = whatif.ask(name, trigger, state, policy, down, up)
    others = []
    for instruction in FITTING[trigger.trigger_type]:
        other = replace(policy, instruction=instruction)
        label = policy_in_words(other, trigger.trigger_type)
        tried = whatif.ask(label, trigger, state, other, down, up)
        others.append(
            {
                "label": label,
                "chosen": instruction is policy.instruction,
                "strip": strip(tried.timeline, f"mf-{instruction}"),
                "sentence": tried.outcome,
                "query": urlencode({**form.data, "instruction": str(instruction)}),
            }
        )
    return {
        "answer": answer,
        "timeline": answer.timeline,
        "picture": picture(answer.timeline),
        "others": others,
        "chosen": policy_in_words(policy, trigger.trigger_type),
    }


def _task(model_admin: ModelAdmin[PeriodicTask], request: HttpRequest, object_id: str) -> PeriodicTask:
    task = model_admin.get_object(request, unquote(object_id))
    if not model_admin.has_view_permission(request, task):
        raise PermissionDenied
    if task is None:
        raise Http404(_("There is no such periodic task."))
    return task


def _trigger(task: PeriodicTask, problems: list[str]) -> Trigger | None:
    try:
        return trigger_of(task)
    except Exception as exc:
        problems.append(_("This task can never be scheduled: %(error)s") % {"error": exc})
        return None


def _ask_store(question: Callable[[RedisStore], T], problems: list[str]) -> T | None:
    """Ask the store; when it cannot be asked, say so."""
    try:
        return question(open_store(current_app))
    except (StoreUnavailable, MisfireConfigError) as exc:
        problems.append(_("What beat did and plans is not known at the moment: %(error)s") % {"error": exc})
        return None


def _policy(task: PeriodicTask, trigger: Trigger) -> MisfirePolicy | None:
    """Return the policy of a task as beat sees it; None when misfire handling is off, or cannot be read."""
    try:
        settings = read_settings(current_app)
    except MisfireConfigError:
        return None
    try:
        return policy_of(task, trigger, settings)
    except MisfireConfigError:
        return site_policy(task, trigger, settings)


def _page(
    model_admin: ModelAdmin[PeriodicTask],
    request: HttpRequest,
    task: PeriodicTask,
    name: str,
    context: dict[str, Any],
) -> TemplateResponse:
    request.current_app = model_admin.admin_site.name
    return TemplateResponse(
        request,
        f"celery_misfire/{name}.html",
        {
            **model_admin.admin_site.each_context(request),
            "opts": model_admin.model._meta,
            "task": task,
            "can_change": model_admin.has_change_permission(request, task),
            **context,
        },
    )
