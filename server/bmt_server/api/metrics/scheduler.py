"""Prometheus metrics of mode `scatter`'s scheduler; none in the other modes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from bmt_server.ipc.stats_files import WAIT_BUCKETS, TurnStats

# (family, name, help, attribute of TurnStats)
_FIGURES: tuple[tuple[Callable[..., GaugeMetricFamily | CounterMetricFamily], str, str, str], ...]
_FIGURES = (
    (GaugeMetricFamily, "bmt_scatter_masks", "Masks with runnable requests.", "masks"),
    (
        GaugeMetricFamily,
        "bmt_scatter_max_wait_seconds",
        "Configured limit on a mask's wait for its turn.",
        "max_wait_s",
    ),
    (
        GaugeMetricFamily,
        "bmt_scatter_guarantee_seconds",
        "Effective limit on that wait; above the configured one if a step of each mask takes more.",
        "guarantee_s",
    ),
    (
        GaugeMetricFamily,
        "bmt_scatter_longest_wait_seconds",
        "Longest wait of a mask for its turn since the server started.",
        "longest_wait_s",
    ),
    (CounterMetricFamily, "bmt_scatter_turns", "Turns started.", "turns"),
    (CounterMetricFamily, "bmt_scatter_turn_steps", "Steps in all turns.", "turn_steps"),
    (CounterMetricFamily, "bmt_scatter_turn_seconds", "Duration of all turns.", "turn_seconds"),
    (
        CounterMetricFamily,
        "bmt_scatter_waits_over_bound",
        "Turns that started after the configured limit on the wait.",
        "waits_over_bound",
    ),
)


class SchedulerCollector(Collector):
    """Metrics of all schedulers, read from their statistics files at each scrape."""

    def __init__(self, stats_dir: str) -> None:
        self._stats_dir = stats_dir

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance, so that registration reads no files."""
        return []

    def collect(self) -> Iterable[Metric]:
        schedulers = TurnStats.read_all(self._stats_dir)
        if not schedulers:
            return
        for family, name, text, attribute in _FIGURES:
            metric = family(name, text, labels=["engine"])
            for stats in schedulers:
                metric.add_metric([str(stats.engine)], getattr(stats, attribute))
            yield metric
        yield _wait_histogram(schedulers)


def _wait_histogram(schedulers: list[TurnStats]) -> HistogramMetricFamily:
    metric = HistogramMetricFamily(
        "bmt_scatter_wait_seconds", "Waits of masks for their turns.", labels=["engine"]
    )
    for stats in schedulers:
        buckets, total = [], 0
        for bound, count in zip((*map(str, WAIT_BUCKETS), "+Inf"), stats.waits, strict=True):
            total += count
            buckets.append((bound, total))
        metric.add_metric([str(stats.engine)], buckets, sum_value=stats.wait_seconds)
    return metric
