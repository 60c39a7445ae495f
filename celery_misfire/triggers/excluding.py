"""A trigger without what calendars exclude.

Quartz's calendars themselves are :mod:`celery_misfire.calendars`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from celery_misfire.misfire import FireTimes, Trigger, TriggerState, TriggerType, from_millis
from celery_misfire.triggers.wall_times import DAY, HORIZON, Days, month_and_bit, month_of
from celery_misfire.triggers.zones import Zone


class Span(NamedTuple):
    """A time from `start` to `end` (left out), all of it included or all of it excluded.

    The time beyond its ends may be included or excluded as well.
    """

    start: int
    end: int
    included: bool


class Exclusion(Protocol):
    """What one calendar excludes, in wall time.

    :ivar text: the same for equal exclusions, in any process.
    :ivar spans_per_day: how many spans there are in a day, at most.
    :ivar runs_foreign_code: whether a span is found by code of the app.
    """

    text: str
    spans_per_day: int
    runs_foreign_code: bool

    def span(self, wall: int) -> Span:
        """Return a span that holds this wall time."""


class WholeDays:
    """An exclusion of whole days."""

    spans_per_day = 1

    def __init__(self, days: Days, text: str, runs_foreign_code: bool = False) -> None:
        self._days, self.text, self.runs_foreign_code = days, text, runs_foreign_code

    def span(self, wall: int) -> Span:
        month, bit = month_and_bit(wall // DAY)
        calendar, days = month_of(month), self._days.of(month)
        included = not days >> bit & 1
        # The days of this month of the other kind: the excluded ones if this day is included.
        others = days if included else ~days & calendar.days
        start = (others & (1 << bit) - 1).bit_length()
        later = others >> bit
        end = bit + (later & -later).bit_length() - 1 if later else calendar.length
        return Span((calendar.first + start) * DAY, (calendar.first + end) * DAY, included)


class PartsOfDays:
    """An exclusion of parts of some days.

    :param bounds: where the excluded parts of a day begin and end, in turn.
    """

    runs_foreign_code = False

    def __init__(self, days: Days, bounds: tuple[int, ...], text: str) -> None:
        self._whole, self._bounds, self.text = WholeDays(days, ""), bounds, text
        self.spans_per_day = len(bounds) + 1

    def span(self, wall: int) -> Span:
        whole = self._whole.span(wall)
        if whole.included:
            return whole
        day, time_of_day = divmod(wall, DAY)
        at = bisect_right(self._bounds, time_of_day)
        start = self._bounds[at - 1] if at else 0
        end = self._bounds[at] if at < len(self._bounds) else DAY
        return Span(day * DAY + start, day * DAY + end, at % 2 == 0)


class Excluded:
    """What several exclusions, each in its own zone, exclude together, in real moments."""

    def __init__(self, layers: Iterable[tuple[Exclusion, Zone]]) -> None:
        self._layers = list(layers)
        self.spans_per_day = sum(exclusion.spans_per_day for exclusion, _ in self._layers)
        self.runs_foreign_code = any(exclusion.runs_foreign_code for exclusion, _ in self._layers)
        self.text = ", ".join(f"{exclusion.text} zone={zone.name}" for exclusion, zone in self._layers)

    def span(self, moment: int) -> Span:
        """Return a span that holds this moment."""
        start, end = moment - HORIZON, moment + HORIZON
        for exclusion, zone in self._layers:
            stretch = zone.at(moment)
            found = exclusion.span(moment + stretch.offset)
            found_start = max(found.start - stretch.offset, stretch.start)
            found_end = min(found.end - stretch.offset, stretch.end)
            if not found.included:
                return Span(found_start, found_end, False)
            start, end = max(start, found_start), min(end, found_end)
        return Span(start, end, True)


# The search ends after so many excluded spans in a row; 50 years have fewer days.
_MAX_SPANS = 20_000


class Included:
    """The fire times that are not excluded.

    What lies between two of them is never walked through; :meth:`count` takes one step for every span of the
    calendar, or for every fire time, whichever are fewer.

    :raises ValueError: by `after` and `before`, when 20,000 excluded spans in a row held fire times.
    """

    __slots__ = ("_excluded", "_times")

    def __init__(self, times: FireTimes, excluded: Excluded) -> None:
        self._times, self._excluded = times, excluded

    def after(self, moment: int) -> int | None:
        horizon = moment + HORIZON
        for _ in range(_MAX_SPANS):
            found = self._times.after(moment)
            if found is None or found > horizon:
                return None
            span = self._excluded.span(found)
            if span.included:
                return found
            moment = span.end - 1
        raise self._all_excluded(moment)

    def before(self, moment: int) -> int | None:
        horizon = moment - HORIZON
        for _ in range(_MAX_SPANS):
            found = self._times.before(moment)
            if found is None or found < horizon:
                return None
            span = self._excluded.span(found)
            if span.included:
                return found
            moment = span.start
        raise self._all_excluded(moment)

    def count(self, first: int, last: int) -> int:
        if last < first:
            return 0
        spans = (last - first) * self._excluded.spans_per_day // DAY
        fewer_times = self._times.count(first, last) < spans
        return self._walk_times(first, last) if fewer_times else self._walk_spans(first, last)

    def _walk_times(self, first: int, last: int) -> int:
        total, found = 0, self._times.after(first - 1)
        while found is not None and found <= last:
            total += self._excluded.span(found).included
            found = self._times.after(found)
        return total

    def _walk_spans(self, first: int, last: int) -> int:
        total = 0
        while first <= last:
            span = self._excluded.span(first)
            if span.included:
                total += self._times.count(first, min(span.end - 1, last))
            first = span.end
        return total

    def _all_excluded(self, moment: int) -> ValueError:
        return ValueError(
            f"excluding: {_MAX_SPANS} excluded times in a row, up to {from_millis(moment)}; give the calendar"
            " as larger pieces, or the schedule fewer fire times"
        )


@dataclass(frozen=True, slots=True)
class ExcludingTrigger:
    """A trigger without the fire times that a calendar excludes.

    A grid goes on counting its slots, also those that are excluded (as in Quartz).
    """

    trigger: Trigger
    excluded: Excluded

    @property
    def trigger_type(self) -> TriggerType:
        return self.trigger.trigger_type

    @property
    def interval(self) -> int | None:
        return self.trigger.interval

    @property
    def runs_foreign_code(self) -> bool:
        return self.trigger.runs_foreign_code or self.excluded.runs_foreign_code

    @property
    def follows_elapsed_time(self) -> bool:
        return self.trigger.follows_elapsed_time

    @property
    def fingerprint(self) -> str:
        return f"{self.trigger.fingerprint} excluding {self.excluded.text}"

    def first_state(self, first_seen: int) -> TriggerState:
        state = self.trigger.first_state(first_seen)
        if state.next_fire_time is None:
            return state
        return replace(state, next_fire_time=self.fire_times(state).after(state.next_fire_time - 1))

    def fire_times(self, state: TriggerState) -> FireTimes:
        return Included(self.trigger.fire_times(state), self.excluded)
