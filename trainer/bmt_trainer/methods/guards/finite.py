"""Weights and gates that must be finite.

`models.finite_logits` has the logits, `masking.calibration` the norms of a layer's inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bmt_trainer.distributed import any_rank
from bmt_trainer.errors import NonFinite
from bmt_trainer.masking.attach import Attached


@torch.no_grad()
def check_weights(model: nn.Module) -> None:
    """Raise NonFinite for a base whose weights have NaN or infinity; names the tensor."""
    named = dict(model.named_parameters())
    for name in _not_finite(named):
        count = int((~torch.isfinite(named[name])).sum())
        raise NonFinite(
            f"base weight {name} has {count:,} values of {named[name].numel():,} that are not "
            "finite; the checkpoint is damaged: download or convert it again"
        )


@torch.no_grad()
def check_gates(attached: Attached, step: int) -> None:
    """Raise NonFinite for gates that are not finite, in all processes; names layer and step."""
    gates = {name: _local(layer.gate_logits) for name, layer in attached.layers.items()}
    found = _not_finite(gates)
    device = next(iter(gates.values())).device if gates else torch.device("cpu")
    if any_rank(bool(found), device):
        where = found[0] if found else "a layer of another process"
        raise NonFinite(f"step {step}: the gates of {where} are not finite; lower learning_rate")


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with NaN or infinity; waits for the device once."""
    floating = {name: t for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    if not floating:
        return []
    # A sum reads each value once and keeps no copy; it may overflow itself, so it only suspects.
    device = next(iter(floating.values())).device
    sums = torch.stack([t.sum(dtype=torch.float32).to(device) for t in floating.values()])
    suspect = (~torch.isfinite(sums)).tolist()
    return [
        name
        for (name, tensor), odd in zip(floating.items(), suspect, strict=True)
        if odd and not bool(torch.isfinite(tensor).all())
    ]
