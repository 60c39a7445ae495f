"""One strip of time for each periodic task, under one axis: what became of its runs, and what is to come.

Pure. A strip has a fixed number of places, so that its picture is small however often a task runs. Moments
are milliseconds UTC.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo

from django.utils.formats import date_format
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import pgettext

from celery_misfire.contrib.django.timeline.ground import ticks
from celery_misfire.contrib.django.timeline.shapes import escape, number
from celery_misfire.contrib.django.timeline.timeline import OUTCOMES, Fate, Waiting
from celery_misfire.events import Event, Misfired, Sent, SentTogether
from celery_misfire.misfire import FireTimes, Outcome, from_millis
from celery_misfire.triggers.wall_times import DAY
from celery_misfire.triggers.zones import zone_for

#: So many places a strip has from its left to its right.
PLACES = 480
#: The height of a strip in pixels; of the axis.
HEIGHT, AXIS_HEIGHT = 24, 36
#: A row is at most so much taller than its strip, on each side.
TALLEST = 300
#: From where to where a mark of each fate reaches down the strip: not its colour alone tells it.
_REACH: dict[Fate, tuple[int, int]] = {
    None: (9, 13),
    Outcome.FIRED: (7, 15),
    Outcome.MERGED: (17, 20),
    Outcome.RECOVERED: (3, 20),
    Waiting.OVERDUE: (3, 15),
    Outcome.MISSED: (1, 23),
}
#: In this order they are drawn, and explained.
LEGEND: tuple[Fate, ...] = tuple(_REACH)
#: The axis has at most about so many labels, if they are times of day, and if they are days.
_LABELS, _DAYS = 9, 4
#: A clock needs this share of the axis on both its sides, and a day; a day that stands to the right of its
#: begin needs twice that.
_CLOCK_ROOM, _HALF_DAY = 0.05, 0.1
#: A day is told only where the next one is told no sooner than after this share of the axis.
_DAY_ROOM = 0.33


@dataclass(frozen=True)
class Window:
    """The time that is shown."""

    start: int
    now: int
    end: int

    @classmethod
    def around(cls, now: int, days: int) -> Window:
        return cls(now - days * DAY, now, now + days * DAY)

    def place(self, moment: int) -> int:
        inside = min(max(moment, self.start), self.end - 1)
        return (inside - self.start) * PLACES // (self.end - self.start)

    def begin_of(self, place: int) -> int:
        """Return the first moment of a place."""
        return self.start - (-place * (self.end - self.start) // PLACES)


@dataclass
class Strip:
    """The marks of one task."""

    window: Window
    places: dict[Fate, set[int]] = field(default_factory=dict)

    def add(self, fate: Fate, first: int, last: int | None = None) -> None:
        """Mark a moment, or all from one to another."""
        last = first if last is None else last
        if first < self.window.end and last >= self.window.start:
            found = self.places.setdefault(fate, set())
            found.update(range(self.window.place(first), self.window.place(last) + 1))

    def add_log(self, events: Iterable[Event]) -> None:
        """Mark the runs of one entry, and what was merged into them."""
        for event in events:
            if isinstance(event, Sent):
                late = event.outcome == Outcome.RECOVERED
                self.add(Outcome.RECOVERED if late else Outcome.FIRED, event.scheduled)
            elif isinstance(event, Misfired) and event.outcomes.get(Outcome.MERGED):
                self.add(Outcome.MERGED, event.first, event.last)

    def expected(self, times: FireTimes, first: int) -> set[int]:
        """Return the places of what is to come, from the next fire time on; each is asked about once."""
        window, found = self.window, set[int]()
        moment: int | None = first
        while moment is not None and moment < window.end:
            found.add(place := window.place(moment))
            moment = times.after(max(moment, window.begin_of(place + 1) - 1))
        return found

    def draw(self, outages: Sequence[tuple[int, int]], words: str) -> SafeString:
        """Return the strip as SVG, over shaded outages.

        :param words: what it shows, for those who do not see it.
        """
        # A band is as high as its row, which may have a long name.
        parts = [_rects("mf-band", self._bands(outages), -TALLEST, HEIGHT + TALLEST)]
        for fate, (top, bottom) in _REACH.items():
            if places := self.places.get(fate):
                parts.append(_rects(f"mf-{_word(fate)}", _stretches(places), top, bottom))
        now = self.window.place(self.window.now)
        parts.append(_rects("mf-now", [(now, now)], -TALLEST, HEIGHT + TALLEST))
        return mark_safe(
            f'<svg class="mf mf-row" viewBox="0 0 {PLACES} {HEIGHT}" preserveAspectRatio="none" '
            f'role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'
        )

    def _bands(self, outages: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        window, places = self.window, set[int]()
        for start, end in outages:
            if start < window.end and end >= window.start:
                places.update(range(window.place(start), window.place(end) + 1))
        return _stretches(places)


def together(events: Iterable[Event], names: Collection[str]) -> dict[str, list[Event]]:
    """Return what the log tells of these entries, in one pass over it."""
    found: dict[str, list[Event]] = {name: [] for name in names}
    for event in events:
        if isinstance(event, SentTogether):
            if not found.keys().isdisjoint(event.entries):
                for one in event.split():
                    if one.entry in found:
                        found[one.entry].append(one)
        elif isinstance(event, Sent | Misfired) and event.entry in found:
            found[event.entry].append(event)
    return found


def axis(window: Window, zone: tzinfo) -> SafeString:
    """Return the axis above the strips."""
    known, length = zone_for(zone), window.end - window.start
    parts, days, has_clocks = [], list[tuple[float, str]](), length <= 3 * DAY
    for moment in ticks(known, window.start, window.end, length / (_LABELS if has_clocks else _DAYS)):
        share = (moment - window.start) / length
        local = from_millis(moment).astimezone(zone)
        day = date_format(local, pgettext("as Django's filter date takes it", "D j M"))
        if has_clocks and _CLOCK_ROOM <= share <= 1 - _CLOCK_ROOM:
            parts.append(_label(share, 30, "middle", date_format(local, "H:i"), "mf-quiet"))
        if not days or day != days[-1][1]:
            days.append((share, day))
    for (share, day), (following, _day) in zip(days, [*days[1:], (2.0, "")], strict=True):
        is_middle = has_clocks and share >= _HALF_DAY
        has_room = share <= 1 - (1 if is_middle else 2) * _HALF_DAY
        if has_room and (not has_clocks or following - share >= _DAY_ROOM):
            anchor = "middle" if is_middle else "start"
            parts.append(_label(share, 14 if has_clocks else 24, anchor, day))
    return mark_safe(
        f'<svg class="mf mf-axis" width="100%" height="{AXIS_HEIGHT}" aria-hidden="true">'
        f"{''.join(parts)}</svg>"
    )


def _label(share: float, y: int, anchor: str, text: str, kind: str = "") -> str:
    """Return a text at a share of the axis, from its left."""
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text{of_kind} text-anchor="{anchor}" x="{number(share * 100)}%" y="{y}">{escape(text)}</text>'


def symbol(fate: Fate) -> SafeString:
    """Return the mark of a fate, for the legend."""
    top, bottom = _REACH[fate]
    return mark_safe(
        f'<svg class="mf mf-key" width="14" height="{HEIGHT}" viewBox="0 0 14 {HEIGHT}" aria-hidden="true">'
        f"{_rects(f'mf-{_word(fate)}', [(5, 8)], top, bottom)}</svg>"
    )


def words_of(strip: Strip, state: str) -> str:
    """Return what a strip shows, in words."""
    shown = [str(OUTCOMES[fate]) for fate in LEGEND if strip.places.get(fate)]
    return f"{state}: {', '.join(shown)}" if shown else _("%(state)s: no marks") % {"state": state}


def _word(fate: Fate) -> str:
    return "expected" if fate is None else str(fate)


def _stretches(places: Iterable[int]) -> list[tuple[int, int]]:
    """Return places that touch as one stretch."""
    found: list[tuple[int, int]] = []
    for place in sorted(places):
        if found and place == found[-1][1] + 1:
            found[-1] = (found[-1][0], place)
        else:
            found.append((place, place))
    return found


def _rects(kind: str, stretches: Sequence[tuple[int, int]], top: int, bottom: int) -> str:
    """Return these stretches as one path."""
    if not stretches:
        return ""
    height = bottom - top
    path = "".join(
        f"M{first} {top}h{width}v{height}h{-width}z"
        for first, last in stretches
        for width in [last - first + 1]
    )
    return f'<path class="{kind}" fill="currentColor" d="{path}"/>'
