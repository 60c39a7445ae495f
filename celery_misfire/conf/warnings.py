"""What the configuration may say but hardly means: one line each for the log at the start of beat."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from celery import Celery
from celery.schedules import maybe_schedule
from kombu.serialization import dumps

from celery_misfire.conf.entries import keys_of, place_of, policy_of
from celery_misfire.conf.names import plain_names
from celery_misfire.conf.problems import Problems, as_line, spelling
from celery_misfire.conf.settings import Settings
from celery_misfire.misfire import MisfirePolicy
from celery_misfire.texts import quote, quote_name, suggestion
from celery_misfire.triggers.kinds import trigger_for

__all__ = ["unknown_policies", "warnings_for"]

#: What Celery adds to the schedule by itself, where results do not expire by themselves.
ENTRIES_OF_CELERY = {"celery.backend_cleanup"}

Warnings = Iterator[tuple[str, str]]


def unknown_policies(app: Celery, settings: Settings, names: Collection[str]) -> list[str]:
    """Return a warning for every name in ``misfire_policies`` that is no entry, at least not yet."""
    setting, plain = spelling(app)("misfire_policies"), plain_names(app.conf.beat_schedule)
    names = {*names, *plain, *plain.values()}
    return [
        as_line(f"{setting}[{quote_name(name)}]", f"no entry has this name.{suggestion(name, names)}")
        for name in settings.policies
        if name not in names
    ]


def warnings_for(app: Celery, settings: Settings, beat_schedule: Mapping[str, Any]) -> list[str]:
    """Return what is allowed but hardly meant, one line each.

    :param beat_schedule: as in :func:`~celery_misfire.conf.settings.read_config`, and without problems.
    """
    spell = spelling(app)
    lines = unknown_policies(app, settings, beat_schedule.keys() | ENTRIES_OF_CELERY)
    deadline = app.conf.get("beat_cron_starting_deadline")
    if deadline is not None:
        what = f"{quote(deadline)} is not used here. Use max_lateness in a misfire policy."
        lines.append(as_line(spell("beat_cron_starting_deadline"), what))
    too_late_places = set[str]()
    for name, entry in beat_schedule.items():
        keys, place = keys_of(entry), f"{spell('beat_schedule')}[{quote_name(name)}]"
        misfire, options = keys.get("misfire"), keys.get("options") or {}
        policy = policy_of(Problems(), settings, name, misfire, None)
        found = [*_about_options(place, options, policy), *_about_arguments(app, place, keys, options)]
        if policy is not None:
            where = place_of(spell, "max_lateness", settings, name, misfire)
            found += _about_lateness(where, policy, settings.lease_ttl, spell)
            where = place_of(spell, "threshold", settings, name, misfire)
            # What is set for many entries is said once.
            if where not in too_late_places and (late := _about_threshold(app, where, policy, name, keys)):
                too_late_places.add(where)
                found.append(late)
        lines += [as_line(*one) for one in found]
    return lines


def _about_options(place: str, options: Mapping[Any, Any], policy: MisfirePolicy | None) -> Warnings:
    for key in ("eta", "countdown"):
        if options.get(key) is not None:
            what = f"{key!r} delays the run after it was sent; misfire handling does not see that delay."
            yield f"{place}.options", f"{what} Use the schedule for that."
    expires, threshold = options.get("expires"), policy.threshold if policy else None
    if isinstance(expires, int | float) and isinstance(threshold, float) and expires < threshold:
        what = f"a run expires after {expires:g} s, before it is a misfire (threshold {threshold:g} s)."
        yield f"{place}.options", f"{what} Give 'expires' more time."


def _about_arguments(
    app: Celery, place: str, keys: Mapping[Any, Any], options: Mapping[Any, Any]
) -> Warnings:
    for key in ("args", "kwargs"):
        if not keys.get(key):
            continue
        own = getattr(app.tasks.get(keys["task"]), "serializer", None)
        serializer = options.get("serializer") or own or app.conf.task_serializer
        try:
            dumps(keys[key], serializer)
        except Exception:
            # Its text is not shown: it can repeat the arguments.
            what = f"cannot be sent with the serializer {quote(serializer)}."
            yield f"{place}.{key}", f"{what} Use other types or another one."


def _about_lateness(
    place: str, policy: MisfirePolicy, lease_ttl: float, spell: Callable[[str], str]
) -> Warnings:
    for limit, what in (
        (policy.threshold, "threshold ({:g}): no late run is ever made up for"),
        (lease_ttl, f"{spell('misfire_lease_ttl')} ({{:g}}): the death of a beat alone makes runs too old"),
    ):
        given = policy.max_lateness
        if given is not None and isinstance(limit, float) and given < limit:
            yield place, f"{given:g} is less than {what.format(limit)}. Set it to more."


def _about_threshold(
    app: Celery, place: str, policy: MisfirePolicy, name: str, keys: Mapping[Any, Any]
) -> tuple[str, str] | None:
    interval = _interval(app, keys)
    if not isinstance(policy.threshold, float) or policy.threshold < interval:
        return None
    what = f"{policy.threshold:g} is not less than the interval of {quote_name(name)} ({interval:g})"
    then = "after an outage that is no longer, all runs are sent at once"
    return place, f"{what}: {then}. Set it to less than {interval:g}."


def _interval(app: Celery, keys: Mapping[Any, Any]) -> float:
    """Return the seconds between two runs, infinity where they have no fixed distance."""
    try:
        schedule = maybe_schedule(keys["schedule"], bool(keys.get("relative")), app=app)
        return (trigger_for(schedule).interval or math.inf) / 1000
    except Exception:
        return math.inf
