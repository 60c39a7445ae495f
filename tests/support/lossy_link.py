"""A TCP link on which the answers of scripts get lost."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress


class LossyLink:
    """A TCP link to a server that can lose the answer to a command; the command itself arrives.

    :param target: host and port.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        #: How many more answers get lost.
        self.losses = 0
        #: Cut the connection then; else it stays open and silent.
        self.cuts = True
        #: How many requests were passed on whose answer got lost.
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with suppress(OSError), near, socket.create_connection(self._target) as far:
            losing = False
            while True:
                readable, _, _ = select.select([near, far], [], [])
                if near in readable:
                    # Each request is small enough for one packet on the loopback.
                    if not (request := near.recv(1 << 20)):
                        return
                    if self.losses and b"EVALSHA" in request:
                        self.losses, self.lost, losing = self.losses - 1, self.lost + 1, True
                    far.sendall(request)
                if far in readable:
                    answer = far.recv(1 << 20)
                    if not answer or (losing and self.cuts):
                        return
                    if not losing:
                        near.sendall(answer)
