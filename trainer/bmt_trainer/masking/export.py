"""From trained gates to a mask."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from bmt_core import Base, BaseMismatch, Mask, TensorMask

from bmt_trainer.distributed import whole
from bmt_trainer.masking.attach import Attached


@torch.no_grad()
def export(
    attached: Attached,
    base: Base,
    *,
    geometry: Mapping[str, tuple[int, int]] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Mask:
    """The hard mask: position p is deleted where G <= 0 (the complement of Eq. 8's G > 0).

    A weight that is 0 anyway is left out, so that masks of equal effect have equal digests.
    geometry: the checkpoint's tensors (`bmt_core.geometry`); raises BaseMismatch when a masked
    layer is none of them, since a mask names tensors as the checkpoint does.
    """
    tensors = []
    for name, layer in attached.layers.items():
        tensor = f"{name}.weight"
        shape = (layer.out_features, layer.in_features)
        if geometry is not None and geometry.get(tensor) != shape:
            raise BaseMismatch(
                f"{tensor} {shape} is {geometry.get(tensor, 'absent')} in the checkpoint of "
                f"{base.model_id}",
                field="tensors",
                value=tensor,
            )
        deleted = layer.deleted()
        positions = deleted[whole(layer.weight).view(-1)[deleted] != 0].cpu().numpy()
        dtype = np.uint32 if layer.weight.numel() <= 1 << 32 else np.uint64
        tensors.append(TensorMask(tensor, shape, positions.astype(dtype)))
    return Mask(base, tuple(tensors), dict(metadata or {}))


def library_versions(*names: str) -> dict[str, str]:
    """Versions of ourselves and the named libraries, for a mask's metadata."""
    found = {}
    for name in ("bmt-adapters", *names):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[name] = "unknown"
    return found
