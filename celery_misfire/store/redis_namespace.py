"""The keys of a namespace in Redis, and what those see and ask for there who are not beat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from celery_misfire.store.connection import LONGEST_CALL, RedisConnection, as_text, millis
from celery_misfire.store.former import FormerKeys
from celery_misfire.store.owner import name_of, this_process
from celery_misfire.store.registers import BY_HAND_REGISTER_TTL
from celery_misfire.store.state_mark import Destination
from celery_misfire.store.values import LeaseValue, Sight, Watched

if TYPE_CHECKING:
    from celery_misfire.conf.settings import Settings

#: Before the id of an occurrence, the register that says who had it run by hand.
_BY_HAND = "by-hand:"


class RedisNamespace:
    """One namespace in a Redis: its keys, and what people and the watch see and ask for.

    :param url: and `options` and `call_timeout`: as for a
        :class:`~celery_misfire.store.connection.RedisConnection`.
    :param history: how many lines the log keeps, roughly.
    :param key_prefix: goes before the name of each key.
    :raises MisfireConfigError: when redis-py does not take `url` and `options`.
    """

    def __init__(
        self,
        url: str,
        namespace: str,
        options: Mapping[str, Any] | None = None,
        history: int = 10_000,
        call_timeout: float = LONGEST_CALL,
        key_prefix: str = "",
    ) -> None:
        self._connection = RedisConnection(url, options or {}, call_timeout)
        self._redis = self._connection.client
        self.server = str(self._connection)
        self._call, self._run = self._connection.call, self._connection.run
        self._history = history
        self.owner = this_process()
        self.process = name_of(self.owner)
        base = f"celery-misfire:{{{namespace}}}"
        self._former, prefix = FormerKeys(self._connection, base, key_prefix), key_prefix + base
        self.state_key, self.lease_key, self.log_key = f"{prefix}:state", f"{prefix}:lease", f"{prefix}:log"
        self._note_key, self._guard_key = f"{prefix}:note", f"{prefix}:guard"
        self._stop_key = f"{prefix}:stopped"
        self._watch_keys = (f"{prefix}:watcher", f"{prefix}:watch", self._guard_key, self.lease_key)
        self._register_prefix, self._late_prefix = f"{prefix}:fire:", f"{prefix}:late:"
        self._counts_prefix, self.place_keys = f"{prefix}:counts:", (f"{prefix}:place", f"{base}:place")
        self._beats_key, self._control_key = f"{prefix}:beats", f"{prefix}:control"

    @classmethod
    def of(cls, settings: Settings, call_timeout: float = LONGEST_CALL) -> Self:
        """Return the one that an app's settings name."""
        s = settings
        return cls(s.redis_url, s.namespace, s.redis_options, s.history, call_timeout, s.key_prefix)

    def __str__(self) -> str:
        return f"{self.state_key} in {self._connection}"

    # -- people and the watch ------------------------------------------------------------------------------

    def sight(self) -> Sight:
        keys = [self.lease_key, self.state_key, self._guard_key, self._beats_key, self._control_key]
        now, lease, left, guarded, has_state, hold, beats, requests = self._run("sight", keys, [])
        signs = {beat: sign.partition("|") for beat, sign in _pairs(beats)}
        return Sight(
            now=int(now),
            lease=LeaseValue.parse(lease) if lease else None,
            lease_left=left if lease and left >= 0 else None,
            is_guarded=guarded == 1,
            is_cold=has_state != 1,
            hold=hold,
            beats={beat: (int(at), text) for beat, (at, _, text) in signs.items() if at.isdecimal()},
            requests=dict(sorted(_pairs(requests))),
        )

    def has_queues_of(self, destination: Destination) -> bool:
        """Return True when the messages of this destination are in this database."""
        # Not MGET: the rights that are documented do without.
        words = [self._call(self._redis.get, key) for key in self.place_keys]
        return destination.place in {f"redis {as_text(word)}" for word in words if word}

    def request(self, requests: Mapping[str, str]) -> None:
        if requests:
            mapping: dict[Any, Any] = dict(requests)
            self._call(partial(self._redis.hset, mapping=mapping), self._control_key)

    def drop_requests(self, ids: Sequence[str]) -> None:
        if ids:
            self._call(self._redis.hdel, self._control_key, *ids)

    def claim_by_hand(self, task_id: str, who: str) -> str:
        key = self._register_prefix + _BY_HAND + task_id
        if self._call(partial(self._redis.set, nx=True, px=millis(BY_HAND_REGISTER_TTL)), key, who):
            return who
        return as_text(self._call(self._redis.get, key) or "")

    def unclaim_by_hand(self, task_id: str, who: str) -> None:
        key = self._register_prefix + _BY_HAND + task_id
        if as_text(self._call(self._redis.get, key) or "") == who:
            self._call(self._redis.delete, key)

    def watch(
        self, token: str, ttl: float, guard_ttl: float = 0, *, alarm: str | None = None
    ) -> Watched | None:
        note = [] if alarm is None else [alarm]
        answer = self._run("watch", self._watch_keys, [token, millis(ttl), millis(guard_ttl), *note])
        return Watched.parse(answer[0] == 1, answer[1]) if answer else None

    def is_guarded(self) -> bool:
        return bool(self._call(self._redis.exists, self._guard_key))


def _pairs(flat: Sequence[str]) -> Iterable[tuple[str, str]]:
    return zip(flat[::2], flat[1::2], strict=True)
