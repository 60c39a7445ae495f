"""Where the numbers go: a port for Prometheus, and the instruments of OpenTelemetry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery_misfire.log_lines import Log
from celery_misfire.metrics.numbers import METRICS, PREFIX, Metric, Note, Numbers

if TYPE_CHECKING:
    from celery_misfire.conf.settings import Settings

#: Name of our meter.
METER = "celery_misfire"


def is_read(settings: Settings) -> bool:
    """Return False when nobody reads the numbers."""
    return settings.metrics_port is not None or _opentelemetry() is not None


def export(numbers: Numbers, settings: Settings, who: str) -> Callable[[], None]:
    """Let the numbers be read; return what ends that. What goes wrong is one line of the log.

    :param who: is measured, in the words of the log.
    """
    say = Log(__name__, who)
    try:
        if (api := _opentelemetry()) is not None:
            _instrument(numbers, api.get_meter(METER))
    except Exception as exc:
        # A version that knows other arguments, or a provider of the app's own.
        what = "no metrics for OpenTelemetry (%s). All else goes on."
        say.error("problem", what, type(exc).__name__)
    if settings.metrics_port is None:
        return _nothing
    try:
        return _serve(numbers, settings.metrics_port)
    except ImportError:
        problem = "prometheus-client is missing. Install celery-misfire[prometheus]"
    except OSError as exc:
        problem = f"port {settings.metrics_port} cannot be had ({exc.strerror or exc}). Give it another one"
    say.error("problem", "no metrics for Prometheus, misfire_metrics_port: %s. All else goes on.", problem)
    return _nothing


def _nothing() -> None:
    """Nothing was started."""


# -- Prometheus --------------------------------------------------------------------------------------------


def _serve(numbers: Numbers, port: int) -> Callable[[], None]:
    from prometheus_client import CollectorRegistry, start_http_server

    # A registry of our own: the app may count other things elsewhere, or share files among processes.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(numbers))
    server, _thread = start_http_server(port, registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop


class _Collector:
    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterable[Any]:
        states = self._numbers.states()
        for metric in METRICS.values():
            yield self._family(metric, states.get(metric.name, {}))

    def _family(self, metric: Metric, states: Any) -> Any:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        described = PREFIX + metric.name, metric.meaning
        if metric.kind == "counter":
            counter = CounterMetricFamily(*described, labels=metric.labels)
            for labels, total in self._numbers.totals(metric.name).items():
                counter.add_metric(labels, total)
            return counter
        if metric.kind == "gauge":
            gauge = GaugeMetricFamily(*described, labels=metric.labels)
            for labels, value in states.items():
                gauge.add_metric(labels, value)
            return gauge
        family = HistogramMetricFamily(*described, labels=metric.labels)
        bounds = [*map(str, map(float, metric.buckets)), "+Inf"]
        for labels, histogram in self._numbers.histograms(metric.name).items():
            buckets = list(zip(bounds, map(float, histogram.cumulated()), strict=True))
            family.add_metric(labels, buckets, sum_value=histogram.total)
        return family


# -- OpenTelemetry -----------------------------------------------------------------------------------------


def _opentelemetry() -> Any:
    try:
        from opentelemetry import metrics
    except ImportError:
        return None
    return metrics


def _instrument(numbers: Numbers, meter: Any) -> None:
    """Make an instrument for each metric. Without a provider, they cost next to nothing."""
    observed = {}
    for metric in METRICS.values():
        # The exporters of OpenTelemetry put unit and kind back at the end of the name.
        name = metric.name.removesuffix("_total")
        unit = "s" if name.endswith("_seconds") else ""
        told = {"unit": unit, "description": metric.meaning}
        name = f"celery_misfire.{name.removesuffix('_seconds')}"
        if metric.kind == "histogram":
            buckets = {"explicit_bucket_boundaries_advisory": metric.buckets}
            observed[metric.name] = meter.create_histogram(name, **told, **buckets)
        elif metric.kind == "counter":
            meter.create_observable_counter(name, [_totals(numbers, metric)], **told)
        else:
            meter.create_observable_gauge(name, [_states(numbers, metric)], **told)

    def observe(note: Note) -> None:
        labels = zip(METRICS[note.metric].labels, note.labels, strict=True)
        # A provider of the app's own must not stop a beat that counts.
        with suppress(Exception):
            observed[note.metric].record(note.value, dict(labels))

    numbers.observers.append(observe)


def _totals(numbers: Numbers, metric: Metric) -> Callable[[Any], Iterable[Any]]:
    return lambda _: _observations(metric, numbers.totals(metric.name))


def _states(numbers: Numbers, metric: Metric) -> Callable[[Any], Iterable[Any]]:
    return lambda _: _observations(metric, numbers.states().get(metric.name, {}))


def _observations(metric: Metric, values: Any) -> Iterable[Any]:
    from opentelemetry.metrics import Observation

    return [
        Observation(value, dict(zip(metric.labels, labels, strict=True))) for labels, value in values.items()
    ]
