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

    DEFAULT = "", _("Site default")
    SMART_POLICY = MisfireInstruction.SMART_POLICY.value, _("Smart policy")
    IGNORE_MISFIRE_POLICY = MisfireInstruction.IGNORE_MISFIRE_POLICY.value, _("Run every missed one")
    FIRE_ONCE_NOW = MisfireInstruction.FIRE_ONCE_NOW.value, _("Run once for all missed")
    DO_NOTHING = MisfireInstruction.DO_NOTHING.value, _("Skip missed runs")
    FIRE_NOW = MisfireInstruction.FIRE_NOW.value, _("Run once now and restart the interval")
    NOW_EXISTING = (
        MisfireInstruction.RESCHEDULE_NOW_WITH_EXISTING_REPEAT_COUNT.value,
        _("Run once now and restart the interval; missed runs are not counted"),
    )
    NOW_REMAINING = (
        MisfireInstruction.RESCHEDULE_NOW_WITH_REMAINING_REPEAT_COUNT.value,
        _("Run once now and restart the interval; missed runs are counted"),
    )
    NEXT_EXISTING = (
        MisfireInstruction.RESCHEDULE_NEXT_WITH_EXISTING_COUNT.value,
        _("Skip missed runs; they are not counted"),
    )
    NEXT_REMAINING = (
        MisfireInstruction.RESCHEDULE_NEXT_WITH_REMAINING_COUNT.value,
        _("Skip missed runs; they are counted"),
    )
    OFF = "off", _("Off: drop late runs without a record")


class MissReason(models.TextChoices):
    """Why runs were missed, in words."""

    SCHEDULER_DOWN = Reason.SCHEDULER_DOWN.value, _("Beat was not running")
    FAILOVER = Reason.FAILOVER.value, _("Another beat took over")
    STORE_UNAVAILABLE = Reason.STORE_UNAVAILABLE.value, _("Redis was away")
    BROKER_UNAVAILABLE = Reason.BROKER_UNAVAILABLE.value, _("The broker was away")
    SCHEDULER_BUSY = Reason.SCHEDULER_BUSY.value, _("Beat was too busy")
    QUEUE_LATE = Reason.QUEUE_LATE.value, _("Waited too long in the queue")
    PAUSED = Reason.PAUSED.value, _("The task was paused")
    TOO_OLD = Reason.TOO_OLD.value, _("Too old to run")
    CAPPED = Reason.CAPPED.value, _("Over the catch-up limit")
    ENDED = Reason.ENDED.value, _("The schedule had ended")
    SCHEDULE_ERROR = Reason.SCHEDULE_ERROR.value, _("The schedule failed")
    PUBLISH_REJECTED = Reason.PUBLISH_REJECTED.value, _("The message was refused")
    ENTRY_DELETED = Reason.ENTRY_DELETED.value, _("The task was taken off the schedule")
    CLOCK_JUMP = Reason.CLOCK_JUMP.value, _("The clock was set forward")
    EXPIRED = Reason.EXPIRED.value, _("Expired in the queue")
    START_IN_PAST = Reason.START_IN_PAST.value, _("Start time was already in the past")
    RESTARTED = Reason.RESTARTED.value, _("Beat was restarted")


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
        _("misfire threshold (seconds)"),
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
        help_text=_("A run counts as a misfire when it is this many seconds late. Empty: automatic."),
    )
    max_catch_up = models.PositiveIntegerField(
        _("catch up at most"),
        null=True,
        blank=True,
        help_text=_("Only the newest N late runs are made; older ones count as missed."),
    )
    max_lateness = models.FloatField(
        _("give up after (seconds)"),
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
        help_text=_("A run that is later than this is recorded as missed."),
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
        help_text=_("Addresses that get mail about missed runs, separated by commas."),
    )

    class Meta:
        verbose_name = _("misfire policy")
        verbose_name_plural = _("misfire policies")

    def __str__(self) -> str:
        return str(self.get_instruction_display())

    def save(self, *args: Any, **kwargs: Any) -> None:
        super().save(*args, **kwargs)
        # A running beat looks at this mark of django-celery-beat for changes.
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
    #: The name that the periodic task had then; the re-runs take their ids from it.
    entry = models.CharField(_("periodic task"), max_length=255, db_index=True)
    #: The row, whatever its name is now. It keeps the key of a row that was deleted; None: there was no row.
    periodic_task = models.ForeignKey(
        PeriodicTask,
        null=True,
        editable=False,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name="+",
        verbose_name=_("periodic task"),
    )
    task = models.CharField(_("task"), max_length=255)
    first = models.DateTimeField(_("first fire time"))
    last = models.DateTimeField(_("last fire time"))
    count = models.PositiveBigIntegerField(_("missed runs"))
    reason = models.CharField(_("reason"), max_length=50, choices=MissReason.choices)
    instruction = models.CharField(_("instruction"), max_length=50, choices=Instruction.choices)
    detected_at = models.DateTimeField(_("detected at"), db_index=True)
    #: None when no mail was sent about it.
    mailed_at = models.DateTimeField(_("mailed at"), null=True, editable=False)
    #: The addresses that got it. An older version, which may still run, does not know the column.
    mailed_to = models.JSONField(null=True, editable=False)
    #: None while somebody may still want to run it.
    dismissed_at = models.DateTimeField(_("dismissed at"), null=True, editable=False)
    dismissed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        editable=False,
        on_delete=models.SET_NULL,
        related_name="+",
        verbose_name=_("dismissed by"),
    )
    note = models.TextField(_("note"), blank=True, default="", editable=False)

    class Meta:
        verbose_name = _("missed run")
        verbose_name_plural = _("missed runs")
        ordering = ("-detected_at", "-pk")
        default_permissions = ("view",)
        permissions = (
            ("run_missedfire", _("Can run a missed occurrence")),
            ("dismiss_missedfire", _("Can dismiss a missed run")),
        )

    def __str__(self) -> str:
        return f"{self.entry} {as_text(millis(self.first))}"


class Rerun(models.Model):
    """Missed occurrences that somebody asked to have run, in order, and how far that is."""

    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        on_delete=models.SET_NULL,
        related_name="+",
        verbose_name=_("requested by"),
    )
    requested_at = models.DateTimeField(_("requested at"), auto_now_add=True)
    #: For each record in their order: its primary key, and from when to when, in milliseconds UTC.
    wanted = models.JSONField(default=list)
    total = models.PositiveBigIntegerField(_("occurrences"), default=0)
    #: The record whose turn it is, and the last of its occurrences that is dealt with, in milliseconds UTC.
    position = models.PositiveIntegerField(default=0)
    dealt_with = models.BigIntegerField(null=True)
    #: Occurrences that had been run before.
    skipped = models.PositiveBigIntegerField(_("run before"), default=0)
    #: What could not be sent: whose it is, why, how many, and from when to when in milliseconds UTC.
    failures = models.JSONField(default=list)
    #: Somebody is sending until then, at most.
    busy_until = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(_("finished at"), null=True)

    class Meta:
        verbose_name = _("re-run")
        verbose_name_plural = _("re-runs")
        ordering = ("-pk",)
        default_permissions = ()

    def __str__(self) -> str:
        return str(_("Re-run %d") % self.pk)


class OccurrenceRun(models.Model):
    """A missed occurrence that somebody had run after all; each at most once."""

    missed = models.ForeignKey(
        MissedFire, on_delete=models.CASCADE, related_name="runs", verbose_name=_("missed run")
    )
    rerun = models.ForeignKey(
        Rerun, null=True, on_delete=models.SET_NULL, related_name="runs", verbose_name=_("re-run")
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


class Alarm(models.Model):
    """A time in which no beat ran and tasks were overdue, as the workers saw it, and the mail about it."""

    #: The oldest fire time that was overdue.
    since = models.DateTimeField(db_index=True)
    raised_at = models.DateTimeField()
    #: How many entries were overdue, and who was told.
    entries = models.PositiveIntegerField(default=0)
    mailed_to = models.JSONField(default=list)
    #: None while no beat runs.
    over_at = models.DateTimeField(null=True)
    #: None when nobody was told that beat is back.
    over_mailed_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ("-pk",)
        default_permissions = ()

    def __str__(self) -> str:
        return as_text(millis(self.since))


class Fleet(PeriodicTask):  # type: ignore[misc]  # its package has no types
    """All periodic tasks at once, for the page of the admin that shows them; it has no table of its own."""

    class Meta:
        proxy = True
        verbose_name = _("task at a glance")
        verbose_name_plural = _("all tasks at a glance")
        default_permissions = ()
