"""Tiny configurations of transformers' architectures, for models of random weights.

The sizes of an architecture's default configuration are replaced where it has such fields; what
remains large or contradicts itself has an entry of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

LAYERS = 4
VOCABULARY = 64

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Older spellings.
    "n_layer": LAYERS,
    "n_embd": 32,
    "n_head": 4,
    "num_layers": LAYERS,
    "d_model": 32,
    "num_heads": 4,
    "d_inner": 48,
    "d_ff": 48,
    "ffn_dim": 48,
    "decoder_layers": LAYERS,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "num_decoder_layers": LAYERS,
    # Experts.
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 16,
    # Latent attention.
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    # Linear attention and state spaces.
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    # Inputs per layer, and other towers.
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "image_size": 28,
    "patch_size": 14,
    "depth": 2,
    "out_hidden_size": 32,
}
# Of heads that vLLM's attention has kernels for.
ENGINE_SIZES: dict[str, int] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
# Lists with an entry for each layer.
_PER_LAYER = ("layer_types", "layers_block_type", "mlp_layer_types")

# Families whose rotary embedding has sections for time, height and width.
_SEVERAL_AXES = ("glm4v", "glm46v", "glm_ocr", "glmga", "qwen2_5_vl", "paddleocr_vl")

# Those of them that rotate half of a head, as their checkpoints say and their defaults do not.
_HALF_ROTATED = ("glm4v", "glm_ocr")

# What the sizes above leave in contradiction, and parts that a default lacks.
_OWN: dict[str, dict[str, Any]] = {
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "gemma3n_text": {"layer_types": ["full_attention"] * LAYERS, "num_kv_shared_layers": 0},
    "youtu": {"head_dim": 4},
    "lfm2_moe": {"layer_types": ["full_attention"] * LAYERS},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "gemma4": {
        "vision_config": {
            **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8},
            **{"num_attention_heads": 4, "num_key_value_heads": 4},
        }
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
}


def tiny(kind: str, **sizes: int) -> PretrainedConfig:
    """A configuration of a small model of the `model_type` `kind`.

    sizes: others than the tiny ones, where there are such fields. Raises what its class raises.
    """
    made = CONFIG_MAPPING[kind]
    config = made(**{**_sizes(made(), {**_SIZES, **sizes}), **_OWN.get(kind, {})})
    for part in (config, getattr(config, "text_config", None)):
        for name in _PER_LAYER:
            value = getattr(part, name, None)
            if isinstance(value, list) and len(value) > LAYERS:
                setattr(part, name, value[:LAYERS])
    if kind in _SEVERAL_AXES:
        if kind in _HALF_ROTATED:
            config.get_text_config().rope_parameters["partial_rotary_factor"] = 0.5
        _fit_sections(config.get_text_config())
    return config


def _fit_sections(config: PretrainedConfig) -> None:
    """Give the sections of a rotary embedding of several axes the sizes of a small head."""
    rope = config.rope_parameters
    head = _read(config, "head_dim") or config.hidden_size // config.num_attention_heads
    half = int(head * rope.get("partial_rotary_factor", 1.0)) // 2
    third = half // 3
    rope["mrope_section"] = [half - 2 * third, third, third]


def _sizes(default: PretrainedConfig, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a default configuration to set, those of its parts within."""
    fields: dict[str, Any] = {}
    for name, value in vars(default).items():
        if isinstance(value, PretrainedConfig):
            fields[name] = _sizes(value, sizes)
    for name, size in sizes.items():
        value = _read(default, name)
        if isinstance(value, int) and not isinstance(value, bool):
            fields[name] = size
    return fields


def _read(config: PretrainedConfig, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:
        return None
