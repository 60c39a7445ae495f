"""The connection to one Redis: its client, the limits of time, the scripts, and errors in words."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry
from redis.sentinel import Sentinel

from celery_misfire.conf.problems import as_line
from celery_misfire.exceptions import MisfireConfigError, StoreRefused
from celery_misfire.store import errors
from celery_misfire.store.url import address, connection_of, scheme_of, sentinels_of

#: Redis answers no call later than this, in seconds (or the lease would be lost while waiting).
LONGEST_CALL = 5.0

#: The oldest version of Redis that has all that is used here.
OLDEST_VERSION = (6, 2)


class RedisClock:
    """The clock of Redis, as far as it is known.

    :param call_timeout: nobody waits longer for an answer, in seconds.
    """

    def __init__(self, call_timeout: float) -> None:
        self._call_timeout = call_timeout
        #: What it is ahead of the monotonic clock, in milliseconds; None when it is not known.
        self.offset: float | None = None

    def latest(self, left: float | None = None) -> int:
        """Return up to when a script may be carried out, by the clock of Redis; 0 for ever: it is not known.

        :param left: so many milliseconds from now. None: as long as somebody waits for the answer; the runs
            whose messages it puts into their queues are planned again then.
        """
        if self.offset is None:
            return 0
        left = self._call_timeout * 1000 if left is None else left
        return round(time.monotonic() * 1000 + left + self.offset)


class RedisConnection:
    """One Redis, asked within limits of time.

    :param url: redis://, rediss://, unix:// or sentinel://host:port[,host:port...] (``sentinel``: with the
        option ``master_name``).
    :param options: keyword arguments for redis-py; they go before what `url` says.
    :param call_timeout: longest wait for a connection or for one answer, in seconds; a longer
        ``socket_timeout`` in `url` or `options` is cut to it.
    :raises MisfireConfigError: when redis-py does not take `url` and `options`.
    """

    def __init__(self, url: str, options: Mapping[str, Any], call_timeout: float) -> None:
        try:
            #: The client of redis-py.
            self.client = _client(url, options, call_timeout)
            # A connection is made for nothing but to hear now what redis-py does not take.
            pool = self.client.connection_pool
            pool.connection_class(**pool.connection_kwargs)
        except Exception as exc:
            what = f"redis-py does not take it with misfire_redis_options ({type(exc).__name__}). Check both."
            raise MisfireConfigError([as_line("misfire_redis_url", what)]) from None
        self.clock = RedisClock(call_timeout)
        self._place = f"Redis at {address(url)}"
        self._scripts: dict[str, Script] = {}
        #: The connection of :meth:`run_often`, and the process that it is of: a fork needs its own.
        self._kept: redis.Redis | None = None
        self._kept_by = 0
        self._written_to = False

    def __str__(self) -> str:
        return self._place

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return the answer to a call of the client.

        :raises StoreUnavailable: instead of any other error.
        """
        try:
            return function(*args)
        except Exception as exc:
            advice = ""
            if errors.is_read_only(exc):
                # Under the master's name, if there is one, a new connection finds the new master.
                self.client.connection_pool.disconnect(inuse_connections=False)
                advice = "" if self._written_to else "Name the master, or use sentinel://"
            raise errors.unavailable(self._place, exc, advice) from None

    def run(
        self, script: str, keys: Sequence[str], args: Sequence[Any], client: redis.Redis | None = None
    ) -> Any:
        """Return the answer of a script of ``lua/``, its texts decoded."""
        if script not in self._scripts:
            self._scripts[script] = self.client.register_script(_source(script))
        answer = _decoded(self.call(self._scripts[script], keys, args, client))
        self._written_to = True
        return answer

    def run_often(self, script: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Do as :meth:`run`, on a connection that is kept; for one thread.

        The pool takes as long to hand a connection out as Redis takes to answer. After an error the next call
        connects anew: this connection may lead to a server that is the master no more.
        """
        if self._kept is None or self._kept_by != os.getpid():
            self._kept, self._kept_by = self.call(self.client.client), os.getpid()
        try:
            return self.run(script, keys, args, self._kept)
        except BaseException:
            kept, self._kept = self._kept, None
            kept.close()
            self.client.connection_pool.disconnect(inuse_connections=False)
            raise

    def advice(self) -> list[str]:
        """Return what is unwise about this Redis, as far as it tells: one line each, for the log.

        :raises StoreRefused: when it is too old.
        """
        info = self._ask(self.client.info)
        found = re.match(r"(\d+)\.(\d+)", str(info.get("redis_version", "")))
        if found and tuple(map(int, found.groups())) < OLDEST_VERSION:
            oldest = ".".join(map(str, OLDEST_VERSION))
            raise StoreRefused(
                f"{self._place} is version {found[0]}. Redis {oldest} or newer, or Valkey, is needed."
            )
        lines = []
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            what = f"when its memory is full, it may drop the state (maxmemory-policy is {policy!r})."
            lines.append(f"{self._place}: {what} Set it to 'noeviction'.")
        snapshots = self._ask(self.client.config_get, "save")
        if info.get("aof_enabled") == 0 and snapshots.get("save") == "":
            what = "it keeps nothing on disk, so a restart of it loses the state."
            lines.append(f"{self._place}: {what} Set 'appendonly yes'.")
        return lines

    def _ask(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """Return the answer to a question that a server may refuse to answer; {} then."""

        def ask() -> dict[str, Any]:
            try:
                return dict(function(*args))
            except redis.ResponseError:
                return {}

        answer: dict[str, Any] = self.call(ask)
        return answer


def as_text(value: bytes | str) -> str:
    """Return a value of Redis as text. What is not UTF-8 is not ours, and can be replaced all the same."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _decoded(answer: Any) -> Any:
    if isinstance(answer, list):
        return [_decoded(item) for item in answer]
    return as_text(answer) if isinstance(answer, bytes) else answer


@cache
def _source(script: str) -> str:
    files = ("sign", script) if script in _SIGNED else (script,)
    lua = resources.files("celery_misfire.store").joinpath("lua")
    return "".join(lua.joinpath(f"{file}.lua").read_text("utf-8") for file in files)


#: The scripts with which a beat gives a sign of life.
_SIGNED = ("acquire", "renew")


def _client(url: str, options: Mapping[str, Any], call_timeout: float) -> redis.Redis:
    sentinels, named = sentinels_of(url) if scheme_of(url) == "sentinel" else ([], connection_of(url))
    settings: dict[str, Any] = {
        # This undoes `as_text`.
        "encoding_errors": "surrogateescape",
        **_ONE_MORE_TRY,
        **named,
        **options,
        "decode_responses": False,
    }
    if settings.get("credential_provider"):
        # A credential provider wins, as in Celery; redis-py takes no login beside one.
        settings |= {"username": None, "password": None}
    if not sentinels:
        return redis.Redis.from_pool(redis.ConnectionPool(**_limit(settings, call_timeout)))
    # The sentinels are asked one after the other, and then one more time.
    sentinel_settings = _ONE_MORE_TRY | dict(settings.pop("sentinel_kwargs", None) or {})
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        sentinels, sentinel_kwargs=_limit(sentinel_settings, call_timeout / len(sentinels) / 2)
    )
    master = settings.pop("master_name")
    client: redis.Redis = sentinel.master_for(master, **_limit(settings, call_timeout))  # type: ignore[no-untyped-call]
    return client


#: On a new connection, when the pooled one turns out to be dead; never after a timeout, which would double
#: the wait. Up to redis-py 5 the one does not work without the other.
_ONE_MORE_TRY = {
    "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    "retry_on_error": [redis.ConnectionError],
}


def _limit(settings: dict[str, Any], longest: float) -> dict[str, Any]:
    for name in ("socket_timeout", "socket_connect_timeout"):
        settings[name] = min(float(settings.get(name) or longest), longest)
    return settings


def millis(seconds: float) -> int:
    return round(seconds * 1000)
