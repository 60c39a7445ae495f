"""The scheduler classes for ``celery beat``.

They keep Celery's entries, configuration and way of sending (``apply_entry``, where Sentry and others hook
in), and replace its loop: which entry is due, and what happens when it is late, is decided by the
:class:`~celery_misfire.leadership.leader.Leader`.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property, partial
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from celery.signals import beat_embedded_init, beat_init
from click import ClickException
from kombu import Connection, Producer

from celery_misfire.beat_entries import BeatEntries, ConfiguredEntries, refused_classes
from celery_misfire.beat_sending import no_subscription, send_entry, watched
from celery_misfire.beats import Sign
from celery_misfire.clocks import uptime, wall_clock
from celery_misfire.conf.entries import ConfiguredEntry
from celery_misfire.conf.problems import as_line, spelling
from celery_misfire.conf.settings import Settings, read_config, read_settings
from celery_misfire.conf.warnings import warnings_for
from celery_misfire.events import Event, Led, Misfired, Sent
from celery_misfire.exceptions import BrokerUnavailable, MisfireConfigError, StoreRefused
from celery_misfire.leadership.deployment import Deployment
from celery_misfire.leadership.leader import Leader
from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.member import Member
from celery_misfire.leadership.peers import describe
from celery_misfire.log_lines import EventLog, Log
from celery_misfire.metrics.beat import BeatNumbers
from celery_misfire.records import Definition
from celery_misfire.sending.broker import Broker, WatchedProducer
from celery_misfire.sending.publisher import EntryPublisher
from celery_misfire.sending.reporter import Reporter
from celery_misfire.store.redis_store import LONGEST_CALL, RedisStore
from celery_misfire.store.state_mark import Destination
from celery_misfire.store.url import address
from celery_misfire.texts import describe_error, one_line, quote_name

__all__ = ["MisfireMixin", "MisfireScheduler"]

say = Log(__name__, "beat")

#: Time given to the reporter when beat stops, in seconds; what is left is reported by the next leader.
FAREWELL = 2.0


class MisfireMixin(ConfiguredEntries, Scheduler):
    """Misfire handling for a subclass of :class:`celery.beat.Scheduler`."""

    def __init__(self, app: Celery, *args: Any, **kwargs: Any) -> None:
        self._entries = BeatEntries(kwargs.get("schedule_filename") or app.conf.beat_schedule_filename or "")
        self._ticking = self._asked_to_stop = False
        self._broker = Broker(app, self._make_producer)
        self._publisher = EntryPublisher(
            app,
            self._broker,
            lambda name: self.schedule[self._entries.own_name(name)],
            lambda entry, producer: send_entry(self, entry, producer),
        )
        super().__init__(app, *args, **kwargs)

    # -- the configuration ---------------------------------------------------------------------------------

    @cached_property
    def _settings(self) -> Settings:
        # A lazy scheduler, such as that of Celery's banner, needs nothing else.
        with suppress(MisfireConfigError):
            return read_settings(self.app)
        # The entries may have problems, too, and all are reported together.
        return self._read_config()[0]

    def _read_config(self) -> tuple[Settings, dict[str, ConfiguredEntry]]:
        configured, problems = self.app.conf.beat_schedule, refused_classes(self)
        try:
            # Celery takes an empty list or tuple for no entries, too.
            read = read_config(self.app, {} if configured in ([], ()) else configured, self.entry_keys)
        except MisfireConfigError as exc:
            problems += exc.problems
        if problems:
            raise CannotStart(problems)
        return read

    # -- the schedule --------------------------------------------------------------------------------------

    def setup_schedule(self) -> None:
        logging.getLogger(Scheduler.__module__).addFilter(_in_plain_words)
        self._settings, entries = settings, _ = self._read_config()
        super().setup_schedule()
        self._keep_checked(entries)
        for warning in self._warnings(entries):
            say.warning("advice", "%s", warning)
        self._store = RedisStore.of(settings, min(LONGEST_CALL, settings.lease_ttl / 4))
        sign = _signer(settings, lambda: self._member.broker_has_answered)
        lease = Lease(self._store, settings.lease_ttl, settings.lease_renew, sign=sign)
        self._reporter = Reporter(self.app, settings)
        self._event_log = EventLog(say, self.app.timezone, self._store.process)
        self._numbers = BeatNumbers(settings)
        self._leader = Leader(
            self._store,
            lease,
            self._publisher,
            self._reporter,
            namespace=settings.namespace,
            listeners=self._listeners(),
            app=self.app.main or "",
            each=settings.missed_results == "each",
            resume_misfires=settings.on_resume == "misfire",
            restart_grace=settings.restart_grace,
            catch_up_queue=settings.catch_up_queue,
        )
        self._member = Member(
            self._store,
            lease,
            self._leader,
            app=self.app.main or "",
            namespace=settings.namespace,
            poll=settings.standby_poll,
            description=describe(self.app, settings, entries),
            definitions=self._definitions,
            deployment=Deployment(
                self._store,
                lambda: _destination(self._broker, self._store.place_keys),
                settings.lease_ttl,
            ),
        )
        self._numbers.start(self._member, lease, self._leader)
        self._reporter.start()

    def _listeners(self) -> list[Callable[[Sequence[Event]], None]]:
        """Return who hears of each event that was written to the log."""
        return [
            self._event_log.listen,
            self._announce,
            self._count_runs,
            self._numbers.hear,
            _spare_the_collector,
        ]

    def _announce(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Misfired):
                self._reporter.announce(event)

    def _count_runs(self, events: Sequence[Event]) -> None:
        """Advance the counters of the entries that were sent, which Celery does before it sends them."""
        schedule = self.schedule
        for event in (event for event in events if isinstance(event, Sent)):
            name = self._entries.own_name(event.entry)
            if (entry := schedule.get(name)) is not None:
                self.reserve(entry)
                self._entries.replaced(name, entry, schedule.get(name, entry))

    def _warnings(self, entries: Mapping[str, ConfiguredEntry]) -> list[str]:
        """Return what is allowed in the configuration, but hardly meant."""
        return warnings_for(self.app, self._settings, entries)

    def _keep_checked(self, entries: Mapping[str, ConfiguredEntry]) -> None:
        # An entry class of the app's own may make another schedule of what is configured.
        if self.Entry is ScheduleEntry:
            self._entries.keep(entries, self.schedule)

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        super().merge_inplace({n: self._entries.stripped(n, e) for n, e in dict(b).items()})

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        super().update_from_dict({n: self._entries.stripped(n, e) for n, e in dict_.items()})
        self.schedule_has_changed()

    def add(self, **kwargs: Any) -> ScheduleEntry:
        kwargs = self._entries.stripped(kwargs["name"], kwargs)
        entry: ScheduleEntry = super().add(**kwargs)
        self.schedule_has_changed()
        return entry

    def schedule_has_changed(self) -> None:
        """Have the entries adopted anew at the next tick."""
        # Celery fills the schedule before it calls setup_schedule().
        if (member := vars(self).get("_member")) is not None:
            member.has_changed = True

    def last_run_of(self, entry: ScheduleEntry) -> datetime | None:
        """Return when an entry ran last under another scheduler, None when that is not known.

        An entry on an interval that is seen for the first time goes on from there; nothing else comes of it.
        Here it is what the file of ``celery beat`` remembers, else the entry's ``last_run_at`` as configured;
        a subclass that keeps its entries elsewhere may know better. A naive datetime is taken for UTC, as
        Celery does.
        """
        return self._entries.last_run(str(entry.name))

    def _definitions(self) -> Iterator[Definition]:
        # Others may change the schedule meanwhile.
        for own_name, entry in self._entries.taken(self._own_entries()).items():
            try:
                yield self._entries.definition(own_name, entry, self._settings, self.last_run_of)
            except Exception as exc:
                # At start the configuration has been checked; this entry was added later.
                name = quote_name(self._entries.plain_name(own_name))
                self._member.remind(f"entry {name} is left out: {describe_error(exc)}")

    def _own_entries(self) -> Mapping[str, ScheduleEntry]:
        """Return the entries that this class defines."""
        return self.schedule

    # -- the loop ------------------------------------------------------------------------------------------

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Do one piece of work; return how many seconds Celery's loop may sleep.

        :raises MisfireConfigError: when Redis refuses us and has done so since beat was started.
        :raises SystemExit: when a signal to stop has come in the meantime.
        """
        self._ticking = True
        try:
            # Monitors wrap the method of Celery's class. It asks schedules_equal(), and has no more to do.
            self._heap, self._delay = list[Any](), 1.0
            super().tick(*args, **kwargs)
            return self._delay
        except StoreRefused as exc:
            place = spelling(self.app)("misfire_redis_url")
            raise CannotStart([as_line(place, str(exc))]) from None
        except Exception:
            say.exception("unexpected_error", "unexpected error, going on in 1 s")
            return 1.0
        finally:
            self._ticking = False
            if self._asked_to_stop:
                raise SystemExit

    def schedules_equal(self, old_schedules: Any, new_schedules: Any) -> bool:
        """Do the work of a tick, when Celery's own tick() asks this."""
        if not self._ticking:
            return bool(super().schedules_equal(old_schedules, new_schedules))
        self._delay = self._tick()
        return True

    def _tick(self) -> float:
        if self._entries.have_changed(self._own_entries()):
            self.schedule_has_changed()
        with self._numbers.timed("tick_seconds"):
            delay = self._member.tick()
        self._event_log.write(uptime(), is_complete=delay > 0 or not self._leader.is_behind)
        return min(delay, float(self.max_interval))  # type: ignore[arg-type] # never None here

    # -- sending -------------------------------------------------------------------------------------------

    @property
    def producer(self) -> Producer:
        """The producer of beat's own connection (:class:`~celery_misfire.sending.broker.Broker`)."""
        return self._broker.producer

    @property
    def connection(self) -> Connection:
        """The connection of the producer."""
        return self.producer.connection  # type: ignore[return-value] # a producer that works has one

    def _make_producer(self, connection: Connection) -> WatchedProducer:
        return watched(self.Producer)(connection)  # type: ignore[attr-defined]  # not in the stubs

    def apply_async(
        self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> Any:
        """Send as Celery's beat does."""
        with no_subscription():
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)

    # -- the end -------------------------------------------------------------------------------------------

    def stop_soon(self, *_: Any) -> None:
        """Leave beat's loop after the tick in hand, or at once when asked again; a signal handler."""
        at_once = self._asked_to_stop or not self._ticking
        self._asked_to_stop = True
        if at_once:
            raise SystemExit

    def close(self) -> None:
        """Give the lease up, so that another beat can go on at once. May be called more than once."""
        # A lazy scheduler has no part in what goes on.
        if hasattr(self, "_member"):
            self._reporter.stop(FAREWELL)
            self._member.close()
            self._event_log.close(uptime())
            self._numbers.stop()
        self._broker.close()
        super().close()

    @property
    def info(self) -> str:
        """The lines of Celery's banner that are ours."""
        return f"    . state -> {self._settings.namespace} at {address(self._settings.redis_url)}"


class CannotStart(MisfireConfigError, ClickException):
    """Ends ``celery beat``, which shows the text of such an error instead of a traceback."""

    def format_message(self) -> str:
        return str(self)


class MisfireScheduler(MisfireMixin):
    """Celery's scheduler of configured entries, with misfire handling and its state in Redis.

    ``app.conf.beat_scheduler = "celery_misfire.beat:MisfireScheduler"``, or ``celery beat -S misfire``.
    """

    def setup_schedule(self) -> None:
        super().setup_schedule()
        # Once more: Celery's class drops them when it merges the configured entries.
        self.install_default_entries(self.schedule)


def _spare_the_collector(events: Sequence[Event]) -> None:
    """Have the collector leave the entries alone: they live as long as beat."""
    if any(isinstance(event, Led) for event in events) and not gc.get_freeze_count():
        gc.freeze()


def _signer(settings: Settings, broker_has_answered: Callable[[], bool]) -> Callable[[], str]:
    """Return a function that returns the sign of life of this beat."""
    host, pid, started = socket.gethostname(), os.getpid(), wall_clock()
    every = max(settings.lease_renew, settings.standby_poll)
    of_us = partial(Sign, host=host, pid=pid, every=every, started=started)
    return lambda: str(of_us(clock=wall_clock(), broker_has_answered=broker_has_answered()))


def _in_plain_words(record: logging.LogRecord) -> bool:
    """Let a message of Celery's beat be one line without arguments, whatever an entry or a task is called.

    Of an error that ends beat for its configuration, the text is all that is of use.
    """
    if record.exc_info and isinstance(record.exc_info[1], CannotStart):
        record.msg, record.args = "beat ends, MisfireConfigError: %s", (record.exc_info[1],)
        record.exc_info = None
    if isinstance(record.args, tuple):
        texts = [arg for arg in record.args if isinstance(arg, str)]
        record.args = tuple(_plain(arg, texts) if isinstance(arg, str) else arg for arg in record.args)
    return True


def _plain(text: str, texts: Iterable[str]) -> str:
    """Return a text as one line; a call of a task that is among the texts, without its arguments."""
    task = next((task for task in texts if text.startswith(f"{task}(")), "")
    return one_line(f"{task}(...)" if task else text)


def _destination(broker: Broker, keys: Sequence[str]) -> Destination | None:
    """Return where runs go, None when the broker does not answer; for a beat that does not lead."""
    try:
        return broker.destination(keys)
    except BrokerUnavailable:
        return None
    finally:
        broker.close()


@beat_init.connect
def _stop_between_ticks(sender: Any, **_: Any) -> None:
    """Let a signal to stop wait until the tick has been left, in ``celery beat`` and ``celery worker -B``.

    Celery's own handlers raise SystemExit wherever beat happens to be. Inside a finalizer Python drops it,
    and beat goes on for ever; between a publish and its acknowledgement, the next beat sends the run again.
    """
    scheduler = sender.scheduler
    # Beat in a thread gets no signals; whoever runs it stops it.
    if isinstance(scheduler, MisfireMixin) and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, scheduler.stop_soon)


@beat_embedded_init.connect
def _end_with_worker(sender: Any, **_: Any) -> None:
    """Let the beat of a worker that was killed end: a worker that is started in its place has a beat, too."""
    worker = os.getppid()

    def watch() -> None:
        while os.getppid() == worker:
            time.sleep(1)
        say.warning("stops", "the worker of this beat has ended, and so beat ends")
        os.kill(os.getpid(), signal.SIGTERM)

    if isinstance(sender.scheduler, MisfireMixin):
        threading.Thread(target=watch, name="misfire-worker", daemon=True).start()
