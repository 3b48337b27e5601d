"""Which masks are loaded, as routers of the Gateway API Inference Extension read it.

`vllm:lora_requests_info`, the older gauge, is vLLM's own, set right in `engine/stat_logger.py`.
This is the newer family: one series an adapter, and how many there are and fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily, Metric

from bmt_server.worker_stats import MAX_NAMED, read_all


class LoadedCollector:
    """Read at each scrape from the workers' files. names: public names of internal ones."""

    def __init__(self, stats_dir: str, names: Callable[[Iterable[str]], list[str]]) -> None:
        self._stats_dir, self._names = stats_dir, names

    def describe(self) -> Iterable[Metric]:
        """Nothing ahead of time: registering must not read files."""
        return []

    def collect(self) -> Iterable[Metric]:
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
        for worker in read_all(self._stats_dir):
            rank = str(worker.rank)
            # Those used last are last. Aliases count: a router parses every series.
            for name in self._names(reversed(worker.resident))[:MAX_NAMED]:
                loaded.add_metric([name, "gpu", "false", rank], 1)
            count.add_metric([rank], worker.resident_masks)
            most.add_metric([rank], worker.fits)
        yield from (loaded, count, most)
