"""The command ``doctor``: problems that will cause trouble later, each with its fix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import click
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend

from celery_misfire.cli.output import Page, length
from celery_misfire.cli.session import FINE, NOT_FINE, Session, command
from celery_misfire.clocks import wall_clock
from celery_misfire.conf.warnings import warnings_for
from celery_misfire.exceptions import BrokerUnavailable
from celery_misfire.leadership.deployment import TWO_DEPLOYMENTS
from celery_misfire.leadership.outages import CLOCK_DIFFERENCE, clock_ahead
from celery_misfire.leadership.peers import describe, difference
from celery_misfire.sending.broker import Broker
from celery_misfire.store.registers import REGISTER_TTL
from celery_misfire.texts import describe_error, one_line, quote_names
from celery_misfire.worker import WORKER_SIDE

#: So long is waited for the answers of workers, in seconds.
WAIT_FOR_WORKERS = 0.5
#: The most names in one finding.
MOST_NAMES = 5


@dataclass(frozen=True)
class _Finding:
    """A problem that will cause trouble later.

    :param check: which check found it.
    :param fix: what to do about it.
    """

    check: str
    text: str
    fix: str = ""


@command("doctor", short_help="List problems that will cause trouble later.")
@click.option("--no-workers", is_flag=True, help="Do not ask the workers. That saves half a second.")
def doctor_(session: Session, no_workers: bool) -> int:
    """List problems that will cause trouble later, each with its fix. Exit code 1 if there is one."""
    broker = Broker(session.app)
    # Redis is asked first: without it, the rest is guesswork.
    session.store.time()
    try:
        broker_problem = _broker_problem(broker)
        checks: dict[str, Callable[[], Iterable[_Finding]]] = {
            "redis": lambda: _redis(session),
            "clock": lambda: _clocks(session),
            "beats": lambda: _beats(session),
            "configuration": lambda: _configuration(session),
            "results": lambda: _results(session),
            "broker": lambda: _broker(session, broker, broker_problem),
        }
        if not no_workers and not broker_problem:
            checks["workers"] = lambda: _workers(session)
        findings = [finding for check in checks.values() for finding in check()]
    finally:
        broker.close()
    data = {
        "checks": list(checks),
        "findings": [{"check": f.check, "text": f.text, "fix": f.fix} for f in findings],
    }

    def write(page: Page) -> None:
        for finding in findings:
            page.line(f"{finding.check}: {one_line(finding.text, 500)}")
            if finding.fix:
                page.line(f"    {finding.fix}")
        found = f"{len(findings) or 'no'} problem{'s' * (len(findings) != 1)}"
        page.line(f"{len(checks)} checks, {found} found")

    session.answer(data, write)
    return NOT_FINE if findings else FINE


def _redis(session: Session) -> Iterator[_Finding]:
    for line in session.store.advice():
        # The advice ends with what to do.
        text, _, fix = line.rstrip(".").rpartition(". ")
        yield _Finding("redis", f"{text}.", f"{fix}.")


def _clocks(session: Session) -> Iterator[_Finding]:
    fix = "Let both follow a time server (NTP)."
    if ahead := clock_ahead(wall_clock(), session.store.time(), wall_clock()):
        yield _Finding("clock", f"this host is {_way(ahead)} Redis", fix)
    for beat in session.fleet.beats:
        if beat.is_well and abs(beat.clock_ahead) > CLOCK_DIFFERENCE:
            yield _Finding("clock", f"the host of beat {beat} is {_way(beat.clock_ahead)} Redis", fix)


def _way(ahead: int) -> str:
    return f"{length(ahead)} {'ahead of' if ahead > 0 else 'behind'}"


def _beats(session: Session) -> Iterator[_Finding]:
    fleet = session.fleet
    if not fleet.leader:
        yield _Finding("beats", "no beat leads.", "Start celery beat.")
    for beat in fleet.beats:
        if beat.trouble:
            fix = "Look at its log; end it if it hangs. One that was killed is forgotten after an hour."
            fix = "Start celery beat." if beat.is_alive is False else fix
            yield _Finding("beats", f"beat {beat} {beat.trouble}", fix)
    if fleet.leader and not any(beat.leads for beat in fleet.beats):
        what = f"the beat that leads ({fleet.leader}) gives no sign of life: it is of an older version"
        yield _Finding("beats", what, "Update it, or `health` cannot see it.")
    theirs = session.store.description()
    ours = describe(session.app, session.settings, session.entries)
    if fleet.leader and theirs[0] and (found := difference(ours, theirs)):
        fix = "Normal during a rollout. If they are two projects, give each a misfire_namespace of its own."
        yield _Finding("beats", f"the beat that leads and this configuration differ: {found}", fix)


def _configuration(session: Session) -> Iterator[_Finding]:
    for line in warnings_for(session.app, session.settings, session.entries):
        yield _Finding("configuration", line)
    if session.fleet.overdue:
        names = quote_names((entry.name for entry in session.fleet.overdue), MOST_NAMES)
        yield _Finding("configuration", f"overdue: {names}", "Beat is down or overloaded; see `status`.")


def _results(session: Session) -> Iterator[_Finding]:
    try:
        backend = session.app.backend
    except Exception as exc:
        yield _Finding(
            "results", f"the result backend cannot be used: {describe_error(exc)}", "Check result_backend."
        )
        return
    if isinstance(backend, DisabledBackend | RPCBackend):
        what = "the result backend keeps no MISSED results"
        yield _Finding("results", what, "Set result_backend, for example to Redis or a database.")


def _broker_problem(broker: Broker) -> str:
    try:
        broker.connect()
    except BrokerUnavailable as exc:
        return str(exc)
    return ""


def _broker(session: Session, broker: Broker, problem: str) -> Iterator[_Finding]:
    if problem:
        yield _Finding("broker", problem, "Start the broker, or check broker_url.")
        return
    store = session.store
    ours, (mark, _) = broker.destination(store.place_keys), store.look()
    if mark and mark.destination and (found := ours.difference(mark.destination)):
        what = f"the runs of the state in {store} go elsewhere: {found}"
        yield _Finding("broker", what, f"{TWO_DEPLOYMENTS} If this is a new configuration, restart beat.")
    if broker.is_redis and ours.place and not store.has_queues_of(ours):
        what = "the broker is another Redis database than the state: runs are sent in two steps"
        yield _Finding("broker", what, "Let misfire_redis_url name the broker's database.")
    options = session.app.conf.broker_transport_options or {}
    visible = options.get("visibility_timeout")
    if isinstance(visible, int | float) and visible > REGISTER_TTL:
        what = f"visibility_timeout ({visible:g} s) is longer than registers are kept ({REGISTER_TTL:g} s)"
        fix = "A message that is delivered again after that runs twice. Set it to less than a day."
        yield _Finding("broker", what, fix)


# -- workers -----------------------------------------------------------------------------------------------


def _workers(session: Session) -> Iterator[_Finding]:
    app = session.app
    with ThreadPoolExecutor(2) as threads:
        ask = [
            threads.submit(getattr(app.control.inspect(timeout=WAIT_FOR_WORKERS), what))
            for what in ("registered", "conf")
        ]
        try:
            registered, configurations = (answer.result() or {} for answer in ask)
        except Exception as exc:
            yield _Finding("workers", f"the workers cannot be asked: {describe_error(exc)}")
            return
    if not registered:
        yield _Finding("workers", "no worker answers.", "Start a worker.")
        return
    yield from _unknown_tasks(session, registered)
    with_side = {name: side for name, conf in configurations.items() if (side := _side(conf)) is not None}
    bare = [name for name in configurations if name not in with_side]
    if bare:
        fix = "Call celery_misfire.install(app), in all workers of the app or in none."
        yield _Finding("workers", f"without the worker side: {quote_names(bare, MOST_NAMES)}", fix)
    namespace = session.settings.namespace
    others = [name for name, side in with_side.items() if side.get("namespace") != namespace]
    if others:
        fix = f"Give them misfire_namespace = {namespace!r}, as here."
        yield _Finding("workers", f"with another namespace: {quote_names(others, MOST_NAMES)}", fix)
    if bare and with_side and session.fleet.sight.is_guarded:
        what = "some workers ask the registers and others do not: a second message of a run may run"
        yield _Finding("workers", what, "Install the worker side in all of them.")


def _side(conf: object) -> Mapping[str, Any] | None:
    """Return what a worker says of its worker side, None when it has none."""
    side = conf.get(WORKER_SIDE) if isinstance(conf, dict) else None
    return side if isinstance(side, dict) else None


def _unknown_tasks(session: Session, registered: Mapping[str, Any]) -> Iterator[_Finding]:
    # A worker may show a task with attributes behind its name.
    known = {
        str(task).partition(" ")[0]
        for tasks in registered.values()
        if isinstance(tasks, list)
        for task in tasks
    }
    unknown = [e for e in session.fleet.entries.values() if e.task and e.task not in known]
    if unknown:
        what = "entries have tasks" if len(unknown) > 1 else "entry has a task"
        what = f"{len(unknown):,} {what} that no live worker knows"
        tasks = (f"{entry.name} ({entry.task})" for entry in unknown)
        fix = "Check the name of the task, and what the workers import."
        yield _Finding("workers", f"{what}: {quote_names(tasks, MOST_NAMES)}", fix)
