"""The pages in German: the catalogue has every text of the sources, and the pages show no other language."""

from __future__ import annotations

import ast
import gettext
import re
import struct
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from celery import current_app
from django.utils import translation
from django.utils.translation.template import templatize

from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib import django as app
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
from celery_misfire.misfire import from_millis, to_millis
from celery_misfire.records import Definition
from tests.support.admin_site import NAMESPACE, AdminSite
from tests.support.past import Past

ROOT = Path(app.__file__).parent
PO = ROOT / "locale" / "de" / "LC_MESSAGES" / "django.po"
MO = PO.with_suffix(".mo")
HOW = "run `make messages`, translate what is new, and run it again"

TASKS = "/admin/django_celery_beat/periodictask/"
MISSED = "/admin/celery_misfire/missedfire/"
HOUR = 3_600_000
#: Ten past twelve, and ten past one in Berlin. Beat was away from twenty to nine to a quarter past ten.
NOW = to_millis(datetime(2026, 3, 10, 12, 10, tzinfo=UTC))
DOWN, UP = NOW - HOUR * 7 // 2, NOW - HOUR * 23 // 12


# -- the catalogue -----------------------------------------------------------------------------------------


class Text(NamedTuple):
    """A text as the sources have it."""

    context: str
    singular: str
    plural: str = ""


def text_of(function: str, arguments: list[str]) -> Text:
    """Return what a call of this function of gettext's has translated."""
    context = arguments.pop(0) if function.lstrip("n").startswith("p") else ""
    return Text(context, *arguments[: 2 if function.startswith("n") else 1])


def texts_of_code(source: str) -> Iterator[Text]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id.removesuffix("_lazy").replace("_", "gettext")
            if name in {"gettext", "ngettext", "pgettext", "npgettext"}:
                strings = [a.value for a in node.args if isinstance(a, ast.Constant)]
                yield text_of(name, [s for s in strings if isinstance(s, str)])


_STRING = r"""u?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""


def texts_of_template(source: str) -> Iterator[Text]:
    # Django makes calls of its tags, for xgettext.
    for function, arguments in re.findall(rf"\b(n?p?gettext)\(((?:{_STRING}(?:, )?)+)", templatize(source)):
        yield text_of(function, list(ast.literal_eval(f"({arguments.rstrip(', ')},)")))


@cache
def texts() -> frozenset[Text]:
    found: set[Text] = set()
    for path in ROOT.rglob("*.py"):
        found |= set(texts_of_code(path.read_text()))
    for path in (ROOT / "templates").rglob("*.html"):
        found |= set(texts_of_template(path.read_text()))
    return frozenset(found)


@cache
def catalogue() -> dict[Text, list[str]]:
    """Read the catalogue as it was written by hand; without its header."""
    found: dict[Text, list[str]] = {}
    for block in PO.read_text().split("\n\n"):
        parts: dict[str, str] = {}
        for key, strings in re.findall(r'^(msg\S+) ((?:".*"\n?)+)', block, re.M):
            parts[key] = "".join(ast.literal_eval(line) for line in strings.splitlines())
        translated = [value for key, value in parts.items() if key.startswith("msgstr")]
        found[Text(parts.get("msgctxt", ""), parts["msgid"], parts.get("msgid_plural", ""))] = translated
    del found[Text("", "")]
    return found


def test_every_text_of_the_sources_is_in_the_catalogue_and_no_other():
    assert len(texts()) > 200
    # A text that is translated with a plural is found without one as well.
    known = {(text.context, text.singular) for text in catalogue()}
    wanted = {(text.context, text.singular) for text in texts()}
    assert wanted - known == set(), HOW
    assert known - wanted == set(), HOW
    assert {text for text in texts() if text.plural} == {text for text in catalogue() if text.plural}


def test_every_text_is_translated_and_none_by_guess():
    assert "fuzzy" not in PO.read_text()
    assert [text for text, german in catalogue().items() if not all(german)] == []
    assert [text for text, german in catalogue().items() if len(german) != (2 if text.plural else 1)] == []


def test_a_translation_has_the_placeholders_of_its_text():
    def placeholders(text: str) -> Counter[str]:
        return Counter(re.findall(r"%(?:\(\w+\))?[a-z]", text))

    for text, german in catalogue().items():
        for english, translated in zip((text.singular, text.plural), german, strict=False):
            # The number may be left out where it is one.
            allowed = [placeholders(english), placeholders(text.plural or english)]
            assert placeholders(translated) in allowed, text


def test_the_compiled_catalogue_is_that_of_the_text_file():
    # After magic number and version: how many there are, with the header.
    assert struct.unpack("<I", MO.read_bytes()[8:12])[0] == len(catalogue()) + 1, HOW
    with MO.open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    for text, german in catalogue().items():
        if text.plural:
            shown = [compiled.ngettext(text.singular, text.plural, n) for n in (1, 2)]
        elif text.context:
            shown = [compiled.pgettext(text.context, text.singular)]
        else:
            shown = [compiled.gettext(text.singular)]
        assert shown == german, HOW


# -- the pages ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(admin_of_the_module: AdminSite) -> Iterator[AdminSite]:
    """The site with a day behind it: three tasks, and a beat that was away."""
    with translation.override("de"):
        fill(admin_of_the_module)
        yield admin_of_the_module


def fill(site: AdminSite) -> None:
    from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

    from celery_misfire.contrib.django.models import MisfirePolicy, MissedFire
    from celery_misfire.contrib.django.policies import policy_of
    from celery_misfire.contrib.django.rows import trigger_of

    hourly = CrontabSchedule.objects.create(minute="0", timezone="Europe/Berlin")
    often = IntervalSchedule.objects.create(every=10, period="minutes")
    berichte = PeriodicTask.objects.create(name="Berichte", task="shop.berichte", crontab=hourly)
    kurse = PeriodicTask.objects.create(name="Kurse", task="shop.kurse", interval=often)
    preise = PeriodicTask.objects.create(name="Preise", task="shop.preise", crontab=hourly)
    MisfirePolicy.objects.create(periodic_task=preise, instruction="do_nothing", max_catch_up=1)
    PeriodicTask.objects.create(name="Neu", task="shop.neu", crontab=hourly)
    settings = read_settings(current_app)
    rows = (berichte, kurse, preise)
    past = Past(
        site.url,
        NAMESPACE,
        [Definition(t.name, t.task, trigger_of(t), policy_of(t, trigger_of(t), settings)) for t in rows],
        NOW - 30 * HOUR,
    )
    past.beat_runs(DOWN)
    past.pass_to(UP)
    # Late since: the last hour has not been planned.
    past.beat_runs(NOW - HOUR)
    for name, count in (("Preise", 2), ("Verschwunden", 3)):
        first = from_millis(UP - 2 * HOUR).replace(minute=0)
        MissedFire.objects.create(
            task_id=name,
            entry=name,
            periodic_task_id=preise.pk if name == preise.name else 4711,
            task=f"shop.{name.lower()}",
            first=first,
            last=first + (count - 1) * timedelta(hours=1),
            count=count,
            reason="scheduler_down",
            instruction="do_nothing",
            detected_at=from_millis(UP),
        )


class _Visible(HTMLParser):
    """Collects what is seen or read out of a page, and stands between two tags or in an attribute."""

    TOLD = ("title", "aria-label", "placeholder", "alt", "data-label")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._silent = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in ("script", "style")
        told = [value for name, value in attrs if name in self.TOLD and value]
        self.found += told + [value for name, value in attrs if name == "value" and tag == "input" and value]

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if text and not self._silent:
            self.found.append(text)


@cache
def english() -> tuple[frozenset[str], tuple[str, ...]]:
    """Return our English texts, and the longer pieces of those with placeholders."""
    whole, pieces = set(), set()
    for text, german in catalogue().items():
        for told in filter(None, (text.singular, text.plural)):
            if told not in german:
                whole.add(told.lower())
                pieces |= {piece.strip(" .,;:()") for piece in re.split(r"%\(\w+\)[sd]|%[sd]", told)}
    return frozenset(whole), tuple(piece for piece in pieces if len(piece) > 12)


#: Words that German does not have, in texts that nobody has marked for translation.
_FOREIGN = re.compile(
    r"\b(the|of|is|are|and|to|not|with|from|by|at|late|run|runs|missed|fired|due|overdue)\b", re.I
)


def in_german(page: str, *german: str) -> None:
    """See that all texts of a page, or of a part of it, are German, and that these are among them."""
    whole, pieces = english()
    # The button of Django 6.0, which has no German word on it.
    visible = _Visible(re.sub(r'(name="index"[^>]*>)Run<', r"\1<", page)).found
    text = " ".join(visible)
    for wanted in german:
        assert wanted in text, wanted
    assert [part for part in visible if part.lower() in whole] == []
    assert [piece for piece in pieces if piece in text] == []
    assert [part for part in visible if _FOREIGN.search(part)] == []


@pytest.fixture
def client(site: AdminSite, monkeypatch: pytest.MonkeyPatch) -> Any:
    from celery_misfire.contrib.django import moments, state

    # A busy machine is no Redis that is away.
    monkeypatch.setattr(state, "READ_TIMEOUT", 20.0)
    monkeypatch.setattr(moments, "now", lambda: NOW)
    return site.client(superuser=True)


def content(client: Any, url: str, **query: Any) -> str:
    answer = client.get(url, query)
    assert answer.status_code == 200
    page = str(answer.content.decode())
    assert '<html lang="de"' in page
    return page[page.index("<body") :]


def key(name: str) -> int:
    from django_celery_beat.models import PeriodicTask

    return int(PeriodicTask.objects.get(name=name).pk)


def test_the_list_of_periodic_tasks_is_german(client: Any):
    page = content(client, TASKS)
    start = page.index('id="result_list"')
    in_german(
        page[start : page.index("</table>", start)],
        "Nächste",
        "Noch nicht geplant",
        "überfällig",
        "einmal nachholen",
        "überspringen",
    )


@pytest.mark.parametrize("of_a_task", [True, False])
def test_the_policy_in_the_form_of_a_task_is_german(client: Any, of_a_task: bool):
    page = content(client, f"{TASKS}{key('Preise')}/change/" if of_a_task else f"{TASKS}add/")
    ours = page[page.index('id="misfire_policy-group"') : page.index('class="submit-row"')]
    in_german(ours, "Misfire-Regel", "Höchstzahl nachzuholender Läufe:", "Was jede Auswahl bewirkt")
    wanted = "Zum Beispiel: Beat fällt von" if of_a_task else "Jetzt einmal nachholen, Intervall beginnt neu"
    assert wanted in " ".join(_Visible(ours).found)


def test_what_is_refused_is_told_in_german(site: AdminSite):
    from celery_misfire.contrib.django.admin.policy_form import PolicyForm

    form = PolicyForm({"threshold": "0", "max_catch_up": "0", "mail_to": "niemand"})
    in_german(
        str(form.errors),
        "Bitte eine Zahl von Sekunden größer als 0 eingeben",
        "Bitte eine Zahl ab 1 eingeben",
        "„niemand“ ist keine gültige Adresse. Mehrere bitte mit Kommas trennen.",
    )


def test_the_list_of_missed_runs_is_german(client: Any):
    in_german(
        content(client, MISSED),
        "Misfire-Behandlung",
        "Laufausfall zum Ansehen auswählen",
        "2 Laufausfälle",
        "Ausgewählte ausgefallene Läufe nachholen",
        "Festgestellt am",
        "Beat lief nicht",
        "2026-03-10 09:00:00+01:00 bis 2026-03-10 10:00:00+01:00",
        "2 Einträge, 5 ausgefallene Läufe, 5 offen.",
        "Verschwunden (gelöscht)",
    )


def test_a_missed_run_and_its_log_are_german(client: Any):
    from celery_misfire.contrib.django.models import MissedFire

    missed = MissedFire.objects.get(entry="Preise")
    in_german(
        content(client, f"{MISSED}{missed.pk}/change/"),
        "Alle 2 der Reihe nach nachholen",
        "Beat startete. Davor: Beat lief nicht.",
        "verspätet. Beat lief nicht. Ausgefallene Läufe überspringen: 2 ausgefallen.",
        "Abhaken",
    )
    gone = MissedFire.objects.get(entry="Verschwunden")
    in_german(
        content(client, f"{MISSED}{gone.pk}/change/"),
        "Die periodische Aufgabe wurde gelöscht und kann deshalb nicht gesendet werden.",
    )


def test_the_question_before_running_is_german(client: Any):
    from celery_misfire.contrib.django.models import MissedFire

    keys = [missed.pk for missed in MissedFire.objects.order_by("entry")]
    in_german(
        content(client, f"{MISSED}run/", run=keys),
        "Die periodische Aufgabe wurde gelöscht",
        "Läufe nachholen? Ihre Aufgaben werden jetzt gesendet, in dieser Reihenfolge,",
        "Ja, jetzt nachholen",
        "Nein, bitte abbrechen",
    )
    in_german(content(client, f"{MISSED}run/"), "Es gibt nichts nachzuholen")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Berichte", ("1 nachgeholt, 1 zusammengefasst", "Nächste Fälligkeit: Di 10. Mär, 14:00.")),
        ("Preise", ("2 ausgefallen", "ausgefallen (Beat lief nicht)", "Beat-Ausfall")),
        ("Neu", ("Beat hat diese Aufgabe noch nicht gesehen.",)),
    ],
)
def test_the_timeline_is_german(client: Any, name: str, told: tuple[str, ...]):
    page = content(client, f"{TASKS}{key(name)}/timeline/")
    in_german(page, "Zeiten in Europe/Berlin, UTC+1.", "Was wäre, wenn Beat ausfiele?", *told)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({}, "2 Läufe fallen aus, 14:00 bis 15:00. Nächste Fälligkeit: 16:00."),
        (
            {"instruction": "fire_once_now"},
            "Für 14:00 wird ein Lauf nachgeholt (Start: 15:15); 15:00 wird mit ihm zusammengefasst.",
        ),
        ({"instruction": "ignore_misfire_policy"}, "14:00 fällt aus. Grund: Über der Höchstzahl"),
        (
            {"instruction": "ignore_misfire_policy", "max_catch_up": ""},
            "2 Läufe werden nachgeholt (Start: 15:15), einer für jede Fälligkeit von 14:00 bis 15:00.",
        ),
        ({"up": "2026-03-10T12:00"}, "Der Ausfall muss enden, nachdem er begonnen hat."),
    ],
)
def test_the_what_if_page_is_german(client: Any, query: dict[str, str], told: str):
    window = {"down": "2026-03-10T13:30", "up": "2026-03-10T15:15"}
    page = content(client, f"{TASKS}{key('Preise')}/what-if/", **window | query)
    in_german(page, "Beat fällt aus von:", "Misfire-Schwelle (Sekunden):", told)


def test_the_page_of_all_tasks_is_german(client: Any):
    page = "/admin/celery_misfire/fleet/"
    in_german(
        content(client, page),
        "Alle Aufgaben im Überblick",
        "Offene ausgefallene Läufe",
        "Alle Aufgaben ruhen lassen",
        "Mit ausgefallenen Läufen",
        "Kein Beat läuft: Nichts wird gesendet.",
    )
    in_german(content(client, f"{page}what-if/"), "Beat fällt aus von:")


def test_a_mail_is_german(site: AdminSite):
    from django.core import mail
    from django.test import override_settings

    from celery_misfire.contrib.django.mail import send_due
    from celery_misfire.contrib.django.models import MissedFire
    from celery_misfire.contrib.django.moments import millis

    locmem = "django.core.mail.backends.locmem.EmailBackend"
    with override_settings(EMAIL_BACKEND=locmem), site.settings(misfire_mail_to=["ops@example.org"]):
        send_due(millis(MissedFire.objects.get(entry="Preise").detected_at) + 1000)
    message = mail.outbox[-1]
    assert message.subject.endswith("5 ausgefallene Läufe von 2 Aufgaben")
    for line in str(message.body).splitlines():
        in_german(line)


@pytest.mark.parametrize(
    "event",
    [
        Led(epoch=1, reason="capped", cold=False, now=NOW),
        Misfired(
            entry="e",
            first=NOW,
            last=NOW,
            count=1,
            now=NOW,
            reason="capped",
            instruction="smart_policy",
            resolved="fire_now",
            outcomes={"recovered": 1, "missed": 2},
        ),
        Missed(
            entry="e", first=NOW, last=NOW + 1, count=2, reason="capped", instruction="do_nothing", id="i"
        ),
        GaveUp(
            entry="e",
            task="t",
            first=NOW,
            last=NOW,
            count=1,
            now=NOW,
            reason="capped",
            instruction="do_nothing",
            id="i",
        ),
        Sent(entry="e", outcome="fired", scheduled=NOW, fire_time=NOW, id="i"),
        StartedLate(entry="e", scheduled=NOW, late_by=90_000, id="i"),
        Merged(entry="e", scheduled=NOW, id="i"),
        Broken(entry="e", error="KeyError"),
        Refused(entry="e", error="KeyError"),
    ],
    ids=lambda event: event.kind,
)
def test_an_event_of_the_log_of_each_kind_is_german(site: AdminSite, event: Event):
    from celery_misfire.contrib.django.admin.log_lines import in_words

    text = in_words(event)
    assert text != event.kind
    in_german(text)


def test_words_of_a_newer_version_stand_among_the_german_ones(site: AdminSite):
    from celery_misfire.contrib.django.admin.log_lines import in_words

    sent = Sent(entry="e", outcome="tomorrow's", scheduled=NOW, fire_time=NOW, id="i")
    assert in_words(sent).endswith("gesendet (tomorrow's).")
    led = Led(epoch=1, reason="a_new_reason", cold=False, now=NOW)
    assert in_words(led).endswith("a_new_reason.")


def test_a_re_run_and_the_question_before_dismissing_are_german(site: AdminSite, client: Any):
    from celery_misfire.contrib.django.admin.reruns import Part, previews, start
    from celery_misfire.contrib.django.models import MissedFire

    parts = [Part(missed) for missed in MissedFire.objects.order_by("entry")]
    rerun = start(previews(site.app, parts), None)
    url = f"/admin/celery_misfire/rerun/{rerun.pk}/change/"
    in_german(content(client, url), "0 von 5: 0 gesendet, 0 nicht gesendet.", "Weiter")
    client.post(url)
    in_german(content(client, url), "5 von 5: 2 gesendet, 3 nicht gesendet.", "wurde gelöscht")
    in_german(content(client, "/admin/celery_misfire/rerun/"), "Nachholung", "fertig")
    chosen = {"action": "dismiss_selected", "_selected_action": [part.missed.pk for part in parts]}
    page = client.post(MISSED, chosen).content.decode()
    in_german(page[page.index("<body") :], "2 Einträge abhaken?", "Notiz")
