"""What the pages about one periodic task have in common.

They change nothing. They are reached through the admin of PeriodicTask, whose ``get_urls`` names them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from celery import current_app
from django.contrib.admin import ModelAdmin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask

from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib.django.policies import policy_in_force
from celery_misfire.contrib.django.rows import entry_name, trigger_of
from celery_misfire.contrib.django.state import open_store
from celery_misfire.exceptions import MisfireConfigError, StoreUnavailable
from celery_misfire.misfire import MisfirePolicy, Trigger
from celery_misfire.store.redis_store import RedisStore

T = TypeVar("T")


def find_task(model_admin: ModelAdmin[PeriodicTask], request: HttpRequest, object_id: str) -> PeriodicTask:
    """Return the task that a page is about.

    :raises PermissionDenied: the user may not see it.
    :raises Http404: there is none.
    """
    task = model_admin.get_object(request, unquote(object_id))
    if not model_admin.has_view_permission(request, task):
        raise PermissionDenied
    if task is None:
        raise Http404(_("There is no such periodic task."))
    return task


def find_trigger(task: PeriodicTask, problems: list[str]) -> Trigger | None:
    """Return the trigger of a task; None, with a problem, for one that can never be scheduled."""
    try:
        return trigger_of(task)
    except Exception as exc:
        problems.append(_("This task can never be scheduled: %(error)s") % {"error": exc})
        return None


def ask_store(question: Callable[[RedisStore], T], problems: list[str]) -> T | None:
    """Ask the store; when it cannot be asked, say so."""
    try:
        return question(open_store(current_app))
    except (StoreUnavailable, MisfireConfigError) as exc:
        text = _("Redis does not answer; past and next runs are unknown. %(error)s")
        problems.append(text % {"error": exc})
        return None


def find_policy(task: PeriodicTask, trigger: Trigger) -> MisfirePolicy | None:
    """Return the policy of a task as beat sees it; None when misfire handling is off, or cannot be read."""
    try:
        return policy_in_force(task, trigger, read_settings(current_app))[0]
    except MisfireConfigError:
        return None


def not_computed(error: Exception) -> str:
    """Return what to say when a schedule fails in its own code, such as the sun's at the poles."""
    return _("The fire times cannot be computed: %(error)s") % {"error": error}


def render(
    model_admin: ModelAdmin[PeriodicTask],
    request: HttpRequest,
    task: PeriodicTask,
    name: str,
    context: dict[str, Any],
) -> TemplateResponse:
    """Return a page about a task.

    :param context: with `problems`, which are shown as warnings, and `notes`, which are not.
    """
    request.current_app = model_admin.admin_site.name
    return TemplateResponse(
        request,
        f"celery_misfire/{name}.html",
        {
            **model_admin.admin_site.each_context(request),
            "opts": model_admin.model._meta,
            "task": task,
            "entry": entry_name(task),
            "can_change": model_admin.has_change_permission(request, task),
            **context,
        },
    )
