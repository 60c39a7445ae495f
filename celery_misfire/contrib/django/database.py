"""What is asked of Django's database itself: working connections, our tables, and a lock on a result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import close_old_connections, connections, router, transaction
from django.db.models import prefetch_related_objects
from django.utils.translation import gettext_lazy

from celery_misfire.sending.missed_runs import connection_closers

#: What a page says where :func:`is_migrated` is False.
NOT_MIGRATED = gettext_lazy("The tables of misfire handling are missing. Run: manage.py migrate")

#: The foreign keys of a row of PeriodicTask to its schedule.
SCHEDULES = ("interval", "crontab", "solar", "clocked")

#: The databases that have been seen to have our tables.
_migrated: set[str] = set()


def is_migrated() -> bool:
    """Return True when our tables are there with all columns; asked until they are.

    :raises django.db.Error: when the database fails.
    """
    models: Any = apps.get_app_config("celery_misfire").get_models()
    using = router.db_for_read(apps.get_model("celery_misfire", "MissedFire"))
    if using in _migrated:
        return True
    connection = connections[using]
    with connection.cursor() as cursor:
        tables = connection.introspection.table_names(cursor)
        for model in models:
            if model._meta.db_table not in tables:
                return False
            known = connection.introspection.get_table_description(cursor, model._meta.db_table)
            columns = {column.name for column in known}
            if not columns.issuperset(field.column for field in model._meta.concrete_fields):
                return False
    _migrated.add(using)
    return True


def with_schedules(tasks: Sequence[Any]) -> None:
    """Read the schedules of these rows of PeriodicTask by a few queries; leave out what cannot be read."""
    try:
        prefetch_related_objects(tasks, *SCHEDULES)
    except ValidationError:
        # A row has a time zone that this machine does not know. Halving finds that row. Whoever wants its
        # schedule reads it alone, and fails alone.
        middle = len(tasks) // 2
        for half in (tasks[:middle], tasks[middle:]) if middle else ():
            with_schedules(half)


def with_policies(tasks: Sequence[Any]) -> None:
    """Read schedules and policies of these rows of PeriodicTask, as :func:`with_schedules` does."""
    with_schedules(tasks)
    prefetch_related_objects(tasks, "misfire_policy")


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
