"""Prometheus figures of masks, beside vLLM's own in the same `/metrics`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from bmt_server.api.metrics.router import LoadedCollector, PublicNames
from bmt_server.api.metrics.scheduler import TurnCollector
from bmt_server.ipc.stats_files import Reason, WorkerStats

OTHER = "other"
BASE = "base"
_TTFT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LOAD = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Labels:
    """At most `bound` distinct masks as label values; later ones are `other`.

    A label value lives as long as the process, so unbounded names would be unbounded memory, and
    clients choose names. The name without its version is used, for the same reason.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._known: set[str] = set()

    def of(self, internal_name: str | None) -> str:
        if internal_name is None:
            return BASE
        name = internal_name.partition("@")[0]
        if name not in self._known:
            if len(self._known) >= self._bound:
                return OTHER
            self._known.add(name)
        return name


class WorkerCollector:
    """Workers' figures, read from their files at each scrape."""

    def __init__(self, stats_dir: str) -> None:
        self._stats_dir = stats_dir

    def describe(self) -> Iterable[Metric]:
        """Nothing ahead of time: registering must not read files."""
        return []

    def collect(self) -> Iterable[Metric]:
        workers = WorkerStats.read_all(self._stats_dir)
        yield from _per_worker(
            workers,
            GaugeMetricFamily,
            [
                ("bmt_masks_resident", "Masks in the worker's memory.", "resident_masks"),
                (
                    "bmt_masks_resident_bytes",
                    "Bytes of masks in the worker's memory.",
                    "resident_bytes",
                ),
                ("bmt_masks_capacity_bytes", "Bound on those bytes.", "capacity_bytes"),
            ],
        )
        yield from _per_worker(
            workers,
            CounterMetricFamily,
            [
                ("bmt_switches", "Changes of the mask in the live weights.", "switches"),
                ("bmt_switch_seconds", "Time spent on them.", "switch_seconds"),
                ("bmt_mask_maps", "Masks mapped and gathered by the worker.", "maps"),
                ("bmt_mask_map_seconds", "Time spent on that.", "map_seconds"),
                ("bmt_mask_evictions", "Masks that left memory for want of room.", "evictions"),
            ],
        )
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
        yield from _switching(workers)
        info = GaugeMetricFamily(
            "bmt_worker_info",
            "1 for each worker, with its mask mode and kernel.",
            labels=["rank", "mode", "kernel"],
        )
        for w in workers:
            info.add_metric([str(w.rank), w.mode, w.kernel], 1)
        yield info


def _switching(workers: list[WorkerStats]) -> Iterable[Metric]:
    """What the live weights hold and, in mode `auto`, why."""
    held = GaugeMetricFamily(
        "bmt_weights_masked",
        "1 while a mask is in the live weights, 0 while they are the base's.",
        labels=["rank"],
    )
    for w in workers:
        held.add_metric([str(w.rank)], float(bool(w.in_weights)))
    yield held
    auto = [w for w in workers if w.mode == "auto"]
    if not auto:
        return
    why = GaugeMetricFamily(
        "bmt_auto_reason",
        "1 for the reason why the last step was in place or not.",
        labels=["rank", "reason"],
    )
    paid = GaugeMetricFamily(
        "bmt_auto_switch_paid",
        "Share of a switch's price that the run of one mask has paid in corrections.",
        labels=["rank"],
    )
    paying = CounterMetricFamily(
        "bmt_auto_paying_steps",
        "Corrected steps that one mask owned, before its switch was paid.",
        labels=["rank"],
    )
    for w in auto:
        for reason in get_args(Reason):
            why.add_metric([str(w.rank), reason], float(w.reason == reason))
        paid.add_metric([str(w.rank)], w.switch_paid)
        paying.add_metric([str(w.rank)], w.steps_paying)
    yield from (why, paid, paying)


def _per_worker(
    workers: list[WorkerStats],
    family: Callable[..., GaugeMetricFamily | CounterMetricFamily],
    figures: list[tuple[str, str, str]],
) -> Iterable[Metric]:
    for name, text, attribute in figures:
        metric = family(name, text, labels=["rank"])
        for w in workers:
            metric.add_metric([str(w.rank)], getattr(w, attribute))
        yield metric


class Metrics:
    """Counters, gauges and histograms that this API process updates itself."""

    def __init__(self, max_masks: int, registry: CollectorRegistry = REGISTRY) -> None:
        self.labels = Labels(max_masks)
        self.requests = Counter(
            "bmt_requests", "Requests by mask and outcome.", ["mask", "outcome"], registry=registry
        )
        self.tokens = Counter(
            "bmt_tokens", "Tokens by mask and kind.", ["mask", "kind"], registry=registry
        )
        self.ttft = Histogram(
            "bmt_time_to_first_token_seconds",
            "Time to first token by mask.",
            ["mask"],
            buckets=_TTFT,
            registry=registry,
        )
        self.errors = Counter(
            "bmt_request_errors", "Requests refused before the engine.", ["code"], registry=registry
        )
        self.cold_loads = Counter(
            "bmt_cold_loads", "Masks made ready, by where they were.", ["source"], registry=registry
        )
        self.cold_seconds = Histogram(
            "bmt_cold_load_seconds",
            "Time to make a mask ready, by where it was.",
            ["source"],
            buckets=_LOAD,
            registry=registry,
        )
        self.uploads = Counter("bmt_uploads", "Uploads by outcome.", ["outcome"], registry=registry)
        self.registry_up = Gauge(
            "bmt_registry_up",
            "1 while Redis answers all API processes.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.holding = Gauge(
            "bmt_mask_holds",
            "Holds on masks: of responses, and of their requests in the engine.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._registry = registry
        self._registered = (
            self.requests,
            self.tokens,
            self.ttft,
            self.errors,
            self.cold_loads,
            self.cold_seconds,
            self.uploads,
            self.registry_up,
            self.holding,
        )

    def request_finished(
        self,
        mask: str | None,
        *,
        outcome: str,
        prompt_tokens: int,
        completion_tokens: int,
        ttft_s: float | None,
    ) -> None:
        """One request left the engine. mask: internal name, None for the base; ttft_s: seconds."""
        label = self.labels.of(mask)
        self.requests.labels(label, outcome).inc()
        self.tokens.labels(label, "prompt").inc(prompt_tokens)
        self.tokens.labels(label, "completion").inc(completion_tokens)
        if ttft_s is not None:
            self.ttft.labels(label).observe(ttft_s)

    def cold_load(self, source: str, seconds: float) -> None:
        """A mask was made ready from `disk` or `registry`."""
        self.cold_loads.labels(source).inc()
        self.cold_seconds.labels(source).observe(seconds)

    def close(self) -> None:
        """Take everything out of the registry again: another server may start in this process."""
        for collector in self._registered:
            self._registry.unregister(collector)


class FileCollectors:
    """Metrics of the worker and scheduler processes, read from their files at each scrape.

    registry: what `/metrics` reads (`scrape.py`). public_names: see `LoadedCollector`.
    """

    def __init__(
        self, registry: CollectorRegistry, stats_dir: str, public_names: PublicNames
    ) -> None:
        self._registry = registry
        self._collectors = (
            LoadedCollector(stats_dir, public_names),
            WorkerCollector(stats_dir),
            TurnCollector(stats_dir),
        )
        for collector in self._collectors:
            registry.register(collector)

    def close(self) -> None:
        """Unregister all of them."""
        for collector in self._collectors:
            self._registry.unregister(collector)
