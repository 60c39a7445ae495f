"""What Prometheus would read."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

PREFIX = "celery_misfire_"


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def scrape(port: int) -> dict[str, Any]:
    """Return what is read at this port of this machine, by the names of the families."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(families: Mapping[str, Any], name: str, **labels: str) -> dict[tuple[str, ...], float]:
    """Return the samples of this name by their labels, in the order of the labels' names.

    :param labels: what those have in common that are returned; these labels are left out.
    """
    samples = (sample for family in families.values() for sample in family.samples)
    return {
        tuple(value for label, value in sorted(sample.labels.items()) if label not in labels): sample.value
        for sample in samples
        if sample.name == PREFIX + name and labels.items() <= sample.labels.items()
    }
