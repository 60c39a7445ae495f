"""How the tests are handed out to the processes of pytest-xdist: the longest first, so that none of them is
what all the others wait for in the end.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

#: Seconds that a test of real processes takes when nothing else is said by its mark ``takes``.
_USUAL = 5.0
#: Files whose tests share what takes long to start, and how long all of them take, in seconds.
_TOGETHER = {"test_rabbitmq.py": 50.0, "test_broker.py": 50.0, "test_admin_browser.py": 140.0}


class LongestFirst(LoadScopeScheduling):
    """Hands out tests in their order: those of real processes one by one, the others by whole files."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        super().__init__(config, log)
        # Reordered by xdist, the file with the most tests would be the first.
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        path = PurePosixPath(file)
        if path.name in _TOGETHER:
            return "browser" if "browser" in path.name else "rabbitmq"
        if "postgres" in test:
            return "postgres"
        if path.name in ("test_tutorial.py", "test_testing_page.py"):
            return "wheel"
        return nodeid if path.parent.name == "acceptance" else file


def sort(items: list[pytest.Item]) -> None:
    """Put the longest first, then the rest of the acceptance tests, the integration tests, the unit tests."""
    items.sort(key=_length, reverse=True)


def _length(item: pytest.Item) -> float:
    kind = item.path.parent.name
    if item.path.name in _TOGETHER:
        return _TOGETHER[item.path.name]
    mark = item.get_closest_marker("takes")
    if mark is not None:
        return float(mark.args[0])
    return {"acceptance": _USUAL, "integration": 1.0}.get(kind, 0.0)
