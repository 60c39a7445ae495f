"""A beat and the state of another deployment, whose runs go elsewhere."""

from __future__ import annotations

import logging

import pytest

from celery_misfire.leadership.deployment import Deployment
from celery_misfire.store.memory import MemoryDatabase, MemoryStore
from celery_misfire.store.port import Taken
from celery_misfire.store.state_mark import Destination

OURS = Destination("redis 1", "", "celery")
THEIRS = Destination("redis 1", "", "staging")
TTL = 30.0


class Scene:
    """A state, the beat that it belongs to, and another one that asks whether it may lead."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self.database = MemoryDatabase(lambda: self.now)
        self.owner = MemoryStore(self.database, "prod:1")
        self.newcomer = MemoryStore(self.database, "staging:1")
        self.ours: Destination | None = OURS
        self.asked = 0
        self.deployment = Deployment(self.newcomer, self._ask, TTL, lambda: self.now)

    def _ask(self) -> Destination | None:
        self.asked += 1
        return self.ours

    def lead(self, destination: Destination | None) -> Taken:
        taken = self.owner.acquire("owner", TTL)
        assert isinstance(taken, Taken)
        self.owner.write_meta("owner", "shop")
        if destination:
            self.owner.write_destination("owner", destination)
        return taken

    def renew(self, taken: Taken, times: int = 1) -> None:
        lease = taken.lease
        for _ in range(times):
            lease = lease.renewed()
        self.owner.renew(lease, TTL)

    def may_lead(self) -> bool:
        return not self.deployment.why_not()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def test_a_state_of_our_own_is_ours_and_so_is_one_that_tells_no_destination(scene: Scene) -> None:
    assert scene.may_lead()
    taken = scene.lead(None)
    assert scene.may_lead()
    scene.owner.write_destination("owner", OURS)
    scene.renew(taken)
    assert scene.may_lead()


@pytest.mark.parametrize(
    "theirs",
    [
        Destination("redis 2", "", "celery"),
        Destination("redis 1", "acme:", "celery"),
        Destination("redis 1", "", "staging"),
    ],
)
def test_a_neighbour_that_is_alive_keeps_us_away_for_ever(
    scene: Scene, caplog: pytest.LogCaptureFixture, theirs: Destination
) -> None:
    taken = scene.lead(theirs)
    assert not scene.may_lead()
    assert errors(caplog) == []
    scene.renew(taken)
    assert not scene.may_lead()
    scene.owner.release("owner")
    for _ in range(10):
        scene.now += TTL
        assert not scene.may_lead()
    # Once a minute.
    assert len(errors(caplog)) == 6
    assert "misfire_namespace" in errors(caplog)[0]
    assert "prod:1" in errors(caplog)[0]


def test_a_neighbour_is_told_of_us_once(scene: Scene) -> None:
    taken = scene.lead(THEIRS)
    scene.may_lead()
    scene.renew(taken)
    scene.may_lead()
    assert "staging:1 sends nothing" in scene.owner.renew(taken.lease, TTL).note
    scene.may_lead()
    assert scene.owner.renew(taken.lease, TTL).note == ""


def test_a_neighbour_that_comes_back_in_time_keeps_its_state(scene: Scene) -> None:
    scene.lead(THEIRS)
    scene.owner.release("owner")
    assert not scene.may_lead()
    scene.now += TTL / 2
    assert not scene.may_lead()
    scene.owner.acquire("again", TTL)
    assert not scene.may_lead()
    scene.now += 2 * TTL
    assert not scene.may_lead()


def test_a_state_whose_beat_has_gone_is_adopted_after_a_while(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.lead(THEIRS)
    assert not scene.may_lead()
    scene.now += TTL - 1
    assert not scene.may_lead()
    scene.now += 1
    assert scene.may_lead()
    assert errors(caplog) == []


def test_a_state_that_is_lost_under_a_neighbour_is_left_to_it(scene: Scene) -> None:
    taken = scene.lead(THEIRS)
    scene.may_lead()
    scene.renew(taken)
    assert not scene.may_lead()
    scene.database.lose()
    assert not scene.may_lead()


def test_a_neighbour_that_turns_out_to_be_none_lets_us_in_again(scene: Scene) -> None:
    # The broker lost its data, and each of the two sees that at its own time.
    taken = scene.lead(Destination("redis 2", "", "celery"))
    scene.may_lead()
    scene.renew(taken)
    assert not scene.may_lead()
    scene.ours = Destination("redis 2", "", "celery")
    scene.now += 59
    assert not scene.may_lead()
    scene.now += 1
    assert scene.may_lead()
    assert scene.asked == 2


@pytest.mark.parametrize("ours", [None, Destination("", "", "celery")])
def test_what_the_broker_does_not_tell_keeps_nobody_away(scene: Scene, ours: Destination | None) -> None:
    taken = scene.lead(OURS)
    scene.ours = ours
    assert scene.may_lead()
    scene.renew(taken)
    assert scene.may_lead()


def test_a_broker_that_does_not_answer_is_asked_once_a_minute(scene: Scene) -> None:
    scene.lead(OURS)
    scene.ours = None
    for _ in range(61):
        assert scene.may_lead()
        scene.now += 1
    assert scene.asked == 2
