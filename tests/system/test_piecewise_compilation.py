"""vLLM's compilation for GPUs beside masks: layer by layer, kept for the next start.

On a CPU, which stands in for a GPU as far as the compiler goes: what is compiled, how often, what a
second start loads, and that answers are those of an engine that compiles nothing.
"""

from __future__ import annotations

from pathlib import Path

import bmt_core
import pytest

from tests.support.engines import PROMPTS, run_engine
from tests.support.masks import random_mask_of
from tests.support.tiny_model import save_tiny_llama

pytestmark = [pytest.mark.operate, pytest.mark.timeout(3600)]

LAYERS = 4
# One piece between attentions, and one at each end; those of inner layers are the same code.
PIECES, DISTINCT = LAYERS + 1, 3
OPTIONS = {
    "dtype": "float32",
    "max_model_len": 128,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 256,
    "enable_prefix_caching": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_llama(
        tmp_path_factory.mktemp("model"),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        max_position_embeddings=256,
        initializer_range=0.15,
        tie_word_embeddings=False,
    )


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """run(cache, form, **job): one engine's tokens and counts, with a folder for compiled code."""
    folder = tmp_path_factory.mktemp("run")
    files = [folder / f"m{seed}.bmt" for seed in range(3)]
    for seed, path in enumerate(files):
        bmt_core.save(random_mask_of(model, seed, 0.05), path)

    def run(cache: str, form: str = "object", masks: bool = True, piecewise: bool = True):
        job = {
            "model": str(model),
            "masks": [str(path) for path in files] if masks else [],
            "options": OPTIONS,
            "prompts": PROMPTS[:4],
            "tokens": 16,
            "piecewise": piecewise,
            "form": form,
        }
        env = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # vLLM's default on GPUs.
            "VLLM_USE_AOT_COMPILE": "1",
            "VLLM_CACHE_ROOT": str(folder / cache),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / cache / "inductor"),
        }
        return run_engine("piecewise.py", job, folder, env)

    return run


def test_layers_share_their_code_and_a_second_start_loads_it(run):
    eager = run("eager", piecewise=False)["tokens"]
    bare = run("bare", masks=False)
    assert bare["tokens"] == eager[: len(bare["tokens"])]
    count = len(bare["tokens"])
    answers = [eager[at : at + count] for at in range(0, len(eager), count)]
    assert len({str(a) for a in answers}) == len(answers), "masks answer otherwise than the base"
    first = run("masks")
    assert first["tokens"] == eager
    assert (bare["pieces"], bare["compiled"]) == (PIECES, DISTINCT)
    assert (first["pieces"], first["compiled"]) == (PIECES, DISTINCT)
    assert (first["saved"], first["loaded"]) == (1, 0)
    again = run("masks")
    assert again["tokens"] == eager
    assert (again["saved"], again["loaded"], again["pieces"]) == (0, 1, 0)


def test_a_literal_handle_would_compile_each_layer(run):
    """The form for CPUs, where the model is one graph."""
    assert run("literal", form="number")["compiled"] == PIECES
