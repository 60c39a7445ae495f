from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_misfire.sending import missed_runs as missed
from celery_misfire.worker import watch
from example_project.embedded_redis import RedisNotFound, find_server
from tests.support.admin_site import admin, admin_of_the_module  # noqa: F401 - fixtures
from tests.support.django_project import (  # noqa: F401 - fixtures
    any_site,
    migrated_file,
    postgres,
    postgres_server,
    postgres_site,
    site,
)
from tests.support.rabbitmq import RabbitMQ, find_rabbitmq
from tests.support.redis_server import RedisServer
from tests.support.services import skip_without_service
from tests.support.wheel import install_wheel


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.support.distribution import LongestFirst

    return LongestFirst(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # In one process they stay as they are written: what fails soonest comes first.
    if hasattr(config, "workerinput"):
        from tests.support.distribution import sort

        sort(items)


def pytest_collection_finish() -> None:
    # Thousands of test items live to the end. Left out of every collection, they cost nothing more.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def redis_binary() -> Path:
    """The server program of Redis, or of Valkey where there is no Redis."""
    return _server_or_skip()


@pytest.fixture(scope="session")
def valkey_binary() -> Path:
    """The server program of Valkey."""
    return _server_or_skip("valkey-server")


def _server_or_skip(*names: str) -> Path:
    try:
        return find_server(*names)
    except RedisNotFound as error:
        skip_without_service(str(error))


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
    """Forget the hooks of a Django site: an earlier test may have set one up."""
    hooks: list[list[Any]] = [missed.recorders, missed.connection_closers, watch.finders]
    before = [hook[:] for hook in hooks]
    for hook in hooks:
        hook.clear()
    yield
    for hook, kept in zip(hooks, before, strict=True):
        hook[:] = kept


@pytest.fixture(scope="session")
def python_with_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel; whoever uses it leaves it as it is."""
    return install_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def redis_server(redis_binary: Path) -> Iterator[RedisServer]:
    """A fresh, empty server for one test."""
    with RedisServer(redis_binary) as server:
        yield server


@pytest.fixture(scope="module")
def server(redis_binary: Path) -> Iterator[RedisServer]:
    """One server for all tests of a file."""
    with RedisServer(redis_binary) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_of_the_session() -> Iterator[RabbitMQ]:
    """One for all tests: it takes 7 seconds to start. Skipped without the program, as Redis is."""
    program = find_rabbitmq()
    if program is None:
        skip_without_service("no rabbitmq-server and epmd on this machine")
    with RabbitMQ(program) as server:
        yield server


@pytest.fixture
def rabbitmq_server(rabbitmq_of_the_session: RabbitMQ) -> RabbitMQ:
    """A server that runs, and whose default queue is not there yet."""
    rabbitmq_of_the_session.recover()
    return rabbitmq_of_the_session
