"""Hold and pause from the page of all tasks: what is asked for is left to the leader."""

from __future__ import annotations

from typing import Any

from celery import current_app
from django import forms
from django.contrib import messages
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django_celery_beat.models import PeriodicTask

from celery_misfire import control
from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.rows import entry_name
from celery_misfire.contrib.django.state import open_store
from celery_misfire.control import LONGEST_REASON
from celery_misfire.exceptions import MisfireConfigError, StoreUnavailable

_INPUT = "%Y-%m-%dT%H:%M"


class ControlForm(forms.Form):
    """Until when, and why."""

    until = forms.DateTimeField(
        label=gettext_lazy("Until"),
        required=False,
        widget=forms.DateTimeInput({"type": "datetime-local"}, format=_INPUT),
    )
    reason = forms.CharField(label=gettext_lazy("Reason"), required=False, max_length=LONGEST_REASON)


def carry_out(request: HttpRequest) -> tuple[int, str]:
    """Do what a form asks for; return how that is told, and in which words."""
    form, do = ControlForm(request.POST), request.POST.get("do", "")
    if not form.is_valid():
        return messages.ERROR, " ".join(str(error) for errors in form.errors.values() for error in errors)
    until = form.cleaned_data["until"] and moments.millis(form.cleaned_data["until"])
    if until is not None and until <= moments.now():
        return messages.ERROR, _("Choose a time that is still to come.")
    if do == "hold" and until is None:
        return messages.ERROR, _("Say until when all tasks are to be held.")
    keys = [key for key in request.POST.getlist("task") if key.isdecimal() and len(key) < 19]
    names = [entry_name(task) for task in PeriodicTask.objects.filter(pk__in=keys).order_by("pk")]
    if do in ("pause", "resume") and not names:
        return messages.ERROR, _("Choose the tasks first.")
    words: dict[str, Any] = {"by": request.user.get_username()}
    if do in ("hold", "pause"):
        words |= {"until": until, "reason": form.cleaned_data["reason"]}
    try:
        store = open_store(current_app)
        match do:
            case "hold":
                control.hold(store, **words)
                told = _("All tasks will be held until %(time)s.") % {"time": moments.as_text(until or 0)}
            case "release":
                control.release(store, **words)
                told = _("The hold will end.")
            case "pause":
                control.pause(store, names, **words)
                told = ngettext("%(n)d task will be paused.", "%(n)d tasks will be paused.", len(names))
            case "resume":
                control.resume(store, names, **words)
                told = ngettext("%(n)d task will go on.", "%(n)d tasks will go on.", len(names))
            case _:
                return messages.ERROR, _("Nothing was asked for.")
        leads = store.sight().lease is not None
    except (StoreUnavailable, MisfireConfigError) as exc:
        return messages.ERROR, str(exc)
    told = told % {"n": len(names)} if do in ("pause", "resume") else told
    when = (
        _("The leader does so within seconds.") if leads else _("No beat leads; the next one does so first.")
    )
    return messages.SUCCESS if leads else messages.WARNING, f"{told} {when}"
