"""Signals of this package, connected like Celery's own: ``task_missed.connect(receiver)``.

Receivers take keyword arguments (``**kwargs`` at the end: later versions may send more). If a receiver
raises, Celery logs it, and everything goes on.

Receivers of :data:`misfire_detected` and :data:`task_missed` run in the thread that makes reports, of beat or
of the worker that gave the run up. A slow one delays the next report, but never a run. Receivers of
:data:`beat_overdue` run in the thread that watches beat, those of :data:`task_started_late` where the task
does, just before it.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = ["beat_overdue", "beat_recovered", "misfire_detected", "task_missed", "task_started_late"]

#: Sent by beat once for each misfire, whatever its instruction then does.
#:
#: :param sender: name of the task.
#: :param entry: name of the entry in the schedule.
#: :param scheduled_fire_time: aware datetime, of the oldest occurrence that misfired.
#: :param late_by: how late that one is, in seconds.
#: :param instruction: the ``MisfireInstruction`` that is configured.
#: :param resolved: the one it stands for (they differ under ``smart_policy``).
#: :param outcomes: dict of ``Outcome`` to the number of occurrences that end that way.
#: :param reason: the ``Reason`` why they are late.
misfire_detected = Signal(
    name="misfire_detected",
    providing_args=[
        "entry",
        "scheduled_fire_time",
        "late_by",
        "instruction",
        "resolved",
        "outcomes",
        "reason",
    ],
)

#: Sent for each record of runs that never happen. Celery's ``task_failure`` comes with it, unless
#: ``misfire_send_task_failure`` is off.
#:
#: Sent at least once: when beat dies in the middle of a report, the report is made again, with the same
#: ``missed.task_id``.
#:
#: :param sender: name of the task.
#: :param missed: a ``MissedFire``.
task_missed = Signal(name="task_missed", providing_args=["missed"])

#: Sent by the worker when a run of beat starts later than its threshold allows, and does start.
#:
#: :param sender: the task.
#: :param fire: the ``Fire`` that starts late.
#: :param late_by: how late, in seconds.
task_started_late = Signal(name="task_started_late", providing_args=["fire", "late_by"])

#: Sent once for each outage of beat, by the worker that watches it: entries are overdue and no beat leads.
#:
#: :param sender: the app.
#: :param entries: names of the entries that are overdue.
#: :param since: aware datetime, the oldest fire time among them.
beat_overdue = Signal(name="beat_overdue", providing_args=["entries", "since"])

#: Sent once when such an outage is over, by the worker that watches then: a beat leads again.
#:
#: :param sender: the app.
#: :param since: aware datetime, as :data:`beat_overdue` had it.
beat_recovered = Signal(name="beat_recovered", providing_args=["since"])
