"""A base whose checkpoint fuses gate and up projection, on real vLLM: masks of the gate's rows."""

from __future__ import annotations

import bmt_core
import pytest
import torch
from bmt_trainer.masking.apply import write_checkpoint
from transformers import AutoModelForCausalLM, Phi3Config

from tests.support.engines import log_probabilities, run_engine
from tests.support.masks import random_mask_of
from tests.support.tiny_model import byte_tokenizer

pytestmark = pytest.mark.engine

OPTIONS = {"enforce_eager": True, "enable_prefix_caching": False, "dtype": "float32"}


def test_a_mask_of_rows_gives_the_answers_of_the_masked_checkpoint(tmp_path):
    torch.manual_seed(0)
    base, masked = tmp_path / "base", tmp_path / "masked"
    config = Phi3Config(
        vocab_size=259,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        # Random weights, large enough for a mask to change what they answer.
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    mask = random_mask_of(base, 0, sparsity=0.1)
    assert {t.name.rpartition(".")[2] for t in mask.tensors} == {"weight[0:192]"}
    path = tmp_path / "m.bmt"
    bmt_core.save(mask, path)
    write_checkpoint(mask, base, masked)
    sequences = torch.randint(3, 259, (4, 24)).tolist()
    parts = [
        {"prompts": sequences, "masks": [str(path)] * 4},
        {"prompts": sequences, "masks": [None] * 4},
    ]
    job = {"model": str(base), "mode": "delta", "options": OPTIONS, "parts": parts}
    ours, plain = (
        torch.tensor(part).flatten()
        for part in run_engine("answer.py", {**job, "masks": [str(path)]}, tmp_path)
    )
    expected, unmasked = (log_probabilities(folder, sequences) for folder in (masked, base))
    assert float((expected - unmasked).abs().max()) > 0.1
    assert float((ours - expected).abs().max()) < 1e-3
    assert float((plain - unmasked).abs().max()) < 1e-3
