"""Prometheus metrics that an API process updates itself, exported with vLLM's own."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.registry import Collector

OTHER = "other"
BASE = "base"
_TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LOAD_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class MaskLabels:
    """Values of the `mask` label: at most `limit` distinct names, and `other` for all later ones.

    A label value lives as long as the process and clients choose the names, so an unlimited number
    would use unlimited memory. For the same reason the label omits the version.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def label(self, internal_name: str | None) -> str:
        """The label value of an internal name; None is the base model."""
        if internal_name is None:
            return BASE
        name = internal_name.partition("@")[0]
        if name not in self._known:
            if len(self._known) >= self._limit:
                return OTHER
            self._known.add(name)
        return name


class Metrics:
    """Counters, gauges and histograms of this process.

    max_masks: distinct values of the `mask` label.
    """

    def __init__(self, max_masks: int, registry: CollectorRegistry = REGISTRY) -> None:
        self._labels = MaskLabels(max_masks)
        self.requests = Counter(
            "bmt_requests",
            "Requests to the engine by mask and outcome.",
            ["mask", "outcome"],
            registry=registry,
        )
        self.tokens = Counter(
            "bmt_tokens",
            "Tokens by mask and kind: of prompts, of those cached, of completions.",
            ["mask", "kind"],
            registry=registry,
        )
        self.drafts = Counter(
            "bmt_draft_tokens",
            "Tokens of speculative decoding by mask: drafted, and accepted of them.",
            ["mask", "kind"],
            registry=registry,
        )
        self.ttft = Histogram(
            "bmt_time_to_first_token_seconds",
            "Time to first token by mask.",
            ["mask"],
            buckets=_TTFT_BUCKETS,
            registry=registry,
        )
        self.errors = Counter(
            "bmt_request_errors",
            "Requests that this server answered with an error of its own, by error code.",
            ["code"],
            registry=registry,
        )
        self.http_requests = Counter(
            "bmt_http_requests",
            "Requests that name a model, by route and outcome; those that no key sent included.",
            ["route", "outcome"],
            registry=registry,
        )
        self.cold_loads = Counter(
            "bmt_cold_loads",
            "Masks made ready on the local disk, by source.",
            ["source"],
            registry=registry,
        )
        self.cold_seconds = Histogram(
            "bmt_cold_load_seconds",
            "Time to make a mask ready on the local disk, by source.",
            ["source"],
            buckets=_LOAD_BUCKETS,
            registry=registry,
        )
        self.batch_lines = Counter(
            "bmt_batch_lines",
            "Lines of batches by outcome: completed, failed (answered with an error), and those "
            "that the batch's end left without an answer, by that: expired, cancelled.",
            ["outcome"],
            registry=registry,
        )
        self.uploads = Counter("bmt_uploads", "Uploads by outcome.", ["outcome"], registry=registry)
        self.expired = Counter(
            "bmt_masks_expired",
            "Masks of training runs that this process removed after they expired.",
            registry=registry,
        )
        self.usage_lost = Counter(
            "bmt_usage_lost",
            "Requests and tokens that are missing in GET /v1/usage: too many waited for the "
            "registry.",
            registry=registry,
        )
        self.registry_up = Gauge(
            "bmt_registry_up",
            "1 while the registry answers every API process.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.budgets_enforced = Gauge(
            "bmt_budgets_enforced",
            "1 while limits of keys and tenants are enforced over all servers, in every API "
            "process.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.holds = Gauge(
            "bmt_mask_holds",
            "Holds on masks, one by each response and one by each request in the engine.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._registry = registry
        self._registered: tuple[Collector, ...] = (
            self.requests,
            self.tokens,
            self.drafts,
            self.ttft,
            self.errors,
            self.http_requests,
            self.cold_loads,
            self.cold_seconds,
            self.batch_lines,
            self.uploads,
            self.expired,
            self.usage_lost,
            self.registry_up,
            self.budgets_enforced,
            self.holds,
        )

    def request_finished(
        self,
        mask: str | None,
        *,
        outcome: str,
        prompt_tokens: int,
        completion_tokens: int,
        ttft_s: float | None,
        cached_tokens: int = 0,
        drafted: int = 0,
        accepted: int = 0,
    ) -> None:
        """Count a request that left the engine. mask: internal name, None for the base model.

        cached_tokens: those of the prompt that the prefix cache had. drafted and accepted: its
        tokens of speculative decoding.
        """
        label = self._labels.label(mask)
        self.requests.labels(label, outcome).inc()
        self.tokens.labels(label, "prompt").inc(prompt_tokens)
        self.tokens.labels(label, "cached").inc(cached_tokens)
        self.tokens.labels(label, "completion").inc(completion_tokens)
        if drafted:
            self.drafts.labels(label, "drafted").inc(drafted)
            self.drafts.labels(label, "accepted").inc(accepted)
        if ttft_s is not None:
            self.ttft.labels(label).observe(ttft_s)

    def http_request(self, route: str, status: int) -> None:
        """Count a request by its response's status; 0: the client left before there was one."""
        outcome = "server_error"
        if status < 500:
            outcome = "client_error" if status >= 400 else "ok" if status else "cancelled"
        self.http_requests.labels(route, outcome).inc()

    def cold_load(self, source: str, seconds: float) -> None:
        """Count a mask that was made ready from `disk` or `registry`."""
        self.cold_loads.labels(source).inc()
        self.cold_seconds.labels(source).observe(seconds)

    def close(self) -> None:
        """Unregister all metrics: another server may start in this process."""
        for collector in self._registered:
            self._registry.unregister(collector)
