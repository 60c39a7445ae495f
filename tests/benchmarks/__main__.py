"""Measure celery-misfire beside its peers, and write the table in docs/performance.md.

Real processes, one after the other, all in turn in each round; medians over the rounds::

    python -m tests.benchmarks [--quick] [--rounds N] [--burst N ...] [--only CASE ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tests.benchmarks import cases, table
from tests.benchmarks import contenders as c
from tests.benchmarks.cases import Figures

ON_REDIS = [c.BARE, c.CELERY, c.REDBEAT, c.OURS, c.OURS_APART]
ALL = [*ON_REDIS, c.STOCK, c.OURS_DJANGO, c.BARE_RABBITMQ, c.OURS_RABBITMQ]
BEATS = [c.CELERY, c.REDBEAT, c.STOCK, c.OURS, c.OURS_DJANGO]
KEEPERS = [c.BARE, c.REDBEAT, c.OURS, c.OURS_APART]


@dataclass(frozen=True)
class Case:
    """A load, and who is measured under it; the first of them is what the others are compared to."""

    title: str
    contenders: Sequence[c.Contender]
    measure: Callable[[c.Arena, c.Contender], Figures]


def plan(arguments: argparse.Namespace) -> list[Case]:
    """Return the cases that were asked for."""
    quick = arguments.quick
    entries, interval, seconds = (50, 1.0, 2.0) if quick else (arguments.steady, 10.0, 30.0)
    found: list[tuple[str, Case]] = []
    for size in arguments.burst or ([200] if quick else [10, 1_000, 10_000, 100_000]):
        # The largest takes minutes each time, and shows only whether the rate holds.
        able = [one for one in ALL if size <= one.largest] if size < 100_000 else [c.BARE, c.OURS]
        found.append(("burst", Case(f"{size:,} entries due at once", able, partial(cases.burst, count=size))))
    measure = partial(cases.steady, count=entries, interval=interval, seconds=seconds)
    found.append(("steady", Case(f"{entries:,} entries, each every {interval:g} s", ON_REDIS, measure)))
    for size in [200] if quick else arguments.idle:
        measure = partial(cases.idle, count=size, seconds=2.0 if quick else 30.0)
        found.append(("idle", Case(f"{size:,} entries, nothing due", BEATS, measure)))
    behind, seconds = (20_000, 3.0) if quick else (1_000_000, 30.0)
    measure = partial(cases.catch_up, behind=behind, seconds=seconds)
    title = f"10 entries, each every second, while {behind:,} overdue runs of others are made"
    found.append(("catch_up", Case(title, [c.OURS, c.OURS_APART], measure)))
    measure = partial(cases.worker, count=200 if quick else 5_000)
    found.append(("worker", Case("Runs in time, in a worker", [c.BARE_WORKER, c.OURS_WORKER], measure)))
    measure = partial(cases.redis, count=200 if quick else 1_000)
    found.append(("redis", Case("What a run costs Redis", KEEPERS, measure)))
    return [case for name, case in found if not arguments.only or name in arguments.only]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--quick", action="store_true", help="small loads, one round, 3 minutes")
    parser.add_argument("--rounds", type=int, help="default: 3, quick: 1")
    parser.add_argument(
        "--burst", type=int, nargs="+", metavar="N", help="entries due at once, such as 100000"
    )
    parser.add_argument("--steady", type=int, default=1_000, metavar="N", help="entries, each every 10 s")
    parser.add_argument("--idle", type=int, nargs="+", default=[10_000], metavar="N", help="entries at rest")
    parser.add_argument(
        "--only", nargs="+", choices=["burst", "steady", "idle", "catch_up", "worker", "redis"]
    )
    arguments = parser.parse_args(argv)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    blocks = [table.surroundings(rounds)]
    with c.Arena() as arena:
        for case in plan(arguments):
            print(case.title, flush=True)
            present = [one for one in case.contenders if arena.has(one)]
            figures: dict[str, list[Figures]] = {one.name: [] for one in present}
            # In turn, so that a busy minute of the machine hits them all.
            for contender in present * rounds:
                figures[contender.name].append(case.measure(arena, contender))
                print(f"  {contender.name}: {figures[contender.name][-1]}", flush=True)
            blocks.append(table.render(case.title, figures))
        blocks.append(table.ways(arena.ways))
    text = "\n\n".join(blocks)
    print(text)
    # A short run is for those who develop, and says nothing to anybody else.
    if not arguments.quick:
        table.write(text)


if __name__ == "__main__":
    main()
