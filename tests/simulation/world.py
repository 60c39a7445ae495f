"""Beats, workers, one database and one clock that the simulation turns, with every trouble drawn by a seed.

The beats are real from the member down; the store is in memory, and Celery and the reporter are stand-ins.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from celery_misfire import fire, records
from celery_misfire.events import Missed
from celery_misfire.exceptions import BrokerUnavailable, PublishRejected, StoreUnavailable
from celery_misfire.misfire import (
    MisfireInstruction,
    MisfirePolicy,
    MissedFire,
    Outcome,
    Reason,
    from_millis,
    to_millis,
)
from celery_misfire.records import Definition
from celery_misfire.schedules import simple
from celery_misfire.sending.dispatch import Attempt, Fate, Message
from celery_misfire.sending.publisher import _headers
from celery_misfire.store import registers
from celery_misfire.store.memory import Fault, MemoryDatabase, MemoryStore
from celery_misfire.store.port import NO_ACKS, NOTHING, Change, CommitResult, Push
from celery_misfire.store.state_mark import Destination
from celery_misfire.testing.process import BeatProcess
from celery_misfire.triggers.kinds import trigger_for
from tests.simulation.history import Event, What, from_log, from_queue, from_times, from_workers
from tests.support.processes import Message as Published

NAMESPACE, WORKER = "simulation", "worker"
BEGIN = 1_700_000_000_000
#: Time to live, time between two renewals, time between two looks of a standby, in seconds.
LEASE_TIMES = 6.0, 2.0, 1.0
#: How long there are troubles, in milliseconds, and what follows for everything to come to rest.
TROUBLES, REST = 40_000, 30_000

#: Interval in milliseconds and policy of each entry. All instructions leave the grid where it is.
ENTRIES: dict[str, tuple[int, MisfirePolicy]] = {
    "every": (1500, MisfirePolicy("ignore_misfire_policy", threshold=2)),
    "merging": (2000, MisfirePolicy("fire_once_now", threshold=1.5)),
    "strict": (2500, MisfirePolicy("do_nothing", threshold=2)),
    "patient": (3000, MisfirePolicy("do_nothing", threshold=3600)),
}


class PowerCut(BaseException):
    """The process of a beat ends here."""


@dataclass(frozen=True)
class Plan:
    """Which troubles there are, as probabilities.

    :param apart: messages are in another place than the state.
    :param early: the task of the entry `every` leaves while its message is built.
    :param gives_up: workers ask the registers, and give up what is late of entries that do nothing then.
    :param slow: a message is under way for seconds, and may be taken before its beat knows that it was sent.
    :param between: workers are at work while a beat waits for a commit, which takes seconds.
    :param cut: a beat ends at a call to the store.
    :param poisoned: no script with a message of the entry `every` gets an answer, nor is it carried out.
    """

    apart: bool = False
    worker: bool = False
    beats: int = 2
    lost: float = 0.01
    unreachable: float = 0.01
    late: float = 0.005
    crash: float = 0.004
    freeze: float = 0.01
    refused: float = 0.0
    down: float = 0.003
    queue_refuses: float = 0.0
    early: bool = False
    gives_up: bool = False
    slow: float = 0.0
    between: float = 0.0
    cut: float = 0.0
    poisoned: bool = False
    back: float = 0.0
    flush: float = 0.0


class _Store(MemoryStore):
    """A store that fails with the messages of some entries."""

    poisoned: Collection[str] = ()

    def commit(
        self,
        token: str,
        changes: Sequence[Change],
        log: Sequence[Mapping[str, Any]] = (),
        pushes: Sequence[Push] = (),
        counts: Mapping[tuple[str, str], int] = NOTHING,
        acks: Mapping[str, int] = NO_ACKS,
    ) -> CommitResult:
        if any(push.entry in self.poisoned for push in pushes):
            raise StoreUnavailable("the connection was closed")
        return super().commit(token, changes, log, pushes, counts, acks)


@dataclass
class Beat:
    """One process."""

    name: str
    process: BeatProcess
    next_tick: int
    frozen_until: int = 0


class Publisher:
    """Celery and its broker, as one beat sees them."""

    was_asked = True

    def __init__(self, world: World, owner: str) -> None:
        self._world, self._owner = world, owner

    def connect(self) -> None:
        if self._world.is_down:
            raise BrokerUnavailable("down")

    def read(self, key: str) -> str | None:
        self.connect()
        if self._world.plan.apart:
            return None
        text, until = self._world.database.contents.expiring.get(key, ("", 0.0))
        return text if until > self._world.database.clock() else None

    def destination(self, keys: Sequence[str]) -> Destination:
        self.connect()
        return Destination("memory", "", "celery")

    def sends_early(self, task: str) -> bool:
        return self._world.plan.early and task == "shop.every"

    def build(self, message: Message) -> tuple[Attempt, list[Push]]:
        self._may_die()
        if self.sends_early(message.definition.task):
            return self.publish(message), []
        if self._world.happens(self._world.plan.refused):
            return Attempt(Fate.REFUSED, PublishRejected("by chance")), []
        return Attempt(Fate.SENT), [Push(message.definition.name, "lpush", "celery", _text(message))]

    def publish(self, message: Message) -> Attempt:
        self._may_die()
        if self._world.is_down:
            return Attempt(Fate.IN_DOUBT, BrokerUnavailable("down"))
        if self._world.happens(self._world.plan.refused):
            return Attempt(Fate.REFUSED, PublishRejected("by chance"))
        self._world.queue().append(_text(message))
        if self._world.plan.slow and self._world.happens(self._world.plan.slow):
            self._world.pass_slowly()
        self._may_die()
        if self._world.happens(self._world.plan.lost):
            return Attempt(Fate.IN_DOUBT, BrokerUnavailable("no answer"))
        return Attempt(Fate.SENT)

    def _may_die(self) -> None:
        if self._world.happens(self._world.plan.crash):
            self._world.end(self._owner)


def _published(message: Mapping[str, Any]) -> Published:
    return Published(message["id"], "", {"misfire": message["misfire"]}, [], {})


def _missed(header: Mapping[str, Any], id_: str) -> Mapping[str, Any]:
    """Return the line of the log that a worker writes of a run that it has given up."""
    moment = datetime.fromisoformat(header["scheduled_fire_time"])
    reason, instruction = Reason.QUEUE_LATE, MisfireInstruction.DO_NOTHING
    missed = MissedFire(header["entry"], "", id_, moment, moment, 1, reason, instruction, moment)
    return Missed.of(missed, worker=WORKER).encode()


def _text(message: Message) -> str:
    return json.dumps({"id": message.task_id, "misfire": _headers(message)[fire.HEADER]})


class World:
    """Runs beats through the troubles that a seed draws, and tells what took place."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self.plan, self._dice, self._dice_of_looks = plan, random.Random(seed), random.Random(-1 - seed)
        self.now = BEGIN
        self.database = MemoryDatabase(lambda: self.now / 1000)
        self.database.fault = self._fault
        self.database.refuse = lambda push: "refused" if self._refuses else ""
        #: Messages that are not in the database of the state.
        self.elsewhere: list[str] = []
        self.is_down = self._refuses = self._troubled = False
        self._beats: list[Beat] = []
        self._number = 0
        self._kept = self.database.snapshot()
        self._told: list[Event] = []
        self._ended: set[str] = set()

    # -- chance --------------------------------------------------------------------------------------------

    def happens(self, probability: float) -> bool:
        return self._troubled and self._dice.random() < probability

    def end(self, owner: str) -> None:
        """Kill a beat that is at work."""
        self._ended.add(owner)
        raise PowerCut

    def _fault(self, owner: str, call: str) -> Fault | None:
        if owner in self._ended:
            # A process that was killed cleans nothing up.
            raise PowerCut
        if self.plan.cut and owner != WORKER and self.happens(self.plan.cut):
            self.end(owner)
        if self.plan.between and call == "commit" and self.happens(self.plan.between):
            self.pass_slowly()
        if self.is_down:
            return Fault.UNREACHABLE
        if not self._troubled or call in ("log", "is_guarded", "last_log_id"):
            return None
        # A look has dice of its own: those of the other calls fall as they did before there were looks.
        dice = self._dice_of_looks if call == "sight" else self._dice
        point, plan = dice.random(), self.plan
        for fault, share in (
            (Fault.ANSWER_LOST, plan.lost),
            (Fault.UNREACHABLE, plan.unreachable),
            (Fault.LATE, plan.late),
        ):
            if point < share:
                return fault
            point -= share
        return None

    # -- beats ---------------------------------------------------------------------------------------------

    def _definitions(self) -> Iterator[Definition]:
        for name, (interval, policy) in ENTRIES.items():
            grid = simple(start=from_millis(BEGIN + 1000), interval=timedelta(milliseconds=interval))
            yield Definition(name, f"shop.{name}", trigger_for(grid), policy)

    def _start(self) -> None:
        self._number += 1
        name = f"host:{self._number}"
        store = _Store(self.database, name, history=1_000_000)
        store.poisoned = {"every"} if self.plan.poisoned else set()
        process = BeatProcess(
            store,
            Publisher(self, name),
            lambda: self.now,
            self._definitions,
            namespace=NAMESPACE,
            lease_times=LEASE_TIMES,
        )
        self._beats.append(Beat(name, process, self.now))

    def _tick(self, beat: Beat) -> None:
        try:
            delay = beat.process.tick()
        except PowerCut:
            self._beats.remove(beat)
            return
        beat.next_tick = self.now + max(1, min(500, round(delay * 1000)))

    # -- workers -------------------------------------------------------------------------------------------

    def queue(self) -> list[Any]:
        """Return the queue, oldest message first."""
        return self.elsewhere if self.plan.apart else self.database.contents.queues["celery"]

    def _work(self) -> None:
        """Let a worker run the oldest message, unless another message of that run was first."""
        queue = self.queue()
        if not queue or self.is_down:
            return
        message = json.loads(queue.pop(0))
        header, id_ = message["misfire"], message["id"]
        worker = MemoryStore(self.database, WORKER)
        before, self.database.fault = self.database.fault, lambda *_: None
        starts = header.get("once") or self._starts(worker, header, id_)
        self.database.fault = before
        if starts:
            run = {"misfire": header, "task_id": id_, "started": self.now / 1000, "retries": 0}
            self._told += from_workers([run])
        elif self.plan.gives_up:
            # It was there, although it does not start.
            self._told += from_queue([_published(message)])

    def _starts(self, worker: MemoryStore, header: Mapping[str, Any], id_: str) -> bool:
        """Write the register of a run as a worker does; return whether it starts."""
        value: registers.Register = registers.Started(header["nonce"], "w")
        line: Mapping[str, Any] | None = None
        if self.plan.gives_up and self._is_late(header):
            if record := self._claim(worker, header, id_):
                worker.close(id_, registers.Missed(Reason.QUEUE_LATE), header["entry"], record)
                return False
            value, line = registers.Missed(Reason.QUEUE_LATE, header["nonce"]), _missed(header, id_)
        held, fresh = worker.start(id_, registers.StartRequest(value, header["entry"], line=line))
        return isinstance(held, registers.Started) and (fresh > 0 or held.nonce == header["nonce"])

    def _is_late(self, header: Mapping[str, Any]) -> bool:
        began = header["scheduled_fire_time" if header["outcome"] == Outcome.FIRED else "fire_time"]
        late_by = self.now - to_millis(datetime.fromisoformat(began))
        return header["instruction"] == "do_nothing" and late_by >= header["threshold"] * 1000

    def _claim(self, worker: MemoryStore, header: Mapping[str, Any], id_: str) -> str:
        if self.now - to_millis(datetime.fromisoformat(header["fire_time"])) < registers.LEFT_AFTER * 1000:
            return ""
        text = worker.load([header["entry"]]).get(header["entry"], "")
        intents = records.loads(text).intents if text else ()
        return text if any(id_ == fire.id_of(NAMESPACE, header["entry"], i) for i in intents) else ""

    def pass_slowly(self) -> None:
        """Let some seconds pass before workers get what a beat has sent, and the beat an answer."""
        self.now += self._dice.choice([500, 1500, 3000])
        while self.queue() and not self.is_down:
            self._work()

    # -- Redis ---------------------------------------------------------------------------------------------

    def _snapshot(self) -> None:
        self._kept = self.database.snapshot()
        self._told.append(Event(What.SNAPSHOT))

    def _go_back(self) -> None:
        self.database.put_back(self._kept)
        self.database.late_calls.clear()
        self._told.append(Event(What.ROLLED_BACK))

    def _lose(self) -> None:
        self._told += [*self._held(), Event(What.FLUSHED)]
        self.database.lose()
        self.database.late_calls.clear()
        self._snapshot()

    def _held(self) -> list[Event]:
        """Return what the database and the queues tell."""
        lines = [json.loads(text) for _, text in self.database.contents.log]
        waiting = [json.loads(text) for text in self.queue()]
        return from_log(lines) + from_queue(map(_published, waiting))

    # -- the whole -----------------------------------------------------------------------------------------

    def run(self) -> list[Event]:
        """Run it all, and return the history."""
        self._start()
        self._tick(self._beats[0])
        if self.plan.gives_up:
            MemoryStore(self.database, WORKER).watch("w", 3600, 3600)
        self._snapshot()
        self._troubled = True
        while self.now < BEGIN + TROUBLES:
            self._trouble()
            self._step()
        self._troubled = self.is_down = self._refuses = False
        for beat in self._beats:
            beat.frozen_until = 0
        self.database.carry_out_late()
        until = self.now + REST
        while self.now < until or not self._is_settled():
            assert self.now < until + 10 * REST, "it does not come to rest"
            self._keep_alive(1)
            self._step()
        while self.plan.gives_up and self.queue():
            self._work()
        return [*self._due(), *self._told, *self._held()]

    def _trouble(self) -> None:
        plan = self.plan
        self._keep_alive(plan.beats)
        if self.database.late_calls and self.happens(0.1):
            self.database.carry_out_late()
        if self.happens(0.05):
            self._snapshot()
        if self.happens(plan.back):
            self._go_back()
        if self.happens(plan.flush):
            self._lose()
        self._refuses = self.happens(plan.queue_refuses)
        self.is_down = self.happens(0.95) if self.is_down else self.happens(plan.down)
        for beat in list(self._beats):
            if self.happens(plan.crash):
                self._beats.remove(beat)
            elif self.happens(plan.freeze):
                beat.frozen_until = self.now + self._dice.choice([500, 3000, 9000])

    def _keep_alive(self, beats: int) -> None:
        if len(self._beats) < beats and (not self._troubled or self.happens(0.05)):
            self._start()

    def _step(self) -> None:
        for beat in list(self._beats):
            if beat.next_tick <= self.now and beat.frozen_until <= self.now:
                self._tick(beat)
        if self.plan.worker and self._dice.random() < 0.5:
            self._work()
        moments = [beat.next_tick for beat in self._beats if beat.next_tick > self.now]
        self.now = min([self.now + 100, *moments])

    def _is_settled(self) -> bool:
        found = [records.loads(text) for text in self.database.contents.records.values()]
        done = all(r.settled and (r.state.next_fire_time or 0) > self.now for r in found)
        return (
            len(found) == len(ENTRIES)
            and done
            and not any(b.process.reports and b.process.lease.held for b in self._beats)
        )

    def _due(self) -> list[Event]:
        return [
            event
            for name, (interval, _) in ENTRIES.items()
            for event in from_times(name, range(BEGIN + 1000, self.now + 1, interval))
        ]
