"""The configuration: ``app.conf`` becomes frozen :class:`Settings`, or one error that names every problem.

The only reader of the ``misfire_*`` settings, and the home of every message about a wrong one. A message
has the place, the value and what to do; never a URL, a password or a task argument.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qs, parse_qsl, urlencode, urlsplit

from celery import Celery
from celery.schedules import maybe_schedule

from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.fire_times import trigger_for
from celery_misfire.misfire import FITTING, MisfireInstruction, MisfirePolicy, TriggerType

__all__ = ["ENTRY_KEYS", "Settings", "read_config", "read_settings", "unknown_policies", "warnings_for"]

#: What an entry of ``beat_schedule`` may hold: Celery's own keys and ours.
ENTRY_KEYS = ("task", "schedule", "args", "kwargs", "options", "relative", "misfire")

_PREFIX = "misfire_"
_POLICY_DEFAULTS = {f.name: f.default for f in fields(MisfirePolicy)}


# -- problems ----------------------------------------------------------------------------------------------


class _Wrong(ValueError):
    """One or more problems, each with its place below the one that is being checked."""

    def __init__(self, found: Iterable[tuple[str, str]]) -> None:
        self.found = tuple(found)


class _Problems:
    """Collects what is wrong, so that all of it is reported together."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Take the ValueError of the block, if there is one, as a problem of `place`."""
        try:
            yield
        except _Wrong as exc:
            self.found += [(place + below, text) for below, text in exc.found]
        except ValueError as exc:
            self.add(place, str(exc))

    def add(self, place: str, text: str) -> None:
        self.found.append((place, text))

    def raise_wrong(self) -> None:
        if self.found:
            raise _Wrong(self.found)

    def raise_config_error(self) -> None:
        # Not while another error is handled: its text, kept as the context, could hold a password.
        if self.found:
            raise MisfireConfigError(_line(place, text) for place, text in self.found)


# What follows the name of a secret in the repr of a dict or of a call, or in the query of a URL.
_SECRET = re.compile(
    r"((?i:pass|secret|token|api_?key|credential)\w*['\"]?\s*[:=]\s*)"
    r"(b?'(?:\\.|[^'\\])*'|b?\"(?:\\.|[^\"\\])*\"|[^\s,)\]}]+)"
)


def _hidden(text: str) -> str:
    return _SECRET.sub(r"\1***", re.sub(r"://.*@", "://***@", text))


def _shown(value: object) -> str:
    """Return the value as it may be shown: its secrets hidden, cut at 80 characters."""
    try:
        # A member of an enumeration of names is shown as one would write it.
        text = _hidden(repr(str(value) if isinstance(value, str) else value))
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _line(place: str, text: str) -> str:
    line = f"celery_misfire: {place}: {text}"
    return " ".join(re.sub(r"://\S*@", "://***@", line).splitlines())


def _suggestion(word: object, words: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` when one of the words is close, else nothing."""
    if not isinstance(word, str):
        return ""
    plain = re.sub(r"\W+", "_", word.lower()).removeprefix("misfire_instruction_")
    known = {str(candidate).lower(): str(candidate) for candidate in words}
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.7)
    near = near or [candidate for candidate in known if plain and candidate.startswith(plain)]
    return f" Did you mean {known[near[0]]!r}?" if near else ""


def _unknown_word(value: object, words: Collection[str], allowed: str = "Allowed") -> str:
    return f"{_shown(value)} is unknown.{_suggestion(value, words)} {allowed}: {', '.join(words)}."


def _unknown_key(key: object, words: Collection[str], what: str = "") -> str:
    fix = _suggestion(key, words) or f" Allowed: {', '.join(words)}."
    return f"{what or f'unknown key {_shown(key)}'}.{fix}"


# -- what a value must be ----------------------------------------------------------------------------------


def _one_of(words: Collection[str], value: object) -> str:
    if isinstance(value, str) and value in words:
        return str(value)
    raise ValueError(_unknown_word(value, words))


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected True or False, got {_shown(value)}.")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"expected a whole number >= 0, got {_shown(value)}.")
    return value


def _mapping(value: object) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a dict, got {type(value).__name__}.")
    return dict(value)


def _policy_value(key: str, value: object) -> Any:
    """Return a value as a policy takes it: the rules for seconds, limits and task names are written there."""
    try:
        return getattr(MisfirePolicy(**{key: value}), key)  # type: ignore[arg-type]  # it checks
    except ValueError as exc:
        raise ValueError(str(exc).removeprefix(f"{key}: ").replace(repr(value), _shown(value))) from None


_threshold = partial(_policy_value, "threshold")
_task_name = partial(_policy_value, "on_missed")


def _seconds(value: object) -> float:
    if value is None:
        raise ValueError("expected a number of seconds > 0, got None.")
    return float(_policy_value("max_lateness", value))


def _namespace(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {_shown(value)}.")
    if value == "__main__":
        raise ValueError("'__main__' is any script's name. Set misfire_namespace, for example 'shop'.")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        allowed = "1 to 64 of a-z, A-Z, 0-9, '_', '-', '.'"
        raise ValueError(f"{_shown(value)} is no namespace. Set misfire_namespace to {allowed}.")
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
        what = f"{_shown(value)} does not fit a {trigger_type} schedule."
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
        raise ValueError(f"expected a name, got {_shown(value)}. {told}.")
    raise ValueError(_unknown_word(value, fitting, allowed))


def _instructions(value: object) -> dict[TriggerType, MisfireInstruction]:
    problems, result = _Problems(), {}
    for key, name in _mapping(value).items():
        with problems.at(""):
            trigger_type = TriggerType(_one_of(tuple(TriggerType), key))
            with problems.at(f"[{_shown(key)}]"):
                result[trigger_type] = _instruction(name, trigger_type)
    problems.raise_wrong()
    return result


def _policy(value: object, trigger_type: TriggerType | None = None) -> dict[str, Any] | Literal[False] | None:
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
            raise ValueError(f"expected {forms}, got {_shown(value)}.")
    problems, result = _Problems(), {}
    for key, item in given.items():
        if key not in _POLICY_DEFAULTS:
            problems.add("", _unknown_key(key, _POLICY_DEFAULTS))
            continue
        with problems.at(f".{key}"):
            is_name = key == "instruction"
            result[key] = _instruction(item, trigger_type) if is_name else _policy_value(key, item)
    problems.raise_wrong()
    return result


# -- where the state lives ---------------------------------------------------------------------------------

_EXAMPLE_URL = "'redis://localhost:6379/1'"

# Keywords of redis-py's connections. Each class of connection takes its own, and one that it does not take
# fails on the first command only.
_ANY = (
    "db username password credential_provider client_name protocol max_connections health_check_interval "
    "socket_timeout socket_connect_timeout socket_read_size retry retry_on_timeout retry_on_error"
)
_TCP = f"{_ANY} socket_keepalive socket_keepalive_options"
_TLS = (
    f"{_TCP} ssl_keyfile ssl_certfile ssl_cert_reqs ssl_ca_certs ssl_ca_data ssl_ca_path ssl_check_hostname "
    "ssl_password ssl_validate_ocsp ssl_validate_ocsp_stapled ssl_ocsp_context ssl_ocsp_expected_cert "
    "ssl_min_version ssl_ciphers"
)
_REDIS_OPTIONS = {
    "redis": _TCP.split(),
    "rediss": _TLS.split(),
    "unix": _ANY.split(),
    # ``ssl`` here chooses the class of connection; the others have it in their scheme.
    "sentinel": f"{_TLS} ssl master_name sentinel_kwargs".split(),
}
_ALL_REDIS_OPTIONS = _REDIS_OPTIONS["sentinel"]


def _scheme(url: str) -> str:
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    return "unix" if scheme == "redis+socket" else scheme


def _readable(scheme: str) -> str:
    """Return the scheme, or nothing when it could be a piece of something else."""
    return scheme if re.fullmatch(r"[a-z][a-z0-9+.-]{0,19}", scheme) else ""


def _apart(urls: object) -> list[str]:
    """Return the single URLs of a setting of Celery's: one, several with semicolons, or a list."""
    if isinstance(urls, str):
        return re.split(r";(?=[\w+]+://)", urls)
    return [url for url in urls if isinstance(url, str)] if isinstance(urls, list | tuple) else []


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        sound = parts.port is None or parts.port > 0
    except ValueError:
        sound = False
    if not sound or (parts.scheme != "unix" and "@" in parts.path + parts.query + parts.fragment):
        # The error of urlsplit is not passed on: it repeats a piece of the password.
        fix = "In a password write special characters as %XX, for example '/' as %2F."
        raise ValueError(f"cannot be read as a URL. {fix}") from None
    return parts


def _redis_url(value: object, strict: bool = True) -> str:
    """Return a URL in the form that redis-py and the store understand.

    :param strict: refuse unknown options in the query; else drop them, as they are Celery's.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected a string such as {_EXAMPLE_URL}, got {type(value).__name__}.")
    scheme = _scheme(value)
    if scheme not in _REDIS_OPTIONS:
        what = f"unknown scheme{f' {scheme!r}' * bool(_readable(scheme))}." if scheme else "has no scheme."
        allowed = ", ".join(f"{known}://" for known in _REDIS_OPTIONS)
        raise ValueError(f"{what}{_suggestion(scheme, _REDIS_OPTIONS)} Use {allowed}.")
    if scheme == "sentinel":
        for one in re.split("[;,]", value):
            if not _split(one if "://" in one else f"sentinel://{one}").hostname:
                raise ValueError("sentinel:// needs the host of a sentinel, as in 'sentinel://h1:26379'.")
        return scheme + value[len(scheme) :]
    if len(_apart(value)) > 1:
        raise ValueError("expected one URL, got several. Only sentinel:// takes several.")
    parts = _split(value)
    database = parts.path.strip("/")
    if scheme == "unix" and (parts.hostname or not database):
        raise ValueError("unix:// needs the full path of a socket, as in 'unix:///run/redis.sock?db=1'.")
    if scheme != "unix" and database and not database.isdecimal():
        raise ValueError(f"the database must be a number, as in {_EXAMPLE_URL}.")
    query = {}
    for name, item in parse_qsl(parts.query):
        key = "db" if name == "virtual_host" and scheme == "unix" else name
        if strict:
            _check_redis_option(key, scheme)
        if key in _REDIS_OPTIONS[scheme]:
            query[key] = _short(item) if key == "ssl_cert_reqs" else item
    return f"{scheme}://{parts.netloc}{parts.path}" + (f"?{urlencode(query)}" if query else "")


def _short(requirement: Any) -> Any:
    # Celery writes CERT_REQUIRED, redis-py required.
    return requirement.removeprefix("CERT_").lower() if isinstance(requirement, str) else requirement


def _check_redis_option(key: object, scheme: str) -> None:
    if key in _REDIS_OPTIONS[scheme]:
        return
    if key in _ALL_REDIS_OPTIONS:
        fitting = ", ".join(f"{known}://" for known, keys in _REDIS_OPTIONS.items() if key in keys)
        raise ValueError(
            f"{key!r} does not apply to {scheme}://, only to {fitting}. Remove it or change the URL."
        )
    fix = _suggestion(key, _REDIS_OPTIONS[scheme]) or " Use the connection options of redis-py."
    raise ValueError(f"unknown key {_shown(key)}.{fix}")


def _redis_options(value: object) -> dict[str, Any]:
    problems, result = _Problems(), _mapping(value)
    for key, item in result.items():
        if key in ("socket_timeout", "socket_connect_timeout"):
            with problems.at(f"[{key!r}]"):
                result[key] = _seconds(item)
        elif key == "ssl_cert_reqs":
            result[key] = _short(item)
    problems.raise_wrong()
    return result


def _celerys_redis(app: Celery) -> tuple[str, dict[str, Any]]:
    """Return URL and options of the Redis that Celery itself uses: as broker, else for the results."""
    conf = app.conf
    for source, tls, transport in (
        ("broker_url", "broker_use_ssl", "broker_transport_options"),
        ("result_backend", "redis_backend_use_ssl", "result_backend_transport_options"),
    ):
        urls = [url for url in _apart(getattr(conf, source)) if _scheme(url) in _REDIS_OPTIONS]
        if not urls:
            continue
        problems = _Problems()
        with problems.at(source):
            sentinels = [url for url in urls if _scheme(url) == "sentinel"]
            together = _scheme(urls[0]) == "sentinel"
            url = _redis_url(";".join(sentinels) if together else urls[0], strict=False)
        problems.raise_wrong()
        scheme, options = _scheme(url), dict[str, Any]()
        if scheme == "sentinel":
            given = conf.get(transport) or {}
            options = {key: given[key] for key in ("master_name", "sentinel_kwargs") if key in given}
        if isinstance(conf.get(tls), Mapping) and scheme != "unix":
            options |= {key: item for key, item in conf.get(tls).items() if key in _REDIS_OPTIONS["rediss"]}
            options |= {"ssl": True} if scheme == "sentinel" else {}
            url = re.sub("^redis:", "rediss:", url)
        return url, _redis_options(options)
    transport = _readable(_scheme(next(iter(_apart(conf.broker_url)), "amqp://")))
    broker = f"broker_url ({transport})" if transport else "broker_url"
    fix = f"Set misfire_redis_url, for example {_EXAMPLE_URL}."
    raise _Wrong([("misfire_redis_url", f"not set, and {broker} is not Redis. {fix}")])


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
        return f"Settings({', '.join(f'{name}={_hidden(repr(value))}' for name, value in values.items())})"

    def policy_for(self, entry: str, misfire: object, trigger_type: TriggerType) -> MisfirePolicy | None:
        """Return the policy of an entry, None when misfire handling is off for it.

        Key by key, the first that sets it decides: `misfire`, ``misfire_policies[entry]``,
        ``misfire_instructions[trigger_type]``, the setting for all entries.

        :param misfire: what the entry itself says: an instruction or its name, a dict with any of a policy's
            keys, a :class:`MisfirePolicy` (a field with its default value sets nothing), False for off,
            True for on (even where misfire_policies switches it off), None for nothing.
        :raises MisfireConfigError: with every problem of the two.
        """
        problems = _Problems()
        policy = _policy_of(problems, self, entry, misfire, trigger_type)
        problems.raise_config_error()
        return policy


_CHECKS: dict[str, Callable[[object], Any]] = {
    "redis_url": _redis_url,
    "redis_options": _redis_options,
    "namespace": _namespace,
    "instruction": _instruction,
    "instructions": _instructions,
    "policies": _mapping,
    "threshold": _threshold,
    "missed_results": partial(_one_of, ("summary", "each")),
    "on_missed": _task_name,
    "on_resume": partial(_one_of, ("reschedule", "misfire")),
    "send_task_failure": _yes_or_no,
    "result_state": partial(_one_of, ("MISSED", "FAILURE")),
    "worker_guard": _yes_or_no,
    "deduplicate": _yes_or_no,
    "check_rate": _seconds,
    "lease_ttl": _seconds,
    "lease_renew": _seconds,
    "standby_poll": _seconds,
    "history": _count,
}

# Entries that say the same share one object: a schedule can have 100,000 of them.
_shared_policy = lru_cache(maxsize=1024)(MisfirePolicy)


def _policy_of(
    problems: _Problems, settings: Settings, entry: str, misfire: object, trigger_type: TriggerType | None
) -> MisfirePolicy | None:
    merged: dict[str, Any] = {
        "instruction": settings.instruction,
        "threshold": settings.threshold,
        "on_missed": settings.on_missed,
    }
    if trigger_type is not None and trigger_type in settings.instructions:
        merged["instruction"] = settings.instructions[trigger_type]
    off = False
    for place, value in (
        ("misfire_policies[{}]", settings.policies.get(entry)),
        ("beat_schedule[{}].misfire", misfire),
    ):
        if value is not None:
            with problems.at(place.format(_shown(entry))):
                keys = _policy(value, trigger_type)
                off = keys is False
                merged |= keys or {}
    return None if off else _shared_policy(**merged)


# -- entries -----------------------------------------------------------------------------------------------


_ENTRY_TYPES: tuple[tuple[str, str, tuple[type, ...]], ...] = (
    ("task", "the name of a task", (str,)),
    ("args", "a list or a tuple", (list, tuple)),
    ("kwargs", "a dict", (Mapping,)),
    ("options", "a dict", (Mapping,)),
)


def _keys_of(entry: Any) -> Mapping[Any, Any]:
    if isinstance(entry, Mapping):
        return entry
    if hasattr(entry, "schedule"):
        return {key: getattr(entry, key, None) for key in ENTRY_KEYS}
    raise ValueError(f"expected a dict, got {type(entry).__name__}.")


def _check_entry(problems: _Problems, place: str, entry: Mapping[Any, Any], known: Collection[str]) -> None:
    """Check all of an entry but its schedule and its policy."""
    for key in entry:
        if key in _POLICY_DEFAULTS:
            problems.add(place, f"{key!r} belongs inside 'misfire'.")
        elif key not in known:
            problems.add(place, _unknown_key(key, known))
    for key, example in (("task", "'shop.reports'"), ("schedule", "crontab(minute=0)")):
        if entry.get(key) is None:
            problems.add(place, f"{key!r} is missing. Add it, for example {key!r}: {example}.")
    for key, kind, types in _ENTRY_TYPES:
        if entry.get(key) is not None and not isinstance(entry[key], types):
            problems.add(f"{place}.{key}", f"expected {kind}, got {type(entry[key]).__name__}.")
    options = entry.get("options")
    options = options if isinstance(options, Mapping) else {}
    for key in options:
        if key == "misfire":
            fix = "With add_periodic_task use misfire_policies."
            problems.add(f"{place}.options", f"'misfire' belongs beside 'options', not inside. {fix}")
        elif key in _POLICY_DEFAULTS:
            problems.add(f"{place}.options", f"{key!r} belongs inside 'misfire', not in 'options'.")
        elif key == "task_id":
            problems.add(f"{place}.options", "'task_id' is set by celery_misfire. Remove it.")
        elif key == "headers" and isinstance(options[key], Mapping) and "misfire" in options[key]:
            problems.add(f"{place}.options.headers", "'misfire' is reserved. Give the header another name.")


def _trigger_type(app: Celery, schedule: Any, relative: bool) -> TriggerType:
    if isinstance(schedule, str):
        raise ValueError(f"got the string {_shown(schedule)}. Use {_cron_call(schedule)}.")
    if isinstance(schedule, int | float | timedelta):
        schedule = timedelta(seconds=_seconds(schedule))
    elif isinstance(schedule, type) or not hasattr(schedule, "is_due"):
        kinds = "a schedule such as crontab(minute=0), a number of seconds or a timedelta"
        raise ValueError(f"expected {kinds}, got {type(schedule).__name__}.")
    try:
        return trigger_for(maybe_schedule(schedule, relative, app=app)).trigger_type
    except ValueError as exc:
        raise ValueError(f"{str(exc).rstrip('.')}.") from None
    except Exception:
        # Its own code fails, perhaps only today: that is for the scheduler to quarantine.
        return TriggerType.CRON


def _cron_call(text: str) -> str:
    words = text.split()
    if len(words) == 5:
        names = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
        given = (f"{name}={word!r}" for name, word in zip(names, words, strict=True) if word != "*")
        return f"crontab({', '.join(given)})"
    if len(words) in (6, 7):
        return f"celery_misfire.schedules.cron({text!r})"
    return "a schedule such as crontab(minute=0), a number of seconds or a timedelta"


def _entry_policy(
    problems: _Problems, app: Celery, settings: Settings, name: object, entry: object, known: Collection[str]
) -> MisfirePolicy | None:
    """Check all of an entry and return its policy."""
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        what = "entry name must be a non-empty string of at most 200 characters"
        problems.add("beat_schedule", f"{what}, got {_shown(name)}.")
        return None
    place, trigger_type = f"beat_schedule[{_shown(name)}]", None
    keys: Mapping[Any, Any] = {}
    with problems.at(place):
        keys = _keys_of(entry)
        _check_entry(problems, place, keys, known)
    if keys.get("schedule") is not None:
        with problems.at(f"{place}.schedule"):
            trigger_type = _trigger_type(app, keys["schedule"], bool(keys.get("relative")))
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


def _read(app: Celery) -> tuple[Settings, _Problems]:
    """Return the settings, with the defaults in place of wrong ones, and the problems."""
    problems, values, wrong = _Problems(), dict[str, Any](), set[str]()
    _check_names(problems, app)
    given = {name: app.conf.get(_PREFIX + name) for name in _CHECKS}
    if given["namespace"] is None:
        given["namespace"] = app.main
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
        with problems.at(f"misfire_policies[{_shown(entry)}]"):
            policies[entry] = _policy(policy)
    ttl = values.get("lease_ttl", Settings.lease_ttl)
    in_step = {
        "lease_renew": min(Settings.lease_renew, ttl / 3),
        "standby_poll": min(Settings.standby_poll, ttl / 6),
    }
    settings = Settings(**{"redis_url": "", "namespace": ""} | in_step | values | {"policies": policies})
    _check_together(problems, settings, wrong)
    return settings, problems


def _check_names(problems: _Problems, app: Celery) -> None:
    """Refuse settings that nobody reads: what a slip of the pen is in Celery."""
    conf = app.conf
    conf.finalize()
    prefix = conf.prefix or ""
    in_case = str.upper if prefix.isupper() else str.lower
    names = [_PREFIX + name for name in _CHECKS]
    # Celery looks for a name with its namespace, and also without.
    written = {name: in_case(prefix + name) for name in names}
    unread = {name.upper(): name for name in names}
    if not prefix:
        unread |= {f"CELERY_{name.upper()}": name for name in names}
    for key in conf:
        if not isinstance(key, str) or key in written or key in written.values():
            continue
        if key in unread:
            problems.add(key, f"is not read under this name. Write {written[unread[key]]!r}.")
        elif key.startswith((_PREFIX, in_case(prefix + _PREFIX))):
            value = conf.get(key)
            # A module of settings may also hold functions and modules.
            if callable(value) or isinstance(value, ModuleType):
                continue
            known = names if key.startswith(_PREFIX) else list(written.values())
            problems.add(key, _unknown_key(key, known, "unknown setting"))


def _check_together(problems: _Problems, settings: Settings, wrong: Collection[str]) -> None:
    """Check the settings that depend on each other, but for those that are already known to be wrong."""
    s, ttl, scheme = settings, settings.lease_ttl, _scheme(settings.redis_url)

    def rule(names: str, place: str, broken: bool, text: str) -> None:
        if broken and not set(names.split()) & set(wrong):
            problems.add(place, text)

    def smaller(value: float, than: str, good: float) -> str:
        fix = f"Set it to {good:.3g}, for example."
        return f"{value:g} must be less than {than}misfire_lease_ttl ({ttl:g}). {fix}"

    renew, poll, call = s.lease_renew, s.standby_poll, s.redis_options.get("socket_timeout", 0)
    option = "misfire_redis_options['socket_timeout']"
    too_slow = smaller(renew, "half of ", ttl / 3)
    rule("lease_renew lease_ttl", "misfire_lease_renew", renew * 2 >= ttl, too_slow)
    rule("standby_poll lease_ttl", "misfire_standby_poll", poll >= ttl, smaller(poll, "", ttl / 6))
    rule("redis_options lease_ttl", option, call >= ttl, smaller(call, "", ttl / 6))
    if scheme == "sentinel":
        first = re.split("[;,]", s.redis_url)[0]
        named = s.redis_options.get("master_name") or "master_name" in parse_qs(urlsplit(first).query)
        text = "sentinel:// needs a master name. Set misfire_redis_options = {'master_name': 'mymaster'}."
        rule("redis_url redis_options", "misfire_redis_url", not named, text)
    for kind in TriggerType:
        broken = kind not in s.instructions and s.instruction not in FITTING[kind]
        fix = f"Set misfire_instructions = {{{str(kind)!r}: ...}} to one of {', '.join(FITTING[kind])}."
        text = f"{str(s.instruction)!r} does not fit a {kind} schedule. {fix}"
        rule("instruction instructions", "misfire_instruction", broken, text)
    for key in s.redis_options:
        with problems.at("misfire_redis_options"):
            _check_redis_option(key, scheme or "sentinel")


# -- warnings ----------------------------------------------------------------------------------------------


def unknown_policies(settings: Settings, names: Collection[str]) -> list[str]:
    """Return a warning for every name in ``misfire_policies`` that is no entry, at least not yet."""
    return [
        _line(f"misfire_policies[{_shown(name)}]", f"no entry has this name.{_suggestion(name, names)}")
        for name in settings.policies
        if name not in names
    ]


def warnings_for(app: Celery, settings: Settings, beat_schedule: Mapping[str, Any]) -> list[str]:
    """Return what is allowed but hardly meant, one line each, for the log at the start of beat.

    :param beat_schedule: as in :func:`read_config`, and without problems.
    """
    warnings = unknown_policies(settings, beat_schedule.keys())
    deadline = app.conf.get("beat_cron_starting_deadline")
    if deadline is not None:
        fix = "Use max_lateness in a misfire policy."
        warnings.append(_line("beat_cron_starting_deadline", f"{_shown(deadline)} is not used here. {fix}"))
    for name, entry in beat_schedule.items():
        keys = _keys_of(entry)
        options = keys.get("options")
        if not options:
            continue
        policy = _policy_of(_Problems(), settings, name, keys.get("misfire"), None)
        place = f"beat_schedule[{_shown(name)}].options"
        for key in ("eta", "countdown"):
            if options.get(key) is not None:
                what = f"{key!r} holds the run back after it was sent, and it counts as on time."
                warnings.append(_line(place, f"{what} Use the schedule for that."))
        expires, threshold = options.get("expires"), policy.threshold if policy else None
        seconds = expires.total_seconds() if isinstance(expires, timedelta) else expires
        if isinstance(seconds, int | float) and isinstance(threshold, float) and seconds < threshold:
            what = f"a run expires after {seconds:g} s, before it is a misfire (threshold {threshold:g} s)."
            warnings.append(_line(place, f"{what} Give 'expires' more time."))
    return warnings
