"""The mark of a state: who began it, and where its runs go. All versions share its text, ``_meta``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from celery_misfire.exceptions import NewerSchema
from celery_misfire.records import SCHEMA
from celery_misfire.texts import quote, quote_name


@dataclass(frozen=True)
class Destination:
    """Where the runs of a beat go, as the broker itself tells it: no URL, and no name that leads there.

    :param place: the server and its part (database, virtual host); '' when it could not be told.
    :param prefix: what the transport puts before the name of each queue.
    :param queue: where a task goes that nobody has routed elsewhere.
    """

    place: str
    prefix: str
    queue: str

    def difference(self, theirs: Destination) -> str:
        """Return in words what differs from `theirs`, '' when nothing does as far as both are known."""
        found = [
            f"the {what} is {quote_name(there)} there and {quote_name(here)} here"
            for what, here, there in (
                ("prefix of the queues", self.prefix, theirs.prefix),
                ("default queue", self.queue, theirs.queue),
            )
            if here != there
        ]
        if self.place and theirs.place and self.place != theirs.place:
            found.insert(0, "the broker, its database or virtual host is another one or has lost its data")
        return ", ".join(found)

    @classmethod
    def parse(cls, found: object) -> Destination | None:
        """Return the destination that a mark has, None when it has none of this form."""
        if not isinstance(found, Mapping):
            return None
        place, prefix, queue = (found.get(name) for name in ("place", "prefix", "queue"))
        if not (isinstance(place, str) and isinstance(prefix, str) and isinstance(queue, str)):
            return None
        return cls(place, prefix, queue)


@dataclass(frozen=True)
class StateMark:
    """The mark of a state that is complete: an entry without a record is a new one.

    :param app: name of the app whose beat began the state, '' when that is not known.
    :param destination: where its runs go, None when no beat has noted it yet.
    :param others: fields that this version does not know; they are kept.
    """

    app: str
    destination: Destination | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, place: str) -> StateMark:
        """Return the mark with this text.

        :param place: where it was found, for the error.
        :raises NewerSchema: when another version has written the state.
        """
        try:
            found = dict(json.loads(text))
            schema = found.pop("schema")
        except (ValueError, KeyError, TypeError, RecursionError):
            raise NewerSchema(f"{place} holds a _meta that is not ours") from None
        if isinstance(prefix := found.get("moved_to"), str):
            fix = "Set misfire_key_prefix to that, or misfire_namespace if these are two deployments"
            raise NewerSchema(f"{place} has moved to keys with the prefix {quote_name(prefix)}. {fix}")
        if schema != SCHEMA:
            raise NewerSchema(f"{place} has schema {quote(schema)}, this version works with {SCHEMA}")
        destination = Destination.parse(found.pop("destination", None))
        return cls(str(found.pop("app", None) or ""), destination, found)

    def with_destination(self, destination: Destination) -> StateMark:
        """Return the mark of the same state whose runs go there."""
        return replace(self, destination=destination)

    @staticmethod
    def moved_to(prefix: str) -> str:
        """Return the mark that is left in the place of a state that has moved; older versions refuse it."""
        return json.dumps({"schema": SCHEMA + 1, "moved_to": prefix}, sort_keys=True)

    def __str__(self) -> str:
        fields = dict(self.others) | {"schema": SCHEMA, "app": self.app}
        if self.destination is not None:
            fields["destination"] = asdict(self.destination)
        return json.dumps(fields, sort_keys=True)
