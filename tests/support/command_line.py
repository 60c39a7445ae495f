"""``celery -A app misfire``, called in this process, and an app whose beat was at work."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from celery import Celery
from celery.bin.base import CLIContext
from celery.schedules import crontab, schedule
from click.testing import CliRunner, Result

from celery_misfire.cli import misfire

SCHEMA = Path(__file__).parents[2] / "docs" / "cli-schema.json"

#: Entries of each kind, as an app configures them.
ENTRIES: dict[str, dict[str, Any]] = {
    "reports": {"task": "shop.reports", "schedule": crontab(minute=0), "misfire": "ignore_misfire_policy"},
    "stocks": {"task": "shop.stocks", "schedule": schedule(900.0), "misfire": "do_nothing"},
    "night": {"task": "shop.night", "schedule": crontab(minute=0, hour=3)},
    "off": {"task": "shop.off", "schedule": 3600.0, "misfire": False},
}


@cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    """Return what checks the answers of this name. To make one is most of the work."""
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema | {"$ref": f"#/$defs/{name}"})


def check_answer(answer: dict[str, Any]) -> None:
    """Check an answer in JSON against the documented schema of its command."""
    name = "error" if "error" in answer else answer["command"]
    if name == "log" and "lines" not in answer:
        name = "log --follow"
    _validator(name).validate(answer)


@dataclass
class CommandLine:
    """Calls the commands for one app.

    :param settings: of the app, beside broker and entries.
    """

    url: str
    entries: dict[str, dict[str, Any]] = field(default_factory=lambda: dict(ENTRIES))
    settings: dict[str, Any] = field(default_factory=dict)

    def app(self) -> Celery:
        app = Celery("test", broker=self.url, set_as_current=False)
        app.conf.beat_schedule = dict(self.entries)
        app.conf.update(self.settings)
        return app

    def call(self, *arguments: str) -> Result:
        """Call a command; the result has its output, its errors and its exit code."""
        context = CLIContext(app=self.app(), no_color=True, workdir=None, quiet=False)
        return CliRunner().invoke(misfire, arguments, obj=context)

    def text(self, *arguments: str, code: int = 0) -> str:
        """Return what a command writes, which has to end with this exit code and without an error."""
        result = self.call(*arguments)
        assert result.exit_code == code, (result.output, result.exception)
        assert result.stderr == ""
        return result.stdout

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Return the answer of a command in JSON, which has to be as documented."""
        result = self.call(*arguments, "--json")
        assert result.exit_code == code, (result.output, result.exception)
        answer: dict[str, Any] = json.loads(result.stdout)
        check_answer(answer)
        return answer

    def error(self, *arguments: str, code: int) -> str:
        """Return the error of a command: one line, and the same in JSON."""
        result = self.call(*arguments)
        assert result.exit_code == code, (result.output, result.exception)
        assert result.stdout == ""
        line, *more = result.stderr.splitlines()
        assert not more
        assert line.startswith("Error: ")
        if arguments and "--help" not in arguments:
            told = self.call(*arguments, "--json")
            assert (told.exit_code, told.stderr) == (code, result.stderr)
            if told.stdout:
                answer = json.loads(told.stdout)
                check_answer(answer)
                assert (f"Error: {answer['error']}", answer["exit_code"]) == (line, code)
        return line.removeprefix("Error: ")
