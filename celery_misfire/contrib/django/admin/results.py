"""What django-celery-results knows of runs, where it is installed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from celery import states
from django.apps import apps
from django.contrib.admin import AdminSite
from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext as _

from celery_misfire.contrib.django import moments

#: One query asks for at most this many results.
RESULTS_AT_ONCE = 500


@dataclass(frozen=True)
class Result:
    """The result of one run.

    :param state: Celery's word.
    :param started: in milliseconds UTC; None where ``task_track_started`` is off.
    :param done: the same; None while it runs.
    :param url: its page in the admin, '' when the user may not see it.
    """

    state: str
    started: int | None = None
    done: int | None = None
    url: str = ""

    @property
    def in_words(self) -> str:
        """Return whether it succeeded, when it began and how long it took."""
        word = {states.SUCCESS: _("succeeded"), states.FAILURE: _("failed")}.get(self.state, self.state)
        if self.started is None:
            if self.done is None:
                return word
            return _("%(state)s at %(time)s") % {"state": word, "time": moments.as_text(self.done)}
        words = {"state": word, "time": moments.as_text(self.started)}
        if self.done is None:
            return _("%(state)s since %(time)s") % words
        words["length"] = _("%(n)s s") % {"n": f"{(self.done - self.started) / 1000:.1f}"}
        return _("%(state)s, started %(time)s, took %(length)s") % words


def results_of(task_ids: Iterable[str], site: AdminSite, request: HttpRequest) -> dict[str, Result]:
    """Return the results of these runs, as far as there are any; none without django-celery-results."""
    if not apps.is_installed("django_celery_results"):
        return {}
    model: Any = apps.get_app_config("django_celery_results").get_model("TaskResult")
    of_results = site._registry.get(model)
    may_see = of_results is not None and of_results.has_view_permission(request)
    ids, found = list(task_ids), {}
    for start in range(0, len(ids), RESULTS_AT_ONCE):
        rows = model._default_manager.filter(task_id__in=ids[start : start + RESULTS_AT_ONCE])
        for row in rows.defer("result", "traceback", "meta", "task_args", "task_kwargs"):
            is_done = row.status in states.READY_STATES
            started = getattr(row, "date_started", None)
            url = reverse(f"{site.name}:django_celery_results_taskresult_change", args=[row.pk])
            found[row.task_id] = Result(
                row.status,
                None if started is None else moments.millis(started),
                moments.millis(row.date_done) if is_done else None,
                url if may_see else "",
            )
    return found
