"""``python -m example_project.demo`` needs no service: without ``REDIS_URL`` it starts a Redis of its own."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import redis

from celery_misfire.exceptions import TaskMissed
from example_project.child_process import Child
from example_project.demo.screen import Screen
from example_project.demo.site import PASSWORD, USER, Site
from example_project.demo.tally import Tally, check, table, tally
from example_project.embedded_redis import RedisNotFound, redis_url

#: Seconds of each part.
RUNNING, OUTAGE, AFTERWARDS, SETTLING = 8.0, 10.0, 6.0, 60.0
#: The invoice falls due in the middle of the outage, and is found too late to be on time.
INVOICE_DUE_AFTER, INVOICE_LATE_BY = 15.0, 4.0


class DemoFailed(Exception):
    """Something did not happen, or the sums do not add up; the message says what."""


def show(site: Site, screen: Screen) -> None:
    """Let beat run, kill it, start it again, and print what became of every fire time."""
    screen.say("1  A database, a worker, and a beat with the six entries of the example shop")
    site.prepare()
    worker = site.start_worker()
    started = time.monotonic()
    site.invoice_due = datetime.now(UTC) + timedelta(seconds=INVOICE_DUE_AFTER)
    beat = site.start_beat()
    wait_for(screen, "the first run", site.runs, beat, INVOICE_DUE_AFTER - 3)
    watch(site, screen, "running", max(started + RUNNING, time.monotonic() + 2))

    screen.say(f"2  kill -9 {beat.pid}: beat is dead")
    beat.kill()
    watch(
        site,
        screen,
        "nobody schedules",
        max(time.monotonic() + OUTAGE, started + INVOICE_DUE_AFTER + INVOICE_LATE_BY),
    )

    screen.say("3  Beat is started again, and finds what it missed")
    before = len(worker.output())
    beat = site.start_beat()
    wait_for(screen, "beat", lambda: [e for e in site.log() if e["event"] == "misfire"], beat, 30)
    watch(site, screen, "catching up and going on", time.monotonic() + AFTERWARDS)
    for line in worker.output()[before:].splitlines():
        if "(recovered," in line:
            screen.say("    worker: " + line.split("] ")[-1])

    horizon = round(time.time() * 1000)
    tallies, wrong = settled(site, screen, horizon)
    screen.say("4  What became of every fire time")
    screen.say()
    for text in table(tallies.values(), horizon):
        screen.say(text)
    if wrong:
        raise DemoFailed("the sums do not add up\n  " + "\n  ".join(wrong))
    screen.say()
    screen.say("Every sum adds up, and every run that was sent is in the database.")
    screen.say()
    screen.say("The runs that never happened, as the result backend has them:")
    for text in missed_results(site):
        screen.say(text)


def wait_for(screen: Screen, what: str, predicate: Callable[[], Any], beat: Child, timeout: float) -> None:
    """Wait until the predicate is true, at most so many seconds, and only while beat lives."""
    started = time.monotonic()
    while not predicate():
        passed = time.monotonic() - started
        if not beat.alive or passed > timeout:
            raise DemoFailed(f"waited {passed:.0f} s for {what} in vain")
        screen.status(f"waiting for {what}, {passed:.1f} s")
        time.sleep(0.1)


def watch(site: Site, screen: Screen, what: str, until: float) -> None:
    """Show how the runs in the database grow, until a moment of the steady clock."""
    while (left := until - time.monotonic()) > 0:
        screen.status(f"{what}, {left:4.1f} s to go; runs in the database: {len(site.runs())}")
        time.sleep(min(0.25, left))


def settled(site: Site, screen: Screen, horizon: int) -> tuple[dict[str, Tally], list[str]]:
    """Return the count when it adds up, or what it is after a while, and what is wrong with it then."""
    deadline = time.monotonic() + SETTLING
    while True:
        tallies = tally(site.log(), horizon)
        wrong = check(tallies, site.runs(), horizon)
        if not wrong or time.monotonic() > deadline:
            return tallies, wrong
        screen.status("letting the last runs finish")
        time.sleep(0.25)


def missed_results(site: Site) -> Iterator[str]:
    """Yield what the result backend says of the runs that never happened."""
    app = site.app()
    for line in site.log():
        if line["event"] == "missed":
            result = app.AsyncResult(line["id"])
            yield f"{line['entry']}: AsyncResult('{line['id']}')"
            yield f"  state {result.state}, ready() {result.ready()}"
            try:
                result.get(timeout=5)
            except TaskMissed as error:
                raised = f"get() raised TaskMissed: {error}"
                yield textwrap.fill(raised, 78, initial_indent="  ", subsequent_indent="    ")
            else:
                raise DemoFailed(f"{line['entry']}: the result of its missed runs is {result.state}")


def serve(site: Site, screen: Screen) -> None:
    """Let somebody look at what has happened in the admin, for as long as they like."""
    site.add_user()
    url = site.serve()
    screen.say()
    screen.say("5  The same in the Django admin, while worker and beat go on")
    screen.say(f"    user {USER}, password {PASSWORD}")
    screen.say(f"    missed runs:    {url}celery_misfire/missedfire/")
    screen.say(f"    periodic tasks: {url}django_celery_beat/periodictask/")
    with contextlib.suppress(EOFError):
        input("    Press Enter to stop everything ...")


def main() -> int:
    """Run the demo; return the exit code."""
    screen = Screen()
    # Ends through the context managers, like Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with redis_url() as url, tempfile.TemporaryDirectory(prefix="celery-misfire-demo-") as directory:
            site = Site(Path(directory), url)
            try:
                show(site, screen)
                if sys.stdin.isatty() and sys.stdout.isatty():
                    serve(site, screen)
            except redis.RedisError as error:
                screen.say(
                    f"The Redis of the demo does not answer ({type(error).__name__}). Check REDIS_URL."
                )
                return 1
            except (DemoFailed, RuntimeError, subprocess.CalledProcessError) as error:
                screen.say(site.last_words())
                screen.say(f"\nThe demo failed: {error}")
                return 1
            finally:
                site.stop()
    except RedisNotFound as error:
        screen.say(f"The demo needs a Redis: {error}")
        return 1
    except KeyboardInterrupt:
        screen.say("Interrupted; everything is stopped.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
