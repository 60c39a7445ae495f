"""What ``manage.py check`` says about the set-up; ``check --deploy`` also asks Redis, and all migrations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from celery import Celery
from celery import _state as celery_state
from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.db.migrations.executor import MigrationExecutor
from django_celery_beat.models import CrontabSchedule
from kombu.utils.functional import maybe_evaluate
from kombu.utils.imports import symbol_by_name

from celery_misfire.conf.settings import read_config, read_settings
from celery_misfire.contrib.django.beat import DatabaseScheduler
from celery_misfire.contrib.django.database import is_migrated
from celery_misfire.contrib.django.models import MisfirePolicy
from celery_misfire.exceptions import MisfireConfigError, StoreUnavailable
from celery_misfire.store.redis_store import RedisStore

SCHEDULER = f"{DatabaseScheduler.__module__}:{DatabaseScheduler.__name__}"
#: The apps whose tables beat needs.
TABLES = ("celery_misfire", "django_celery_beat")
#: Longest wait for one answer of Redis, in seconds.
READ_TIMEOUT = 1.0

Apps = Iterable[AppConfig] | None


@register("celery_misfire")
def check_app(app_configs: Apps, **_: Any) -> list[CheckMessage]:
    """Check the configuration of the Celery app."""
    app = celery_state.get_current_app()
    # Celery makes an app of this name when there is none. A real app may make itself the default, too.
    if app is celery_state.default_app and app.main == "default":  # type: ignore[attr-defined]
        return [
            Warning(
                "No Celery app has been loaded.",
                hint="Import it in the __init__.py of the project: from .celery import app as celery_app",
                id="celery_misfire.W001",
            )
        ]
    return [*_scheduler(app), *_deadline(app), *_settings(app)]


def _scheduler(app: Celery) -> list[CheckMessage]:
    written = app.conf.beat_scheduler
    if written == "misfire-django":
        return [
            Warning(
                "CELERY_BEAT_SCHEDULER is the alias 'misfire-django', which django-celery-beat's admin "
                "cannot resolve.",
                hint=f"Set CELERY_BEAT_SCHEDULER = {SCHEDULER!r}; the alias is for celery beat -S.",
                id="celery_misfire.W002",
            )
        ]
    try:
        scheduler = symbol_by_name(written)
    except Exception:
        # It is another alias: one of celery beat's own, or of a package.
        scheduler = None
    if isinstance(scheduler, type) and issubclass(scheduler, DatabaseScheduler):
        return []
    return [
        Warning(
            f"CELERY_BEAT_SCHEDULER is {written!r}: misfire policies of periodic tasks have no effect.",
            hint=f"Set CELERY_BEAT_SCHEDULER = {SCHEDULER!r}.",
            id="celery_misfire.W003",
        )
    ]


def _deadline(app: Celery) -> list[CheckMessage]:
    if app.conf.get("beat_cron_starting_deadline") is None:
        return []
    return [
        Warning(
            "CELERY_BEAT_CRON_STARTING_DEADLINE is set, and not used by this scheduler.",
            hint="Remove it, and give the periodic tasks a longest lateness in their misfire policy.",
            id="celery_misfire.W004",
        )
    ]


def _settings(app: Celery) -> list[CheckMessage]:
    try:
        read_config(app, maybe_evaluate(app.conf.beat_schedule) or {}, DatabaseScheduler.entry_keys)
    except MisfireConfigError as exc:
        return [Error(line, id="celery_misfire.E001") for line in exc.problems]
    return []


@register("celery_misfire")
def check_tables(app_configs: Apps, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Check what only the tables tell, when the database answers; ``migrate``, which names it, goes first."""
    if databases is not None:
        return []
    try:
        if not is_migrated():
            what = "The tables of misfire handling are missing, or are those of an older version."
            return [Warning(what, hint="Run manage.py migrate.", id="celery_misfire.W007")]
        return _zones(celery_state.get_current_app())
    except Exception:
        # Most commands do not need the database, and some run before it is there.
        return []


def _zones(app: Celery) -> list[CheckMessage]:
    if getattr(settings, "DJANGO_CELERY_BEAT_TZ_AWARE", True):
        return []
    others = CrontabSchedule.objects.filter(periodictask__enabled=True).exclude(timezone=str(app.timezone))
    count = others.distinct().count()
    if not count:
        return []
    return [
        Warning(
            f"DJANGO_CELERY_BEAT_TZ_AWARE is off, so {count} crontabs with another time zone run in that of "
            f"the Celery app, {app.timezone}.",
            hint="Remove the setting, or give these crontabs the time zone of the app.",
            id="celery_misfire.W008",
        )
    ]


@register("celery_misfire", deploy=True)
def check_services(app_configs: Apps, **_: Any) -> list[CheckMessage]:
    """Check that Redis can be reached and that the tables are there: each within a second or so."""
    return [*_redis(), *_migrations()]


def _redis() -> list[CheckMessage]:
    try:
        RedisStore.of(read_settings(celery_state.get_current_app()), READ_TIMEOUT).is_guarded()
    except MisfireConfigError:
        # check_app reports it.
        return []
    except StoreUnavailable as exc:
        hint = "Start it, or correct CELERY_MISFIRE_REDIS_URL; celery beat waits until it is there."
        return [Warning(f"The Redis of misfire handling: {exc}", hint=hint, id="celery_misfire.W005")]
    return []


def _migrations() -> list[CheckMessage]:
    alias = router.db_for_write(MisfirePolicy) or DEFAULT_DB_ALIAS
    try:
        executor = MigrationExecutor(connections[alias])
        leaves = executor.loader.graph.leaf_nodes()
        missing = [app for app in TABLES if executor.migration_plan([key for key in leaves if key[0] == app])]
    except Exception as exc:
        what = f"The database {alias!r} cannot be asked for its tables ({type(exc).__name__})."
        return [Warning(what, id="celery_misfire.W006")]
    if not missing:
        return []
    return [
        Error(
            f"Migrations are missing in the database {alias!r}: {', '.join(missing)}.",
            hint="Run manage.py migrate; until then celery beat plans nothing.",
            id="celery_misfire.E002",
        )
    ]
