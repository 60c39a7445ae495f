"""The picture of a timeline, as SVG."""

from __future__ import annotations

from pathlib import Path

from django.utils.safestring import SafeString, mark_safe

from celery_misfire.contrib.django.timeline.ground import Ground
from celery_misfire.contrib.django.timeline.marks import Marks
from celery_misfire.contrib.django.timeline.shapes import Canvas, Layout, escape
from celery_misfire.contrib.django.timeline.timeline import OUTCOMES, Timeline
from celery_misfire.triggers.wall_times import HOUR

#: The style sheet of the pictures; a page with a picture links to it.
STYLE = Path(__file__).parents[1] / "static" / "celery_misfire" / "picture.css"

_WIDE = Layout("wide", (960, 268), 78, 940, due=100, run=160, low=58, high=190, spacing=74)
_STRIP = Layout("strip", (340, 46), 8, 332, due=13, run=35, low=1, high=45, spacing=0, bare=True)


def _tall(timeline: Timeline) -> Layout:
    # About as long as an hourly schedule needs, whatever the scale.
    length = min(1000, max(420, round((timeline.end - timeline.start) / HOUR * 26)))
    size = (340, 34 + length + 34 + 20 * len(OUTCOMES))
    return Layout("tall", size, 34, 34 + length, due=112, run=172, low=78, high=190, spacing=44, tall=True)


def picture(timeline: Timeline, prefix: str = "mf") -> SafeString:
    """Return the picture for a page: lying on a wide screen, standing on a narrow one.

    The page has to link to ``celery_misfire/picture.css``. The ids in the picture begin with `prefix`.
    """
    drawings = (_draw(timeline, layout, f"{prefix}-{layout.kind}") for layout in (_WIDE, _tall(timeline)))
    inside = "".join(drawings)
    return mark_safe(f'<div class="mf-picture">{inside}</div>')


def strip(timeline: Timeline, prefix: str) -> SafeString:
    """Return the picture as one small line of marks without words, to compare it with others."""
    return mark_safe(_draw(timeline, _STRIP, prefix))


def svg(timeline: Timeline) -> SafeString:
    """Return the picture as a document of its own."""
    style = f"{STYLE.read_text()}\nsvg.mf {{ color-scheme: light dark; background: var(--mf-ground); }}\n"
    return mark_safe(_draw(timeline, _WIDE, "mf", style))


def _draw(timeline: Timeline, layout: Layout, prefix: str, style: str = "") -> str:
    """Return one picture; its ids begin with `prefix`."""
    canvas = Canvas(timeline, layout)
    Ground(canvas).draw()
    Marks(canvas).draw()
    width, height = layout.size
    title, desc = f"{prefix}-title", f"{prefix}-desc"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="mf mf-{layout.kind}" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-labelledby="{title} {desc}" fill="none" stroke="none">'
        f'<title id="{title}">{escape(timeline.name)}</title>'
        f'<desc id="{desc}">{escape(timeline.description)}</desc>'
        + (f"<style>{style}</style>" if style else "")
        + "".join(canvas.elements)
        + "</svg>"
    )
