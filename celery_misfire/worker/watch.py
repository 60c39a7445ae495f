"""One of the workers watches beat, and raises an alarm when entries are overdue and no beat leads.

Each look takes or keeps a token in the store, so that one worker watches at a time. The store also holds
whether the alarm was raised, so that another worker can go on from there. The watch is a thread, because a
solo pool blocks its worker.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import tzinfo

from celery import Celery
from celery.schedules import maybe_schedule

from celery_misfire import records
from celery_misfire.clocks import wall_clock
from celery_misfire.conf.names import plainly_named
from celery_misfire.conf.settings import Settings
from celery_misfire.control import read_hold
from celery_misfire.events import time_in
from celery_misfire.exceptions import StoreUnavailable
from celery_misfire.fire import isoformat
from celery_misfire.log_lines import Log
from celery_misfire.misfire import MisfirePolicy, Trigger, from_millis
from celery_misfire.signals import beat_overdue, beat_recovered
from celery_misfire.status import is_current, status_of
from celery_misfire.store.port import Watched
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.texts import quote_names
from celery_misfire.triggers.kinds import trigger_for
from celery_misfire.trouble import Trouble

say = Log(__name__, "worker")
_say_of_command = Log(__name__, "watch")

#: A watcher that has not looked for so many check rates is replaced.
WATCHER_TTL = 1.5
#: Beat counts on guarded workers for so many check rates after their last sign of life.
GUARD_TTL = 5
#: Most entries that the log line of the alarm names.
MOST_NAMES = 10

#: The schedule of an entry, None when it has no valid one, and its policy, None for misfire handling off.
Known = tuple[Trigger | None, MisfirePolicy | None]
#: Each finds what is known of entries that no ``beat_schedule`` has. They may raise anything.
finders: list[Callable[[Collection[str], Settings], Mapping[str, Known]]] = []


@dataclass(frozen=True)
class Alarm:
    """Beat is overdue and nobody leads; or that is over.

    :param since: the oldest fire time that was overdue, in milliseconds UTC.
    :param entries: those that wait, oldest first; none when it is over.
    """

    since: int
    entries: Sequence[str] = ()

    @property
    def is_over(self) -> bool:
        return not self.entries

    def sentence(self, zone: tzinfo) -> str:
        """Return the alarm in words, on one line; moments are in this time zone."""
        since = time_in(self.since, zone)
        if self.is_over:
            return f"beat is back; it had been overdue since {since}"
        waiting = quote_names(self.entries, MOST_NAMES)
        return f"beat is overdue since {since} and nobody leads; waiting: {waiting}"


class Watch:
    """Looks each ``misfire_check_rate`` seconds whether a beat leads.

    :param hostname: of the worker; None: this is no worker, and one of them at a time is known by its host.
    :param tell: hears of each alarm; None: the log.
    """

    def __init__(
        self,
        app: Celery,
        settings: Settings,
        hostname: str | None,
        tell: Callable[[Alarm], None] | None = None,
    ) -> None:
        self._app, self._settings, self._is_worker = app, settings, hostname is not None
        self._hostname, self._say = hostname, say if hostname else _say_of_command
        self._token = f"{hostname}:{uuid.uuid4().hex}" if hostname else f"cli@{socket.gethostname()}"
        self._tell = tell or self._log
        self._store = RedisStore.of(settings)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._trouble = Trouble()

    @property
    def store_is_up(self) -> bool:
        """True while the store answers, as far as the last look tells."""
        return not self._trouble.is_on

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None or not self._thread.is_alive():
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self.run, name="misfire-watch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Let the thread end; does not wait for it."""
        self._stop.set()

    def run(self) -> None:
        """Look again and again, until the watch is stopped."""
        stop = self._stop
        while not stop.is_set():
            try:
                self.look()
                if (away := self._trouble.end(time.monotonic())) is not None:
                    self._say.store_available(self._store.server, away, self._hostname)
            except StoreUnavailable as exc:
                if self._trouble.fail(time.monotonic()):
                    what = "nobody can see whether beat is overdue: %s"
                    self._say.warning("store_unavailable", what, exc, owner=self._hostname)
            except KeyboardInterrupt:
                # Somebody ends the command that watches.
                raise
            except BaseException:
                # A receiver may raise anything, and no other thread of this worker watches.
                what = "unexpected error while watching beat"
                self._say.exception("unexpected_error", what, owner=self._hostname)
            stop.wait(self._settings.check_rate)

    def look(self) -> bool:
        """Look once, if this worker is the one that watches; return whether it is.

        :raises StoreUnavailable: when nobody can know.
        """
        found = self._keep_watch()
        if found is None:
            return False
        if found.led and found.alarm:
            self._all_clear(found.alarm)
        elif not found.led and not found.alarm:
            self._raise_alarm(self._overdue(wall_clock()))
        return True

    def _keep_watch(self, alarm: str | None = None) -> Watched | None:
        rate = self._settings.check_rate
        guard_ttl = rate * GUARD_TTL if self._settings.deduplicate and self._is_worker else 0
        return self._store.watch(self._token, rate * WATCHER_TTL, guard_ttl, alarm=alarm)

    # -- beat ----------------------------------------------------------------------------------------------

    def _overdue(self, now: int) -> dict[str, int]:
        """Return the fire times that have passed by more than their threshold, by entry, oldest first."""
        hold = read_hold(self._store.sight().hold)
        late = {}
        for name, record in records.loads_all(self._store.load()).items():
            due = record.state.next_fire_time
            if record.removed_at is None and due is not None and due < now:
                late[name] = record
        known, default = self._known(late), self._settings.default_threshold
        overdue: dict[str, int] = {}
        for name, record in late.items():
            trigger, policy = known.get(name, (None, None))
            if trigger is not None and not is_current(record, trigger):
                # A worker may be newer or older than beat, and the alarm is about what beat has planned.
                trigger = None
            status = status_of(record, trigger, policy, now, default_threshold=default, hold=hold)
            if status.is_overdue and status.next_fire_time is not None:
                overdue[name] = status.next_fire_time
        return dict(sorted(overdue.items(), key=lambda item: (item[1], item[0])))

    def _known(self, names: Collection[str]) -> dict[str, Known]:
        """Return schedule and policy of those entries that are known here, and not to beat alone."""
        configured = plainly_named(self._app.conf.beat_schedule)
        found: dict[str, Known] = {}
        for name in names:
            # The schedule may be one that cannot be read here.
            with suppress(Exception):
                entry = configured[name]
                schedule = maybe_schedule(entry["schedule"], entry.get("relative", False), app=self._app)
                trigger = trigger_for(schedule, name)
                policy = self._settings.policy_for(name, entry.get("misfire"), trigger.trigger_type)
                found[name] = trigger, policy
        for find in finders if names else ():
            # The database may be away, and an alarm matters more than its threshold.
            with suppress(Exception):
                found |= find(names, self._settings)
        return found

    def _raise_alarm(self, overdue: dict[str, int]) -> None:
        if not overdue:
            return
        names, since = list(overdue), next(iter(overdue.values()))
        # Noted before it is raised, so that no other worker raises it again.
        if self._keep_watch(alarm=str(since)) is None:
            return
        self._tell(Alarm(since, names))
        beat_overdue.send(sender=self._app, entries=names, since=from_millis(since))

    def _all_clear(self, since: str) -> None:
        if self._keep_watch(alarm="") is not None:
            self._tell(Alarm(int(since)))
            beat_recovered.send(sender=self._app, since=from_millis(int(since)))

    def _log(self, alarm: Alarm) -> None:
        told = alarm.sentence(self._app.timezone)
        fields = {"scheduled": isoformat(from_millis(alarm.since)), "owner": self._hostname}
        if alarm.is_over:
            say.info("beat_is_back", "%s", told, **fields)
        else:
            say.error("overdue", "%s", told, entries=len(alarm.entries), **fields)
