"""A real PostgreSQL server that a test may stop, freeze and start again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from example_project.child_process import Child, free_port
from tests.support.processes import freeze

_START_TIMEOUT = 60.0
#: Who runs the server when we are root, which it refuses to be run by: Linux's ``nobody``.
_NOBODY = 65534


def find_postgres() -> Path | None:
    """Return the directory of the server's programs on this machine, the newest; None when there is none."""
    here = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: -float(p.parent.name))
    if found := shutil.which("postgres"):
        here.insert(0, Path(found).resolve().parent)
    needed = ("postgres", "initdb", "createdb")
    return next((p for p in here if all(os.access(p / name, os.X_OK) for name in needed)), None)


class Postgres:
    """A server of the test's own, on a free loopback port in a private directory; starts in some 3 seconds.

    A context manager, which starts it and in the end stops it and removes the directory.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self.directory = Path(tempfile.mkdtemp(prefix="celery-misfire-postgres-"))
        self.port = free_port()
        self._as_nobody: list[str] = []
        if os.geteuid() == 0:
            os.chown(self.directory, _NOBODY, _NOBODY)
            ids = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
            self._as_nobody = ["setpriv", *ids, "--"]
        self._child: Child | None = None

    def database(self, name: str) -> dict[str, Any]:
        """Return the settings of a database, as Django has them in ``DATABASES``."""
        place = {"HOST": "127.0.0.1", "PORT": self.port, "USER": "test", "NAME": name}
        return {"ENGINE": "django.db.backends.postgresql", **place, "OPTIONS": {"connect_timeout": 5}}

    def create(self, name: str, template: str = "template1") -> dict[str, Any]:
        """Create a database; return its settings."""
        place = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "test"]
        subprocess.run(
            [self._programs / "createdb", *place, "-T", template, name],
            check=True,
            timeout=60,
            capture_output=True,
        )
        return self.database(name)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        data = self.directory / "data"
        if not data.exists():
            init = [self._programs / "initdb", "-D", data, "-U", "test", "-A", "trust", "-N", "-E", "UTF8"]
            subprocess.run(
                [*self._as_nobody, *init], check=True, timeout=120, capture_output=True, cwd=self.directory
            )
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.directory,
            "fsync": "off",
            "shared_buffers": "16MB",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        command = [*self._as_nobody, self._programs / "postgres", "-D", data, *settings]
        self._child = Child(command, log=self.directory / "server.log", cwd=self.directory)
        self._child.wait_until(self._answers, _START_TIMEOUT, what="PostgreSQL")

    def _answers(self) -> bool:
        assert self._child is not None
        if "ready to accept connections" not in self._child.output():
            return False
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False

    def halt(self) -> None:
        """Stop the server at once; its directory stays, and :meth:`start` goes on with it."""
        assert self._child is not None
        # Its "immediate" stop, which waits for no client.
        self._child.signal(signal.SIGQUIT)
        self._child.stop()
        (self.directory / "server.log").unlink()

    def freeze(self) -> None:
        """Stop the processes without ending them (SIGSTOP): connections stay open and nothing answers."""
        assert self._child is not None
        freeze(self._child)

    def thaw(self) -> None:
        """Let frozen processes go on (SIGCONT)."""
        assert self._child is not None
        self._child.signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
