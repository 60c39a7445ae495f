"""What is allowed in the configuration but hardly meant."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from celery import Celery
from celery.schedules import maybe_schedule
from kombu.serialization import dumps

from celery_misfire.conf.entries import keys_of, place_of, policy_of
from celery_misfire.conf.problems import Problems, as_line
from celery_misfire.conf.settings import Settings, spelling
from celery_misfire.texts import quote, quote_name, suggestion
from celery_misfire.triggers.kinds import trigger_for

__all__ = ["unknown_policies", "warnings_for"]

#: What Celery adds to the schedule by itself, where results do not expire by themselves.
ENTRIES_OF_CELERY = {"celery.backend_cleanup"}


def unknown_policies(settings: Settings, names: Collection[str]) -> list[str]:
    """Return a warning for every name in ``misfire_policies`` that is no entry, at least not yet."""
    return [
        as_line(f"misfire_policies[{quote_name(name)}]", f"no entry has this name.{suggestion(name, names)}")
        for name in settings.policies
        if name not in names
    ]


def warnings_for(app: Celery, settings: Settings, beat_schedule: Mapping[str, Any]) -> list[str]:
    """Return what is allowed but hardly meant, one line each, for the log at the start of beat.

    :param beat_schedule: as in :func:`read_config`, and without problems.
    """
    warnings, places = list[str](), set[str]()
    deadline = app.conf.get("beat_cron_starting_deadline")
    if deadline is not None:
        fix = "Use max_lateness in a misfire policy."
        warnings.append(as_line("beat_cron_starting_deadline", f"{quote(deadline)} is not used here. {fix}"))
    for name, entry in beat_schedule.items():
        keys, place = keys_of(entry), f"beat_schedule[{quote_name(name)}]"
        options = keys.get("options") or {}
        policy = policy_of(Problems(), settings, name, keys.get("misfire"), None)
        for key in ("eta", "countdown"):
            if options.get(key) is not None:
                what = f"{key!r} holds the run back after it was sent, and it counts as on time."
                warnings.append(as_line(f"{place}.options", f"{what} Use the schedule for that."))
        expires, threshold = options.get("expires"), policy.threshold if policy else None
        if isinstance(expires, int | float) and isinstance(threshold, float) and expires < threshold:
            what = f"a run expires after {expires:g} s, before it is a misfire (threshold {threshold:g} s)."
            warnings.append(as_line(f"{place}.options", f"{what} Give 'expires' more time."))
        for limit, what in (
            (threshold, "threshold ({:g}): no late run is ever made up for"),
            (settings.lease_ttl, "misfire_lease_ttl ({:g}): the death of a beat alone makes runs too old"),
        ):
            given = policy.max_lateness if policy else None
            if given is not None and isinstance(limit, float) and given < limit:
                text = f"{given:g} is less than {what.format(limit)}. Set it to more."
                where = place_of("max_lateness", settings, name, keys.get("misfire"))
                warnings.append(as_line(where, text))
        if isinstance(threshold, float) and threshold >= (interval := _interval(app, keys)):
            where = place_of("threshold", settings, name, keys.get("misfire"))
            if where not in places:
                what = f"{threshold:g} is not less than the interval of {quote_name(name)} ({interval:g})"
                then = "after an outage that is no longer, all runs are sent at once"
                warnings.append(as_line(where, f"{what}: {then}. Set it to less than {interval:g}."))
            places.add(where)
        for key in ("args", "kwargs"):
            if keys.get(key):
                serializer = _serializer(app, keys["task"], options)
                try:
                    dumps(keys[key], serializer)
                except Exception:
                    # Its text is not shown: it can repeat the arguments.
                    what = f"cannot be sent with the serializer {quote(serializer)}."
                    warnings.append(as_line(f"{place}.{key}", f"{what} Use other types or another one."))
    unknown = unknown_policies(settings, beat_schedule.keys() | ENTRIES_OF_CELERY)
    return [*unknown, *map(spelling(app), warnings)]


def _interval(app: Celery, keys: Mapping[Any, Any]) -> float:
    """Return the seconds between two runs, infinity where they have no fixed distance."""
    try:
        schedule = maybe_schedule(keys["schedule"], bool(keys.get("relative")), app=app)
        return (trigger_for(schedule).interval or math.inf) / 1000
    except Exception:
        return math.inf


def _serializer(app: Celery, task: str, options: Mapping[Any, Any]) -> Any:
    own = getattr(app.tasks.get(task), "serializer", None)
    return options.get("serializer") or own or app.conf.task_serializer
