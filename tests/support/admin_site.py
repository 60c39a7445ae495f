"""Django's admin in the process of a test: a database in memory, an app, users, and what beat has planned.

The pages are asked for with Django's own test client.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import celery._state
import pytest
import redis
from celery import Celery

from celery_misfire import records
from celery_misfire.records import EntryRecord
from celery_misfire.store.port import Change
from celery_misfire.store.redis_store import RedisStore
from tests.support import django_settings
from tests.support.redis_server import RedisServer

if TYPE_CHECKING:
    from django.test import Client

NAMESPACE = "admin"

SETTINGS: dict[str, Any] = {
    "ROOT_URLCONF": "tests.support.admin_urls",
    "ALLOWED_HOSTS": ["testserver"],
    "STATIC_URL": "/static/",
    "PASSWORD_HASHERS": ["django.contrib.auth.hashers.MD5PasswordHasher"],
    "TIME_ZONE": "Europe/Berlin",
    "LANGUAGE_CODE": "en",
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    "TEMPLATES": [
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
    ],
}


class AdminSite:
    """The admin, the app behind it, and the store that its pages read."""

    def __init__(self, app: Celery, url: str) -> None:
        self.app, self.url = app, url
        self.store = RedisStore(url, NAMESPACE)
        self._leads = False

    def client(self, *permissions: str, superuser: bool = False, **options: Any) -> Client:
        """Return the browser of a new staff user with these permissions, logged in."""
        from django.contrib.auth.models import Permission, User
        from django.test import Client

        name = f"user{User.objects.count()}"
        user = User.objects.create_user(name, password="x", is_staff=True, is_superuser=superuser)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        assert user.user_permissions.count() == len(permissions)
        client = Client(**options)
        client.force_login(user)
        return client

    def plan(self, *tasks: Any, **state: Any) -> list[EntryRecord]:
        """Let beat have planned these rows; `state` changes where they stand, as ``next_fire_time=...``."""
        from celery_misfire.contrib.django.rows import entry_name, trigger_of

        planned = []
        for task in tasks:
            record = records.first_seen(entry_name(task), task.task, trigger_of(task), now(), from_now=True)
            planned.append(replace(record, state=replace(record.state, **state)))
        self.write([Change(record.name, "", records.dumps(record)) for record in planned])
        return planned

    def write(self, changes: list[Change], *lines: dict[str, Any]) -> None:
        """Write to the state and to the log, as the leading beat would."""
        if not self._leads:
            self.store.acquire("the test", 600)
            self._leads = True
        assert not self.store.commit("the test", changes, lines).conflicts

    @contextmanager
    def settings(self, **values: Any) -> Iterator[None]:
        """Change settings of the app in the block."""
        before = {name: self.app.conf.get(name) for name in values}
        self.app.conf.update(values)
        try:
            yield
        finally:
            # None is as good as not set.
            self.app.conf.update(before)

    @contextmanager
    def fresh(self) -> Iterator[AdminSite]:
        """Take back what is written in the block, to the database and to Redis."""
        from django.db import transaction

        self._leads = False
        with redis.Redis.from_url(self.url) as client:
            client.flushall()
        with transaction.atomic():
            yield self
            transaction.set_rollback(True)


@contextmanager
def admin_site(url: str, database: str | None = None, **settings: Any) -> Iterator[AdminSite]:
    """Set up the admin with an empty database, and take it down again.

    :param url: of the Redis that has the state, and is the broker.
    :param database: a file for it; None: it is in memory.
    :param settings: of Django, beside those above.
    """
    django_settings.set_up()
    from django.db import connection
    from django.test import override_settings
    from django.test.utils import setup_databases, teardown_databases

    from celery_misfire.contrib.django.admin import replace_registered

    before = celery._state._tls.current_app
    # Without migrations: straight from the models, which takes a fifth of the time.
    test_settings = connection.settings_dict["TEST"]
    settings_before = dict(test_settings)
    test_settings.update(NAME=database, MIGRATE=False)
    # Django never closes a database in memory, also one that another test has left.
    held, connection.connection = connection.connection, None
    app = Celery("shop", broker=url, set_as_current=True)
    app.conf.update(misfire_redis_url=url, misfire_namespace=NAMESPACE)
    replace_registered()
    try:
        with override_settings(**SETTINGS | settings):
            databases = setup_databases(verbosity=0, interactive=False)
            try:
                yield AdminSite(app, url)
            finally:
                teardown_databases(databases, verbosity=0)
    finally:
        test_settings.update(settings_before)
        if connection.connection is not None:
            connection.connection.close()
        connection.connection = held
        celery._state._set_current_app(before)
        app.close()


@pytest.fixture(scope="module")
def admin_of_the_module(server: RedisServer) -> Iterator[AdminSite]:
    with admin_site(server.url) as site:
        yield site


@pytest.fixture
def admin(admin_of_the_module: AdminSite) -> Iterator[AdminSite]:
    """The admin with an empty database and an empty Redis; one for all tests of a file."""
    with admin_of_the_module.fresh() as site:
        yield site


def now() -> int:
    return time.time_ns() // 1_000_000
