from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from example_project.embedded_redis import RedisNotFound, find_server
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="session")
def redis_binary() -> Path:
    """The server program; without one the test is skipped, and fails when REQUIRE_SERVICES=1."""
    try:
        return find_server()
    except RedisNotFound as error:
        if os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def log_of_our_own() -> Iterator[None]:
    """Let caplog see what the package logs: a worker in an earlier test has set the root logger's level."""
    logger = logging.getLogger("celery_misfire")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    yield
    logger.setLevel(level)


@pytest.fixture
def redis_server(redis_binary: Path) -> Iterator[RedisServer]:
    """A fresh, empty server for one test."""
    with RedisServer(redis_binary) as server:
        yield server
