"""Layers to mask, found in a model's outline before its weights are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from bmt_core.gates.geometry import served_geometry

from bmt_trainer import models
from bmt_trainer.masking.export import check_stored
from bmt_trainer.masking.stored_names import stored_names
from bmt_trainer.masking.targets import select


def masked_tensors(
    folder: Path, targets: str | None, geometry: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """The tensors, or rows of them, that a mask will name, with their shapes.

    geometry: of all tensors of the checkpoint. Raises the errors of `select` and of `export`.
    """
    model = models.outline(folder)
    stored, tensors = stored_names(model, geometry), {}
    for name, target in select(model, targets).items():
        tensor = target.rows.name(stored.get(f"{name}.weight", f"{name}.weight"))
        check_stored(tensor, target.shape, geometry, folder.name)
        tensors[tensor] = target.shape
    return tensors


def not_served(folder: Path, tensors: Iterable[str]) -> str | None:
    """A line for a mask of these tensors that no server of the checkpoint takes, else None."""
    served = served_geometry(folder)
    other = next((name for name in tensors if name not in served), None)
    if other is None:
        return None
    return (
        "warning: targets: servers take masks of the text model's gate projections, and of those "
        f"of experts that are matrices of their own, not of {other}; the mask can be evaluated and "
        "applied to a checkpoint"
    )
