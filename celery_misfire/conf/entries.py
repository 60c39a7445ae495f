"""Checks the entries of ``beat_schedule`` and their misfire policies."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from celery import Celery
from celery.schedules import BaseSchedule, maybe_schedule

from celery_misfire.conf.problems import Problems, as_seconds, policy_value
from celery_misfire.fire import LONGEST_NAME
from celery_misfire.misfire import FITTING, MisfireInstruction, MisfirePolicy, Trigger, TriggerType
from celery_misfire.texts import hide_secrets, quote, quote_name, unknown_key, unknown_word
from celery_misfire.triggers.kinds import trigger_for

if TYPE_CHECKING:
    from celery_misfire.conf.settings import Settings

#: What an entry of ``beat_schedule`` may hold: Celery's own keys and ours.
ENTRY_KEYS = ("task", "schedule", "args", "kwargs", "options", "relative", "last_run_at", "misfire")

_PREFIX = "misfire_"
_POLICY_DEFAULTS = {f.name: f.default for f in fields(MisfirePolicy)}


# -- instructions and policies -----------------------------------------------------------------------------

# The numbers of Quartz's MISFIRE_INSTRUCTION_* constants: people who come from Quartz write them.
_REPEATED = "once, fixed and endless"
_QUARTZ_NUMBERS = (
    (-1, MisfireInstruction.IGNORE_MISFIRE_POLICY, "every type"),
    (0, MisfireInstruction.SMART_POLICY, "every type"),
    (1, MisfireInstruction.FIRE_ONCE_NOW, "cron"),
    (2, MisfireInstruction.DO_NOTHING, "cron"),
    (1, MisfireInstruction.FIRE_NOW, _REPEATED),
    (2, MisfireInstruction.RESCHEDULE_NOW_WITH_EXISTING_REPEAT_COUNT, _REPEATED),
    (3, MisfireInstruction.RESCHEDULE_NOW_WITH_REMAINING_REPEAT_COUNT, _REPEATED),
    (4, MisfireInstruction.RESCHEDULE_NEXT_WITH_REMAINING_COUNT, _REPEATED),
    (5, MisfireInstruction.RESCHEDULE_NEXT_WITH_EXISTING_COUNT, _REPEATED),
)


def as_instruction(value: object, trigger_type: TriggerType | None = None) -> MisfireInstruction:
    """Return the instruction of this name. It has to fit the trigger type, unless that is None: not known."""
    fitting = tuple(MisfireInstruction) if trigger_type is None else FITTING[trigger_type]
    allowed = "Allowed" if trigger_type is None else f"Allowed for {trigger_type}"
    if isinstance(value, str) and value in fitting:
        return MisfireInstruction(value)
    if isinstance(value, str) and value in tuple(MisfireInstruction):
        what = f"{quote(value)} does not fit a {trigger_type} schedule."
        raise ValueError(f"{what} {allowed}: {', '.join(fitting)}.")
    if isinstance(value, int) and not isinstance(value, bool):
        meanings = [
            f"'{name}' for {types}"
            for number, name, types in _QUARTZ_NUMBERS
            if number == value and (trigger_type is None or trigger_type in types or types == "every type")
        ]
        fix = f"{allowed}: {', '.join(fitting)}"
        if meanings:
            fix = f"Quartz number {value} is {', '.join(meanings)}"
        raise ValueError(f"expected a name, got {quote(value)}. {fix}.")
    raise ValueError(unknown_word(value, fitting, allowed))


def policy_keys(
    value: object, trigger_type: TriggerType | None = None
) -> dict[str, Any] | Literal[False] | None:
    """Return the keys that a policy in any of its forms sets; False = off, None = it says nothing."""
    given: Mapping[Any, Any]
    match value:
        case None | False:
            return value
        case True:
            return {}
        case str() | int():
            return {"instruction": as_instruction(value, trigger_type)}
        case MisfirePolicy():
            given = {k: v for k, default in _POLICY_DEFAULTS.items() if (v := getattr(value, k)) != default}
        case Mapping():
            given = value
        case _:
            forms = "a name, a dict such as {'instruction': 'fire_once_now'}, a MisfirePolicy or False"
            raise ValueError(f"expected {forms}, got {quote(value)}.")
    problems, result = Problems(), {}
    for key, item in given.items():
        if key not in _POLICY_DEFAULTS:
            problems.add("", unknown_key(key, _POLICY_DEFAULTS))
            continue
        with problems.at(f".{key}"):
            is_name = key == "instruction"
            result[key] = as_instruction(item, trigger_type) if is_name else policy_value(key, item)
    problems.raise_invalid()
    return result


# Equal policies share one object: a schedule can have 100,000 entries.
_shared_policy = lru_cache(maxsize=1024)(MisfirePolicy)


def policy_of(
    problems: Problems, settings: Settings, entry: str, misfire: object, trigger_type: TriggerType | None
) -> MisfirePolicy | None:
    """Return the policy of an entry, None when misfire handling is off for it: ``Settings.policy_for``."""
    merged: dict[str, Any] = {
        "instruction": settings.instruction,
        "threshold": settings.threshold,
        "on_missed": settings.on_missed,
    }
    if trigger_type is not None and trigger_type in settings.instructions:
        merged["instruction"] = settings.instructions[trigger_type]
    off = False
    for setting, value in _sources(settings, entry, misfire):
        try:
            keys = policy_keys(value, trigger_type)
        except Exception as exc:
            problems.add_error(_place(problems.spell, setting, entry), exc)
        else:
            off = keys is False
            merged |= keys or {}
    return None if off else _shared_policy(**merged)


def _sources(settings: Settings, entry: str, misfire: object) -> list[tuple[str, Any]]:
    """Return the settings with keys of this entry's policy; a later one overrides an earlier one."""
    sources = (("misfire_policies", settings.policies.get(entry)), ("beat_schedule", misfire))
    return [source for source in sources if source[1] is not None]


def _place(spell: Callable[[str], str], setting: str, entry: str) -> str:
    return f"{spell(setting)}[{quote_name(entry)}]" + (".misfire" if setting == "beat_schedule" else "")


def place_of(spell: Callable[[str], str], key: str, settings: Settings, entry: str, misfire: object) -> str:
    """Return where a key of an entry's policy was set."""
    found = [s for s, value in _sources(settings, entry, misfire) if key in (policy_keys(value) or {})]
    return f"{_place(spell, found[-1], entry)}.{key}" if found else spell(_PREFIX + key)


# -- entries -----------------------------------------------------------------------------------------------


_ENTRY_TYPES: tuple[tuple[str, str, tuple[type, ...]], ...] = (
    ("task", "the name of a task", (str,)),
    ("args", "a list or a tuple", (list, tuple)),
    ("kwargs", "a dict", (Mapping,)),
    ("options", "a dict", (Mapping,)),
    ("last_run_at", "a datetime", (datetime,)),
)
# Celery and its brokers have many more options. A wrong type of these makes the message impossible.
_OPTION_TYPES: tuple[tuple[str, str, tuple[type, ...]], ...] = (
    ("headers", "a dict", (Mapping,)),
    ("expires", "a number of seconds or a datetime", (int, float, datetime, str)),
    ("countdown", "a number of seconds", (int, float)),
)


#: The built-in tasks that fail in every worker, and what they are made of in ``add_periodic_task``.
_NO_TASKS = {"celery.chain": "a chain", "celery.group": "a group"}


class ConfiguredEntry(NamedTuple):
    """An entry of ``beat_schedule``.

    :param own_name: its name in ``beat_schedule``, see :mod:`celery_misfire.conf.names`.
    :param trigger: None when the schedule cannot be asked, as its own code fails.
    :param policy: None when misfire handling is off.
    """

    own_name: str
    keys: Mapping[Any, Any]
    trigger: Trigger | None
    policy: MisfirePolicy | None


def check_name(name: object) -> str:
    """Return the name of an entry. :raises ValueError: when it cannot be one."""
    what = f"entry name must be a non-empty string of at most {LONGEST_NAME} characters"
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise ValueError(f"{what}, got {quote(name)}.")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} that UTF-8 can write, got {quote(name)}.") from None
    return name


def keys_of(entry: Any) -> Mapping[Any, Any]:
    """Return the keys of an entry, which is a dict or a ``ScheduleEntry``."""
    if isinstance(entry, Mapping):
        return entry
    if hasattr(entry, "schedule"):
        return {key: getattr(entry, key, None) for key in ENTRY_KEYS}
    raise ValueError(f"expected a dict, got {type(entry).__name__}.")


def _check_types(
    problems: Problems, place: str, given: Mapping[Any, Any], expected: Iterable[tuple[str, str, Any]]
) -> None:
    for key, kind, types in expected:
        if (value := given.get(key)) is not None and not isinstance(value, types):
            problems.add(f"{place}.{key}", f"expected {kind}, got {type(value).__name__}.")


def _misplaced(key: str) -> str:
    name = key.removeprefix(_PREFIX)
    return f"{key!r} belongs inside 'misfire'" + (
        f", as {name!r}" if name in _POLICY_DEFAULTS and name != key else ""
    )


def _check_entry(problems: Problems, entry: Mapping[Any, Any], known: Collection[str]) -> None:
    """Check an entry, except for its schedule and its policy; places are relative to the entry."""
    for key in entry:
        if key in known:
            continue
        if key in _POLICY_DEFAULTS or (isinstance(key, str) and key.startswith(_PREFIX)):
            problems.add("", f"{_misplaced(key)}.")
        else:
            problems.add("", unknown_key(key, known))
    for key, example in (("task", "'shop.reports'"), ("schedule", "crontab(minute=0)")):
        value = entry.get(key)
        if value is None or (isinstance(value, str) and not value.strip()):
            problems.add("", f"{key!r} is missing. Add it, for example {key!r}: {example}.")
    _check_types(problems, "", entry, _ENTRY_TYPES)
    if canvas := _NO_TASKS.get(entry["task"] if isinstance(entry.get("task"), str) else ""):
        what = f"beat sends single tasks, and {canvas} is none: workers fail on it."
        problems.add(".task", f"{what} Write a task that sends it, and schedule that task.")
    if options := entry.get("options"):
        _check_options(problems, options if isinstance(options, Mapping) else {})


def _check_options(problems: Problems, options: Mapping[Any, Any]) -> None:
    _check_types(problems, ".options", options, _OPTION_TYPES)
    if isinstance(expires := options.get("expires"), str):
        try:
            datetime.fromisoformat(expires)
        except ValueError:
            what = f"expected a number of seconds or a datetime, got {quote(expires)}."
            problems.add(".options.expires", what)
    for key in options:
        if key == "misfire":
            fix = f"With add_periodic_task use {problems.spell('misfire_policies')}."
            problems.add(".options", f"'misfire' belongs beside 'options', not inside. {fix}")
        elif key in _POLICY_DEFAULTS or (isinstance(key, str) and key.lower().startswith("misfire")):
            problems.add(".options", f"{_misplaced(key)}, not in 'options'.")
        elif key == "task_id":
            problems.add(".options", "'task_id' is set by celery_misfire. Remove it.")
        elif key == "headers" and isinstance(options[key], Mapping) and "misfire" in options[key]:
            problems.add(".options.headers", "'misfire' is reserved. Give the header another name.")


# A schedule class needs one of these methods.
_ARITHMETIC = ("remaining_estimate", "is_due")


def _trigger(app: Celery, name: str, schedule: Any, relative: bool) -> tuple[Trigger | None, TriggerType]:
    if isinstance(schedule, str):
        raise ValueError(f"got the string {quote(schedule)}. Use {_cron_call(schedule)}.")
    if isinstance(schedule, int | float | timedelta):
        schedule = timedelta(seconds=as_seconds(schedule))
    elif isinstance(schedule, type) or not hasattr(schedule, "is_due"):
        kinds = "a schedule such as crontab(minute=0), a number of seconds or a timedelta"
        raise ValueError(f"expected {kinds}, got {type(schedule).__name__}.")
    elif not isinstance(schedule, BaseSchedule):
        fix = "Make it a subclass of celery.schedules.BaseSchedule."
        raise ValueError(f"{type(schedule).__name__} is no schedule of Celery's. {fix}")
    elif all(getattr(type(schedule), name) is getattr(BaseSchedule, name) for name in _ARITHMETIC):
        what = f"{type(schedule).__name__} has no {'() and no '.join(_ARITHMETIC)}() of its own."
        raise ValueError(f"{what} Write one of them.")
    try:
        # An object of Celery's for an interval is needed only to know its time zone.
        is_plain = isinstance(schedule, timedelta) and not relative
        trigger = trigger_for(schedule if is_plain else maybe_schedule(schedule, relative, app=app), name)
        return trigger, trigger.trigger_type
    except ValueError as exc:
        raise ValueError(f"{hide_secrets(str(exc)).rstrip('.')}.") from None
    except Exception:
        # The schedule's own code fails, perhaps only today. The scheduler quarantines such an entry.
        return None, TriggerType.CRON


def _cron_call(text: str) -> str:
    words = text.split() if re.fullmatch(r"@?[\w*/,#?()\- ]{,80}", text) else []
    # Celery's crontab has no H.
    is_hashed = any(word.startswith(("H", "h")) for word in words)
    if len(words) == 5 and not is_hashed:
        names = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
        given = (f"{name}={word!r}" for name, word in zip(names, words, strict=True) if word != "*")
        return f"crontab({', '.join(given)})"
    if len(words) in (5, 6, 7) or (len(words) == 1 and words[0].startswith("@")):
        return f"celery_misfire.schedules.cron({text!r})"
    return "a schedule such as crontab(minute=0), a number of seconds or a timedelta"


def checked_entry(
    problems: Problems,
    app: Celery,
    settings: Settings,
    own_name: Any,
    name: object,
    entry: object,
    known: Collection[str],
) -> ConfiguredEntry | None:
    """Check all of an entry and return it; None when its name is no name.

    :param name: what it is called in messages, and where its policy is looked up.
    """
    try:
        name = check_name(name)
    except ValueError as exc:
        problems.add(problems.spell("beat_schedule"), str(exc))
        return None
    own, trigger, trigger_type = Problems(problems.spell), None, None
    keys: Mapping[Any, Any] = {}
    # Not own.at(): there may be very many entries, and a generator for each costs more than the check.
    try:
        keys = keys_of(entry)
        _check_entry(own, keys, known)
    except Exception as exc:
        own.add_error("", exc)
    try:
        if (schedule := keys.get("schedule")) is not None:
            trigger, trigger_type = _trigger(app, name, schedule, bool(keys.get("relative")))
    except Exception as exc:
        own.add_error(".schedule", exc)
    if own.found:
        place = f"{problems.spell('beat_schedule')}[{quote_name(name)}]"
        problems.found += [(place + below, text) for below, text in own.found]
    policy = policy_of(problems, settings, name, keys.get("misfire"), trigger_type)
    return ConfiguredEntry(own_name, keys, trigger, policy)
