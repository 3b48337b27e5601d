"""Which masks are loaded, as routers of the Gateway API Inference Extension read it.

Two families: `vllm:lora_requests_info`, one series whose labels list adapters (its model server
protocol: those loaded, those that wait, how many fit), and the newer one of a series an adapter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily, Metric

from bmt_server.ipc.stats_files import MAX_NAMED, WaitingMasks, WorkerStats

PublicNames = Callable[[Iterable[str]], list[str]]


class LoadedCollector:
    """Read at each scrape from the workers' files. names: public names of internal ones."""

    def __init__(self, stats_dir: str, names: PublicNames) -> None:
        self._stats_dir, self._names = stats_dir, names

    def describe(self) -> Iterable[Metric]:
        """Nothing ahead of time: registering must not read files."""
        return []

    def collect(self) -> Iterable[Metric]:
        workers = WorkerStats.read_all(self._stats_dir)
        yield self._listed(workers)
        yield from self._loaded(workers)

    def _listed(self, workers: list[WorkerStats]) -> Metric:
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Masks in memory and masks that wait, at the time that is the value.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        for first in workers[:1]:  # each has the same masks
            resident = self._recent(first)
            waits = self._names(WaitingMasks.latest(self._stats_dir))[:MAX_NAMED]
            labels = [str(first.fits), ",".join(resident), ",".join(waits)]
            family.add_metric(labels, time.time())
        return family

    def _loaded(self, workers: list[WorkerStats]) -> Iterable[Metric]:
        loaded = GaugeMetricFamily(
            "vllm:lora_adapter_loaded",
            "1 for each mask in a worker's memory.",
            labels=["adapter_name", "level", "pinned", "rank"],
        )
        count = GaugeMetricFamily(
            "vllm:num_gpu_loaded_lora_adapters", "Masks in a worker's memory.", labels=["rank"]
        )
        most = GaugeMetricFamily(
            "vllm:max_gpu_lora_adapters",
            "Masks of the present average size that fit there.",
            labels=["rank"],
        )
        for worker in workers:
            rank = str(worker.rank)
            for name in self._recent(worker):
                loaded.add_metric([name, "gpu", "false", rank], 1)
            count.add_metric([rank], worker.resident_masks)
            most.add_metric([rank], worker.fits)
        yield from (loaded, count, most)

    def _recent(self, worker: WorkerStats) -> list[str]:
        """At most MAX_NAMED names, those used last first. Aliases count: a router parses all."""
        return self._names(reversed(worker.resident))[:MAX_NAMED]
