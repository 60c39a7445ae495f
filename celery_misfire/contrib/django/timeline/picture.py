"""The picture of a timeline, as SVG.

What stands too close to be told apart is drawn as one bar with its count, so that the picture of 86,400 runs
is no larger than that of 24.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from django.utils.formats import date_format
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _

from celery_misfire.contrib.django.timeline.timeline import (
    OUTCOMES,
    Outage,
    Timeline,
    count_in_words,
    format_number,
    format_offset,
    word_of,
)
from celery_misfire.misfire import Outcome
from celery_misfire.triggers.wall_times import DAY, HOUR, MINUTE, SECOND
from celery_misfire.triggers.zones import Zone, zone_for

__all__ = ["picture", "strip", "svg", "ticks"]

#: What the pictures look like: a page with one links to it.
STYLE = Path(__file__).parents[1] / "static" / "celery_misfire" / "picture.css"


@dataclass(frozen=True)
class _Layout:
    """Where things are: time runs from `begin` to `end`, to the right or, if `tall`, down."""

    kind: str
    size: tuple[int, int]
    begin: int
    end: int
    due: int
    run: int
    low: int
    high: int
    spacing: int
    tall: bool = False
    bare: bool = False

    def at(self, along: float, across: float) -> tuple[float, float]:
        return (across, along) if self.tall else (along, across)

    def points(self, *pairs: tuple[float, float]) -> str:
        return " ".join(f"{_n(x)},{_n(y)}" for x, y in (self.at(*pair) for pair in pairs))

    def rect(self, first: float, last: float, low: float, high: float) -> str:
        (x, y), (x2, y2) = self.at(first, low), self.at(last, high)
        return f'x="{_n(x)}" y="{_n(y)}" width="{_n(x2 - x)}" height="{_n(y2 - y)}"'


_WIDE = _Layout("wide", (960, 268), 78, 940, due=100, run=160, low=58, high=190, spacing=74)
_STRIP = _Layout("strip", (340, 46), 8, 332, due=13, run=35, low=1, high=45, spacing=0, bare=True)


def _tall(timeline: Timeline) -> _Layout:
    # About as long as an hourly schedule needs, whatever the scale.
    length = min(1000, max(420, round((timeline.end - timeline.start) / HOUR * 26)))
    size = (340, 34 + length + 34 + 20 * len(OUTCOMES))
    return _Layout("tall", size, 34, 34 + length, due=112, run=172, low=78, high=190, spacing=44, tall=True)


def picture(timeline: Timeline, prefix: str = "mf") -> SafeString:
    """Return the picture for a page: lying on a wide screen, standing on a narrow one.

    The page has to link to ``celery_misfire/picture.css``. The ids in the picture begin with `prefix`.
    """
    drawings = (_Drawing(timeline, layout, f"{prefix}-{layout.kind}") for layout in (_WIDE, _tall(timeline)))
    inside = "".join(d.svg() for d in drawings)
    return mark_safe(f'<div class="mf-picture">{inside}</div>')


def strip(timeline: Timeline, prefix: str) -> SafeString:
    """Return the picture as one small line of marks without words, to compare it with others."""
    return mark_safe(_Drawing(timeline, _STRIP, prefix).svg())


def svg(timeline: Timeline) -> SafeString:
    """Return the picture as a document of its own."""
    style = f"{STYLE.read_text()}\nsvg.mf {{ color-scheme: light dark; background: var(--mf-ground); }}\n"
    return mark_safe(_Drawing(timeline, _WIDE, "mf").svg(style=style))


@dataclass
class _Group:
    """Occurrences of one outcome that stand too close to be told apart."""

    first: int
    last: int
    count: int
    sent_first: int | None
    sent_last: int | None


def _groups(occurrences: Iterable[tuple[int, int, int, int | None]], apart: float) -> list[_Group]:
    """Put together what is nearer than `apart` milliseconds; each item: first, last, count, sent."""
    found: list[_Group] = []
    for first, last, count, sent in sorted(occurrences, key=lambda item: item[:2]):
        if found and first - found[-1].last < apart:
            group = found[-1]
            group.last = max(group.last, last)
            group.count += count
            if sent is not None:
                group.sent_first = sent if group.sent_first is None else min(group.sent_first, sent)
                group.sent_last = sent if group.sent_last is None else max(group.sent_last, sent)
        else:
            found.append(_Group(first, last, count, sent, sent))
    return found


#: Nearer than this, in pixels, two marks of one outcome are one bar.
_APART = 11
_RADIUS = 5.0
_THICK = 14


class _Drawing:
    def __init__(self, timeline: Timeline, layout: _Layout, prefix: str) -> None:
        self._timeline, self._layout, self._prefix = timeline, layout, prefix
        self._parts: list[str] = []
        #: What has its place already: from, to, and where across.
        self._bars: list[tuple[float, float, float]] = []
        self._counts: list[tuple[float, float, float]] = []

    def svg(self, style: str = "") -> str:
        t, layout = self._timeline, self._layout
        outages = self._outages()
        if not layout.bare:
            self._axis()
            self._now()
            self._name_outages(outages)
        self._occurrences()
        if not layout.bare:
            self._legend()
        width, height = layout.size
        title, desc = f"{self._prefix}-title", f"{self._prefix}-desc"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="mf mf-{layout.kind}" width="{width}" '
            f'height="{height}" viewBox="0 0 {width} {height}" role="img" '
            f'aria-labelledby="{title} {desc}" fill="none" stroke="none">'
            f'<title id="{title}">{_text(t.name)}</title><desc id="{desc}">{_text(t.description)}</desc>'
            + (f"<style>{style}</style>" if style else "")
            + "".join(self._parts)
            + "</svg>"
        )

    # -- the ground ----------------------------------------------------------------------------------------

    def _along(self, moment: int) -> float:
        t, layout = self._timeline, self._layout
        inside = min(max(moment, t.start), t.end)
        return layout.begin + (inside - t.start) / max(1, t.end - t.start) * (layout.end - layout.begin)

    @property
    def _per_pixel(self) -> float:
        """How many milliseconds a pixel is."""
        t, layout = self._timeline, self._layout
        return max(1, t.end - t.start) / (layout.end - layout.begin)

    def _outages(self) -> list[Outage]:
        """Shade them, and return which there are."""
        t, layout = self._timeline, self._layout
        shown = [o for o in t.outages if o.start <= t.end and o.end >= t.start]
        if t.known_from is not None and t.known_from > t.start:
            shown.insert(0, Outage(t.start, t.known_from, _("Not known"), sure=False))
        # Bands of the same kind that touch are drawn as one: a beat that restarts all day has hundreds.
        drawn: list[tuple[float, float, bool]] = []
        for o in sorted(shown, key=lambda o: (o.sure, o.start)):
            first, last = self._along(o.start), self._along(o.end)
            last = max(last, first + 1)
            if drawn and drawn[-1][2] == o.sure and first - drawn[-1][1] < 1:
                drawn[-1] = (drawn[-1][0], max(last, drawn[-1][1]), o.sure)
            else:
                drawn.append((first, last, o.sure))
        for first, last, sure in drawn:
            kind = "mf-band" if sure else "mf-unsure"
            self._parts.append(f'<rect class="{kind}" {layout.rect(first, last, layout.low, layout.high)}/>')
        return shown

    def _name_outages(self, shown: Sequence[Outage]) -> None:
        """Write beside each what it is, the longest first, as far as there is room."""
        layout = self._layout
        for o in sorted(shown, key=lambda o: (not o.sure, o.start - o.end)):
            first, last = self._along(o.start), self._along(o.end)
            middle = (first + last) / 2
            lines = [o.label, *self._times(o)]
            if layout.tall:
                half = 8.0 * len(lines)
                for place in (middle, first + half, last - half):
                    if self._free([(place - half, place + half)]) is not None:
                        for n, text in enumerate(lines):
                            kind = "mf-quiet mf-small" if n else ""
                            self._parts.append(
                                _label(layout.high + 8, place - half + 12 + 16 * n, text, kind)
                            )
                        break
                continue
            text = " ".join(lines)
            half = len(text) * 3.4 + 4
            place = min(max(middle, half + 4), layout.size[0] - half - 4)
            row = self._free([(place - half, place + half)] * len(self._rows))
            if row is not None:
                y = 18 + 18 * row
                line = f"M{_n(middle)} {y + 5}V{layout.low}"
                self._parts.append(f'<path class="mf-grid" stroke="currentColor" d="{line}"/>')
                self._parts.append(_label(place, y, text, anchor="middle"))

    def _times(self, o: Outage) -> list[str]:
        """Return from when to when, in one or two lines; to the minute, if it is long."""
        t = self._timeline
        form = "H:i" if o.end - o.start >= HOUR // 2 else "H:i:s"
        clocks = [date_format(t.in_zone(moment), form) for moment in (o.start, o.end)]
        if t.same_day(o.start, o.end):
            return [" \u2013 ".join(clocks)]
        return [
            f"{t.day(o.start)}, {clocks[0]} \u2013",
            f"{t.day(o.end)}, {clocks[1]}",
        ]

    @cached_property
    def _rows(self) -> list[list[tuple[float, float]]]:
        return [[] for _row in range(2)]

    def _free(self, spans: Sequence[tuple[float, float]]) -> int | None:
        """Take the first row in which the place is free; None when there is none."""
        for row, (low, high) in enumerate(spans):
            if all(high < a or low > b for a, b in self._rows[row]):
                self._rows[row].append((low, high))
                return row
        return None

    def _axis(self) -> None:
        t, layout = self._timeline, self._layout
        zone = zone_for(t.zone)
        moments = ticks(zone, t.start, t.end, layout.spacing * self._per_pixel)
        form = "H:i:s" if any(moment % MINUTE for moment in moments) else "H:i"
        day_before = ""
        for moment in moments:
            along = self._along(moment)
            line = layout.points((along, layout.low), (along, layout.high))
            self._parts.append(f'<polyline class="mf-grid" stroke="currentColor" points="{line}"/>')
            day, clock = t.day(moment), date_format(t.in_zone(moment), form)
            whole_day = (moment + zone.at(moment).offset) % DAY == 0
            if layout.tall:
                x = layout.low - 6
                if day != day_before:
                    self._parts.append(_label(x, along - 1, day, "mf-small", "end"))
                    along += 13
                if not whole_day or day == day_before:
                    self._parts.append(_label(x, along + 4, clock, "mf-quiet", "end"))
            else:
                # Nothing is seen of what hangs over the edge.
                at, anchor = (layout.end + 12, "end") if along > layout.end - 18 else (along, "middle")
                self._parts.append(_label(at, layout.high + 17, clock, "mf-quiet", anchor))
                if day != day_before:
                    self._parts.append(_label(along, layout.high + 33, day, "mf-small", "middle"))
            day_before = day
        for (_since, old), (since, new) in zip(t.offsets, t.offsets[1:], strict=False):
            self._change_of_clocks(self._along(since), f"{format_offset(old)} → {format_offset(new)}")
        names = ((layout.due, _("Due")), (layout.run, _("Late run")))
        for lane, name in names:
            if layout.tall:
                self._parts.append(_label(lane, 18, name, "mf-quiet", "middle"))
            else:
                self._parts.append(_label(layout.begin - 10, lane + 4, name, "mf-quiet", "end"))

    def _change_of_clocks(self, along: float, text: str) -> None:
        layout = self._layout
        line = layout.points((along, layout.low), (along, layout.high))
        self._parts.append(
            f'<polyline class="mf-quiet" stroke="currentColor" stroke-dasharray="2 4" points="{line}"/>'
        )
        if layout.tall:
            self._beside(along, text)
        else:
            self._parts.append(_label(along, layout.high - 5, text, "mf-quiet mf-small", "middle"))

    def _now(self) -> None:
        t, layout = self._timeline, self._layout
        if t.now is None or not t.start <= t.now <= t.end:
            return
        along = self._along(t.now)
        line = layout.points((along, layout.low), (along, layout.high))
        self._parts.append(f'<polyline stroke="currentColor" stroke-width="2" points="{line}"/>')
        if layout.tall:
            self._beside(along, _("now"))
        else:
            self._parts.append(_label(along, layout.low - 5, _("now"), "", "middle"))

    def _beside(self, along: float, text: str) -> None:
        """Write to the right of a picture that stands, whatever else would like that place."""
        self._rows[0].append((along - 8, along + 8))
        self._parts.append(_label(self._layout.high + 8, along + 4, text))

    # -- what happened -------------------------------------------------------------------------------------

    def _occurrences(self) -> None:
        t, layout = self._timeline, self._layout
        apart = _APART * self._per_pixel
        by_outcome: dict[Outcome | None, list[tuple[int, int, int, int | None]]] = {o: [] for o in OUTCOMES}
        for o in t.occurrences:
            reached = o.end if o.fire_time is None else max(o.end, o.fire_time)
            if o.scheduled <= t.end and reached >= t.start:
                by_outcome[o.outcome].append((o.scheduled, o.end, o.count, o.fire_time))
        groups = {outcome: _groups(items, apart) for outcome, items in by_outcome.items()}
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
        """Lead from where they were due to the run."""
        layout = self._layout
        if group.sent_first is None or group.sent_last is None:
            return
        first, last = self._along(group.first), self._along(group.last)
        sent, sent_last = self._along(group.sent_first), self._along(group.sent_last)
        kind, shape, fill = f"mf-{word_of(outcome)}", "polyline", ""
        points = layout.points((first, layout.due), (sent, layout.run))
        if group.count > 1:
            shape, fill = "polygon", ' fill="currentColor" fill-opacity=".18"'
            points += " " + layout.points((sent_last, layout.run), (last, layout.due))
        dash = "" if outcome is Outcome.RECOVERED else ' stroke-dasharray="4 3"'
        line = f'class="{kind}" stroke="currentColor" stroke-width="1.5"{dash}{fill}'
        self._parts.append(f'<{shape} {line} points="{points}"/>')

    def _mark(self, outcome: Outcome | None, group: _Group, lane: int, *, late_run: bool) -> None:
        first, last = self._along(group.first), self._along(group.last)
        t, word = self._timeline, word_of(outcome)
        when = t.date_and_time(group.first) if group.count == 1 else t.between(group.first, group.last)
        told = f"{when}: {count_in_words(outcome, group.count)}"
        if group.sent_first is not None and outcome is not Outcome.FIRED:
            at = t.date_and_time(group.sent_first, seconds=True)
            told = _("%(told)s, run at %(time)s") % {"told": told, "time": at}
        shape = (
            _shape(outcome, *self._layout.at(first, lane), filled=late_run)
            if group.count == 1
            else self._bar(outcome, first, last, lane, group.count)
        )
        self._parts.append(f'<g class="mf-{word}"><title>{_text(told)}</title>{shape}</g>')

    def _bar(self, outcome: Outcome | None, first: float, last: float, lane: int, count: int) -> str:
        layout = self._layout
        half = (8 if layout.bare else _THICK) / 2
        first, last = min(first - 2, (first + last) / 2 - half), max(last + 2, (first + last) / 2 + half)
        # In the middle of the lane, unless that would hide a bar of another outcome.
        centre = float(lane)
        if any(low < last - half and first + half < high and c == centre for low, high, c in self._bars):
            centre += _SIDES[outcome] * (2 * half + 2)
        self._bars.append((first, last, centre))
        # The symbol of the outcome, drawn out: pointed like the diamond, notched like the cross.
        low, high = centre - half, centre + half
        fill = 'fill="currentColor"'
        # The edge that the merged ones turn to their run is the shorter one.
        slope = half if outcome is Outcome.MERGED else 0
        if outcome in (Outcome.MERGED, None):
            fill = 'class="mf-open" stroke="currentColor" stroke-width="1.8"'
        point = {Outcome.RECOVERED: half, Outcome.MISSED: -half}.get(outcome, 0.0) if outcome else 0.0
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
        turn = f' transform="rotate(90 {_n(x)} {_n(y)})"' if layout.tall else ""
        kind = "mf-count" if outcome in (Outcome.MERGED, None) else "mf-in"
        place = f'text-anchor="middle" x="{_n(x)}" y="{_n(y + 4)}"{turn}'
        return body + f'<text class="{kind}" {place}>{_text(text)}</text>'

    def _count_beside(self, first: float, last: float, edge: float, text: str) -> str:
        """Return the count of a bar that is too short for it, if there is room."""
        layout, middle = self._layout, (first + last) / 2
        half = 6.0 if layout.tall else len(text) * 3.4 + 2
        if any(middle - half < high and low < middle + half and edge == e for low, high, e in self._counts):
            return ""
        self._counts.append((middle - half, middle + half, edge))
        if layout.tall:
            return _label(edge + 9, middle + 4, text, "mf-count")
        return _label(middle, edge + 12, text, "mf-count", "middle")

    def _legend(self) -> None:
        layout = self._layout
        x, y = (layout.low, layout.end + 36) if layout.tall else (layout.begin, layout.size[1] - 12)
        for outcome, name in OUTCOMES.items():
            shape = _shape(outcome, x, y, filled=False)
            self._parts.append(f'<g class="mf-{word_of(outcome)}">{shape}</g>')
            self._parts.append(_label(x + 13, y + 4, str(name)))
            if layout.tall:
                y += 20
            else:
                x += 46 + 8 * len(str(name))


#: On which side of its lane a bar gives way to another.
_SIDES = {Outcome.FIRED: -1, Outcome.RECOVERED: -1, Outcome.MERGED: 1, Outcome.MISSED: 1, None: -1}


def _shape(outcome: Outcome | None, x: float, y: float, *, filled: bool) -> str:
    """Return the symbol of an outcome; no two look the same without their colours."""
    r = _RADIUS
    open_ = 'stroke="currentColor" stroke-width="1.8"' + ("" if filled else ' class="mf-open"')
    if filled:
        open_ += ' fill="currentColor"'
    match outcome:
        case Outcome.FIRED:
            return f'<circle fill="currentColor" cx="{_n(x)}" cy="{_n(y)}" r="{r}"/>'
        case Outcome.RECOVERED:
            d = r + 1.2
            corners = f"{_n(x)},{_n(y - d)} {_n(x + d)},{_n(y)} {_n(x)},{_n(y + d)} {_n(x - d)},{_n(y)}"
            return f'<polygon {open_} points="{corners}"/>'
        case Outcome.MERGED:
            corners = f"{_n(x)},{_n(y + r)} {_n(x - r)},{_n(y - r + 1)} {_n(x + r)},{_n(y - r + 1)}"
            return f'<polygon {open_} points="{corners}"/>'
        case Outcome.MISSED:
            return (
                f'<path stroke="currentColor" stroke-width="2.6" stroke-linecap="round" '
                f'd="M{_n(x - r + 0.5)} {_n(y - r + 0.5)}l{2 * r - 1:g} {2 * r - 1:g}'
                f'm0 {1 - 2 * r:g}l{1 - 2 * r:g} {2 * r - 1:g}"/>'
            )
        case _:
            return f'<circle {open_} cx="{_n(x)}" cy="{_n(y)}" r="{r - 0.5:g}"/>'


def _label(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    anchor = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text{kind}{anchor} x="{_n(x)}" y="{_n(y)}">{_text(text)}</text>'


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


# What XML cannot hold, and the halves of characters that a name out of Redis may bring.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _text(text: str) -> str:
    return html.escape(_NOT_XML.sub("\ufffd", text))


def ticks(zone: Zone, start: int, end: int, apart: float) -> list[int]:
    """Return the moments of an axis: round wall times, at least so many milliseconds apart on the wall."""
    step = next((s for s in _STEPS if s >= apart), _STEPS[-1])
    found: list[int] = []
    for stretch in zone.between(start, end):
        # Where the clocks change, the distance is longer or shorter than a step.
        wall = -(-(max(start, stretch.start) + stretch.offset) // step) * step
        while wall - stretch.offset < min(end + 1, stretch.end):
            found.append(wall - stretch.offset)
            wall += step
    return found


_STEPS = [
    *(n * SECOND for n in (1, 2, 5, 10, 15, 30)),
    *(n * MINUTE for n in (1, 2, 5, 10, 15, 30)),
    *(n * HOUR for n in (1, 2, 3, 6, 12)),
    *(n * DAY for n in (1, 2, 4, 7, 14, 28, 56)),
]
