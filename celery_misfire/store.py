"""The state in Redis: lease, records, log and registers. The only module that knows Redis.

All keys share one hash tag, so that they live in one slot of a Cluster and one script may touch them all.
Every write is a script (``lua/``) that may be sent twice and works once. Errors of Redis and of the network
come out as :class:`~celery_misfire.exceptions.StoreUnavailable`; whether a write that failed so took place
is then unknown.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from celery_misfire.exceptions import LeaseLost, NewerSchema, StoreUnavailable
from celery_misfire.records import SCHEMA

__all__ = ["LONGEST_CALL", "Acquired", "Change", "RedisStore", "Watched", "address"]

#: How long a register is kept, in milliseconds: longer than a broker may hold a message back.
REGISTER_TTL = 24 * 3600 * 1000

#: Redis answers no call later than this, in seconds (or the lease would be lost while waiting).
LONGEST_CALL = 5.0


@dataclass(frozen=True)
class Acquired:
    """A lease that was taken.

    :param epoch: number of this term of leadership, greater than every one before.
    :param previous_epoch: number of the term before, 0 when the store remembers none.
    :param value: what the lease key holds.
    :param cold: True when the store holds no state: it is new, or it was lost.
    """

    epoch: int
    previous_epoch: int
    value: str
    cold: bool


@dataclass(frozen=True)
class Change:
    """One record to be replaced: `old` must be in force, '' stands for none."""

    field: str
    old: str
    new: str


@dataclass(frozen=True)
class Watched:
    """What the one that watches finds, and what it has noted itself.

    :param led: True when a beat leads.
    :param seen: id of the last line of the log that was told, '' for none.
    :param alarm: what was noted when beat was found to be overdue, '' when all is well.
    """

    led: bool
    seen: str
    alarm: str


class RedisStore:
    """The state of one namespace.

    :param url: redis://, rediss://, unix:// or sentinel://host:port[,host:port...] (``sentinel``: with the
        option ``master_name``).
    :param options: keyword arguments for redis-py.
    :param history: how many lines the log keeps, roughly.
    :param call_timeout: longest wait for one answer, in seconds.
    """

    def __init__(
        self,
        url: str,
        namespace: str,
        options: Mapping[str, Any] | None = None,
        history: int = 10_000,
        call_timeout: float = LONGEST_CALL,
    ) -> None:
        self._redis = _client(url, dict(options or {}), call_timeout)
        self._address = address(url)
        self._history = history
        prefix = f"celery-misfire:{{{namespace}}}"
        self.state_key, self.lease_key, self.log_key = f"{prefix}:state", f"{prefix}:lease", f"{prefix}:log"
        self._register_prefix, self._late_prefix = f"{prefix}:fire:", f"{prefix}:late:"
        self._watch_keys = [f"{prefix}:watcher", f"{prefix}:watch", f"{prefix}:guard", self.lease_key]
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._scripts = {
            name: self._redis.register_script(_script(name))
            for name in ("acquire", "renew", "release", "commit", "settle", "start", "watch")
        }

    def __str__(self) -> str:
        return f"{self.state_key} in Redis at {self._address}"

    # -- lease ---------------------------------------------------------------------------------------------

    def acquire(self, token: str, ttl: float, seen: str = "") -> Acquired | str:
        """Take the lease if it is free or still holds the value `seen`.

        :param ttl: seconds after which it is free unless renewed.
        :returns: what was taken, or the value of the lease that somebody else holds.
        :raises NewerSchema: when the state was written by a newer version; nothing has been written then.
        """
        keys = [self.lease_key, self.state_key, self.log_key]
        meta = ""
        while True:
            answer = self._run("acquire", keys, [token, self._owner, _ms(ttl), seen, meta])
            if answer[0] == "META":
                meta = answer[1]
                self._check_schema(meta)
            elif answer[0] == "HELD":
                return str(answer[1])
            else:
                _, epoch, previous, value = answer
                return Acquired(int(epoch), int(previous), value, cold=not meta)

    def renew(self, token: str, value: str, ttl: float) -> None:
        """Prolong the lease and give it a new value.

        :raises LeaseLost: when it is not ours any more.
        """
        if not self._run("renew", [self.lease_key], [token, value, _ms(ttl)]):
            raise LeaseLost

    def release(self, token: str) -> None:
        """Give the lease up, if it is ours."""
        self._run("release", [self.lease_key], [token])

    # -- records -------------------------------------------------------------------------------------------

    def load(self) -> dict[str, str]:
        """Return every record as text, by entry name."""
        raw = self._call(self._redis.hgetall, self.state_key)
        return {_text(k)[2:]: _text(v) for k, v in raw.items() if _text(k).startswith("e:")}

    def commit(
        self, token: str, changes: Sequence[Change], log: Iterable[Mapping[str, Any]] = ()
    ) -> list[str]:
        """Replace records, all of them or none, and write the log.

        :returns: names of the entries whose record is not the old one; nothing has been written then.
        :raises LeaseLost: when the lease is not ours any more; nothing has been written then.
        """
        args: list[Any] = [token, self._history, len(changes)]
        for change in changes:
            args += [_field(change.field), change.old, change.new]
        args += [_line(line) for line in log]
        answer = self._run("commit", [self.lease_key, self.state_key, self.log_key], args)
        if answer[0] == "FENCED":
            raise LeaseLost
        return [field[2:] for field in answer[1:]]

    def write_meta(self, token: str, app: str) -> None:
        """Mark the state as complete: from now on an entry without a record is a new one."""
        meta = json.dumps({"schema": SCHEMA, "app": app}, sort_keys=True)
        self.commit(token, [Change("_meta", "", meta)])

    # -- registers and log ---------------------------------------------------------------------------------

    def settle(self, task_ids: Sequence[str], value: str) -> list[str]:
        """Write `value` into the register of each occurrence that has none yet; return what they hold."""
        if not task_ids:
            return []
        keys = [self._register_prefix + task_id for task_id in task_ids]
        return [str(held) for held in self._run("settle", keys, [value, REGISTER_TTL])]

    def start(
        self,
        task_id: str,
        value: str,
        *,
        entry: str,
        sent: int | None = None,
        late: int | None = None,
        line: Mapping[str, Any] | None = None,
        merged_line: Mapping[str, Any] | None = None,
    ) -> tuple[str, bool]:
        """Write `value` into the register of an occurrence that has none yet.

        With `sent`, a message that was sent before the entry's last late run started is merged into that run:
        its register says so, not `value`.

        :param sent: when the message was sent, in milliseconds UTC.
        :param late: when a late run starts, in milliseconds UTC, if this is one.
        :param line: goes to the log with `value`; `merged_line`, if the message is merged.
        :returns: what the register holds, and whether it was written just now.
        """
        key = self._register_prefix + task_id
        if sent is None and line is None:
            # The common case, in the fewest bytes; sent twice, it finds the value that is its own.
            if self._call(partial(self._redis.set, nx=True, px=REGISTER_TTL), key, value):
                return value, True
            return self.register(task_id), False
        entry_key = hashlib.sha1(entry.encode("utf-8", "surrogateescape")).hexdigest()
        keys = [key, self._late_prefix + entry_key, self.log_key]
        mark = "" if late is None else f"{late}|{task_id}"
        lines = ["" if one is None else _line(one) for one in (line, merged_line)]
        args = [value, REGISTER_TTL, "" if sent is None else sent, mark, self._history, *lines]
        held, fresh = self._run("start", keys, args)
        return str(held), fresh == 1

    def register(self, task_id: str) -> str:
        """Return what the register of an occurrence holds, '' when nothing has been written there."""
        return _text(self._call(self._redis.get, self._register_prefix + task_id) or "")

    def log(self, count: int | None = None) -> list[dict[str, Any]]:
        """Return the newest lines of the log, oldest first."""
        rows = self._call(self._redis.xrevrange, self.log_key, "+", "-", count)
        return [json.loads(fields[b"d"]) for _, fields in reversed(rows)]

    def log_after(self, seen: str, count: int) -> list[tuple[str, dict[str, Any]]]:
        """Return lines of the log that follow the one with the id `seen`, oldest first, with their ids."""
        rows = self._call(self._redis.xrange, self.log_key, f"({seen}", "+", count)
        return [(_text(id_), json.loads(fields[b"d"])) for id_, fields in rows]

    def last_log_id(self) -> str:
        """Return the id of the newest line of the log; one before all others when there is none."""
        rows = self._call(self._redis.xrevrange, self.log_key, "+", "-", 1)
        return _text(rows[0][0]) if rows else "0-0"

    # -- watching ------------------------------------------------------------------------------------------

    def watch(self, token: str, ttl: float, guard_ttl: float = 0, **notes: str) -> Watched | None:
        """Become the one that watches, or stay it; None when another one does.

        :param ttl: seconds after which another one may take over.
        :param guard_ttl: seconds for which beat may count on workers that ask the registers; 0: it may not.
        :param notes: ``seen`` and ``alarm``, see :class:`Watched`; what is left out stays.
        """
        pairs = [text for note in notes.items() for text in note]
        answer = self._run("watch", self._watch_keys, [token, _ms(ttl), _ms(guard_ttl), *pairs])
        return Watched(answer[0] == 1, str(answer[1]), str(answer[2])) if answer else None

    def is_guarded(self) -> bool:
        """Return True when a worker that asks the registers has been there lately."""
        return bool(self._call(self._redis.exists, self._watch_keys[2]))

    # ------------------------------------------------------------------------------------------------------

    def _check_schema(self, meta: bytes | str | None) -> None:
        if not meta:
            return
        try:
            schema = json.loads(meta)["schema"]
        except (ValueError, KeyError, TypeError):
            raise NewerSchema(f"{self.state_key} holds a _meta that is not ours") from None
        if schema != SCHEMA:
            raise NewerSchema(f"{self.state_key} has schema {schema!r}, this version works with {SCHEMA}")

    def _run(self, name: str, keys: list[str], args: list[Any]) -> Any:
        return _decoded(self._call(self._scripts[name], keys, args))

    def _call(self, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except (redis.RedisError, OSError) as exc:
            raise StoreUnavailable(f"Redis at {self._address}: {_error(exc)}") from None


def _script(name: str) -> str:
    return resources.files("celery_misfire").joinpath("lua", f"{name}.lua").read_text("utf-8")


def _client(url: str, options: dict[str, Any], call_timeout: float) -> redis.Redis:
    settings: dict[str, Any] = {
        "socket_timeout": call_timeout,
        "socket_connect_timeout": call_timeout,
        # What is not UTF-8 is not ours, and is to be replaced all the same.
        "encoding_errors": "surrogateescape",
        # One more try on a new connection when the pooled one turns out to be dead; never after a timeout,
        # which would double the wait.
        "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        # Up to redis-py 5 the one does not work without the other.
        "retry_on_error": [redis.ConnectionError],
        **options,
        "decode_responses": False,
    }
    if not url.startswith("sentinel://"):
        return redis.Redis.from_url(url, **settings)
    # Several sentinels may be given, separated by commas or (Celery's way) semicolons.
    parts = [urlsplit(p if "://" in p else f"sentinel://{p}") for p in re.split("[;,]", url)]
    first = parts[0]
    settings.setdefault("db", int(first.path.strip("/") or 0))
    settings.setdefault("password", first.password)
    settings.setdefault("username", first.username)
    master = settings.pop("master_name", None) or parse_qs(first.query)["master_name"][0]
    sentinel_options = settings.pop("sentinel_kwargs", {}) | {"socket_timeout": call_timeout}
    hosts = [(p.hostname, p.port or 26379) for p in parts]
    sentinel = Sentinel(hosts, sentinel_kwargs=sentinel_options)  # type: ignore[no-untyped-call]
    client: redis.Redis = sentinel.master_for(master, **settings)  # type: ignore[no-untyped-call]
    return client


def address(url: str) -> str:
    """Return where a Redis URL points to, without user and password."""
    parts = urlsplit(re.split("[;,]", url)[0])
    if parts.hostname is None:
        return parts.path
    return f"{parts.hostname}:{parts.port or (26379 if parts.scheme == 'sentinel' else 6379)}"


def _error(exc: Exception) -> str:
    # The text of a network error can repeat the URL; its kind and Redis's own words are enough.
    if isinstance(exc, redis.ResponseError):
        return str(exc).split("\n")[0][:200]
    cause = exc.__cause__ or exc.__context__ or exc
    if isinstance(cause, OSError) and cause.errno:
        return f"{type(exc).__name__} ({os.strerror(cause.errno)})"
    return type(exc).__name__


def _line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":"))


def _field(name: str) -> str:
    return name if name == "_meta" else f"e:{name}"


def _decoded(answer: Any) -> Any:
    if isinstance(answer, list):
        return [_decoded(item) for item in answer]
    return _text(answer) if isinstance(answer, bytes) else answer


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
