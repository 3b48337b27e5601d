"""Speculative decoding beside masks: the same answers in fewer steps.

n-gram drafts of the prompt and the answer so far, verified by the model under each request's mask.
In float32, because a step with drafts has other matrix shapes, and in bf16 that alone changes the
last bit of a product. All prompts arrive before the first step.
"""

from __future__ import annotations

from pathlib import Path

import bmt_core
import numpy as np
import pytest

from tests.support.engines import PROMPTS, run_engine
from tests.support.masks import random_mask_of
from tests.support.scenarios.figures import Figures, scaled

pytestmark = [pytest.mark.operate, pytest.mark.timeout(2 * 3600)]

TOKENS = 64
# At this share of zeros, random masks answer otherwise than the base.
SPARSITY = 0.05
OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 256,
    "max_num_seqs": 64,
    "enable_prefix_caching": False,
}
NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 4,
    "prompt_lookup_max": 4,
    "prompt_lookup_min": 2,
}
TIMEOUT_S = 3000


@pytest.mark.parametrize(
    ("mode", "prompts", "masks"), [("delta", scaled(64, 8), 16), ("scatter", scaled(16, 4), 4)]
)
def test_speculation(smol, tmp_path, mode: str, prompts: int, masks: int):
    """Every token of every mask is the one without speculation."""
    files = [tmp_path / f"m{seed}.bmt" for seed in range(masks)]
    for seed, path in enumerate(files):
        bmt_core.save(random_mask_of(smol, seed, SPARSITY), path)
    bare = answers(smol, mode, prompts, files, tmp_path, {})
    drafted = answers(smol, mode, prompts, files, tmp_path, {"speculative_config": NGRAM})
    tokens = np.array(bare["tokens"]).reshape(masks + 1, prompts, TOKENS)
    same = np.array(drafted["tokens"]).reshape(tokens.shape) == tokens
    proposed = np.array(drafted["drafted"]).reshape(masks + 1, prompts).sum(1)
    accepted = np.array(drafted["accepted"]).reshape(masks + 1, prompts).sum(1)
    acceptance = [float(share) for share in accepted / proposed]
    figures = Figures(f"speculation_{mode}", "speculation")
    size = f"{prompts} prompts x {TOKENS} tokens x {masks} masks, n-gram, 4 drafts, float32"
    record = {"size": size}
    figures.record("equal_tokens", same.mean(), "share", "== 1", **record)
    differs = (tokens[1:] != tokens[0]).mean()
    figures.record("differs_from_base", differs, "share", ">= 0.5", **record)
    speedup = bare["seconds"] / drafted["seconds"]
    figures.record("speedup", speedup, "times", **record, note="SmolLM2-135M on a CPU, eager")
    figures.record("acceptance_base", acceptance[0], "share", **record)
    figures.record("acceptance_masks", float(np.mean(acceptance[1:])), "share", ">= 0.01", **record)
    figures.record("acceptance_least", min(acceptance[1:]), "share", **record)
    figures.record("acceptance_most", max(acceptance[1:]), "share", **record)
    figures.end()


def answers(model: Path, mode: str, prompts: int, files: list[Path], folder: Path, more: dict):
    job = {
        "model": str(model),
        "mode": mode,
        "options": {**OPTIONS, **more},
        "prompts": PROMPTS[:prompts],
        "masks": [str(path) for path in files],
        "tokens": TOKENS,
    }
    env = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return run_engine("speculate.py", job, folder, env, timeout_s=TIMEOUT_S)
