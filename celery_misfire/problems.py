"""What is told about a wrong configuration: the problems found, and the words for them.

A problem has a place, the value and what to do; never a URL, a password or a task argument.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.misfire import MisfirePolicy

__all__ = [
    "Problems",
    "Wrong",
    "as_line",
    "as_mapping",
    "as_seconds",
    "brief",
    "hidden",
    "one_line",
    "policy_value",
    "shown",
    "suggestion",
    "unknown_key",
    "unknown_word",
]


#: No problem is told in more characters.
LONGEST = 1000


class Wrong(ValueError):
    """One or more problems, each with its place below the one that is being checked."""

    def __init__(self, found: Iterable[tuple[str, str]]) -> None:
        self.found = tuple(found)


class Problems:
    """Collects what is wrong, so that all of it is reported together."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Take the error of the block, if there is one, as a problem of `place`."""
        try:
            yield
        except Wrong as exc:
            self.found += [(place + below, text) for below, text in exc.found]
        except ValueError as exc:
            self.add(place, str(exc))
        except Exception as exc:
            # The value's own code fails; what that says may hold anything.
            self.add(place, f"cannot be read: its own code raises {type(exc).__name__}. Use plain values.")

    def add(self, place: str, text: str) -> None:
        self.found.append((place, text))

    def raise_wrong(self) -> None:
        if self.found:
            raise Wrong(self.found)

    def raise_config_error(self) -> None:
        # Not while another error is handled: its text, kept as the context, could hold a password.
        if self.found:
            raise MisfireConfigError(as_line(place, text) for place, text in self.found)


# What follows the name of a secret in the repr of a dict or of a call, or in the query of a URL.
_SECRET = re.compile(
    r"((?i:pass|secret|token|api_?key|credential)\w*['\"]?\s*[:=]\s*)"
    # Of what begins with a bracket, the end is not known.
    r"(b?'(?:\\.|[^'\\])*'|b?\"(?:\\.|[^\"\\])*\"|[\[({].*|[^\s,)\]}]+)",
    re.DOTALL,
)


def hidden(text: str) -> str:
    """Return a text without the secrets in it."""
    return _SECRET.sub(r"\1***", re.sub(r"://.*@", "://***@", text))


def shown(value: object) -> str:
    """Return the value as it may be shown: its secrets hidden, cut at 80 characters."""
    try:
        # A member of an enumeration of names is shown as one would write it.
        text = hidden(repr(str(value) if isinstance(value, str) else value))
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_line(place: str, text: str) -> str:
    """Return a problem, or a warning, as one line."""
    line = f"celery_misfire: {place}: {text}"
    return one_line(" ".join(re.sub(r"://\S*@", "://***@", line).splitlines()), LONGEST)


def one_line(text: str, longest: int = 200) -> str:
    """Return a text that came from elsewhere as it may stand in a log: escaped, and cut."""
    text = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def brief(exc: BaseException) -> str:
    """Return the kind and the first line of an error: enough to find it, too little to carry arguments."""
    try:
        text = hidden(str(exc).strip().split("\n")[0])
    except Exception:
        text = ""
    return one_line(f"{type(exc).__name__}: {text}" if text else type(exc).__name__)


def suggestion(word: object, words: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` when one of the words is close, else nothing."""
    if not isinstance(word, str):
        return ""
    plain = re.sub(r"\W+", "_", word.lower()).removeprefix("misfire_instruction_")
    known = {str(candidate).lower(): str(candidate) for candidate in words}
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.7)
    near = near or [candidate for candidate in known if plain and candidate.startswith(plain)]
    return f" Did you mean {known[near[0]]!r}?" if near else ""


def unknown_word(value: object, words: Collection[str], allowed: str = "Allowed") -> str:
    return f"{shown(value)} is unknown.{suggestion(value, words)} {allowed}: {', '.join(words)}."


def unknown_key(key: object, words: Collection[str], what: str = "") -> str:
    fix = suggestion(key, words) or f" Allowed: {', '.join(words)}."
    return f"{what or f'unknown key {shown(key)}'}.{fix}"


# -- what a value must be ----------------------------------------------------------------------------------


def as_mapping(value: object) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a dict, got {type(value).__name__}.")
    return dict(value)


def policy_value(key: str, value: object) -> Any:
    """Return a value as a policy takes it: the rules for seconds, limits and task names are written there."""
    try:
        return getattr(MisfirePolicy(**{key: value}), key)  # type: ignore[arg-type]  # it checks
    except ValueError as exc:
        raise ValueError(str(exc).removeprefix(f"{key}: ").replace(repr(value), shown(value))) from None


def as_seconds(value: object) -> float:
    if value is None:
        raise ValueError("expected a number of seconds > 0, got None.")
    return float(policy_value("max_lateness", value))
