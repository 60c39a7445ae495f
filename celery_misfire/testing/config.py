"""The configuration of an app, checked without a beat."""

from __future__ import annotations

from celery import Celery

from celery_misfire.conf.problems import as_line, spelling
from celery_misfire.conf.settings import read_config
from celery_misfire.conf.warnings import warnings_for
from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.texts import quote, quote_name, suggestion


def check_config(app: Celery, *, warnings: bool = False) -> list[str]:
    """Return all problems for which beat would refuse to start, one line each; [] when there are none.

    :param warnings: also what beat would warn of at its start, and tasks in the schedule that the app does
        not have.
    """
    complete(app)
    try:
        settings, entries = read_config(app, app.conf.beat_schedule or {})
    except MisfireConfigError as exc:
        return list(exc.problems)
    if not warnings:
        return []
    schedule = spelling(app)("beat_schedule")
    unknown = [
        as_line(
            f"{schedule}[{quote_name(name)}].task",
            f"the app has no task {quote(task)}.{suggestion(task, app.tasks)}",
        )
        for name, entry in entries.items()
        if (task := str(entry.keys["task"])) not in app.tasks
    ]
    return unknown + warnings_for(app, settings, entries)


def complete(app: Celery) -> Celery:
    """Have the app know its tasks, and the entries that are added when it does."""
    app.loader.import_default_modules()
    app.finalize()
    return app
