"""How Celery's scheduler sends an entry: what goes wrong is raised, and no result backend is waited for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from celery import _state as celery_state
from celery.beat import ScheduleEntry, SchedulingError
from kombu import Producer

from celery_misfire.sending.broker import WatchedProducer
from celery_misfire.sending.publisher import refuse_coroutine


def send_entry(scheduler: Any, entry: ScheduleEntry, producer: Producer) -> None:
    """Call ``apply_entry``, and raise the error that Celery's would log with its arguments, and forget.

    What does not raise has succeeded, as in Celery, whoever overrides this method or ``apply_async``.
    """
    found: list[Exception] = []

    def apply_async(*args: Any, **kwargs: Any) -> Any:
        try:
            return refuse_coroutine(type(scheduler).apply_async(scheduler, *args, **kwargs))
        except Exception as exc:
            # Celery's beat wraps whatever goes wrong.
            cause = exc.__context__ if isinstance(exc, SchedulingError) else None
            found.append(cause if isinstance(cause, Exception) else exc)

    # Celery's apply_entry() finds this one.
    scheduler.apply_async = apply_async
    try:
        refuse_coroutine(scheduler.apply_entry(entry, producer=producer))
    finally:
        del scheduler.apply_async
    if found:
        raise found[-1]


@contextmanager
def no_subscription() -> Iterator[None]:
    """Keep a result backend from subscribing to the result: it would hang beat when it is away."""
    before = bool(celery_state.task_join_will_block())  # type: ignore[attr-defined]
    celery_state._set_task_join_will_block(True)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        celery_state._set_task_join_will_block(before)  # type: ignore[attr-defined]


@lru_cache
def watched(cls: type[Producer]) -> type[WatchedProducer]:
    """Return a class of producers that tells what becomes of a message."""
    if issubclass(WatchedProducer, cls):
        return WatchedProducer
    return type(cls.__name__, (WatchedProducer, cls), {})
