"""The lines of the log in words, for whoever looks at an outage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.models import Instruction, MissReason
from celery_misfire.contrib.django.timeline.timeline import OUTCOMES, counted
from celery_misfire.misfire import Outcome

__all__ = ["in_words"]


def in_words(line: Mapping[str, Any]) -> str:
    """Return what a line says; of a line that a newer version has written, its event at least."""
    try:
        return _IN_WORDS[line["event"]](line)
    except (KeyError, TypeError, ValueError):
        return str(line.get("event", ""))


def _lead(line: Mapping[str, Any]) -> str:
    return _("A beat began to lead. Before that: %(reason)s.") % {"reason": _reason(line)}


def _misfire(line: Mapping[str, Any]) -> str:
    outcomes = (counted(Outcome(word), count) for word, count in line["outcomes"].items())
    return _("%(runs)s: misfired. %(reason)s. %(instruction)s: %(outcomes)s.") % {
        "runs": _runs(line),
        "reason": _reason(line),
        "instruction": Instruction(line["resolved"]).label,
        "outcomes": ", ".join(outcomes),
    }


def _missed(line: Mapping[str, Any]) -> str:
    return _("%(runs)s: missed. %(reason)s.") % {"runs": _runs(line), "reason": _reason(line)}


def _sent(line: Mapping[str, Any]) -> str:
    return _("The run of %(time)s was sent (%(outcome)s).") % {
        "time": moments.as_text(line["scheduled"]),
        "outcome": OUTCOMES[Outcome(line["outcome"])],
    }


def _late(line: Mapping[str, Any]) -> str:
    return _("The run of %(time)s started late by %(length)s.") % {
        "time": moments.as_text(line["scheduled"]),
        "length": moments.as_duration(line["late_by"]),
    }


def _merged(line: Mapping[str, Any]) -> str:
    return _("The run of %(time)s was merged into a late one.") % {"time": moments.as_text(line["scheduled"])}


def _broken(line: Mapping[str, Any]) -> str:
    return _("The schedule failed (%(error)s).") % {"error": line["error"]}


def _refused(line: Mapping[str, Any]) -> str:
    return _("The message could not be sent (%(error)s).") % {"error": line["error"]}


_IN_WORDS = {
    "lead": _lead,
    "misfire": _misfire,
    "missed": _missed,
    "sent": _sent,
    "late": _late,
    "merged": _merged,
    "broken": _broken,
    "refused": _refused,
}


def _reason(line: Mapping[str, Any]) -> str:
    return str(MissReason(line["reason"]).label)


def _runs(line: Mapping[str, Any]) -> str:
    first, last, count = line["first"], line["last"], line["count"]
    when = moments.as_text(first)
    if last != first:
        when = _("%(first)s to %(last)s") % {"first": when, "last": moments.as_text(last)}
    return ngettext("%(count)d run, %(when)s", "%(count)d runs, %(when)s", count) % {
        "count": count,
        "when": when,
    }
