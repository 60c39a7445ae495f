"""Which beats are well, by what they said of themselves."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from celery_misfire.beats import IsAlive, Sign, beats_in, problem_of
from celery_misfire.store.port import LeaseValue
from celery_misfire.store.values import Sight

NOW = 1_772_442_000_000


def sign(pid: int, host: str = "here", every: float = 10.0) -> str:
    return str(Sign(host=host, pid=pid, every=every, clock=NOW, started=NOW - 60_000))


def sight(*silent_for: float, leader: int | None = 1, **signs: str) -> Sight:
    """Return a sight of beats 1, 2, ... that were silent for so many seconds."""
    beats = {f"beat{n}": (round(NOW - s * 1000), sign(n)) for n, s in enumerate(silent_for, start=1)}
    beats |= {name: (NOW, text) for name, text in signs.items()}
    lease = None if leader is None else LeaseValue("token", 7, 3, f"beat{leader}")
    return Sight(NOW, lease, 1000, beats=beats)


def test_a_beat_that_does_not_speak_of_its_broker_is_trusted():
    older = json.loads(sign(1))
    del older["broker_has_answered"]
    found = Sign.parse(json.dumps(older))
    assert found is not None
    assert found.broker_has_answered
    assert Sign.parse(sign(1).replace("true", '"yes"')) is None


def test_a_sign_of_life_is_read_again_and_what_is_none_of_ours_is_left_out():
    (beat,) = beats_in(sight(4))
    assert (str(beat), beat.leads, beat.silent_for, beat.clock_ahead) == ("here:1", True, 4000, 4000)
    newer = json.dumps(json.loads(sign(2)) | {"mood": "good"})
    foreign = {
        "a": "",
        "b": "{}",
        "c": "[]",
        "d": sign(3).replace('"here"', "7"),
        "e": sign(3).replace("10.0", '"x"'),
    }
    found = beats_in(sight(leader=None, newer=newer, **foreign))
    assert [beat.pid for beat in found] == [2]


def test_a_beat_may_be_silent_for_two_of_its_longest_ticks():
    for every, limit in ((10.0, 20), (30.0, 60), (0.5, 10)):
        for silent_for, is_well in ((limit, True), (limit + 0.1, False)):
            looked = Sight(NOW, beats={"b": (round(NOW - silent_for * 1000), sign(1, every=every))})
            assert [beat.is_well for beat in beats_in(looked)] == [is_well]


def alive(*those: int, unknown: tuple[int, ...] = ()) -> IsAlive:
    """Return what knows that these beats live and all others are dead, but for some that nobody knows."""
    return lambda owner: None if (n := int(owner.removeprefix("beat"))) in unknown else n in those


def test_the_leader_comes_first_then_who_was_heard_of_last():
    assert [beat.pid for beat in beats_in(sight(9, 2, 1))] == [1, 3, 2]


def test_a_beat_that_has_ended_without_a_word_is_known_as_long_as_it_has_the_lease():
    found = beats_in(sight(2, 3, 4, 5), alive(3, unknown=(4,)))
    assert [(beat.pid, beat.is_well) for beat in found] == [(1, False), (3, True), (4, True)]
    assert [beat.pid for beat in beats_in(sight(2, 3, leader=2), alive(2))] == [2]


@pytest.mark.parametrize(
    ("looked", "lives", "problem"),
    [
        (sight(1), alive(1), ""),
        (sight(21), alive(1), "beat here:1 has given no sign of life for 21 s (limit 20 s)"),
        (sight(1), alive(), "beat here:1 has ended without a word"),
        # A standby is not asked for here.
        (sight(1, 99), alive(1, 2), ""),
        (sight(1, leader=None), alive(1), "no beat leads"),
        # An older version gives no sign.
        (sight(leader=7), alive(7), ""),
    ],
)
def test_for_all_hosts_a_leader_that_is_well_is_enough(looked: Sight, lives: IsAlive, problem: str):
    assert problem_of(looked, None, lives) == problem


@pytest.mark.parametrize(
    ("looked", "lives", "problem"),
    [
        (sight(1, 2), alive(1, 2), ""),
        (sight(1, 21), alive(1, 2), "beat here:2 has given no sign of life for 21 s (limit 20 s)"),
        (sight(21, 1), alive(1, 2), "beat here:1 has given no sign of life for 21 s (limit 20 s)"),
        # The one before was killed, and nobody has taken its lease yet.
        (sight(1, 300), alive(1), ""),
        (sight(300, 1), alive(2), ""),
        (sight(3), alive(), "beat here:1 has ended without a word"),
        # In the container before, or seen from another one: nobody can know whether it lives.
        (sight(1, 300), alive(1, unknown=(2,)), ""),
        (sight(300, 1), alive(2, unknown=(1,)), ""),
        (sight(25), alive(unknown=(1,)), "beat here:1 has given no sign of life for 25 s (limit 20 s)"),
        (sight(), alive(), "no beat of host here has given a sign of life"),
    ],
)
def test_of_a_host_each_beat_that_is_there_has_to_be_well(looked: Sight, lives: IsAlive, problem: str):
    assert problem_of(looked, "here", lives) == problem


def test_the_beats_of_other_hosts_do_not_matter():
    other = replace(sight(1), beats={"beat1": (NOW - 99_000, sign(1, "there")), "beat2": (NOW, sign(2))})
    assert problem_of(other, "here", alive(1, 2)) == ""
    assert problem_of(other, "there", alive(unknown=(1, 2))) != ""
