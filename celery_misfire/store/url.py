"""Where the state lives: the URL of a Redis and the options for it, as they are written in settings.

Of redis-py it knows what can be written, not how it is used: that is the store's.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from kombu.utils.imports import symbol_by_name

from celery_misfire.conf.problems import Problems, Wrong, as_bool, as_count, as_mapping, as_seconds
from celery_misfire.texts import quote, suggestion, type_name, unknown_word

__all__ = [
    "OPTIONS",
    "address",
    "check_option",
    "checked_options",
    "checked_url",
    "has_master_name",
    "not_redis",
    "redis_of_celery",
    "scheme_of",
    "sentinels_of",
    "split_url",
]

_EXAMPLE_URL = "'redis://localhost:6379/1'"

# Keywords of redis-py's connections. Each class of connection takes its own, and one that it does not take
# fails on the first command only.
_ANY = (
    "db username password credential_provider client_name protocol max_connections health_check_interval "
    "socket_timeout socket_connect_timeout socket_read_size"
)
_TCP = f"{_ANY} socket_keepalive socket_keepalive_options"
_TLS = (
    f"{_TCP} ssl_keyfile ssl_certfile ssl_cert_reqs ssl_ca_certs ssl_ca_data ssl_ca_path ssl_check_hostname "
    "ssl_password ssl_validate_ocsp ssl_validate_ocsp_stapled ssl_ocsp_context ssl_ocsp_expected_cert "
    "ssl_min_version ssl_ciphers"
)
#: What may be given to each kind of connection, by the scheme of its URL.
OPTIONS = {
    "redis": _TCP.split(),
    "rediss": _TLS.split(),
    "unix": _ANY.split(),
    # ``ssl`` here chooses the class of connection; the others have it in their scheme.
    "sentinel": f"{_TLS} ssl master_name sentinel_kwargs".split(),
}
_ALL = OPTIONS["sentinel"]
_SENTINEL_QUERY = ("master_name", "db")
# Of the connections to the sentinels themselves.
_SENTINEL_KWARGS = [*OPTIONS["rediss"], "ssl"]
# A second try of redis-py's would make a call take longer than beat can wait; beat tries again by itself.
_OURS = ("retry", "retry_on_timeout", "retry_on_error")

_PORT = "the port must be a number from 1 to 65535."
_UNREADABLE = (
    "cannot be read as a URL. In a password write special characters as %XX, for example '/' as %2F."
)


def scheme_of(url: str) -> str:
    """Return the scheme in our spelling, '' when there is none."""
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    return "unix" if scheme == "redis+socket" else scheme


def _readable(scheme: str) -> str:
    """Return the scheme, or nothing when it could be a piece of something else."""
    return scheme if re.fullmatch(r"[a-z][a-z0-9+.-]{0,19}", scheme) else ""


def _apart(urls: object) -> list[str]:
    """Return the single URLs of a setting of Celery's: one, several with semicolons, or a list."""
    if isinstance(urls, str):
        return re.split(r";(?=[\w+]+://)", urls)
    return [url for url in urls if isinstance(url, str)] if isinstance(urls, list | tuple) else []


def _split(url: str) -> SplitResult:
    # The errors of urlsplit are not passed on: they repeat a piece of the password.
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(_UNREADABLE) from None
    if parts.scheme != "unix" and "@" in parts.path + parts.query + parts.fragment:
        raise ValueError(_UNREADABLE)
    try:
        if parts.port == 0:
            raise ValueError
    except ValueError:
        raise ValueError(_PORT if re.search(r":\d+$", parts.netloc) else _UNREADABLE) from None
    return parts


def address(url: str) -> str:
    """Return where a URL points to, without user and password; of several sentinels the first."""
    if scheme_of(url) == "sentinel":
        (host, port), *_ = sentinels_of(url)[0]
        return f"{host}:{port}"
    parts = urlsplit(url)
    return parts.path if parts.hostname is None else f"{parts.hostname}:{parts.port or 6379}"


def _login(netloc: str) -> dict[str, str]:
    user, _, password = netloc.rpartition("@")[0].partition(":")
    given = {"username": unquote(user), "password": unquote(password)}
    return {name: text for name, text in given.items() if text}


def split_url(url: str) -> tuple[str, dict[str, Any]]:
    """Return a URL with the place alone, and as options what else it says; not for sentinels.

    :raises ValueError: the text repeats nothing of the URL but a value in its query.
    """
    parts = urlsplit(url)
    options: dict[str, Any] = dict(_login(parts.netloc))
    place, database = parts.path, parts.path.strip("/")
    if parts.scheme != "unix":
        place, options = "", options | ({"db": int(database)} if database else {})
    options |= {key: _from_query(key, text) for key, text in parse_qsl(parts.query)}
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{place}", options


def sentinels_of(url: str) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """Return host and port of each sentinel, and the options for the Redis behind them.

    Several are separated by commas, or written as several URLs with semicolons between them, as in Celery.
    User, password, database and query are those of the first, and are not for the sentinels themselves.

    :raises ValueError: the text repeats nothing of the URL.
    """
    try:
        ones = [urlsplit(one if "://" in one else f"sentinel://{one}") for one in url.split(";")]
        places = [
            urlsplit(f"//{place.rpartition('@')[2]}") for one in ones for place in one.netloc.split(",")
        ]
        sentinels = [(place.hostname or "", place.port or 26379) for place in places]
    except ValueError:
        raise ValueError(_UNREADABLE) from None
    first = ones[0]
    options: dict[str, Any] = {k: v for k, v in parse_qsl(first.query) if k in _SENTINEL_QUERY}
    options |= _login(first.netloc.split(",")[0])
    database = options.get("db", first.path.strip("/")) or "0"
    if not database.isdecimal():
        fix = "The name of the master goes into misfire_redis_options = {'master_name': 'mymaster'}."
        raise ValueError(f"the database must be a number. {fix}")
    return sentinels, options | {"db": int(database)}


def checked_url(value: object, strict: bool = True) -> str:
    """Return a URL in the form that redis-py and the store understand.

    :param strict: refuse unknown options in the query; else drop them, as they are Celery's.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected a string such as {_EXAMPLE_URL}, got {type(value).__name__}.")
    scheme = scheme_of(value)
    if scheme not in OPTIONS:
        what = f"unknown scheme{f' {scheme!r}' * bool(_readable(scheme))}." if scheme else "has no scheme."
        allowed = ", ".join(f"{known}://" for known in OPTIONS)
        raise ValueError(f"{what}{suggestion(scheme, OPTIONS)} Use {allowed}.")
    if scheme == "sentinel":
        return _checked_sentinels(scheme + value[len(scheme) :], strict)
    if len(_apart(value)) > 1:
        raise ValueError("expected one URL, got several. Only sentinel:// takes several.")
    parts = _split(value)
    database = parts.path.strip("/")
    if scheme == "unix" and (parts.hostname or not database):
        raise ValueError("unix:// needs the full path of a socket, as in 'unix:///run/redis.sock?db=1'.")
    if scheme != "unix" and database and not database.isdecimal():
        raise ValueError(f"the database must be a number, as in {_EXAMPLE_URL}.")
    query = {}
    for name, item in parse_qsl(parts.query):
        key = "db" if name == "virtual_host" and scheme == "unix" else name
        if strict:
            check_option(key, scheme)
        if key in OPTIONS[scheme]:
            _from_query(key, item)
            query[key] = _short(item) if key == "ssl_cert_reqs" else item
    return f"{scheme}://{parts.netloc}{parts.path}" + (f"?{urlencode(query)}" if query else "")


def _checked_sentinels(url: str, strict: bool) -> str:
    for one in re.split("[;,]", url):
        _split(one if "://" in one else f"sentinel://{one}")
    sentinels, _ = sentinels_of(url)
    if not all(host for host, _ in sentinels):
        raise ValueError("sentinel:// needs the host of a sentinel, as in 'sentinel://h1:26379'.")
    for name, _ in parse_qsl(urlsplit(url.split(";")[0]).query):
        if strict and name not in _SENTINEL_QUERY:
            check_option(name, "sentinel")
            raise ValueError(f"{name!r} is not read here. Set it in misfire_redis_options.")
    return url


def _short(requirement: Any) -> Any:
    # Celery writes CERT_REQUIRED, redis-py required.
    return requirement.removeprefix("CERT_").lower() if isinstance(requirement, str) else requirement


def _requirement(value: object) -> object:
    words = [mode.name.removeprefix("CERT_").lower() for mode in ssl.VerifyMode]
    short = _short(value)
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


def _path(kind: str, exists: Callable[[Any], bool], value: object) -> object:
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"expected the path of a {kind}, got {type_name(value)}.")
    if not exists(value):
        raise ValueError(f"{kind} {quote(os.fspath(value))} does not exist.")
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


# What is not here may be anything; redis-py will tell.
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
    "socket_keepalive",
    "ssl",
    "ssl_check_hostname",
    "ssl_validate_ocsp",
    "ssl_validate_ocsp_stapled",
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
}
_NEVER_NONE = ("db", "socket_read_size", "health_check_interval", "socket_timeout", "socket_connect_timeout")


def _checked(key: object, value: Any) -> Any:
    if value is None and key not in _NEVER_NONE:
        return None
    check = _CHECKS.get(key)
    return value if check is None else check(value)


def _from_query(key: str, text: str) -> Any:
    """Return an option that is part of a URL, of the type that it must have."""
    value: Any = text
    if key in _SWITCHES:
        # As redis-py does.
        value = text.upper() not in ("0", "F", "FALSE", "N", "NO")
    elif key in _NUMBERS:
        with suppress(ValueError):
            value = float(text)
            value = int(text)
    try:
        return _checked(key, value)
    except ValueError as exc:
        raise ValueError(f"{key!r}: {exc}") from None


def check_option(key: object, scheme: str) -> None:
    """Refuse what is no option of this kind of connection. :raises ValueError: with the fix."""
    if key in OPTIONS[scheme]:
        return
    if key in _OURS:
        raise ValueError(f"{key!r} is set by celery_misfire. Remove it.")
    if key in _ALL:
        fitting = ", ".join(f"{known}://" for known, keys in OPTIONS.items() if key in keys)
        raise ValueError(
            f"{key!r} does not apply to {scheme}://, only to {fitting}. Remove it or change the URL."
        )
    fix = suggestion(key, OPTIONS[scheme]) or " Use the connection options of redis-py."
    raise ValueError(f"unknown key {quote(key)}.{fix}")


def checked_options(value: object) -> dict[str, Any]:
    """Return options in the form that redis-py understands; which fit, depends on the URL."""
    problems, result = Problems(), as_mapping(value)
    for key, item in result.items():
        with problems.at(f"[{key!r}]" if isinstance(key, str) else ""):
            if key != "sentinel_kwargs":
                result[key] = _checked(key, item)
            elif item is not None:
                result[key] = checked_options(item)
                for name in result[key]:
                    if name not in _SENTINEL_KWARGS:
                        fix = suggestion(name, _SENTINEL_KWARGS) or " Use the connection options of redis-py."
                        problems.add(f"[{key!r}]", f"unknown key {quote(name)}.{fix}")
    problems.raise_wrong()
    return result


def redis_of_celery(
    read: Callable[[str], Any],
    spell: Callable[[str], str],
    setting: str,
    tls_setting: str,
    transport_setting: str,
) -> tuple[str, dict[str, Any]] | None:
    """Return URL and options of a Redis that Celery itself uses, None when it is another kind of server.

    :param read: returns the value of a setting of Celery's.
    :param setting: name of the one that has the URLs; `tls_setting` and `transport_setting` belong to it.
    """
    tls, transport_options = read(tls_setting), read(transport_setting)
    own = [url for url in _apart(read(setting)) if scheme_of(url) in OPTIONS]
    if not own:
        return None
    problems = Problems()
    with problems.at(spell(setting)):
        sentinels = [url for url in own if scheme_of(url) == "sentinel"]
        together = scheme_of(own[0]) == "sentinel"
        url = checked_url(";".join(sentinels) if together else own[0], strict=False)
    problems.raise_wrong()
    scheme, options = scheme_of(url), dict[str, Any]()
    if scheme == "sentinel" and isinstance(transport_options, Mapping):
        known = ("master_name", "sentinel_kwargs")
        with problems.at(spell(transport_setting)):
            options |= checked_options(
                {key: transport_options[key] for key in known if key in transport_options}
            )
    if isinstance(tls, Mapping) and scheme != "unix":
        with problems.at(spell(tls_setting)):
            options |= checked_options({key: item for key, item in tls.items() if key in OPTIONS["rediss"]})
        options |= {"ssl": True} if scheme == "sentinel" else {}
        url = re.sub("^redis:", "rediss:", url)
    problems.raise_wrong()
    return url, options


def not_redis(broker_url: object, spell: Callable[[str], str]) -> Wrong:
    """Return the problem that no Redis is named and that the broker is none."""
    transport = _readable(scheme_of(next(iter(_apart(broker_url)), "amqp://")))
    broker = spell("broker_url") + (f" ({transport})" if transport else "")
    setting = spell("misfire_redis_url")
    fix = f"Set {setting}, for example {_EXAMPLE_URL}."
    return Wrong([(setting, f"not set, and {broker} is not Redis. {fix}")])


def has_master_name(url: str, options: Mapping[str, Any]) -> bool:
    """True unless a sentinel would have to guess which Redis is meant."""
    if scheme_of(url) != "sentinel":
        return True
    return bool(options.get("master_name") or sentinels_of(url)[1].get("master_name"))
