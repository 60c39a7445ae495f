"""Who holds the lease: when its process is known to be dead, and when it is not."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_misfire.store.owner import is_alive, is_dead, name_of, this_process
from celery_misfire.store.port import LeaseValue
from tests.support.processes import wait_for

HERE = "vm:4711 0f1e2d3c-4b5a/4026531836/815"
ON_LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


@pytest.mark.parametrize(
    ("owner", "started", "alive"),
    [
        ("vm:23 0f1e2d3c-4b5a/4026531836/42", 0, False),
        ("vm:23 0f1e2d3c-4b5a/4026531836/42", 43, False),
        ("vm:23 0f1e2d3c-4b5a/4026531836/42 of a newer version", 0, False),
        ("vm:23 0f1e2d3c-4b5a/4026531836/42", 42, True),
        ("vm:23 0f1e2d3c-4b5a/4026531836/42", None, None),
        ("container:23 0f1e2d3c-4b5a/4026531836/42", 0, None),
        ("vm:23 ffffffff-0000/4026531836/42", 0, None),
        ("vm:23 0f1e2d3c-4b5a/4026532000/42", 0, None),
        ("vm:1 0f1e2d3c-4b5a/4026532000/42", 43, None),
        ("vm:23", 0, None),
        ("vm:0 0f1e2d3c-4b5a/4026531836/42", 0, None),
        ("vm:-1 0f1e2d3c-4b5a/4026531836/42", 0, None),
        ("vm:99999999999999999999 0f1e2d3c-4b5a/4026531836/42", 0, None),
        ("not ours", 0, None),
        ("", 0, None),
    ],
)
def test_an_owner_lives_while_its_pid_is_its_own_which_is_known_in_the_same_namespace_alone(
    owner: str, started: int | None, alive: bool | None
):
    def start_of(pid: int) -> int | None:
        assert pid in (1, 23)
        return started

    assert is_alive(owner, HERE, start_of) is alive


def test_where_the_system_tells_no_more_than_the_pid_nothing_is_known():
    assert is_alive("vm:23 0f1e/4026531836/42", "vm:4711", lambda pid: 0) is None


def test_people_see_host_and_pid():
    assert name_of("vm:23 0f1e/4026531836/42") == "vm:23"
    for other in ("vm:23", "host:4711:boot;id 5", "two words", ""):
        assert name_of(other) == other


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has told who it is, and waits to be killed."""
    code = "from celery_misfire.store.owner import this_process; print(this_process(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


def owner_of(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout
    return process.stdout.readline().decode().strip()


@ON_LINUX
def test_a_process_is_dead_from_its_end_on_also_before_it_is_reaped(sleeper: subprocess.Popen[bytes]):
    owner = owner_of(sleeper)
    assert name_of(owner) == f"{socket.gethostname()}:{sleeper.pid}"
    assert LeaseValue.parse(f"token|1|0|{owner}").owner == owner
    assert not is_dead(owner)
    sleeper.kill()
    # Nobody has waited for it: it is a zombie.
    wait_for(lambda: is_dead(owner), what="the end")
    assert Path(f"/proc/{sleeper.pid}").exists()
    sleeper.wait()
    assert is_dead(owner)


@ON_LINUX
def test_a_pid_that_was_given_to_another_process_is_not_the_owner():
    ours = this_process()
    assert not is_dead(ours)
    before, _, started = ours.rpartition("/")
    assert is_dead(f"{before}/{int(started) - 1}")


@ON_LINUX
def test_a_program_whose_name_looks_like_the_fields_of_proc_is_found(tmp_path: Path):
    program = tmp_path / ") Z 1 2 3"
    program.symlink_to(shutil.which("sleep") or "sleep")
    ours = this_process()
    with subprocess.Popen([program, "60"]) as process:
        try:
            wait_for(lambda: "Z 1" in Path(f"/proc/{process.pid}/comm").read_text(), what="the program")
            started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
            place = ours.split()[1].rpartition("/")[0]
            assert not is_dead(f"{socket.gethostname()}:{process.pid} {place}/{started}")
        finally:
            process.kill()


def can_unshare() -> bool:
    tried = ["unshare", "-Urpf", "--mount-proc", "true"]
    return bool(shutil.which("unshare")) and subprocess.run(tried, check=False).returncode == 0


@ON_LINUX
@pytest.mark.skipif(not can_unshare(), reason="needs the right to make a pid namespace")
@pytest.mark.parametrize("options", [["--mount-proc"], []])
def test_the_first_process_of_a_namespace_of_its_own_is_neither_known_to_us_nor_we_to_it(options: list[str]):
    """Two containers on one host, which may have one host name: each has a pid 1."""
    code = (
        "import sys; from celery_misfire.store.owner import *;"
        "print(this_process(), *map(is_dead, sys.argv[1:]), sep='\\n')"
    )
    ours, gone = this_process(), f"{socket.gethostname()}:999999 {this_process().split()[1]}"
    told = subprocess.run(
        ["unshare", "-Urpf", *options, sys.executable, "-c", code, ours, gone],
        capture_output=True,
        check=True,
        text=True,
    )
    owner, *found = told.stdout.splitlines()
    assert name_of(owner) == f"{socket.gethostname()}:1"
    assert found == ["False", "False"]
    # It has ended, and so its namespace is gone.
    assert not is_dead(owner)
    assert is_dead(gone)
    # With the /proc of its parent, it cannot tell which process it is.
    assert (owner == name_of(owner)) is (options == [])


@ON_LINUX
def test_this_process_is_told_anew_after_a_fork():
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, this_process().encode())
        os._exit(0)
    os.waitpid(child, 0)
    told = os.read(read, 1000).decode()
    assert name_of(told) == f"{socket.gethostname()}:{child}"
    assert told != this_process()
