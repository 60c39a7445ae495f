"""The state in Redis: lease, records, log and registers.

All keys share one hash tag, so that they live in one slot of a Cluster and one script may touch them all.
Every write is a script (``lua/``) that may be sent twice and works once. The names of the keys, and the texts
that they hold, may never change: other versions work with the same state.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from typing import Any

from celery_misfire.exceptions import LeaseLost, StoreRefused, StoreUnavailable
from celery_misfire.misfire import Outcome
from celery_misfire.store import errors, registers
from celery_misfire.store.connection import LONGEST_CALL, as_text, millis
from celery_misfire.store.former import look_at
from celery_misfire.store.port import NO_ACKS, NOTHING, Change, CommitResult, Push, Refusal, Store, by_queue
from celery_misfire.store.redis_namespace import RedisNamespace
from celery_misfire.store.registers import LEFT_AFTER, Register, StartRequest, register_ttl
from celery_misfire.store.state_mark import Destination, StateMark
from celery_misfire.store.values import (
    COUNTS_TTL,
    NOTE_TTL,
    SIGN_TTL,
    STOP_TTL,
    CleanStop,
    Held,
    LeaseValue,
    NoState,
    Renewed,
    Taken,
)

__all__ = ["LONGEST_CALL", "RedisStore"]

#: The fields of the state in which the leading beat describes itself, and its entries.
_DESCRIPTION = ("_beat", "_beat_entries")

_NO_QUEUES: Mapping[str, Sequence[Push]] = {}

#: What commit.lua answers when its time is over.
_LATE = ["LATE"]

_flat = chain.from_iterable

#: Stands for the value of a free lease that acquire.lua left alone as there is no state.
_NO_STATE = "|"


class RedisStore(RedisNamespace, Store):
    """The :class:`~celery_misfire.store.port.Store` in Redis."""

    def advice(self) -> list[str]:
        return self._connection.advice()

    def time(self) -> int:
        asked_at = time.monotonic() * 1000
        seconds, microseconds = self._call(self._redis.time)
        now = int(seconds) * 1000 + int(microseconds) // 1000
        self._connection.clock.offset = now - asked_at
        return now

    # -- lease ---------------------------------------------------------------------------------------------

    def acquire(
        self,
        token: str,
        ttl: float,
        seen: LeaseValue | None = None,
        *,
        needs_state: bool = False,
        sign: str = "",
    ) -> Taken | Held | NoState:
        keys = [self.lease_key, self.state_key, self.log_key, self._stop_key, self._beats_key]
        meta, app, free = "", "", _NO_STATE if needs_state else ""
        while True:
            args = [token, self.owner, millis(ttl), str(seen or ""), meta, free, sign, millis(SIGN_TTL)]
            answer = self._run("acquire", keys, args)
            match answer:
                case ["META", meta]:
                    app = StateMark.parse(meta, self.state_key).app if meta else ""
                case ["HELD", value, _] if value == _NO_STATE:
                    return NoState()
                case ["HELD", value, description]:
                    return Held(LeaseValue.parse(value), description)
                case [_, _, previous_epoch, value, now, mark]:
                    stop = CleanStop.parse(mark, int(previous_epoch), int(now))
                    return Taken(LeaseValue.parse(value), int(previous_epoch), not meta, app, stop)

    def renew(self, lease: LeaseValue, ttl: float, known: int = 0, *, sign: str = "") -> Renewed:
        keys = [self.lease_key, self._note_key, self._control_key, self._beats_key]
        args = [lease.token, str(lease), millis(ttl), known, self.owner, sign, millis(SIGN_TTL)]
        answer = self._run("renew", keys, args)
        if not answer:
            raise LeaseLost
        return Renewed(str(answer[0]), answer[1] == 1)

    def release(self, token: str, in_time_since: int | None = None) -> None:
        args = [token, in_time_since or "", millis(STOP_TTL), self.owner]
        self._run("release", [self.lease_key, self._stop_key, self._beats_key], args)

    # -- records -------------------------------------------------------------------------------------------

    def load(self, names: Sequence[str] | None = None) -> dict[str, str]:
        if names is not None:
            found = self._call(self._redis.hmget, self.state_key, [f"e:{n}" for n in names]) if names else ()
            return {n: as_text(text) for n, text in zip(names, found, strict=True) if text is not None}
        state = self._call(self._redis.hgetall, self.state_key)
        fields = {as_text(field): as_text(text) for field, text in state.items()}
        return {field[2:]: text for field, text in fields.items() if field.startswith("e:")}

    def commit(
        self,
        token: str,
        changes: Sequence[Change],
        log: Sequence[Mapping[str, Any]] = (),
        pushes: Sequence[Push] = (),
        counts: Mapping[tuple[str, str], int] = NOTHING,
        acks: Mapping[str, int] = NO_ACKS,
    ) -> CommitResult:
        fields = [(f"e:{change.entry}", change.old, change.new) for change in changes]
        queues = by_queue(changes, pushes)
        others = [push for push in pushes if push.kind != "lpush"]
        replace = partial(self._replace, token, fields, log, queues, others, counts)
        latest = self._connection.clock.latest() if queues else 0
        # Soon after the messages were sent, no register need be looked at.
        soon = self._open_until(acks) if acks and not queues else 0
        try:
            answer = replace(latest=soon) if soon else replace(acks, latest)
            if soon and answer == _LATE:
                # The clock of Redis may have been set.
                self.time()
                answer = replace(acks, latest)
            if answer == _LATE:
                self._connection.clock.offset = None
                what = "a call came too late, or the clock of Redis was set"
                raise StoreUnavailable(f"{self._connection}: {what}")
            return _commit_result(answer, queues, others, tuple(acks))
        except StoreRefused:
            if refused := _refused_names(self._replace, queues, f"{self._connection}: "):
                return CommitResult(refused=refused)
            raise

    def _open_until(self, acks: Mapping[str, int]) -> int:
        """Return up to when no worker can have left one of these runs to beat, by the clock of Redis.

        It is 0 when that is over, or not known. Half of the time is left to workers whose clocks are ahead.
        """
        left = min(acks.values()) + LEFT_AFTER * 500 - time.time() * 1000
        return self._connection.clock.latest(left) if left > 0 else 0

    def counts_since(self, moment: float) -> dict[tuple[str, str], int]:
        oldest = max(moment, time.time() - COUNTS_TTL)
        pipeline = self._redis.pipeline(transaction=False)
        for hour in range(int(oldest // 3600), int(time.time() // 3600) + 1):
            pipeline.hgetall(self._counts_key(hour * 3600))
        return _totals(self._call(pipeline.execute))

    def _counts_key(self, moment: float) -> str:
        return self._counts_prefix + _name_of_hour(moment // 3600)

    def write_meta(self, token: str, app: str) -> None:
        self._replace(token, [("_meta", "", str(StateMark(app)))])

    def write_hold(self, token: str, old: str, new: str) -> bool:
        return bool(self._replace(token, [("_hold", old, new)])[0] == "OK")

    def look(self) -> tuple[StateMark | None, LeaseValue | None]:
        return look_at(self._connection, self.state_key, self.lease_key)

    def look_at_former(self) -> tuple[StateMark | None, LeaseValue | None]:
        return self._former.look()

    def take_former(self) -> bool:
        return self._former.move()

    def write_destination(self, token: str, destination: Destination) -> None:
        meta = as_text(self._call(self._redis.hget, self.state_key, "_meta") or "")
        if meta:
            mark = StateMark.parse(meta, self.state_key).with_destination(destination)
            self._replace(token, [("_meta", meta, str(mark))])

    def _replace(
        self,
        token: str,
        fields: Sequence[tuple[str, str, str]],
        log: Sequence[Mapping[str, Any]] = (),
        queues: Mapping[str, Sequence[Push]] = _NO_QUEUES,
        others: Sequence[Push] = (),
        counts: Mapping[tuple[str, str], int] = NOTHING,
        acks: Iterable[str] = (),
        latest: int = 0,
    ) -> list[Any]:
        """Replace fields of the state, each given with its old and its new text, and return the answer."""
        keys = [self.lease_key, self.state_key, self.log_key, *queues]
        counted = f"{len(fields)} {len(queues)} {len(others)} {len(counts)} {self._history} {latest}"
        args: list[Any] = [token, counted, *_flat(fields)]
        if queues or others:
            args += _flat((len(messages), *(push.value for push in messages)) for messages in queues.values())
            args += _flat((push.kind, push.key, push.value) for push in others)
        if counts:
            keys.append(self._counts_key(time.time()))
            args.append(millis(COUNTS_TTL))
            args += _flat((f"{outcome}:{entry}", n) for (entry, outcome), n in counts.items())
        args += map(_line, log)
        keys += (self._register_prefix + task_id for task_id in acks)
        answer: list[Any] = self._connection.run_often("commit", keys, args)
        if answer[0] == "FENCED":
            raise LeaseLost
        return answer

    # -- the configuration of the beat that leads ----------------------------------------------------------

    def describe(self, token: str, beat: str, entries: str) -> None:
        self._replace(token, list(zip(_DESCRIPTION, self.description(), (beat, entries), strict=True)))

    def description(self) -> tuple[str, str]:
        beat, entries = self._call(self._redis.hmget, self.state_key, _DESCRIPTION)
        return as_text(beat or ""), as_text(entries or "")

    def tell_leader(self, text: str) -> None:
        self._call(partial(self._redis.set, px=millis(NOTE_TTL)), self._note_key, text)

    # -- registers -----------------------------------------------------------------------------------------

    def settle(self, task_ids: Sequence[str], value: Register, *, token: str | None = None) -> list[Register]:
        if not task_ids:
            return []
        keys = [self.lease_key, *(self._register_prefix + task_id for task_id in task_ids)]
        fence = [] if token is None else [token]
        held = self._run("settle", keys, [str(value), millis(register_ttl(value)), *fence])
        if not held:
            raise LeaseLost
        return [registers.parse(text) for text in held]

    def start(self, task_id: str, request: StartRequest) -> tuple[Register, int]:
        value, sent_at, late_start = request.value, request.sent_at, request.late_start
        ttl = millis(register_ttl(value, by_hand=request.by_hand))
        key = self._register_prefix + task_id
        if sent_at is None and late_start is None and request.line is None:
            # The common case, in the fewest bytes; sent twice, it finds the value that is its own.
            if self._call(partial(self._redis.set, nx=True, px=ttl), key, str(value)):
                return value, 1
            return self.register(task_id) or registers.Unknown(), 0
        entry = request.entry
        entry_digest = hashlib.sha1(entry.encode("utf-8", "surrogateescape")).hexdigest()
        keys = [key, self._late_prefix + entry_digest, self.log_key, self._counts_key(time.time())]
        mark = "" if late_start is None else f"{late_start}|{task_id}"
        lines = ["" if one is None else _line(one) for one in (request.line, request.merged_line)]
        args = [
            str(value),
            ttl,
            "" if sent_at is None else sent_at,
            mark,
            self._history,
            *lines,
            millis(COUNTS_TTL),
            f"{Outcome.MISSED}:{entry}" if isinstance(value, registers.Missed) else "",
            f"{Outcome.MERGED}:{entry}",
        ]
        held, nth = self._run("start", keys, args)
        return registers.parse(held), int(nth)

    def close(self, task_id: str, value: Register, entry: str, record: str) -> Register | None:
        keys = [self._register_prefix + task_id, self.state_key]
        args = [str(value), millis(register_ttl(value)), f"e:{entry}", record]
        held = self._run("close", keys, args)
        return registers.parse(held) if held else None

    def register(self, task_id: str) -> Register | None:
        try:
            text = self._call(self._redis.get, self._register_prefix + task_id)
        except StoreUnavailable as exc:
            if "WRONGTYPE" not in str(exc):
                raise
            return registers.Unknown()
        return registers.parse(as_text(text)) if text else None

    # -- log -----------------------------------------------------------------------------------------------

    def log(self, count: int | None = None) -> list[dict[str, Any]]:
        rows = self._call(self._redis.xrevrange, self.log_key, "+", "-", count)
        return [line for _, fields in reversed(rows) if (line := _parse_line(fields))]

    def log_after(self, seen: str, count: int) -> list[tuple[str, dict[str, Any]]]:
        rows = self._call(self._redis.xrange, self.log_key, f"({seen}", "+", count)
        return [(as_text(id_), _parse_line(fields)) for id_, fields in rows]

    def last_log_id(self) -> str:
        rows = self._call(self._redis.xrevrange, self.log_key, "+", "-", 1)
        return as_text(rows[0][0]) if rows else "0-0"


def _commit_result(
    answer: Sequence[Any], queues: Mapping[str, Sequence[Push]], others: Sequence[Push], acks: Sequence[str]
) -> CommitResult:
    """Return what commit.lua has answered."""
    match answer:
        case ["OK", *numbers]:
            pairs = zip(queues, numbers, strict=False)
            failed = numbers[len(queues) :]
            return CommitResult(
                queue_lengths={name: n for name, n in pairs if n >= 0},
                failed=tuple(
                    (others[n - 1], errors.in_words(error))
                    for n, error in zip(failed[::2], failed[1::2], strict=True)
                ),
            )
        case ["CONFLICT", *fields]:
            return CommitResult(tuple(field[2:] for field in fields))
        case ["CLOSED", *numbers]:
            return CommitResult(closed=tuple(acks[n - 1] for n in numbers))
        case ["REFUSED", *refused]:
            pushes = list(queues.values())
            return CommitResult(
                refused=tuple(
                    Refusal.of(pushes[n - 1], f"{command}: {errors.in_words(error)}")
                    for n, command, error in zip(refused[::3], refused[1::3], refused[2::3], strict=True)
                )
            )
    raise AssertionError(answer)


@lru_cache(maxsize=1)
def _name_of_hour(hour: float) -> str:
    return time.strftime("%Y-%m-%dT%H", time.gmtime(hour * 3600))


def _totals(hours: Iterable[Mapping[bytes, bytes]]) -> dict[tuple[str, str], int]:
    """Return the sums of what was counted, by entry and outcome."""
    totals: dict[tuple[str, str], int] = {}
    for counts in hours:
        for name, n in counts.items():
            outcome, _, entry = as_text(name).partition(":")
            totals[entry, outcome] = totals.get((entry, outcome), 0) + int(n)
    return totals


def _refused_names(
    replace: Callable[..., object], queues: Mapping[str, Sequence[Push]], place: str
) -> tuple[Refusal, ...]:
    """Return the queues whose keys Redis does not let us name together with the state."""
    found = []
    for name, messages in queues.items():
        try:
            # Nobody's token: whoever may name all the keys is told that the lease is not theirs.
            replace("", [], queues={name: []})
        except LeaseLost:
            continue
        except StoreRefused as exc:
            found.append(Refusal.of(messages, str(exc).removeprefix(place)))
    return tuple(found)


# json.dumps() would make an encoder for each line.
_line = json.JSONEncoder(separators=(",", ":")).encode


def _parse_line(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return a line of the log, {} for one that is not ours."""
    try:
        line = json.loads(fields[b"d"])
    except (KeyError, ValueError, RecursionError):
        return {}
    return line if isinstance(line, dict) and isinstance(line.get("event"), str) else {}
