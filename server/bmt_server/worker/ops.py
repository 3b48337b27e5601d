"""The masked delta: y -= x (W ⊙ [P])ᵀ for every token's own mask, as a registered torch op.

Legend as in `layers.py`: T tokens, K columns in, N columns out, R gate rows, n zeros of a mask.

This is the portable form, in plain torch. Work is arranged once per batch composition
(`DeltaPlan`), not per layer call, because in decoding the composition stays for many steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from bmt_server.worker.resident import LayerMask, ResidentMask

# Up to this many tokens a mask's work is listed pair by pair (token, zero), so that all masks of
# a decode step share three torch calls; beyond it a mask works on its tokens as a block.
_PAIRWISE_TOKENS = 8
# Rows of a block's product held at once: bounds its fp32 scratch to 4 * 256 * n bytes.
_BLOCK_TOKENS = 256


@dataclass(slots=True)
class _Block:
    """One mask with many tokens: tokens int64 [t], rows and cols int64 [n], values fp32 [n]."""

    tokens: torch.Tensor
    rows: torch.Tensor
    cols: torch.Tensor
    values: torch.Tensor


@dataclass(slots=True)
class LayerPlan:
    """The work of one layer in one step.

    x_at, y_at: int64 [p], flat places in x [T * K] and in the gate's output [T * R];
    values: fp32 [p]; one entry for each (token, zero) pair of the masks with few tokens.
    """

    x_at: torch.Tensor
    y_at: torch.Tensor
    values: torch.Tensor
    blocks: list[_Block] = field(default_factory=list)

    def subtract(self, y: torch.Tensor, x: torch.Tensor, r: int) -> None:
        """Semantics: y[t, i] -= sum over zeros (i, j) of mask(t) of x[t, j] * W[i, j], i < r.

        y: [T, N] and x: [T, K] in the model's dtype; products and sums in fp32, one rounding.
        """
        t, gate = x.shape[0], y[:, :r]
        delta = torch.zeros(t * r, dtype=torch.float32, device=y.device)
        if self.values.numel():
            product = x.reshape(-1)[self.x_at].float().mul_(self.values)
            delta.index_add_(0, self.y_at, product)
        delta = delta.view(t, r)
        for block in self.blocks:
            for tokens in block.tokens.split(_BLOCK_TOKENS):
                columns = x[tokens].t()[block.cols].float().mul_(block.values[:, None])
                part = torch.zeros(r, tokens.numel(), dtype=torch.float32, device=y.device)
                delta[tokens] = part.index_add_(0, block.rows, columns).t()
        gate.copy_(gate.float().sub_(delta))


def plan_step(token_masks: np.ndarray, masks: Mapping[int, ResidentMask]) -> DeltaPlan:
    """Arrange one step: token_masks is int64 [T] of adapter ids, 0 where the base answers."""
    segments = [
        (masks[int(a)], np.flatnonzero(token_masks == a)) for a in np.unique(token_masks) if a
    ]
    return DeltaPlan(segments)


class DeltaPlan:
    """Which tokens use which mask in one step; each layer's work is arranged at its first call."""

    def __init__(self, segments: Sequence[tuple[ResidentMask, np.ndarray]]) -> None:
        self._segments = segments
        self._layers: dict[int, LayerPlan] = {}

    def layer(self, index: int, r: int, k: int) -> LayerPlan:
        plan = self._layers.get(index)
        if plan is None:
            plan = self._layers[index] = self._arrange(index, r, k)
        return plan

    def _arrange(self, index: int, r: int, k: int) -> LayerPlan:
        x_at, y_at, values, blocks = [], [], [], []
        for mask, token_index in self._segments:
            layer: LayerMask = mask.layers[index]
            if not layer.cols.numel():
                continue
            rows, cols, value = layer.rows(), layer.cols.long(), layer.values.float()
            tokens = torch.from_numpy(token_index).to(rows.device)
            if tokens.numel() > _PAIRWISE_TOKENS:
                blocks.append(_Block(tokens, rows, cols, value))
                continue
            x_at.append((tokens[:, None] * k + cols).flatten())
            y_at.append((tokens[:, None] * r + rows).flatten())
            values.append(value.repeat(tokens.numel()))
        if not values:
            empty = torch.empty(0, dtype=torch.int64)
            return LayerPlan(empty, empty, torch.empty(0), blocks)
        return LayerPlan(torch.cat(x_at), torch.cat(y_at), torch.cat(values), blocks)


class DeltaState:
    """What the op reads: the current step's plan, and each handle's layer and shape.

    One object per process and not one per model, because a torch op carries integers, not
    objects; handles make several models in one process distinct.
    """

    def __init__(self) -> None:
        self.plans: dict[int, DeltaPlan | None] = {}
        self.handles: list[tuple[int, int, int, int]] = []

    def register(self, model: int, layer: int, r: int, k: int) -> int:
        """A handle for layer `layer` of `model`, with R gate rows and K columns."""
        self.handles.append((model, layer, r, k))
        return len(self.handles) - 1


STATE = DeltaState()


def _masked_delta(y: torch.Tensor, x: torch.Tensor, handle: int) -> None:
    model, layer, r, k = STATE.handles[handle]
    plan = STATE.plans.get(model)
    if plan is not None:
        plan.layer(layer, r, k).subtract(y, x, r)


def _masked_delta_fake(y: torch.Tensor, x: torch.Tensor, handle: int) -> None:
    return None


# Registered through Library rather than custom_op: the latter's wrapper costs more than an idle
# step's whole work, and an idle step runs it once a layer.
_LIBRARY = torch.library.Library("bmt", "FRAGMENT")
_LIBRARY.define("masked_delta(Tensor(a!) y, Tensor x, int handle) -> ()")
_LIBRARY.impl("masked_delta", _masked_delta, "CompositeExplicitAutograd")
torch.library.register_fake("bmt::masked_delta", _masked_delta_fake, lib=_LIBRARY)

KERNEL = "torch"
KERNEL_NOTE = "portable, in plain torch operations"
