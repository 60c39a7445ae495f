"""What is uploaded: the source distribution, the wheel, and what a user gets who installs it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

#: What is built and installed first takes as long as pip does; the limit is for the tests themselves.
pytestmark = pytest.mark.timeout(func_only=True)

ROOT = Path(__file__).parents[2]

#: What a user may write, each line of it with the types that the documentation promises.
USER_PROGRAM = """
from datetime import UTC, datetime, timedelta

from celery import Celery
from celery.schedules import crontab

import celery_misfire
from celery_misfire import Fire, MisfireInstruction, MisfirePolicy, MissedFire, current_fire, simulate
from celery_misfire.schedules import cron, simple
from celery_misfire.signals import task_missed

app = celery_misfire.install(Celery("shop"))
policies: list[MisfirePolicy] = [
    MisfirePolicy("fire_once_now"),
    MisfirePolicy(MisfireInstruction.DO_NOTHING, threshold="auto"),
    MisfirePolicy(threshold=timedelta(minutes=5), max_lateness=timedelta(hours=1), max_catch_up=3),
]
fire: Fire | None = current_fire()
when: datetime | None = fire.scheduled_fire_time if fire else None
day = datetime(2026, 3, 1, tzinfo=UTC)
for schedule in (crontab(minute=0), cron("0 */5 * * * ?"), simple(interval=60, repeat_count=8)):
    back_at = day + timedelta(hours=1)
    result = simulate(
        schedule, policy="fire_once_now", down_at=day, up_at=back_at, until=day + timedelta(hours=2)
    )
    print(sum(fire.merged + 1 for fire in result.fires), result.next_fire_time)


def tell(sender: str, missed: MissedFire, **_: object) -> None:
    print(sender, missed.first, missed.count)


task_missed.connect(tell)
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a source distribution, and of the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with nothing but the wheel, what it needs, and mypy."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (wheel,) = built.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    # Most of what is installed is never imported, so nothing is compiled before it is.
    quick = ("install", "--quiet", "--disable-pip-version-check", "--no-compile")
    run(*pip, *quick, wheel, "mypy", "celery-types", cwd=folder)
    return folder


def test_the_source_distribution_has_all_that_is_tracked(built: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout, so nobody says what is tracked")
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    tracked = run("git", "ls-files", cwd=ROOT).split()
    assert tracked
    usual = {".github", ".pre-commit-config.yaml", ".readthedocs.yaml"}
    assert {t for t in tracked if t.partition("/")[0] not in usual} <= packed


def test_the_wheel_has_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0].partition("-")[0] for name in packed} == {"celery_misfire"}
    assert {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "celery_misfire").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    } <= packed
    assert "celery_misfire/py.typed" in packed


def test_the_readme_can_be_shown_by_the_package_index(built: Path) -> None:
    said = run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir(), cwd=ROOT)
    assert "WARNING" not in said


def test_a_user_program_passes_mypy_strict_and_runs(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(USER_PROGRAM)
    run(environment / "bin" / "mypy", "--strict", "program.py", cwd=tmp_path)
    printed = run(environment / "bin" / "python", "program.py", cwd=tmp_path)
    # From 0:00 to 2:00 hourly, every five minutes, and nine times from 0:01 on (the first and 8 repetitions).
    assert [line.partition(" ")[0] for line in printed.splitlines()] == ["2", "24", "9"]


def test_every_module_but_those_of_django_can_be_imported_without_an_extra(
    environment: Path, tmp_path: Path
) -> None:
    modules = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        for path in (ROOT / "celery_misfire").rglob("*.py")
        # The plugin is loaded by pytest alone.
        if "django" not in path.relative_to(ROOT).parts and path.stem != "pytest_plugin"
    ]
    assert "celery_misfire.beat" in modules
    run(environment / "bin" / "python", "-c", f"import {', '.join(sorted(modules))}", cwd=tmp_path)


def test_celery_finds_the_scheduler_by_its_short_name(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\napp = Celery('proj', broker='memory://')\n"
        "app.conf.misfire_no_such_setting = 1\n"
    )
    done = subprocess.run(
        [environment / "bin" / "celery", "-A", "proj", "beat", "-S", "misfire"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    # Our own refusal is the proof: it names the setting that nobody knows.
    assert done.returncode != 0
    assert "misfire_no_such_setting" in done.stdout + done.stderr
