"""``make demo``: what a newcomer sees first."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from example_project.demo.tally import check, tally
from tests.support.processes import ROOT, wait_for

ROW = re.compile(r"^(?P<entry>\S.*?) +(\d+) = +(\d+) \+ +(\d+) \+ +(\d+) \+ +(\d+)$", re.MULTILINE)


class Demo:
    """The demo as a process, with a mark that all its children inherit."""

    def __init__(self, directory: Path) -> None:
        self.mark = f"DEMO_MARK={uuid.uuid4()}"
        self.directory = directory
        self.log = directory.parent / "demo.log"
        name, value = self.mark.split("=")
        env = {k: v for k, v in os.environ.items() if k != "REDIS_URL"}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                # A shell lets what it runs in the background ignore SIGINT, and children inherit that.
                ["env", "--default-signal=INT", sys.executable, "-m", "example_project.demo"],
                cwd=ROOT,
                env={**env, name: value, "TMPDIR": str(directory)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def output(self) -> str:
        return self.log.read_text()

    def processes(self) -> list[str]:
        """Return the command lines of its processes that are alive."""
        alive = []
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                marked = self.mark.encode() in (directory / "environ").read_bytes().split(b"\0")
                # redis-server writes its title over its environment.
                if marked or str(self.directory) in os.readlink(directory / "cwd"):
                    alive.append((directory / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return alive


@pytest.fixture
def demo(tmp_path: Path, redis_binary: Path) -> Iterator[Demo]:
    if sys.platform != "linux":
        pytest.skip("looks for left-over processes in /proc")
    (tmp_path / "demo").mkdir()
    demo = Demo(tmp_path / "demo")
    yield demo
    demo.process.kill()
    demo.process.wait()


@pytest.mark.takes(28)
@pytest.mark.timeout(180)
def test_the_demo_counts_every_fire_time_and_leaves_nothing_behind(demo: Demo):
    assert demo.process.wait(120) == 0, demo.output()
    counts = {row["entry"]: [int(n) for n in row.groups()[1:]] for row in ROW.finditer(demo.output())}
    assert len(counts) == 6, demo.output()
    for expected, *outcomes in counts.values():
        assert expected == sum(outcomes), demo.output()
    # Each as [expected, fired, recovered, merged, missed]; the outage takes ten seconds.
    assert counts["reports"][2] >= 4
    assert counts["reports"][3:] == [0, 0]
    assert counts["stock prices"][4] >= 9
    assert counts["stock prices"][2:4] == [0, 0]
    assert counts["clean-up"][2] == 1
    assert counts["clean-up"][3] >= 3
    assert counts["billing reminders"][2] == 1
    assert counts["billing reminders"][3] >= 3
    assert counts["baskets"][4] >= 9
    assert counts["close invoice"] == [1, 0, 1, 0, 0]
    assert "smart_policy -> reschedule_next_with_remaining_count" in demo.output()
    assert demo.output().count("get() raised TaskMissed") == 2
    assert max(map(len, demo.output().splitlines())) <= 110
    assert demo.processes() == []
    assert list(demo.directory.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_interrupted_demo_stops_everything(demo: Demo, number: signal.Signals):
    wait_for(lambda: "running" in demo.output(), timeout=60)
    assert len(demo.processes()) >= 4
    demo.process.send_signal(number)
    assert demo.process.wait(30) == 128 + number
    assert demo.processes() == []
    assert list(demo.directory.iterdir()) == []


def test_a_killed_demo_takes_its_children_with_it(demo: Demo):
    wait_for(lambda: "running" in demo.output(), timeout=60)
    demo.process.kill()
    demo.process.wait()
    wait_for(lambda: not demo.processes(), what="the end of the children")


def sent(entry: str, scheduled: int, **more: Any) -> dict[str, Any]:
    line = {"event": "sent", "entry": entry, "outcome": "fired", "scheduled": scheduled, "merged": 0}
    return {**line, "id": f"{entry} {scheduled}", **more}


def run(entry: str, scheduled: int) -> dict[str, Any]:
    return {
        "entry": entry,
        "scheduled_fire_time": datetime.fromtimestamp(scheduled / 1000, UTC).isoformat(" ")[:-6],
    }


# The clean-up is due each two seconds; its second and third run misfired.
MISFIRE = {"event": "misfire", "entry": "clean-up", "resolved": "fire_once_now", "now": 17_500}
RECOVERED = sent("clean-up", 14_000, outcome="recovered", merged=1)
LINES = [sent("clean-up", 12_000), MISFIRE, RECOVERED, sent("clean-up", 18_000)]
RUNS = [run("clean-up", moment) for moment in (12_000, 14_000, 18_000)]
GIVEN_UP = {"event": "missed", "entry": "clean-up", "first": 18_000, "count": 1, "reason": "queue_late"}


@pytest.mark.parametrize(
    ("lines", "runs", "complaint"),
    [
        (LINES, RUNS, None),
        ([*LINES, LINES[0]], RUNS, None),
        ([*LINES, GIVEN_UP], RUNS[:2], None),
        (LINES[:2] + LINES[3:], RUNS, "clean-up: 4 fire times, but {'fired': 2, 'merged': 0}"),
        ([*LINES[:2], RECOVERED | {"merged": 2}, LINES[3]], RUNS, "clean-up: 4 fire times, but "),
        (LINES, RUNS[:2], "clean-up: 1 runs were sent and left nothing in the database"),
        ([*LINES, sent("clean-up", 17_000)], [*RUNS, run("clean-up", 17_000)], "clean-up: 1 runs at times"),
        ([LINES[0], LINES[3]], RUNS, "clean-up: did not misfire"),
    ],
    ids=[
        "all there",
        "sent twice",
        "given up by a worker",
        "one lost",
        "one too many",
        "not run",
        "at a wrong time",
        "no misfire",
    ],
)
def test_the_count_notices_what_does_not_add_up(lines: list[Any], runs: list[Any], complaint: str | None):
    tallies = {"clean-up": tally(lines, 19_000)["clean-up"]}
    wrong = check(tallies, runs, 19_000)
    assert wrong == [] if complaint is None else any(text.startswith(complaint) for text in wrong)
