"""The misfire policy in the form of a periodic task: what may be chosen, and what each choice would do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from celery import current_app
from django import forms
from django.apps import apps
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.forms.models import BaseInlineFormSet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django_celery_beat.models import PeriodicTask

from celery_misfire.conf.problems import policy_value
from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib.django.admin.examples import explain
from celery_misfire.contrib.django.models import Instruction, MisfirePolicy
from celery_misfire.contrib.django.policies import choice_in_words, choices_for, label_of
from celery_misfire.contrib.django.rows import site_policy, trigger_of
from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.misfire import FITTING, Trigger, TriggerType
from celery_misfire.misfire import MisfirePolicy as Policy

if TYPE_CHECKING:
    _ModelForm = forms.ModelForm[MisfirePolicy]
    _FormSet = BaseInlineFormSet[MisfirePolicy, Any, forms.ModelForm[MisfirePolicy]]
    _Inline = admin.StackedInline[MisfirePolicy, PeriodicTask]
elif apps.is_installed("unfold"):
    # Unfold styles forms by its own classes.
    from unfold.admin import StackedInline as _Inline

    _ModelForm, _FormSet = forms.ModelForm, BaseInlineFormSet
else:
    _ModelForm, _FormSet, _Inline = forms.ModelForm, BaseInlineFormSet, admin.StackedInline

_SECONDS = gettext_lazy("Enter a number of seconds greater than 0, at most 100 years.")
#: The message for a value that a policy does not take.
_REFUSALS = {
    "threshold": _SECONDS,
    "max_catch_up": gettext_lazy("Enter a number from 1. To run nothing, choose another instruction."),
    "max_lateness": _SECONDS,
}


def _type_of(trigger: Trigger | None) -> TriggerType | None:
    return None if trigger is None else trigger.trigger_type


def _site_policy(task: PeriodicTask | None, trigger: Trigger | None) -> Policy | None:
    """Return what the settings say for a row, None also where they cannot be read."""
    if task is None or trigger is None:
        return None
    with suppress(MisfireConfigError):
        return site_policy(task, trigger, read_settings(current_app))
    return None


def _trigger_of(task: PeriodicTask | None) -> Trigger | None:
    """Return the trigger of a row that may be half filled in."""
    try:
        return None if task is None else trigger_of(task)
    except ValueError:
        return None


class PolicyForm(_ModelForm):
    """The policy of one task; its drop-down offers what fits the schedule that the task has."""

    class Meta:
        model = MisfirePolicy
        fields = ("instruction", "threshold", "max_catch_up", "max_lateness", "on_missed", "mail_to")
        widgets: ClassVar = {"mail_to": forms.Textarea(attrs={"rows": 2})}

    def __init__(self, *args: Any, task: PeriodicTask | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields.get("instruction")
        if not isinstance(field, forms.ChoiceField):
            # A user who may only look gets no fields.
            return
        trigger = _trigger_of(task)
        site = _site_policy(task, trigger)
        chosen = self.initial.get("instruction") or self.instance.instruction
        if chosen not in Instruction.values:
            chosen = ""
        # This is only what the list offers. The form set, which knows the schedule, judges the choice.
        field.widget.choices = [
            (choice.value, choice_in_words(choice, trigger, site))
            for choice in choices_for(_type_of(trigger), chosen)
        ]

    def clean_threshold(self) -> Any:
        return self._checked("threshold")

    def clean_max_catch_up(self) -> Any:
        return self._checked("max_catch_up")

    def clean_max_lateness(self) -> Any:
        return self._checked("max_lateness")

    def clean_mail_to(self) -> str:
        text: str = self.cleaned_data["mail_to"]
        for address in text.split(","):
            if address.strip():
                try:
                    validate_email(address.strip())
                except ValidationError:
                    text = _("“%(address)s” is not a valid address. Separate several with commas.")
                    problem = text % {"address": address.strip()}
                    raise ValidationError(problem) from None
        return text

    def validate_unique(self) -> None:
        task = self.instance.periodic_task_id
        if self.instance.pk is None and MisfirePolicy.objects.filter(periodic_task=task).exists():
            if self.has_changed():
                text = _("Somebody else has chosen a policy meanwhile. Load this page again.")
                self.add_error("instruction", text)
            return
        super().validate_unique()

    def _checked(self, key: str) -> Any:
        value = self.cleaned_data[key]
        if value is not None:
            try:
                policy_value(key, value)
            except ValueError:
                raise ValidationError(_REFUSALS[key]) from None
        return value


class PolicyFormSet(_FormSet):
    """Knows the task, as it is in the form beside: the schedule may have been changed there."""

    #: What a form that is shown, and not sent, begins with.
    proposed: Mapping[str, str] = MappingProxyType({})

    def get_form_kwargs(self, index: int | None) -> dict[str, Any]:
        initial = {"initial": dict(self.proposed)} if self.proposed else {}
        return {**super().get_form_kwargs(index), "task": self.instance, **initial}

    def clean(self) -> None:
        super().clean()
        trigger = _trigger_of(self.instance)
        if trigger is None:
            # The form of the task shows what is missing.
            return
        type_ = trigger.trigger_type
        fitting = (Instruction.DEFAULT, Instruction.OFF, *FITTING[type_])
        for form in self.forms:
            chosen = form.cleaned_data.get("instruction", "") if form.is_valid() else ""
            if chosen not in fitting:
                text = _("“%(instruction)s” does not fit this schedule. Choose one of: %(choices)s.")
                labels = {
                    "instruction": Instruction(chosen).label,
                    "choices": ", ".join(label_of(choice, type_) for choice in choices_for(type_)),
                }
                form.add_error("instruction", text % labels)


class PolicyInline(_Inline):
    """The misfire policy in the form of a periodic task."""

    model = MisfirePolicy
    form = PolicyForm
    formset = PolicyFormSet
    fields = (
        "instruction",
        "explanation",
        "threshold",
        "max_catch_up",
        "max_lateness",
        "on_missed",
        "mail_to",
    )
    readonly_fields = ("explanation",)
    # There is always one form. An empty one is the policy of the site.
    can_delete = False
    min_num, max_num, extra = 1, 1, 0

    def get_formset(
        self, request: HttpRequest, obj: PeriodicTask | None = None, **kwargs: Any
    ) -> type[_FormSet]:
        known = super().get_formset(request, obj, **kwargs)
        # A form that is sent is saved only where it differs from what it began with.
        proposed = {
            name: request.GET[f"misfire_{name}"]
            for name in PROPOSED
            if request.method == "GET" and f"misfire_{name}" in request.GET
        }
        return type(known.__name__, (known,), {"proposed": proposed})

    def get_min_num(self, request: HttpRequest, obj: PeriodicTask | None = None, **kwargs: Any) -> int:
        # Django shows the fields of an empty form also to those who may only look, and saves nothing.
        return int(_may_edit_task(request, obj) and self.has_add_permission(request, obj))

    @admin.display(description=gettext_lazy("Choices"))
    def explanation(self, policy: MisfirePolicy | None) -> str:
        task = policy.periodic_task if policy is not None and policy.periodic_task_id else None
        trigger = _trigger_of(task)
        chosen = policy.instruction if policy is not None else ""
        example = explain(choices_for(_type_of(trigger), chosen), task, trigger)
        site = _site_policy(task, trigger)
        context = {
            "task": task,
            "example": example,
            "choices": [(choice_in_words(one.choice, trigger, site), one) for one in example.choices],
            "chosen": chosen,
        }
        return render_to_string("admin/celery_misfire/instructions.html", context)


def _may_edit_task(request: HttpRequest, task: PeriodicTask | None) -> bool:
    action = "add" if task is None else "change"
    return request.user.has_perm(f"django_celery_beat.{action}_periodictask")


def may_edit_policy(request: HttpRequest, task: PeriodicTask) -> bool:
    """Return True for those whose form of this task has the fields of its policy."""
    action = "change" if getattr(task, "misfire_policy", None) else "add"
    return _may_edit_task(request, task) and request.user.has_perm(f"celery_misfire.{action}_misfirepolicy")


def proposal(policy: Policy) -> dict[str, str]:
    """Return the query with which the form of a task begins with this policy."""
    return {
        "misfire_instruction": str(policy.instruction),
        "misfire_threshold": "" if policy.threshold == "auto" else f"{policy.threshold:g}",
        "misfire_max_catch_up": "" if policy.max_catch_up is None else str(policy.max_catch_up),
        "misfire_max_lateness": "" if policy.max_lateness is None else f"{policy.max_lateness:g}",
    }


#: The fields of a policy that an address may propose.
PROPOSED = ("instruction", "threshold", "max_catch_up", "max_lateness")
