"""The checker of histories finds what is planted, and nothing in what is in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from celery_misfire.misfire import Outcome
from tests.simulation.history import Event, Fault, What, check, from_times

RECOVERED, MERGED, MISSED, FIRED = Outcome.RECOVERED, Outcome.MERGED, Outcome.MISSED, Outcome.FIRED

#: Entry e fires at 10, 20, ... 60. Beat is away from 25 to 45; 30 runs late and 40 is merged into it.
DUE = from_times("e", range(10, 70, 10))


def sent(scheduled: int, nonce: str = "", *, at: int | None = None, **more: object) -> list[Event]:
    """A message and its record."""
    event = Event(What.PUSHED, "e", scheduled, scheduled, at=at or scheduled, nonce=nonce or f"n{scheduled}")
    event = replace(event, task_id=f"id{scheduled}", **more)
    return [event, replace(event, what=What.RECORDED, nonce="")]


def ran(scheduled: int, nonce: str = "") -> Event:
    return replace(sent(scheduled, nonce)[0], what=What.RAN, at=scheduled + 1)


def missed(first: int, last: int, count: int) -> Event:
    return Event(What.MISSED, "e", first, last, count, outcome=MISSED, task_id=f"id{first}")


EPISODE = Event(What.MISFIRED, "e", first=30, last=40, count=2, at=45)
EPISODE_UNTIL_52 = replace(EPISODE, at=52)
RECOVERY = sent(30, at=45, outcome=RECOVERED, last=40, count=2)
GOOD = [*DUE, *sent(10), *sent(20), EPISODE, *RECOVERY, *sent(50), *sent(60)]


def faults(history: Iterable[Event], **how: bool) -> dict[int, set[Fault]]:
    found: dict[int, set[Fault]] = {}
    for problem in check(history, **how).problems:
        found.setdefault(problem.scheduled, set()).add(problem.fault)
    return found


def test_what_is_in_order_has_one_outcome_each() -> None:
    findings = check(GOOD)
    assert findings.problems == []
    outcomes = {scheduled: outcome for (_, scheduled), outcome in findings.outcomes.items()}
    assert outcomes == {10: FIRED, 20: FIRED, 30: RECOVERED, 40: MERGED, 50: FIRED, 60: FIRED}


def test_what_was_skipped_is_missed() -> None:
    skipped = [*DUE, *sent(10), *sent(20), EPISODE, missed(30, 40, 2), *sent(50), *sent(60)]
    findings = check(skipped)
    assert findings.problems == []
    assert [o for o in findings.outcomes.values() if o is MISSED] == [MISSED, MISSED]


def without(*gone: Event) -> Callable[[list[Event]], list[Event]]:
    return lambda history: [event for event in history if event not in gone]


def with_(*more: Event) -> Callable[[list[Event]], list[Event]]:
    return lambda history: [*history, *more]


def instead(old: Event, new: Event) -> Callable[[list[Event]], list[Event]]:
    return lambda history: [new if event == old else event for event in history]


@pytest.mark.parametrize(
    ("plant", "scheduled", "fault"),
    [
        (without(*sent(50)), 50, Fault.LOST),
        (without(*RECOVERY), 40, Fault.LOST),
        (with_(*sent(20, "again")), 20, Fault.QUEUED_TWICE),
        (with_(ran(20), ran(20, "again")), 20, Fault.RAN_TWICE),
        (with_(missed(50, 50, 1)), 50, Fault.RUN_AND_MISSED),
        (with_(missed(40, 40, 1)), 40, Fault.MERGED_AND_ENDED),
        (with_(*sent(40, at=46)), 40, Fault.MERGED_AND_ENDED),
        (without(sent(50)[1]), 50, Fault.MESSAGE_WITHOUT_RECORD),
        (without(sent(50)[0]), 50, Fault.RECORD_WITHOUT_MESSAGE),
        (with_(*sent(55)), 55, Fault.NOT_EXPECTED),
        (with_(missed(65, 65, 1)), 65, Fault.NOT_EXPECTED),
        (instead(sent(60)[0], replace(sent(60)[0], at=59)), 60, Fault.TOO_EARLY),
        (instead(sent(60)[0], replace(sent(60)[0], task_id="other")), 60, Fault.TWO_IDS),
        (instead(sent(60)[0], replace(sent(60)[0], task_id="id50")), 50, Fault.SHARED_ID),
        (instead(EPISODE, replace(EPISODE, count=3)), 30, Fault.WRONG_COUNT),
        (instead(RECOVERY[0], replace(RECOVERY[0], count=3)), 30, Fault.WRONG_COUNT),
        (with_(Event(What.MISFIRED, "e", first=40, last=40, at=46)), 40, Fault.SPLIT_EPISODE),
        (lambda _: [*DUE, EPISODE_UNTIL_52, *RECOVERY, *sent(50, at=53)], 50, Fault.OUTSIDE_OF_EPISODE),
        (instead(RECOVERY[0], replace(RECOVERY[0], outcome=FIRED)), 30, Fault.OUTSIDE_OF_EPISODE),
    ],
)
def test_a_planted_violation_is_found(
    plant: Callable[[list[Event]], list[Event]], scheduled: int, fault: Fault
) -> None:
    planted = plant(list(GOOD))
    assert planted != GOOD
    assert fault in faults(planted).get(scheduled, set())


def test_a_run_that_was_sent_in_between_ends_an_episode() -> None:
    assert faults([*DUE, *sent(10), *sent(20), *sent(50), EPISODE_UNTIL_52, *RECOVERY, *sent(60)]) == {}


def test_a_miss_that_is_recorded_twice_is_found() -> None:
    assert Fault.MISSED_TWICE in faults([*DUE[:1], missed(10, 10, 1), missed(10, 10, 1)])[10]


def test_a_message_that_no_worker_takes_is_found() -> None:
    queued = [*DUE[:1], *sent(10)]
    assert faults(queued) == {}
    assert faults(queued, drained=True) == {10: {Fault.NEVER_RAN, Fault.LOST}}


def test_a_message_that_a_worker_gave_up_is_missed() -> None:
    given_up = [*DUE[:1], *sent(10), missed(10, 10, 1)]
    assert faults(given_up) == {10: {Fault.RUN_AND_MISSED}}
    assert faults(given_up, drained=True) == {}


def test_in_two_steps_a_second_message_is_in_order_but_no_second_run() -> None:
    twice = [*DUE[:1], *sent(10), sent(10, "again")[0]]
    assert faults(twice, queued_once=False) == {}
    assert faults([*twice, ran(10), ran(10, "again")], queued_once=False) == {10: {Fault.RAN_TWICE}}


def test_a_redelivery_is_no_second_run() -> None:
    assert faults([*DUE[:1], *sent(10), ran(10), ran(10)]) == {}


SNAPSHOT, ROLLED_BACK, FLUSHED = Event(What.SNAPSHOT), Event(What.ROLLED_BACK), Event(What.FLUSHED)


def test_what_ran_in_the_stretch_that_was_lost_may_run_again() -> None:
    assert faults([*DUE[:1], SNAPSHOT, *sent(10), ran(10), ROLLED_BACK, *sent(10, "b"), ran(10, "b")]) == {}


def test_nothing_else_may_run_again_after_a_rollback() -> None:
    kept = [*DUE[:1], *sent(10), ran(10), SNAPSHOT, ROLLED_BACK, *sent(10, "b"), ran(10, "b")]
    assert faults(kept) == {10: {Fault.QUEUED_TWICE, Fault.RAN_TWICE}}
    twice = [*DUE[:1], SNAPSHOT, *sent(10), ran(10), ROLLED_BACK]
    assert Fault.RAN_TWICE in faults([*twice, *sent(10, "b"), ran(10, "b"), *sent(10, "c"), ran(10, "c")])[10]


def test_what_was_lost_with_the_queue_is_to_be_sent_again() -> None:
    assert faults([*DUE[:1], SNAPSHOT, *sent(10), ROLLED_BACK]) == {10: {Fault.LOST}}
    memory_wins = [*DUE[:1], SNAPSHOT, *sent(10), ROLLED_BACK, sent(10)[1]]
    assert faults(memory_wins) == {10: {Fault.LOST, Fault.RECORD_WITHOUT_MESSAGE}}


def test_an_empty_store_takes_with_it_what_it_held_and_no_more() -> None:
    findings = check([*DUE[:2], *sent(10), FLUSHED, *sent(20)])
    assert findings.problems == []
    assert findings.outcomes == {("e", 10): None, ("e", 20): FIRED}
    assert faults([*DUE[:2], *sent(10), FLUSHED]) == {20: {Fault.LOST}}


def test_what_was_due_at_a_cold_start_is_no_occurrence() -> None:
    assert faults([*DUE[:3], FLUSHED, Event(What.COLD_START, at=25), *sent(30)]) == {}


def test_a_misfire_without_the_time_of_its_detection_is_an_error() -> None:
    with pytest.raises(ValueError, match="detected"):
        check([*DUE, Event(What.MISFIRED, "e", first=30, last=40, count=2)])
