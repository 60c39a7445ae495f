from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.one_redis import World
from tests.support.processes import Project
from tests.support.redis_server import ClusterNode, RedisServer
from tests.support.results import let_go
from tests.support.shop import Shop
from tests.support.stores import MemoryPlace, RedisPlace, StorePlace


@pytest.fixture(
    scope="module",
    params=[
        "memory",
        "redis",
        pytest.param("cluster", marks=pytest.mark.long),
        pytest.param("valkey", marks=pytest.mark.long),
    ],
)
def store_server(request: pytest.FixtureRequest) -> Iterator[RedisServer | None]:
    """A server of each kind that can keep a store, one for all tests of a module; None stands for memory."""
    if request.param == "memory":
        yield None
        return
    program = request.getfixturevalue("valkey_binary" if request.param == "valkey" else "redis_binary")
    with (ClusterNode if request.param == "cluster" else RedisServer)(program) as server:
        yield server


@pytest.fixture
def place(store_server: RedisServer | None) -> StorePlace:
    """A place where a store keeps its state, empty."""
    place = RedisPlace(store_server) if store_server else MemoryPlace()
    place.lose()
    return place


@pytest.fixture(scope="module")
def shop(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One worker with one process, for all tests of its behaviour."""
    with Project(tmp_path_factory.mktemp("shop"), server.url) as project:
        # The watch over beat looks when the worker starts, and not again.
        project.configure({}, result_extended=True, misfire_check_rate=3600)
        shop = Shop(project, server.url)
        shop.worker = project.worker("--concurrency=1", pool="prefork")
        yield shop
        let_go(shop.app)
        let_go(shop.fires.app)


@pytest.fixture
def world(redis_server: RedisServer) -> Iterator[World]:
    """A Redis of the test's own, and beats on it whose messages and state are there."""
    world = World(redis_server)
    yield world
    world.close()
