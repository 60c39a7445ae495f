"""Django's settings in tests.

Processes take them by ``DJANGO_SETTINGS_MODULE``, with the values of the JSON in ``MISFIRE_TEST_DJANGO`` on
top. In the process of the tests :func:`set_up` does it, and leaves the environment alone: Celery apps of
other tests would take themselves for parts of a Django site.
"""

from __future__ import annotations

import json
import os

import django
from django.conf import settings

SECRET_KEY = "only-for-tests"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django_celery_beat",
    "celery_misfire.contrib.django",
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}

globals().update(json.loads(os.environ.get("MISFIRE_TEST_DJANGO", "{}")))


def set_up() -> None:
    """Set Django up in this process, unless that has been done, perhaps with other settings."""
    if not settings.configured:
        settings.configure(**{name: value for name, value in globals().items() if name.isupper()})
    django.setup()
