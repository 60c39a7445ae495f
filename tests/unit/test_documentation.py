"""What the README and the pages print: code that runs as it stands, and links that lead somewhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery import Celery
from click import Context
from markdown_it import MarkdownIt
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from celery_misfire.cli import misfire
from celery_misfire.events import Misfired
from celery_misfire.exceptions import TaskMissed
from celery_misfire.testing import check_config, outage
from celery_misfire.testing.process import BeatProcess
from tests.support.django_project import sqlite
from tests.support.pages import ID, blocks, on_one_line
from tests.support.processes import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
#: Pages of the documentation, as the README names them: it is read on the package index as well.
SITE = "https://celery-misfire.readthedocs.io/en/latest/"
REPOSITORY = "https://github.com/celery-misfire/celery-misfire/blob/main/"
FILES = "https://raw.githubusercontent.com/celery-misfire/celery-misfire/main/"

#: A block of code.
CODE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)

#: A site with the periodic task "reports", for the pages that are about Django.
ON_DJANGO = """
from tests.support import django_settings
django_settings.set_up()
from django_celery_beat.models import IntervalSchedule, PeriodicTask
hourly = IntervalSchedule.objects.create(every=1, period="hours")
PeriodicTask.objects.create(name="reports", task="shop.reports", interval=hourly)
"""


def examples(parser: Any) -> list[Any]:
    """Return every block that a parser finds in the pages, as parameters of a test."""
    sybil = Sybil(parsers=[parser])
    return [
        pytest.param(block, id=f"{page.stem}:{block.line}")
        for page in PAGES
        for block in sybil.parse(page).examples()
    ]


def page_id(page: Path) -> str:
    return page.stem


#: Runs each text that it reads in a process of its own, as some connect to signals or set up Sentry.
RUNNER = """
import json, os, sys, traceback
from celery import Celery
from celery.schedules import crontab
import celery_misfire, celery_misfire.schedules

for line in sys.stdin:
    asked = json.loads(line)
    reader, writer = os.pipe()
    if not os.fork():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.environ["MISFIRE_TEST_DJANGO"] = asked["django"]
        error = ""
        try:
            exec(asked["text"], {"app": Celery("shop"), "__name__": "shop"})
        except BaseException:
            error = traceback.format_exc()
        os.write(writer, json.dumps(error).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        print(answer.read(), flush=True)
    os.wait()
"""


@pytest.fixture(scope="module")
def runner() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", RUNNER]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("block", examples(PythonCodeBlockParser()))
def test_each_block_of_python_runs_when_it_is_pasted_into_a_module_with_an_app(
    block: Example, runner: subprocess.Popen[str], tmp_path: Path, migrated_file: Path
) -> None:
    assert runner.stdin is not None
    assert runner.stdout is not None
    text, django = str(block.parsed), ""
    if "celery_misfire.contrib.django." in text:
        path = tmp_path / "site.sqlite3"
        shutil.copy(migrated_file, path)
        text, django = ON_DJANGO + text, json.dumps({"DATABASES": {"default": sqlite(path)}})
    print(json.dumps({"text": text, "django": django}), file=runner.stdin, flush=True)
    assert json.loads(runner.stdout.readline()) == ""


@pytest.mark.parametrize("block", examples(CodeBlockParser("console", lambda block: None)))
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


@pytest.mark.parametrize("page", PAGES[1:], ids=page_id)
def test_every_link_between_the_pages_leads_to_a_page_and_to_a_heading_of_it(page: Path) -> None:
    text = CODE.sub("", page.read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)|\{download\}`[^<`]*<([^>]+)>`", text)
    for target in filter(None, (target for found in targets for target in found)):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            linked = page.parent / name if name else page
            assert linked.is_file(), target
            assert not anchor or anchor in anchors(linked), target


#: Pages that are read in the repository, where links are relative to the page.
IN_REPOSITORY = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / ".github").rglob("*.md"))]


@pytest.mark.parametrize("page", IN_REPOSITORY, ids=page_id)
def test_every_link_of_a_page_in_the_repository_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text())):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            linked = page.parent / name if name else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


def test_every_page_is_named_on_the_first_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    linked = set(re.findall(r"\]\((\w[\w-]*)\.md\)", index))
    in_tree = {
        name for tree in re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL) for name in tree.split()
    }
    names = {page.stem for page in PAGES[1:]} - {"index"}
    assert names == linked
    assert names <= in_tree


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


# -- what the pages say that is printed --------------------------------------------------------------------


def test_beat_decides_and_logs_what_the_readme_says(monkeypatch: pytest.MonkeyPatch) -> None:
    app, events = Celery("shop"), []
    [schedule] = [text for text in blocks(README, "python") if "app.conf.beat_schedule =" in text]
    exec(schedule, {"app": app})
    process = partial(BeatProcess, listeners=[events.extend])
    monkeypatch.setattr("celery_misfire.testing.beat.BeatProcess", process)
    eight, ten = (datetime(2026, 3, 2, hour, tzinfo=UTC) for hour in (8, 10))
    beat = outage(app, start=eight, down_at=eight + timedelta(minutes=50), up_at=ten + timedelta(minutes=20))

    log, error = (ID.sub("ID", on_one_line(text)) for text in blocks(README, "text"))
    [misfire] = [event for event in events if isinstance(event, Misfired) and event.entry == "stocks"]
    assert ID.sub("ID", misfire.sentence()) == log
    [missed] = beat.missed("stocks")
    assert f"celery_misfire.exceptions.TaskMissed: {TaskMissed.from_missed(missed)}" == error


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.y*ml")), ids=lambda path: path.name)
def test_each_file_of_yaml_can_be_read(path: Path) -> None:
    assert all(yaml.safe_load_all(path.read_text()))


def test_the_manifest_probes_beat_by_a_command_that_exists() -> None:
    manifest = (ROOT / "docs" / "kubernetes" / "beat.yaml").read_text()
    deployment, budget = yaml.safe_load_all(manifest)
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    *shell, probe = container["livenessProbe"]["exec"]["command"]
    assert shell == ["sh", "-c"]
    # The page about probes explains the same command.
    assert probe in (ROOT / "docs" / "probes.md").read_text()
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert (
        labels == deployment["spec"]["selector"]["matchLabels"] == budget["spec"]["selector"]["matchLabels"]
    )


def test_beat_would_start_with_what_the_readme_configures() -> None:
    configured = [text for text in blocks(README, "python") if "app.conf" in text]
    app = Celery("shop", broker="redis://localhost")
    exec("\n".join(configured), {"app": app})
    assert set(app.conf.beat_schedule) == {"reports", "stocks"}
    assert check_config(app) == []
