"""Masks of the gates of experts, on real vLLM: the answers of the masked checkpoints."""

from __future__ import annotations

import bmt_core
import pytest
import torch
from bmt_core.gates.geometry import served_geometry
from bmt_trainer.masking.apply import write_checkpoint
from bmt_trainer.masking.targets import EXPERT_GATES
from bmt_trainer.methods import sft
from bmt_trainer.methods.config import SftConfig
from transformers import AutoModelForCausalLM

from tests.support.engines import log_probabilities, run_engine
from tests.support.masks import random_mask
from tests.support.tiny_model import byte_tokenizer
from tests.support.training.architectures import EXPERTS, small_config

pytestmark = pytest.mark.engine

# 48 features are no multiple of what vLLM's kernel computes at once: it pads them.
SIZES = {
    **EXPERTS,
    "vocab_size": 259,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "moe_intermediate_size": 48,
    "max_position_embeddings": 256,
    # Random weights, large enough for a mask to change what they answer.
    "initializer_range": 0.2,
}
OPTIONS = {"enable_prefix_caching": False, "dtype": "float32"}
TEXTS = torch.randint(3, 259, (6, 24), generator=torch.Generator().manual_seed(1)).tolist()


EAGER = {"enforce_eager": True}
# Their threads must not all bind to one core.
RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("kind", "options", "environment"),
    [
        # One step takes all texts of a part.
        ("mixtral", EAGER, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}),
        pytest.param("qwen3_moe", EAGER, {}, marks=pytest.mark.operate),
        pytest.param("qwen3_moe", {}, {}, marks=pytest.mark.operate),
        pytest.param(
            "qwen3_moe", {**EAGER, "tensor_parallel_size": 2}, RANKS, marks=pytest.mark.operate
        ),
    ],
    ids=["mixtral", "qwen3_moe", "qwen3_moe compiled", "qwen3_moe two ranks"],
)
def test_requests_have_the_answers_of_their_masks_checkpoints(kind, options, environment, tmp_path):
    """Alone, and in steps with another mask and the base, whose tokens meet in the experts."""
    base = saved(kind, tmp_path / "base")
    gates, own = served_geometry(base), bmt_core.Base("t", bmt_core.fingerprint(base))
    masks = [random_mask(gates, seed, sparsity=0.1, base=own) for seed in (0, 1)]
    check(base, masks, tmp_path, options, environment)


@pytest.mark.operate
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_trained_masks_of_experts_are_served(kind, tmp_path):
    base = saved(kind, tmp_path / "base")
    settings = {
        **{"model": str(base), "dataset": "task:initials", "heldout": 2, "steps": 3},
        **{"batch_size": 2, "learning_rate": 0.02, "calibration_prompts": 4, "max_new_tokens": 2},
        # A start that changes answers of random weights.
        **{"device": "cpu", "precision": "fp32", "targets": EXPERT_GATES, "eta": 0.1},
    }
    masks = [
        sft.train(SftConfig(**settings, output=tmp_path / f"trained{seed}.bmt", seed=seed))
        for seed in (0, 1)
    ]
    check(base, masks, tmp_path, EAGER, {})


def saved(kind, folder):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(small_config(kind, **SIZES)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def check(base, masks, folder, options, environment):
    """Answers of the engine and of transformers on the masked checkpoints, for two masks."""
    folders, paths = {None: base}, []
    for number, mask in enumerate(masks):
        paths.append(str(folder / f"{number}.bmt"))
        bmt_core.save(mask, paths[-1])
        folders[paths[-1]] = folder / f"masked{number}"
        write_checkpoint(mask, base, folders[paths[-1]])
    parts = [[paths[0]] * 6, [None] * 6, [paths[0], None, paths[1]] * 2]
    job = {
        "model": str(base),
        "mode": "auto",
        "masks": paths,
        "options": {**OPTIONS, **options},
        "parts": [{"prompts": TEXTS, "masks": masks} for masks in parts],
    }
    found = [torch.tensor(p) for p in run_engine("answer.py", job, folder, environment)]
    expected = {
        mask: log_probabilities(where, TEXTS).view(6, -1) for mask, where in folders.items()
    }
    changed = (expected[paths[0]] - expected[None]).abs() > 0.01
    assert float(changed.float().mean()) >= 0.5
    for answers, of in zip(found, parts, strict=True):
        theirs = torch.stack([expected[mask][row] for row, mask in enumerate(of)])
        assert float((answers - theirs).abs().max()) < 1e-3
