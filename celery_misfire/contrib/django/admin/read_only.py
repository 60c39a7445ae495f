"""Admin classes of what nobody adds, changes or deletes by hand, and pages that need our tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from celery_misfire.contrib.django.database import NOT_MIGRATED, is_migrated

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    # The admin class that this is in front of.
    _ModelAdmin = object


def needs_tables(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Have a view of an admin class lead to the index, with a word why, where our tables are missing."""

    @wraps(view)
    def checked(self: Any, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        # A user without the right to see the page is told that first.
        if is_migrated() or not self.has_view_permission(request):
            return view(self, request, *args, **kwargs)
        messages.error(request, NOT_MIGRATED)
        return HttpResponseRedirect(reverse(f"{self.admin_site.name}:index"))

    return checked


class ReadOnlyMixin(_ModelAdmin):
    """Nobody adds, changes or deletes anything."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @needs_tables
    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return super().changelist_view(request, *args, **kwargs)

    @needs_tables
    def history_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return super().history_view(request, *args, **kwargs)
