"""What is left of results that a test has waited for."""

from __future__ import annotations

import gc

from celery import Celery


def let_go(app: Celery) -> None:
    """Forget the results of an app while its server is there.

    One that somebody still waits for unsubscribes when it is collected. Without a server that takes up to
    20 seconds in older versions of Celery, and later, in the middle of another test.
    """
    app.backend._pending_results.concrete.clear()
    gc.collect()
