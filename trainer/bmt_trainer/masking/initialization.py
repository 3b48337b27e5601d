"""Where the gates start: Wanda scores and the two Gaussians of Eq. 9.

Legend: W [d_out, d_in] frozen weight; X [tokens, d_in] the layer's inputs over all calibration
prompts; ‖X_j‖ [d_in] the norm of column j; s [d_out, d_in] the scores; η the share called
unimportant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bmt_trainer.masking.attach import Attached


@torch.no_grad()
def input_norms(
    model: PreTrainedModel, attached: Attached, batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """‖X_j‖₂ [d_in] in fp32 of each masked layer's inputs, on the unmasked model.

    batches: `input_ids` and `attention_mask`, both [B, S]; padding is left out of the norms.
    """
    squares = {
        name: torch.zeros(m.in_features, device=m.weight.device)
        for name, m in attached.layers.items()
    }
    keep: Tensor | None = None

    def add(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).float()  # [B * S, d_in]
            assert keep is not None
            squares[name] += x[keep.to(x.device)].square().sum(0)

        return hook

    hooks = [m.register_forward_pre_hook(add(name)) for name, m in attached.layers.items()]
    try:
        with attached.state.use("off"):
            for batch in batches:
                keep = batch["attention_mask"].reshape(-1).bool()
                # Without its head: nobody needs the logits, and the vocabulary is large.
                model.base_model(**batch, use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    return {name: total.sqrt() for name, total in squares.items()}


def unimportant(W: Tensor, norms: Tensor, eta: float) -> Tensor:
    """Bool [d_out, d_in]: s = |W| · ‖X_j‖ is within the lowest η of the whole matrix.

    Over the matrix, not per row as in Wanda's code: with η = 1/2048 a row of fewer than 2,048
    weights would have none, which contradicts the paper's own numbers for small models. At
    least one weight is chosen; weights that tie with the quantile are chosen too.
    """
    s = W.float().abs() * norms
    # kthvalue, because torch.quantile refuses more than 16 M elements.
    return s <= s.flatten().kthvalue(max(1, int(s.numel() * eta))).values


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
    """G ~ N(mean, std²), or N(-mean, std²) where the weight is unimportant (Eq. 9).

    tail: without it, gates of important weights are at least std / 2, a departure from the paper:
    a mean of three standard deviations leaves 0.13 % of them below 0 by chance.
    """
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same on every device
    for name, layer in attached.layers.items():
        low = unimportant(layer.weight, norms[name].to(layer.weight.device), eta)
        noise = torch.randn(low.shape, generator=generator).to(low.device)
        gates = torch.where(low, -mean, mean) + std * noise
        layer.gate_logits.copy_(
            gates if tail else torch.where(low, gates, gates.clamp(min=std / 2))
        )
