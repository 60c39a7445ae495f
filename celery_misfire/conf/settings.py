"""The configuration: ``app.conf`` becomes frozen :class:`Settings`, or one error that names every problem.

This is the only reader of the ``misfire_*`` settings. ``entries.py`` checks the entries, the store its URL
and options.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from types import ModuleType
from typing import Annotated, Any, get_type_hints

from celery import Celery

from celery_misfire.conf.celery_redis import key_prefix_of_celery, redis_of_celery
from celery_misfire.conf.entries import (
    ENTRY_KEYS,
    ConfiguredEntry,
    as_instruction,
    check_name,
    checked_entry,
    policy_keys,
    policy_of,
)
from celery_misfire.conf.names import plain_names, without_arguments
from celery_misfire.conf.problems import (
    Problems,
    as_bool,
    as_count,
    as_mapping,
    as_seconds,
    policy_value,
    spelling,
)
from celery_misfire.misfire import AUTO_THRESHOLD, FITTING, MisfireInstruction, MisfirePolicy, TriggerType
from celery_misfire.store.options import check_option, checked_options
from celery_misfire.store.url import checked_url, scheme_of, sentinels_of
from celery_misfire.texts import hide_secrets, quote, quote_name, unknown_key, unknown_word
from celery_misfire.triggers.zones import checked_timezone

_PREFIX = "misfire_"

#: So many characters may go before each key.
LONGEST_KEY_PREFIX = 200
#: A token has at least so many characters.
SHORTEST_TOKEN = 16


# -- what a value must be ----------------------------------------------------------------------------------


def _one_of(words: Collection[str], value: object) -> str:
    if isinstance(value, str) and value in words:
        return str(value)
    raise ValueError(unknown_word(value, words))


def _addresses(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list of mail addresses, got {type(value).__name__}.")
    for address in value:
        if not isinstance(address, str) or not re.fullmatch(r"[^@\s,]+@[^@\s,]+", address):
            raise ValueError(f"{quote(address)} is no mail address.")
    return tuple(value)


def _site_url(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"https?://[^\s/@?#]+(/[^\s?#]*)?", value):
        return value.rstrip("/")
    raise ValueError(
        f"expected the address of the site, got {quote(value)}. Set it to 'https://example.com'."
    )


def _token(value: object) -> str:
    if isinstance(value, str) and len(value) >= SHORTEST_TOKEN and value.isascii() and value.isprintable():
        return value
    # The message leaves out the value, which is a secret.
    raise ValueError(f"expected a string of at least {SHORTEST_TOKEN} printable ASCII characters.")


def _grace(value: object) -> float:
    if value == 0 and not isinstance(value, bool):
        return 0.0
    try:
        return as_seconds(value)
    except ValueError as exc:
        raise ValueError(str(exc).replace("> 0", ">= 0")) from None


def _lease_ttl(value: object) -> float:
    seconds = as_seconds(value)
    if seconds < 0.1:
        raise ValueError(f"expected at least 0.1 seconds, got {quote(value)}.")
    return seconds


def _port(value: object) -> int:
    port = as_count(value)
    if not 0 < port < 65536:
        raise ValueError(f"expected a port from 1 to 65535, got {quote(value)}. Set it to 9808, for example.")
    return port


def _history(value: object) -> int:
    lines = as_count(value)
    if lines > 10**15:
        raise ValueError(f"expected at most 10**15 lines, got {quote(value)}. Set it to 10000, for example.")
    return lines


def _timezone(value: object) -> Any:
    try:
        return checked_timezone(value or None)
    except ValueError as exc:
        raise ValueError(f"{str(exc).removeprefix('timezone: ').rstrip('.')}.".replace("?.", "?")) from None


def _namespace(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {quote(value)}.")
    if value == "__main__":
        raise ValueError("'__main__' is any script's name. Set another one, for example 'shop'.")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        allowed = "1 to 64 of a-z, A-Z, 0-9, '_', '-', '.'"
        raise ValueError(f"{quote(value)} is no namespace. Set it to {allowed}.")
    return value


def _key_prefix(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {quote(value)}.")
    if len(value) > LONGEST_KEY_PREFIX or not value.isprintable():
        allowed = f"at most {LONGEST_KEY_PREFIX} printable characters"
        raise ValueError(f"{quote(value)} is no prefix for keys. Set it to {allowed}, for example 'acme:'.")
    return value


def _instructions(value: object) -> dict[TriggerType, MisfireInstruction]:
    problems, result = Problems(), {}
    for key, name in as_mapping(value).items():
        with problems.at(""):
            trigger_type = TriggerType(_one_of(tuple(TriggerType), key))
            with problems.at(f"[{quote(key)}]"):
                result[trigger_type] = as_instruction(name, trigger_type)
    problems.raise_invalid()
    return result


# -- the settings ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """The settings ``misfire_*`` of an app, checked; each has its name without the prefix.

    Durations are seconds. Secrets do not show in the repr. Beside each type stands what checks a value.

    :param redis_url: where the state lives: a redis://, rediss://, unix:// or sentinel:// URL.
    :param redis_options: keywords for redis-py; for sentinel also ``master_name``, ``sentinel_kwargs`` and
        ``ssl``.
    :param namespace: keeps the states of two apps apart on one Redis.
    :param key_prefix: goes before the name of every key in Redis. Not set, it is the ``global_keyprefix`` of
        the broker; of the results, where the state is kept with them.
    :param instruction: misfire instruction of every entry without its own.
    :param instructions: the same for one type of trigger; goes before `instruction`.
    :param policies: per entry name, the keys that its policy sets; False = no misfire handling.
    :param threshold: how late a run may be before it is a misfire; ``"auto"``: see :class:`MisfirePolicy`.
    :param missed_results: ``"summary"``: one record per outage and entry; ``"each"``: one per run.
    :param on_missed: name of the task that is sent with each record of missed runs.
    :param mail_to: addresses that get mail about missed runs; for django-celery-beat only.
    :param site_url: address of the Django site, for the links of a mail; None: they are paths.
    :param health_token: who shows it may ask the Django site for its health; None: staff alone may.
    :param keep_missed: how long records of missed runs stay in the database; None: until somebody deletes
        them. For django-celery-beat only.
    :param on_resume: ``"reschedule"``: a time of pause is no outage; ``"misfire"``: it is one, as in Quartz.
    :param send_task_failure: send Celery's ``task_failure``, too, for each record of missed runs.
    :param result_state: state of the result of a missed run, ``"MISSED"`` or ``"FAILURE"``.
    :param worker_guard: judge a run again that starts late in the worker.
    :param deduplicate: drop a second message of one occurrence before user code runs.
    :param restart_grace: a clean stop and a take-over within this time are a deploy, and no alarm; 0: never.
    :param metrics_port: where Prometheus reads the numbers of beat, and of each worker; None: nowhere.
    :param check_rate: time between two looks for overdue entries.
    :param lease_ttl: how long the leading beat may be silent before another one takes over.
    :param lease_renew: time between two renewals of the lease; less than half of `lease_ttl`. Not set, it is
        a third of a `lease_ttl` below 30 seconds.
    :param standby_poll: time between two looks of a waiting beat at the lease. Not set, it is a sixth of a
        `lease_ttl` below 30 seconds.
    :param history: how many records the log keeps.
    :param catch_up_queue: catching up waits while a queue has more messages than this; runs in time do not.
        Known where messages and state share a database.
    """

    redis_url: Annotated[str, checked_url]
    redis_options: Annotated[Mapping[str, Any], checked_options] = field(default_factory=dict)
    namespace: Annotated[str, _namespace]
    key_prefix: Annotated[str, _key_prefix] = ""
    instruction: Annotated[MisfireInstruction, as_instruction] = MisfireInstruction.SMART_POLICY
    instructions: Annotated[Mapping[TriggerType, MisfireInstruction], _instructions] = field(
        default_factory=dict
    )
    policies: Annotated[Mapping[str, Any], as_mapping] = field(default_factory=dict)
    threshold: Annotated[float | str, partial(policy_value, "threshold")] = "auto"
    missed_results: Annotated[str, partial(_one_of, ("summary", "each"))] = "summary"
    on_missed: Annotated[str | None, partial(policy_value, "on_missed")] = None
    mail_to: Annotated[tuple[str, ...], _addresses] = ()
    site_url: Annotated[str | None, _site_url] = None
    health_token: Annotated[str | None, _token] = None
    keep_missed: Annotated[float | None, as_seconds] = None
    on_resume: Annotated[str, partial(_one_of, ("reschedule", "misfire"))] = "reschedule"
    send_task_failure: Annotated[bool, as_bool] = True
    result_state: Annotated[str, partial(_one_of, ("MISSED", "FAILURE"))] = "MISSED"
    worker_guard: Annotated[bool, as_bool] = True
    deduplicate: Annotated[bool, as_bool] = True
    restart_grace: Annotated[float, _grace] = 60.0
    metrics_port: Annotated[int | None, _port] = None
    check_rate: Annotated[float, as_seconds] = 60.0
    lease_ttl: Annotated[float, _lease_ttl] = 30.0
    lease_renew: Annotated[float, as_seconds] = 10.0
    standby_poll: Annotated[float, as_seconds] = 5.0
    history: Annotated[int, _history] = 10_000
    catch_up_queue: Annotated[int, as_count] = 10_000

    def __repr__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["health_token"] = self.health_token and "***"
        values["redis_options"] = dict.fromkeys(self.redis_options, "***")
        return (
            f"Settings({', '.join(f'{name}={hide_secrets(repr(value))}' for name, value in values.items())})"
        )

    @property
    def default_threshold(self) -> int:
        """The threshold where no schedule is known, in milliseconds."""
        return AUTO_THRESHOLD if isinstance(self.threshold, str) else round(self.threshold * 1000)

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
            check_name(entry)
        policy = policy_of(problems, self, entry, misfire, trigger_type)
        problems.raise_config_error()
        return policy


#: What checks the value of each setting.
_CHECKS: dict[str, Callable[[object], Any]] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Settings, include_extras=True).items()
}


# -- reading -----------------------------------------------------------------------------------------------


def read_settings(app: Celery) -> Settings:
    """Return the settings of an app.

    :raises MisfireConfigError: with every problem of the settings.
    """
    settings, problems = _read(app)
    problems.raise_config_error()
    return settings


def read_config(
    app: Celery,
    beat_schedule: Mapping[str, Any],
    entry_keys: Collection[str] = ENTRY_KEYS,
    *,
    needs_store: bool = True,
) -> tuple[Settings, dict[str, ConfiguredEntry]]:
    """Return the settings of an app and its entries, by their plain names (:mod:`celery_misfire.conf.names`).

    An entry whose schedule fails in its own code counts as cron here.

    :param beat_schedule: entry name to dict (as in Celery's setting) or to ``ScheduleEntry``.
    :param entry_keys: the keys that such a dict may have.
    :param needs_store: False: the state is kept elsewhere, so that no Redis and no namespace need be named.
    :raises MisfireConfigError: with every problem of the settings and of the entries.
    """
    settings, problems = _read(app, needs_store=needs_store)
    entries: dict[str, ConfiguredEntry] = {}
    if isinstance(beat_schedule, Mapping):
        plain = plain_names(beat_schedule)
        for own_name, entry in beat_schedule.items():
            name = plain.get(own_name, own_name)
            checked = checked_entry(problems, app, settings, own_name, name, entry, entry_keys)
            if checked is not None:
                entries[name] = checked
    else:
        problems.add(
            problems.spell("beat_schedule"),
            f"expected a dict of entries, got {type(beat_schedule).__name__}.",
        )
    problems.raise_config_error()
    return settings, entries


def _read(app: Celery, *, needs_store: bool = True) -> tuple[Settings, Problems]:
    """Return the settings, with the defaults in place of wrong ones, and the problems."""
    spell = spelling(app)
    problems, values, wrong = Problems(spell), dict[str, Any](), set[str]()
    _check_names(problems, app)
    given = {name: app.conf.get(_PREFIX + name) for name in _CHECKS}
    if given["namespace"] is None:
        given["namespace"] = app.main
    if given["key_prefix"] is None:
        given["key_prefix"] = key_prefix_of_celery(app, in_results=given["redis_url"] is None)
    with problems.at(spell("timezone")):
        _timezone(app.conf.timezone)
    for name, check in _CHECKS.items():
        if given[name] is not None:
            wrong.add(name)
            with problems.at(spell(_PREFIX + name)):
                values[name] = check(given[name])
                wrong.remove(name)
    if given["redis_url"] is None and needs_store:
        with problems.at(""):
            values["redis_url"], options = redis_of_celery(app, spell)
            values["redis_options"] = options | values.get("redis_options", {})
    if given["namespace"] is None and needs_store:
        what = "not set and the app has no name (Celery() without main)."
        problems.add(spell("misfire_namespace"), f"{what} Set it, for example to 'shop'.")
    policies: dict[str, Any] = {}
    given_policies = values.get("policies", {})
    # The entries are looked at only where something is said of one.
    plain = plain_names(app.conf.beat_schedule) if given_policies else {}
    for entry, policy in given_policies.items():
        name = plain.get(entry, entry)
        with problems.at(f"{spell('misfire_policies')}[{quote_name(without_arguments(name))}]"):
            # Under Django, a row has the name that Celery gave.
            policies[entry] = policies[name] = policy_keys(policy)
    # And where it is no row, another one.
    policies |= {own: policies[name] for own, name in plain.items() if name in policies}
    ttl = values.get("lease_ttl", Settings.lease_ttl)
    in_step = {
        "lease_renew": min(Settings.lease_renew, ttl / 3),
        "standby_poll": min(Settings.standby_poll, ttl / 6),
    }
    settings = Settings(**{"redis_url": "", "namespace": ""} | in_step | values | {"policies": policies})
    _check_together(problems, settings, wrong)
    return settings, problems


def _check_names(problems: Problems, app: Celery) -> None:
    """Refuse settings that nobody reads: what a slip of the pen is in Celery."""
    spell, conf = problems.spell, app.conf
    names = [_PREFIX + name for name in _CHECKS]
    # Celery looks for a name with its namespace, and also without.
    read = {*names, *map(spell, names)}
    # Some write beat_ before our names, as in Celery's beat_schedule, or a namespace that is not theirs.
    before = f"{re.escape(conf.prefix)}(beat_)?" if conf.prefix else "(celery_)?(beat_)?"
    alike = re.compile(f"{before}(?P<name>misfire(_.*)?)", re.IGNORECASE | re.DOTALL)
    for key in conf:
        if not isinstance(key, str) or key in read:
            continue
        found = alike.fullmatch(key)
        name = found["name"].lower() if found else key.lower()
        # In Django's settings a name without the namespace may belong to somebody else.
        if not (found or key.startswith(_PREFIX) or (key.isupper() and name in names)):
            continue
        # A module of settings may also hold functions and modules.
        if callable(conf.get(key)) or isinstance(conf.get(key), ModuleType):
            continue
        if name in names:
            right = spell(name)
            fix = f"Set {right}." if right.startswith("app.conf.") else f"Write {right!r}."
            problems.add(key, f"is not read under this name. {fix}")
        elif name == "misfire":
            for_all, for_one = spell("misfire_instruction"), spell("misfire_policies")
            fix = f"Set {for_all} for all entries, {for_one} for single ones."
            problems.add(key, f"unknown setting. {fix}")
        else:
            problems.add(key, unknown_key(name, names, "unknown setting", spell))


def _check_together(problems: Problems, settings: Settings, wrong: Collection[str]) -> None:
    """Check the settings that depend on each other, but for those that are already known to be wrong."""
    s, ttl, scheme, spell = settings, settings.lease_ttl, scheme_of(settings.redis_url), problems.spell

    def rule(names: str, place: str, broken: bool, text: str) -> None:
        if broken and not set(names.split()) & set(wrong):
            problems.add(place, text)

    def smaller(value: float, than: str, good: float) -> str:
        fix = f"Set it to {good:.3g}, for example."
        return f"{value:g} must be less than {than}{spell('misfire_lease_ttl')} ({ttl:g}). {fix}"

    renew, poll = s.lease_renew, s.standby_poll
    too_slow = smaller(renew, "half of ", ttl / 3)
    rule("lease_renew lease_ttl", spell("misfire_lease_renew"), renew * 2 >= ttl, too_slow)
    rule("standby_poll lease_ttl", spell("misfire_standby_poll"), poll >= ttl, smaller(poll, "", ttl / 6))
    options = spell("misfire_redis_options")
    for option in ("socket_timeout", "socket_connect_timeout"):
        call = s.redis_options.get(option, 0)
        rule("redis_options lease_ttl", f"{options}[{option!r}]", call >= ttl, smaller(call, "", ttl / 6))
    if scheme == "sentinel" and not (sentinels_of(s.redis_url)[1] | dict(s.redis_options)).get("master_name"):
        text = f"sentinel:// needs a master name. Set {options} = {{'master_name': 'mymaster'}}."
        rule("redis_url redis_options", spell("misfire_redis_url"), True, text)
    for trigger_type, fitting in FITTING.items():
        broken = trigger_type not in s.instructions and s.instruction not in fitting
        setting = spell("misfire_instructions")
        fix = f"Set {setting} = {{{str(trigger_type)!r}: ...}} to one of {', '.join(fitting)}."
        text = f"{str(s.instruction)!r} does not fit a {trigger_type} schedule. {fix}"
        rule("instruction instructions", spell("misfire_instruction"), broken, text)
    for key in s.redis_options:
        with problems.at(options):
            check_option(key, scheme or "sentinel")
