"""A layer of experts under masks: in steps with masks in torch, in all others by vLLM's own op.

As a torch op: `bmt::masked_experts(Tensor x, Tensor weights, Tensor ids, int handle) -> Tensor`.

Semantics: out[t] = sum over k of weights[t, k] * D_e (act(G_e x[t] - delta_e[t]) * U_e x[t])
for the token's experts e = ids[t, k], where delta_e[t] is the sum of W[i, j] x[t, j] over the zeros
that the mask of token t has in the gate of e.

    x        [T, K], the model's dtype
    weights  [T, k], ids [T, k]: the router's, which masks leave alone
    handle   the layer, from `register`

vLLM's op computes a layer as a whole, so a gate's output cannot be corrected behind it. Products
are in the model's dtype, the sum over experts is in fp32. The correction of an expert is computed
for all T tokens, as for any gate, and read for those that were routed to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import linear

from bmt_server.worker.engine_vllm.expert_gates import ACTIVATIONS, ExpertLayer

Delta = Callable[[torch.Tensor, torch.Tensor], None]


class MaskedExperts:
    """The op for one layer.

    deltas: the masked delta of each expert's gate, see `kernels/masked_delta.py`, `op_for`;
    corrects: True in a step that has masks.
    """

    def __init__(
        self, experts: ExpertLayer, deltas: Sequence[Delta], corrects: Callable[[], bool]
    ) -> None:
        self._experts, self._deltas, self._corrects = experts, deltas, corrects
        self._act = ACTIVATIONS[experts.layer.activation.value]
        self._inner = experts.layer.quant_method.apply

    def hook(self) -> None:
        """Let vLLM's layer compute with this op."""
        handle = register(self)

        def apply(
            layer: Any,
            x: torch.Tensor,
            topk_weights: torch.Tensor,
            topk_ids: torch.Tensor,
            shared_experts: Any,
            shared_experts_input: torch.Tensor | None,
        ) -> torch.Tensor:
            # Shared experts were computed before: only kernels that exchange tokens overlap them.
            out: torch.Tensor = torch.ops.bmt.masked_experts(x, topk_weights, topk_ids, handle)
            return out

        self._experts.layer.quant_method.apply = apply

    def __call__(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        if not self._corrects():
            out: torch.Tensor = self._inner(
                layer=self._experts.layer,
                x=x,
                topk_weights=weights,
                topk_ids=ids,
                shared_experts=None,
                shared_experts_input=None,
            )
            return out
        x = x.contiguous()
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert, gate in enumerate(self._experts.gates):
            tokens, choice = (ids == expert).nonzero(as_tuple=True)
            if not tokens.numel():
                continue
            own = x[tokens]
            # [T, f]: the kernel's plan is by the tokens of the step.
            y = x.new_zeros(x.shape[0], gate.shape[0])
            y[tokens] = linear(own, gate.base)
            self._deltas[expert](y, x)
            hidden = self._act(y[tokens]) * linear(own, self._experts.up(expert))
            part = linear(hidden, self._experts.down(expert)).float()
            total.index_add_(0, tokens, part * weights[tokens, choice, None].float())
        return total.to(x.dtype)


# As in `kernels/masked_delta.py`: a torch op takes integers, not objects.
_LAYERS: list[MaskedExperts] = []


def register(experts: MaskedExperts) -> int:
    """Return a handle of the op for a layer."""
    _LAYERS.append(experts)
    return len(_LAYERS) - 1


def _masked_experts(
    x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, handle: int
) -> torch.Tensor:
    return _LAYERS[handle](x, weights, ids)


def _masked_experts_fake(
    x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, handle: int
) -> torch.Tensor:
    return torch.empty_like(x)


_LIBRARY = torch.library.Library("bmt", "FRAGMENT")
_LIBRARY.define("masked_experts(Tensor x, Tensor weights, Tensor ids, int handle) -> Tensor")
_LIBRARY.impl("masked_experts", _masked_experts, "CompositeExplicitAutograd")
torch.library.register_fake("bmt::masked_experts", _masked_experts_fake, lib=_LIBRARY)
