"""Apps with a configuration, right or wrong, for the tests of ``celery_misfire.conf.settings``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab

from celery_misfire.exceptions import MisfireConfigError

BROKER = {"broker_url": "redis://localhost:6379/0"}
HOURLY = {"task": "shop.reports", "schedule": crontab(minute=0)}
FIT_CRON = "smart_policy, ignore_misfire_policy, fire_once_now, do_nothing"


@pytest.fixture(autouse=True)
def no_urls_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """To be imported by a test file: without it, URLs in the environment would count."""
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.delenv(name, raising=False)


def app_with(main: str | None = "shop", /, **config: Any) -> Celery:
    """Return an app with a Redis as its broker and these settings."""
    app = Celery(main, set_as_current=False)
    app.conf.update(BROKER | config)
    return app


def problems_of(read: Callable[[], object]) -> tuple[str, ...]:
    """Return the problems of the configuration error that `read` raises."""
    with pytest.raises(MisfireConfigError) as caught:
        read()
    return caught.value.problems
