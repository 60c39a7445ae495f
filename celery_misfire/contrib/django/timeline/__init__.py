"""What became of an entry's fire times, and what an outage would do: in words and as a picture."""

from __future__ import annotations

from celery_misfire.contrib.django.timeline.picture import svg
from celery_misfire.contrib.django.timeline.timeline import Occurrence, Outage, Timeline

__all__ = ["Occurrence", "Outage", "Timeline", "svg"]
