"""What is measured of a contender: a function for each kind of load, whose answer names its figures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from redis.client import Monitor

from tests.benchmarks.app import PUNCTUAL, Load
from tests.benchmarks.contenders import OURS, QUEUE, Arena, Contender, Running
from tests.support.processes import wait_for

WEEK = 7 * 24 * 3600.0
#: A process that has not sent everything so many seconds after it was due is stopped.
LONGEST = 120.0
#: What follows the last message, such as an acknowledgement, has so many seconds to come.
AFTERMATH = 0.5

Figures = dict[str, float]
T = TypeVar("T")
Watch = Callable[[Arena, Contender, Running, Load], T]


def _on_time(watch: Watch[T], arena: Arena, contender: Contender, count: int) -> T:
    """Let all entries be due at the same moment, when the process is ready for that."""
    lead = 2.5 + count / 1000
    while True:
        load = Load(count, WEEK, time.time() + lead)
        with arena.running(contender, load) as running:
            running.wait_until_ready()
            if time.time() < load.first - 0.2:
                return watch(arena, contender, running, load)
        lead *= 2


def _burst(arena: Arena, contender: Contender, running: Running, load: Load) -> Figures:
    # The first look connects.
    running.queued()
    time.sleep(max(0.0, load.first - 0.05 - time.time()))
    before, first, queued = running.cpu(), 0.0, 0
    deadline = load.first + max(LONGEST, load.count / 200)
    while queued < load.count and time.time() < deadline:
        # Seldom, as it takes CPU from those who are measured, but often until the first one is there.
        time.sleep(0.02 if queued else 0.001)
        queued = running.queued()
        first = first or (time.time() if queued else 0.0)
    last = time.time()
    time.sleep(AFTERMATH)
    sent = max(1, running.queued())
    figures = {
        "CPU, us per message": (running.cpu() - before) / sent * 1e6,
        "messages/s": sent / (last - load.first),
        "first message, ms": (first - load.first) * 1e3,
        "not sent": float(load.count - queued),
    }
    if not contender.rabbitmq:
        args = [json.loads(raw)["headers"]["argsrepr"] for raw in arena.redis.client().lrange(QUEUE, 0, -1)]
        figures["twice in the queue"] = float(len(args) - len(set(args)))
    return figures


def steady(arena: Arena, contender: Contender, count: int, interval: float, seconds: float) -> Figures:
    """Entries are due one after the other, evenly over their interval."""
    load = Load(count, interval, time.time() + 3.0 + count / 1000, spread=interval)
    client = arena.redis.client()
    lags: list[float] = []
    with arena.running(contender, load) as running:
        running.wait_until_ready()
        # The time before that is a start, not a steady state.
        begin = max(load.first, time.time()) + min(5.0, interval)
        while time.time() < begin:
            client.brpop(QUEUE, timeout=0.1)
        before, end = running.cpu(), time.time() + seconds
        while time.time() < end:
            if found := client.brpop(QUEUE, timeout=0.1):
                lags.append(_lag(load, found[1]))
        spent = running.cpu() - before
    return {"CPU, us per message": spent / max(1, len(lags)) * 1e6, **_lags(lags, count * seconds / interval)}


def _lag(load: Load, message: str) -> float:
    """Return how many seconds ago the entry of a message was due."""
    number = int(json.loads(message)["headers"]["argsrepr"].strip("[](), "))
    # From the nearest time of the entry's own: who is later than half an interval looks early.
    lag = (time.time() - load.due(number)) % load.interval
    return lag if lag < load.interval / 2 else lag - load.interval


def _lags(lags: list[float], due: float) -> Figures:
    lags.sort()
    return {
        "lag p50, ms": lags[len(lags) // 2] * 1e3 if lags else float("nan"),
        "lag p99, ms": lags[int(len(lags) * 0.99)] * 1e3 if lags else float("nan"),
        "sent, of those due": len(lags) / due,
    }


def catch_up(arena: Arena, contender: Contender, behind: int, seconds: float) -> Figures:
    """Some entries are far behind and have every run made, while others are due each second."""
    load = Load(10, 1.0, time.time(), spread=1.0, behind=behind)
    client = arena.redis.client()
    lags, caught_up = list[float](), 0
    with arena.running(contender, load) as running:
        running.wait_until_ready()
        wait_for(lambda: client.llen(QUEUE), 300, every=0.05, what="a late run")
        client.delete(QUEUE, PUNCTUAL)
        before, end = running.cpu(), time.time() + seconds
        while time.time() < end:
            if found := client.brpop(PUNCTUAL, timeout=0.1):
                lags.append(_lag(load, found[1]))
            # As fast as many workers: a queue that gets long is waited for.
            late, _ = client.pipeline().llen(QUEUE).delete(QUEUE).execute()
            caught_up += late
        spent = running.cpu() - before
    return {
        "caught up per second": caught_up / seconds,
        "CPU, us per message": spent / max(1, caught_up + len(lags)) * 1e6,
        **_lags(lags, load.count * seconds / load.interval),
    }


def idle(arena: Arena, contender: Contender, count: int, seconds: float) -> Figures:
    """Nothing is due for a month: the start, and what it costs to wait."""
    load = Load(count, 60 * 24 * 3600.0, time.time() + 30 * 24 * 3600.0)
    info = arena.redis.client().info
    with arena.running(contender, load) as running:
        figures = {"start to first tick, s": running.wait_until_ready()}
        # Threads and first looks are part of the start.
        time.sleep(min(5.0, seconds))
        before, commands = running.cpu(), info("stats")["total_commands_processed"]
        time.sleep(seconds)
        figures["CPU s per minute"] = (running.cpu() - before) / seconds * 60
        # The last command is the question itself.
        commands = info("stats")["total_commands_processed"] - commands - 1
        figures["Redis commands per minute"] = max(0, commands) / seconds * 60
        figures["memory, MB"] = running.memory()
        figures["Redis memory, bytes per entry"] = arena.held(contender) / count
    return figures


def _messages(arena: Arena, contender: Contender, running: Running, load: Load) -> list[str]:
    wait_for(lambda: running.queued() == load.count, 300, what="the messages")
    return arena.redis.client().lrange(QUEUE, 0, -1)


def worker(arena: Arena, contender: Contender, count: int) -> Figures:
    """A worker runs what our beat has sent in time."""
    messages, client = _on_time(_messages, arena, OURS, count), arena.redis.client()
    with arena.running(contender, Load(0, WEEK, 0)) as running:
        running.wait_until_ready()
        before = running.cpu()
        with client.monitor() as monitor:
            client.echo("begin")
            client.rpush(QUEUE, *messages)
            wait_for(lambda: not running.queued(), 300, what="an empty queue")
            time.sleep(AFTERMATH)
            client.echo("end")
            seen = [line for line in _seen(monitor) if "celery-misfire:" in line["command"]]
        return {
            "CPU, us per message": (running.cpu() - before) / count * 1e6,
            "Redis commands of ours per message": len(seen) / count,
        }


def _redis(arena: Arena, contender: Contender, running: Running, load: Load) -> Figures:
    client, deadline = arena.redis.client(), load.first + LONGEST
    with client.monitor() as monitor:
        held = arena.held(contender)
        client.echo("begin")
        while running.queued() < load.count and time.time() < deadline:
            time.sleep(0.1)
        time.sleep(AFTERMATH)
        client.echo("end")
        sent, seen = max(1, running.queued()), _seen(monitor)
        held = arena.held(contender) - held
    return {
        "commands per run": len([line for line in seen if line["client_type"] != "lua"]) / sent,
        "commands inside of scripts per run": len([x for x in seen if x["client_type"] == "lua"]) / sent,
        "memory per run beside the message, bytes": held / sent,
    }


def _seen(monitor: Monitor) -> list[dict[str, Any]]:
    """Return what others than the benchmark have sent to Redis between its two marks."""
    lines: list[dict[str, Any]] = []
    for line in monitor.listen():
        name, _, mark = line["command"].partition(" ")
        if (name.upper(), mark) == ("ECHO", "end"):
            break
        if (name.upper(), mark) == ("ECHO", "begin"):
            lines.clear()
        elif name.upper() not in ("LLEN", "INFO") or line["client_type"] == "lua":
            lines.append(line)
    return lines


#: All entries are due at once: how fast they are sent, and at what price.
burst = partial(_on_time, _burst)
#: The same, for what a run costs Redis. Apart, as whoever is watched is slower.
redis = partial(_on_time, _redis)
