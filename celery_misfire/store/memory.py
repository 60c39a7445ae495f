"""A store in memory, for simulations and tests: the same promises as Redis.

Each beat and each worker has a :class:`MemoryStore` of its own on one
:class:`~celery_misfire.store.memory_database.MemoryDatabase`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from celery_misfire.exceptions import LeaseLost
from celery_misfire.store import registers
from celery_misfire.store.memory_database import Contents, Fault, MemoryDatabase
from celery_misfire.store.memory_namespace import MemoryNamespace, one_call
from celery_misfire.store.port import NO_ACKS, NOTHING, Change, CommitResult, Push, Store, by_queue
from celery_misfire.store.registers import (
    REGISTER_TTL,
    Register,
    StartRequest,
    is_left_to_beat,
    register_ttl,
)
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

__all__ = ["Contents", "Fault", "MemoryDatabase", "MemoryStore"]


class MemoryStore(MemoryNamespace, Store):
    """The :class:`~celery_misfire.store.port.Store` in memory. Threads may share it."""

    @one_call
    def advice(self) -> list[str]:
        return []

    # -- lease ---------------------------------------------------------------------------------------------

    @one_call
    def time(self) -> int:
        return self._now()

    @one_call
    def acquire(
        self,
        token: str,
        ttl: float,
        seen: LeaseValue | None = None,
        *,
        needs_state: bool = False,
        sign: str = "",
    ) -> Taken | Held | NoState:
        contents = self.database.contents
        self._sign(sign)
        app = StateMark.parse(contents.meta, str(self)).app if contents.meta else ""
        held = self._get("lease")
        if held and held != str(seen or ""):
            return Held(LeaseValue.parse(held), contents.description[0])
        if not held and not contents.meta and needs_state:
            return NoState()
        previous_epoch = contents.epoch
        contents.epoch = max(previous_epoch + 1, self._now())
        lease = LeaseValue(token, contents.epoch, 0, self.owner)
        self._set("lease", str(lease), ttl)
        stop = CleanStop.parse(self._get("stopped", take=True), previous_epoch, self._now())
        return Taken(lease, previous_epoch, cold=not contents.meta, app=app, stop=stop)

    @one_call
    def renew(self, lease: LeaseValue, ttl: float, known: int = 0, *, sign: str = "") -> Renewed:
        self._check(lease.token)
        if LeaseValue.parse(self._get("lease")).renewals < known:
            raise LeaseLost
        self._sign(sign)
        self._set("lease", str(lease), ttl)
        return Renewed(self._get("note", take=True), bool(self.database.contents.requests))

    @one_call
    def release(self, token: str, in_time_since: int | None = None) -> None:
        self.database.contents.beats.pop(self.owner, None)
        with suppress(LeaseLost):
            self._check(token)
            epoch = LeaseValue.parse(self._get("lease", take=True)).epoch
            if in_time_since:
                self._set("stopped", f"{epoch}|{self._now()}|{in_time_since}", STOP_TTL)

    def _sign(self, text: str) -> None:
        beats, now = self.database.contents.beats, self._now()
        if text:
            beats[self.owner] = (now, text)
            for old in [beat for beat, (at, _) in beats.items() if now - at > SIGN_TTL * 1000]:
                del beats[old]

    # -- records -------------------------------------------------------------------------------------------

    @one_call
    def load(self, names: Sequence[str] | None = None) -> dict[str, str]:
        records = self.database.contents.records
        return {name: records[name] for name in (records if names is None else names) if name in records}

    @one_call
    def commit(
        self,
        token: str,
        changes: Sequence[Change],
        log: Sequence[Mapping[str, Any]] = (),
        pushes: Sequence[Push] = (),
        counts: Mapping[tuple[str, str], int] = NOTHING,
        acks: Mapping[str, int] = NO_ACKS,
    ) -> CommitResult:
        queues = by_queue(changes, pushes)
        self._check(token)
        records = self.database.contents.records
        to_do = [change for change in changes if records.get(change.entry, "") != change.new]
        conflicts = [change.entry for change in to_do if records.get(change.entry, "") != change.old]
        if to_do and pushes and not conflicts:
            # A message goes with its own record: some of these have been replaced before.
            conflicts = [c.entry for c in changes if c not in to_do and c.old != c.new]
        if conflicts:
            return CommitResult(tuple(conflicts))
        failed: list[tuple[Push, str]] = []
        if to_do or not changes:
            held = {id_: registers.parse(self._get(f"fire:{id_}")) for id_ in acks}
            if closed := tuple(id_ for id_, register in held.items() if is_left_to_beat(register)):
                return CommitResult(closed=closed)
            if refused := self.database.refusals(queues):
                return CommitResult(refused=refused)
            failed = [(push, error) for push in pushes if (error := self.database.push(push))]
            for change in to_do:
                if change.new:
                    records[change.entry] = change.new
                else:
                    del records[change.entry]
            self.database.count(counts)
            self._write_log(*log)
        lengths = {name: len(self.database.contents.queues[name]) for name in queues}
        return CommitResult(queue_lengths=lengths, failed=tuple(failed))

    @one_call
    def counts_since(self, moment: float) -> dict[tuple[str, str], int]:
        oldest = max(moment, self.database.clock() - COUNTS_TTL) // 3600
        totals: Counter[tuple[str, str]] = Counter()
        for hour, counts in self.database.contents.counts.items():
            if hour >= oldest:
                totals.update(counts)
        return dict(totals)

    @one_call
    def write_meta(self, token: str, app: str) -> None:
        self._check(token)
        self.database.contents.meta = self.database.contents.meta or str(StateMark(app))

    @one_call
    def look(self) -> tuple[StateMark | None, LeaseValue | None]:
        meta, lease = self.database.contents.meta, self._get("lease")
        return StateMark.parse(meta, str(self)) if meta else None, LeaseValue.parse(lease) if lease else None

    @one_call
    def write_destination(self, token: str, destination: Destination) -> None:
        self._check(token)
        contents = self.database.contents
        if contents.meta:
            contents.meta = str(StateMark.parse(contents.meta, str(self)).with_destination(destination))

    # -- the configuration of the beat that leads ----------------------------------------------------------

    @one_call
    def describe(self, token: str, beat: str, entries: str) -> None:
        self._check(token)
        self.database.contents.description = (beat, entries)

    @one_call
    def description(self) -> tuple[str, str]:
        return self.database.contents.description

    @one_call
    def tell_leader(self, text: str) -> None:
        self._set("note", text, NOTE_TTL)

    # -- registers -----------------------------------------------------------------------------------------

    @one_call
    def settle(self, task_ids: Sequence[str], value: Register, *, token: str | None = None) -> list[Register]:
        if token is not None:
            self._check(token)
        return [self._write_register(task_id, value)[0] for task_id in task_ids]

    @one_call
    def start(self, task_id: str, request: StartRequest) -> tuple[Register, int]:
        value, line, late_start, entry = request.value, request.line, request.late_start, request.entry
        started, _, late_run = self._get(f"late:{entry}").partition("|")
        if request.sent_at is not None and started and request.sent_at < int(started):
            value, line, late_start = registers.Merged(late_run), request.merged_line, None
        held, fresh = self._write_register(task_id, value, by_hand=request.by_hand)
        if fresh and late_start is not None:
            self._set(f"late:{entry}", f"{late_start}|{task_id}", REGISTER_TTL)
        if not fresh or line is None:
            return held, int(fresh)
        counted = {("", "late"): 1}
        if isinstance(held, registers.Missed | registers.Merged):
            counted[entry, str(held).partition(":")[0]] = 1
        self.database.count(counted)
        nth = self.database.contents.counts[int(self.database.clock() // 3600)]["", "late"]
        if nth <= max(10, self._history / 10):
            self._write_log(line)
        return held, nth

    def _write_register(
        self, task_id: str, value: Register, *, by_hand: bool = False
    ) -> tuple[Register, bool]:
        held = self._get(f"fire:{task_id}")
        if not held:
            self._set(f"fire:{task_id}", str(value), register_ttl(value, by_hand=by_hand))
        return registers.parse(held or str(value)), not held

    @one_call
    def close(self, task_id: str, value: Register, entry: str, record: str) -> Register | None:
        if not self._get(f"fire:{task_id}") and self.database.contents.records.get(entry) != record:
            return None
        return self._write_register(task_id, value)[0]

    @one_call
    def register(self, task_id: str) -> Register | None:
        return registers.parse(held) if (held := self._get(f"fire:{task_id}")) else None

    # -- log -----------------------------------------------------------------------------------------------

    @one_call
    def log(self, count: int | None = None) -> list[dict[str, Any]]:
        lines = self.database.contents.log
        return [json.loads(text) for _, text in (lines if count is None else lines[-count:])]

    @one_call
    def log_after(self, seen: str, count: int) -> list[tuple[str, dict[str, Any]]]:
        after = tuple(map(int, seen.split("-")))
        found = [(id_, text) for id_, text in self.database.contents.log if id_ > after]
        return [(f"{id_[0]}-{id_[1]}", json.loads(text)) for id_, text in found[:count]]

    @one_call
    def last_log_id(self) -> str:
        moment, number = self.database.contents.log[-1][0] if self.database.contents.log else (0, 0)
        return f"{moment}-{number}"

    def _write_log(self, *lines: Mapping[str, Any]) -> None:
        log = self.database.contents.log
        for line in lines:
            moment, number = log[-1][0] if log else (0, 0)
            id_ = max((self._now(), 0), (moment, number + 1))
            log.append((id_, json.dumps(line)))
        del log[: max(0, len(log) - self._history)]
