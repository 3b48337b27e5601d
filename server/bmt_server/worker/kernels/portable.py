"""The masked delta in plain torch operations, for any device and dtype.

Legend as in `gate_layers.py`. The work is prepared once per batch composition, not per layer call,
because the composition stays the same for many decoding steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels.costs import PORTABLE
from bmt_server.worker.resident_mask import LayerMask, ResidentMask

# Up to this many tokens a mask's work is a list of (token, zero) pairs, so that all masks of a
# decoding step share three torch calls; with more tokens a mask processes its tokens as a block.
_PAIRWISE_TOKENS = 8
# Tokens of a block per pass; bounds its fp32 scratch to 4 * 256 * n bytes.
_BLOCK_TOKENS = 256


class PortableKernel:
    """`masked_delta.Kernel` for any device and dtype."""

    name = "portable"
    description = "plain torch operations"
    costs = PORTABLE

    def __init__(self, gates: Sequence[GateLayer]) -> None:
        self._gates = gates
        # The plan: each mask with its token indices, int64 [t].
        self._segments: list[tuple[ResidentMask, np.ndarray]] = []
        self._layers: dict[int, _LayerPlan] = {}

    def bind(self, first: int) -> None:
        pass

    def plan(self, token_masks: np.ndarray, masks: Mapping[int, ResidentMask]) -> None:
        self._layers = {}
        self._segments = [
            (masks[int(a)], np.flatnonzero(token_masks == a)) for a in np.unique(token_masks) if a
        ]

    def idle(self) -> None:
        self._layers, self._segments = {}, []

    def run(self, layer: int, y: torch.Tensor, x: torch.Tensor) -> None:
        if self._segments:
            plan = self._layers.get(layer)
            if plan is None:
                plan = self._layers[layer] = self._plan_layer(layer)
            plan.subtract(y, x, self._gates[layer].shape[0])

    def to_device(self, mask: ResidentMask, *, allow_overflow: bool = False) -> ResidentMask:
        device = self._gates[0].device
        if mask.buffer.device != device:
            mask = mask.with_buffer(mask.buffer.to(device))
        for gate, layer in zip(self._gates, mask.layers, strict=True):
            layer.values.copy_(gate.base[layer.rows(), layer.cols.long()])
        return mask

    def switch(self, old: ResidentMask | None, new: ResidentMask | None) -> None:
        if old is not None:
            self._write(old, restore=True)
        if new is not None:
            self._write(new, restore=False)

    def _write(self, mask: ResidentMask, *, restore: bool) -> None:
        """Write zeros, or the mask's values, at its positions in all live gate weights."""
        for gate, layer in zip(self._gates, mask.layers, strict=True):
            assert gate.live is not None
            values = layer.values if restore else gate.live.new_zeros(())
            gate.live.index_put_((layer.rows(), layer.cols.long()), values)

    def _plan_layer(self, index: int) -> _LayerPlan:
        r, k = self._gates[index].shape
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
            return _LayerPlan(empty, empty, torch.empty(0), blocks)
        return _LayerPlan(torch.cat(x_at), torch.cat(y_at), torch.cat(values), blocks)


@dataclass(slots=True)
class _Block:
    """One mask with many tokens: tokens int64 [t], rows and cols int64 [n], values fp32 [n]."""

    tokens: torch.Tensor
    rows: torch.Tensor
    cols: torch.Tensor
    values: torch.Tensor


@dataclass(slots=True)
class _LayerPlan:
    """The work of one layer in one step.

    x_at, y_at: int64 [p], flat indices into x [T * K] and into the gate's output [T * R];
    values: fp32 [p]; one entry for each (token, zero) pair of the masks with few tokens.
    blocks: the masks with many tokens.
    """

    x_at: torch.Tensor
    y_at: torch.Tensor
    values: torch.Tensor
    blocks: list[_Block] = field(default_factory=list)

    def subtract(self, y: torch.Tensor, x: torch.Tensor, r: int) -> None:
        """Compute the op on y [T, N] and x [T, K]; r: gate rows R."""
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
