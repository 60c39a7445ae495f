"""The options of a connection to Redis: redis-py says which there are, we say what their values may be."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from inspect import Parameter, signature
from typing import Any
from urllib.parse import urlencode

import redis
from kombu.utils.imports import symbol_by_name
from redis.connection import parse_url

from celery_misfire.conf.problems import Problems, as_bool, as_count, as_mapping, as_seconds
from celery_misfire.texts import quote, suggestion, type_name, unknown_word

# The store sets these itself. A second try of redis-py's would make a call take longer than beat can wait;
# beat tries again by itself.
_OURS = {
    *("retry", "retry_on_timeout", "retry_on_error"),
    *("decode_responses", "encoding", "encoding_errors", "parser_class", "connection_class"),
}
_PARTS_OF_THE_URL = {"host", "port", "path"}


def _options_of(connection_class: type) -> list[str]:
    """Return the names of what a class of connections, or the pool, takes; it passes most on to its bases."""
    classes = (*connection_class.__mro__, redis.ConnectionPool)
    own = (cls for cls in classes if "__init__" in vars(cls))
    parameters = [p for cls in own for p in signature(vars(cls)["__init__"]).parameters.values()]
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return sorted({p.name for p in parameters if p.kind in by_name} - {"self"} - _OURS - _PARTS_OF_THE_URL)


_TLS = _options_of(redis.SSLConnection)
#: What may be given to each kind of connection, by the scheme of its URL.
OPTIONS = {
    "redis": _options_of(redis.Connection),
    "rediss": _TLS,
    "unix": _options_of(redis.UnixDomainSocketConnection),
    # ``ssl`` here chooses the class of connection; the others have it in their scheme.
    "sentinel": sorted({*_TLS, "ssl", "master_name", "sentinel_kwargs"}),
}
# These options are for the connections to the sentinels themselves.
_SENTINEL_KWARGS = [*_TLS, "ssl"]


def check_option(key: object, scheme: str) -> None:
    """Refuse what is no option of this kind of connection. :raises ValueError: with the fix."""
    if key in OPTIONS[scheme]:
        return
    if key in _OURS:
        raise ValueError(f"{key!r} is set by celery_misfire. Remove it.")
    if key in _PARTS_OF_THE_URL:
        raise ValueError(f"{key!r} is a part of the URL. Write it there.")
    if fitting := [f"{known}://" for known, keys in OPTIONS.items() if key in keys]:
        what = f"{key!r} does not apply to {scheme}://, only to {', '.join(fitting)}."
        raise ValueError(f"{what} Remove it or change the URL.")
    raise ValueError(_unknown(key, OPTIONS[scheme]))


def _unknown(key: object, known: list[str]) -> str:
    fix = suggestion(key, known) or " Use the connection options of redis-py."
    return f"unknown key {quote(key)}.{fix}"


def checked_options(value: object) -> dict[str, Any]:
    """Return options in the form that redis-py understands; which of them fit depends on the URL."""
    problems, result = Problems(), as_mapping(value)
    for key, item in result.items():
        with problems.at(f"[{key!r}]" if isinstance(key, str) else ""):
            result[key] = _checked(key, item)
    problems.raise_invalid()
    return result


def option_from_query(key: str, text: str) -> Any:
    """Return an option that is part of a URL, in the form that redis-py understands."""
    value: Any = text
    if key in _SWITCHES:
        value = text.upper() not in ("0", "F", "FALSE", "N", "NO")
    elif key in _NUMBERS:
        with suppress(ValueError):
            value = float(text)
            value = int(text)
    elif key not in _CHECKS:
        try:
            value = parse_url(f"redis://?{urlencode({key: text})}")[key]  # type: ignore[no-untyped-call]
        except ValueError:
            raise ValueError(f"{key!r}: redis-py cannot read its value.") from None
    try:
        return _checked(key, value)
    except ValueError as exc:
        raise ValueError(f"{key!r}: {exc}") from None


# -- what a value must be ----------------------------------------------------------------------------------


def _checked(key: object, value: Any) -> Any:
    if value is None and key not in _NEVER_NONE:
        return None
    # An option without a check may be anything; redis-py will tell.
    check = _CHECKS.get(key)
    return value if check is None else check(value)


def _sentinel_kwargs(value: object) -> dict[str, Any]:
    problems, result = Problems(), checked_options(value)
    for name in result:
        if name not in _SENTINEL_KWARGS:
            problems.add("", _unknown(name, _SENTINEL_KWARGS))
    problems.raise_invalid()
    return result


def _requirement(value: object) -> object:
    # Celery writes CERT_REQUIRED, redis-py required.
    words = [mode.name.removeprefix("CERT_").lower() for mode in ssl.VerifyMode]
    short = value.removeprefix("CERT_").lower() if isinstance(value, str) else value
    if short in words or (isinstance(short, int) and not isinstance(short, bool) and short in range(3)):
        return short
    raise ValueError(unknown_word(value, words))


def _protocol(value: object) -> object:
    if isinstance(value, bool) or value not in (2, 3):
        raise ValueError(f"expected 2 or 3, got {quote(value)}.")
    return value


def _pause(value: object) -> float:
    return 0 if value == 0 and not isinstance(value, bool) else as_seconds(value)


def _version(value: Any) -> object:
    try:
        return ssl.TLSVersion(value)
    except ValueError:
        raise ValueError(f"expected a member of ssl.TLSVersion, got {quote(value)}.") from None


def _text(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | bytes | int):
        # The value is not shown: it may be a password.
        raise ValueError(f"expected a string, got {type_name(value)}.")
    return value


def _path(what: str, exists: Callable[[Any], bool], value: object) -> object:
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"expected the path of a {what}, got {type_name(value)}.")
    if not exists(value):
        raise ValueError(f"{what} {quote(os.fspath(value))} does not exist.")
    return value


def _socket_options(value: object) -> object:
    if not isinstance(value, Mapping) or not all(isinstance(key, int) for key in value):
        what = "expected a dict such as {socket.TCP_KEEPIDLE: 60}"
        raise ValueError(f"{what}, got {type_name(value)}.")
    return value


def _provider(value: Any) -> object:
    """Return an object that has the login; made here, if its class is named as Celery names one."""
    if isinstance(value, str):
        try:
            value = symbol_by_name(value)()
        except Exception as exc:
            what = f"a credential provider cannot be made of {quote(value)} ({type(exc).__name__})."
            raise ValueError(f"{what} Name a class that needs no arguments.") from None
    if isinstance(value, type) or not callable(getattr(value, "get_credentials", None)):
        raise ValueError(f"expected an object that has get_credentials(), got {type_name(value)}.")
    return value


_NUMBERS: dict[object, Callable[[Any], Any]] = {
    "db": as_count,
    "max_connections": as_count,
    "socket_read_size": as_count,
    "protocol": _protocol,
    "health_check_interval": _pause,
    "socket_timeout": as_seconds,
    "socket_connect_timeout": as_seconds,
    "ssl_min_version": _version,
}
_SWITCHES = (
    *("socket_keepalive", "ssl", "ssl_check_hostname"),
    *("ssl_validate_ocsp", "ssl_validate_ocsp_stapled"),
)
_TEXTS = (
    *("username", "password", "client_name", "master_name"),
    *("ssl_ca_data", "ssl_ciphers", "ssl_password", "ssl_ocsp_expected_cert"),
)
_CHECKS: dict[object, Callable[[Any], Any]] = {
    **_NUMBERS,
    **dict.fromkeys(_SWITCHES, as_bool),
    **dict.fromkeys(_TEXTS, _text),
    **dict.fromkeys(("ssl_keyfile", "ssl_certfile", "ssl_ca_certs"), partial(_path, "file", os.path.isfile)),
    "ssl_ca_path": partial(_path, "directory", os.path.isdir),
    "ssl_cert_reqs": _requirement,
    "socket_keepalive_options": _socket_options,
    "credential_provider": _provider,
    "sentinel_kwargs": _sentinel_kwargs,
}
_NEVER_NONE = ("db", "socket_read_size", "health_check_interval", "socket_timeout", "socket_connect_timeout")
