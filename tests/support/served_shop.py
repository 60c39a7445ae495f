"""The example site behind a real web server, for a real browser.

With the fixtures ``browser`` and ``shop``; a shop is on SQLite unless its test says otherwise by one of the
marks below.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from example_project.demo.site import PASSWORD, USER, Site
from tests.support.postgres import Postgres
from tests.support.redis_server import RedisServer
from tests.support.services import skip_without_service

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

VIEWER = "viewer"

#: What the tests need beside what the shop has: a period to choose, and somebody who may look.
SEED = f"""
import django; django.setup()
from django.contrib.auth.models import Permission, User
from django_celery_beat.models import IntervalSchedule, PeriodicTask
IntervalSchedule.objects.create(every=2, period="seconds")
viewer = User.objects.create_user("{VIEWER}", password="{PASSWORD}", is_staff=True)
viewer.user_permissions.set(Permission.objects.filter(codename__in=["view_missedfire", "view_periodictask"]))
"""

_SQLITE, _POSTGRES = "sqlite", "postgres"
#: Runs a test on both databases.
ON_BOTH = pytest.mark.parametrize("shop", [_SQLITE, _POSTGRES], indirect=True)
#: Runs a test on one database, and in the long run on the other one, too.
ON_POSTGRES = pytest.mark.parametrize(
    "shop", [_POSTGRES, pytest.param(_SQLITE, marks=pytest.mark.long)], indirect=True
)
ON_SQLITE = pytest.mark.parametrize(
    "shop", [_SQLITE, pytest.param(_POSTGRES, marks=pytest.mark.long)], indirect=True
)


# Not for the session: while it is open an event loop runs in this thread, and Django takes no query there.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from tests.support.browser import chromium, find_chromium

    program = find_chromium()
    if program is None:
        skip_without_service("no chromium on this machine")
    with chromium(program) as browser:
        yield browser


class Shop(Site):
    """The example site with its web server, and nothing on its schedule but what the tests put there."""

    address = ""

    @property
    def environment(self) -> dict[str, str]:
        names = {"DJANGO_SETTINGS_MODULE": "tests.support.served_shop_settings"}
        return super().environment | names | {"SHOP_ENTRIES": "none"}

    def open(self, prepared: Path) -> None:
        """Serve a copy of the prepared database, which the first one makes."""
        if not prepared.exists():
            self.seed()
            shutil.copy(self.database, prepared)
        shutil.copy(prepared, self.database)
        self.start_server()

    def seed(self) -> None:
        self.prepare()
        self.add_user()
        self.python(SEED)

    def start_server(self) -> None:
        self.address = self.serve().removesuffix("admin/")

    def python(self, code: str) -> str:
        """Run code in the site's environment; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | self.environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    def journal(self) -> list[Mapping[str, Any]]:
        """Return what the tasks wrote into the database; times are texts."""
        return [dict(run) for run in self.runs()]

    def page(self, browser: Browser, user: str | None = USER) -> Page:
        """Return a new window, in which this user has logged in."""
        page = browser.new_context(base_url=self.address).new_page()
        page.set_default_timeout(20_000)
        if user:
            page.goto("/admin/")
            page.fill("#id_username", user)
            page.fill("#id_password", PASSWORD)
            page.click("input[type=submit]")
        return page


class PostgresShop(Shop):
    """The same on a database of a real PostgreSQL server."""

    def __init__(self, directory: Path, url: str, server: Postgres) -> None:
        super().__init__(directory, url)
        self._server = server
        self._database = server.database(self.namespace.replace("-", "_"))

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"SHOP_DATABASE": json.dumps(self._database)}

    def open(self, prepared: Path) -> None:
        template = prepared.parent.name
        if not (mark := prepared.with_suffix(".postgres")).exists():
            own, self._database = self._database, self._server.create(template)
            self.seed()
            self._database = own
            mark.touch()
        self._server.create(self._database["NAME"], template=template)
        self.start_server()

    def journal(self) -> list[Mapping[str, Any]]:
        import psycopg
        from psycopg.rows import dict_row

        place = {name.lower(): self._database[name] for name in ("HOST", "PORT", "USER")}
        columns = "entry, scheduled_fire_time::text, fire_time::text, outcome, missed_count"
        with psycopg.connect(**place, dbname=self._database["NAME"], options="-c timezone=UTC") as connection:
            cursor = connection.cursor(row_factory=dict_row)
            return cursor.execute(f"SELECT {columns} FROM shop_run ORDER BY id").fetchall()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the database with tables and users is, once the first shop has made it."""
    return tmp_path_factory.mktemp("shop") / "prepared.sqlite3"


@pytest.fixture
def shop(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path, prepared: Path
) -> Iterator[Shop]:
    shop = Shop(tmp_path, redis_server.url)
    if getattr(request, "param", _SQLITE) == _POSTGRES:
        shop = PostgresShop(tmp_path, redis_server.url, request.getfixturevalue("postgres_server"))
    try:
        shop.open(prepared)
        yield shop
    finally:
        shop.stop()
