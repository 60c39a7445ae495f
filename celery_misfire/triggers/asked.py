"""Schedules that only they themselves understand, asked on a virtual clock.

Moments are integer milliseconds UTC.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from datetime import datetime, timedelta, tzinfo
from functools import cached_property, lru_cache
from typing import Any

from celery_misfire.misfire import FireTimes, TriggerState, TriggerType, from_millis
from celery_misfire.triggers.wall_times import DAY, HORIZON, LAST_MOMENT, MINUTE, SECOND
from celery_misfire.triggers.zones import tzinfo_of, without_addresses, zone_of

#: Modules whose schedule classes are known to estimate what remains and to answer ``is_due`` by that.
KNOWN_MODULES = frozenset(
    {"celery.schedules", "django_celery_beat.clockedschedule", "django_celery_beat.tzcrontab"}
)


class AskedTrigger:
    """Fires when the schedule object says so, see :class:`AskedTimes`.

    The fingerprint is the class and a digest of the object's attributes: their values may be secret.
    """

    trigger_type = TriggerType.CRON
    interval = None
    runs_foreign_code = True
    follows_elapsed_time = False

    def __init__(self, schedule: Any) -> None:
        self._schedule = schedule
        self._times: AskedTimes | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AskedTrigger) and self._schedule is other._schedule

    def __hash__(self) -> int:
        return id(self._schedule)

    @cached_property
    def fingerprint(self) -> str:
        cls = self._schedule.__class__
        names = vars(self._schedule).keys() - _HOST_ATTRIBUTES
        if any((base.__module__, base.__qualname__) == ("celery.schedules", "solar") for base in cls.__mro__):
            # Its observer holds the moment that it was last asked about.
            names -= {"cal", "ephem"}
        fields = {name: vars(self._schedule)[name] for name in names}
        digest = hashlib.sha256(_canonical(fields).encode()).hexdigest()[:16]
        return f"{cls.__module__}.{cls.__qualname__} {digest} zone={zone_of(self._schedule).name}"

    def first_state(self, first_seen: int) -> TriggerState:
        return TriggerState(AskedTimes(self._schedule).after(first_seen), first_seen)

    def fire_times(self, state: TriggerState) -> FireTimes:
        # Known answers are kept, because a schedule may be slow.
        if self._times is None or not self._times.continues(state.next_fire_time):
            self._times = AskedTimes(self._schedule, state.next_fire_time)
        return self._times


# Attributes that Celery adds to every schedule; the fingerprint names the zone separately.
_HOST_ATTRIBUTES = frozenset({"app", "_app", "nowfun", "tz", "utc_enabled"})


def _canonical(value: Any) -> str:
    """Return text that is the same for equal values in any process."""
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{_canonical(k)}:{_canonical(v)}" for k, v in value.items())) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ",".join(sorted(map(_canonical, value))) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_canonical, value)) + "]"
    return without_addresses(repr(value))


# The answer of the virtual clock when the schedule never fires again; later than any moment.
_NEVER = 1 << 62

# The longest chain of fire times that is walked through one by one.
_MAX_STEPS = 10_000
# The most calls of ``is_due`` for one question: enough for a long weekend of calls every few seconds.
_MAX_CALLS = 100_000

# The most answers that are kept, and the longest chain that is kept once its first fire times are decided.
_MAX_KEPT = 100


class AskedTimes:
    """The fire times of a schedule object, asked from the object itself on a virtual clock.

    Each fire time is the one that follows the fire time before it; the first is `anchor`. After 10,000 fire
    times the walk ends: :meth:`count` estimates the rest by the density of these, and :meth:`after` and
    :meth:`before` assume that the object's answer does not depend on the moment of the question.

    Exceptions of the object pass through.

    :param anchor: a known fire time; None when there is none.
    :raises ValueError: by every method, when the object answers no later time than it was asked about.
    """

    def __init__(self, schedule: Any, anchor: int | None = None) -> None:
        self._clock = _VirtualClock(schedule)
        self._chain = [_NEVER if anchor is None else anchor]

    def continues(self, anchor: int | None) -> bool:
        """Return whether this anchor is one of the fire times that are known already."""
        known = _NEVER if anchor is None else anchor
        return self._chain[0] == known or (len(self._chain) <= _MAX_KEPT and known in self._chain)

    def after(self, moment: int) -> int | None:
        chain = self._chain
        if chain[0] <= moment and self._walk(chain, moment):
            found = chain[bisect_right(chain, moment)]
        else:
            found = self._clock.ask(moment)
        return None if found == _NEVER else found

    def before(self, moment: int) -> int | None:
        chain = self._chain
        if chain[0] < moment:
            if self._walk(chain, moment - 1):
                return chain[bisect_left(chain, moment) - 1]
            return self._last(chain[-1], moment)
        back = MINUTE
        while back < HORIZON:
            found = self._clock.ask(moment - back)
            if found < moment:
                return self._last(found, moment)
            back *= 4
        return None

    def count(self, first: int, last: int) -> int:
        if last < first:
            return 0
        chain = self._chain if self._chain[0] <= first else [self._clock.ask(first - 1)]
        complete = self._walk(chain, last)
        walked = bisect_right(chain, last) - bisect_left(chain, first)
        if complete:
            return walked
        gap = (chain[-1] - chain[0]) / (len(chain) - 1)
        return walked + round((last - max(first, chain[-1])) / gap)

    def _walk(self, chain: list[int], moment: int) -> bool:
        """Extend the chain beyond the moment; return False when that takes too many steps."""
        while chain[-1] <= moment:
            if len(chain) >= _MAX_STEPS:
                return False
            chain.append(self._clock.ask(chain[-1]))
        return True

    def _last(self, found: int, moment: int) -> int:
        """Return the last fire time before `moment`, where one was found, in few questions."""
        none_after = moment - 1
        while found < none_after:
            middle = (found + none_after) // 2
            following = self._clock.ask(middle)
            if following < moment:
                found = following
            else:
                none_after = middle
        return found


class _VirtualClock:
    """A copy of a schedule object that takes any moment for now.

    ``remaining_estimate`` is asked, because its answer is a moment. A class may have its own ``is_due`` and
    inherit ``remaining_estimate``; then ``is_due`` is asked, as often as it wants to be.
    """

    def __init__(self, schedule: Any) -> None:
        self._original = schedule
        # copy.copy fails for subclasses with other arguments: they inherit a __reduce__ that does not fit.
        self._schedule = object.__new__(schedule.__class__)
        self._ask_is_due = _is_due_decides(schedule.__class__)
        self._moment = 0
        self._answers: dict[int, int] = {}

    @cached_property
    def _tz(self) -> tzinfo:
        return tzinfo_of(getattr(self._original, "tz", None))

    def ask(self, moment: int) -> int:
        """Return what fires next when the last run was at this moment."""
        found = self._answers.get(moment)
        if found is None:
            # The copy is made anew for each question, because some classes change when they are asked.
            # ``now`` is replaced as well, because some override it and never look at ``nowfun``.
            vars(self._schedule).update(vars(self._original), nowfun=self._now, now=self._now)
            self._moment = moment
            found = self._by_is_due() if self._ask_is_due else self._by_remaining()
            if len(self._answers) >= _MAX_KEPT:
                self._answers.clear()
            self._answers[moment] = found = found if found <= LAST_MOMENT else _NEVER
        return found

    def _now(self) -> datetime:
        # In the schedule's own zone: older crontabs take the fields of the moment without converting it.
        return from_millis(self._moment).astimezone(self._tz)

    def _by_remaining(self) -> int:
        asked, found = self._moment, self._remaining()
        if found > asked:
            return found
        # A schedule for one fixed time answers it for ever and has ended; any other should have moved on.
        self._moment += DAY
        if self._remaining() == found:
            return _NEVER
        raise self._stuck(asked, f"it answers {from_millis(found)}")

    def _remaining(self) -> int:
        remaining = self._schedule.remaining_estimate(self._now())
        if not isinstance(remaining, timedelta):
            raise ValueError(f"{self._class_name}: needs a timedelta to remain, got {remaining!r}")
        return self._moment + _ceil_millis(remaining)

    def _by_is_due(self) -> int:
        asked, last_run_at = self._moment, self._now()
        for _ in range(_MAX_CALLS):
            due, wait = self._schedule.is_due(last_run_at)
            if due and self._moment > asked:
                return self._moment
            if not isinstance(wait, int | float) or not wait > 0:
                raise self._stuck(asked, f"is_due wants to be asked again in {wait!r} seconds")
            self._moment += _ceil_millis(timedelta(seconds=min(wait, HORIZON / SECOND)))
            if self._moment >= asked + HORIZON:
                return _NEVER
        raise self._stuck(asked, f"is_due was not due in {_MAX_CALLS} calls, up to {self._now()}")

    def _stuck(self, asked: int, what: str) -> ValueError:
        return ValueError(f"{self._class_name}: asked for the fire time after {from_millis(asked)}, {what}")

    @property
    def _class_name(self) -> str:
        return type(self._schedule).__qualname__


@lru_cache(maxsize=1024)
def _is_due_decides(cls: type) -> bool:
    """Return whether a class has its own ``is_due`` and inherits ``remaining_estimate``."""
    for base in cls.__mro__:
        own = vars(base)
        if "remaining_estimate" in own or "remaining_delta" in own:
            return False
        if "is_due" in own and base.__module__ not in KNOWN_MODULES:
            return True
    return False


def _ceil_millis(delta: timedelta) -> int:
    # Rounded up, or the next question, which is asked at the answer, would find the same fire time again.
    return -(delta // timedelta(milliseconds=-1))
