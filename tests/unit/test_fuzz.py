"""Whatever is configured: beat starts with it, or says in words what is wrong; and no secret shows."""

from __future__ import annotations

import math
import random
from collections import UserDict, UserString, deque
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import BaseSchedule, crontab, schedule

from celery_misfire.conf.entries import ENTRY_KEYS
from celery_misfire.conf.problems import MAX_LINE_LENGTH
from celery_misfire.conf.settings import Settings, read_config
from celery_misfire.conf.warnings import warnings_for
from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.misfire import MisfireInstruction, MisfirePolicy, TriggerType
from celery_misfire.schedules import cron, simple
from celery_misfire.store.options import OPTIONS
from celery_misfire.store.redis_store import RedisStore
from tests.support.configs import BROKER, no_urls_from_outside

__all__ = ["no_urls_from_outside"]

CANARY = "canary-4711"


class Hostile:
    """Raises whatever is asked of it."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"no answer, and the password is {CANARY}")

    __repr__ = __str__ = __eq__ = __bool__ = __len__ = __iter__ = __float__ = __int__ = __lt__ = _refuse
    __hash__ = object.__hash__


class HostileSchedule(BaseSchedule):
    def is_due(self, last_run_at: Any) -> tuple[bool, datetime]:
        raise RuntimeError(CANARY)

    @property
    def as_trigger(self) -> Any:
        raise RuntimeError(CANARY)


class Lazy:
    """A text that is made when it is asked for, like Django's translations."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Lazy {self.text!r}>"


class Tz(tzinfo):
    def utcoffset(self, dt: Any) -> Any:
        raise RuntimeError("no offset")


WORDS = [
    *MisfireInstruction,
    *TriggerType,
    *(f.name for f in fields(MisfirePolicy)),
    *ENTRY_KEYS,
    *OPTIONS["sentinel"],
    *("auto", "summary", "each", "reschedule", "misfire", "MISSED", "FAILURE", "*/5 * * * *", "0 0 12 * * ?"),
    *("redis", "redis://h/1", "rediss://h", "sentinel://h:26379", "unix:///run/r.sock", "redis://a;redis://b"),
    *("redis://h?socket_timeout=1", "rediss://h/1?db=2&ssl_min_version=x", "unix:///r?max_connections=-1"),
    *("", " ", "\n", "\x00", "a\nb", "\ud800", "\x1b[31m", "{}", "%s %(x)s", "{0.__class__}"),
    *("://", "@", "é" * 90),
    *("x" * 10_000, "* " * 5_000, "redis://" + "h" * 10_000),
]  # fmt: skip
SECRETS = [
    f"redis://:{CANARY}@h:6379/1",
    f"amqp://u:{CANARY}@h//",
    f"redis://h/1?password={CANARY}",
    f"redis://:a/{CANARY}@h/1",
    # In lists: where a dict of entries or of policies is meant, its keys are their names.
    [{"password": CANARY}],
    [{"api_key": CANARY, "x": {"token": CANARY}}],
    [MappingProxyType({"client_secret": CANARY})],
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 5, 30, 60.0, -0.0, 0.5, 1e-9, 1e308, 10**400, -(10**5000), 2**63),
    *(math.nan, math.inf, -math.inf, Decimal("1.5"), Decimal("NaN"), 1j, b"redis://h", bytearray(b"x")),
    *(timedelta(0), timedelta(hours=1), timedelta.max, timedelta.min, date.max),
    *(datetime(2026, 3, 1), datetime(2026, 3, 1, tzinfo=UTC), datetime.max),
    datetime(2026, 3, 1, tzinfo=Tz()),
    *(object, crontab, len, Lazy("auto"), UserString("do_nothing"), Hostile(), Hostile, SimpleNamespace(a=1)),
    *(crontab(minute=0), schedule(0), schedule(timedelta.max), HostileSchedule()),
    *(cron("0 0 12 * * ?"), simple()),
    *(MisfirePolicy("fire_now", threshold=5), TriggerType.CRON, MisfireInstruction.FIRE_NOW, OPTIONS),
    *(range(3), deque([1]), {1, 2}, frozenset(), (1, 2), UserDict({"instruction": "do_nothing"}), iter(())),
]  # fmt: skip
SETTINGS = [f"misfire_{f.name}" for f in fields(Settings)]
OTHERS = [
    "broker_url",
    "result_backend",
    "broker_use_ssl",
    "redis_backend_use_ssl",
    "broker_transport_options",
]
OTHERS += ["timezone", "beat_cron_starting_deadline", "MISFIRE_HISTORY", "CELERY_MISFIRE_THRESHOLD"]


def near(word: str, chance: random.Random) -> str:
    """Return the word, or what a slip of the pen makes of it."""
    at = chance.randrange(len(word) + 1)
    slips = [word, word, word, word[:at] + word[at + 1 :], word[:at] + chance.choice("aZ_-. ") + word[at:]]
    return chance.choice([*slips, word.upper(), word[:at]])


def value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.random()
    if kind < 0.35:
        return chance.choice(VALUES)
    if kind < 0.6:
        return near(chance.choice(WORDS), chance)
    if kind < 0.68:
        return chance.choice(SECRETS)
    if depth > 3 or kind < 0.72:
        return chance.choice(
            [chance.random() * 100, chance.randrange(-5, 100), nested(chance.randrange(200))]
        )
    if kind < 0.8:
        return [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {key(chance): value(chance, depth + 1) for _ in range(chance.randrange(4))}


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def key(chance: random.Random) -> Any:
    odd = [None, 7, 1.5, (1, 2), b"x", Hostile(), TriggerType.ONCE, CANARY[:0]]
    return near(chance.choice(WORDS), chance) if chance.random() < 0.85 else chance.choice(odd)


def policy(chance: random.Random) -> Any:
    names = [f.name for f in fields(MisfirePolicy)]
    if chance.random() < 0.5:
        return {near(n, chance): value(chance) for n in chance.sample(names, chance.randrange(4))}
    return value(chance)


def entry(chance: random.Random) -> Any:
    if chance.random() < 0.05:
        return value(chance)
    if chance.random() < 0.05:
        return ScheduleEntry("made", "t", schedule=chance.choice([5.0, crontab()]), app=chance.app)
    schedules = [5, 5.0, timedelta(hours=1), crontab(), value(chance)]
    made = {"task": "shop.reports", "schedule": chance.choice(schedules)}
    for name in chance.sample([*ENTRY_KEYS, "options", "misfire", "threshold"], chance.randrange(4)):
        made[near(name, chance)] = policy(chance) if name == "misfire" else value(chance)
    if chance.random() < 0.3:
        made["options"] = {
            k: value(chance) for k in ("expires", "headers", "countdown", "serializer", "task_id")
        }
    return made


def redis_options(chance: random.Random) -> Any:
    names = chance.sample(OPTIONS["sentinel"], chance.randrange(4))
    return {near(name, chance) if chance.random() < 0.1 else name: value(chance) for name in names}


def configuration(chance: random.Random) -> tuple[dict[str, Any], Any]:
    names = chance.sample([*SETTINGS, *OTHERS], chance.randrange(4))
    # Celery's own names stay as they are: it has errors of its own for those it does not know.
    slip = [n in SETTINGS and chance.random() < 0.2 for n in names]
    config = {near(n, chance) if slips else n: value(chance) for n, slips in zip(names, slip, strict=True)}
    if chance.random() < 0.2:
        config["misfire_policies"] = {key(chance): policy(chance) for _ in range(3)}
    if chance.random() < 0.2:
        urls = ("redis://h/1", "rediss://h", "unix:///r.sock", "sentinel://h?master_name=m")
        config["misfire_redis_url"] = chance.choice(urls)
        config["misfire_redis_options"] = redis_options(chance)
    if chance.random() < 0.05:
        return config, value(chance)
    entries = {
        key(chance) if chance.random() < 0.3 else "x": entry(chance) for _ in range(chance.randrange(3))
    }
    return config, entries


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(n, marks=pytest.mark.long) for n in range(3, 10))])
def test_500_random_configurations_end_in_a_start_or_in_a_config_error(seed: int) -> None:
    chance: Any = random.Random(seed)
    ends = {"starts": 0, "refused": 0}
    for _ in range(500):
        app = chance.app = Celery("shop", set_as_current=False)
        config, entries = configuration(chance)
        app.conf.update(BROKER | config)
        try:
            found, checked = read_config(app, entries)
            RedisStore.of(found)
        except MisfireConfigError as error:
            ends["refused"] += 1
            lines = list(error.problems)
            text = f"{error!s} {error!r} {error.__context__!r} {error.__cause__!r}"
        else:
            ends["starts"] += 1
            assert list(checked) == list(entries)
            lines = warnings_for(app, found, checked)
            text = repr(found)
        assert CANARY not in text + "".join(lines)
        assert all(len(line) <= MAX_LINE_LENGTH and line.isprintable() for line in lines), lines
    assert min(ends.values()) > 20, ends
