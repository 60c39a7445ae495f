"""The URL of the Redis that holds the state. redis-py reads it; of sentinels we make what it can read."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from redis.connection import parse_url

from celery_misfire.store.options import OPTIONS, check_option, option_from_query
from celery_misfire.texts import suggestion

#: A URL as it may be written.
EXAMPLE = "'redis://localhost:6379/1'"

_PORT = "the port must be a number from 1 to 65535."
_UNREADABLE = (
    "cannot be read as a URL. In a password write special characters as %XX, for example '/' as %2F."
)


def scheme_of(url: str) -> str:
    """Return the scheme in our spelling, '' when there is none."""
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    return "unix" if scheme == "redis+socket" else scheme


def split_urls(urls: object) -> list[str]:
    """Return the single URLs of a setting of Celery's: one, several with semicolons, or a list."""
    if isinstance(urls, str):
        return re.split(r";(?=[\w+]+://)", urls)
    return [url for url in urls if isinstance(url, str)] if isinstance(urls, list | tuple) else []


def address(url: str) -> str:
    """Return where a URL points to, without user and password; of several sentinels the first."""
    if scheme_of(url) == "sentinel":
        (host, port), *_ = sentinels_of(url)[0]
        return f"{host}:{port}"
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def connection_of(url: str) -> dict[str, Any]:
    """Return what a URL says, as keyword arguments for redis-py's ConnectionPool; not for sentinels.

    :raises ValueError: the text repeats nothing of the URL but a value in its query.
    """
    query = parse_qsl(urlsplit(url).query)
    options: dict[str, Any] = parse_url(url.partition("?")[0])  # type: ignore[no-untyped-call]
    return options | {key: option_from_query(key, text) for key, text in query}


def sentinels_of(url: str) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """Return host and port of each sentinel, and the options for the Redis behind them.

    Several are separated by commas, or written as several URLs with semicolons between them, as in Celery.
    User, password, database and query are those of the first, and are not for the sentinels themselves.

    :raises ValueError: the text repeats nothing of the URL but a value in its query.
    """
    ones = [_split(one if "://" in one else f"sentinel://{one}") for one in url.split(";")]
    places = [place for one in ones for place in one.netloc.split(",")]
    checked = [_with_port(_split(f"sentinel://{place}")) for place in places]
    first = f"redis://{places[0]}{ones[0].path}?{ones[0].query}"
    options = {"db": 0} | connection_of(first)
    options = {key: value for key, value in options.items() if key not in ("host", "port")}
    return [(place.hostname or "", place.port or 26379) for place in checked], options


def checked_url(value: object, strict: bool = True) -> str:
    """Return a URL in the form that :func:`connection_of` and :func:`sentinels_of` understand.

    :param strict: refuse unknown options in the query; else drop them, as they are Celery's.
    :raises ValueError: with the fix; the text repeats nothing of the URL but a value in its query.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected a string such as {EXAMPLE}, got {type(value).__name__}.")
    scheme = scheme_of(value)
    if scheme not in OPTIONS:
        shown = f" {scheme!r}" if is_presentable(scheme) else ""
        what = f"unknown scheme{shown}." if scheme else "has no scheme."
        allowed = ", ".join(f"{known}://" for known in OPTIONS)
        raise ValueError(f"{what}{suggestion(scheme, OPTIONS)} Use {allowed}.")
    url, others = f"{scheme}://{value.partition('://')[2]}", ""
    if scheme == "sentinel":
        url, semicolon, others = url.partition(";")
        others = semicolon + others
    elif len(split_urls(value)) > 1:
        raise ValueError("expected one URL, got several. Only sentinel:// takes several.")
    parts = _split(url)
    _check_place(scheme, parts)
    query = f"?{query}" if (query := _checked_query(scheme, parts, strict)) else ""
    checked = f"{scheme}://{parts.netloc}{parts.path}{query}{others}"
    if scheme == "sentinel" and not all(host for host, _ in sentinels_of(checked)[0]):
        raise ValueError("sentinel:// needs the host of a sentinel, as in 'sentinel://h1:26379'.")
    return checked


def is_presentable(scheme: str) -> bool:
    """Return False when a scheme could be a piece of something else, and so must not be shown."""
    return re.fullmatch(r"[a-z][a-z0-9+.-]{0,19}", scheme) is not None


def _check_place(scheme: str, parts: SplitResult) -> None:
    database = parts.path.strip("/")
    if scheme == "unix":
        if parts.hostname or not database:
            raise ValueError("unix:// needs the full path of a socket, as in 'unix:///run/redis.sock?db=1'.")
        return
    if scheme != "sentinel":
        _with_port(parts)
    if database and not database.isdecimal():
        what = "the database must be a number"
        if scheme == "sentinel":
            raise ValueError(f"{what}. The name of the master goes into the option 'master_name'.")
        raise ValueError(f"{what}, as in {EXAMPLE}.")


def _checked_query(scheme: str, parts: SplitResult, strict: bool) -> str:
    query = {}
    for name, text in parse_qsl(parts.query):
        key = "db" if name == "virtual_host" and scheme == "unix" else name
        if strict:
            check_option(key, scheme)
        if key in OPTIONS[scheme]:
            value = option_from_query(key, text)
            # Celery's name of a requirement becomes redis-py's.
            query[key] = value if key == "ssl_cert_reqs" else text
    return urlencode(query)


def _split(url: str) -> SplitResult:
    # The errors of urlsplit are not passed on: they repeat a piece of the password.
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(_UNREADABLE) from None
    if parts.scheme != "unix" and "@" in parts.path + parts.query + parts.fragment:
        raise ValueError(_UNREADABLE)
    return parts


def _with_port(parts: SplitResult) -> SplitResult:
    """Return a URL whose port can be read."""
    try:
        if parts.port == 0:
            raise ValueError
    except ValueError:
        raise ValueError(_PORT if re.search(r":\d+$", parts.netloc) else _UNREADABLE) from None
    return parts
