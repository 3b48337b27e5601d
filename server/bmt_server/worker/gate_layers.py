"""Gate projections of one worker.

Legend for this package:
    R  rows of a layer's gate on this worker (d_out / tensor-parallel size)
    K  columns, d_in
    N  output columns of the layer that runs; the gate is its first R (fused gate and up: N = 2R)
    T  tokens of one step
    n  zeroed positions of one mask in one layer
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class GateLayer:
    """One gate projection of this worker.

    name: the tensor's name in the checkpoint; rows: (first, last + 1) of the checkpoint's rows on
    this worker; base [R, K]: the base values, read-only; live [R, K]: the weight that the matrix
    product reads, None for backends that repack weights, which cannot mask in place.
    """

    name: str
    rows: tuple[int, int]
    base: torch.Tensor
    live: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """[R, K]."""
        return self.base.shape[0], self.base.shape[1]

    @property
    def device(self) -> torch.device:
        return self.base.device
