"""The scheduler classes for ``celery beat``.

They keep Celery's entries, configuration and way of sending (``apply_entry``, where Sentry and others hook
in), and replace its loop: which entry is due, and what happens when it is late, is decided by the
:class:`~celery_misfire.leadership.leader.Leader`.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from celery import Celery
from celery import _state as celery_state
from celery.beat import ScheduleEntry, Scheduler, SchedulingError
from celery.signals import beat_init
from kombu import Producer

from celery_misfire.conf.entries import ENTRY_KEYS
from celery_misfire.conf.names import plain_names, plainly_named
from celery_misfire.conf.problems import as_line, spelling
from celery_misfire.conf.settings import read_config
from celery_misfire.conf.warnings import warnings_for
from celery_misfire.events import Event, GaveUp, Misfired
from celery_misfire.exceptions import (
    MisfireConfigError,
    StoreRefused,
)
from celery_misfire.leadership.leader import Leader
from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.member import Member
from celery_misfire.leadership.peers import describe
from celery_misfire.misfire import ENDLESS, Trigger, to_millis
from celery_misfire.records import Definition
from celery_misfire.sending.broker import Broker
from celery_misfire.sending.publisher import EntryPublisher
from celery_misfire.sending.reporter import Reporter
from celery_misfire.store.redis_store import LONGEST_CALL, RedisStore
from celery_misfire.store.url import address
from celery_misfire.texts import describe_error, one_line, quote_name
from celery_misfire.triggers.kinds import GridTrigger, trigger_for

__all__ = ["MisfireMixin", "MisfireScheduler"]

logger = logging.getLogger(__name__)

#: Time given to the reporter when beat stops, in seconds; what is left is reported by the next leader.
FAREWELL = 2.0


class MisfireMixin(Scheduler):
    """Misfire handling for a subclass of :class:`celery.beat.Scheduler`."""

    #: What an entry of ``beat_schedule`` may hold.
    entry_keys: Collection[str] = ENTRY_KEYS

    def __init__(self, app: Celery, *args: Any, **kwargs: Any) -> None:
        self._misfire_keys: dict[str, Any] = {}
        self._given_last_runs: dict[str, Any] = {}
        self._filename: str = kwargs.get("schedule_filename") or app.conf.beat_schedule_filename or ""
        self._ticking = False
        self._asked_to_stop = False
        self._broker = Broker(app)
        self._publisher = EntryPublisher(
            self._broker,
            lambda name: self.schedule[self._own_names.get(name, name)],
            lambda entry, producer: self.apply_entry(entry, producer=producer),
        )
        configured = app.conf.beat_schedule
        # Celery takes an empty list or tuple for no entries, too.
        self._configured: Mapping[str, Any] = {} if configured in ([], ()) else configured
        self._configured = plainly_named(self._configured)
        #: The own names of entries that have arguments in them, by plain name.
        self._own_names: dict[str, str] = {}
        self._settings, policies = read_config(app, self._configured, self.entry_keys)
        self._description = describe(app, self._settings, self._configured, policies)
        super().__init__(app, *args, **kwargs)

    # -- the schedule --------------------------------------------------------------------------------------

    def setup_schedule(self) -> None:
        super().setup_schedule()
        logging.getLogger(Scheduler.__module__).addFilter(_on_one_line)
        settings = self._settings
        for warning in self._warnings():
            logger.warning("beat: %s", warning)
        self._store = RedisStore.of(settings, min(LONGEST_CALL, settings.lease_ttl / 4))
        lease = Lease(self._store, settings.lease_ttl, settings.lease_renew)
        self._reporter = Reporter(self.app, settings)
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
        )
        self._member = Member(
            self._store,
            lease,
            self._leader,
            app=self.app.main or "",
            namespace=settings.namespace,
            poll=settings.standby_poll,
            description=self._description,
            definitions=self._definitions,
        )
        self._reporter.start()

    def _listeners(self) -> list[Callable[[Sequence[Event]], None]]:
        """Return who hears of each event that was written to the log."""
        return [self._log, self._announce]

    def _log(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Misfired | GaveUp):
                logger.warning("beat: %s", event.sentence(self.app.timezone))

    def _announce(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Misfired):
                self._reporter.announce(event)

    def _warnings(self) -> list[str]:
        """Return what is allowed in the configuration, but hardly meant."""
        return warnings_for(self.app, self._settings, self._configured)

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        super().merge_inplace({n: self._stripped(n, e) for n, e in dict(b).items()})

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        super().update_from_dict({n: self._stripped(n, e) for n, e in dict_.items()})
        self.schedule_has_changed()

    def add(self, **kwargs: Any) -> ScheduleEntry:
        kwargs = self._stripped(kwargs["name"], kwargs)
        entry: ScheduleEntry = super().add(**kwargs)
        self.schedule_has_changed()
        return entry

    def schedule_has_changed(self) -> None:
        """Have the entries adopted anew at the next tick."""
        # Celery fills the schedule before it calls setup_schedule().
        if (member := vars(self).get("_member")) is not None:
            member.has_changed = True

    def _stripped(self, name: str, entry: Any) -> Any:
        """Take our key out of an entry: Celery's own class does not know it."""
        if not isinstance(entry, Mapping):
            return entry
        for key, kept in (("misfire", self._misfire_keys), ("last_run_at", self._given_last_runs)):
            kept.pop(name, None)
            if key in entry:
                kept[name] = entry[key]
        return {k: v for k, v in entry.items() if k != "misfire"}

    def last_run_of(self, entry: ScheduleEntry) -> datetime | None:
        """Return when an entry ran last under another scheduler, None when that is not known.

        An entry on an interval that is seen for the first time goes on from there; nothing else comes of it.
        Here it is what the file of ``celery beat`` remembers, else the entry's ``last_run_at`` as configured;
        a subclass that keeps its entries elsewhere may know better. A naive datetime is taken for UTC, as
        Celery does.
        """
        name = str(entry.name)
        return self._last_runs.get(name) or self._given_last_runs.get(name)

    @cached_property
    def _last_runs(self) -> Mapping[str, datetime]:
        # Needed once in a lifetime, by those who come from Celery's own scheduler.
        from celery_misfire.beat_file import last_runs

        try:
            found = last_runs(self._filename)
        except ValueError as exc:
            logger.warning("beat: the schedule file %r is left alone: %s", self._filename, exc)
            return {}
        if found:
            logger.info("beat: new intervals go on from the last runs in %r", self._filename)
        return found

    def _anchor(self, entry: ScheduleEntry, trigger: Trigger) -> int | None:
        """Return what the grid of this entry goes on from; only intervals without a start have that."""
        if not isinstance(trigger, GridTrigger) or (trigger.start, trigger.repeat_count) != (None, ENDLESS):
            return None
        moment = self.last_run_of(entry)
        if moment is None:
            return None
        if not isinstance(moment, datetime):
            raise ValueError(f"last_run_at: expected a datetime, got {type(moment).__name__}")
        return to_millis(moment if moment.tzinfo else moment.replace(tzinfo=UTC))

    def _definitions(self) -> Iterator[Definition]:
        plain = plain_names(self.schedule)
        self._own_names = {shown: name for name, shown in plain.items()}
        for own_name, entry in self.schedule.items():
            name = plain.get(own_name, own_name)
            try:
                trigger = trigger_for(entry.schedule, name)
                misfire = self._misfire_keys.get(own_name)
                policy = self._settings.policy_for(name, misfire, trigger.trigger_type)
                anchor = self._anchor(entry, trigger)
            except Exception as exc:
                # At start the configuration has been checked; this entry was added later.
                self._member.remind(f"entry {quote_name(name)} is left out: {describe_error(exc)}")
                continue
            yield Definition(name, str(entry.task), trigger, policy, anchor)

    # -- the loop ------------------------------------------------------------------------------------------

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Do one piece of work; return how many seconds Celery's loop may sleep.

        :raises MisfireConfigError: when Redis refuses us and has done so since beat was started.
        :raises SystemExit: when a signal to stop has come in the meantime.
        """
        self._ticking = True
        try:
            return self._tick()
        except StoreRefused as exc:
            place = spelling(self.app)("misfire_redis_url")
            raise MisfireConfigError([as_line(place, str(exc))]) from None
        except Exception:
            logger.exception("beat: unexpected error, going on in 1 s")
            return 1.0
        finally:
            self._ticking = False
            if self._asked_to_stop:
                raise SystemExit

    def _tick(self) -> float:
        return min(self._member.tick(), float(self.max_interval))  # type: ignore[arg-type] # never None here

    # -- sending -------------------------------------------------------------------------------------------

    @property
    def producer(self) -> Producer:
        """The producer of beat's own connection (:class:`~celery_misfire.sending.broker.Broker`)."""
        return self._broker.producer

    def apply_async(
        self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> Any:
        """Send, and keep the error: ``apply_entry`` would log it with its arguments, and forget it."""
        if advance:
            return super().apply_async(entry, producer=producer, advance=True, **kwargs)
        blocks = _join_will_block(None)
        # Else a result backend would subscribe to the result, and hang beat when it is away.
        _join_will_block(True)
        try:
            result = super().apply_async(entry, producer=producer, advance=False, **kwargs)
        except Exception as exc:
            # Celery's beat wraps whatever goes wrong.
            cause = exc.__context__ if isinstance(exc, SchedulingError) else None
            self._publisher.note(cause if isinstance(cause, Exception) else exc)
            return None
        else:
            self._publisher.note(None)
            return result
        finally:
            _join_will_block(blocks)

    # -- the end -------------------------------------------------------------------------------------------

    def stop_soon(self, *_: Any) -> None:
        """Leave beat's loop after the tick in hand, or at once when asked again; a signal handler."""
        at_once = self._asked_to_stop or not self._ticking
        self._asked_to_stop = True
        if at_once:
            raise SystemExit

    def close(self) -> None:
        """Give the lease up, so that another beat can go on at once. May be called more than once."""
        if not hasattr(self, "_member"):
            return
        self._reporter.stop(FAREWELL)
        self._member.close()
        self._broker.close()
        super().close()

    @property
    def info(self) -> str:
        """The lines of Celery's banner that are ours."""
        return f"    . state -> {self._settings.namespace} at {address(self._settings.redis_url)}"


class MisfireScheduler(MisfireMixin):
    """Celery's scheduler of configured entries, with misfire handling and its state in Redis.

    ``app.conf.beat_scheduler = "celery_misfire.beat:MisfireScheduler"``, or ``celery beat -S misfire``.
    """

    def setup_schedule(self) -> None:
        super().setup_schedule()
        # Once more: Celery's class drops them when it merges the configured entries.
        self.install_default_entries(self.schedule)


def _on_one_line(record: logging.LogRecord) -> bool:
    """Let a message of Celery's beat be one line without arguments, whatever an entry or a task is called."""
    if isinstance(record.args, tuple):
        texts = [arg for arg in record.args if isinstance(arg, str)]
        record.args = tuple(_plain(arg, texts) if isinstance(arg, str) else arg for arg in record.args)
    return True


def _plain(text: str, texts: Iterable[str]) -> str:
    """Return a text as one line; a call of a task that is among the texts, without its arguments."""
    task = next((task for task in texts if text.startswith(f"{task}(")), "")
    return one_line(f"{task}(...)" if task else text)


def _join_will_block(value: bool | None) -> bool:
    """Say, or with None ask, whether waiting for results is out of the question in this process."""
    before = bool(celery_state.task_join_will_block())  # type: ignore[attr-defined]
    if value is not None:
        celery_state._set_task_join_will_block(value)  # type: ignore[attr-defined]
    return before


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
