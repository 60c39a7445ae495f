"""The page of a re-run: how far it is, what could not be sent, and what became of its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from celery import current_app
from django.contrib import admin, messages
from django.contrib.admin.models import LogEntry
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db import router, transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.read_only import ReadOnlyMixin, needs_tables
from celery_misfire.contrib.django.admin.reruns import Step, take_step
from celery_misfire.contrib.django.admin.results import results_of
from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun, Rerun

if TYPE_CHECKING:
    _RerunAdmin = admin.ModelAdmin[Rerun]
else:
    _RerunAdmin = admin.ModelAdmin

#: The page shows at most this many runs, and as many lines of what was not sent.
_ROWS = 100


def go_on(model_admin: admin.ModelAdmin[Any], request: HttpRequest, rerun: Rerun) -> Step:
    """Take a step of a re-run, and note in the history of each record who did it."""
    step = take_step(current_app, rerun, request.user)
    # In one transaction, which takes a fraction of the time of many.
    with transaction.atomic(using=router.db_for_write(LogEntry)):
        for missed, runs in step.sent:
            model_admin.log_change(request, missed, _sent_in_words(runs))
    return step


def _sent_in_words(runs: list[OccurrenceRun]) -> str:
    first, last = (moments.millis(run.scheduled_fire_time) for run in (runs[0], runs[-1]))
    if len(runs) == 1:
        text = _("Re-ran the occurrence of %(time)s, task id %(id)s.")
        return text % {"time": moments.as_text(first), "id": runs[0].task_id}
    return _("Re-ran %(n)d occurrences, %(times)s.") % {
        "n": len(runs),
        "times": moments.as_range(first, last),
    }


def failures_in_words(rerun: Rerun) -> list[str]:
    """Return what could not be sent, one line for neighbours with the same fate."""
    found = []
    for entry, problem, count, first, last in rerun.failures:
        when = moments.as_range(first, last)
        text = ngettext("%(entry)s, %(when)s: not sent.", "%(entry)s, %(when)s: %(n)d not sent.", count)
        found.append(text % {"entry": entry, "when": when, "n": count} + f" {problem}")
    return found


def skipped_in_words(rerun: Rerun) -> str:
    """Return how many somebody else had run meanwhile."""
    text = ngettext(
        "%(n)d was already re-run; not sent again.",
        "%(n)d were already re-run; not sent again.",
        rerun.skipped,
    )
    return text % {"n": rerun.skipped}


class RerunAdmin(ReadOnlyMixin, _RerunAdmin):
    """The re-runs that were asked for. Whoever may see missed runs may see them."""

    list_display = ("__str__", "requested_time", "requested_by", "total", "progress")

    class Media:
        css: ClassVar = {"all": ("celery_misfire/admin.css",)}

    def has_view_permission(self, request: HttpRequest, obj: Rerun | None = None) -> bool:
        return request.user.has_perm("celery_misfire.view_missedfire")

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Rerun]:
        return super().get_queryset(request).select_related("requested_by")

    @admin.display(description=gettext_lazy("Requested at"), ordering="requested_at")
    def requested_time(self, rerun: Rerun) -> str:
        return moments.as_text(moments.millis(rerun.requested_at))

    @admin.display(description=gettext_lazy("Progress"))
    def progress(self, rerun: Rerun) -> str:
        if rerun.finished_at is not None:
            return _("finished")
        words = {"n": rerun.position, "all": len(rerun.wanted)}
        return _("not finished: %(n)d of %(all)d records") % words

    @transaction.non_atomic_requests
    @needs_tables
    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show how far a re-run is; a POST takes the next step."""
        rerun = self.get_object(request, object_id)
        if not self.has_view_permission(request, rerun):
            raise PermissionDenied
        if rerun is None:
            raise Http404(_("There is no such re-run."))
        may_run = request.user.has_perm("celery_misfire.run_missedfire")
        if request.method == "POST":
            if not may_run:
                raise PermissionDenied
            step = go_on(self, request, rerun)
            if request.headers.get("Accept") == "application/json":
                told = _told(rerun)
                return JsonResponse({**told, "problem": step.problem, "finished": told["is_finished"]})
            if step.problem:
                messages.error(request, step.problem)
            return HttpResponseRedirect(request.path)
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            **self._page(request, rerun),
            "title": str(rerun),
            "opts": self.opts,
            "records": MissedFire._meta,
            "media": self.media,
            "rerun": rerun,
            "may_run": may_run,
        }
        return TemplateResponse(request, "admin/celery_misfire/rerun.html", context)

    def _page(self, request: HttpRequest, rerun: Rerun) -> dict[str, Any]:
        runs = rerun.runs.select_related("missed").order_by("pk")
        page = Paginator(runs, _ROWS).get_page(request.GET.get("p"))
        results = results_of([run.task_id for run in page], self.admin_site, request)
        failures = failures_in_words(rerun)
        return {
            **_told(rerun),
            "requested_at": moments.as_text(moments.millis(rerun.requested_at)),
            "page": page,
            "has_results": bool(results),
            "rows": [
                {
                    "run": run,
                    "time": moments.as_text(moments.millis(run.scheduled_fire_time)),
                    "result": results.get(run.task_id),
                }
                for run in page
            ],
            "failures": failures[:_ROWS],
            "failures_left": max(0, len(failures) - _ROWS),
        }


def _told(rerun: Rerun) -> dict[str, Any]:
    """Return how far a re-run is, in numbers and in a sentence."""
    sent, failed = rerun.runs.count(), sum(failure[2] for failure in rerun.failures)
    done = sent + failed + rerun.skipped
    words = {"done": done, "total": max(done, rerun.total), "sent": sent, "failed": failed}
    text = _("%(done)d of %(total)d: %(sent)d sent, %(failed)d not sent.") % words
    if rerun.skipped:
        text += " " + skipped_in_words(rerun)
    return {**words, "sentence": text, "is_finished": rerun.finished_at is not None}
