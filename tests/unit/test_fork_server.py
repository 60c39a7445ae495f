from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import fork_server
from tests.support.processes import ROOT, CeleryProcess, Project, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the server is for Linux")

#: Tells what a process has been given.
TELLS = """
import json, os, signal, sys, time
from celery import Celery
app = Celery("tells", broker="memory://")
print(json.dumps({
    "arguments": sys.argv[1:], "path": sys.path, "place": os.getcwd(), "environment": dict(os.environ),
    "zone": time.tzname, "leads": os.getpgrp() == os.getpid(), "input": os.fstat(0).st_rdev,
    "output": [os.path.samestat(os.fstat(number), os.stat("tells.log")) for number in (1, 2)],
    "files": len(os.listdir("/proc/self/fd")), "hidden": bool(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "ours": sorted(name for name in sys.modules if name.startswith("celery_misfire")),
}))
if os.environ.get("WAITS"):
    time.sleep(600)
"""


def start(directory: Path, **env: str) -> CeleryProcess:
    (directory / "tells.py").write_text(TELLS)
    env = {**os.environ, **Project(directory, "").env, "TZ": "Asia/Tokyo", **env}
    return CeleryProcess(["-A", "tells", "report"], log=directory / "tells.log", env=env, cwd=directory)


def told(process: CeleryProcess) -> dict[str, Any]:
    line = wait_for(lambda: process.output().partition("\n")[0] or not process.alive)
    answer: dict[str, Any] = json.loads(line)
    return answer


def test_a_fork_is_given_what_a_fresh_process_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fork = start(tmp_path)
    assert isinstance(fork._process, fork_server.Forked)
    wait_for(lambda: not fork.alive)
    found = told(fork)
    fork.log.unlink()
    monkeypatch.setattr(fork_server, "can_start", lambda *_: False)
    fresh = start(tmp_path)
    wait_for(lambda: not fresh.alive)
    assert found == told(fresh)
    assert fork.exit_code == fresh.exit_code == 0


def test_a_command_that_changes_python_itself_is_no_fork(tmp_path: Path):
    process = start(tmp_path, PYTHONHASHSEED="1")
    assert isinstance(process._process, subprocess.Popen)
    process.kill()
    assert not fork_server.can_start(["worker", "--pool=gevent"], fork_server._ENVIRONMENT)


def test_the_end_of_a_fork_is_known(tmp_path: Path):
    process = start(tmp_path, WAITS="1")
    told(process)
    assert process.alive
    with pytest.raises(subprocess.TimeoutExpired):
        process._process.wait(0.01)
    process.signal(signal.SIGTERM)
    assert process._process.wait(30) == -signal.SIGTERM
    assert (process.alive, process.exit_code) == (False, -signal.SIGTERM)
    process.kill()


def test_forks_end_with_the_process_that_asked_for_them(tmp_path: Path):
    script = f"""
import os, signal
from pathlib import Path
from tests.unit.test_fork_server import start, told
process = start(Path({str(tmp_path)!r}), WAITS="1")
told(process)
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_for(lambda: not Path(f"/proc/{int(done.stdout)}").exists(), what="the fork to end")
