"""Calibration: the input norms ‖X_j‖₂ that Wanda's scores need (paper, section 4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bmt_trainer.errors import NonFinite
from bmt_trainer.masking.attach import Attached
from bmt_trainer.masking.experts import MaskedExpert


@torch.no_grad()
def input_norms(
    model: PreTrainedModel, attached: Attached, batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """‖X_j‖₂ [d_in] in fp32 of each masked layer's inputs, on the unmasked model.

    Of an expert's gate: of the tokens that take it, or of all if none does.

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

    def add_routed(names: Mapping[int, str]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            # [B * S, d_in], and the experts that each token takes [B * S, k].
            x, taken = args[0].reshape(-1, args[0].shape[-1]).float(), args[1]
            assert keep is not None
            attended = keep.to(x.device)
            everything = x[attended].square().sum(0)
            for expert, name in names.items():
                squares[name] += x[attended & (taken == expert).any(-1)].square().sum(0)
                unrouted[name] = unrouted.get(name, 0) + everything

        return hook

    hooks = [
        m.register_forward_pre_hook(add_squares(name))
        for name, m in attached.layers.items()
        if not isinstance(m, MaskedExpert)
    ]
    unrouted: dict[str, Tensor] = {}
    by_experts: dict[nn.Module, dict[int, str]] = defaultdict(dict)
    for name, m in attached.layers.items():
        if isinstance(m, MaskedExpert):
            by_experts[m.__dict__["experts"]][m.__dict__["expert"]] = name
    hooks += [
        module.register_forward_pre_hook(add_routed(names)) for module, names in by_experts.items()
    ]
    try:
        with attached.state.use("off"):
            for batch in batches:
                keep = batch["attention_mask"].reshape(-1).bool()
                # Without the LM head: logits are not needed, and the vocabulary is large.
                model.base_model(**batch, use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    # An expert that no token took has no scores of its own: all of its weights would be 0.
    totals = {n: t if bool(t.any()) else unrouted.get(n, t) for n, t in squares.items()}
    norms = {name: total.sqrt() for name, total in totals.items()}
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
