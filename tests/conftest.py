from __future__ import annotations

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


@pytest.fixture
def redis_server(redis_binary: Path) -> Iterator[RedisServer]:
    """A fresh, empty server for one test."""
    with RedisServer(redis_binary) as server:
        yield server
