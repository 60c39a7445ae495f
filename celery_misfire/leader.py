"""The beat that leads: carries out, durably and in the right order, what the planner decides.

For each entry that is due: plan, *claim* (one commit to the store: new state, intents, log), *publish* each
intent, *acknowledge* (a second commit without the intents that were sent). A crash anywhere in between
leaves either an entry that is still due or an intent that the next leader sends again under the same id.
Runs that are on time go first; what is to be caught up follows in batches.

Nothing here knows Celery: sending is the :class:`Publisher`'s business, reporting the business of
:mod:`celery_misfire.reports`.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Protocol

from celery_misfire import records
from celery_misfire.exceptions import BrokerUnavailable, MisfireError, PublishRejected
from celery_misfire.fire import task_id
from celery_misfire.lease import Lease, uptime
from celery_misfire.ledger import Commit, Ledger
from celery_misfire.misfire import (
    Misfire,
    MisfireInstruction,
    MisfirePolicy,
    Missed,
    Outcome,
    Reason,
    Trigger,
    from_millis,
    plan,
    resolve,
    threshold_millis,
)
from celery_misfire.missed import log_line
from celery_misfire.patience import NoAnswer, Patience
from celery_misfire.problems import brief, one_line, shown
from celery_misfire.records import EntryRecord, Intent
from celery_misfire.reports import Reporter, Reports
from celery_misfire.store import Acquired, RedisStore

__all__ = ["Definition", "Leader", "Message", "Publisher"]

logger = logging.getLogger(__name__)

#: How many runs are claimed and sent at a time; so many are sent again after a crash, at most.
BATCH = 100
#: How many of them one entry may have when it catches up, so that all entries get their turn.
SHARE = 20
#: Catching up gets a turn at least so often, in seconds, however busy beat is with what is on time.
CATCH_UP_EVERY = 1.0
#: Longest sleep, in seconds: the lease's thread wants to see the main loop go on.
LONGEST_SLEEP = 5.0
#: The record of a removed entry is kept so long, in milliseconds, so that its return is noticed.
KEEP_REMOVED = 7 * 24 * 3600 * 1000
#: An entry that cannot be planned is mentioned so often, in seconds.
REMIND_EVERY = 3600.0
#: A wall clock that gains or loses so much on the steady clock between two looks, in milliseconds, was set.
CLOCK_JUMP = 1_000


@dataclass(frozen=True)
class Definition:
    """An entry of the schedule, as far as the leader needs it.

    :param anchor: when an entry on an interval last ran elsewhere, in milliseconds UTC: seen for the first
        time here, it goes on from that.
    """

    name: str
    task: str
    trigger: Trigger
    policy: MisfirePolicy | None
    anchor: int | None = None


@dataclass(frozen=True)
class Message:
    """A run to be sent.

    :param fire_time: now, in milliseconds UTC.
    :param threshold: how late it may be, in milliseconds; with the policy, for the worker to judge by.
    """

    definition: Definition
    intent: Intent
    task_id: str
    fire_time: int
    threshold: int
    resolved: MisfireInstruction


class Publisher(Protocol):
    def connect(self) -> None:
        """Make sure that the broker can be reached. :raises BrokerUnavailable: when it cannot."""

    def publish(self, message: Message) -> None:
        """Send the task of an entry.

        :raises BrokerUnavailable: when the broker failed; the message may have arrived all the same.
        :raises PublishRejected: when this message cannot be sent; it has not arrived.
        """


@dataclass
class _Pause:
    """When something that failed is tried again; each failure in a row doubles the wait.

    :param own_fault: it was refused for what it is; else the broker failed.
    :param told: the log was told so; it will want to know of the end.
    """

    until: float = 0.0
    length: float = 0.0
    own_fault: bool = False
    told: bool = False

    def prolong(self, now: float, first: float = 1.0, longest: float = 60.0) -> None:
        self.length = min(longest, self.length * 2 or first)
        self.until = now + self.length


class Leader:
    """What is to be done next, for all entries.

    :param namespace: part of every task id.
    :param each: report every missed occurrence by itself, not one record per outage and entry.
    :param resume_misfires: what an entry would have run while it was gone has misfired, as in Quartz; else
        that was no outage, and it is planned from now.
    :param wall: the wall clock, in milliseconds UTC.
    """

    def __init__(
        self,
        store: RedisStore,
        lease: Lease,
        publisher: Publisher,
        reporter: Reporter,
        *,
        namespace: str,
        app: str = "",
        each: bool = False,
        resume_misfires: bool = False,
        wall: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        steady: Callable[[], float] = uptime,
    ) -> None:
        self._store, self._lease, self._publisher, self._reporter = store, lease, publisher, reporter
        self._namespace, self._app = namespace, app
        self._resume_misfires = resume_misfires
        self._wall, self._steady = wall, steady
        self._ledger = Ledger(store, lease)
        self._definitions: dict[str, Definition] = {}
        self._reports = Reports(self._ledger, self._definitions, reporter, namespace=namespace, each=each)
        self._epoch = 0
        #: Next fire times; an item that is not the entry's any more is passed over.
        self._timeline: list[tuple[int, str]] = []
        #: Entries with runs that are decided and not claimed. Dicts, for their order.
        self._catch_up: dict[str, None] = {}
        self._caught_up_at = 0.0
        #: Entries with intents that are claimed and not sent.
        self._unsent: dict[str, None] = {}
        self._patience = Patience()
        #: Entries that cannot be planned, when the log was last told so, and those among them whose record
        #: is not in line with the schedule yet (with :meth:`adopt`'s `from_now`).
        self._broken: dict[str, _Pause] = {}
        self._told_broken: dict[str, float] = {}
        self._unadopted: dict[str, bool] = {}
        self._refused: dict[str, _Pause] = {}
        #: The wait for the broker; without length as long as messages get through.
        self._broker = _Pause()
        self._connected = False
        self._outages: deque[tuple[Reason, int]] = deque(maxlen=16)
        self._clock_offset = self._wall() - self._steady() * 1000

    # -- taking over ---------------------------------------------------------------------------------------

    def take_over(self, acquired: Acquired, definitions: Iterable[Definition]) -> None:
        """Begin to lead, or go on after the store was away.

        :raises StoreUnavailable, LeaseLost: it is to be done again.
        """
        now = self._wall()
        went_on = 0 < self._epoch >= acquired.previous_epoch and not self._lease.superseded
        if went_on:
            # At once: interrupted here, we are still the ones who know best.
            self._epoch = acquired.epoch
            reason = Reason.STORE_UNAVAILABLE
            if acquired.cold:
                logger.warning("beat: %s was lost; it is restored from memory", self._store)
            self._ledger.restore()
        else:
            reason = Reason.FAILOVER if self._lease.other_was_alive else Reason.SCHEDULER_DOWN
            if acquired.cold:
                logger.warning(
                    "beat: no %s: every schedule is planned from now, nothing runs at once and "
                    "nothing counts as missed. Expected at the first start; later it means that Redis lost "
                    "its data.",
                    self._store,
                )
            self._epoch = 0
            self._reports.forget()
            self._ledger.load()
        self.adopt(definitions, from_now=acquired.cold and not went_on)
        if acquired.cold:
            self._store.write_meta(self._lease.token, self._app)
        self._lease.other_was_alive = self._lease.superseded = False
        self._epoch = acquired.epoch
        self._outages.append((reason, now))
        self._ledger.log(
            {"event": "lead", "epoch": acquired.epoch, "reason": reason, "cold": acquired.cold, "now": now}
        )

    def adopt(self, definitions: Iterable[Definition], *, from_now: bool = False) -> None:
        """Bring the records in line with the schedule: entries added, edited, removed.

        :param from_now: no entry has a past (the store was empty).
        """
        now = self._wall()
        # Before anything is made of what is in memory.
        self._repeat_unanswered(now)
        fresh = {d.name: self._guarded(d) for d in definitions}
        self._definitions.clear()
        self._definitions.update(fresh)
        before, self._unadopted = self._unadopted, {}
        changed: dict[str, EntryRecord] = {}
        gone = Commit()
        for name in self._definitions:
            cold = from_now or before.get(name, False)
            try:
                record = self._adopted(name, now, from_now=cold)
            except Exception as exc:
                self._unadopted[name] = cold
                self._break(name, exc)
            else:
                if record is not None:
                    changed[name] = record
                    self._broken.pop(name, None)
                    self._told_broken.pop(name, None)
        for name, record in self._ledger.items():
            if name not in self._definitions and record.removed_at is None:
                started = self._close_registers(name, record.intents, Reason.ENTRY_DELETED)
                changed[name] = records.removed(record, now, started)
                self._tell_missed(gone, changed[name], len(record.missed))
        changed |= {n: records.unknown(n, now) for n in self._ledger.unusable - self._definitions.keys()}
        self._ledger.write(changed)
        self._ledger.forget([n for n, r in self._ledger.items() if r.is_over(now - KEEP_REMOVED)])
        for tell in gone.then:
            tell()
        self._rebuild_queues()

    def _guarded(self, definition: Definition) -> Definition:
        """Return the definition with a trigger that cannot hold beat up."""
        trigger = self._patience.guard(definition.trigger)
        if trigger is definition.trigger:
            return definition
        known = self._definitions.get(definition.name)
        # The same one may still be at work on an answer.
        same = known is not None and known.trigger == trigger
        return replace(definition, trigger=known.trigger if known and same else trigger)

    def _adopted(self, name: str, now: int, *, from_now: bool) -> EntryRecord | None:
        """Return the new record of an entry whose record has to change."""
        definition, record = self._definitions[name], self._ledger.get(name)
        task, trigger = definition.task, definition.trigger
        if record is None:
            # One whose record cannot be read is not new: what has begun may have run.
            from_now = from_now or name in self._ledger.unusable
            anchor = definition.anchor
            return records.first_seen(name, task, trigger, now, from_now=from_now, anchor=anchor)
        back = record.removed_at is not None
        if from_now or record.fingerprint != trigger.fingerprint or (back and not self._resume_misfires):
            return records.edited(record, task, trigger, now)
        if back:
            return records.resumed(record, task, now)
        return None if record.task == task else replace(record, task=task)

    def _rebuild_queues(self) -> None:
        present = {n: r for n, r in self._ledger.items() if n in self._definitions}
        planned = {n: r for n, r in present.items() if n not in self._unadopted}
        self._timeline = [
            (r.state.next_fire_time, n) for n, r in planned.items() if r.state.next_fire_time is not None
        ]
        heapq.heapify(self._timeline)
        self._catch_up = {n: None for n, r in planned.items() if r.runs}
        self._unsent = {n: None for n, r in present.items() if r.intents}
        self._broken = {n: p for n, p in self._broken.items() if n in self._definitions}
        self._told_broken = {n: at for n, at in self._told_broken.items() if n in self._definitions}
        self._refused = {n: p for n, p in self._refused.items() if n in self._definitions}
        for name, record in self._ledger.items():
            if record.missed:
                self._reports.hand_over(name)

    def record(self, name: str) -> EntryRecord | None:
        """Return where an entry stands; None when nothing is known of it."""
        return self._ledger.get(name)

    # -- one step ------------------------------------------------------------------------------------------

    def tick(self) -> float:
        """Do the most urgent piece of work; return how many seconds may pass before the next call.

        :raises StoreUnavailable: call again later. :raises LeaseLost: somebody else leads.
        """
        now = self._wall()
        self._notice_clock_jump(now)
        self._repeat_unanswered(now)
        self._reports.acknowledge()
        if not self._broker_is_there(now):
            return self._sleep(until_broker=True)
        due = self._due(now)
        if due:
            self._decide(due, now)
            if self._steady() - self._caught_up_at < CATCH_UP_EVERY:
                return 0.0
        self._caught_up_at = self._steady()
        unsent = [n for n in self._unsent if not self._is_paused(n)][:BATCH]
        late = any(not self._is_paused(n) for n in self._catch_up)
        if unsent:
            self._send_again(unsent, now)
        # Else one would wait for the other as long as there is always something due.
        if late and (due or not unsent):
            self._catch_up_some(now)
        return 0.0 if due or unsent or late else self._sleep()

    def _sleep(self, *, until_broker: bool = False) -> float:
        steady = self._steady()
        waits = [LONGEST_SLEEP]
        if self._reports.waiting:
            waits.append(0.1)
        if until_broker:
            waits.append(self._broker.until - steady)
        else:
            waits += [p.until - steady for p in (*self._broken.values(), *self._refused.values())]
            if self._timeline:
                waits.append((self._timeline[0][0] - self._wall()) / 1000)
        return max(0.0, min(waits))

    def _repeat_unanswered(self, now: int) -> None:
        if self._ledger.repeat_unanswered():
            self._outages.append((Reason.STORE_UNAVAILABLE, now))
            self._rebuild_queues()

    def _notice_clock_jump(self, now: int) -> None:
        offset = now - self._steady() * 1000
        gained = offset - self._clock_offset
        if gained > CLOCK_JUMP:
            logger.warning("beat: the clock was set forward by %.1f s", gained / 1000)
            self._outages.append((Reason.CLOCK_JUMP, now))
        elif gained < -CLOCK_JUMP:
            logger.warning("beat: the clock was set back by %.1f s; nothing runs twice", -gained / 1000)
        self._clock_offset = offset

    def _reason(self, name: str, scheduled: int) -> Reason:
        """Return why an occurrence that is still to be decided is late, if it is."""
        if scheduled < self._ledger[name].generation:
            return Reason.START_IN_PAST
        if self._ledger[name].paused_from is not None:
            return Reason.PAUSED
        otherwise = Reason.SCHEDULE_ERROR if name in self._broken else Reason.SCHEDULER_BUSY
        return next((r for r, until in self._outages if scheduled <= until), otherwise)

    def _broker_is_there(self, now: int) -> bool:
        """True when it is worth claiming: what cannot be sent is better judged when it can be."""
        if self._connected:
            return True
        if self._steady() < self._broker.until:
            return False
        try:
            self._publisher.connect()
        except BrokerUnavailable as exc:
            self._broker_failed(exc)
            return False
        if self._broker.length:
            self._outages.append((Reason.BROKER_UNAVAILABLE, now))
        self._connected = True
        return True

    def _broker_failed(self, exc: Exception) -> None:
        if not self._broker.length:
            logger.warning("beat: the broker failed, nothing is sent until it is back: %s", exc)
        self._broker.prolong(self._steady(), first=0.2, longest=5.0)
        self._connected = False

    def _broker_works(self) -> None:
        if self._broker.length:
            logger.info("beat: the broker is there again")
            self._broker = _Pause()

    # -- deciding ------------------------------------------------------------------------------------------

    def _due(self, now: int) -> list[str]:
        """Take the entries to be planned now off the timeline, oldest first, one batch at most."""
        steady = self._steady()
        # Few at a time: each may take its time to fail again.
        again = (name for name, pause in self._broken.items() if pause.until <= steady)
        due = dict.fromkeys(islice(again, BATCH // 10))
        while self._timeline and self._timeline[0][0] <= now and len(due) < BATCH:
            moment, name = heapq.heappop(self._timeline)
            if self._ledger[name].state.next_fire_time == moment and name not in self._broken:
                due[name] = None
        return list(due)

    def _decide(self, names: Sequence[str], now: int) -> None:
        commit, room = Commit(), BATCH
        for name in names:
            try:
                room -= self._plan(name, now, room, commit)
            except Exception as exc:
                self._break(name, exc)
        self._ledger.commit(commit)
        self._publish(list(commit.new), claimed_at=now)

    def _plan(self, name: str, now: int, room: int, commit: Commit) -> int:
        """Add what happens to this entry to the commit; return how many runs are to be sent."""
        definition = self._definitions[name]
        record, reason = self._ledger.get(name), Reason.SCHEDULE_ERROR
        if name in self._unadopted:
            record = self._adopted(name, now, from_now=self._unadopted[name]) or record
        elif record is not None and record.state.next_fire_time is not None:
            reason = self._reason(name, record.state.next_fire_time)
        assert record is not None
        made = plan(definition.trigger, record.state, definition.policy, now, reason)
        decided = records.with_plan(record, made, now)
        in_time = sum(r.count for r in made.runs if r.outcome is Outcome.FIRED)
        if in_time:
            # Claimed at once; what is late waits until nothing is due.
            decided = records.claim(decided, definition.trigger, now, min(in_time, max(1, room)))
        self._mended(name)
        commit.new[name] = decided
        commit.then.append(partial(self._enqueue, name))
        if made.misfire is not None:
            self._tell(commit, name, made.misfire, made.missed, now, decided.state.next_fire_time)
        else:
            self._tell_missed(commit, decided, len(record.missed))
        return len(decided.intents) - len(record.intents)

    def _enqueue(self, name: str) -> None:
        """Put an entry in the queues that its record calls for."""
        record = self._ledger[name]
        if record.state.next_fire_time is not None:
            heapq.heappush(self._timeline, (record.state.next_fire_time, name))
        if record.runs:
            self._catch_up[name] = None
        if record.missed:
            self._reports.hand_over(name)

    def _break(self, name: str, exc: Exception) -> None:
        """Leave out an entry that cannot be planned, and try again later."""
        steady, pause = self._steady(), self._broken.pop(name, None) or _Pause()
        # At the end of the line.
        self._broken[name] = pause
        if steady - self._told_broken.get(name, -REMIND_EVERY) >= REMIND_EVERY:
            self._told_broken[name] = steady
            pause.told = True
            logger.error("beat: entry %r cannot be planned and is tried again: %s", name, brief(exc))
            self._ledger.log({"event": "broken", "entry": name, "error": type(exc).__name__})
        if isinstance(exc, NoAnswer):
            # Soon, as it costs nothing and may be there, and more and more seldom.
            wait = min(60.0, exc.since)
            pause.prolong(steady, wait, wait)
        else:
            pause.prolong(steady)

    def _mended(self, name: str) -> None:
        self._unadopted.pop(name, None)
        pause = self._broken.pop(name, None)
        if pause is not None and pause.told:
            logger.info("beat: entry %r can be planned again", name)

    def _tell(
        self,
        commit: Commit,
        name: str,
        misfire: Misfire,
        lost: Sequence[Missed],
        now: int,
        following: int | None,
    ) -> None:
        """Add the news of a misfire to a commit: it is told when the commit is done."""
        commit.log.append(_misfire_line(name, misfire, now))
        commit.then.append(partial(self._tell_now, name, misfire, lost, now, following))

    def _tell_missed(self, commit: Commit, record: EntryRecord, known: int) -> None:
        """Add a line for what is missed without a misfire: what ended, was refused, or is gone."""
        for lost in record.missed[known:]:
            fire = self._reports.fire(record, lost, lost.first, lost.last, lost.count)
            commit.then.append(partial(logger.warning, "beat: %s", log_line(fire)))

    def _tell_now(
        self, name: str, misfire: Misfire, lost: Sequence[Missed], now: int, following: int | None
    ) -> None:
        task = self._definitions[name].task
        instruction = str(misfire.instruction)
        if misfire.resolved is not misfire.instruction:
            instruction += f" -> {misfire.resolved}"
        outcomes = [f"{n} {o}" for o, n in misfire.outcomes.items() if o is not Outcome.MISSED]
        for m in lost:
            id_ = task_id(self._namespace, name, self._ledger[name].generation, m.first)
            outcomes.append(f"{m.count} missed ({m.reason}, result {id_})")
        logger.warning(
            "beat: misfire of %s (%s): scheduled %s, now %s, late by %.3f s (%s), %s: %s; next %s",
            shown(name),
            one_line(task),
            from_millis(misfire.first).isoformat(),
            from_millis(now).isoformat(),
            misfire.late_by / 1000,
            misfire.reason,
            instruction,
            ", ".join(outcomes),
            "never" if following is None else from_millis(following).isoformat(),
        )
        self._reporter.announce(
            {
                "sender": task,
                "entry": name,
                "scheduled_fire_time": from_millis(misfire.first),
                "late_by": misfire.late_by / 1000,
                "instruction": misfire.instruction,
                "resolved": misfire.resolved,
                "outcomes": dict(misfire.outcomes),
                "reason": misfire.reason,
            }
        )

    def _catch_up_some(self, now: int) -> None:
        """Claim and send one batch of late runs; each entry has its share, then waits for its next turn."""
        commit, room = Commit(), BATCH
        # As many as one run each leaves room for.
        for name in list(islice((n for n in self._catch_up if not self._is_paused(n)), BATCH)):
            if room <= 0:
                break
            del self._catch_up[name]
            record = self._ledger[name]
            try:
                claimed = records.claim(record, self._definitions[name].trigger, now, min(SHARE, room))
            except Exception as exc:
                self._refuse(name, exc)
                self._catch_up[name] = None
                continue
            room -= len(claimed.intents) - len(record.intents)
            commit.new[name] = claimed
        self._ledger.commit(commit)
        self._publish(list(commit.new), claimed_at=now)

    # -- sending -------------------------------------------------------------------------------------------

    def _send_again(self, names: Sequence[str], now: int) -> None:
        """Send what was claimed before and not acknowledged: after a crash, a failure, a refusal."""
        commit = Commit()
        for name in names:
            try:
                self._judge_again(name, now, commit)
            except MisfireError:
                raise
            except Exception as exc:
                self._refuse(name, exc)
        self._ledger.commit(commit)
        self._publish(list(commit.new))

    def _judge_again(self, name: str, now: int, commit: Commit) -> None:
        """What is known not to have been sent and is too late by now, gets what its instruction says."""
        definition, record = self._definitions[name], self._ledger.with_certainty(self._ledger[name])
        hopeless = [i for i in record.intents if self._is_hopeless(name, i, now)]
        record = replace(record, intents=tuple(i for i in record.intents if i not in hopeless))
        in_doubt = {i.scheduled for i in record.intents if not i.unsent and self._is_arbitrable(name, i, now)}
        judge = partial(
            records.judge_again,
            trigger=definition.trigger,
            policy=definition.policy,
            now=now,
            reason=partial(self._reason, name),
        )
        judged, misfire = judge(_with_doubt(record, in_doubt, doubt=False))
        while started := self._close_registers(name, _missing(record, judged), Reason.QUEUE_LATE):
            # They were sent after all. What is left does not change by that: the oldest stays the oldest.
            commit.log += [self._sent_before(name, i) for i in record.intents if i.scheduled in started]
            record = replace(record, intents=tuple(i for i in record.intents if i.scheduled not in started))
            judged, misfire = judge(_with_doubt(record, in_doubt, doubt=False))
        judged = _with_doubt(judged, in_doubt, doubt=True)
        self._close_registers(name, hopeless, Reason.PUBLISH_REJECTED)
        if hopeless:
            refused = [Missed(i.scheduled, i.scheduled, 1, Reason.PUBLISH_REJECTED) for i in hopeless]
            known = len(judged.missed)
            judged = records.with_missed(judged, refused, MisfireInstruction.DO_NOTHING, now)
            self._tell_missed(commit, judged, known)
        commit.new[name] = judged
        commit.then.append(partial(self._reports.hand_over, name))
        if misfire is not None:
            n = misfire.outcomes.get(Outcome.MISSED, 0)
            lost = [Missed(misfire.first, misfire.last, n, misfire.reason)] if n else []
            self._tell(commit, name, misfire, lost, now, record.state.next_fire_time)

    def _is_arbitrable(self, name: str, intent: Intent, now: int) -> bool:
        """True for a late run that may be judged again although it is in doubt: its register decides.

        So it does where workers ask the registers, and where a beat closed it and then died.
        """
        late = intent.outcome is Outcome.FIRED and now - intent.scheduled >= self._threshold(name, intent)
        return late and (
            self._store.is_guarded() or self._store.register(self._id(name, intent)).startswith("missed")
        )

    def _is_hopeless(self, name: str, intent: Intent, now: int) -> bool:
        """True for a run whose message was refused for longer than it may be late."""
        pause = self._refused.get(name)
        since = intent.scheduled if intent.outcome is Outcome.FIRED else intent.claimed_at
        return (
            pause is not None
            and pause.own_fault
            and intent.unsent
            and now - since >= self._threshold(name, intent)
        )

    def _threshold(self, name: str, intent: Intent) -> int:
        definition = self._definitions[name]
        times = definition.trigger.fire_times(self._ledger[name].state)
        return threshold_millis(definition.policy, intent.scheduled, times.after(intent.scheduled))

    def _close_registers(self, name: str, intents: Sequence[Intent], reason: Reason) -> set[int]:
        """See to it that no worker starts what is to be missed; return what one has started already."""
        held = self._store.settle([self._id(name, i) for i in intents], f"missed:{reason}")
        return {i.scheduled for i, value in zip(intents, held, strict=True) if not value.startswith("missed")}

    def _publish(self, names: Sequence[str], claimed_at: int | None = None) -> None:
        """Send the intents of these entries and acknowledge what was sent.

        :param claimed_at: only those that were claimed then; older ones have to be judged again before.
        """
        work = [(i, n) for n in names for i in self._ledger[n].intents if claimed_at in (None, i.claimed_at)]
        # On time before late, oldest first.
        work.sort(key=lambda w: (w[0].outcome is not Outcome.FIRED, w[0].scheduled))
        sent: dict[tuple[str, int], Message] = {}
        tried: dict[tuple[str, int], bool] = {}
        try:
            for intent, name in work:
                if not self._lease.held:
                    break
                key = (name, intent.scheduled)
                if self._is_paused(name) and key not in self._ledger.untried:
                    # Refused before: it waits for its time, and holds up no later run.
                    continue
                # In doubt from here on: whatever interrupts the attempt, the message may have arrived.
                tried[key] = False
                try:
                    sent[key] = self._send(name, intent)
                    self._broker_works()
                except PublishRejected as exc:
                    tried[key] = True
                    self._refuse(name, exc)
                except BrokerUnavailable as exc:
                    # The failure may be this entry's own: it does not come first again.
                    self._leave_aside(name)
                    self._broker_failed(exc)
                    break
                except Exception as exc:
                    # A schedule of the app's own may raise anything, and must not keep the others waiting.
                    self._refuse(name, exc)
        finally:
            self._acknowledge(names, sent, tried)

    def _send(self, name: str, intent: Intent) -> Message:
        definition, type_ = self._definitions[name], self._ledger[name].state.trigger_type
        asked = definition.policy.instruction if definition.policy else MisfireInstruction.DO_NOTHING
        message = Message(
            definition,
            intent,
            self._id(name, intent),
            self._wall(),
            self._threshold(name, intent),
            resolve(asked, type_),
        )
        self._publisher.publish(message)
        return message

    def _refuse(self, name: str, exc: Exception) -> None:
        """Leave an entry aside that cannot be sent, and try again later."""
        if name not in self._refused:
            logger.error("beat: entry %r cannot be sent and is tried again: %s", name, brief(exc))
            self._ledger.log({"event": "refused", "entry": name, "error": type(exc).__name__})
        self._leave_aside(name).own_fault = True

    def _leave_aside(self, name: str) -> _Pause:
        pause = self._refused.setdefault(name, _Pause())
        if not self._is_paused(name):
            # Else it was a later run that failed as well: those before it do not wait longer for that.
            pause.prolong(self._steady())
        return pause

    def _is_paused(self, name: str) -> bool:
        return name in self._refused and self._refused[name].until > self._steady()

    def _acknowledge(
        self,
        names: Sequence[str],
        sent: Mapping[tuple[str, int], Message],
        tried: Mapping[tuple[str, int], bool],
    ) -> None:
        """Take what was sent out of the records.

        :param tried: for each attempt that was made, whether it is certain that the message did not arrive.
        """
        self._ledger.untried -= tried.keys()
        commit = Commit(log=[_sent_line(m) for m in sent.values()])
        for name in names:
            record = self._ledger.with_certainty(self._ledger[name])
            left = tuple(
                replace(i, unsent=tried.get((name, i.scheduled), i.unsent))
                for i in record.intents
                if (name, i.scheduled) not in sent
            )
            commit.new[name] = replace(record, intents=left)
            if left:
                self._unsent[name] = None
            else:
                self._unsent.pop(name, None)
                self._refused.pop(name, None)
            if record.runs:
                self._catch_up[name] = None
        self._ledger.commit(commit)

    def _sent_before(self, name: str, intent: Intent) -> dict[str, Any]:
        """Return the line of the log for a run that a worker had from a beat that could not write it."""
        return _sent(name, intent, intent.claimed_at, self._id(name, intent))

    def _id(self, name: str, intent: Intent) -> str:
        return task_id(self._namespace, name, intent.generation, intent.scheduled)


def _missing(before: EntryRecord, after: EntryRecord) -> list[Intent]:
    """Return the intents that are gone."""
    left = {i.scheduled for i in after.intents}
    return [i for i in before.intents if i.scheduled not in left]


def _with_doubt(record: EntryRecord, scheduled: Collection[int], *, doubt: bool) -> EntryRecord:
    """Return the record with some of its intents in doubt, or not."""
    intents = (replace(i, unsent=not doubt) if i.scheduled in scheduled else i for i in record.intents)
    return replace(record, intents=tuple(intents))


def _sent_line(message: Message) -> dict[str, Any]:
    return _sent(message.definition.name, message.intent, message.fire_time, message.task_id)


def _sent(entry: str, intent: Intent, fire_time: int, id_: str) -> dict[str, Any]:
    return {
        "event": "sent",
        "entry": entry,
        "outcome": intent.outcome,
        "scheduled": intent.scheduled,
        "fire_time": fire_time,
        "merged": intent.merged,
        "id": id_,
    }


def _misfire_line(name: str, misfire: Misfire, now: int) -> dict[str, Any]:
    return {
        "event": "misfire",
        "entry": name,
        "first": misfire.first,
        "last": misfire.last,
        "count": misfire.count,
        "now": now,
        "reason": misfire.reason,
        "instruction": misfire.instruction,
        "resolved": misfire.resolved,
        "outcomes": misfire.outcomes,
    }
