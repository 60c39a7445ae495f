"""From the wall clock to real moments: time zones, and what a change of the clocks means for a schedule.

:class:`FirstPass`, :class:`OnlyShown` and :class:`EveryPass` carry wall times (see
:mod:`celery_misfire.triggers.wall_times`) over to real moments in a :class:`Zone`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from celery import schedules

from celery_misfire.misfire import FireTimes, from_millis
from celery_misfire.texts import quote, suggestion
from celery_misfire.triggers.wall_times import DAY, FIRST_MOMENT, HORIZON, LAST_MOMENT, SECOND


class Stretch(NamedTuple):
    """A time, `start` to `end` (left out), during which a zone keeps one offset from UTC.

    :param ceiling: the wall time that the clock had counted up to by the start, not shown yet. It is higher
        than what the clock shows then if it was put back, and lower if it was put forward over a gap.
    """

    start: int
    end: int
    offset: int
    ceiling: int

    def highest(self, moment: int) -> int:
        """Return the highest wall time shown up to this moment, itself included."""
        return max(moment + self.offset, self.ceiling - 1)


class Zone:
    """A time zone as stretches of constant offset. :func:`zone_for` makes it.

    :param name: says which it is, the same in every process.
    """

    def __init__(self, tz: tzinfo) -> None:
        self._tz = tz
        self.name = without_addresses(str(tz))

    def offset(self, moment: int) -> int:
        """Return what its clocks are ahead of UTC at a moment, in milliseconds."""
        inside = min(max(moment, FIRST_MOMENT), LAST_MOMENT)
        offset = from_millis(inside).astimezone(self._tz).utcoffset()
        assert offset is not None
        return offset // timedelta(milliseconds=1)

    def at(self, moment: int) -> Stretch:
        """Return a stretch that holds this moment (the zone may well keep its offset beyond it)."""
        for stretch in _stretches(self, moment // _BLOCK):
            if moment < stretch.end:
                break
        return stretch

    def between(self, first: int, last: int) -> Iterator[Stretch]:
        """Iterate over the stretches that hold any moment from `first` to `last`."""
        while first <= last:
            stretch = self.at(first)
            yield stretch
            first = stretch.end

    def wall(self, moment: int) -> int:
        """Return what its clocks show at a moment."""
        return moment + self.at(moment).offset

    def highest(self, moment: int) -> int:
        """Return the highest wall time that its clocks have shown up to a moment, itself included."""
        return self.at(moment).highest(moment)

    def reached(self, wall: int) -> int:
        """Return when its clocks first show this wall time, or a later one because they jump over it."""
        stretch = self.at(wall - DAY)
        while wall - stretch.offset >= stretch.end:
            stretch = self.at(stretch.end)
        return max(wall - stretch.offset, stretch.start)


class _SystemZone(Zone):
    """The zone that the operating system is set to; Celery's own class for it errs around changes."""

    def offset(self, moment: int) -> int:
        return time.localtime(moment // SECOND).tm_gmtoff * SECOND


_zones: dict[int, Zone] = {}


def zone_for(tz: Any) -> Zone:
    """Return the zone of a tzinfo of any make (zoneinfo, datetime, dateutil, pytz, Celery's), or of a name.

    Everything in the same zone shares what is known about it; None stands for UTC.
    """
    tz = tzinfo_of(tz)
    # The key is the id, as not every tzinfo is hashable; the zone keeps its tzinfo, so the id stays taken.
    zone = _zones.get(id(tz))
    if zone is None:
        if len(_zones) >= 1024:
            _zones.clear()
        is_system = (type(tz).__module__, type(tz).__name__) == ("celery.utils.time", "LocalTimezone")
        zone = _zones[id(tz)] = (_SystemZone if is_system else Zone)(tz)
    return zone


def zone_of(schedule: Any) -> Zone:
    """Return the zone of a schedule object, UTC when it has none.

    Where Celery reads the fields in the zone of what ``nowfun`` returns, it is that zone; this calls it.
    """
    nowfun = getattr(schedule, "nowfun", None)
    if callable(nowfun) and _nowfun_has_zone(schedule.__class__):
        with suppress(Exception):
            if isinstance(moment := nowfun(), datetime) and moment.tzinfo is not None:
                return zone_for(moment.tzinfo)
    return zone_for(getattr(schedule, "tz", None))


@lru_cache(maxsize=1024)
def _nowfun_has_zone(cls: type) -> bool:
    """Whether schedules of this class work in the zone of what their ``nowfun`` returns."""
    for base in cls.__mro__:
        if base.__module__.startswith("django_celery_beat."):
            # Its crontab has a zone of its own.
            return False
        if base is schedules.schedule:
            return True
        if base is schedules.crontab:
            # Up to Celery 5.6 that zone counts, later the one of the app.
            probe: Any = schedules.crontab(nowfun=lambda: _PROBED)
            probe.tz = UTC
            start: datetime = probe.remaining_delta(_PROBED)[0]
            return start.utcoffset() == _PROBED.utcoffset()
    return False


_PROBED = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5)))


def tzinfo_of(tz: Any) -> tzinfo:
    """Return the tzinfo that a name, a tzinfo of any make or None (UTC) stands for."""
    if isinstance(tz, str):
        return ZoneInfo(tz)
    if hasattr(tz, "localize") and getattr(tz, "zone", None):
        # A pytz zone in a datetime would stand for a fixed offset.
        return ZoneInfo(tz.zone)
    zone: tzinfo = tz or UTC
    return zone


# Stretches are computed and cached in blocks of this length.
_BLOCK = 400 * DAY

# The search assumes one change of the offset between two probes at most. The closest two changes in the
# time zone database are a week apart.
_PROBE = 2 * DAY


@lru_cache(maxsize=4096)
def _stretches(zone: Zone, block: int) -> tuple[Stretch, ...]:
    begin, limit = block * _BLOCK, (block + 1) * _BLOCK
    # The block starts three days early: clocks that are put back by up to a day have caught up by then.
    start = begin - 3 * DAY
    ceiling = start + zone.offset(start)
    found = []
    while start < limit:
        offset = zone.offset(start)
        end = _next_change(zone, start, offset, limit)
        if end > begin:
            if start < begin:
                start, ceiling = begin, max(ceiling, begin + offset)
            found.append(Stretch(start, end, offset, ceiling))
        ceiling = max(ceiling, end + offset)
        start = end
    return tuple(found)


def _next_change(zone: Zone, start: int, offset: int, limit: int) -> int:
    """Return the first moment after `start` with another offset, `limit` when there is none before it."""
    same = start
    while same < limit:
        other = min(same + _PROBE, limit)
        if zone.offset(other) == offset:
            same = other
            continue
        while other - same > 1:
            middle = (same + other) // 2
            if zone.offset(middle) == offset:
                same = middle
            else:
                other = middle
        return other
    return limit


class FirstPass:
    """Every wall time once, whatever the clocks do: Debian cron's rule for fixed times.

    A time that comes twice fires the first time; times inside a gap fire together, at its end.
    """

    __slots__ = ("_wall", "_zone")

    def __init__(self, wall: FireTimes, zone: Zone) -> None:
        self._wall, self._zone = wall, zone

    def after(self, moment: int) -> int | None:
        here = self._zone.at(moment)
        wall = self._wall.after(here.highest(moment))
        if wall is None:
            return None
        soon = wall - here.offset
        return soon if soon < here.end else self._zone.reached(wall)

    def before(self, moment: int) -> int | None:
        wall = self._wall.before(self._zone.highest(moment - 1) + 1)
        return None if wall is None else self._zone.reached(wall)

    def count(self, first: int, last: int) -> int:
        if last < first:
            return 0
        total = self._wall.count(self._zone.highest(first - 1) + 1, self._zone.highest(last))
        for stretch in self._zone.between(first, last):
            shown = stretch.start + stretch.offset
            if stretch.start >= first and shown > stretch.ceiling:
                total -= self._count_in_gap(stretch.ceiling, shown)
        return total

    def _count_in_gap(self, first: int, end: int) -> int:
        """Return how many wall times from `first` to the end of the gap do not fire by themselves."""
        return max(0, self._wall.count(first, end) - 1)


class OnlyShown(FirstPass):
    """Every wall time once, but for those inside a gap: they do not fire."""

    __slots__ = ()

    def after(self, moment: int) -> int | None:
        wall = self._wall.after(self._zone.highest(moment))
        while wall is not None and not self._is_shown(wall):
            wall = self._wall.after(wall)
        return None if wall is None else self._zone.reached(wall)

    def before(self, moment: int) -> int | None:
        wall = self._wall.before(self._zone.highest(moment - 1) + 1)
        while wall is not None and not self._is_shown(wall):
            wall = self._wall.before(wall)
        return None if wall is None else self._zone.reached(wall)

    def _is_shown(self, wall: int) -> bool:
        return self._zone.wall(self._zone.reached(wall)) == wall

    def _count_in_gap(self, first: int, end: int) -> int:
        return self._wall.count(first, end - 1)


class EveryPass:
    """Every moment whose wall time matches: Debian cron's rule for expressions with a wildcard.

    What comes twice fires twice; what lies inside a gap does not fire.
    """

    __slots__ = ("_wall", "_zone")

    def __init__(self, wall: FireTimes, zone: Zone) -> None:
        self._wall, self._zone = wall, zone

    def after(self, moment: int) -> int | None:
        horizon = moment + HORIZON
        moment += 1
        while moment <= horizon:
            here = self._zone.at(moment)
            wall = self._wall.after(moment + here.offset - 1)
            if wall is not None and wall - here.offset < here.end:
                return wall - here.offset
            # No zone is a day off UTC: after this stretch no wall time before `here.end - DAY` is shown.
            wall = self._wall.after(here.end - DAY)
            if wall is None:
                return None
            moment = max(here.end, wall - DAY)
        return None

    def before(self, moment: int) -> int | None:
        horizon = moment - HORIZON
        moment -= 1
        while moment >= horizon:
            here = self._zone.at(moment)
            wall = self._wall.before(moment + here.offset + 1)
            if wall is not None and wall - here.offset >= here.start:
                return wall - here.offset
            wall = self._wall.before(here.start + DAY)
            if wall is None:
                return None
            moment = min(here.start - 1, wall + DAY)
        return None

    def count(self, first: int, last: int) -> int:
        return sum(
            self._wall.count(max(first, s.start) + s.offset, min(last, s.end - 1) + s.offset)
            for s in self._zone.between(first, last)
        )


def checked_timezone(value: Any) -> Any:
    """Return a time zone that was given as a name, a tzinfo or None.

    :raises ValueError: for anything else, and a name that is not known.
    """
    if value is not None and not isinstance(value, tzinfo):
        try:
            ZoneInfo(value)
        except (KeyError, OSError, TypeError, ValueError):
            near = suggestion(value, available_timezones())
            what = f"timezone: expected the name of a time zone or a tzinfo, got {quote(value)}"
            raise ValueError(f"{what}.{near}" if near else what) from None
    return value


def without_addresses(text: str) -> str:
    """Return what `repr` says, without what differs from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)
