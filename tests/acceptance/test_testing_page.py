"""The example of the page about tests, in an environment that has the built wheel."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support.processes import ROOT

PAGE = (ROOT / "docs" / "testing.md").read_text()


def example(name: str) -> str:
    """Return the block of the page with the name of this file."""
    [block] = re.findall(rf"```.*? python\n:caption: {re.escape(name)}\n\n(.*?)```", PAGE, re.DOTALL)
    return block


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)),
        check=False,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a new environment with the wheel; what the wheel needs is lent by this one.

    Nothing is loaded from anywhere.
    """
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist", cwd=ROOT)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-index", "--no-deps", "--quiet", wheel, cwd=tmp_path)
    # Behind the wheel on the path. Files *.pth in there are not read: the editable package is not seen.
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "lent.pth").write_text("\n".join(lent))
    return python


@pytest.mark.takes(12)
def test_the_example_of_the_page_passes_with_the_wheel_alone(tmp_path: Path, python: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "shop.py").write_text(example("shop.py"))
    (project / "test_shop.py").write_text(example("test_shop.py"))
    assert len(example("test_shop.py").splitlines()) <= 25
    where = run(python, "-c", "import celery_misfire; print(celery_misfire.__file__)", cwd=project)
    assert where.startswith(str(tmp_path / "env"))

    told = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
    assert "3 passed" in told

    # It can fail: a policy that drops late runs.
    shop = (project / "shop.py").read_text()
    (project / "shop.py").write_text(shop.replace("ignore_misfire_policy", "do_nothing"))
    with pytest.raises(AssertionError, match=r"1 failed, 2 passed"):
        run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
