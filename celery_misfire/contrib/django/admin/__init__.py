"""The Django admin: periodic tasks with their misfire policy and status, and the runs that were missed.

What is registered for PeriodicTask is extended, whoever registered it. A project that registers its own class
may also put :class:`PeriodicTaskMixin` in front of it itself.
"""

from __future__ import annotations

from celery_misfire.contrib.django.admin.missed import MissedFireAdmin
from celery_misfire.contrib.django.admin.policy_form import PolicyInline
from celery_misfire.contrib.django.admin.tasks import PeriodicTaskMixin, replace_registered

__all__ = ["MissedFireAdmin", "PeriodicTaskMixin", "PolicyInline", "replace_registered"]
