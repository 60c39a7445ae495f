"""For tests of your own schedules: beat on a virtual clock, a task that runs for a fire, records of misses.

The planner, the leader and all that they decide are those of production. The state is in memory, nothing is
sent, and no time passes. ``outage`` is also a fixture, of the pytest plugin that comes with this package.
"""

from __future__ import annotations

from celery_misfire.testing.beat import Beat, Fires, outage
from celery_misfire.testing.config import check_config
from celery_misfire.testing.runs import fire, make_missed

__all__ = ["Beat", "Fires", "check_config", "fire", "make_missed", "outage"]
