"""The page of one record of missed runs: its occurrences, what became of them, and the log around it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from celery import current_app
from django.contrib import admin
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask

from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.log_lines import in_words, sent_in_words
from celery_misfire.contrib.django.admin.missed_running import run_url
from celery_misfire.contrib.django.admin.results import results_of
from celery_misfire.contrib.django.admin.running import Occurrences, no_task, occurrences_of, tasks_of
from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun
from celery_misfire.contrib.django.state import LogLine, log_of, open_store
from celery_misfire.events import Merged, Sent, StartedLate
from celery_misfire.exceptions import MisfireConfigError, StoreUnavailable
from celery_misfire.misfire import from_millis

if TYPE_CHECKING:
    from celery_misfire.contrib.django.admin.missed import MissedFireAdmin

#: A page shows this many occurrences.
OCCURRENCES = 100
#: The page shows the log from this long before the first missed run to this long after the miss was detected,
#: in milliseconds.
_LOG_MARGIN = 10 * 60_000
#: The page shows at most this many lines of the log, the newest.
_LOG_LINES = 50


def about(model_admin: MissedFireAdmin, request: HttpRequest, missed: MissedFire) -> dict[str, Any]:
    """Return what the page says, beside the fields of the record."""
    task = tasks_of([missed]).get(missed.periodic_task_id or 0)
    known = occurrences_of(missed, task)
    first, last = moments.millis(missed.first), moments.millis(missed.last)
    site = model_admin.admin_site
    may_run = model_admin.has_run_permission(request) and missed.dismissed_at is None and task is not None
    open_runs = known.times.count(first, last) - missed.runs.count()
    lines, problem = _log_lines(missed)
    return {
        "missed": missed,
        "task": task,
        "no_task": "" if task else no_task(missed),
        "task_links": _links(model_admin, request, task),
        **_occurrences(model_admin, request, missed, known),
        "was_edited": known.was_edited,
        "open_runs": open_runs,
        "run_all_url": run_url(site, str(missed.pk)),
        "run_range_url": run_url(site, "").partition("?")[0],
        "range": [
            f"{from_millis(m).astimezone(timezone.get_current_timezone()):%Y-%m-%dT%H:%M:%S}"
            for m in (first, last)
        ],
        "can_run": may_run,
        "can_dismiss": model_admin.has_dismiss_permission(request),
        "dismiss_url": reverse(f"{site.name}:celery_misfire_missedfire_dismiss", args=[missed.pk]),
        "dismissed_at": missed.dismissed_at and moments.as_text(moments.millis(missed.dismissed_at)),
        "log": lines,
        "log_problem": problem,
    }


def _occurrences(
    model_admin: MissedFireAdmin, request: HttpRequest, missed: MissedFire, known: Occurrences
) -> dict[str, Any]:
    """Return the occurrences from the one on that the address names, and where the others are."""
    first, last = moments.millis(missed.first), moments.millis(missed.last)
    asked = request.GET.get("from", "")
    begin = min(max(first, int(asked)), last) if asked.isdecimal() and len(asked) <= 18 else first
    shown = list(islice(known.between(begin, last), OCCURRENCES))
    made = _runs_of(missed, shown)
    results = results_of((run.task_id for run in made.values()), model_admin.admin_site, request)
    rows = [
        {
            "time": moments.as_text(moment),
            "made": (run := made.get(moment)),
            "made_at": moments.as_text(moments.millis(run.requested_at)) if run else "",
            "result": results.get(run.task_id) if run else None,
            "url": run_url(model_admin.admin_site, f"{missed.pk}:{moment}"),
        }
        for moment in shown
    ]
    before = begin
    for _step in range(OCCURRENCES):
        before = known.times.before(before) or before
    following = known.times.after(shown[-1]) if shown else None
    return {
        "occurrences": rows,
        "first_shown": known.times.count(first, shown[0]) if shown else 0,
        "last_shown": known.times.count(first, shown[-1]) if shown else 0,
        "earlier": urlencode({"from": before}) if before < begin else "",
        "later": urlencode({"from": following}) if following is not None else "",
    }


def _runs_of(missed: MissedFire, shown: Sequence[int]) -> dict[int, OccurrenceRun]:
    """Return the runs of these occurrences that somebody asked for, by scheduled fire time."""
    if not shown:
        return {}
    ends = (moments.as_stored(shown[0]), moments.as_stored(shown[-1]))
    runs = missed.runs.filter(scheduled_fire_time__range=ends).select_related("requested_by", "rerun")
    return {moments.millis(made.scheduled_fire_time): made for made in runs}


def _links(
    model_admin: MissedFireAdmin, request: HttpRequest, task: PeriodicTask | None
) -> list[tuple[str, str]]:
    """Return the pages of the periodic task that the user may see."""
    site = model_admin.admin_site
    of_tasks: admin.ModelAdmin[Any] | None = site._registry.get(PeriodicTask)
    if task is None or of_tasks is None or not of_tasks.has_view_permission(request, task):
        return []
    pages = ((_("Periodic task"), "change"), (_("Timeline"), "timeline"), (_("What if"), "whatif"))
    try:
        name = f"{site.name}:django_celery_beat_periodictask_"
        return [(label, reverse(name + page, args=[task.pk])) for label, page in pages]
    except NoReverseMatch:
        return []


def _log_lines(missed: MissedFire) -> tuple[list[dict[str, str]], str]:
    """Return the log around a record, and why it cannot be read ('' for no problem)."""
    since = moments.millis(missed.first) - _LOG_MARGIN
    until = moments.millis(missed.detected_at) + _LOG_MARGIN
    try:
        found = log_of(open_store(current_app), missed.entry, since, until)
    except (MisfireConfigError, StoreUnavailable) as exc:
        return [], str(exc)
    return [{"at": moments.as_text(at), "text": text} for at, text in _told(found)], ""


def _told(lines: Sequence[LogLine]) -> list[tuple[int, str]]:
    """Return when each line was written and what it says; neighbouring runs of a kind share one."""
    told: list[tuple[int, str, bool]] = []
    runs: list[Sent] = []
    for line in lines:
        event = line.event
        if isinstance(event, Sent):
            if runs and runs[-1].outcome != event.outcome:
                runs = []
            if runs:
                told.pop()
            runs.append(event)
            told.append((line.written_at, sent_in_words(runs), False))
        else:
            runs = []
            text = line.kind if event is None else in_words(event)
            told.append((line.written_at, text, not isinstance(event, StartedLate | Merged)))
    # Where there is no room for all, what beat decided goes before what became of each run.
    decided = [index for index, (_at, _text, decides) in enumerate(told) if decides][-_LOG_LINES:]
    others = [index for index, (_at, _text, decides) in enumerate(told) if not decides]
    room = _LOG_LINES - len(decided)
    return [told[index][:2] for index in sorted(decided + (others[-room:] if room else []))]
