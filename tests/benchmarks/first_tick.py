"""The two schedulers on the database, each saying when its first tick is done."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from django_celery_beat.schedulers import DatabaseScheduler as StockScheduler

from celery_misfire.contrib.django.beat import DatabaseScheduler


class _Told:
    def tick(self, *args: Any, **kwargs: Any) -> float:
        delay = super().tick(*args, **kwargs)
        path = Path(os.environ["FIRST_TICK"])
        # Ours ticks before it leads; stock's first tick has all that it loads.
        if getattr(self, "_leading", True) and not path.exists():
            path.write_text(str(time.time()))
        return delay


class Ours(_Told, DatabaseScheduler):
    pass


class Stock(_Told, StockScheduler):
    pass
