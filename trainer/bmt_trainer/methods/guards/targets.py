"""Layers to mask, found in a model's outline before its weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bmt_trainer import models
from bmt_trainer.masking.attach import select
from bmt_trainer.masking.export import check_stored


def masked_weights(
    folder: Path, targets: str | None, geometry: Mapping[str, tuple[int, int]]
) -> int:
    """The number of weights that will be masked. Raises the errors of `select` and of `export`."""
    chosen = select(models.outline(folder), targets)
    for name, layer in chosen.items():
        check_stored(name, (layer.out_features, layer.in_features), geometry, folder.name)
    return sum(layer.weight.numel() for layer in chosen.values())
