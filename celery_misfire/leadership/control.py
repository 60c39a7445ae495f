"""Pauses and holds, as the leader carries them out: what people ask for, and what ends by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from celery_misfire import records
from celery_misfire.control import Request, read_hold, write_hold
from celery_misfire.events import Event
from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.ledger import Commit, Ledger
from celery_misfire.leadership.pending_misses import give_up
from celery_misfire.log_lines import Log
from celery_misfire.pause_events import Paused, Resumed
from celery_misfire.records import EntryRecord, Pause
from celery_misfire.store.port import Store
from celery_misfire.texts import quote_name

say = Log(__name__, "beat")


#: A leader hears of a request, or of the end of a hold, within so many milliseconds: it has a lease to renew,
#: and sleeps.
LONGEST_DELAY = 30_000


class Control:
    """Applies requests to the records of one beat, and ends what has lasted long enough.

    A request is dropped when it has been carried out, and carried out again when beat dies in between: each
    works once, however often it is applied.

    :param misfires: what an entry would have run in a pause has misfired when that ends, as in Quartz.
    """

    def __init__(self, store: Store, lease: Lease, ledger: Ledger, *, misfires: bool) -> None:
        self._store, self._lease, self._ledger, self._misfires = store, lease, ledger, misfires
        #: The hold in force, None for none.
        self.hold: Pause | None = None
        self._hold_text = ""

    def take_over(self, now: int, *, goes_on: bool) -> None:
        """Read the hold in force and the requests, at the beginning of a term.

        :param goes_on: nobody else has led meanwhile, so memory is right if the store has lost the hold.
        """
        sight = self._store.sight()
        if goes_on and self._hold_text and not sight.hold:
            self._store.write_hold(self._lease.token, "", self._hold_text)
        else:
            self._hold_text, self.hold = sight.hold, read_hold(sight.hold)
        self._apply(sight.requests, now)

    def tick(self, now: int) -> None:
        """Carry out what was asked for since, and end a hold that is over."""
        if self._lease.is_asked:
            self._lease.is_asked = False
            try:
                self._apply(self._store.sight().requests, now)
            except BaseException:
                self._lease.is_asked = True
                raise
        if self.hold is not None and self.hold.is_over(now):
            self._end_hold(self.hold.until or now, now)

    def due(self, now: int, find: Callable[[int], Iterable[str]], forget: Callable[[str], None]) -> list[str]:
        """Return the entries to be planned now: none during a hold, and none that is paused.

        Entries whose pause is over go on, and are due afterwards if they are.

        :param find: returns the entries for which there is something to be decided.
        :param forget: told of each that is paused: a schedule that fails is not asked in a pause.
        """
        commit, awake = Commit(), []
        for name in find(now) if self.hold is None else ():
            record = self._ledger.get(name)
            if record is None or record.paused is None:
                awake.append(name)
                continue
            forget(name)
            if record.paused.is_over(now):
                commit.records[name], events = self._awakened(name, record, now)
                commit.events += events
        if commit.records:
            self._ledger.commit(commit)
        return awake

    def _awakened(
        self, name: str, record: EntryRecord, now: int, request: Request | None = None
    ) -> tuple[EntryRecord, list[Event]]:
        """Return the record of an entry whose pause is over, and what explains it.

        :param request: to end it, None when it ended by itself. What comes due after it was made counts.
        """
        pause, trigger = record.paused, self._ledger.definitions[name].trigger
        assert pause is not None
        ends = [now, *([] if pause.until is None else [pause.until]), *([request.at] if request else [])]
        by = (request.by or "somebody") if request else None
        try:
            end = min(ends) if self._misfires else self._end_for(record, min(ends), now)
            awake = records.awakened(record, trigger, end, now, misfires=self._misfires)
        except Exception as exc:
            _say_unasked("pause", name, exc)
            awake = replace(record, paused=None)
        events: list[Event] = [Resumed(entry=name, now=now, since=pause.since, by=by)]
        return awake, events + list(give_up(self._ledger, awake, len(record.missed)))

    def _end_for(self, record: EntryRecord, end: int, now: int) -> int:
        """Return when an entry goes on after a pause or a hold.

        That is at its end, or now where the entry would misfire only because we hear of the end now. Asks the
        schedule, which may raise anything.
        """
        due = record.state.next_fire_time
        if due is None or now - end > LONGEST_DELAY:
            return end
        if due <= end:
            due = self._ledger.definitions[record.name].trigger.fire_times(record.state).after(end)
        if due is None or due > now or now - due < self._ledger.threshold(record.name, due, record):
            return end
        return now

    def _apply(self, requests: Mapping[str, str], now: int) -> None:
        changed: dict[str, EntryRecord] = {}
        events: dict[str, list[Event]] = {}
        for text in requests.values():
            request = Request.parse(text)
            if request is None:
                what = "a request is left out, as this version does not understand it"
                say.warning("request_left_out", "%s", what)
                continue
            # A clock that is ahead must not make the pause begin tomorrow.
            request = replace(request, at=min(request.at, now))
            if request.do == "hold":
                self._begin_hold(request, now)
            elif request.do == "release":
                self._ledger.write(changed, events)
                self._end_hold(request.at, now, request.by or "somebody")
                changed, events = {}, {}
            else:
                self._pause_or_resume(request, now, changed, events)
        self._ledger.write(changed, events)
        self._store.drop_requests(list(requests))

    def _pause_or_resume(
        self, request: Request, now: int, changed: dict[str, EntryRecord], events: dict[str, list[Event]]
    ) -> None:
        """Add what comes of a request to the records that are to be written, and to what explains them."""
        name = request.entry
        record = changed.get(name) or self._ledger.get(name)
        if record is None or name not in self._ledger.definitions:
            what = f"no entry {quote_name(name)}: it cannot be {request.do}d"
            say.warning("request_left_out", "%s", what, entry=name)
        elif request.do == "pause":
            since = record.paused.since if record.paused else request.at
            pause = replace(request.as_pause, since=since)
            if record.paused != pause:
                changed[name] = replace(record, paused=pause)
                reason, by = pause.reason or None, pause.by or None
                told = Paused(entry=name, now=now, until=pause.until, reason=reason, by=by)
                events.setdefault(name, []).append(told)
        elif record.paused is not None:
            changed[name], found = self._awakened(name, record, now, request)
            events.setdefault(name, []).extend(found)

    # -- the hold ------------------------------------------------------------------------------------------

    def _begin_hold(self, request: Request, now: int) -> None:
        since = self.hold.since if self.hold else request.at
        hold = replace(request.as_pause, since=since)
        if hold == self.hold or hold.until is None or hold.until <= hold.since:
            return
        event = Paused(now=now, until=hold.until, reason=hold.reason or None, by=hold.by or None)
        self._write(hold, event)

    def _end_hold(self, end: int, now: int, by: str = "") -> None:
        """Let all entries go on from the end of the hold."""
        hold = self.hold
        if hold is None:
            return
        changed: dict[str, EntryRecord] = {}
        events: dict[str, Sequence[Event]] = {}
        for name, definition in self._ledger.definitions.items():
            record = self._ledger.get(name)
            next_ = record.state.next_fire_time if record else None
            if record is None or next_ is None or next_ > now or record.paused is not None:
                continue
            try:
                goes_on = self._end_for(record, end, now)
                after = records.skipped(record, definition.trigger, hold.since, goes_on, now)
            except Exception as exc:
                _say_unasked("hold", name, exc)
                continue
            if after is not record:
                changed[name], events[name] = after, give_up(self._ledger, after, len(record.missed))
        self._ledger.write(changed, events)
        self._write(None, Resumed(now=now, since=hold.since, by=by or None, count=len(changed)))

    def _write(self, hold: Pause | None, event: Event) -> None:
        """Put a hold in force, None for none, and tell everybody."""
        text, token = write_hold(hold), self._lease.token
        if not self._store.write_hold(token, self._hold_text, text):
            # The store went back in time. The leader alone writes there.
            self._store.write_hold(token, self._store.sight().hold, text)
        self.hold, self._hold_text = hold, text
        self._ledger.note(event)


def _say_unasked(what: str, name: str, exc: Exception) -> None:
    """Say that a schedule, which may raise anything, could not be asked for the end of a pause or a hold."""
    why = f"the {what} of {quote_name(name)} cannot be left out ({type(exc).__name__})"
    say.warning("problem", "%s; it is judged as after an outage", why, entry=name)
