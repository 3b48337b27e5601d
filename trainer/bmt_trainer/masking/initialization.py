"""Initialization of the gates: calibration, Wanda scores, and first values (paper, Eq. 9)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import NormalDist

import torch
from bmt_core import Mask
from torch import Tensor
from transformers import PreTrainedModel

from bmt_trainer.masking.attach import Attached
from bmt_trainer.masking.calibration import input_norms
from bmt_trainer.masking.equations import initial_gates, unimportant, wanda_scores


def initialize(
    model: PreTrainedModel,
    attached: Attached,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    eta: float,
    mean: float,
    std: float,
    tail: bool,
    seed: int,
    nonzero: bool = False,
) -> None:
    """Give all gates of `model` their first values, by the inputs of its layers on `batches`.

    batches: as `input_norms` takes them; the others: as `init_gates`. Raises NonFinite.
    """
    # Departure: all prompts if there are fewer than the paper's 2,048.
    norms = input_norms(model, attached, batches)
    init_gates(attached, norms, eta=eta, mean=mean, std=std, tail=tail, seed=seed, nonzero=nonzero)


def expected_sparsity(*, eta: float, mean: float, std: float, tail: bool) -> float:
    """The share of the gates that Eq. 9 is expected to start at or below 0.

    Gates of the share eta start around -mean; with the tail, some of the others are below 0 by
    chance.
    """
    below = NormalDist().cdf(mean / std) if std else 1.0
    return eta * below + ((1 - eta) * (1 - below) if tail else 0.0)


@torch.no_grad()
def init_gates(
    attached: Attached,
    norms: Mapping[str, Tensor],
    *,
    eta: float,
    mean: float = 0.03,
    std: float = 0.01,
    tail: bool = True,
    seed: int = 0,
    nonzero: bool = False,
) -> None:
    """Set every gate by Eq. 9: N(mean, std²), or N(-mean, std²) if its weight is unimportant.

    norms: ‖X_j‖₂ [d_in] by layer, from `input_norms`. tail: if False, gates of important weights
    are at least std / 2. That departs from the paper, where 0.13 % of them start below 0 by
    chance, their mean being three standard deviations above it. nonzero: eta is the share of the
    weights that are not 0.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, layer in attached.layers.items():
        W = layer.gated_weight
        scores = wanda_scores(W, norms[name].to(W.device))
        low = unimportant(scores, eta, W != 0 if nonzero else None)
        G = initial_gates(low, mean, std, generator)
        layer.gate_logits.copy_(G if tail else torch.where(low, G, G.clamp(min=std / 2)))


#: Gates of zeros that are held. α G is below -104 for every α from 1.1e-4 on, where σ is 0 in fp32:
#: so are the weight and its gradient, and AdamW does not move the gate. At a smaller α its steps,
#: of about the learning rate, still bring none near 0.
HELD = -1e6


@torch.no_grad()
def init_from(
    attached: Attached,
    mask: Mask,
    *,
    mean: float = 0.03,
    std: float = 0.01,
    hold: bool = False,
    seed: int = 0,
) -> None:
    """Set every gate so that the hard mask is `mask`: those of its zeros below 0, all others above.

    The mask's zeros take the place of Eq. 9's unimportant weights, and there is no tail: |G| is at
    least std / 2. A mask has the signs of its gates alone, so their values are drawn again. hold:
    gates of the zeros are `HELD`, and stay so. Each tensor of `mask` with a zero is one of the
    layers (`zeros_outside`).
    """
    # Departure: Eq. 9 starts from the base; Wanda's scores delete nothing here.
    generator = torch.Generator().manual_seed(seed)
    tensors = {tensor.name: tensor for tensor in mask.tensors}
    for name, layer in attached.layers.items():
        W = layer.gated_weight
        low = torch.zeros(W.numel(), dtype=torch.bool)
        if (tensor := tensors.get(attached.tensor(name))) is not None:
            low[torch.from_numpy(tensor.positions.astype("int64"))] = True
        low = low.view(W.shape).to(W.device)
        G = initial_gates(low, mean, std, generator)
        below = torch.full_like(G, HELD) if hold else G.clamp(max=-std / 2)
        layer.gate_logits.copy_(torch.where(low, below, G.clamp(min=std / 2)))


def zeros_outside(attached: Attached, mask: Mask) -> list[str]:
    """Names of the mask's tensors with zeros that are none of the layers' weights, or not so large.

    Training from the mask would lose those zeros.
    """
    shapes = {
        attached.tensor(name): tuple(layer.gated_weight.shape)
        for name, layer in attached.layers.items()
    }
    return [t.name for t in mask.tensors if t.zeros and shapes.get(t.name) != t.shape]
