"""Would the tests notice? Breaks the planner's branches one by one and shows which test fails.

``python -m tests.mutation`` works on a copy; it takes a few minutes. For every instruction, its branch of the
``match`` in ``celery_misfire/misfire.py`` is emptied, and then replaced by every other branch that differs.
Ends with 1 when a change goes unnoticed.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLANNER = Path("celery_misfire", "misfire.py")
TESTS = [f"tests/unit/test_{name}.py" for name in ("misfire", "quartz_vectors", "schedules", "laws")]

EMPTY = "return Plan(self._pass_over(runs=0))"


@dataclass(frozen=True)
class Branch:
    """One instruction's branch: its pattern, with the guard, and what it does."""

    pattern: str
    body: str

    @property
    def name(self) -> str:
        return (
            self.pattern.replace("MisfireInstruction.", "")
            .lower()
            .replace(" trigger_type is triggertype.", " ")
        )


@dataclass(frozen=True)
class Change:
    instruction: str
    what: str
    source: str


def branches(source: str) -> tuple[int, list[Branch]]:
    """Return the line before which the first branch stands, and all of them, one for each instruction."""
    matches = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Match)]
    (match,) = [m for m in matches if "resolve(self.policy.instruction" in ast.unparse(m.subject)]
    found = []
    for case in match.cases:
        if isinstance(case.pattern, ast.MatchAs):
            continue
        alternatives = case.pattern.patterns if isinstance(case.pattern, ast.MatchOr) else [case.pattern]
        guard = f" if {ast.unparse(case.guard)}" if case.guard else ""
        body = "; ".join(ast.unparse(statement) for statement in case.body)
        found += [Branch(f"{ast.unparse(pattern)}{guard}", body) for pattern in alternatives]
    return match.cases[0].pattern.lineno, found


def changes(source: str) -> Iterator[Change]:
    line, found = branches(source)
    lines = source.splitlines()
    indent = re.match(r" *", lines[line - 1])
    assert indent is not None
    for branch in found:
        bodies = {EMPTY: "emptied"}
        for other in found:
            if other.body != branch.body:
                bodies.setdefault(other.body, f"as {other.name}")
        for body, what in bodies.items():
            # Before the others, so that it is the one that counts.
            instead = f"{indent[0]}case {branch.pattern}: {body}"
            yield Change(branch.name, what, "\n".join([*lines[: line - 1], instead, *lines[line - 1 :], ""]))


def noticed_by(change: Change) -> str | None:
    """Return the test that fails first, None when all pass."""
    with tempfile.TemporaryDirectory() as copy:
        for name in ("celery_misfire", "tests", "pyproject.toml"):
            original, target = ROOT / name, Path(copy, name)
            if original.is_dir():
                shutil.copytree(original, target, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
            else:
                shutil.copy(original, target)
        Path(copy, PLANNER).write_text(change.source)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "--no-header",
            "-p",
            "no:cacheprovider",
            *TESTS,
        ]
        done = subprocess.run(
            command,
            cwd=copy,
            env=os.environ | {"PYTHONPATH": copy},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == 0:
        return None
    failed = re.search(r"^FAILED (?:tests/unit/)?(\S+)", done.stdout, re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed[1]


def main() -> int:
    every = list(changes((ROOT / PLANNER).read_text()))
    survived = 0
    print(f"| {'instruction':42} | {'its branch':46} | first test to fail |\n|---|---|---|")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for change, test in zip(every, pool.map(noticed_by, every), strict=True):
            survived += test is None
            print(
                f"| {change.instruction:42} | {change.what:46} | {test or 'NONE: it went unnoticed'} |",
                flush=True,
            )
    print(f"{len(every) - survived} of {len(every)} changes were noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
