"""The list of periodic tasks: two columns of ours, a filter, and a word when nothing is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import BigIntegerField, Case, F, QuerySet, Value, When
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html, format_html_join
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django_celery_beat.models import PeriodicTask

from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.overview import (
    MISSED_WITHIN,
    Overview,
    overdue_keys,
    overviews_of,
    standing,
    with_missed,
)
from celery_misfire.contrib.django.database import NOT_MIGRATED, is_migrated
from celery_misfire.contrib.django.models import MissedFire

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[PeriodicTask]
else:
    _ModelAdmin = admin.ModelAdmin

#: Our columns. In django-celery-beat's own list, which is wide, they would be out of sight at the end.
_COLUMNS, _AFTER = ("misfire_next", "misfire_state"), "enabled"
#: An overdue task goes before each that has only missed runs.
_OVERDUE_RANK = 1_000_000_000


class _TaskList(ChangeList):
    """Gives the rows of a change list their overviews."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if not is_migrated():
            overviews, problems = dict[int, Overview](), [str(NOT_MIGRATED)]
        else:
            overviews, problems = overviews_of(self.result_list, moments.now())
        may_see = self.model_admin.admin_site._registry.get(MissedFire)
        may_see_missed = may_see is not None and may_see.has_view_permission(request)
        for task in self.result_list:
            task.misfire_overview = overviews.get(task.pk, Overview())
            # A page that would answer 403 gets no link.
            task.misfire_may_see = may_see_missed
        if request.method == "GET":
            for problem in problems:
                messages.warning(request, problem)


class _MisfireFilter(admin.SimpleListFilter):
    title = gettext_lazy("Misfires")
    parameter_name = "misfires"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("overdue", _("overdue")), ("missed", _("missed in the last 24 hours"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "overdue":
            return queryset.filter(pk__in=overdue_keys(moments.now()))
        if self.value() == "missed" and is_migrated():
            return queryset.filter(misfire_missed__gt=0)
        return queryset


class TaskListMixin(_ModelAdmin):
    """Adds our columns and our filter to the list of an admin class."""

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        tasks: QuerySet[Any] = super().get_queryset(request)
        if not is_migrated():
            ranked: QuerySet[Any] = tasks.annotate(misfire_rank=Value(0))
            return ranked
        now = moments.now()
        # Overdue tasks on other pages of the list matter to sorting alone.
        overdue = overdue_keys(now)[:ROWS_SORTED] if "o" in request.GET else []
        is_overdue = When(pk__in=overdue, then=F("misfire_missed") + _OVERDUE_RANK)
        rank = Case(is_overdue, default=F("misfire_missed"), output_field=BigIntegerField())
        ranked = with_missed(tasks, now).annotate(misfire_rank=rank)
        return ranked

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        columns = list(super().get_list_display(request))
        ours = [name for name in _COLUMNS if name not in columns]
        at = columns.index(_AFTER) + 1 if _AFTER in columns else len(columns)
        return [*columns[:at], *ours, *columns[at:]]

    def get_list_filter(self, request: HttpRequest) -> list[Any]:
        return [_MisfireFilter, *super().get_list_filter(request)]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        known = super().get_changelist(request, **kwargs)
        return type(known.__name__, (_TaskList, known), {})

    # -- columns -------------------------------------------------------------------------------------------

    @admin.display(description=gettext_lazy("Next"))
    def misfire_next(self, task: PeriodicTask) -> str | None:
        status = _overview(task).status
        if status is None or status.next_fire_time is None:
            return None if status is None or status.is_known else _("Not planned yet")
        url = reverse(f"{self.admin_site.name}:django_celery_beat_periodictask_timeline", args=[task.pk])
        moment = status.next_fire_time
        title = moments.as_text(moment)
        return format_html(
            '<a href="{}" title="{}">{}</a>', url, title, moments.as_short(moment, moments.now())
        )

    @admin.display(description=gettext_lazy("Misfires"), ordering="misfire_rank")
    def misfire_state(self, task: PeriodicTask) -> str:
        overview, parts = _overview(task), list[str]()
        status = overview.status
        if text := standing(status):
            is_overdue = status is not None and status.is_overdue
            form = '<strong class="misfire-overdue">{}</strong>' if is_overdue else "{}"
            parts.append(format_html(form, text))
        if overview.problem:
            parts.append(format_html('<strong class="misfire-overdue">{}</strong>', overview.problem))
        if missed := getattr(task, "misfire_missed", 0):
            parts.append(self._missed(task, missed))
        if overview.policy:
            parts.append(format_html('<span class="misfire-policy">{}</span>', overview.policy))
        return format_html_join(" · ", "{}", ((part,) for part in parts)) or "-"

    def _missed(self, task: PeriodicTask, count: int) -> str:
        text = ngettext("%(n)d missed", "%(n)d missed", count) % {"n": count}
        try:
            url = reverse(f"{self.admin_site.name}:celery_misfire_missedfire_changelist")
        except NoReverseMatch:
            return text
        if not getattr(task, "misfire_may_see", False):
            return text
        since = moments.as_stored(moments.now() - MISSED_WITHIN)
        query = {"periodic_task": task.pk, "detected_at__gte": since.isoformat(), "state": "open"}
        return format_html('<a href="{}?{}">{}</a>', url, urlencode(query), text)


#: Sorting puts at most this many overdue tasks in front.
ROWS_SORTED = 500


def _overview(task: PeriodicTask) -> Overview:
    """Return what is known of a row; nothing of one that is not on the page of a list."""
    overview: Overview = getattr(task, "misfire_overview", None) or Overview()
    return overview
