"""The state under the keys that it had before these got a prefix."""

from __future__ import annotations

import re
from contextlib import suppress

from celery_misfire.exceptions import NewerSchema, StoreRefused
from celery_misfire.store.connection import RedisConnection, as_text
from celery_misfire.store.state_mark import StateMark
from celery_misfire.store.values import LeaseValue

#: The mark in the place of a state that has moved stays for so many seconds, so that a beat of the deployment
#: that has not been replaced yet does not begin anew beside us.
MARK_TTL = 600

#: So many keys are asked for in one call.
KEYS_IN_A_CALL = 1000

# Moved with the state, or of no use later.
_NOT_MOVED = ("state", "lease", "log", "note", "guard", "watcher", "beats")


def look_at(
    connection: RedisConnection, state_key: str, lease_key: str
) -> tuple[StateMark | None, LeaseValue | None]:
    """Return the mark of a state and its lease in force, see :meth:`Store.look`."""
    pipeline = connection.client.pipeline(transaction=False)
    pipeline.hget(state_key, "_meta")
    pipeline.get(lease_key)
    meta, lease = (as_text(text or "") for text in connection.call(pipeline.execute))
    mark = StateMark.parse(meta, state_key) if meta else None
    return mark, LeaseValue.parse(lease) if lease else None


class FormerKeys:
    """Moves a state.

    :param base: the names of all keys begin so, after the prefix.
    :param prefix: goes before them now.
    """

    def __init__(self, connection: RedisConnection, base: str, prefix: str) -> None:
        self._connection, self._base, self._prefix = connection, base, prefix

    def look(self) -> tuple[StateMark | None, LeaseValue | None]:
        """Return what :func:`look_at` finds; nothing, where we may not look."""
        with suppress(NewerSchema, StoreRefused):
            if self._prefix:
                return look_at(self._connection, f"{self._base}:state", f"{self._base}:lease")
        return None, None

    def move(self) -> bool:
        """Move the state, its log and the registers; False when a beat leads there, or has moved it before.

        :raises StoreUnavailable: it is to be tried again.
        :raises StoreRefused: we lack the rights, or the keys lie on different nodes of a cluster.
        """
        base, prefix, (mark, _) = self._base, self._prefix, self.look()
        there = [f"{base}:{name}" for name in ("lease", "state", "log")]
        keys = [*there, prefix + there[1], prefix + there[2]]
        args = [str(mark), StateMark.moved_to(prefix), MARK_TTL * 1000]
        moved = mark is not None and self._connection.run("move", keys, args) == 1
        if moved:
            self._connection.call(self._move_others)
        return moved

    def _move_others(self) -> None:
        client, cursor = self._connection.client, 0
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", self._base) + ":*"
        while True:
            cursor, found = client.scan(cursor, match=pattern, count=KEYS_IN_A_CALL)
            names = [name for name in map(as_text, found) if name.split(":")[2] not in _NOT_MOVED]
            pipeline = client.pipeline(transaction=False)
            for name in names:
                pipeline.renamenx(name, self._prefix + name)
            # One that has run out meanwhile is no error.
            answers = pipeline.execute(raise_on_error=False)
            for name, moved in zip(names, answers, strict=True):
                if not moved and name.startswith(f"{self._base}:counts:"):
                    self._add_counts(name)
            if not cursor:
                return

    def _add_counts(self, name: str) -> None:
        """Add the counts of an hour to those that somebody has counted with a prefix already."""
        pipeline = self._connection.client.pipeline(transaction=False)
        for field, count in self._connection.client.hgetall(name).items():
            pipeline.hincrby(self._prefix + name, as_text(field), int(count))
        pipeline.delete(name)
        pipeline.execute()
