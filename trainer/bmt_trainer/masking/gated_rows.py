"""Rows of a weight that have gates: all, or those of the gate in a fused projection.

Shapes: W [d_out, d_in]; its gated rows [R, d_in]; y and gy [..., d_out].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from bmt_core.gates.rows import Rows
from torch import Tensor


@dataclass(frozen=True, slots=True)
class GatedRows:
    """Rows `first` to `end` - 1 of a weight; `end` None: all of its rows."""

    first: int = 0
    end: int | None = None

    def of(self, W: Tensor) -> Tensor:
        """The gated rows of W [d_out, d_in], contiguous if W is: a view [R, d_in]."""
        return W if self.end is None else W[self.first : self.end]

    def of_output(self, y: Tensor) -> Tensor:
        """The outputs of the gated rows, or their gradients, [..., R]."""
        return y if self.end is None else y[..., self.first : self.end]

    def replaced(self, W: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
        """W in `dtype` with `values` [R, d_in] in its gated rows; W stays as it is."""
        if self.end is None:
            return values.to(dtype)
        whole = W.to(dtype, copy=True)
        whole[self.first : self.end] = values
        return whole

    def filled(self, W: Tensor, S: Tensor, values: Tensor) -> Tensor:
        """Set W at the flat positions S of its gated rows to `values` [n], in place; returns W."""
        self.of(W).view(-1)[S] = values.to(W.dtype)
        return W

    def shape(self, d_out: int, d_in: int) -> tuple[int, int]:
        """[R, d_in] of a weight of shape [d_out, d_in]."""
        return (d_out if self.end is None else self.end - self.first), d_in

    def name(self, tensor: str) -> str:
        """The name in a mask of these rows of the checkpoint's `tensor`."""
        return tensor if self.end is None else str(Rows(tensor, self.first, self.end))


#: Every row has gates, as in a projection of its own.
ALL_ROWS = GatedRows()
