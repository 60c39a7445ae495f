"""Puts values and errors of an app into words: short, on one line, and without secrets.

The planner uses this module: it imports nothing but the standard library.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta
from functools import lru_cache
from typing import Any

#: Longest word of a line of the log in a sentence, in characters.
LONGEST_WORD = 80

# Matches the value after the name of a secret: in the repr of a dict or of a call, or in the query of a URL.
_SECRET = re.compile(
    r"((?i:pass|secret|token|api_?key|credential)\w*['\"]?\s*[:=]\s*)"
    # A value that begins with a bracket is hidden up to the end of the text: where it ends is not known.
    r"(b?'(?:\\.|[^'\\])*'|b?\"(?:\\.|[^\"\\])*\"|[\[({].*|[^\s,)\]}]+)",
    re.DOTALL,
)

# The reprs of these classes show the arguments of a call. They are compared by name, without loading Celery.
_CALLS = {("celery.canvas", "Signature"), ("celery.app.task", "Task"), ("functools", "partial")}


def _without_login(text: str) -> str:
    return re.sub(r"://.*@", "://***@", text)


def hide_secrets(text: str) -> str:
    """Return a text without the secrets in it."""
    return _SECRET.sub(r"\1***", _without_login(text))


def quote(value: object) -> str:
    """Return the repr of a value, its secrets and arguments hidden, cut at 80 characters."""
    try:
        # A member of a StrEnum is shown as the word that one writes.
        text = hide_secrets(repr(str(value) if isinstance(value, str) else _without_arguments(value)))
    except Exception:
        text = f"<{type(value).__name__}>"
    return _cut(text)


def quote_name(name: object) -> str:
    """Return the repr of a name, cut at 80 characters. It may speak of passwords; only a login is hidden."""
    return _cut(_without_login(repr(str(name)))) if isinstance(name, str) else quote(name)


def quote_names(names: Iterable[object], most: int) -> str:
    """Return several names, of which the first `most` are told."""
    found = list(names)
    told = ", ".join(map(quote_name, found[:most]))
    return told + (f" and {len(found) - most:,} more" if len(found) > most else "")


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Bare(str):
    __slots__ = ()
    __repr__ = str.__str__


def _call(value: Any) -> str:
    """Return the name of the class when the value is a call of a task or function, else ''."""
    classes = value.__class__.__mro__
    return next((cls.__name__ for cls in classes if (cls.__module__, cls.__name__) in _CALLS), "")


def _without_arguments(value: Any) -> Any:
    if call := _call(value):
        return _Bare(call)
    if type(value) is dict:
        return {_without_arguments(key): _without_arguments(item) for key, item in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(_without_arguments, value))
    return value


def type_name(value: object) -> str:
    """Return the name of a value's type; a task is a Task, whatever its own class is called."""
    return _call(value) or type(value).__name__


def one_line(text: str, longest: int = 200) -> str:
    """Return a foreign text as one line for the log: escaped, and cut at `longest` characters."""
    text = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def word_of(value: object) -> str:
    """Return a reason, an instruction or an id, which may be anybody's, for a sentence."""
    return one_line(str(value), LONGEST_WORD)


def describe_error(exc: BaseException) -> str:
    """Return the type and the first line of an error, its secrets hidden, cut at 200 characters."""
    try:
        text = hide_secrets(str(exc).strip().split("\n")[0])
    except Exception:
        text = ""
    return one_line(f"{type(exc).__name__}: {text}" if text else type(exc).__name__)


#: The fields of Celery's crontab, in the order in which people write them.
_CRONTAB = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")


def schedule_in_words(schedule: object) -> str:
    """Return a schedule as people say it, as far as its class is known; else what it says of itself."""
    every = (
        schedule if isinstance(schedule, int | float | timedelta) else getattr(schedule, "run_every", None)
    )
    if isinstance(every, int | float | timedelta):
        return _every(every.total_seconds() if isinstance(every, timedelta) else every)
    try:
        text = repr(schedule)
    except Exception:
        text = type(schedule).__name__
    # Django-celery-beat shows the fields of a crontab in another order than Celery.
    fields = [str(getattr(schedule, f"_orig_{name}", "?")) for name in _CRONTAB] if "(m/h/" in text else []
    return _in_words(text, " ".join(fields))


# Many entries have equal schedules.
@lru_cache(maxsize=4096)
def _every(seconds: float) -> str:
    units = ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
    size, unit = next(((s, u) for s, u in units if seconds >= s and seconds % s == 0), units[-1])
    count = f"{seconds / size:g} "
    return f"every {unit}" if count == "1 " else f"every {count}{unit}s"


@lru_cache(maxsize=4096)
def _in_words(shown: str, fields: str) -> str:
    """Return a schedule in words, by what it shows of itself; `fields` are those of a crontab."""
    text = " ".join(shown.split())
    # The schedules of Celery and of this package show themselves as <kind: arguments>.
    if found := re.fullmatch(r"<(\w+): (.*)>", text):
        # Arguments that are not set tell nobody anything.
        rest = re.sub(r",? ?\b\w+ (None|False|-1)(?=,|$)", "", found[2])
        if fields:
            rest = re.sub(r".* \(m/h/\S+\)", lambda _: fields, rest)
        text = f"{found[1]} {rest.removeprefix('expression ').lstrip(', ')}"
    return one_line(hide_secrets(text))


def suggestion(word: object, words: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """Return ``" Did you mean 'x'?"`` when one of the words is close, else nothing.

    :param spell: returns a word as it is to be written.
    """
    if not isinstance(word, str):
        return ""
    plain = re.sub(r"\W+", "_", word.lower()).removeprefix("misfire_instruction_")
    known = {str(candidate).lower(): str(candidate) for candidate in words}
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.7)
    near = near or [candidate for candidate in known if plain and candidate.startswith(plain)]
    return f" Did you mean {spell(known[near[0]])!r}?" if near else ""


def unknown_word(value: object, words: Collection[str], allowed: str = "Allowed") -> str:
    return f"{quote(value)} is unknown.{suggestion(value, words)} {allowed}: {', '.join(words)}."


def unknown_key(
    key: object, words: Collection[str], what: str = "", spell: Callable[[str], str] = str
) -> str:
    fix = suggestion(key, words, spell) or f" Allowed: {', '.join(map(spell, words))}."
    return f"{what or f'unknown key {quote(key)}'}.{fix}"
