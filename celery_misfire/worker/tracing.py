"""What the span of a run tells of its fire, where OpenTelemetry is at work.

The instrumentation of Celery (``opentelemetry-instrumentation-celery``) opens a span for each run. Nothing
here needs it, or makes spans of its own.
"""

from __future__ import annotations

import time

from celery_misfire.fire import current_fire, isoformat
from celery_misfire.log_lines import log_fields

try:
    from opentelemetry import trace
except ImportError:
    trace = None  # type: ignore[assignment]


def describe_span() -> None:
    """Add entry, scheduled time, outcome and lateness to the span of the run that is about to start.

    The names of the attributes are those of the fields of the log. Does nothing without a span that records.
    """
    if trace is None or not (span := trace.get_current_span()).is_recording():
        return
    if (fire := current_fire()) is not None:
        values = log_fields(
            "run",
            entry=fire.entry,
            scheduled=isoformat(fire.scheduled_fire_time),
            fire_time=isoformat(fire.fire_time),
            outcome=str(fire.outcome),
            late_by=round(time.time() - fire.scheduled_fire_time.timestamp(), 3),
        )
        span.set_attributes(values)
