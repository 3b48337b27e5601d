"""Prometheus metrics by version, of aliases that are split: main version, canary and shadow."""

from __future__ import annotations

import logging

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.registry import Collector

from bmt_server.api.canary.arm import Arm
from bmt_server.api.metrics.counters import OTHER

logger = logging.getLogger("vllm.bmt_server")

_LABELS = ["alias", "version", "role"]
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
DROPPED = "dropped"


class VersionMetrics:
    """Figures of each arm of a split, by its alias, version and role.

    max_arms: distinct arms; later ones are counted together, as `other`. A label value lives as
    long as the process, and each canary is a further one.
    """

    def __init__(self, max_arms: int, registry: CollectorRegistry = REGISTRY) -> None:
        self._max_arms = max_arms
        self._known: set[Arm] = set()
        self._warned = False
        self._registry = registry
        self.requests = Counter(
            "bmt_version_requests",
            "Requests of aliases with a canary or a shadow, by version and outcome; copies for "
            "shadows too, of which some are dropped.",
            [*_LABELS, "outcome"],
            registry=registry,
        )
        self.seconds = Histogram(
            "bmt_version_request_seconds",
            "Time from a request of such an alias to the end of its answer, by version.",
            _LABELS,
            buckets=_SECONDS,
            registry=registry,
        )
        self.ttft = Histogram(
            "bmt_version_time_to_first_token_seconds",
            "Time to first token of requests of such aliases, by version.",
            _LABELS,
            buckets=_TTFT_S,
            registry=registry,
        )
        self.tokens = Counter(
            "bmt_version_tokens",
            "Tokens of requests of such aliases, by version and kind.",
            [*_LABELS, "kind"],
            registry=registry,
        )
        self._registered: tuple[Collector, ...] = (
            self.requests,
            self.seconds,
            self.ttft,
            self.tokens,
        )

    def answered(
        self, arm: Arm, status: int, seconds: float | None, *, failed: bool = False
    ) -> None:
        """Count an answer. status: 0 if the client left before it. failed: after it had begun.

        seconds: None if no client waited for it.
        """
        outcome = "server_error"
        if 400 <= status < 500:
            outcome = "client_error"
        elif status < 400 and not failed:
            outcome = "ok" if status else "cancelled"
        labels = self._labels(arm)
        self.requests.labels(*labels, outcome).inc()
        if outcome == "ok" and seconds is not None:
            self.seconds.labels(*labels).observe(seconds)

    def dropped(self, arm: Arm) -> None:
        """Count a copy that was not sent."""
        self.requests.labels(*self._labels(arm), DROPPED).inc()

    def engine_finished(
        self, arm: Arm, prompt_tokens: int, completion_tokens: int, ttft_s: float | None
    ) -> None:
        """Count a call of the engine."""
        labels = self._labels(arm)
        self.tokens.labels(*labels, "prompt").inc(prompt_tokens)
        self.tokens.labels(*labels, "completion").inc(completion_tokens)
        if ttft_s is not None:
            self.ttft.labels(*labels).observe(ttft_s)

    def _labels(self, arm: Arm) -> tuple[str, str, str]:
        if arm not in self._known:
            if len(self._known) >= self._max_arms:
                if not self._warned:
                    self._warned = True
                    logger.warning(
                        "More than %d versions of split aliases were served since the start; "
                        "/metrics counts further ones, such as %s of %s, as `%s`.",
                        self._max_arms,
                        arm.version,
                        arm.alias,
                        OTHER,
                    )
                return OTHER, OTHER, arm.role
            self._known.add(arm)
        return arm.alias, arm.version, arm.role

    def close(self) -> None:
        """Unregister all metrics: another server may start in this process."""
        for collector in self._registered:
            self._registry.unregister(collector)
