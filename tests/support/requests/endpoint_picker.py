"""Reading of /metrics by the endpoint picker of the Gateway API Inference Extension, in our words.

After llm-d/llm-d-router 0.10 (its `core-metrics-extractor` and `lora-affinity-scorer`, read in
November 2026).
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Endpoint:
    """A pod as the picker sees it. kv_usage: share of the KV cache, 0 to 1."""

    waiting_requests: int
    running_requests: int
    kv_usage: float
    block_size: int
    blocks: int
    active: frozenset[str]
    waiting: frozenset[str]
    most_active: int

    @classmethod
    def of(cls, metrics: str) -> Endpoint:
        """Endpoint of a scrape. Raises KeyError for a missing family, IndexError for an empty one.

        Of several series of a family the newest is read, as the picker does for adapters.
        """
        found = {f.name: f.samples for f in text_string_to_metric_families(metrics)}
        queue, running, usage = (
            found[f"vllm:{name}"][0].value
            for name in ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc")
        )
        cache = found["vllm:cache_config_info"][0].labels
        adapters = max(found["vllm:lora_requests_info"], key=lambda sample: sample.value).labels
        return cls(
            int(queue),
            int(running),
            usage,
            int(cache["block_size"]),
            int(cache["num_gpu_blocks"]),
            _names(adapters["running_lora_adapters"]),
            _names(adapters["waiting_lora_adapters"]),
            int(adapters["max_lora"]),
        )

    def affinity(self, model: str) -> float:
        """Score of the pod for a request's `model`: 1 loaded, 0.8 room, 0.6 waiting, 0 full."""
        if model in self.active:
            return 1.0
        if len(self.active) + len(self.waiting) < self.most_active:
            return 0.8
        return 0.6 if model in self.waiting else 0.0


def _names(listed: str) -> frozenset[str]:
    return frozenset(name.strip() for name in listed.split(",") if name.strip())
