"""Real vLLM: the base comes back, nothing leaks between masks, and ranks agree with one worker."""

from __future__ import annotations

import json
from pathlib import Path

import bmt_core
import numpy as np
import pytest
from bmt_trainer.apply import write_checkpoint

from .engines import PROMPTS, random_mask, run_engine

pytestmark = pytest.mark.engine


def saved(model: Path, folder: Path, seeds, density: float = 0.004) -> list[str]:
    files = []
    for seed in seeds:
        path = folder / f"m{seed}.bmt"
        bmt_core.save(random_mask(model, seed, density), path)
        files.append(str(path))
    return files


def test_the_base_is_bit_identical_after_a_thousand_switches(smol, tmp_path):
    stats = tmp_path / "stats"
    stats.mkdir()
    out = run_engine(
        "switches.py",
        {
            "model": str(smol),
            "masks": saved(smol, tmp_path, range(8)),
            "stats": str(stats),
            "switches": 1000,
        },
        tmp_path,
    )
    assert out["switches"] >= 1000
    gates = [n for n in out["before"][0] if "gate_up_proj" in n]
    assert len(gates) == 30
    assert out["masked"] != out["before"], "the checksum must see a mask"
    assert out["after"] == out["before"]


@pytest.mark.parametrize("mode", ["delta", "scatter"])
def test_warm_prefix_cache_does_not_leak_between_masks(smol, tmp_path, mode):
    """The same prompts under alternating masks, cache warm: each answer is its own mask's."""
    files = saved(smol, tmp_path, range(3), density=0.01)
    long = [" ".join([p] * 12) for p in PROMPTS[:4]]  # longer than a cache block
    alternating = [files[0], files[1], None, files[2]]
    parts = []
    for _ in range(3):
        for mask in alternating:
            parts.append({"prompts": long, "masks": [mask] * 4, "generate": 8})
    parts.append(
        {"prompts": [p for p in long for _ in alternating], "masks": alternating * 4, "generate": 8}
    )
    options = {"enforce_eager": True, "dtype": "float32", "enable_prefix_caching": True}
    job = {"model": str(smol), "mode": mode, "options": options, "masks": files, "parts": parts}
    *rounds, mixed = [[x["tokens"] for x in part] for part in run_engine("answer.py", job, tmp_path)]
    cold = {**job, "options": {**options, "enable_prefix_caching": False}, "parts": parts[:4]}
    expected = [[x["tokens"] for x in part] for part in run_engine("answer.py", cold, tmp_path)]
    assert len({json.dumps(e) for e in expected}) == 4, "masks must differ to be told apart"
    for index, answers in enumerate(rounds):
        assert answers == expected[index % 4]
    for p in range(4):
        for m in range(4):
            assert mixed[p * 4 + m] == expected[m][p]


NOBIND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("mode", ["delta", "scatter"])
def test_three_ranks_agree_with_the_masked_checkpoint(smol, tmp_path, mode):
    """float32: SmolLM2 has 9 heads and 3 KV heads, so 3 ranks are what divides them."""
    files = saved(smol, tmp_path, [0])
    masked = tmp_path / "masked"
    write_checkpoint(bmt_core.load(files[0]), smol, masked)
    options = {"enforce_eager": True, "dtype": "float32", "enable_prefix_caching": False}
    parts = [{"prompts": PROMPTS[:8], "generate": 16}]
    checkpoint = {"model": str(masked), "options": options, "parts": parts}
    reference = run_engine("answer.py", checkpoint, tmp_path)[0]
    tokens = [x["prompt"] + x["tokens"] for x in reference]
    checkpoint["parts"] = [{"prompts": tokens}]
    theirs = run_engine("answer.py", checkpoint, tmp_path)[0]
    job = {
        "model": str(smol),
        "mode": mode,
        "options": {**options, "tensor_parallel_size": 3},
        "masks": files,
        "parts": [{"prompts": tokens, "masks": files * 8}],
    }
    ours = run_engine("answer.py", job, tmp_path, NOBIND)[0]
    worst = np.abs(np.concatenate(ours) - np.concatenate(theirs)).max()
    print(f"\nTP 3 float32 {mode}: max |Δ log p| = {worst:.2e}")
    assert worst <= 1e-3


@pytest.fixture(scope="module")
def tiny(smol, tmp_path_factory) -> Path:
    """A random two-layer Llama whose heads divide by 2, with the real tokenizer."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for file in smol.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def test_two_ranks_in_bf16_are_as_near_as_two_ranks_of_the_masked_checkpoint(tiny, tmp_path):
    files = saved(tiny, tmp_path, [0], density=0.1)
    masked = tmp_path / "masked"
    write_checkpoint(bmt_core.load(files[0]), tiny, masked)
    options = {
        "enforce_eager": True,
        "dtype": "bfloat16",
        "enable_prefix_caching": False,
        "tensor_parallel_size": 2,
    }
    tokens = [list(range(100 + i, 140 + i)) for i in range(8)]

    def score(model, mode=None, dtype="bfloat16", masks=None, ranks=2):
        job = {
            "model": str(model),
            "mode": mode,
            "options": {**options, "dtype": dtype, "tensor_parallel_size": ranks},
            "masks": masks or [],
            "parts": [{"prompts": tokens, "masks": [masks[0] if masks else None] * 8}],
        }
        return np.concatenate(run_engine("answer.py", job, tmp_path, NOBIND)[0])

    theirs, exact = score(masked), score(masked, dtype="float32", ranks=1)
    noise = np.abs(theirs - exact).mean()
    for mode in ("delta", "scatter"):
        difference = np.abs(score(tiny, mode, masks=files) - theirs).mean()
        print(f"\nTP 2 bf16 {mode}: mean |Δ log p| {difference:.2e}, bf16's own {noise:.2e}")
        assert difference <= 1.5 * noise
    assert np.abs(score(tiny) - theirs).mean() > 4 * noise
