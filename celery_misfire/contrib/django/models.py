"""What is stored in the database: the policy of a periodic task, and the runs that were missed."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.validators import MinValueValidator
from django.db import models
from django.utils.translation import gettext_lazy as _
from django_celery_beat.models import PeriodicTask, PeriodicTasks

from celery_misfire.contrib.django.moments import as_text, millis
from celery_misfire.misfire import MisfireInstruction, Reason


class Instruction(models.TextChoices):
    """The misfire instructions, and two choices that name none."""

    DEFAULT = "", _("As set for the whole site")
    SMART_POLICY = MisfireInstruction.SMART_POLICY.value, _("Smart policy")
    IGNORE_MISFIRE_POLICY = MisfireInstruction.IGNORE_MISFIRE_POLICY.value, _("Run every missed occurrence")
    FIRE_ONCE_NOW = MisfireInstruction.FIRE_ONCE_NOW.value, _("Run once now")
    DO_NOTHING = MisfireInstruction.DO_NOTHING.value, _("Do nothing until the next fire time")
    FIRE_NOW = MisfireInstruction.FIRE_NOW.value, _("Fire now")
    NOW_EXISTING = (
        MisfireInstruction.RESCHEDULE_NOW_WITH_EXISTING_REPEAT_COUNT.value,
        _("Reschedule from now, existing repeat count"),
    )
    NOW_REMAINING = (
        MisfireInstruction.RESCHEDULE_NOW_WITH_REMAINING_REPEAT_COUNT.value,
        _("Reschedule from now, remaining repeat count"),
    )
    NEXT_EXISTING = (
        MisfireInstruction.RESCHEDULE_NEXT_WITH_EXISTING_COUNT.value,
        _("Wait for the next fire time, existing count"),
    )
    NEXT_REMAINING = (
        MisfireInstruction.RESCHEDULE_NEXT_WITH_REMAINING_COUNT.value,
        _("Wait for the next fire time, remaining count"),
    )
    OFF = "off", _("Off: plan from now and record nothing")


class MissReason(models.TextChoices):
    """Why runs were missed, in words."""

    SCHEDULER_DOWN = Reason.SCHEDULER_DOWN.value, _("Beat was not running")
    FAILOVER = Reason.FAILOVER.value, _("Another beat took over")
    STORE_UNAVAILABLE = Reason.STORE_UNAVAILABLE.value, _("Redis was away")
    BROKER_UNAVAILABLE = Reason.BROKER_UNAVAILABLE.value, _("The broker was away")
    SCHEDULER_BUSY = Reason.SCHEDULER_BUSY.value, _("Beat was too busy")
    QUEUE_LATE = Reason.QUEUE_LATE.value, _("Too late out of the queue")
    PAUSED = Reason.PAUSED.value, _("The task was paused")
    TOO_OLD = Reason.TOO_OLD.value, _("Older than the longest lateness")
    CAPPED = Reason.CAPPED.value, _("More than the most runs to catch up")
    ENDED = Reason.ENDED.value, _("The schedule had ended")
    SCHEDULE_ERROR = Reason.SCHEDULE_ERROR.value, _("The schedule failed")
    PUBLISH_REJECTED = Reason.PUBLISH_REJECTED.value, _("The message was refused")
    ENTRY_DELETED = Reason.ENTRY_DELETED.value, _("The task was taken off the schedule")
    CLOCK_JUMP = Reason.CLOCK_JUMP.value, _("The clock was set forward")
    EXPIRED = Reason.EXPIRED.value, _("Expired in the queue")
    START_IN_PAST = Reason.START_IN_PAST.value, _("The start was past already")


def reason_in_words(reason: str) -> str:
    """Return a reason in the language of the page; one that a newer version has written, as it is."""
    return str(dict(MissReason.choices).get(reason, reason))


def instruction_in_words(instruction: str) -> str:
    """Return an instruction in the language of the page; one that a newer version has written, as it is."""
    return str(dict(Instruction.choices).get(instruction, instruction))


class MisfirePolicy(models.Model):
    """What happens when runs of a periodic task are late; an empty field takes the setting of the site."""

    periodic_task = models.OneToOneField(
        PeriodicTask,
        on_delete=models.CASCADE,
        related_name="misfire_policy",
        verbose_name=_("periodic task"),
    )
    instruction = models.CharField(
        _("misfire instruction"),
        max_length=50,
        blank=True,
        default="",
        choices=Instruction.choices,
    )
    threshold = models.FloatField(
        _("misfire threshold"),
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
        help_text=_("Seconds late from which a run counts as misfired."),
    )
    max_catch_up = models.PositiveIntegerField(
        _("most runs to catch up"),
        null=True,
        blank=True,
        help_text=_("So many late runs are made, the newest; older ones count as missed."),
    )
    max_lateness = models.FloatField(
        _("longest lateness"),
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
        help_text=_("Seconds after which a run is not made any more, but recorded as missed."),
    )
    on_missed = models.CharField(
        _("handler task"),
        max_length=200,
        blank=True,
        default="",
        help_text=_("Name of a task that is sent with the record of each missed run."),
    )
    mail_to = models.TextField(
        _("mail to"),
        blank=True,
        default="",
        help_text=_("Addresses that are told of missed runs, separated by commas."),
    )

    class Meta:
        verbose_name = _("misfire policy")
        verbose_name_plural = _("misfire policies")

    def __str__(self) -> str:
        return str(self.get_instruction_display())

    def save(self, *args: Any, **kwargs: Any) -> None:
        super().save(*args, **kwargs)
        # How django-celery-beat tells a running beat that something has changed.
        PeriodicTasks.update_changed()

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        deleted = super().delete(*args, **kwargs)
        PeriodicTasks.update_changed()
        return deleted

    def as_entry_key(self) -> dict[str, Any] | bool | None:
        """Return the policy as the ``misfire`` key of an entry has it, None when it says nothing."""
        if self.instruction == Instruction.OFF:
            return False
        fields = {
            "instruction": self.instruction or None,
            "threshold": self.threshold,
            "max_catch_up": self.max_catch_up,
            "max_lateness": self.max_lateness,
            "on_missed": self.on_missed or None,
        }
        return {key: value for key, value in fields.items() if value is not None} or None


class MissedFire(models.Model):
    """The record of occurrences that never ran, as in :class:`celery_misfire.MissedFire`."""

    #: Under which the result backend has it; the id of the first occurrence.
    task_id = models.CharField(_("task id"), max_length=255, unique=True)
    entry = models.CharField(_("periodic task"), max_length=255, db_index=True)
    task = models.CharField(_("task"), max_length=255)
    first = models.DateTimeField(_("first fire time"))
    last = models.DateTimeField(_("last fire time"))
    count = models.PositiveBigIntegerField(_("missed runs"))
    reason = models.CharField(_("reason"), max_length=50, choices=MissReason.choices)
    instruction = models.CharField(_("instruction"), max_length=50, choices=Instruction.choices)
    detected_at = models.DateTimeField(_("detected at"), db_index=True)
    #: None when no mail has told of it.
    mailed_at = models.DateTimeField(_("mailed at"), null=True, editable=False)

    class Meta:
        verbose_name = _("missed run")
        verbose_name_plural = _("missed runs")
        ordering = ("-detected_at", "-pk")
        default_permissions = ("view",)
        permissions = (("run_missedfire", _("Can run a missed occurrence")),)

    def __str__(self) -> str:
        return f"{self.entry} {as_text(millis(self.first))}"


class OccurrenceRun(models.Model):
    """A missed occurrence that somebody had run after all; each at most once."""

    missed = models.ForeignKey(
        MissedFire, on_delete=models.CASCADE, related_name="runs", verbose_name=_("missed run")
    )
    scheduled_fire_time = models.DateTimeField(_("scheduled fire time"))
    task_id = models.CharField(_("task id"), max_length=255)
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        on_delete=models.SET_NULL,
        related_name="+",
        verbose_name=_("requested by"),
    )
    requested_at = models.DateTimeField(_("requested at"), auto_now_add=True)

    class Meta:
        verbose_name = _("run of a missed occurrence")
        verbose_name_plural = _("runs of missed occurrences")
        default_permissions = ()
        constraints = (
            models.UniqueConstraint(
                fields=("missed", "scheduled_fire_time"), name="celery_misfire_occurrence_runs_once"
            ),
        )

    def __str__(self) -> str:
        return f"{self.missed.entry} {self.scheduled_fire_time:%Y-%m-%d %H:%M:%S}"
