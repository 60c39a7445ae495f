"""The timeline of one periodic task: its last 24 hours or an earlier day, and what is expected next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from datetime import time as clock
from typing import Any

from django import forms
from django.contrib.admin import ModelAdmin
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django_celery_beat.models import PeriodicTask

from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.overview import pause_in_words
from celery_misfire.contrib.django.admin.read_only import needs_tables
from celery_misfire.contrib.django.admin.results import results_of
from celery_misfire.contrib.django.admin.task_page import (
    ask_store,
    find_policy,
    find_task,
    find_trigger,
    not_computed,
    render,
)
from celery_misfire.contrib.django.rows import entry_name
from celery_misfire.contrib.django.state import Stored, read
from celery_misfire.contrib.django.timeline import timeline, whatif
from celery_misfire.contrib.django.timeline.history import History, expected, history
from celery_misfire.contrib.django.timeline.picture import picture
from celery_misfire.misfire import Outcome, Trigger, from_millis, to_millis
from celery_misfire.status import Status, is_current, state_of, status_of
from celery_misfire.triggers.wall_times import DAY, MINUTE

#: The timeline shows this much of the past, in milliseconds.
PAST = DAY
#: The timeline shows at least this share of its past as future.
FUTURE_SHARE = 1 / 4
#: The timeline is made longer for a next fire time that is at most this far away, in milliseconds.
MAX_FUTURE = DAY
#: The results of at most this many runs are looked up.
MAX_RESULTS = 200


@dataclass(frozen=True)
class _Window:
    """The time that is shown, in milliseconds UTC: a day of the calendar, or None for the last 24 hours."""

    start: int
    end: int
    day: date | None

    @classmethod
    def of(cls, request: HttpRequest, now: int) -> _Window:
        field, zone = forms.DateField(), timezone.get_current_timezone()
        today = from_millis(now).astimezone(zone).date()
        try:
            day = field.clean(request.GET.get("day"))
        except forms.ValidationError:
            day = None
        if day is None or not date(1971, 1, 1) <= day < today:
            return cls(now - PAST, now, None)
        start, end = (datetime.combine(day + timedelta(days=n), clock(), tzinfo=zone) for n in (0, 1))
        return cls(to_millis(start), to_millis(end), day)

    def days(self, now: int) -> tuple[str, str, str]:
        """Return the day before, the one that is shown ('' for none), and the day after ('' for today)."""
        today = from_millis(now).astimezone(timezone.get_current_timezone()).date()
        before = (self.day or today) - timedelta(days=1)
        after = None if self.day is None else self.day + timedelta(days=1)
        later = "" if after is None or after >= today else after.isoformat()
        return before.isoformat(), "" if self.day is None else self.day.isoformat(), later


@needs_tables
def timeline_view(
    model_admin: ModelAdmin[PeriodicTask], request: HttpRequest, object_id: str
) -> TemplateResponse:
    """Show what became of a task's fire times, and which are expected next."""
    task, now = find_task(model_admin, request, object_id), moments.now()
    entry = entry_name(task)
    window, problems, notes = _Window.of(request, now), list[str](), list[str]()
    trigger = find_trigger(task, problems)
    stored = ask_store(lambda store: read(store, entry, window.start, now), problems)
    is_known = stored is not None
    stored = stored or Stored((), now, None)
    if is_known and stored.known_from == now:
        notes.append(_("The log is empty: nothing is known of the past."))
    policy = None if trigger is None else find_policy(task, trigger)
    status = status_of(stored.record, trigger, policy, now, hold=stored.hold) if task.enabled else None
    past = history(
        stored.events,
        entry,
        window.start,
        now,
        trigger=trigger,
        status=status,
        record=stored.record,
        known_from=stored.known_from,
        until=window.end,
    )
    start, end = window.start, window.end
    if past.known_from is not None and past.known_from < window.end:
        # The picture begins where the log does.
        start = past.known_from
    future, following = list[timeline.Occurrence](), None
    if window.day is None:
        end = now + max(MINUTE, round((now - start) * FUTURE_SHARE))
        future, following, end = _future(trigger, stored, status, past, now, end, problems, notes)
    shown = timeline.Timeline(
        name=_("Fire times of %(task)s") % {"task": entry},
        start=start,
        end=end,
        zone=timezone.get_current_timezone(),
        occurrences=(*past.occurrences, *future),
        outages=tuple(o for o in past.outages if o.start < end and (task.enabled or o.end < now)),
        now=now if window.day is None else None,
        known_from=past.known_from,
        this_year=from_millis(now).astimezone(timezone.get_current_timezone()).year,
    )
    shown = replace(shown, results=_results(shown, model_admin, request))
    if past.known_from is not None and past.known_from < now:
        notes.append(_("History starts %(time)s.") % {"time": shown.date_and_time(past.known_from)})
    context = {
        "title": _("Timeline"),
        "timeline": shown,
        "picture": picture(shown),
        "following": None if following is None else shown.date_and_time(following),
        "problems": problems,
        "notes": notes,
        "days": window.days(now),
    }
    return render(model_admin, request, task, "timeline", context)


def _results(shown: timeline.Timeline, model_admin: ModelAdmin[Any], request: HttpRequest) -> dict[str, str]:
    """Return the results of the runs that have a row of their own, the late ones first."""
    runs = [o for o in shown.occurrences if o.task_id]
    late = [o.task_id for o in runs if o.outcome is not Outcome.FIRED]
    in_time = [o.task_id for o in runs if o.outcome is Outcome.FIRED]
    ids = (late + in_time[::-1])[:MAX_RESULTS]
    found = results_of(ids, model_admin.admin_site, request)
    return {id_: result.in_words for id_, result in found.items()}


def _future(
    trigger: Trigger | None,
    stored: Stored,
    status: Status | None,
    past: History,
    now: int,
    end: int,
    problems: list[str],
    notes: list[str],
) -> tuple[list[timeline.Occurrence], int | None, int]:
    """Return what is expected, what is expected next, and until when to show it: `end`, or a bit later."""
    if past.overdue:
        text = ngettext(
            "%(n)s run is overdue. Beat is down or overloaded.",
            "%(n)s runs are overdue. Beat is down or overloaded.",
            past.overdue,
        )
        problems.append(text % {"n": timeline.format_number(past.overdue)})
    if status is None:
        notes.append(whatif.disabled_in_words(trigger, stored.record))
    if trigger is None or status is None:
        return [], None, end
    if status.paused is not None:
        notes.append(capfirst(pause_in_words(status.paused, _("paused"))) + ".")
    if stored.record is not None and not is_current(stored.record, trigger):
        notes.append(_("The task was edited, and beat has not seen that yet."))
    elif stored.record is None and stored.known_from != now:
        notes.append(_("Beat has not seen this task yet."))
    try:
        state = state_of(stored.record, trigger, now)
        if status.paused is not None:
            state = replace(state, next_fire_time=status.next_fire_time)
        if state.next_fire_time is None:
            return [], None, end
        following = trigger.fire_times(state).after(max(now, state.next_fire_time - 1))
        if following is not None and following <= now + MAX_FUTURE:
            end = max(end, following + (following - now) // 10)
        if past.overdue:
            # Overdue runs are not expected, and stand among the past.
            state = replace(state, next_fire_time=following)
        return expected(trigger, state, end), following, end
    except Exception as exc:
        problems.append(not_computed(exc))
        return [], None, end
