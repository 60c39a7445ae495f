"""What became of an entry's occurrences, in a sentence and as a table.

Plain data in, text out; nothing is read here. Moments are integer milliseconds UTC, and shown in a time zone.
:mod:`~celery_misfire.contrib.django.timeline.picture` draws the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from enum import StrEnum
from functools import cached_property

from django.utils.formats import date_format, number_format
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, ngettext_lazy, pgettext

from celery_misfire.contrib.django.moments import as_duration
from celery_misfire.misfire import Outcome, from_millis
from celery_misfire.triggers.wall_times import MINUTE, SECOND
from celery_misfire.triggers.zones import zone_for

#: A table shows at most this many rows.
MAX_ROWS = 200
#: In a table of more rows than this, neighbours with the same fate stand in one row.
MAX_SINGLE_ROWS = 60
#: The text lists at most this many outages.
MAX_OUTAGES = 20


class Waiting(StrEnum):
    """It has no outcome yet, and should have one."""

    OVERDUE = "overdue"


#: What became of an occurrence; None: it is still to come.
Fate = Outcome | Waiting | None

#: The name of each fate, in the order of the legend.
OUTCOMES: dict[Fate, str | Promise] = {
    Outcome.FIRED: gettext_lazy("fired"),
    Outcome.RECOVERED: gettext_lazy("recovered"),
    Outcome.MERGED: gettext_lazy("merged"),
    Outcome.MISSED: gettext_lazy("missed"),
    Waiting.OVERDUE: gettext_lazy("overdue"),
    None: gettext_lazy("expected"),
}

_COUNTED = {
    Outcome.FIRED: ngettext_lazy("%(n)s fired", "%(n)s fired", "number"),
    Outcome.RECOVERED: ngettext_lazy("%(n)s recovered", "%(n)s recovered", "number"),
    Outcome.MERGED: ngettext_lazy("%(n)s merged", "%(n)s merged", "number"),
    Outcome.MISSED: ngettext_lazy("%(n)s missed", "%(n)s missed", "number"),
    Waiting.OVERDUE: ngettext_lazy("%(n)s overdue", "%(n)s overdue", "number"),
    None: ngettext_lazy("%(n)s expected", "%(n)s expected", "number"),
}


@dataclass(frozen=True)
class Occurrence:
    """A fire time and what became of it, or a stretch of such of which each had the same fate.

    :param outcome: None: it is expected.
    :param fire_time: when it was really sent; of a merged one: when the run was sent that stands for it.
    :param last: the last fire time of a stretch.
    :param count: how many fire times there are from `scheduled` to `last`.
    :param reason: why it was missed, in words.
    :param task_id: of the run, '' when that is not known.
    """

    scheduled: int
    outcome: Fate
    fire_time: int | None = None
    last: int | None = None
    count: int = 1
    reason: str = ""
    task_id: str = ""

    @property
    def end(self) -> int:
        return self.scheduled if self.last is None else self.last


@dataclass(frozen=True)
class Outage:
    """A time in which beat did not send what was due.

    :param sure: False for a time of which nothing is known but that beat gave no sign of life.
    """

    start: int
    end: int
    label: str
    sure: bool = True


@dataclass(frozen=True)
class Row:
    """A line of the table, ready to be shown."""

    scheduled: str
    count: str
    kind: str
    outcome: str
    fire_time: str
    late_by: str
    result: str = ""


@dataclass(frozen=True)
class Timeline:
    """What is known of one entry from `start` to `end`.

    :param name: what the picture is called.
    :param now: is marked, when given.
    :param known_from: nothing is known of the time before; None: all is known.
    :param this_year: days of this year are told without it; None: of the year of the picture.
    :param results: what became of runs in the worker, in words, by task id.
    """

    name: str
    start: int
    end: int
    zone: tzinfo
    occurrences: Sequence[Occurrence] = ()
    outages: Sequence[Outage] = ()
    now: int | None = None
    known_from: int | None = None
    this_year: int | None = None
    results: Mapping[str, str] = field(default_factory=dict)

    # -- times in words ------------------------------------------------------------------------------------

    @cached_property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        """Since when which offset from UTC is in force, in milliseconds; more than one when it changes."""
        found: list[tuple[int, int]] = []
        for stretch in zone_for(self.zone).between(self.start, self.end):
            if not found or found[-1][1] != stretch.offset:
                found.append((max(self.start, stretch.start), stretch.offset))
        return tuple(found)

    @property
    def zone_in_words(self) -> str:
        """The time zone and its offset, and when that changes."""
        parts = [format_offset(self.offsets[0][1])]
        for (_before, old), (since, new) in zip(self.offsets, self.offsets[1:], strict=False):
            # The text has the last time that clocks show before they are changed.
            last_shown = from_millis(since + old)
            parts.append(
                _("from %(time)s on %(offset)s")
                % {"time": f"{self.day(since)}, {last_shown:%H:%M}", "offset": format_offset(new)}
            )
        return f"{self.zone}, {', '.join(parts)}"

    def clock(self, moment: int, *, seconds: bool = False) -> str:
        """Return what the clocks show, with seconds if it has some, any fire time has, or they are wanted."""
        local = self.in_zone(moment)
        return date_format(local, "H:i:s" if seconds or local.second or self._has_seconds else "H:i")

    @cached_property
    def _has_seconds(self) -> bool:
        return any(o.scheduled % MINUTE for o in self.occurrences)

    def date_and_time(self, moment: int, *, seconds: bool = False) -> str:
        """Return day and time, with the offset when that changes within the picture."""
        text = f"{self.day(moment)}, {self.clock(moment, seconds=seconds)}"
        if len(self.offsets) > 1:
            text += f" ({format_offset(zone_for(self.zone).at(moment).offset)})"
        return text

    def between(self, first: int, last: int) -> str:
        """Return two moments; the day once, when it is the same."""
        if self.day(first) == self.day(last) and len(self.offsets) == 1:
            return f"{self.day(first)}, {self.clock(first)} \u2013 {self.clock(last)}"
        return f"{self.date_and_time(first)} \u2013 {self.date_and_time(last)}"

    def same_day(self, one: int, other: int) -> bool:
        return self.in_zone(one).date() == self.in_zone(other).date()

    def day(self, moment: int) -> str:
        years = {self.in_zone(at).year for at in (self.start, self.end, moment)}
        if self.this_year is not None:
            years.add(self.this_year)
        form = (
            pgettext("as Django's filter date takes it", "D j M")
            if len(years) == 1
            else pgettext("as Django's filter date takes it", "j M Y")
        )
        return date_format(self.in_zone(moment), form)

    def in_zone(self, moment: int) -> datetime:
        return from_millis(moment).astimezone(self.zone)

    # -- facts in words ------------------------------------------------------------------------------------

    @cached_property
    def counts(self) -> dict[Fate, int]:
        """How many occurrences had each outcome."""
        found = dict.fromkeys(OUTCOMES, 0)
        for occurrence in self.occurrences:
            found[occurrence.outcome] += occurrence.count
        return found

    @property
    def summary(self) -> str:
        """How many occurrences had each outcome, in words."""
        texts = [count_in_words(outcome, n) for outcome, n in self.counts.items() if n]
        return ", ".join(texts) or _("no fire times")

    @property
    def description(self) -> str:
        """The picture in words."""
        parts = [f"{self.between(self.start, self.end)}: {self.summary}."]
        return " ".join(parts + [f"{outage}." for outage in self.outages_in_words])

    @property
    def outages_in_words(self) -> list[str]:
        """The outages in words, the first of them."""
        texts = [
            f"{o.label}: {self.between(o.start, o.end)}, {as_duration(o.end - o.start)}"
            for o in sorted(self.outages, key=lambda o: o.start)[:MAX_OUTAGES]
        ]
        if len(self.outages) > len(texts):
            left = len(self.outages) - len(texts)
            texts.append(ngettext("%(n)s more", "%(n)s more", left) % {"n": format_number(left)})
        return texts

    @cached_property
    def rows(self) -> list[Row]:
        """The table, in the order of time; runs on time stand together when there are many rows."""
        ordered = sorted(self.occurrences, key=lambda o: o.scheduled)
        if len(ordered) > MAX_SINGLE_ROWS:
            ordered = list(_together(ordered))
        return [self._row(o) for o in ordered]

    @property
    def rows_shown(self) -> list[Row]:
        return self.rows[:MAX_ROWS]

    @property
    def rows_left_out(self) -> int:
        return max(0, len(self.rows) - MAX_ROWS)

    def _row(self, o: Occurrence) -> Row:
        outcome = str(OUTCOMES[o.outcome])
        if o.reason:
            outcome = f"{outcome} ({o.reason})"
        late_by = 0 if o.fire_time is None or o.count > 1 else o.fire_time - o.scheduled
        is_one = o.end == o.scheduled
        return Row(
            scheduled=self.date_and_time(o.scheduled) if is_one else self.between(o.scheduled, o.end),
            count=format_number(o.count),
            kind=word_of(o.outcome),
            outcome=outcome,
            fire_time=self.date_and_time(o.fire_time, seconds=True) if o.fire_time is not None else "",
            late_by=as_duration(late_by) if late_by >= SECOND else "",
            result=self.results.get(o.task_id, ""),
        )


def _together(ordered: Sequence[Occurrence]) -> Iterator[Occurrence]:
    """Put neighbours with the same fate into one stretch."""
    stretch: list[Occurrence] = []
    for occurrence in ordered:
        if stretch and _fate(stretch[-1]) != _fate(occurrence):
            yield _stretch(stretch)
            stretch = []
        stretch.append(occurrence)
    if stretch:
        yield _stretch(stretch)


def _fate(o: Occurrence) -> tuple[Fate, int | None, str]:
    # Late runs keep their own times, unless one run stands for all of them.
    return o.outcome, o.fire_time if o.outcome in (Outcome.RECOVERED, Outcome.MERGED) else None, o.reason


def _stretch(same: Sequence[Occurrence]) -> Occurrence:
    first, last = same[0], same[-1]
    if len(same) == 1:
        return first
    _outcome, fire_time, reason = _fate(first)
    return Occurrence(first.scheduled, first.outcome, fire_time, last.end, sum(o.count for o in same), reason)


def word_of(outcome: Fate) -> str:
    """Return the word that stands for an outcome in classes of CSS."""
    return "expected" if outcome is None else str(outcome)


def count_in_words(outcome: Fate, count: int) -> str:
    """Return how many had an outcome, in words."""
    return _COUNTED[outcome] % {"number": count, "n": format_number(count)}


def format_number(value: int) -> str:
    """Return a number as people read it in their language."""
    return number_format(value, use_l10n=True, force_grouping=True)


def format_offset(offset: int) -> str:
    """Return an offset from UTC, in milliseconds, as people write it: ``UTC+2``, ``UTC+5:30``."""
    hours, minutes = divmod(abs(offset) // MINUTE, 60)
    sign = "-" if offset < 0 else "+"
    return f"UTC{sign}{hours}" + (f":{minutes:02}" if minutes else "")
