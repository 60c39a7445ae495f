"""Many periodic tasks in the database: the start of beat, and what it costs when nothing is due.

Ours beside django-celery-beat's own scheduler, on one SQLite file and one Redis::

    python -m tests.benchmarks.django_rows [rows] [seconds of idleness]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from tests.support.django_project import DjangoProject, connected, migrate, sqlite
from tests.support.processes import CeleryProcess, wait_for
from tests.support.redis_server import RedisServer

SCHEDULERS = ("Ours", "Stock")


def fill(rows: int) -> None:
    """Create rows of which none is due soon: half of them intervals, half crontabs in some zones."""
    from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

    from celery_misfire.contrib.django.models import MisfirePolicy

    intervals = [IntervalSchedule.objects.create(every=n, period="days") for n in range(2, 52)]
    # At an hour that stock loads as well, and that has just passed.
    hour = time.gmtime(time.time() - 3600).tm_hour
    crontabs = [CrontabSchedule.objects.create(minute=str(m % 60), hour=f"{hour}") for m in range(60)]
    tasks = [
        PeriodicTask(
            name=f"task {n}",
            task="noop",
            last_run_at=None if n % 2 else "2026-01-01T00:00:00Z",
            kwargs=f'{{"customer": {n}}}',
            **({"crontab": crontabs[n % 60]} if n % 2 else {"interval": intervals[n % 50]}),
        )
        for n in range(rows)
    ]
    PeriodicTask.objects.bulk_create(tasks, batch_size=1000)
    from django.utils.timezone import now

    PeriodicTask.objects.update(last_run_at=now())
    some = PeriodicTask.objects.all()[: rows // 5]
    MisfirePolicy.objects.bulk_create(MisfirePolicy(periodic_task=task, threshold=30) for task in some)


def cpu_seconds(process: CeleryProcess) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: CeleryProcess) -> float:
    """Return the memory of a process in MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def measure(project: DjangoProject, scheduler: str, idle: float) -> dict[str, float]:
    path = project.directory / f"first-tick-{scheduler}"
    path.unlink(missing_ok=True)
    begun = time.time()
    # The lease as it is by default, not in the hurry of the tests.
    lease = {"misfire_lease_ttl": 30, "misfire_lease_renew": 10, "misfire_standby_poll": 5}
    project.configure({}, beat_scheduler=f"tests.benchmarks.first_tick:{scheduler}", **lease)
    beat = project.beat(name=scheduler, env={"FIRST_TICK": str(path)})
    wait_for(lambda: path.exists() or not beat.alive, 300, what="the first tick")
    assert beat.alive, project.log(scheduler)[-3000:]
    result = {"start, s": float(path.read_text()) - begun}
    # What follows the start is not idleness: the first look, threads.
    time.sleep(5)
    before, since = cpu_seconds(beat), time.monotonic()
    time.sleep(idle)
    result["idle, CPU s/min"] = (cpu_seconds(beat) - before) / (time.monotonic() - since) * 60
    result["memory, MB"] = memory(beat)
    beat.stop()
    return result


def main(rows: int = 10_000, idle: float = 60) -> None:
    with tempfile.TemporaryDirectory() as directory, RedisServer() as server:
        database = sqlite(Path(directory) / "site.sqlite3")
        migrate(database)
        with connected(database), DjangoProject(Path(directory), server.url, database) as project:
            fill(rows)
            found = {name: measure(project, name, idle) for name in SCHEDULERS}
            # The second start has a past.
            again = measure(project, "Ours", 1)
    print(f"{rows} periodic tasks, SQLite")
    print(f"{'':20}{'ours':>10}{'stock':>10}{'ratio':>10}")
    for what, ours in found["Ours"].items():
        stock = found["Stock"][what]
        print(f"{what:20}{ours:10.2f}{stock:10.2f}{ours / max(stock, 0.01):10.2f}")
    print(f"{'second start, s':20}{again['start, s']:10.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
