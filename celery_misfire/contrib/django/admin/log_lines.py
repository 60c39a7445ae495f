"""The events of the log in the words of the page, for whoever looks at an outage."""

from __future__ import annotations

from collections.abc import Sequence

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.models import instruction_in_words, reason_in_words
from celery_misfire.contrib.django.timeline.timeline import (
    OUTCOMES,
    count_in_words,
    format_number,
)
from celery_misfire.events import (
    Broken,
    Event,
    GaveUp,
    Led,
    Merged,
    Misfired,
    Missed,
    Refused,
    Sent,
    StartedLate,
)
from celery_misfire.misfire import Outcome


def in_words(event: Event) -> str:
    """Return what an event says; words of a newer version stay as they are."""
    match event:
        case Led():
            if event.cold:
                return _("Beat started for the first time: nothing was known before.")
            return _("Beat started. Before that: %(reason)s.") % {"reason": reason_in_words(event.reason)}
        case Misfired():
            outcomes = (_count_in_words(word, count) for word, count in event.outcomes.items())
            return _("%(runs)s came due late. %(reason)s. %(instruction)s: %(outcomes)s.") % {
                "runs": _runs_in_words(event),
                "reason": reason_in_words(event.reason),
                "instruction": instruction_in_words(event.resolved),
                "outcomes": ", ".join(outcomes),
            }
        case Missed() | GaveUp():
            text = _("%(runs)s: missed. %(reason)s.")
            return text % {"runs": _runs_in_words(event), "reason": reason_in_words(event.reason)}
        case Sent():
            return sent_in_words([event])
        case StartedLate():
            text = _("The run of %(time)s started late by %(length)s.")
            length = moments.as_duration(event.late_by)
            return text % {"time": moments.as_text(event.scheduled), "length": length}
        case Merged():
            text = _("The run of %(time)s was merged into a late one.")
            return text % {"time": moments.as_text(event.scheduled)}
        case Broken():
            return _("The schedule failed (%(error)s).") % {"error": event.error}
        case Refused():
            return _("The message could not be sent (%(error)s).") % {"error": event.error}
        case _:
            return event.kind


def sent_in_words(runs: Sequence[Sent]) -> str:
    """Return what runs of one outcome say, the oldest first."""
    known = _outcome(runs[0].outcome)
    outcome = runs[0].outcome if known is None else OUTCOMES[known]
    if len(runs) == 1:
        text = _("The run of %(time)s was sent (%(outcome)s).")
        return text % {"time": moments.as_text(runs[0].scheduled), "outcome": outcome}
    return _("%(n)s runs were sent (%(outcome)s), %(times)s.") % {
        "n": format_number(len(runs)),
        "outcome": outcome,
        "times": moments.as_range(runs[0].scheduled, runs[-1].scheduled),
    }


def _outcome(word: str) -> Outcome | None:
    return Outcome(word) if word in list(Outcome) else None


def _count_in_words(word: str, count: int) -> str:
    outcome = _outcome(word)
    return f"{count} {word}" if outcome is None else count_in_words(outcome, count)


def _runs_in_words(event: Misfired | Missed | GaveUp) -> str:
    when = moments.as_range(event.first, event.last)
    text = ngettext("%(count)d run, %(when)s", "%(count)d runs, %(when)s", event.count)
    return text % {"count": event.count, "when": when}
