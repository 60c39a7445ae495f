from __future__ import annotations

import math
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from inspect import signature
from typing import Any

import pytest
import redis
from celery import Celery
from celery.beat import ScheduleEntry
from celery.exceptions import ImproperlyConfigured
from celery.schedules import BaseSchedule, crontab, schedule
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_misfire import conf
from celery_misfire.conf import (
    ENTRY_KEYS,
    Settings,
    read_config,
    read_settings,
    unknown_policies,
    warnings_for,
)
from celery_misfire.exceptions import MisfireConfigError, MisfireError, TaskMissed
from celery_misfire.misfire import MisfireInstruction, MisfirePolicy, MissedFire, Reason, TriggerType

BROKER = {"broker_url": "redis://localhost:6379/0"}
HOURLY = {"task": "shop.reports", "schedule": crontab(minute=0)}
FIT_CRON = "smart_policy, ignore_misfire_policy, fire_once_now, do_nothing"
FIT_ALL = ", ".join(MisfireInstruction)
ALL_SETTINGS = ", ".join(f"misfire_{f.name}" for f in fields(Settings))
UNREADABLE = "cannot be read as a URL. In a password write special characters as %XX, for example '/' as %2F."
NAMESPACE_RULE = "Set misfire_namespace to 1 to 64 of a-z, A-Z, 0-9, '_', '-', '.'."
LONG = "x" * 300


@pytest.fixture(autouse=True)
def _no_urls_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.delenv(name, raising=False)


def app_with(main: str | None = "shop", /, **config: Any) -> Celery:
    app = Celery(main, set_as_current=False)
    app.conf.update(BROKER | config)
    return app


def problems_of(read: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(MisfireConfigError) as caught:
        read()
    return caught.value.problems


class BrokenRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


# Settings, then the problems without "celery_misfire: ".
WRONG_SETTINGS: list[tuple[dict[str, Any], list[str]]] = [
    # names
    ({"misfire_treshold": 30}, ["misfire_treshold: unknown setting. Did you mean 'misfire_threshold'?"]),
    ({"misfire_redis": 30}, ["misfire_redis: unknown setting. Did you mean 'misfire_redis_url'?"]),
    ({"misfire_xyz": 30}, [f"misfire_xyz: unknown setting. Allowed: {ALL_SETTINGS}."]),
    ({"MISFIRE_HISTORY": 5}, ["MISFIRE_HISTORY: is not read under this name. Write 'misfire_history'."]),
    (
        {"CELERY_MISFIRE_HISTORY": 5},
        ["CELERY_MISFIRE_HISTORY: is not read under this name. Write 'misfire_history'."],
    ),
    # seconds
    *(
        (
            {f"misfire_{name}": value},
            [f"misfire_{name}: expected a number of seconds > 0{also}, got {shown}."],
        )
        for name, also in (
            ("threshold", " or 'auto'"),
            ("check_rate", ""),
            ("lease_ttl", ""),
            ("lease_renew", ""),
            ("standby_poll", ""),
        )
        for value, shown in (
            ("30s", "'30s'"),
            (True, "True"),
            (math.nan, "nan"),
            (math.inf, "inf"),
            (0, "0"),
            (-1.5, "-1.5"),
            (timedelta(0), "0.0"),
            ([30], "[30]"),
            (LONG, f"'{'x' * 76}..."),
        )
    ),
    (
        {"misfire_threshold": "automatic"},
        ["misfire_threshold: expected a number of seconds > 0 or 'auto', got 'automatic'."],
    ),
    (
        {"misfire_check_rate": 1e300},
        ["misfire_check_rate: expected seconds, got more than 100 years: 1e+300."],
    ),
    (
        {"misfire_lease_ttl": 10**60},
        [f"misfire_lease_ttl: expected seconds, got more than 100 years: {10**60}."],
    ),
    (
        {"misfire_lease_ttl": 10**400},
        [f"misfire_lease_ttl: expected seconds, got more than 100 years: 1{'0' * 76}...."],
    ),
    (
        {"misfire_lease_renew": 20},
        [
            "misfire_lease_renew: 20 must be less than half of misfire_lease_ttl (30). "
            "Set it to 10, for example."
        ],
    ),
    (
        {"misfire_lease_ttl": 20, "misfire_lease_renew": 10},
        [
            "misfire_lease_renew: 10 must be less than half of misfire_lease_ttl (20). "
            "Set it to 6.67, for example."
        ],
    ),
    (
        {"misfire_standby_poll": 30},
        ["misfire_standby_poll: 30 must be less than misfire_lease_ttl (30). Set it to 5, for example."],
    ),
    # words, switches, counts
    (
        {"misfire_missed_results": "sumary"},
        ["misfire_missed_results: 'sumary' is unknown. Did you mean 'summary'? Allowed: summary, each."],
    ),
    ({"misfire_missed_results": 1}, ["misfire_missed_results: 1 is unknown. Allowed: summary, each."]),
    ({"misfire_on_resume": "skip"}, ["misfire_on_resume: 'skip' is unknown. Allowed: reschedule, misfire."]),
    (
        {"misfire_result_state": "missed"},
        ["misfire_result_state: 'missed' is unknown. Did you mean 'MISSED'? Allowed: MISSED, FAILURE."],
    ),
    *(
        ({f"misfire_{name}": value}, [f"misfire_{name}: expected True or False, got {value!r}."])
        for name in ("send_task_failure", "worker_guard", "deduplicate")
        for value in ("yes", 1, 0)
    ),
    *(
        ({"misfire_history": value}, [f"misfire_history: expected a whole number >= 0, got {value!r}."])
        for value in (-1, 1.5, "10", True)
    ),
    ({"misfire_on_missed": 3}, ["misfire_on_missed: expected the name of a task, got 3."]),
    ({"misfire_on_missed": ""}, ["misfire_on_missed: expected the name of a task, got ''."]),
    # instructions
    (
        {"misfire_instruction": "fire_once"},
        [f"misfire_instruction: 'fire_once' is unknown. Did you mean 'fire_once_now'? Allowed: {FIT_ALL}."],
    ),
    (
        {"misfire_instruction": "MISFIRE_INSTRUCTION_DO_NOTHING"},
        [
            "misfire_instruction: 'MISFIRE_INSTRUCTION_DO_NOTHING' is unknown. "
            f"Did you mean 'do_nothing'? Allowed: {FIT_ALL}."
        ],
    ),
    ({"misfire_instruction": ["x"]}, [f"misfire_instruction: ['x'] is unknown. Allowed: {FIT_ALL}."]),
    (
        {"misfire_instruction": 1},
        [
            "misfire_instruction: expected a name, got 1. "
            "Quartz number 1 is 'fire_once_now' for cron, 'fire_now' for once, fixed and endless."
        ],
    ),
    (
        {"misfire_instruction": -1},
        [
            "misfire_instruction: expected a name, got -1. "
            "Quartz number -1 is 'ignore_misfire_policy' for every type."
        ],
    ),
    ({"misfire_instruction": 77}, [f"misfire_instruction: expected a name, got 77. Allowed: {FIT_ALL}."]),
    (
        {"misfire_instruction": "fire_now"},
        [
            "misfire_instruction: 'fire_now' does not fit a cron schedule. "
            f"Set misfire_instructions = {{'cron': ...}} to one of {FIT_CRON}."
        ],
    ),
    ({"misfire_instructions": "do_nothing"}, ["misfire_instructions: expected a dict, got str."]),
    (
        {"misfire_instructions": {"interval": "fire_now", "cron": "fire_now", "once": 4, "fixed": "ignore"}},
        [
            "misfire_instructions: 'interval' is unknown. Allowed: once, fixed, endless, cron.",
            "misfire_instructions['cron']: 'fire_now' does not fit a cron schedule. "
            f"Allowed for cron: {FIT_CRON}.",
            "misfire_instructions['once']: expected a name, got 4. "
            "Quartz number 4 is 'reschedule_next_with_remaining_count' for once, fixed and endless.",
            "misfire_instructions['fixed']: 'ignore' is unknown. "
            f"Did you mean 'ignore_misfire_policy'? Allowed for fixed: {FIT_ALL}.",
        ],
    ),
    # policies, whether or not an entry has the name
    ({"misfire_policies": ["x"]}, ["misfire_policies: expected a dict, got list."]),
    (
        {"misfire_policies": {"a": {"thresold": 5, "threshold": "5s"}, "b": 2.5}},
        [
            "misfire_policies['a']: unknown key 'thresold'. Did you mean 'threshold'?",
            "misfire_policies['a'].threshold: expected a number of seconds > 0 or 'auto', got '5s'.",
            "misfire_policies['b']: expected a name, a dict such as {'instruction': 'fire_once_now'}, "
            "a MisfirePolicy or False, got 2.5.",
        ],
    ),
    # options of redis-py
    ({"misfire_redis_options": [("db", 1)]}, ["misfire_redis_options: expected a dict, got list."]),
    (
        {"misfire_redis_options": {"socket_timout": 3, "decode_responses": True, 5: 5}},
        [
            "misfire_redis_options: unknown key 'socket_timout'. Did you mean 'socket_timeout'?",
            "misfire_redis_options: unknown key 'decode_responses'. Use the connection options of redis-py.",
            "misfire_redis_options: unknown key 5. Use the connection options of redis-py.",
        ],
    ),
    (
        {"misfire_redis_options": {"ssl_ca_certs": "/ca.pem", "master_name": "m"}},
        [
            "misfire_redis_options: 'ssl_ca_certs' does not apply to redis://, "
            "only to rediss://, sentinel://. Remove it or change the URL.",
            "misfire_redis_options: 'master_name' does not apply to redis://, only to sentinel://. "
            "Remove it or change the URL.",
        ],
    ),
    (
        {"misfire_redis_options": {"socket_timeout": None}},
        ["misfire_redis_options['socket_timeout']: expected a number of seconds > 0, got None."],
    ),
    (
        {"misfire_redis_options": {"socket_timeout": 60}},
        [
            "misfire_redis_options['socket_timeout']: 60 must be less than misfire_lease_ttl (30). "
            "Set it to 5, for example."
        ],
    ),
    # where the state lives
    (
        {"broker_url": "amqp://guest:guest@localhost//"},
        [
            "misfire_redis_url: not set, and broker_url (amqp) is not Redis. "
            "Set misfire_redis_url, for example 'redis://localhost:6379/1'."
        ],
    ),
    (
        {"broker_url": "sqs://", "result_backend": "db+sqlite:///results.db"},
        [
            "misfire_redis_url: not set, and broker_url (sqs) is not Redis. "
            "Set misfire_redis_url, for example 'redis://localhost:6379/1'."
        ],
    ),
    (
        {"broker_url": "localhost"},
        [
            "misfire_redis_url: not set, and broker_url is not Redis. "
            "Set misfire_redis_url, for example 'redis://localhost:6379/1'."
        ],
    ),
    ({"broker_url": "redis://:pa/ss@localhost/0"}, [f"broker_url: {UNREADABLE}"]),
    *(
        ({"misfire_redis_url": value}, [f"misfire_redis_url: {text}"])
        for value, text in (
            (6379, "expected a string such as 'redis://localhost:6379/1', got int."),
            (b"redis://", "expected a string such as 'redis://localhost:6379/1', got bytes."),
            ("localhost:6379", "has no scheme. Use redis://, rediss://, unix://, sentinel://."),
            (
                "reddis://localhost",
                "unknown scheme 'reddis'. Did you mean 'redis'? Use redis://, rediss://, unix://, sentinel://.",
            ),
            ("my secret://h", "unknown scheme. Use redis://, rediss://, unix://, sentinel://."),
            ("redis://localhost/shop", "the database must be a number, as in 'redis://localhost:6379/1'."),
            ("redis://:pa/ss@h:6379/1", UNREADABLE),
            ("redis://:12/3@h:6379/1", UNREADABLE),
            ("redis://:pa#ss@h:6379/1", UNREADABLE),
            ("redis://h:port/1", UNREADABLE),
            ("redis://a/1;redis://b/1", "expected one URL, got several. Only sentinel:// takes several."),
            ("redis://h/1?socket_timout=3", "unknown key 'socket_timout'. Did you mean 'socket_timeout'?"),
            (
                "redis://h/1?ssl_cert_reqs=none",
                "'ssl_cert_reqs' does not apply to redis://, only to rediss://, sentinel://. "
                "Remove it or change the URL.",
            ),
            (
                "unix://run/redis.sock",
                "unix:// needs the full path of a socket, as in 'unix:///run/redis.sock?db=1'.",
            ),
            ("sentinel://", "sentinel:// needs the host of a sentinel, as in 'sentinel://h1:26379'."),
            (
                "sentinel://h1:26379;sentinel://h2:26379",
                "sentinel:// needs a master name. Set misfire_redis_options = {'master_name': 'mymaster'}.",
            ),
        )
    ),
    # namespace
    ({"misfire_namespace": 5}, ["misfire_namespace: expected a string, got 5."]),
    (
        {"misfire_namespace": "my app{1}"},
        [f"misfire_namespace: 'my app{{1}}' is no namespace. {NAMESPACE_RULE}"],
    ),
    ({"misfire_namespace": ""}, [f"misfire_namespace: '' is no namespace. {NAMESPACE_RULE}"]),
    ({"misfire_namespace": "shop\n"}, [f"misfire_namespace: 'shop\\n' is no namespace. {NAMESPACE_RULE}"]),
    (
        {"misfire_namespace": "__main__"},
        ["misfire_namespace: '__main__' is any script's name. Set misfire_namespace, for example 'shop'."],
    ),
]

# One entry 'x' (or a whole schedule), then the problems without "celery_misfire: ".
WRONG_ENTRIES: list[tuple[Any, list[str]]] = [
    (
        {"task": None},
        [
            "beat_schedule['x']: 'task' is missing. Add it, for example 'task': 'shop.reports'.",
            "beat_schedule['x']: 'schedule' is missing. Add it, for example 'schedule': crontab(minute=0).",
        ],
    ),
    ("shop.reports", ["beat_schedule['x']: expected a dict, got str."]),
    # keys
    (
        HOURLY | {"misfre": "do_nothing"},
        ["beat_schedule['x']: unknown key 'misfre'. Did you mean 'misfire'?"],
    ),
    (
        HOURLY | {"zone": "UTC"},
        [
            "beat_schedule['x']: unknown key 'zone'. "
            "Allowed: task, schedule, args, kwargs, options, relative, misfire."
        ],
    ),
    (HOURLY | {"threshold": 30}, ["beat_schedule['x']: 'threshold' belongs inside 'misfire'."]),
    (
        HOURLY | {"options": {"threshold": 30, "queue": "low"}},
        ["beat_schedule['x'].options: 'threshold' belongs inside 'misfire', not in 'options'."],
    ),
    (
        HOURLY | {"options": {"misfire": "do_nothing"}},
        [
            "beat_schedule['x'].options: 'misfire' belongs beside 'options', not inside. "
            "With add_periodic_task use misfire_policies."
        ],
    ),
    (
        HOURLY | {"options": {"task_id": "daily"}},
        ["beat_schedule['x'].options: 'task_id' is set by celery_misfire. Remove it."],
    ),
    (
        HOURLY | {"options": {"headers": {"misfire": 1}}},
        ["beat_schedule['x'].options.headers: 'misfire' is reserved. Give the header another name."],
    ),
    # types
    (
        HOURLY | {"task": len},
        ["beat_schedule['x'].task: expected the name of a task, got builtin_function_or_method."],
    ),
    (HOURLY | {"args": "abc"}, ["beat_schedule['x'].args: expected a list or a tuple, got str."]),
    (HOURLY | {"kwargs": [1]}, ["beat_schedule['x'].kwargs: expected a dict, got list."]),
    (HOURLY | {"options": "low"}, ["beat_schedule['x'].options: expected a dict, got str."]),
    # schedules
    *(
        ({"task": "shop.stocks", "schedule": value}, [f"beat_schedule['x'].schedule: {text}"])
        for value, text in (
            ("*/5 * * * *", "got the string '*/5 * * * *'. Use crontab(minute='*/5')."),
            (
                "0 4 * * mon",
                "got the string '0 4 * * mon'. Use crontab(minute='0', hour='4', day_of_week='mon').",
            ),
            (
                "0 0 12 * * ?",
                "got the string '0 0 12 * * ?'. Use celery_misfire.schedules.cron('0 0 12 * * ?').",
            ),
            (
                "hourly",
                "got the string 'hourly'. Use a schedule such as crontab(minute=0), a number of seconds "
                "or a timedelta.",
            ),
            (0, "expected a number of seconds > 0, got 0."),
            (-5.0, "expected a number of seconds > 0, got -5.0."),
            (True, "expected a number of seconds > 0, got True."),
            (math.nan, "expected a number of seconds > 0, got nan."),
            (timedelta(seconds=-5), "expected a number of seconds > 0, got -5.0."),
            (10**400, f"expected seconds, got more than 100 years: 1{'0' * 76}...."),
            (schedule(0), "needs an interval of at least a millisecond, got datetime.timedelta(0)."),
            (
                [5],
                "expected a schedule such as crontab(minute=0), a number of seconds or a timedelta, "
                "got list.",
            ),
            (
                crontab,
                "expected a schedule such as crontab(minute=0), a number of seconds or a timedelta, "
                "got type.",
            ),
        )
    ),
    # misfire
    *(
        (HOURLY | {"misfire": value}, [f"beat_schedule['x'].misfire{text}"])
        for value, text in (
            (
                "fire_once",
                f": 'fire_once' is unknown. Did you mean 'fire_once_now'? Allowed for cron: {FIT_CRON}.",
            ),
            (
                {"instruction": "Fire-Once-Now"},
                f".instruction: 'Fire-Once-Now' is unknown. Did you mean 'fire_once_now'? "
                f"Allowed for cron: {FIT_CRON}.",
            ),
            (
                "reschedule_next_with_remaining_count",
                ": 'reschedule_next_with_remaining_count' does not fit a cron schedule. "
                f"Allowed for cron: {FIT_CRON}.",
            ),
            (
                MisfirePolicy(MisfireInstruction.FIRE_NOW),
                f".instruction: 'fire_now' does not fit a cron schedule. Allowed for cron: {FIT_CRON}.",
            ),
            (
                1,
                ": expected a name, got 1. Quartz number 1 is 'fire_once_now' for cron.",
            ),
            ({"instruction": 3}, f".instruction: expected a name, got 3. Allowed for cron: {FIT_CRON}."),
            (
                ["skip"],
                ": expected a name, a dict such as {'instruction': 'fire_once_now'}, "
                "a MisfirePolicy or False, got ['skip'].",
            ),
            (
                BrokenRepr(),
                ": expected a name, a dict such as {'instruction': 'fire_once_now'}, "
                "a MisfirePolicy or False, got <BrokenRepr>.",
            ),
            ({"thresold": 5}, ": unknown key 'thresold'. Did you mean 'threshold'?"),
            (
                {"grace": 5},
                ": unknown key 'grace'. "
                "Allowed: instruction, threshold, max_catch_up, max_lateness, on_missed.",
            ),
            ({"threshold": None}, ".threshold: expected a number of seconds > 0 or 'auto', got None."),
            ({"max_lateness": "1h"}, ".max_lateness: expected a number of seconds > 0, got '1h'."),
            (
                {"max_catch_up": 0},
                ".max_catch_up: expected a whole number from 1, got 0. "
                "To run nothing use the instruction 'do_nothing'.",
            ),
            (
                {"max_catch_up": LONG},
                f".max_catch_up: expected a whole number from 1, got '{'x' * 76}.... "
                "To run nothing use the instruction 'do_nothing'.",
            ),
            ({"on_missed": 5}, ".on_missed: expected the name of a task, got 5."),
        )
    ),
    (
        {"task": "shop.stocks", "schedule": 5.0, "misfire": 1},
        [
            "beat_schedule['x'].misfire: expected a name, got 1. "
            "Quartz number 1 is 'fire_now' for once, fixed and endless."
        ],
    ),
    # a wrong schedule does not hide a wrong policy
    (
        {"task": "shop.stocks", "schedule": 0, "misfire": "skip"},
        [
            "beat_schedule['x'].schedule: expected a number of seconds > 0, got 0.",
            f"beat_schedule['x'].misfire: 'skip' is unknown. Allowed: {FIT_ALL}.",
        ],
    ),
]

NAME_RULE = "beat_schedule: entry name must be a non-empty string of at most 200 characters"


def _id(row: object) -> str | None:
    return row[0][:60] if isinstance(row, list) else None


@pytest.mark.parametrize(("config", "expected"), WRONG_SETTINGS, ids=_id)
def test_a_wrong_setting_is_told_word_for_word(config: dict[str, Any], expected: list[str]) -> None:
    problems = problems_of(lambda: read_settings(app_with(**config)))
    assert list(problems) == [f"celery_misfire: {line}" for line in expected]


@pytest.mark.parametrize(("entry", "expected"), WRONG_ENTRIES, ids=_id)
def test_a_wrong_entry_is_told_word_for_word(entry: Any, expected: list[str]) -> None:
    problems = problems_of(lambda: read_config(app_with(), {"x": entry}))
    assert list(problems) == [f"celery_misfire: {line}" for line in expected]


@pytest.mark.parametrize(
    ("beat_schedule", "expected"),
    [
        ([HOURLY], "beat_schedule: expected a dict of entries, got list."),
        ({"": HOURLY}, f"{NAME_RULE}, got ''."),
        ({7: HOURLY}, f"{NAME_RULE}, got 7."),
        ({LONG: HOURLY}, f"{NAME_RULE}, got '{'x' * 76}...."),
        (
            {"two\nlines": HOURLY | {"misfire": "skip"}},
            f"beat_schedule['two\\nlines'].misfire: 'skip' is unknown. Allowed for cron: {FIT_CRON}.",
        ),
    ],
)
def test_a_wrong_schedule_is_told_word_for_word(beat_schedule: Any, expected: str) -> None:
    problems = problems_of(lambda: read_config(app_with(), beat_schedule))
    assert problems == (f"celery_misfire: {expected}",)


@pytest.mark.parametrize(
    ("main", "expected"),
    [
        (
            None,
            "not set and the app has no name (Celery() without main). "
            "Set misfire_namespace, for example 'shop'.",
        ),
        ("__main__", "'__main__' is any script's name. Set misfire_namespace, for example 'shop'."),
        ("my proj", f"'my proj' is no namespace. {NAMESPACE_RULE}"),
    ],
)
def test_an_app_without_a_usable_name_needs_a_namespace(main: str | None, expected: str) -> None:
    assert problems_of(lambda: read_settings(app_with(main))) == (
        f"celery_misfire: misfire_namespace: {expected}",
    )
    assert read_settings(app_with(main, misfire_namespace="my.proj-2_B")).namespace == "my.proj-2_B"


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
    "instruction": "do_nothing",
    "instructions": {"endless": "fire_now", TriggerType.CRON: MisfireInstruction.FIRE_ONCE_NOW},
    "policies": {"a": "do_nothing", "b": False, "c": {"threshold": timedelta(minutes=1)}},
    "threshold": timedelta(seconds=90),
    "missed_results": "each",
    "on_missed": "shop.alert",
    "on_resume": "misfire",
    "send_task_failure": False,
    "result_state": "FAILURE",
    "worker_guard": False,
    "deduplicate": False,
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
    instruction=MisfireInstruction.DO_NOTHING,
    instructions={
        TriggerType.ENDLESS: MisfireInstruction.FIRE_NOW,
        TriggerType.CRON: MisfireInstruction.FIRE_ONCE_NOW,
    },
    policies={"a": {"instruction": MisfireInstruction.DO_NOTHING}, "b": False, "c": {"threshold": 60.0}},
    threshold=90.0,
    missed_results="each",
    on_missed="shop.alert",
    on_resume="misfire",
    send_task_failure=False,
    result_state="FAILURE",
    worker_guard=False,
    deduplicate=False,
    check_rate=5.0,
    lease_ttl=9.0,
    lease_renew=3.5,
    standby_poll=1.0,
    history=0,
)


def _module(name: str, values: Mapping[str, Any]) -> types.ModuleType:
    module = types.ModuleType(name)
    # What a module of settings holds besides: these are no settings.
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
            {"broker_url": "redis://h/1?visibility_timeout=60&socket_timeout=3"},
            "redis://h/1?socket_timeout=3",
            {},
        ),
        (
            {
                "broker_url": "redis://h/1",
                "broker_use_ssl": {"ssl_ca_certs": "/ca", "ssl_cert_reqs": "CERT_REQUIRED"},
            },
            "rediss://h/1",
            {"ssl_ca_certs": "/ca", "ssl_cert_reqs": "required"},
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
    ("scheme", "connection"),
    [
        ("redis", redis.Connection),
        ("rediss", redis.SSLConnection),
        ("unix", redis.UnixDomainSocketConnection),
        ("sentinel", redis.sentinel.SentinelManagedSSLConnection),
    ],
)
def test_redis_py_takes_every_option_that_is_allowed(scheme: str, connection: type) -> None:
    taken = {name for cls in connection.__mro__ for name in signature(cls.__init__).parameters}
    taken |= set(signature(redis.ConnectionPool.__init__).parameters)
    ours = {"ssl", "master_name", "sentinel_kwargs"} if scheme == "sentinel" else set()
    assert set(conf._REDIS_OPTIONS[scheme]) - ours <= taken
    tls = {name for name in taken if name.startswith("ssl_") and not name.endswith("verify_flags")}
    assert {name for name in conf._REDIS_OPTIONS[scheme] if name.startswith("ssl_")} == tls


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
    found, policies = read_config(app, entries)
    assert found == read_settings(app)
    assert policies == {
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


def test_a_schedule_whose_own_code_fails_does_not_stop_the_start() -> None:
    class Failing(BaseSchedule):
        def __getattribute__(self, name: str) -> Any:
            if name in ("remaining_estimate", "as_trigger"):
                raise KeyError(name)
            return super().__getattribute__(name)

        def is_due(self, last_run_at: Any) -> tuple[bool, datetime]:
            raise KeyError

    _, policies = read_config(app_with(), {"x": {"task": "shop.x", "schedule": Failing()}, "y": HOURLY})
    assert policies == {"x": MisfirePolicy(), "y": MisfirePolicy()}


def test_a_scheduler_may_allow_more_keys() -> None:
    entry = HOURLY | {"enabled": True}
    assert len(problems_of(lambda: read_config(app_with(), {"x": entry}))) == 1
    assert read_config(app_with(), {"x": entry}, (*ENTRY_KEYS, "enabled"))[1] == {"x": MisfirePolicy()}


# -- warnings ----------------------------------------------------------------------------------------------


def test_what_is_hardly_meant_is_warned_of() -> None:
    app = app_with(
        misfire_policies={"reprots": "do_nothing", "zzz": False, "quick": {"threshold": 60}},
        beat_cron_starting_deadline=7200,
    )
    entries = {
        "reports": HOURLY | {"options": {"countdown": 30, "eta": None}},
        "quick": HOURLY | {"options": {"expires": 10}},
        "short": HOURLY | {"options": {"expires": timedelta(seconds=4)}, "misfire": {"threshold": 5}},
        "fine": HOURLY | {"options": {"expires": 5}, "misfire": {"threshold": 5}},
        "auto": HOURLY | {"options": {"expires": 5}},
        "off": HOURLY | {"options": {"expires": 5}, "misfire": False},
    }
    found, _ = read_config(app, entries)
    about_names = [
        "celery_misfire: misfire_policies['reprots']: no entry has this name. Did you mean 'reports'?",
        "celery_misfire: misfire_policies['zzz']: no entry has this name.",
    ]
    assert unknown_policies(found, entries) == about_names
    assert warnings_for(app, found, entries) == [
        *about_names,
        "celery_misfire: beat_cron_starting_deadline: 7200 is not used here. "
        "Use max_lateness in a misfire policy.",
        "celery_misfire: beat_schedule['reports'].options: 'countdown' holds the run back after it was sent, "
        "and it counts as on time. Use the schedule for that.",
        "celery_misfire: beat_schedule['quick'].options: a run expires after 10 s, before it is a misfire "
        "(threshold 60 s). Give 'expires' more time.",
        "celery_misfire: beat_schedule['short'].options: a run expires after 4 s, before it is a misfire "
        "(threshold 5 s). Give 'expires' more time.",
    ]


def test_an_ordinary_configuration_gives_no_warning() -> None:
    entries = {"x": HOURLY | {"options": {"expires": datetime(2027, 1, 1, tzinfo=UTC)}}}
    app = app_with(misfire_threshold=60)
    assert warnings_for(app, read_config(app, entries)[0], entries) == []


# -- anything ----------------------------------------------------------------------------------------------

words = st.sampled_from(
    [
        "auto",
        "each",
        "cron",
        "once",
        "do_nothing",
        "fire_now",
        "misfire",
        "redis://h/1",
        "sentinel://h",
        "://",
        "x@",
    ]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, 1e308])
    # Too long for a repr in Python.
    | st.integers(1, 2).map(lambda sign: (-1) ** sign * 10**5000)
    | st.floats()
    | words
    | st.text(max_size=20)
    | st.binary(max_size=5)
    | st.timedeltas()
    | st.datetimes()
    | st.sampled_from([MisfirePolicy("fire_now"), MisfireInstruction.FIRE_NOW, object, crontab])
)
keys = st.sampled_from(
    [
        "instruction",
        "threshold",
        "max_catch_up",
        "cron",
        "endless",
        "socket_timeout",
        "db",
        "headers",
        "misfire",
    ]
) | st.one_of(st.text(max_size=5), st.integers(), st.none())
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
)
setting_names = st.sampled_from([f"misfire_{f.name}" for f in fields(Settings)]) | st.sampled_from(
    ["misfire_x", "MISFIRE_HISTORY", "broker_url", "result_backend", "broker_use_ssl"]
)
schedules = st.sampled_from([5, 5.0, timedelta(hours=1), crontab(), schedule(0)]) | values
entry_values = st.fixed_dictionaries(
    {"task": st.just("t") | values, "schedule": schedules},
    optional=dict.fromkeys((*ENTRY_KEYS[2:], "threshold", "what"), values),
)


@settings(max_examples=300, deadline=None)
@given(
    config=st.dictionaries(setting_names, values, max_size=5),
    entries=st.dictionaries(st.text(max_size=3) | st.integers(), entry_values | values, max_size=3) | values,
)
def test_anything_ends_in_settings_or_in_a_config_error(config: dict[str, Any], entries: Any) -> None:
    app = app_with(**config)
    try:
        found, policies = read_config(app, entries)
    except MisfireConfigError as error:
        lines = error.problems
    else:
        lines = ("fine",)
        assert isinstance(found, Settings)
        assert set(policies) == set(entries)
        assert isinstance(warnings_for(app, found, entries), list)
        assert repr(found)
    assert [len(line.splitlines()) for line in lines] == [1] * (len(lines) or 1)


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
    # As Celery's JSON results make it again.
    assert TaskMissed(*error.args).missed is None
