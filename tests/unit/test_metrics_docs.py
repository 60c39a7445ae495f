"""The dashboard, the alert rules and the table of the documentation know the metrics that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from celery_misfire.metrics.numbers import METRICS, PREFIX
from tests.support.processes import ROOT

DOCS = ROOT / "docs"
#: What Prometheus puts behind the name of a histogram.
PARTS = ("_bucket", "_sum", "_count")
SELECTOR = re.compile(rf"{PREFIX}(\w+)(?:\{{([^}}]*)\}})?")
GROUPED = re.compile(r"\bby \(([\w, ]+)\)")
#: Labels that Prometheus adds.
OF_PROMETHEUS = {"job", "instance", "le"}


def expressions_of_dashboard() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((DOCS / "metrics" / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DOCS / "metrics" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


EXPRESSIONS = [*expressions_of_dashboard(), *((rule["alert"], rule["expr"]) for rule in rules())]


def metrics_in(expression: str) -> list[tuple[str, str]]:
    """Return the names of metrics, without the prefix, and what is asked of their labels."""
    return [(name, selector or "") for name, selector in SELECTOR.findall(expression)]


@pytest.mark.parametrize(("place", "expression"), EXPRESSIONS)
def test_each_metric_and_each_label_that_is_used_exists(place: str, expression: str) -> None:
    used = metrics_in(expression)
    assert used, place
    labels = set(OF_PROMETHEUS)
    for name, selector in used:
        base = next((name.removesuffix(part) for part in PARTS if name.endswith(part)), name)
        metric = METRICS[base]
        assert (metric.kind == "histogram") == (base != name), name
        assert set(re.findall(r"(\w+)\s*=~?", selector)) <= {*metric.labels, *OF_PROMETHEUS}
        labels |= {*metric.labels}
    for group in GROUPED.findall(expression):
        assert set(re.split(r",\s*", group)) <= labels, place


def test_every_metric_is_in_the_dashboard_or_in_a_rule() -> None:
    used = {name for _, expression in EXPRESSIONS for name, _ in metrics_in(expression)}
    bases = {next((n.removesuffix(part) for part in PARTS if n.endswith(part)), n) for n in used}
    assert bases == set(METRICS)


def test_the_panels_have_their_own_numbers_and_places() -> None:
    dashboard = json.loads((DOCS / "metrics" / "dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    # It works with any Prometheus.
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_rule_says_how_bad_it_is_and_what_it_means(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"].endswith(".")
    # A label that a text names is one that the expression leaves.
    named = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    left = {label for group in GROUPED.findall(rule["expr"]) for label in re.split(r",\s*", group)}
    bare = {
        label for name, _ in metrics_in(rule["expr"]) if name in METRICS for label in METRICS[name].labels
    }
    assert named <= (left or bare | OF_PROMETHEUS)


def test_the_page_has_a_row_for_each_metric() -> None:
    page = (DOCS / "metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE)
    told = {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert told == {name: metric.labels for name, metric in METRICS.items()}
