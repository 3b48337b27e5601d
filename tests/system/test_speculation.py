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
from tests.support.tiny_model import save_tiny_llama

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
TIMEOUT_S = 1200


@pytest.fixture(scope="module")
def random_model(tmp_path_factory) -> Path:
    """A random Llama small enough for a thousand answers, whose masks answer otherwise."""
    return save_tiny_llama(
        tmp_path_factory.mktemp("random"),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.06,
        tie_word_embeddings=False,
    )


@pytest.mark.parametrize("mode", ["delta", "scatter"])
def test_speculation_of_a_random_model(random_model, tmp_path, mode: str):
    """Every token of 64 prompts under 16 masks and the base, corrected and in place."""
    compare(f"speculation_random_{mode}", random_model, mode, scaled(64, 8), 16, tmp_path)


def test_speculation_of_a_trained_model(smol, tmp_path):
    """SmolLM2-135M, whose text repeats itself as text does."""
    compare("speculation_smollm2", smol, "delta", scaled(8, 2), 16, tmp_path)


def compare(name: str, model: Path, mode: str, prompts: int, masks: int, folder: Path) -> None:
    """Run both engines and record their figures."""
    files = [folder / f"m{seed}.bmt" for seed in range(masks)]
    for seed, path in enumerate(files):
        bmt_core.save(random_mask_of(model, seed, SPARSITY), path)
    bare = answers(model, mode, prompts, files, folder, {})
    drafted = answers(model, mode, prompts, files, folder, {"speculative_config": NGRAM})
    shape = (masks + 1, prompts)
    tokens = np.array(bare["tokens"]).reshape(*shape, TOKENS)
    same = np.array(drafted["tokens"]).reshape(tokens.shape) == tokens
    proposed = np.array(drafted["drafted"]).reshape(shape).sum(1)
    acceptance = np.array(drafted["accepted"]).reshape(shape).sum(1) / proposed
    figures = Figures(name, "speculation")
    size = f"{prompts} prompts x {TOKENS} tokens x {masks} masks, n-gram, 4 drafts, float32"
    record = {"size": size}
    figures.record("equal_tokens", same.mean(), "share", "== 1", **record)
    differs = (tokens[1:] != tokens[0]).mean()
    figures.record("differs_from_base", differs, "share", ">= 0.5", **record)
    speedup = bare["seconds"] / drafted["seconds"]
    figures.record("speedup", speedup, "times", **record, note="on a CPU, eager")
    figures.record("acceptance_base", acceptance[0], "share", **record)
    figures.record("acceptance_masks", acceptance[1:].mean(), "share", ">= 0.01", **record)
    figures.record("acceptance_least", acceptance[1:].min(), "share", **record)
    figures.record("acceptance_most", acceptance[1:].max(), "share", **record)
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
