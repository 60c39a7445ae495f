"""Where entries stand: the next expected run, how late it is, and whether that is too late.

Pure, and the only answer: the watch, the admin's list and its timeline all ask here, so that they cannot
contradict each other. Moments and lengths are milliseconds.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from celery_misfire.misfire import AUTO_THRESHOLD, MisfirePolicy, Trigger, TriggerState, threshold_millis
from celery_misfire.records import EntryRecord, Pause


@dataclass(frozen=True)
class Status:
    """Where one entry stands.

    :param is_known: beat has planned the entry, by the schedule that it has now.
    :param next_fire_time: the next expected fire time, which may be past; None when there is none.
    :param late_by: how long ago that was, 0 while it is still to come.
    :param threshold: how late it may be.
    :param is_overdue: it is late by the threshold or more, and beat has not decided about it.
    :param paused: the pause, or the hold of all entries, for which it does not fire now.
    """

    is_known: bool = False
    next_fire_time: int | None = None
    late_by: int = 0
    threshold: int = AUTO_THRESHOLD
    is_overdue: bool = False
    paused: Pause | None = None

    @property
    def overdue_since(self) -> int | None:
        """The fire time that is overdue, None when none is."""
        return self.next_fire_time if self.is_overdue else None


def is_current(record: EntryRecord, trigger: Trigger) -> bool:
    """Return False for the record of another schedule: beat has not seen yet that the entry was edited."""
    return record.removed_at is None and record.fingerprint == trigger.fingerprint


def state_of(record: EntryRecord | None, trigger: Trigger, now: int) -> TriggerState:
    """Return the state of a trigger: the one that beat keeps, else that of an entry seen now first."""
    return record.state if record is not None and is_current(record, trigger) else trigger.first_state(now)


def status_of(
    record: EntryRecord | None,
    trigger: Trigger | None,
    policy: MisfirePolicy | None,
    now: int,
    *,
    default_threshold: int = AUTO_THRESHOLD,
    hold: Pause | None = None,
) -> Status:
    """Return where an entry stands.

    :param trigger: the schedule as it is now; None where only beat knows it.
    :param policy: the policy in force, None when misfire handling is off.
    :param default_threshold: holds where the schedule is not known, or fails in its own code.
    :param hold: the hold of all entries, if there is one.
    """
    if record is None or record.removed_at is not None:
        return Status()
    if trigger is not None and not is_current(record, trigger):
        return Status()
    due = record.state.next_fire_time
    if due is None:
        return Status(is_known=True)
    for pause in filter(None, (record.paused, hold)):
        until = pause.until
        if until is None:
            return Status(is_known=True, paused=pause)
        # Fire times within a pause are no occurrences.
        due = due if due > until else _after(trigger, record, until)
        if due is None or not pause.is_over(now):
            return Status(is_known=True, next_fire_time=due, paused=pause)
    if due >= now:
        return Status(is_known=True, next_fire_time=due)
    threshold = default_threshold
    if trigger is not None:
        # A schedule may fail in its own code, such as the sun's at the poles.
        with suppress(Exception):
            threshold = threshold_millis(policy, due, trigger.fire_times(record.state).after(due))
    late_by = now - due
    return Status(True, due, late_by, threshold, late_by >= threshold)


def _after(trigger: Trigger | None, record: EntryRecord, moment: int) -> int | None:
    """Return the first fire time after a moment; None where nobody knows it."""
    try:
        return None if trigger is None else trigger.fire_times(record.state).after(moment)
    except Exception:
        return None
