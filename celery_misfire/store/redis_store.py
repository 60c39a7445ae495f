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
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import resources
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from celery_misfire.conf.problems import as_line, shown
from celery_misfire.exceptions import (
    LeaseLost,
    MisfireConfigError,
    NewerSchema,
    StoreRefused,
    StoreUnavailable,
)
from celery_misfire.records import SCHEMA
from celery_misfire.store.url import address, scheme_of, sentinels_of, split_url

__all__ = ["LONGEST_CALL", "NO_STATE", "OLDEST", "Acquired", "Change", "RedisStore", "Watched"]

#: How long a register is kept, in milliseconds: longer than a broker may hold a message back.
REGISTER_TTL = 24 * 3600 * 1000

#: What waits for the leading beat to be told waits so long, in seconds.
NOTE_TTL = 300

# Fields of the state: what the leading beat said of itself, and of its entries.
_DESCRIPTION = ("_beat", "_beat_entries")

#: Instead of the value of a lease: there is no state, and the lease was left to somebody else.
NO_STATE = "|"

#: What is found in a register that is none, in lua/ as well.
UNKNOWN = "unknown"

#: Redis answers no call later than this, in seconds (or the lease would be lost while waiting).
LONGEST_CALL = 5.0

#: The oldest version of Redis that has all that is used here.
OLDEST = (6, 2)


@dataclass(frozen=True)
class Acquired:
    """A lease that was taken.

    :param epoch: number of this term of leadership, greater than every one before.
    :param previous_epoch: number of the term before, 0 when the store remembers none.
    :param value: what the lease key holds.
    :param cold: True when the store holds no state: it is new, or it was lost.
    :param app: name of the app whose beat began the state, '' when that is not known.
    """

    epoch: int
    previous_epoch: int
    value: str
    cold: bool
    app: str = ""


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
    :param options: keyword arguments for redis-py; they go before what `url` says.
    :param history: how many lines the log keeps, roughly.
    :param call_timeout: longest wait for a connection or for one answer, in seconds; a longer
        ``socket_timeout`` in `url` or `options` is cut to it.
    :raises MisfireConfigError: when redis-py does not take `url` and `options`.
    """

    def __init__(
        self,
        url: str,
        namespace: str,
        options: Mapping[str, Any] | None = None,
        history: int = 10_000,
        call_timeout: float = LONGEST_CALL,
    ) -> None:
        try:
            self._redis = _client(url, options or {}, call_timeout)
            # For nothing but to hear now what redis-py does not take.
            pool = self._redis.connection_pool
            pool.connection_class(**pool.connection_kwargs)
        except Exception as exc:
            what = f"redis-py does not take it with misfire_redis_options ({type(exc).__name__}). Check both."
            raise MisfireConfigError([as_line("misfire_redis_url", what)]) from None
        self._place = f"Redis at {address(url)}"
        self._history = history
        #: What the leading beat said of itself when the lease was last found to be held.
        self.description = ""
        prefix = f"celery-misfire:{{{namespace}}}"
        self.state_key, self.lease_key, self.log_key = f"{prefix}:state", f"{prefix}:lease", f"{prefix}:log"
        self._register_prefix, self._late_prefix = f"{prefix}:fire:", f"{prefix}:late:"
        self._watch_keys = [f"{prefix}:watcher", f"{prefix}:watch", f"{prefix}:guard", self.lease_key]
        self._note_key = f"{prefix}:note"
        self._written_to = False
        self.owner = f"{socket.gethostname()}:{os.getpid()}"
        self._scripts = {
            name: self._redis.register_script(_script(name))
            for name in ("acquire", "renew", "release", "commit", "settle", "start", "watch")
        }

    def __str__(self) -> str:
        return f"{self.state_key} in {self._place}"

    def advice(self) -> list[str]:
        """Return what is unwise about this Redis, as far as it tells: one line each, for the log.

        :raises StoreRefused: when it is too old.
        """
        info = self._asked(self._redis.info)
        found = re.match(r"(\d+)\.(\d+)", str(info.get("redis_version", "")))
        if found and tuple(map(int, found.groups())) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise StoreRefused(
                f"{self._place} is version {found[0]}. Redis {oldest} or newer, or Valkey, is needed."
            )
        lines = []
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            what = f"when its memory is full, it may drop the state (maxmemory-policy is {policy!r})."
            lines.append(f"{self._place}: {what} Set it to 'noeviction'.")
        snapshots = self._asked(self._redis.config_get, "save")
        if info.get("aof_enabled") == 0 and snapshots.get("save") == "":
            what = "it keeps nothing on disk, so a restart of it loses the state."
            lines.append(f"{self._place}: {what} Set 'appendonly yes'.")
        return lines

    # -- lease ---------------------------------------------------------------------------------------------

    def acquire(self, token: str, ttl: float, seen: str = "", *, yields: bool = False) -> Acquired | str:
        """Take the lease if it is free or still holds the value `seen`.

        :param ttl: seconds after which it is free unless renewed.
        :param yields: do not take a free one where there is no state.
        :returns: what was taken, or the value of the lease that somebody else holds, or ``NO_STATE``.
        :raises NewerSchema: when the state was written by a newer version; nothing has been written then.
        """
        keys = [self.lease_key, self.state_key, self.log_key]
        meta, app, free = "", "", NO_STATE if yields else ""
        while True:
            answer = self._run("acquire", keys, [token, self.owner, _ms(ttl), seen, meta, free])
            if answer[0] == "META":
                meta = answer[1]
                app = self._check_schema(meta)
            elif answer[0] == "HELD":
                self.description = answer[2]
                return str(answer[1])
            else:
                _, epoch, previous, value = answer
                return Acquired(int(epoch), int(previous), value, cold=not meta, app=app)

    def renew(self, token: str, value: str, ttl: float) -> str:
        """Prolong the lease and give it a new value; return what another beat has to tell, '' for nothing.

        :raises LeaseLost: when it is not ours any more.
        """
        answer = self._run("renew", [self.lease_key, self._note_key], [token, value, _ms(ttl)])
        if not answer:
            raise LeaseLost
        return str(answer[0])

    def release(self, token: str) -> None:
        """Give the lease up, if it is ours."""
        self._run("release", [self.lease_key], [token])

    # -- records -------------------------------------------------------------------------------------------

    def load(self, names: Sequence[str] | None = None) -> dict[str, str]:
        """Return every record as text, by entry name.

        :param names: only the records of these entries, where there are any.
        """
        if names is not None:
            found = self._call(self._redis.hmget, self.state_key, [f"e:{n}" for n in names]) if names else ()
            return {n: _text(text) for n, text in zip(names, found, strict=True) if text is not None}
        raw = self._call(self._redis.hgetall, self.state_key)
        return {_text(k)[2:]: _text(v) for k, v in raw.items() if _text(k).startswith("e:")}

    def commit(
        self, token: str, changes: Sequence[Change], log: Iterable[Mapping[str, Any]] = ()
    ) -> list[str]:
        """Replace records, all of them or none, and write the log.

        :returns: names of the entries whose record is not the old one; nothing has been written then.
        :raises LeaseLost: when the lease is not ours any more; nothing has been written then.
        """
        fields = [replace(change, field=f"e:{change.field}") for change in changes]
        return [field[2:] for field in self._replace(token, fields, log)]

    def write_meta(self, token: str, app: str) -> None:
        """Mark the state as complete: from now on an entry without a record is a new one."""
        meta = json.dumps({"schema": SCHEMA, "app": app}, sort_keys=True)
        self._replace(token, [Change("_meta", "", meta)])

    def _replace(
        self, token: str, changes: Sequence[Change], log: Iterable[Mapping[str, Any]] = ()
    ) -> list[str]:
        args: list[Any] = [token, self._history, len(changes)]
        for change in changes:
            args += [change.field, change.old, change.new]
        args += [_line(line) for line in log]
        answer = self._run("commit", [self.lease_key, self.state_key, self.log_key], args)
        if answer[0] == "FENCED":
            raise LeaseLost
        return [str(field) for field in answer[1:]]

    # -- the configuration of the beat that leads ----------------------------------------------------------

    def describe(self, token: str, beat: str, entries: str) -> None:
        """Leave a description of the leading beat and of its entries, for those that stand by to compare."""
        known = self._call(self._redis.hmget, self.state_key, _DESCRIPTION)
        olds = [_text(text or "") for text in known]
        changes = zip(_DESCRIPTION, olds, (beat, entries), strict=True)
        self._replace(token, [Change(*change) for change in changes])

    def described_entries(self) -> str:
        """Return the description of the leading beat's entries, '' when there is none."""
        return _text(self._call(self._redis.hget, self.state_key, _DESCRIPTION[1]) or "")

    def tell_leader(self, text: str) -> None:
        """Leave a line that the leading beat logs at its next renewal."""
        self._call(partial(self._redis.set, ex=NOTE_TTL), self._note_key, text)

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
        try:
            return _text(self._call(self._redis.get, self._register_prefix + task_id) or "")
        except StoreUnavailable as exc:
            if "WRONGTYPE" not in str(exc):
                raise
            return UNKNOWN

    def log(self, count: int | None = None) -> list[dict[str, Any]]:
        """Return the newest lines of the log, oldest first."""
        rows = self._call(self._redis.xrevrange, self.log_key, "+", "-", count)
        return [line for _, fields in reversed(rows) if (line := _event(fields))]

    def log_after(self, seen: str, count: int) -> list[tuple[str, dict[str, Any]]]:
        """Return lines of the log that follow the one with the id `seen`, oldest first, with their ids.

        A line that is not ours comes as {}.
        """
        rows = self._call(self._redis.xrange, self.log_key, f"({seen}", "+", count)
        return [(_text(id_), _event(fields)) for id_, fields in rows]

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
        if not answer:
            return None
        # What is not ours counts as nothing, and is replaced.
        seen, alarm = str(answer[1]), str(answer[2])
        seen = seen if re.fullmatch(r"\d{1,15}-\d{1,15}", seen) else ""
        return Watched(answer[0] == 1, seen, alarm if re.fullmatch(r"\d{1,13}", alarm) else "")

    def is_guarded(self) -> bool:
        """Return True when a worker that asks the registers has been there lately."""
        return bool(self._call(self._redis.exists, self._watch_keys[2]))

    # ------------------------------------------------------------------------------------------------------

    def _check_schema(self, meta: str) -> str:
        """Return the name of the app that the state was begun by."""
        if not meta:
            return ""
        try:
            found = json.loads(meta)
            schema = found["schema"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise NewerSchema(f"{self.state_key} holds a _meta that is not ours") from None
        if schema != SCHEMA:
            raise NewerSchema(
                f"{self.state_key} has schema {shown(schema)}, this version works with {SCHEMA}"
            )
        return str(found.get("app") or "")

    def _run(self, name: str, keys: list[str], args: list[Any]) -> Any:
        answer = _decoded(self._call(self._scripts[name], keys, args))
        self._written_to = True
        return answer

    def _asked(self, function: Any, *args: Any) -> dict[str, Any]:
        """Return the answer to a question that a server may refuse: then nothing."""

        def ask() -> dict[str, Any]:
            try:
                return dict(function(*args))
            except redis.ResponseError:
                return {}

        answer: dict[str, Any] = self._call(ask)
        return answer

    def _call(self, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except (redis.RedisError, OSError) as exc:
            text, fix = f"{self._place}: {_error(exc)}", _fix(exc)
            if "READONLY" in str(exc) or isinstance(exc, redis.ReadOnlyError):
                # The master is another one now: under its name, if there is one, a new connection finds it.
                self._redis.connection_pool.disconnect(inuse_connections=False)
                if not self._written_to:
                    text = f"{text}. Name the master, or use sentinel://"
            raise (StoreRefused(f"{text}. {fix}") if fix else StoreUnavailable(text)) from None
        except Exception as exc:
            # A credential provider's own, or redis-py's for an option: whatever it says may be secret.
            raise StoreUnavailable(f"{self._place}: {type(exc).__name__}") from None


@cache
def _script(name: str) -> str:
    return resources.files("celery_misfire.store").joinpath("lua", f"{name}.lua").read_text("utf-8")


def _client(url: str, options: Mapping[str, Any], call_timeout: float) -> redis.Redis:
    place, named = sentinels_of(url) if scheme_of(url) == "sentinel" else split_url(url)
    settings: dict[str, Any] = {
        # What is not UTF-8 is not ours, and is to be replaced all the same.
        "encoding_errors": "surrogateescape",
        **_ONE_MORE_TRY,
        **named,
        **options,
        "decode_responses": False,
    }
    if settings.get("credential_provider"):
        # As Celery has it; redis-py takes one or the other.
        settings |= {"username": None, "password": None}
    if isinstance(place, str):
        client: redis.Redis = redis.Redis.from_url(place, **_limit(settings, call_timeout))
        return client
    # They are asked one after the other, and then one more time.
    sentinel_settings = _ONE_MORE_TRY | dict(settings.pop("sentinel_kwargs", None) or {})
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        place, sentinel_kwargs=_limit(sentinel_settings, call_timeout / len(place) / 2)
    )
    master = settings.pop("master_name")
    client = sentinel.master_for(master, **_limit(settings, call_timeout))  # type: ignore[no-untyped-call]
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


# -- errors --------------------------------------------------------------------------------------------------


def _error(exc: Exception) -> str:
    # The text of a network error can repeat the URL; its kind and Redis's own words are enough.
    if isinstance(exc, _IN_ITS_WORDS):
        # Of an error inside a script, the place in it tells nobody anything.
        text = re.sub(r"\.? script: (\w+, )?on @user_script.*", "", str(exc).split("\n")[0])
        # Of a login that Redis does not understand, they are user and password.
        text = re.sub(r",? with args beginning with.*", "", text)
        text = text.removeprefix("ACL failure in script: ")
        # As Redis 6.2 begins it.
        return re.sub(r"^Error running script [^@]*(@user_script: ?\d+: )*-?", "", text)[:200].rstrip(".")
    kind = type(exc).__name__
    if isinstance(exc, MasterNotFoundError):
        # Its text has the errors of the sentinels that were asked, addresses and all.
        kinds = sorted(set(re.findall(r" - (?:\w+:)?([A-Za-z]+Error)", str(exc))))
        name = re.search(r"No master found for ('[^']*')", str(exc))
        unknown = f"{name[1] if name else 'it'} is unknown, or down; its name is 'master_name' in the options"
        return f"{kind} ({', '.join(kinds) or unknown})"
    if isinstance(exc, redis.InvalidResponse):
        return "it did not answer as a Redis server"
    cause = exc.__cause__ or exc.__context__ or exc
    if isinstance(cause, ssl.SSLError):
        return f"{kind} ({getattr(cause, 'verify_message', '') or cause.reason or type(cause).__name__})"
    if isinstance(cause, OSError) and cause.errno:
        return f"{kind} ({os.strerror(cause.errno)})"
    return kind


_IN_ITS_WORDS = (redis.ResponseError, redis.AuthenticationError, redis.BusyLoadingError)

_LOGIN = "Check user and password; in a URL write special characters as %XX."
_RIGHTS = "Give the user the rights that are listed in the documentation."
_HELLO = "Set misfire_redis_options = {'protocol': 2}. Redis 6.2 or newer is needed."
_NODE = "The keys of this namespace are on another node of the cluster; name that one."

#: What Redis says when it will not work with us as we are set up, and what to do then.
_REFUSALS = (
    (redis.AuthenticationError, "", _LOGIN),
    (redis.ResponseError, "unauthenticated", _LOGIN),
    (redis.exceptions.NoPermissionError, "", _RIGHTS),
    (redis.ResponseError, "The user executing the script can't", _RIGHTS),
    # In the words of Redis 7.2 and Valkey.
    (redis.ResponseError, "ACL failure in script", _RIGHTS),
    (redis.exceptions.MovedError, "", _NODE),
    (redis.ResponseError, "MOVED ", _NODE),
    (redis.ResponseError, "DB index is out of range", "Check the number of the database."),
    (redis.ResponseError, "unknown command 'HELLO'", _HELLO),
    (redis.ResponseError, "unknown command `HELLO`", _HELLO),
    (redis.ResponseError, "unknown command", "celery_misfire cannot do without it."),
)


def _fix(exc: Exception) -> str:
    if isinstance(exc.__cause__ or exc.__context__, ssl.SSLCertVerificationError):
        return "Check ssl_ca_certs, and the host's name in the URL."
    return next((fix for kind, text, fix in _REFUSALS if isinstance(exc, kind) and text in str(exc)), "")


# -- texts ---------------------------------------------------------------------------------------------------


def _line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":"))


def _event(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return a line of the log, {} for one that is not ours."""
    try:
        line = json.loads(fields[b"d"])
    except (KeyError, ValueError, RecursionError):
        return {}
    return line if isinstance(line, dict) and isinstance(line.get("event"), str) else {}


def _decoded(answer: Any) -> Any:
    if isinstance(answer, list):
        return [_decoded(item) for item in answer]
    return _text(answer) if isinstance(answer, bytes) else answer


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
