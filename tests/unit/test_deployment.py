"""A beat and the state of another deployment, whose runs go elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from celery_misfire.beats import Sign
from celery_misfire.exceptions import BrokerUnavailable
from celery_misfire.leadership.deployment import REMIND_EVERY, Deployment
from celery_misfire.sending.choice import LOOK_EVERY
from celery_misfire.store import owner
from celery_misfire.store.memory import MemoryDatabase, MemoryStore
from celery_misfire.store.port import Taken
from celery_misfire.store.state_mark import Destination
from celery_misfire.testing.process import BeatProcess, Unsent

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


def test_a_broker_that_does_not_answer_is_asked_once_a_minute_while_somebody_leads(scene: Scene) -> None:
    taken = scene.lead(OURS)
    scene.ours = None
    for n in range(61):
        scene.renew(taken, n)
        assert scene.may_lead()
        scene.now += 1
    assert scene.asked == 2


def test_a_state_that_may_be_that_of_a_neighbour_is_left_to_it_for_a_while(scene: Scene) -> None:
    scene.lead(THEIRS)
    scene.ours = None
    assert scene.may_lead()
    scene.owner.release("owner")
    scene.now += TTL
    assert not scene.may_lead()
    scene.now += TTL - 1
    assert not scene.may_lead()
    # It comes back, and has its time anew when it goes again.
    scene.owner.acquire("again", TTL)
    assert scene.may_lead()
    scene.owner.release("again")
    scene.now += 1
    assert not scene.may_lead()
    scene.now += TTL
    assert scene.may_lead()


def test_nor_is_it_taken_at_once_from_a_neighbour_that_has_ended(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.lead(THEIRS)
    scene.ours = None
    monkeypatch.setattr(owner, "is_dead", lambda text: text == "prod:1")
    assert not scene.may_lead()
    # What the broker tells meanwhile does not make a beat alive that is not.
    scene.ours = OURS
    scene.now += TTL - 1
    assert not scene.may_lead()
    scene.now += 1
    assert scene.may_lead()


def test_who_waits_for_the_broker_leads_as_soon_as_it_tells_that_the_state_is_ours(scene: Scene) -> None:
    scene.lead(OURS)
    scene.owner.release("owner")
    scene.ours = None
    assert not scene.may_lead()
    scene.ours = OURS
    scene.now += 1
    assert scene.may_lead()


# -- a broker that answers only when we lead ---------------------------------------------------------------


class Broker(Unsent):
    """A broker that is away, until it is not."""

    def __init__(self, destination: Destination) -> None:
        super().__init__([])
        self.is_up, self.takes_messages, self._destination = True, True, destination

    def connect(self) -> None:
        if not (self.is_up and self.takes_messages):
            raise BrokerUnavailable("down")

    def destination(self, keys: Sequence[str]) -> Destination:
        if not self.is_up:
            raise BrokerUnavailable("down")
        return self._destination


class Neighbours:
    """Beats of two deployments on one state and one clock."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000
        self.database = MemoryDatabase(lambda: self.now / 1000)
        self.brokers = {"prod": Broker(OURS), "other": Broker(OURS), "staging": Broker(THEIRS)}
        self.beats: dict[str, BeatProcess] = {}

    def start(self, name: str) -> None:
        store, broker = MemoryStore(self.database, f"{name}:1"), self.brokers[name]

        def ask() -> Destination | None:
            return broker.destination(()) if broker.is_up else None

        self.beats[name] = BeatProcess(
            store,
            broker,
            lambda: self.now,
            list,
            lease_times=(TTL, 10.0, 5.0),
            sign=lambda: self._sign(name),
            deployment=Deployment(store, ask, TTL, lambda: self.now / 1000),
        )

    def _sign(self, name: str) -> str:
        has_answered = name in self.beats and self.beats[name].member.broker_has_answered
        return str(Sign(host=name, pid=1, every=10, clock=0, started=0, broker_has_answered=has_answered))

    def stop(self, name: str) -> None:
        self.beats.pop(name).member.close()

    def run(self, seconds: float) -> None:
        until = self.now + round(seconds * 1000)
        while self.now < until:
            for beat in self.beats.values():
                beat.tick()
            self.now += 500

    @property
    def leader(self) -> str:
        return next((name for name, beat in self.beats.items() if beat.member.holds_lease), "")

    @property
    def destination(self) -> Destination | None:
        mark, _ = MemoryStore(self.database, "").look()
        return mark.destination if mark else None


@pytest.fixture
def neighbours() -> Neighbours:
    neighbours = Neighbours()
    neighbours.start("prod")
    neighbours.run(1)
    neighbours.stop("prod")
    assert neighbours.destination == OURS
    return neighbours


def test_a_beat_whose_broker_is_away_leads_its_own_state_after_a_while(neighbours: Neighbours) -> None:
    neighbours.brokers["prod"].is_up = False
    neighbours.start("prod")
    neighbours.run(TTL + 10)
    assert neighbours.leader == "prod"
    neighbours.brokers["prod"].is_up = True
    neighbours.run(10)
    assert neighbours.beats["prod"].leader.broker_is_up
    assert (neighbours.leader, neighbours.destination) == ("prod", OURS)


def test_a_beat_whose_broker_is_away_does_not_take_the_state_of_one_that_is_restarted(
    neighbours: Neighbours,
) -> None:
    neighbours.brokers["staging"].is_up = False
    neighbours.start("staging")
    neighbours.run(TTL / 2)
    assert neighbours.leader == ""
    neighbours.start("prod")
    neighbours.run(10)
    assert neighbours.leader == "prod"
    neighbours.brokers["staging"].is_up = True
    neighbours.run(2 * REMIND_EVERY)
    assert (neighbours.leader, neighbours.destination) == ("prod", OURS)


def test_a_beat_that_leads_and_learns_that_its_runs_go_elsewhere_gives_the_state_back(
    neighbours: Neighbours, caplog: pytest.LogCaptureFixture
) -> None:
    neighbours.brokers["staging"].is_up = False
    neighbours.start("staging")
    neighbours.run(TTL + 10)
    assert neighbours.leader == "staging"
    neighbours.start("prod")
    neighbours.run(TTL / 2)
    assert neighbours.leader == "staging"
    neighbours.brokers["staging"].is_up = True
    neighbours.run(20)
    assert (neighbours.leader, neighbours.destination) == ("prod", OURS)
    neighbours.run(REMIND_EVERY)
    assert (neighbours.leader, neighbours.destination) == ("prod", OURS)
    [warning] = [text for text in caplog.messages if "given up" in text]
    assert "the default queue is 'celery' there and 'staging' here" in warning
    assert "misfire_namespace" in errors(caplog)[0]


def test_a_beat_that_leads_and_has_never_reached_its_broker_is_relieved_by_one_that_reaches_it(
    neighbours: Neighbours, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    neighbours.brokers["staging"].is_up = False
    neighbours.start("staging")
    neighbours.run(TTL + 10)
    neighbours.start("prod")
    neighbours.run(TTL + 10)
    assert neighbours.leader == "prod"
    [told] = [text for text in caplog.messages if "the lease is taken over" in text]
    assert "staging:1" in told
    # From now on it leads, come what may: its broker has answered once.
    neighbours.brokers["prod"].is_up = False
    neighbours.brokers["prod"]._destination = THEIRS
    neighbours.brokers["staging"].is_up = True
    neighbours.run(10 * TTL)
    assert neighbours.leader == "prod"


def test_a_broker_that_is_away_for_all_changes_no_leader(neighbours: Neighbours) -> None:
    for broker in neighbours.brokers.values():
        broker.is_up = False
    neighbours.start("prod")
    neighbours.run(TTL + 10)
    neighbours.start("other")
    neighbours.run(10 * TTL)
    assert neighbours.leader == "prod"
    neighbours.brokers["other"].is_up = True
    neighbours.run(2 * TTL)
    assert neighbours.leader == "other"


def test_a_broker_that_answers_and_takes_no_messages_changes_no_leader(neighbours: Neighbours) -> None:
    neighbours.brokers["prod"].is_up = False
    neighbours.start("prod")
    neighbours.run(TTL + 10)
    for broker in neighbours.brokers.values():
        broker.is_up, broker.takes_messages = True, False
    neighbours.start("other")
    leaders = []
    for _ in range(20):
        neighbours.run(TTL)
        leaders.append(neighbours.leader)
    # There is one change at most, and not another one by turns.
    assert leaders in (["prod"] * 20, ["prod"] + ["other"] * 19, ["other"] * 20)


def test_nobody_is_relieved_by_a_beat_of_another_deployment(neighbours: Neighbours) -> None:
    neighbours.brokers["prod"].is_up = False
    neighbours.start("prod")
    neighbours.run(TTL + 10)
    neighbours.start("staging")
    neighbours.run(10 * TTL)
    assert neighbours.leader == "prod"


def test_a_first_start_without_a_broker_is_relieved_as_well() -> None:
    neighbours = Neighbours()
    neighbours.brokers["prod"].is_up = False
    neighbours.start("prod")
    neighbours.run(10)
    assert (neighbours.leader, neighbours.destination) == ("prod", None)
    neighbours.start("other")
    neighbours.run(TTL + 10)
    assert (neighbours.leader, neighbours.destination) == ("other", OURS)


def test_it_adopts_the_state_when_nobody_comes_back_for_it(
    neighbours: Neighbours, caplog: pytest.LogCaptureFixture
) -> None:
    neighbours.brokers["staging"].is_up = False
    neighbours.start("staging")
    neighbours.run(TTL + 10)
    neighbours.brokers["staging"].is_up = True
    neighbours.run(10)
    assert (neighbours.leader, neighbours.destination) == ("", OURS)
    neighbours.run(TTL)
    assert (neighbours.leader, neighbours.destination) == ("staging", THEIRS)
    assert len([text for text in caplog.messages if "go elsewhere from now on" in text]) == 1


def test_a_broker_that_becomes_another_one_under_its_beat_changes_the_state(
    neighbours: Neighbours, caplog: pytest.LogCaptureFixture
) -> None:
    neighbours.start("prod")
    neighbours.run(1)
    neighbours.brokers["prod"]._destination = lost = Destination("redis 2", "", "celery")
    neighbours.run(2 * LOOK_EVERY)
    assert (neighbours.leader, neighbours.destination) == ("prod", lost)
    assert len([text for text in caplog.messages if "go elsewhere from now on" in text]) == 1


def test_a_broker_that_becomes_another_one_while_the_lease_is_taken_costs_one_lease_at_most(
    neighbours: Neighbours,
) -> None:
    """The beat has asked, and the answer is not true any more."""
    neighbours.start("prod")
    assert not neighbours.beats["prod"].member._deployment.why_not()
    neighbours.brokers["prod"]._destination = lost = Destination("redis 2", "", "celery")
    neighbours.run(TTL + 20)
    assert (neighbours.leader, neighbours.destination) == ("prod", lost)
