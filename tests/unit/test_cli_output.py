"""Moments, lengths of time and tables of the command line."""

from __future__ import annotations

import sys
from zoneinfo import ZoneInfo

import click
import pytest

from celery_misfire.cli.output import MANY_ROWS, Page, length, read_length, read_moment, shorten
from celery_misfire.events import time_in
from celery_misfire.misfire import to_millis
from celery_misfire.texts import schedule_in_words

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> int:
    from datetime import datetime

    return to_millis(datetime.fromisoformat(text))


# Twenty past nine on the day before the clocks go forward.
NOW = at("2026-03-28T09:20:00+01:00")


@pytest.mark.parametrize(
    ("text", "past", "meant"),
    [
        ("2h", True, "2026-03-28T07:20:00+01:00"),
        ("1d12h", False, "2026-03-29T22:20:00+02:00"),
        ("09:20", True, "2026-03-28T09:20:00+01:00"),
        ("09:21", True, "2026-03-27T09:21:00+01:00"),
        ("09:20", False, "2026-03-29T09:20:00+02:00"),
        ("10:00:30", False, "2026-03-28T10:00:30+01:00"),
        ("2026-03-29", True, "2026-03-29T00:00:00+01:00"),
        ("2026-03-29T12:00", False, "2026-03-29T12:00:00+02:00"),
        ("2026-03-29T12:00Z", False, "2026-03-29T14:00:00+02:00"),
    ],
)
def test_a_moment_is_read_as_people_mean_it(text: str, past: bool, meant: str):
    found = read_moment(text, BERLIN, NOW, past=past)
    assert time_in(found, BERLIN, "seconds") == meant


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "24", "25:00", "-2h", "0s", "2y", "9:20", "999d"),
        *("2026-13-01", "0001-01-01", "9999-12-30"),
    ],
)
def test_what_is_no_moment_is_refused(text: str):
    with pytest.raises(click.BadParameter):
        read_moment(text, BERLIN, NOW, past=True)
    with pytest.raises(click.BadParameter):
        read_length(text)


def test_the_first_and_the_last_year_are_read():
    assert time_in(read_moment("1970-01-01T00:00Z", BERLIN, NOW, past=True), BERLIN)[:4] == "1970"
    assert time_in(read_moment("8999-12-31", BERLIN, NOW, past=False), BERLIN)[:4] == "8999"


@pytest.mark.parametrize(
    ("millis", "text"),
    [
        (0, "0.0 s"),
        (1_540, "1.5 s"),
        (59_000, "59 s"),
        (60_000, "1 min"),
        (5_430_000, "1 h 30 min"),
        (86_400_000, "1 d"),
        (90_061_000, "1 d 1 h"),
    ],
)
def test_a_length_is_told_in_its_two_largest_units(millis: int, text: str):
    assert length(millis) == text


def test_a_table_is_plain_text_without_rich(monkeypatch, capsys):
    rows = [("a", 1, ""), ("long [name]", 22, "")]
    page = Page(BERLIN)
    page.table(("entry", "count", "nothing"), rows, more=1_000)
    with_rich = capsys.readouterr().out
    assert "\u2500" in with_rich
    assert "long [name]" in with_rich
    monkeypatch.setitem(sys.modules, "rich", None)
    page.table(("entry", "count", "nothing"), rows, more=1_000)
    assert capsys.readouterr().out.splitlines() == [
        "entry        count",
        "a            1",
        "long [name]  22",
        "1,000 more; --limit shows them",
    ]


@pytest.mark.parametrize("has_rich", [True, False])
def test_rows_that_do_not_fit_into_the_terminal_stand_below_each_other(monkeypatch, capsys, has_rich: bool):
    if not has_rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    rows = [("reports", "shop.reports", "3 min"), ("stocks", "shop.stocks", "")]
    Page(BERLIN, width=20).table(("entry", "task", "late by"), rows)
    assert capsys.readouterr().out.splitlines() == [
        "reports",
        "  task: shop.reports",
        "  late by: 3 min",
        "stocks",
        "  task: shop.stocks",
    ]
    Page(BERLIN, width=80).table(("entry", "task", "late by"), rows)
    assert "  task:" not in capsys.readouterr().out


@pytest.mark.parametrize("has_rich", [True, False])
def test_many_rows_leave_out_what_a_narrow_terminal_has_no_room_for(monkeypatch, capsys, has_rich: bool):
    if not has_rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    columns = ("entry", "task", "schedule", "next")
    rows = [(f"entry{n}", "shop.task", "every hour", "09:00") for n in range(4)]

    def told(width: int) -> str:
        Page(BERLIN, width=width).table(columns, rows, spare=("task", "schedule"))
        return capsys.readouterr().out

    assert "not shown" not in told(80)
    assert "shop.task" in told(80)
    assert "not shown: task; a wider terminal and --json have them" in told(35)
    assert "every hour" in told(35)
    assert "not shown: task, schedule; " in told(20)
    assert "every hour" not in told(20)
    # Where that does not help, nothing is left out.
    assert "  task: shop.task" in told(10)
    assert "not shown" not in told(10)


def test_what_others_wrote_stays_on_its_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    Page(BERLIN).table(("entry",), [("two\nlines \x1b[31m",)])
    assert capsys.readouterr().out == "entry\ntwo\\nlines \\x1b[31m\n"
    Page(BERLIN).line("paused two\nlines \x1b[31m")
    assert capsys.readouterr().out == "paused two\\nlines \\x1b[31m\n"


def test_schedules_are_told_as_people_say_them():
    from celery.schedules import crontab, schedule, solar
    from django_celery_beat.tzcrontab import TzAwareCrontab

    from celery_misfire.schedules import cron, simple

    mondays = {"minute": "0", "hour": "9", "day_of_week": "1", "day_of_month": "1-7"}

    told = {
        "every minute": 60,
        "every 15 minutes": schedule(900),
        "every 5.5 seconds": 5.5,
        "every day": schedule(86_400.0),
        "crontab */5 9-17 * * 1-5": crontab(minute="*/5", hour="9-17", day_of_week="1-5"),
        "crontab 0 9 1-7 * 1": crontab(**mondays),
        "crontab 0 9 1-7 * 1, Europe/Berlin": TzAwareCrontab(**mondays, tz=BERLIN),
        "cron 0 0 9 * * ?": cron("0 0 9 * * ?"),
        "cron 0 9 * * *, timezone Europe/Berlin": cron("0 9 * * *", timezone="Europe/Berlin"),
        "simple interval 0:01:00, repeat_count 5": simple(interval=60, repeat_count=5),
        "solar sunset at latitude 52, longitude: 13": solar("sunset", 52, 13),
    }
    assert {text: schedule_in_words(value) for text, value in told.items()} == {text: text for text in told}

    class Own:
        def __repr__(self) -> str:
            raise RuntimeError

    assert schedule_in_words(Own()) == "Own"


def test_many_rows_with_long_names_stay_a_table_on_a_narrow_terminal(capsys: pytest.CaptureFixture[str]):
    names = [f"warehouse.reports.of_all_branches.nightly.number-{n}" for n in range(MANY_ROWS)]
    columns = ("entry", "next", "late by")
    rows = [(name, "2026-03-01 09:00:00+01:00", "12 min 3 s") for name in names]

    def told(width: int | None) -> list[str]:
        Page(BERLIN, width=width).table(columns, rows)
        return capsys.readouterr().out.strip().splitlines()

    assert all(name in "\n".join(told(None)) for name in names)
    assert all(name in "\n".join(told(120)) for name in names)
    narrow = told(80)
    assert all(len(line) <= 80 for line in narrow)
    assert "next" in narrow[0]
    assert narrow[-1].lstrip().startswith("warehouse.report")
    assert "...nightly.number-3  " in narrow[-1]
    # Too little of a name would be left: the rows stand below each other, with whole names.
    assert names[0] in told(50)


@pytest.mark.parametrize(
    ("name", "most", "short"),
    [("abcdefghij", 10, "abcdefghij"), ("abcdefghijk", 10, "abcd...ijk"), ("abcdefghijk", 9, "abc...ijk")],
)
def test_a_name_is_shortened_in_its_middle(name: str, most: int, short: str):
    assert shorten(name, most) == short
    assert len(short) <= most
