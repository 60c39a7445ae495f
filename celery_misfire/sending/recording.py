"""What kombu would push into the broker's Redis, recorded instead of done.

Kombu's channel decides about queues, priorities, topics and prefixes as ever. Only the last step, in which it
writes, finds a client that keeps the commands for the script that writes the records, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from celery_misfire.store.port import Push


class NotRecordable(Exception):
    """Kombu wants to write something that the script cannot do; the message goes in two steps."""


T = TypeVar("T")


class PushRecorder:
    """Records what a channel of kombu's Redis transport pushes."""

    def __init__(self) -> None:
        self._client: _RecordingClient | None = None

    def install(self, channel: Any) -> None:
        """Let a channel write through this recorder while it records."""
        self._wrap(channel, "_put")
        self._wrap(channel, "_put_fanout")

    def _wrap(self, channel: Any, name: str) -> None:
        put = getattr(channel, name)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            client = self._client
            if client is None:
                return put(*args, **kwargs)
            client.prefix = getattr(channel, "global_keyprefix", "") or ""
            # The method of the instance hides that of the class for the time of this call.
            channel.conn_or_acquire = client.hand_out
            try:
                return put(*args, **kwargs)
            finally:
                del channel.conn_or_acquire

        setattr(channel, name, recorded)

    def record(self, entry: str, send: Callable[[], T]) -> tuple[T, list[Push]]:
        """Return what `send` returns, and what it would have pushed for an entry."""
        self._client = client = _RecordingClient(entry)
        try:
            return send(), client.pushes
        finally:
            self._client = None


class _RecordingClient:
    """Stands for a client of redis-py, and for a pipeline of one."""

    def __init__(self, entry: str) -> None:
        self._entry = entry
        self.pushes: list[Push] = []
        #: Kombu's own client puts it before every key.
        self.prefix = ""

    def hand_out(self, client: Any = None) -> _RecordingClient:
        return self

    def lpush(self, key: str, value: str) -> None:
        self.pushes.append(Push(self._entry, "lpush", self.prefix + key, value))

    def pexpire(self, key: str, milliseconds: int) -> None:
        self.pushes.append(Push(self._entry, "pexpire", self.prefix + key, str(milliseconds)))

    def publish(self, topic: str, value: str) -> None:
        self.pushes.append(Push(self._entry, "publish", self.prefix + topic, value))

    def pipeline(self, *_: Any, **__: Any) -> _RecordingClient:
        return self

    def execute(self) -> None:
        """Do nothing: the script is one transaction."""

    def __enter__(self) -> _RecordingClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        raise NotRecordable(name)
