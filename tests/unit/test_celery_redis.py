"""The Redis that Celery itself uses, as Celery and kombu have made it of whatever settings there are."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from celery_misfire.conf.settings import read_settings
from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.store.redis_store import RedisStore
from tests.support.configs import no_urls_from_outside, problems_of

__all__ = ["no_urls_from_outside"]

SENTINEL = "sentinel://a:26379/1;sentinel://b:26379/1"
MASTER = {"master_name": "m"}
PLACE = ("host", "port", "db", "username", "password", "path")


def app_with(**config: Any) -> Celery:
    app = Celery("shop", set_as_current=False)
    app.conf.update(config)
    return app


def celerys(app: Celery, results: bool) -> dict[str, Any]:
    """Return what Celery's own connection is made with."""
    if results:
        return dict(app.backend.connparams)
    channel_class = app.connection_for_write().transport.Channel

    class Channel(channel_class):  # type: ignore[misc,valid-type]
        def __init__(self, connection: Any) -> None:
            self.connection = connection

    found: dict[str, Any] = Channel(app.connection_for_write().transport)._connparams()
    return found


RESULTS = {"broker_url": "amqp://"}
CASES: list[dict[str, Any]] = [
    {"broker_url": "redis://h/1", "broker_use_ssl": {}},
    {"broker_url": "redis://h/1", "broker_use_ssl": True},
    {"broker_url": "redis://h/1", "broker_use_ssl": {"ssl_cert_reqs": "required"}},
    {"broker_url": "rediss://h/1", "broker_use_ssl": {"ssl_cert_reqs": "required"}},
    {"broker_url": "redis://h/1", "broker_password": "a/b c"},
    {"broker_url": "redis://u:x@h/1", "broker_user": "other", "broker_password": "other"},
    {"broker_url": "redis://h", "broker_port": 7000, "broker_vhost": "3"},
    {"broker_url": "redis://h:6380/2", "broker_port": 7000, "broker_vhost": "3"},
    {"broker_url": "redis://", "broker_user": "u", "broker_password": "p", "broker_port": 7000},
    {"broker_host": "redis://h:7/2"},
    {"broker_transport": "redis", "broker_host": "h", "broker_port": 7000, "broker_vhost": "3"},
    {"broker_transport": "redis", "broker_host": "h", "broker_password": "p@"},
    {"broker_url": "redis://r/1", "broker_write_url": "redis://w/2"},
    {"broker_url": "redis://w/2", "broker_read_url": "redis://r/1"},
    {"broker_read_url": "redis://r/1", "broker_write_url": "redis://w/2", "broker_password": "p"},
    {"broker_url": "amqp://r", "broker_write_url": "redis://w/2", "broker_password": "p"},
    {"broker_url": ["redis://a/1", "redis://b/1"], "broker_password": "p"},
    {"broker_url": "redis+socket:///r.sock", "broker_password": "p"},
    RESULTS | {"result_backend": "redis://h/1", "redis_backend_use_ssl": {}},
    RESULTS | {"result_backend": "rediss://h/1", "redis_backend_use_ssl": {"ssl_cert_reqs": "none"}},
    RESULTS | {"result_backend": "redis://h/1", "redis_password": "a/b c", "redis_username": "u"},
    RESULTS | {"result_backend": "redis://u:x@h/1", "redis_password": "other"},
    RESULTS | {"result_backend": "redis://", "redis_host": "h", "redis_port": 7000, "redis_db": 3},
    RESULTS | {"result_backend": "redis", "redis_host": "h", "redis_port": 7000, "redis_db": 3},
    RESULTS | {"result_backend": "redis", "redis_host": "h", "redis_password": "p"},
]


@pytest.mark.parametrize("config", CASES, ids=str)
def test_our_connection_goes_where_celerys_goes(config: dict[str, Any]) -> None:
    app = app_with(**config)
    theirs = celerys(app, results=config.items() >= RESULTS.items())
    pool = RedisStore.of(read_settings(app))._redis.connection_pool
    ours = pool.connection_kwargs
    defaults = {"host": "localhost", "port": 6379, "db": 0}
    theirs["host"] = str(theirs.get("host", "localhost")).replace("127.0.0.1", "localhost")
    for key in PLACE if "path" not in theirs else ("db", "path", "password"):
        assert ours.get(key, defaults.get(key)) == (theirs.get(key) or defaults.get(key)), key
    tls = "ssl" in str(theirs.get("connection_class", "")).lower()
    assert ("SSL" in pool.connection_class.__name__) == tls


@pytest.mark.parametrize("tls", [{}, {"ssl_cert_reqs": "none"}])
@pytest.mark.parametrize(
    ("broker", "results", "tls_setting", "options_setting"),
    [
        (SENTINEL, None, "broker_use_ssl", "broker_transport_options"),
        ("amqp://", SENTINEL, "redis_backend_use_ssl", "result_backend_transport_options"),
    ],
)
def test_sentinels_have_tls_when_celery_has_it(
    broker: str, results: str | None, tls_setting: str, options_setting: str, tls: dict[str, Any]
) -> None:
    app = app_with(broker_url=broker, result_backend=results, **{tls_setting: tls, options_setting: MASTER})
    app.conf.update(broker_password="p", redis_password="p")
    settings = read_settings(app)
    pool = RedisStore.of(settings)._redis.connection_pool
    assert ("SSL" in pool.connection_class.__name__) == bool(tls)
    assert pool.connection_kwargs["password"] == "p"


def test_what_celery_cannot_use_is_told_without_a_secret() -> None:
    app = app_with(**RESULTS, result_backend="redis://:canary@h/1?ssl_cert_reqs=none")
    with pytest.raises(MisfireConfigError) as caught:
        read_settings(app)
    assert "canary" not in str(caught.value)
    assert problems_of(lambda: read_settings(app)) == (
        "celery_misfire: result_backend: Celery cannot use it: ValueError: SSL connection parameters have "
        "been provided but the specified URL scheme is redis://. A Redis SSL connection URL should use the "
        "scheme rediss://.",
    )
    app = app_with(broker_url="redis://:canary@h/1?visibility_timeout=60")
    (problem,) = problems_of(lambda: read_settings(app))
    assert problem.startswith("celery_misfire: broker_url: Celery cannot use it: TypeError: ")
    assert "'visibility_timeout'" in problem
    assert "canary" not in problem


TO_BROKER = {"broker_transport_options": {"global_keyprefix": "acme:"}}
TO_RESULTS = {"result_backend_transport_options": {"global_keyprefix": "results:"}}


@pytest.mark.parametrize(
    ("config", "prefix"),
    [
        ({"broker_url": "redis://h"}, ""),
        ({"broker_url": "redis://h"} | TO_BROKER, "acme:"),
        ({"broker_url": SENTINEL, "broker_transport_options": MASTER | {"global_keyprefix": "x"}}, "x"),
        ({"broker_url": "redis://h"} | TO_BROKER | {"misfire_key_prefix": "ours:"}, "ours:"),
        ({"broker_url": "redis://h"} | TO_BROKER | {"misfire_key_prefix": ""}, ""),
        ({"broker_url": "redis://h"} | TO_BROKER | {"misfire_redis_url": "redis://other"}, "acme:"),
        # The results have the state only where the broker is no Redis.
        ({"broker_url": "redis://h", "result_backend": "redis://r"} | TO_RESULTS, ""),
        (RESULTS | {"result_backend": "redis://r"} | TO_RESULTS, "results:"),
        (RESULTS | {"result_backend": "redis://r", "misfire_redis_url": "redis://other"} | TO_RESULTS, ""),
        ({"broker_url": "redis://h", "broker_transport_options": {"global_keyprefix": ""}}, ""),
    ],
)
def test_our_keys_have_the_prefix_of_celerys_unless_another_is_set(
    config: dict[str, Any], prefix: str
) -> None:
    settings = read_settings(app_with(**config))
    assert settings.key_prefix == prefix
    assert RedisStore.of(settings).state_key == f"{prefix}celery-misfire:{{shop}}:state"


@pytest.mark.parametrize("wrong", [1, b"acme:", ["acme:"], "a\nb", "x" * 201])
def test_a_prefix_that_can_be_none_is_refused(wrong: object) -> None:
    (problem,) = problems_of(
        lambda: read_settings(app_with(broker_url="redis://h", misfire_key_prefix=wrong))
    )
    assert problem.startswith("celery_misfire: misfire_key_prefix: ")
