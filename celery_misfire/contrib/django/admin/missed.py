"""The missed runs in the admin: to be looked at, and to be run after all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

from celery import current_app
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, URLPattern, path, reverse
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django_celery_beat.models import PeriodicTask

from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.log_lines import in_words
from celery_misfire.contrib.django.admin.running import (
    MOST,
    AlreadyRun,
    CannotRun,
    occurrences_of,
    run,
    tasks_of,
)
from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun
from celery_misfire.contrib.django.state import log_of, open_store
from celery_misfire.exceptions import MisfireConfigError, StoreUnavailable

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[MissedFire]
else:
    _ModelAdmin = admin.ModelAdmin

__all__ = ["MissedFireAdmin"]

#: The log is shown from so long before the first missed run, to so long after the miss was found, in
#: milliseconds; so many lines of it.
_AROUND, _LINES = 10 * 60_000, 50


class _MostFrequent(admin.AllValuesFieldListFilter):
    """Offers the values that most records have; after a long outage there is one for every task."""

    MOST = 30

    def __init__(self, field: Any, request: HttpRequest, params: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(field, request, params, *args, **kwargs)
        rows = MissedFire.objects.order_by().values_list(field.name)
        frequent = rows.annotate(n=Count("pk")).order_by("-n", field.name)[: self.MOST]
        values = [value for value, _count in frequent]
        # A list from Django 5.0 on.
        chosen = [self.lookup_val] if isinstance(self.lookup_val, str) else self.lookup_val or []
        values = [value for value in chosen if value not in values] + values
        self.lookup_choices = values  # type: ignore[assignment]  # any iterable does


class _Present(admin.ChoicesFieldListFilter):
    """Offers the choices that some record has."""

    def __init__(self, field: Any, *args: Any, **kwargs: Any) -> None:
        present = set(MissedFire.objects.order_by().values_list(field.name, flat=True).distinct())
        narrowed = copy(field)
        narrowed.choices = [choice for choice in field.flatchoices if choice[0] in present]
        super().__init__(narrowed, *args, **kwargs)


class MissedFireAdmin(_ModelAdmin):
    """The records of missed runs. Nobody adds, changes or deletes one here; ``purge_missed_fires`` does."""

    list_display = (
        "entry",
        "fire_times",
        "count",
        "reason",
        "times_run",
        "detected_time",
        "instruction",
    )
    list_filter = (
        ("reason", _Present),
        ("instruction", _Present),
        ("task", _MostFrequent),
        ("entry", _MostFrequent),
    )
    search_fields = ("entry", "task", "task_id")
    date_hierarchy = "detected_at"
    actions = ("run_selected",)
    fields = (
        "entry",
        "task",
        "fire_times",
        "count",
        "reason",
        "instruction",
        "detected_time",
        "task_id",
    )

    class Media:
        css: ClassVar = {"all": ("celery_misfire/admin.css",)}

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: MissedFire | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: MissedFire | None = None) -> bool:
        return False

    def has_run_permission(self, request: HttpRequest) -> bool:
        """Return True for those who may have a missed occurrence run."""
        return request.user.has_perm("celery_misfire.run_missedfire")

    def get_queryset(self, request: HttpRequest) -> QuerySet[MissedFire]:
        return super().get_queryset(request).annotate(runs_made=Count("runs"))

    def get_urls(self) -> list[URLPattern]:
        run_url = path(
            "run/", self.admin_site.admin_view(self.run_view), name="celery_misfire_missedfire_run"
        )
        return [run_url, *super().get_urls()]

    # -- columns -------------------------------------------------------------------------------------------

    @admin.display(description=gettext_lazy("Scheduled fire times"), ordering="first")
    def fire_times(self, missed: MissedFire) -> str:
        first, last = (moments.as_text(moments.millis(moment)) for moment in (missed.first, missed.last))
        if missed.count == 1:
            return first
        return _("%(first)s to %(last)s") % {"first": first, "last": last}

    @admin.display(description=gettext_lazy("Detected at"), ordering="detected_at")
    def detected_time(self, missed: MissedFire) -> str:
        return moments.as_text(moments.millis(missed.detected_at))

    @admin.display(description=gettext_lazy("Run after all"), ordering="runs_made")
    def times_run(self, missed: MissedFire) -> int:
        made: int = missed.runs_made  # type: ignore[attr-defined]  # see get_queryset
        return made

    # -- one record ----------------------------------------------------------------------------------------

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        missed = self.get_object(request, object_id)
        if missed is not None and self.has_view_permission(request, missed):
            extra_context = {**(extra_context or {}), **self._about(request, missed)}
        return super().change_view(request, object_id, form_url, extra_context)

    def _about(self, request: HttpRequest, missed: MissedFire) -> dict[str, Any]:
        task = tasks_of([missed]).get(missed.entry)
        known = occurrences_of(missed, task)
        made = self._made(missed)
        rows = [
            {
                "time": moments.as_text(moment),
                "made": made.get(moment),
                "made_at": moments.as_text(moments.millis(made[moment].requested_at))
                if moment in made
                else "",
                "url": self._run_url([f"{missed.pk}:{moment}"]),
            }
            for moment in known.times
        ]
        lines, problem = self._log(missed)
        return {
            "task": task,
            "task_links": self._links(request, task),
            "occurrences": rows,
            "was_edited": known.was_edited,
            "not_shown": 0 if known.was_edited else missed.count - len(rows),
            "open_runs": sum(row["made"] is None for row in rows),
            "run_all_url": self._run_url([str(missed.pk)]),
            "can_run": self.has_run_permission(request),
            "log": lines,
            "log_problem": problem,
        }

    def _links(self, request: HttpRequest, task: PeriodicTask | None) -> list[tuple[str, str]]:
        """Return the pages of the periodic task that the user may see."""
        of_tasks = self.admin_site._registry.get(PeriodicTask)
        if task is None or of_tasks is None or not of_tasks.has_view_permission(request, task):
            return []
        pages = ((_("Periodic task"), "change"), (_("Timeline"), "timeline"), (_("What if"), "whatif"))
        try:
            name = f"{self.admin_site.name}:django_celery_beat_periodictask_"
            return [(label, reverse(name + page, args=[task.pk])) for label, page in pages]
        except NoReverseMatch:
            return []

    def _made(self, missed: MissedFire) -> dict[int, OccurrenceRun]:
        runs = missed.runs.select_related("requested_by")
        return {moments.millis(made.scheduled_fire_time): made for made in runs}

    def _log(self, missed: MissedFire) -> tuple[list[dict[str, str]], str]:
        since = moments.millis(missed.first) - _AROUND
        until = moments.millis(missed.detected_at) + _AROUND
        try:
            found = log_of(open_store(current_app), missed.entry, since, until)
        except (MisfireConfigError, StoreUnavailable) as exc:
            return [], str(exc)
        return [
            {
                "at": moments.as_text(line.written_at),
                "text": line.kind if line.event is None else in_words(line.event),
            }
            for line in found[-_LINES:]
        ], ""

    # -- running -------------------------------------------------------------------------------------------

    @admin.action(description=gettext_lazy("Run selected missed runs"), permissions=["run"])
    def run_selected(self, request: HttpRequest, queryset: QuerySet[MissedFire]) -> HttpResponse | None:
        keys = [str(pk) for pk in queryset.order_by("first", "pk").values_list("pk", flat=True)[: MOST + 1]]
        if len(keys) > MOST:
            text = _("Select %(most)d records at most: so many occurrences are run at a time.")
            self.message_user(request, text % {"most": MOST}, messages.ERROR)
            return None
        return HttpResponseRedirect(self._run_url(keys))

    def run_view(self, request: HttpRequest) -> HttpResponse:
        """Ask whether these occurrences are to be run, and run them.

        ``run`` names one as primary key and milliseconds (``7:1762563600000``), or by the key alone all of a
        record that have not been run.
        """
        if not (self.has_run_permission(request) and self.has_view_permission(request)):
            raise PermissionDenied
        wanted = self._wanted(request, request.POST.getlist("run") or request.GET.getlist("run"))
        request.current_app = self.admin_site.name
        if request.method == "POST":
            self._run(request, wanted[:MOST])
            records = {missed.pk for missed, _moment in wanted}
            name = f"{self.admin_site.name}:celery_misfire_missedfire_"
            if len(records) == 1:
                return HttpResponseRedirect(reverse(name + "change", args=[*records]))
            return HttpResponseRedirect(reverse(name + "changelist"))
        shown = wanted[:MOST]
        tasks = tasks_of(missed for missed, _moment in shown)
        context = {
            **self.admin_site.each_context(request),
            "title": _("Run missed occurrences"),
            "opts": self.opts,
            "media": self.media,
            "not_shown": len(wanted) - len(shown),
            "gone": sorted({missed.entry for missed, _moment in shown} - tasks.keys()),
            "rows": [
                {
                    "missed": missed,
                    "task": tasks.get(missed.entry),
                    "time": moments.as_text(moment),
                    "value": f"{missed.pk}:{moment}",
                }
                for missed, moment in shown
            ],
        }
        return TemplateResponse(request, "admin/celery_misfire/missedfire/run.html", context)

    def _wanted(self, request: HttpRequest, names: Sequence[str]) -> list[tuple[MissedFire, int]]:
        """Return the occurrences that are named and have not been run, in the order of the naming."""
        pairs = [(int(pk), c, m) for pk, c, m in (n.partition(":") for n in names) if _is_key(pk)]
        keys = {pk for pk, _colon, _moment in pairs}
        records = {
            missed.pk: missed
            for missed in self.get_queryset(request).filter(pk__in=keys).prefetch_related("runs")
        }
        tasks = tasks_of(records.values())
        known = {pk: occurrences_of(m, tasks.get(m.entry)).times for pk, m in records.items()}
        made = {
            pk: {moments.millis(r.scheduled_fire_time) for r in m.runs.all()} for pk, m in records.items()
        }
        found: dict[tuple[int, int], MissedFire] = {}
        for pk, colon, moment in pairs:
            for time in known.get(pk, ()):
                if (not colon or str(time) == moment) and (colon or time not in made[pk]):
                    found[pk, time] = records[pk]
        return [(missed, time) for (_pk, time), missed in found.items()]

    def _run(self, request: HttpRequest, wanted: Iterable[tuple[MissedFire, int]]) -> None:
        """Run them in order, until one cannot be sent; tell, and note who it was."""
        sent = before = 0
        for missed, moment in wanted:
            when = moments.as_text(moment)
            try:
                made = run(current_app, missed, moment, request.user)
            except AlreadyRun:
                before += 1
            except CannotRun as exc:
                text = _("%(missed)s, %(time)s: not sent. %(problem)s")
                values = {"missed": missed.entry, "time": when, "problem": exc}
                self.message_user(request, text % values, messages.ERROR)
                break
            else:
                sent += 1
                note = _("Had the run of %(time)s made after all, task id %(id)s.")
                self.log_change(request, missed, note % {"time": when, "id": made.task_id})
        if sent:
            text = ngettext("%(n)d occurrence was sent.", "%(n)d occurrences were sent.", sent)
            self.message_user(request, text % {"n": sent}, messages.SUCCESS)
        if before:
            text = ngettext(
                "%(n)d occurrence had been run already.", "%(n)d occurrences had been run already.", before
            )
            self.message_user(request, text % {"n": before}, messages.WARNING)

    def _run_url(self, names: Sequence[str]) -> str:
        url = reverse(f"{self.admin_site.name}:celery_misfire_missedfire_run")
        return f"{url}?{urlencode({'run': names}, doseq=True)}"


def _is_key(text: str) -> bool:
    """True for what may be a primary key: databases refuse numbers of more than eight bytes."""
    return text.isdecimal() and len(text) <= 18
