from __future__ import annotations

from tests.support.served_shop import browser, prepared, shop  # noqa: F401 - fixtures
