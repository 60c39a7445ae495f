"""The commands for probes and monitors: ``health``, and ``watch``, the workers' watcher without a worker."""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

import click

from celery_misfire.beats import beats_in, problem_of
from celery_misfire.cli.reading import beat_as_json
from celery_misfire.cli.session import FINE, NOT_FINE, Session, command, fail
from celery_misfire.clocks import wall_clock
from celery_misfire.exceptions import StoreUnavailable
from celery_misfire.worker.watch import Alarm, Watch


@command("health", short_help="Check for probes whether beat works.")
@click.option("--this-host", is_flag=True, help="Check the beats of this host, leader or standby.")
@click.option(
    "--max-late", type=click.FloatRange(0), metavar="SECONDS", help="Fail when a run is later than this."
)
def health_(session: Session, this_host: bool, max_late: float | None) -> int:
    """Check for probes whether beat works. Exit code 0: yes; 1: no; 3: Redis cannot be reached.

    A beat gives a sign of life when it renews the lease, or looks at it. A beat that has given none for too
    long is not well: it is frozen, stuck, or cut off from Redis.
    """
    if max_late is not None and not math.isfinite(max_late):
        fail("--max-late: expected a number of seconds.")
    sight = session.store.sight()
    host = socket.gethostname() if this_host else None
    problem = problem_of(sight, host)
    late = None
    if max_late is not None and not problem:
        late = max((entry.status.late_by for entry in session.fleet.entries.values()), default=0)
        if late > max_late * 1000:
            problem = f"runs are late by {late / 1000:.0f} s (limit {max_late:g} s)"
    data = {
        "healthy": not problem,
        "reason": problem or None,
        "host": host,
        "late_by": None if late is None else late / 1000,
        "beats": [beat_as_json(beat) for beat in beats_in(sight)],
    }
    session.answer(data, lambda page: page.line(f"not healthy: {problem}" if problem else "healthy"))
    return NOT_FINE if problem else FINE


@command("watch", short_help="Raise an alarm when no beat leads and runs are overdue.")
@click.option(
    "--alert", metavar="COMMAND", help="Shell command to run when the alarm begins and when it is over."
)
@click.option("--once", is_flag=True, help="Look once; exit code 1 while the alarm is on.")
def watch_(session: Session, alert: str | None, once: bool) -> int:
    """Raise an alarm when no beat leads and runs are overdue. Workers do the same by themselves.

    One watches at a time: a worker or this command. COMMAND finds MISFIRE_ALARM (raised or over),
    MISFIRE_SINCE and MISFIRE_ENTRIES, one to a line, in its environment.
    """
    page = session.page

    def tell(alarm: Alarm) -> None:
        word, since = "over" if alarm.is_over else "raised", session.time(alarm.since)
        if session.as_json:
            session.echo_json({"alarm": word, "since": since, "entries": list(alarm.entries)})
        else:
            page.line(f"{page.time(wall_clock())}  {alarm.sentence(session.zone)}")
        if alert:
            _call(alert, {"MISFIRE_ALARM": word, "MISFIRE_SINCE": str(since)}, alarm.entries)

    log = logging.getLogger(Watch.__module__)
    if not log.hasHandlers():
        # Without a handler nobody would see that Redis is back.
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
    watch = Watch(session.app, session.settings, None, tell)
    if once:
        watch.look()
        return NOT_FINE if not session.fleet.leader and session.fleet.overdue else FINE
    # Redis may be away when the watch begins.
    with suppress(StoreUnavailable):
        if not watch.look():
            click.echo("another one watches; this command takes over when that one is silent", err=True)
    watch.run()
    return FINE


def _call(command: str, told: Mapping[str, str], entries: Sequence[str]) -> None:
    environment = {**os.environ, **told, "MISFIRE_ENTRIES": "\n".join(entries)}
    code = subprocess.run(command, shell=True, env=environment, check=False).returncode
    if code:
        click.echo(f"the command of --alert ended with exit code {code}", err=True)
