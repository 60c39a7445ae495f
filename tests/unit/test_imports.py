from __future__ import annotations

import subprocess
import sys

import pytest

import celery_misfire

#: Kombu loads a little of Django where it is installed, Celery's app its worker: neither is our doing.
HEAVY = ["redis", "django.db", "celery.beat", "celery.worker", "celery_misfire.store.redis_store"]


def modules_added_by(code: str, after: str = "") -> set[str]:
    """The names of the modules that `code` loads in a fresh interpreter that has run `after`."""
    script = f"import sys\n{after}\nbefore = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def imported() -> set[str]:
    return modules_added_by("from celery_misfire import *")


@pytest.fixture(scope="module")
def installed() -> set[str]:
    app = "import celery, celery_misfire\napp = celery.Celery('light')"
    return modules_added_by("celery_misfire.install(app)", after=app)


@pytest.mark.parametrize("heavy", HEAVY)
def test_importing_the_package_is_light(imported: set[str], heavy: str) -> None:
    assert "celery_misfire.misfire" in imported
    assert heavy not in imported


def test_the_plugin_of_pytest_loads_nothing_until_a_fixture_is_used() -> None:
    added = modules_added_by("import celery_misfire.pytest_plugin", after="import pytest")
    assert added == {"celery_misfire", "celery_misfire.pytest_plugin"}


def test_beat_loads_what_reads_the_file_of_another_scheduler_only_when_an_interval_asks_for_it() -> None:
    loaded = modules_added_by("import celery_misfire.beat")
    assert "celery_misfire.leadership.leader" in loaded
    assert "celery_misfire.beat_file" not in loaded


@pytest.mark.parametrize("heavy", HEAVY)
def test_installing_it_is_light_too(installed: set[str], heavy: str) -> None:
    assert "celery_misfire.result" in installed
    assert heavy not in installed


def test_the_core_loads_nothing_but_the_standard_library() -> None:
    # The package's own __init__ is celery's: it is left out here.
    code = (
        "import types\n"
        "package = types.ModuleType('celery_misfire')\n"
        f"package.__path__ = {list(celery_misfire.__path__)!r}\n"
        "sys.modules['celery_misfire'] = package\n"
        "import celery_misfire.misfire"
    )

    third_parties = {m.partition(".")[0] for m in modules_added_by(code)} - sys.stdlib_module_names
    assert third_parties == {"celery_misfire"}


@pytest.mark.parametrize("name", celery_misfire.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(celery_misfire, name) is not None


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'fire_at_will'"):
        celery_misfire.fire_at_will  # noqa: B018
