"""A process that never outlives the one that started it."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# Asks Linux to kill this process when its parent dies, then becomes the program. A fresh interpreter, because
# preexec_fn is not safe in a process with threads. 1 is PR_SET_PDEATHSIG, 9 is SIGKILL.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


class Child:
    """A running child process, the leader of its own process group: a signal reaches its children too.

    Output goes to a file, because a pipe that nobody reads stops its writer. A Ctrl-C in the terminal does
    not reach the child: whoever started it decides about its end. When this process ends, the child is
    killed, on Linux even when this process is killed itself.

    :param command: program and arguments.
    :param log: file that takes standard output and standard error, appended to.
    :param env: the whole environment; None for this process's own.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.log = log
        self._process = self._start([str(part) for part in command], env, cwd)
        atexit.register(self.kill)

    def _start(
        self, argv: list[str], env: Mapping[str, str] | None, cwd: Path | None
    ) -> subprocess.Popen[bytes]:
        if sys.platform == "linux":
            argv = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *argv]
        with self.log.open("ab") as output:
            # The death signal comes when the starting *thread* ends: start children in the main thread.
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Exit code, minus the signal number when a signal ended it, None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        """Return everything that the log file holds so far."""
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child and to the processes that it started; none are left is no error."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """Kill the child and its children at once (SIGKILL), and wait until it is gone."""
        atexit.unregister(self.kill)
        self.signal(signal.SIGKILL)
        self._process.wait()

    def stop(self, timeout: float = 10.0) -> None:
        """Ask the child to end (SIGTERM); kill it when it has not ended after `timeout` seconds."""
        if self.alive:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self.kill()

    def wait_for_output(self, text: str, timeout: float = 20.0) -> None:
        """Wait until the log file contains `text`.

        :raises RuntimeError: when the child ends, or `timeout` seconds pass, before that.
        """
        self.wait_until(lambda: text in self.output(), timeout, what=repr(text))

    def wait_until(
        self, ready: Callable[[], bool], timeout: float, *, what: str, every: float = 0.05
    ) -> None:
        """Call `ready` each `every` seconds until its answer is true.

        :param what: names in the error what was waited for.
        :raises RuntimeError: when the child ends, or `timeout` seconds pass, before that; the message ends
            with the last lines of the log file.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.alive or time.monotonic() > deadline:
                end = "".join(self.output().splitlines(keepends=True)[-15:])
                raise RuntimeError(f"{self.log.name}: waited for {what} in vain; its last lines:\n{end}")
            time.sleep(every)


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
