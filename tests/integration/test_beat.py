"""A whole beat in this process, on a real Redis and a broker in memory; the test turns its loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from kombu.utils.functional import lazy

from celery_misfire.beat import MisfireScheduler
from celery_misfire.calendars import weekly
from celery_misfire.conf.settings import read_settings
from celery_misfire.exceptions import MisfireConfigError, StoreUnavailable
from celery_misfire.leadership.ledger import LARGEST_WRITE
from celery_misfire.misfire import from_millis
from celery_misfire.records import loads
from celery_misfire.schedules import cron, excluding
from celery_misfire.store.redis_store import RedisStore
from tests.support.processes import wait_for
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.takes(14)

Make = Callable[..., MisfireScheduler]


@pytest.fixture
def make(redis_server: RedisServer) -> Iterator[Make]:
    beats: list[MisfireScheduler] = []

    def make(
        cls: type[MisfireScheduler] = MisfireScheduler, main: str = "shop", **settings: Any
    ) -> MisfireScheduler:
        app = Celery(main, broker="memory://", set_as_current=False)
        entry = {"task": "shop.reports", "schedule": 0.2, "misfire": {"threshold": 1}}
        app.conf.update(
            misfire_redis_url=redis_server.url,
            misfire_standby_poll=0.1,
            beat_schedule={"reports": entry},
            **settings,
        )
        beats.append(cls(app))
        return beats[-1]

    yield make
    for beat in beats:
        beat.close()
        beat.app.close()


def run(beat: MisfireScheduler, true: Callable[[], bool]) -> None:
    wait_for(lambda: beat.tick() >= 0 and true())


def store_of(beat: MisfireScheduler) -> RedisStore:
    return RedisStore.of(read_settings(beat.app))


def test_a_redis_that_gives_the_lease_and_nothing_else_is_mentioned_once(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def away(*_: Any) -> list[str]:
        raise StoreUnavailable("away")

    with monkeypatch.context() as broken:
        broken.setattr(RedisStore, "load", away)
        beat = make()
        for _ in range(20):
            beat._member._ask_again_at = 0.0
            beat.tick()
        assert "answers again" not in caplog.text
    run(beat, lambda: beat._member.holds_lease)
    about = [m for m in caplog.messages if "away; standing by" in m or "answers again" in m]
    assert [m.split()[1] for m in about] == ["away;", "Redis"]


def test_a_schedule_that_was_changed_while_the_store_was_away_is_taken_up_whole(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = make()
    beat.tick()
    names = [f"entry {n}" for n in range(2 * LARGEST_WRITE + 1)]
    beat.update_from_dict({name: {"task": "shop.stocks", "schedule": 3600.0} for name in names})

    def away(*_: Any) -> list[str]:
        raise StoreUnavailable("away")

    monkeypatch.setattr(RedisStore, "commit", away)
    beat.tick()
    monkeypatch.undo()
    beat.tick()
    assert store_of(beat).load().keys() >= set(names)


def test_h_in_a_cron_expression_is_drawn_by_the_name_of_each_entry(make: Make) -> None:
    hashed = cron("H 3 * * *", "UTC")
    sundays = excluding(hashed, weekly(["SUN"]))
    beat = make()
    beat.tick()
    beat.update_from_dict(
        {
            "reports": {"task": "shop.reports", "schedule": hashed},
            "stocks": {"task": "shop.stocks", "schedule": hashed},
            "weekdays": {"task": "shop.stocks", "schedule": sundays},
        }
    )
    beat.tick()
    minutes = {
        name: from_millis(loads(text).state.next_fire_time or 0).minute
        for name, text in store_of(beat).load().items()
        if name in ("reports", "stocks", "weekdays")
    }
    assert minutes == {"reports": 13, "stocks": 25, "weekdays": 5}


def test_an_entry_that_celery_called_by_its_arguments_is_sent_counted_and_planned_in_one_pass(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = make()
    given = {"task": "shop.login", "schedule": 3600.0, "misfire": {"threshold": 1}}
    bob, eve = "shop.login('bob', 'canary')", "shop.login('eve', 'canary')"
    beat.app.conf.beat_schedule |= {bob: given | {"schedule": 0.2, "misfire": "do_nothing"}, eve: given}
    beat = type(beat)(beat.app)

    def asked_again(*_: Any) -> Any:
        raise AssertionError("the check of the configuration has asked")

    monkeypatch.setattr("celery_misfire.beat_entries.trigger_for", asked_again)
    run(beat, lambda: beat.schedule[bob].total_run_count >= 2)
    monkeypatch.undo()
    assert store_of(beat).load().keys() >= {"shop.login(...)", "shop.login(...) #2"}
    # Numbered anew, each still has the schedule and the policy that are its own.
    beat.update_from_dict({"shop.login('ann')": given | {"schedule": 7200.0, "misfire": False}})
    beat.tick()
    planned = {d.name: (d.trigger.interval, d.policy) for d in beat._definitions()}
    policies = [planned[f"shop.login(...){number}"] for number in ("", " #2", " #3")]
    assert [interval for interval, _ in policies] == [7_200_000, 200, 3_600_000]
    assert [policy and (policy.instruction, policy.threshold) for _, policy in policies] == [
        None,
        ("do_nothing", "auto"),
        ("smart_policy", 1.0),
    ]
    assert "canary" not in str(store_of(beat).load())
    beat.close()


class Sparing(MisfireScheduler):
    """Sends nothing, as it could in a time of maintenance."""

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        pass


def test_what_a_scheduler_of_the_apps_own_does_not_send_counts_as_sent_as_in_celery(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    beat = make(Sparing)
    run(beat, lambda: [line for line in store_of(beat).log() if line["event"] == "sent"])
    assert "cannot be sent" not in caplog.text


@pytest.mark.parametrize("empty", [[], ()])
def test_an_empty_list_of_entries_is_none_as_in_celery(redis_server: RedisServer, empty: Any) -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(misfire_redis_url=redis_server.url, beat_schedule=empty)
    beat = MisfireScheduler(app)
    beat.close()
    assert set(beat.schedule) <= {"celery.backend_cleanup"}


@pytest.mark.parametrize("wrong", [None, False, 0, lazy(dict), [{}]])
def test_a_schedule_that_is_no_dict_of_entries_is_refused_in_words(wrong: Any) -> None:
    app = Celery("shop", broker="redis://h", set_as_current=False)
    app.conf.beat_schedule = wrong
    with pytest.raises(MisfireConfigError, match="beat_schedule: expected a dict of entries, got"):
        MisfireScheduler(app)


class Unread(dict[str, Any]):
    def __iter__(self) -> Any:
        raise AssertionError("the entries were read")

    keys = items = values = __iter__


def test_a_lazy_scheduler_as_of_celerys_banner_reads_no_entry() -> None:
    app = Celery("shop", broker="redis://h", set_as_current=False)
    app.conf.beat_schedule = Unread(reports={"task": "shop.reports", "schedule": 60.0})
    beat = MisfireScheduler(app, lazy=True)
    assert beat.info == "    . state -> shop at h:6379"
    beat.close()


def test_a_lazy_scheduler_reports_the_problems_of_the_entries_with_those_of_the_settings() -> None:
    app = Celery("shop", broker="redis://h", set_as_current=False)
    app.conf.update(misfire_history="much", beat_schedule={"reports": {"task": "shop.reports"}})
    with pytest.raises(MisfireConfigError) as caught:
        MisfireScheduler(app, lazy=True).info  # noqa: B018 - the banner asks for it
    assert [line.split(": ")[1] for line in caught.value.problems] == [
        "misfire_history",
        "beat_schedule['reports']",
    ]


class Uncopyable:
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("cannot copy canary-4711")


@pytest.mark.parametrize("headers", [{"x": Uncopyable()}, [("a", 1)]])
def test_headers_of_which_no_message_can_be_made_are_a_refusal_like_any_other(
    make: Make, caplog: pytest.LogCaptureFixture, headers: Any
) -> None:
    caplog.set_level(logging.WARNING)
    beat = make()
    entry = {"task": "shop.stocks", "schedule": 0.2, "misfire": {"threshold": 0.5}}
    # Later than the configuration is checked, as a row of a database is.
    beat.update_from_dict({"bad": entry | {"options": {"headers": headers}}})
    run(beat, lambda: "reason publish_rejected" in caplog.text)
    assert beat.schedule["bad"].options["headers"] is headers
    assert "canary" not in caplog.text


def test_a_state_that_another_app_began_is_taken_over_with_a_word_about_it(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    first = make(misfire_namespace="both")
    first.tick()
    assert "was begun by" not in caplog.text
    first.close()
    second = make(main="billing", misfire_namespace="both")
    second.tick()
    second.tick()
    assert [r.message for r in caplog.records if "was begun by" in r.message] == [
        "beat: the state of 'both' was begun by the app 'shop', this is 'billing'. "
        "If they are two projects, give each a misfire_namespace of its own."
    ]
    assert second._member.holds_lease


def test_a_lost_state_is_restored_by_the_beat_that_led_though_another_one_stands_by(
    make: Make, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    leader, standby = (make(misfire_lease_ttl=300, misfire_lease_renew=100) for _ in range(2))
    leader.tick()
    standby.tick()
    assert "another beat leads" in caplog.text
    before = store_of(leader).load()
    redis_server.client().flushall()
    run(standby, lambda: "the other beat's state has gone" in caplog.text)
    for _ in range(3):
        standby.tick()
    assert not standby._member.holds_lease
    run(leader, lambda: "it is restored from memory" in caplog.text)
    assert store_of(leader).load().keys() == before.keys()
    standby.tick()
    assert not standby._member.holds_lease
