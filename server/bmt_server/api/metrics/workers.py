"""Prometheus metrics of the worker processes, read from their statistics files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bmt_server.ipc.stats_files import Reason, WorkerStats

# (name, help, attribute of WorkerStats)
_GAUGES = (
    ("bmt_masks_resident", "Masks in the worker's memory.", "resident_masks"),
    ("bmt_masks_resident_bytes", "Bytes of masks in the worker's memory.", "resident_bytes"),
    ("bmt_base_replaced", "1 while masks are refused: the base was replaced.", "base_replaced"),
    ("bmt_masks_capacity_bytes", "Limit on the bytes of masks in memory.", "capacity_bytes"),
)
_COUNTERS = (
    ("bmt_switches", "Changes of the mask in the live weights.", "switches"),
    (
        "bmt_switch_seconds",
        "Time of these changes: of the device on a GPU, else of the host.",
        "switch_seconds",
    ),
    ("bmt_mask_maps", "Masks mapped from disk and gathered by the worker.", "maps"),
    ("bmt_mask_map_seconds", "Time spent on mapping and gathering masks.", "map_seconds"),
    ("bmt_mask_evictions", "Masks evicted from memory to make room for others.", "evictions"),
)


class WorkerCollector(Collector):
    """Metrics of all workers, read at each scrape."""

    def __init__(self, stats_dir: str) -> None:
        self._stats_dir = stats_dir

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance, so that registration reads no files."""
        return []

    def collect(self) -> Iterable[Metric]:
        workers = WorkerStats.read_all(self._stats_dir)
        yield from _per_worker(workers, GaugeMetricFamily, _GAUGES)
        yield from _per_worker(workers, CounterMetricFamily, _COUNTERS)
        steps = CounterMetricFamily(
            "bmt_steps",
            "Forward passes by how masks were applied.",
            labels=["rank", "applied"],
        )
        for w in workers:
            steps.add_metric([str(w.rank), "in_place"], w.steps_in_place)
            steps.add_metric([str(w.rank), "corrected"], w.steps_corrected)
            steps.add_metric([str(w.rank), "base"], w.steps_base)
        yield steps
        yield from _live_weights(workers)
        info = GaugeMetricFamily(
            "bmt_worker_info",
            "1 for each worker, with its mask mode and kernel.",
            labels=["rank", "mode", "kernel"],
        )
        for w in workers:
            info.add_metric([str(w.rank), w.mode, w.kernel], 1)
        yield info


def _per_worker(
    workers: list[WorkerStats],
    family: Callable[..., GaugeMetricFamily | CounterMetricFamily],
    figures: tuple[tuple[str, str, str], ...],
) -> Iterable[Metric]:
    for name, text, attribute in figures:
        metric = family(name, text, labels=["rank"])
        for w in workers:
            metric.add_metric([str(w.rank)], getattr(w, attribute))
        yield metric


def _live_weights(workers: list[WorkerStats]) -> Iterable[Metric]:
    """State of the live weights and, in mode `auto`, the reason for it."""
    masked = GaugeMetricFamily(
        "bmt_weights_masked",
        "1 while a mask is in the live weights, 0 while they are the base model's.",
        labels=["rank"],
    )
    for w in workers:
        masked.add_metric([str(w.rank)], float(bool(w.in_weights)))
    yield masked
    auto = [w for w in workers if w.mode == "auto"]
    if not auto:
        return
    reasons = GaugeMetricFamily(
        "bmt_auto_reason",
        "1 for the reason why the last step was in place or not.",
        labels=["rank", "reason"],
    )
    paid = GaugeMetricFamily(
        "bmt_auto_switch_paid",
        "Share of a switch's cost that the corrections of the present mask have reached.",
        labels=["rank"],
    )
    paying = CounterMetricFamily(
        "bmt_auto_paying_steps",
        "Corrected steps with a single mask, before its switch was worth the cost.",
        labels=["rank"],
    )
    for w in auto:
        for reason in get_args(Reason):
            reasons.add_metric([str(w.rank), reason], float(w.reason == reason))
        paid.add_metric([str(w.rank)], w.switch_paid)
        paying.add_metric([str(w.rank)], w.steps_paying)
    yield from (reasons, paid, paying)
