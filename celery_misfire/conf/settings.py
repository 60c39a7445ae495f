"""The configuration: ``app.conf`` becomes frozen :class:`Settings`, or one error that names every problem.

The only reader of the ``misfire_*`` settings. What is said about a wrong one is written here and, for the
Redis, in ``redis_url.py``, in the words of ``problems.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, Literal

from celery import Celery
from celery.schedules import BaseSchedule, maybe_schedule
from kombu.serialization import dumps

from celery_misfire.conf.problems import (
    Problems,
    as_bool,
    as_count,
    as_line,
    as_mapping,
    as_seconds,
    hidden,
    named,
    policy_value,
    shown,
    suggestion,
    unknown_key,
    unknown_word,
)
from celery_misfire.fire import LONGEST_NAME
from celery_misfire.misfire import FITTING, MisfireInstruction, MisfirePolicy, TriggerType
from celery_misfire.store.url import (
    check_option,
    checked_options,
    checked_url,
    has_master_name,
    not_redis,
    redis_of_celery,
    scheme_of,
)
from celery_misfire.triggers.kinds import trigger_for
from celery_misfire.triggers.zones import checked_timezone

__all__ = [
    "ENTRY_KEYS",
    "Settings",
    "policy_keys",
    "read_config",
    "read_settings",
    "spelling",
    "unknown_policies",
    "warnings_for",
]

#: What an entry of ``beat_schedule`` may hold: Celery's own keys and ours.
ENTRY_KEYS = ("task", "schedule", "args", "kwargs", "options", "relative", "last_run_at", "misfire")

_PREFIX = "misfire_"
_POLICY_DEFAULTS = {f.name: f.default for f in fields(MisfirePolicy)}


# -- what a value must be ----------------------------------------------------------------------------------


def _one_of(words: Collection[str], value: object) -> str:
    if isinstance(value, str) and value in words:
        return str(value)
    raise ValueError(unknown_word(value, words))


_threshold = partial(policy_value, "threshold")
_task_name = partial(policy_value, "on_missed")


def _addresses(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list of mail addresses, got {type(value).__name__}.")
    for address in value:
        if not isinstance(address, str) or not re.fullmatch(r"[^@\s,]+@[^@\s,]+", address):
            raise ValueError(f"{shown(address)} is no mail address.")
    return tuple(value)


def _lease_ttl(value: object) -> float:
    seconds = as_seconds(value)
    if seconds < 0.1:
        raise ValueError(f"expected at least 0.1 seconds, got {shown(value)}.")
    return seconds


def _history(value: object) -> int:
    lines = as_count(value)
    if lines > 10**15:
        raise ValueError(f"expected at most 10**15 lines, got {shown(value)}. Set it to 10000, for example.")
    return lines


def _timezone(value: object) -> Any:
    try:
        return checked_timezone(value or None)
    except ValueError as exc:
        raise ValueError(f"{str(exc).removeprefix('timezone: ').rstrip('.')}.".replace("?.", "?")) from None


def _namespace(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {shown(value)}.")
    if value == "__main__":
        raise ValueError("'__main__' is any script's name. Set misfire_namespace, for example 'shop'.")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        allowed = "1 to 64 of a-z, A-Z, 0-9, '_', '-', '.'"
        raise ValueError(f"{shown(value)} is no namespace. Set misfire_namespace to {allowed}.")
    return value


# -- instructions and policies -----------------------------------------------------------------------------

# Numbers of Quartz's MISFIRE_INSTRUCTION_* constants, which people bring along.
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


def _instruction(value: object, trigger_type: TriggerType | None = None) -> MisfireInstruction:
    """Return the instruction of this name, which has to fit the type (None: the type is not known)."""
    fitting = tuple(MisfireInstruction) if trigger_type is None else FITTING[trigger_type]
    allowed = "Allowed" if trigger_type is None else f"Allowed for {trigger_type}"
    if isinstance(value, str) and value in fitting:
        return MisfireInstruction(value)
    if isinstance(value, str) and value in tuple(MisfireInstruction):
        what = f"{shown(value)} does not fit a {trigger_type} schedule."
        raise ValueError(f"{what} {allowed}: {', '.join(fitting)}.")
    if isinstance(value, int) and not isinstance(value, bool):
        meanings = [
            f"'{name}' for {types}"
            for number, name, types in _QUARTZ_NUMBERS
            if number == value and (trigger_type is None or trigger_type in types or types == "every type")
        ]
        told = f"{allowed}: {', '.join(fitting)}"
        if meanings:
            told = f"Quartz number {value} is {', '.join(meanings)}"
        raise ValueError(f"expected a name, got {shown(value)}. {told}.")
    raise ValueError(unknown_word(value, fitting, allowed))


def _instructions(value: object) -> dict[TriggerType, MisfireInstruction]:
    problems, result = Problems(), {}
    for key, name in as_mapping(value).items():
        with problems.at(""):
            trigger_type = TriggerType(_one_of(tuple(TriggerType), key))
            with problems.at(f"[{shown(key)}]"):
                result[trigger_type] = _instruction(name, trigger_type)
    problems.raise_wrong()
    return result


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
            return {"instruction": _instruction(value, trigger_type)}
        case MisfirePolicy():
            given = {k: v for k, default in _POLICY_DEFAULTS.items() if (v := getattr(value, k)) != default}
        case Mapping():
            given = value
        case _:
            forms = "a name, a dict such as {'instruction': 'fire_once_now'}, a MisfirePolicy or False"
            raise ValueError(f"expected {forms}, got {shown(value)}.")
    problems, result = Problems(), {}
    for key, item in given.items():
        if key not in _POLICY_DEFAULTS:
            problems.add("", unknown_key(key, _POLICY_DEFAULTS))
            continue
        with problems.at(f".{key}"):
            is_name = key == "instruction"
            result[key] = _instruction(item, trigger_type) if is_name else policy_value(key, item)
    problems.raise_wrong()
    return result


# -- the settings ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """The settings ``misfire_*`` of an app, checked; each has its name without the prefix.

    Durations are seconds. Secrets do not show in the repr.

    :param redis_url: where the state lives: a redis://, rediss://, unix:// or sentinel:// URL.
    :param redis_options: keywords for redis-py; for sentinel also ``master_name``, ``sentinel_kwargs`` and
        ``ssl``.
    :param namespace: keeps the states of two apps apart on one Redis.
    :param instruction: misfire instruction of every entry without its own.
    :param instructions: the same for one type of trigger; goes before `instruction`.
    :param policies: per entry name, the keys that its policy sets; False = no misfire handling.
    :param threshold: how late a run may be before it is a misfire; ``"auto"``: see :class:`MisfirePolicy`.
    :param missed_results: ``"summary"``: one record per outage and entry; ``"each"``: one per run.
    :param on_missed: name of the task that is sent with each record of missed runs.
    :param mail_to: addresses that get mail about missed runs; for django-celery-beat only.
    :param keep_missed: how long records of missed runs stay in the database; None: until somebody deletes
        them. For django-celery-beat only.
    :param on_resume: ``"reschedule"``: a time of pause is no outage; ``"misfire"``: it is one, as in Quartz.
    :param send_task_failure: send Celery's ``task_failure``, too, for each record of missed runs.
    :param result_state: state of the result of a missed run, ``"MISSED"`` or ``"FAILURE"``.
    :param worker_guard: judge a run again that starts late in the worker.
    :param deduplicate: drop a second message of one occurrence before user code runs.
    :param check_rate: time between two looks for overdue entries.
    :param lease_ttl: how long the leading beat may be silent before another one takes over.
    :param lease_renew: time between two renewals of the lease; less than half of `lease_ttl`. Not set, it is
        a third of a `lease_ttl` below 30 seconds.
    :param standby_poll: time between two looks of a waiting beat at the lease. Not set, it is a sixth of a
        `lease_ttl` below 30 seconds.
    :param history: how many records the log keeps.
    """

    redis_url: str
    redis_options: Mapping[str, Any] = field(default_factory=dict)
    namespace: str
    instruction: MisfireInstruction = MisfireInstruction.SMART_POLICY
    instructions: Mapping[TriggerType, MisfireInstruction] = field(default_factory=dict)
    policies: Mapping[str, Any] = field(default_factory=dict)
    threshold: float | str = "auto"
    missed_results: str = "summary"
    on_missed: str | None = None
    mail_to: tuple[str, ...] = ()
    keep_missed: float | None = None
    on_resume: str = "reschedule"
    send_task_failure: bool = True
    result_state: str = "MISSED"
    worker_guard: bool = True
    deduplicate: bool = True
    check_rate: float = 60.0
    lease_ttl: float = 30.0
    lease_renew: float = 10.0
    standby_poll: float = 5.0
    history: int = 10_000

    def __repr__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["redis_options"] = dict.fromkeys(self.redis_options, "***")
        return f"Settings({', '.join(f'{name}={hidden(repr(value))}' for name, value in values.items())})"

    def policy_for(self, entry: str, misfire: object, trigger_type: TriggerType) -> MisfirePolicy | None:
        """Return the policy of an entry, None when misfire handling is off for it.

        Key by key, the first that sets it decides: `misfire`, ``misfire_policies[entry]``,
        ``misfire_instructions[trigger_type]``, the setting for all entries.

        :param misfire: what the entry itself says: an instruction or its name, a dict with any of a policy's
            keys, a :class:`MisfirePolicy` (a field with its default value sets nothing), False for off,
            True for on (even where misfire_policies switches it off), None for nothing.
        :raises MisfireConfigError: with every problem of the two, or of the entry's name.
        """
        problems = Problems()
        with problems.at("beat_schedule"):
            _check_name(entry)
        policy = _policy_of(problems, self, entry, misfire, trigger_type)
        problems.raise_config_error()
        return policy


_CHECKS: dict[str, Callable[[object], Any]] = {
    "redis_url": checked_url,
    "redis_options": checked_options,
    "namespace": _namespace,
    "instruction": _instruction,
    "instructions": _instructions,
    "policies": as_mapping,
    "threshold": _threshold,
    "missed_results": partial(_one_of, ("summary", "each")),
    "on_missed": _task_name,
    "mail_to": _addresses,
    "keep_missed": as_seconds,
    "on_resume": partial(_one_of, ("reschedule", "misfire")),
    "send_task_failure": as_bool,
    "result_state": partial(_one_of, ("MISSED", "FAILURE")),
    "worker_guard": as_bool,
    "deduplicate": as_bool,
    "check_rate": as_seconds,
    "lease_ttl": _lease_ttl,
    "lease_renew": as_seconds,
    "standby_poll": as_seconds,
    "history": _history,
}

# Entries that say the same share one object: a schedule can have 100,000 of them.
_shared_policy = lru_cache(maxsize=1024)(MisfirePolicy)


def _policy_of(
    problems: Problems, settings: Settings, entry: str, misfire: object, trigger_type: TriggerType | None
) -> MisfirePolicy | None:
    merged: dict[str, Any] = {
        "instruction": settings.instruction,
        "threshold": settings.threshold,
        "on_missed": settings.on_missed,
    }
    if trigger_type is not None and trigger_type in settings.instructions:
        merged["instruction"] = settings.instructions[trigger_type]
    off = False
    for place, value in _sources(settings, entry, misfire):
        with problems.at(place):
            keys = policy_keys(value, trigger_type)
            off = keys is False
            merged |= keys or {}
    return None if off else _shared_policy(**merged)


def _sources(settings: Settings, entry: str, misfire: object) -> list[tuple[str, Any]]:
    """Return the places that say something of this entry's policy, the last word last."""
    places = {
        f"misfire_policies[{named(entry)}]": settings.policies.get(entry),
        f"beat_schedule[{named(entry)}].misfire": misfire,
    }
    return [(place, value) for place, value in places.items() if value is not None]


def _place_of(key: str, settings: Settings, entry: str, misfire: object) -> str:
    """Return where a key of an entry's policy was set."""
    places = [
        place for place, value in _sources(settings, entry, misfire) if key in (policy_keys(value) or {})
    ]
    return f"{places[-1]}.{key}" if places else _PREFIX + key


# -- entries -----------------------------------------------------------------------------------------------


_ENTRY_TYPES: tuple[tuple[str, str, tuple[type, ...]], ...] = (
    ("task", "the name of a task", (str,)),
    ("args", "a list or a tuple", (list, tuple)),
    ("kwargs", "a dict", (Mapping,)),
    ("options", "a dict", (Mapping,)),
    ("last_run_at", "a datetime", (datetime,)),
)
# Only those that make a message impossible; Celery and its brokers have many more.
_OPTION_TYPES: tuple[tuple[str, str, tuple[type, ...]], ...] = (
    ("headers", "a dict", (Mapping,)),
    ("expires", "a number of seconds or a datetime", (int, float, datetime, str)),
    ("countdown", "a number of seconds", (int, float)),
)


def _check_name(name: object) -> str:
    what = f"entry name must be a non-empty string of at most {LONGEST_NAME} characters"
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise ValueError(f"{what}, got {shown(name)}.")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} that UTF-8 can write, got {shown(name)}.") from None
    return name


def _keys_of(entry: Any) -> Mapping[Any, Any]:
    if isinstance(entry, Mapping):
        return entry
    if hasattr(entry, "schedule"):
        return {key: getattr(entry, key, None) for key in ENTRY_KEYS}
    raise ValueError(f"expected a dict, got {type(entry).__name__}.")


def _check_types(
    problems: Problems, place: str, given: Mapping[Any, Any], expected: Iterable[tuple[str, str, Any]]
) -> None:
    for key, kind, types in expected:
        if given.get(key) is not None and not isinstance(given[key], types):
            problems.add(f"{place}.{key}", f"expected {kind}, got {type(given[key]).__name__}.")


def _misplaced(key: str) -> str:
    name = key.removeprefix(_PREFIX)
    return f"{key!r} belongs inside 'misfire'" + (
        f", as {name!r}" if name in _POLICY_DEFAULTS and name != key else ""
    )


def _check_entry(problems: Problems, place: str, entry: Mapping[Any, Any], known: Collection[str]) -> None:
    """Check all of an entry but its schedule and its policy."""
    for key in entry:
        if key in _POLICY_DEFAULTS or (isinstance(key, str) and key.startswith(_PREFIX)):
            problems.add(place, f"{_misplaced(key)}.")
        elif key not in known:
            problems.add(place, unknown_key(key, known))
    for key, example in (("task", "'shop.reports'"), ("schedule", "crontab(minute=0)")):
        if entry.get(key) is None or (isinstance(entry[key], str) and not entry[key].strip()):
            problems.add(place, f"{key!r} is missing. Add it, for example {key!r}: {example}.")
    _check_types(problems, place, entry, _ENTRY_TYPES)
    options = entry.get("options")
    options = options if isinstance(options, Mapping) else {}
    _check_types(problems, f"{place}.options", options, _OPTION_TYPES)
    if isinstance(expires := options.get("expires"), str):
        try:
            datetime.fromisoformat(expires)
        except ValueError:
            what = f"expected a number of seconds or a datetime, got {shown(expires)}."
            problems.add(f"{place}.options.expires", what)
    for key in options:
        if key == "misfire":
            fix = "With add_periodic_task use misfire_policies."
            problems.add(f"{place}.options", f"'misfire' belongs beside 'options', not inside. {fix}")
        elif key in _POLICY_DEFAULTS or (isinstance(key, str) and key.lower().startswith("misfire")):
            problems.add(f"{place}.options", f"{_misplaced(key)}, not in 'options'.")
        elif key == "task_id":
            problems.add(f"{place}.options", "'task_id' is set by celery_misfire. Remove it.")
        elif key == "headers" and isinstance(options[key], Mapping) and "misfire" in options[key]:
            problems.add(f"{place}.options.headers", "'misfire' is reserved. Give the header another name.")


# Of these, a schedule class has to have one.
_ARITHMETIC = ("remaining_estimate", "is_due")


def _trigger_type(app: Celery, name: str, schedule: Any, relative: bool) -> TriggerType:
    if isinstance(schedule, str):
        raise ValueError(f"got the string {shown(schedule)}. Use {_cron_call(schedule)}.")
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
        return trigger_for(maybe_schedule(schedule, relative, app=app), name).trigger_type
    except ValueError as exc:
        raise ValueError(f"{hidden(str(exc)).rstrip('.')}.") from None
    except Exception:
        # Its own code fails, perhaps only today: that is for the scheduler to quarantine.
        return TriggerType.CRON


def _cron_call(text: str) -> str:
    words = text.split() if re.fullmatch(r"@?[\w*/,#?()\- ]{,80}", text) else []
    # Celery's crontab has no H.
    hashed = any(word.startswith(("H", "h")) for word in words)
    if len(words) == 5 and not hashed:
        names = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
        given = (f"{name}={word!r}" for name, word in zip(names, words, strict=True) if word != "*")
        return f"crontab({', '.join(given)})"
    if len(words) in (5, 6, 7) or (len(words) == 1 and words[0].startswith("@")):
        return f"celery_misfire.schedules.cron({text!r})"
    return "a schedule such as crontab(minute=0), a number of seconds or a timedelta"


def _entry_policy(
    problems: Problems, app: Celery, settings: Settings, name: object, entry: object, known: Collection[str]
) -> MisfirePolicy | None:
    """Check all of an entry and return its policy."""
    try:
        name = _check_name(name)
    except ValueError as exc:
        problems.add("beat_schedule", str(exc))
        return None
    place, trigger_type = f"beat_schedule[{named(name)}]", None
    keys: Mapping[Any, Any] = {}
    with problems.at(place):
        keys = _keys_of(entry)
        _check_entry(problems, place, keys, known)
    if keys.get("schedule") is not None:
        with problems.at(f"{place}.schedule"):
            trigger_type = _trigger_type(app, name, keys["schedule"], bool(keys.get("relative")))
    return _policy_of(problems, settings, name, keys.get("misfire"), trigger_type)


# -- reading -----------------------------------------------------------------------------------------------


def read_settings(app: Celery) -> Settings:
    """Return the settings of an app.

    :raises MisfireConfigError: with every problem of the settings.
    """
    settings, problems = _read(app)
    problems.raise_config_error()
    return settings


def read_config(
    app: Celery, beat_schedule: Mapping[str, Any], entry_keys: Collection[str] = ENTRY_KEYS
) -> tuple[Settings, dict[str, MisfirePolicy | None]]:
    """Return the settings of an app and the policy of every entry, None for those that are switched off.

    An entry whose schedule fails in its own code counts as cron here.

    :param beat_schedule: entry name to dict (as in Celery's setting) or to ``ScheduleEntry``.
    :param entry_keys: the keys that such a dict may have.
    :raises MisfireConfigError: with every problem of the settings and of the entries.
    """
    settings, problems = _read(app)
    policies: dict[str, MisfirePolicy | None] = {}
    if isinstance(beat_schedule, Mapping):
        for name, entry in beat_schedule.items():
            policies[name] = _entry_policy(problems, app, settings, name, entry, entry_keys)
    else:
        problems.add("beat_schedule", f"expected a dict of entries, got {type(beat_schedule).__name__}.")
    problems.raise_config_error()
    return settings, policies


def _read(app: Celery) -> tuple[Settings, Problems]:
    """Return the settings, with the defaults in place of wrong ones, and the problems."""
    problems, values, wrong = Problems(spelling(app)), dict[str, Any](), set[str]()
    _check_names(problems, app)
    given = {name: app.conf.get(_PREFIX + name) for name in _CHECKS}
    if given["namespace"] is None:
        given["namespace"] = app.main
    with problems.at("timezone"):
        _timezone(app.conf.timezone)
    for name, check in _CHECKS.items():
        if given[name] is not None:
            wrong.add(name)
            with problems.at(_PREFIX + name):
                values[name] = check(given[name])
                wrong.remove(name)
    if given["redis_url"] is None:
        with problems.at(""):
            values["redis_url"], options = _celerys_redis(app)
            values["redis_options"] = options | values.get("redis_options", {})
    if given["namespace"] is None:
        what = "not set and the app has no name (Celery() without main)."
        problems.add("misfire_namespace", f"{what} Set misfire_namespace, for example 'shop'.")
    policies: dict[str, Any] = {}
    for entry, policy in values.get("policies", {}).items():
        with problems.at(f"misfire_policies[{named(entry)}]"):
            policies[entry] = policy_keys(policy)
    ttl = values.get("lease_ttl", Settings.lease_ttl)
    in_step = {
        "lease_renew": min(Settings.lease_renew, ttl / 3),
        "standby_poll": min(Settings.standby_poll, ttl / 6),
    }
    settings = Settings(**{"redis_url": "", "namespace": ""} | in_step | values | {"policies": policies})
    _check_together(problems, settings, wrong)
    return settings, problems


_SETTINGS_OF_CELERY = (
    *("beat_schedule", "beat_cron_starting_deadline", "broker_url", "result_backend", "timezone"),
    *("broker_use_ssl", "redis_backend_use_ssl"),
    *("broker_transport_options", "result_backend_transport_options"),
)


def spelling(app: Celery) -> Callable[[str], str]:
    """Return what brings names of settings in a text into the form that they have in the configuration."""
    app.conf.finalize()
    prefix = app.conf.prefix or ""
    in_case = str.upper if prefix.isupper() else str.lower
    ours = "|".join(_PREFIX + name for name in _CHECKS)
    # Celery's are places, and so begin the line.
    names = re.compile(
        rf"\b(?:broker_url|{ours})\b|(?<=celery_misfire: )(?:{'|'.join(_SETTINGS_OF_CELERY)})\b"
    )
    return lambda text: names.sub(lambda found: in_case(prefix + found[0]), text) if prefix else text


def _celerys_redis(app: Celery) -> tuple[str, dict[str, Any]]:
    """Return URL and options of the Redis that Celery itself uses: as broker, else for the results."""
    for names in (
        ("broker_url", "broker_use_ssl", "broker_transport_options"),
        ("result_backend", "redis_backend_use_ssl", "result_backend_transport_options"),
    ):
        found = redis_of_celery(partial(getattr, app.conf), *names)
        if found is not None:
            return found
    raise not_redis(app.conf.broker_url)


def _check_names(problems: Problems, app: Celery) -> None:
    """Refuse settings that nobody reads: what a slip of the pen is in Celery."""
    spelled, conf = spelling(app), app.conf
    names = [_PREFIX + name for name in _CHECKS]
    # Celery looks for a name with its namespace, and also without.
    read = {*names, *map(spelled, names)}
    # What stands before our name, as in Celery's beat_schedule or in another app's habit.
    before = f"{re.escape(conf.prefix)}(beat_)?" if conf.prefix else "(celery_)?(beat_)?"
    alike = re.compile(f"{before}(?P<name>misfire(_.*)?)", re.IGNORECASE | re.DOTALL)
    for key in conf:
        if not isinstance(key, str) or key in read:
            continue
        found = alike.fullmatch(key)
        name = found["name"].lower() if found else key.lower()
        # In a module of Django's, what does not have the namespace may be somebody else's.
        if not (found or key.startswith(_PREFIX) or (key.isupper() and name in names)):
            continue
        # A module of settings may also hold functions and modules.
        if callable(conf.get(key)) or isinstance(conf.get(key), ModuleType):
            continue
        if name in names:
            problems.add(key, f"is not read under this name. Write {name!r}.")
        elif name == "misfire":
            fix = "Set misfire_instruction for all entries, misfire_policies for single ones."
            problems.add(key, f"unknown setting. {fix}")
        else:
            problems.add(key, unknown_key(name, names, "unknown setting"))


def _check_together(problems: Problems, settings: Settings, wrong: Collection[str]) -> None:
    """Check the settings that depend on each other, but for those that are already known to be wrong."""
    s, ttl, scheme = settings, settings.lease_ttl, scheme_of(settings.redis_url)

    def rule(names: str, place: str, broken: bool, text: str) -> None:
        if broken and not set(names.split()) & set(wrong):
            problems.add(place, text)

    def smaller(value: float, than: str, good: float) -> str:
        fix = f"Set it to {good:.3g}, for example."
        return f"{value:g} must be less than {than}misfire_lease_ttl ({ttl:g}). {fix}"

    renew, poll = s.lease_renew, s.standby_poll
    too_slow = smaller(renew, "half of ", ttl / 3)
    rule("lease_renew lease_ttl", "misfire_lease_renew", renew * 2 >= ttl, too_slow)
    rule("standby_poll lease_ttl", "misfire_standby_poll", poll >= ttl, smaller(poll, "", ttl / 6))
    for option in ("socket_timeout", "socket_connect_timeout"):
        call, place = s.redis_options.get(option, 0), f"misfire_redis_options[{option!r}]"
        rule("redis_options lease_ttl", place, call >= ttl, smaller(call, "", ttl / 6))
    text = "sentinel:// needs a master name. Set misfire_redis_options = {'master_name': 'mymaster'}."
    named = has_master_name(s.redis_url, s.redis_options)
    rule("redis_url redis_options", "misfire_redis_url", not named, text)
    for kind in TriggerType:
        broken = kind not in s.instructions and s.instruction not in FITTING[kind]
        fix = f"Set misfire_instructions = {{{str(kind)!r}: ...}} to one of {', '.join(FITTING[kind])}."
        text = f"{str(s.instruction)!r} does not fit a {kind} schedule. {fix}"
        rule("instruction instructions", "misfire_instruction", broken, text)
    for key in s.redis_options:
        with problems.at("misfire_redis_options"):
            check_option(key, scheme or "sentinel")


# -- warnings ----------------------------------------------------------------------------------------------


#: What Celery adds to the schedule by itself, where results do not expire by themselves.
ENTRIES_OF_CELERY = {"celery.backend_cleanup"}


def unknown_policies(settings: Settings, names: Collection[str]) -> list[str]:
    """Return a warning for every name in ``misfire_policies`` that is no entry, at least not yet."""
    return [
        as_line(f"misfire_policies[{named(name)}]", f"no entry has this name.{suggestion(name, names)}")
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
        warnings.append(as_line("beat_cron_starting_deadline", f"{shown(deadline)} is not used here. {fix}"))
    for name, entry in beat_schedule.items():
        keys, place = _keys_of(entry), f"beat_schedule[{named(name)}]"
        options = keys.get("options") or {}
        policy = _policy_of(Problems(), settings, name, keys.get("misfire"), None)
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
                where = _place_of("max_lateness", settings, name, keys.get("misfire"))
                warnings.append(as_line(where, text))
        if isinstance(threshold, float) and threshold >= (interval := _interval(app, keys)):
            where = _place_of("threshold", settings, name, keys.get("misfire"))
            if where not in places:
                what = f"{threshold:g} is not less than the interval of {named(name)} ({interval:g})"
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
                    what = f"cannot be sent with the serializer {shown(serializer)}."
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
