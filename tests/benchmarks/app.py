"""The Celery app of the measured processes; ``BENCH`` in the environment holds a :class:`Load` as JSON.

The file that ``BENCH_READY`` names gets the time at which the first tick of a beat was done. Run as a program
it is the bare loop: ``apply_async`` for each message at its time, and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from celery import Celery
from celery.schedules import schedule
from celery.signals import beat_init, worker_ready

#: The queue of the entries that are in time, where others are behind.
PUNCTUAL = "punctual"
#: So many entries are behind; each has an interval of a second.
LATE_ENTRIES = 10


@dataclass(frozen=True)
class Load:
    """Entries on an interval.

    :param count: how many entries.
    :param interval: seconds between two runs of an entry.
    :param first: when the first entry is due, in seconds since 1970.
    :param spread: seconds over which the first runs of all entries are spread.
    :param behind: occurrences of further entries, which are overdue at the start and are all to be run.
    :param settings: of Celery.
    """

    count: int
    interval: float
    first: float
    spread: float = 0.0
    behind: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def due(self, number: int) -> float:
        return self.first + self.spread * number / self.count

    def last_run(self, number: int) -> datetime:
        """Return when an entry that is due then has run before, which sets its grid for every scheduler."""
        return datetime.fromtimestamp(self.due(number) - self.interval, UTC)


def _build(load: Load) -> Celery:
    app = Celery("bench")
    app.conf.update(load.settings)
    if not os.environ.get("DJANGO_SETTINGS_MODULE"):
        app.conf.beat_schedule = {
            f"entry {n}": {
                "task": "noop",
                "schedule": schedule(load.interval, app=app),
                "args": [n],
                "last_run_at": load.last_run(n),
            }
            for n in range(load.count)
        }
    if load.behind:
        _fall_behind(app, load.behind)
    return app


def _fall_behind(app: Celery, occurrences: int) -> None:
    """Add entries that are overdue, and give the others a queue of their own."""
    from celery_misfire.schedules import simple

    for entry in app.conf.beat_schedule.values():
        entry["options"] = {"queue": PUNCTUAL}
    start = datetime.now(UTC) - timedelta(seconds=occurrences / LATE_ENTRIES)
    app.conf.beat_schedule |= {
        f"late {n}": {
            "task": "noop",
            "schedule": simple(start=start, interval=1),
            "args": [n],
            "misfire": "ignore_misfire_policy",
        }
        for n in range(LATE_ENTRIES)
    }


# Ours says once how it dispatches.
logging.getLogger("celery_misfire").setLevel(logging.INFO)
load = Load(**json.loads(os.environ.get("BENCH", '{"count": 0, "interval": 1, "first": 0}')))
app = _build(load)


def _ready() -> None:
    # A reader who waits for the file finds it whole.
    path = Path(os.environ["BENCH_READY"])
    path.with_suffix(".part").write_text(str(time.time()))
    path.with_suffix(".part").rename(path)


@app.task(name="noop")
def noop(number: int) -> None:
    """Nothing."""


@beat_init.connect
def _tell_of_the_first_tick(sender: Any, **_: Any) -> None:
    scheduler = sender.scheduler
    tick = scheduler.tick

    def first_tick(*args: Any, **kwargs: Any) -> float:
        delay: float = tick(*args, **kwargs)
        # Ours ticks before it leads; the others' first tick has all that they load.
        member = getattr(scheduler, "_member", None)
        if member is None or member.holds_lease:
            _ready()
            scheduler.tick = tick
        return delay

    scheduler.tick = first_tick


@worker_ready.connect
def _tell_of_the_worker(**_: Any) -> None:
    _ready()


def bare_loop() -> None:
    """Send every message at its time, for ever when the load has a spread, else once."""
    with app.producer_or_acquire() as producer:
        producer.connection.ensure_connection()
        _ready()
        lap = 0
        while not lap or load.spread:
            for number in range(load.count):
                wait = load.due(number) + lap * load.interval - time.time()
                if wait > 0:
                    time.sleep(wait)
                noop.apply_async([number], producer=producer)
            lap += 1
    # The accounting of a process is read while it lives.
    signal.pause()


if __name__ == "__main__":
    bare_loop()
