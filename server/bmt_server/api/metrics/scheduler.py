"""Prometheus figures of `scatter` mode's scheduler; nothing in the other modes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from bmt_server.ipc.stats_files import WAIT_BUCKETS, TurnStats

_FIGURES: tuple[tuple[Callable[..., GaugeMetricFamily | CounterMetricFamily], str, str, str], ...]
_FIGURES = (
    (GaugeMetricFamily, "bmt_scatter_masks", "Masks with requests that can run.", "masks"),
    (
        GaugeMetricFamily,
        "bmt_scatter_max_wait_seconds",
        "The bound on a mask's wait for its turn, as set.",
        "max_wait_s",
    ),
    (
        GaugeMetricFamily,
        "bmt_scatter_guarantee_seconds",
        "The bound that holds: more than the one set where one step of each mask takes longer.",
        "guarantee_s",
    ),
    (
        GaugeMetricFamily,
        "bmt_scatter_longest_wait_seconds",
        "Longest wait of a mask for its turn since the start.",
        "longest_wait_s",
    ),
    (CounterMetricFamily, "bmt_scatter_turns", "Turns begun.", "turns"),
    (CounterMetricFamily, "bmt_scatter_turn_steps", "Steps in them.", "turn_steps"),
    (CounterMetricFamily, "bmt_scatter_turn_seconds", "Time in them.", "turn_seconds"),
    (
        CounterMetricFamily,
        "bmt_scatter_waits_over_bound",
        "Turns that began later than the bound set.",
        "waits_over_bound",
    ),
)


class TurnCollector:
    """Schedulers' figures, read from their files at each scrape."""

    def __init__(self, stats_dir: str) -> None:
        self._stats_dir = stats_dir

    def describe(self) -> Iterable[Metric]:
        """Nothing ahead of time: registering must not read files."""
        return []

    def collect(self) -> Iterable[Metric]:
        engines = TurnStats.read_all(self._stats_dir)
        if not engines:
            return
        for family, name, text, attribute in _FIGURES:
            metric = family(name, text, labels=["engine"])
            for figures in engines:
                metric.add_metric([str(figures.engine)], getattr(figures, attribute))
            yield metric
        yield _waits(engines)


def _waits(engines: list[TurnStats]) -> HistogramMetricFamily:
    metric = HistogramMetricFamily(
        "bmt_scatter_wait_seconds", "Waits of masks for their turns.", labels=["engine"]
    )
    for figures in engines:
        buckets, total = [], 0
        for bound, count in zip((*map(str, WAIT_BUCKETS), "+Inf"), figures.waits, strict=True):
            total += count
            buckets.append((bound, total))
        metric.add_metric([str(figures.engine)], buckets, sum_value=figures.wait_seconds)
    return metric
