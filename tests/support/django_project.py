"""Real ``celery beat`` and worker processes of a Django site, and its database in the hands of the test.

With the fixtures ``site`` (SQLite), ``postgres_site`` and ``any_site`` (both, one after the other)::

    def test_something(site: DjangoProject) -> None:
        site.configure({})
        row = site.add("reports", interval=3600)
        beat = site.leading_beat()
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from celery_misfire.misfire import to_millis
from tests.support import django_settings
from tests.support.outcomes import of_entry
from tests.support.postgres import Postgres, find_postgres
from tests.support.processes import NAMESPACE, CeleryProcess, Project, published, wait_for
from tests.support.redis_server import RedisServer
from tests.support.services import skip_without_service

SCHEDULER = "celery_misfire.contrib.django.beat:DatabaseScheduler"
STOCK = "django_celery_beat.schedulers:DatabaseScheduler"
STATE = f"celery-misfire:{{{NAMESPACE}}}:state"


class DjangoProject(Project):
    """The project of the process tests as a Django site.

    :param database: its settings as in ``DATABASES``; with the tables of all apps.
    """

    def __init__(self, directory: Path, url: str, database: Mapping[str, Any]) -> None:
        self.database = database
        self.django: dict[str, Any] = {}
        super().__init__(directory, url)

    def configure(
        self, entries: Mapping[str, Mapping[str, Any]], *, install: bool = True, **settings: Any
    ) -> None:
        """Write the configuration as :class:`Project` does, with our scheduler for Django."""
        super().configure(entries, install=install, **{"beat_scheduler": SCHEDULER} | settings)

    @property
    def env(self) -> dict[str, str]:
        values = {"DATABASES": {"default": self.database}, **self.django}
        django = {
            "DJANGO_SETTINGS_MODULE": django_settings.__name__,
            "MISFIRE_TEST_DJANGO": json.dumps(values),
        }
        return super().env | django

    def stock_beat(self, name: str = "stock") -> CeleryProcess:
        """Start ``celery beat`` with django-celery-beat's own scheduler."""
        return self.beat("-S", STOCK, "--loglevel=DEBUG", name=name)

    def add(
        self,
        name: str,
        *,
        interval: int | None = None,
        crontab: Mapping[str, str] | None = None,
        clocked: datetime | None = None,
        misfire: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Any:
        """Create a periodic task, of the recorder; return it.

        :param interval: in seconds.
        :param crontab: its fields; ``timezone`` by name.
        :param misfire: the fields of its policy.
        """
        from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask

        from celery_misfire.contrib.django.models import MisfirePolicy

        if interval is not None:
            fields["interval"] = IntervalSchedule.objects.get_or_create(every=interval, period="seconds")[0]
        if crontab is not None:
            zone = ZoneInfo(crontab.get("timezone", "UTC"))
            fields["crontab"] = CrontabSchedule.objects.create(**{**crontab, "timezone": zone})
        if clocked is not None:
            fields |= {"clocked": ClockedSchedule.objects.create(clocked_time=clocked), "one_off": True}
        row = PeriodicTask.objects.create(**{"name": name, "task": "record", **fields})
        if misfire is not None:
            MisfirePolicy.objects.create(periodic_task=row, **misfire)
        return row

    def sees(self, *names: str, timeout: float = 60) -> None:
        """Wait until beat has these rows in its schedule."""
        wait_for(lambda: all(self._is_planned(n) for n in names), timeout, what=f"beat to see {names}")

    def misses(self, *names: str, timeout: float = 60) -> None:
        """Wait until beat has none of these rows in its schedule."""
        wait_for(lambda: not any(self._is_planned(n) for n in names), timeout, what=f"beat to drop {names}")

    def _is_planned(self, name: str) -> bool:
        record = self.state(name)
        return record is not None and record.removed_at is None

    def runs_of(self, name: str) -> list[str]:
        """Return the outcomes with which runs of this row were sent, oldest first.

        One that was sent twice under its id, as after a kill, is one.
        """
        return list({m.id: m.misfire["outcome"] for m in of_entry(published(self.url), name)}.values())


def let_pass(server: RedisServer, length: timedelta) -> None:
    """Move all that the store remembers into the past; to beat it is as if it had been away so long.

    But for Celery's own clean-up, which is due at four o'clock: in the hours before, it would be due then.
    """
    client, millis = server.client(), length // timedelta(milliseconds=1)
    for key, text in client.hgetall(STATE).items():
        if key.startswith("e:") and key != "e:celery.backend_cleanup":
            record = json.loads(text)
            record["generation"] -= millis
            for moment in ("next_fire_time", "previous_fire_time", "start_time"):
                if record["state"][moment]:
                    record["state"][moment] -= millis
            if record.get("paused_from"):
                record["paused_from"] -= millis
            client.hset(STATE, key, json.dumps(record))


def put_next(server: RedisServer, name: str, moment: datetime) -> None:
    """Say to beat, which does not run, that this row was last planned for then."""
    client = server.client()
    record = json.loads(client.hget(STATE, f"e:{name}"))
    ago = record["state"]["next_fire_time"] - to_millis(moment)
    record["generation"] -= ago
    record["state"]["next_fire_time"] -= ago
    client.hset(STATE, f"e:{name}", json.dumps(record))


def now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def connected(database: Mapping[str, Any]) -> Iterator[None]:
    """Let Django in this process work on this database."""
    django_settings.set_up()
    from django.db import connections

    connections["default"].close()
    before = dict(connections.settings["default"])
    connections.settings["default"].update(database)
    del connections["default"]
    try:
        yield
    finally:
        connections["default"].close()
        connections.settings["default"].clear()
        connections.settings["default"].update(before)
        del connections["default"]


def migrate(database: Mapping[str, Any]) -> None:
    """Create the tables."""
    with connected(database):
        from django.core.management import call_command

        call_command("migrate", verbosity=0)


def sqlite(path: Path) -> dict[str, Any]:
    """Return the settings of a database in a file."""
    options = {"timeout": 20, "init_command": "PRAGMA journal_mode=WAL;"}
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path), "OPTIONS": options}


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the tables, made once for all processes of pytest-xdist; it is only copied."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    path = place / "migrated.sqlite3"
    with (place / "migrated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            migrate({"ENGINE": "django.db.backends.sqlite3", "NAME": f"{path}.new"})
            os.rename(f"{path}.new", path)
    return path


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A server without databases; without the programs the test is skipped, as without Redis."""
    programs = find_postgres()
    if programs is None or importlib.util.find_spec("psycopg") is None:
        missing = "No PostgreSQL server on this machine" if programs is None else "No psycopg"
        skip_without_service(missing)
    with Postgres(programs) as server:
        yield server


@pytest.fixture(scope="session")
def postgres(postgres_server: Postgres) -> Postgres:
    """The server with a database ``migrated``."""
    migrate(postgres_server.create("migrated"))
    return postgres_server


@pytest.fixture
def site(tmp_path: Path, redis_server: RedisServer, migrated_file: Path) -> Iterator[DjangoProject]:
    """A site on SQLite."""
    path = tmp_path / "site.sqlite3"
    shutil.copy(migrated_file, path)
    yield from _site(tmp_path, redis_server, sqlite(path))


@pytest.fixture
def postgres_site(tmp_path: Path, redis_server: RedisServer, postgres: Postgres) -> Iterator[DjangoProject]:
    """A site on PostgreSQL."""
    name = f"site_{os.getpid()}_{tmp_path.name.replace('-', '_').lower()}"[:60]
    yield from _site(tmp_path, redis_server, postgres.create(name, template="migrated"))


@pytest.fixture(params=["sqlite", "postgres"])
def any_site(request: pytest.FixtureRequest) -> DjangoProject:
    """A site on the one and on the other."""
    found: DjangoProject = request.getfixturevalue("site" if request.param == "sqlite" else "postgres_site")
    return found


def _site(directory: Path, server: RedisServer, database: Mapping[str, Any]) -> Iterator[DjangoProject]:
    with connected(database), DjangoProject(directory, server.url, database) as project:
        yield project
