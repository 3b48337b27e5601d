"""Parity on real vLLM: a served mask gives the outputs of the masked checkpoint.

Engines run one at a time, each in its own process; module fixtures share results among tests.
Prefix caching is off for log-probabilities of prompts, which vLLM does not have for cached blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import bmt_core
import numpy as np
import pytest
from bmt_server.vllm_integration.cpu_environment import lacks_16_bits
from bmt_server.worker.kernels.selection import KERNEL_ENV as KERNEL
from bmt_trainer.masking.apply import write_checkpoint

from tests.support.engines import PROMPTS, run_engine
from tests.support.masks import random_mask_of

pytestmark = pytest.mark.engine

TOKENS = 64
OPTIONS = {"enable_prefix_caching": False}
EAGER = {**OPTIONS, "enforce_eager": True}
MASKS = 16
# Three ranks: SmolLM2 has 9 heads and 3 KV heads. Their threads must not all bind to one core.
THREE = {**EAGER, "dtype": "float32", "tensor_parallel_size": 3}
SLOW, OPERATE = pytest.mark.slow, pytest.mark.operate
# Kernels of mode delta: compiled for this CPU, or plain torch.
KERNELS = ("native", "portable")
EACH_KERNEL = ("native", pytest.param("portable", marks=OPERATE))
# Engine core in the child's main process, so that all prompts arrive before the first step.
# Otherwise batches depend on timing, and a product's last bit may depend on its number of rows.
IN_STEP = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# `bmt-server` would choose float32 there; with emulated bf16 these tests take ten minutes.
BF16 = pytest.mark.skipif(lacks_16_bits() != "", reason="this CPU has no instructions for bf16")
UNBOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def files(smol, tmp_path_factory) -> list[str]:
    """Sixteen masks of about SFT's sparsity."""
    folder = tmp_path_factory.mktemp("masks")
    paths = [folder / f"m{seed}.bmt" for seed in range(MASKS)]
    for seed, path in enumerate(paths):
        bmt_core.save(random_mask_of(smol, seed), path)
    return [str(p) for p in paths]


@pytest.fixture(scope="module")
def checkpoint(smol, files, tmp_path_factory) -> Path:
    """The first mask's zeros, written into a checkpoint."""
    path = tmp_path_factory.mktemp("masked") / "checkpoint"
    write_checkpoint(bmt_core.load(files[0]), smol, path)
    return path


Run = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """run(model, mode, options, parts, masks): one engine's output for each part."""

    def one(model, mode, options, parts, masks=(), env=None):
        job = {"model": str(model), "mode": mode, "options": options, "parts": parts}
        folder = tmp_path_factory.mktemp("engine")
        return run_engine("answer.py", {**job, "masks": list(masks)}, folder, env)

    return one


def generate(mask: str | None = None) -> dict[str, Any]:
    return {"prompts": PROMPTS, "masks": [mask] * len(PROMPTS), "generate": TOKENS}


def score(sequences: list[list[int]], masks: list[str] | str | None = None) -> dict[str, Any]:
    chosen = masks if isinstance(masks, list) else [masks] * len(sequences)
    return {"prompts": sequences, "masks": chosen}


def tokens(answers) -> list[list[int]]:
    return [a["tokens"] for a in answers]


def flat(logprobs) -> np.ndarray:
    return np.concatenate([np.asarray(x) for x in logprobs])


@pytest.fixture(scope="module")
def unpacked(checkpoint, run) -> list[Any]:
    """The masked checkpoint's greedy outputs, on the GEMM path of mode scatter, eager."""
    return run(checkpoint, "scatter", EAGER, [generate()], env=IN_STEP)[0]


@pytest.fixture(scope="module")
def sequences(unpacked) -> list[list[int]]:
    """Prompts with the masked checkpoint's continuations, for scoring."""
    return [a["prompt"] + a["tokens"] for a in unpacked]


@pytest.fixture(scope="module")
def exact(checkpoint, run, sequences) -> np.ndarray:
    """log p of the checkpoint in float32, by stock vLLM."""
    return flat(run(checkpoint, None, {**EAGER, "dtype": "float32"}, [score(sequences)])[0])


@pytest.mark.parametrize(
    "options", [EAGER, pytest.param(OPTIONS, marks=SLOW)], ids=["eager", "compiled"]
)
def test_scatter_is_the_masked_checkpoint_token_for_token(
    smol, files, checkpoint, run, options, request
):
    """64 prompts x 64 greedy tokens, same flags, batch and GEMM path."""
    if options is EAGER:
        theirs = request.getfixturevalue("unpacked")
    else:
        theirs = run(checkpoint, "scatter", options, [generate()], env=IN_STEP)[0]
    parts = [generate(files[0]), generate()]
    ours, base = run(smol, "scatter", options, parts, files[:1], IN_STEP)
    assert tokens(ours) == tokens(theirs)
    changed = sum(a != b for a, b in zip(tokens(ours), tokens(base), strict=True))
    assert changed > len(PROMPTS) // 2, "the mask must change most outputs"


@pytest.fixture(scope="module")
def delta(smol, files, run, sequences) -> Callable[[str, str], list[Any]]:
    """delta(kernel, dtype): outputs of one eager engine in mode delta for all parts used below."""
    texts = sequences[:MASKS]
    parts = [score(sequences, files[0]), score(sequences), score(texts, files), score(texts)]
    parts += [score([t], f) for t, f in zip(texts, files, strict=True)]
    parts += [score([t]) for t in texts]

    @cache
    def outputs(kernel: str, dtype: str) -> list[Any]:
        return run(smol, "delta", {**EAGER, "dtype": dtype}, parts, files, {KERNEL: kernel})

    return outputs


@pytest.mark.parametrize("kernel", EACH_KERNEL)
@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=SLOW)], ids=["eager", "compiled"]
)
def test_delta_in_float32_differs_by_rounding_alone(
    smol, files, run, sequences, exact, delta, compiled, kernel
):
    if compiled:
        options, part = {**OPTIONS, "dtype": "float32"}, score(sequences, files[0])
        ours = flat(run(smol, "delta", options, [part], files[:1], {KERNEL: kernel})[0])
    else:
        ours = flat(delta(kernel, "float32")[0])
    worst = float(np.abs(ours - exact).max())
    print(f"\ndelta float32, {kernel}: max |Δ log p| = {worst:.2e} over {ours.size} tokens")
    assert worst <= 1e-3


@pytest.fixture(scope="module")
def rounded(checkpoint, run, sequences) -> np.ndarray:
    """log p of the checkpoint in bf16, by stock vLLM."""
    return flat(run(checkpoint, None, {**EAGER, "dtype": "bfloat16"}, [score(sequences)])[0])


@SLOW
@BF16
@pytest.mark.parametrize("kernel", EACH_KERNEL)
def test_delta_in_bf16_is_within_the_error_of_bf16(exact, rounded, delta, kernel):
    theirs = rounded
    ours, base = (flat(x) for x in delta(kernel, "bfloat16")[:2])
    difference, noise = np.abs(ours - theirs).mean(), np.abs(theirs - exact).mean()
    effect = np.abs(base - theirs).mean()
    print(
        f"\ndelta bf16, {kernel}: mean |Δ log p| {difference:.4f}; bf16's own {noise:.4f} "
        f"(ratio {difference / noise:.2f}); the mask's effect {effect:.3f}"
    )
    assert difference <= 1.5 * noise
    assert effect > 2 * difference, "the mask's effect must stand out from the noise"


@pytest.mark.parametrize("kernel", EACH_KERNEL)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=[BF16, SLOW])])
def test_sixteen_masks_in_one_batch_match_each_alone(delta, dtype, kernel):
    _, _, mixed, together, *singles = delta(kernel, dtype)
    alone, single = singles[:MASKS], singles[MASKS:]
    differences = np.abs(flat(mixed) - flat(a[0] for a in alone))
    # The base's GEMM rounds differently at other batch sizes, with or without masks.
    noise = np.abs(flat(together) - flat(s[0] for s in single))
    print(
        f"\n16 masks, {dtype}, {kernel}: max {differences.max():.2e}, "
        f"mean {differences.mean():.2e}; "
        f"the base in a batch: max {noise.max():.2e}, mean {noise.mean():.2e}"
    )
    assert np.abs(flat(mixed) - flat(together)).mean() > 0.02, "masks must have an effect"
    if dtype == "float32":
        assert differences.max() <= 1e-3
    else:
        assert differences.mean() <= 1.5 * noise.mean()


@SLOW
@pytest.mark.parametrize(
    ("mode", "kernel"),
    [
        ("delta", "native"),
        pytest.param("delta", "portable", marks=OPERATE),
        pytest.param("scatter", "native", marks=OPERATE),
    ],
)
def test_three_ranks_agree_with_the_masked_checkpoint(
    smol, files, run, sequences, exact, mode, kernel
):
    part, environment = score(sequences[:8], files[0]), {**UNBOUND, KERNEL: kernel}
    ours = flat(run(smol, mode, THREE, [part], files[:1], environment)[0])
    worst = float(np.abs(ours - exact[: ours.size]).max())
    print(f"\nTP 3 float32 {mode}, {kernel}: max |Δ log p| = {worst:.2e} over {ours.size} tokens")
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


@OPERATE
@BF16
def test_two_ranks_in_bf16_are_within_the_error_of_bf16(tiny, run, tmp_path):
    mask = str(tmp_path / "tiny.bmt")
    bmt_core.save(random_mask_of(tiny, 0, sparsity=0.1), mask)
    masked = tmp_path / "masked"
    write_checkpoint(bmt_core.load(mask), tiny, masked)
    texts = [list(range(100 + i, 140 + i)) for i in range(8)]
    two = {**EAGER, "dtype": "bfloat16", "tensor_parallel_size": 2}
    exact = flat(run(masked, None, {**EAGER, "dtype": "float32"}, [score(texts)])[0])
    theirs = flat(run(masked, None, two, [score(texts)], env=UNBOUND)[0])
    noise = np.abs(theirs - exact).mean()
    for mode, kernel in (*itertools.product(["delta"], KERNELS), ("scatter", "native")):
        parts, environment = [score(texts, mask), score(texts)], {**UNBOUND, KERNEL: kernel}
        ours, base = (flat(x) for x in run(tiny, mode, two, parts, [mask], environment))
        difference = np.abs(ours - theirs).mean()
        print(
            f"\nTP 2 bf16 {mode}, {kernel}: mean |Δ log p| {difference:.2e}, bf16's own {noise:.2e}"
        )
        assert difference <= 1.5 * noise
        assert np.abs(base - theirs).mean() > 4 * noise, "the mask must have an effect"
