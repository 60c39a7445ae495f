"""The errors of celery_misfire; each is a :class:`MisfireError`."""

from __future__ import annotations

from collections.abc import Iterable

from celery.exceptions import ImproperlyConfigured

from celery_misfire.misfire import MissedFire

__all__ = [
    "BrokerUnavailable",
    "LeaseLost",
    "MisfireConfigError",
    "MisfireError",
    "NewerSchema",
    "PublishRejected",
    "StoreRefused",
    "StoreUnavailable",
    "TaskMissed",
]


class MisfireError(Exception):
    """Base of all errors of this package."""


class MisfireConfigError(MisfireError, ImproperlyConfigured):
    """The configuration has problems. It is raised once, at start, with all of them.

    :param problems: one line each, with the place, the value and what to do.
    """

    problems: tuple[str, ...]

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        heading = f"celery_misfire: the configuration has {len(self.problems)} problems:"
        return "\n".join((heading, *self.problems))


class StoreUnavailable(MisfireError):
    """The Redis that holds the state cannot be reached or does not answer."""


class StoreRefused(StoreUnavailable):
    """Redis answers but refuses to work with us until a setting is changed, ours or its own."""


class LeaseLost(MisfireError):
    """Another beat leads now. The write did not take place."""


class BrokerUnavailable(MisfireError):
    """The broker failed or could not be reached. A message that was under way may have arrived.

    :param reason: what happened.
    :param place: where the broker is, without user and password; '' when that is not known.
    """

    def __init__(self, reason: str = "", place: str = "") -> None:
        super().__init__(reason, place)
        self.reason, self.place = reason, place

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.place, self.reason)))


class PublishRejected(MisfireError):
    """This message cannot be sent, for example because of its arguments or its queue. It has not arrived."""


class NewerSchema(MisfireError):
    """A newer version of this package wrote the state. It is left untouched."""


class TaskMissed(MisfireError):
    """A scheduled run never happened. ``AsyncResult.get()`` raises this error, ``task_failure`` carries it.

    Its only argument is the message, so that it passes through pickle and JSON.

    :param message: what was missed, on one line and without task arguments.
    """

    #: The record. None in an error that was read back from a result in state FAILURE.
    missed: MissedFire | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)

    @classmethod
    def from_missed(cls, missed: MissedFire) -> TaskMissed:
        """Return the error that describes `missed`."""
        count, first, last = missed.count, missed.first.isoformat(), missed.last.isoformat()
        what = (
            f"1 run scheduled for {first}" if count == 1 else f"{count} runs scheduled from {first} to {last}"
        )
        error = cls(f"{missed.entry!r} missed {what} ({missed.reason}, {missed.instruction})")
        error.missed = missed
        return error
