"""The misfire policy of a periodic task: which one is in force, and how it is called."""

from __future__ import annotations

from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask

from celery_misfire.conf.settings import Settings
from celery_misfire.contrib.django.models import Instruction
from celery_misfire.misfire import MisfirePolicy, Trigger, TriggerType, resolve

__all__ = ["policy_in_words", "policy_of", "resolved_in_words"]


def policy_of(task: PeriodicTask, trigger: Trigger, settings: Settings) -> MisfirePolicy | None:
    """Return the policy in force for a row, None when misfire handling is off.

    :raises MisfireConfigError: when the row's policy does not fit its schedule.
    """
    own = getattr(task, "misfire_policy", None)
    return settings.policy_for(task.name, own and own.as_entry_key(), trigger.trigger_type)


def policy_in_words(policy: MisfirePolicy | None, trigger_type: TriggerType) -> str:
    """Return the instruction in words, and what it stands for if that is another one."""
    label = resolved_in_words(policy, trigger_type)
    if policy is None or resolve(policy.instruction, trigger_type) is policy.instruction:
        return label
    asked = Instruction(policy.instruction.value).label
    return _("%(instruction)s: %(resolved)s") % {"instruction": asked, "resolved": label}


def resolved_in_words(policy: MisfirePolicy | None, trigger_type: TriggerType) -> str:
    """Return in words what the instruction stands for."""
    if policy is None:
        return str(Instruction.OFF.label)
    return str(Instruction(resolve(policy.instruction, trigger_type).value).label)
