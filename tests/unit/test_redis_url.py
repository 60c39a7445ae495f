from __future__ import annotations

from ssl import VerifyFlags
from typing import Any

import pytest
import redis
from celery import Celery

from celery_misfire.conf.settings import read_settings
from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.store.url import connection_of, sentinels_of

PROVIDER = "redis.credentials.UsernamePasswordCredentialProvider"


@pytest.mark.parametrize(
    ("url", "sentinels", "options"),
    [
        ("sentinel://h", [("h", 26379)], {"db": 0}),
        ("sentinel://h1:1,h2:2/3", [("h1", 1), ("h2", 2)], {"db": 3}),
        ("sentinel://h1:1;sentinel://h2:2/3", [("h1", 1), ("h2", 2)], {"db": 0}),
        (
            "sentinel://us%40er:p%2Fw%3A@h1:1/2;sentinel://us%40er:p%2Fw%3A@h2:2/2",
            [("h1", 1), ("h2", 2)],
            {"username": "us@er", "password": "p/w:", "db": 2},
        ),
        ("sentinel://:a,:a@h", None, None),
        ("sentinel://:a@h1,:a@h2:7", [("h1", 26379), ("h2", 7)], {"password": "a", "db": 0}),
        ("sentinel://h?master_name=m&db=4", [("h", 26379)], {"master_name": "m", "db": 4}),
        ("sentinel://[::1]:7", [("::1", 7)], {"db": 0}),
        (
            "sentinel://h1?socket_timeout=3;sentinel://h2?db=x",
            [("h1", 26379), ("h2", 26379)],
            {"db": 0, "socket_timeout": 3},
        ),
    ],
)
def test_sentinels_are_read_as_celery_writes_them_and_with_commas(
    url: str, sentinels: list[tuple[str, int]] | None, options: dict[str, Any] | None
) -> None:
    if sentinels is None:
        with pytest.raises(ValueError, match="cannot be read as a URL"):
            sentinels_of(url)
    else:
        assert sentinels_of(url) == (sentinels, options)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (
            {"misfire_redis_url": "redis://h/1?retry_on_timeout=true"},
            "misfire_redis_url: 'retry_on_timeout' is set by celery_misfire. Remove it.",
        ),
        (
            {"misfire_redis_url": "redis://h/1", "misfire_redis_options": {"retry": object()}},
            "misfire_redis_options: 'retry' is set by celery_misfire. Remove it.",
        ),
        (
            {"misfire_redis_url": "sentinel://h/shop?master_name=m"},
            "misfire_redis_url: the database must be a number. "
            "The name of the master goes into the option 'master_name'.",
        ),
        (
            {"misfire_redis_url": "sentinel://h?master_name=m&sentinel_kwargs=a-secret"},
            "misfire_redis_url: 'sentinel_kwargs': expected a dict, got str.",
        ),
        (
            {"misfire_redis_url": "sentinel://h?master_name=m&socket_timeout=0"},
            "misfire_redis_url: 'socket_timeout': expected a number of seconds > 0, got 0.",
        ),
        (
            {"misfire_redis_url": "redis://h/1", "misfire_redis_options": {"port": 1}},
            "misfire_redis_options: 'port' is a part of the URL. Write it there.",
        ),
        (
            {"misfire_redis_url": "sentinel://h?mastername=m"},
            "misfire_redis_url: unknown key 'mastername'. Did you mean 'master_name'?",
        ),
        (
            {
                "misfire_redis_url": "sentinel://h?master_name=m",
                "misfire_redis_options": {"sentinel_kwargs": {"pasword": "a-secret"}},
            },
            "misfire_redis_options['sentinel_kwargs']: unknown key 'pasword'. Did you mean 'password'?",
        ),
        (
            {
                "misfire_redis_url": "sentinel://h?master_name=m",
                "misfire_redis_options": {"sentinel_kwargs": "a-secret"},
            },
            "misfire_redis_options['sentinel_kwargs']: expected a dict, got str.",
        ),
        (
            {
                "misfire_redis_url": "sentinel://h?master_name=m",
                "misfire_redis_options": {"sentinel_kwargs": {"socket_timeout": 0}},
            },
            "misfire_redis_options['sentinel_kwargs']['socket_timeout']: "
            "expected a number of seconds > 0, got 0.",
        ),
    ],
)
def test_what_is_wrong_about_a_url_or_its_options_is_told_with_its_place(
    config: dict[str, Any], problem: str
) -> None:
    app = Celery("shop", set_as_current=False)
    app.conf.update(config)
    with pytest.raises(MisfireConfigError) as caught:
        read_settings(app)
    assert caught.value.problems == (f"celery_misfire: {problem}",)


def test_a_url_is_taken_apart_into_the_place_and_options_of_the_right_types() -> None:
    query = "socket_timeout=2&max_connections=5&client_name=7&socket_keepalive=no&health_check_interval=0.5"
    assert connection_of(f"redis://us%40er:p%2Fw@[::1]:7/3?{query}") == {
        "host": "::1",
        "port": 7,
        "username": "us@er",
        "password": "p/w",
        "db": 3,
        "socket_timeout": 2.0,
        "max_connections": 5,
        "client_name": "7",
        "socket_keepalive": False,
        "health_check_interval": 0.5,
    }
    assert connection_of("unix://:a@/run/r%20s.sock?db=1") == {
        "connection_class": redis.UnixDomainSocketConnection,
        "path": "/run/r s.sock",
        "password": "a",
        "db": 1,
    }
    assert connection_of("redis://h/3?db=4") == {"host": "h", "db": 4}
    assert connection_of("rediss://") == {"connection_class": redis.SSLConnection}


@pytest.mark.skipif(redis.VERSION < (7,), reason="an option of redis-py 7")
def test_what_a_new_redis_py_takes_may_be_given_and_is_read_as_redis_py_reads_it() -> None:
    app = Celery("shop", set_as_current=False)
    app.conf.misfire_redis_url = "rediss://h/1?ssl_include_verify_flags=VERIFY_X509_STRICT"
    app.conf.misfire_redis_options = {"ssl_exclude_verify_flags": [VerifyFlags.VERIFY_X509_PARTIAL_CHAIN]}
    used = RedisStore.of(read_settings(app))._redis.connection_pool.connection_kwargs
    assert used["ssl_include_verify_flags"] == [VerifyFlags.VERIFY_X509_STRICT]
    assert used["ssl_exclude_verify_flags"] == [VerifyFlags.VERIFY_X509_PARTIAL_CHAIN]


@pytest.mark.skipif(redis.VERSION < (7,), reason="an option of redis-py 7")
def test_what_redis_py_cannot_read_is_told_with_its_place() -> None:
    app = Celery("shop", set_as_current=False)
    app.conf.misfire_redis_url = "rediss://h/1?ssl_include_verify_flags=canary"
    with pytest.raises(MisfireConfigError) as caught:
        read_settings(app)
    assert caught.value.problems == (
        "celery_misfire: misfire_redis_url: 'ssl_include_verify_flags': redis-py cannot read its value.",
    )


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("redis://u:a@h/1", {"db": 5, "password": "b"}, {"db": 5, "username": "u", "password": "b"}),
        ("redis://h/1?socket_timeout=3", {"socket_timeout": 1}, {"socket_timeout": 1, "db": 1}),
        ("unix://:a@/r.sock?db=1", {"db": 2}, {"db": 2, "password": "a", "path": "/r.sock"}),
        ("sentinel://:a@h?master_name=m", {"db": 5, "password": "b"}, {"db": 5, "password": "b"}),
        ("sentinel://:a@h/2?master_name=m", {}, {"db": 2, "password": "a"}),
        (f"redis://u:a@h?credential_provider={PROVIDER}", {}, {"username": None, "password": None}),
    ],
)
def test_the_options_go_before_what_the_url_says(
    url: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    app = Celery("shop", set_as_current=False)
    app.conf.update(misfire_redis_url=url, misfire_redis_options=options)
    settings = read_settings(app)
    used = RedisStore.of(settings)._redis.connection_pool
    assert {key: used.connection_kwargs[key] for key in expected} == expected


def test_the_master_named_in_the_options_goes_before_the_one_in_the_url() -> None:
    options = {"master_name": "b"}
    used = RedisStore("sentinel://h?master_name=a", "shop", options)._redis.connection_pool
    assert used.service_name == "b"


def test_a_class_of_credential_providers_may_be_named_as_in_celery() -> None:
    app = Celery("shop", set_as_current=False)
    app.conf.misfire_redis_url = f"redis://h/0?credential_provider={PROVIDER}"
    settings = read_settings(app)
    used = RedisStore.of(settings)._redis.connection_pool
    assert callable(used.connection_kwargs["credential_provider"].get_credentials)


def test_what_redis_py_does_not_take_is_a_wrong_configuration_without_the_url_in_it() -> None:
    with pytest.raises(MisfireConfigError) as caught:
        RedisStore("redis://:canary@h/1", "shop", {"no_such_thing": "canary"})
    assert caught.value.problems == (
        "celery_misfire: misfire_redis_url: redis-py does not take it with misfire_redis_options "
        "(TypeError). Check both.",
    )


def test_what_the_broker_takes_and_we_do_not_is_left_to_the_broker() -> None:
    app = Celery("shop", set_as_current=False)
    app.conf.broker_url = "sentinel://h1/2;sentinel://h2"
    app.conf.broker_transport_options = {
        "master_name": "m",
        "visibility_timeout": 60,
        "min_other_sentinels": 1,
    }
    settings = read_settings(app)
    assert settings.redis_options == {"master_name": "m"}
    assert sentinels_of(settings.redis_url) == (
        [("h1", 26379), ("h2", 26379)],
        {"db": 2},
    )
