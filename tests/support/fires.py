"""Messages as beat sends them, for tests of the worker that need no beat."""

from __future__ import annotations

import json
import time
from typing import Any

import redis
from celery import Celery, Signature

from celery_misfire import fire
from celery_misfire.misfire import MisfireInstruction, Outcome, resolve
from celery_misfire.misfire import TriggerType as Type
from tests.support.processes import NAMESPACE

GENERATION = 1


class Fires:
    """Sends runs of the entries of an imaginary beat.

    :param url: Redis URL of broker and results.
    :param broker: URL of the broker, if it is another one.
    """

    def __init__(self, url: str, namespace: str = NAMESPACE, *, broker: str | None = None) -> None:
        self.app = Celery("fires", broker=broker or url, backend=url, set_as_current=False)
        self._namespace = namespace

    def task_id(self, entry: str, scheduled: float, generation: int = GENERATION) -> str:
        """Return the id of the run that was due at this time, in seconds since 1970."""
        return fire.task_id(self._namespace, entry, generation, round(scheduled * 1000))

    def signature(
        self,
        entry: str,
        *,
        late: float = 0.0,
        scheduled: float | None = None,
        sent: float | None = None,
        outcome: str = "fired",
        instruction: str | None = "do_nothing",
        threshold: float = 2.0,
        on_missed: str | None = None,
        once: bool = False,
        generation: int = GENERATION,
        task: str = "record",
        kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Signature:
        """Return a message of a run, ready to be sent; each has a nonce of its own.

        :param late: seconds that have passed since it was due, unless `scheduled` says when that was.
        :param sent: when beat sent it, in seconds since 1970; None: when it was due.
        :param once: beat says that there can be no second message.
        :param generation: -1 for a run by hand.
        :param options: of ``apply_async``.
        """
        due = round((time.time() - late if scheduled is None else scheduled) * 1000)
        asked = None if instruction is None else MisfireInstruction(instruction)
        content = fire.header(
            entry=entry,
            scheduled=due,
            fire_time=due if sent is None else round(sent * 1000),
            outcome=Outcome(outcome),
            generation=generation,
            instruction=asked,
            resolved=None if asked is None else resolve(asked, Type.CRON),
            threshold=threshold,
            on_missed=on_missed,
            once=once,
        )
        headers = {"periodic_task_name": entry, fire.HEADER: content, **options.pop("headers", {})}
        id_ = self.task_id(entry, due / 1000, generation)
        signature = self.app.signature(task, args=[entry], kwargs=kwargs or {}, app=self.app)
        signature.set(task_id=id_, headers=headers, **options)
        return signature

    def send(self, entry: str, **how: Any) -> str:
        """Send a message of a run; return its task id. Parameters as for :meth:`signature`."""
        return str(self.signature(entry, **how).apply_async().id)

    def redeliver(self, message: Signature, client: redis.Redis) -> str:
        """Put a message into the queue as one that was delivered before; return its task id.

        :param client: of the Redis that is the broker.
        """
        aside = f"aside-{message.options['task_id']}"
        sent = message.clone().set(queue=aside).apply_async()
        envelope = json.loads(client.rpop(aside))
        # Kombu does this when nobody has acknowledged a message in time.
        envelope["headers"]["redelivered"] = True
        delivery = envelope["properties"]["delivery_info"]
        delivery.update(redelivered=True, routing_key="celery")
        client.lpush("celery", json.dumps(envelope))
        return str(sent.id)
