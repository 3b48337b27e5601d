"""Registration of the metrics that come from other processes' statistics files."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from bmt_server.api.metrics.gateway import LoadedMasksCollector, PublicNames
from bmt_server.api.metrics.scheduler import SchedulerCollector
from bmt_server.api.metrics.training import TrainingCollector
from bmt_server.api.metrics.workers import WorkerCollector


class StatsCollectors:
    """Collectors of worker and scheduler metrics, registered from construction to `close`.

    registry: the one that `/metrics` reads (`multiprocess.py`). public_names: see
    `LoadedMasksCollector`. more: further collectors of this server.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        stats_dir: str,
        public_names: PublicNames,
        *more: Collector,
    ) -> None:
        self._registry = registry
        self._collectors: tuple[Collector, ...] = (
            LoadedMasksCollector(stats_dir, public_names),
            WorkerCollector(stats_dir),
            SchedulerCollector(stats_dir),
            TrainingCollector(stats_dir),
            *more,
        )
        for collector in self._collectors:
            registry.register(collector)

    def close(self) -> None:
        """Unregister all of them."""
        for collector in self._collectors:
            self._registry.unregister(collector)
