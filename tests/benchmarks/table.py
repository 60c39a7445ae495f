"""The figures as Markdown, and their place in docs/performance.md."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

from example_project.embedded_redis import find_server
from tests.benchmarks.cases import Figures
from tests.support.processes import ROOT

PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- begin: written by make bench -->", "<!-- end: written by make bench -->"

PACKAGES = ("celery", "kombu", "redis", "django-celery-beat", "celery-redbeat", "celery-misfire")


def surroundings(rounds: int) -> str:
    """Return where and with what it was measured."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    server = subprocess.run([find_server(), "--version"], capture_output=True, text=True, check=True).stdout
    redis = re.search(r"v=(\S+)", server)
    machine = f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB"
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    python = f"Python {platform.python_version()}, Redis {redis[1] if redis else '?'} on the same machine"
    medians = f"Medians of {rounds} round{'s' if rounds > 1 else ''}."
    return f"Measured {time.strftime('%Y-%m-%d')} on {machine}, {load}. {python}, {versions}. {medians}"


def render(title: str, figures: Mapping[str, Sequence[Figures]]) -> str:
    """Return one table: a row for each contender, with its ratio to the first one's first figure."""
    medians = {name: {c: median(f[c] for f in rounds) for c in rounds[0]} for name, rounds in figures.items()}
    columns = list(dict.fromkeys(column for row in medians.values() for column in row))
    first = next(iter(medians))
    base = medians[first][columns[0]]
    ratio_of = columns[0].partition(",")[0]
    head = ["", *columns, f"{ratio_of}, ratio to the first row"]
    lines = [f"## {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in medians.items():
        cells = [_shown(row.get(column)) for column in columns]
        ratio = f"{row[columns[0]] / base:.2f}" if base else ""
        lines.append("| " + " | ".join([name, *cells, ratio]) + " |")
    return "\n".join(lines)


def ways(found: Mapping[str, str]) -> str:
    """Return how ours dispatched, as the log of its beat said."""
    said = [f"{name}: {way}" for name, way in found.items()]
    return f"Way of dispatch, by beat's log: {'; '.join(said) or 'not said'}."


def write(text: str) -> None:
    """Put the text between the marks of the page; what is around them stays."""
    page = PAGE.read_text()
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE} has no place for the tables: it needs the lines\n{BEGIN}\n{END}")
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def _shown(figure: float | None) -> str:
    if figure is None:
        return ""
    return f"{figure:,.0f}" if abs(figure) >= 100 or figure == int(figure) else f"{figure:,.2f}"
