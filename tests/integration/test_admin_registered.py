"""The admin beside other apps: one with its own class for periodic tasks, and django-celery-results."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.admin_site import SETTINGS
from tests.support.processes import ROOT

OURS, BEAT, ADMIN = "celery_misfire.contrib.django", "django_celery_beat", "django.contrib.admin"
REST = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
]

THEIR_ADMIN = """
from django.contrib import admin
from django_celery_beat.admin import PeriodicTaskAdmin
from django_celery_beat.models import PeriodicTask

admin.site.unregister(PeriodicTask)

@admin.register(PeriodicTask)
class TheirAdmin(PeriodicTaskAdmin):
    list_display = ("name", "theirs")

    def theirs(self, task):
        return "theirs"
"""

UNFOLD = """
from django.contrib import admin

class StackedInline(admin.StackedInline):
    pass
"""

LOOK = """
import json
from tests.support import django_settings
django_settings.set_up()
from django.apps import apps
found = {}
if apps.is_installed("django.contrib.admin"):
    from django.contrib import admin
    from django.core.checks import run_checks
    from django_celery_beat.models import PeriodicTask
    registered = admin.site._registry[PeriodicTask]
    found = {
        "columns": registered.get_list_display(None),
        "inlines": [inline.__name__ for inline in registered.get_inlines(None, None)],
        "inline_bases": [base.__module__ for base in registered.get_inlines(None, None)[-1].__mro__],
        "models": [model.__name__ for model in admin.site._registry],
        "problems": [str(problem) for problem in run_checks() if problem.id.startswith("admin.")],
    }
print(json.dumps(found))
"""


def look(directory: Path, *apps: str) -> Any:
    """Return what is registered on a site with these apps, in this order."""
    for name, text in (("theirs", THEIR_ADMIN), ("unfold", UNFOLD)):
        (directory / name).mkdir()
        (directory / name / "__init__.py").touch()
        (directory / name / "admin.py").write_text(text)
    return answer_of(LOOK, directory, *apps)


def answer_of(script: str, directory: Path, *apps: str) -> Any:
    """Return what a script says on a site with these apps."""
    settings = {**SETTINGS, "INSTALLED_APPS": [*apps, *REST]}
    paths = os.pathsep.join([str(directory), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": paths, "MISFIRE_TEST_DJANGO": json.dumps(settings)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


@pytest.mark.parametrize(
    "apps",
    [
        (ADMIN, BEAT, OURS, "theirs"),
        (OURS, BEAT, "theirs", ADMIN, "unfold"),
        pytest.param((ADMIN, BEAT, "theirs", OURS), marks=pytest.mark.long),
        pytest.param((BEAT, "theirs", OURS, ADMIN), marks=pytest.mark.long),
        pytest.param((OURS, ADMIN, BEAT, "theirs"), marks=pytest.mark.long),
    ],
)
def test_the_order_of_the_apps_does_not_matter(tmp_path: Path, apps: tuple[str, ...]) -> None:
    found = look(tmp_path, *apps)
    assert found["columns"][:2] == ["name", "theirs"]
    assert "misfire_next" in found["columns"]
    assert found["inlines"] == ["PolicyInline"]
    assert ("unfold.admin" in found["inline_bases"]) == ("unfold" in apps)
    assert "MissedFire" in found["models"]
    assert found["problems"] == []


def test_a_site_without_the_admin_starts(tmp_path: Path) -> None:
    assert look(tmp_path, BEAT, OURS) == {}


RESULTS = """
import json, logging
from datetime import UTC, datetime
from tests.support import django_settings
django_settings.set_up()
from celery import Celery
from django.core.management import call_command
from django.contrib.auth.models import User
from django.test import Client
from celery_misfire.conf.settings import read_settings
from celery_misfire.misfire import MisfireInstruction, MissedFire, Reason
from celery_misfire.sending.missed_runs import Report, report
logging.disable(logging.CRITICAL)
call_command("migrate", verbosity=0)
app = Celery("shop", broker="memory://", backend="django-db", set_as_current=True)
app.conf.update(result_extended=True, misfire_redis_url="redis://localhost:1/0")
at = datetime(2026, 3, 10, 2, tzinfo=UTC)
for entry in ("stocks", "billing"):
    missed = MissedFire(
        entry=entry, task="shop." + entry, task_id=entry, first=at, last=at, count=1, detected_at=at,
        reason=Reason.SCHEDULER_DOWN, instruction=MisfireInstruction.DO_NOTHING,
    )
    assert report(app, read_settings(app), Report(missed)) == {}
client = Client()
client.force_login(User.objects.create_superuser("x"))
url = "/admin/django_celery_results/taskresult/"
print(json.dumps([
    client.get(url, query).content.decode()
    for query in ({}, {"periodic_task_name": "stocks"}, {"status__exact": "MISSED"})
] + [client.get(f"{url}1/change/").content.decode()]))
"""


@pytest.mark.skipif(not find_spec("django_celery_results"), reason="needs django_celery_results")
def test_the_list_of_results_shows_a_missed_run_and_of_which_periodic_task(tmp_path: Path) -> None:
    both, filtered, by_state, one = answer_of(RESULTS, tmp_path, ADMIN, BEAT, "django_celery_results", OURS)

    def cells(page: str, column: str) -> list[str]:
        found = re.findall(rf'class="field-{column}[^"]*">(.*?)</t[dh]>', page)
        return sorted(re.sub("<[^>]+>", "", cell) for cell in found)

    assert cells(both, "status") == ["MISSED", "MISSED"]
    assert cells(both, "periodic_task_name") == cells(by_state, "periodic_task_name") == ["billing", "stocks"]
    assert cells(filtered, "periodic_task_name") == ["stocks"]
    assert "MISSED" in one
    assert "scheduler_down" in one
