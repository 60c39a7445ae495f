"""Why a message could not be sent, in words without secrets and without arguments."""

from __future__ import annotations

import re
from contextlib import suppress

from amqp.exceptions import AMQPError
from celery.exceptions import ImproperlyConfigured, QueueNotFound
from kombu import Connection
from kombu.exceptions import OperationalError, SerializerNotInstalled

from celery_misfire.store.errors import describe, in_words
from celery_misfire.texts import hide_secrets, one_line

#: Hardly any message is longer, in characters: a Redis without the memory for one that is shorter is full.
LONGEST_OF_MOST = 100_000

#: These errors speak of the configuration alone.
_IN_ITS_WORDS = (ImproperlyConfigured, QueueNotFound, SerializerNotInstalled)

#: Sentences of Python and of its encoders that name parameters and types, and quote no value.
_QUOTES_NO_VALUE = re.compile(
    r"""[\w.<>]+\(\)\ (
        missing\ \d+\ required\ (positional|keyword-only)\ arguments?:\ [\w', ]+
        | takes\ (from\ \d+\ to\ )?\d+\ positional\ arguments?\ but\ \d+\ [\w(), -]*(was|were)\ given
        | got\ an\ unexpected\ keyword\ argument\ '\w+'(\.\ Did\ you\ mean\ '\w+'\?)?
        | got\ multiple\ values\ for\ argument\ '\w+'
    )
    | Object\ of\ type\ [\w.]+\ is\ not\ JSON\ serializable
    | can(not\ pickle|\ not\ serialize)\ '[\w.]+'\ object
    | No\ such\ transport:\ \w+\.?[\w ?]*""",
    re.VERBOSE,
)


def name_error(exc: BaseException) -> str:
    """Return the kind of an error and why it came, without what it may quote: a URL, or arguments."""
    if isinstance(exc, OperationalError) and exc.__cause__ is not None:
        # Kombu wraps what the client library raised.
        exc = exc.__cause__
    kind, reason = type(exc).__name__, _reason(exc)
    return one_line(f"{kind} ({reason})" if reason else describe(exc))


def _reason(exc: BaseException) -> str:
    """Return the text of an error when it is known to quote nothing, else ''."""
    with suppress(Exception):
        if isinstance(exc, AMQPError):
            # With a method it is what the server has answered; without, it may quote a header.
            return hide_secrets(exc.reply_text or "") if exc.method_sig else ""
        text = str(exc.args[0]) if exc.args else ""
        if isinstance(exc, _IN_ITS_WORDS):
            return hide_secrets(text)
        if isinstance(exc, OSError):
            return exc.strerror or ""
        if _QUOTES_NO_VALUE.fullmatch(text):
            return text
    return ""


def broker_address(connection: Connection) -> str:
    """Return where the broker is, all of them when there are several; without users and passwords."""
    try:
        if connection.alt:
            return ", ".join(_without_login(Connection(url).as_uri()) for url in connection.alt)
        return _without_login(connection.as_uri())
    except Exception:
        # A transport of the app's own.
        return str(connection.transport_cls)


def _without_login(uri: str) -> str:
    # The user can be a key of a cloud's service, and a query has passwords as well.
    return re.sub(r"://.*@", "://", uri).partition("?")[0]


# -- what Redis answers ------------------------------------------------------------------------------------


def about_message(exc: Exception) -> str:
    """Return what Redis says against one message or one key, without quoting anything; '' for other errors.

    Kombu takes these for failures of the connection.
    """
    found = _ANSWER.search(str(exc)) if type(exc).__module__ == "redis.exceptions" else None
    return _IN_WORDS[found[0]] if found else ""


def lacks_memory(answer: object) -> bool:
    """True for the error of a Redis that lacks the memory for what it was to write."""
    return isinstance(answer, Exception) and about_message(answer) == _IN_WORDS[_OUT_OF_MEMORY]


def takes_nothing(answer: object) -> bool:
    """True for the error of a Redis that takes no message at the moment, whatever is in it."""
    from_redis = isinstance(answer, Exception) and type(answer).__module__ == "redis.exceptions"
    return from_redis and _TAKES_NOTHING.match(in_words(str(answer))) is not None


def is_large(message: bytes | str) -> bool:
    """True for a message that Redis may lack the memory for while there is enough for all others."""
    return len(message) > LONGEST_OF_MOST


_OUT_OF_MEMORY = "not allowed when used memory"
_IN_WORDS = {
    "WRONGTYPE": "a key of its queue in Redis holds something else (WRONGTYPE)",
    "o permissions": "the Redis user lacks the rights (NOPERM)",
    _OUT_OF_MEMORY: "Redis lacks the memory for it (OOM)",
}
_ANSWER = re.compile("|".join(_IN_WORDS))
#: Full, a replica, without the replicas that it needs, or unable to write to its disk. Redis-py leaves out
#: the first word of some answers.
_TAKES_NOTHING = re.compile(
    "(OOM )?command not allowed when used memory"
    "|(READONLY )?You can't write against a read only"
    "|NOREPLICAS|MISCONF"
)
