from __future__ import annotations

from importlib import import_module

from django.apps import AppConfig, apps
from django.utils.translation import gettext_lazy as _


class MisfireAppConfig(AppConfig):
    """The Django app; its tables begin with ``celery_misfire_``."""

    name = "celery_misfire.contrib.django"
    label = "celery_misfire"
    verbose_name = _("Misfire handling")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the checks and the hooks of reports and alarms, and add to the admin if there is one."""
        import_module("celery_misfire.contrib.django.checks")
        import_module("celery_misfire.contrib.django.recording").install()
        import_module("celery_misfire.contrib.django.database").install()
        import_module("celery_misfire.contrib.django.mail").install()
        import_module("celery_misfire.contrib.django.planned").install()
        if apps.is_installed("django.contrib.admin"):
            from django.contrib import admin

            own = import_module("celery_misfire.contrib.django.admin")
            own.replace_registered(admin.site)
