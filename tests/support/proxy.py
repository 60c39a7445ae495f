"""A TCP proxy that can swallow what goes one way, or both, and cut connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Proxy:
    """Listens on a free loopback port and hands on to another; a context manager.

    ``to_server`` and ``to_client`` say how many more bytes are handed on that way, None for any number. What
    comes after them is taken and lost, while connections stay open: a black hole. They may be changed at any
    time, and hold for all connections together.

    :param port: of the server, on the loopback interface.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.to_server: int | None = None
        self.to_client: int | None = None
        #: Lose what RabbitMQ confirms. It may be changed between two connections.
        self.loses_confirms = False
        #: End each new connection at once.
        self.refusing = False
        #: How many connections have been made.
        self.connections = 0
        #: Bytes that have come, by direction, lost ones included.
        self.seen = {"to_server": 0, "to_client": 0}
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    @property
    def amqp_url(self) -> str:
        """Where RabbitMQ can be reached through it."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def swallow(self, *directions: str) -> None:
        """Lose all that goes these ways from now on (``"to_server"``, ``"to_client"``); none: both."""
        for direction in directions or ("to_server", "to_client"):
            setattr(self, direction, 0)

    def heal(self) -> None:
        """Hand everything on again; what was lost stays lost."""
        self.to_server = self.to_client = None

    def cut(self) -> None:
        """End all connections there are."""
        with self._lock:
            for each in self._open:
                _shut(each)
            self._open.clear()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _shut(self._listener)
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                _shut(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                _shut(client)
                continue
            server.settimeout(None)
            with self._lock:
                self.connections += 1
                self._open += [client, server]
            for source, sink, direction in ((client, server, "to_server"), (server, client, "to_client")):
                threading.Thread(target=self._pump, args=(source, sink, direction), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        without = _WithoutConfirms() if self.loses_confirms and direction == "to_client" else None
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(self._allowed(without(data) if without else data, direction))
        _shut(source)
        _shut(sink)

    def _allowed(self, data: bytes, direction: str) -> bytes:
        with self._lock:
            self.seen[direction] += len(data)
            left = getattr(self, direction)
            if left is None:
                return data
            setattr(self, direction, max(0, left - len(data)))
            return data[:left]


class _WithoutConfirms:
    """Takes the confirmations out of what RabbitMQ sends over one connection."""

    def __init__(self) -> None:
        self._rest = b""

    def __call__(self, data: bytes) -> bytes:
        """Return the frames that are whole by now."""
        self._rest, kept = self._rest + data, b""
        # Type, channel and length of the content, then the content and one byte more.
        while len(self._rest) >= 7 and len(self._rest) >= (length := 8 + int.from_bytes(self._rest[3:7])):
            frame, self._rest = self._rest[:length], self._rest[length:]
            if not (frame[0] == 1 and frame[7:11] == _BASIC_ACK):
                kept += frame
        return kept


#: Class and method of AMQP.
_BASIC_ACK = bytes((0, 60, 0, 80))


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
