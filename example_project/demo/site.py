"""The example site as real processes: database, worker, beat, and what they leave behind."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis

from celery_misfire.events import decode
from celery_misfire.store.redis_store import RedisStore
from example_project.child_process import Child, free_port

ROOT = Path(__file__).parents[2]

#: Who may log in where the demo serves the admin.
USER = PASSWORD = "demo"


class Site:
    """The example site in a directory of its own: its database, its worker and its beat."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory, self.url = directory, url
        self.database = directory / "shop.sqlite3"
        # Its own queue and state: REDIS_URL may be a Redis with other work in it.
        self.namespace = f"demo-{uuid.uuid4().hex[:8]}"
        self.invoice_due = datetime.now(UTC)
        self._children: list[Child] = []

    @property
    def environment(self) -> dict[str, str]:
        return {
            "DATABASE_PATH": str(self.database),
            "REDIS_URL": self.url,
            "SHOP_NAMESPACE": self.namespace,
            "INVOICE_DUE": self.invoice_due.isoformat(),
            "DJANGO_SETTINGS_MODULE": "example_project.shop.settings",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
        }

    def prepare(self) -> None:
        """Create the tables, and see that Redis is there.

        :raises redis.RedisError: when Redis does not answer: nothing further would work.
        """
        with redis.Redis.from_url(self.url, socket_connect_timeout=5) as client:
            client.ping()
        subprocess.run(
            [sys.executable, "-m", "django", "migrate", "--verbosity=0"],
            env=os.environ | self.environment,
            check=True,
        )

    def start(self, name: str, *options: str) -> Child:
        """Start a ``celery`` command; its log is ``<name>.log``."""
        command = [sys.executable, "-m", "celery", "-A", "example_project.shop", name, "--loglevel=INFO"]
        return self._child(name, [*command, *options])

    def add_user(self) -> None:
        """Create a user who may do everything."""
        subprocess.run(
            [sys.executable, "-m", "django", "createsuperuser", "--noinput", "--email", "demo@example.com"],
            env=os.environ
            | self.environment
            | {"DJANGO_SUPERUSER_USERNAME": USER, "DJANGO_SUPERUSER_PASSWORD": PASSWORD},
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def serve(self) -> str:
        """Start the site's web server on a free port; return the URL of its admin.

        :raises RuntimeError: when it does not start.
        """
        address = f"127.0.0.1:{free_port()}"
        server = self._child("server", [sys.executable, "-m", "django", "runserver", "--noreload", address])
        server.wait_for_output("Quit the server", timeout=30)
        return f"http://{address}/admin/"

    def start_worker(self) -> Child:
        worker = self.start(
            "worker", "--pool=solo", "--without-mingle", "--without-gossip", "--without-heartbeat"
        )
        worker.wait_for_output(" ready.", timeout=30)
        return worker

    def start_beat(self) -> Child:
        return self.start("beat", "--pidfile=")

    def _child(self, name: str, command: list[str]) -> Child:
        child = Child(
            command,
            log=self.directory / f"{name}.log",
            env=os.environ | self.environment,
            cwd=self.directory,
        )
        self._children.append(child)
        return child

    def runs(self) -> list[sqlite3.Row]:
        """Return the journal: what the tasks themselves wrote into the database."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=10)) as connection:
            connection.row_factory = sqlite3.Row
            columns = "entry, scheduled_fire_time, fire_time, outcome, missed_count"
            return connection.execute(f"SELECT {columns} FROM shop_run ORDER BY id").fetchall()

    def log(self) -> list[dict[str, Any]]:
        """Return the decisions of beat, from its log in Redis."""
        events = map(decode, RedisStore(self.url, self.namespace).log())
        return [one.encode() for event in events if event is not None for one in event.split()]

    def app(self) -> Any:
        """Return the Celery app of the site, as any other process of it would import it."""
        os.environ.update(self.environment)
        from example_project.shop.celery import app

        return app

    def stop(self) -> None:
        """Stop every process, and remove the queue and the state from Redis."""
        for child in self._children:
            child.stop()
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self.url) as client:
            for key in client.scan_iter(f"*{self.namespace}*", count=1000):
                client.delete(key)

    def last_words(self) -> str:
        """Return the end of each log, for somebody who wants to know why the demo failed."""
        return "\n".join(
            f"--- {child.log.name}\n" + "\n".join(child.output().splitlines()[-12:])
            for child in self._children
        )
