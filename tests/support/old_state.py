"""A state that an older version wrote, kept as test data: read it, move it in time, write it into a Redis.

``tests/data/state_3eb3e0c.json`` holds what a beat of that commit left when it was stopped: entries of every
trigger type and schedule class, with intents, decided runs, misses to be reported, removed and paused ones.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import redis

from celery_misfire.fire import task_id

PATH = Path(__file__).parents[1] / "data" / "state_3eb3e0c.json"

HOUR = 3_600_000

#: A moment in milliseconds, wherever it stands: in a record, a fingerprint, the id of a line of the log.
_MILLIS = re.compile(r"(?<!\d)1[5-9]\d{11}(?!\d)")
#: A moment in seconds, as the entries have it.
_SECONDS = re.compile(r"(?<!\d)1[5-9]\d{8}\.0(?!\d)")


def read_dump() -> dict[str, Any]:
    """Return the state as it was written.

    Its keys: ``namespace``, ``stopped_at`` (milliseconds UTC), ``settings`` and ``entries`` (as
    :meth:`tests.support.processes.Project.configure` takes them), and ``lease``, ``registers`` (by task id),
    ``state`` (the hash) and ``log`` (pairs of id and text) as they stood in Redis.
    """
    return json.loads(PATH.read_text("utf-8"))


def records_of(dump: dict[str, Any]) -> dict[str, str]:
    """Return the texts of the records by entry name."""
    return {field[2:]: text for field, text in dump["state"].items() if field.startswith("e:")}


def moved_to(dump: dict[str, Any], now: int) -> dict[str, Any]:
    """Return the dump as if its beat had stopped between one and two hours before `now`.

    It moves by whole hours, so that crontabs stay on their minutes. Task ids follow their fire times.
    """
    by = ((now - dump["stopped_at"]) // HOUR - 1) * HOUR
    text = json.dumps(dump, ensure_ascii=False)
    for old, new in _new_ids(dump, by).items():
        text = text.replace(old, new)
    text = _MILLIS.sub(lambda found: str(int(found[0]) + by), text)
    text = _SECONDS.sub(lambda found: f"{float(found[0]) + by // 1000:.1f}", text)
    return json.loads(text)


def _new_ids(dump: dict[str, Any], by: int) -> dict[str, str]:
    records = {name: json.loads(text) for name, text in records_of(dump).items()}
    found = {}
    for _, text in dump["log"]:
        line = json.loads(text)
        if old := line.get("id"):
            name, moment = line["entry"], line.get("scheduled", line.get("first"))
            generation = records[name]["generation"]
            assert old == task_id(dump["namespace"], name, generation, moment)
            found[old] = task_id(dump["namespace"], name, generation + by, moment + by)
    assert dump["registers"].keys() <= found.keys()
    return found


def write_dump(client: redis.Redis, dump: dict[str, Any], lease_ttl: float) -> None:
    """Write the state into a Redis.

    :param lease_ttl: how long the lease of the beat that is gone still holds, in seconds.
    """
    prefix = f"celery-misfire:{{{dump['namespace']}}}"
    client.set(f"{prefix}:lease", dump["lease"], px=round(lease_ttl * 1000))
    client.hset(f"{prefix}:state", mapping=dump["state"])
    for id_, text in dump["registers"].items():
        client.set(f"{prefix}:fire:{id_}", text, ex=24 * 3600)
    for id_, text in dump["log"]:
        client.xadd(f"{prefix}:log", {"d": text}, id=id_)
