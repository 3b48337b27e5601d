"""One mask as it lies in a worker's memory, and how it gets there from a laid-out file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bmt_server.wire import Layout, Rows
from bmt_server.worker.layers import GateLayer


class MaskStoreError(Exception):
    """A mask cannot be made resident; the message names the mask, the tensor and the reason."""


@dataclass(slots=True)
class LayerMask:
    """One mask in one layer, this worker's rows (views into the mask's two arrays).

    row_start: int32 [R + 1]; cols: uint16 or uint32 [n]; values: base dtype [n], the weights that
    the mask deletes. Values are kept beside the columns because gathering them from the weight at
    every step would cost a cache line each; together they are 4 bytes a zero in bf16.
    """

    row_start: torch.Tensor
    cols: torch.Tensor
    values: torch.Tensor

    def rows(self) -> torch.Tensor:
        """int64 [n]: the row of each zero, ascending."""
        counts = self.row_start[1:] - self.row_start[:-1]
        return torch.repeat_interleave(
            torch.arange(counts.numel(), device=counts.device), counts.long()
        )


@dataclass(slots=True)
class ResidentMask:
    """One mask in this worker's memory: one LayerMask per GateLayer, in the worker's order."""

    digest: str
    layers: list[LayerMask]
    nbytes: int


def gather(digest: str, layout: Layout, gates: Sequence[GateLayer]) -> ResidentMask:
    """Read the base values at the mask's positions and lay all out for the kernels.

    A tensor that the mask does not name is left whole. Raises MaskStoreError where shapes differ:
    the registry checks them at upload, so here it means another base model.
    """
    known = {gate.name for gate in gates}
    if not known & layout.tensors.keys() and layout.tensors:
        raise MaskStoreError(
            f"mask {digest[:12]} names none of this model's {len(known)} gate tensors "
            f"(it has {next(iter(layout.tensors))!r}); it was made for another base model"
        )
    layers: list[LayerMask] = []
    for gate in gates:
        (lo, hi), (r, k) = gate.rows, gate.shape
        rows = layout.tensors.get(gate.name)
        if rows is None:
            part = Rows((r, k), np.zeros(r + 1, np.uint32), np.zeros(0, np.uint16))
        else:
            if rows.shape[0] < hi or rows.shape[1] != k:
                raise MaskStoreError(
                    f"mask {digest[:12]}: {gate.name} is {list(rows.shape)} in the mask, and this "
                    f"worker holds rows {lo}..{hi} of {k} columns; it fits another base model"
                )
            part = rows.slice(lo, hi)
        row_start = torch.from_numpy(part.row_start.astype(np.int32)).to(gate.device)
        cols = torch.from_numpy(np.array(part.cols)).to(gate.device)
        layer = LayerMask(row_start, cols, torch.empty(0, dtype=gate.base.dtype))
        layer.values = gate.base[layer.rows(), cols.long()]
        layers.append(layer)
    nbytes = sum(t.nbytes for m in layers for t in (m.row_start, m.cols, m.values))
    return ResidentMask(digest, layers, nbytes)
