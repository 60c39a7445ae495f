"""An environment that has the wheel, as somebody has who has installed the package."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import ROOT

__all__ = ["install_wheel", "run"]


def run(command: Sequence[object], cwd: Path) -> str:
    """Return what a command prints; it must end well."""
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


def install_wheel(directory: Path) -> Path:
    """Build the wheel, and return the interpreter of a new environment that has it.

    What the wheel needs is lent by the environment of the tests. Nothing is loaded from anywhere.

    :param directory: gets the wheel and the environment.
    """
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory / "dist"], cwd=ROOT)
    [wheel] = (directory / "dist").glob("*.whl")
    venv.create(directory / "env", symlinks=True)
    python = directory / "env" / "bin" / "python"
    packages = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], cwd=directory)
    pip = [sys.executable, "-m", "pip", "--python", python]
    run([*pip, "install", "--no-index", "--no-deps", "--quiet", wheel], cwd=directory)
    # Behind the wheel on the path. Files *.pth in there are not read: the editable package is not seen.
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(packages.strip()) / "lent.pth").write_text("\n".join(lent))
    return python
