"""Selection of targets over architectures, on models without weights: whole, partly, or refused."""

from __future__ import annotations

import pytest
import torch
from bmt_trainer.errors import ExpertTensors, FusedGate, NoTargets
from bmt_trainer.masking.attach import coverage, select
from transformers import AutoConfig, AutoModelForCausalLM

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
# Dense first layers, experts after.
LATE_EXPERTS = {
    **EXPERTS,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}


def outline(kind, **changes):
    config = AutoConfig.for_model(kind, **{**SMALL, **changes})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    "kind",
    ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "smollm3"],
)
def test_dense_models_are_masked_in_every_layer(kind):
    model = outline(kind)
    chosen = select(model)
    assert coverage(model, chosen) == (4, 4)
    assert all(name.endswith(".mlp.gate_proj") for name in chosen)


@pytest.mark.found
@pytest.mark.parametrize(
    ("kind", "changes", "covered"),
    [
        ("deepseek_v3", LATE_EXPERTS | LATENT, 1),
        ("deepseek_v2", LATE_EXPERTS | LATENT, 1),
        ("glm4_moe", LATE_EXPERTS, 1),
        ("ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 2}, 2),
        ("qwen3_moe", {**EXPERTS, "mlp_only_layers": [0, 3]}, 2),
        ("qwen2_moe", {**EXPERTS, "mlp_only_layers": [1]}, 1),
    ],
)
def test_a_model_whose_experts_begin_later_is_masked_in_part_only_if_asked(kind, changes, covered):
    model = outline(kind, **changes)
    with pytest.raises(ExpertTensors, match=f"in {covered} of 4 layers"):
        select(model)
    # The same pattern is taken if it is given.
    assert coverage(model, select(model, r"\.mlp\.gate_proj$")) == (covered, 4)


@pytest.mark.found
@pytest.mark.parametrize(
    ("kind", "changes", "error"),
    [
        ("phi3", {}, FusedGate),
        ("glm4", {}, FusedGate),
        ("mixtral", EXPERTS, ExpertTensors),
        ("qwen2_moe", EXPERTS, ExpertTensors),
        ("qwen3_moe", EXPERTS, ExpertTensors),
        ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 4}, NoTargets),
        ("starcoder2", {}, NoTargets),
        ("gpt_neox", {}, NoTargets),
        ("phi", {}, NoTargets),
    ],
)
def test_models_without_gates_of_their_own(kind, changes, error):
    with pytest.raises(error):
        select(outline(kind, **changes))


def test_a_part_without_experts_is_refused_too():
    model = outline("llama")
    del model.model.layers[2].mlp.gate_proj
    with pytest.raises(NoTargets, match="in 3 of 4 layers"):
        select(model)
    assert len(select(model, "gate_proj")) == 3
