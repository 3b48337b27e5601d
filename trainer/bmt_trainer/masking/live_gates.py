"""Live gates: the gates that can still flip if training starts sharp; only they need training.

At sharpness α, a gate with z = αG above 16.7 has σ(z) = 1 in fp32, and its gradient,
α W σ(z) σ(-z), is far below what AdamW's eps lets through. α only grows (Eq. 7), so such a gate
never moves again. From `LIVE_SET_MIN_ALPHA` (methods/config/grpo.py) on, training the other gates
alone gives the same mask with a sixth of the optimizer's memory. At α = 100, where SFT starts,
every gate moves.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bmt_trainer.masking.attach import Attached

#: Gates with αG at most this are live. The sigmoid is 1 from 16.7 on; the margin covers what a gate
#: may move before α has grown.
LIMIT = 20.0


@torch.no_grad()
def live_positions(attached: Attached, alpha: float) -> dict[str, Tensor]:
    """By layer, int64 [n]: flat positions with αG <= LIMIT, all zeroed weights among them."""
    # Departure: the paper trains every gate.
    return {
        name: (layer.gate_logits.flatten() * alpha <= LIMIT).nonzero().flatten()
        for name, layer in attached.layers.items()
    }


def train_only(attached: Attached, positions: dict[str, Tensor]) -> None:
    """Train only the gates at these positions, in every layer."""
    for name, layer in attached.layers.items():
        layer.train_only(positions[name].to(layer.weight.device))


def save(positions: dict[str, Tensor], path: Path) -> None:
    """Write the positions to a safetensors file; the gates in a run's checkpoints are theirs."""
    scratch = path.with_name(f".{path.name}.tmp")  # the file is whole or absent
    save_file({name: flat.contiguous() for name, flat in positions.items()}, scratch)
    os.replace(scratch, path)


def load(path: Path) -> dict[str, Tensor]:
    """Read the file that `save` wrote."""
    return dict(load_file(path))
