"""What an outage would do to all tasks at once; nothing is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from celery import current_app
from django.core.paginator import Paginator
from django.http import HttpRequest
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask

from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib.django.planned import Planned, planned
from celery_misfire.contrib.django.policies import short_label_of
from celery_misfire.contrib.django.rows import entry_name
from celery_misfire.contrib.django.state import fleet_of, open_store
from celery_misfire.contrib.django.timeline.timeline import format_number
from celery_misfire.contrib.django.timeline.whatif import OutageForm
from celery_misfire.entry_record import EntryRecord
from celery_misfire.exceptions import MisfireConfigError, StoreUnavailable
from celery_misfire.misfire import Outcome, from_millis, to_millis
from celery_misfire.simulation import Pauses, effect_of_outage
from celery_misfire.status import state_of

#: A page has so many tasks.
TASKS = 100
_SATURDAY, _DOWN, _LENGTH = 5, 22, timedelta(hours=8)


class _OutageForm(OutageForm):
    # Each task takes its time.
    longest = 1


@dataclass(frozen=True)
class Effect:
    """What an outage does to one task: how many of its occurrences end in which way.

    :param in_time: those that are late by less than the threshold, and count as on time.
    """

    name: str
    key: int
    policy: str
    recovered: int = 0
    merged: int = 0
    missed: int = 0
    in_time: int = 0
    problem: str = ""

    @property
    def due(self) -> int:
        """How many fire times fall into the outage."""
        return self.recovered + self.merged + self.missed + self.in_time

    @property
    def counts(self) -> list[tuple[str, str]]:
        """What is counted, with the name of each number; '' for none."""
        return [(name, format_number(n) if n else "") for name, n in _counts([self])]


def _counts(effects: Sequence[Effect]) -> list[tuple[str, int]]:
    """Return what is counted of these effects together, with the name of each number."""
    names = {
        "due": _("Fire times"),
        "recovered": _("recovered"),
        "merged": _("merged"),
        "missed": _("missed"),
        "in_time": _("on time"),
    }
    return [(capfirst(name), sum(getattr(e, key) for e in effects)) for key, name in names.items()]


def effect_of(
    plan: Planned, record: EntryRecord | None, pauses: Pauses, down: int, up: int, now: int
) -> Effect:
    """Return what happens to a task when beat is away from `down` to `up`, in milliseconds UTC."""
    trigger, policy, task = plan.trigger, plan.policy, plan.task
    if trigger is None:
        return Effect(entry_name(task), task.pk, "", problem=_("schedule not valid"))
    effect = Effect(entry_name(task), task.pk, short_label_of(policy, trigger.trigger_type))
    if policy is None:
        return effect
    try:
        state = state_of(record, trigger, now)
        if state.next_fire_time is None:
            return effect
        if down < state.next_fire_time:
            # The outage may be one of the past. A task that is finished stays so.
            state = replace(state, next_fire_time=trigger.fire_times(state).after(down - 1))
        counts = effect_of_outage(trigger, state, policy, down, up, pauses).counts
    except Exception as exc:
        # A schedule may fail in its own code, such as the sun's at the poles.
        problem = _("The fire times cannot be computed: %(error)s") % {"error": exc}
        return replace(effect, problem=problem)
    return replace(
        effect,
        recovered=counts[Outcome.RECOVERED],
        merged=counts[Outcome.MERGED],
        missed=counts[Outcome.MISSED],
        in_time=counts[Outcome.FIRED],
    )


def whatif_context(request: HttpRequest, now: int) -> dict[str, Any]:
    """Return what the page shows."""
    form = _OutageForm({**_defaults(now), **request.GET.dict()})
    context: dict[str, Any] = {"form": form, "problems": []}
    if not form.is_valid():
        return context
    down, up = to_millis(form.cleaned_data["down"]), to_millis(form.cleaned_data["up"])
    effects = _effects(down, up, now, context["problems"])
    touched = sorted(
        (e for e in effects if e.due or e.problem),
        key=lambda e: (not e.problem, -e.missed, -e.recovered, e.name),
    )
    page = Paginator(touched, TASKS).get_page(request.GET.get("p"))
    asked = {name: form[name].value() for name in ("down", "up")}
    numbers = page.paginator.get_elided_page_range(page.number)
    return context | {
        "page": page,
        "pages": [(n, "?" + urlencode({**asked, "p": n})) for n in numbers],
        "totals": [(name, format_number(n)) for name, n in _counts(effects)],
        "untouched": len(effects) - len(touched),
        "whatif_query": urlencode(asked),
    }


def _effects(down: int, up: int, now: int, problems: list[str]) -> list[Effect]:
    records: Mapping[str, EntryRecord] = {}
    hold = None
    try:
        settings = read_settings(current_app)
        fleet = fleet_of(open_store(current_app))
        records, hold = fleet.records, fleet.hold
    except MisfireConfigError as exc:
        problems.append(str(exc))
        return []
    except StoreUnavailable as exc:
        text = _("Redis does not answer; past and next runs are unknown. %(error)s")
        problems.append(text % {"error": exc})
    enabled = PeriodicTask.objects.filter(enabled=True).values_list("pk", flat=True)
    effects = []
    for plan in planned(enabled, settings).values():
        record = records.get(entry_name(plan.task))
        pauses = Pauses.of(record, hold, own_misfires=settings.on_resume == "misfire")
        effects.append(effect_of(plan, record, pauses, down, up, now))
    return effects


def _defaults(now: int) -> dict[str, str]:
    """Return what the form holds at first: the night after the next Saturday."""
    today = from_millis(now).astimezone(timezone.get_current_timezone())
    down = (today + timedelta(days=(_SATURDAY - today.weekday()) % 7)).replace(
        hour=_DOWN, minute=0, second=0, microsecond=0
    )
    if down <= today:
        down += timedelta(days=7)
    return {name: f"{at:%Y-%m-%dT%H:%M:%S}" for name, at in (("down", down), ("up", down + _LENGTH))}
