"""What somebody does in the admin, in a real browser, with a real beat and worker behind it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from example_project.child_process import Child
from example_project.demo.site import PASSWORD, USER
from tests.support.processes import wait_for
from tests.support.served_shop import ON_POSTGRES, ON_SQLITE, VIEWER, Shop

playwright = pytest.importorskip("playwright.sync_api")

NAME = "stock prices of today"
FLEET = "/admin/celery_misfire/fleet/"


def missed_in(page: playwright.Page) -> int:
    """Return how many missed runs the list has, all its records together."""
    page.goto("/admin/celery_misfire/missedfire/")
    return sum(int(text) for text in page.locator("td.field-count").all_inner_texts())


def was_missed(shop: Shop) -> bool:
    """Return True when beat has written into its log that runs were missed. The browser costs more to ask."""
    return any(line["event"] == "missed" for line in shop.log())


def until_missed(page: playwright.Page, shop: Shop, beat: Child) -> int:
    assert beat.alive, shop.last_words()
    return missed_in(page)


@ON_SQLITE
@pytest.mark.takes(26)
@pytest.mark.timeout(240)
def test_somebody_chooses_an_instruction_sees_what_was_missed_and_runs_one_of_them(
    shop: Shop, browser: playwright.Browser
):
    shop.start_worker()
    page = shop.page(browser)

    page.goto("/admin/django_celery_beat/periodictask/add/")
    page.fill("#id_name", NAME)
    page.fill("#id_task", "shop.fetch_stock_price")
    page.select_option("#id_interval", label="every 2 seconds")
    page.select_option("#id_misfire_policy-0-instruction", value="do_nothing")
    page.click("input[name=_save]")
    assert "was added successfully" in page.inner_text(".messagelist")

    beat = shop.start_beat()
    wait_for(lambda: shop.journal() or not beat.alive, 60, what="the first run")
    beat.kill()
    away_from = datetime.now(UTC)
    wait_for(lambda: (datetime.now(UTC) - away_from).total_seconds() > 6, 30)
    beat = shop.start_beat()
    wait_for(lambda: was_missed(shop) or not beat.alive, 60, every=0.2, what="a decision about missed runs")
    count = wait_for(lambda: until_missed(page, shop, beat), 60, every=0.5, what="missed runs")
    assert count >= 2
    beat.stop()

    page.click("#result_list tbody th a")
    text = page.inner_text("#content")
    assert NAME in text
    assert "Skip missed runs" in text
    wanted = page.locator("section[aria-labelledby=misfire-occurrences] tbody tr").nth(1)
    before = {run["scheduled_fire_time"] for run in shop.journal()}
    wanted.get_by_role("link", name=re.compile("Re-run the occurrence")).click()
    assert "original scheduled fire time" in page.inner_text("#content")
    page.get_by_role("button", name="Yes, run now").click()

    def late_runs() -> list[Any]:
        return [run for run in shop.journal() if run["scheduled_fire_time"] not in before]

    late = wait_for(late_runs, 30, what="the run")
    assert len(late) == 1
    assert late[0]["entry"] == NAME
    assert late[0]["outcome"] == "recovered"
    scheduled = datetime.fromisoformat(late[0]["scheduled_fire_time"]).replace(tzinfo=UTC)
    assert scheduled < datetime.fromisoformat(late[0]["fire_time"]).replace(tzinfo=UTC)
    # It was the second of the missed ones, two seconds after the first, and cannot be had again.
    page.goto("/admin/celery_misfire/missedfire/")
    page.click("#result_list tbody th a")
    rows = page.locator("section[aria-labelledby=misfire-occurrences] tbody tr")
    assert f"by {USER}" in rows.nth(1).inner_text()
    again = re.compile("Re-run the occurrence")
    assert rows.nth(1).get_by_role("link", name=again).count() == 0
    assert rows.nth(0).get_by_role("link", name=again).count() == 1
    assert len(late_runs()) == 1

    viewer = shop.page(browser, VIEWER)
    viewer.goto(page.url)
    assert NAME in viewer.inner_text("#content")
    assert viewer.get_by_role("link", name=re.compile("Run")).count() == 0
    address = rows.nth(0).get_by_role("link").get_attribute("href")
    answer = viewer.goto(address)
    assert answer is not None
    assert answer.status == 403
    viewer.goto("/admin/celery_misfire/missedfire/")
    assert "run" not in viewer.inner_text(".actions").lower() if viewer.locator(".actions").count() else True

    nobody = shop.page(browser, None)
    for place in (page.url, "/admin/celery_misfire/missedfire/", address):
        nobody.goto(place)
        assert nobody.locator("#id_password").count() == 1


@ON_SQLITE
@pytest.mark.timeout(240)
def test_the_picture_of_what_if_changes_with_the_instruction(shop: Shop, browser: playwright.Browser):
    number = shop.python(
        "import django; django.setup()\n"
        "from django_celery_beat.models import CrontabSchedule, PeriodicTask\n"
        "hourly = CrontabSchedule.objects.create(minute='0')\n"
        "print(PeriodicTask.objects.create(name='hourly', task='shop.make_report', crontab=hourly).pk)"
    ).split()[-1]
    page = shop.page(browser)
    page.goto(f"/admin/django_celery_beat/periodictask/{number}/what-if/")
    seen = {}
    for instruction in ("do_nothing", "fire_once_now", "ignore_misfire_policy"):
        page.select_option("select[name=instruction]", value=instruction)
        page.get_by_role("button", name="Show").click()
        page.wait_for_url(re.compile(f"instruction={instruction}"))
        seen[instruction] = (page.inner_text(".mf-sentence"), page.inner_html(".mf-picture svg >> nth=0"))
    sentences, pictures = zip(*seen.values(), strict=True)
    assert len(set(sentences)) == len(set(pictures)) == 3
    page.get_by_role("link", name="Use this policy").click()
    assert page.input_value("#id_misfire_policy-0-instruction") == "ignore_misfire_policy"
    # Nothing has been saved by that.
    page.goto("/admin/django_celery_beat/periodictask/")
    assert "run once" in page.inner_text("#result_list tbody tr >> nth=0").lower()


#: A task with a long record, one that is gone, and one that nobody needs.
RECORDS = """
import django; django.setup()
from datetime import UTC, datetime, timedelta
from celery_misfire.contrib.django.models import MissedFire
from django_celery_beat.models import CrontabSchedule, PeriodicTask
hourly = CrontabSchedule.objects.create(minute="0", timezone="UTC")
for name, count in (("long", 360), ("gone", 2), ("not needed", 1)):
    task = PeriodicTask.objects.create(name=name, task="shop.make_report", crontab=hourly)
    first = datetime(2026, 3, 2, tzinfo=UTC)
    last = first + timedelta(hours=count - 1)
    MissedFire.objects.create(
        task_id=name, entry=name, periodic_task=task, task=task.task, first=first, last=last, count=count,
        reason="scheduler_down", instruction="do_nothing", detected_at=last,
    )
    if name == "gone":
        task.delete()
    elif name == "not needed":
        task.name = "renamed"
        task.save()
print(PeriodicTask.objects.get(name="long").pk)
"""


@ON_POSTGRES
@pytest.mark.takes(14)
@pytest.mark.timeout(240)
def test_somebody_dismisses_one_and_runs_all_the_others_with_progress(
    shop: Shop, browser: playwright.Browser
):
    shop.python(RECORDS)
    page = shop.page(browser)
    missed = "/admin/celery_misfire/missedfire/"
    page.goto(missed)
    assert "3 records, 363 missed runs, 363 open." in page.inner_text("#content")
    page.get_by_role("link", name="not needed (now: renamed)").click()
    page.fill("#misfire-note", "It was a holiday.")
    page.get_by_role("button", name="Dismiss").click()
    assert "It was a holiday." in page.inner_text("section[aria-labelledby=misfire-dismissed]")

    page.goto(f"{missed}?state=open")
    assert "2 records, 362 missed runs, 362 open." in page.inner_text("#content")
    page.check("#action-toggle")
    page.select_option("select[name=action]", "run_selected")
    page.click("button[name=index], .actions button[type=submit]")
    assert "was deleted, so it cannot be sent" in page.inner_text("section[aria-labelledby=misfire-refused]")
    page.get_by_role("button", name="Yes, run now").click()
    # The page goes on by itself.
    page.get_by_text("362 of 362: 360 sent, 2 not sent.").wait_for(timeout=120_000)
    page.get_by_role("heading", name="Not sent").wait_for()
    page.goto(f"{missed}?state=open")
    assert "1 record, 2 missed runs, 2 open." in page.inner_text("#content")


#: Some of its runs were missed just now, too, and for two reasons.
LATELY = """
import django; django.setup()
from django.utils import timezone
from celery_misfire.contrib.django.models import MissedFire, MisfirePolicy
from django_celery_beat.models import PeriodicTask
task = PeriodicTask.objects.get(name="long")
MisfirePolicy.objects.create(periodic_task=task, instruction="ignore_misfire_policy")
for n, reason in enumerate(("scheduler_down", "capped")):
    MissedFire.objects.create(
        task_id=f"lately {n}", entry=task.name, periodic_task=task, task=task.task, first=timezone.now(),
        last=timezone.now(), count=3, reason=reason, instruction="ignore_misfire_policy",
        detected_at=timezone.now(),
    )
"""

#: Whether parts of a page reach out of the part around them, where one has to scroll to them.
CUT_OFF = """
([outside, inside]) => [...document.querySelectorAll(`${outside} ${inside}`)].some((part) =>
    part.getBoundingClientRect().right > part.closest(outside).getBoundingClientRect().right + 1)
"""


#: Whether two labels of the axis above all tasks touch, where it is seen.
OVERLAP = """
() => {
    const texts = [...document.querySelectorAll(".mf-axis text")];
    const places = texts.map((text) => text.getBoundingClientRect());
    return places.some((one, n) => places.slice(n + 1).some((other) =>
        Math.abs(one.top - other.top) < 5 && one.left < other.right && other.left < one.right));
}
"""


@pytest.mark.takes(14)
@pytest.mark.timeout(240)
def test_no_page_has_a_serious_fault_for_those_who_see_or_hear_less(shop: Shop, browser: playwright.Browser):
    key = shop.python(RECORDS + LATELY).split()[-1]
    task, missed = f"/admin/django_celery_beat/periodictask/{key}", "/admin/celery_misfire/missedfire/"
    places = ["/admin/django_celery_beat/periodictask/", f"{task}/timeline/", f"{task}/what-if/", missed]
    places += [f"{missed}1/change/", f"{missed}run/?run=1&run=2", "/admin/celery_misfire/rerun/"]
    places += [FLEET, f"{FLEET}?days=7&state=missed", f"{FLEET}what-if/"]
    found = {}
    page = shop.page(browser)
    page.goto(f"{missed}run/?run=3")
    page.get_by_role("button", name="Yes, run now").click()
    # Colours depend on the scheme and the layout on the width: two of the four pairs have all of both.
    for scheme, width in (("light", 1280), ("dark", 390)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        for place in [*places, "/admin/celery_misfire/rerun/1/change/"]:
            page.goto(place)
            # Axe looks at our part of the page. The frame around it is Django's.
            for fault in Axe().run(page, context="#content").response["violations"]:
                if fault["impact"] in ("serious", "critical"):
                    nodes = [node["html"][:120] for node in fault["nodes"][:3]]
                    found[f"{place} {width} {scheme} {fault['id']}"] = nodes
    assert found == {}


@ON_SQLITE
@pytest.mark.timeout(240)
def test_nothing_of_ours_is_cut_off(shop: Shop, browser: playwright.Browser):
    shop.python(RECORDS + LATELY)
    page, missed = shop.page(browser), "/admin/celery_misfire/missedfire/"
    places = {
        "/admin/django_celery_beat/periodictask/": [".results", "td.field-misfire_state"],
        missed: [".results", "td"],
        f"{missed}run/?run=1&run=2": [".misfire-part", "table"],
        FLEET: ["#content", "table *"],
    }
    cut = []
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        for place, parts in places.items():
            page.goto(place)
            assert page.locator(" ".join(parts)).count(), place
            if page.evaluate(CUT_OFF, parts):
                cut.append((place, width))
    for width in (1280, 1250, 1100, 1024, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(FLEET)
        if page.evaluate(OVERLAP):
            cut.append(("axis", width))
    assert cut == []


@ON_SQLITE
@pytest.mark.takes(12)
@pytest.mark.timeout(240)
def test_the_page_of_all_tasks_brings_itself_up_to_date_and_holds_them(
    shop: Shop, browser: playwright.Browser
):
    shop.python(RECORDS)
    page = shop.page(browser)
    # As often as a test may wait for.
    page.route(
        f"**{FLEET}*",
        lambda route: route.fulfill(
            response=(answer := route.fetch()),
            body=answer.text().replace('data-refresh="30"', 'data-refresh="0.5"'),
        ),
    )
    page.goto(FLEET)
    assert "No beat is running" in page.inner_text("#content")
    assert "360 missed" in page.inner_text("#content")
    beat = shop.start_beat()
    page.get_by_text("No beat is running").wait_for(state="detached", timeout=60_000)
    assert beat.alive, shop.last_words()

    page.locator("summary").click()
    page.fill("#id_until", "2099-01-01T12:00")
    page.fill("#id_reason", "the move")
    page.get_by_role("button", name="Hold all tasks").click()
    assert "All tasks will be held until" in page.inner_text(".messagelist >> nth=0")
    # No route holds for the page that a form leads to.
    page.goto(FLEET)
    page.get_by_text("(the move)").first.wait_for(timeout=60_000)
    # Nothing is taken away from under somebody's hands.
    page.get_by_label("Choose long").check()
    page.wait_for_timeout(1500)
    assert page.get_by_label("Choose long").is_checked()
    page.get_by_role("link", name="long", exact=True).click()
    assert "/timeline/" in page.url

    viewer = browser.new_context(base_url=shop.address, java_script_enabled=False).new_page()
    viewer.goto("/admin/")
    viewer.fill("#id_username", VIEWER)
    viewer.fill("#id_password", PASSWORD)
    viewer.click("input[type=submit]")
    viewer.goto(FLEET)
    viewer.get_by_role("link", name="With missed runs").click()
    assert "360 missed" in viewer.inner_text("#content")
    viewer.get_by_role("link", name="Refresh").click()
    assert "state=missed" in viewer.url
    assert viewer.get_by_role("button", name="Hold all tasks").count() == 0
