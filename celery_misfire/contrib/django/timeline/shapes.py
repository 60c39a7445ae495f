"""The parts of a picture in SVG: where things stand, the symbols of the outcomes, and texts."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field

from celery_misfire.contrib.django.timeline.timeline import Fate, Timeline, Waiting
from celery_misfire.misfire import Outcome

#: Half the width of a symbol, in pixels.
_RADIUS = 5.0


@dataclass(frozen=True)
class Layout:
    """Where things stand, in pixels.

    :param kind: its word in the class of the picture.
    :param begin: where the time begins, as `end`; time runs to the right or, if `tall`, down.
    :param due: the lane of what was due.
    :param run: the lane of late runs.
    :param low: where the lanes begin across the time, as `high`, where they end.
    :param spacing: the shortest distance between two ticks of the axis.
    :param bare: there are no words.
    """

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
        return points(*(self.at(*pair) for pair in pairs))

    def rect(self, first: float, last: float, low: float, high: float) -> str:
        (x, y), (x2, y2) = self.at(first, low), self.at(last, high)
        return f'x="{number(x)}" y="{number(y)}" width="{number(x2 - x)}" height="{number(y2 - y)}"'


@dataclass
class Canvas:
    """A picture under way: what it shows, in which layout, and the elements so far."""

    timeline: Timeline
    layout: Layout
    elements: list[str] = field(default_factory=list)

    def add(self, element: str) -> None:
        self.elements.append(element)

    def along(self, moment: int) -> float:
        t, layout = self.timeline, self.layout
        inside = min(max(moment, t.start), t.end)
        return layout.begin + (inside - t.start) / max(1, t.end - t.start) * (layout.end - layout.begin)

    @property
    def per_pixel(self) -> float:
        """How many milliseconds a pixel is."""
        t, layout = self.timeline, self.layout
        return max(1, t.end - t.start) / (layout.end - layout.begin)


def symbol(outcome: Fate, x: float, y: float, *, filled: bool) -> str:
    """Return the symbol of an outcome; no two look the same without their colours."""
    r = _RADIUS
    open_ = 'stroke="currentColor" stroke-width="1.8"' + ("" if filled else ' class="mf-open"')
    if filled:
        open_ += ' fill="currentColor"'
    match outcome:
        case Outcome.FIRED:
            return f'<circle fill="currentColor" cx="{number(x)}" cy="{number(y)}" r="{r}"/>'
        case Outcome.RECOVERED:
            d = r + 1.2
            corners = points((x, y - d), (x + d, y), (x, y + d), (x - d, y))
            return f'<polygon {open_} points="{corners}"/>'
        case Outcome.MERGED:
            corners = points((x, y + r), (x - r, y - r + 1), (x + r, y - r + 1))
            return f'<polygon {open_} points="{corners}"/>'
        case Outcome.MISSED:
            return (
                f'<path stroke="currentColor" stroke-width="2.6" stroke-linecap="round" '
                f'd="M{number(x - r + 0.5)} {number(y - r + 0.5)}l{2 * r - 1:g} {2 * r - 1:g}'
                f'm0 {1 - 2 * r:g}l{1 - 2 * r:g} {2 * r - 1:g}"/>'
            )
        case Waiting.OVERDUE:
            side = f'width="{2 * r - 1:g}" height="{2 * r - 1:g}"'
            return f'<rect {open_} x="{number(x - r + 0.5)}" y="{number(y - r + 0.5)}" {side}/>'
        case _:
            return f'<circle {open_} cx="{number(x)}" cy="{number(y)}" r="{r - 0.5:g}"/>'


def points(*pairs: tuple[float, float]) -> str:
    """Return corners as the attribute ``points`` takes them."""
    return " ".join(f"{number(x)},{number(y)}" for x, y in pairs)


def label(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    """Return a text at this place."""
    kind = f' class="{kind}"' if kind else ""
    anchor = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text{kind}{anchor} x="{number(x)}" y="{number(y)}">{escape(text)}</text>'


def number(value: float) -> str:
    """Return a number with one decimal at most."""
    return f"{value:.1f}".removesuffix(".0")


# The characters that XML cannot hold. A name out of Redis may also have halves of a surrogate pair.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def escape(text: str) -> str:
    """Return a text as XML takes it."""
    return html.escape(_NOT_XML.sub("\ufffd", text))
