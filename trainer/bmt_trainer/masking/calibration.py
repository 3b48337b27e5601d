"""Calibration: the input norms ‖X_j‖₂ that Wanda's scores need (paper, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bmt_trainer.errors import NonFinite
from bmt_trainer.masking.attach import Attached


@torch.no_grad()
def input_norms(
    model: PreTrainedModel, attached: Attached, batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """‖X_j‖₂ [d_in] in fp32 of each masked layer's inputs, on the unmasked model.

    batches: `input_ids` and `attention_mask`, both [B, S]; padding does not count. Raises NonFinite
    for norms that are not finite; it names the layer.
    """
    squares = {
        name: torch.zeros(m.in_features, device=m.weight.device)
        for name, m in attached.layers.items()
    }
    keep: Tensor | None = None  # [B * S], False at padding

    def add_squares(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).float()  # [B * S, d_in]
            assert keep is not None
            squares[name] += x[keep.to(x.device)].square().sum(0)

        return hook

    hooks = [m.register_forward_pre_hook(add_squares(name)) for name, m in attached.layers.items()]
    try:
        with attached.state.use("off"):
            for batch in batches:
                keep = batch["attention_mask"].reshape(-1).bool()
                # Without the LM head: logits are not needed, and the vocabulary is large.
                model.base_model(**batch, use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    norms = {name: total.sqrt() for name, total in squares.items()}
    check_norms(norms)
    return norms


def check_norms(norms: Mapping[str, Tensor]) -> None:
    """Raise NonFinite for norms that are not finite; names the layer."""
    for name, norm in norms.items():
        if not bool(torch.isfinite(norm).all()):
            raise NonFinite(
                f"calibration: the inputs of {name} are not finite; weights in float16 overflow at "
                "65,504: train with --precision fp32, or convert the checkpoint to bfloat16"
            )
