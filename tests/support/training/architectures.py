"""Small configurations of the architectures that masks are tested on."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

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

#: Architectures whose every layer is masked.
DENSE = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "smollm3"]

#: Architectures with experts in other layers: kind, changes, number of the 4 layers with a gate.
PARTLY_DENSE = [
    ("deepseek_v3", LATE_EXPERTS | LATENT, 1),
    ("deepseek_v2", LATE_EXPERTS | LATENT, 1),
    ("glm4_moe", LATE_EXPERTS, 1),
    ("ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 2}, 2),
    ("qwen3_moe", {**EXPERTS, "mlp_only_layers": [0, 3]}, 2),
    ("qwen2_moe", {**EXPERTS, "mlp_only_layers": [1]}, 1),
]


def small_config(kind: str, **changes: Any) -> PretrainedConfig:
    """The configuration of a model of four small layers."""
    return AutoConfig.for_model(kind, **{**SMALL, **changes})
