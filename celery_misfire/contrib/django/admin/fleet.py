"""All periodic tasks at once: the page, what if for all of them, hold and pause, and health for monitors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask

from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.fleet_control import ControlForm, carry_out
from celery_misfire.contrib.django.admin.fleet_health import badge_view, health_view
from celery_misfire.contrib.django.admin.fleet_page import context_of
from celery_misfire.contrib.django.admin.fleet_state import look
from celery_misfire.contrib.django.admin.fleet_whatif import whatif_context
from celery_misfire.contrib.django.admin.read_only import ReadOnlyMixin, needs_tables
from celery_misfire.contrib.django.models import Fleet

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Fleet]
else:
    _ModelAdmin = admin.ModelAdmin

_NAME = "celery_misfire_fleet"


class FleetAdmin(ReadOnlyMixin, _ModelAdmin):
    """Shows what the user may see as a list of periodic tasks; nothing is added or deleted here."""

    class Media:
        css: ClassVar = {"all": ("celery_misfire/picture.css", "celery_misfire/admin.css")}
        js = ("celery_misfire/fleet.js",)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        tasks = self.admin_site._registry.get(PeriodicTask)
        return tasks is not None and tasks.has_view_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        tasks = self.admin_site._registry.get(PeriodicTask)
        return tasks is not None and tasks.has_change_permission(request)

    def get_model_perms(self, request: HttpRequest) -> dict[str, bool]:
        """Return what the index offers: to look."""
        return {"view": self.has_view_permission(request), "add": False, "change": False, "delete": False}

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("", view(self.changelist_view), name=f"{_NAME}_changelist"),
            path("what-if/", view(self.whatif_view), name=f"{_NAME}_whatif"),
            path("control/", view(self.control_view), name=f"{_NAME}_control"),
            path("health.json", health_view(self), name=f"{_NAME}_health"),
            path("badge.svg", badge_view(self), name=f"{_NAME}_badge"),
        ]

    @needs_tables
    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Show all tasks on one timeline."""
        self._check(request)
        context = context_of(self, request, look(moments.now()))
        context |= {"form": ControlForm(), "can_change": self.has_change_permission(request)}
        return self._page(request, "fleet", _("All tasks at a glance"), context)

    @needs_tables
    def whatif_view(self, request: HttpRequest) -> HttpResponse:
        """Show what an outage would do to each task."""
        self._check(request)
        context = whatif_context(request, moments.now())
        return self._page(request, "fleet_whatif", _("What if beat were away?"), context)

    @needs_tables
    def control_view(self, request: HttpRequest) -> HttpResponse:
        """Hold all tasks, pause some, or let them go on."""
        self._check(request)
        if not self.has_change_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            level, text = carry_out(request)
            messages.add_message(request, level, text)
        return HttpResponseRedirect(reverse(f"{self.admin_site.name}:{_NAME}_changelist"))

    def _check(self, request: HttpRequest) -> None:
        if not self.has_view_permission(request):
            raise PermissionDenied

    def _page(self, request: HttpRequest, name: str, title: str, context: dict[str, Any]) -> HttpResponse:
        request.current_app = self.admin_site.name
        page = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "title": title,
            **context,
        }
        return TemplateResponse(request, f"celery_misfire/{name}.html", page)
