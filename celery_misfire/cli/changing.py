"""The commands that ask the leader for something: ``pause``, ``resume``, ``hold``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import click

from celery_misfire import control
from celery_misfire.cli.output import Page, read_moment
from celery_misfire.cli.session import FINE, NOT_FINE, Session, command, fail, who
from celery_misfire.control import LONGEST_REASON, Request
from celery_misfire.leadership.leader import LONGEST_SLEEP

#: It is looked so often, in seconds, whether the leader has carried a request out.
LOOK_EVERY = 0.2

reason_option = click.option(
    "--reason", default="", metavar="TEXT", help="The reason, which `status` and `log` show."
)
wait_option = click.option("--no-wait", is_flag=True, help="Do not wait for the leader to do it.")


@dataclass(frozen=True)
class _Asked:
    """What the leader is asked for."""

    do: str
    ids: Sequence[str]
    entries: Sequence[str] = ()
    until: int | None = None
    reason: str = ""

    def sentence(self, page: Page) -> str:
        if not self.ids:
            return "there is no hold" if self.do == "release" else "none of these entries is paused"
        words = {"pause": "paused", "resume": "resumed", "hold": "all entries held", "release": "hold ended"}
        names = f"{len(self.entries):,} entries" if len(self.entries) > 10 else ", ".join(self.entries)
        until = "" if self.until is None else f"until {page.time(self.until)}"
        return " ".join(filter(None, (words[self.do], names, until)))


@command("pause", short_help="Stop entries until they are resumed.")
@click.argument("entries", nargs=-1, required=True, metavar="ENTRY...")
@click.option("--until", metavar="TIME", help="When the pause ends by itself: 09:30, 2h, 2026-03-01.")
@reason_option
@wait_option
def pause_(session: Session, entries: Sequence[str], until: str | None, reason: str, no_wait: bool) -> int:
    """Stop entries until they are resumed. ENTRY is a name, or a pattern with * and ?.

    The setting misfire_on_resume decides whether runs that came due during the pause count as misfired.
    """
    _check(reason)
    names, end = session.names(entries), _until(session, until)
    ids = control.pause(session.store, names, until=end, reason=reason, by=who())
    return _tell(session, _Asked("pause", ids, names, end, reason), no_wait)


@command("resume", short_help="Let paused entries go on.")
@click.argument("entries", nargs=-1, required=True, metavar="ENTRY...")
@wait_option
def resume_(session: Session, entries: Sequence[str], no_wait: bool) -> int:
    """Let paused entries go on. ENTRY is a name, or a pattern with * and ?."""
    names = session.names(entries)
    # A request to pause may still wait for the leader.
    waiting = map(Request.parse, session.store.sight().requests.values())
    if not any(request is not None and request.do == "pause" for request in waiting):
        known = session.records(names)
        names = [name for name in names if name in known and known[name].paused]
    ids = control.resume(session.store, names, by=who())
    return _tell(session, _Asked("resume", ids, names), no_wait)


@command("hold", short_help="Stop all entries for planned downtime.")
@click.option("--until", metavar="TIME", help="When the hold ends by itself: 09:30, 2h, 2026-03-01T06:00.")
@click.option("--end", "ends", is_flag=True, help="End the hold now.")
@reason_option
@wait_option
def hold_(session: Session, until: str | None, ends: bool, reason: str, no_wait: bool) -> int:
    """Stop all entries for planned downtime. Runs that come due meanwhile are not caught up."""
    _check(reason)
    if ends == (until is not None):
        fail("say until when: --until TIME, or --end to end the hold.")
    end = _until(session, until)
    if end is None:
        sight = session.store.sight()
        # A request for a hold may still wait for the leader.
        ids = control.release(session.store, by=who()) if sight.hold or sight.requests else []
        return _tell(session, _Asked("release", ids), no_wait)
    ids = control.hold(session.store, until=end, reason=reason, by=who())
    return _tell(session, _Asked("hold", ids, (), end, reason), no_wait)


def _check(reason: str) -> None:
    if len(reason) > LONGEST_REASON:
        fail(f"--reason: at most {LONGEST_REASON} characters.")


def _until(session: Session, text: str | None) -> int | None:
    if text is None:
        return None
    end = read_moment(text, session.zone, session.now, past=False)
    if end <= session.now:
        fail(f"--until: {session.time(end)} has passed.")
    return end


def _tell(session: Session, asked: _Asked, no_wait: bool) -> int:
    """Say what became of requests, when the leader has carried them out."""
    is_led = session.store.sight().lease is not None
    done = not asked.ids or (is_led and not no_wait and _is_carried_out(session, asked.ids))
    data = {
        "do": asked.do,
        "entries": list(asked.entries),
        "until": session.time(asked.until),
        "reason": asked.reason,
        "led": is_led,
        "done": done,
    }

    def write(page: Page) -> None:
        what = asked.sentence(page)
        if not is_led and asked.ids:
            page.line(f"asked for: {what}. Nobody leads; the next beat that does does this first.")
        else:
            page.line(what if done else f"asked for: {what}. The leader has not done it yet.")

    session.answer(data, write)
    return FINE if done or (is_led and no_wait) else NOT_FINE


def _is_carried_out(session: Session, ids: Sequence[str]) -> bool:
    """Wait until the leader has carried requests out; False when it takes too long."""
    # Told with the next renewal, it acts after its longest sleep.
    deadline = time.monotonic() + session.settings.lease_renew + 2 * LONGEST_SLEEP
    while session.store.sight().requests.keys() & set(ids):
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_EVERY)
    return True
