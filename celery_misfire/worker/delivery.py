"""A message of a run, as a worker receives it: read from its headers, and checked to be our beat's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Protocol

from celery import Celery
from celery.utils.time import maybe_iso8601, maybe_make_aware

from celery_misfire import fire
from celery_misfire.fire import Fire, isoformat
from celery_misfire.misfire import MisfireInstruction, Outcome, to_millis
from celery_misfire.records import loads
from celery_misfire.texts import one_line, quote_name

_NONCE = re.compile(r"\w{1,64}", re.ASCII)


class LateStart(Enum):
    """What becomes of a run that starts late."""

    RUN = "run"
    #: The run does not start, and is recorded as missed.
    MISS = "miss"
    #: The first late run starts. Those that were sent before it started are merged into it.
    MERGE = "merge"


_ON_LATE_START = {
    # Smart policy stands for an instruction that nobody has asked for: a run that exists is not thrown away.
    MisfireInstruction.SMART_POLICY: LateStart.RUN,
    MisfireInstruction.IGNORE_MISFIRE_POLICY: LateStart.RUN,
    MisfireInstruction.FIRE_ONCE_NOW: LateStart.MERGE,
    MisfireInstruction.DO_NOTHING: LateStart.MISS,
    MisfireInstruction.FIRE_NOW: LateStart.MERGE,
    MisfireInstruction.RESCHEDULE_NOW_WITH_EXISTING_REPEAT_COUNT: LateStart.MERGE,
    MisfireInstruction.RESCHEDULE_NOW_WITH_REMAINING_REPEAT_COUNT: LateStart.MERGE,
    MisfireInstruction.RESCHEDULE_NEXT_WITH_EXISTING_COUNT: LateStart.MISS,
    MisfireInstruction.RESCHEDULE_NEXT_WITH_REMAINING_COUNT: LateStart.MISS,
}


class Fields(Protocol):
    """The fields of a message: Celery's ``Context``, or the dict that it is made of."""

    def get(self, key: str, /) -> Any: ...


@dataclass(frozen=True)
class Delivery:
    """One message of a run that our beat has sent.

    :param nonce: tells the messages of one run apart; a redelivery has the same.
    :param instruction: None when misfire handling is off for the entry.
    :param due: when the run should start, in seconds since 1970.
    :param threshold: how late that may be, in seconds.
    :param on_missed: name of the handler task, None for none.
    :param once: there can be no second message of this run.
    :param redelivered: the broker has delivered this message before, so the run may have started then.
    :param by_hand: somebody asked for the run of a missed occurrence.
    """

    task_id: str
    task: str
    fire: Fire
    nonce: str
    instruction: MisfireInstruction | None
    due: float
    threshold: float
    on_missed: str | None
    once: bool
    redelivered: bool
    by_hand: bool

    @property
    def scheduled(self) -> int:
        """The scheduled fire time, in milliseconds since 1970 UTC."""
        return to_millis(self.fire.scheduled_fire_time)

    @property
    def late_start(self) -> LateStart:
        return _ON_LATE_START[self.instruction] if self.instruction else LateStart.RUN

    def __str__(self) -> str:
        scheduled = isoformat(self.fire.scheduled_fire_time)
        return f"{quote_name(self.fire.entry)} ({one_line(self.task)}[{self.task_id}], scheduled {scheduled})"


def is_missed_when_late(message: Fields) -> bool:
    """Return at a look whether a late start would be the end of this message."""
    raw = message.get(fire.HEADER)
    instruction = raw.get("instruction") if isinstance(raw, dict) else None
    return isinstance(instruction, str) and _ON_LATE_START.get(instruction) is LateStart.MISS  # type: ignore[call-overload]


def read_delivery(message: Fields, app: Celery, namespace: str) -> Delivery | None:
    """Return what a message says; None when our beat has not sent it, or when it is a retry."""
    raw = message.get(fire.HEADER)
    if raw is None or message.get("retries"):
        return None
    sent = fire.read(raw)
    if sent is None:
        return None
    task_id, generation, nonce = message.get("id"), raw.get("generation"), raw.get("nonce")
    if type(generation) is not int or not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
        return None
    if task_id != fire.task_id(namespace, sent.entry, generation, to_millis(sent.scheduled_fire_time)):
        # The message is another app's, or of a task that was given the headers of the one that sent it.
        return None
    instruction, threshold, on_missed = (raw.get(k) for k in ("instruction", "threshold", "on_missed"))
    is_judged = isinstance(instruction, str) and instruction in _ON_LATE_START
    is_judged = is_judged and isinstance(threshold, int | float) and threshold >= 0
    due = sent.scheduled_fire_time if sent.outcome is Outcome.FIRED else sent.fire_time
    if eta := message.get("eta"):
        due = max(due, _moment(eta, app))
    return Delivery(
        task_id=task_id,
        task=message.get("task"),
        fire=sent,
        nonce=nonce,
        instruction=MisfireInstruction(instruction) if is_judged else None,
        due=due.timestamp(),
        threshold=threshold if is_judged else 0.0,
        on_missed=on_missed if isinstance(on_missed, str) else None,
        once=raw.get("once") is True,
        redelivered=bool((message.get("delivery_info") or {}).get("redelivered")),
        by_hand=generation < 0,
    )


def is_claimed(delivery: Delivery, record: str, namespace: str) -> bool:
    """Return True when beat has claimed the run, and not written that it was sent.

    :param record: what the store keeps of the entry.
    """
    entry = delivery.fire.entry
    try:
        intents = loads(record).intents
    except ValueError:
        return False
    return any(delivery.task_id == fire.id_of(namespace, entry, intent) for intent in intents)


def _moment(eta: Any, app: Celery) -> datetime:
    moment: Any = maybe_iso8601(eta)
    return maybe_make_aware(moment, app.timezone)
