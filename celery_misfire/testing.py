"""For tests of your own schedules: beat on a virtual clock, a task that runs for a fire, records of misses.

The planner, the leader and all that they decide are those of production. The state is in memory, nothing is
sent, and no time passes. ``outage`` is also a fixture, of the pytest plugin that comes with this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from celery import Celery, Task
from celery.app.task import Context

from celery_misfire import fire as fires
from celery_misfire.conf.problems import as_line, spelling
from celery_misfire.conf.settings import read_config
from celery_misfire.conf.warnings import warnings_for
from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.fire import HEADER, Fire
from celery_misfire.leadership.leader import LONGEST_SLEEP, Leader
from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.member import Member
from celery_misfire.misfire import MisfireInstruction, MissedFire, Outcome, Reason, from_millis, to_millis
from celery_misfire.records import Definition
from celery_misfire.sending.dispatch import Attempt, Fate, Message, RecordingPublisher
from celery_misfire.sending.missed_runs import Report
from celery_misfire.sending.publisher import headers_of
from celery_misfire.store.memory import MemoryDatabase, MemoryStore
from celery_misfire.store.port import Push, Store
from celery_misfire.texts import quote, quote_name, suggestion

__all__ = ["Beat", "BeatProcess", "Fires", "Unsent", "check_config", "fire", "make_missed", "outage"]

_NAMESPACE = "testing"

#: The lease of the only beat lasts as long as any test, in seconds: nobody renews it.
_FOR_EVER = 1e9


# -- one process of beat -----------------------------------------------------------------------------------


class _Lease(Lease):
    def _keep(self) -> None:
        """Leave the renewals to whoever turns the clock."""

    def renew_now(self) -> None:
        self._renew()


class BeatProcess:
    """One process of beat, from the lease to the plan, on a clock that somebody else turns.

    :param publisher: stands in for Celery and its broker.
    :param now: returns the time, in milliseconds UTC.
    :param definitions: returns the entries as they are now.
    :param lease_times: time to live, time between two renewals, time between two looks of a standby, in
        seconds.
    :param hear: gets each report of missed runs that is to be made.
    :param options: further keywords for :class:`Leader`.
    """

    def __init__(
        self,
        store: Store,
        publisher: RecordingPublisher,
        now: Callable[[], int],
        definitions: Callable[[], Iterable[Definition]],
        *,
        namespace: str = _NAMESPACE,
        lease_times: tuple[float, float, float] = (_FOR_EVER, _FOR_EVER, 1.0),
        hear: Callable[[Report], object] = lambda report: None,
        **options: Any,
    ) -> None:
        def steady() -> float:
            return now() / 1000

        ttl, self._renew_every, poll = lease_times
        self._now, self._next_renewal, self._hear = now, 0, hear
        #: Reports that are made, and of which beat has not heard yet.
        self.reports: list[Report] = []
        self.lease = _Lease(store, ttl, self._renew_every, steady)
        self.leader = Leader(
            store, self.lease, publisher, self, namespace=namespace, wall=now, steady=steady, **options
        )
        self.member = Member(
            store,
            self.lease,
            self.leader,
            app="",
            namespace=namespace,
            poll=poll,
            description=("", ""),
            definitions=definitions,
            steady=steady,
        )

    def tick(self) -> float:
        """Renew the lease if it is time for that, and do one piece of work; return the time to sleep."""
        if self._next_renewal <= self._now():
            self.lease.renew_now()
            self._next_renewal = self._now() + round(self._renew_every * 1000)
        return self.member.tick()

    # The reporter

    def submit(self, report: Report) -> None:
        self._hear(report)
        self.reports.append(report)

    def finished(self) -> list[Report]:
        done, self.reports = self.reports, []
        return done


class Unsent(RecordingPublisher):
    """A broker that takes every message and hands it to a list.

    :param messages: gets the messages, in the order of sending.
    """

    was_asked = True

    def __init__(self, messages: list[Message]) -> None:
        self._messages = messages

    def connect(self) -> None:
        pass

    def read(self, key: str) -> str | None:
        return None

    def publish(self, message: Message) -> Attempt:
        self._messages.append(message)
        return Attempt(Fate.SENT)

    def settle(self, *, may_send: bool) -> Mapping[str, Attempt]:
        return {}

    def build(self, message: Message) -> tuple[Attempt, list[Push]]:
        raise NotImplementedError("its messages and the state are in different places")

    def sends_early(self, task: str) -> bool:
        return False


# -- beat on a virtual clock -------------------------------------------------------------------------------


class Fires(tuple[Fire, ...]):
    """Runs that beat has sent, in their order: what :func:`celery_misfire.current_fire` returns in each."""

    __slots__ = ()

    @property
    def outcomes(self) -> list[str]:
        """``"fired"`` or ``"recovered"`` for each run."""
        return [str(run.outcome) for run in self]


class Beat:
    """A beat on a virtual clock, with the entries and the settings of an app.

    It begins with an empty state: entries are planned from `start`. The app needs no broker and no Redis. Its
    ``beat_schedule`` is read again whenever beat starts.

    :param start: when beat starts for the first time; aware.
    :raises MisfireConfigError: with every problem of the settings and of the entries.
    :raises ValueError: for naive datetimes.
    """

    def __init__(self, app: Celery, *, start: datetime) -> None:
        self._app, self._now = _complete(app), to_millis(start)
        self._database = MemoryDatabase(lambda: self._now / 1000)
        self._store = MemoryStore(self._database, history=0)
        self._messages: list[Message] = []
        self._missed: list[MissedFire] = []
        self._definitions: dict[str, Definition] = {}
        self._process = self._start()

    @property
    def now(self) -> datetime:
        """The virtual time; aware, in UTC."""
        return from_millis(self._now)

    def run_until(self, moment: datetime) -> None:
        """Let beat run up to this moment. What is due at this moment is sent, too."""
        until = self._forward(moment)
        while True:
            delay = self._process.tick()
            if not delay:
                continue
            then = self._now + max(1, round(delay * 1000))
            if delay == LONGEST_SLEEP:
                # Nothing is to be done before the next fire time, and a year has many such sleeps.
                then = max(then, min(self._upcoming(), default=until + 1))
            if then > until:
                break
            self._now = then
        self._now = until

    def down(self, *, until: datetime) -> None:
        """Kill beat now, and start it again at `until`, where it does at once what is due by then."""
        self._now = self._forward(until)
        # As if the lease of the dead beat had run out.
        self._database.contents.expiring.pop("lease", None)
        self._process = self._start()
        self.run_until(until)

    def sent(self, entry: str | None = None) -> Fires:
        """Return the runs that were sent so far, of one entry or of all.

        :raises KeyError: when no entry has this name.
        """
        self._check_name(entry)
        found = [m for m in self._messages if entry in (None, m.definition.name)]
        read = (fires.read(headers_of(message)[HEADER]) for message in found)
        return Fires(run for run in read if run is not None)

    def missed(self, entry: str | None = None) -> list[MissedFire]:
        """Return the records of missed runs so far, of one entry or of all: one for each outage and entry.

        :raises KeyError: when no entry has this name.
        """
        self._check_name(entry)
        return [missed for missed in self._missed if entry in (None, missed.entry)]

    def counts(self, entry: str) -> dict[str, int]:
        """Return how many occurrences of an entry ended in which way so far, by outcome.

        :raises KeyError: when no entry has this name.
        """
        runs, missed = self.sent(entry), self.missed(entry)
        recovered = [run for run in runs if run.outcome is Outcome.RECOVERED]
        counts = {
            "fired": len(runs) - len(recovered),
            "recovered": len(recovered),
            "merged": sum(run.missed_count - 1 for run in recovered),
            "missed": sum(one.count for one in missed),
        }
        return {outcome: n for outcome, n in counts.items() if n}

    def next_fire_time(self, entry: str) -> datetime | None:
        """Return when an entry is due next, None for never.

        :raises KeyError: when no entry has this name.
        """
        self._check_name(entry)
        record = self._process.leader.record(entry)
        moment = record.state.next_fire_time if record else None
        return None if moment is None else from_millis(moment)

    def _start(self) -> BeatProcess:
        settings, entries = read_config(self._app, self._app.conf.beat_schedule, needs_store=False)
        self._definitions = {
            name: Definition(name, str(entry.keys["task"]), entry.trigger, entry.policy)
            for name, entry in entries.items()
            if entry.trigger is not None
        }
        process = BeatProcess(
            self._store,
            Unsent(self._messages),
            lambda: self._now,
            self._definitions.values,
            hear=lambda report: self._missed.append(report.missed),
            each=settings.missed_results == "each",
            resume_misfires=settings.on_resume == "misfire",
        )
        process.tick()
        return process

    def _forward(self, moment: datetime) -> int:
        if (to := to_millis(moment)) < self._now:
            raise ValueError(f"{moment} is past: it is {self.now} already")
        return to

    def _upcoming(self) -> list[int]:
        found = (self._process.leader.record(name) for name in self._definitions)
        return [r.state.next_fire_time for r in found if r and r.state.next_fire_time is not None]

    def _check_name(self, entry: str | None) -> None:
        if entry is not None and entry not in self._definitions:
            raise KeyError(f"no entry is named {quote_name(entry)}.{suggestion(entry, self._definitions)}")


def outage(
    app: Celery,
    *,
    down_at: datetime,
    up_at: datetime,
    start: datetime | None = None,
    until: datetime | None = None,
) -> Beat:
    """Return a beat that was killed at `down_at` and started again at `up_at`.

    A fire time that equals `down_at` is not fired, as in :func:`celery_misfire.simulate`.

    :param start: when beat started for the first time; None: a day before `down_at`.
    :param until: how far it runs; None: until it has caught up at `up_at`.
    :raises MisfireConfigError, ValueError: as :class:`Beat`.
    """
    beat = Beat(app, start=start or down_at - timedelta(days=1))
    beat.run_until(down_at - timedelta(milliseconds=1))
    beat.down(until=up_at)
    if until is not None:
        beat.run_until(until)
    return beat


# -- one run, one record -----------------------------------------------------------------------------------


class _Requests:
    """The requests of a task, each with the header of a fire."""

    def __init__(self, stack: Any, header: Mapping[str, Any]) -> None:
        # Of blocks inside of each other, the innermost counts.
        self._stack: Any = stack._stack if isinstance(stack, _Requests) else stack
        self._header = header

    def push(self, request: Context) -> None:
        # A worker merges headers into the request. An eager call leaves them in a dict.
        request.update({HEADER: self._header}, headers={**(request.headers or {}), HEADER: self._header})
        self._stack.push(request)

    def __len__(self) -> int:
        return len(self._stack)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stack, name)


@contextmanager
def fire(
    task: Task[Any, Any],
    *,
    scheduled: datetime,
    outcome: str = "fired",
    entry: str = "",
    fire_time: datetime | None = None,
    missed_count: int | None = None,
    last_missed: datetime | None = None,
) -> Iterator[Fire]:
    """Let :func:`celery_misfire.current_fire` work in `task` inside of the block, however it is called here.

    ``task()``, ``task.apply()`` and, where tasks run at once, ``task.delay()``.

    :param scheduled: its scheduled fire time; aware.
    :param outcome: ``"fired"`` or ``"recovered"``.
    :param entry: name of the entry; '' is the name of the task.
    :param fire_time: when beat sent it; None: at `scheduled`.
    :param missed_count: how many misfired occurrences it stands for; None: none for ``"fired"``, else 1.
    :param last_missed: scheduled fire time of the last one merged into it.
    :returns: what ``current_fire()`` returns.
    :raises ValueError: for naive datetimes and other outcomes.
    """
    if outcome not in ("fired", "recovered"):
        raise ValueError(f"outcome: a run is 'fired' or 'recovered', got {outcome!r}")
    count = int(outcome == "recovered") if missed_count is None else missed_count
    header = fires.header(
        entry=entry or str(task.name),
        scheduled=to_millis(scheduled),
        fire_time=to_millis(fire_time or scheduled),
        outcome=Outcome(outcome),
        merged=count - (outcome == "recovered"),
        last_missed=None if last_missed is None else to_millis(last_missed),
        generation=1,
        instruction=None,
        resolved=None,
        threshold=None,
    )
    told = fires.read(header)
    if told is None:
        raise ValueError(f"no fire is like this: entry {entry!r}, missed_count {count}")
    stack = task.request_stack
    task.request_stack = _Requests(stack, header)  # type: ignore[assignment]  # it is one for all who ask
    try:
        yield told
    finally:
        task.request_stack = stack


def make_missed(
    entry: str = "reports",
    *,
    task: str | Task[Any, Any] = "shop.reports",
    first: datetime,
    last: datetime | None = None,
    count: int = 1,
    reason: str = "scheduler_down",
    instruction: str = "do_nothing",
    detected_at: datetime | None = None,
) -> MissedFire:
    """Return a record of missed runs, for tests of whoever receives one.

    :param last: scheduled fire time of the last run; None: that of the first.
    :param detected_at: when it was found out; None: at `last`.
    :raises ValueError: for naive datetimes and unknown words.
    """
    last = last or first
    return MissedFire(
        entry=entry,
        task=task if isinstance(task, str) else str(task.name),
        task_id=fires.task_id(_NAMESPACE, entry, 1, to_millis(first)),
        first=first,
        last=last,
        count=count,
        reason=Reason(reason),
        instruction=MisfireInstruction(instruction),
        detected_at=detected_at or last,
    )


# -- the configuration -------------------------------------------------------------------------------------


def check_config(app: Celery, *, warnings: bool = False) -> list[str]:
    """Return all problems for which beat would refuse to start, one line each; [] when there are none.

    :param warnings: also what beat would warn of at its start, and tasks in the schedule that the app does
        not have.
    """
    _complete(app)
    try:
        settings, entries = read_config(app, app.conf.beat_schedule or {})
    except MisfireConfigError as exc:
        return list(exc.problems)
    if not warnings:
        return []
    schedule = spelling(app)("beat_schedule")
    unknown = [
        as_line(
            f"{schedule}[{quote_name(name)}].task",
            f"the app has no task {quote(task)}.{suggestion(task, app.tasks)}",
        )
        for name, entry in entries.items()
        if (task := str(entry.keys["task"])) not in app.tasks
    ]
    return unknown + warnings_for(app, settings, entries)


def _complete(app: Celery) -> Celery:
    """Have the app know its tasks, and the entries that are added when it does."""
    app.loader.import_default_modules()
    app.finalize()
    return app
