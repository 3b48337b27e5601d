"""Small random gates and masks for tests of the worker and its kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import bmt_core
import numpy as np
import torch
from bmt_server.ipc.mask_layout import Layout, Rows, map_layout, write_layout
from bmt_server.worker.gate_layers import GateLayer

from tests.support import masks

BASE = bmt_core.Base(model_id="test", fingerprint="ab" * 32)
ROWS, COLS = 24, 40


def name(layer: int) -> str:
    return f"model.layers.{layer}.mlp.gate_proj.weight"


def random_mask(
    seed: int, layers: int = 2, shape: tuple[int, int] = (ROWS, COLS), zeros: int = 30
) -> bmt_core.Mask:
    return masks.random_mask(masks.gate_names(layers, shape), seed, zeros=zeros, base=BASE)


# Adapter ids of `t` tokens over `n` masks, by name of the tenant mix.
MIXES = {
    "identical": lambda t, n: np.ones(t),
    "distinct": lambda t, n: np.arange(t) % n + 1,
    "skewed": lambda t, n: np.where(np.arange(t) % 7 == 0, 2, 1),
    "zipf": lambda t, n: np.minimum(np.random.default_rng(0).zipf(1.5, t), n),
    "with base": lambda t, n: (np.arange(t) + 1) % (n + 1),
    "runs": lambda t, n: np.repeat(np.arange(1, n + 1), -(-t // n))[:t],
}


def laid_out(mask: bmt_core.Mask, folder: Path) -> Layout:
    path = folder / f"{mask.digest}.lay"
    write_layout(mask, path)
    return map_layout(path)


def dense(mask: bmt_core.Mask, layer: int) -> torch.Tensor:
    """The mask as the paper writes it: 1 if kept, 0 if zeroed, [d_out, d_in]."""
    tensor = mask.tensors[layer]
    kept = torch.ones(tensor.shape).flatten()
    kept[torch.from_numpy(tensor.positions.astype(np.int64))] = 0
    return kept.view(tensor.shape)


def keep_of(
    masks: Sequence[bmt_core.Mask], layer: int, rows: tuple[int, int] = (0, 1 << 62)
) -> dict[int, torch.Tensor]:
    """`rows` of each mask, dense, by adapter ids 1, 2, …: the argument of `kernels.reference`."""
    return {i: dense(mask, layer)[slice(*rows)] for i, mask in enumerate(masks, 1)}


def gates(
    layers: int = 2,
    *,
    live: bool = True,
    dtype: torch.dtype = torch.float32,
    rank: int = 0,
    ranks: int = 1,
    shape: tuple[int, int] = (ROWS, COLS),
) -> list[GateLayer]:
    """Gate halves of fused weights [2R, K]; every rank holds its rows of the same weights."""
    generator = torch.Generator().manual_seed(7)
    r = shape[0] // ranks
    made = []
    for i in range(layers):
        whole = torch.randn(shape, generator=generator).to(dtype)
        part = whole[rank * r : (rank + 1) * r]
        fused = torch.cat([part, torch.randn(r, shape[1], generator=generator).to(dtype)])
        gate = fused[:r]
        made.append(GateLayer(name(i), (rank * r, (rank + 1) * r), gate, gate if live else None))
    return made


def rows_of(positions: np.ndarray, shape: tuple[int, int]) -> Rows:
    """Sorted flat positions as CSR rows, as `ipc.mask_layout` maps them, without a file."""
    start = np.zeros(shape[0] + 1, np.uint32)
    np.cumsum(np.bincount(positions // shape[1], minlength=shape[0]), out=start[1:])
    return Rows(shape, start, (positions % shape[1]).astype("u2" if shape[1] <= 1 << 16 else "u4"))
