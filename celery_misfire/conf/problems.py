"""Problems of the configuration: how they are collected, and the words for them.

A problem has a place, the value and what to do; never a URL, a password or a task argument.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery import Celery, Signature, Task
from celery.app.defaults import DEFAULTS

from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.misfire import MisfirePolicy
from celery_misfire.texts import one_line, quote

#: The description of a problem is cut at so many characters.
MAX_LINE_LENGTH = 1000

_PREFIX = "misfire_"


def spelling(app: Celery) -> Callable[[str], str]:
    """Return a function that returns the name of a setting as this app has to write it.

    Most apps write ``misfire_history``; one whose configuration has the namespace CELERY,
    ``CELERY_MISFIRE_HISTORY``. A source that keeps upper-case names alone, like the settings of Django and of
    Flask, has no name for a setting of ours unless there is a namespace: what works then is
    ``app.conf.misfire_history``.
    """
    app.conf.finalize()
    prefix = app.conf.prefix or ""
    if prefix:
        in_case = str.upper if prefix.isupper() else str.lower
        return lambda name: in_case(prefix + name)
    if _keeps_upper_case_alone(app):
        return lambda name: f"app.conf.{name}" if name.startswith(_PREFIX) else name
    return str


def _keeps_upper_case_alone(app: Celery) -> bool:
    # The first of Celery's maps has what was set later, the last one the defaults.
    sources = (app.conf.maps or [])[1:-1]
    names = [name for source in sources for name in source if isinstance(name, str)]
    known = any(name in DEFAULTS or name.startswith(_PREFIX) for name in names)
    return not known and any(name.isupper() for name in names)


class InvalidSetting(ValueError):
    """One or more problems; each has its place, relative to the value that is being checked."""

    def __init__(self, found: Iterable[tuple[str, str]]) -> None:
        self.found = tuple(found)


class Problems:
    """Collects what is wrong, so that all of it is reported together.

    :param spell: returns the name of a setting as the app writes it, see :func:`spelling`.
    """

    def __init__(self, spell: Callable[[str], str] = str) -> None:
        self.found: list[tuple[str, str]] = []
        self.spell = spell

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Add the error that the block raises, if it raises one, as a problem of `place`."""
        try:
            yield
        except Exception as exc:
            self.add_error(place, exc)

    def add_error(self, place: str, error: Exception) -> None:
        """Add what a check has raised as a problem of `place`, or as the problems that it holds."""
        if isinstance(error, InvalidSetting):
            self.found += [(place + below, text) for below, text in error.found]
        elif isinstance(error, ValueError):
            self.add(place, str(error))
        else:
            # The value's own code fails. Its message is not shown: it may hold a secret.
            self.add(place, f"cannot be read: its own code raises {type(error).__name__}. Use plain values.")

    def add(self, place: str, text: str) -> None:
        self.found.append((place, text))

    def raise_invalid(self) -> None:
        if self.found:
            raise InvalidSetting(self.found)

    def raise_config_error(self) -> None:
        # Raise it outside of any except block: the context of an error may hold a password.
        if self.found:
            raise MisfireConfigError(as_line(place, text) for place, text in self.found)


def as_line(place: str, text: str) -> str:
    """Return a problem, or a warning, as one line."""
    line = f"celery_misfire: {place}: {text}"
    return one_line(" ".join(re.sub(r"://\S*@", "://***@", line).splitlines()), MAX_LINE_LENGTH)


# -- what a value must be ----------------------------------------------------------------------------------


def as_mapping(value: object) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a dict, got {type(value).__name__}.")
    return dict(value)


def as_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected True or False, got {quote(value)}.")
    return value


def as_count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"expected a whole number >= 0, got {quote(value)}.")
    return value


def policy_value(key: str, value: object) -> Any:
    """Return a value as :class:`MisfirePolicy` takes it: the rules for its fields are there."""
    try:
        return getattr(MisfirePolicy(**{key: value}), key)  # type: ignore[arg-type]  # it checks
    except ValueError as exc:
        text = str(exc).removeprefix(f"{key}: ")
    if key == "on_missed" and isinstance(value, Signature | Task):
        text = f"{text} Write its name, {value.task if isinstance(value, Signature) else value.name!r}."
    raise ValueError(text)


def as_seconds(value: object) -> float:
    if value is None:
        raise ValueError("expected a number of seconds > 0, got None.")
    return float(policy_value("max_lateness", value))
