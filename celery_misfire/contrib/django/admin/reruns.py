"""Re-runs: any number of missed occurrences in their order, for about a second at a time.

The page of a re-run asks for one step after the other, so that no request takes long, and nothing is lost
when somebody closes the page: the next step goes on where the last one ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from celery import Celery
from django.db.models import Count, Q
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django_celery_beat.models import PeriodicTask

from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.running import (
    AlreadyRun,
    CannotRun,
    Occurrences,
    Runner,
    Sendables,
    Unavailable,
    no_task,
    occurrences_of,
    tasks_of,
)
from celery_misfire.contrib.django.models import MissedFire, OccurrenceRun, Rerun

#: Why some occurrences of a record cannot be sent.
EDITED = gettext_lazy("The schedule was edited since: only the first and the last fire time are known.")
#: A step sends for about so long, in seconds: somebody waits for the page.
STEP_SECONDS = 1.0
#: A step that has not ended after so long has been killed, and another one may go on.
LONGEST_STEP = timedelta(minutes=2)
#: So many occurrences are noted in one transaction: others who write wait for it.
BATCH = 50
#: One query reads at most this many records.
RECORDS_AT_ONCE = 200


@dataclass(frozen=True)
class Part:
    """Some occurrences of a record: those from `first` to `last`, in milliseconds UTC; None: no bound."""

    missed: MissedFire
    first: int | None = None
    last: int | None = None

    @property
    def name(self) -> str:
        """The part as a form names it, see ``RunningMixin``."""
        if self.first is None and self.last is None:
            return str(self.missed.pk)
        return ":".join(str(bound) for bound in (self.missed.pk, *self.bounds))

    @property
    def bounds(self) -> tuple[int, int]:
        first, last = moments.millis(self.missed.first), moments.millis(self.missed.last)
        # A range that is asked for beside this one gives none: its first is after its last.
        return (
            first if self.first is None else min(max(first, self.first), last + 1),
            last if self.last is None else max(min(last, self.last), first - 1),
        )


@dataclass(frozen=True)
class Preview:
    """What would become of a part.

    :param count: how many occurrences have not been run.
    :param unknown: how many more there are whose fire times nobody knows, as the schedule was edited.
    :param problem: why none of them can be sent, '' when they can.
    """

    part: Part
    task: PeriodicTask | None
    known: Occurrences
    count: int
    unknown: int = 0
    problem: str = ""

    @property
    def total(self) -> int:
        """How many occurrences are not dealt with."""
        return self.count + self.unknown


def previews(app: Celery, parts: Sequence[Part]) -> list[Preview]:
    """Return what would become of these parts; nothing is sent, and the broker is not asked."""
    tasks = tasks_of(part.missed for part in parts)
    sendables = Sendables(app)
    made = _runs_made(parts)
    found = []
    for part, runs in zip(parts, made, strict=True):
        task = tasks.get(part.missed.periodic_task_id or 0)
        known = occurrences_of(part.missed, task)
        unknown = _unknown(part.missed, known, *part.bounds)
        problem = _problem(sendables, part.missed, task)
        found.append(
            Preview(part, task, known, max(0, known.times.count(*part.bounds) - runs), unknown, problem)
        )
    return found


def _runs_made(parts: Sequence[Part]) -> list[int]:
    whole = [part.missed.pk for part in parts if part.first is None and part.last is None]
    counts: dict[int, int] = {}
    for start in range(0, len(whole), RECORDS_AT_ONCE):
        runs = OccurrenceRun.objects.filter(missed__in=whole[start : start + RECORDS_AT_ONCE])
        counts |= dict(runs.order_by().values_list("missed").annotate(Count("pk")))
    found = []
    for part in parts:
        if part.first is None and part.last is None:
            found.append(counts.get(part.missed.pk, 0))
        else:
            first, last = map(moments.as_stored, part.bounds)
            found.append(part.missed.runs.filter(scheduled_fire_time__range=(first, last)).count())
    return found


def _problem(sendables: Sendables, missed: MissedFire, task: PeriodicTask | None) -> str:
    """Return why nothing of a record can be sent, '' when it can."""
    if missed.dismissed_at is not None:
        return _("It was dismissed. Reopen it first.")
    if task is None:
        return no_task(missed)
    try:
        sendables.of(task)
    except CannotRun as exc:
        return str(exc)
    return ""


def _unknown(missed: MissedFire, known: Occurrences, first: int, last: int) -> int:
    """Return how many occurrences there are between these whose fire times nobody knows."""
    ends = (moments.millis(missed.first), moments.millis(missed.last))
    return missed.count - 2 if known.was_edited and (first, last) == ends else 0


def start(wanted: Sequence[Preview], user: Any) -> Rerun:
    """Return a new re-run of these parts, of which nothing has been sent yet."""
    parts = [(preview.part.missed.pk, *preview.part.bounds) for preview in wanted]
    return Rerun.objects.create(
        requested_by=user, wanted=parts, total=sum(preview.total for preview in wanted)
    )


@dataclass
class Step:
    """What one step did.

    :param problem: why nothing can be sent at the moment, '' for nothing.
    :param sent: the runs of each record.
    """

    problem: str = ""
    sent: list[tuple[MissedFire, list[OccurrenceRun]]] = field(default_factory=list)


def take_step(app: Celery, rerun: Rerun, user: Any) -> Step:
    """Go on with a re-run for about a second, unless another step is under way."""
    step, now = Step(), moments.as_stored(moments.now())
    unfinished = Rerun.objects.filter(pk=rerun.pk, finished_at=None)
    free = unfinished.filter(Q(busy_until=None) | Q(busy_until__lt=now))
    if not free.update(busy_until=now + LONGEST_STEP):
        return step
    rerun.refresh_from_db()
    progress = _Progress(rerun, Runner(app, user, rerun), step)
    try:
        progress.go_on(time.monotonic() + STEP_SECONDS)
    except Unavailable as exc:
        step.problem = str(exc)
    finally:
        progress.close()
        rerun.busy_until = None
        if rerun.position >= len(rerun.wanted):
            rerun.finished_at = moments.as_stored(moments.now())
        changed = ("position", "dealt_with", "skipped", "failures", "busy_until", "finished_at")
        rerun.save(update_fields=changed)
    return step


class _Progress:
    """Works off the records of a re-run, a batch of occurrences at a time."""

    def __init__(self, rerun: Rerun, runner: Runner, step: Step) -> None:
        self._rerun, self._runner, self._step = rerun, runner, step
        self._batch: list[tuple[MissedFire, PeriodicTask | None, int]] = []

    def close(self) -> None:
        self._runner.close()

    def go_on(self, deadline: float) -> None:
        """Run what comes next, until all is done or the time is up.

        :raises Unavailable: the next step begins with the batch that was under way; what was sent is noted.
        """
        rerun = self._rerun
        done = self._place()
        try:
            for _full in self._batches():
                self._send()
                done = self._place()
                if time.monotonic() >= deadline:
                    return
        finally:
            rerun.position, rerun.dealt_with, rerun.skipped, rerun.failures = done

    def _place(self) -> tuple[int, int | None, int, list[list[Any]]]:
        rerun = self._rerun
        return rerun.position, rerun.dealt_with, rerun.skipped, [list(failure) for failure in rerun.failures]

    def _batches(self) -> Iterator[None]:
        """Fill the batch, and yield whenever it is to be sent: when it is full, and at the end."""
        rerun = self._rerun
        while rerun.position < len(rerun.wanted):
            parts = rerun.wanted[rerun.position : rerun.position + RECORDS_AT_ONCE]
            records = MissedFire.objects.in_bulk([key for key, _first, _last in parts])
            tasks = tasks_of(records.values())
            for key, first, last in parts:
                missed = records.get(key)
                if missed is None:
                    self._fail(str(key), _("Its record is gone."), 1, first, last)
                else:
                    yield from self._record(missed, tasks.get(missed.periodic_task_id or 0), first, last)
                rerun.position += 1
                rerun.dealt_with = None
        yield

    def _record(self, missed: MissedFire, task: PeriodicTask | None, first: int, last: int) -> Iterator[None]:
        """Put the occurrences of one record into the batch."""
        rerun, known = self._rerun, occurrences_of(missed, task)
        unknown = _unknown(missed, known, first, last)
        if rerun.dealt_with is not None:
            first = rerun.dealt_with + 1
        made = self._made(missed, first)
        if problem := _problem(self._runner.sendables, missed, task):
            left = known.times.count(first, last) - sum(first <= moment <= last for moment in made)
            self._fail(missed.entry, problem, left + unknown, first, last)
            return
        for moment in known.between(first, last):
            if moment not in made:
                self._batch.append((missed, task, moment))
            elif made[moment]:
                rerun.skipped += 1
            rerun.dealt_with = moment
            if len(self._batch) >= BATCH:
                yield
        self._fail(missed.entry, str(EDITED), unknown, first, last)

    def _send(self) -> None:
        """Run the batch, and note what became of it."""
        batch, self._batch = self._batch, []
        ends = self._runner.run_all(batch)
        for (missed, _task, moment), end in zip(batch, ends, strict=False):
            if isinstance(end, Unavailable):
                raise end
            if isinstance(end, AlreadyRun):
                self._rerun.skipped += 1
            elif isinstance(end, CannotRun):
                self._fail(missed.entry, str(end), 1, moment, moment)
            elif self._step.sent and self._step.sent[-1][0] is missed:
                self._step.sent[-1][1].append(end)
            else:
                self._step.sent.append((missed, [end]))

    def _made(self, missed: MissedFire, first: int) -> dict[int, bool]:
        """Return which occurrences of a record have been run from `first` on.

        :returns: by scheduled fire time, whether somebody else had it run after this re-run was asked for.
        """
        rerun, runs = self._rerun, missed.runs.filter(scheduled_fire_time__gte=moments.as_stored(first))
        return {
            moments.millis(scheduled): key != rerun.pk and at >= rerun.requested_at
            for scheduled, key, at in runs.values_list("scheduled_fire_time", "rerun", "requested_at")
        }

    def _fail(self, entry: str, problem: str, count: int, first: int, last: int) -> None:
        failures = self._rerun.failures
        if count <= 0:
            return
        if failures and failures[-1][:2] == [entry, problem]:
            # Neighbours with the same fate share a line.
            failures[-1][2] += count
            failures[-1][4] = last
        else:
            failures.append([entry, problem, count, first, last])
