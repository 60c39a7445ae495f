"""The metrics: what events add to them, and how Prometheus and OpenTelemetry read them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest
from celery import Celery

from celery_misfire.conf.settings import Settings, read_settings
from celery_misfire.events import Event, GaveUp, Led, Misfired, Missed, Sent
from celery_misfire.exceptions import MisfireConfigError
from celery_misfire.leadership.figures import figures_of
from celery_misfire.leadership.peers import describe
from celery_misfire.metrics import exporters
from celery_misfire.metrics import numbers as numbers_module
from celery_misfire.metrics.children import WorkerNumbers
from celery_misfire.metrics.exporters import export, is_read
from celery_misfire.metrics.numbers import METRICS, OTHER, Note, Numbers
from celery_misfire.misfire import MisfirePolicy
from celery_misfire.records import Definition, Pause, first_seen
from celery_misfire.schedules import simple
from celery_misfire.triggers.kinds import trigger_for
from tests.support.metrics import free_port, scrape, values
from tests.support.processes import wait_for
from tests.unit.test_imports import modules_added_by

NOW = 1_772_445_600_000
HOUR = 3_600_000


def sent(entry: str = "reports", outcome: str = "fired", late: int = 0) -> Sent:
    return Sent(entry=entry, outcome=outcome, scheduled=NOW - late, fire_time=NOW, id="x")


MISFIRED = Misfired(
    entry="stocks",
    first=NOW - 2 * HOUR,
    last=NOW,
    count=4,
    now=NOW,
    reason="scheduler_down",
    instruction="ignore_misfire_policy",
    resolved="ignore_misfire_policy",
    outcomes={"recovered": 1, "merged": 1, "missed": 3},
    lost=[{"reason": "capped", "count": 2, "id": "a"}, {"reason": "too_old", "count": 1, "id": "b"}],
)
LOST = {"entry": "x", "task": "t", "first": NOW, "last": NOW, "instruction": "do_nothing", "id": "i"}
GAVE_UP = GaveUp(**LOST, count=5, now=NOW, reason="ended")


def settings(port: int | None) -> Settings:
    return Settings(redis_url="redis://", namespace="shop", metrics_port=port)


# -- what events add ---------------------------------------------------------------------------------------


def test_every_decision_is_counted_once_by_entry_and_outcome():
    counted = Numbers()
    record = Missed(**LOST, count=5, reason="ended", now=NOW)
    counted.hear([sent(), sent(), sent("stocks", "recovered"), MISFIRED, GAVE_UP, record])
    assert counted.totals("occurrences_total") == {
        ("reports", "fired"): 2,
        ("stocks", "recovered"): 1,
        ("stocks", "merged"): 1,
        ("stocks", "missed"): 3,
        ("x", "missed"): 5,
    }
    assert counted.totals("missed_total") == {
        ("stocks", "capped"): 2,
        ("stocks", "too_old"): 1,
        ("x", "ended"): 5,
    }


def test_what_a_worker_gives_up_is_missed_for_its_reason():
    counted = Numbers()
    counted.hear([Missed(**LOST, count=1, reason="queue_late", now=NOW, worker="w1")])
    assert counted.totals("missed_total") == {("x", "queue_late"): 1}


def test_terms_of_leadership_are_counted_by_their_reason():
    counted = Numbers()
    counted.hear([Led(epoch=n, reason=r, cold=False, now=NOW) for n, r in enumerate(("failover",) * 2)])
    assert counted.totals("leadership_changes_total") == {("failover",): 2}


def test_lateness_is_in_the_bucket_of_its_bound():
    counted = Numbers()
    counted.hear([sent(late=n) for n in (0, 10, 11, 60_000, 10**9)])
    histogram = counted.histograms("lateness_seconds")[("beat",)]
    found = dict(zip((*METRICS["lateness_seconds"].buckets, None), histogram.cumulated(), strict=True))
    assert (found[0.01], found[0.05], found[30], found[60], found[86400], found[None]) == (2, 3, 3, 4, 4, 5)
    assert histogram.total == pytest.approx(1_000_060.021)


def test_entries_beyond_the_limit_share_a_label(monkeypatch):
    monkeypatch.setattr(numbers_module, "MOST_ENTRIES", 2)
    counted = Numbers()
    counted.hear([sent(name) for name in ("a", "b", "c", "d", "a")])
    assert counted.totals("occurrences_total") == {
        ("a", "fired"): 2,
        ("b", "fired"): 1,
        (OTHER, "fired"): 2,
    }
    counted.gauges.append(
        lambda: [Note("next_fire_timestamp_seconds", (n,), t) for n, t in (("a", 9), ("c", 7), ("d", 5))]
    )
    # The first of them that is due.
    assert counted.states() == {"next_fire_timestamp_seconds": {("a",): 9, (OTHER,): 5}}


def test_an_entry_that_is_expected_begins_with_0():
    counted = Numbers()
    counted.hear([sent("a")])
    counted.expect(["a"])
    assert counted.totals("occurrences_total") == {
        ("a", "fired"): 1,
        ("a", "recovered"): 0,
        ("a", "merged"): 0,
        ("a", "missed"): 0,
    }


def test_what_nobody_reads_is_not_counted():
    counted = Numbers(is_read=False)
    counted.hear([sent(), MISFIRED])
    assert not counted.totals("occurrences_total")
    assert not counted.histograms("lateness_seconds")


def test_the_time_of_a_tick_is_observed_even_if_it_fails():
    counted = Numbers()
    with pytest.raises(KeyError), counted.timed("tick_seconds"):
        raise KeyError
    assert sum(counted.histograms("tick_seconds")[()].counts) == 1


# -- where entries stand -----------------------------------------------------------------------------------


def test_the_figures_tell_what_is_due_and_what_is_late_by_its_threshold():
    hourly = trigger_for(simple(interval=3600))
    entries = {
        # Late by a minute each.
        "in time": MisfirePolicy("do_nothing", threshold=61),
        "overdue": MisfirePolicy("do_nothing", threshold=60),
        "auto": MisfirePolicy("do_nothing"),
        "off": None,
        "unknown": MisfirePolicy("do_nothing"),
    }
    definitions = {name: Definition(name, "t", hourly, policy) for name, policy in entries.items()}
    seen = NOW - 60_000 - HOUR
    records = {n: first_seen(n, "t", hourly, seen, from_now=True) for n in definitions if n != "unknown"}
    due = {record.state.next_fire_time for record in records.values()}
    figures = figures_of(records, definitions, [], max(due) + 60_000)
    assert figures.overdue == 2
    assert set(figures.next_fire_times) == {"in time", "overdue", "auto", "off"}
    assert set(figures.next_fire_times.values()) == due
    assert figures.catch_up == 0


def test_nothing_is_overdue_while_all_entries_are_held():
    hourly, policy = trigger_for(simple(interval=3600)), MisfirePolicy("do_nothing")
    definitions = {"reports": Definition("reports", "t", hourly, policy)}
    records = {"reports": first_seen("reports", "t", hourly, NOW - 2 * HOUR, from_now=True)}
    assert figures_of(records, definitions, [], NOW).overdue == 1
    assert figures_of(records, definitions, [], NOW, Pause(NOW - HOUR, NOW + HOUR, "", "")).overdue == 0


# -- Prometheus --------------------------------------------------------------------------------------------


@pytest.fixture
def served() -> Iterator[tuple[Numbers, int]]:
    counted, port = Numbers(), free_port()
    stop = export(counted, settings(port), "beat")
    yield counted, port
    stop()


def test_prometheus_reads_all_metrics_under_their_names(served):
    counted, port = served
    counted.hear([sent('re"p\\orts\nä'), MISFIRED, Led(epoch=1, reason="failover", cold=False, now=NOW)])
    counted.take(Note("tick_seconds", value=0.002))
    counted.gauges.append(
        lambda: [
            Note(name, ("a",) * len(metric.labels), 1.5)
            for name, metric in METRICS.items()
            if metric.kind == "gauge"
        ]
    )
    families = scrape(port)
    assert {family.name.removeprefix("celery_misfire_") for family in families.values()} == {
        name.removesuffix("_total") for name in METRICS
    }
    for metric in METRICS.values():
        family = families[f"celery_misfire_{metric.name}".removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.meaning)
        assert family.samples, metric.name
        assert {label for sample in family.samples for label in sample.labels} - {"le"} == {*metric.labels}
    assert values(families, "occurrences_total", entry='re"p\\orts\nä') == {("fired",): 1}
    assert values(families, "leader") == {(): 1.5}
    assert values(families, "duplicates_dropped_total") == {(): 0}
    assert values(families, "tick_seconds_bucket")[("0.005",)] == 1
    assert values(families, "tick_seconds_bucket")[("+Inf",)] == 1
    assert values(families, "tick_seconds_count") == {(): 1}


def test_a_port_that_is_taken_is_one_line_that_names_it(caplog):
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        export(Numbers(), settings(port), "beat")()
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith(
        f"beat: no metrics for Prometheus, misfire_metrics_port: port {port} cannot be had"
    )
    assert "\n" not in line


def test_without_the_library_one_line_says_what_to_install(caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    export(Numbers(), settings(free_port()), "worker")()
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "Install celery-misfire[prometheus]" in line


def test_a_port_that_was_given_back_can_be_had_again():
    port = free_port()
    for _ in range(2):
        stop = export(Numbers(), settings(port), "beat")
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert answer.status == 200
        stop()


@pytest.mark.parametrize("port", ["9808", 0, 65536, True])
def test_a_setting_that_is_no_port_is_refused(port):
    app = Celery("shop", broker="redis://", set_as_current=False)
    app.conf.misfire_metrics_port = port
    with pytest.raises(MisfireConfigError, match="misfire_metrics_port"):
        read_settings(app)


def test_beats_of_one_namespace_may_have_ports_of_their_own():
    app = Celery("shop", set_as_current=False)
    assert describe(app, settings(9808), {}) == describe(app, settings(9809), {})


# -- the children of a worker -------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no children that could tell")
def test_what_children_count_arrives_in_the_main_process_and_a_full_pipe_holds_up_no_run():
    counted = WorkerNumbers(settings(free_port()))

    def in_a_child(times: int) -> None:
        child = multiprocessing.get_context("fork").Process(target=count, args=(times,), daemon=True)
        child.start()
        child.join(30)
        assert child.exitcode == 0

    def count(times: int) -> None:
        for _ in range(times):
            counted.take(Note("missed_total", ("re\npörts", "queue_late"), 2.0))

    # Nobody listens yet, and a pipe holds 64 kB.
    in_a_child(20_000)
    counted.start(has_children=True)
    wait_for(lambda: counted.totals("missed_total"), what="what did fit")
    in_a_child(1)
    counted.take(Note("duplicates_dropped_total"))
    (labels,) = counted.totals("missed_total")
    assert labels == ("re\npörts", "queue_late")
    assert 0 < counted.totals("missed_total")[labels] < 40_000
    assert counted.totals("duplicates_dropped_total") == {(): 1}


# -- OpenTelemetry -----------------------------------------------------------------------------------------


def test_opentelemetry_gets_the_same_numbers(monkeypatch):
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(exporters, "_opentelemetry", lambda: provider)
    counted = Numbers()
    export(counted, settings(None), "beat")
    counted.gauges.append(lambda: [Note("leader", value=1.0)])
    counted.hear([sent(), sent(), MISFIRED])

    found: dict[str, Any] = {
        metric.name: metric
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    points = found["celery_misfire.occurrences"].data.data_points
    told = {(p.attributes["entry"], p.attributes["outcome"]): p.value for p in points}
    assert told == counted.totals("occurrences_total")
    [lateness] = found["celery_misfire.lateness"].data.data_points
    assert (lateness.count, dict(lateness.attributes)) == (2, {"stage": "beat"})
    assert lateness.explicit_bounds == METRICS["lateness_seconds"].buckets
    assert found["celery_misfire.lateness"].unit == "s"
    assert [p.value for p in found["celery_misfire.leader"].data.data_points] == [1.0]
    provider.shutdown()


class _Broken:
    """A provider of the app's own that fails."""

    def __init__(self, at_start: bool) -> None:
        self._at_start = at_start

    def get_meter(self, name: str) -> Any:
        if self._at_start:
            raise TypeError("unexpected keyword argument")
        return self

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self

    def record(self, *_: Any) -> None:
        raise RuntimeError


@pytest.mark.parametrize("at_start", [True, False])
def test_a_provider_that_fails_stops_nothing(monkeypatch, caplog, at_start):
    monkeypatch.setattr(exporters, "_opentelemetry", lambda: _Broken(at_start))
    counted = Numbers()
    export(counted, settings(None), "beat")
    counted.hear([sent()])
    assert counted.totals("occurrences_total") == {("reports", "fired"): 1}
    lines = [record.getMessage() for record in caplog.records]
    told = ["beat: no metrics for OpenTelemetry (TypeError). All else goes on."]
    assert lines == (told if at_start else [])


def test_numbers_are_read_with_a_port_or_with_opentelemetry(monkeypatch):
    assert is_read(settings(None))
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert not is_read(settings(None))
    assert is_read(settings(9808))


def test_the_library_is_not_loaded_unless_it_is_used():
    loaded = modules_added_by("import celery_misfire.beat, celery_misfire.worker")
    assert "celery_misfire.metrics.exporters" in loaded
    assert "prometheus_client" not in loaded


def test_no_event_of_the_log_breaks_the_numbers():
    counted = Numbers()
    counted.hear([MISFIRED, GAVE_UP, sent("x" * 200, "a word of another version")])
    assert ("x" * 200, "a word of another version") in counted.totals("occurrences_total")
    assert issubclass(Sent, Event)
