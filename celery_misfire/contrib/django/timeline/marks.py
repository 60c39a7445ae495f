"""The marks of a picture: the occurrences of each outcome, where they were due and where they ran.

Occurrences that stand too close for a mark each are drawn as one bar with its count, so that the picture of
86,400 runs is no larger than that of 24.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.utils.translation import gettext as _

from celery_misfire.contrib.django.timeline.shapes import Canvas, escape, label, number, symbol
from celery_misfire.contrib.django.timeline.timeline import (
    OUTCOMES,
    Fate,
    Waiting,
    count_in_words,
    format_number,
    word_of,
)
from celery_misfire.misfire import Outcome

#: Two marks of one outcome that are nearer than this, in pixels, are one bar.
_SHORTEST_DISTANCE = 11
#: An outage that is longer than this, in pixels, is a gap in a bar.
_SHORTEST_OUTAGE = 2
#: The thickness of a bar, in pixels; of a bar in a strip.
_THICKNESS, _THICKNESS_IN_STRIP = 14, 8
#: The side of its lane to which a bar moves when another bar has its place.
_SIDES: dict[Fate, int] = {
    Outcome.FIRED: -1,
    Outcome.RECOVERED: -1,
    Outcome.MERGED: 1,
    Outcome.MISSED: 1,
    Waiting.OVERDUE: 1,
    None: -1,
}


#: The fates whose bars are outlines.
_OPEN: tuple[Fate, ...] = (Outcome.MERGED, Waiting.OVERDUE, None)


@dataclass
class _Group:
    """Occurrences of one outcome that stand too close for a mark each."""

    first: int
    last: int
    count: int
    sent_first: int | None
    sent_last: int | None


def _groups(
    occurrences: Iterable[tuple[int, int, int, int | None]], apart: float, breaks: Sequence[int] = ()
) -> list[_Group]:
    """Put together what is nearer than `apart` milliseconds; each item: first, last, count, sent.

    :param breaks: moments that no group runs over, in their order.
    """
    found: list[_Group] = []
    for first, last, count, sent in sorted(occurrences, key=lambda item: item[:2]):
        near = found and first - found[-1].last < apart
        if near and bisect(breaks, found[-1].last) == bisect(breaks, first):
            group = found[-1]
            group.last = max(group.last, last)
            group.count += count
            if sent is not None:
                group.sent_first = sent if group.sent_first is None else min(group.sent_first, sent)
                group.sent_last = sent if group.sent_last is None else max(group.sent_last, sent)
        else:
            found.append(_Group(first, last, count, sent, sent))
    return found


class Marks:
    """Draws the occurrences and the legend."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        #: The places of bars and of their counts: from, to, and where across.
        self._bars: list[tuple[float, float, float]] = []
        self._counts: list[tuple[float, float, float]] = []

    def draw(self) -> None:
        self._occurrences()
        if not self._canvas.layout.bare:
            self._legend()

    def _occurrences(self) -> None:
        t, layout = self._canvas.timeline, self._canvas.layout
        apart = _SHORTEST_DISTANCE * self._canvas.per_pixel
        by_outcome: dict[Fate, list[tuple[int, int, int, int | None]]] = {o: [] for o in OUTCOMES}
        for o in t.occurrences:
            reached = o.end if o.fire_time is None else max(o.end, o.fire_time)
            if o.scheduled <= t.end and reached >= t.start:
                by_outcome[o.outcome].append((o.scheduled, o.end, o.count, o.fire_time))
        # What fired before an outage is not drawn together with what fired after it.
        wide = _SHORTEST_OUTAGE * self._canvas.per_pixel
        breaks = sorted(o.start for o in t.outages if o.sure and o.end - o.start >= wide)
        groups = {outcome: _groups(items, apart, breaks) for outcome, items in by_outcome.items()}
        for late in (Outcome.RECOVERED, Outcome.MERGED):
            for group in groups[late]:
                self._join(late, group)
        for outcome, found in groups.items():
            for group in found:
                self._mark(outcome, group, layout.due, late_run=False)
        runs = [(f, f, n, None) for _a, _b, n, f in by_outcome[Outcome.RECOVERED] if f is not None]
        for group in _groups(runs, apart):
            self._mark(Outcome.RECOVERED, group, layout.run, late_run=True)

    def _join(self, outcome: Outcome, group: _Group) -> None:
        """Draw the way from where occurrences were due to their late run."""
        layout = self._canvas.layout
        if group.sent_first is None or group.sent_last is None:
            return
        first, last = self._canvas.along(group.first), self._canvas.along(group.last)
        sent, sent_last = self._canvas.along(group.sent_first), self._canvas.along(group.sent_last)
        kind, shape, fill = f"mf-{word_of(outcome)}", "polyline", ""
        points = layout.points((first, layout.due), (sent, layout.run))
        if group.count > 1:
            shape, fill = "polygon", ' fill="currentColor" fill-opacity=".18"'
            points += " " + layout.points((sent_last, layout.run), (last, layout.due))
        dash = "" if outcome is Outcome.RECOVERED else ' stroke-dasharray="4 3"'
        line = f'class="{kind}" stroke="currentColor" stroke-width="1.5"{dash}{fill}'
        self._canvas.add(f'<{shape} {line} points="{points}"/>')

    def _mark(self, outcome: Fate, group: _Group, lane: int, *, late_run: bool) -> None:
        first, last = self._canvas.along(group.first), self._canvas.along(group.last)
        t, word = self._canvas.timeline, word_of(outcome)
        when = t.date_and_time(group.first) if group.count == 1 else t.between(group.first, group.last)
        title = f"{when}: {count_in_words(outcome, group.count)}"
        if group.sent_first is not None and outcome is not Outcome.FIRED:
            at = t.date_and_time(group.sent_first, seconds=True)
            title = _("%(told)s, sent at %(time)s") % {"told": title, "time": at}
        shape = (
            symbol(outcome, *self._canvas.layout.at(first, lane), filled=late_run)
            if group.count == 1
            else self._bar(outcome, first, last, lane, group.count)
        )
        self._canvas.add(f'<g class="mf-{word}"><title>{escape(title)}</title>{shape}</g>')

    def _bar(self, outcome: Fate, first: float, last: float, lane: int, count: int) -> str:
        layout = self._canvas.layout
        half = (_THICKNESS_IN_STRIP if layout.bare else _THICKNESS) / 2
        first, last = min(first - 2, (first + last) / 2 - half), max(last + 2, (first + last) / 2 + half)
        # A bar stands in the middle of its lane, unless it would hide a bar of another outcome.
        centre = float(lane)
        if any(low < last - half and first + half < high and c == centre for low, high, c in self._bars):
            centre += _SIDES[outcome] * (2 * half + 2)
        self._bars.append((first, last, centre))
        # A bar is the symbol of its outcome, drawn out: pointed like the diamond, notched like the cross.
        low, high = centre - half, centre + half
        fill = 'fill="currentColor"'
        # The bar of merged runs is shorter on the edge that faces their late run.
        slope = half if outcome is Outcome.MERGED else 0
        if outcome in _OPEN:
            fill = 'class="mf-open" stroke="currentColor" stroke-width="1.8"'
        point = half if outcome is Outcome.RECOVERED else -half if outcome is Outcome.MISSED else 0.0
        corners = layout.points(
            (first, low),
            (last, low),
            (last - slope / 2 + point, centre),
            (last - slope, high),
            (first + slope, high),
            (first + slope / 2 - point, centre),
        )
        body = f'<polygon stroke-linejoin="round" {fill} points="{corners}"/>'
        text = format_number(count)
        if layout.bare:
            return body
        if len(text) * 6.4 + 2 * half > last - first:
            return body + self._count_beside(first, last, centre + half, text)
        x, y = layout.at((first + last) / 2, centre)
        turn = f' transform="rotate(90 {number(x)} {number(y)})"' if layout.tall else ""
        kind = "mf-count" if outcome in _OPEN else "mf-in"
        place = f'text-anchor="middle" x="{number(x)}" y="{number(y + 4)}"{turn}'
        return body + f'<text class="{kind}" {place}>{escape(text)}</text>'

    def _count_beside(self, first: float, last: float, edge: float, text: str) -> str:
        """Return the count of a bar that is too short for it, if there is room."""
        layout, middle = self._canvas.layout, (first + last) / 2
        half = 6.0 if layout.tall else len(text) * 3.4 + 2
        if any(middle - half < high and low < middle + half and edge == e for low, high, e in self._counts):
            return ""
        self._counts.append((middle - half, middle + half, edge))
        if layout.tall:
            return label(edge + 9, middle + 4, text, "mf-count")
        return label(middle, edge + 12, text, "mf-count", "middle")

    def _legend(self) -> None:
        layout = self._canvas.layout
        x, y = (layout.low, layout.end + 36) if layout.tall else (layout.begin, layout.size[1] - 12)
        for outcome, name in OUTCOMES.items():
            shape = symbol(outcome, x, y, filled=False)
            self._canvas.add(f'<g class="mf-{word_of(outcome)}">{shape}</g>')
            self._canvas.add(label(x + 13, y + 4, str(name)))
            if layout.tall:
                y += 20
            else:
                x += 46 + 8 * len(str(name))
