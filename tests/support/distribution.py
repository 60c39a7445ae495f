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
#: What takes long to start is started once, for all tests that need it: by words of their names, and how long
#: all of them take, in seconds.
_TOGETHER = {
    "browser": (("test_admin_browser.py", "postgres"), 140.0),
    "rabbitmq": (("rabbitmq", "test_broker.py", "test_batches.py"), 150.0),
    "wheel": (("test_tutorial.py", "test_testing_page.py"), 75.0),
}


class LongestFirst(LoadScopeScheduling):
    """Hands out tests in their order: those of real processes one by one, the others by whole files."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        super().__init__(config, log)
        # Reordered by xdist, the file with the most tests would be the first.
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        if group := _group(nodeid):
            return group
        file = nodeid.partition("::")[0]
        return nodeid if PurePosixPath(file).parent.name == "acceptance" else file


def _group(nodeid: str) -> str | None:
    """Return what the test shares with tests of other files; those that need no service share nothing."""
    if "/unit/" in nodeid:
        return None
    found = (name for name, (words, _) in _TOGETHER.items() if any(w in nodeid.lower() for w in words))
    return next(found, None)


def sort(items: list[pytest.Item]) -> None:
    """Put the longest first, then the rest of the acceptance tests, the integration tests, the unit tests."""
    items.sort(key=_length, reverse=True)


def _length(item: pytest.Item) -> float:
    kind = item.path.parent.name
    if group := _group(item.nodeid):
        return _TOGETHER[group][1]
    mark = item.get_closest_marker("takes")
    if mark is not None:
        return float(mark.args[0])
    return {"acceptance": _USUAL, "integration": 1.0}.get(kind, 0.0)
