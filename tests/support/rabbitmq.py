"""A real RabbitMQ server that a test may kill, freeze and restart, and what lies in its queues."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import amqp
from kombu import Connection

from example_project.child_process import Child, free_port
from tests.support.processes import Message, freeze

_START_TIMEOUT = 90.0

#: Where packages put the server's own script; the one on the search path of Debian becomes another user.
_PROGRAMS = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "/usr/local/sbin/rabbitmq-server")


def find_rabbitmq() -> Path | None:
    """Return the server program of this machine, None when there is none."""
    found = shutil.which("rabbitmq-server")
    here = [Path(p) for p in (*_PROGRAMS, found or "") if p and os.access(p, os.X_OK)]
    return here[0] if here and shutil.which("epmd") else None


class RabbitMQ:
    """A server of the test's own, on free loopback ports in a private directory; starts in some 7 seconds.

    A context manager, which starts it and in the end stops it and removes the directory. Without plugins, on
    one scheduler thread, with an Erlang port mapper of its own.
    """

    def __init__(self, program: Path) -> None:
        self._program = program
        self.directory = Path(tempfile.mkdtemp(prefix="celery-misfire-rabbitmq-"))
        self.port, self._epmd_port, distribution = (free_port() for _ in range(3))
        base = self.directory
        self._env = {
            **os.environ,
            # Takes the cookie.
            "HOME": str(base),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_CONF_ENV_FILE": str(base / "none"),
            "RABBITMQ_CONFIG_FILE": str(base / "rabbitmq.conf"),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(base / "plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(base),
            "RABBITMQ_LOG_BASE": str(base),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_MNESIA_BASE": str(base),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODENAME": "test@localhost",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +A 4 +sbwt none",
        }
        (base / "plugins").write_text("[].\n")
        (base / "rabbitmq.conf").write_text("log.console.level = info\ndisk_free_limit.absolute = 1MB\n")
        self._children: list[Child] = []
        self._declared: set[str] = set()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        if not self._children:
            epmd = ["epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"]
            self._children.append(Child(epmd, log=self.directory / "epmd.log"))
        log = self.directory / "server.log"
        seen = len(log.read_text(errors="replace")) if log.exists() else 0
        # Without its signal-handling shell, so that the process is the server itself.
        self._children[1:] = [Child([self._program, "-noinput"], log=log, env=self._env)]
        self._server.wait_until(
            lambda: "Server startup complete" in self._server.output()[seen:], _START_TIMEOUT, what="RabbitMQ"
        )

    def kill(self) -> None:
        """Kill the server process (SIGKILL); its directory stays."""
        self._server.kill()

    def freeze(self) -> None:
        """Stop the process without ending it (SIGSTOP): connections stay open and nothing answers."""
        freeze(self._server)

    def thaw(self) -> None:
        """Let a frozen process go on (SIGCONT)."""
        self._server.signal(signal.SIGCONT)

    def restart(self) -> None:
        """Start again on the same port and directory, after a clean stop if it still runs."""
        self._server.stop(timeout=30)
        self.start()

    def recover(self) -> None:
        """Start the server if it does not run, and remove what tests have left in it."""
        self.thaw()
        if not self._server.alive:
            self.start()
        self.delete("celery", *self._declared)
        self._declared.clear()

    def stop(self) -> None:
        """Stop the server, for good."""
        # Nothing of it is needed any more.
        for child in reversed(self._children):
            child.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _server(self) -> Child:
        return self._children[1]

    # -- queues --------------------------------------------------------------------------------------------

    def published(self, queue: str = "celery") -> list[Message]:
        """Return the messages that wait in a queue, oldest first, and leave them there.

        Empty when there is no such queue.
        """
        return self._messages(queue, remove=False)

    def drain(self, queue: str = "celery") -> list[Message]:
        """Return the messages that wait in a queue, oldest first, and remove them."""
        return self._messages(queue, remove=True)

    def declare(self, queue: str, **arguments: Any) -> None:
        """Make a durable queue with these arguments."""
        self._declared.add(queue)
        with self.connection() as connection:
            connection.channel().queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)

    def delete(self, *queues: str) -> None:
        """Remove queues with all that is in them; those that are not there are no error."""
        with self.connection() as connection:
            channel = connection.channel()
            for queue in queues:
                channel.queue_delete(queue)

    def control(self, *command: str) -> None:
        """Have ``rabbitmqctl`` do something; takes some seconds."""
        program = shutil.which("rabbitmqctl", path=f"{self._program.parent}:{os.environ['PATH']}")
        assert program
        # Without a limit of its own: the test has one.
        subprocess.run([program, *command], env=self._env, check=True, capture_output=True)

    def connection(self) -> Connection:
        """Return a new connection that is open."""
        connection = Connection(self.url, connect_timeout=20)
        connection.connect()
        return connection

    def _messages(self, queue: str, *, remove: bool) -> list[Message]:
        found: list[Message] = []
        with self.connection() as connection:
            channel = connection.channel()
            try:
                while raw := channel.basic_get(queue, no_ack=remove):
                    message = channel.message_to_python(raw)
                    args, kwargs, _embed = message.decode()
                    told = message.headers
                    found.append(Message(told["id"], told["task"], headers=told, args=args, kwargs=kwargs))
            except amqp.NotFound:
                pass
        return found

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


class RabbitTap:
    """Takes the messages of the default queue as they come, as :class:`~tests.support.processes.Tap` does of
    Redis; what is taken is gone from the queue.
    """

    def __init__(self, server: RabbitMQ) -> None:
        self._server, self._taken = server, 0
        self._connection: Connection | None = None

    def __len__(self) -> int:
        """How many messages there are by now, those that :meth:`read` has not returned yet included."""
        if self._connection is None:
            self._connection = self._server.connection()
        try:
            declared = self._connection.default_channel.queue_declare("celery", passive=True)
        except amqp.NotFound:
            self._connection = None
            return self._taken
        except self._connection.recoverable_connection_errors:
            # The server was restarted since the last look.
            self._connection = None
            return len(self)
        return self._taken + declared.message_count

    def read(self) -> list[Message]:
        """Return what has come since the last call, oldest first."""
        messages = self._server.drain()
        self._taken += len(messages)
        return messages
