"""What beat logs of events: how loud, in which order, with which fields."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC
from typing import Any

import pytest

from celery_misfire.events import Event, GaveUp, Misfired, Sent
from celery_misfire.log_lines import LONGEST_WAIT, STRAGGLERS, EventLog, Log, event_fields
from celery_misfire.misfire import Reason
from tests.support.processes import ROOT

NINE = 1_772_442_000_000  # 2026-03-02 09:00 UTC
MISFIRED = Misfired(
    entry="reports",
    task="shop.reports",
    first=NINE,
    last=NINE + 60_000,
    count=2,
    now=NINE + 90_000,
    late_by=90_000,
    reason=Reason.SCHEDULER_DOWN,
    instruction="smart_policy",
    resolved="fire_once_now",
    outcomes={"recovered": 1, "merged": 1},
    next=NINE + 120_000,
)
GAVE_UP = GaveUp(
    entry="old",
    task="shop.old",
    first=NINE,
    last=NINE,
    count=3,
    now=NINE + 5,
    reason="entry_deleted",
    instruction="do_nothing",
    id="an-id",
)

Say = Callable[..., list[tuple[str, str]]]


def misfires(count: int, start: int = 0, **changed: Any) -> list[Event]:
    return [replace(MISFIRED, entry=f"e{start + n}", **changed) for n in range(count)]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    caplog.set_level(logging.INFO)

    def take() -> list[tuple[str, str]]:
        lines = [(record.levelname, record.getMessage()) for record in caplog.records]
        caplog.clear()
        return lines

    return take


@pytest.fixture
def log() -> EventLog:
    return EventLog(Log("celery_misfire.test", "beat"), UTC, "host:7")


def levels(lines: list[tuple[str, str]]) -> dict[str, int]:
    found = [level for level, _ in lines]
    return {level: found.count(level) for level in set(found)}


def test_ten_entries_are_a_warning_each(log: EventLog, said: Say):
    log.listen(misfires(10))
    log.write(0.0, is_complete=True)
    assert levels(said()) == {"WARNING": 10}


def test_eleven_entries_are_one_warning_and_their_lines_are_quiet(log: EventLog, said: Say):
    log.listen(misfires(11))
    log.write(0.0, is_complete=True)
    *single, summary = said()
    assert levels(single) == {"INFO": 11}
    assert summary == (
        "WARNING",
        "beat: 11 entries missed their times since 2026-03-02T09:00:00.000+00:00 (scheduler_down): "
        "11 runs recovered, 11 merged, 0 missed",
    )


def test_one_entry_that_misfires_again_and_again_is_a_warning_each_time(log: EventLog, said: Say):
    log.listen([MISFIRED] * 30)
    log.write(0.0, is_complete=True)
    assert levels(said()) == {"WARNING": 30}


def test_an_outage_that_is_planned_in_many_batches_is_one_line(log: EventLog, said: Say):
    for n in range(20):
        log.listen(misfires(100, n * 100))
        log.write(n * 0.1, is_complete=n == 19)
    assert levels(said()) == {"INFO": 2000, "WARNING": 1}


def test_what_is_not_complete_is_not_said_as_its_level_is_not_known(log: EventLog, said: Say):
    log.listen(misfires(8))
    log.write(0.0, is_complete=False)
    assert said() == []
    log.listen(misfires(8, 8))
    log.write(0.1, is_complete=True)
    assert levels(said()) == {"INFO": 16, "WARNING": 1}


def test_nothing_waits_for_ever(log: EventLog, said: Say):
    log.listen(misfires(3))
    log.write(0.0, is_complete=False)
    log.write(LONGEST_WAIT, is_complete=False)
    assert levels(said()) == {"WARNING": 3}


def test_stragglers_of_a_large_outage_are_quiet_and_counted_once_more(log: EventLog, said: Say):
    log.listen(misfires(11))
    log.write(0.0, is_complete=True)
    said()
    log.listen(misfires(2, 20))
    log.write(STRAGGLERS / 2, is_complete=True)
    assert levels(said()) == {"INFO": 2}
    log.write(STRAGGLERS, is_complete=True)
    [(level, text)] = said()
    assert (level, "beat: 2 entries missed" in text) == ("WARNING", True)


def test_a_later_misfire_is_another_outage(log: EventLog, said: Say):
    log.listen(misfires(11))
    log.write(0.0, is_complete=True)
    log.write(STRAGGLERS, is_complete=True)
    said()
    log.listen(misfires(1))
    log.write(STRAGGLERS + 1, is_complete=True)
    assert levels(said()) == {"WARNING": 1}


def test_a_trickle_that_goes_on_becomes_one_outage(log: EventLog, said: Say):
    for second in range(60):
        log.listen(misfires(1, second, reason=Reason.SCHEDULER_BUSY))
        log.write(float(second), is_complete=True)
    assert levels(said())["WARNING"] < 20


def test_each_reason_is_an_outage_of_its_own(log: EventLog, said: Say):
    log.listen([*misfires(11), *misfires(3, 20, reason=Reason.FAILOVER), GAVE_UP])
    log.write(0.0, is_complete=True)
    assert levels(said()) == {"INFO": 11, "WARNING": 5}


def test_what_was_given_up_in_bulk_is_one_line_as_well(log: EventLog, said: Say):
    log.listen([replace(GAVE_UP, entry=f"e{n}") for n in range(50)])
    log.write(0.0, is_complete=True)
    lines = said()
    assert levels(lines) == {"INFO": 50, "WARNING": 1}
    assert "50 entries missed" in lines[-1][1]
    assert "150 missed" in lines[-1][1]


def test_a_restart_on_purpose_is_no_warning(log: EventLog, said: Say):
    log.listen([*misfires(3, reason="restarted"), *misfires(11, 20, reason="restarted")])
    log.write(0.0, is_complete=True)
    assert levels(said()) == {"INFO": 15}


def test_a_run_that_was_recovered_is_told_with_its_times_and_its_id(log: EventLog, said: Say):
    sent = Sent(entry="a", outcome="recovered", scheduled=NINE, fire_time=NINE + 7, merged=2, id="an-id")
    log.listen([sent, replace(sent, outcome="fired")])
    log.write(0.0, is_complete=True)
    assert said() == [
        (
            "INFO",
            "beat: 'a' recovered: scheduled 2026-03-02T09:00:00.000+00:00, "
            "sent 2026-03-02T09:00:00.007+00:00, id an-id",
        )
    ]


def test_what_is_left_at_the_end_is_said(log: EventLog, said: Say):
    log.listen(misfires(11))
    log.write(0.0, is_complete=True)
    log.listen(misfires(1, 20))
    log.close(1.0)
    assert levels(said()) == {"INFO": 12, "WARNING": 2}


def test_a_line_of_a_misfire_carries_its_fields(log: EventLog, caplog: pytest.LogCaptureFixture):
    log.listen([MISFIRED])
    log.write(0.0, is_complete=True)
    [record] = caplog.records
    assert {k: v for k, v in vars(record).items() if k.startswith("misfire.")} == {
        "misfire.event": "misfire",
        "misfire.owner": "host:7",
        "misfire.entry": "reports",
        "misfire.task": "shop.reports",
        "misfire.scheduled": "2026-03-02T09:00:00.000+00:00",
        "misfire.last": "2026-03-02T09:01:00.000+00:00",
        "misfire.count": 2,
        "misfire.late_by": 90.0,
        "misfire.reason": "scheduler_down",
        "misfire.instruction": "smart_policy",
        "misfire.resolved": "fire_once_now",
        "misfire.outcome": "recovered",
        "misfire.recovered": 1,
        "misfire.merged": 1,
        "misfire.missed": 0,
        "misfire.next": "2026-03-02T09:02:00.000+00:00",
    }


def test_a_missed_misfire_names_its_result():
    lost = ({"reason": "scheduler_down", "count": 2, "id": "the-id"},)
    found = event_fields(replace(MISFIRED, outcomes={"missed": 2}, lost=lost, next=None))
    assert (found["misfire.outcome"], found["misfire.task_id"]) == ("missed", "the-id")
    assert "misfire.next" not in found


def test_the_summary_carries_its_fields(log: EventLog, caplog: pytest.LogCaptureFixture):
    log.listen(misfires(11))
    log.write(0.0, is_complete=True)
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert {k: v for k, v in vars(record).items() if k.startswith("misfire.")} == {
        "misfire.event": "outage",
        "misfire.owner": "host:7",
        "misfire.reason": "scheduler_down",
        "misfire.scheduled": "2026-03-02T09:00:00.000+00:00",
        "misfire.entries": 11,
        "misfire.recovered": 11,
        "misfire.merged": 11,
        "misfire.missed": 0,
    }


def test_a_line_is_its_writers_and_an_error_brings_its_traceback(caplog: pytest.LogCaptureFixture):
    say = Log("celery_misfire.test", "beat")
    say.warning("clock", "set by %d s", 3, entry="reports")
    try:
        raise KeyError
    except KeyError:
        say.exception("unexpected_error", "unexpected error")
    plain, failed = caplog.records
    assert (plain.name, plain.filename, plain.getMessage()) == (
        "celery_misfire.test",
        "test_log_lines.py",
        "beat: set by 3 s",
    )
    assert (vars(plain)["misfire.event"], vars(plain)["misfire.entry"]) == ("clock", "reports")
    assert (plain.exc_info, failed.levelname) == (None, "ERROR")
    assert failed.exc_info is not None
    assert failed.exc_info[0] is KeyError


def test_each_line_of_the_package_says_what_it_tells_of_and_the_documentation_knows_the_word():
    documented = (ROOT / "docs" / "logs.md").read_text()
    without, unknown = [], []
    for path in (ROOT / "celery_misfire").rglob("*.py"):
        text = path.read_text()
        unknown += [word for word in _WORDS.findall(text) if f"`{word}`" not in documented]
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            if _LOGS.fullmatch(name) and not any(keyword.arg == "extra" for keyword in call.keywords):
                without.append(f"{path.name}:{call.lineno}")
    assert (without, unknown) == ([], [])


_LOGS = re.compile(r"(self\._)?logger\.(info|warning|error|exception|critical|log)")
_WORDS = re.compile(r"(?:(?:log_fields|say\.\w+|_log\.\w+)\([^\"]{0,60}|\bword=)\"(\w+)\"")


def test_each_kind_of_event_has_fields_that_are_documented():
    documented = (ROOT / "docs" / "logs.md").read_text()
    names = {name for event in (MISFIRED, GAVE_UP) for name in event_fields(event)}
    assert [name for name in names if f"`{name}`" not in documented] == []


def test_a_time_that_no_calendar_has_is_left_out():
    assert "misfire.scheduled" not in event_fields(replace(MISFIRED, first=10**18))
