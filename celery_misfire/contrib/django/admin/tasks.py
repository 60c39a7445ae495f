"""The admin of periodic tasks: misfire policy in the form, status in the list, and two more pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.apps import apps
from django.contrib import admin, messages
from django.contrib.admin.apps import AdminConfig
from django.contrib.admin.views.main import ChangeList
from django.http import HttpRequest, HttpResponse
from django.urls import NoReverseMatch, URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django_celery_beat.models import PeriodicTask

from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.missed import MissedFireAdmin
from celery_misfire.contrib.django.admin.overview import MISSED_WITHIN, Overview, overviews_of
from celery_misfire.contrib.django.admin.policy_form import PolicyInline
from celery_misfire.contrib.django.admin.rerun_page import RerunAdmin
from celery_misfire.contrib.django.admin.timeline_page import timeline_view
from celery_misfire.contrib.django.admin.whatif_page import whatif_view
from celery_misfire.contrib.django.models import MissedFire, Rerun
from celery_misfire.contrib.django.rows import from_last_run_at

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[PeriodicTask]
else:
    _ModelAdmin = admin.ModelAdmin

__all__ = ["PeriodicTaskMixin", "replace_registered"]


def replace_registered(site: admin.AdminSite = admin.site) -> None:
    """Extend what is registered for PeriodicTask on an admin site, and register the missed runs there.

    Does nothing twice. On the default site every app's ``admin`` module is imported first, as Django's admin
    does itself when its turn comes, so that the order of ``INSTALLED_APPS`` does not matter.
    """
    if site is admin.site and isinstance(apps.get_app_config("admin"), AdminConfig):
        admin.autodiscover()
    if not site.is_registered(MissedFire):
        site.register(MissedFire, MissedFireAdmin)
    if not site.is_registered(Rerun):
        site.register(Rerun, RerunAdmin)
    registered = site._registry.get(PeriodicTask)
    if registered is not None and not isinstance(registered, PeriodicTaskMixin):
        known = type(registered)
        site.unregister(PeriodicTask)
        site.register(PeriodicTask, type(known.__name__, (PeriodicTaskMixin, known), {}))


_COLUMNS = ("misfire_next", "misfire_late_by", "misfire_missed", "misfire_resolved", "misfire_last")


class _ChangeListWithOverviews:
    """Gives the rows of a change list their overviews."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)  # type: ignore[misc]  # a ChangeList
        tasks: list[PeriodicTask] = self.result_list  # type: ignore[attr-defined]  # of a ChangeList
        overviews, problem = overviews_of(tasks, moments.now())
        for task in tasks:
            task.misfire_overview = overviews[task.pk]
        if problem and request.method == "GET":
            text = _("What beat plans is not known at the moment: %(problem)s") % {"problem": problem}
            messages.warning(request, text)


class PeriodicTaskMixin(_ModelAdmin):
    """Adds misfire policy, columns of the list, timeline and what-if page to an admin class."""

    class Media:
        css: ClassVar = {"all": ("celery_misfire/admin.css",)}

    def get_inlines(self, request: HttpRequest, obj: PeriodicTask | None) -> list[Any]:
        inlines = list(super().get_inlines(request, obj))
        return inlines if PolicyInline in inlines else [*inlines, PolicyInline]

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        columns = list(super().get_list_display(request))
        ours = [name for name in _COLUMNS if name not in columns]
        # django-celery-beat's own list is wide. Columns at its end would be out of sight.
        at = columns.index("scheduler") + 1 if "scheduler" in columns else len(columns)
        return [*columns[:at], *ours, *columns[at:]]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        known = super().get_changelist(request, **kwargs)
        return type(known.__name__, (_ChangeListWithOverviews, known), {})

    def get_urls(self) -> list[URLPattern]:
        name = "django_celery_beat_periodictask_%s"
        ours = [
            path("<path:object_id>/timeline/", self._view(timeline_view), name=name % "timeline"),
            path("<path:object_id>/what-if/", self._view(whatif_view), name=name % "whatif"),
        ]
        return [*ours, *super().get_urls()]

    def _view(self, show: Any) -> Any:
        def view(request: HttpRequest, object_id: str) -> HttpResponse:
            response: HttpResponse = show(self, request, object_id)
            return response

        return self.admin_site.admin_view(view)

    # -- columns -------------------------------------------------------------------------------------------

    @admin.display(description=gettext_lazy("Next expected"))
    def misfire_next(self, task: PeriodicTask) -> str | None:
        status = _overview(task).status
        if status is None or status.next_fire_time is None:
            return None if status is None or status.is_known else _("Not planned yet")
        url = reverse(f"{self.admin_site.name}:django_celery_beat_periodictask_timeline", args=[task.pk])
        moment = moments.as_text(status.next_fire_time)
        return format_html('<a href="{}" title="{}">{}</a>', url, _("Timeline"), moment)

    @admin.display(description=gettext_lazy("Late by"))
    def misfire_late_by(self, task: PeriodicTask) -> str | None:
        status = _overview(task).status
        if status is None or not status.late_by:
            return None
        length = moments.as_duration(status.late_by)
        if not status.is_overdue:
            return length
        text = _("%(length)s overdue") % {"length": length}
        return format_html('<strong class="misfire-overdue">{}</strong>', text)

    @admin.display(description=gettext_lazy("Last fire"), ordering="last_run_at")
    def misfire_last(self, task: PeriodicTask) -> str | None:
        moment = from_last_run_at(task.last_run_at)
        return None if moment is None else moments.as_text(moment)

    @admin.display(description=gettext_lazy("Misfire policy"))
    def misfire_resolved(self, task: PeriodicTask) -> str | None:
        return _overview(task).policy or None

    @admin.display(description=gettext_lazy("Missed in 24 h"))
    def misfire_missed(self, task: PeriodicTask) -> str | int:
        count = _overview(task).missed
        if not count:
            return 0
        try:
            url = reverse(f"{self.admin_site.name}:celery_misfire_missedfire_changelist")
        except NoReverseMatch:
            return count
        since = moments.as_stored(moments.now() - MISSED_WITHIN)
        query = urlencode({"periodic_task": task.pk, "detected_at__gte": since.isoformat()})
        return format_html('<a href="{}?{}">{}</a>', url, query, count)


def _overview(task: PeriodicTask) -> Overview:
    """Return what is known of a row; nothing of one that is not on the page of a list."""
    overview: Overview = getattr(task, "misfire_overview", None) or Overview()
    return overview
