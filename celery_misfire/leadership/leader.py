"""The beat that leads: carries out, durably and in the right order, what the planner decides.

For each entry that is due: plan, *claim* (one commit to the store: new state, intents, log), *publish* each
intent, *acknowledge* (a second commit without the intents that were sent). A crash anywhere in between
leaves either an entry that is still due or an intent that the next leader sends again under the same id.
Runs that are on time go first; what is to be caught up follows in batches.

Sending is the business of :mod:`~celery_misfire.leadership.intents`, reporting that of
:mod:`~celery_misfire.leadership.pending_misses`.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

from celery_misfire import records
from celery_misfire.conf.problems import brief
from celery_misfire.leadership.intents import Intents, Pause, Publisher
from celery_misfire.leadership.lease import Lease, uptime
from celery_misfire.leadership.ledger import Commit, Ledger
from celery_misfire.leadership.pending_misses import Reporter, Reports
from celery_misfire.misfire import Outcome, Reason, plan
from celery_misfire.records import Definition, EntryRecord
from celery_misfire.store.redis_store import Acquired, RedisStore
from celery_misfire.triggers.time_limit import NoAnswer, TimeLimit

__all__ = ["Leader"]

logger = logging.getLogger(__name__)

#: How many runs are claimed and sent at a time; so many are sent again after a crash, at most.
BATCH = 100
#: How many of them one entry may have when it catches up, so that all entries get their turn.
SHARE = 20
#: Catching up gets a turn at least so often, in seconds, however busy beat is with what is on time.
CATCH_UP_EVERY = 1.0
#: An entry whose runs cannot be sent is looked at again so soon, in milliseconds.
PUT_OFF = 1_000
#: Longest sleep, in seconds: the lease's thread wants to see the main loop go on.
LONGEST_SLEEP = 5.0
#: The record of a removed entry is kept so long, in milliseconds, so that its return is noticed.
KEEP_REMOVED = 7 * 24 * 3600 * 1000
#: An entry that cannot be planned is mentioned so often, in seconds.
REMIND_EVERY = 3600.0
#: A wall clock that gains or loses so much on the steady clock between two looks, in milliseconds, was set.
CLOCK_JUMP = 1_000


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
        self._store, self._lease, self._app = store, lease, app
        self._resume_misfires = resume_misfires
        self._wall, self._steady = wall, steady
        self._ledger = Ledger(store, lease)
        self._definitions: dict[str, Definition] = {}
        self._outages: deque[tuple[Reason, int]] = deque(maxlen=16)
        self._reports = Reports(self._ledger, self._definitions, reporter, namespace=namespace, each=each)
        self._intents = Intents(
            store,
            lease,
            self._ledger,
            self._definitions,
            publisher,
            self._reports,
            namespace=namespace,
            outages=self._outages,
            reason=self._reason,
            wall=wall,
            steady=steady,
        )
        self._epoch = 0
        #: Next fire times; an item that is not the entry's any more is passed over.
        self._timeline: list[tuple[int, str]] = []
        #: Entries with runs that are decided and not claimed. A dict, for its order.
        self._catch_up: dict[str, None] = {}
        self._caught_up_at = 0.0
        self._time_limit = TimeLimit()
        #: Entries that cannot be planned, when the log was last told so, and those among them whose record
        #: is not in line with the schedule yet (with :meth:`adopt`'s `from_now`).
        self._broken: dict[str, Pause] = {}
        self._told_broken: dict[str, float] = {}
        self._unadopted: dict[str, bool] = {}
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
        fresh = {d.name: self._limited(d) for d in definitions}
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
                started = self._intents.close_registers(name, record.intents, Reason.ENTRY_DELETED)
                changed[name] = records.removed(record, now, started)
                self._reports.tell_missed(gone, changed[name], len(record.missed))
        changed |= {n: records.unknown(n, now) for n in self._ledger.unusable - self._definitions.keys()}
        self._ledger.write(changed)
        self._ledger.forget([n for n, r in self._ledger.items() if r.is_over(now - KEEP_REMOVED)])
        for tell in gone.then:
            tell()
        self._rebuild_queues()

    def _limited(self, definition: Definition) -> Definition:
        """Return the definition with a trigger that cannot hold beat up."""
        trigger = self._time_limit.limited(definition.trigger)
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
        if from_now or record.fingerprint != trigger.fingerprint:
            return records.edited(record, task, trigger, now)
        if record.removed_at is None:
            return None if record.task == task else replace(record, task=task)
        if self._resume_misfires:
            return records.resumed(record, task, now)
        return records.returned(record, task, trigger, now)

    def _rebuild_queues(self) -> None:
        present = {n: r for n, r in self._ledger.items() if n in self._definitions}
        planned = {n: r for n, r in present.items() if n not in self._unadopted}
        self._timeline = [
            (r.state.next_fire_time, n) for n, r in planned.items() if r.state.next_fire_time is not None
        ]
        heapq.heapify(self._timeline)
        self._catch_up = {n: None for n, r in planned.items() if r.runs}
        self._intents.rebuild(present)
        self._broken = {n: p for n, p in self._broken.items() if n in self._definitions}
        self._told_broken = {n: at for n, at in self._told_broken.items() if n in self._definitions}
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
        if not self._intents.connect(now):
            return self._sleep()
        due = self._due(now)
        if due:
            self._decide(due, now)
            if self._steady() - self._caught_up_at < CATCH_UP_EVERY:
                return 0.0
        self._caught_up_at = self._steady()
        unsent = self._intents.unsent(BATCH)
        late = any(map(self._may_catch_up, self._catch_up))
        if unsent:
            self._intents.send_again(unsent, now)
        # Else one would wait for the other as long as there is always something due.
        if late and (due or not unsent):
            self._catch_up_some(now)
        return 0.0 if due or unsent or late else self._sleep()

    def _sleep(self) -> float:
        steady = self._steady()
        waits = [LONGEST_SLEEP, *(at - steady for at in self._intents.next_tries())]
        if self._reports.waiting:
            waits.append(0.1)
        if self._intents.connected:
            waits += [pause.until - steady for pause in self._broken.values()]
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

    def _reason(self, name: str, scheduled: int, generation: int) -> Reason:
        """Return why an occurrence of this generation is late, if it is."""
        if scheduled < generation:
            return Reason.START_IN_PAST
        if self._ledger[name].paused_from is not None:
            return Reason.PAUSED
        otherwise = Reason.SCHEDULE_ERROR if name in self._broken else Reason.SCHEDULER_BUSY
        return next((r for r, until in self._outages if scheduled <= until), otherwise)

    # -- deciding ------------------------------------------------------------------------------------------

    def _due(self, now: int) -> list[str]:
        """Take the entries to be planned now off the timeline, oldest first, one batch at most."""
        steady = self._steady()
        # Few at a time: each may take its time to fail again.
        again = (name for name, pause in self._broken.items() if pause.until <= steady)
        due = dict.fromkeys(islice(again, BATCH // 10))
        put_off = []
        while self._timeline and self._timeline[0][0] <= now and len(due) < BATCH:
            moment, name = heapq.heappop(self._timeline)
            next_ = self._ledger[name].state.next_fire_time
            if next_ is None or next_ > moment or name in self._broken:
                continue
            if self._is_full(name):
                put_off.append((now + PUT_OFF, name))
            else:
                due[name] = None
        for item in put_off:
            heapq.heappush(self._timeline, item)
        return list(due)

    def _is_full(self, name: str) -> bool:
        """True for an entry whose runs cannot be sent, and of which enough are waiting for that.

        What is due meanwhile is decided when it is judged by its instruction, not to be sent as well.
        """
        return len(self._ledger[name].intents) >= BATCH

    def _may_catch_up(self, name: str) -> bool:
        return not self._intents.is_paused(name) and not self._is_full(name)

    def _decide(self, names: Sequence[str], now: int) -> None:
        commit, room = Commit(), BATCH
        for name in names:
            try:
                room -= self._plan(name, now, room, commit)
            except Exception as exc:
                self._break(name, exc)
        self._ledger.commit(commit)
        self._intents.publish(list(commit.new), claimed_at=now)

    def _plan(self, name: str, now: int, room: int, commit: Commit) -> int:
        """Add what happens to this entry to the commit; return how many runs are to be sent."""
        definition = self._definitions[name]
        record, reason = self._ledger.get(name), Reason.SCHEDULE_ERROR
        if name in self._unadopted:
            record = self._adopted(name, now, from_now=self._unadopted[name]) or record
        elif record is not None and record.state.next_fire_time is not None:
            reason = self._reason(name, record.state.next_fire_time, record.generation)
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
            next_, known = decided.state.next_fire_time, len(record.missed)
            self._reports.tell_misfire(commit, decided, known, made.misfire, now, next_)
        else:
            self._reports.tell_missed(commit, decided, len(record.missed))
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
        steady, pause = self._steady(), self._broken.pop(name, None) or Pause()
        # At the end of the line.
        self._broken[name] = pause
        if steady - self._told_broken.get(name, -REMIND_EVERY) >= REMIND_EVERY:
            self._told_broken[name] = steady
            pause.told = True
            logger.error("beat: entry %r cannot be planned and is tried again: %s", name, brief(exc))
            self._ledger.log({"event": "broken", "entry": name, "error": type(exc).__name__})
        if isinstance(exc, NoAnswer):
            # Soon, as it costs nothing and may be there, and more and more seldom.
            wait = min(60.0, exc.waited)
            pause.prolong(steady, wait, wait)
        else:
            pause.prolong(steady)

    def _mended(self, name: str) -> None:
        self._unadopted.pop(name, None)
        pause = self._broken.pop(name, None)
        if pause is not None and pause.told:
            logger.info("beat: entry %r can be planned again", name)

    def _catch_up_some(self, now: int) -> None:
        """Claim and send one batch of late runs; each entry has its share, then waits for its next turn."""
        commit, room = Commit(), BATCH
        # As many as one run each leaves room for.
        for name in list(islice(filter(self._may_catch_up, self._catch_up), BATCH)):
            if room <= 0:
                break
            del self._catch_up[name]
            record = self._ledger[name]
            try:
                claimed = records.claim(record, self._definitions[name].trigger, now, min(SHARE, room))
            except Exception as exc:
                self._intents.refuse(name, exc)
                self._catch_up[name] = None
                continue
            room -= len(claimed.intents) - len(record.intents)
            commit.new[name] = claimed
            if claimed.runs:
                commit.then.append(partial(self._catch_up.setdefault, name))
        self._ledger.commit(commit)
        # What was in time when it was decided may be too late by now.
        again = [n for n, r in commit.new.items() if any(i.outcome is Outcome.FIRED for i in r.intents)]
        self._intents.send_again(again, now)
        self._intents.publish([n for n in commit.new if n not in again], claimed_at=now)
