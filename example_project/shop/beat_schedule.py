"""What the shop does on schedule: one entry for each kind of misfire instruction."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

from celery_misfire.schedules import simple


def beat_schedule() -> dict[str, dict[str, Any]]:
    """Return the entries; the invoice is closed at ``INVOICE_DUE`` (ISO 8601), at first sight without it."""
    due = os.environ.get("INVOICE_DUE")
    return {
        # Each report is wanted, late or not, and each for its own time.
        "reports": {
            "task": "shop.make_report",
            "schedule": 2.0,
            "misfire": "ignore_misfire_policy",
        },
        # An old price is worth nothing.
        "stock prices": {
            "task": "shop.fetch_stock_price",
            "schedule": 1.0,
            "misfire": "do_nothing",
        },
        # One clean-up does the work of all that were left out.
        "clean-up": {
            "task": "shop.clean_up",
            "schedule": 2.0,
            "misfire": "fire_once_now",
        },
        # Twenty reminders in all; after an outage they go on in the same distance.
        "billing reminders": {
            "task": "shop.remind",
            "schedule": simple(interval=2.0, repeat_count=19),
            "misfire": "reschedule_now_with_existing_repeat_count",
        },
        # Nothing said: the default of an endless interval.
        "baskets": {
            "task": "shop.fill_basket",
            "schedule": 1.0,
            "misfire": "smart_policy",
        },
        # A single shot must not be lost.
        "close invoice": {
            "task": "shop.close_invoice",
            "schedule": simple(start=datetime.fromisoformat(due) if due else None, repeat_count=0),
            "misfire": "fire_now",
        },
    }
