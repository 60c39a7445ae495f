"""The scheduler classes for ``celery beat``.

They keep Celery's entries, configuration and way of sending (``apply_entry``, where Sentry and others hook
in), and replace its loop: which entry is due, and what happens when it is late, is decided by the
:class:`~celery_misfire.leadership.leader.Leader`.
"""

from __future__ import annotations

import copy
import logging
import signal
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from celery import Celery
from celery import _state as celery_state
from celery.beat import ScheduleEntry, Scheduler, SchedulingError
from celery.signals import beat_init
from kombu import Producer

from celery_misfire import beat_file, fire
from celery_misfire.conf import settings as conf
from celery_misfire.conf.problems import as_line, brief, named, one_line
from celery_misfire.exceptions import (
    LeaseLost,
    MisfireConfigError,
    MisfireError,
    NewerSchema,
    PublishRejected,
    StoreRefused,
    StoreUnavailable,
)
from celery_misfire.leadership.intents import Message
from celery_misfire.leadership.leader import Leader
from celery_misfire.leadership.lease import Lease, uptime
from celery_misfire.leadership.peers import describe, difference
from celery_misfire.misfire import ENDLESS, Trigger, to_millis
from celery_misfire.records import Definition
from celery_misfire.sending.broker import Broker, kind
from celery_misfire.sending.missed_runs import Reporter
from celery_misfire.store.redis_store import LONGEST_CALL, RedisStore
from celery_misfire.store.url import address
from celery_misfire.triggers.kinds import GridTrigger, trigger_for

__all__ = ["MisfireMixin", "MisfireScheduler"]

logger = logging.getLogger(__name__)

#: A trouble that goes on is mentioned again so often, in seconds.
REMIND_EVERY = 60.0
_NAMESPACES = "If they are two projects, give each a misfire_namespace of its own."
#: Time given to the reporter when beat stops, in seconds; what is left is reported by the next leader.
FAREWELL = 2.0


class MisfireMixin(Scheduler):
    """Misfire handling for a subclass of :class:`celery.beat.Scheduler`."""

    #: What an entry of ``beat_schedule`` may hold.
    entry_keys: Collection[str] = conf.ENTRY_KEYS

    def __init__(self, app: Celery, *args: Any, **kwargs: Any) -> None:
        self._misfire_keys: dict[str, Any] = {}
        self._given_last_runs: dict[str, Any] = {}
        self._filename: str = kwargs.get("schedule_filename") or app.conf.beat_schedule_filename or ""
        self._ticking = False
        self._asked_to_stop = False
        self._changed = False
        self._leading = False
        self._store_works = False
        self._ask_again_at = 0.0
        self._trouble = _Trouble()
        self._broker = Broker(app)
        self._failure: Exception | None = None
        configured = app.conf.beat_schedule
        # Celery takes an empty list or tuple for no entries, too.
        self._configured: Mapping[str, Any] = {} if configured in ([], ()) else configured
        self._settings, policies = conf.read_config(app, self._configured, self.entry_keys)
        self._description = describe(app, self._settings, self._configured, policies)
        self._compared = ""
        super().__init__(app, *args, **kwargs)

    # -- the schedule --------------------------------------------------------------------------------------

    def setup_schedule(self) -> None:
        super().setup_schedule()
        logging.getLogger(Scheduler.__module__).addFilter(_on_one_line)
        settings = self._settings
        for warning in self._warnings():
            logger.warning("beat: %s", warning)
        self._store = RedisStore(
            settings.redis_url,
            settings.namespace,
            settings.redis_options,
            settings.history,
            min(LONGEST_CALL, settings.lease_ttl / 4),
        )
        self._lease = Lease(self._store, settings.lease_ttl, settings.lease_renew)
        self._reporter = Reporter(self.app, settings)
        self._leader = Leader(
            self._store,
            self._lease,
            self,
            self._reporter,
            namespace=settings.namespace,
            app=self.app.main or "",
            each=settings.missed_results == "each",
            resume_misfires=settings.on_resume == "misfire",
        )
        self._reporter.start()

    def _warnings(self) -> list[str]:
        """Return what is allowed in the configuration, but hardly meant."""
        return conf.warnings_for(self.app, self._settings, self._configured)

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        super().merge_inplace({n: self._stripped(n, e) for n, e in dict(b).items()})

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        super().update_from_dict({n: self._stripped(n, e) for n, e in dict_.items()})
        self._changed = True

    def add(self, **kwargs: Any) -> ScheduleEntry:
        kwargs = self._stripped(kwargs["name"], kwargs)
        self._changed = True
        entry: ScheduleEntry = super().add(**kwargs)
        return entry

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
        try:
            found = beat_file.last_runs(self._filename)
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
        for name, entry in self.schedule.items():
            try:
                trigger = trigger_for(entry.schedule, name)
                misfire = self._misfire_keys.get(name)
                policy = self._settings.policy_for(name, misfire, trigger.trigger_type)
                anchor = self._anchor(entry, trigger)
            except Exception as exc:
                # At start the configuration has been checked; this entry was added later.
                self._trouble.mention(f"entry {named(name)} is left out: {brief(exc)}", key=name)
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
        except MisfireConfigError:
            raise
        except Exception:
            logger.exception("beat: unexpected error, going on in 1 s")
            return 1.0
        finally:
            self._ticking = False
            if self._asked_to_stop:
                raise SystemExit

    def _tick(self) -> float:
        self._lease.main_loop_is_alive()
        try:
            if not self._lease.held and not self._take_over():
                return max(0.05, min(self._ask_again_at - uptime(), self._settings.standby_poll))
            if self._changed:
                self._adopt()
            delay = self._leader.tick()
        except LeaseLost as exc:
            self._lease.lost()
            self._stand_by(f"the lease is lost ({exc})" if str(exc) else "the lease is lost")
            return 0.05
        except (StoreUnavailable, NewerSchema) as exc:
            if isinstance(exc, StoreRefused) and not self._store_works:
                # Whoever has just started beat had better see it end than read of it later.
                line = as_line("misfire_redis_url", str(exc))
                raise MisfireConfigError([conf.spelling(self.app)(line)]) from None
            self._trouble.mention(f"{exc}; standing by")
            return min(1.0, self._settings.standby_poll)
        self._trouble.over("the store is there again")
        return min(delay, float(self.max_interval))  # type: ignore[arg-type] # never None on an instance

    def _adopt(self) -> None:
        self._changed = False
        try:
            self._leader.adopt(self._definitions())
        except BaseException:
            # Half of it is done.
            self._changed = True
            raise

    def _take_over(self) -> bool:
        """Ask for the lease; True when it is ours and the state is in memory."""
        if uptime() < self._ask_again_at:
            return False
        self._ask_again_at = uptime() + self._settings.standby_poll
        advice = () if self._store_works else self._store.advice()
        acquired = self._lease.acquire()
        if acquired is None:
            self._advise(advice)
            self._trouble.over("the store is there again")
            leader = self._lease.holder
            self._stand_by(f"another beat leads ({leader})" if leader else "the other beat's state has gone")
            self._compare()
            return False
        if acquired.app not in ("", self.app.main):
            begun, ours = named(acquired.app), named(self.app.main or "")
            what = f"the state of {self._settings.namespace!r} was begun by the app {begun}, this is {ours}"
            self._trouble.mention(f"{what}. {_NAMESPACES}", key="app")
        try:
            self._changed = False
            self._leader.take_over(acquired, self._definitions())
            self._store.describe(self._lease.token, *self._description)
        except BaseException:
            # Half a take-over is none: the lease must not be trusted, or tick() would go on without it.
            self._lease.release()
            self._ask_again_at = 0.0
            raise
        self._advise(advice)
        self._ask_again_at = 0.0
        if not self._leading:
            logger.info("beat: leading, with %s", self._store)
        self._leading = True
        return True

    def _advise(self, advice: Iterable[str]) -> None:
        """Say, once, what is unwise about a Redis that works otherwise."""
        self._store_works = True
        for line in advice:
            logger.warning("beat: %s", line)

    def _compare(self) -> None:
        """Say once to both, if the beat that leads was configured otherwise than this one."""
        theirs = self._store.description
        # One that died, as the predecessor of this one may have, does not matter.
        if not self._lease.other_was_alive or theirs in ("", self._compared, self._description[0]):
            return
        self._compared = theirs
        if found := difference(self._description, (theirs, self._store.described_entries())):
            beats = f"{self._store.owner}, which stands by, and {self._lease.holder}, which leads"
            text = f"two beats of one namespace are configured differently, {beats}: {found}. {_NAMESPACES}"
            logger.warning("beat: %s", text)
            self._store.tell_leader(text)

    def _stand_by(self, why: str) -> None:
        if self._leading:
            logger.warning("beat: %s; standing by", why)
        else:
            self._trouble.note(f"{why}; standing by")
        self._leading = False

    # -- sending -------------------------------------------------------------------------------------------

    @property
    def producer(self) -> Producer:
        """The producer of beat's own connection (:class:`~celery_misfire.sending.broker.Broker`)."""
        return self._broker.producer

    def connect(self) -> None:
        """Make sure that the broker can be reached (see ``Publisher``)."""
        self.producer  # noqa: B018 - a look connects

    def publish(self, message: Message) -> None:
        """Send the task of an entry through Celery's ``apply_entry``, with what a fire carries."""
        entry = self.schedule[message.definition.name]
        options: dict[str, Any] = entry.options or {}
        try:
            headers = copy.deepcopy(options.get("headers") or {}) | self._headers(message)
        except Exception as exc:
            # Its text is that of the headers' own code, and may repeat them.
            raise PublishRejected(kind(exc)) from None
        # The options are the configuration's own: what is added must not stay there.
        # Mandatory: else RabbitMQ drops what no queue takes, and a queue can be deleted at any time.
        entry.options = {"mandatory": True, **options} | {
            "task_id": message.task_id,
            "headers": headers,
            "retry": False,
        }
        # Until it is known to have been sent: whoever overrides or patches apply_entry may leave it out.
        self._failure = PublishRejected("apply_entry sent nothing")
        try:
            self.apply_entry(entry, producer=self.producer)
        finally:
            entry.options = options
        if self._failure is None:
            return
        failure = _verdict(self._failure)
        if self._broker.last_taken != message.task_id:
            raise failure from None
        # In an apply_async of the app's own, or in a receiver of a signal.
        name = named(message.definition.name)
        logger.warning("beat: a run of entry %s was sent, and an error came after that: %s", name, failure)

    def _headers(self, message: Message) -> dict[str, Any]:
        intent, policy = message.intent, message.definition.policy
        return {
            "periodic_task_name": message.definition.name,
            fire.HEADER: fire.header(
                entry=message.definition.name,
                scheduled=intent.scheduled,
                fire_time=message.fire_time,
                outcome=intent.outcome,
                merged=intent.merged,
                last_missed=intent.last_missed,
                generation=intent.generation,
                instruction=policy.instruction if policy else None,
                resolved=message.resolved if policy else None,
                threshold=message.threshold / 1000,
                on_missed=policy.on_missed if policy else None,
            ),
        }

    def apply_async(
        self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> Any:
        """Send, and keep the error: ``apply_entry`` would log it, arguments and all, and forget it."""
        if advance:
            return super().apply_async(entry, producer=producer, advance=True, **kwargs)
        blocks = _join_will_block(None)
        # Else a result backend would subscribe to the result, and hang beat when it is away.
        _join_will_block(True)
        try:
            result = super().apply_async(entry, producer=producer, advance=False, **kwargs)
        except Exception as exc:
            self._failure = exc
            return None
        else:
            self._failure = None
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
        if not hasattr(self, "_lease"):
            return
        self._reporter.stop(FAREWELL)
        self._lease.release()
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


class _Trouble:
    """Says once what is wrong, again from time to time, and once that it is over."""

    def __init__(self) -> None:
        self._mentioned: dict[tuple[str, str], float] = {}
        self._noted = ""

    def mention(self, text: str, key: str = "") -> None:
        now = uptime()
        if now - self._mentioned.get((key, text), -REMIND_EVERY) >= REMIND_EVERY:
            self._mentioned[key, text] = now
            logger.warning("beat: %s", text)

    def note(self, text: str) -> None:
        if text != self._noted:
            logger.info("beat: %s", text)
        self._noted = text

    def over(self, text: str) -> None:
        left = {said: at for said, at in self._mentioned.items() if said[0]}
        if len(left) < len(self._mentioned):
            logger.info("beat: %s", text)
        self._mentioned = left


def _on_one_line(record: logging.LogRecord) -> bool:
    """Let a message of Celery's beat be one line, whatever an entry or a task is called."""
    if isinstance(record.args, tuple):
        record.args = tuple(one_line(arg) if isinstance(arg, str) else arg for arg in record.args)
    return True


def _join_will_block(value: bool | None) -> bool:
    """Say, or with None ask, whether waiting for results is out of the question in this process."""
    before = bool(celery_state.task_join_will_block())  # type: ignore[attr-defined]
    if value is not None:
        celery_state._set_task_join_will_block(value)  # type: ignore[attr-defined]
    return before


def _verdict(exc: BaseException) -> MisfireError:
    """Return what the broker made of a message, or else that the message is what is wrong."""
    wrapped: BaseException | None = exc
    while wrapped is not None:
        if isinstance(wrapped, MisfireError):
            return wrapped
        wrapped = wrapped.__cause__ or wrapped.__context__
    # Celery's beat wraps whatever goes wrong.
    if isinstance(exc, SchedulingError) and exc.__context__ is not None:
        exc = exc.__context__
    return PublishRejected(kind(exc))


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
