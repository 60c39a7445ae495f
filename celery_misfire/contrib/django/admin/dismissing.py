"""Dismissing missed runs: somebody has looked, and nothing is to be run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.db.models import Max, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.read_only import needs_tables
from celery_misfire.contrib.django.models import MissedFire

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[MissedFire]
else:
    _ModelAdmin = admin.ModelAdmin

#: Longest note, in characters.
_LONGEST_NOTE = 2000


class DismissMixin(_ModelAdmin):
    """The action of the list, and what the page of a record sends."""

    def has_dismiss_permission(self, request: HttpRequest) -> bool:
        """Return True for those who may say that nothing is to be done about a missed run."""
        return request.user.has_perm("celery_misfire.dismiss_missedfire")

    @admin.action(description=gettext_lazy("Dismiss selected missed runs"), permissions=["dismiss"])
    def dismiss_selected(self, request: HttpRequest, queryset: QuerySet[MissedFire]) -> HttpResponse | None:
        if (newest := request.POST.get("confirmed", "")).isdecimal() and len(newest) <= 18:
            # Records that were found since the question are not part of it.
            self._dismiss(request, queryset.filter(pk__lte=int(newest)))
            return None
        chosen, across = request.POST.getlist(ACTION_CHECKBOX_NAME), request.POST.get("select_across") == "1"
        context = {
            **self.admin_site.each_context(request),
            "title": _("Dismiss missed runs"),
            "opts": self.opts,
            "media": self.media,
            "records": queryset.filter(dismissed_at=None).count(),
            "newest": queryset.order_by().aggregate(newest=Max("pk"))["newest"],
            "chosen": chosen[:1] if across else chosen,
            "select_across": across,
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/celery_misfire/missedfire/dismiss.html", context)

    @needs_tables
    def dismiss_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Dismiss one record, or take that back."""
        missed = self.get_object(request, object_id)
        allowed = self.has_dismiss_permission(request) and self.has_view_permission(request)
        if not allowed or request.method != "POST" or missed is None:
            raise PermissionDenied
        records = MissedFire.objects.filter(pk=missed.pk)
        if "reopen" not in request.POST:
            self._dismiss(request, records)
        elif records.exclude(dismissed_at=None).update(dismissed_at=None, dismissed_by=None, note=""):
            self.log_change(request, missed, _("Reopened."))
        page = f"{self.admin_site.name}:celery_misfire_missedfire_change"
        return HttpResponseRedirect(reverse(page, args=[missed.pk]))

    def _dismiss(self, request: HttpRequest, records: QuerySet[MissedFire]) -> None:
        """Dismiss those that are not yet, and note in the history of each who did it."""
        note = request.POST.get("note", "").strip().replace("\0", "")[:_LONGEST_NOTE]
        dismissed = 0
        told = _("Dismissed: %(note)s") % {"note": note} if note else _("Dismissed.")
        values: dict[str, Any] = {"dismissed_by": request.user, "note": note}
        for missed in records.filter(dismissed_at=None):
            open_ = MissedFire.objects.filter(pk=missed.pk, dismissed_at=None)
            if open_.update(dismissed_at=moments.as_stored(moments.now()), **values):
                dismissed += 1
                self.log_change(request, missed, told)
        text = ngettext("%(n)d record was dismissed.", "%(n)d records were dismissed.", dismissed)
        self.message_user(request, text % {"n": dismissed}, messages.SUCCESS)
