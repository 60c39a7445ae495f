"""Real ``celery beat`` and ``celery worker`` processes of a small app, and the tap on its broker.

In a test::

    with Project(tmp_path, redis_server.url) as project:
        every_second = {"type": "interval", "seconds": 1}
        project.configure({"tick": {"schedule": every_second, "misfire": "do_nothing"}})
        beat = project.beat()
        wait_for(lambda: len(published(redis_server.url)) >= 3)
        beat.kill()
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import redis
from kombu.utils.json import loads

from celery_misfire.records import EntryRecord
from celery_misfire.records import loads as loads_record
from celery_misfire.store.port import LeaseValue, Taken
from celery_misfire.store.redis_store import RedisStore
from example_project.child_process import Child
from tests.support import fork_server
from tests.support.log_lines import one_by_one

ROOT = Path(__file__).parents[2]

NAMESPACE = "acceptance"

T = TypeVar("T")


def wait_for(predicate: Callable[[], T], timeout: float = 40.0, *, every: float = 0.05, what: str = "") -> T:
    """Call `predicate` until its answer is true, and return that answer.

    :raises AssertionError: after `timeout` seconds; the message has `what` and the last answer.
    """
    deadline = time.monotonic() + timeout
    while not (answer := predicate()):
        assert time.monotonic() < deadline, f"waited {timeout} s for {what or predicate}; last: {answer!r}"
        time.sleep(every)
    return answer


def freeze(child: Child) -> None:
    """Stop a child and those that it started without ending them (SIGSTOP), and return when they stand still.

    A signal is sent sooner than it takes effect: on a busy machine a server could still answer in between.
    """
    child.signal(signal.SIGSTOP)
    wait_for(lambda: all(state in "TtZX" for state in _thread_states(child.pid)), every=0.005, what="a stop")


def _thread_states(group: int) -> Iterator[str]:
    """Return the letters by which Linux tells how the threads of a process group are; none elsewhere."""
    for process in Path("/proc").glob("[0-9]*"):
        # A process may end while its state is read.
        with contextlib.suppress(OSError):
            if os.getpgid(int(process.name)) == group:
                for thread in process.glob("task/*/stat"):
                    yield thread.read_text().rpartition(")")[2].split()[0]


class CeleryProcess(Child):
    """A running ``celery`` command; beside what a :class:`Child` can do, it can be frozen.

    :param arguments: of the command.
    """

    def __init__(self, arguments: Sequence[str], *, log: Path, env: Mapping[str, str], cwd: Path) -> None:
        super().__init__([sys.executable, "-m", "celery", *arguments], log=log, env=env, cwd=cwd)

    def _start(self, argv: list[str], env: Any, cwd: Any) -> Any:
        arguments = argv[3:]
        if not fork_server.can_start(arguments, env):
            return super()._start(argv, env, cwd)
        return fork_server.start(arguments, log=self.log, cwd=cwd, env=env)

    def freeze(self) -> None:
        """Stop the process without ending it (SIGSTOP)."""
        freeze(self)

    def thaw(self) -> None:
        """Let a frozen process go on (SIGCONT)."""
        self.signal(signal.SIGCONT)


class Project:
    """A Celery app in a directory of its own, whose processes all end with the ``with`` block.

    :param directory: takes configuration, logs (``beat.log``, ``worker.log``, ...) and records.
    :param url: Redis URL, for broker, results and the misfire store alike.
    """

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self._processes: list[CeleryProcess] = []
        self.configure({})

    def configure(
        self, entries: Mapping[str, Mapping[str, Any]], *, install: bool = True, **settings: Any
    ) -> None:
        """Write the configuration that processes started from now on read.

        :param entries: ``beat_schedule`` as :mod:`tests.support.schedules` describes it.
        :param install: call ``celery_misfire.install(app)``.
        :param settings: Celery settings, on top of the scheduler, the URLs, the namespace ``acceptance`` and
            quick lease times (ttl 2 s, renewed each 0.5 s, standby looks each 0.2 s).
        """
        defaults = {
            "broker_url": self.url,
            "result_backend": self.url,
            "broker_connection_retry_on_startup": True,
            "beat_scheduler": "celery_misfire.beat:MisfireScheduler",
            "beat_schedule_filename": str(self.directory / "celerybeat-schedule"),
            "misfire_namespace": NAMESPACE,
            "misfire_lease_ttl": 2,
            "misfire_lease_renew": 0.5,
            "misfire_standby_poll": 0.2,
        }
        config = {
            "settings": defaults | settings,
            "entries": dict(entries),
            "records": str(self._records),
            "signals": str(self._signals),
            "install": install,
        }
        self._config.write_text(json.dumps(config))

    def beat(self, *options: str, name: str = "beat", env: Mapping[str, str] | None = None) -> CeleryProcess:
        """Start ``celery beat``, and return at once.

        :param options: further options of the command.
        :param name: of the log file; processes of one name share it.
        :param env: further environment variables.
        """
        return self.celery("beat", "--pidfile=", "--loglevel=INFO", *options, name=name, env=env)

    def leading_beat(self, name: str = "beat") -> CeleryProcess:
        """Start ``celery beat``, and return when it has taken over."""
        terms = len(self.terms())
        beat = self.beat(name=name)
        wait_for(lambda: len(self.terms()) > terms or not beat.alive, 60, what="beat to lead")
        assert beat.alive, self.log(name)[-2000:]
        return beat

    def beat_at_gate(self, name: str = "beat", *, wait: bool = True) -> Callable[[], CeleryProcess]:
        """Start ``celery beat``, and hold it when it is ready to begin its work.

        :param wait: return when it is held; else at once.
        :returns: to be called when it is to begin; returns the process.
        """
        gate = self.directory / f"gate-{uuid.uuid4()}"
        beat = self.beat(name=name, env={"MISFIRE_TEST_GATE": str(gate)})

        def wait_until_held() -> None:
            wait_for(lambda: Path(f"{gate}.ready").exists() or not beat.alive, timeout=60, what="the beat")
            assert beat.alive, self.log(name)[-2000:]

        def open_gate() -> CeleryProcess:
            wait_until_held()
            gate.touch()
            return beat

        if wait:
            wait_until_held()
        return open_gate

    def worker(
        self,
        *options: str,
        pool: str = "solo",
        name: str = "worker",
        wait: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> CeleryProcess:
        """Start ``celery worker``, and return when it is ready (or at once, without `wait`)."""
        started_at = len(self.log(name))
        host = f"--hostname={name}@test"
        fixed = ("worker", f"--pool={pool}", host, "--loglevel=INFO", "--without-mingle")
        worker = self.celery(*fixed, *options, name=name, env=env)
        if wait:
            wait_for(lambda: " ready." in self.log(name)[started_at:] or not worker.alive, what="the worker")
            assert worker.alive, self.log(name)[-2000:]
        return worker

    def kill_elsewhere(self, beat: CeleryProcess) -> LeaseValue:
        """Kill a beat that leads as if it were on another host, where nobody here sees its end.

        :returns: the lease that it leaves, which lasts for its whole time to live.
        """
        beat.freeze()
        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            key = RedisStore(self.url, NAMESPACE).lease_key
            held = LeaseValue.parse(client.get(key) or "")
            lease = replace(held, owner=f"elsewhere:{beat.pid} {held.owner.partition(' ')[2]}")
            client.set(key, str(lease), keepttl=True)
        beat.kill()
        return lease

    def celery(
        self,
        *arguments: str,
        name: str,
        env: Mapping[str, str] | None = None,
        app: str = "tests.support.apps",
    ) -> CeleryProcess:
        """Start any ``celery`` command of an app: ours, or that of a module in our directory."""
        process = CeleryProcess(
            ["-A", app, *arguments],
            log=self.directory / f"{name}.log",
            cwd=self.directory,
            env={**os.environ, **self.env, **(env or {})},
        )
        self._processes.append(process)
        return process

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment to load the app."""
        return {
            "MISFIRE_TEST_CONFIG": str(self._config),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
        }

    def log(self, name: str = "beat") -> str:
        """Return what the processes of this name have written so far."""
        path = self.directory / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def records(self) -> list[dict[str, Any]]:
        """Return the lines of the recorder task, in the order in which the runs started.

        Each has ``task_id``, ``label``, ``misfire`` (the header), ``fire`` (what ``current_fire()`` returns,
        moments as text), ``started`` (seconds since 1970), ``retries``, ``redelivered`` and ``pid``.
        """
        return _json_lines(self._records)

    def signals(self, signal: str | None = None) -> list[dict[str, Any]]:
        """Return what the receivers of ``misfire_detected``, ``task_missed`` and ``task_failure`` got, and
        the handler task ``on_missed``, oldest first; `signal` takes one of the four.
        """
        return [line for line in _json_lines(self._signals) if signal in (None, line["signal"])]

    def decisions(self) -> list[dict[str, Any]]:
        """Return the lines of the store's log, oldest first: what beat decided and did."""
        return list(one_by_one(RedisStore(self.url, NAMESPACE).log()))

    def terms(self) -> list[dict[str, Any]]:
        """Return the lines of the store's log that say that a beat has taken over."""
        return [line for line in self.decisions() if line["event"] == "lead"]

    def state(self, entry: str) -> EntryRecord | None:
        """Return what the store holds of an entry."""
        text = RedisStore(self.url, NAMESPACE).load().get(entry)
        return None if text is None else loads_record(text)

    def make_state(self) -> None:
        """Write the state of a beat without entries, so that there is a past in which new ones can be due."""
        store = RedisStore(self.url, NAMESPACE)
        assert isinstance(store.acquire("past", ttl=10), Taken), "a beat is running"
        store.write_meta("past", NAMESPACE)
        store.release("past")

    def stop(self) -> None:
        """Kill every process that was started here: a clean stop is for tests that look at it."""
        for process in self._processes:
            process.kill()
        self._processes.clear()

    @property
    def _config(self) -> Path:
        return self.directory / "config.json"

    @property
    def _records(self) -> Path:
        return self.directory / "records.jsonl"

    @property
    def _signals(self) -> Path:
        return self.directory / "signals.jsonl"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def warnings(log: str) -> list[str]:
    """Return the lines of a log that warn or worse, but for the advice about the test's own set-up."""
    lines = [line for line in log.splitlines() if re.search(r": (WARNING|ERROR|CRITICAL)/", line)]
    # A Redis that forgets, and many runs that are to come at once, are what tests are made of.
    advice = ("it keeps nothing on disk", "is not less than the interval of")
    return [line for line in lines if not any(text in line for text in advice)]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    # The last line may be half written.
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


@dataclass(frozen=True)
class Message:
    """A published task message.

    :param headers: everything in the message's headers, ``misfire`` among it.
    """

    id: str
    task: str
    headers: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]

    @property
    def misfire(self) -> dict[str, Any] | None:
        return self.headers.get("misfire")


class Tap:
    """Follows a queue as it grows, and leaves everything there. For queues that nobody else takes from."""

    def __init__(self, url: str, queue: str = "celery") -> None:
        self._client, self._queue, self._seen = redis.Redis.from_url(url), queue, 0

    def __len__(self) -> int:
        """How many messages there are by now, those that :meth:`read` has not returned yet included."""
        return self._client.llen(self._queue)

    def read(self) -> list[Message]:
        """Return what has come since the last call, oldest first."""
        raw = self._client.lrange(self._queue, 0, -1 - self._seen)
        self._seen += len(raw)
        return _messages(raw)


def published(url: str, queue: str = "celery") -> list[Message]:
    """Return the messages that wait in a queue, oldest first, and leave them there."""
    with redis.Redis.from_url(url) as client:
        return _messages(client.lrange(queue, 0, -1))


def drain(url: str, queue: str = "celery") -> list[Message]:
    """Return the messages that wait in a queue, oldest first, and remove them."""
    with redis.Redis.from_url(url) as client:
        waiting, _ = client.pipeline(transaction=True).lrange(queue, 0, -1).delete(queue).execute()
        return _messages(waiting)


def _messages(raw: list[bytes]) -> list[Message]:
    # Kombu pushes on the left and takes from the right.
    return [_message(json.loads(item)) for item in reversed(raw)]


def _message(envelope: dict[str, Any]) -> Message:
    headers = envelope["headers"]
    args, kwargs, _embed = loads(base64.b64decode(envelope["body"]))
    return Message(id=headers["id"], task=headers["task"], headers=headers, args=args, kwargs=kwargs)
