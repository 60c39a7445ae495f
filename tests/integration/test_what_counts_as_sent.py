"""A return of ``apply_entry`` without an error is success, as in Celery, whoever sent what, under which id.

Each case in both ways of sending: with messages and state in one Redis, and elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from celery import Task
from celery.beat import ScheduleEntry

from celery_misfire.beat import MisfireScheduler
from celery_misfire.schedules import simple
from tests.support.one_redis import World, body, due_now, is_done, run, sent_lines, store_of
from tests.support.processes import wait_for
from tests.support.rabbitmq import RabbitMQ

pytestmark = pytest.mark.takes(20)


@pytest.fixture(params=["one transaction", "another database", "rabbitmq"])
def broker(request: pytest.FixtureRequest, world: World) -> dict[str, Any]:
    """The settings of a broker."""
    if request.param == "one transaction":
        return {}
    if request.param == "another database":
        return {"misfire_redis_url": world.server.url.replace("/0", "/1")}
    server: RabbitMQ = request.getfixturevalue("rabbitmq_server")
    # An app's own producers share connections that remember what earlier tests declared.
    server.declare("celery")
    return {"broker": server.url}


def sent_to(world: World, broker: dict[str, Any], request: pytest.FixtureRequest) -> int:
    """Return how many messages stand in the queue."""
    if "broker" in broker:
        server: RabbitMQ = request.getfixturevalue("rabbitmq_server")
        return len(server.published())
    return world.client.llen("celery")


class Dropping(Task):
    def apply_async(self, *args: Any, **options: Any) -> Any:
        options.pop("producer", None)
        return super().apply_async(*args, **options)


class Renaming(Task):
    def apply_async(self, *args: Any, **options: Any) -> Any:
        return super().apply_async(*args, **options | {"task_id": f"own-{options['task_id']}"})


class DroppingAndRenaming(Task):
    def apply_async(self, *args: Any, **options: Any) -> Any:
        options.pop("producer", None)
        options.pop("task_id", None)
        options.pop("headers", None)
        return super().apply_async(*args, **options)


class ByName(Task):
    def apply_async(self, args: Any = None, kwargs: Any = None, **_: Any) -> Any:
        return self.app.send_task("shop.elsewhere", args, kwargs)


class Silent(Task):
    """Decides by itself that nothing is to be sent."""

    def apply_async(self, *_: Any, **__: Any) -> Any:
        return None


class EntryByName(MisfireScheduler):
    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        self.app.send_task(entry.task, entry.args, entry.kwargs)


class SendingByName(MisfireScheduler):
    def apply_async(self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **_: Any) -> Any:
        return self.app.send_task(entry.task, entry.args, entry.kwargs)


class Calling(MisfireScheduler):
    """Calls what it overrides, with an id of its own."""

    def apply_async(self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **_: Any) -> Any:
        return super().apply_async(entry, producer=producer, advance=advance, task_id="own")


def start(
    world: World, broker: dict[str, Any], cls: type[MisfireScheduler] = MisfireScheduler, **settings: Any
) -> MisfireScheduler:
    app = world.app(**(broker | settings))
    world.beats.append(cls(app))
    beat = world.beats[-1]
    run(beat, lambda: beat._member.holds_lease)
    return beat


def come_due(beat: MisfireScheduler) -> None:
    """Have one entry come due, and wait for the end of it."""
    patient = {"instruction": "do_nothing", "threshold": 600}
    beat.update_from_dict({"a": due_now(misfire=patient)})
    run(beat, lambda: is_done(beat))
    # Time for what should not come.
    for _ in range(3):
        beat.tick()


@pytest.mark.parametrize(
    ("base", "messages"),
    [(Dropping, 1), (Renaming, 1), (DroppingAndRenaming, 1), (ByName, 1), (Silent, 0)],
)
def test_a_task_that_sends_by_its_own_ways_has_one_message_for_one_fire_time(
    world: World,
    broker: dict[str, Any],
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    base: type[Task],
    messages: int,
) -> None:
    beat = start(world, broker)
    beat.app.task(name="shop.reports", base=base, shared=False)(body)
    come_due(beat)
    # RabbitMQ confirms nothing to the app's own producers.
    wait_for(lambda: sent_to(world, broker, request) >= messages)
    assert sent_to(world, broker, request) == messages
    assert sent_lines(beat) == Counter("a")
    assert "cannot be sent" not in caplog.text


@pytest.mark.parametrize("cls", [EntryByName, SendingByName, Calling])
@pytest.mark.parametrize("is_known", [False, True])
def test_a_scheduler_that_sends_by_its_own_ways_has_one_message_for_one_fire_time(
    world: World,
    broker: dict[str, Any],
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    cls: type[MisfireScheduler],
    is_known: bool,
) -> None:
    beat = start(world, broker, cls)
    if is_known:
        beat.app.task(name="shop.reports", shared=False)(body)
    come_due(beat)
    wait_for(lambda: sent_to(world, broker, request))
    assert sent_to(world, broker, request) == 1
    assert sent_lines(beat) == Counter("a")
    assert "cannot be sent" not in caplog.text


def _raise(*_: Any, **__: Any) -> Any:
    raise ValueError("canary")


async def _wait(*_: Any, **__: Any) -> Any:
    raise AssertionError("nobody awaits it")


@pytest.mark.parametrize("method", ["apply_entry", "apply_async"])
@pytest.mark.parametrize(
    ("function", "words"),
    [(_raise, "ValueError"), (_wait, "Make it a plain function")],
    ids=["raises", "async"],
)
def test_a_scheduler_whose_method_fails_has_sent_nothing(
    world: World,
    broker: dict[str, Any],
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    method: str,
    function: Callable[..., Any],
    words: str,
) -> None:
    beat = start(world, broker, type("Own", (MisfireScheduler,), {method: function}))
    beat.update_from_dict({"a": due_now()})
    run(beat, lambda: "entry 'a' cannot be sent and is tried again" in caplog.text)
    (line,) = {r.getMessage() for r in caplog.records if "cannot be sent" in r.getMessage()}
    assert words in line
    assert "canary" not in line
    assert sent_to(world, broker, request) == 0
    assert not sent_lines(beat)


@pytest.mark.filterwarnings("error")
def test_a_task_whose_apply_async_is_to_be_awaited_is_refused_in_words(
    world: World, broker: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    beat = start(world, broker)
    beat.app.task(name="shop.reports", base=type("Own", (Task,), {"apply_async": _wait}), shared=False)(body)
    beat.update_from_dict({"a": due_now()})
    run(beat, lambda: "entry 'a' cannot be sent and is tried again" in caplog.text)
    assert "apply_async is 'async def', and beat can await nothing" in caplog.text
    assert not sent_lines(beat)


# -- an app that runs its tasks at once --------------------------------------------------------------------


@pytest.mark.parametrize("propagates", [False, True])
def test_a_task_that_runs_at_once_and_fails_has_run_once(
    world: World, broker: dict[str, Any], caplog: pytest.LogCaptureFixture, propagates: bool
) -> None:
    ran = []

    def fail() -> None:
        ran.append(1)
        raise ValueError("canary")

    beat = start(world, broker, task_always_eager=True, task_eager_propagates=propagates)
    beat.app.task(name="shop.reports", shared=False)(fail)
    come_due(beat)
    assert ran == [1]
    assert sent_lines(beat) == Counter("a")
    assert not [line for line in store_of(beat).log() if line["event"] in ("missed", "misfire", "refused")]
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("celery_misfire")]
    assert ("was run here at once and failed: ValueError" in "".join(ours)) is propagates
    assert "canary" not in "".join(ours)


def test_a_task_that_cannot_be_called_at_once_is_refused(
    world: World, broker: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    beat = start(world, broker, task_always_eager=True, task_eager_propagates=True)
    beat.app.task(name="shop.reports", shared=False)(body)
    unserializable = {"args": [object()]}
    schedule = simple(start=due_now()["schedule"].start, interval=3600)
    beat.update_from_dict({"a": {"task": "shop.reports", "schedule": schedule, **unserializable}})
    run(beat, lambda: "entry 'a' cannot be sent and is tried again" in caplog.text)
    assert not sent_lines(beat)
