"""The beat that leads: carries out, durably and in the right order, what the planner decides.

For each entry that is due: plan, then have the plan carried out (:mod:`celery_misfire.sending.dispatch`).
Runs that are on time go first; what is to be caught up follows in batches. After each commit one function
puts the changed entries in the queues that their records call for, and hands the events to whoever listens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from celery_misfire.clocks import uptime, wall_clock
from celery_misfire.events import Event, Led, Misfired
from celery_misfire.exceptions import BrokerUnavailable
from celery_misfire.leadership.adoption import Adoption
from celery_misfire.leadership.broker_link import BrokerLink
from celery_misfire.leadership.catch_up import CatchUp
from celery_misfire.leadership.control import Control
from celery_misfire.leadership.decisions import LARGEST_BATCH, Decisions
from celery_misfire.leadership.failing import FailingEntries
from celery_misfire.leadership.figures import Figures, figures_of
from celery_misfire.leadership.intents import Intents
from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.ledger import Commit, Ledger
from celery_misfire.leadership.outages import Outages, compare_clocks
from celery_misfire.leadership.pending_misses import PendingMisses, Reporter
from celery_misfire.leadership.queues import Queues
from celery_misfire.leadership.restart import Restart
from celery_misfire.log_lines import Log
from celery_misfire.misfire import Reason
from celery_misfire.records import Definition, EntryRecord
from celery_misfire.sending.choice import DispatchChoice
from celery_misfire.sending.dispatch import Attempt, Fate, Oversight, Publisher, Run
from celery_misfire.store.port import Store, Taken

say = Log(__name__, "beat")

#: Longest sleep, in seconds: the lease's thread wants to see the main loop go on.
LONGEST_SLEEP = 5.0


class Leader:
    """What is to be done next, for all entries.

    :param namespace: part of every task id.
    :param listeners: get the events of each commit; they must not wait.
    :param each: report every missed occurrence by itself, not one record per outage and entry.
    :param resume_misfires: see :class:`Adoption`.
    :param restart_grace: a clean stop and a take-over within so many seconds is a deploy.
    :param catch_up_queue: catching up waits while a queue has more messages than this.
    :param wall: the wall clock, in milliseconds UTC.
    :param steady: a clock that nobody sets, in seconds.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        publisher: Publisher,
        reporter: Reporter,
        *,
        namespace: str,
        listeners: Iterable[Callable[[Sequence[Event]], None]] = (),
        app: str = "",
        each: bool = False,
        resume_misfires: bool = False,
        restart_grace: float = 60.0,
        catch_up_queue: int = 10_000,
        wall: Callable[[], int] = wall_clock,
        steady: Callable[[], float] = uptime,
    ) -> None:
        self._store, self._lease, self._app = store, lease, app
        self._listeners = tuple(listeners)
        self._wall, self._steady = wall, steady
        self._restart_grace = round(restart_grace * 1000)
        self._ledger = Ledger(store, lease, namespace, self._after)
        self._misses = PendingMisses(self._ledger, reporter, each=each)
        self._intents = Intents(store, lease, self._ledger)
        self._adoption = Adoption(self._ledger, self._intents, resume_misfires=resume_misfires)
        oversight = Oversight(self._may_send, self._note_attempt, wall, steady)
        self._dispatch = DispatchChoice(store, lease, self._ledger, publisher, oversight)
        self._failing = FailingEntries(self._ledger, steady)
        self._outages = Outages(wall() - steady() * 1000)
        self._queues = Queues()
        #: True until the records have followed the clock.
        self._clock_was_set_back = False
        #: True while something may be overdue that is not planned.
        self.is_behind = True
        self._decisions = Decisions(
            self._ledger, self._adoption, self._intents, self._failing, self._outages, self._queues
        )
        self._catch_up = CatchUp(self._decisions, self._dispatch, self._queues, catch_up_queue, steady)
        self._control = Control(store, lease, self._ledger, misfires=resume_misfires)
        self._broker = BrokerLink(self._dispatch.connect, self._outages, wall, steady)

    # -- taking over ---------------------------------------------------------------------------------------

    def take_over(self, acquired: Taken, definitions: Iterable[Definition]) -> None:
        """Begin to lead, or go on after the store was away.

        :raises StoreUnavailable, LeaseLost: it is to be done again.
        """
        now = self._wall()
        compare_clocks(now, self._store.time(), self._wall())
        was_frozen = self._note_freeze(now)
        goes_on = self._ledger.take_over(acquired)
        reason = Reason.SCHEDULER_DOWN if was_frozen else Reason.STORE_UNAVAILABLE
        restart = None
        if not goes_on:
            reason = Reason.FAILOVER if self._lease.other_was_alive else Reason.SCHEDULER_DOWN
            restart = Restart.of(acquired.stop, self._restart_grace)
            self._misses.forget()
        self.adopt(definitions, from_now=acquired.cold and not goes_on)
        # Before the mark of the state: without this line, the state counts as cold once more.
        told = Reason.RESTARTED if restart else reason
        led = Led(epoch=acquired.epoch, reason=told, cold=acquired.cold, now=now)
        self._ledger.commit(Commit(events=[led]))
        if acquired.cold:
            self._store.write_meta(self._lease.token, self._app)
        self._control.take_over(now, goes_on=goes_on)
        self._lease.other_was_alive = self._lease.superseded = False
        self._ledger.epoch = acquired.epoch
        if goes_on:
            self._outages.note(reason, self._wall())
        else:
            self._outages.began(reason, self._wall(), restart)

    def _note_freeze(self, now: int) -> bool:
        """Note the end of a time in which this process did not run."""
        if was_frozen := self._lease.was_frozen():
            self._outages.note(Reason.SCHEDULER_DOWN, now)
        return was_frozen

    def adopt(self, definitions: Iterable[Definition], *, from_now: bool = False) -> None:
        """Bring the records in line with the schedule: entries added, edited, removed.

        :param from_now: no entry has a past (the store was empty).
        """
        now = self._wall()
        # Before anything is made of what is in memory.
        self._repeat_unanswered()
        mended = self._adoption.adopt(definitions, now, from_now=from_now, failed=self._failing.broke)
        for name in mended:
            self._failing.forget(name)
        self._follow_clock(now)
        self._rebuild_queues()

    def _follow_clock(self, now: int) -> None:
        if count := self._adoption.follow_clock(now, self._failing.broke):
            self._outages.note(Reason.CLOCK_JUMP, now)
            what = (
                "the clock is behind what the state knows (clock_jump): entries that are planned from now: %d"
            )
            say.warning("clock", what, count)

    def _rebuild_queues(self) -> None:
        definitions = self._ledger.definitions
        present = {n: r for n, r in self._ledger.items() if n in definitions}
        self._queues.rebuild(present, self._adoption.unfinished)
        self._failing.keep(definitions, pending={n for n, r in present.items() if r.intents or r.runs})
        for name, record in self._ledger.items():
            if record.missed:
                self._misses.hand_over(name)

    def _after(self, commit: Commit) -> None:
        """Put entries in the queues that their new records call for, and hand the events on."""
        for name, record in commit.records.items():
            if record.missed:
                self._misses.hand_over(name)
            if name in self._ledger.definitions:
                self._queues.put(name, record, is_finished=name not in self._adoption.unfinished)
                if not record.intents:
                    self._failing.sent(name)
        for event in commit.events:
            if isinstance(event, Misfired):
                self._outages.found_late(event.first, event.now)
        for listener in self._listeners if commit.events else ():
            try:
                listener(commit.events)
            except Exception:
                say.exception("unexpected_error", "unexpected error in a listener for events")

    @property
    def in_time_since(self) -> int | None:
        """From when on this beat has sent in time, in milliseconds UTC; None while it cannot send."""
        return self._outages.in_time_since if self._broker.is_up else None

    def record(self, name: str) -> EntryRecord | None:
        """Return where an entry stands; None when nothing is known of it."""
        return self._ledger.get(name)

    @property
    def broker_is_up(self) -> bool:
        """False when the broker has failed, or was not asked yet."""
        return self._broker.is_up

    @property
    def broker_has_answered(self) -> bool:
        """True when the broker could be reached at some time. Any thread may ask."""
        return self._broker.has_answered

    def figures(self) -> Figures:
        """Return where all entries stand. Any thread may ask."""
        # Copies, as beat goes on.
        records, catch_up = self._ledger.copy(), list(self._queues.catch_up)
        return figures_of(records, self._ledger.definitions, catch_up, self._wall(), self._control.hold)

    # -- one step ------------------------------------------------------------------------------------------

    def tick(self) -> float:
        """Do the most urgent piece of work; return how many seconds may pass before the next call.

        :raises StoreUnavailable: call again later.
        :raises LeaseLost: somebody else leads.
        :raises Outdated: take over again.
        """
        now = self._wall()
        self._note_freeze(now)
        self._clock_was_set_back |= self._outages.look_at_clock(now, self._steady())
        self._repeat_unanswered()
        if self._clock_was_set_back:
            self._follow_clock(now)
            self._clock_was_set_back = False
        self._misses.acknowledge()
        self._control.tick(now)
        if not self._broker.connect(self._dispatch.look):
            return self._sleep()
        # What comes due while store and broker are waited for is part of the outage.
        now = self._wall()
        due = self._control.due(now, self._decisions.due, self._failing.forget)
        hold = self._broker.is_flapping
        self.is_behind = len(due) >= LARGEST_BATCH
        if due:
            self._dispatch.carry_out(*self._decisions.plan_due(due, now, hold=hold))
            if not (self.is_behind or self._queues.unsent or self._queues.catch_up):
                # The usual case: beat wakes once for each fire time.
                return self._sleep()
        if not self._catch_up.takes_turn(is_busy=bool(due)):
            return 0.0
        in_turn = (n for n in self._queues.unsent if self._decisions.may_send_again(n, now, hold=hold))
        unsent = list(islice(in_turn, LARGEST_BATCH))
        self.is_behind |= bool(unsent)
        late = self._control.hold is None and self._catch_up.has_work
        if unsent:
            self._dispatch.carry_out(*self._decisions.judge_again(unsent, now, hold=hold))
        # Alternate, or steady due work would starve the catch-up.
        if late and (due or not unsent):
            self._catch_up.run(now)
        return 0.0 if due or unsent or late else self._sleep()

    def _sleep(self) -> float:
        steady = self._steady()
        waits = [LONGEST_SLEEP, *self._catch_up.waits()]
        if self._misses.waiting:
            waits.append(0.1)
        if self._broker.is_up:
            hold = self._control.hold
            if hold is None:
                waits += [at - steady for at in self._failing.next_tries()]
            if (moment := hold.until if hold else self._queues.timeline.next()) is not None:
                waits.append((moment - self._wall()) / 1000)
        else:
            waits.append(self._broker.next_try - steady)
        # While the broker flaps, what has its next try may be held back.
        return max(0.2 if self._broker.is_flapping else 0.0, min(waits))

    def _repeat_unanswered(self) -> None:
        if self._ledger.repeat_unanswered():
            self._outages.note(Reason.STORE_UNAVAILABLE, self._wall())
            self._rebuild_queues()

    def _may_send(self) -> bool:
        return self._lease.held and self._broker.is_up

    def _note_attempt(self, run: Run, attempt: Attempt) -> None:
        if attempt.fate is Fate.SENT:
            self._broker.works()
        elif not attempt.broker_failed:
            self._failing.refused(run.entry, attempt)
        else:
            if attempt.fate is not Fate.NOT_TRIED:
                # The failure may be this entry's own: it does not come first again.
                self._failing.leave_aside(run.entry)
            self._broker.failed(attempt.error or BrokerUnavailable())
