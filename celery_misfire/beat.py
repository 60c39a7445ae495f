"""The scheduler classes for ``celery beat``.

They keep Celery's entries, configuration and way of sending (``apply_entry``, where Sentry and others hook
in), and replace its loop: which entry is due, and what happens when it is late, is decided by the
:class:`~celery_misfire.leader.Leader`.
"""

from __future__ import annotations

import copy
import logging
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from celery import Celery
from celery import _state as celery_state
from celery.beat import ScheduleEntry, Scheduler
from celery.signals import beat_init
from kombu import Connection
from kombu.exceptions import OperationalError
from kombu.utils.functional import maybe_evaluate
from kombu.utils.objects import cached_property

from celery_misfire import conf, fire
from celery_misfire.exceptions import (
    BrokerUnavailable,
    LeaseLost,
    NewerSchema,
    PublishRejected,
    StoreUnavailable,
)
from celery_misfire.fire_times import trigger_for
from celery_misfire.leader import Definition, Leader, Message
from celery_misfire.lease import Lease, uptime
from celery_misfire.missed import Reporter
from celery_misfire.store import LONGEST_CALL, RedisStore, address

__all__ = ["MisfireMixin", "MisfireScheduler"]

logger = logging.getLogger(__name__)

#: Longest wait for one answer of the broker, in seconds.
BROKER_TIMEOUT = 5.0
#: A trouble that goes on is mentioned again so often, in seconds.
REMIND_EVERY = 60.0
#: Time given to the reporter when beat stops, in seconds; what is left is reported by the next leader.
FAREWELL = 2.0


class MisfireMixin(Scheduler):
    """Misfire handling for a subclass of :class:`celery.beat.Scheduler`."""

    def __init__(self, app: Celery, *args: Any, **kwargs: Any) -> None:
        self._misfire_keys: dict[str, Any] = {}
        self._ticking = False
        self._asked_to_stop = False
        self._changed = False
        self._leading = False
        self._ask_again_at = 0.0
        self._trouble = _Trouble()
        self._sent: Exception | None = None
        self._configured: Mapping[str, Any] = maybe_evaluate(app.conf.beat_schedule) or {}
        self._settings, _ = conf.read_config(app, self._configured)
        super().__init__(app, *args, **kwargs)

    # -- the schedule --------------------------------------------------------------------------------------

    def setup_schedule(self) -> None:
        super().setup_schedule()
        settings = self._settings
        for warning in conf.warnings_for(self.app, settings, self._configured):
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
        )
        self._reporter.start()

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        super().merge_inplace({n: self._stripped(n, e) for n, e in b.items()})

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
        if not isinstance(entry, Mapping) or "misfire" not in entry:
            return entry
        self._misfire_keys[name] = entry["misfire"]
        return {k: v for k, v in entry.items() if k != "misfire"}

    def _definitions(self) -> Iterator[Definition]:
        for name, entry in self.schedule.items():
            try:
                trigger = trigger_for(entry.schedule)
                misfire = self._misfire_keys.get(name)
                policy = self._settings.policy_for(name, misfire, trigger.trigger_type)
            except Exception as exc:
                # At start the configuration has been checked; this entry was added later.
                self._trouble.mention(f"entry {name!r} is left out: {exc}", key=name)
                continue
            yield Definition(name, str(entry.task), trigger, policy)

    # -- the loop ------------------------------------------------------------------------------------------

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Do one piece of work; return how many seconds Celery's loop may sleep. Never raises an error.

        :raises SystemExit: when a signal to stop has come in the meantime.
        """
        self._ticking = True
        try:
            return self._tick()
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
                self._changed = False
                self._leader.adopt(self._definitions())
            delay = self._leader.tick()
        except LeaseLost as exc:
            self._lease.lost()
            self._stand_by(f"the lease is lost ({exc})" if str(exc) else "the lease is lost")
            return 0.05
        except (StoreUnavailable, NewerSchema) as exc:
            self._trouble.mention(f"{exc}; standing by")
            return min(1.0, self._settings.standby_poll)
        self._trouble.over("the store is there again")
        return min(delay, float(self.max_interval))  # type: ignore[arg-type] # never None on an instance

    def _take_over(self) -> bool:
        """Ask for the lease; True when it is ours and the state is in memory."""
        if uptime() < self._ask_again_at:
            return False
        self._ask_again_at = uptime() + self._settings.standby_poll
        acquired = self._lease.acquire()
        if acquired is None:
            self._trouble.over("the store is there again")
            self._stand_by(f"another beat leads ({self._lease.holder})")
            return False
        try:
            self._leader.take_over(acquired, self._definitions())
        except BaseException:
            # Half a take-over is none: the lease must not be trusted, or tick() would go on without it.
            self._lease.release()
            self._ask_again_at = 0.0
            raise
        self._ask_again_at = 0.0
        if not self._leading:
            logger.info("beat: leading, with %s", self._store)
        self._leading = True
        return True

    def _stand_by(self, why: str) -> None:
        if self._leading or self._leading is None:
            logger.warning("beat: %s; standing by", why)
        else:
            self._trouble.note(f"{why}; standing by")
        self._leading = False

    # -- sending -------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Make sure that the broker can be reached (:class:`~celery_misfire.leader.Publisher`)."""
        try:
            self.producer  # noqa: B018 - the first look connects
        except Exception as exc:
            self._disconnect()
            raise BrokerUnavailable(_kind(exc)) from None

    def publish(self, message: Message) -> None:
        """Send the task of an entry through Celery's ``apply_entry``, with what a fire carries."""
        entry = self.schedule[message.definition.name]
        options: dict[str, Any] = entry.options or {}
        # The options are the configuration's own: what is added must not stay there.
        entry.options = options | {
            "task_id": message.task_id,
            "headers": copy.deepcopy(options.get("headers") or {}) | self._headers(message),
            "retry": False,
        }
        self._sent = None
        try:
            self.apply_entry(entry, producer=self.producer)
        finally:
            entry.options = options
        if self._sent is not None:
            self._raise(self._sent)

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
            return super().apply_async(entry, producer=producer, advance=False, **kwargs)
        except Exception as exc:
            self._sent = exc
            return None
        finally:
            _join_will_block(blocks)

    def _raise(self, exc: Exception) -> None:
        """Tell a failure of the broker from one of the message."""
        failures: tuple[type[BaseException], ...] = (OperationalError, OSError)
        failures += self.connection.connection_errors
        cause: BaseException | None = exc
        while cause is not None:
            if isinstance(cause, failures):
                self._disconnect()
                raise BrokerUnavailable(_kind(cause)) from None
            exc, cause = cause, cause.__cause__ or cause.__context__  # type: ignore[assignment]
        raise PublishRejected(_kind(exc)) from None

    @cached_property
    def connection(self) -> Connection:
        """Beat's own connection, which waits for no answer for longer than ``BROKER_TIMEOUT``."""
        connection: Connection = self.app.connection_for_write()
        if connection.transport_cls and "redis" in str(connection.transport_cls):
            connection.transport_options = {
                "socket_timeout": BROKER_TIMEOUT,
                "socket_connect_timeout": BROKER_TIMEOUT,
                **(connection.transport_options or {}),
            }
        return connection

    def _ensure_connected(self) -> Connection:
        return self.connection.ensure_connection(max_retries=1, interval_start=0, timeout=int(BROKER_TIMEOUT))

    def _disconnect(self) -> None:
        self.__dict__.pop("producer", None)
        connection = self.__dict__.pop("connection", None)
        if connection is not None:
            try:
                connection.release()
            except Exception as exc:
                logger.debug("beat: closing the connection failed: %s", _kind(exc))

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
        super().close()

    @property
    def info(self) -> str:
        """The lines of Celery's banner that are ours."""
        return f"    . state -> {self._settings.namespace} at {address(self._settings.redis_url)}"


class MisfireScheduler(MisfireMixin):
    """Celery's scheduler of configured entries, with misfire handling and its state in Redis.

    ``app.conf.beat_scheduler = "celery_misfire.beat:MisfireScheduler"``, or ``celery beat -S misfire``.
    """


class _Trouble:
    """Says once what is wrong, again from time to time, and once that it is over."""

    def __init__(self) -> None:
        self._mentioned: dict[str, float] = {}
        self._noted = ""

    def mention(self, text: str, key: str = "") -> None:
        now = uptime()
        if now - self._mentioned.get(key, -REMIND_EVERY) >= REMIND_EVERY:
            self._mentioned[key] = now
            logger.warning("beat: %s", text)

    def note(self, text: str) -> None:
        if text != self._noted:
            logger.info("beat: %s", text)
        self._noted = text

    def over(self, text: str) -> None:
        if self._mentioned.pop("", None) is not None:
            logger.info("beat: %s", text)


def _join_will_block(value: bool | None) -> bool:
    """Say, or with None ask, whether waiting for results is out of the question in this process."""
    before = bool(celery_state.task_join_will_block())  # type: ignore[attr-defined]
    if value is not None:
        celery_state._set_task_join_will_block(value)  # type: ignore[attr-defined]
    return before


def _kind(exc: BaseException) -> str:
    """Return an error without what it may quote: a URL, or arguments."""
    return f"{type(exc).__name__}" + (
        f" ({exc.strerror})" if isinstance(exc, OSError) and exc.strerror else ""
    )


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
