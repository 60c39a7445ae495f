"""Moments, lengths of time and tables, as people read and write them in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Any

import click

from celery_misfire.events import time_in
from celery_misfire.misfire import from_millis, to_millis
from celery_misfire.records import Pause
from celery_misfire.texts import one_line, quote

#: A time may be of these years.
FIRST_YEAR, LAST_YEAR = 1970, 8999
#: Longest text in a cell of a table, in characters.
LONGEST_CELL = 200

#: A table of so many rows may leave out columns in a narrow terminal.
MANY_ROWS = 4

#: No table cuts a name to less than so many characters.
SHORTEST_NAME = 16

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def length(millis: float) -> str:
    """Return a length of time in its two largest units."""
    seconds = abs(millis) / 1000
    if seconds < 10:
        return f"{seconds:.1f} s"
    parts: list[str] = []
    left = round(seconds)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= size or parts:
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(part for part in parts[:2] if not part.startswith("0 "))


def ago(millis: float) -> str:
    return f"{length(millis)} ago"


def read_length(text: str) -> int:
    """Return a length of time such as ``90m``, ``24h`` or ``1d12h``, in milliseconds.

    :raises click.BadParameter: for anything else.
    """
    found = re.findall(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if not found or "".join(map("".join, found)) != text:
        raise click.BadParameter(f"{quote(text)} is no length of time. Write 90s, 30m, 24h, 7d.")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in found)
    if not 0 < seconds <= 366 * 86_400:
        raise click.BadParameter(f"{quote(text)}: expected more than nothing and at most a year.")
    return round(seconds * 1000)


def read_moment(text: str, zone: tzinfo, now: int, *, past: bool) -> int:
    """Return the moment that somebody means, in milliseconds UTC.

    A length of time is counted from now; a time of the day is the last one, or the next one; what has no
    offset is in the zone.

    :param past: back from now, else onwards.
    :raises click.BadParameter: for a text that is none of these.
    """
    if re.fullmatch(r"(\d+(\.\d+)?[smhdw])+", text):
        return now - read_length(text) if past else now + read_length(text)
    local = from_millis(now).astimezone(zone)
    try:
        clock = time.fromisoformat(text) if re.fullmatch(r"\d\d:\d\d(:\d\d)?", text) else None
        given = None if clock else datetime.fromisoformat(text)
    except ValueError:
        what = "is no time. Write 2h, 09:30, 2026-03-01 or 2026-03-01T09:30+01:00"
        raise click.BadParameter(f"{quote(text)} {what}.") from None
    if clock is None:
        if given is None or not FIRST_YEAR <= given.year <= LAST_YEAR:
            raise click.BadParameter(f"{quote(text)}: expected a year from {FIRST_YEAR} to {LAST_YEAR}.")
        return to_millis(given if given.tzinfo else given.replace(tzinfo=zone))
    days = (local.date() + timedelta(days=n) for n in range(-1, 3))
    moments = sorted(to_millis(datetime.combine(day, clock, zone).astimezone(UTC)) for day in days)
    return max(m for m in moments if m <= now) if past else min(m for m in moments if m > now)


def shorten(name: str, most: int) -> str:
    """Return a name of at most so many characters: the middle of a longer one is left out."""
    if len(name) <= most:
        return name
    head = (most - 2) // 2
    return f"{name[:head]}...{name[len(name) - (most - 3 - head) :]}"


class Page:
    """What a command writes: lines, and tables by rich where that is installed.

    :param zone: of the moments.
    :param width: of the terminal, in characters; None for a file.
    """

    def __init__(self, zone: tzinfo, *, no_color: bool = False, width: int | None = None) -> None:
        self._zone, self._no_color, self._width = zone, no_color, width

    def time(self, moment: int | None) -> str:
        """Return a moment for a cell, '' for None."""
        return "" if moment is None else time_in(moment, self._zone, "seconds").replace("T", " ", 1)

    def pause(self, pause: Pause, rows: int = 1) -> str:
        """Return a pause or a hold in words: its end alone in one of many rows on a terminal."""
        until = [f"until {self.time(pause.until)}"] if pause.until is not None else []
        if self._width is not None and rows >= MANY_ROWS:
            return until[0] if until else "until resumed"
        parts = [f"since {self.time(pause.since)}", *until]
        parts += [f"by {pause.by}"] if pause.by else []
        parts += [f"({pause.reason})"] if pause.reason else []
        return " ".join(parts)

    def line(self, text: str = "") -> None:
        """Write a line. What would end it, or speak to the terminal, is escaped: names are anybody's."""
        click.echo(one_line(text, len(text)))

    def pairs(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Write names with their values."""
        shown = list(pairs)
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            self.line(f"{name.ljust(width)}  {one_line(value, LONGEST_CELL)}")

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        more: int = 0,
        spare: Sequence[str] = (),
    ) -> None:
        """Write a table; where it is wider than the terminal, its rows below each other. No rows: nothing.

        Many rows do without the columns that they can spare, and then with shorter names, to fit.

        :param more: so many rows are left out.
        :param spare: columns that many rows can do without where the terminal is narrow, the first one first.
        """
        cells = [[one_line(str(cell), LONGEST_CELL) for cell in row] for row in rows]
        # A column that says nothing is left out.
        found = [column for column in zip(columns, *cells, strict=True) if any(column[1:])]
        if not found:
            return
        hidden: Sequence[str] = ()
        shown: list[Sequence[str]] = list(found)
        if len(rows) >= MANY_ROWS and not self._fits(shown):
            fitting = (spare[:n] for n in range(len(spare) + 1) if self._fits(found, spare[:n]))
            hidden = next(fitting, spare)
            shown = self._with_short_names([column for column in found if column[0] not in hidden])
            if not self._fits(shown):
                hidden, shown = (), list(found)
        head, *body = zip(*shown, strict=True)
        if not self._fits(shown):
            self._blocks(head, body)
        elif (rich := _rich()) is not None:
            self._rich_table(rich, head, body)
        else:
            widths = [max(map(len, column)) for column in shown]
            for row in (head, *body):
                self.line("  ".join(map(str.ljust, row, widths)).rstrip())
        if hidden:
            self.line(f"not shown: {', '.join(hidden)}; a wider terminal and --json have them")
        if more > 0:
            self.line(f"{more:,} more; --limit shows them")

    def _fits(self, columns: Iterable[Sequence[str]], hidden: Sequence[str] = ()) -> bool:
        return self._room([column for column in columns if column[0] not in hidden]) >= 0

    def _room(self, columns: Sequence[Sequence[str]]) -> int:
        """Return how many characters of a line these columns leave, less than 0 when they do not fit."""
        # The widest gap between two columns has three characters.
        taken = sum(max(map(len, column)) + 3 for column in columns)
        return 0 if self._width is None else self._width - taken

    def _with_short_names(self, columns: Sequence[Sequence[str]]) -> list[Sequence[str]]:
        """Return the columns; names of entries leave out their middle, as far as the rest needs it."""
        others = [column for column in columns if column[0] != "entry"]
        most = max(SHORTEST_NAME, self._room(others) - 3)
        return [
            [shorten(cell, most) for cell in column] if column[0] == "entry" else column for column in columns
        ]

    def _blocks(self, head: Sequence[str], body: Sequence[Sequence[str]]) -> None:
        """Write each row below the other, where they are wider than the terminal."""
        for first, *others in body:
            self.line(first)
            for name, cell in zip(head[1:], others, strict=True):
                if cell:
                    self.line(f"  {name}: {cell}")

    def _rich_table(self, rich: Any, head: Sequence[str], body: Sequence[Sequence[str]]) -> None:
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
        for column in head:
            table.add_column(column, overflow="fold")
        for row in body:
            table.add_row(*map(rich.text.Text, row))
        # A file has no edge.
        console = rich.console.Console(width=self._width or 10_000, no_color=self._no_color, highlight=False)
        console.print(table, soft_wrap=self._width is None)


def _rich() -> Any:
    """Return rich, which the extra ``cli`` brings; None without it."""
    try:
        import rich
        import rich.box
        import rich.console
        import rich.table
        import rich.text
    except ImportError:
        return None
    return rich
