"""The protocols of dispatch, checked by SPIN through every order of events: what must hold holds, and each
switch that takes one rule away breaks something.

The models say in their heads what they cover. One by hand: ``spin -DFLUSHES=1 -a transactional.pml``, then
``cc -DSAFETY -o pan pan.c`` and ``./pan``; after a failure ``spin -t -p -DFLUSHES=1 transactional.pml`` shows
what happened.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).parent
#: Memory that one search may take, in MB.
MOST_MEMORY = 6000

ONE_BEAT = ("BEATS=1",)
IN_TIME = ("LATE=0",)
A_STORE_THAT_GOES_BACK = ("BEATS=1", "CRASHES=0", "LOSSES=0", "ROLLBACKS=1", *IN_TIME)

#: What one verdict looks like in the output: the assertion, as SPIN prints it.
STANDS_TWICE = "stood[i]<=1"
LOST = "queue[i]+runs[i])>=1"
RUNS_TWICE = "runs[i]<=(1+excused[i])"
UNDECIDED = "record[i]!=0"


class Checker:
    """Compiles a model and searches all that can happen in it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(self, model: str, *switches: str, large: bool = False) -> str:
        """Return the violation that was found first, '' for none.

        :param switches: of the model, with or without a value.
        :param large: keep the states in less memory, which takes more time.
        """
        options = [f"-D{switch}" for switch in switches]
        self._run("spin", *options, "-a", str(MODELS / f"{model}.pml"))
        limits = (f"-DMEMLIM={MOST_MEMORY}", "-DVECTORSZ=2048", *(("-DCOLLAPSE",) if large else ()))
        # Where the search is short, most of the time goes into the compiler.
        level = "-O1" if large else "-O0"
        self._run("cc", level, "-w", "-DSAFETY", *limits, "-o", "pan", "pan.c")
        # Deep enough for all of them: a search that is cut off says so, and proves nothing.
        output = self._run("./pan", "-m100000")
        found = re.search(r"errors: (\d+)", output)
        assert found, output
        assert "search not completed" not in output or found[1] != "0", output
        assert "max search depth too small" not in output, output
        violation = re.search(r"^pan:1: (.*) \(at depth", output, re.MULTILINE)
        assert (violation is None) == (found[1] == "0"), output
        return violation[1] if violation else ""

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self._directory, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def check(tmp_path: Path) -> Checker:
    """The checker; without spin or a C compiler the test is skipped, and fails when REQUIRE_SERVICES=1."""
    missing = [program for program in ("spin", "cc") if shutil.which(program) is None]
    if missing and os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(f"not on this machine: {missing}")
    if missing:
        pytest.skip(f"not on this machine: {missing}")
    return Checker(tmp_path)


@pytest.mark.parametrize(
    "switches",
    [
        pytest.param(("CRASHES=1", "LOSSES=1"), id="two beats"),
        pytest.param((*ONE_BEAT, "FAULTS=1", "RESENDS=1", "LOSSES=2"), id="pushes that fail"),
        pytest.param((*ONE_BEAT, "ROLLBACKS=1"), id="a snapshot"),
        pytest.param((*ONE_BEAT, "ROLLBACKS=1", "WORKER=0"), id="a snapshot, no worker"),
        pytest.param((*ONE_BEAT, "FLUSHES=1"), id="an empty store"),
    ],
)
def test_in_one_transaction_a_run_stands_in_the_queue_once(check: Checker, switches: tuple[str, ...]) -> None:
    assert check("transactional", *switches) == ""


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "switches",
    [
        ("CRASHES=0", "ROLLBACKS=1"),
        ("CRASHES=0", "FLUSHES=1"),
        ("CRASHES=1", "FAULTS=1", "RESENDS=1"),
        ("BEATS=1", "CRASHES=2", "LOSSES=2", "ROLLBACKS=1", "FLUSHES=1"),
    ],
    ids=" ".join,
)
def test_in_one_transaction_with_more_trouble(check: Checker, switches: tuple[str, ...]) -> None:
    assert check("transactional", *switches, large=True) == ""


@pytest.mark.parametrize(
    ("switches", "violated"),
    [
        (("LEAVES_WHILE_BUILT",), STANDS_TWICE),
        (("SAME_TOKEN", *ONE_BEAT, "FLUSHES=1"), RUNS_TWICE),
        (("SAME_TOKEN", "NO_COMPARE", *ONE_BEAT), STANDS_TWICE),
        (("MEMORY_WINS", *ONE_BEAT, "ROLLBACKS=1"), LOST),
        (("PUSH_BEFORE_CHECK",), STANDS_TWICE),
        (("RECORD_BEFORE_PUSH", *ONE_BEAT, "FAULTS=1"), LOST),
        (("NO_UNDO", *ONE_BEAT, "FAULTS=1"), STANDS_TWICE),
        (("ONLY_CONFLICTS", *ONE_BEAT, "ROLLBACKS=1"), UNDECIDED),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_no_rule_of_the_transaction_can_be_left_out(
    check: Checker, switches: tuple[str, ...], violated: str
) -> None:
    assert violated in check("transactional", *switches)


def test_while_redis_keeps_its_data_the_records_fence_as_well_as_the_token_does(check: Checker) -> None:
    assert check("transactional", "SAME_TOKEN", "CRASHES=0") == ""


@pytest.mark.parametrize(
    "switches",
    [("CRASHES=1", "LOSSES=1"), A_STORE_THAT_GOES_BACK],
    ids=("two beats", "a store that goes back"),
)
def test_in_two_steps_a_run_takes_place_once(check: Checker, switches: tuple[str, ...]) -> None:
    assert check("two_step", *switches) == ""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_in_two_steps_with_more_trouble(check: Checker) -> None:
    assert check("two_step", "CRASHES=2", "LOSSES=2", "STEALS=3", large=True) == ""


@pytest.mark.parametrize(
    ("switches", "violated"),
    [
        (("NO_GUARD", *IN_TIME), "runs<=1"),
        (("PUBLISH_BEFORE_CLAIM", *IN_TIME), "(runs>0)&&(misses>0)"),
        (("ACK_BEFORE_PUBLISH",), "(runs+misses)==1"),
        (("MISSED_WITHOUT_REGISTER", *IN_TIME), "(runs>0)&&(misses>0)"),
        (("UNFENCED_REGISTER",), "(runs+misses)==1"),
        (("NO_FENCE",), "(runs+misses)==1"),
        (("NO_COMPARE",), "misses<=1"),
        (("CLOSES_WITHOUT_LOOK",), "(runs+misses)==1"),
        (("ACKS_WITHOUT_LOOK",), "(runs+misses)==1"),
        (("LOOKS_BEFORE_ACK",), "(runs+misses)==1"),
        (("FOLLOWS_STORE", *A_STORE_THAT_GOES_BACK), "runs<=1"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_no_rule_of_the_two_steps_can_be_left_out(
    check: Checker, switches: tuple[str, ...], violated: str
) -> None:
    assert violated in check("two_step", *switches)
