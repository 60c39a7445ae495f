"""The tables of the documentation list what there is: settings, keys of a policy, reasons, instructions."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch

import pytest
from celery import Celery

from celery_misfire.conf.settings import Settings, read_settings
from celery_misfire.misfire import FITTING, MisfireInstruction, MisfirePolicy, Outcome, Reason, TriggerType
from celery_misfire.schedules import cron, simple
from celery_misfire.simulation import simulate
from tests.support.processes import ROOT

DOCS = ROOT / "docs"


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the table that begins with this row."""
    text = (DOCS / page).read_text()
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"{page} has no table {heading}"
    body = rest.split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in body]


def words(page: str, heading: str) -> list[str]:
    """Return what is printed as code in the first cell of each row."""
    return [word for cell, *_ in rows(page, heading) for word in re.findall(r"`([^`]+)`", cell)]


SETTINGS = rows("settings.md", "| setting | default | meaning |")
#: Defaults that depend on the settings of Celery, and what the page says of them.
OF_CELERY = {
    "redis_url": "the broker's, else the result backend's, if that is a Redis",
    "namespace": "the app's name",
    "key_prefix": 'the broker\'s `global_keyprefix`, else `""`',
}


def test_the_page_lists_each_setting_once() -> None:
    listed = [name.strip("`") for name, *_ in SETTINGS]
    assert sorted(listed) == sorted(f"misfire_{field.name}" for field in fields(Settings))


@pytest.mark.parametrize(("name", "default", "_"), SETTINGS, ids=[name for name, *_ in SETTINGS])
def test_the_default_of_a_setting_is_what_the_page_says(name: str, default: str, _: str) -> None:
    key = name.strip("`").removeprefix("misfire_")
    if key in OF_CELERY:
        assert default == OF_CELERY[key]
        return
    [field] = [field for field in fields(Settings) if field.name == key]
    value = field.default if field.default is not MISSING else field.default_factory()
    assert default == text_of(value)


def text_of(value: object) -> str:
    """Return a default as it is written in a module of settings."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`"


def test_defaults_that_follow_celery_are_those_of_an_app_on_redis() -> None:
    app = Celery("shop", broker="redis://broker.example/2")
    app.conf.broker_transport_options = {"global_keyprefix": "acme:"}
    settings = read_settings(app)
    assert settings.redis_url == "redis://broker.example/2"
    assert (settings.namespace, settings.key_prefix) == ("shop", "acme:")
    app = Celery("shop", broker="amqp://", backend="redis://results.example/3")
    settings = read_settings(app)
    assert (settings.redis_url, settings.key_prefix) == ("redis://results.example/3", "")


def test_the_page_lists_each_key_of_a_policy() -> None:
    text = (DOCS / "instructions.md").read_text()
    _, _, limits = text.partition("## Limits beside the instruction")
    listed = re.findall(r"^- `(\w+)`:", limits.split("\n## ")[0], re.MULTILINE)
    assert sorted(["instruction", *listed]) == sorted(field.name for field in fields(MisfirePolicy))


@pytest.mark.parametrize(
    ("page", "heading", "known"),
    [
        ("results.md", "| reason | why the runs are missed, or late |", list(Reason)),
        (
            "instructions.md",
            "| instruction | fits | what happens to the misfired runs |",
            list(MisfireInstruction),
        ),
        ("design.md", "| outcome | meaning |", list(Outcome)),
    ],
)
def test_a_table_lists_each_word_once(page: str, heading: str, known: list[str]) -> None:
    assert sorted(words(page, heading)) == sorted(map(str, known))


# -- the classic example -----------------------------------------------------------------------------------

DAY = datetime(2026, 3, 2, tzinfo=UTC)
NINE, UP = DAY + timedelta(hours=9), DAY + timedelta(hours=10, minutes=15)
SCHEDULES = {
    "once": simple(start=NINE),
    "fixed": simple(start=NINE, interval=3600, repeat_count=7),
    "endless": simple(start=NINE, interval=3600),
    "cron": cron("0 0 9-23 ? * *", timezone="UTC"),
}


CLASSIC = "| kind of schedule: instruction | 9:00 | 10:00 | next | last run / runs |"


def classic_rows() -> dict[tuple[str, str], list[str]]:
    """Return the other cells of the table, by kind of schedule and instruction."""
    found: dict[tuple[str, str], list[str]] = {}
    for first, *cells in rows("instructions.md", CLASSIC):
        for part in first.split(";"):
            kinds, _, named = part.partition(":")
            for kind in (kind.strip() for kind in kinds.split(",")):
                patterns = ["*"] if "all others" in named else re.findall(r"`([^`]+)`", named)
                for name in map(str, FITTING[TriggerType(kind)]):
                    if any(fnmatch(name, pattern) for pattern in patterns):
                        found.setdefault((kind, name), cells)
    return found


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, str(i)) for kind in SCHEDULES for i in FITTING[TriggerType(kind)]]
)
def test_the_classic_example_is_what_the_planner_does(kind: str, name: str) -> None:
    def simulated(until: datetime):
        return simulate(SCHEDULES[kind], policy=name, start=DAY, down_at=DAY, up_at=UP, until=until)

    def outcome(when: datetime) -> str:
        if any(missed.first <= when <= missed.last for missed in now.missed):
            return "missed"
        return "recovered" if any(fire.scheduled_fire_time == when for fire in now.fires) else "merged"

    def clock(when: datetime | None) -> str:
        return f"{when.hour}:{when:%M}" if when else "none"

    now, day = simulated(UP), simulated(DAY + timedelta(hours=23)).fires
    ten = "" if kind == "once" else outcome(NINE + timedelta(hours=1))
    runs = ""
    if kind == "fixed":
        runs = f"{clock(day[-1].fire_time)} / {len(day)}"
    elif kind == "once":
        runs = "1 run" if len(day) == 1 else f"{len(day)} runs"
    assert classic_rows()[kind, name] == [outcome(NINE), ten, clock(now.next_fire_time), runs]


def test_the_readme_has_the_same_table() -> None:
    assert rows("../README.md", CLASSIC) == rows("instructions.md", CLASSIC)
