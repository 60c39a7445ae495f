"""The missed runs in the admin: their list. What it leads to is in the modules beside."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import Count, F, QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django_celery_beat.models import PeriodicTask

from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.dismissing import DismissMixin
from celery_misfire.contrib.django.admin.missed_page import about
from celery_misfire.contrib.django.admin.missed_running import RunningMixin
from celery_misfire.contrib.django.admin.open_runs import with_open_runs
from celery_misfire.contrib.django.admin.read_only import ReadOnlyMixin, needs_tables
from celery_misfire.contrib.django.admin.running import tasks_of
from celery_misfire.contrib.django.models import MissedFire
from celery_misfire.contrib.django.rows import entry_name
from celery_misfire.contrib.django.timeline.timeline import format_number

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[MissedFire]
else:
    _ModelAdmin = admin.ModelAdmin


class _MostFrequent(admin.AllValuesFieldListFilter):
    """Offers the values that most records have; after a long outage there is one for every task."""

    #: Values that the filter offers at most.
    MAX_CHOICES = 30

    def __init__(self, field: Any, request: HttpRequest, params: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(field, request, params, *args, **kwargs)
        rows = MissedFire.objects.order_by().values_list(field.name)
        frequent = rows.annotate(n=Count("pk")).order_by("-n", field.name)[: self.MAX_CHOICES]
        values = [value for value, _count in frequent]
        # The value is a list from Django 5.0 on.
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


class _State(admin.SimpleListFilter):
    """Offers what waits for somebody, and what was dealt with."""

    title = gettext_lazy("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("open", _("open")), ("rerun", _("all re-run")), ("dismissed", _("dismissed"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        match self.value():
            case "open":
                return queryset.filter(open_runs__gt=0)
            case "rerun":
                return queryset.filter(runs_made__gte=F("count"))
            case "dismissed":
                return queryset.exclude(dismissed_at=None)
        return queryset


class _MissedList(ChangeList):
    """Counts what the list has, and knows the rows of its records."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        tasks = tasks_of(self.result_list)
        for missed in self.result_list:
            missed.row = tasks.get(missed.periodic_task_id)
        every = self.queryset.order_by().aggregate(
            records=Count("pk"), runs=Sum("count"), still_open=Sum("open_runs")
        )
        records = ngettext("%(n)s record", "%(n)s records", every["records"])
        runs = ngettext("%(n)s missed run", "%(n)s missed runs", every["runs"] or 0)
        self.totals = _("%(records)s, %(runs)s, %(open)s open.") % {
            "records": records % {"n": format_number(every["records"])},
            "runs": runs % {"n": format_number(every["runs"] or 0)},
            "open": format_number(every["still_open"] or 0),
        }


class MissedFireAdmin(ReadOnlyMixin, RunningMixin, DismissMixin, _ModelAdmin):
    """The records of missed runs. Nobody adds, changes or deletes one here; ``purge_missed_fires`` does."""

    list_display = (
        "entry_now",
        "still_open",
        "fire_times",
        "count",
        "reason",
        "detected_time",
    )
    list_filter = (
        _State,
        ("reason", _Present),
        ("instruction", _Present),
        ("task", _MostFrequent),
        ("entry", _MostFrequent),
    )
    search_fields = ("entry", "task", "task_id", "note")
    date_hierarchy = "detected_at"
    actions = ("run_selected", "dismiss_selected")
    fields = ("entry_now", "task", "fire_times", "count", "reason", "instruction", "detected_time", "task_id")
    change_list_template = "admin/celery_misfire/missedfire/change_list.html"

    class Media:
        css: ClassVar = {"all": ("celery_misfire/admin.css",)}

    def lookup_allowed(self, lookup: str, value: Any, *args: Any) -> bool:
        if lookup == "periodic_task":
            # SQLite fails at numbers of more than eight bytes.
            return len(value) <= 18
        return super().lookup_allowed(lookup, value, *args)

    def get_queryset(self, request: HttpRequest) -> QuerySet[MissedFire]:
        return with_open_runs(super().get_queryset(request))

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return _MissedList

    def get_urls(self) -> list[URLPattern]:
        name = "celery_misfire_missedfire_%s"
        view = self.admin_site.admin_view
        ours = [
            path("run/", view(self.run_view), name=name % "run"),
            path("<path:object_id>/dismiss/", view(self.dismiss_view), name=name % "dismiss"),
        ]
        return [*ours, *super().get_urls()]

    # -- columns -------------------------------------------------------------------------------------------

    @admin.display(description=gettext_lazy("Periodic task"), ordering="entry")
    def entry_now(self, missed: MissedFire) -> str:
        if missed.periodic_task_id is None:
            return missed.entry
        if not hasattr(missed, "row"):
            missed.row = tasks_of([missed]).get(missed.periodic_task_id)  # type: ignore[attr-defined]
        row: PeriodicTask | None = missed.row  # type: ignore[attr-defined]
        if row is None:
            return _("%(name)s (deleted)") % {"name": missed.entry}
        if (now := entry_name(row)) != missed.entry:
            return _("%(name)s (now: %(now)s)") % {"name": missed.entry, "now": now}
        return missed.entry

    @admin.display(description=gettext_lazy("Scheduled fire times"), ordering="first")
    def fire_times(self, missed: MissedFire) -> str:
        first, last = moments.millis(missed.first), moments.millis(missed.last)
        text = moments.as_short_range(first, last, moments.now())
        return format_html('<span title="{}">{}</span>', moments.as_range(first, last), text)

    @admin.display(description=gettext_lazy("Detected at"), ordering="detected_at")
    def detected_time(self, missed: MissedFire) -> str:
        at = moments.millis(missed.detected_at)
        short = moments.as_short(at, moments.now())
        return format_html('<span title="{}">{}</span>', moments.as_text(at), short)

    @admin.display(description=gettext_lazy("Open"), ordering="open_runs")
    def still_open(self, missed: MissedFire) -> str:
        if missed.dismissed_at is not None:
            return _("dismissed")
        words = {"n": missed.open_runs, "all": missed.count}  # type: ignore[attr-defined]  # see get_queryset
        return _("%(n)d of %(all)d") % words if words["n"] else _("all re-run")

    # -- one record ----------------------------------------------------------------------------------------

    @needs_tables
    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        missed = self.get_object(request, object_id)
        if missed is not None and self.has_view_permission(request, missed):
            extra_context = {**(extra_context or {}), **about(self, request, missed)}
        return super().change_view(request, object_id, form_url, extra_context)
