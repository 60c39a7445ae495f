"""The page of all tasks: who leads, what is wrong, and every task on one timeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import current_app
from django.core.paginator import Page, Paginator
from django.db.models import Q
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.fleet_state import STATES, FleetState, Line
from celery_misfire.contrib.django.admin.overview import pause_in_words, standing
from celery_misfire.contrib.django.models import Alarm, MissedFire
from celery_misfire.contrib.django.planned import Planned, planned
from celery_misfire.contrib.django.policies import short_label_of
from celery_misfire.contrib.django.state import open_store
from celery_misfire.contrib.django.timeline import fleet
from celery_misfire.contrib.django.timeline.fleet import Strip, Window
from celery_misfire.contrib.django.timeline.history import OUTAGES, outages_in
from celery_misfire.contrib.django.timeline.timeline import OUTCOMES, Waiting, format_number
from celery_misfire.events import Event, Led, decode
from celery_misfire.exceptions import MisfireConfigError, StoreUnavailable
from celery_misfire.misfire import Outcome
from celery_misfire.records import EntryRecord
from celery_misfire.status import Status, is_current, status_of
from celery_misfire.triggers.kinds import CronTrigger

if TYPE_CHECKING:
    from celery_misfire.contrib.django.admin.fleet import FleetAdmin

#: A page has so many tasks.
TASKS = 100
#: How many days the timeline reaches back and ahead.
DAYS = (1, 7)
#: At most so many lines of the log are read; with many tasks, a line tells of a hundred runs.
MOST_LINES, FEWEST_LINES, RUNS_READ = 10_000, 200, 300_000
#: At most so many records of missed runs, and so many alarms, are drawn.
MOST_MISSED, MOST_ALARMS = 5_000, 200

Span = tuple[int, int]


@dataclass(frozen=True)
class Row:
    """A task on the page, in words and as a strip."""

    line: Line
    url: str
    policy: str
    state: str
    is_wrong: bool
    missed_url: str
    next: str
    next_title: str
    strip: SafeString


def context_of(model_admin: FleetAdmin, request: HttpRequest, state: FleetState) -> dict[str, Any]:
    """Return what the page shows."""
    query = _Query.of(request)
    chosen = sorted(filter(query.takes, state.lines), key=lambda line: line.rank)
    page = Paginator(chosen, TASKS).get_page(request.GET.get("p"))
    window = Window.around(state.now, query.days)
    events = _log(len(state.lines), window) if state.fleet else []
    return {
        "rows": _rows(model_admin, request, state, page, window, events),
        "page": page,
        "pages": [(n, query.link(p=n)) for n in page.paginator.get_elided_page_range(page.number)],
        "axis": fleet.axis(window, timezone.get_current_timezone()),
        "legend": [(fleet.symbol(fate), OUTCOMES[fate]) for fate in fleet.LEGEND],
        "facts": _facts(state, events),
        "problem": _problem(state),
        "counts": _counts(state, query),
        "zooms": [(ngettext("%d day", "%d days", n) % n, query.link(days=n), n == query.days) for n in DAYS],
        "query": query,
        "notes": _notes(state, events, window),
        "hold": state.fleet and state.fleet.hold and pause_in_words(state.fleet.hold),
        "zone": timezone.get_current_timezone_name(),
        "now": moments.as_text(state.now),
    }


@dataclass(frozen=True)
class _Query:
    """What the address asks for."""

    state: str
    text: str
    days: int

    @classmethod
    def of(cls, request: HttpRequest) -> _Query:
        state, days = request.GET.get("state", ""), request.GET.get("days", "")
        return cls(
            state if state in STATES else "",
            request.GET.get("q", "").strip()[:200],
            int(days) if days in map(str, DAYS) else DAYS[0],
        )

    def takes(self, line: Line) -> bool:
        fits = self.text.casefold() in line.name.casefold()
        return fits and (not self.state or line.is_in(self.state))

    def link(self, **other: Any) -> str:
        asked: dict[str, Any] = {"state": self.state, "q": self.text, "days": self.days, **other}
        return "?" + urlencode({name: value for name, value in asked.items() if value})


def _counts(state: FleetState, query: _Query) -> list[tuple[str, str, str, bool]]:
    """Return the states to choose from: name, how many tasks, address, and whether it is chosen."""
    names = {
        "": _("All"),
        "overdue": _("Overdue"),
        "missed": _("With missed runs"),
        "paused": _("Paused"),
        "disabled": _("Disabled"),
    }
    return [
        (
            text,
            format_number(len(state.lines) if not name else state.count(name)),
            query.link(state=name),
            name == query.state,
        )
        for name, text in names.items()
    ]


def _facts(state: FleetState, events: Sequence[Event]) -> list[tuple[str, str]]:
    """Return what stands at the top of the page."""
    if (found := state.fleet) is None:
        return [(_("Open missed runs"), format_number(state.missed))]
    led = [event for event in events if isinstance(event, Led)]
    leader = found.leader or _("nobody")
    lease = found.sight.lease
    if lease is not None and led and led[-1].epoch == lease.epoch:
        words = {"leader": leader, "time": moments.as_short(led[-1].now, state.now)}
        leader = _("%(leader)s, since %(time)s") % words
    elif found.leader and (beat := next((beat for beat in found.beats if beat.leads), None)):
        words = {"leader": leader, "time": moments.as_short(beat.started, state.now)}
        leader = _("%(leader)s, started %(time)s") % words
    facts = [
        (_("Leads"), leader),
        (_("Standing by"), ", ".join(map(str, found.standbys)) or _("nobody")),
        (_("Overdue tasks"), format_number(state.count("overdue"))),
        (_("Open missed runs"), format_number(state.missed)),
    ]
    if state.way:
        facts.append((_("Runs are sent"), state.way))
    return facts


def _problem(state: FleetState) -> str:
    """Return why somebody should look, '' when beat is well."""
    if state.fleet is None or not state.alarm:
        return state.problem
    leader = next((beat for beat in state.fleet.beats if beat.leads), None)
    if leader is None:
        return _("No beat is running: nothing is sent.")
    words = {"beat": leader, "length": moments.as_duration(leader.silent_for)}
    return _("Beat %(beat)s leads, and has given no sign of life for %(length)s.") % words


def _notes(state: FleetState, events: Sequence[Event], window: Window) -> list[str]:
    if state.fleet is None:
        return []
    if not events:
        return [_("The log is empty: nothing is known of the past.")]
    written = [at for event in events if (at := event.written_at) is not None]
    if written and min(written) > window.start:
        text = _("Runs are shown from %(time)s on: the log reaches no further back.")
        return [text % {"time": moments.as_short(min(written), state.now)}]
    return []


def _log(tasks: int, window: Window) -> list[Event]:
    """Return the newest events of the log, oldest first."""
    lines = min(MOST_LINES, max(FEWEST_LINES, RUNS_READ // max(1, tasks)))
    try:
        found = open_store(current_app).log(lines)
    except (StoreUnavailable, MisfireConfigError):
        return []
    return [event for event in map(decode, found) if event is not None]


def _rows(
    model_admin: FleetAdmin,
    request: HttpRequest,
    state: FleetState,
    page: Page[Line],
    window: Window,
    events: Sequence[Event],
) -> list[Row]:
    lines = list(page)
    try:
        known = planned([line.key for line in lines], read_settings(current_app))
    except MisfireConfigError:
        known = {}
    told = fleet.together(events, [line.name for line in lines])
    missed = _missed([line.key for line in lines], window)
    bands = _outages(events, missed, window, state)
    links = _Links(model_admin, request)
    rows, alike = [], _Alike()
    for line in lines:
        plan = known.get(line.key)
        status = line.status
        record = state.fleet.records.get(line.name) if state.fleet else None
        if plan is not None and line.enabled and state.fleet is not None:
            status = status_of(record, plan.trigger, plan.policy, state.now, hold=state.fleet.hold)
        strip = Strip(window)
        strip.add_log(told[line.name])
        for first, last in missed.get(line.key, ()):
            strip.add(Outcome.MISSED, first, last)
        _add_status(strip, status, plan, record, state.now, alike)
        words = _in_words(line, status, plan)
        following = None if status is None else status.next_fire_time
        rows.append(
            Row(
                line,
                links.timeline(line.key),
                _policy(plan),
                words,
                bool((status and status.is_overdue) or line.missed or (plan and plan.trigger is None)),
                links.missed(line) if line.missed else "",
                "" if following is None else moments.as_short(following, state.now),
                "" if following is None else moments.as_text(following),
                strip.draw(bands, fleet.words_of(strip, words)),
            )
        )
    return rows


#: What is to come of tasks that fire alike, as places of a strip: by their schedule, its begin, and the next.
_Alike = dict[tuple[str, int, int], set[int]]


def _add_status(
    strip: Strip,
    status: Status | None,
    plan: Planned | None,
    record: EntryRecord | None,
    now: int,
    alike: _Alike,
) -> None:
    """Mark what is overdue, and what is to come."""
    if status is None or status.next_fire_time is None:
        return
    due = status.next_fire_time
    if status.is_overdue:
        strip.add(Waiting.OVERDUE, due, now)
    if plan is None or plan.trigger is None or record is None or not is_current(record, plan.trigger):
        return
    try:
        times = plan.trigger.fire_times(record.state)
        first = due if due >= now else times.after(now)
        if first is not None:
            # The fire times of others depend on when they were first seen.
            start = 0 if isinstance(plan.trigger, CronTrigger) else record.state.start_time
            key = (plan.trigger.fingerprint, start, first)
            if key not in alike:
                alike[key] = strip.expected(times, first)
            strip.places[None] = alike[key]
    except Exception:
        # A schedule may fail in its own code, such as the sun's at the poles; the task's page says how.
        return


def _missed(keys: Sequence[int], window: Window) -> dict[int, list[Span]]:
    """Return the missed runs of these tasks that are in the picture, by primary key."""
    ends = Q(last__gte=moments.as_stored(window.start), first__lte=moments.as_stored(window.end))
    rows = MissedFire.objects.filter(ends, periodic_task__in=keys).order_by("-pk")
    found: dict[int, list[Span]] = {}
    for key, first, last in rows.values_list("periodic_task_id", "first", "last")[:MOST_MISSED]:
        found.setdefault(key, []).append((moments.millis(first), moments.millis(last)))
    return found


def _outages(
    events: Sequence[Event], missed: Mapping[int, Sequence[Span]], window: Window, state: FleetState
) -> list[Span]:
    """Return when beat was not there: by the log, by what the workers saw, and by what was missed."""
    found = [(outage.start, outage.end) for outage in outages_in(events, None)]
    begin = moments.as_stored(window.start)
    alarms = Alarm.objects.filter(Q(over_at=None) | Q(over_at__gte=begin))
    for since, over in alarms.values_list("since", "over_at")[:MOST_ALARMS]:
        found.append((moments.millis(since), state.now if over is None else moments.millis(over)))
    lost = MissedFire.objects.filter(reason__in=list(OUTAGES), detected_at__gte=begin).order_by("-pk")
    for first, found_at in lost.values_list("first", "detected_at")[:MOST_MISSED]:
        found.append((moments.millis(first), moments.millis(found_at)))
    return found


class _Links:
    """The pages that the user may see."""

    def __init__(self, model_admin: FleetAdmin, request: HttpRequest) -> None:
        self._site = model_admin.admin_site
        of_missed = self._site._registry.get(MissedFire)
        self._may_see_missed = of_missed is not None and of_missed.has_view_permission(request)

    def timeline(self, key: int) -> str:
        try:
            return reverse(f"{self._site.name}:django_celery_beat_periodictask_timeline", args=[key])
        except NoReverseMatch:
            return ""

    def missed(self, line: Line) -> str:
        if not self._may_see_missed:
            return ""
        url = reverse(f"{self._site.name}:celery_misfire_missedfire_changelist")
        return f"{url}?periodic_task={line.key}&state=open"


def _policy(plan: Planned | None) -> str:
    if plan is None or plan.trigger is None:
        return ""
    return short_label_of(plan.policy, plan.trigger.trigger_type)


def _in_words(line: Line, status: Status | None, plan: Planned | None) -> str:
    """Return where a task stands."""
    parts = []
    is_wrong = plan is not None and plan.trigger is None
    if is_wrong:
        parts.append(_("schedule not valid"))
    if not line.enabled:
        parts.append(_("disabled"))
    elif text := standing(status):
        parts.append(text)
    elif status is not None and not status.is_known and not is_wrong:
        parts.append(_("Not planned yet"))
    if line.missed:
        parts.append(ngettext("%(n)d missed", "%(n)d missed", line.missed) % {"n": line.missed})
    return " · ".join(parts) or (_("on time") if status is not None else _("not known"))
