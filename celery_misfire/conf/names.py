"""Names of entries without the arguments that Celery may have put into them.

``add_periodic_task`` calls an entry without a name what its signature looks like: ``shop.login('bob',
password='...')``. That name stays Celery's own and is good for matching. In the state, the log and the
results the entry is called ``shop.login(...)``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: What follows the task in a name without arguments.
_HIDES_NOTHING = re.compile(r"\(\)|\(\.\.\.\)( #\d+)?")

#: Tasks of which Celery shows, in place of a name, the signatures that they are made of.
_CANVAS = {"celery.chain", "celery.chord", "celery.chunks", "celery.group", "celery.map", "celery.starmap"}


def plain_names(schedule: object) -> dict[str, str]:
    """Return the plain name of each entry whose own name has arguments in it.

    Entries of one task are numbered in the order of their own names, so that every process and every start
    calls them the same. (A digest of the arguments would be as good as a guess at a password.)

    :param schedule: entry name to dict, or to ``ScheduleEntry``; nothing else has such names.
    """
    found: dict[str, str] = {}
    if not isinstance(schedule, Mapping):
        return found
    # There may be very many entries, and few of these.
    candidates = [name for name in schedule if isinstance(name, str) and "(" in name]
    tasks = {name: task for name in candidates if (task := _task_of(name, schedule[name]))}
    taken = set(candidates)
    for name in sorted(tasks):
        number, plain = 1, f"{tasks[name]}(...)"
        while plain in taken:
            number += 1
            plain = f"{tasks[name]}(...) #{number}"
        taken.add(plain)
        found[name] = plain
    return found


def plainly_named(schedule: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the same entries by their plain names."""
    plain = plain_names(schedule)
    return {plain.get(name, name): entry for name, entry in schedule.items()} if plain else schedule


def without_arguments(name: Any, task: str = "") -> Any:
    """Return the name of an entry as it can be shown, when there are no others to tell it from.

    :param name: what is no text is returned as it is.
    :param task: '' when nobody knows it: then whatever looks like a call has arguments.
    """
    if not isinstance(name, str):
        return name
    if shows_arguments(name, task):
        return f"{task}(...)"
    return name if task else re.sub(r"(?s)^([\w.]+)\(.+\)$", r"\1(...)", name)


def _task_of(name: str, entry: Any) -> str:
    """Return the task of an entry whose name has arguments in it, '' for another one."""
    task = entry.get("task") if isinstance(entry, Mapping) else getattr(entry, "task", None)
    return task if isinstance(task, str) and shows_arguments(name, task) else ""


def shows_arguments(name: str, task: str) -> bool:
    """Return whether the name of an entry is what Celery makes of this task and its arguments."""
    if "(" not in name:
        return False
    if name.startswith(f"{task}("):
        # Without arguments nothing has to be hidden, and a plain name stays as it is.
        if _HIDES_NOTHING.fullmatch(name, len(task)):
            return False
        if name.endswith(")"):
            return True
    return task in _CANVAS
