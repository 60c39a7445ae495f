"""What kombu would push into the broker's Redis, recorded instead of done.

Kombu's channel decides about queues, priorities, topics and prefixes as ever. Only the last step, in which it
writes, finds a client that keeps the commands for the script that writes the records, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery_misfire.store.port import Push

__all__ = ["NotRecordable", "PushRecorder"]


class NotRecordable(Exception):
    """Kombu wants to write something that the script cannot do; the message goes in two steps."""


class PushRecorder:
    """Records what a channel of kombu's Redis transport pushes."""

    def __init__(self) -> None:
        self._entry = ""
        self._pushes: list[Push] | None = None

    def install(self, channel: Any) -> None:
        """Let a channel write through this recorder while it records."""
        self._wrap(channel, "_put")
        self._wrap(channel, "_put_fanout")

    def _wrap(self, channel: Any, name: str) -> None:
        put = getattr(channel, name)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            if self._pushes is None:
                return put(*args, **kwargs)
            client = _RecordingClient(self._entry, self._pushes, getattr(channel, "global_keyprefix", ""))
            # The method of the instance hides that of the class for the time of this call.
            channel.conn_or_acquire = client.hand_out
            try:
                return put(*args, **kwargs)
            finally:
                del channel.conn_or_acquire

        setattr(channel, name, recorded)

    @contextmanager
    def recording(self, entry: str) -> Iterator[list[Push]]:
        """Record in the block what is pushed for an entry; gives the list that fills up."""
        pushes: list[Push] = []
        self._entry, self._pushes = entry, pushes
        try:
            yield pushes
        finally:
            self._pushes = None


class _RecordingClient:
    """Stands for a client of redis-py, and for a pipeline of one.

    :param prefix: kombu's own client puts it before every key.
    """

    def __init__(self, entry: str, pushes: list[Push], prefix: str | None) -> None:
        self._entry, self._pushes, self._prefix = entry, pushes, prefix or ""

    @contextmanager
    def hand_out(self, client: Any = None) -> Iterator[_RecordingClient]:
        yield self

    def lpush(self, key: str, value: str) -> None:
        self._pushes.append(Push(self._entry, "lpush", self._prefix + key, value))

    def pexpire(self, key: str, milliseconds: int) -> None:
        self._pushes.append(Push(self._entry, "pexpire", self._prefix + key, str(milliseconds)))

    def publish(self, topic: str, value: str) -> None:
        self._pushes.append(Push(self._entry, "publish", self._prefix + topic, value))

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
