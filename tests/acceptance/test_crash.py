"""Beat is killed, or stopped, in the middle of a burst of 500 due entries.

The entries stand on a grid, and each grid point must have exactly one fate. That is read from the broker, the
store's log and the result backend; nothing of beat's own arithmetic is used to judge.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_misfire import fire, records
from celery_misfire.leadership.decisions import LARGEST_BATCH, LARGEST_SHARE
from celery_misfire.store.redis_store import RedisStore
from tests.support.outcomes import assert_each_ended_once, of_entry, outcomes, scheduled
from tests.support.processes import NAMESPACE, Message, Project, Tap, wait_for
from tests.support.redis_server import RedisServer

ENTRIES = 500

#: How many entries in ten have which policy; all leave the grid where it is. A short threshold makes misfires
#: of what a crash delays, a long one makes none at all.
KINDS = {
    "ignore": (2, "ignore_misfire_policy"),
    "patient": (2, {"instruction": "do_nothing", "threshold": 3600}),
    "once": (2, {"instruction": "fire_once_now", "threshold": 0.5}),
    "strict": (2, {"instruction": "do_nothing", "threshold": 0.5}),
    "smart": (2, {"instruction": "smart_policy", "threshold": 0.5}),
}

#: The kinds of which every single occurrence has to be published.
ALWAYS = ("ignore", "patient")


#: Where messages and state are.
ONE, TWO = "one database", "two databases"


class Burst:
    """500 entries that are due at the same instants, and what became of them.

    Eight instants have passed when beat first sees them, the ninth is near, and 20 s lie between two of them:
    enough work to be killed in, and no more than a slow machine can do.
    """

    period = 20_000

    def __init__(self, project: Project, server: RedisServer, place: str, **settings: Any) -> None:
        url = server.url if place == ONE else f"{server.url.removesuffix('/0')}/1"
        settings = {"broker_url": url, "misfire_redis_url": server.url} | settings
        self.project, self.tap = project, Tap(url)
        self._client = server.client()
        self.store = RedisStore(server.url, NAMESPACE)
        project.make_state()
        self.start = round(time.time() * 1000) + 4000 - 8 * self.period
        grid = {"type": "simple", "start": self.start / 1000, "interval": self.period / 1000}
        kinds = [kind for kind, (share, _) in KINDS.items() for _ in range(share)]
        # The number comes first: beat goes by name, and each piece of the burst is to have some of each kind.
        kind_of = {f"{i:03}-{kinds[i % len(kinds)]}": kinds[i % len(kinds)] for i in range(ENTRIES)}
        entries = {name: {"schedule": grid, "misfire": KINDS[kind][1]} for name, kind in kind_of.items()}
        project.configure(entries, misfire_history=1_000_000, **settings)
        self.entries = list(entries)
        self.messages: list[Message] = []
        self._always = sum(name.endswith(ALWAYS) for name in entries)
        self._seen: set[tuple[str, int]] = set()

    def token(self) -> str:
        """Return the token of the lease, '' when nobody holds it."""
        return (self._client.get(self.store.lease_key) or "").split("|")[0]

    def wait_for_messages(self, count: int) -> None:
        """Wait until so many more messages have been published."""
        wanted = len(self.tap) + count
        wait_for(lambda: len(self.tap) >= wanted, timeout=60, every=0.002, what=f"{count} messages")

    def wait_until_settled(self, timeout: float = 60) -> int:
        """Wait until beat has nothing left to do; return a moment up to which it has done everything."""

        def settled_until() -> int:
            now = round(time.time() * 1000)
            found = [records.loads(text) for text in self.store.load().values()]
            done = len(found) == ENTRIES and all(
                record.settled and record.state.next_fire_time > now for record in found
            )
            return now if done else 0

        return wait_for(settled_until, timeout=timeout, every=0.1, what="the end of the burst")

    def unpublished(self) -> int:
        """Return how many of the runs that have to be published are due, and are not yet."""
        due = len(self.grid(round(time.time() * 1000))) * self._always
        for message in self.tap.read():
            self.messages.append(message)
            if message.misfire["entry"].endswith(ALWAYS):
                self._seen.add((message.misfire["entry"], scheduled(message)))
        return due - len(self._seen)

    def grid(self, until: int) -> range:
        return range(self.start, until + 1, self.period)

    def check(self, until: int) -> Counter[str]:
        """Check that each occurrence up to `until` has exactly one fate; return how many had which."""
        self.messages += self.tap.read()
        lost = [line for line in self.project.decisions() if line["event"] == "missed"]
        counts: Counter[str] = Counter()
        runs: set[str] = set()
        for entry in self.entries:
            messages = of_entry(self.messages, entry)
            found = outcomes(messages, lost, entry, self.period)
            # Beat goes on while the test looks, so a few may have their fate already after `until`.
            assert_each_ended_once(found, self.grid(max(until, *found)))
            counts.update(outcome for [(outcome, _)] in found.values())
            ids = {fire.task_id(NAMESPACE, entry, m.misfire["generation"], scheduled(m)) for m in messages}
            assert ids == {m.id for m in messages}
            runs |= ids
        reported = {line["id"] for line in lost}
        assert len(reported) == len(lost)
        assert reported == self._missed_results()
        assert not reported & runs
        assert len({m.misfire["nonce"] for m in self.messages}) == len(self.messages)
        counts["sent again"] = len(self.messages) - len(runs)
        print(dict(counts))
        return counts

    def _missed_results(self) -> set[str]:
        """Return the ids of all results that beat has stored."""
        keys = list(self._client.scan_iter("celery-task-meta-*", count=1000))
        results = [json.loads(text) for text in self._client.mget(keys)] if keys else []
        assert all(result["status"] == "MISSED" for result in results)
        return {result["task_id"] for result in results}


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get("MISFIRE_TEST_SEED") or random.SystemRandom().randrange(10**6))
    print(f"MISFIRE_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Iterator[Project]:
    with Project(tmp_path, redis_server.url) as project:
        yield project


@pytest.mark.takes(12)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.long)])
@pytest.mark.parametrize("place", [ONE, TWO])
def test_after_kills_in_a_burst_every_occurrence_has_exactly_one_fate(
    project: Project, redis_server: RedisServer, dice: random.Random, place: str, kills: int
) -> None:
    quick = {"misfire_lease_ttl": 1.2, "misfire_lease_renew": 0.3, "misfire_standby_poll": 0.1}
    burst = Burst(project, redis_server, place, **quick)
    moments = ["at work"] * (kills - kills // 4) + ["taking over"] * (kills // 4)
    dice.shuffle(moments)
    in_the_middle = 0
    start_beat = project.beat_at_gate()
    for moment in moments:
        before, token = len(burst.tap), burst.token()
        beat = start_beat()
        start_beat = project.beat_at_gate(wait=False)
        if moment == "at work":
            burst.wait_for_messages(dice.randint(1, 150))
        else:
            wait_for(lambda old=token: burst.token() not in ("", old), timeout=60, every=0.002)
            time.sleep(dice.uniform(0, 0.1))
        assert beat.alive
        beat.kill()
        sent, left = len(burst.tap) - before, burst.unpublished()
        print(f"killed {moment}: {sent} sent, {left} left")
        in_the_middle += left > 0 and (sent > 0 or moment == "taking over")
    beat = start_beat()
    until = burst.wait_until_settled()
    beat.stop()

    counts = burst.check(until)
    assert in_the_middle >= kills // 2
    # The test has seen all there is to see.
    assert all(counts[fate] for fate in ("fired", "recovered", "merged", "missed"))
    if place == ONE:
        assert counts["sent again"] == 0
        return
    # A beat that was killed, or lost its lease, had claimed one batch at most that it had not acknowledged.
    # When such runs are sent again, the last entry of a batch may bring a whole share.
    interruptions = len(moments) + project.log().count("the lease is lost")
    assert counts["sent again"] <= interruptions * (LARGEST_BATCH + LARGEST_SHARE)
    # A few kills may all have come before a batch or after its ack.
    assert counts["sent again"] or kills < 50


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stops", [4, pytest.param(10, marks=pytest.mark.long)])
@pytest.mark.parametrize("place", [ONE, TWO])
def test_a_clean_stop_in_a_burst_hands_the_rest_over_and_repeats_nothing(
    project: Project, redis_server: RedisServer, dice: random.Random, place: str, stops: int
) -> None:
    # A lease that was not given up would keep the next beat waiting for longer than the test lasts.
    burst = Burst(project, redis_server, place, misfire_lease_ttl=600, misfire_lease_renew=1)
    in_the_middle = 0
    start_beat = project.beat_at_gate()
    for _ in range(stops):
        beat = start_beat()
        start_beat = project.beat_at_gate(wait=False)
        burst.wait_for_messages(dice.randint(1, 200))
        beat.signal(signal.SIGTERM)
        wait_for(lambda beat=beat: not beat.alive, timeout=30, what="the end of beat")
        assert beat.exit_code == 0
        assert not burst.token()
        in_the_middle += burst.unpublished() > 0
    beat = start_beat()
    until = burst.wait_until_settled()
    beat.stop()

    counts = burst.check(until)
    assert in_the_middle >= stops // 2
    assert counts["sent again"] == 0
    assert "Traceback" not in project.log()
