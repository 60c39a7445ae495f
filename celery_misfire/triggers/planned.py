"""The base of this package's schedules.

The misfire scheduler takes the trigger of such a schedule; any other beat asks ``is_due``, as it does with
Celery's own schedules.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Self

from celery import Celery
from celery.schedules import BaseSchedule, schedstate

from celery_misfire.misfire import FireTimes, Trigger, from_millis, to_millis
from celery_misfire.triggers.zones import Zone, zone_for

# When a schedule never fires again, stock beat is told that this much time remains, and when to ask again.
_NEVER = timedelta(days=36_500)
_ASK_AGAIN = timedelta(days=1)


class PlannedSchedule(BaseSchedule):
    """A schedule that knows its trigger, and answers stock beat from it."""

    #: The names of the constructor's arguments, in their order; each is an attribute as well.
    _arguments: tuple[str, ...]
    #: The name of the entry that has this schedule; None when it is not known.
    _entry: str | None = None

    def __init__(self, *, nowfun: Callable[[], datetime] | None = None, app: Celery | None = None) -> None:
        super().__init__(nowfun=nowfun, app=app)
        self._begun_at: datetime | None = None

    def as_trigger(self) -> Trigger:
        """Return what the misfire scheduler plans by."""
        raise NotImplementedError

    def bound_to(self, entry: str) -> Self:
        """Return a copy that knows the name of its entry, for ``H`` in cron expressions."""
        bound = object.__new__(type(self))
        vars(bound).update(vars(self), _entry=entry)
        return bound

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return the time to the first fire after `last_run_at`; a hundred years when there is none."""
        due = self._due(last_run_at)[0]
        return _NEVER if due is None else due - self._now()

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Return whether a fire time has been reached since `last_run_at`, and the seconds to the next."""
        due, times = self._due(last_run_at)
        now = self._now()
        reached = due is not None and due <= now
        if reached:
            due = _moment(times.after(to_millis(now)))
        wait = _ASK_AGAIN if due is None else due - now
        return schedstate(is_due=reached, next=wait.total_seconds())

    def _due(self, last_run_at: datetime) -> tuple[datetime | None, FireTimes]:
        """Return what to run next when the last run was then, and all fire times."""
        last_run_at = self.maybe_make_aware(last_run_at)
        if self._begun_at is None:
            self._begun_at = last_run_at
        trigger = self.as_trigger()
        begun = to_millis(self._begun_at)
        state = trigger.first_state(begun)
        first, times = state.next_fire_time, trigger.fire_times(state)
        if getattr(self, "start", None) is None and last_run_at == self._begun_at:
            # Before the first run, stock beat gives the time when it first saw the entry as the last run.
            due = first
        else:
            due = times.after(to_millis(last_run_at))
        if state.max_runs is not None and due is not None and times.count(begun, due) > state.max_runs:
            due = None
        return _moment(due), times

    def _now(self) -> datetime:
        return self.maybe_make_aware(self.now())

    @property
    def _zone(self) -> Zone:
        """The time zone of the schedule, the app's when it names none."""
        timezone = vars(self).get("timezone")
        return zone_for(self.tz if timezone is None else timezone)

    def _fields(self) -> dict[str, Any]:
        """Return the arguments that make an equal schedule."""
        return {name: getattr(self, name) for name in self._arguments}

    def __repr__(self) -> str:
        fields = ", ".join(f"{name} {value}" for name, value in self._fields().items())
        return f"<{type(self).__name__}: {fields}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PlannedSchedule) or type(self) is not type(other):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        # Some time zones, and Celery's own schedules, have no hash.
        hashable = (v for name, v in self._fields().items() if name not in ("timezone", "schedule"))
        return hash((type(self), *hashable))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(self._fields().values())


def _moment(millis: int | None) -> datetime | None:
    return None if millis is None else from_millis(millis)
