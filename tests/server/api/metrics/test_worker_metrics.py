"""Metrics of workers and of loaded masks on /metrics."""

import time
from collections.abc import Iterable

import pytest
from bmt_server.api.metrics.collectors import StatsCollectors
from bmt_server.ipc.stats_files import MAX_NAMED, TrainingStats, WaitingMasks, WorkerStats
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from tests.support.requests.endpoint_picker import Endpoint


def text(folder, stats: WorkerStats) -> str:
    stats.write(folder, 1)
    registry = CollectorRegistry()
    StatsCollectors(registry, str(folder), list)
    return generate_latest(registry).decode()


def test_auto_exports_the_live_weights_and_the_reason(tmp_path):
    stats = WorkerStats(
        mode="auto",
        steps_corrected=7,
        steps_paying=5,
        switches=2,
        reason="paying",
        switch_paid=0.25,
    )
    exported = text(tmp_path, stats)
    assert 'bmt_weights_masked{rank="0"} 0.0' in exported
    assert 'bmt_auto_reason{rank="0",reason="paying"} 1.0' in exported
    assert 'bmt_auto_reason{rank="0",reason="in_place"} 0.0' in exported
    assert 'bmt_auto_switch_paid{rank="0"} 0.25' in exported
    assert 'bmt_auto_paying_steps_total{rank="0"} 5.0' in exported
    assert 'bmt_switches_total{rank="0"} 2.0' in exported
    stats.in_weights = "3f9c0a1b2c3d"
    assert 'bmt_weights_masked{rank="0"} 1.0' in text(tmp_path, stats)


def test_routers_see_loaded_masks_and_free_room(tmp_path):
    """Scores of the extension's load-state scorer: loaded 1, room 0.6, no room 0."""
    names = [f"m{i}@{i:012x}" for i in range(80)]
    stats = WorkerStats(
        resident=names, resident_masks=80, resident_bytes=80_000, capacity_bytes=100_000
    )
    stats.write(tmp_path, 1)
    waiting = WaitingMasks(time.time(), ["m3@000000000003"])
    waiting.write(tmp_path, 1)
    registry = CollectorRegistry()
    StatsCollectors(registry, str(tmp_path), lambda names: [n.partition("@")[0] for n in names])
    families = {f.name: f.samples for f in registry.collect()}
    loaded = {s.labels["adapter_name"] for s in families["vllm:lora_adapter_loaded"]}
    (count,) = families["vllm:num_gpu_loaded_lora_adapters"]
    (most,) = families["vllm:max_gpu_lora_adapters"]

    def score(model: str) -> float:
        return 1.0 if model in loaded else 0.6 if count.value < most.value else 0.0

    assert (count.value, most.value) == (80, 100)
    assert len(loaded) == 64, "series are bounded"
    (info,) = families["vllm:lora_requests_info"]
    assert info.labels["max_lora"] == str(64 + 1 + 20), "both lists, and room for 20 more"
    assert set(info.labels["running_lora_adapters"].split(",")) == loaded
    assert info.labels["waiting_lora_adapters"] == "m3"
    assert abs(info.value - time.time()) < 60, "routers take the newest series"
    assert score("m79") == 1.0  # most recently used
    assert score("never") == 0.6
    stats.capacity_bytes = 80_000
    stats.write(tmp_path, 1)
    (most,) = {f.name: f.samples for f in registry.collect()}["vllm:max_gpu_lora_adapters"]
    assert score("never") == 0.0


@pytest.mark.parametrize(
    ("resident", "fits", "wanted", "unknown"),
    [
        (10, 20, [], 0.8),  # 30 names of 10 masks: room for 10 more
        (20, 20, [], 0.0),
        (19, 20, ["new@000000000000"], 0.0),  # which takes the last place
        (18, 20, ["new@000000000000"], 0.8),
        (60, 200, [], 0.8),  # of 180 names, 64 are listed
        (200, 200, [], 0.0),
    ],
)
def test_an_endpoint_picker_finds_loaded_masks_and_room(tmp_path, resident, fits, wanted, unknown):
    """A mask answers to its name, its alias and its version, and the picker counts names."""
    names = [f"m{i}@{i:012x}" for i in range(resident)]
    stats = WorkerStats(
        resident=names[-MAX_NAMED:],
        resident_masks=resident,
        resident_bytes=resident * 1000,
        capacity_bytes=fits * 1000,
    )
    stats.write(tmp_path, 1)
    WaitingMasks(time.time(), wanted).write(tmp_path, 1)
    registry = CollectorRegistry()

    def public(internal: Iterable[str]) -> list[str]:
        return [
            name
            for one in internal
            for name in (one.partition("@")[0], one.partition("@")[0] + ":prod", one)
        ]

    StatsCollectors(registry, str(tmp_path), public)
    for name in ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc"):
        Gauge(f"vllm:{name}", "Of vLLM.", registry=registry).set(0)
    cache = Gauge("vllm:cache_config_info", "", ["block_size", "num_gpu_blocks"], registry=registry)
    cache.labels("16", "100").set(1)
    endpoint = Endpoint.of(generate_latest(registry).decode())
    newest = f"m{resident - 1}"
    for model in (newest, f"{newest}:prod", f"{newest}@{resident - 1:012x}"):
        assert endpoint.affinity(model) == 1.0
    assert endpoint.affinity("never") == unknown
    if wanted:
        assert endpoint.affinity("new:prod") == max(0.6, unknown)


def test_other_modes_have_no_reasons(tmp_path):
    assert "bmt_auto" not in text(tmp_path, WorkerStats(mode="delta"))


def test_the_state_of_a_training_worker_is_there_if_the_server_has_one(tmp_path):
    stats = WorkerStats()
    assert "bmt_training_worker" not in text(tmp_path, stats)
    TrainingStats(up=1, starts=3).write(tmp_path, 2)
    exported = text(tmp_path, stats)
    assert "bmt_training_worker_up 1.0" in exported
    assert "bmt_training_worker_starts_total 3.0" in exported
