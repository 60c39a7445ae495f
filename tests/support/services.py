"""What becomes of a test whose service is not on this machine."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def skip_without_service(reason: str) -> NoReturn:
    """Skip the test; fail it where REQUIRE_SERVICES=1.

    :param reason: what is missing, as the report says it.
    """
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
