"""What becomes of runs when things go wrong, beside the peers: the table of the README.

Real processes, killed with ``kill -9``, and what stands in the queue afterwards::

    python -m tests.benchmarks.comparison

No worker takes part: what is counted are the messages of beat.
"""

from __future__ import annotations

import json
import time
from typing import Any

from celery_misfire.events import Misfired, decode
from celery_misfire.misfire import Outcome
from tests.benchmarks import contenders as c
from tests.benchmarks.app import Load
from tests.benchmarks.contenders import QUEUE, Arena, Contender, Running

#: What is compared, and the settings that differ from the defaults. By default the lock of a redbeat that was
#: killed keeps the next one waiting for 25 minutes.
COMPARED: dict[str, tuple[Contender, dict[str, Any]]] = {
    "celery.beat": (c.CELERY, {}),
    "django-celery-beat": (c.STOCK, {}),
    "celery-redbeat, lock of 5 s": (c.REDBEAT, {"redbeat_lock_timeout": 5, "beat_max_loop_interval": 1}),
    "celery-misfire": (c.OURS, {}),
    "celery-misfire, `ignore_misfire_policy`": (c.OURS, {"misfire_instruction": "ignore_misfire_policy"}),
}
WEEK = 7 * 24 * 3600.0
#: The queue counts as settled when it has not grown for so many seconds.
SETTLED = 4.0


def outage(arena: Arena, contender: Contender, settings: dict[str, Any]) -> dict[str, str]:
    """Kill a beat, and start another one 12 seconds later; 10 entries run every 4 seconds."""
    load = Load(10, 4.0, time.time() + 4.0, settings=settings)
    place, client = arena.new_place(), arena.redis.client()
    with arena.running(contender, load, place) as running:
        running.wait_until_ready()
        _wait_until(load.first + 4.5)
    client.delete(QUEUE)
    _wait_until(load.first + 16.5)
    with arena.running(contender, load, place) as running:
        running.wait_until_ready()
        # One more fire time: who begins afresh leaves it out.
        _wait_until(load.first + 23.5)
    due, sent, noted = 4 * load.count, client.llen(QUEUE), _noted(arena)
    return {
        f"beat dead for 12 s, {due} runs due: sent": str(sent),
        "recorded as merged or missed": str(noted),
        "lost without a word": str(max(0, due - sent - noted)),
    }


def kill(arena: Arena, contender: Contender, settings: dict[str, Any]) -> dict[str, str]:
    """Kill a beat in the middle of a burst of 500 runs, and start another one at once."""
    load = Load(500, WEEK, time.time() + 5.0, settings=settings)
    place = arena.new_place()
    with arena.running(contender, load, place) as running:
        running.wait_until_ready()
        while running.queued() < 100:
            time.sleep(0.0005)
    with arena.running(contender, load, place) as running:
        running.wait_until_ready()
        _settle(running)
    missing, doubled = _tally(arena, load.count)
    return {
        "`kill -9` in a burst of 500: lost without a word": str(max(0, missing - _noted(arena))),
        "doubled": str(doubled),
    }


def two_beats(arena: Arena, contender: Contender, settings: dict[str, Any]) -> dict[str, str]:
    """Let two beats run, each with a directory of its own; 100 runs are due."""
    load = Load(100, WEEK, time.time() + 8.0, settings=settings)
    place = arena.new_place()
    other = place if contender.django else place / "other host"
    other.mkdir(exist_ok=True)
    with arena.running(contender, load, place) as first:
        first.wait_until_ready()
        with arena.running(contender, load, other) as second:
            _wait_until(load.first)
            _settle(second)
    return {"two beats, 100 runs due: doubled": str(_tally(arena, load.count)[1])}


def _wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


def _settle(running: Running) -> None:
    """Wait until the queue has been the same for some time."""
    length, since = -1, time.time()
    while time.time() < since + SETTLED:
        if (found := running.queued()) != length:
            length, since = found, time.time()
        time.sleep(0.05)


def _tally(arena: Arena, count: int) -> tuple[int, int]:
    """Return how many entries have no message in the queue, and how many messages are one too many."""
    args = [json.loads(raw)["headers"]["argsrepr"] for raw in arena.redis.client().lrange(QUEUE, 0, -1)]
    return count - len(set(args)), len(args) - len(set(args))


def _noted(arena: Arena) -> int:
    """Return how many occurrences our log tells of that have no message of their own."""
    lines = arena.redis.client().xrange("celery-misfire:{bench}:log")
    events = [decode(json.loads(line["d"])) for _, line in lines]
    words = (Outcome.MERGED, Outcome.MISSED)
    return sum(
        event.outcomes.get(word, 0) for event in events if isinstance(event, Misfired) for word in words
    )


def main() -> None:
    rows = {}
    with Arena() as arena:
        for name, (contender, settings) in COMPARED.items():
            rows[name] = {}
            for measure in (outage, kill, two_beats):
                rows[name] |= measure(arena, contender, settings)
            print(name, rows[name], flush=True)
    heads = list(next(iter(rows.values())))
    print(f"| | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|", sep="\n")
    for head in heads:
        print(f"| {head} | {' | '.join(row[head] for row in rows.values())} |")


if __name__ == "__main__":
    main()
