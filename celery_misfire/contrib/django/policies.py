"""The misfire policy of a periodic task: which one is in force, and how it is called."""

from __future__ import annotations

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django_celery_beat.models import PeriodicTask

from celery_misfire.conf.settings import Settings
from celery_misfire.contrib.django.models import Instruction
from celery_misfire.contrib.django.rows import policy_of_row, site_policy
from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.misfire import MisfirePolicy, Trigger, TriggerType, resolve


def policy_of(task: PeriodicTask, trigger: Trigger, settings: Settings) -> MisfirePolicy | None:
    """Return the policy in force for a row, None when misfire handling is off.

    :raises MisfireConfigError: when the row's policy does not fit its schedule.
    """
    own = getattr(task, "misfire_policy", None)
    return policy_of_row(task, own and own.as_entry_key(), trigger.trigger_type, settings)


def policy_in_force(
    task: PeriodicTask, trigger: Trigger, settings: Settings
) -> tuple[MisfirePolicy | None, bool]:
    """Return the policy that beat applies, and whether the row's own is valid: else beat takes the site's."""
    try:
        return policy_of(task, trigger, settings), True
    except MisfireConfigError:
        return site_policy(task, trigger, settings), False


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
    return label_of(Instruction(resolve(policy.instruction, trigger_type).value), trigger_type)


def label_of(choice: Instruction, trigger_type: TriggerType | None) -> str:
    """Return what a choice is called for a type of schedule; None: for any.

    Only a schedule with a number of repetitions tells those apart that differ in what they count.
    """
    if trigger_type is not None and trigger_type is not TriggerType.FIXED:
        choice = _SAME_WITHOUT_COUNT.get(choice, choice)
    if trigger_type is TriggerType.ONCE and choice in _RUN_ONE:
        return _("Run it late")
    return str(choice.label)


_SAME_WITHOUT_COUNT = {
    Instruction.NOW_EXISTING: Instruction.FIRE_NOW,
    Instruction.NOW_REMAINING: Instruction.FIRE_NOW,
    Instruction.NEXT_EXISTING: Instruction.DO_NOTHING,
    Instruction.NEXT_REMAINING: Instruction.DO_NOTHING,
}
_RUN_ONE = (Instruction.FIRE_NOW, Instruction.FIRE_ONCE_NOW)

#: What is offered, in this order, beside what was chosen before: one choice for each thing that can happen.
_OFFERED: dict[TriggerType | None, tuple[Instruction, ...]] = {
    TriggerType.CRON: (Instruction.DO_NOTHING, Instruction.FIRE_ONCE_NOW, Instruction.IGNORE_MISFIRE_POLICY),
    TriggerType.ONCE: (Instruction.DO_NOTHING, Instruction.FIRE_NOW),
    TriggerType.FIXED: tuple(Instruction),
}
_OFFERED[TriggerType.ENDLESS] = _OFFERED[None] = (*_OFFERED[TriggerType.CRON], Instruction.FIRE_NOW)


#: The labels in two words.
_SHORT = {
    Instruction.IGNORE_MISFIRE_POLICY: gettext_lazy("run every"),
    Instruction.FIRE_ONCE_NOW: gettext_lazy("run once"),
    Instruction.DO_NOTHING: gettext_lazy("skip missed"),
    Instruction.FIRE_NOW: gettext_lazy("run and restart"),
}


def short_label_of(policy: MisfirePolicy | None, trigger_type: TriggerType) -> str:
    """Return in two words what a policy does with a type of schedule."""
    if policy is None:
        return _("off")
    choice = Instruction(resolve(policy.instruction, trigger_type).value)
    choice = _SAME_WITHOUT_COUNT.get(choice, choice)
    if trigger_type is TriggerType.ONCE and choice in _RUN_ONE:
        return _("run late")
    return str(_SHORT[choice])


def choices_for(trigger_type: TriggerType | None, chosen: str = "") -> list[Instruction]:
    """Return what a form offers for a type of schedule; None: for any."""
    offered = dict.fromkeys((Instruction.DEFAULT, Instruction.SMART_POLICY, *_OFFERED[trigger_type]))
    if chosen:
        offered |= {Instruction(chosen): None}
    offered.pop(Instruction.OFF, None)
    return [*offered, Instruction.OFF]


def choice_in_words(choice: Instruction, trigger: Trigger | None, site: MisfirePolicy | None) -> str:
    """Return the label of a choice, with what it means for this schedule where that is not its name.

    :param site: what the settings of the site say for this schedule.
    """
    if trigger is None:
        return str(choice.label)
    type_ = trigger.trigger_type
    if choice is Instruction.DEFAULT:
        return _("Site default (now: %(policy)s)") % {"policy": resolved_in_words(site, type_)}
    if choice is Instruction.SMART_POLICY:
        policy = resolved_in_words(MisfirePolicy(), type_)
        return _("Smart policy (here: %(policy)s)") % {"policy": policy}
    return label_of(choice, type_)
