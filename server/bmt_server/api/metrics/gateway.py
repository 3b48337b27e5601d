"""Metrics of loaded masks for routers of the Gateway API Inference Extension.

Two families: `vllm:lora_requests_info`, one series whose labels list adapters (the extension's
model server protocol: loaded, waiting, and the length of the lists at which nothing more fits), and
the newer one with a series per adapter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bmt_server.ipc.stats_files import MAX_NAMED, WaitingMasks, WorkerStats

PublicNames = Callable[[Iterable[str]], list[str]]


class LoadedMasksCollector(Collector):
    """Loaded and waiting masks, read at each scrape from the statistics files.

    public_names: returns the names by which requests reach the given internal names.
    """

    def __init__(self, stats_dir: str, public_names: PublicNames) -> None:
        self._stats_dir, self._public_names = stats_dir, public_names

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance, so that registration reads no files."""
        return []

    def collect(self) -> Iterable[Metric]:
        workers = WorkerStats.read_all(self._stats_dir)
        yield self._requests_info(workers)
        yield from self._loaded(workers)

    def _requests_info(self, workers: list[WorkerStats]) -> Metric:
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Masks in memory and masks with waiting requests; the value is the time of the scrape.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        for first in workers[:1]:  # all workers have the same masks
            resident = self._recently_used(first)
            wanted = WaitingMasks.latest(self._stats_dir)
            waiting = self._public_names(wanted)[:MAX_NAMED]
            to_load = set(wanted).difference(first.resident)
            room = max(0, first.fits - first.resident_masks - len(to_load))
            # Endpoint pickers take a pod for full if it lists max_lora names. A mask has several
            # names (its own, its aliases', its version's), and long lists are cut, so the number
            # of masks that fit (`vllm:max_gpu_lora_adapters`) would be compared with other things.
            labels = [str(len(resident) + len(waiting) + room), *map(",".join, (resident, waiting))]
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
        capacity = GaugeMetricFamily(
            "vllm:max_gpu_lora_adapters",
            "Masks of the present average size that fit in a worker's memory.",
            labels=["rank"],
        )
        for worker in workers:
            rank = str(worker.rank)
            for name in self._recently_used(worker):
                loaded.add_metric([name, "gpu", "false", rank], 1)
            count.add_metric([rank], worker.resident_masks)
            capacity.add_metric([rank], worker.fits)
        yield from (loaded, count, capacity)

    def _recently_used(self, worker: WorkerStats) -> list[str]:
        """At most MAX_NAMED public names, aliases included, the most recently used first."""
        return self._public_names(reversed(worker.resident))[:MAX_NAMED]
