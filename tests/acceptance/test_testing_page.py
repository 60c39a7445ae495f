"""The example of the page about tests, in an environment that has the built wheel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.processes import ROOT
from tests.support.wheel import run

PAGE = (ROOT / "docs" / "testing.md").read_text()


def example(name: str) -> str:
    """Return the block of the page with the name of this file."""
    [block] = re.findall(rf"```.*? python\n:caption: {re.escape(name)}\n\n(.*?)```", PAGE, re.DOTALL)
    return block


@pytest.mark.takes(12)
def test_the_example_of_the_page_passes_with_the_wheel_alone(tmp_path: Path, python_with_wheel: Path) -> None:
    python, project = python_with_wheel, tmp_path / "project"
    project.mkdir()
    (project / "shop.py").write_text(example("shop.py"))
    (project / "test_shop.py").write_text(example("test_shop.py"))
    assert len(example("test_shop.py").splitlines()) <= 25
    where = run([python, "-c", "import celery_misfire; print(celery_misfire.__file__)"], cwd=project)
    assert where.startswith(str(python.parents[1]))

    pytest_command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    assert "3 passed" in run(pytest_command, cwd=project)

    # It can fail: a policy that drops late runs.
    shop = (project / "shop.py").read_text()
    (project / "shop.py").write_text(shop.replace("ignore_misfire_policy", "do_nothing"))
    with pytest.raises(AssertionError, match=r"1 failed, 2 passed"):
        run(pytest_command, cwd=project)
