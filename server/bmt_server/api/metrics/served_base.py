"""Prometheus metric of the served base: its precision, and the fingerprint that masks name."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bmt_server.settings import Settings


class ServedBaseCollector(Collector):
    """`bmt_base_info`, a constant of the server."""

    def __init__(self, settings: Settings) -> None:
        served = settings.served_fingerprint or settings.fingerprint
        self._labels = [settings.precision or "unknown", settings.fingerprint, served]

    def collect(self) -> Iterable[Metric]:
        info = GaugeMetricFamily(
            "bmt_base_info",
            "1, with the precision of the base's gates, the fingerprint that masks name, and that "
            "of the served checkpoint.",
            labels=["precision", "fingerprint", "served"],
        )
        info.add_metric(self._labels, 1)
        yield info
