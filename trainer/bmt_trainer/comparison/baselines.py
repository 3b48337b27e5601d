"""Baselines that any trainer trains in place of a mask: full fine-tuning, LoRA, TinyLoRA, MTH.

To a trainer, a baseline is a model without masked layers: `Attached` without layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bmt_trainer.comparison import adapter_sizes
from bmt_trainer.errors import ConfigError, ModelError
from bmt_trainer.masking.attach import Attached

#: The seven projections of a block: LoRA tunes them, and their updates are measured.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

#: Beginnings of the names of methods that train an adapter of peft.
ADAPTERS = ("lora", "tinylora")

#: name, W_0, W_+ of a linear layer, both [d_out, d_in]; W_+ is W_0 itself if it is not tuned.
Weights = Iterator[tuple[str, Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A model with trainable parameters: a baseline's, or a mask's gates.

    model: the module that trainers and evaluations call; trained: count of trainable numbers;
    size: bytes after training (appendix B); base: a context in which the model computes as the
    base, or None if its weights are changed; weights: of its projections, before and after; tuned:
    a context in which the model computes as trained.
    """

    model: nn.Module
    trained: int
    size: Callable[[], int]
    base: Callable[[], AbstractContextManager[Any]] | None
    weights: Callable[[nn.Module], Weights]
    tuned: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext)


def projections(model: nn.Module) -> dict[str, nn.Linear]:
    """The blocks' linear layers by module name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in PROJECTIONS
    }


def check_projections(model: nn.Module) -> None:
    """Raise ModelError for a base without all seven projections, as Phi and GLM with fused ones.

    A baseline that tunes some of them is not the paper's.
    """
    missing = set(PROJECTIONS) - {name.rpartition(".")[2] for name in projections(model)}
    if missing:
        raise ModelError(
            f"comparisons tune and measure {', '.join(PROJECTIONS)}, and a {type(model).__name__} "
            f"has no {', '.join(sorted(missing))}; compare on a model that has each as a layer"
        )


def full(model: nn.Module) -> Tuned:
    """Every weight, in fp32."""
    model.float().requires_grad_(True)
    total = count(model)
    return Tuned(
        model=model,
        trained=total,
        size=lambda: adapter_sizes.full(total),
        base=None,
        weights=lambda base: _before_and_after(base, model),
    )


def lora(model: nn.Module, rank: int, alpha: int | None, seed: int) -> Tuned:
    """peft's LoRA on all seven projections, A and B in fp32; alpha: 2 rank if None.

    The paper does not state LoRA's α; 2r is the usual setting of peft's users.
    """
    # Departure: verl's default α is 16, eight times this at rank 1.
    peft = _peft("lora")
    shapes = [tuple(m.weight.shape) for m in projections(model).values()]
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(PROJECTIONS),
    )
    size = adapter_sizes.lora(rank, shapes)  # type: ignore[arg-type]
    return _adapter(model, settings, lambda _trained: size, seed)


def tinylora(model: nn.Module, numbers: int, seed: int) -> Tuned:
    """peft's TinyLoRA (arXiv:2602.04118) on all seven projections, whose numbers are fp32.

    numbers: trainable ones of a projection, which choose a change within its two greatest singular
    directions through fixed random matrices. No rate is given.
    """
    # Departure: the paper leaves it out, for its training is unstable and sensitive to the rate.
    settings = _peft("tinylora").TinyLoraConfig(
        r=2,
        u=numbers,
        projection_seed=seed,
        target_modules=list(PROJECTIONS),
    )
    return _adapter(model, settings, adapter_sizes.full, seed)


def _peft(method: str) -> Any:
    try:
        import peft
    except ImportError:
        raise ConfigError(f"methods: {method} needs the package peft: pip install peft") from None
    return peft


def _adapter(model: nn.Module, settings: Any, size: Callable[[int], int], seed: int) -> Tuned:
    """An adapter of peft; size: bytes by the count of trainable numbers."""
    torch.manual_seed(seed)
    wrapped: Any = _peft("lora").get_peft_model(model, settings)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for name, buffer in wrapped.named_buffers():
        # TinyLoRA's factors; peft multiplies them with the trainable numbers as they are.
        if ".tinylora_" in name:
            buffer.data = buffer.data.float()
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)

    def weights(_base: nn.Module) -> Weights:
        for name, module in wrapped.get_base_model().named_modules():
            if hasattr(module, "get_delta_weight"):
                before = module.base_layer.weight.detach().float()
                yield name, before, before + module.get_delta_weight("default").detach().float()

    return Tuned(
        model=wrapped,
        trained=trained,
        size=lambda: size(trained),
        base=wrapped.disable_adapter,
        weights=weights,
    )


def mth(model: nn.Module, update_sparsity: float, seed: int) -> Tuned:
    """Multiple Ticket Hypothesis: training of a fixed random subset of all weights, in fp32.

    update_sparsity: share of each tensor's weights that keep the base's values; the others, at
    least one of a tensor, are trained. Elsewhere gradients are 0, and so are AdamW's moments and
    updates without weight decay, so those weights keep every bit.
    """
    # Departure: a share of each tensor, where MTH's is of all weights.
    model.float().requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    positions: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        some = max(1, round(parameter.numel() * (1 - update_sparsity)))
        chosen = torch.randperm(parameter.numel(), generator=generator)[:some].sort().values
        positions[name] = chosen.to(parameter.device)
        parameter.register_post_accumulate_grad_hook(_keep_gradients_at(positions[name]))
    active = sum(len(chosen) for chosen in positions.values())
    numels = {name: p.numel() for name, p in model.named_parameters()}

    def bits() -> Iterator[np.ndarray]:
        for name, chosen in positions.items():
            trained = np.zeros(numels[name], dtype=bool)
            trained[chosen.cpu().numpy()] = True
            yield trained

    return Tuned(
        model=model,
        trained=active,
        size=lambda: adapter_sizes.mth(active, bits()),
        base=None,
        weights=lambda base: _before_and_after(base, model),
    )


def masked(model: nn.Module, attached: Attached, size: Callable[[], int]) -> Tuned:
    """A masked model: W_+ of its layers is their hard weight (Eq. 8)."""

    def weights(_base: nn.Module) -> Weights:
        for name, module in projections(model).items():
            before, layer = module.weight.detach(), attached.layers.get(name)
            after = before if layer is None else layer.effective_weight("hard").detach()
            yield name, before, after

    return Tuned(
        model=model,
        trained=sum(g.numel() for g in attached.gates()),
        size=size,
        base=lambda: attached.state.use("off"),
        weights=weights,
        tuned=lambda: attached.state.use("hard"),
    )


def make(method: str, model: nn.Module, seed: int) -> Tuned:
    """A baseline by name: full, lora-RANK[-aALPHA], tinylora-N, mth-PERCENT. Raises ConfigError."""
    kind, _, number = method.partition("-")
    try:
        if kind == "full" and not number:
            return full(model)
        if kind == "lora" and int((parts := number.split("-a", 1))[0]) > 0:
            return lora(model, int(parts[0]), int(parts[1]) if parts[1:] else None, seed)
        if kind == "tinylora" and int(number) > 0:
            return tinylora(model, int(number), seed)
        if kind == "mth" and 0 < float(number) < 100 and math.isfinite(float(number)):
            return mth(model, float(number) / 100, seed)
    except ValueError:
        pass
    raise ConfigError(
        f"methods: {method!r} is none of base, wanda, full, lora-R, lora-R-aALPHA, tinylora-N, "
        "mth-P, bmt"
    )


def count(model: nn.Module) -> int:
    """Number of a model's parameters; those that two layers share count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _before_and_after(base: nn.Module, model: nn.Module) -> Weights:
    after = projections(model)
    for name, module in projections(base).items():
        yield name, module.weight.detach().float(), after[name].weight.detach().float()


def _keep_gradients_at(positions: Tensor) -> Callable[[Tensor], None]:
    """A hook that zeroes a parameter's gradient but at `positions` of the flat tensor."""

    @torch.no_grad()
    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        flat = parameter.grad.view(-1)
        chosen = flat[positions]
        flat.zero_()
        flat[positions] = chosen

    return hook
