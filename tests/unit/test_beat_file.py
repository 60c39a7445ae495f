"""Reading what the file of stock beat remembers: exactly, and whatever is in it without harm."""

from __future__ import annotations

import dbm.dumb
import os
import pickle
import shelve
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.beat import PersistentScheduler, ScheduleEntry
from celery.schedules import crontab, schedule, solar
from kombu import Queue

from celery_misfire.beat_file import _Inert, last_runs
from celery_misfire.schedules import simple

NINE = datetime(2026, 3, 2, 9, tzinfo=UTC)

app = Celery("file", broker="memory://", set_as_current=False)


class OwnEntry(ScheduleEntry):
    """As an app may have one."""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "celerybeat-schedule")


def write(path: str, entries: Any, kind: Any = dbm.dumb) -> None:
    with shelve.Shelf(kind.open(path, "c")) as db:
        db["entries"] = entries


def entry(last_run_at: Any, every: Any = 60.0, kind: type = ScheduleEntry, **more: Any) -> ScheduleEntry:
    made: ScheduleEntry = kind("name", "shop.task", last_run_at, 3, every, app=app, **more)
    return made


def content(path: str) -> dict[str, tuple[bytes, int]]:
    # Without the files that SQLite, the dbm of Python 3.13, keeps beside its own for those who read it.
    files = [f for f in Path(path).parent.iterdir() if not f.name.endswith(("-shm", "-wal"))]
    return {f.name: (f.read_bytes(), f.stat().st_mtime_ns) for f in files}


def test_what_stock_beat_has_written_is_read_and_left_as_it_is(path: str) -> None:
    app.conf.beat_schedule = {
        "float": {"task": "a", "schedule": 60.0, "args": (Decimal(1), {"b": [2]})},
        "cron": {"task": "a", "schedule": crontab(minute=0), "options": {"queue": Queue("x")}},
        "solar": {"task": "a", "schedule": solar("sunset", 52.5, 13.4, app=app)},
        "ours": {"task": "a", "schedule": simple(interval=5, start=NINE)},
    }
    scheduler = PersistentScheduler(app, schedule_filename=path)
    scheduler.schedule["float"] = next(scheduler.schedule["float"])
    expected = {name: e.last_run_at for name, e in scheduler.schedule.items()}
    scheduler.close()
    before = content(path)
    assert last_runs(path) == expected
    assert expected.keys() >= app.conf.beat_schedule.keys()
    assert content(path) == before


@pytest.mark.parametrize(
    "moment",
    [
        NINE,
        NINE.replace(tzinfo=None),
        NINE.astimezone(ZoneInfo("Asia/Kathmandu")),
        NINE.astimezone(timezone(timedelta(hours=-3, minutes=-30), "NDT")),
    ],
)
def test_the_moment_is_right_in_any_zone_and_utc_without_one(path: str, moment: datetime) -> None:
    write(path, {"one": entry(moment, schedule(5, app=app))})
    assert last_runs(path) == {"one": NINE}
    assert last_runs(path)["one"].tzinfo is UTC


@pytest.mark.parametrize("kind", ["dbm.gnu", "dbm.ndbm", "dbm.dumb", "dbm.sqlite3"])
def test_each_kind_of_dbm_is_read(path: str, kind: str) -> None:
    write(path, {"one": entry(NINE)}, pytest.importorskip(kind))
    before = content(path)
    assert last_runs(path) == {"one": NINE}
    assert content(path) == before


def test_an_entry_class_of_the_apps_own_is_read_as_well(path: str) -> None:
    write(path, {"own": entry(NINE, kind=OwnEntry)})
    assert last_runs(path) == {"own": NINE}


def test_no_file_means_nothing_is_known(path: str) -> None:
    assert last_runs(path) == {}
    assert last_runs("") == {}


# -- what must do no harm -----------------------------------------------------------------------------------


class Attack:
    """Pickled, it is a call of any function with any arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Zone(tzinfo):
    """A time zone that only its own package could make."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(0)


def test_nothing_in_the_file_is_called(path: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    calls = [
        Attack(os.system, f"touch {trap}"),
        Attack(open, str(trap), "w"),
        Attack(eval, f"open({str(trap)!r}, 'w')"),
        Attack(os.mkdir, str(trap)),
    ]
    entries = {"good": entry(NINE, args=tuple(calls)), "x": entry(calls[0]), "y": calls[2], calls[1]: calls}
    write(path, entries)
    assert last_runs(path) == {"good": NINE}
    assert not trap.exists()


def test_what_is_made_of_unknown_classes_does_nothing() -> None:
    inert = _Inert(1, a=2)
    assert vars(inert) == {"arguments": (1,)}
    inert.__setstate__({"arguments": None})
    inert["a"] = inert.append(inert.extend(inert.add(1)))
    assert vars(inert) == {"arguments": (1,)}


def test_an_entry_that_makes_no_sense_is_left_out_alone(path: str) -> None:
    odd = {
        "text": entry("yesterday"),
        "number": entry(3),
        "foreign zone": entry(datetime(2026, 1, 1, tzinfo=Zone())),
        "edge": entry(datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))),
        "no entry": 5,
        "short": Attack(ScheduleEntry, "short", "task"),
        7: entry(NINE),
    }
    write(path, {**odd, "good": entry(NINE)})
    assert last_runs(path) == {"good": NINE}


def damaged(path: str) -> Iterator[tuple[str, Callable[[], object]]]:
    data, index = Path(path + ".dat"), Path(path + ".dir")

    def other(value: bytes) -> None:
        with dbm.dumb.open(path) as db:
            db[b"entries"] = value

    def zone(key: bytes) -> bytes:
        return pickle.dumps(ZoneInfo("Asia/Kathmandu")).replace(b"Asia/Kathmandu", key)

    deep = pickle.MARK * 100_000 + b"".join([pickle.TUPLE] * 100_000) + pickle.STOP
    yield "empty data", lambda: data.write_bytes(b"")
    yield "half of the data", lambda: data.write_bytes(data.read_bytes()[:-300])
    yield "empty index", lambda: index.write_bytes(b"")
    yield "half of the index", lambda: index.write_bytes(index.read_bytes()[:-5])
    yield "an index that is no index", lambda: index.write_bytes(b"os.system('true')\n")
    yield "an index into nowhere", lambda: index.write_bytes(b"'entries', (10**30, -1)\n")
    yield "no index", index.unlink
    yield "no data", data.unlink
    yield "no pickle", lambda: other(b"hello")
    yield "an empty value", lambda: other(b"")
    yield "a list of entries", lambda: other(pickle.dumps([entry(NINE)]))
    yield "a function", lambda: other(pickle.dumps(os.system))
    yield "nested without end", lambda: other(deep)
    yield "a persistent id", lambda: other(b"Pid\n.")
    yield "another zone than there is", lambda: other(zone(b"Asia/../../etc"))
    yield "a class of zones, changed", lambda: other(b"czoneinfo\nZoneInfo\n(N}Vkey\nI1\nstb.")
    yield "a class of harmless kind, changed", lambda: other(b"cdatetime\ndatetime\n}Vnow\nI1\nsb.")
    yield "noise", lambda: (data.write_bytes(os.urandom(4000)), index.write_bytes(os.urandom(400)))


KINDS = [kind for kind, _ in damaged("")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_in_one_line_and_not_repaired(path: str, kind: str) -> None:
    write(path, {"good": entry(NINE)})
    dict(damaged(path))[kind]()
    before = content(path)
    with pytest.raises(ValueError, match=r"^it cannot be read \([\w.]+\)$"):
        last_runs(path)
    assert content(path) == before


@pytest.mark.parametrize("raw", [b"", b"celery", b"SQLite format 3\0", b"\x00" * 5000, b"\xce\x9a\x57\x13"])
def test_a_file_of_another_kind_is_refused(path: str, raw: bytes) -> None:
    Path(path).write_bytes(raw)
    with pytest.raises(ValueError, match="cannot be read"):
        last_runs(path)


def test_what_is_no_file_is_not_opened(path: str) -> None:
    # To open one would wait for a writer for ever.
    os.mkfifo(path)
    with pytest.raises(ValueError, match="OSError"):
        last_runs(path)
    os.remove(path)
    os.mkdir(path)
    with pytest.raises(ValueError, match="OSError"):
        last_runs(path)


def test_a_huge_file_is_not_opened(path: str) -> None:
    Path(path).touch()
    os.truncate(path, 200_000_000)
    with pytest.raises(ValueError, match="OSError"):
        last_runs(path)


def test_a_file_that_may_not_be_looked_at_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", denied)
    with pytest.raises(ValueError, match="PermissionError"):
        last_runs(path)
