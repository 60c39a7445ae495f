"""The tutorial from top to bottom, with the wheel: its app, its commands, and what it says that they print.

Two things differ from the page: the Redis is that of the test, and the entries run each three seconds.
"""

from __future__ import annotations

import re
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from example_project.child_process import Child
from tests.support.pages import ID, Output, blocks
from tests.support.processes import ROOT, wait_for
from tests.support.redis_server import RedisServer
from tests.support.wheel import run

PAGE = ROOT / "docs" / "tutorial.md"
PERIOD = 3.0


class Reader:
    """Somebody who has installed the wheel, and does what the page says.

    :param directory: where `shop.py` is.
    """

    def __init__(self, python: Path, directory: Path, url: str) -> None:
        self.python, self.directory, self._url = python, directory, url
        self.modules, self.outputs = blocks(PAGE, "python"), list(map(Output, blocks(PAGE, "text")))
        self._processes: list[Child] = []

    def write(self, *modules: str) -> None:
        """Save the blocks of the page in `shop.py`."""
        text = "\n\n".join(modules)
        assert text.count("redis://localhost/0") == 2
        assert text.count('"schedule": 10.0') == 2
        text = text.replace("redis://localhost/0", self._url)
        (self.directory / "shop.py").write_text(text.replace('"schedule": 10.0', f'"schedule": {PERIOD}'))

    def run(self, command: str) -> Child:
        """Run a command of the page; each has a log of its own."""
        program, *arguments = shlex.split(command, comments=True)
        assert program == "celery"
        log = self.directory / f"{len(self._processes)}.log"
        process = Child([self.python, "-m", "celery", *arguments], log=log, cwd=self.directory)
        self._processes.append(process)
        return process

    def end(self) -> None:
        for process in self._processes:
            process.kill()

    def wait_35_seconds(self) -> None:
        """Let at least three fire times pass, as on the page."""
        begin = time.monotonic()
        wait_for(lambda: time.monotonic() - begin > 3.5 * PERIOD, 60, what="three fire times to pass")

    def wait_for(self, process: Child, output: Output) -> str:
        """Wait until a process has printed what the page says, and return it."""
        wait_for(lambda: output.lines_in(process.output()) or not process.alive, 60, what=output.text)
        assert process.alive, process.output()[-2000:]
        return process.output()


@pytest.fixture
def reader(tmp_path: Path, redis_server: RedisServer, python_with_wheel: Path) -> Iterator[Reader]:
    directory = tmp_path / "shop"
    directory.mkdir()
    reader = Reader(python_with_wheel, directory, redis_server.url)
    yield reader
    reader.end()


@pytest.mark.takes(75)
@pytest.mark.timeout(400)
def test_the_tutorial_from_top_to_bottom(reader: Reader) -> None:
    shop, receiver, simulation = reader.modules
    fired, recovered, misfire, missed, restarted, simulated = reader.outputs
    [start] = [b for b in blocks(PAGE, "console") if "celery" in b and "pip" not in b]
    worker_command, beat_command = (line.removeprefix("$ ") for line in start.splitlines())

    # 1 and 2
    reader.write(shop)
    worker, beat = reader.run(worker_command), reader.run(beat_command)
    reader.wait_for(worker, fired)

    # 3
    beat.kill()
    reader.wait_35_seconds()
    beat = reader.run(beat_command)
    reader.wait_for(worker, recovered)
    wait_for(lambda: misfire.found_in(beat.output()), 60, what="the line of the log")
    assert "WARNING" in line_of(beat, "misfire of 'stock price'")

    # 4
    reader.write(shop, receiver)
    beat.kill()
    beat = reader.run(beat_command)
    wait_until_in_time(worker)
    beat.kill()
    reader.wait_35_seconds()
    beat = reader.run(beat_command)
    output = reader.wait_for(beat, missed)
    [id_] = ID.findall(missed.found_in(output) or "")
    talk_to_python(reader, id_)

    # 5
    wait_until_in_time(worker)
    beat.signal(signal.SIGINT)
    wait_for(lambda: not beat.alive, 30, what="beat to end")
    reader.wait_35_seconds()
    beat = reader.run(beat_command)
    wait_for(lambda: restarted.found_in(beat.output()), 60, what="the line of the log")
    assert "INFO" in line_of(beat, "misfire of 'stock price'")

    # 6
    (reader.directory / "ask.py").write_text(simulation)
    assert run([reader.python, "ask.py"], cwd=reader.directory) == simulated.text


def line_of(beat: Child, text: str) -> str:
    """Return the line of the log with this text."""
    return next(line for line in beat.output().splitlines() if text in line)


def wait_until_in_time(worker: Child) -> None:
    """Wait until runs come in time again."""
    before = worker.output().count(": fired")
    wait_for(lambda: worker.output().count(": fired") > before, 60, what="a run in time")


def talk_to_python(reader: Reader, id_: str) -> None:
    """Type what the page types, and compare the answers."""
    [session] = blocks(PAGE, "pycon")
    session = re.sub(r"\d+ runs", "... runs", ID.sub(id_, session))
    (reader.directory / "session.txt").write_text(session)
    doctest = [reader.python, "-m", "doctest", "-o", "ELLIPSIS", "session.txt"]
    assert run(doctest, cwd=reader.directory) == ""
