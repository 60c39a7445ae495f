"""The Redis that Celery itself uses: the state lives there unless ``misfire_redis_url`` names another one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from celery import Celery

from celery_misfire.conf.problems import Problems, Wrong
from celery_misfire.store.options import OPTIONS, checked_options
from celery_misfire.store.url import EXAMPLE, checked_url, is_presentable, scheme_of, split_urls

__all__ = ["redis_of_celery"]


def redis_of_celery(app: Celery, spell: Callable[[str], str]) -> tuple[str, dict[str, Any]]:
    """Return URL and options of the Redis that Celery itself uses: as broker, else for the results.

    :raises Wrong: when neither is a Redis, or its settings are wrong.
    """
    for names in (
        ("broker_url", "broker_use_ssl", "broker_transport_options"),
        ("result_backend", "redis_backend_use_ssl", "result_backend_transport_options"),
    ):
        found = _redis_in(partial(getattr, app.conf), spell, *names)
        if found is not None:
            return found
    transport = scheme_of(next(iter(split_urls(app.conf.broker_url)), "amqp://"))
    broker = spell("broker_url") + (f" ({transport})" if is_presentable(transport) else "")
    setting = spell("misfire_redis_url")
    fix = f"Set {setting}, for example {EXAMPLE}."
    raise Wrong([(setting, f"not set, and {broker} is not Redis. {fix}")])


def _redis_in(
    read: Callable[[str], Any],
    spell: Callable[[str], str],
    setting: str,
    tls_setting: str,
    transport_setting: str,
) -> tuple[str, dict[str, Any]] | None:
    tls, transport_options = read(tls_setting), read(transport_setting)
    own = [url for url in split_urls(read(setting)) if scheme_of(url) in OPTIONS]
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
