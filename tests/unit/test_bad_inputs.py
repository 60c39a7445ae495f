"""Every wrong input of the configuration, and word for word what is said about it.

A row has what was given and the whole of each message, without the ``celery_misfire: `` that all begin with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from celery import Celery
from celery.schedules import BaseSchedule, crontab, schedule
from kombu.utils.functional import lazy

from celery_misfire.conf.settings import Settings, read_config, read_settings
from celery_misfire.conf.warnings import warnings_for
from celery_misfire.misfire import MisfireInstruction, MisfirePolicy
from celery_misfire.schedules import cron, simple
from tests.support.configs import FIT_CRON, HOURLY, app_with, no_urls_from_outside, problems_of

__all__ = ["no_urls_from_outside"]

FIT_ALL = ", ".join(MisfireInstruction)
ALL_SETTINGS = ", ".join(f"misfire_{f.name}" for f in fields(Settings))
UNREADABLE = "cannot be read as a URL. In a password write special characters as %XX, for example '/' as %2F."
NAMESPACE_RULE = "Set it to 1 to 64 of a-z, A-Z, 0-9, '_', '-', '.'."
NAME_RULE = "beat_schedule: entry name must be a non-empty string of at most 200 characters"
LONG = "x" * 300


@Celery("shop", set_as_current=False).task(name="shop.alert")
def alert(*_: Any, **__: Any) -> None:
    """To be sent with a record of missed runs."""


class Duck:
    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        return False, 5.0


class Empty(BaseSchedule):
    """Derived and not filled in."""


class BrokenRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


#: Settings, then the problems.
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
    (
        {"beat_misfire_policies": {}},
        ["beat_misfire_policies: is not read under this name. Write 'misfire_policies'."],
    ),
    (
        {"CELERY_BEAT_MISFIRE_POLICY": {}},
        ["CELERY_BEAT_MISFIRE_POLICY: unknown setting. Did you mean 'misfire_policies'?"],
    ),
    *(
        (
            {name: "do_nothing"},
            [
                f"{name}: unknown setting. Set misfire_instruction for all entries, misfire_policies for "
                "single ones."
            ],
        )
        for name in ("misfire", "CELERY_MISFIRE")
    ),
    (
        {"timezone": "Europe/Pariss"},
        [
            "timezone: expected the name of a time zone or a tzinfo, got 'Europe/Pariss'. "
            "Did you mean 'Europe/Paris'?"
        ],
    ),
    ({"timezone": 5}, ["timezone: expected the name of a time zone or a tzinfo, got 5."]),
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
    *(
        (
            {"misfire_restart_grace": value},
            [f"misfire_restart_grace: expected a number of seconds >= 0, got {shown}."],
        )
        for value, shown in (("60s", "'60s'"), (False, "False"), (-1, "-1"), (math.nan, "nan"))
    ),
    (
        {"misfire_restart_graze": 5},
        ["misfire_restart_graze: unknown setting. Did you mean 'misfire_restart_grace'?"],
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
    (
        {"misfire_history": 10**30},
        [f"misfire_history: expected at most 10**15 lines, got {10**30}. Set it to 10000, for example."],
    ),
    ({"misfire_lease_ttl": 0.01}, ["misfire_lease_ttl: expected at least 0.1 seconds, got 0.01."]),
    (
        {"misfire_mail_to": "ops@example.com"},
        ["misfire_mail_to: expected a list of mail addresses, got str."],
    ),
    ({"misfire_mail_to": ["ops"]}, ["misfire_mail_to: 'ops' is no mail address."]),
    ({"misfire_on_missed": 3}, ["misfire_on_missed: expected the name of a task, got int."]),
    (
        {"misfire_on_missed": alert.s("canary", to="canary")},
        ["misfire_on_missed: expected the name of a task, got Signature. Write its name, 'shop.alert'."],
    ),
    (
        {"misfire_on_missed": alert},
        ["misfire_on_missed: expected the name of a task, got Task. Write its name, 'shop.alert'."],
    ),
    ({"misfire_on_missed": ("canary",)}, ["misfire_on_missed: expected the name of a task, got tuple."]),
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
            "misfire_redis_options: 'decode_responses' is set by celery_misfire. Remove it.",
            "misfire_redis_options: unknown key 5. Use the connection options of redis-py.",
        ],
    ),
    (
        {"misfire_redis_options": {"ssl_ca_certs": __file__, "master_name": "m"}},
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
    (
        {"misfire_redis_options": {"socket_connect_timeout": 60}},
        [
            "misfire_redis_options['socket_connect_timeout']: 60 must be less than misfire_lease_ttl (30). "
            "Set it to 5, for example."
        ],
    ),
    *(
        (
            {"misfire_redis_url": "rediss://h/1", "misfire_redis_options": {key: value}},
            [f"misfire_redis_options[{key!r}]: {text}"],
        )
        for key, value, text in (
            ("db", "x", "expected a whole number >= 0, got 'x'."),
            ("db", -1, "expected a whole number >= 0, got -1."),
            ("db", None, "expected a whole number >= 0, got None."),
            ("max_connections", "10", "expected a whole number >= 0, got '10'."),
            ("max_connections", -1, "expected a whole number >= 0, got -1."),
            ("socket_read_size", "x", "expected a whole number >= 0, got 'x'."),
            ("health_check_interval", "x", "expected a number of seconds > 0, got 'x'."),
            ("protocol", 5, "expected 2 or 3, got 5."),
            ("protocol", "abc", "expected 2 or 3, got 'abc'."),
            ("socket_keepalive", "yes", "expected True or False, got 'yes'."),
            (
                "socket_keepalive_options",
                5,
                "expected a dict such as {socket.TCP_KEEPIDLE: 60}, got int.",
            ),
            ("password", ["canary"], "expected a string, got list."),
            ("username", {"canary": 1}, "expected a string, got dict."),
            ("credential_provider", 5, "expected an object that has get_credentials(), got int."),
            (
                "credential_provider",
                "x",
                "a credential provider cannot be made of 'x' (ModuleNotFoundError). "
                "Name a class that needs no arguments.",
            ),
            ("ssl_ca_certs", 5, "expected the path of a file, got int."),
            ("ssl_ca_certs", "/x.pem", "file '/x.pem' does not exist."),
            ("ssl_keyfile", "/x.pem", "file '/x.pem' does not exist."),
            ("ssl_ca_path", "/nope", "directory '/nope' does not exist."),
            (
                "ssl_cert_reqs",
                "require",
                "'require' is unknown. Did you mean 'required'? Allowed: none, optional, required.",
            ),
            ("ssl_min_version", "TLSv1.2", "expected a member of ssl.TLSVersion, got 'TLSv1.2'."),
            ("ssl_ciphers", [], "expected a string, got list."),
        )
    ),
    (
        {
            "broker_url": "redis://h/1",
            "broker_use_ssl": {"ssl_ca_certs": "/x.pem"},
        },
        ["broker_use_ssl['ssl_ca_certs']: file '/x.pem' does not exist."],
    ),
    ({"broker_url": "redis://h/1?db=x"}, ["broker_url: 'db': expected a whole number >= 0, got 'x'."]),
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
            ("redis://h:99999/1", "the port must be a number from 1 to 65535."),
            ("redis://h:0/1", "the port must be a number from 1 to 65535."),
            ("redis://:99999/x@h/1", UNREADABLE),
            ("sentinel://h:99999?master_name=m", "the port must be a number from 1 to 65535."),
            (
                "sentinel://h/mymaster",
                "the database must be a number. The name of the master goes into the option 'master_name'.",
            ),
            *(
                (f"redis://h/1?{query}", f"{query.split('=')[0]!r}: {text}")
                for query, text in (
                    ("db=x", "expected a whole number >= 0, got 'x'."),
                    ("socket_timeout=abc", "expected a number of seconds > 0, got 'abc'."),
                    ("socket_timeout=-1", "expected a number of seconds > 0, got -1."),
                    ("socket_connect_timeout=nan", "expected a number of seconds > 0, got nan."),
                    ("max_connections=abc", "expected a whole number >= 0, got 'abc'."),
                    ("protocol=5", "expected 2 or 3, got 5."),
                    (
                        "socket_keepalive_options=5",
                        "expected a dict such as {socket.TCP_KEEPIDLE: 60}, got str.",
                    ),
                )
            ),
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
        ["misfire_namespace: '__main__' is any script's name. Set another one, for example 'shop'."],
    ),
]

#: An entry 'x', then the problems.
WRONG_ENTRIES: list[tuple[Any, list[str]]] = [
    (
        {"task": None},
        [
            "beat_schedule['x']: 'task' is missing. Add it, for example 'task': 'shop.reports'.",
            "beat_schedule['x']: 'schedule' is missing. Add it, for example 'schedule': crontab(minute=0).",
        ],
    ),
    *(
        (
            HOURLY | {"task": task},
            ["beat_schedule['x']: 'task' is missing. Add it, for example 'task': 'shop.reports'."],
        )
        for task in ("", " ")
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
            "Allowed: task, schedule, args, kwargs, options, relative, last_run_at, misfire."
        ],
    ),
    (HOURLY | {"threshold": 30}, ["beat_schedule['x']: 'threshold' belongs inside 'misfire'."]),
    (
        HOURLY | {"misfire_threshold": 30},
        ["beat_schedule['x']: 'misfire_threshold' belongs inside 'misfire', as 'threshold'."],
    ),
    (HOURLY | {"misfire_policy": 30}, ["beat_schedule['x']: 'misfire_policy' belongs inside 'misfire'."]),
    (
        HOURLY | {"options": {"misfire_instruction": "do_nothing", "misfires": 1}},
        [
            "beat_schedule['x'].options: 'misfire_instruction' belongs inside 'misfire', as 'instruction', "
            "not in 'options'.",
            "beat_schedule['x'].options: 'misfires' belongs inside 'misfire', not in 'options'.",
        ],
    ),
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
    *(
        (HOURLY | {"options": {"headers": value}}, [f"beat_schedule['x'].options.headers: {text}"])
        for value, text in (
            ([("misfire", 1)], "expected a dict, got list."),
            ("canary", "expected a dict, got str."),
        )
    ),
    *(
        (HOURLY | {"options": {"expires": value}}, [f"beat_schedule['x'].options.expires: {text}"])
        for value, text in (
            ([1], "expected a number of seconds or a datetime, got list."),
            # Celery sends none of these.
            (timedelta(hours=1), "expected a number of seconds or a datetime, got timedelta."),
            ("soon", "expected a number of seconds or a datetime, got 'soon'."),
        )
    ),
    (
        HOURLY | {"options": {"countdown": "5"}},
        ["beat_schedule['x'].options.countdown: expected a number of seconds, got str."],
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
            ("@daily", "got the string '@daily'. Use celery_misfire.schedules.cron('@daily')."),
            (
                "H H(1-4) * * *",
                "got the string 'H H(1-4) * * *'. Use celery_misfire.schedules.cron('H H(1-4) * * *').",
            ),
            (
                "* * * * password=4711",
                "got the string '* * * * password=***. Use a schedule such as crontab(minute=0), a number of "
                "seconds or a timedelta.",
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
            (Duck(), "Duck is no schedule of Celery's. Make it a subclass of celery.schedules.BaseSchedule."),
            (
                Empty(),
                "Empty has no remaining_estimate() and no is_due() of its own. Write one of them.",
            ),
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
            *(
                (
                    {"max_catch_up": value},
                    f".max_catch_up: expected a whole number from 1, got {value!r}. "
                    "To run nothing use the instruction 'do_nothing'.",
                )
                for value in (-1, 5.5, "10", True, math.nan)
            ),
            (
                {"max_catch_up": LONG},
                f".max_catch_up: expected a whole number from 1, got '{'x' * 76}.... "
                "To run nothing use the instruction 'do_nothing'.",
            ),
            (
                {"on_missed": partial(len, "canary")},
                ".on_missed: expected the name of a task, got partial.",
            ),
            (
                [alert, {"x": (alert.s("canary"), {partial(len, "canary")})}],
                ": expected a name, a dict such as {'instruction': 'fire_once_now'}, "
                "a MisfirePolicy or False, got [Task, {'x': (Signature, {partial})}].",
            ),
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

#: A whole schedule, then the problem.
WRONG_SCHEDULES: list[tuple[Any, list[str]]] = [
    *(
        (value, [f"beat_schedule: expected a dict of entries, got {kind}."])
        for value, kind in (
            ([HOURLY], "list"),
            (None, "NoneType"),
            (False, "bool"),
            (0, "int"),
            (lazy(dict), "lazy"),
        )
    ),
    ({"": HOURLY}, [f"{NAME_RULE}, got ''."]),
    ({7: HOURLY}, [f"{NAME_RULE}, got 7."]),
    ({LONG: HOURLY}, [f"{NAME_RULE}, got '{'x' * 76}...."]),
    ({"\ud800": HOURLY}, [f"{NAME_RULE} that UTF-8 can write, got '\\ud800'."]),
    # a name is no secret, whatever it speaks of; a URL is one, wherever it stands
    (
        {"reset password: daily": HOURLY | {"misfire": "skip"}},
        [f"beat_schedule['reset password: daily'].misfire: 'skip' is unknown. Allowed for cron: {FIT_CRON}."],
    ),
    (
        {"redis://:canary@h": HOURLY | {"misfire": "skip"}},
        [f"beat_schedule['redis://***@h'].misfire: 'skip' is unknown. Allowed for cron: {FIT_CRON}."],
    ),
    (
        {"two\nlines": HOURLY | {"misfire": "skip"}},
        [f"beat_schedule['two\\nlines'].misfire: 'skip' is unknown. Allowed for cron: {FIT_CRON}."],
    ),
]

#: The name of the app, then the problem.
WRONG_NAMES = [
    (
        None,
        [
            "misfire_namespace: not set and the app has no name (Celery() without main). "
            "Set it, for example to 'shop'."
        ],
    ),
    (
        "__main__",
        ["misfire_namespace: '__main__' is any script's name. Set another one, for example 'shop'."],
    ),
    ("my proj", [f"misfire_namespace: 'my proj' is no namespace. {NAMESPACE_RULE}"]),
]


def _id(row: object) -> str | None:
    return row[0][:60] if isinstance(row, list) and row and isinstance(row[0], str) else None


@pytest.mark.parametrize(
    ("main", "config", "beat_schedule", "expected"),
    [
        *(("shop", config, {}, expected) for config, expected in WRONG_SETTINGS),
        *(("shop", {}, {"x": entry}, expected) for entry, expected in WRONG_ENTRIES),
        *(("shop", {}, entries, expected) for entries, expected in WRONG_SCHEDULES),
        *((main, {}, {}, expected) for main, expected in WRONG_NAMES),
    ],
    ids=_id,
)
def test_what_is_wrong_is_told_word_for_word(
    main: str | None, config: dict[str, Any], beat_schedule: Any, expected: list[str]
) -> None:
    problems = problems_of(lambda: read_config(app_with(main, **config), beat_schedule))
    assert list(problems) == [f"celery_misfire: {line}" for line in expected]


def test_the_same_is_told_to_a_worker_which_knows_no_entries() -> None:
    for config, expected in WRONG_SETTINGS:
        problems = problems_of(lambda config=config: read_settings(app_with(**config)))
        assert list(problems) == [f"celery_misfire: {line}" for line in expected]


# -- allowed, but hardly meant -----------------------------------------------------------------------------

#: Settings, an entry 'x', then the warnings.
HARDLY_MEANT: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    (
        {"misfire_policies": {"X": "do_nothing", "zzz": False}},
        {},
        [
            "misfire_policies['X']: no entry has this name. Did you mean 'x'?",
            "misfire_policies['zzz']: no entry has this name.",
        ],
    ),
    (
        {"beat_cron_starting_deadline": 7200},
        {},
        ["beat_cron_starting_deadline: 7200 is not used here. Use max_lateness in a misfire policy."],
    ),
    (
        {},
        {"options": {"countdown": 30, "eta": None}},
        [
            "beat_schedule['x'].options: 'countdown' delays the run after it was sent; "
            "misfire handling does not see that delay. Use the schedule for that."
        ],
    ),
    (
        {"misfire_policies": {"x": {"threshold": 60}}},
        {"options": {"expires": 10}},
        [
            "beat_schedule['x'].options: a run expires after 10 s, before it is a misfire (threshold 60 s). "
            "Give 'expires' more time."
        ],
    ),
    (
        {},
        {"options": {"expires": 4.0}, "misfire": {"threshold": 5}},
        [
            "beat_schedule['x'].options: a run expires after 4 s, before it is a misfire (threshold 5 s). "
            "Give 'expires' more time."
        ],
    ),
    (
        {},
        {"misfire": {"threshold": 900, "max_lateness": 600}},
        [
            "beat_schedule['x'].misfire.max_lateness: 600 is less than threshold (900): no late run is ever "
            "made up for. Set it to more."
        ],
    ),
    (
        {"misfire_lease_ttl": 120.0},
        {"misfire": {"max_lateness": 60}},
        [
            "beat_schedule['x'].misfire.max_lateness: 60 is less than misfire_lease_ttl (120): the death of "
            "a beat alone makes runs too old. Set it to more."
        ],
    ),
    (
        {},
        {"args": [1, object()], "kwargs": {"when": datetime(2026, 3, 1), "who": {1, 2}, "what": len}},
        [
            "beat_schedule['x'].args: cannot be sent with the serializer 'json'. "
            "Use other types or another one.",
            "beat_schedule['x'].kwargs: cannot be sent with the serializer 'json'. "
            "Use other types or another one.",
        ],
    ),
    (
        {"misfire_policies": {"x": {"threshold": 900, "max_lateness": 600}}},
        {},
        [
            "misfire_policies['x'].max_lateness: 600 is less than threshold (900): no late run is ever "
            "made up for. Set it to more."
        ],
    ),
    *(
        (
            config,
            {"schedule": 5.0} | entry,
            [
                f"{place}: 60 is not less than the interval of 'x' (5): after an outage that is no longer, "
                "all runs are sent at once. Set it to less than 5."
            ],
        )
        for config, entry, place in (
            ({}, {"misfire": {"threshold": 60}}, "beat_schedule['x'].misfire.threshold"),
            ({"misfire_policies": {"x": {"threshold": 60}}}, {}, "misfire_policies['x'].threshold"),
            ({"misfire_threshold": 60}, {}, "misfire_threshold"),
        )
    ),
    # nothing to say
    ({"misfire_threshold": 4.5}, {"schedule": 5.0}, []),
    ({"misfire_threshold": 60}, {"schedule": 5.0, "misfire": False}, []),
    ({}, {"options": {"expires": 5}, "misfire": {"threshold": 5}}, []),
    (
        {"broker_url": "redis://:canary@a/1;redis://:canary@b/1"},
        {},
        [
            "broker_url: the state stays at the first Redis of the list, a:6379: it does not follow Celery "
            "to the next one, and without it beat sends nothing. Set misfire_redis_url to a Redis that is "
            "always there, or use sentinel://."
        ],
    ),
    ({"broker_url": ["redis://a/1", "redis://b/1"], "misfire_redis_url": "redis://c"}, {}, []),
    ({"broker_url": "sentinel://a/1;sentinel://b/1", "misfire_redis_options": {"master_name": "m"}}, {}, []),
    ({}, {"options": {"expires": 5}}, []),
    ({}, {"options": {"expires": "2026-03-01T12:00:00+00:00", "headers": None}}, []),
    ({}, {"options": {"expires": 5}, "misfire": False}, []),
    ({}, {"misfire": {"threshold": 30, "max_lateness": 60}}, []),
    ({}, {"args": [datetime(2026, 3, 1), date(2026, 3, 1)], "kwargs": {"who": ["a"]}}, []),
    ({}, {"args": [{1, 2}, complex(1, 2)], "options": {"serializer": "pickle"}}, []),
    ({"task_serializer": "pickle", "accept_content": ["pickle"]}, {"args": [complex(1, 2)]}, []),
]


@pytest.mark.parametrize(("config", "entry", "expected"), HARDLY_MEANT, ids=_id)
def test_what_is_hardly_meant_is_warned_of_word_for_word(
    config: dict[str, Any], entry: dict[str, Any], expected: list[str]
) -> None:
    app, beat_schedule = app_with(**config), {"x": HOURLY | entry}
    assert warnings_for(app, *read_config(app, beat_schedule)) == [
        f"celery_misfire: {line}" for line in expected
    ]


# -- schedules, where they are made ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda: cron("0 0 31 2 *"),
            "cron expression '0 0 31 2 *': day_of_month: day 31 and * never comes in month 2; "
            "allowed are dates that exist",
        ),
        (
            lambda: cron("0 0 * * *", timezone="Europe/Pariss"),
            "timezone: expected the name of a time zone or a tzinfo, got 'Europe/Pariss'. "
            "Did you mean 'Europe/Paris'?",
        ),
        (lambda: simple(start=datetime(2026, 1, 1)), "start: needs a time zone, got 2026-01-01 00:00:00"),
        (
            lambda: simple(interval=0),
            "interval: expected a timedelta or seconds, at least a millisecond, got 0",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_word_for_word(
    make: Callable[[], object], expected: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        make()
    assert str(caught.value) == expected
