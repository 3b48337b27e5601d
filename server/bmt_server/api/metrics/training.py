"""Prometheus metrics of the worker that `--train` starts; none without it."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bmt_server.ipc.stats_files import TrainingStats


class TrainingCollector(Collector):
    """State of the worker, read at each scrape. For information: a server is ready without it."""

    def __init__(self, stats_dir: str) -> None:
        self._stats_dir = stats_dir

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance, so that registration reads no files."""
        return []

    def collect(self) -> Iterable[Metric]:
        for one in TrainingStats.read_all(self._stats_dir):
            yield GaugeMetricFamily(
                "bmt_training_worker_up", "1 while the worker of --train runs.", value=one.up
            )
            yield CounterMetricFamily(
                "bmt_training_worker_starts", "Starts of the worker of --train.", value=one.starts
            )
