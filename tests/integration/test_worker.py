"""What a real worker does with the messages of runs; an imaginary beat sends them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Task, chain, chord, current_app, group
from celery.app.task import Context
from celery.backends.redis import RedisBackend
from celery.signals import worker_init
from kombu.exceptions import OperationalError

import celery_misfire
from celery_misfire import worker as worker_module
from celery_misfire.conf.settings import read_settings
from celery_misfire.exceptions import TaskMissed
from celery_misfire.metrics.numbers import Numbers
from celery_misfire.misfire import Outcome, TriggerState
from celery_misfire.records import EntryRecord, Intent, dumps
from celery_misfire.sending.missed_record import MISSED
from celery_misfire.sending.missed_runs import Report
from celery_misfire.store import registers
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.worker import Guard, Request
from tests.support.fires import GENERATION, Fires
from tests.support.missed import make_missed
from tests.support.processes import NAMESPACE, Project, wait_for
from tests.support.redis_server import RedisServer
from tests.support.shop import Shop

pytestmark = pytest.mark.takes(23)


@pytest.fixture
def fresh(redis_server: RedisServer, tmp_path: Path) -> Iterator[Shop]:
    """A project of the test's own, whose worker the test starts."""
    with Project(tmp_path, redis_server.url) as project:
        yield Shop(project, redis_server.url)


# -- late starts -------------------------------------------------------------------------------------------


def test_a_run_in_time_runs(shop: Shop) -> None:
    id_ = shop.send("in time", late=0.5)

    [run] = shop.runs("in time")
    assert run["task_id"] == id_
    held = shop.store.register(id_)
    assert isinstance(held, registers.Started)
    assert held.host == "worker@test"


@pytest.mark.parametrize(
    "instruction",
    ["do_nothing", "reschedule_next_with_existing_count", "reschedule_next_with_remaining_count"],
)
def test_a_late_run_of_which_beat_does_not_know_that_it_was_sent_is_left_to_beat(
    shop: Shop, instruction: str
) -> None:
    entry, scheduled = f"claimed {instruction}", time.time() - 60
    moment = round(scheduled * 1000)
    intent = Intent(moment, GENERATION, Outcome.FIRED, moment)
    state = TriggerState(None, moment)
    record = EntryRecord(entry, "record", GENERATION, "f", state, intents=(intent,))
    shop.store._redis.hset(shop.store.state_key, f"e:{entry}", dumps(record))
    id_ = shop.send(entry, scheduled=scheduled, instruction=instruction)

    assert shop.runs(entry) == []
    # Beat has the register for closed, and reports the run with all else that was late.
    assert wait_for(lambda: shop.store.register(id_)) == registers.Missed("queue_late")
    assert [line for line in shop.store.log() if line.get("entry") == entry] == []
    assert shop.result(id_) is None


@pytest.mark.parametrize(
    "instruction",
    ["do_nothing", "reschedule_next_with_existing_count", "reschedule_next_with_remaining_count"],
)
def test_a_run_that_should_not_run_late_is_missed(shop: Shop, instruction: str) -> None:
    id_ = shop.send(instruction, late=60, instruction=instruction)

    assert shop.runs(instruction) == []
    shop.assert_missed(id_, "queue_late")
    [line] = shop.lines(f"worker: '{instruction}' missed 1 run of record, scheduled 20")
    assert "late by 60." in line


@pytest.mark.parametrize(
    "instruction", ["smart_policy", "ignore_misfire_policy", "fire_once_now", "fire_now"]
)
def test_a_run_that_may_run_late_does_and_says_so(shop: Shop, instruction: str) -> None:
    id_ = shop.send(instruction, late=60, instruction=instruction)

    [run] = shop.runs(instruction)
    assert run["task_id"] == id_
    [told] = [
        line for line in shop.project.signals("task_started_late") if line["fire"]["entry"] == instruction
    ]
    assert told["sender"] == "record"
    assert 60 <= told["late_by"] < 90
    [line] = shop.lines(f"'{instruction}' (fired)", "started late by 60.")
    assert f", id {id_}; threshold" in line


def test_a_recovered_run_is_judged_by_when_it_was_sent(shop: Shop) -> None:
    recovered = {"outcome": "recovered", "late": 3600}
    shop.send("sent now", sent=time.time(), **recovered)
    late = shop.send("sent a while ago", sent=time.time() - 60, **recovered)

    assert len(shop.runs("sent now")) == 1
    assert shop.runs("sent a while ago") == []
    shop.assert_missed(late, "queue_late")


def test_with_a_request_class_of_the_apps_own_the_pool_judges(shop: Shop) -> None:
    late = shop.send("own request", late=60, task="record.own_request", on_missed="on_missed")
    shop.send("own request, in time", task="record.own_request")

    assert shop.runs("own request") == []
    shop.assert_missed(late, "queue_late")
    assert shop.signals("on_missed", late)
    assert shop.lines("ForkPoolWorker", "worker: 'own request' missed 1 run")
    assert len(shop.runs("own request, in time")) == 1


def test_copies_that_were_sent_before_a_late_run_started_are_merged_into_it(shop: Shop) -> None:
    now = time.time()
    ids = [shop.send("once", scheduled=now - age, instruction="fire_once_now") for age in (9, 8, 7, 0.5)]
    [run] = shop.runs("once")
    after = shop.send("once", instruction="fire_once_now")

    assert run["task_id"] == ids[0]
    assert [r["task_id"] for r in shop.runs("once")] == [ids[0], after]
    assert {shop.store.register(id_) for id_ in ids[1:]} == {registers.Merged(ids[0])}
    merged = [line["id"] for line in shop.store.log() if line["event"] == "merged"]
    assert set(ids[1:]) <= set(merged)


def test_an_entry_without_misfire_handling_runs_however_late(shop: Shop) -> None:
    shop.send("off", late=3600, instruction=None)

    assert len(shop.runs("off")) == 1
    assert shop.lines("'off'", "late") == []


def test_the_handler_and_the_failure_signal_get_what_belongs_to_the_run(shop: Shop) -> None:
    headers = {"sentry-check-in": "17"}
    id_ = shop.send("handled", late=60, on_missed="on_missed", headers=headers, kwargs={"seconds": 0.25})

    shop.assert_missed(id_, "queue_late")
    [handled] = shop.signals("on_missed", id_)
    assert handled["entry"] == "handled"
    [failure] = shop.signals("task_failure", id_)
    assert failure["headers"]["sentry-check-in"] == "17"
    # Not the arguments, though the results are extended ones.
    result = shop.result(id_)
    assert result["name"] == "record"
    assert not result["args"]
    assert not result["kwargs"]
    assert "0.25" not in json.dumps(result)


# -- duplicates --------------------------------------------------------------------------------------------


def test_a_second_message_of_one_run_is_dropped_before_user_code(shop: Shop) -> None:
    due = time.time()
    ids = {shop.send("twice", scheduled=due, instruction="smart_policy") for _ in range(3)}

    [id_] = ids
    assert len(shop.runs("twice")) == 1
    dropped = shop.lines("a message of 'twice'", "is dropped", "worker@test started it from another message")
    assert len(dropped) == 2
    assert all("INFO" in line for line in dropped)
    wait_for(lambda: shop.result(id_))
    assert shop.result(id_)["status"] == "SUCCESS"
    assert [s for s in shop.project.signals("task_missed") if s["task_id"] == id_] == []


def test_the_same_message_delivered_again_runs_again_however_late(shop: Shop) -> None:
    message = shop.fires.signature("again", late=1.0)
    message.apply_async()
    assert len(shop.runs("again")) == 1
    time.sleep(1.5)
    message.apply_async()

    assert len(shop.runs("again")) == 2
    assert shop.lines("'again'", "late") == []


def test_a_late_run_that_is_delivered_again_is_told_late_once(shop: Shop) -> None:
    message = shop.fires.signature("late again", late=60, instruction="fire_once_now")
    for _ in range(2):
        message.apply_async()

    assert len(shop.runs("late again")) == 2
    assert len(shop.lines("'late again'", "started late by 60.")) == 1


def test_a_run_that_beat_has_recorded_as_missed_is_dropped(shop: Shop) -> None:
    due = time.time()
    id_ = shop.fires.task_id("too late", due)
    shop.store.settle([id_], registers.Missed("failover"))
    shop.send("too late", scheduled=due)

    assert shop.runs("too late") == []
    assert shop.lines("a message of 'too late'", "it counts as missed (failover)")
    assert [s for s in shop.project.signals("task_missed") if s["task_id"] == id_] == []


def test_a_late_second_message_of_a_run_that_started_is_no_missed_run(shop: Shop) -> None:
    due = time.time() - 1
    id_ = shop.send("late copy", scheduled=due)
    assert len(shop.runs("late copy")) == 1
    time.sleep(1.5)
    shop.send("late copy", scheduled=due)

    assert len(shop.runs("late copy")) == 1
    assert isinstance(shop.store.register(id_), registers.Started)
    assert [s for s in shop.project.signals("task_missed") if s["task_id"] == id_] == []


@pytest.mark.parametrize(("pool", "size"), [("threads", 1), ("prefork", 2)])
def test_of_two_messages_that_come_together_the_second_leaves_the_result_alone(
    fresh: Shop, pool: str, size: int
) -> None:
    fresh.project.configure({})
    due = time.time()
    ids = {}
    for n in range(10):
        entry, kwargs = f"tracked {n}", {"fail": n % 2 == 0}
        for _ in range(2):
            ids[entry] = fresh.send(entry, scheduled=due, threshold=600, task="record.tracked", kwargs=kwargs)
    fresh.worker = fresh.project.worker(f"--concurrency={size}", pool=pool)

    assert {entry: len(fresh.runs(entry)) for entry in ids} == dict.fromkeys(ids, 1)
    states = [fresh.result(id_)["status"] for id_ in ids.values()]
    assert states == ["FAILURE", "SUCCESS"] * 5


def test_a_task_that_tracks_its_start_is_seen_to_have_started(shop: Shop, tmp_path: Path) -> None:
    gates = [tmp_path / "by beat", tmp_path / "by hand"]
    ids = [
        shop.send("seen to start", task="record.tracked", kwargs={"until": str(gates[0])}),
        shop.fires.app.send_task("record.tracked", kwargs={"until": str(gates[1])}).id,
    ]

    for id_, gate in zip(ids, gates, strict=True):
        started = wait_for(lambda id_=id_: shop.result(id_))
        [run] = wait_for(lambda id_=id_: [r for r in shop.project.records() if r["task_id"] == id_])
        assert started["status"] == "STARTED"
        assert started["result"] == {"pid": run["pid"], "hostname": "worker@test"}
        gate.touch()
        wait_for(lambda id_=id_: shop.result(id_)["status"] == "SUCCESS")


def test_a_task_that_ignores_its_result_tells_of_no_start(shop: Shop) -> None:
    name = "record.tracked_ignored"
    by_beat = shop.send("ignored by beat", task=name, ignore_result=True)
    by_hand = shop.fires.app.send_task(name, args=["ignored by hand"], ignore_result=True).id

    assert len(shop.runs("ignored by beat")) == 1
    assert len(shop.runs("ignored by hand")) == 1
    assert shop.result(by_beat) is shop.result(by_hand) is None


def test_dropping_a_message_leaves_the_result_alone_of_a_task_that_tracks_its_start(shop: Shop) -> None:
    due = time.time()
    id_ = shop.send("tracked", scheduled=due, task="record.tracked", kwargs={"fail": True})
    assert len(shop.runs("tracked")) == 1
    wait_for(lambda: shop.result(id_)["status"] == "FAILURE")
    shop.send("tracked", scheduled=due, task="record.tracked", kwargs={"fail": True})

    assert len(shop.runs("tracked")) == 1
    assert shop.result(id_)["status"] == "FAILURE"


# -- with the rest of Celery -------------------------------------------------------------------------------


def test_a_retry_runs_whatever_the_register_says(shop: Shop) -> None:
    shop.send("retried", late=1.5, kwargs={"retries": 2})

    wait_for(lambda: len(shop.runs("retried")) == 3, every=0.2)
    assert [run["retries"] for run in shop.runs("retried")] == [0, 1, 2]
    assert {run["fire"]["entry"] for run in shop.runs("retried")} == {"retried"}


def test_a_run_whose_process_was_killed_runs_again(shop: Shop) -> None:
    shop.send("killed", task="record.late_ack", kwargs={"die": True})

    wait_for(lambda: len(shop.runs("killed")) == 2)
    assert [run["redelivered"] for run in shop.runs("killed")] == [False, True]


def test_an_expired_run_is_missed_and_not_just_revoked(shop: Shop) -> None:
    id_ = shop.send("expired", expires=datetime.now(UTC) - timedelta(seconds=5), instruction="smart_policy")

    assert shop.runs("expired") == []
    shop.assert_missed(id_, "expired")
    assert [s for s in shop.project.signals("task_revoked") if s["task_id"] == id_] == []


def test_an_expired_run_without_misfire_handling_and_one_of_nobody_are_celerys(shop: Shop) -> None:
    past = datetime.now(UTC) - timedelta(seconds=5)
    id_ = shop.send("expired, off", expires=past, instruction=None)
    other = shop.fires.app.send_task("record", args=["expired, other"], expires=past).id

    for each in (id_, other):
        [told] = shop.signals("task_revoked", each)
        assert told["expired"]
        assert shop.result(each)["status"] == "REVOKED"


def test_the_time_until_an_eta_is_not_late(shop: Shop) -> None:
    shop.send("later", countdown=3, threshold=2.5)
    late = shop.send("too late for later", late=30, countdown=-10)

    assert shop.runs("too late for later") == []
    shop.assert_missed(late, "queue_late")
    assert len(wait_for(lambda: shop.runs("later"))) == 1


def test_a_rate_limit_makes_late_what_it_holds_back(shop: Shop) -> None:
    due = time.time()
    ids = [
        shop.send("limited", scheduled=due + n / 1000, task="record.limited", threshold=1.2) for n in range(6)
    ]

    wait_for(lambda: shop.store.register(ids[-1]), what="the last one")
    ran = [run["task_id"] for run in shop.runs("limited")]
    assert ran == ids[: len(ran)]
    assert 1 <= len(ran) < 6
    for id_ in ids[len(ran) :]:
        shop.assert_missed(id_, "queue_late")


def test_a_chain_goes_on_after_a_run_and_fails_after_a_missed_one(shop: Shop) -> None:
    def two(entry: str, **how: Any) -> Any:
        following = shop.fires.app.signature(
            "record", args=[f"after {entry}"], app=shop.fires.app, immutable=True
        )
        steps = chain(shop.fires.signature(entry, **how), following, app=shop.fires.app)
        return shop.app.AsyncResult(steps.apply_async().id)

    assert two("chained").get(timeout=20)
    with pytest.raises(Exception, match="'late chained' missed 1 run") as caught:
        two("late chained", late=60).get(timeout=20)
    assert type(caught.value).__name__ == "TaskMissed"
    assert len(shop.runs("after chained")) == 1
    assert shop.runs("after late chained") == []


def test_an_error_callback_is_called_for_a_missed_run(shop: Shop) -> None:
    callback = shop.fires.app.signature("errback", app=shop.fires.app)
    id_ = shop.send("with errback", late=60, link_error=[callback])

    assert shop.signals("errback", id_)


def test_a_group_with_a_missed_member_raises_its_error(shop: Shop) -> None:
    members = [shop.fires.signature("member"), shop.fires.signature("late member", late=60)]
    sent = group(members, app=shop.fires.app).apply_async()
    result = shop.app.GroupResult(sent.id, [shop.app.AsyncResult(m.id) for m in sent.results])

    with pytest.raises(TaskMissed, match="'late member' missed 1 run"):
        result.get(timeout=20)
    values = result.get(timeout=20, propagate=False)
    assert values[0] == members[0].options["task_id"]
    assert isinstance(values[1], TaskMissed)
    assert len(shop.runs("member")) == 1


@pytest.mark.parametrize("late", [0, 60], ids=["none missed", "one missed"])
def test_a_chord_with_a_missed_member_fails_and_nothing_else_does(shop: Shop, late: float) -> None:
    members = [shop.fires.signature(f"{late} a"), shop.fires.signature(f"{late} b", late=late)]
    body = shop.fires.app.signature("record", app=shop.fires.app)
    sent = chord(members, app=shop.fires.app)(body)

    result = shop.app.AsyncResult(sent.id)
    if not late:
        assert result.get(timeout=20)
        return
    with pytest.raises(Exception, match="missed 1 run") as caught:
        result.get(timeout=20)
    assert type(caught.value).__name__ == "ChordError"
    shop.assert_missed(members[1].options["task_id"], "queue_late")
    # The worker has survived it.
    shop.send(f"after the chord {late}")
    assert len(shop.runs(f"after the chord {late}")) == 1


def test_what_our_beat_has_not_sent_is_left_alone(shop: Shop) -> None:
    fire = shop.fires.signature("copied", late=60)
    before = set(shop.client.scan_iter("celery-misfire:*:fire:*"))
    fire.set(task_id=None).apply_async()
    Fires(shop.project.url, namespace="another").send("theirs", late=60)
    for nonsense in ({"v": 99}, "text", 17, {"v": 1, "entry": "x"}, None):
        headers = {"misfire": nonsense}
        shop.fires.app.send_task("record", args=["nonsense"], headers=headers)

    assert len(shop.runs("copied")) == 1
    assert len(shop.runs("theirs")) == 1
    assert len(shop.runs("nonsense")) == 5
    assert set(shop.client.scan_iter("celery-misfire:*:fire:*")) == before
    assert shop.lines("unexpected error") == []


# -- trouble, and switching it off -------------------------------------------------------------------------


def test_without_the_store_runs_start_and_the_log_says_so_once(fresh: Shop, redis_binary: Path) -> None:
    with RedisServer(redis_binary) as store:
        fresh.project.configure({}, misfire_redis_url=store.url)
        fresh.worker = fresh.project.worker()
        store.kill()
        due = time.time()
        for n in range(3):
            fresh.send("unguarded", scheduled=due + n / 1000, instruction="smart_policy")
            fresh.send("unguarded", scheduled=due + n / 1000, instruction="smart_policy")
            fresh.send("late", late=60)

        assert len(fresh.runs("unguarded")) == 6
        assert len(fresh.runs("late")) == 3
        [line] = fresh.lines("runs are neither judged nor deduplicated")
        assert "WARNING" in line
        assert "until it answers" in line
        assert "Traceback" not in fresh.log()


def test_a_register_that_is_no_register_stops_nothing(shop: Shop) -> None:
    due = time.time()
    id_ = shop.fires.task_id("odd", due)
    shop.client.rpush(f"celery-misfire:{{{NAMESPACE}}}:fire:{id_}", "a list")
    shop.send("odd", scheduled=due)

    assert len(shop.runs("odd")) == 1


def test_both_can_be_switched_off(fresh: Shop) -> None:
    fresh.project.configure({}, misfire_worker_guard=False, misfire_deduplicate=False)
    fresh.worker = fresh.project.worker()
    due = time.time() - 60
    for _ in range(2):
        id_ = fresh.send("off", scheduled=due)

    assert len(fresh.runs("off")) == 2
    assert fresh.store.register(id_) is None


def test_the_guard_can_be_switched_off_alone(fresh: Shop) -> None:
    fresh.project.configure({}, misfire_worker_guard=False)
    fresh.worker = fresh.project.worker()
    due = time.time() - 60
    for _ in range(2):
        fresh.send("late", scheduled=due)

    assert len(fresh.runs("late")) == 1
    assert fresh.project.signals("task_started_late") == []


def test_deduplication_can_be_switched_off_alone(fresh: Shop) -> None:
    fresh.project.configure({}, misfire_deduplicate=False)
    fresh.worker = fresh.project.worker()
    due = time.time()
    for instruction in ("smart_policy", "fire_once_now"):
        for _ in range(2):
            fresh.send(instruction, scheduled=due, instruction=instruction)
    late = fresh.send("late", late=60)

    assert len(fresh.runs("smart_policy")) == 2
    assert len(fresh.runs("fire_once_now")) == 2
    assert fresh.runs("late") == []
    fresh.assert_missed(late, "queue_late")


def test_the_setting_imports_is_enough(fresh: Shop) -> None:
    fresh.project.configure({}, install=False, imports=["celery_misfire.worker"])
    fresh.worker = fresh.project.worker()
    late = fresh.send("late", late=60)

    assert fresh.runs("late") == []
    fresh.assert_missed(late, "queue_late")


def test_without_either_nothing_is_judged(fresh: Shop) -> None:
    fresh.project.configure({}, install=False)
    fresh.worker = fresh.project.worker()
    fresh.send("late", late=60)

    assert len(fresh.runs("late")) == 1


def test_a_wrong_configuration_stops_no_worker(fresh: Shop) -> None:
    fresh.project.configure({}, misfire_instruction="do_noting")
    fresh.worker = fresh.project.worker()
    fresh.send("late", late=60)

    assert len(fresh.runs("late")) == 1
    [line] = fresh.lines("worker: runs of beat are neither judged nor deduplicated")
    assert "ERROR" in line
    assert "Did you mean 'do_nothing'?" in line


# -- the hooks, by themselves ------------------------------------------------------------------------------


@pytest.fixture
def app(redis_server: RedisServer) -> Celery:
    return Celery("hooks", broker=redis_server.url, set_as_current=False)


def start(app: Celery) -> None:
    worker_module.install(SimpleNamespace(app=app, hostname="worker@test"))


def test_an_error_in_the_guard_is_logged_and_the_run_starts(app: Celery, caplog: Any) -> None:
    guard = Guard(app, None, "worker@test", Numbers())  # type: ignore[arg-type] # nothing works without settings
    message = Fires("redis://").signature("broken")
    fields = {"misfire": message.options["headers"]["misfire"], "id": message.options["task_id"]}
    task = SimpleNamespace(request=fields, name="record")

    with caplog.at_level(logging.ERROR):
        assert guard.admits(task)  # type: ignore[arg-type]
        assert not guard.refuses(SimpleNamespace(request_dict=fields))  # type: ignore[arg-type]
        assert not guard.expires(SimpleNamespace(request_dict=fields))  # type: ignore[arg-type]
    assert [r.getMessage() for r in caplog.records] == ["worker: unexpected error, the run starts"] * 3


def test_a_late_run_is_left_to_beat_only_while_beat_does_not_know_that_it_was_sent(
    app: Celery, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.conf.result_backend = app.conf.broker_url
    guard = Guard(app, read_settings(app), "worker@test", Numbers())
    store, moment = RedisStore(redis_server.url, "hooks"), round(time.time() * 1000) - 60_000
    intent = Intent(moment, GENERATION, Outcome.FIRED, moment)
    claimed = EntryRecord("late", "record", GENERATION, "f", TriggerState(None, moment), intents=(intent,))
    store._redis.hset(store.state_key, "e:late", dumps(claimed))
    load = RedisStore.load

    def slow(self: RedisStore, names: Any = None) -> dict[str, str]:
        found = load(self, names)
        # Beat writes that it was sent, and looks at the register, before this worker goes on.
        store._redis.hset(store.state_key, "e:late", dumps(replace(claimed, intents=())))
        assert store.register(id_) is None
        return found

    monkeypatch.setattr(RedisStore, "load", slow)
    message = Fires(redis_server.url, "hooks").signature("late", scheduled=moment / 1000)
    id_, header = message.options["task_id"], message.options["headers"]["misfire"]
    request = {"id": id_, "task": "record", "misfire": header}
    assert guard.refuses(SimpleNamespace(request_dict=request, context=Context()))  # type: ignore[arg-type]
    assert store.register(id_) == registers.Missed("queue_late", header["nonce"])
    assert [line["event"] for line in store.log()] == ["missed"]
    guard.reports.stop()


def test_what_fails_of_a_report_in_a_process_of_the_pool_is_done_as_soon_as_it_can_be(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.conf.result_backend = app.conf.broker_url
    guard = Guard(app, read_settings(app), "worker@test", Numbers())
    monkeypatch.setattr(guard.reports, "_main_process", 0)
    store_result, tries = RedisBackend.store_result, []

    def fails_once(*args: Any, **kwargs: Any) -> Any:
        tries.append(args)
        if len(tries) == 1:
            raise OperationalError("away")
        return store_result(*args, **kwargs)

    monkeypatch.setattr(RedisBackend, "store_result", fails_once)
    missed = make_missed()
    guard.reports.make(Report(missed))
    assert len(tries) == 1
    wait_for(lambda: app.AsyncResult(missed.task_id).state == MISSED, what="the result")
    assert len(tries) == 2
    guard.reports.stop()


def test_a_request_class_of_the_apps_own_stays(app: Celery) -> None:
    @app.task(Request="shop.requests:Request", shared=False)
    def special() -> None: ...

    @app.task
    def plain() -> None: ...

    start(app)

    assert special.Request == "shop.requests:Request"
    assert plain.Request is Request


def test_before_start_of_the_apps_own_is_still_called(app: Celery) -> None:
    called: list[str] = []

    class Base(Task):
        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            called.append("base")

    class Derived(Base):
        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            called.append("derived")
            super().before_start(task_id, args, kwargs)

    @app.task(base=Derived)
    def derived() -> None: ...

    @app.task(base=Base)
    def based() -> None: ...

    start(app)
    start(app)
    derived.apply()
    based.apply()

    assert called == ["derived", "base", "base"]


def test_a_task_that_runs_in_this_process_tells_of_no_start(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.conf.result_backend = app.conf.broker_url
    stored: list[Any] = []
    monkeypatch.setattr(RedisBackend, "store_result", lambda *args, **_: stored.append(args))

    @app.task(track_started=True)
    def tracked() -> None: ...

    start(app)
    tracked.apply()

    assert stored == []


class Worker:
    def __init__(self, app: Celery) -> None:
        self.app, self.hostname = app, "worker@test"


def test_another_app_in_the_same_process_is_left_alone(app: Celery) -> None:
    other = Celery("other", broker=app.conf.broker_url, set_as_current=False)
    theirs, mine = (each.task(name="plain")(_plain) for each in (other, app))
    celery_misfire.install(app)

    worker_init.send(sender=Worker(other))
    assert theirs.Request != Request
    assert not hasattr(theirs.__class__.before_start, "asks_guard")

    worker_init.send(sender=Worker(app))
    assert mine.Request is Request


def test_the_current_app_may_be_installed_by_its_stand_in(app: Celery) -> None:
    previous = current_app._get_current_object()
    app.set_current()
    try:
        installed = celery_misfire.install(current_app)
    finally:
        previous.set_current()
    plain = app.task(name="plain")(_plain)

    worker_init.send(sender=Worker(app))

    assert installed is app
    assert plain.Request is Request


def _plain() -> None: ...
