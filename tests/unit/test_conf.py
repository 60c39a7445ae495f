from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.beat import BeatLazyFunc, ScheduleEntry
from celery.exceptions import ImproperlyConfigured
from celery.schedules import BaseSchedule, crontab

from celery_misfire.conf import settings as conf
from celery_misfire.conf.entries import ENTRY_KEYS
from celery_misfire.conf.settings import Settings, read_config, read_settings
from celery_misfire.conf.warnings import warnings_for
from celery_misfire.exceptions import MisfireConfigError, MisfireError, TaskMissed
from celery_misfire.misfire import MisfireInstruction, MisfirePolicy, MissedFire, Reason, TriggerType
from celery_misfire.schedules import cron
from celery_misfire.store.options import OPTIONS
from tests.support.configs import BROKER, FIT_CRON, HOURLY, app_with, no_urls_from_outside, problems_of

__all__ = ["no_urls_from_outside"]

FIT_ALL = ", ".join(MisfireInstruction)


def test_all_problems_are_reported_together_under_one_heading() -> None:
    app = app_with(
        None,
        broker_url="amqp://",
        misfire_treshold=30,
        misfire_lease_ttl="30s",
        misfire_policies={"a": "skip", "x": "fire_now"},
    )
    entries = {"x": HOURLY, "y": {"task": "t", "schedule": 0}, "z": HOURLY | {"misfire": {"threshold": -1}}}
    with pytest.raises(MisfireConfigError) as caught:
        read_config(app, entries)
    places = [line.split(": ")[1] for line in caught.value.problems]
    assert places == [
        "misfire_treshold",
        "misfire_lease_ttl",
        "misfire_redis_url",
        "misfire_namespace",
        "misfire_policies['a']",
        "misfire_policies['x'].instruction",
        "beat_schedule['y'].schedule",
        "beat_schedule['z'].misfire.threshold",
    ]
    heading, *lines = str(caught.value).splitlines()
    assert heading == "celery_misfire: the configuration has 8 problems:"
    assert tuple(lines) == caught.value.problems


def test_one_problem_is_just_its_line() -> None:
    error = MisfireConfigError(["celery_misfire: a: b."])
    assert str(error) == "celery_misfire: a: b."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert isinstance(error, MisfireError)
    assert isinstance(error, ImproperlyConfigured)


# -- secrets -----------------------------------------------------------------------------------------------

CANARY = "canary-4711"
URLS_WITH_SECRET = [
    f"redis://:{CANARY}@h:6379/1",
    f"rediss://user:{CANARY}@h/1?ssl_cert_reqs=none",
    f"redis://h/1?password={CANARY}",
    f"redis://:{CANARY}/{CANARY}@h:6379/1",
    f"redis://:{CANARY}#{CANARY}@h:6379/1",
    f"redis://:{CANARY}@{CANARY}@h/{CANARY}",
    f"redis://u:12/{CANARY}@h:6379/1",
    f"redis://:{CANARY}@h/x",
    f"redis://h:{CANARY}/1",
    f"redis://[{CANARY}/1",
    f"redis://h/1?password={CANARY}&what=5",
    f"{CANARY}@h:6379",
    f"reddis://:{CANARY}@h/1",
    f"sentinel://:{CANARY}@h:26379;sentinel://:{CANARY}@i:26379",
    f"unix://:{CANARY}@/run/redis.sock",
    f"redis+socket://:{CANARY}@/run/redis.sock?virtual_host=2",
]


def _whole_chain(error: BaseException | None) -> str:
    text = ""
    while error is not None:
        text += f"{error!s} {error!r} {error.args!r}\n"
        error = error.__cause__ or error.__context__
    return text


@pytest.mark.parametrize(
    "config",
    [
        *({"misfire_redis_url": url} for url in URLS_WITH_SECRET),
        *({"broker_url": url} for url in URLS_WITH_SECRET),
        *({"broker_url": "amqp://", "result_backend": url} for url in URLS_WITH_SECRET),
        {"broker_url": f"amqp://u:{CANARY}@h//"},
        {"broker_url": f"amqp://u:{CANARY}@h//;redis://:{CANARY}@h/0"},
        {"misfire_redis_url": {"url": f"redis://:{CANARY}@h"}},
        {"misfire_redis_options": {"password": CANARY, "username": CANARY, "ssl_password": CANARY}},
        {"misfire_redis_options": {"password": CANARY, "sockettimeout": CANARY}},
        {"misfire_redis_options": [CANARY]},
        {"misfire_threshold": f"redis://:{CANARY}@h:6379/1"},
        {"misfire_namespace": f"redis://:{CANARY}@h:6379/1"},
        {"misfire_instruction": {"password": CANARY}},
        {"misfire_policies": {"x": [{"api_key": CANARY}]}},
        {"misfire_secret": CANARY},
    ],
    ids=repr,
)
def test_no_secret_is_ever_shown(config: dict[str, Any]) -> None:
    entries = {
        "x": HOURLY | {"args": CANARY, "kwargs": {"password": CANARY}, "options": {"task_id": CANARY}},
        "y": HOURLY
        | {"args": [CANARY], "unknown": CANARY, "misfire": {"pass": CANARY, "threshold": CANARY[:0]}},
    }
    app = app_with(**config)
    with pytest.raises(MisfireConfigError) as caught:
        read_config(app, entries)
    assert CANARY not in _whole_chain(caught.value)
    try:
        shown = repr(read_settings(app))
    except MisfireConfigError as error:
        shown = _whole_chain(error)
    assert CANARY not in shown


def test_what_a_schedule_class_says_is_shown_on_one_line_without_a_url() -> None:
    class Remote(BaseSchedule):
        def is_due(self, last_run_at: Any) -> tuple[bool, datetime]:
            raise NotImplementedError

        def as_trigger(self) -> None:
            raise ValueError(f"no calendar at\nhttps://u:{CANARY}@h/holidays")

    assert problems_of(lambda: read_config(app_with(), {"x": {"task": "t", "schedule": Remote()}})) == (
        "celery_misfire: beat_schedule['x'].schedule: no calendar at https://***@h/holidays.",
    )


def test_settings_show_all_but_the_secrets() -> None:
    shown = repr(
        read_settings(
            app_with(misfire_redis_url=f"redis://u:{CANARY}@h/1", misfire_redis_options={"client_name": "b"})
        )
    )
    assert "redis_url='redis://***@h/1', redis_options={'client_name': '***'}, namespace='shop'" in shown


# -- what is read ------------------------------------------------------------------------------------------


def test_renewal_and_poll_keep_step_with_a_short_lease_unless_they_are_set() -> None:
    short = read_settings(app_with(misfire_lease_ttl=3))
    assert (short.lease_renew, short.standby_poll) == (1, 0.5)
    long = read_settings(app_with(misfire_lease_ttl=300))
    assert (long.lease_renew, long.standby_poll) == (10, 5)
    assert read_settings(app_with(misfire_lease_ttl=3, misfire_lease_renew=0.2)).lease_renew == 0.2


def test_without_any_setting_the_defaults_hold() -> None:
    assert read_settings(app_with()) == Settings(redis_url="redis://localhost:6379/0", namespace="shop")


def test_every_setting_has_a_check() -> None:
    assert set(conf._CHECKS) == {f.name for f in fields(Settings)}


GIVEN: dict[str, Any] = {
    "redis_url": "redis://h/1",
    "redis_options": {"socket_timeout": 2, "client_name": "beat"},
    "namespace": "billing",
    "key_prefix": "acme:",
    "instruction": "do_nothing",
    "instructions": {"endless": "fire_now", TriggerType.CRON: MisfireInstruction.FIRE_ONCE_NOW},
    "policies": {"a": "do_nothing", "b": False, "c": {"threshold": timedelta(minutes=1)}},
    "threshold": timedelta(seconds=90),
    "missed_results": "each",
    "on_missed": "shop.alert",
    "keep_missed": timedelta(days=30),
    "on_resume": "misfire",
    "send_task_failure": False,
    "result_state": "FAILURE",
    "worker_guard": False,
    "deduplicate": False,
    "restart_grace": 0,
    "check_rate": 5,
    "lease_ttl": 9,
    "lease_renew": 3.5,
    "standby_poll": 1,
    "history": 0,
}
READ = Settings(
    redis_url="redis://h/1",
    redis_options={"socket_timeout": 2.0, "client_name": "beat"},
    namespace="billing",
    key_prefix="acme:",
    instruction=MisfireInstruction.DO_NOTHING,
    instructions={
        TriggerType.ENDLESS: MisfireInstruction.FIRE_NOW,
        TriggerType.CRON: MisfireInstruction.FIRE_ONCE_NOW,
    },
    policies={"a": {"instruction": MisfireInstruction.DO_NOTHING}, "b": False, "c": {"threshold": 60.0}},
    threshold=90.0,
    missed_results="each",
    on_missed="shop.alert",
    keep_missed=2_592_000.0,
    on_resume="misfire",
    send_task_failure=False,
    result_state="FAILURE",
    worker_guard=False,
    deduplicate=False,
    restart_grace=0.0,
    check_rate=5.0,
    lease_ttl=9.0,
    lease_renew=3.5,
    standby_poll=1.0,
    history=0,
)


def _module(name: str, values: Mapping[str, Any]) -> types.ModuleType:
    module = types.ModuleType(name)
    # A module of settings holds other things besides: these are no settings.
    vars(module).update(values, misfire_module=sys, misfire_function=len)
    return module


def _plain(prefix: str = "misfire_") -> dict[str, Any]:
    names = ((name, name.upper() if prefix.isupper() else name) for name in GIVEN)
    return {prefix + written: GIVEN[name] for name, written in names}


def _by_update(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    app.conf.update(_plain())


def _by_attribute(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _plain().items():
        setattr(app.conf, name, value)


def _by_dict(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    app.config_from_object(_plain())


def _by_module(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shop_celeryconfig", _module("shop_celeryconfig", _plain()))
    app.config_from_object("shop_celeryconfig")


def _by_namespaced_dict(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    app.config_from_object(_plain("CELERY_MISFIRE_"), namespace="CELERY")


def _by_namespaced_module(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    app.config_from_object(_module("settings", _plain("CELERY_MISFIRE_")), namespace="CELERY")


def _by_lower_namespace(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    app.config_from_object(_plain("shop_misfire_"), namespace="shop")


def _by_django_settings(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    # Django's lazy settings object, on settings of its own.
    from django.conf import LazySettings

    django_settings = LazySettings()
    django_settings.configure(**_plain("CELERY_MISFIRE_"), MISFIRE_OF_SOMEBODY_ELSE=1)
    app.config_from_object(django_settings, namespace="CELERY")


WAYS = [
    _by_update,
    _by_attribute,
    _by_dict,
    _by_module,
    _by_namespaced_dict,
    _by_namespaced_module,
    _by_lower_namespace,
    _by_django_settings,
]


@pytest.mark.parametrize("configure", WAYS)
def test_settings_are_read_from_wherever_celery_reads_them(
    configure: Callable[[Celery, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Celery("shop", set_as_current=False)
    configure(app, monkeypatch)
    assert read_settings(app) == READ


@pytest.mark.parametrize("configure", WAYS)
def test_an_unknown_setting_is_seen_wherever_it_stands(
    configure: Callable[[Celery, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GIVEN, "treshold", 5)
    app = Celery("shop", set_as_current=False)
    configure(app, monkeypatch)
    (problem,) = problems_of(lambda: read_settings(app))
    key, text = problem.removeprefix("celery_misfire: ").split(": ", 1)
    assert (
        text
        == f"unknown setting. Did you mean {key.replace('tresh', 'thresh').replace('TRESH', 'THRESH')!r}?"
    )
    assert key in (
        "misfire_treshold",
        "CELERY_MISFIRE_TRESHOLD",
        "shop_misfire_treshold",
    )


def test_a_django_setting_without_the_namespace_is_told_its_name() -> None:
    app = Celery("shop", set_as_current=False)
    app.config_from_object(
        {"MISFIRE_HISTORY": 5, "CELERY_BROKER_URL": BROKER["broker_url"]}, namespace="CELERY"
    )
    assert problems_of(lambda: read_settings(app)) == (
        "celery_misfire: MISFIRE_HISTORY: is not read under this name. Write 'CELERY_MISFIRE_HISTORY'.",
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"LEASE_TTL": 0.01}, "CELERY_MISFIRE_LEASE_TTL: expected at least 0.1 seconds, got 0.01."),
        (
            {"INSTRUCTION": "fire_now"},
            "CELERY_MISFIRE_INSTRUCTION: 'fire_now' does not fit a cron schedule. "
            f"Set CELERY_MISFIRE_INSTRUCTIONS = {{'cron': ...}} to one of {FIT_CRON}.",
        ),
        (
            {"LEASE_RENEW": 20},
            "CELERY_MISFIRE_LEASE_RENEW: 20 must be less than half of CELERY_MISFIRE_LEASE_TTL (30). "
            "Set it to 10, for example.",
        ),
        (
            {"POLICIES": {"x": "skip"}},
            f"CELERY_MISFIRE_POLICIES['x']: 'skip' is unknown. Allowed: {FIT_ALL}.",
        ),
    ],
)
def test_what_is_wrong_is_told_by_the_names_that_the_namespace_makes(
    settings: dict[str, Any], expected: str
) -> None:
    app = Celery("shop", set_as_current=False)
    given = {f"CELERY_MISFIRE_{name}": value for name, value in settings.items()}
    app.config_from_object(given | {"CELERY_BROKER_URL": BROKER["broker_url"]}, namespace="CELERY")
    assert problems_of(lambda: read_settings(app)) == (f"celery_misfire: {expected}",)


def test_places_of_celerys_own_settings_are_told_by_the_names_that_the_namespace_makes() -> None:
    app = Celery("shop", set_as_current=False)
    config = {"CELERY_BROKER_URL": "amqp://", "CELERY_TIMEZONE": 5, "CELERY_BEAT_MISFIRE_POLICIES": {}}
    config["CELERY_BEAT_CRON_STARTING_DEADLINE"] = 7200
    app.config_from_object(config, namespace="CELERY")
    entries = {"x": HOURLY | {"misfire": "skip"}}
    assert problems_of(lambda: read_config(app, entries)) == (
        "celery_misfire: CELERY_BEAT_MISFIRE_POLICIES: is not read under this name. "
        "Write 'CELERY_MISFIRE_POLICIES'.",
        "celery_misfire: CELERY_TIMEZONE: expected the name of a time zone or a tzinfo, got 5.",
        "celery_misfire: CELERY_MISFIRE_REDIS_URL: not set, and CELERY_BROKER_URL (amqp) is not Redis. "
        "Set CELERY_MISFIRE_REDIS_URL, for example 'redis://localhost:6379/1'.",
        "celery_misfire: CELERY_BEAT_SCHEDULE['x'].misfire: 'skip' is unknown. "
        f"Allowed for cron: {FIT_CRON}.",
    )
    settings = Settings(redis_url="redis://h", namespace="shop")
    assert warnings_for(app, settings, {}) == [
        "celery_misfire: CELERY_BEAT_CRON_STARTING_DEADLINE: 7200 is not used here. "
        "Use max_lateness in a misfire policy."
    ]


class _UpperCaseAlone(dict[str, Any]):
    """Like the configuration of Flask, or a module of Django's: what is not upper case is dropped."""

    def __init__(self, module: Mapping[str, Any]) -> None:
        super().__init__({name: value for name, value in module.items() if name.isupper()})


@pytest.mark.parametrize("broker", [{"BROKER_URL": "amqp://"}, {"FLASK_DEBUG": True}])
def test_a_source_without_namespace_that_drops_lower_case_names_is_given_advice_that_works(
    broker: dict[str, Any],
) -> None:
    module = broker | {"MISFIRE_HISTORY": 5, "misfire_instruction": "do_nothing"}
    app = Celery("shop", set_as_current=False)
    app.config_from_object(_UpperCaseAlone(module))
    app.conf.misfire_lease_ttl = 0.01
    app.conf.misfire_policies = {"x": "skip"}
    assert problems_of(lambda: read_config(app, {"x": HOURLY | {"misfire": "skip"}})) == (
        "celery_misfire: MISFIRE_HISTORY: is not read under this name. Set app.conf.misfire_history.",
        "celery_misfire: app.conf.misfire_lease_ttl: expected at least 0.1 seconds, got 0.01.",
        "celery_misfire: app.conf.misfire_redis_url: not set, and broker_url (amqp) is not Redis. "
        "Set app.conf.misfire_redis_url, for example 'redis://localhost:6379/1'.",
        f"celery_misfire: app.conf.misfire_policies['x']: 'skip' is unknown. Allowed: {FIT_ALL}.",
        f"celery_misfire: beat_schedule['x'].misfire: 'skip' is unknown. Allowed for cron: {FIT_CRON}.",
    )
    del module["MISFIRE_HISTORY"]
    app = Celery("shop", set_as_current=False)
    app.config_from_object(_UpperCaseAlone(module))
    app.conf.misfire_redis_url = "redis://h/1"
    app.conf.misfire_history = 5
    assert read_settings(app).history == 5


def test_keys_of_an_entry_have_no_namespace() -> None:
    app = Celery("shop", set_as_current=False)
    app.config_from_object({"CELERY_BROKER_URL": BROKER["broker_url"]}, namespace="CELERY")
    entries = {"misfire_history": HOURLY | {"misfire_threshold": 5, "options": {"misfire": False}}}
    assert problems_of(lambda: read_config(app, entries)) == (
        "celery_misfire: CELERY_BEAT_SCHEDULE['misfire_history']: "
        "'misfire_threshold' belongs inside 'misfire', as 'threshold'.",
        "celery_misfire: CELERY_BEAT_SCHEDULE['misfire_history'].options: 'misfire' belongs beside "
        "'options', not inside. With add_periodic_task use CELERY_MISFIRE_POLICIES.",
    )


def test_the_settings_of_another_app_in_the_same_module_are_left_alone() -> None:
    app = Celery("shop", set_as_current=False)
    shared = {"SHOP_BROKER_URL": BROKER["broker_url"], "CELERY_MISFIRE_HISTORY": 5, "CELERY_MISFIRE_OTHER": 5}
    app.config_from_object(shared, namespace="SHOP")
    assert read_settings(app).history == 10_000


# -- which Redis -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "url", "options"),
    [
        ({"broker_url": "redis://"}, "redis://", {}),
        ({"broker_url": "REDIS://h:1/2"}, "redis://h:1/2", {}),
        ({"broker_url": "redis://h:1//"}, "redis://h:1//", {}),
        ({"broker_url": "redis://:a%2Fb@h/2"}, "redis://:a%2Fb@h/2", {}),
        ({"broker_url": "amqp://", "result_backend": "redis://h/2"}, "redis://h/2", {}),
        ({"broker_url": "redis://a/1", "result_backend": "redis://b/2"}, "redis://a/1", {}),
        ({"broker_url": "redis://a/1", "misfire_redis_url": "redis://c/3"}, "redis://c/3", {}),
        ({"broker_url": "amqp://a;redis://b/1;redis://c/1"}, "redis://b/1", {}),
        ({"broker_url": ["amqp://a", "redis://b/1"]}, "redis://b/1", {}),
        ({"broker_url": "redis+socket:///run/r.sock"}, "unix:///run/r.sock", {}),
        ({"broker_url": "redis+socket:///run/r.sock?virtual_host=3"}, "unix:///run/r.sock?db=3", {}),
        ({"misfire_redis_url": "unix://:pw@/run/r.sock?db=3"}, "unix://:pw@/run/r.sock?db=3", {}),
        ({"broker_url": "rediss://h/1?ssl_cert_reqs=CERT_NONE"}, "rediss://h/1?ssl_cert_reqs=none", {}),
        (
            {"broker_url": "amqp://", "result_backend": "redis://h/1?global_prefix=x&socket_timeout=3"},
            "redis://h/1?socket_timeout=3",
            {},
        ),
        (
            {
                "broker_url": "redis://h/1",
                "broker_use_ssl": {"ssl_ca_certs": __file__, "ssl_cert_reqs": "CERT_REQUIRED"},
            },
            "rediss://h/1",
            {"ssl_ca_certs": __file__, "ssl_cert_reqs": "required"},
        ),
        (
            {"broker_url": "amqp://", "broker_use_ssl": {"ca_certs": "/x"}, "result_backend": "redis://h/1"},
            "redis://h/1",
            {},
        ),
        (
            {
                "broker_url": "sentinel://:pw@a:26379/1;sentinel://b:26379/1",
                "broker_transport_options": {
                    "master_name": "m",
                    "sentinel_kwargs": {"password": "s"},
                    "visibility_timeout": 60,
                },
                "misfire_redis_options": {"client_name": "beat"},
            },
            "sentinel://:pw@a:26379/1;sentinel://b:26379/1",
            {"master_name": "m", "sentinel_kwargs": {"password": "s"}, "client_name": "beat"},
        ),
        (
            {
                "broker_url": "amqp://",
                "result_backend": "sentinel://a:26379",
                "redis_backend_use_ssl": {"ssl_cert_reqs": "none"},
                "result_backend_transport_options": {"master_name": "m"},
                "misfire_redis_options": {"master_name": "n"},
            },
            "sentinel://a:26379",
            {"master_name": "n", "ssl": True, "ssl_cert_reqs": "none"},
        ),
        ({"misfire_redis_url": "sentinel://a?master_name=m"}, "sentinel://a?master_name=m", {}),
    ],
    ids=repr,
)
def test_the_state_goes_to_the_redis_that_is_named_or_to_celerys_own(
    config: dict[str, Any], url: str, options: dict[str, Any]
) -> None:
    found = read_settings(app_with(**config))
    assert (found.redis_url, found.redis_options) == (url, options)


@pytest.mark.parametrize(
    ("scheme", "taken", "not_taken"),
    [
        ("redis", "db username socket_keepalive max_connections protocol", "ssl_ca_certs master_name host"),
        ("rediss", "db socket_keepalive ssl_ca_certs ssl_min_version max_connections", "ssl master_name"),
        ("unix", "db password socket_timeout health_check_interval max_connections", "path socket_keepalive"),
        ("sentinel", "db ssl master_name sentinel_kwargs ssl_ca_certs socket_keepalive", "host self kwargs"),
    ],
)
def test_each_kind_of_connection_takes_the_options_that_redis_py_gives_it(
    scheme: str, taken: str, not_taken: str
) -> None:
    assert set(taken.split()) <= set(OPTIONS[scheme])
    ours = {"retry", "retry_on_timeout", "decode_responses", "connection_class"}
    assert not (set(not_taken.split()) | ours) & set(OPTIONS[scheme])


# -- which policy ------------------------------------------------------------------------------------------

LAYERED: dict[str, Any] = {
    "misfire_instruction": "do_nothing",
    "misfire_instructions": {"endless": "fire_now"},
    "misfire_threshold": 100,
    "misfire_on_missed": "shop.alert",
    "misfire_policies": {
        "named": {"instruction": "fire_once_now", "max_catch_up": 3},
        "off": False,
        "whole": MisfirePolicy(MisfireInstruction.IGNORE_MISFIRE_POLICY, max_lateness=60),
    },
}


@pytest.mark.parametrize(
    ("entry", "misfire", "trigger_type", "expected"),
    [
        ("x", None, "cron", MisfirePolicy("do_nothing", 100, None, None, "shop.alert")),
        ("x", True, "cron", MisfirePolicy("do_nothing", 100, None, None, "shop.alert")),
        ("x", None, "endless", MisfirePolicy("fire_now", 100, None, None, "shop.alert")),
        ("x", {"threshold": 5}, "endless", MisfirePolicy("fire_now", 5, None, None, "shop.alert")),
        ("x", {"threshold": "auto"}, "cron", MisfirePolicy("do_nothing", "auto", None, None, "shop.alert")),
        ("x", {"on_missed": None}, "cron", MisfirePolicy("do_nothing", 100)),
        ("x", "smart_policy", "endless", MisfirePolicy("smart_policy", 100, None, None, "shop.alert")),
        ("x", MisfireInstruction.FIRE_NOW, "once", MisfirePolicy("fire_now", 100, None, None, "shop.alert")),
        ("x", MisfirePolicy(max_catch_up=2), "cron", MisfirePolicy("do_nothing", 100, 2, None, "shop.alert")),
        ("x", {}, "cron", MisfirePolicy("do_nothing", 100, None, None, "shop.alert")),
        ("x", False, "cron", None),
        ("named", None, "endless", MisfirePolicy("fire_once_now", 100, 3, None, "shop.alert")),
        ("named", True, "cron", MisfirePolicy("fire_once_now", 100, 3, None, "shop.alert")),
        ("named", {"threshold": 5}, "cron", MisfirePolicy("fire_once_now", 5, 3, None, "shop.alert")),
        (
            "named",
            {"instruction": "ignore_misfire_policy", "max_catch_up": None},
            "cron",
            MisfirePolicy("ignore_misfire_policy", 100, None, None, "shop.alert"),
        ),
        ("named", False, "cron", None),
        ("whole", None, "cron", MisfirePolicy("ignore_misfire_policy", 100, None, 60, "shop.alert")),
        ("off", None, "cron", None),
        ("off", True, "cron", MisfirePolicy("do_nothing", 100, None, None, "shop.alert")),
        ("off", "fire_once_now", "cron", MisfirePolicy("fire_once_now", 100, None, None, "shop.alert")),
    ],
)
def test_a_policy_is_found_key_by_key_from_the_entry_to_the_app(
    entry: str, misfire: Any, trigger_type: str, expected: MisfirePolicy | None
) -> None:
    found = read_settings(app_with(**LAYERED)).policy_for(entry, misfire, TriggerType(trigger_type))
    assert found == expected


def test_read_config_gives_every_entry_its_policy() -> None:
    app = app_with(misfire_instruction="do_nothing")
    entries = {
        "hourly": HOURLY
        | {"misfire": "ignore_misfire_policy", "args": (1,), "kwargs": {"a": 1}, "relative": False},
        "noise": {"task": "shop.noise", "schedule": 5.0, "misfire": False},
        "stocks": {"task": "shop.stocks", "schedule": timedelta(minutes=15), "options": {"queue": "low"}},
        "made": ScheduleEntry(name="made", task="shop.made", schedule=crontab(), app=app),
    }
    found, checked = read_config(app, entries)
    assert found == read_settings(app)
    assert {name: entry.policy for name, entry in checked.items()} == {
        "hourly": MisfirePolicy("ignore_misfire_policy"),
        "noise": None,
        "stocks": MisfirePolicy("do_nothing"),
        "made": MisfirePolicy("do_nothing"),
    }


def test_a_policy_asked_for_later_is_refused_with_the_same_words() -> None:
    found = read_settings(app_with(misfire_policies={"x": {"instruction": "fire_now", "threshold": 5}}))
    assert problems_of(lambda: found.policy_for("x", {"max_catch_up": 0}, TriggerType.CRON)) == (
        "celery_misfire: misfire_policies['x'].instruction: 'fire_now' does not fit a cron schedule. "
        f"Allowed for cron: {FIT_CRON}.",
        "celery_misfire: beat_schedule['x'].misfire.max_catch_up: expected a whole number from 1, got 0. "
        "To run nothing use the instruction 'do_nothing'.",
    )
    assert found.policy_for("x", None, TriggerType.ENDLESS) == MisfirePolicy("fire_now", 5)


def test_an_app_default_for_repeated_schedules_needs_one_for_cron() -> None:
    found = read_settings(
        app_with(misfire_instruction="fire_now", misfire_instructions={"cron": "do_nothing"})
    )
    assert found.policy_for("x", None, TriggerType.CRON) == MisfirePolicy("do_nothing")
    assert found.policy_for("x", None, TriggerType.ONCE) == MisfirePolicy("fire_now")


def test_h_in_a_cron_expression_is_checked_with_the_name_of_the_entry() -> None:
    entries = {name: {"task": "shop.x", "schedule": cron("0 3 H 2 *")} for name in ("stocks", "weekly")}
    # For "weekly" it is a day that February does not have.
    assert problems_of(lambda: read_config(app_with(), entries)) == (
        "celery_misfire: beat_schedule['weekly'].schedule: cron expression '0 3 H 2 *': day_of_month: "
        "day 30 and * never comes in month 2; allowed are dates that exist.",
    )


def test_a_schedule_whose_own_code_fails_does_not_stop_the_start() -> None:
    class Failing(BaseSchedule):
        def __getattribute__(self, name: str) -> Any:
            if name in ("remaining_estimate", "as_trigger"):
                raise KeyError(name)
            return super().__getattribute__(name)

        def is_due(self, last_run_at: Any) -> tuple[bool, datetime]:
            raise KeyError

    _, checked = read_config(app_with(), {"x": {"task": "shop.x", "schedule": Failing()}, "y": HOURLY})
    assert {name: entry.policy for name, entry in checked.items()} == dict.fromkeys("xy", MisfirePolicy())


def test_a_scheduler_may_allow_more_keys() -> None:
    entry = HOURLY | {"enabled": True}
    assert len(problems_of(lambda: read_config(app_with(), {"x": entry}))) == 1
    _, checked = read_config(app_with(), {"x": entry}, (*ENTRY_KEYS, "enabled"))
    assert checked["x"].policy == MisfirePolicy()


# -- warnings ----------------------------------------------------------------------------------------------


def test_an_ordinary_configuration_gives_no_warning() -> None:
    entries = {"x": HOURLY | {"options": {"expires": datetime(2027, 1, 1, tzinfo=UTC)}}}
    app = app_with(misfire_threshold=60)
    assert warnings_for(app, *read_config(app, entries)) == []


def test_arguments_that_beat_calls_for_their_value_are_not_those_that_are_sent() -> None:
    def now() -> str:
        return "now"

    values = {"args": [1, BeatLazyFunc(now)], "kwargs": {"at": BeatLazyFunc(now), "shop": "a"}}
    app = app_with()
    assert warnings_for(app, *read_config(app, {"x": HOURLY | values})) == []
    values["args"].append(object())
    assert [line.split(": ")[1] for line in warnings_for(app, *read_config(app, {"x": HOURLY | values}))] == [
        "beat_schedule['x'].args"
    ]


def _step() -> None:
    """A task."""


@pytest.mark.parametrize(("make", "kind"), [(chain, "a chain"), (group, "a group")])
def test_what_no_worker_can_run_as_a_task_is_refused(make: Any, kind: str) -> None:
    app = app_with()
    task = app.task(_step, name="shop.step")
    app.add_periodic_task(60.0, make(task.s(), task.s()), name="x")
    assert problems_of(lambda: read_config(app, app.conf.beat_schedule)) == (
        f"celery_misfire: beat_schedule['x'].task: beat sends single tasks, and {kind} is none: workers fail "
        "on it. Write a task that sends it, and schedule that task.",
    )


def test_a_chord_and_the_maps_are_tasks() -> None:
    app = app_with()
    task = app.task(_step, name="shop.step")
    for name, signature in {
        "chord": chord([task.s()], task.s()),
        "map": task.map([1]),
        "starmap": task.starmap([(1,)]),
        "chunks": task.chunks([(1,)], 1),
    }.items():
        app.add_periodic_task(60.0, signature, name=name)
    assert set(read_config(app, app.conf.beat_schedule)[1]) == {"chord", "map", "starmap", "chunks"}


# -- the error of a missed run -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, "'reports' missed 1 run scheduled for 2026-03-01T09:00:00+00:00 (scheduler_down, do_nothing)"),
        (
            2,
            "'reports' missed 2 runs scheduled from 2026-03-01T09:00:00+00:00 to 2026-03-01T10:00:00+00:00 "
            "(scheduler_down, do_nothing)",
        ),
    ],
)
def test_a_missed_run_tells_what_was_missed_and_survives_pickle(count: int, expected: str) -> None:
    first = datetime(2026, 3, 1, 9, tzinfo=UTC)
    missed = MissedFire(
        entry="reports",
        task="shop.reports",
        task_id="0f",
        first=first,
        last=first + timedelta(hours=count - 1),
        count=count,
        reason=Reason.SCHEDULER_DOWN,
        instruction=MisfireInstruction.DO_NOTHING,
        detected_at=first + timedelta(hours=2),
    )
    error = TaskMissed.from_missed(missed)
    assert error.args == (expected,)
    assert pickle.loads(pickle.dumps(error)).missed == missed
    # Celery makes it again like this, from JSON results.
    assert TaskMissed(*error.args).missed is None
