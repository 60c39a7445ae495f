"""The Redis that Celery itself uses: the state lives there unless ``misfire_redis_url`` names another one.

The settings that say so are many (``broker_url``, ``broker_password``, ``redis_host`` and so on). Celery and
kombu are asked what they have made of them; the URL is kept as it is written where it says all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celery_misfire.conf.problems import InvalidSetting, Problems
from celery_misfire.store.options import OPTIONS, checked_options
from celery_misfire.store.url import (
    EXAMPLE,
    checked_url,
    connection_of,
    is_presentable,
    scheme_of,
    sentinels_of,
    split_urls,
)
from celery_misfire.texts import describe_error


class _Use(NamedTuple):
    """What one use of a Redis is configured by: as the broker, or for the results."""

    setting: str
    tls_setting: str
    transport_setting: str
    #: Returns what Celery connects to, and the options of TLS: empty for none.
    resolve: Callable[[Celery, str], tuple[dict[str, Any], Any]]


def redis_of_celery(app: Celery, spell: Callable[[str], str]) -> tuple[str, dict[str, Any]]:
    """Return URL and options of the Redis that Celery itself uses: as broker, else for the results.

    :raises InvalidSetting: when neither is a Redis, or its settings are wrong.
    """
    setting = "broker_write_url" if app.conf.get("broker_write_url") else "broker_url"
    broker = _Use(setting, "broker_use_ssl", "broker_transport_options", _resolve_broker)
    urls, transport = app.conf.broker_write_url, app.conf.broker_transport
    if url := _redis_url(urls, transport):
        return _connection(app, spell, broker, url)
    results = _Use(
        "result_backend", "redis_backend_use_ssl", "result_backend_transport_options", _resolve_results
    )
    if url := _redis_url(app.conf.result_backend, app.conf.result_backend):
        return _connection(app, spell, results, url)
    transport = scheme_of(next(iter(split_urls(urls)), "amqp://"))
    kind = spell(setting) + (f" ({transport})" if is_presentable(transport) else "")
    ours = spell("misfire_redis_url")
    raise InvalidSetting([(ours, f"not set, and {kind} is not Redis. Set {ours}, for example {EXAMPLE}.")])


def stays_with_the_first(app: Celery) -> bool:
    """Return True when Celery may go on with the next broker of a list, and the state cannot follow it.

    A state that was left behind would later be taken for the newest, and each run since then be sent again.
    """
    urls = split_urls(app.conf.broker_write_url)
    return len(urls) > 1 and scheme_of(_redis_url(urls, "")) not in ("", "sentinel")


def key_prefix_of_celery(app: Celery, *, in_results: bool) -> object:
    """Return what Celery puts before its keys in Redis, None for nothing. A user may be limited to such keys.

    :param in_results: ask the options of the results as well: the state is to be kept with them.
    """
    found = [app.conf.broker_transport_options]
    if in_results and not _redis_url(app.conf.broker_write_url, app.conf.broker_transport):
        found.append(app.conf.result_backend_transport_options)
    prefixes = [options.get("global_keyprefix") for options in found if isinstance(options, Mapping)]
    return next(filter(None, prefixes), None)


def _redis_url(urls: object, transport: object) -> str:
    """Return the first URL of a Redis, or all of its sentinels; '' when there is none.

    :param transport: the name of the kind of server, for settings that name the host without a URL.
    """
    own = [url for url in split_urls(urls) if scheme_of(url) in OPTIONS]
    if own and scheme_of(own[0]) == "sentinel":
        return ";".join(url for url in own if scheme_of(url) == "sentinel")
    by_name = isinstance(transport, str) and transport in ("redis", "rediss") and "://" not in str(urls)
    return own[0] if own else f"{transport}://" if by_name else ""


def _connection(
    app: Celery, spell: Callable[[str], str], use: _Use, given: str
) -> tuple[str, dict[str, Any]]:
    problems, options, tls = Problems(), dict[str, Any](), None
    with problems.at(spell(use.setting)):
        url = checked_url(given, strict=False)
        try:
            resolved, tls = use.resolve(app, given)
        except (ImproperlyConfigured, TypeError, ValueError) as exc:
            raise ValueError(f"Celery cannot use it: {describe_error(exc).rstrip('.')}.") from None
        url, options = _completed(url, resolved)
    problems.raise_invalid()
    scheme, transport_options = scheme_of(url), getattr(app.conf, use.transport_setting)
    if scheme == "sentinel" and isinstance(transport_options, Mapping):
        known = ("master_name", "sentinel_kwargs")
        with problems.at(spell(use.transport_setting)):
            options |= checked_options(
                {key: transport_options[key] for key in known if key in transport_options}
            )
    if isinstance(tls, Mapping) and tls and scheme != "unix":
        with problems.at(spell(use.tls_setting)):
            options |= checked_options({key: item for key, item in tls.items() if key in OPTIONS["rediss"]})
        options |= {"ssl": True} if scheme == "sentinel" else {}
        url = re.sub("^redis:", "rediss:", url)
    problems.raise_invalid()
    return url, options


def _resolve_broker(app: Celery, url: str) -> tuple[dict[str, Any], Any]:
    by_name = url in ("redis://", "rediss://") and "://" not in str(app.conf.broker_write_url)
    secure = scheme_of(url) == "rediss"
    # Without TLS options of its own, kombu would warn here that it trusts every server. We do not.
    connection = app.connection_for_write(None if by_name else url, ssl=True if secure else None)
    # For a socket, kombu takes the login from the URL alone.
    login = () if scheme_of(url) == "unix" else (connection.userid, connection.password)
    place = (connection.hostname, connection.port, connection.virtual_host)
    resolved = dict(zip(("host", "port", "db", "username", "password"), (*place, *login), strict=False))
    # The TLS options of a rediss:// URL are in the URL.
    tls = app.conf.broker_use_ssl if secure else connection.ssl
    return resolved, tls


def _resolve_results(app: Celery, url: str) -> tuple[dict[str, Any], Any]:
    return getattr(app.backend, "connparams", {}), app.conf.redis_backend_use_ssl


def _completed(url: str, resolved: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a URL with host, port and database that it leaves out, and the login that it leaves out."""
    sentinel = scheme_of(url) == "sentinel"
    said = sentinels_of(url)[1] if sentinel else connection_of(url)
    login = {key: resolved.get(key) for key in ("username", "password") if not said.get(key)}
    login = checked_options({key: text for key, text in login.items() if text})
    if sentinel or scheme_of(url) == "unix":
        return url, login
    parts = urlsplit(url)
    before, at, place = parts.netloc.rpartition("@")
    host = (place.removesuffix(f":{parts.port}") if parts.port else place) or resolved.get("host") or ""
    port, database = parts.port or resolved.get("port") or 6379, str(resolved.get("db") or 0).strip("/")
    if parts.port or port != 6379:
        host = f"{host}:{port}"
    path = parts.path if "db" in said or database in ("", "0") else f"/{database}"
    query = f"?{parts.query}" if parts.query else ""
    return checked_url(f"{parts.scheme}://{before}{at}{host}{path}{query}", strict=False), login
