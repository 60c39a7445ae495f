"""Reads the last runs from the file of ``celery beat`` (``celerybeat-schedule``, of its PersistentScheduler).

The file is never written or removed. Its content is a pickle, which could run any code. Only dates and time
zones are made from it; everything else becomes an object that does nothing.
"""

from __future__ import annotations

import dbm
import io
import pickle
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

#: A larger file, in bytes, is not read. The file of 100,000 entries has a third of this size.
MAX_FILE_SIZE = 100_000_000

# Each kind of dbm adds some of these to the name of the file.
_SUFFIXES = ("", ".db", ".dat", ".dir", ".bak", ".pag")


def last_runs(path: str) -> dict[str, datetime]:
    """Return when each entry last ran, or was first seen if it has not run yet; in UTC.

    :param path: as ``beat_schedule_filename`` has it, without what the kind of dbm adds to it. When there is
        no such file, the answer is empty.
    :raises ValueError: when it cannot be read: damaged, in use by a beat, of a kind that this Python does
        not know, or no such file at all.
    """
    try:
        files = [file for suffix in _SUFFIXES if path and (file := Path(path + suffix)).exists()]
        if not files:
            return {}
        if (
            not all(file.is_file() for file in files)
            or sum(file.stat().st_size for file in files) > MAX_FILE_SIZE
        ):
            raise OSError("not a file of beat's")
        with dbm.open(path, "r") as db:
            data = db[b"entries"]
        entries = _Unpickler(io.BytesIO(data)).load()
        found = {name: _last_run_at(entry) for name, entry in entries.items()}
    except Exception as exc:
        # A damaged file can make dbm and pickle raise anything. Their messages may quote the content.
        kind = f"{type(exc).__module__}.{type(exc).__qualname__}".removeprefix("builtins.")
        raise ValueError(f"it cannot be read ({kind})") from None
    return {name: moment for name, moment in found.items() if isinstance(name, str) and moment is not None}


def _last_run_at(entry: object) -> datetime | None:
    """Return the third of the arguments that Celery's ScheduleEntry, or a subclass, is pickled with."""
    arguments = entry.arguments if isinstance(entry, _Inert) else ()
    moment = arguments[2] if len(arguments) > 2 else None
    if not isinstance(moment, datetime):
        return None
    try:
        # Celery takes a naive datetime for UTC as well.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (NotImplementedError, OverflowError):
        # A time zone of another library, or a time on the edge of the calendar.
        return None


class _Inert(tzinfo):
    """Stands for an object of any class, and for any function.

    A time zone, because ``datetime`` accepts nothing else in its place.
    """

    arguments: tuple[Any, ...]

    def __new__(cls, *arguments: Any, **_: Any) -> _Inert:
        self = super().__new__(cls)
        self.arguments = arguments
        return self

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return self

    def _take(self, *_: Any) -> None:
        """Do nothing with what is to be set, added or put in."""

    __setstate__ = __setitem__ = append = extend = add = _take


# Stands for the class of time zones, of which only the names are used.
_ZONE_INFO = object()


def _method(owner: object, _: str) -> Any:
    """Return what makes a time zone: it is pickled as a call of a method of its class, with two arguments:
    its name, and whether it may be shared.
    """
    return (lambda key, _: ZoneInfo(key)) if owner is _ZONE_INFO else _Inert


#: The classes that do not become inert.
_HARMLESS = {
    ("datetime", "date"): date,
    ("datetime", "datetime"): datetime,
    ("datetime", "time"): time,
    ("datetime", "timedelta"): timedelta,
    ("datetime", "timezone"): timezone,
    ("zoneinfo", "ZoneInfo"): _ZONE_INFO,
    ("builtins", "getattr"): _method,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _HARMLESS.get((module, name), _Inert)
