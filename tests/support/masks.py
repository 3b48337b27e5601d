"""Random masks for tests: positions drawn uniformly, the same for the same seed and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bmt_core
import numpy as np

BASE = bmt_core.Base(model_id="tiny", fingerprint="ab" * 32)


def gate_names(layers: int, shape: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Gate projections of a model of `layers` layers: checkpoint name -> [d_out, d_in]."""
    return {f"model.layers.{i}.mlp.gate_proj.weight": shape for i in range(layers)}


def random_mask(
    gates: Mapping[str, tuple[int, int]],
    seed: int = 0,
    /,
    *,
    zeros: int | None = None,
    sparsity: float | None = None,
    base: bmt_core.Base = BASE,
    **metadata: Any,
) -> bmt_core.Mask:
    """A mask over `gates` with `zeros` zeros a tensor, or with that share of each."""
    rng = np.random.default_rng(seed)
    tensors = []
    for name, shape in gates.items():
        numel = shape[0] * shape[1]
        count = int(numel * sparsity) if sparsity is not None else zeros
        positions = np.sort(rng.choice(numel, count, replace=False)).astype(np.uint32)
        tensors.append(bmt_core.TensorMask(name, shape, positions))
    return bmt_core.Mask(base, tuple(tensors), metadata)


def random_mask_of(model: Path, seed: int, sparsity: float = 0.004) -> bmt_core.Mask:
    """A mask of a checkpoint's gates, by default at about the sparsity that SFT reaches."""
    return random_mask(
        bmt_core.geometry(model),
        seed,
        sparsity=sparsity,
        base=bmt_core.Base("test", bmt_core.fingerprint(model)),
        **{"seed": seed},
    )


def mask_of_shapes(seed: int, shapes: Sequence[tuple[int, int]], sparsity: float) -> bmt_core.Mask:
    """A mask of tensors `t0`, `t1`, … on a base whose name is not ASCII."""
    gates = {f"t{index}": shape for index, shape in enumerate(shapes)}
    base = bmt_core.Base("modèl", "cd" * 32)
    return random_mask(gates, seed, sparsity=sparsity, base=base, **{"seed": seed})


# A score as the trainer writes it into a mask's metadata.
SCORE = {"accuracy": 0.9125, "total": 400, "interval95": [0.8806, 0.9364], "exact": 365}
CLIENT_SHAPE = (64, 96)


def make_mask(seed: int, *, zeros: int = 40, layers: int = 2, **metadata: Any) -> bmt_core.Mask:
    """A mask of `layers` tensors of 64x96 with `zeros` zeros each."""
    return random_mask(gate_names(layers, CLIENT_SHAPE), seed, zeros=zeros, **metadata)
