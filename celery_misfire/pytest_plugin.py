"""The plugin for pytest: the fixtures of :mod:`celery_misfire.testing`. What they need is loaded by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_misfire.testing import Beat


@pytest.fixture
def outage() -> Callable[..., Beat]:
    """A function that returns a beat after an outage: :func:`celery_misfire.testing.outage`."""
    from celery_misfire.testing import outage

    return outage
