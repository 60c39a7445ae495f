"""The worker's side of an older version, kept as test data: its messages, and what it makes of others.

``tests/data/messages_3eb3e0c.json`` holds what beats and workers of that commit write: ``headers`` by kind,
with the ``arguments`` from which they were made, and ``registers``, the texts of registers by kind. Moments
are those of a run that was due on 2026-03-02 at 9:00 UTC.
"""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis
from celery import Signature

from tests.support.processes import NAMESPACE

PATH = Path(__file__).parents[1] / "data" / "messages_3eb3e0c.json"

OLD: dict[str, Any] = json.loads(PATH.read_text("utf-8"))


def old_header(kind: str, entry: str, scheduled: float) -> dict[str, Any]:
    """Return a header of the older beat, with a nonce of its own.

    :param scheduled: when the run was due, in seconds since 1970; it was sent at that moment.
    """
    moment = datetime.fromtimestamp(round(scheduled * 1000) / 1000, UTC).isoformat(timespec="milliseconds")
    header = OLD["headers"][kind] | {"entry": entry, "nonce": secrets.token_hex(8)}
    return header | {"scheduled_fire_time": moment, "fire_time": moment}


def old_register(kind: str, nonce: str = "") -> str:
    """Return the text of a register, as the older version writes it for the message with this nonce."""
    return str(OLD["registers"][kind]).replace("NONCE", nonce)


class OldWorker:
    """Decides about messages as a worker of the older version does: it asks the register of every run.

    :param client: of the Redis that holds the registers.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def runs(self, message: Signature, *, late: bool = False) -> bool:
        """Return True when the run starts.

        :param late: it is too late, and its instruction discards it then.
        """
        header, id_ = message.options["headers"]["misfire"], message.options["task_id"]
        assert header["v"] == 1, "an older version knows no other one"
        # The old version reads these fields of a header, and passes over all others.
        known = {name: header[name] for name in OLD["headers"]["strict"] if name in header}
        assert known.keys() | {"on_missed"} == OLD["headers"]["strict"].keys()
        nonce = known["nonce"]
        key, value = f"celery-misfire:{{{NAMESPACE}}}:fire:{id_}", old_register("started", nonce)
        if late:
            value = old_register("given_up", nonce)
        if self._client.set(key, value, nx=True, px=24 * 3_600_000):
            return not late
        return str(self._client.get(key)).startswith(f"started:{nonce}:")
