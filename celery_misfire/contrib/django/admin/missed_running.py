"""Having missed runs run after all: the question before it, and its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from celery import current_app
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Max, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.read_only import needs_tables
from celery_misfire.contrib.django.admin.rerun_page import failures_in_words, go_on, skipped_in_words
from celery_misfire.contrib.django.admin.reruns import EDITED, Part, Preview, previews, start
from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[MissedFire]
else:
    _ModelAdmin = admin.ModelAdmin

#: The question lists at most this many occurrences or records, and as many that cannot be sent.
_ROWS = 200
#: So many failures are told as messages; the page of the re-run has all of them.
_MESSAGES = 5

_Hidden = list[tuple[str, str]]


class RunningMixin(_ModelAdmin):
    """The action of the list, and the page that asks."""

    def has_run_permission(self, request: HttpRequest) -> bool:
        """Return True for those who may have a missed occurrence run."""
        return request.user.has_perm("celery_misfire.run_missedfire")

    @admin.action(description=gettext_lazy("Re-run selected missed runs"), permissions=["run"])
    def run_selected(self, request: HttpRequest, queryset: QuerySet[MissedFire]) -> HttpResponse:
        confirmed = request.POST.get("confirmed", "")
        if _is_number(confirmed):
            # Records that were found since the question are not part of it.
            queryset = queryset.filter(pk__lte=int(confirmed))
        parts = [Part(missed) for missed in queryset.order_by("first", "pk")]
        if confirmed:
            return self._start(request, parts)
        newest = queryset.order_by().aggregate(newest=Max("pk"))["newest"]
        hidden: _Hidden = [("action", "run_selected"), ("confirmed", str(newest))]
        chosen = request.POST.getlist(ACTION_CHECKBOX_NAME)
        if request.POST.get("select_across") == "1":
            hidden.append(("select_across", "1"))
            chosen = chosen[:1]
        return self._ask(request, parts, hidden + [(ACTION_CHECKBOX_NAME, key) for key in chosen])

    # Each message goes with a transaction of its own: one for the whole request would undo the notes of
    # messages that were sent.
    @transaction.non_atomic_requests
    @needs_tables
    def run_view(self, request: HttpRequest) -> HttpResponse:
        """Ask whether these occurrences are to be run, and begin.

        ``run`` names one as primary key and milliseconds (``7:1762563600000``), a range as key, first and
        last, or all of a record by the key alone. A form asks for a range by ``record``, ``first``, ``last``.
        """
        if not (self.has_run_permission(request) and self.has_view_permission(request)):
            raise PermissionDenied
        names = request.POST.getlist("run") or request.GET.getlist("run")
        if not names and (named := _range_of(request.GET)):
            names = [named]
        parts = self._parts(request, names)
        if request.method == "POST":
            return self._start(request, parts)
        return self._ask(request, parts, [("run", part.name) for part in parts])

    def _parts(self, request: HttpRequest, names: Sequence[str]) -> list[Part]:
        """Return what is named, in the order of the naming; nothing for a name that means nothing."""
        found = [name.split(":") for name in dict.fromkeys(names)]
        found = [words for words in found if len(words) <= 3 and all(map(_is_number, words))]
        records = self.get_queryset(request).in_bulk([int(words[0]) for words in found])
        parts = []
        for key, *bounds in ([int(word) for word in words] for words in found):
            if key in records:
                parts.append(Part(records[key], *((bounds[0], bounds[-1]) if bounds else ())))
        return parts

    def _ask(self, request: HttpRequest, parts: Sequence[Part], hidden: _Hidden) -> HttpResponse:
        found = [preview for preview in previews(current_app, parts) if preview.total]
        sendable = [preview for preview in found if not preview.problem]
        refused = [(p.part.missed, p.total, p.problem) for p in found if p.problem]
        refused += [(p.part.missed, p.unknown, str(EDITED)) for p in found if p.unknown and not p.problem]
        rows = _rows(sendable)
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": _("Re-run missed occurrences"),
            "opts": self.opts,
            "media": self.media,
            "rows": rows[:_ROWS],
            "rows_left": len(rows) - len(rows[:_ROWS]),
            "is_grouped": any(row["count"] > 1 for row in rows),
            "total": sum(preview.count for preview in sendable),
            "records": len(sendable),
            "refused": refused[:_ROWS],
            "refused_left": max(0, len(refused) - _ROWS),
            "hidden": hidden,
        }
        return TemplateResponse(request, "admin/celery_misfire/missedfire/run.html", context)

    def _start(self, request: HttpRequest, parts: Sequence[Part]) -> HttpResponse:
        """Begin a re-run of all that is named, also of what is known not to go: its page says so."""
        wanted = [preview for preview in previews(current_app, parts) if preview.total]
        where = f"{self.admin_site.name}:celery_misfire_"
        if not wanted:
            messages.warning(request, _("Nothing was sent: it was already re-run, or its record is gone."))
            return HttpResponseRedirect(reverse(f"{where}missedfire_changelist"))
        rerun = start(wanted, request.user)
        if problem := go_on(self, request, rerun).problem:
            messages.error(request, problem)
        records = {preview.part.missed.pk for preview in wanted}
        if rerun.finished_at is None or len(records) > 1:
            return HttpResponseRedirect(reverse(f"{where}rerun_change", args=[rerun.pk]))
        if sent := rerun.runs.count():
            text = ngettext("%(n)d occurrence was sent.", "%(n)d occurrences were sent.", sent)
            messages.success(request, text % {"n": sent})
        if rerun.skipped:
            messages.warning(request, skipped_in_words(rerun))
        for line in failures_in_words(rerun)[:_MESSAGES]:
            messages.error(request, line)
        return HttpResponseRedirect(reverse(f"{where}missedfire_change", args=[*records]))


def _rows(found: Sequence[Preview]) -> list[dict[str, Any]]:
    """Return the lines of the question: each occurrence when they are few, else each record."""
    few = sum(preview.count for preview in found) <= _ROWS
    made: set[tuple[int, int]] = set()
    if few:
        runs = OccurrenceRun.objects.filter(missed__in=[preview.part.missed.pk for preview in found])
        made = {(key, moments.millis(at)) for key, at in runs.values_list("missed_id", "scheduled_fire_time")}
    rows = []
    for preview in found:
        missed = preview.part.missed
        shared = {"entry": missed.entry, "task": preview.task, "missed": missed}
        if few:
            times = (m for m in preview.known.between(*preview.part.bounds) if (missed.pk, m) not in made)
            rows += [{**shared, "when": moments.as_text(m), "count": 1} for m in times]
        else:
            when = moments.as_range(*preview.part.bounds)
            rows.append({**shared, "when": when, "count": preview.count})
    return rows


class _RangeForm(forms.Form):
    record = forms.IntegerField(min_value=1)
    first = forms.DateTimeField()
    last = forms.DateTimeField()


def _range_of(data: Any) -> str:
    """Return the name of the range that a form asks for, '' for none."""
    form = _RangeForm(data)
    if not form.is_valid():
        return ""
    # Without USE_TZ the times are naive.
    first, last = (moments.millis(form.cleaned_data[name]) for name in ("first", "last"))
    # The form has whole seconds.
    return f"{form.cleaned_data['record']}:{first}:{last + 999}"


def run_url(site: admin.AdminSite, name: str) -> str:
    """Return the page that asks whether what is named is to be run."""
    return f"{reverse(f'{site.name}:celery_misfire_missedfire_run')}?{urlencode({'run': name})}"


def _is_number(text: str) -> bool:
    """Return True for what may be a primary key: databases refuse numbers of more than eight bytes."""
    return text.isascii() and text.isdecimal() and len(text) <= 18
