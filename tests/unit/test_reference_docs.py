"""The tables of the documentation list what there is: settings, keys of a policy, reasons, instructions."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields

import pytest
from celery import Celery

from celery_misfire.conf.settings import Settings, read_settings
from celery_misfire.misfire import MisfireInstruction, MisfirePolicy, Outcome, Reason
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
