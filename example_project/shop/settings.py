"""Settings of the example site; DATABASE_PATH and REDIS_URL come from the environment."""

import os
from pathlib import Path

from example_project.shop.beat_schedule import beat_schedule

# A demo on the loopback interface; a real site keeps its key to itself.
SECRET_KEY = "only-for-the-demo"
DEBUG = True
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "celery_misfire.contrib.django",
    "example_project.shop",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "example_project.shop.urls"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE_PATH", Path(__file__).parents[1] / "shop.sqlite3"),
        # Beat, worker and the site write to this one file: wait for each other, rather than fail.
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
    }
}

CELERY_BROKER_URL = CELERY_RESULT_BACKEND = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
# The queue and the keys of the state; the demo takes its own, so that it can share a Redis with others.
CELERY_MISFIRE_NAMESPACE = CELERY_TASK_DEFAULT_QUEUE = os.environ.get("SHOP_NAMESPACE", "shop")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TIMEZONE = TIME_ZONE
# Entries of the file become rows of the database; those whose schedule has no model stay beside them.
CELERY_BEAT_SCHEDULE = {} if os.environ.get("SHOP_ENTRIES") == "none" else beat_schedule()

# The one setting that a site needs, next to the app in INSTALLED_APPS.
CELERY_BEAT_SCHEDULER = "celery_misfire.contrib.django.beat:DatabaseScheduler"

# Seconds late that count as a misfire. By default half the period, which is little with periods of a second.
CELERY_MISFIRE_THRESHOLD = 3

# A beat that was killed is followed by the next one within 2.2 seconds; the defaults make that 35.
CELERY_MISFIRE_LEASE_TTL = 2
CELERY_MISFIRE_LEASE_RENEW = 0.5
CELERY_MISFIRE_STANDBY_POLL = 0.2
