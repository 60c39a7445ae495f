"""The admin of periodic tasks: misfire policy in the form, status in the list, and two more pages."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from django.apps import apps
from django.contrib import admin, messages
from django.contrib.admin.apps import AdminConfig
from django.db import IntegrityError
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django_celery_beat.models import PeriodicTask

from celery_misfire.contrib.django.admin.fleet import FleetAdmin
from celery_misfire.contrib.django.admin.missed import MissedFireAdmin
from celery_misfire.contrib.django.admin.policy_form import PolicyInline
from celery_misfire.contrib.django.admin.read_only import needs_tables
from celery_misfire.contrib.django.admin.rerun_page import RerunAdmin
from celery_misfire.contrib.django.admin.task_list import TaskListMixin
from celery_misfire.contrib.django.admin.timeline_page import timeline_view
from celery_misfire.contrib.django.admin.whatif_page import whatif_view
from celery_misfire.contrib.django.database import NOT_MIGRATED, is_migrated
from celery_misfire.contrib.django.models import Fleet, MissedFire, Rerun

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[PeriodicTask]
else:
    _ModelAdmin = admin.ModelAdmin


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
    if not site.is_registered(Fleet):
        site.register(Fleet, FleetAdmin)
    registered = site._registry.get(PeriodicTask)
    if registered is not None and not isinstance(registered, PeriodicTaskMixin):
        known = type(registered)
        site.unregister(PeriodicTask)
        site.register(PeriodicTask, type(known.__name__, (PeriodicTaskMixin, known), {}))


class PeriodicTaskMixin(TaskListMixin, _ModelAdmin):
    """Adds misfire policy, columns of the list, timeline and what-if page to an admin class."""

    class Media:
        css: ClassVar = {"all": ("celery_misfire/admin.css",)}

    def get_inlines(self, request: HttpRequest, obj: PeriodicTask | None) -> list[Any]:
        inlines = list(super().get_inlines(request, obj))
        return inlines if PolicyInline in inlines else [*inlines, PolicyInline]

    def get_inline_instances(self, request: HttpRequest, obj: PeriodicTask | None = None) -> list[Any]:
        instances = super().get_inline_instances(request, obj)
        if is_migrated():
            return instances
        return [inline for inline in instances if not isinstance(inline, PolicyInline)]

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        if request.method == "GET" and not is_migrated():
            messages.warning(request, NOT_MIGRATED)
        try:
            return super().changeform_view(request, *args, **kwargs)
        except IntegrityError:
            # Somebody has saved the same policy or name in this instant. The form finds it now, and says so.
            return super().changeform_view(request, *args, **kwargs)

    @needs_tables
    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return super().delete_view(request, *args, **kwargs)

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        actions: dict[str, Any] = super().get_actions(request)
        if not is_migrated():
            # Django deletes the policy of a task with it, and its table is missing.
            actions.pop("delete_selected", None)
        return actions

    def get_urls(self) -> list[URLPattern]:
        name, view = "django_celery_beat_periodictask_%s", self.admin_site.admin_view
        ours = [
            path("<path:object_id>/timeline/", view(partial(timeline_view, self)), name=name % "timeline"),
            path("<path:object_id>/what-if/", view(partial(whatif_view, self)), name=name % "whatif"),
        ]
        return [*ours, *super().get_urls()]
