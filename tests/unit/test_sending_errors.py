"""Why a message could not be sent: the reason is told, and nothing that an argument or a URL holds."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import redis
from amqp.exceptions import AccessRefused, FrameSyntaxError
from celery import Celery
from celery.exceptions import QueueNotFound
from kombu import Connection
from kombu.exceptions import OperationalError
from kombu.serialization import dumps

from celery_misfire.sending.errors import broker_address, name_error

SECRET = "canary-4711"


def wrapped(exc: BaseException) -> BaseException:
    """Return an error as kombu raises it in place of one of the client library."""
    wrapping = OperationalError(str(exc))
    wrapping.__cause__ = exc
    return wrapping


def raised_by(function: Any, *args: Any, **kwargs: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whatever it is
        function(*args, **kwargs)
    return caught.value


def login(shop: str, *, user: str = "") -> None:
    """Has one argument and an option."""


def task_error(*args: Any, **kwargs: Any) -> BaseException:
    app = Celery("errors", broker="memory://", set_as_current=False)
    task = app.task(login, shared=False)
    return raised_by(task.apply_async, args, kwargs)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (wrapped(ConnectionRefusedError(111, "Connection refused")), "Connection refused"),
        (wrapped(socket.gaierror(-2, "Name or service not known")), "Name or service not known"),
        (AccessRefused("ACCESS_REFUSED - Login was refused", (0, 0)), "ACCESS_REFUSED - Login was refused"),
        (redis.AuthenticationError("invalid username-password pair"), "invalid username-password pair"),
        (
            redis.ResponseError(f"Command # 1 (LPUSH q {SECRET}) of pipeline caused error: OOM command"),
            "OOM command",
        ),
        (QueueNotFound("Queue 'x' missing from task_queues"), "Queue 'x' missing from task_queues"),
        (task_error(), "missing 1 required positional argument: 'shop'"),
        (task_error(SECRET, SECRET), "takes 1 positional argument but 2 were given"),
        (task_error(SECRET, password=SECRET), "unexpected keyword argument 'password'"),
        (task_error(SECRET, shop=SECRET), "multiple values for argument 'shop'"),
        (raised_by(dumps, object(), serializer="json"), "Object of type object is not JSON serializable"),
        (raised_by(dumps, socket.socket, serializer="none"), "No encoder installed for none"),
        (raised_by(Connection, "nosuch://"), "No such transport: nosuch"),
    ],
)
def test_the_reason_is_told(error: BaseException, told: str) -> None:
    assert told in name_error(error)
    assert SECRET not in name_error(error)


@pytest.mark.parametrize("cause", [socket.gaierror(-2, "Name or service not known")])
def test_the_network_errors_of_redis_have_their_cause(cause: OSError) -> None:
    error = redis.ConnectionError(f"Error {cause.errno} connecting to u:{SECRET}@h")
    error.__cause__ = cause
    assert name_error(error) == "ConnectionError (Name or service not known)"


@pytest.mark.parametrize(
    "error",
    [
        KeyError(SECRET),
        ValueError(f"Port could not be cast to integer value as '{SECRET}'"),
        TypeError(f"unsupported value {SECRET}"),
        TypeError(f"f() missing 1 required positional argument: 'x' {SECRET}!"),
        wrapped(ValueError(SECRET)),
        FrameSyntaxError(f"Table type str for key x not handled by amqp. [value: {SECRET}]"),
        redis.ConnectionError(f"Error connecting to redis://:{SECRET}@h"),
        FileNotFoundError(2, "No such file or directory", f"/home/{SECRET}"),
        OperationalError(SECRET),
        type("Odd", (Exception,), {"__str__": lambda self: 1 / 0})(),
    ],
)
def test_what_may_quote_an_argument_or_a_url_is_told_by_its_kind(error: BaseException) -> None:
    assert type(error.__cause__ or error).__name__ in name_error(error)
    assert SECRET not in name_error(error)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (f"amqp://{SECRET}:{SECRET}@h:5673/shop", "amqp://h:5673/shop"),
        (f"amqp://h;amqp://u:{SECRET}@i/x", "amqp://h:5672//, amqp://i:5672/x"),
        (f"redis://:{SECRET}@h:6379/1?ssl_password={SECRET}", "redis://h:6379/1"),
        (f"rediss://u:{SECRET}%40%2F@h/2?ssl_cert_reqs=none", "rediss://h:6379/2"),
        (
            f"sentinel://:{SECRET}@h:26379;sentinel://:{SECRET}@i:26379",
            "sentinel://h:26379//, sentinel://i:26379//",
        ),
        ("memory://", "memory://localhost//"),
    ],
)
def test_the_address_of_the_broker_has_no_login(url: str, address: str) -> None:
    assert broker_address(Connection(url)) == address
