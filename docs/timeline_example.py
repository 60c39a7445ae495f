"""Prints the picture of the page about the timeline, ``docs/timeline-example.svg``.

The classic example: hourly from 7:00, beat was away from 8:30 until 10:15, and the first of the late runs
stands for the second.
"""

from __future__ import annotations

from datetime import UTC, datetime


def draw() -> str:
    from celery_misfire.contrib.django.timeline import Occurrence, Outage, Timeline, svg
    from celery_misfire.misfire import Outcome, to_millis

    def at(hour: int, minute: int = 0) -> int:
        return to_millis(datetime(2026, 3, 2, hour, minute, tzinfo=UTC))

    back = at(10, 15)
    return svg(
        Timeline(
            name="Fire times of an hourly task",
            start=at(6, 45),
            end=at(14, 15),
            zone=UTC,
            occurrences=(
                Occurrence(at(7), Outcome.FIRED, at(7)),
                Occurrence(at(8), Outcome.FIRED, at(8)),
                Occurrence(at(9), Outcome.RECOVERED, back),
                Occurrence(at(10), Outcome.MERGED, back),
                Occurrence(at(11), Outcome.FIRED, at(11)),
                Occurrence(at(12), None),
                Occurrence(at(13), None),
                Occurrence(at(14), None),
            ),
            outages=(Outage(at(8, 30), back, "Beat was down"),),
            now=at(11, 30),
        )
    )


if __name__ == "__main__":
    import django
    from django.conf import settings

    settings.configure(USE_TZ=True)
    django.setup()
    print(draw())
