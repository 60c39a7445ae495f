"""A beat on a virtual clock, with the entries of an app."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from celery import Celery

from celery_misfire import control
from celery_misfire.conf.settings import read_config
from celery_misfire.fire import Fire
from celery_misfire.leadership.leader import LONGEST_SLEEP
from celery_misfire.misfire import MissedFire, Outcome, from_millis, to_millis
from celery_misfire.records import Definition
from celery_misfire.sending.dispatch import Message
from celery_misfire.store.memory import MemoryDatabase, MemoryStore
from celery_misfire.testing.config import complete
from celery_misfire.testing.process import BeatProcess, Unsent
from celery_misfire.texts import quote_name, suggestion


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
        self._app, self._now = complete(app), to_millis(start)
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
        # The lease of the dead beat runs out in the meantime.
        self._database.contents.expiring.pop("lease", None)
        self._process = self._start()
        self.run_until(until)

    def pause(self, *entries: str, until: datetime | None = None) -> None:
        """Pause entries from now on, as ``celery misfire pause`` does.

        :param until: when the pause ends by itself; None: not before :meth:`resume`.
        :raises KeyError: when no entry has one of these names.
        """
        self._check_names(entries)
        control.pause(self._store, entries, until=None if until is None else to_millis(until))
        self._carry_out()

    def resume(self, *entries: str) -> None:
        """Let paused entries go on.

        :raises KeyError: when no entry has one of these names.
        """
        self._check_names(entries)
        control.resume(self._store, entries)
        self._carry_out()

    def hold(self, *, until: datetime) -> None:
        """Hold all entries from now on, as ``celery misfire hold`` does."""
        control.hold(self._store, until=to_millis(until))
        self._carry_out()

    def sent(self, entry: str | None = None) -> Fires:
        """Return the runs that were sent so far, of one entry or of all.

        :raises KeyError: when no entry has this name.
        """
        self._check_name(entry)
        return Fires(_fire_of(m) for m in self._messages if entry in (None, m.definition.name))

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

    def _carry_out(self) -> None:
        """Let beat do at once what it was asked for."""
        self._process.lease.is_asked = True
        self.run_until(self.now)

    def _check_name(self, entry: str | None) -> None:
        self._check_names(() if entry is None else [entry])

    def _check_names(self, entries: Iterable[str]) -> None:
        for entry in entries:
            if entry not in self._definitions:
                hint = suggestion(entry, self._definitions)
                raise KeyError(f"no entry is named {quote_name(entry)}.{hint}")


def _fire_of(message: Message) -> Fire:
    """Return the fire that a worker reads from this message."""
    intent = message.intent
    return Fire(
        scheduled_fire_time=from_millis(intent.scheduled),
        fire_time=from_millis(message.fire_time),
        entry=message.definition.name,
        outcome=intent.outcome,
        missed_count=intent.merged + (intent.outcome is Outcome.RECOVERED),
        last_missed_fire_time=None if intent.last_missed is None else from_millis(intent.last_missed),
    )


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
    :raises MisfireConfigError: as :class:`Beat`.
    :raises ValueError: as :class:`Beat`, and for times out of order.
    """
    beat = Beat(app, start=start or down_at - timedelta(days=1))
    beat.run_until(down_at - timedelta(milliseconds=1))
    beat.down(until=up_at)
    if until is not None:
        beat.run_until(until)
    return beat
