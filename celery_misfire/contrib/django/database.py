"""What reports of missed runs need of Django's database: working connections, and a lock on a result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import close_old_connections, router, transaction

from celery_misfire.sending.missed_runs import connection_closers

__all__ = ["hold_result", "install"]


def install() -> None:
    """Have old connections closed in the threads that make reports, as Django does around a request."""
    if close_old_connections not in connection_closers:
        connection_closers.append(close_old_connections)


@contextmanager
def hold_result(model: Any, task_id: str) -> Iterator[str]:
    """Lock the row of a result for the block, and give its state.

    :param model: the model of django-celery-results.
    """
    using = router.db_for_write(model)
    rows = model._default_manager.using(using)
    with transaction.atomic(using=using):
        # A lock needs a row that exists.
        rows.get_or_create(task_id=task_id)
        yield rows.select_for_update().get(task_id=task_id).status
