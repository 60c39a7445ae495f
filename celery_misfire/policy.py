"""How a misfire is to be handled: instructions, policies, and the words for what comes of it.

Pure, as :mod:`celery_misfire.misfire`, where all of this is imported from.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Self

from celery_misfire.texts import quote, type_name, unknown_word

__all__ = [
    "AUTO_THRESHOLD",
    "FITTING",
    "MisfireInstruction",
    "MisfirePolicy",
    "Outcome",
    "Reason",
    "TriggerType",
    "Word",
    "resolve",
    "threshold_millis",
]

#: Longest automatic misfire threshold, in milliseconds (Quartz's default threshold).
AUTO_THRESHOLD = 60_000


class Word(StrEnum):
    """A vocabulary whose words are stored. A newer version may have more of them."""

    @classmethod
    def read(cls, word: str) -> Self:
        """Return the member that a stored word stands for.

        For a word that this version does not know it is a new object of the class. It equals no member and is
        written as it was read.

        :raises ValueError: when the text is no word at all.
        """
        try:
            return cls(word)
        except ValueError:
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,49}", word):
                raise
            unknown = str.__new__(cls, word)
            unknown._name_ = unknown._value_ = word
            return unknown


class MisfireInstruction(Word):
    """What happens to occurrences that have misfired."""

    #: Decide by the type of the schedule. Once: ``fire_now``. Fixed:
    #: ``reschedule_now_with_existing_repeat_count``. Endless: ``reschedule_next_with_remaining_count``. Cron:
    #: ``fire_once_now``.
    SMART_POLICY = "smart_policy"
    #: Run every one of them, late, oldest first, each with its own scheduled fire time.
    IGNORE_MISFIRE_POLICY = "ignore_misfire_policy"
    #: Run one late, which covers all of them. The schedule goes on as it was.
    FIRE_ONCE_NOW = "fire_once_now"
    #: Run none of them. The schedule goes on as it was.
    DO_NOTHING = "do_nothing"
    #: A trigger that fires once: run it now. Others: as ``reschedule_now_with_remaining_repeat_count``.
    FIRE_NOW = "fire_now"
    #: Run one late. The interval starts again from now, with all the runs that were left.
    RESCHEDULE_NOW_WITH_EXISTING_REPEAT_COUNT = "reschedule_now_with_existing_repeat_count"
    #: Run one late. The interval starts again from now. The missed intervals are used up.
    RESCHEDULE_NOW_WITH_REMAINING_REPEAT_COUNT = "reschedule_now_with_remaining_repeat_count"
    #: Run none of them and go on with the next fire time. They do not count as repetitions.
    RESCHEDULE_NEXT_WITH_EXISTING_COUNT = "reschedule_next_with_existing_count"
    #: Run none of them and go on with the next fire time. They count as repetitions.
    RESCHEDULE_NEXT_WITH_REMAINING_COUNT = "reschedule_next_with_remaining_count"


class TriggerType(StrEnum):
    """The four kinds of schedule that Quartz's rules tell apart."""

    ONCE = "once"
    FIXED = "fixed"
    ENDLESS = "endless"
    CRON = "cron"


class Outcome(Word):
    """How an occurrence ended. Each ends as exactly one of these."""

    FIRED = "fired"
    RECOVERED = "recovered"
    MERGED = "merged"
    MISSED = "missed"


class Reason(Word):
    """Why an occurrence was late or never ran."""

    SCHEDULER_DOWN = "scheduler_down"
    FAILOVER = "failover"
    STORE_UNAVAILABLE = "store_unavailable"
    BROKER_UNAVAILABLE = "broker_unavailable"
    SCHEDULER_BUSY = "scheduler_busy"
    QUEUE_LATE = "queue_late"
    PAUSED = "paused"
    TOO_OLD = "too_old"
    CAPPED = "capped"
    ENDED = "ended"
    SCHEDULE_ERROR = "schedule_error"
    PUBLISH_REJECTED = "publish_rejected"
    ENTRY_DELETED = "entry_deleted"
    CLOCK_JUMP = "clock_jump"
    EXPIRED = "expired"
    START_IN_PAST = "start_in_past"
    #: Beat stopped in an orderly way, and was there again soon: no alarm is raised.
    RESTARTED = "restarted"


_FOR_ALL = (
    MisfireInstruction.SMART_POLICY,
    MisfireInstruction.IGNORE_MISFIRE_POLICY,
    MisfireInstruction.FIRE_ONCE_NOW,
    MisfireInstruction.DO_NOTHING,
)

#: The instructions that fit each type of trigger.
FITTING: dict[TriggerType, tuple[MisfireInstruction, ...]] = {
    TriggerType.ONCE: tuple(MisfireInstruction),
    TriggerType.FIXED: tuple(MisfireInstruction),
    TriggerType.ENDLESS: tuple(MisfireInstruction),
    TriggerType.CRON: _FOR_ALL,
}

_SMART = {
    TriggerType.ONCE: MisfireInstruction.FIRE_NOW,
    TriggerType.FIXED: MisfireInstruction.RESCHEDULE_NOW_WITH_EXISTING_REPEAT_COUNT,
    TriggerType.ENDLESS: MisfireInstruction.RESCHEDULE_NEXT_WITH_REMAINING_COUNT,
    TriggerType.CRON: MisfireInstruction.FIRE_ONCE_NOW,
}


def resolve(instruction: MisfireInstruction, trigger_type: TriggerType) -> MisfireInstruction:
    """Return the instruction that `instruction` stands for on a trigger of this type.

    Only ``smart_policy`` stands for another one. ``fire_now`` keeps its name on repeated triggers, although
    it does there what ``reschedule_now_with_remaining_repeat_count`` does.
    """
    return _SMART[trigger_type] if instruction is MisfireInstruction.SMART_POLICY else instruction


@dataclass(frozen=True)
class MisfirePolicy:
    """What an entry does when it misfires.

    :param instruction: a :class:`MisfireInstruction` or its name.
    :param threshold: a fire that is late by this much or more is a misfire, as in Quartz. In seconds, or a
        timedelta. ``"auto"``: half the gap between the misfired fire time and the next one, at most 60
        seconds; 60 when there is no next.
    :param max_catch_up: run at most this many misfired occurrences, the newest. None: no limit.
    :param max_lateness: never run misfired occurrences that are older than this, in seconds, or a timedelta.
        None: no limit.
    :param on_missed: name of a task that is sent with the record of missed runs.
    :raises ValueError: when a value is impossible. The message names the field and the value.
    """

    instruction: MisfireInstruction = MisfireInstruction.SMART_POLICY
    threshold: float | str = "auto"
    max_catch_up: int | None = None
    max_lateness: float | None = None
    on_missed: str | None = None

    if TYPE_CHECKING:
        # The arguments may be written in more ways than the fields are kept.
        def __init__(
            self,
            instruction: MisfireInstruction | str = ...,
            threshold: float | timedelta | Literal["auto"] = ...,
            max_catch_up: int | None = ...,
            max_lateness: float | timedelta | None = ...,
            on_missed: str | None = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "instruction", _instruction(self.instruction))
        if self.threshold != "auto":
            object.__setattr__(self, "threshold", _seconds("threshold", self.threshold, also=" or 'auto'"))
        if self.max_lateness is not None:
            object.__setattr__(self, "max_lateness", _seconds("max_lateness", self.max_lateness))
        limit = self.max_catch_up
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ValueError(
                f"max_catch_up: expected a whole number from 1, got {quote(limit)}. "
                "To run nothing use the instruction 'do_nothing'."
            )
        if self.on_missed is not None and not (isinstance(self.on_missed, str) and self.on_missed):
            given = quote(self.on_missed) if isinstance(self.on_missed, str) else type_name(self.on_missed)
            raise ValueError(f"on_missed: expected the name of a task, got {given}.")


def _instruction(value: object) -> MisfireInstruction:
    try:
        return MisfireInstruction(str(value))
    except ValueError:
        raise ValueError(f"instruction: {unknown_word(value, tuple(MisfireInstruction))}") from None


# A longer time is a mistake of units, and would overflow later.
_HUNDRED_YEARS = 100 * 366 * 86_400


def _seconds(name: str, value: object, also: str = "") -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a number of seconds > 0{also}, got {quote(value)}.")
    if value > _HUNDRED_YEARS:
        raise ValueError(f"{name}: expected seconds, got more than 100 years: {quote(value)}.")
    return float(value)


def threshold_millis(policy: MisfirePolicy | None, scheduled: int, following: int | None) -> int:
    """Return the misfire threshold of one fire time, in milliseconds: late by so much, it has misfired.

    :param following: the fire time after `scheduled`, None when there is none.
    """
    if policy is not None and policy.threshold != "auto":
        return round(float(policy.threshold) * 1000)
    return AUTO_THRESHOLD if following is None else min(AUTO_THRESHOLD, (following - scheduled) // 2)
