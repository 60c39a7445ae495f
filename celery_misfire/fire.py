"""What a fire carries: its task id, its message header, and :func:`current_fire` for the task to read it.

Celery merges custom headers into ``task.request``, keeps them over retries and redelivery, and does not
hand them on to tasks that the task sends.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha1
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from celery import current_task

from celery_misfire.entry_record import Intent, Unreported
from celery_misfire.misfire import MisfireInstruction, Outcome, from_millis

#: Name of the message header.
HEADER = "misfire"

#: Version of the header. A new field keeps the version; a new meaning takes the next.
_VERSION = 1

#: Most characters in the name of an entry.
LONGEST_NAME = 200

_SENT = (Outcome.FIRED, Outcome.RECOVERED)

# This namespace is part of every task id that was ever made. It must never change.
_IDS = uuid5(NAMESPACE_OID, "celery-misfire")
_HASH_OF_IDS = sha1(_IDS.bytes, usedforsecurity=False)


@dataclass(frozen=True)
class Fire:
    """The fire of the schedule that a task runs for.

    :param scheduled_fire_time: when it was due, aware, in UTC.
    :param fire_time: when beat sent it, aware, in UTC.
    :param entry: name of the entry in the schedule.
    :param outcome: ``Outcome.FIRED`` or ``Outcome.RECOVERED``.
    :param missed_count: how many misfired occurrences this run stands for, with its own; 0 for a run in time.
    :param last_missed_fire_time: scheduled fire time of the last one merged into this run, aware, in UTC;
        None when nothing was merged.
    """

    scheduled_fire_time: datetime
    fire_time: datetime
    entry: str
    outcome: Outcome
    missed_count: int
    last_missed_fire_time: datetime | None


def current_fire() -> Fire | None:
    """Return the fire that the running task was sent for, also in a retry and after a redelivery.

    It never raises.

    :returns: the fire. None outside of a task, for a task that this package's beat did not send, and for a
        header that is not valid.
    """
    request = getattr(current_task, "request", None)
    headers = getattr(request, "headers", None)
    # A worker merges headers into the request. An eager call leaves them in a dict.
    raw = headers.get(HEADER) if isinstance(headers, dict) else None
    return read(getattr(request, HEADER, None) if raw is None else raw)


def header(
    *,
    entry: str,
    scheduled: int,
    fire_time: int,
    outcome: Outcome,
    merged: int = 0,
    last_missed: int | None = None,
    generation: int,
    instruction: MisfireInstruction | None,
    resolved: MisfireInstruction | None,
    threshold: float | None,
    on_missed: str | None = None,
    once: bool = False,
) -> dict[str, Any]:
    """Return the header of one attempt to publish, as plain JSON types.

    Moments come in as milliseconds UTC and are sent as ISO 8601 text. Each call makes a new ``nonce``: with
    it a worker tells a second publish from a redelivery.

    :param merged: how many further occurrences the run stands for.
    :param last_missed: scheduled fire time of the last of those.
    :param generation: as in :func:`task_id`.
    :param instruction: the misfire instruction as configured. None: misfire handling is off.
    :param resolved: the instruction that it stands for on this trigger.
    :param threshold: the misfire threshold in force, in seconds.
    :param on_missed: the handler task, in case a worker gives the run up.
    :param once: the run stands in the queue once: there can be no second message of it.
    """
    content = {
        "v": _VERSION,
        "entry": entry,
        "scheduled_fire_time": _text_of(scheduled),
        "fire_time": _text_of(fire_time),
        "outcome": str(outcome),
        "missed_count": merged + (outcome is Outcome.RECOVERED),
        "last_missed_fire_time": None if last_missed is None else _text_of(last_missed),
        "instruction": None if instruction is None else str(instruction),
        "resolved": None if resolved is None else str(resolved),
        "threshold": threshold,
        "generation": generation,
        "nonce": secrets.token_hex(8),
    }
    if on_missed is not None:
        content["on_missed"] = on_missed
    if once:
        content["once"] = True
    return content


def task_id(namespace: str, entry: str, generation: int, scheduled_ms: int) -> str:
    """Return the task id of one occurrence. It is always the same, so no crash can give an occurrence two.

    :param generation: another one when the entry's fire times change meaning, so that ids never repeat.
    :param scheduled_ms: the scheduled fire time, in milliseconds UTC.
    """
    # Texts that are only joined could be equal for different occurrences. A JSON list keeps the parts apart.
    # Written as here, it takes half of the time that json.dumps() takes for a list.
    name = f"[{json.dumps(namespace)}, {json.dumps(entry)}, {generation}, {scheduled_ms}]"
    # It is str(uuid5(_IDS, name)), for a third of the price: every run that is sent has one.
    hash_ = _HASH_OF_IDS.copy()
    hash_.update(name.encode())
    digest = bytearray(hash_.digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def id_of(namespace: str, entry: str, decided: Intent | Unreported) -> str:
    """Return the task id of a run that was claimed, or of the first of those that are missed.

    :param entry: the name of the entry now. What was decided under another one keeps that.
    """
    scheduled = decided.scheduled if isinstance(decided, Intent) else decided.first
    return task_id(namespace, decided.entry or entry, decided.generation, scheduled)


def isoformat(moment: datetime) -> str:
    """Return an aware datetime as ISO 8601 text in UTC, to the millisecond."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


@lru_cache(maxsize=100)
def _text_of(moment: int) -> str:
    # The messages of a batch share most of their moments.
    return isoformat(from_millis(moment))


def read(raw: object) -> Fire | None:
    """Return the fire that a header tells of, None when it is not ours or not valid."""
    # The header came over the network, so everything in it is checked.
    if not isinstance(raw, dict) or raw.get("v") != _VERSION:
        return None
    entry, missed_count = raw.get("entry"), raw.get("missed_count")
    if not isinstance(entry, str) or type(missed_count) is not int or missed_count < 0:
        return None
    if not 0 < len(entry) <= LONGEST_NAME or raw.get("outcome") not in _SENT:
        return None
    try:
        entry.encode()
        last_missed = raw.get("last_missed_fire_time")
        return Fire(
            scheduled_fire_time=_moment(raw["scheduled_fire_time"]),
            fire_time=_moment(raw["fire_time"]),
            entry=entry,
            outcome=Outcome(raw["outcome"]),
            missed_count=missed_count,
            last_missed_fire_time=None if last_missed is None else _moment(last_missed),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"needs a time zone, got {text}")
    return moment.astimezone(UTC)
