"""The misfire policy in the form of a periodic task: what may be chosen, and what each choice would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

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
from celery_misfire.contrib.django.admin.examples import explain
from celery_misfire.contrib.django.models import Instruction, MisfirePolicy
from celery_misfire.contrib.django.rows import trigger_of
from celery_misfire.misfire import FITTING, Trigger, TriggerType

if TYPE_CHECKING:
    _ModelForm = forms.ModelForm[MisfirePolicy]
    _FormSet = BaseInlineFormSet[MisfirePolicy, Any, forms.ModelForm[MisfirePolicy]]
    _Inline = admin.StackedInline[MisfirePolicy, PeriodicTask]
elif apps.is_installed("unfold"):
    # Its forms are styled in its own classes.
    from unfold.admin import StackedInline as _Inline

    _ModelForm, _FormSet = forms.ModelForm, BaseInlineFormSet
else:
    _ModelForm, _FormSet, _Inline = forms.ModelForm, BaseInlineFormSet, admin.StackedInline

__all__ = ["PolicyForm", "PolicyFormSet", "PolicyInline"]

#: The types of schedule that a row can have, in the words of its form.
_TYPES = {
    TriggerType.CRON: gettext_lazy("crontab, solar"),
    TriggerType.ENDLESS: gettext_lazy("interval"),
    TriggerType.ONCE: gettext_lazy("clocked, one-off"),
}

_SECONDS = gettext_lazy("Enter a number of seconds greater than 0, at most 100 years.")
#: What is told of a value that a policy does not take.
_WANTED = {
    "threshold": _SECONDS,
    "max_catch_up": gettext_lazy("Enter a number from 1. To run nothing, choose another instruction."),
    "max_lateness": _SECONDS,
}


def _fitting(trigger: Trigger | None) -> list[Instruction]:
    """Return what may be chosen for this schedule; None: for any."""
    return _fitting_type(trigger.trigger_type) if trigger is not None else list(Instruction)


def _fitting_type(trigger_type: TriggerType) -> list[Instruction]:
    fits = (Instruction.DEFAULT, Instruction.OFF, *FITTING[trigger_type])
    return [choice for choice in Instruction if choice.value in fits]


def _label(choice: Instruction, trigger: Trigger | None) -> str:
    """Return the label; without a schedule with the types that it fits, where those are not all."""
    types = [text for type_, text in _TYPES.items() if choice in _fitting_type(type_)]
    if trigger is not None or len(types) == len(_TYPES):
        return str(choice.label)
    return _("%(instruction)s (%(types)s)") % {
        "instruction": choice.label,
        "types": ", ".join(map(str, types)),
    }


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
            # For whoever may only look there are no fields.
            return
        trigger = _trigger_of(task)
        offered = _fitting(trigger)
        chosen = self.instance.instruction
        # Only what is shown: whether the choice fits is judged when the schedule is known, with better words.
        field.widget.choices = [
            (choice.value, _label(choice, trigger))
            for choice in Instruction
            if choice in offered or choice.value == chosen
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
                    problem = _("“%(address)s” is no email address.") % {"address": address.strip()}
                    raise ValidationError(problem) from None
        return text

    def _checked(self, key: str) -> Any:
        value = self.cleaned_data[key]
        if value is not None:
            try:
                policy_value(key, value)
            except ValueError:
                raise ValidationError(_WANTED[key]) from None
        return value


class PolicyFormSet(_FormSet):
    """Knows the task, as it is in the form beside: the schedule may have been changed there."""

    #: An instruction to choose beforehand, when the form is shown and not sent.
    proposed: str | None = None

    def get_form_kwargs(self, index: int | None) -> dict[str, Any]:
        proposal = {} if self.proposed is None else {"initial": {"instruction": self.proposed}}
        return {**super().get_form_kwargs(index), "task": self.instance, **proposal}

    def clean(self) -> None:
        super().clean()
        trigger = _trigger_of(self.instance)
        if trigger is None:
            # The form of the task says what is missing.
            return
        fitting = _fitting(trigger)
        for form in self.forms:
            chosen = form.cleaned_data.get("instruction", "") if form.is_valid() else ""
            if chosen not in fitting:
                text = _("“%(instruction)s” does not fit this schedule. Choose one of: %(choices)s.")
                labels = {
                    "instruction": Instruction(chosen).label,
                    "choices": ", ".join(str(choice.label) for choice in fitting),
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
    # It is one, and stays: without a policy of its own a task has that of the site.
    can_delete = False
    min_num, max_num, extra = 1, 1, 0

    def get_formset(
        self, request: HttpRequest, obj: PeriodicTask | None = None, **kwargs: Any
    ) -> type[_FormSet]:
        known = super().get_formset(request, obj, **kwargs)
        # Only where it is shown: sent, it has to differ from what the form began with, or it is not saved.
        proposed = request.GET.get("misfire_instruction") if request.method == "GET" else None
        return type(known.__name__, (known,), {"proposed": proposed})

    @admin.display(description=gettext_lazy("What each choice does"))
    def explanation(self, policy: MisfirePolicy | None) -> str:
        task = policy.periodic_task if policy is not None and policy.periodic_task_id else None
        trigger = _trigger_of(task)
        example = explain(_fitting(trigger), task, trigger)
        context = {
            "task": task,
            "example": example,
            "choices": [(_label(one.choice, trigger), one) for one in example.choices],
            "chosen": policy.instruction if policy is not None else "",
        }
        return render_to_string("admin/celery_misfire/instructions.html", context)
