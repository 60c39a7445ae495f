"""What every store promises, whether it is Redis or memory."""

from __future__ import annotations

from typing import Any

import pytest

from celery_misfire.exceptions import LeaseLost, NewerSchema
from celery_misfire.store.port import (
    Change,
    CommitResult,
    Held,
    LeaseValue,
    NoState,
    Push,
    Store,
    Taken,
    Watched,
)
from celery_misfire.store.registers import Merged, Missed, Register, Started, StartRequest
from tests.support.stores import StorePlace

LINE, MERGED_LINE = {"event": "late"}, {"event": "merged"}
CAPPED, PAUSED, STARTED = Missed("capped"), Missed("paused"), Started("nonce", "worker@test")


@pytest.fixture
def store(place: StorePlace) -> Store:
    return place.store()


def take(store: Store, token: str = "token", ttl: float = 60) -> Taken:
    taken = store.acquire(token, ttl)
    assert isinstance(taken, Taken), taken
    return taken


def events(lines: list[dict[str, Any]]) -> list[str]:
    return [line["event"] for line in lines]


# -- the lease ---------------------------------------------------------------------------------------------


def test_one_beat_holds_the_lease_and_the_others_are_told_who(place: StorePlace, store: Store):
    taken = take(store, "mine")
    assert taken == Taken(LeaseValue("mine", taken.epoch, 0, store.owner), 0, cold=True)
    before = place.contents()
    assert place.store().acquire("other", 60) == Held(taken.lease)
    assert place.contents() == before
    assert place.read_lease() == f"mine|{taken.epoch}|0|{store.owner}"


def test_the_store_has_a_clock(place: StorePlace, store: Store):
    first = store.time()
    assert first <= store.time()
    # Milliseconds: seconds would be fewer.
    assert first > 10**12


def test_a_lease_that_was_given_up_or_ran_out_can_be_taken(place: StorePlace, store: Store):
    first = take(store, "mine")
    store.release("other")
    assert store.acquire("other", 60) == Held(first.lease)
    store.release("mine")
    second = take(store, "other", ttl=0.05)
    place.pass_time(0.1)
    third = take(store, "third")
    assert first.epoch < second.epoch < third.epoch
    assert (second.previous_epoch, third.previous_epoch) == (first.epoch, second.epoch)


def test_a_renewal_prolongs_ones_own_lease_alone(place: StorePlace, store: Store):
    lease = take(store, "mine", ttl=0.5).lease.renewed()
    store.renew(lease, 60)
    place.pass_time(0.6)
    assert store.acquire("other", 60) == Held(lease)
    # A token that begins like the one in force is another one.
    for token in ("other", "min", ""):
        with pytest.raises(LeaseLost):
            store.renew(LeaseValue(token, 7, 1, "there"), 60)
    assert store.acquire("other", 60) == Held(lease)
    store.release("mine")
    with pytest.raises(LeaseLost):
        store.renew(lease, 60)
    assert place.read_lease() == ""


def test_a_clean_stop_is_told_to_the_next_one_that_takes_the_lease(place: StorePlace, store: Store):
    assert take(store, "1").stop is None
    store.release("other", 6000)
    before = place.time()
    store.release("1", 7000)
    # Done twice, it has worked once.
    store.release("1", 8000)
    place.pass_time(0.05)
    stop = take(store, "2").stop
    assert stop is not None
    assert 50 <= stop.ago <= (place.time() - before) * 1000 + 1
    assert stop.in_time_since == 7000
    # One that ends in another way leaves none, and that of the term before is forgotten.
    store.release("2")
    assert take(store, "3").stop is None


def test_the_mark_of_a_clean_stop_counts_for_the_term_just_before_alone(place: StorePlace, store: Store):
    store.release(take(store, "1").lease.token, 7000)
    # An older version takes the lease, and knows nothing of the mark.
    place.write_epoch(taken_by_another := take(store, "2").epoch + 5)
    place.write_stop(f"{taken_by_another - 1}|1000|7000")
    store.release("2")
    assert take(store, "3").stop is None
    for text in ("not ours", "1|2", "-1|0|0", "1|2|3|4", "9" * 30 + "|0|0"):
        store.release("3")
        place.write_stop(text)
        place.write_epoch(1)
        assert take(store, "3").stop is None


def test_a_clean_stop_in_the_future_is_told_as_it_is(place: StorePlace, store: Store):
    """Somebody has set the clock of the store back."""
    place.write_epoch(5)
    place.write_stop(f"5|{round(place.time() * 1000) + 60_000}|7000")
    stop = take(store).stop
    assert stop is not None
    assert stop.ago < 0


def test_a_renewal_notices_a_lease_that_went_back_to_an_older_number(place: StorePlace, store: Store):
    """The store went back to a snapshot under the same lease."""
    first = take(store, "mine").lease
    second, third = first.renewed(), first.renewed().renewed()
    store.renew(second, 60, known=0)
    # It may have been done without an answer, and sent twice.
    for _ in range(2):
        store.renew(third, 60, known=0)
    place.write_lease(str(second))
    with pytest.raises(LeaseLost):
        store.renew(third.renewed(), 60, known=2)
    assert place.read_lease() == str(second)
    store.renew(third.renewed(), 60, known=1)
    assert place.read_lease() == str(third.renewed())


def test_a_lease_is_taken_over_only_as_it_was_seen(store: Store):
    seen = take(store, "other").lease
    store.renew(seen.renewed(), 60)
    assert store.acquire("mine", 60, seen) == Held(seen.renewed())
    taken = store.acquire("mine", 60, seen.renewed())
    assert isinstance(taken, Taken)
    assert (taken.lease.token, taken.previous_epoch) == ("mine", seen.epoch)
    with pytest.raises(LeaseLost):
        store.renew(seen, 60)


def test_a_lease_of_another_form_is_held_and_can_be_taken_over(place: StorePlace, store: Store):
    for text in ("not ours", "a|b|c|d", "token|007|0|here", "token|1|0|here|and there", "|1|0|here"):
        place.write_lease(text)
        held = store.acquire("mine", 60)
        assert held == Held(LeaseValue("", 0, 0, text))
        with pytest.raises(LeaseLost):
            store.commit("", [Change("a", "", "1")])
        assert isinstance(store.acquire("mine", 60, held.lease), Taken)


def test_the_epoch_grows_through_a_loss_and_through_a_clock_that_was_set_back(
    place: StorePlace, store: Store
):
    first = take(store, "1")
    place.lose()
    place.pass_time(0.002)
    second = take(store, "2")
    assert second.epoch > first.epoch
    assert second.previous_epoch == 0
    store.release("2")
    # The clock of the store was an hour ahead at that time.
    ahead = second.epoch + 3_600_000
    place.write_epoch(ahead)
    third = take(store, "3")
    assert (third.epoch, third.previous_epoch) == (ahead + 1, ahead)


def test_a_state_is_cold_until_it_was_marked_as_complete(store: Store):
    assert take(store, "1").cold
    store.release("1")
    assert take(store, "2").cold
    store.write_meta("2", "shop")
    store.release("2")
    assert (taken := take(store, "3")).app == "shop"
    assert not taken.cold
    # The app that began the state stays known.
    store.write_meta("3", "another")
    store.release("3")
    assert take(store, "4").app == "shop"


def test_a_free_lease_without_a_state_may_be_left_alone(place: StorePlace, store: Store):
    before = place.contents()
    assert store.acquire("standby", 60, needs_state=True) == NoState()
    assert store.acquire("standby", 60, LeaseValue("leader", 1, 0, "there"), needs_state=True) == NoState()
    assert place.contents() == before
    leader = take(store, "leader")
    assert store.acquire("standby", 60, needs_state=True) == Held(leader.lease)
    store.write_meta("leader", "shop")
    store.release("leader")
    assert isinstance(store.acquire("standby", 60, needs_state=True), Taken)


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ('{"schema": 2, "app": "shop"}', "has schema 2, this version works with 1"),
        ('{"schema": "1"}', "has schema '1', this version works with 1"),
        ("{}", "holds a _meta that is not ours"),
        ("[1]", "holds a _meta that is not ours"),
        ("garbage", "holds a _meta that is not ours"),
    ],
)
@pytest.mark.parametrize("held", [False, True])
def test_a_state_that_another_version_wrote_is_refused_and_left_alone(
    place: StorePlace, store: Store, mark: str, words: str, held: bool
):
    lease = take(store, "newer").lease
    if not held:
        store.release("newer")
    place.write_mark(mark)
    before = place.contents()
    for seen in (None, lease):
        with pytest.raises(NewerSchema, match=words):
            store.acquire("older", 60, seen)
    assert place.contents() == before


# -- records -----------------------------------------------------------------------------------------------


def test_a_commit_writes_its_records_and_its_log(store: Store):
    take(store)
    lines = [{"event": str(n), "n": n} for n in range(3)]
    assert store.commit("token", [Change("a", "", "1"), Change("b", "", "2")], lines[:2]) == CommitResult()
    assert store.load() == {"a": "1", "b": "2"}
    assert store.load(["b", "c"]) == {"b": "2"}
    assert store.load([]) == {}
    assert store.commit("token", [Change("a", "1", "3"), Change("b", "2", "")], lines[2:]) == CommitResult()
    assert store.load() == {"a": "3"}
    assert store.log() == lines


def writes(store: Store, token: str) -> list[Any]:
    """Return every call that only the leader may make."""
    return [
        lambda: store.commit(token, [Change("a", "1", "2"), Change("b", "", "1")], [LINE]),
        lambda: store.commit(token, [], [LINE]),
        lambda: store.write_meta(token, "shop"),
        lambda: store.describe(token, "beat", "entries"),
    ]


@pytest.mark.parametrize("token", ["", "other", "toke", "token|"])
def test_who_does_not_hold_the_lease_writes_nothing(place: StorePlace, store: Store, token: str):
    take(store)
    store.commit("token", [Change("a", "", "1")])
    before = place.contents()
    for write in writes(store, token):
        with pytest.raises(LeaseLost):
            write()
    assert place.contents() == before


@pytest.mark.parametrize("how", ["given up", "ran out", "taken over", "lost"])
def test_when_the_lease_has_gone_nothing_is_written(place: StorePlace, store: Store, how: str):
    lease = take(store, ttl=0.05 if how == "ran out" else 60).lease
    match how:
        case "given up":
            store.release("token")
        case "ran out":
            place.pass_time(0.1)
        case "taken over":
            assert isinstance(store.acquire("new", 60, lease), Taken)
        case "lost":
            place.lose()
    before = store.load(), store.log(), store.description()
    for token in ("token", ""):
        for write in writes(store, token):
            with pytest.raises(LeaseLost):
                write()
    assert (store.load(), store.log(), store.description()) == before


def test_a_commit_with_one_conflict_writes_nothing_at_all(place: StorePlace, store: Store):
    take(store)
    store.commit("token", [Change(name, "", "1") for name in "abc"])
    before = place.contents()
    changes = [Change("a", "1", "2"), Change("b", "0", "2"), Change("c", "", "2"), Change("d", "1", "2")]
    assert store.commit("token", changes, [LINE]) == CommitResult(("b", "c", "d"))
    assert place.contents() == before


def test_a_commit_that_is_repeated_works_once(place: StorePlace, store: Store):
    take(store)
    store.commit("token", [Change("c", "", "1")])
    changes = [Change("a", "", "1"), Change("c", "1", "")]
    assert store.commit("token", changes, [LINE]) == CommitResult()
    before = place.contents()
    assert store.commit("token", changes, [LINE]) == CommitResult()
    assert place.contents() == before
    assert store.log() == [LINE]


def test_names_and_records_may_hold_any_text(store: Store):
    take(store)
    names = ["_meta", "e:x", "ünï|:{}", "\x00\n", "💥" * 100, "a" * 5000]
    changes = [Change(name, "", f"ö {name}") for name in names]
    assert store.commit("token", changes, [{"event": name} for name in names]) == CommitResult()
    assert store.load() == {name: f"ö {name}" for name in names}
    assert events(store.log()) == names


# -- the configuration of the leading beat -----------------------------------------------------------------


def test_the_leading_beat_describes_itself_to_the_others(place: StorePlace, store: Store):
    assert store.description()[1] == ""
    lease = take(store).lease
    assert store.acquire("other", 60) == Held(lease, "")
    store.describe("token", "settings", "entries")
    store.describe("token", "settings 2", "entries 2")
    assert store.acquire("other", 60) == Held(lease, "settings 2")
    assert place.store().description()[1] == "entries 2"
    assert store.load() == {}


def test_a_note_for_the_leader_is_delivered_once(place: StorePlace, store: Store):
    lease = take(store).lease
    place.store().tell_leader("a line")
    place.store().tell_leader("another line")
    with pytest.raises(LeaseLost):
        store.renew(LeaseValue("other", 1, 1, "there"), 60)
    assert store.renew(lease, 60).note == "another line"
    assert store.renew(lease, 60).note == ""


# -- registers ---------------------------------------------------------------------------------------------


def test_a_beat_closes_registers_only_while_it_leads(store: Store):
    take(store, "mine")
    assert store.settle(["1"], CAPPED, token="mine") == [CAPPED]
    for token in ("other", "min", ""):
        with pytest.raises(LeaseLost):
            store.settle(["1", "2"], CAPPED, token=token)
    assert store.register("2") is None
    store.release("mine")
    with pytest.raises(LeaseLost):
        store.settle(["2"], CAPPED, token="mine")
    assert store.register("2") is None


def test_a_register_is_written_once(store: Store):
    assert store.register("1") is None
    assert store.settle(["1"], CAPPED) == [CAPPED]
    assert store.settle(["1", "2"], STARTED) == [CAPPED, STARTED]
    assert store.settle(["2", "1"], PAUSED) == [STARTED, CAPPED]
    assert store.settle([], PAUSED) == []
    assert store.start("1", StartRequest(STARTED, entry="e", line=LINE)) == (CAPPED, False)
    assert store.start("2", StartRequest(Started("another", "w"), entry="e")) == (STARTED, False)
    assert store.start("3", StartRequest(STARTED, entry="e")) == (STARTED, True)
    assert [store.register(id_) for id_ in "1234"] == [CAPPED, STARTED, STARTED, None]
    assert store.log() == []


@pytest.mark.parametrize("value", [STARTED, CAPPED, Missed("expired", "nonce"), Merged("an-id")])
def test_a_register_is_read_as_it_was_written(store: Store, value: Register):
    assert store.start("1", StartRequest(value, entry="e", line=LINE)) == (value, True)
    assert store.start("1", StartRequest(PAUSED, entry="e", line=LINE)) == (value, False)
    assert store.register("1") == value
    assert store.log() == [LINE]


def test_what_was_sent_before_a_late_run_started_is_merged_into_it(store: Store):
    def start(task_id: str, sent_at: int, late_start: int | None = None, entry: str = "e") -> object:
        lines = {"line": LINE if late_start else None, "merged_line": MERGED_LINE}
        request = StartRequest(STARTED, entry, sent_at=sent_at, late_start=late_start, **lines)
        held, nth = store.start(task_id, request)
        return held, nth > 0

    assert start("1", 1000) == (STARTED, True)
    assert start("2", 2000, late_start=5000) == (STARTED, True)
    # These runs were sent before, in time or late, and again.
    assert start("3", 4999) == (Merged("2"), True)
    assert start("4", 3000, late_start=6000) == (Merged("2"), True)
    assert start("4", 3000, late_start=6000) == (Merged("2"), False)
    # These are a run sent after, one of another entry, and one that had begun.
    assert start("5", 5000) == (STARTED, True)
    assert start("6", 3000, entry="another") == (STARTED, True)
    assert start("1", 1000) == (STARTED, False)
    assert events(store.log()) == ["late", "merged", "merged"]
    # A run that was merged has not started: it takes nothing in.
    assert start("7", 5500) == (STARTED, True)
    # A message that cannot be merged passes.
    assert store.start("8", StartRequest(STARTED, entry="e")) == (STARTED, True)


def test_runs_that_come_late_are_counted(store: Store):
    take(store)
    missed = Missed("queue_late", "nonce")
    lines = {"line": LINE, "merged_line": MERGED_LINE}
    assert store.start("1", StartRequest(STARTED, entry="a:b")) == (STARTED, 1)
    assert store.start("2", StartRequest(STARTED, entry="a:b", line=LINE)) == (STARTED, 1)
    assert store.start("3", StartRequest(missed, entry="a:b", line=LINE)) == (missed, 2)
    assert store.start("3", StartRequest(missed, entry="a:b", line=LINE)) == (missed, 0)
    assert store.start("4", StartRequest(STARTED, entry="c", sent_at=1, late_start=5, **lines)) == (
        STARTED,
        3,
    )
    assert store.start("5", StartRequest(STARTED, entry="c", sent_at=2, late_start=6, **lines)) == (
        Merged("4"),
        4,
    )
    counts = {("a:b", "missed"): 1, ("c", "merged"): 1, ("", "late"): 4}
    assert store.counts_since(0) == counts


def test_a_register_is_closed_only_while_the_record_is_the_one_that_has_the_intent(
    place: StorePlace, store: Store
):
    take(store)
    store.commit("token", [Change("a", "", "claimed")])
    before = place.contents()
    assert store.close("1", CAPPED, "a", "another") is None
    assert store.close("1", CAPPED, "b", "claimed") is None
    assert place.contents() == before
    assert store.close("1", CAPPED, "a", "claimed") == CAPPED
    store.commit("token", [Change("a", "claimed", "sent")])
    assert store.close("2", CAPPED, "a", "claimed") is None
    assert store.register("2") is None
    # A register that has been written stays, and a request that is sent twice is done once.
    assert store.close("1", CAPPED, "a", "claimed") == CAPPED
    store.start("3", StartRequest(STARTED, "a"))
    assert store.close("3", CAPPED, "a", "sent") == STARTED


def test_an_intent_stays_while_a_worker_has_left_its_run_to_beat(place: StorePlace, store: Store):
    take(store)
    store.commit("token", [Change("a", "", "claimed")])
    acks = dict.fromkeys(("left", "given up", "started", "nobody's"), store.time() - 60_000)
    store.settle(["left"], CAPPED)
    store.settle(["given up"], Missed("capped", "nonce"))
    store.settle(["started"], STARTED)
    attempt: tuple[Any, ...] = ([Change("a", "claimed", "sent")], [LINE])
    before = place.contents()
    for pushes in ([], [Push("a", "lpush", "queue", b"1")]):
        assert store.commit("token", *attempt, pushes, acks=acks) == CommitResult(closed=("left",))
    assert place.contents() == before
    del acks["left"]
    assert store.commit("token", *attempt, acks=acks) == CommitResult()
    assert store.load() == {"a": "sent"}
    # Once it is done it is done, whatever the registers say when it is repeated.
    acks["left"] = 0
    assert store.commit("token", *attempt, acks=acks) == CommitResult()
    assert events(store.log()) == ["late"]


def test_a_backlog_of_late_runs_leaves_most_of_the_log_to_others(place: StorePlace):
    store = place.store(history=1000)
    take(store)
    store.commit("token", [], [{"event": "before"}])
    nth = [store.start(str(n), StartRequest(STARTED, entry="a", line=LINE))[1] for n in range(300)]
    assert nth == [*range(1, 301)]
    lines = events(store.log())
    assert (lines[0], lines.count("late"), len(lines)) == ("before", 100, 101)


# -- the log -----------------------------------------------------------------------------------------------


def test_the_log_is_read_from_its_end_and_in_pages(store: Store):
    take(store)
    assert (store.log(), store.log_after("0-0", 10), store.last_log_id()) == ([], [], "0-0")
    for n in range(5):
        store.commit("token", [], [{"event": str(n)}, {"event": f"{n}b"}])
    assert events(store.log(2)) == ["4", "4b"]
    seen, pages = "0-0", []
    while page := store.log_after(seen, 4):
        pages.append([line["event"] for _, line in page])
        seen = page[-1][0]
    assert pages == [["0", "0b", "1", "1b"], ["2", "2b", "3", "3b"], ["4", "4b"]]
    assert store.last_log_id() == seen
    assert store.log_after(seen, 4) == []


def test_the_log_is_capped(place: StorePlace):
    store = place.store(history=50)
    take(store)
    for n in range(20):
        store.commit("token", [], [{"event": str(n)}] * 50)
    # Redis drops whole nodes of a stream, of 100 lines each.
    assert 50 <= len(store.log()) <= 200
    assert events(store.log(1)) == ["19"]


def test_without_a_history_nothing_is_logged(place: StorePlace):
    store = place.store(history=0)
    take(store)
    store.commit("token", [Change("a", "", "1")], [LINE])
    store.start("1", StartRequest(STARTED, entry="e", line=LINE))
    assert store.log() == []


# -- watching ----------------------------------------------------------------------------------------------


def test_one_worker_watches_and_its_notes_are_left_to_the_next(place: StorePlace, store: Store):
    assert store.watch("first", 0.5, alarm="7") == Watched(False, "7")
    assert store.watch("second", 60, alarm="8") is None
    take(store)
    assert store.watch("first", 0.05) == Watched(True, "7")
    place.pass_time(0.1)
    assert store.watch("second", 60, alarm="") == Watched(True, "")
    store.release("token")
    assert store.watch("second", 60) == Watched(False, "")


def test_notes_that_are_not_ours_count_as_none(store: Store):
    assert store.watch("watcher", 60, alarm="not ours") == Watched(False, "")


def test_workers_with_the_guard_are_counted_on_for_a_time(place: StorePlace, store: Store):
    assert not store.is_guarded()
    store.watch("watcher", 60)
    assert not store.is_guarded()
    # A worker that does not watch says so, too.
    assert store.watch("another", 60, guard_ttl=60) is None
    assert store.is_guarded()
    store.watch("watcher", 60, guard_ttl=0.05)
    place.pass_time(0.1)
    assert not store.is_guarded()


# -- signs of life, requests, the hold ---------------------------------------------------------------------


def test_a_beat_gives_its_sign_of_life_with_the_calls_that_it_makes_anyway(place: StorePlace, store: Store):
    assert (store.sight().lease, store.sight().is_cold, store.sight().beats) == (None, True, {})
    lease = store.acquire("mine", 60, sign="first").lease  # type: ignore[union-attr]
    sight = store.sight()
    assert (sight.lease, sight.beats[store.owner][1], sight.is_cold) == (lease, "first", True)
    assert sight.now - 5_000 <= sight.beats[store.owner][0] <= sight.now
    assert 0 < (sight.lease_left or 0) <= 60_000
    store.write_meta("mine", "app")
    store.renew(lease.renewed(), 60, sign="second")
    store.watch("worker", 60, guard_ttl=60)
    sight = store.sight()
    assert (sight.beats[store.owner][1], sight.is_cold, sight.is_guarded) == ("second", False, True)
    # A standby's call is refused, and it lives all the same.
    assert isinstance(store.acquire("other", 60, sign="third"), Held)
    assert store.sight().beats[store.owner][1] == "third"
    # Who does not lead takes only the sign back.
    store.release("other")
    assert (store.sight().beats, store.sight().lease) == ({}, lease.renewed())


def test_a_look_changes_nothing(place: StorePlace, store: Store):
    store.acquire("mine", 60, sign="sign")
    store.request({"1": "please"})
    before = place.contents()
    store.sight()
    assert place.contents() == before


def test_the_leader_hears_of_a_request_until_it_is_dropped(store: Store):
    lease = take(store).lease
    assert store.renew(lease, 60) == ("", False)
    store.request({})
    store.request({"2": "later", "1": "first"})
    assert store.renew(lease, 60) == ("", True)
    assert list(store.sight().requests.items()) == [("1", "first"), ("2", "later")]
    store.drop_requests([])
    store.drop_requests(["1", "2"])
    assert store.sight().requests == {}
    assert store.renew(lease, 60) == ("", False)


def test_the_leader_alone_writes_the_hold_and_only_over_the_one_it_knows(store: Store):
    take(store, "mine")
    with pytest.raises(LeaseLost):
        store.write_hold("other", "", "until nine")
    assert store.write_hold("mine", "", "until nine")
    # Sent twice, it works once.
    assert store.write_hold("mine", "", "until nine")
    assert not store.write_hold("mine", "until ten", "until eleven")
    assert store.sight().hold == "until nine"
    assert store.write_hold("mine", "until nine", "")
    assert store.sight().hold == ""


def test_one_alone_has_an_occurrence_run_by_hand_unless_it_was_not_sent(store: Store):
    assert store.claim_by_hand("id", "ann") == "ann"
    assert store.claim_by_hand("id", "bob") == "ann"
    store.unclaim_by_hand("id", "bob")
    assert store.claim_by_hand("id", "bob") == "ann"
    store.unclaim_by_hand("id", "ann")
    assert store.claim_by_hand("id", "bob") == "bob"
    # The worker's register is another one.
    assert store.register("id") is None
