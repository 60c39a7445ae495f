"""Names that Celery makes of arguments, and what such entries are called instead."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, chain, chord, group

from celery_misfire.conf.names import plain_names, plainly_named, without_arguments
from celery_misfire.conf.settings import read_config
from celery_misfire.conf.warnings import warnings_for
from celery_misfire.exceptions import MisfireConfigError

SECRET = "canary-4711"


def login(*_: Any, **__: Any) -> None:
    """Stands for a task with arguments."""


@pytest.fixture
def app() -> Celery:
    app = Celery("shop", broker="redis://h/0", set_as_current=False)
    app.task(login, name="shop.login", shared=False)
    return app


def test_entries_without_a_name_are_called_by_their_task_in_an_order_that_any_process_finds(
    app: Celery,
) -> None:
    task = app.tasks["shop.login"]
    for user in ("zoe", "bob", "eve"):
        app.add_periodic_task(10, task.s(user, password=SECRET))
    app.add_periodic_task(10, task.s(), name="nightly (login)")
    app.add_periodic_task(10, task.s())
    plain = plain_names(app.conf.beat_schedule)
    assert {own.split("'")[1]: name for own, name in plain.items()} == {
        "bob": "shop.login(...)",
        "eve": "shop.login(...) #2",
        "zoe": "shop.login(...) #3",
    }
    backwards = dict(reversed(app.conf.beat_schedule.items()))
    assert plain_names(backwards) == plain
    assert set(plainly_named(backwards)) == {*plain.values(), "nightly (login)", "shop.login()"}


def test_what_is_made_of_signatures_is_called_by_its_kind(app: Celery) -> None:
    one = app.tasks["shop.login"].s(SECRET)
    for canvas in (
        chain(one, one),
        group(one, one),
        chord([one], one),
        app.tasks["shop.login"].map([SECRET]),
    ):
        app.add_periodic_task(10, canvas)
    assert SECRET not in str(list(plainly_named(app.conf.beat_schedule)))


def test_a_name_that_somebody_gave_stays(app: Celery) -> None:
    entries = {
        name: {"task": "shop.login", "schedule": 5}
        for name in ("shop.login", "shop.login (nightly)", "shop.login()", "other('x')", "shop.login(...)")
    }
    assert plain_names(entries) == {}
    assert plainly_named(entries) is entries
    assert plain_names([]) == plain_names(None) == {}


def test_a_plain_name_that_is_taken_gets_a_number() -> None:
    entry = {"task": "t", "schedule": 5}
    assert plain_names({"t(...)": entry, "t(1)": entry}) == {"t(1)": "t(...) #2"}


def test_plain_names_stay_as_they_are() -> None:
    own = [f"{task}({number})" for task in ("t", "celery.chain") for number in (1, 2)]
    plain = plainly_named({name: {"task": name.split("(")[0], "schedule": 5} for name in own})
    assert set(plain) == {"t(...)", "t(...) #2", "celery.chain(...)", "celery.chain(...) #2"}
    assert plain_names(plain) == {}


def test_policies_match_by_celerys_own_name_and_by_the_plain_one(app: Celery) -> None:
    app.add_periodic_task(10, app.tasks["shop.login"].s("bob", password=SECRET))
    (own,) = app.conf.beat_schedule
    for name in (own, "shop.login(...)"):
        app.conf.misfire_policies = {name: "do_nothing"}
        settings, checked = read_config(app, app.conf.beat_schedule)
        policy = checked["shop.login(...)"].policy
        assert policy is not None
        assert policy.instruction == "do_nothing"
        assert [w for w in warnings_for(app, settings, checked) if "misfire_policies" in w] == []
    app.conf.misfire_policies = {"shop.login": "do_nothing"}
    (warning,) = warnings_for(app, *read_config(app, app.conf.beat_schedule))
    assert "no entry has this name" in warning
    assert SECRET not in warning


def test_a_policy_for_arguments_of_yesterday_shows_none_of_them(app: Celery) -> None:
    app.add_periodic_task(10, app.tasks["shop.login"].s("bob", password="new"))
    old = f"shop.login('bob', password='{SECRET}')"
    app.conf.misfire_policies = {old: "do_nothing", f"nobody('{SECRET}')": "do_nothing"}
    found = [w for w in warnings_for(app, *read_config(app, app.conf.beat_schedule)) if "no entry" in w]
    assert ["shop.login(...)" in found[0], "nobody(...)" in found[1]] == [True, True]
    assert SECRET not in str(found)
    app.conf.misfire_policies = {old: "nonsense"}
    with pytest.raises(MisfireConfigError) as caught:
        read_config(app, app.conf.beat_schedule)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "task", "shown"),
    [
        ("t('x')", "t", "t(...)"),
        ("t (nightly)", "t", "t (nightly)"),
        ("other('x')", "t", "other('x')"),
        ("t('x')", "", "t(...)"),
        ("t()", "", "t()"),
        ("nightly (all)", "", "nightly (all)"),
    ],
)
def test_a_name_by_itself_is_shown_without_arguments(name: str, task: str, shown: str) -> None:
    assert without_arguments(name, task) == shown


def test_long_arguments_are_no_long_name(app: Celery) -> None:
    app.add_periodic_task(10, app.tasks["shop.login"].s("x" * 300))
    read_config(app, app.conf.beat_schedule)
    with pytest.raises(MisfireConfigError, match="at most 200 characters"):
        read_config(app, {"x" * 201: {"task": "t", "schedule": 5}})
