"""A real Redis server that a test may kill, freeze and restart."""

from __future__ import annotations

import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import redis

from example_project.child_process import Child, free_port
from example_project.embedded_redis import EmbeddedRedis
from tests.support.processes import freeze, wait_for


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
        freeze(self._running())

    def thaw(self) -> None:
        """Let a frozen process go on (SIGCONT)."""
        self._running().signal(signal.SIGCONT)

    def begin_to_start(self) -> None:
        """Start again on the same port and directory, and do not wait until the data is loaded."""
        self.child = self._launch()

    def restart(self) -> None:
        """Start again on the same port and directory, after a clean stop if it still runs."""
        self._running().stop()
        self.start()

    @contextmanager
    def recorded_commands(self, *, of_scripts: bool = True) -> Iterator[list[str]]:
        """Record the commands of all clients (MONITOR); the list is complete when the block has ended.

        :param of_scripts: also what scripts do inside the server.
        """
        commands: list[str] = []
        end = uuid.uuid4().hex

        def record(monitor: Any) -> None:
            while end not in (found := monitor.next_command())["command"]:
                if of_scripts or found["client_type"] != "lua":
                    commands.append(found["command"])

        # Without a time limit: there may be nothing to read for a while.
        with redis.Redis.from_url(self.url, socket_timeout=None) as client, client.monitor() as monitor:
            thread = threading.Thread(target=record, args=(monitor,), daemon=True)
            thread.start()
            try:
                yield commands
            finally:
                client.echo(end)
                thread.join(30)
        assert not thread.is_alive(), "MONITOR did not come to its end"

    def info(self) -> dict[str, Any]:
        """Return what the server tells about itself."""
        with self.client() as client:
            return client.info()

    def _running(self) -> Child:
        assert self.child is not None, "the server was never started"
        return self.child


class ClusterNode(RedisServer):
    """A node of a Cluster that has all slots for itself, or those that are left to it."""

    def __init__(self, program: Path, *options: str) -> None:
        super().__init__(program, "--cluster-enabled", "yes", *options)
        # The nodes talk to each other so far above; Redis 6.2 lets nobody choose another place.
        self.port = free_port() - 10_000

    def start(self) -> None:
        super().start()
        with self.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            wait_for(lambda: client.cluster("info")["cluster_state"] == "ok", what="a cluster")


class SentinelServer(RedisServer):
    """A sentinel that watches the master `mymaster` and declares it dead after a second.

    :param quorum: how many sentinels must agree on that.
    :param config: further lines of its configuration.
    :param port: the master's port, if it is another one than that for plain TCP.
    """

    def __init__(self, master: RedisServer, quorum: int, *config: str, port: int | None = None) -> None:
        super().__init__(master.program)
        self._config = [
            f"sentinel monitor mymaster 127.0.0.1 {port or master.port} {quorum}",
            "sentinel down-after-milliseconds mymaster 1000",
            "sentinel failover-timeout mymaster 6000",
            *config,
        ]

    def _launch(self) -> Child:
        path = self.directory / "sentinel.conf"
        place = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.directory}"]
        path.write_text("\n".join([*place, *self._config, ""]))
        return Child([self.program, path, "--sentinel"], log=self.directory / "server.log")


class Failover:
    """A master, a replica, and three sentinels that replace the one with the other; a context manager.

    :param options: further options of both servers.
    """

    def __init__(self, program: Path, *options: str) -> None:
        # A replica is served at once, not together with those that may come in the next five seconds.
        at_once = ("--repl-diskless-sync-delay", "0")
        self._stack = ExitStack()
        self.master = RedisServer(program, *at_once, *options)
        self.replica = RedisServer(program, *at_once, *options)
        self.sentinels: list[RedisServer] = []

    @property
    def url(self) -> str:
        """The URL of the master, whichever it is."""
        places = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        return f"sentinel://{places}/0?master_name=mymaster"

    def wait_until_in_sync(self) -> None:
        """Wait until the replica has all that the master has by now."""
        with self.master.client() as client:
            wait_for(lambda: client.wait(1, 100) == 1, what="the replica")

    def stop_replication(self) -> None:
        """Let the replica get nothing more: from now on its data is old."""
        with self.replica.client() as replica, self.master.client() as master:
            replica.config_set("masteruser", "nobody")
            replica.config_set("masterauth", "nothing")
            master.execute_command("CLIENT", "KILL", "TYPE", "replica")
            wait_for(lambda: replica.info("replication")["master_link_status"] == "down", what="the cut")

    def fail_over(self) -> None:
        """Kill the master, and return when the replica has taken its place for all sentinels."""
        self.master.kill()

        def replaced() -> bool:
            found = [one.client().sentinel_masters()["mymaster"] for one in self.sentinels]
            return {master["port"] for master in found} == {self.replica.port}

        wait_for(replaced, 60, what="the failover")

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self.master)
            self._stack.enter_context(self.replica)
            with self.replica.client() as replica:
                replica.replicaof("127.0.0.1", self.master.port)
                wait_for(lambda: replica.info("replication")["master_link_status"] == "up", what="a replica")
            for _ in range(3):
                self.sentinels.append(self._stack.enter_context(SentinelServer(self.master, 2)))
            for one in self.sentinels:
                wait_for(lambda one=one: _is_ready(one), 30, what="the sentinels to know each other")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _is_ready(sentinel: RedisServer) -> bool:
    (master,) = sentinel.client().sentinel_masters().values()
    return master["num-slaves"] == 1 and master["num-other-sentinels"] == 2
