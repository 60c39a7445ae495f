"""The process that holds the lease: how the lease names it, and whether it is known to live.

The name is host and pid, for people. Behind it stands, where Linux tells it, what makes a process one of a
kind: the boot of its machine, its pid namespace, and when it started.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

#: A newer version may add more, behind another blank.
_OWNER = re.compile(
    r"(?P<name>(?P<host>\S+):(?P<pid>[1-9][0-9]{0,8})) "
    r"(?P<boot>[0-9a-f-]{1,64})/(?P<namespace>[0-9]{1,20})/(?P<started>[0-9]{1,20})(?: .*)?",
    re.DOTALL,
)


def name_of(owner: str) -> str:
    """Return host and pid of an owner; an owner of another form as it is."""
    found = _OWNER.fullmatch(owner)
    return found["name"] if found else owner


def this_process() -> str:
    """Return this process as the owner of a lease; where the system tells no more, host and pid alone."""
    name = f"{socket.gethostname()}:{os.getpid()}"
    try:
        pid, _, started = _stat("self")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except (OSError, ValueError, IndexError):
        return name
    # A process in a pid namespace of its own may see the /proc of another one, which numbers it otherwise.
    return f"{name} {boot}/{namespace}/{started}" if pid == os.getpid() else name


def _start_of(pid: int) -> int | None:
    """Return when a process of this pid namespace started, in clock ticks since the machine did.

    :returns: 0 for one that has ended, reaped or not; None when that cannot be told.
    """
    try:
        # /proc may hide the processes of others. This does not: then it is another error.
        os.kill(pid, 0)
    except ProcessLookupError:
        return 0
    except OSError:
        pass
    try:
        _, state, started = _stat(str(pid))
    except (OSError, ValueError, IndexError):
        return None
    return 0 if state in "ZX" else started


def _stat(process: str) -> tuple[int, str, int]:
    """Return pid, state and start of a process, from /proc."""
    # The name of the program comes second, in parentheses. It may hold anything, those included.
    before, _, after = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")
    fields = after.split()
    return int(before.split()[0]), fields[0], int(fields[19])


def is_alive(
    owner: str, ours: str | None = None, start_of: Callable[[int], int | None] = _start_of
) -> bool | None:
    """Return whether a process that is named like the owner of a lease lives, None when nobody can know.

    It is known of processes of this host, of its present boot and of our own pid namespace alone. A container
    that was started again has another namespace, where the same pid is somebody else.

    :param ours: this process.
    :param start_of: returns when a process started, 0 when it has ended, None when that cannot be told.
    """
    theirs, here = _OWNER.fullmatch(owner), _OWNER.fullmatch(this_process() if ours is None else ours)
    if theirs is None or here is None:
        return None
    if any(theirs[part] != here[part] for part in ("host", "boot", "namespace")):
        return None
    started = start_of(int(theirs["pid"]))
    return None if started is None else started == int(theirs["started"])


def is_dead(owner: str) -> bool:
    """Return True when the owner of a lease is known to have ended."""
    return is_alive(owner) is False
