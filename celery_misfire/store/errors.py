"""What the errors of Redis and of the network mean, in words without secrets."""

from __future__ import annotations

import os
import re
import socket
import ssl

import redis
from redis.sentinel import MasterNotFoundError

from celery_misfire.exceptions import StoreRefused, StoreUnavailable


def unavailable(place: str, exc: Exception, advice: str = "") -> StoreUnavailable:
    """Return our error for one of redis-py's, or of a credential provider.

    :param place: which Redis it is.
    :param advice: what to do about it, when the error itself does not say.
    """
    if not isinstance(exc, redis.RedisError | OSError):
        # A credential provider's own, or redis-py's for an option: whatever it says may be secret.
        return StoreUnavailable(f"{place}: {type(exc).__name__}")
    text = ". ".join(filter(None, (f"{place}: {describe(exc)}", advice)))
    fix = _fix(exc)
    return StoreRefused(f"{text}. {fix}") if fix else StoreUnavailable(text)


def is_read_only(exc: Exception) -> bool:
    """True when the server is a replica: the master is another one now."""
    return "READONLY" in str(exc) or isinstance(exc, redis.ReadOnlyError)


def describe(exc: BaseException) -> str:
    """Return what happened. The text of a network error can repeat the URL, so only its kind is told."""
    if isinstance(exc, _IN_ITS_WORDS):
        return in_words(str(exc))
    if isinstance(exc, MasterNotFoundError):
        return _describe_unknown_master(exc)
    if isinstance(exc, redis.InvalidResponse):
        return "it did not answer as a Redis server"
    kind, cause = type(exc).__name__, exc.__cause__ or exc.__context__ or exc
    if isinstance(cause, ssl.SSLError):
        return f"{kind} ({getattr(cause, 'verify_message', '') or cause.reason or type(cause).__name__})"
    if isinstance(cause, socket.gaierror):
        # Its number is none of the system's errors.
        return f"{kind} ({cause.strerror})"
    if isinstance(cause, OSError) and cause.errno:
        return f"{kind} ({os.strerror(cause.errno)})"
    return kind


def in_words(answer: str) -> str:
    """Return what an error of Redis says, in one line, without what tells nobody anything."""
    # The place inside a script.
    text = re.sub(r"\.? script: (\w+, )?on @user_script.*", "", answer.split("\n")[0])
    # The arguments of a login that Redis does not understand are user and password.
    text = re.sub(r",? with args beginning with.*", "", text)
    # In a pipeline redis-py begins with the command and its arguments.
    text = re.sub(r"^Command # .* of pipeline caused error: ", "", text)
    text = text.removeprefix("ACL failure in script: ")
    # Redis 6.2 begins with the place.
    return re.sub(r"^(Error running script [^@]*)?(@user_script: ?\d+: )*-?", "", text)[:200].rstrip(".")


def _describe_unknown_master(exc: MasterNotFoundError) -> str:
    # The text has the errors of the sentinels that were asked, addresses and all.
    kinds = sorted(set(re.findall(r" - (?:\w+:)?([A-Za-z]+Error)", str(exc))))
    name = re.search(r"No master found for ('[^']*')", str(exc))
    unknown = f"{name[1] if name else 'it'} is unknown, or down; its name is 'master_name' in the options"
    return f"{type(exc).__name__} ({', '.join(kinds) or unknown})"


#: These errors are told in Redis's own words.
_IN_ITS_WORDS = (redis.ResponseError, redis.AuthenticationError, redis.BusyLoadingError)

_LOGIN = "Check user and password; in a URL write special characters as %XX."
_RIGHTS = "Give the user the rights that are listed in the documentation."
_HELLO = "Set the option 'protocol' of redis-py to 2. Redis 6.2 or newer is needed."
_SLOTS = "In a cluster, messages cannot go together with the state."
_NODE = "The keys of this namespace are on another node of the cluster; name that one."

#: What Redis says when it will not work with us as we are set up, and how to mend that.
_REFUSALS = (
    (redis.AuthenticationError, "", _LOGIN),
    (redis.ResponseError, "unauthenticated", _LOGIN),
    (redis.exceptions.NoPermissionError, "", _RIGHTS),
    (redis.ResponseError, "The user executing the script can't", _RIGHTS),
    # Redis 7.2 and Valkey say it so.
    (redis.ResponseError, "ACL failure in script", _RIGHTS),
    (redis.exceptions.MovedError, "", _NODE),
    (redis.ResponseError, "MOVED ", _NODE),
    # Up to redis-py 5, it has no class of its own.
    (redis.ResponseError, "hash to the same slot", _SLOTS),
    (redis.ResponseError, "DB index is out of range", "Check the number of the database."),
    (redis.ResponseError, "unknown command 'HELLO'", _HELLO),
    (redis.ResponseError, "unknown command `HELLO`", _HELLO),
    (redis.ResponseError, "unknown command", "celery_misfire cannot do without it."),
)


def _fix(exc: Exception) -> str:
    if isinstance(exc.__cause__ or exc.__context__, ssl.SSLCertVerificationError):
        return "Check ssl_ca_certs, and the host's name in the URL."
    return next((fix for kind, text, fix in _REFUSALS if isinstance(exc, kind) and text in str(exc)), "")
