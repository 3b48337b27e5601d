"""Packing: loss and gradient of a packed batch, and models that do not keep rows apart."""

from __future__ import annotations

import dataclasses
import io
import json
import random

import pytest
import torch
from bmt_trainer.console import Display
from bmt_trainer.errors import ConfigError
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.initialization import init_gates
from bmt_trainer.methods import packing, sft
from bmt_trainer.methods.config import SftConfig
from rich.console import Console
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tests.support.tiny_model import tiny_llama

SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def qwen3():
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16))


def mistral():
    """Attention in a window shorter than the rows."""
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4))


def gemma3():
    """Windows and full attention in turns."""
    kinds = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=4, layer_types=kinds)
    )


MODELS = {"llama": tiny_llama, "qwen3": qwen3, "mistral": mistral, "gemma3": gemma3}


def rows(count, most=30):
    """Rows of 3 to `most` tokens, of which the last ones are learnt."""
    draw = random.Random(0)
    made = []
    for _ in range(count):
        ids = [draw.randrange(3, 259) for _ in range(draw.randint(3, most))]
        learnt = draw.randint(1, len(ids) - 1)
        made.append({"input_ids": ids, "completion_mask": [0] * (len(ids) - learnt) + [1] * learnt})
    return made


def labelled(row):
    pairs = zip(row["input_ids"], row["completion_mask"], strict=True)
    return {"input_ids": row["input_ids"], "labels": [t if m else -100 for t, m in pairs]}


def loss_and_gradients(model, attached, batches, learnt):
    """Summed over batches: the loss of each label, divided by the number of all learnt tokens."""
    for gate in attached.gates():
        gate.grad = None
    total = 0.0
    for batch in batches:
        output = model(**batch, use_cache=False, num_items_in_batch=learnt)
        output.loss.backward()
        total += float(output.loss.detach())
    return total, [gate.grad.clone() for gate in attached.gates()]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_a_packed_batch_has_the_loss_and_gradient_of_its_rows(name, attention):
    torch.manual_seed(1)
    model = MODELS[name]().float().eval()
    model.set_attn_implementation(attention)
    attached = attach(model, r"\.mlp\.gate_proj$")
    norms = {key: torch.ones(layer.in_features) for key, layer in attached.layers.items()}
    init_gates(attached, norms, eta=0.01, mean=0.03, std=0.01, tail=True, seed=0)
    given = rows(12)
    learnt = torch.tensor(sum(sum(row["completion_mask"][1:]) for row in given))

    single = DataCollatorForLanguageModeling(pad_token_id=0)
    alone = loss_and_gradients(model, attached, [single([labelled(r)]) for r in given], learnt)

    packed = packing.sequences(given, 64)
    assert sum(map(len, packed)) == len(given)
    assert max(map(len, packed)) > 1
    assert all(sum(lengths) <= 64 for lengths in packed)
    # Any rows in any sequences give the same sums, so the order is the rows' own here.
    flat = {
        "input_ids": [t for r in given for t in r["input_ids"]],
        "labels": [t for r in given for t in labelled(r)["labels"]],
        "seq_lengths": [len(r["input_ids"]) for r in given],
    }
    together = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([flat])
    assert "attention_mask" not in together
    loss, gradients = loss_and_gradients(model, attached, [together], learnt)

    assert loss == pytest.approx(alone[0], rel=1e-5)
    for one, other in zip(gradients, alone[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)

    # The test would see attention across rows: with ordinary positions the loss is another.
    del together["position_ids"]
    together = {k: v for k, v in together.items() if k in ("input_ids", "labels")}
    mixed, _ = loss_and_gradients(model, attached, [together], learnt)
    assert abs(mixed - alone[0]) > 1e-4 * alone[0]


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_kept_apart(name):
    torch.manual_seed(0)
    packing.require_separation(MODELS[name]().eval())


def test_a_model_whose_layers_mix_rows_is_refused():
    """LFM2's short convolutions run over the boundaries of rows."""
    torch.manual_seed(0)
    kinds = ["conv", "full_attention"]
    model = Lfm2ForCausalLM(Lfm2Config(**SIZES, layer_types=kinds)).eval()
    with pytest.raises(ConfigError, match=r"Lfm2ForCausalLM.*apart"):
        packing.require_separation(model)


def test_an_attention_without_masks_is_refused():
    """A model that reads positions, and attends to all tokens before, whatever they are."""
    torch.manual_seed(0)
    model = tiny_llama()
    forward = model.model.forward

    def ignorant(*args, position_ids=None, **kwargs):
        size = kwargs["input_ids"].shape[1] if "input_ids" in kwargs else args[0].shape[1]
        return forward(*args, position_ids=torch.arange(size)[None], **kwargs)

    model.model.forward = ignorant
    with pytest.raises(ConfigError, match="packing"):
        packing.require_separation(model)


def settings(checkpoint, folder, **changes):
    return SftConfig(
        **{
            "model": str(checkpoint),
            "dataset": "task:initials",
            "output": folder / "m.bmt",
            "heldout": 4,
            "steps": 3,
            "batch_size": 2,
            "max_length": 512,
            "train_examples": 40,
            "learning_rate": 0.01,
            "calibration_prompts": 8,
            "max_new_tokens": 4,
            "checkpoint_every": 0,
            "device": "cpu",
            "packing": True,
            **changes,
        }
    )


@pytest.mark.found
def test_a_run_packs(checkpoint, tmp_path, monkeypatch):
    """`--packing` did not exist."""
    seen = []
    step = sft.MaskedSFTTrainer.training_step

    def spied(self, model, inputs, *args, **kwargs):
        seen.append({k: v.clone() for k, v in inputs.items() if isinstance(v, torch.Tensor)})
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(sft.MaskedSFTTrainer, "training_step", spied)
    output = io.StringIO()
    mask = sft.train(settings(checkpoint, tmp_path), Display(Console(file=output, width=200)))
    assert mask.metadata["config"]["packing"] is True
    assert len(seen) == 3
    for inputs in seen:
        assert "attention_mask" not in inputs
        starts = (inputs["position_ids"] == 0).sum()
        assert starts > 2  # a batch of two sequences holds more rows than two
        assert inputs["input_ids"].shape[1] <= 2 * 512
        assert (inputs["labels"][inputs["position_ids"] == 0] == -100).all()
    assert "packed 40 examples into" in output.getvalue()
    json.dumps(dict(mask.metadata))


def test_packing_and_grouping_exclude_each_other(checkpoint, tmp_path):
    config = settings(checkpoint, tmp_path)
    with pytest.raises(ConfigError, match="group_by_length"):
        dataclasses.replace(config, group_by_length=True)
