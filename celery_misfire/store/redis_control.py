"""The part of the store for those who are not beat: what people and the watch see, and what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import redis

from celery_misfire.store.connection import as_text
from celery_misfire.store.port import LeaseValue, Watched
from celery_misfire.store.registers import BY_HAND_REGISTER_TTL
from celery_misfire.store.sight import Sight

__all__ = ["RedisControl"]

#: Before the id of an occurrence, the register that says who had it run by hand.
_BY_HAND = "by-hand:"


class RedisControl:
    """A part of :class:`~celery_misfire.store.redis_store.RedisStore`."""

    state_key: str
    lease_key: str
    _guard_key: str
    _beats_key: str
    _control_key: str
    _register_prefix: str
    _watch_keys: Sequence[str]
    _redis: redis.Redis
    _call: Callable[..., Any]
    _run: Callable[..., Any]

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

    def request(self, requests: Mapping[str, str]) -> None:
        if requests:
            mapping: dict[Any, Any] = dict(requests)
            self._call(partial(self._redis.hset, mapping=mapping), self._control_key)

    def drop_requests(self, ids: Sequence[str]) -> None:
        if ids:
            self._call(self._redis.hdel, self._control_key, *ids)

    def claim_by_hand(self, task_id: str, who: str) -> str:
        key = self._register_prefix + _BY_HAND + task_id
        if self._call(partial(self._redis.set, nx=True, px=_ms(BY_HAND_REGISTER_TTL)), key, who):
            return who
        return as_text(self._call(self._redis.get, key) or "")

    def unclaim_by_hand(self, task_id: str, who: str) -> None:
        key = self._register_prefix + _BY_HAND + task_id
        if as_text(self._call(self._redis.get, key) or "") == who:
            self._call(self._redis.delete, key)

    def watch(
        self,
        token: str,
        ttl: float,
        guard_ttl: float = 0,
        *,
        seen: str | None = None,
        alarm: str | None = None,
    ) -> Watched | None:
        notes = {"seen": seen, "alarm": alarm}
        pairs = [text for name, note in notes.items() if note is not None for text in (name, note)]
        answer = self._run("watch", self._watch_keys, [token, _ms(ttl), _ms(guard_ttl), *pairs])
        return Watched.parse(answer[0] == 1, *answer[1:]) if answer else None

    def is_guarded(self) -> bool:
        return bool(self._call(self._redis.exists, self._guard_key))


def _pairs(flat: Sequence[str]) -> Iterable[tuple[str, str]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
