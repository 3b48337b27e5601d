"""Initialization of the gates: calibration, Wanda scores, and first values (paper, Eq. 9)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import NormalDist

import torch
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
) -> None:
    """Give all gates of `model` their first values, by the inputs of its layers on `batches`.

    batches: as `input_norms` takes them; the others: as `init_gates`. Raises NonFinite.
    """
    # Departure: all prompts if there are fewer than the paper's 2,048.
    norms = input_norms(model, attached, batches)
    init_gates(attached, norms, eta=eta, mean=mean, std=std, tail=tail, seed=seed)


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
) -> None:
    """Set every gate by Eq. 9: N(mean, std²), or N(-mean, std²) if its weight is unimportant.

    norms: ‖X_j‖₂ [d_in] by layer, from `input_norms`. tail: if False, gates of important weights
    are at least std / 2. That departs from the paper, where 0.13 % of them start below 0 by
    chance, their mean being three standard deviations above it.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, layer in attached.layers.items():
        W = layer.gated_weight
        low = unimportant(wanda_scores(W, norms[name].to(W.device)), eta)
        G = initial_gates(low, mean, std, generator)
        layer.gate_logits.copy_(G if tail else torch.where(low, G, G.clamp(min=std / 2)))
