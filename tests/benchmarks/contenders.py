"""Who is measured, and how each is started on the same load."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import kombu
import redis

from celery_misfire.store.redis_store import RedisStore
from example_project.child_process import Child
from tests.benchmarks.app import Load
from tests.support.django_project import SCHEDULER, connected, migrate, sqlite
from tests.support.django_project import STOCK as STOCK_SCHEDULER
from tests.support.processes import ROOT, wait_for
from tests.support.rabbitmq import RabbitMQ, find_rabbitmq
from tests.support.redis_server import RedisServer

#: The queue of all messages.
QUEUE = "celery"


@dataclass(frozen=True)
class Contender:
    """One way to send.

    :param scheduler: of beat; '' for the bare loop.
    :param worker: a worker, on what our beat has sent; it is ours if `scheduler` is.
    :param state: number of the Redis database that holds our state; the broker's is 0.
    :param largest: so many entries at once at most, where each tick costs time for every entry.
    """

    name: str
    scheduler: str = ""
    state: int = 0
    rabbitmq: bool = False
    worker: bool = False
    django: bool = False
    largest: int = sys.maxsize


BARE = Contender("bare `apply_async` loop")
CELERY = Contender("celery.beat", "celery.beat:PersistentScheduler", largest=1000)
REDBEAT = Contender("celery-redbeat", "redbeat.RedBeatScheduler")
STOCK = Contender("django-celery-beat", STOCK_SCHEDULER, django=True, largest=1000)
OURS = Contender("celery-misfire, one Redis", "celery_misfire.beat:MisfireScheduler")
OURS_APART = replace(OURS, name="celery-misfire, state in another Redis database", state=1)
OURS_RABBITMQ = replace(OURS, name="celery-misfire, RabbitMQ with confirms", rabbitmq=True)
BARE_RABBITMQ = replace(BARE, name="bare `apply_async` loop, RabbitMQ without confirms", rabbitmq=True)
BARE_WORKER = Contender("worker without celery-misfire", worker=True)
OURS_WORKER = replace(BARE_WORKER, name="worker with celery-misfire", scheduler=OURS.scheduler)
OURS_DJANGO = replace(STOCK, name="celery-misfire, Django rows", scheduler=SCHEDULER, largest=sys.maxsize)


class Running:
    """A process at work, what can be seen of it from outside, and how many messages are ``queued()``."""

    def __init__(self, child: Child, ready: Path, length: Callable[[], int]) -> None:
        self._child, self._ready, self.begun = child, ready, time.time()
        self.queued = length

    def wait_until_ready(self) -> float:
        """Return how many seconds it took to the first tick."""
        wait_for(lambda: self._ready.exists() or not self._child.alive, 300, every=0.01, what="a tick")
        assert self._child.alive, self._child.output()[-3000:]
        return float(self._ready.read_text()) - self.begun

    def cpu(self) -> float:
        """Return the CPU time of the process in seconds, as the kernel counts it."""
        tasks = Path(f"/proc/{self._child.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def memory(self) -> float:
        """Return the memory of the process in MB."""
        status = Path(f"/proc/{self._child.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


class Arena(ExitStack):
    """The servers, which end with the ``with`` block; ``ways`` has how ours dispatched, as its log says."""

    def __init__(self) -> None:
        super().__init__()
        self.redis = RedisServer()
        self._rabbitmq: RabbitMQ | None = None
        self.ways: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.directory = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.enter_context(self.redis)
        migrate(sqlite(self.directory / "migrated.sqlite3"))
        return self

    def has(self, contender: Contender) -> bool:
        """True when its broker is there; RabbitMQ is started with the first who needs it."""
        if contender.rabbitmq and self._rabbitmq is None and (program := find_rabbitmq()):
            self._rabbitmq = self.enter_context(RabbitMQ(program))
        return not contender.rabbitmq or self._rabbitmq is not None

    def held(self, contender: Contender) -> int:
        """Return how many bytes Redis holds beside the queue."""
        total = 0
        for number in {0, contender.state}:
            with redis.Redis(port=self.redis.port, db=number) as client:
                keys = [key for key in client.scan_iter(count=1000) if key != QUEUE.encode()]
                total += sum(client.memory_usage(key, samples=0) or 0 for key in keys)
        return total

    def new_place(self) -> Path:
        """Return an empty directory, on empty servers."""
        self.redis.client().flushall()
        return Path(tempfile.mkdtemp(dir=self.directory))

    @contextmanager
    def running(self, contender: Contender, load: Load, place: Path | None = None) -> Iterator[Running]:
        """Start a contender, and kill it in the end.

        :param place: its directory, in which it may have run before; None: on empty servers.
        """
        place = place or self.new_place()
        if contender.rabbitmq:
            assert self._rabbitmq is not None
            self._rabbitmq.delete(QUEUE)
            self._rabbitmq.declare(QUEUE)
        load = replace(load, settings={**self._settings(contender, place), **load.settings})
        if load.behind:
            # Where no state is found, no entry has a past.
            store = RedisStore(load.settings["misfire_redis_url"], load.settings["misfire_namespace"])
            store.acquire("past", 10)
            store.write_meta("past", "bench")
            store.release("past")
        env = {"BENCH": json.dumps(asdict(load)), "BENCH_READY": str(place / "ready")}
        if contender.django:
            env |= self._rows(place, load)
        (place / "ready").unlink(missing_ok=True)
        # At INFO, Celery writes a line for each message.
        app, quiet = Load.__module__, "--loglevel=WARNING"
        arguments = [app]
        if contender.worker:
            # Without the bus, nothing but messages costs anything.
            alone = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
            arguments = ["celery", "-A", app, "worker", "--pool=solo", *alone, quiet]
        elif contender.scheduler:
            arguments = ["celery", "-A", app, "beat", "--pidfile=", quiet]
        command = [sys.executable, "-m", *arguments]
        paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        child = Child(command, log=place / "log", cwd=place, env={**os.environ, **paths, **env})
        running = Running(child, place / "ready", self._length(contender))
        try:
            yield running
            if way := re.search(r"transactional|in one transaction|two-step|two steps", child.output()):
                self.ways[contender.name] = way[0]
        finally:
            child.kill()

    def _settings(self, contender: Contender, place: Path) -> dict[str, Any]:
        rabbitmq = self._rabbitmq if contender.rabbitmq else None
        return {
            "broker_url": rabbitmq.url if rabbitmq else self.redis.url,
            "beat_scheduler": contender.scheduler or CELERY.scheduler,
            "imports": ("celery_misfire.worker",) if contender.worker and contender.scheduler else (),
            "beat_schedule_filename": str(place / "celerybeat-schedule"),
            "misfire_namespace": "bench",
            "misfire_redis_url": f"redis://127.0.0.1:{self.redis.port}/{contender.state}",
            "redbeat_redis_url": self.redis.url,
        }

    def _rows(self, place: Path, load: Load) -> dict[str, str]:
        path = place / "site.sqlite3"
        database, rows = sqlite(path), []
        env = {
            "DJANGO_SETTINGS_MODULE": "tests.support.django_settings",
            "MISFIRE_TEST_DJANGO": json.dumps({"DATABASES": {"default": database}}),
        }
        if path.exists():
            return env
        shutil.copy(self.directory / "migrated.sqlite3", path)
        with connected(database):
            from django_celery_beat.models import IntervalSchedule, PeriodicTask

            interval = IntervalSchedule.objects.create(every=round(load.interval), period="seconds")
            same = {"task": "noop", "interval": interval}
            for n in range(load.count):
                own = {"name": f"entry {n}", "args": f"[{n}]", "last_run_at": load.last_run(n)}
                rows.append(PeriodicTask(**same, **own))
            PeriodicTask.objects.bulk_create(rows, batch_size=1000)
        return env

    def _length(self, contender: Contender) -> Callable[[], int]:
        if not contender.rabbitmq:
            client = self.redis.client()
            return lambda: client.llen(QUEUE)
        assert self._rabbitmq is not None
        connection: kombu.Connection = self.enter_context(self._rabbitmq.connection())
        channel = connection.channel()
        return lambda: channel.queue_declare(QUEUE, passive=True).message_count
