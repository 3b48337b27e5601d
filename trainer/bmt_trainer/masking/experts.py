"""Experts in one tensor: the gate of each is a masked layer of its own, under the model's forward.

Shapes: E experts, f features between the projections; W [E, 2 f, d_in] holds gate and up projection
of each expert, the gate's rows first (transformers 5.19, integrations/moe.py). The gate of expert
e answers to the name `….experts.e.gate_proj`, which is a matrix W[e, :f] of its own in most
checkpoints, and rows e · 2 f to e · 2 f + f - 1 of one tensor in others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from bmt_core.gates.rows import Rows
from torch import Tensor, nn

from bmt_trainer.masking.equations import hard_weight, soft_weight
from bmt_trainer.masking.gated_rows import ALL_ROWS
from bmt_trainer.masking.masked_linear import MaskedLinear, MaskState, gate_gradient_of

_STACKED = "gate_up_proj"
_GATE = re.compile(r"(.+)\.([0-9]+)\.gate_proj\.weight")


def stacks(module: nn.Module) -> bool:
    """True for experts in one tensor W [E, 2 f, d_in], the gate's rows of each first.

    Not for transposed ones (Llama 4), nor for rows of gate and up in turns (gpt-oss).
    """
    weight = module._parameters.get(_STACKED)
    return (
        weight is not None
        and weight.ndim == 3
        and getattr(module, "has_gate", False) is True
        and getattr(module, "is_concatenated", False) is True
        and getattr(module, "is_transposed", True) is False
    )


def expert_gates(model: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Name of each expert's gate, the module of all experts, and the expert's number."""
    for name, module in model.named_modules():
        if stacks(module):
            weight = cast(Tensor, module._parameters[_STACKED])
            for expert in range(len(weight)):
                yield f"{name}.{expert}.gate_proj", module, expert


def stacked_weight(module: nn.Module) -> Tensor:
    """W of a module that `stacks`."""
    return cast(Tensor, module._parameters[_STACKED])


def gate_shape(module: nn.Module) -> tuple[int, int]:
    """[f, d_in] of one expert's gate."""
    _, both, d_in = cast(Tensor, module._parameters[_STACKED]).shape
    return both // 2, d_in


def gate_name(stacked: str, tensor: str) -> str | None:
    """The name of an expert's gate, by the parameter that its tensor in a checkpoint goes to.

    stacked: of the parameter; tensor: in the checkpoint, `….experts.3.w1.weight`.
    """
    number = re.search(r"\.experts\.([0-9]+)\.", tensor)
    if number is None or not stacked.endswith(f".{_STACKED}"):
        return None
    return f"{stacked.removesuffix(_STACKED)}{number[1]}.gate_proj.weight"


def rows_of(stacked: str, tensor: str, weight: Tensor) -> dict[str, str]:
    """Names of rows of a checkpoint's tensor by those of the experts' gates, if it stacks them."""
    if weight.ndim != 3 or not stacked.endswith(f".{_STACKED}"):
        return {}
    count, both, _ = weight.shape
    prefix = stacked.removesuffix(_STACKED)
    return {
        f"{prefix}{e}.gate_proj.weight": str(Rows(tensor, e * both, e * both + both // 2))
        for e in range(count)
    }


def place_in_stack(name: str, parameters: Mapping[str, Tensor]) -> tuple[Tensor, int] | None:
    """The stacked parameter of an expert's gate, and the gate's first element there."""
    found = _GATE.fullmatch(name)
    weight = parameters.get(f"{found[1]}.{_STACKED}") if found else None
    if found is None or weight is None or int(found[2]) >= len(weight):
        return None
    return weight, int(found[2]) * weight.shape[1] * weight.shape[2]


class MaskedExpert(MaskedLinear):
    """The gate of one expert as a masked layer; the module of all experts computes with it."""

    @classmethod
    def of(cls, experts: nn.Module, expert: int, state: MaskState) -> MaskedExpert:
        """A layer that keeps every weight (G = 1)."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        # Not as a submodule: the layer lies in that module.
        made.__dict__.update(experts=experts, expert=expert)
        made.out_features, made.in_features = gate_shape(experts)
        made.state, made.live, made.rows = state, None, ALL_ROWS
        made.register_parameter("bias", None)
        made.gate_logits = nn.Parameter(torch.ones_like(made.weight, dtype=torch.float32))
        made.register_parameter("teacher_logits", None)
        return made

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The base's W[e, :f], a view."""
        experts = self.__dict__["experts"]
        stacked = experts._parameters[_STACKED]
        return cast(Tensor, stacked.detach()[self.__dict__["expert"], : self.out_features])

    @property
    def holder(self) -> Tensor:
        """W of all experts."""
        return stacked_weight(self.__dict__["experts"])


def is_masked(experts: nn.Module) -> bool:
    """True for a module whose experts have masks."""
    return "_masked" in experts.__dict__


def mask_experts(
    experts: nn.Module, chosen: Sequence[int], state: MaskState
) -> dict[int, MaskedExpert]:
    """Give the gates of `chosen` experts masks, in place; returns the layers by number."""
    layers = {}
    for expert in chosen:
        layers[expert] = MaskedExpert.of(experts, expert, state)
        holder = nn.Module()
        holder.add_module("gate_proj", layers[expert])
        experts.add_module(str(expert), holder)
    experts.__dict__["_masked"] = layers
    experts.__class__ = _masked_class(type(experts))
    return layers


def _masked_class(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose forward computes with the masks' weights; the parameter stays the base."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Once for all experts: the forward reads the weight of each in turn.
        self.__dict__["_effective"] = _effective(self)
        try:
            return kind.forward(self, *args, **kwargs)
        finally:
            del self.__dict__["_effective"]

    def stacked(self: Any) -> Tensor:
        effective = self.__dict__.get("_effective")
        return self._parameters[_STACKED] if effective is None else effective

    return type(
        f"Masked{kind.__name__}", (kind,), {"forward": forward, _STACKED: property(stacked)}
    )


def _effective(experts: Any) -> Tensor:
    """W with the masks of the state's mode."""
    layers: dict[int, MaskedExpert] = experts.__dict__["_masked"]
    W = cast(Tensor, experts._parameters[_STACKED])
    state = next(iter(layers.values())).state
    if state.mode == "off":
        return W
    if state.mode == "soft":
        lam = state.regularizer if experts.training else 0.0
        gates = [layer.gate_logits for layer in layers.values()]
        return cast(Tensor, _SoftExperts.apply(W, state.alpha, lam, list(layers.values()), *gates))
    version = sum(layer.gate_logits._version for layer in layers.values())
    cached = state._hard_weights.get(id(experts))
    if state.mode == "hard" and cached is not None and cached[0] == version:
        return cached[1]
    with torch.no_grad():
        whole = W.detach().clone()
        for expert, layer in layers.items():
            whole[expert, : layer.out_features] = _hard(layer, state.mode)
    if state.mode == "hard" and state.cache_hard_weights:
        state._hard_weights[id(experts)] = (version, whole)
    return whole


def _hard(layer: MaskedExpert, mode: str) -> Tensor:
    if mode == "teacher":
        return hard_weight(layer.weight, layer._teacher())
    if layer.live is None:
        return hard_weight(layer.weight, layer.gate_logits)
    live = hard_weight(layer.weight.reshape(-1)[layer.live], layer.gate_logits)
    return layer.weight.reshape(-1).index_copy(0, layer.live, live).view(layer.weight.shape)


class _SoftExperts(torch.autograd.Function):
    """W with the soft weights of the masked gates (Eq. 6), in W's dtype.

    The backward adds the gradient of -λ‖W̃‖² in closed form, and computes W̃ again.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        W: Tensor,
        alpha: float,
        lam: float,
        layers: list[MaskedExpert],
        *gates: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*gates)
        ctx.alpha, ctx.lam, ctx.layers = alpha, lam, layers
        whole = W.clone()
        for layer, G in zip(layers, gates, strict=True):
            own = whole[layer.__dict__["expert"], : layer.out_features]
            soft = soft_weight(_trained(layer), G, alpha).to(W.dtype)
            if layer.live is None:
                own.copy_(soft)
            else:
                own.view(-1)[layer.live] = soft
        return whole

    @staticmethod
    def backward(ctx: Any, gW: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        found = []
        for layer, G in zip(ctx.layers, ctx.saved_tensors, strict=True):
            grad = gW[layer.__dict__["expert"], : layer.out_features]
            if layer.live is not None:
                grad = grad.reshape(-1)[layer.live]
            soft = soft_weight(_trained(layer), G, ctx.alpha)
            found.append(gate_gradient_of(grad.clone(), soft, G, ctx.alpha, ctx.lam))
        return None, None, None, None, *found


def _trained(layer: MaskedExpert) -> Tensor:
    """The base's weights of the gates that are trained: [f, d_in], or [n] of live ones."""
    return layer.weight if layer.live is None else layer.weight.reshape(-1)[layer.live]
