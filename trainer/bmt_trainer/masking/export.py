"""Export of trained gates as a mask."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from bmt_core import Base, BaseMismatch, Mask, TensorMask
from bmt_core.gates.rows import Rows

from bmt_trainer.masking.attach import Attached


@torch.no_grad()
def export(
    attached: Attached,
    base: Base,
    *,
    geometry: Mapping[str, tuple[int, int]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    first: Mask | None = None,
) -> Mask:
    """The hard mask: the positions with G <= 0, the complement of Eq. 8's G > 0.

    Weights that are 0 in the base are left out, so that masks of equal effect have equal digests;
    not so zeros of `first`, the mask that training began from, which keeps what it has.
    geometry: name and shape of the checkpoint's tensors (`bmt_core.geometry`). Raises BaseMismatch
    if a masked layer is not among them, because a mask names tensors as the checkpoint does.
    """
    # Departure: the paper stores 1[G > 0], weights that are 0 anyway among them.
    full_tensor = attached.state.access.full_tensor
    before = {t.name: t.positions for t in first.tensors} if first is not None else {}
    tensors = []
    for name, layer in attached.layers.items():
        tensor = attached.tensor(name)
        shape = layer.rows.shape(layer.out_features, layer.in_features)
        if geometry is not None:
            check_stored(tensor, shape, geometry, base.model_id)
        zeros = layer.zero_positions()
        weight = layer.rows.of(full_tensor(layer.weight)).reshape(-1)
        kept = weight[zeros] != 0
        if (given := before.get(tensor)) is not None:
            kept |= torch.isin(zeros, torch.from_numpy(given.astype(np.int64)).to(zeros.device))
        positions = zeros[kept].cpu().numpy()
        dtype = np.uint32 if weight.numel() <= 1 << 32 else np.uint64
        tensors.append(TensorMask(tensor, shape, positions.astype(dtype)))
    return Mask(base, tuple(tensors), dict(metadata or {}))


def check_stored(
    tensor: str, shape: tuple[int, int], geometry: Mapping[str, tuple[int, int]], model_id: str
) -> None:
    """Raise BaseMismatch for a weight, or rows of one, that the checkpoint does not store so."""
    rows = Rows.parse(tensor)
    stored = geometry.get(tensor if rows is None else rows.tensor)
    fits = stored is not None and (
        stored == shape if rows is None else rows.end <= stored[0] and stored[1] == shape[1]
    )
    # A geometry of gates names the rows themselves.
    if not fits and geometry.get(tensor) != shape:
        raise BaseMismatch(
            f"{tensor} {shape} is {stored or 'absent'} in the checkpoint of "
            f"{model_id}; choose targets that the checkpoint stores under these names",
            field="tensors",
            value=tensor,
        )


def library_versions(*names: str) -> dict[str, str]:
    """Versions of bmt-adapters and the named distributions, for a mask's metadata."""
    versions = {}
    for name in ("bmt-adapters", *names):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that is not installed
            versions[name] = "unknown"
    return versions
