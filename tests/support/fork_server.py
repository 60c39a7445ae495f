"""Celery commands that start sooner: forks of a process that has imported Celery, kombu and redis-py already.

These imports are most of what the start of a command costs, and tests start some hundred. The server imports
what a command of Celery imports before it looks for its app. Our own modules, the app and Django are imported
by each process anew. On Linux only, and not for a command whose environment changes Python itself.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: Variables with these beginnings mean something to the interpreter, or to what loads it.
_OF_PYTHON = ("PYTHON", "LC_", "LANG", "LD_")
_IMPORTED = (
    "celery.bin.celery",
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.fixups.django",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
)
#: The server's own.
_ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
    ),
    "PYTHONUNBUFFERED": "1",
}
_LONGEST_REQUEST = 1 << 20
_PR_SET_PDEATHSIG = 1


class Forked:
    """A process that the server has started, with what the tests need of :class:`subprocess.Popen`."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self.pid = int(channel.recv(20))
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, minus the signal's number when a signal ended it; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process, and return its exit code.

        :raises subprocess.TimeoutExpired: when it has not ended after `timeout` seconds.
        """
        if self._status is None:
            self._channel.settimeout(timeout)
            try:
                told = self._channel.recv(20)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0) from None
            # The server says nothing more only when it is gone, and with it went all of its children.
            self._status = int(told or -signal.SIGKILL)
            self._channel.close()
        return self._status

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM)."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)


def can_start(arguments: Sequence[str], env: Mapping[str, str]) -> bool:
    """Return True when this command may be a fork: it needs the same interpreter, without patches."""
    is_patched = any(pool in argument for pool in ("gevent", "eventlet") for argument in arguments)
    return sys.platform == "linux" and not is_patched and _of_python(env) == _of_python(_ENVIRONMENT)


def start(arguments: Sequence[str], *, log: Path, cwd: Path, env: Mapping[str, str]) -> Forked:
    """Start a ``celery`` command, as the leader of a process group.

    :param log: file that takes standard output and standard error, appended to.
    """
    request = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, log.open("ab") as output:
        socket.send_fds(_server(), [json.dumps(request).encode()], [output.fileno(), theirs.fileno()])
    return Forked(ours)


def _of_python(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_OF_PYTHON)}


@functools.cache
def _server() -> socket.socket:
    """Start the server, one for this process; it ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            env=_ENVIRONMENT,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


# -- in the server -------------------------------------------------------------------------------------------


class _Child:
    """A fork whose end the server waits for, and where it tells of it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self._pid, self._channel = pid, channel
        self.handle = os.pidfd_open(pid)

    def tell_end(self) -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        with contextlib.suppress(OSError):
            self._channel.send(str(status).encode())
        self.close()

    def close(self) -> None:
        self._channel.close()
        os.close(self.handle)


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request until nobody can ask any more; return the request in the child that it is for."""
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data:
                    selector.unregister(key.fd)
                    key.data.tell_end()
                elif request := _fork(requests, selector):
                    return request


def _fork(requests: socket.socket, selector: selectors.BaseSelector) -> dict[str, Any] | None:
    message, files, _flags, _address = socket.recv_fds(requests, _LONGEST_REQUEST, 2)
    if not message:
        sys.exit()
    output, channel = files[0], socket.socket(fileno=files[1])
    server = os.getpid()
    if pid := os.fork():
        os.close(output)
        child = _Child(pid, channel)
        selector.register(child.handle, selectors.EVENT_READ, child)
        return None
    _become_leader(server, output)
    channel.send(str(os.getpid()).encode())
    channel.close()
    requests.close()
    for key in selector.get_map().values():
        if key.data:
            key.data.close()
    request: dict[str, Any] = json.loads(message)
    return request


def _become_leader(server: int, output: int) -> None:
    """Lead a process group that writes into this file, and that is killed when the server ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(1)
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def _run(request: Mapping[str, Any]) -> None:
    """Do what ``python -m celery`` does."""
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv[1:] = request["arguments"]
    gc.enable()
    runpy.run_module("celery", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for _name in _IMPORTED:
        importlib.import_module(_name)
    # The collector writes to no object that is frozen, so all forks share its memory.
    gc.disable()
    gc.freeze()
    _run(_serve(socket.socket(fileno=int(sys.argv[1]))))
