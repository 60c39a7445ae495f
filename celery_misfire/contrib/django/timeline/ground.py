"""The ground of a picture: the axis, the changes of the clocks, outages, and now."""

from __future__ import annotations

from collections.abc import Sequence

from django.utils.formats import date_format
from django.utils.translation import gettext as _

from celery_misfire.contrib.django.timeline.shapes import Canvas, label, number
from celery_misfire.contrib.django.timeline.timeline import Outage, format_offset
from celery_misfire.triggers.wall_times import DAY, HOUR, MINUTE, SECOND
from celery_misfire.triggers.zones import Zone, zone_for


class Ground:
    """Draws what lies under the marks."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        #: The places beside the picture that have a text, by row: from, to.
        self._rows: list[list[tuple[float, float]]] = [[], []]

    def draw(self) -> None:
        outages = self._outages()
        if not self._canvas.layout.bare:
            self._axis()
            self._now()
            self._name_outages(outages)

    def _outages(self) -> list[Outage]:
        """Shade the outages, and return those that are in the picture."""
        t, layout = self._canvas.timeline, self._canvas.layout
        shown = [o for o in t.outages if o.start <= t.end and o.end >= t.start]
        if t.known_from is not None and t.known_from > t.start:
            shown.insert(0, Outage(t.start, t.known_from, _("Not known"), sure=False))
        # Bands of the same kind that touch are drawn as one: a beat that restarts all day has hundreds.
        drawn: list[tuple[float, float, bool]] = []
        for o in sorted(shown, key=lambda o: (o.sure, o.start)):
            first, last = self._canvas.along(o.start), self._canvas.along(o.end)
            last = max(last, first + 1)
            if drawn and drawn[-1][2] == o.sure and first - drawn[-1][1] < 1:
                drawn[-1] = (drawn[-1][0], max(last, drawn[-1][1]), o.sure)
            else:
                drawn.append((first, last, o.sure))
        for first, last, sure in drawn:
            kind = "mf-band" if sure else "mf-unsure"
            self._canvas.add(f'<rect class="{kind}" {layout.rect(first, last, layout.low, layout.high)}/>')
        return shown

    def _name_outages(self, shown: Sequence[Outage]) -> None:
        """Write the name beside each outage, the longest first, as far as there is room."""
        layout = self._canvas.layout
        for o in sorted(shown, key=lambda o: (not o.sure, o.start - o.end)):
            first, last = self._canvas.along(o.start), self._canvas.along(o.end)
            middle = (first + last) / 2
            lines = [o.label, *self._times(o)]
            if layout.tall:
                half = 8.0 * len(lines)
                for place in (middle, first + half, last - half):
                    if self._free([(place - half, place + half)]) is not None:
                        for n, text in enumerate(lines):
                            kind = "mf-quiet mf-small" if n else ""
                            self._canvas.add(label(layout.high + 8, place - half + 12 + 16 * n, text, kind))
                        break
                continue
            text = " ".join(lines)
            half = len(text) * 3.4 + 4
            place = min(max(middle, half + 4), layout.size[0] - half - 4)
            row = self._free([(place - half, place + half)] * len(self._rows))
            if row is not None:
                y = 18 + 18 * row
                line = f"M{number(middle)} {y + 5}V{layout.low}"
                self._canvas.add(f'<path class="mf-grid" stroke="currentColor" d="{line}"/>')
                self._canvas.add(label(place, y, text, anchor="middle"))

    def _times(self, o: Outage) -> list[str]:
        """Return from when to when an outage lasted, in one or two lines; to the minute, if it is long."""
        t = self._canvas.timeline
        form = "H:i" if o.end - o.start >= HOUR // 2 else "H:i:s"
        clocks = [date_format(t.in_zone(moment), form) for moment in (o.start, o.end)]
        if t.same_day(o.start, o.end):
            return [" \u2013 ".join(clocks)]
        return [
            f"{t.day(o.start)}, {clocks[0]} \u2013",
            f"{t.day(o.end)}, {clocks[1]}",
        ]

    def _free(self, spans: Sequence[tuple[float, float]]) -> int | None:
        """Take the first row in which the place is free; None when there is none."""
        for row, (low, high) in enumerate(spans):
            if all(high < a or low > b for a, b in self._rows[row]):
                self._rows[row].append((low, high))
                return row
        return None

    def _axis(self) -> None:
        t, layout = self._canvas.timeline, self._canvas.layout
        zone = zone_for(t.zone)
        moments = ticks(zone, t.start, t.end, layout.spacing * self._canvas.per_pixel)
        form = "H:i:s" if any(moment % MINUTE for moment in moments) else "H:i"
        day_before = ""
        for moment in moments:
            along = self._canvas.along(moment)
            line = layout.points((along, layout.low), (along, layout.high))
            self._canvas.add(f'<polyline class="mf-grid" stroke="currentColor" points="{line}"/>')
            day, clock = t.day(moment), date_format(t.in_zone(moment), form)
            whole_day = (moment + zone.at(moment).offset) % DAY == 0
            if layout.tall:
                x = layout.low - 6
                if day != day_before:
                    self._canvas.add(label(x, along - 1, day, "mf-small", "end"))
                    along += 13
                if not whole_day or day == day_before:
                    self._canvas.add(label(x, along + 4, clock, "mf-quiet", "end"))
            else:
                # A label that hangs over the edge would be cut off.
                at, anchor = (layout.end + 12, "end") if along > layout.end - 18 else (along, "middle")
                self._canvas.add(label(at, layout.high + 17, clock, "mf-quiet", anchor))
                if day != day_before:
                    self._canvas.add(label(along, layout.high + 33, day, "mf-small", "middle"))
            day_before = day
        for (_since, old), (since, new) in zip(t.offsets, t.offsets[1:], strict=False):
            self._change_of_clocks(self._canvas.along(since), f"{format_offset(old)} → {format_offset(new)}")
        names = ((layout.due, _("Due")), (layout.run, _("Late run")))
        for lane, name in names:
            if layout.tall:
                self._canvas.add(label(lane, 18, name, "mf-quiet", "middle"))
            else:
                self._canvas.add(label(layout.begin - 10, lane + 4, name, "mf-quiet", "end"))

    def _change_of_clocks(self, along: float, text: str) -> None:
        layout = self._canvas.layout
        line = layout.points((along, layout.low), (along, layout.high))
        self._canvas.add(
            f'<polyline class="mf-quiet" stroke="currentColor" stroke-dasharray="2 4" points="{line}"/>'
        )
        if layout.tall:
            self._beside(along, text)
        else:
            self._canvas.add(label(along, layout.high - 5, text, "mf-quiet mf-small", "middle"))

    def _now(self) -> None:
        t, layout = self._canvas.timeline, self._canvas.layout
        if t.now is None or not t.start <= t.now <= t.end:
            return
        along = self._canvas.along(t.now)
        line = layout.points((along, layout.low), (along, layout.high))
        self._canvas.add(f'<polyline stroke="currentColor" stroke-width="2" points="{line}"/>')
        if layout.tall:
            self._beside(along, _("now"))
        else:
            self._canvas.add(label(along, layout.low - 5, _("now"), "", "middle"))

    def _beside(self, along: float, text: str) -> None:
        """Write to the right of a tall picture, and take that place before any outage gets it."""
        self._rows[0].append((along - 8, along + 8))
        self._canvas.add(label(self._canvas.layout.high + 8, along + 4, text))


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
