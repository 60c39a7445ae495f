"""A real Redis server that a test may kill, freeze and restart."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Literal

import redis

from example_project.child_process import Child
from example_project.embedded_redis import EmbeddedRedis


class RedisServer(EmbeddedRedis):
    """A server process of the test's own, on a free loopback port in a private directory.

    A context manager, which starts it and in the end stops it and removes the directory. ``REDIS_URL`` does
    not matter here.

    :param program: the server program; None for the one that is found on this machine.
    :param append_only: keep an append-only file, flushed ``"always"`` or ``"everysec"``; None: keep nothing.
    :param options: further options, as on the server's command line.
    """

    def __init__(
        self,
        program: Path | None = None,
        *options: str,
        append_only: Literal["always", "everysec"] | None = None,
    ) -> None:
        if append_only:
            options = ("--appendonly", "yes", "--appendfsync", append_only, *options)
        super().__init__(program, *options)

    def client(self) -> redis.Redis:
        """Return a new client that decodes answers to text."""
        return redis.Redis.from_url(self.url, decode_responses=True)

    def kill(self) -> None:
        """Kill the server process (SIGKILL); its directory stays."""
        self._running().kill()

    def freeze(self) -> None:
        """Stop the process without ending it (SIGSTOP): connections stay open and nothing answers."""
        self._running().signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on (SIGCONT)."""
        self._running().signal(signal.SIGCONT)

    def restart(self) -> None:
        """Start again on the same port and directory, after a clean stop if it still runs."""
        self._running().stop()
        self.start()

    def _running(self) -> Child:
        assert self.child is not None, "the server was never started"
        return self.child
