"""Shapes of a model that decide how much memory a run on it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from bmt_trainer.models import slow_in_16_bits

# Parameters of masks, which are counted by themselves.
_GATES = ("gate_logits", "teacher_logits")


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Numbers of a model, without its weights.

    weights: of all parameters of the base; width: bytes of one; computed: bytes of a number in
    forward passes; gates: weights that are masked; largest: those of one layer; held: weights of
    the tensors that gates are rows of, all of which a hard mask copies; stacked: of these, those of
    experts in one tensor, whose soft copies a backward pass needs; layers: of the text model;
    hidden, inner, query, keys: features of a token in the residual stream, between up and down
    projection (of all experts that it takes), in queries, and in keys or values; vocabulary:
    tokens.
    """

    weights: int
    width: int
    computed: int
    gates: int
    largest: int
    layers: int
    hidden: int
    inner: int
    query: int
    keys: int
    vocabulary: int
    held: int = 0
    stacked: int = 0

    @property
    def embeddings(self) -> int:
        """Weights of the LM head, or of the embedding that it shares."""
        return self.vocabulary * self.hidden


def shapes_of(
    model: nn.Module,
    gated: Iterable[int],
    precision: str,
    device: torch.device | str,
    *,
    held: int = 0,
    stacked: int = 0,
) -> Shapes:
    """The shapes of `model`, which may be on torch's meta device.

    gated: numbers of gates, one for each masked layer; precision: of the settings; held, stacked:
    as in `Shapes`.
    """
    config: Any = model.config
    text = config.get_text_config()
    counts = list(gated)
    width = 4 if precision == "fp32" else torch.empty((), dtype=_dtype(config)).element_size()
    slow = slow_in_16_bits(device)
    if slow:
        width = 4
    autocast = precision == "bf16" or (
        precision == "auto" and not slow and torch.device(device).type != "mps"
    )
    heads = _number(text, "num_attention_heads", "n_head", default=1)
    hidden = _number(text, "hidden_size", "n_embd", "d_model", default=1)
    head = _number(text, "head_dim", default=hidden // heads)
    return Shapes(
        weights=sum(
            p.numel() for n, p in model.named_parameters() if n.rpartition(".")[2] not in _GATES
        ),
        width=width,
        computed=2 if autocast else width,
        gates=sum(counts),
        largest=max(counts, default=0),
        layers=_number(text, "num_hidden_layers", "n_layer", default=1),
        hidden=hidden,
        inner=_inner(text, hidden),
        query=heads * head,
        keys=_number(text, "num_key_value_heads", default=heads) * head,
        vocabulary=_number(text, "vocab_size", default=1),
        held=held,
        stacked=stacked,
    )


def _dtype(config: PretrainedConfig) -> torch.dtype:
    """The dtype of a checkpoint's weights, by its configuration."""
    for part in (config, config.get_text_config()):
        if isinstance(found := getattr(part, "dtype", None), torch.dtype):
            return found
    return torch.float32


def _inner(text: Any, hidden: int) -> int:
    dense = _number(text, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    taken = _number(text, "num_experts_per_tok", "moe_k", default=0)
    if not taken:
        return dense
    own = _number(text, "moe_intermediate_size", default=dense)
    shared = _number(text, "n_shared_experts", default=0) * own
    shared += _number(text, "shared_expert_intermediate_size", default=0)
    return taken * own + shared


def _number(config: Any, *names: str, default: int) -> int:
    """The first of these settings that is a number above 0; of a list, the largest."""
    for name in names:
        value = _value(config, name)
        if isinstance(value, list | tuple) and value and all(isinstance(v, int) for v in value):
            value = max(value)
        if isinstance(value, int) and value > 0:
            return value
    return default


def _value(config: Any, name: str) -> Any:
    """A setting of a text model; a list where its layers differ (transformers 5.19, Gemma 4)."""
    try:
        return getattr(config, name, None)
    except Exception:  # of transformers' own kind, which earlier versions lack
        return [getattr(layer, name, None) or 0 for layer in config.per_layer_config]
