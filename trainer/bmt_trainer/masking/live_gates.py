"""Which gates can still flip when training starts sharp: all the others need no training.

At sharpness α a gate z = αG above 16.7 has σ(z) = 1 in fp32, and its gradient, α W σ(z) σ(-z),
is far below what AdamW's eps lets through. α only grows (Eq. 7), so such a gate never comes back.
Training the others alone gives the same mask with a sixth of the optimizer's memory; at α = 100,
where SFT starts, every gate moves, and it would not.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bmt_trainer.masking.attach import Attached

#: Gates with αG at most this are live. 16.7 is where the sigmoid is 1; the rest is for what a gate
#: may move before α has grown.
LIMIT = 20.0


@torch.no_grad()
def live_sets(attached: Attached, alpha: float) -> dict[str, Tensor]:
    """By layer, int64 [|S|]: flat places with αG <= LIMIT, which holds all deleted ones."""
    return {
        name: (layer.gate_logits.flatten() * alpha <= LIMIT).nonzero().flatten()
        for name, layer in attached.layers.items()
    }


def keep_live(attached: Attached, sets: dict[str, Tensor]) -> None:
    """Train the gates of `sets` alone, in every layer."""
    for name, layer in attached.layers.items():
        layer.keep_live(sets[name].to(layer.weight.device))


def save(sets: dict[str, Tensor], path: Path) -> None:
    """Keep them beside a run's checkpoints, whose gates are of these places."""
    save_file({name: places.contiguous() for name, places in sets.items()}, path)


def load(path: Path) -> dict[str, Tensor]:
    """What `save` wrote."""
    return dict(load_file(path))
