"""The lease: who may decide, for how long, and what its thread does for it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest

from celery_misfire.exceptions import LeaseLost, StoreUnavailable
from celery_misfire.leadership.lease import FROZEN, STALL_LIMIT, TRUST, Lease
from celery_misfire.store.memory import Fault
from celery_misfire.store.owner import name_of
from celery_misfire.store.port import LeaseValue, Store, Taken
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.store.values import Renewed
from tests.support.processes import wait_for
from tests.support.redis_server import RedisServer
from tests.support.stores import MemoryPlace, StorePlace


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(place: StorePlace) -> Store:
    return place.store()


def take(store: Store, token: str) -> LeaseValue:
    taken = store.acquire(token, 3600)
    assert isinstance(taken, Taken), taken
    return taken.lease


@pytest.mark.parametrize("renews", [False, True])
def test_a_lease_that_has_not_changed_for_its_time_to_live_on_ones_own_clock_is_taken_over(
    place: StorePlace, store: Store, renews: bool
):
    """The store's own clock may have been set back, and then it keeps the lease of a dead beat for hours."""
    dead = take(store, "dead")
    clock = Clock()
    standby = Lease(store, ttl=30, renew_every=1000, clock=clock)
    assert standby.acquire() is None
    assert standby.holder == name_of(store.owner)
    clock.now += 29.9
    if renews:
        store.renew(dead.renewed(), 3600)
    assert standby.acquire() is None
    assert standby.other_was_alive is renews
    clock.now += 0.2
    if renews:
        assert standby.acquire() is None
        clock.now += 30
    assert standby.acquire()
    try:
        assert standby.held
        with pytest.raises(LeaseLost):
            store.renew(dead, 3600)
    finally:
        standby.release()
    assert place.read_lease() == ""


def test_the_lease_of_a_process_that_has_ended_is_taken_over_at_once(
    place: StorePlace, store: Store, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    dead, dying = take(store, "dead"), False
    clock, asked = Clock(), list[str]()

    def is_dead(owner: str) -> bool:
        asked.append(owner)
        return dying

    standby = Lease(store, ttl=30, renew_every=1000, clock=clock, is_dead=is_dead)
    assert standby.acquire() is None
    dying = True
    taken = standby.acquire()
    try:
        assert taken
        assert taken.previous_epoch == dead.epoch
        assert asked == [store.owner] * 2
        assert f"{name_of(store.owner)}, which held it, has ended" in caplog.text
        with pytest.raises(LeaseLost):
            store.renew(dead, 3600)
    finally:
        standby.release()


def test_a_lease_whose_owner_is_wrongly_taken_for_dead_is_not_taken_while_it_is_renewed(
    place: StorePlace, store: Store
):
    alive = take(store, "alive")

    def renewed_meanwhile(owner: str) -> bool:
        store.renew(alive.renewed(), 3600)
        return True

    standby = Lease(store, ttl=30, renew_every=1000, clock=Clock(), is_dead=renewed_meanwhile)
    assert standby.acquire() is None
    assert LeaseValue.parse(place.read_lease()) == alive.renewed()


def test_a_store_that_lost_its_state_under_another_beat_is_left_to_that_one_for_a_time_to_live(
    place: StorePlace, store: Store
):
    clock = Clock()
    leader, standby = (Lease(store, ttl=30, renew_every=1000, clock=clock) for _ in range(2))
    try:
        assert leader.acquire()
        store.write_meta(leader.token, "test")
        assert standby.acquire() is None
        # However long it took to come back.
        clock.now += 100
        place.lose()
        empty = place.contents()
        assert standby.acquire() is None
        assert standby.holder == ""
        assert place.contents() == empty
        clock.now += 29
        assert standby.acquire() is None
        assert leader.acquire()
        store.write_meta(leader.token, "test")
        clock.now += 2
        assert standby.acquire() is None
        assert standby.holder == name_of(store.owner)
        place.lose()
        assert standby.acquire() is None
        clock.now += 30
        assert standby.acquire()
    finally:
        standby.release()
        leader.release()


def test_a_lease_that_could_not_be_given_up_is_still_ones_own(
    place: StorePlace, store: Store, monkeypatch: pytest.MonkeyPatch
):
    lease = Lease(store, ttl=300, renew_every=100)
    assert lease.acquire()

    def unavailable(*_: Any) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "release", unavailable)
        lease.release()
    assert place.read_lease()
    assert lease.acquire()
    assert not lease.superseded
    lease.release()
    assert place.read_lease() == ""


def test_a_lease_is_trusted_for_less_than_the_store_keeps_it(store: Store):
    clock = Clock()
    lease = Lease(store, ttl=30, renew_every=1000, clock=clock)
    assert not lease.held
    assert lease.acquire()
    clock.now += 30 * TRUST - 0.1
    assert lease.held
    clock.now += 0.2
    assert not lease.held
    # It is still there, and ours, and so it is taken again.
    before = lease.token
    assert lease.acquire()
    assert lease.held
    assert lease.token not in ("", before)
    assert not lease.superseded
    lease.release()
    assert lease.token == ""


def test_a_lease_that_the_thread_renews_while_the_main_loop_takes_it_again_is_ours(
    place: StorePlace, store: Store, monkeypatch: pytest.MonkeyPatch
):
    lease = Lease(store, ttl=30, renew_every=1000)
    assert lease.acquire()
    acquire = store.acquire

    def renewed_just_before(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        store.renew(LeaseValue.parse(place.read_lease()).renewed(), 30)
        return acquire(*args, **kwargs)

    monkeypatch.setattr(store, "acquire", renewed_just_before)
    assert lease.acquire()
    assert lease.held
    assert not lease.superseded
    lease.release()


def test_what_the_leader_says_of_itself_is_known_to_a_standby(store: Store):
    leader, standby = (Lease(store, ttl=300, renew_every=100) for _ in range(2))
    assert leader.acquire()
    store.describe(leader.token, "its settings", "its entries")
    assert standby.acquire() is None
    assert standby.holder_description == "its settings"
    leader.release()


# -- the thread --------------------------------------------------------------------------------------------


def test_a_thread_renews_the_lease_until_the_main_loop_stands_still(place: StorePlace, store: Store):
    clock = Clock()
    lease = Lease(store, ttl=300, renew_every=0.05, clock=clock)
    assert lease.acquire()
    try:
        first = place.read_lease()
        wait_for(lambda: place.read_lease() != first, what="a renewal")

        def unchanged_for_a_while() -> str | None:
            before = place.read_lease()
            time.sleep(0.5)
            return before if place.read_lease() == before else None

        clock.now += STALL_LIMIT + 1
        last = wait_for(unchanged_for_a_while, what="the end of the renewals")
        lease.main_loop_is_alive()
        wait_for(lambda: place.read_lease() != last, what="a renewal")
    finally:
        lease.release()
    assert place.read_lease() == ""


def test_a_process_that_was_frozen_is_told_from_one_that_waited_for_the_store(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    lease = Lease(store, ttl=300, renew_every=0.05, clock=clock)
    assert lease.acquire()
    renew, renewals = store.renew, []

    def slow(*args: Any, **options: Any) -> Renewed:
        clock.now += FROZEN + 1
        renewals.append(args)
        return renew(*args, **options)

    try:
        assert not lease.was_frozen()
        monkeypatch.setattr(store, "renew", slow)
        wait_for(lambda: len(renewals) >= 2, what="slow renewals")
        monkeypatch.setattr(store, "renew", renew)
        assert not lease.was_frozen()

        def frozen_again() -> bool:
            # The thread may just be at work, and then it is no freeze.
            clock.now += FROZEN + 1
            return lease.was_frozen()

        assert wait_for(frozen_again, what="the end of a freeze")
        wait_for(lambda: not lease.was_frozen(), what="the thread")
    finally:
        lease.release()


def test_the_thread_outlives_an_error(
    place: StorePlace, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    lease = Lease(store, ttl=300, renew_every=0.05)
    assert lease.acquire()

    def fail(*_: Any, **__: Any) -> str:
        raise RuntimeError("no idea")

    with monkeypatch.context() as patch:
        patch.setattr(store, "renew", fail)
        wait_for(lambda: "the lease could not be renewed: RuntimeError" in caplog.text)
    before = place.read_lease()
    wait_for(lambda: place.read_lease() != before, what="a renewal")
    lease.release()


def test_a_thread_that_has_ended_is_replaced(place: StorePlace, store: Store):
    lease = Lease(store, ttl=300, renew_every=0.05)
    assert lease.acquire()
    lease._stop.set()
    lease._thread.join()
    lease._stop.clear()
    assert lease.acquire()
    before = place.read_lease()
    wait_for(lambda: place.read_lease() != before, what="a renewal")
    lease.release()


def test_the_thread_notices_that_the_lease_was_lost(place: StorePlace, store: Store):
    lease = Lease(store, ttl=300, renew_every=0.05)
    assert lease.acquire()
    place.write_lease("other|1|0|there")
    wait_for(lambda: not lease.held, what="the loss")
    assert lease.token == ""
    assert lease.acquire() is None
    assert lease.holder == "there"
    lease.release()
    assert place.read_lease() == "other|1|0|there"


def test_the_thread_notices_that_the_store_went_back_under_the_lease():
    place = MemoryPlace()
    lease = Lease(place.store(), ttl=300, renew_every=0.01)
    assert lease.acquire()

    def renewals() -> int:
        return LeaseValue.parse(place.read_lease()).renewals

    wait_for(renewals)
    snapshot = place.contents()
    before = renewals()
    # Its answers are lost for a while: what was sent is not known to have been done, and nothing is wrong.
    place.database.fault = lambda owner, call: Fault.ANSWER_LOST if call == "renew" else None
    wait_for(lambda: renewals() > before + 5, what="renewals")
    place.database.fault = lambda owner, call: None
    before = renewals()
    wait_for(lambda: renewals() > before + 5, what="renewals")
    assert lease.held
    place.database.put_back(snapshot)
    wait_for(lambda: not lease.held, what="the loss")
    # It is ours all the same, and taken again; whoever leads compares the records then.
    token = LeaseValue.parse(place.read_lease()).token
    assert lease.acquire()
    assert lease.token != token
    assert not lease.superseded
    lease.release()


def test_a_renewal_whose_answer_got_lost_is_followed_by_one_with_another_number():
    """Else a standby would see an unchanged lease for longer than it is one."""
    place = MemoryPlace()
    lease, renewed = Lease(place.store(), ttl=300, renew_every=0.01), []

    def lose_answers(owner: str, call: str) -> Fault | None:
        renewed.append(LeaseValue.parse(place.read_lease()).renewals)
        return Fault.ANSWER_LOST if call == "renew" else None

    assert lease.acquire()
    place.database.fault = lose_answers
    wait_for(lambda: len(renewed) > 5, what="renewals")
    place.database.fault = lambda owner, call: None
    assert renewed[:5] == list(range(renewed[0], renewed[0] + 5))
    lease.release()


def test_giving_up_a_lease_without_a_redis_waits_for_nothing(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
):
    lease = Lease(RedisStore(redis_server.url, "test", call_timeout=0.2), ttl=30, renew_every=10)
    assert lease.acquire()
    redis_server.kill()
    lease.release()
    assert not lease.held
    assert [r.message for r in caplog.records if "the lease could not be given up" in r.message]
