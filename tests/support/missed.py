"""Records of missed runs for tests, and what is sent about them."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery

from celery_misfire.misfire import MisfireInstruction, MissedFire, Reason
from celery_misfire.sending.missed_record import MISSED

ROOT = Path(__file__).parents[2]

NINE = datetime(2026, 3, 2, 9, tzinfo=UTC)

#: As much of the settings as a report needs.
SETTINGS: Any = SimpleNamespace(result_state=MISSED, send_task_failure=True)

#: What the error of the record says.
MESSAGE = (
    "'stocks' missed 2 runs scheduled from 2026-03-02T09:00:00+00:00 to 2026-03-02T10:00:00+00:00 "
    "(scheduler_down, do_nothing)"
)


def make_missed(**changes: Any) -> MissedFire:
    """A record of two missed runs, with these changes; each has an id of its own."""
    missed = MissedFire(
        entry="stocks",
        task="shop.stocks",
        task_id=str(uuid4()),
        first=NINE,
        last=NINE + timedelta(hours=1),
        count=2,
        reason=Reason.SCHEDULER_DOWN,
        instruction=MisfireInstruction.DO_NOTHING,
        detected_at=NINE + timedelta(minutes=75),
    )
    return replace(missed, **changes)


def register(app: Celery, **options: Any) -> None:
    """Register the task of the records with the app."""

    @app.task(name="shop.stocks", shared=False, **options)
    def stocks() -> None: ...


@contextmanager
def connected(signal: Any, receiver: Callable[..., Any]) -> Iterator[None]:
    signal.connect(receiver, weak=False)
    try:
        yield
    finally:
        signal.disconnect(receiver)


@contextmanager
def collected(signal: Any) -> Iterator[list[dict[str, Any]]]:
    """What is sent of a signal in the block."""
    sent: list[dict[str, Any]] = []
    with connected(signal, lambda **arguments: sent.append(arguments)):
        yield sent


#: What ends a thread, and is no Exception.
UNUSUAL = [SystemExit, KeyboardInterrupt, asyncio.CancelledError]


def raising(error: type[BaseException]) -> Callable[..., None]:
    def broken(**_: object) -> None:
        raise error

    return broken


def run_script(script: str, *arguments: str) -> str:
    """Run a script in an interpreter of its own; return what it prints."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


#: Begins a script with a record of a missed run and settings.
SCRIPT = """if True:
    import sys
    from datetime import UTC, datetime
    from types import SimpleNamespace
    from celery import Celery
    from celery_misfire.misfire import MisfireInstruction, MissedFire, Reason
    from celery_misfire.sending.missed_runs import Report, report
    settings = SimpleNamespace(result_state="MISSED", send_task_failure=True)
    nine = datetime(2026, 3, 2, 9, tzinfo=UTC)
    missed = MissedFire("stocks", "shop.stocks", "7c3c0f2e-0000-5000-8000-000000000000", nine, nine, 1,
                        Reason.SCHEDULER_DOWN, MisfireInstruction.DO_NOTHING, nine)
"""


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not importlib.util.find_spec(module), reason=f"needs {module}")
