"""Real vLLM: base restored, no leaks between masks, stock LoRA unaffected."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import bmt_core
import pytest
from bmt_server.ipc.stats_files import TurnStats, WorkerStats

from tests.support.engines import PROMPTS, run_engine
from tests.support.masks import random_mask_of

pytestmark = pytest.mark.engine


def saved(model: Path, folder: Path, seeds, sparsity: float) -> list[str]:
    files = []
    for seed in seeds:
        path = folder / f"m{seed}.bmt"
        bmt_core.save(random_mask_of(model, seed, sparsity), path)
        files.append(str(path))
    return files


@pytest.mark.slow
def test_the_base_is_bit_identical_after_a_thousand_switches(smol, tmp_path):
    stats = tmp_path / "stats"
    stats.mkdir()
    masks = saved(smol, tmp_path, range(8), 0.004)
    job = {"model": str(smol), "masks": masks, "stats": str(stats), "switches": 1000}
    out = run_engine("switches.py", job, tmp_path)
    assert out["switches"] >= 1000
    assert sum("gate_up_proj" in name for name in out["before"][0]) == 30
    assert out["masked"] != out["before"], "a mask must change the checksum"
    assert out["after"] == out["before"]
    assert out["base"] == out["before"], "checksums that vLLM computes are those of the base"
    # A reload of the same checkpoint while a mask is in place, and a program that writes weights.
    assert out["reloaded"] == out["restored"] == out["before"]
    assert out["masked_again"] == out["masked"]
    assert "replaced (by a function that had the model)" in out["refused"]


def distance(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> float:
    """Largest |Δ log p| over the tokens of two outputs; infinite if the tokens differ."""
    if [x["tokens"] for x in a] != [x["tokens"] for x in b]:
        return float("inf")
    pairs = [zip(x["logp"], y["logp"], strict=True) for x, y in zip(a, b, strict=True)]
    return max(abs(p - q) for pair in pairs for p, q in pair)


@pytest.mark.found
@pytest.mark.parametrize("mode", ["delta", pytest.param("scatter", marks=pytest.mark.operate)])
def test_warm_prefix_cache_does_not_leak_between_masks(smol, tmp_path, mode):
    """The same prompts under alternating masks with a warm cache: each output is its mask's.

    Compares log-probabilities, because greedy tokens of two masks may be equal.
    """
    files = saved(smol, tmp_path, range(3), 0.02)
    # Longer than a cache block (128 tokens).
    long = [". ".join(PROMPTS[i::3]) + f". {PROMPTS[i]}" for i in (0, 1)]
    who = [files[0], files[1], None, files[2]]

    def part(mask, cold):
        return {"prompts": long, "masks": [mask] * 2, "generate": 8, "cold": cold}

    parts = [part(mask, True) for mask in who]
    parts += [part(mask, False) for _ in range(3) for mask in who]
    parts.append({"prompts": [p for p in long for _ in who], "masks": who * 2, "generate": 8})
    options = {"enforce_eager": True, "dtype": "float32", "enable_prefix_caching": True}
    job = {"model": str(smol), "mode": mode, "options": options, "masks": files, "parts": parts}
    answers = run_engine("answer.py", job, tmp_path)
    assert min(len(a["prompt"]) for a in answers[0]) > 128
    cold, warm, mixed = answers[:4], answers[4:-1], answers[-1]
    apart = min(distance(a, b) for a, b in itertools.combinations(cold, 2))
    assert apart > 0.02, "the masks must have distinguishable outputs"
    for index, answer in enumerate(warm):
        assert distance(answer, cold[index % 4]) < 1e-3
    for m in range(4):
        assert distance(mixed[m::4], cold[m]) < 1e-3


@pytest.mark.slow
def test_scatter_takes_turns_and_bounds_waits(smol, tmp_path):
    """A busy mask, three others and the base at once: outputs, no mixed step, bounded waits."""
    files = saved(smol, tmp_path, range(4), 0.05)
    who = [files[0]] * 12 + [*files[1:], None] * 2
    texts = PROMPTS[: len(who)]
    parts = [{"prompts": texts, "masks": [m] * len(who), "generate": 24} for m in (*files, None)]
    parts.append({"prompts": texts, "masks": who, "generate": 24})
    stats = tmp_path / "stats"
    stats.mkdir()
    options = {"enforce_eager": True, "dtype": "float32", "enable_prefix_caching": False}
    options |= {"scatter_max_wait_s": 2.0, "stats_dir": str(stats)}
    job = {"model": str(smol), "mode": "scatter", "options": options, "masks": files}
    *alone, mixed = run_engine("answer.py", {**job, "parts": parts}, tmp_path)
    by_mask = dict(zip((*files, None), alone, strict=True))
    for i, mask in enumerate(who):
        assert mixed[i]["tokens"] == by_mask[mask][i]["tokens"]
    (turns,), (worker,) = TurnStats.read_all(stats), WorkerStats.read_all(stats)
    assert turns.turns > len(by_mask), "the masks of the last part took turns"
    assert sum(turns.waits) == turns.turns
    assert worker.steps_corrected == 0
    # Twice the bound, because other processes may use the cores.
    assert 0 < turns.longest_wait_s < 4.0


@pytest.mark.operate
def test_stock_lora_is_unaffected(smol, tmp_path):
    """Plain vLLM with its own adapters, in an environment with this package installed."""
    out = run_engine("stock.py", {"model": str(smol), "folder": str(tmp_path)}, tmp_path)
    assert out["manager"] == "LRUCacheWorkerLoRAManager"
    assert out["patched"] == []
    assert out["lora"] != out["base"], "the adapter must have an effect"
    assert out["merged"] == out["lora"], "and the same effect as the merged checkpoint"
