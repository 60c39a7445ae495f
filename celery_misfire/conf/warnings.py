"""What the configuration may say but hardly means: one line each for the log at the start of beat."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import NoneType
from typing import Any

from celery import Celery
from kombu.serialization import dumps

from celery_misfire.conf.celery_redis import stays_with_the_first
from celery_misfire.conf.entries import ConfiguredEntry, place_of
from celery_misfire.conf.names import plain_names, without_arguments
from celery_misfire.conf.problems import as_line, spelling
from celery_misfire.conf.settings import Settings
from celery_misfire.misfire import MisfirePolicy, Trigger
from celery_misfire.store.url import address
from celery_misfire.texts import quote, quote_name, suggestion

#: What Celery adds to the schedule by itself, where results do not expire by themselves.
ENTRIES_OF_CELERY = {"celery.backend_cleanup"}

_PLAIN = frozenset({str, int, float, bool, NoneType})

#: Places, relative to the entry or to its policy, and texts.
Warnings = Iterator[tuple[str, str]]


def unknown_policies(app: Celery, settings: Settings, names: Collection[str]) -> list[str]:
    """Return a warning for every name in ``misfire_policies`` that is no entry, at least not yet."""
    if not settings.policies:
        return []
    setting, plain = spelling(app)("misfire_policies"), plain_names(app.conf.beat_schedule)
    # Names that Celery made of arguments are not suggested.
    shown = {plain.get(name, name) for name in names} | {*plain.values()}
    unknown = [n for n in settings.policies if n not in names and n not in plain and n not in shown]
    return [
        as_line(f"{setting}[{quote_name(name)}]", f"no entry has this name.{suggestion(name, shown)}")
        for name in map(without_arguments, unknown)
    ]


def warnings_for(app: Celery, settings: Settings, entries: Mapping[str, ConfiguredEntry]) -> list[str]:
    """Return what is allowed but hardly meant, one line each.

    :param entries: as :func:`~celery_misfire.conf.settings.read_config` returns them.
    """
    spell = spelling(app)
    lines = unknown_policies(app, settings, entries.keys() | ENTRIES_OF_CELERY)
    deadline = app.conf.get("beat_cron_starting_deadline")
    if deadline is not None:
        what = f"{quote(deadline)} is not used here. Use max_lateness in a misfire policy."
        lines.append(as_line(spell("beat_cron_starting_deadline"), what))
    if app.conf.get("misfire_redis_url") is None and stays_with_the_first(app):
        place = f"the state stays at the first Redis of the list, {address(settings.redis_url)}"
        what = f"{place}: it does not follow Celery to the next one, and without it beat sends nothing."
        fix = f"Set {spell('misfire_redis_url')} to a Redis that is always there, or use sentinel://."
        lines.append(as_line(spell("broker_url"), f"{what} {fix}"))
    cannot_send = _unsendable(app)
    told = set[str]()
    for name, entry in entries.items():
        options = entry.keys.get("options") or {}
        found = [*_about_options(options, entry.policy), *_about_arguments(cannot_send, entry.keys, options)]
        if found:
            place = f"{spell('beat_schedule')}[{quote_name(name)}]"
            lines += [as_line(place + below, text) for below, text in found]
        for key, text in _about_policy(settings, name, entry, spell):
            where = place_of(spell, key, settings, name, entry.keys.get("misfire"))
            # A threshold that is set for many entries is mentioned once.
            if key != "threshold" or where not in told:
                lines.append(as_line(where, text))
            told.add(where)
    return lines


def _about_options(options: Mapping[Any, Any], policy: MisfirePolicy | None) -> Warnings:
    if not options:
        return
    for key in ("eta", "countdown"):
        if options.get(key) is not None:
            what = f"{key!r} delays the run after it was sent; misfire handling does not see that delay."
            yield ".options", f"{what} Use the schedule for that."
    expires, threshold = options.get("expires"), policy.threshold if policy else None
    if isinstance(expires, int | float) and isinstance(threshold, float) and expires < threshold:
        what = f"a run expires after {expires:g} s, before it is a misfire (threshold {threshold:g} s)."
        yield ".options", f"{what} Give 'expires' more time."


def _about_arguments(
    cannot_send: Callable[[str, Any, object], str], keys: Mapping[Any, Any], options: Mapping[Any, Any]
) -> Warnings:
    for key in ("args", "kwargs"):
        if (value := keys.get(key)) and (serializer := cannot_send(keys["task"], options, value)):
            # The error is not shown: it can repeat the arguments.
            what = f"cannot be sent with the serializer {serializer}."
            yield f".{key}", f"{what} Use other types or another one."


def _unsendable(app: Celery) -> Callable[[str, Any, object], str]:
    """Return a function that names the serializer which cannot write the arguments of a task, '' for none."""
    tasks, default = app.tasks, app.conf.task_serializer

    def serializer_that_fails(task: str, options: Mapping[Any, Any], arguments: object) -> str:
        own = getattr(tasks.get(task), "serializer", None)
        serializer = options.get("serializer") or own or default
        if serializer == "json" and _is_plain(arguments):
            return ""
        try:
            dumps(_evaluated(arguments), serializer)
        except Exception:
            return quote(serializer)
        return ""

    return serializer_that_fails


def _values(arguments: Any) -> Iterable[object]:
    return arguments.values() if isinstance(arguments, Mapping) else arguments


def _is_plain(arguments: object) -> bool:
    """Return True for arguments that any JSON encoder takes: most are, and a try costs more than a look."""
    return _PLAIN.issuperset(map(type, _values(arguments))) and (
        not isinstance(arguments, Mapping) or all(type(key) is str for key in arguments)
    )


def _evaluated(arguments: Any) -> Any:
    """Return the arguments without those that beat calls for their value when it sends the task."""
    if not any(map(_is_called_by_beat, _values(arguments))):
        return arguments
    if isinstance(arguments, Mapping):
        return {key: value for key, value in arguments.items() if not _is_called_by_beat(value)}
    return [value for value in arguments if not _is_called_by_beat(value)]


def evaluated(arguments: Any) -> Any:
    """Return the arguments as they are sent: beat calls some for their value."""
    if isinstance(arguments, Mapping):
        return {key: value() if _is_called_by_beat(value) else value for key, value in arguments.items()}
    return [value() if _is_called_by_beat(value) else value for value in arguments]


def _is_called_by_beat(value: object) -> bool:
    # Known by its name: processes other than beat do not load celery.beat.
    return any(
        (cls.__module__, cls.__qualname__) == ("celery.beat", "BeatLazyFunc") for cls in type(value).__mro__
    )


def _about_policy(
    settings: Settings, name: str, entry: ConfiguredEntry, spell: Callable[[str], str]
) -> Warnings:
    policy, ttl = entry.policy, settings.lease_ttl
    if policy is None:
        return
    threshold, lateness = policy.threshold, policy.max_lateness
    if lateness is not None:
        if isinstance(threshold, float) and lateness < threshold:
            what = f"is less than threshold ({threshold:g}): no late run is ever made up for"
            yield "max_lateness", f"{lateness:g} {what}. Set it to more."
        if lateness < ttl:
            what = f"is less than {spell('misfire_lease_ttl')} ({ttl:g})"
            then = "the death of a beat alone makes runs too old"
            yield "max_lateness", f"{lateness:g} {what}: {then}. Set it to more."
    if isinstance(threshold, float) and threshold >= (interval := _interval(entry.trigger)):
        what = f"{threshold:g} is not less than the interval of {quote_name(name)} ({interval:g})"
        then = "after an outage that is no longer, all runs are sent at once"
        yield "threshold", f"{what}: {then}. Set it to less than {interval:g}."


def _interval(trigger: Trigger | None) -> float:
    """Return the seconds between two runs, infinity where they have no fixed distance."""
    try:
        return (getattr(trigger, "interval", None) or math.inf) / 1000
    except Exception:
        return math.inf
