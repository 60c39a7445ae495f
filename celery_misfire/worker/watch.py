"""Somebody who notices that beat is dead: one of the workers looks, and tells what it sees.

Each look takes or keeps a token in the store, so that one worker watches at a time; what has been told is
noted there too, so that another one goes on where it ended. A thread, because a solo pool blocks its worker.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from typing import Any

from celery import Celery
from celery.schedules import maybe_schedule

from celery_misfire import records
from celery_misfire.conf.problems import one_line, shown
from celery_misfire.conf.settings import Settings
from celery_misfire.exceptions import StoreUnavailable
from celery_misfire.fire import isoformat
from celery_misfire.misfire import AUTO_THRESHOLD, from_millis, threshold_millis
from celery_misfire.records import EntryRecord
from celery_misfire.signals import beat_overdue
from celery_misfire.store.redis_store import RedisStore, Watched
from celery_misfire.triggers.kinds import trigger_for

__all__ = ["Watch"]

logger = logging.getLogger(__name__)

#: A watcher that has not looked for so many check rates is replaced.
PATIENCE = 1.5
#: Beat counts on guarded workers for so many check rates after their last sign of life.
GUARD_MEMORY = 5
#: So many lines of the log are read at a time.
PAGE = 1000
#: So many entries are named in the alarm's log line.
NAMED = 10


class Watch:
    """Looks each ``misfire_check_rate`` seconds for new records of missed runs, and whether beat leads.

    :param hostname: of the worker.
    """

    def __init__(self, app: Celery, settings: Settings, hostname: str) -> None:
        self._app, self._settings = app, settings
        self._token = f"{hostname}:{uuid.uuid4().hex}"
        self._store = RedisStore(
            settings.redis_url, settings.namespace, settings.redis_options, settings.history
        )
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._in_trouble = False

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None or not self._thread.is_alive():
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, name="misfire-watch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Let the thread end; does not wait for it."""
        self._stop.set()

    def _run(self) -> None:
        stop = self._stop
        while not stop.is_set():
            try:
                self.look()
                self._in_trouble = False
            except StoreUnavailable as exc:
                if not self._in_trouble:
                    logger.warning("worker: nobody can see whether beat is overdue: %s", exc)
                self._in_trouble = True
            except BaseException:
                # A receiver may raise anything, and nobody else in this worker watches.
                logger.exception("worker: unexpected error while watching beat")
            stop.wait(self._settings.check_rate)

    def look(self) -> None:
        """Look once, if this worker is the one that watches.

        :raises StoreUnavailable: nobody knows, then.
        """
        found = self._keep_watch()
        if found is None:
            return
        if found.led and found.alarm:
            self._all_clear(found.alarm)
        elif not found.led and not found.alarm:
            self._raise_alarm(self._overdue(time.time_ns() // 1_000_000))
        self._tell_missed(found.seen)

    def _keep_watch(self, **notes: str) -> Watched | None:
        rate = self._settings.check_rate
        guard_ttl = rate * GUARD_MEMORY if self._settings.deduplicate else 0
        return self._store.watch(self._token, rate * PATIENCE, guard_ttl, **notes)

    # -- missed runs ---------------------------------------------------------------------------------------

    def _tell_missed(self, seen: str) -> None:
        """Log what has been missed since the last look."""
        if not seen:
            # What was before the first worker is in the log of beat.
            self._keep_watch(seen=self._store.last_log_id())
            return
        while page := self._store.log_after(seen, PAGE):
            seen = page[-1][0]
            if self._keep_watch(seen=seen) is None:
                return
            for _, line in page:
                # What a worker has given up itself, it has logged.
                if line.get("event") == "missed" and "worker" not in line and (told := _told(line)):
                    logger.warning("worker: beat has recorded a miss: %s", told)

    # -- beat ----------------------------------------------------------------------------------------------

    def _overdue(self, now: int) -> dict[str, int]:
        """Return the fire times that have passed by more than their threshold, by entry, oldest first."""
        overdue: dict[str, int] = {}
        for name, text in self._store.load().items():
            try:
                record = records.loads(text)
            except ValueError:
                continue
            due = record.state.next_fire_time
            if due is not None and now - due >= self._threshold(name, record, due):
                overdue[name] = due
        return dict(sorted(overdue.items(), key=lambda item: (item[1], item[0])))

    def _threshold(self, name: str, record: EntryRecord, due: int) -> int:
        """Return the entry's threshold in milliseconds; of one from elsewhere, that of the app."""
        try:
            entry = self._app.conf.beat_schedule[name]
            schedule = maybe_schedule(entry["schedule"], entry.get("relative", False), app=self._app)
            trigger = trigger_for(schedule, name)
            policy = self._settings.policy_for(name, entry.get("misfire"), trigger.trigger_type)
            return threshold_millis(policy, due, trigger.fire_times(record.state).after(due))
        except Exception:
            given = self._settings.threshold
            return AUTO_THRESHOLD if isinstance(given, str) else round(given * 1000)

    def _raise_alarm(self, overdue: dict[str, int]) -> None:
        if not overdue:
            return
        names, since = list(overdue), next(iter(overdue.values()))
        # Noted first: another worker must not tell it again.
        if self._keep_watch(alarm=str(since)) is None:
            return
        told = ", ".join(map(shown, names[:NAMED]))
        if len(names) > NAMED:
            told += f" and {len(names) - NAMED} more"
        when = isoformat(from_millis(since))
        logger.error("worker: beat is overdue since %s and nobody leads; waiting: %s", when, told)
        beat_overdue.send(sender=self._app, entries=names, since=from_millis(since))

    def _all_clear(self, since: str) -> None:
        if self._keep_watch(alarm="") is not None:
            when = isoformat(from_millis(int(since)))
            logger.info("worker: beat is back; it had been overdue since %s", when)


def _told(line: dict[str, Any]) -> str:
    """Return a line of the log in words, nothing for one that makes no sense."""
    try:
        runs = "1 run" if line["count"] == 1 else f"{line['count']} runs"
        when = isoformat(from_millis(line["first"]))
        if line["count"] > 1:
            when += f" to {isoformat(from_millis(line['last']))}"
        told = (
            f"{shown(line['entry'])}, {runs}, scheduled {when}, reason {line['reason']}, "
            f"instruction {line['instruction']}, result {line['id']}"
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return ""
    return one_line(told, 500)
