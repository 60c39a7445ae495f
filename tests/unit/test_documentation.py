"""What the README and the pages print: code that runs as it stands, and links that lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click import Context
from markdown_it import MarkdownIt
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from celery_misfire.cli import misfire
from tests.support.django_project import sqlite
from tests.support.processes import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
#: Pages of the documentation, as the README names them: it is read on the package index as well.
SITE = "https://celery-misfire.readthedocs.io/en/latest/"
REPOSITORY = "https://github.com/celery-misfire/celery-misfire/blob/main/"
FILES = "https://raw.githubusercontent.com/celery-misfire/celery-misfire/main/"

#: A site with the periodic task "reports", for the pages that are about Django.
ON_DJANGO = """
from tests.support import django_settings
django_settings.set_up()
from django_celery_beat.models import IntervalSchedule, PeriodicTask
hourly = IntervalSchedule.objects.create(every=1, period="hours")
PeriodicTask.objects.create(name="reports", task="shop.reports", interval=hourly)
"""


def blocks(parser: Any) -> list[Any]:
    """Return every block that a parser finds in the pages, as parameters of a test."""
    sybil = Sybil(parsers=[parser])
    return [
        pytest.param(block, id=f"{page.stem}:{block.line}")
        for page in PAGES
        for block in sybil.parse(page).examples()
    ]


def page_id(page: Path) -> str:
    return page.stem


@pytest.mark.parametrize("block", blocks(PythonCodeBlockParser()))
def test_each_block_of_python_runs_when_it_is_pasted_into_a_module_with_an_app(
    block: Example, tmp_path: Path, migrated_file: Path
) -> None:
    text, env = str(block.parsed), dict(os.environ)
    if "celery_misfire.contrib.django." in text:
        path = tmp_path / "site.sqlite3"
        shutil.copy(migrated_file, path)
        env["MISFIRE_TEST_DJANGO"] = json.dumps({"DATABASES": {"default": sqlite(path)}})
        text = ON_DJANGO + text
    # Apart, as some of it connects to signals or sets up Sentry.
    program = f"from celery import Celery\napp = Celery('shop')\n{text}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", blocks(CodeBlockParser("console", lambda block: None)))
def test_each_command_of_ours_that_is_printed_exists(block: Example) -> None:
    commands = [text[2:] for text in str(block.parsed).splitlines() if text.startswith("$ ")]
    assert commands, "a block of commands has lines that begin with '$ '"
    for command in commands:
        match command.split():
            case ["make", target, *_]:
                subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)
            case ["celery", "-A", "proj", "misfire", *given]:
                name = next(word for word in given if word in misfire.list_commands(Context(misfire)))
                known = misfire.get_command(Context(misfire), name)
                assert known is not None
                options = {option for param in known.params for option in param.opts}
                assert {word for word in given if word.startswith("--")} <= options
            case ["pip", "install", name, *_]:
                assert re.fullmatch(r'"?celery-misfire(\[(calendars|cli|django|prometheus)\])?"?', name)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_has_a_text_where_markdown_is_shown_by_others(page: Path) -> None:
    html = MarkdownIt("commonmark").enable("table").render(page.read_text())
    assert re.findall(r"<a href=[^>]*>\s*</a>", html) == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_no_list_runs_into_a_paragraph(page: Path) -> None:
    # A definition list is an extension: elsewhere its colons stand in the middle of a paragraph.
    html = MarkdownIt("commonmark").enable("table").render(page.read_text())
    paragraphs = re.findall(r"<p>(.*?)</p>", html, re.DOTALL)
    assert [text for text in paragraphs if re.search(r"^(: |[-*] |\| )", text, re.MULTILINE)] == []


def test_every_link_of_the_readme_is_absolute_and_leads_to_something_that_is_here() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", README.read_text())
    assert len(targets) > 5
    for target in targets:
        assert target.startswith("https://")
        if target.startswith(SITE):
            name, _, anchor = target.removeprefix(SITE).partition("#")
            page = ROOT / "docs" / f"{name.removesuffix('.html')}.md"
            assert page.exists()
            assert not anchor or anchor in anchors(page)
        for prefix in (REPOSITORY, FILES):
            if target.startswith(prefix):
                assert (ROOT / target.removeprefix(prefix)).exists()


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}
