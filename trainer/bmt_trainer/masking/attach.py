"""Finding the layers to mask in a model, and masking them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from bmt_core import Mask
from torch import Tensor, nn

from bmt_trainer.distributed import put, whole
from bmt_trainer.errors import ConfigError, ExpertTensors, FusedGate, NoTargets, QuantizedModel
from bmt_trainer.masking.masked_linear import MaskedLinear, MaskState

#: The paper's choice: the gate projection of every transformer block, by module name.
GATE_PROJECTIONS = r"\.mlp\.gate_proj$"


@dataclass(frozen=True, eq=False)
class Attached:
    """A model's masked layers by module name, and the state that they share."""

    state: MaskState
    layers: Mapping[str, MaskedLinear]

    @property
    def zeros(self) -> int:
        """Weights that the hard mask deletes: G <= 0, for Eq. 8 keeps only G > 0."""
        return sum(int((whole(m.gate_logits) <= 0).sum()) for m in self.layers.values())

    @property
    def numel(self) -> int:
        return sum(m.weight.numel() for m in self.layers.values())

    @property
    def sparsity(self) -> float:
        """Share of the masked layers' weights that the hard mask deletes."""
        return self.zeros / self.numel

    @torch.no_grad()
    def hold(self, mask: Mask) -> None:
        """Set the trained gates to ±1 so that the hard mask is `mask`, a mask of this run."""
        tensors = {tensor.name: tensor for tensor in mask.tensors}
        for name, layer in self.layers.items():
            deleted = torch.zeros(layer.weight.numel(), dtype=torch.bool)
            positions = tensors[f"{name}.weight"].positions.astype("int64")
            deleted[torch.from_numpy(positions)] = True
            deleted = deleted.to(layer.gate_logits.device)
            chosen = deleted if layer.live is None else deleted[layer.live]
            put(layer.gate_logits, torch.where(chosen, -1.0, 1.0).view(layer.gate_logits.shape))

    def start_teacher(self) -> None:
        """Give every layer a teacher's gates, as the gates now are."""
        for layer in self.layers.values():
            layer.start_teacher()

    def gates(self) -> list[Tensor]:
        """The trainable tensors, fp32, one per layer."""
        return [m.gate_logits for m in self.layers.values()]


def attach(model: nn.Module, targets: str = GATE_PROJECTIONS) -> Attached:
    """Freeze `model` and mask, in place, each linear layer whose module name `targets` finds.

    Raises ConfigError for a bad pattern, and NoTargets, FusedGate, QuantizedModel or
    ExpertTensors for a model that cannot be masked; the model is then unchanged.
    """
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ConfigError(f"targets: {targets!r} is no regular expression ({error})") from None
    if getattr(getattr(model, "config", None), "quantization_config", None) is not None:
        raise QuantizedModel("the model is quantised; train on its unquantised checkpoint")
    found = {name: m for name, m in model.named_modules() if pattern.search(name)}
    for name, module in found.items():
        _check(name, module)
    if not found:
        raise _nothing_found(model, targets)
    model.requires_grad_(False)
    state = MaskState()
    layers: dict[str, MaskedLinear] = {}
    for name, module in found.items():
        assert isinstance(module, nn.Linear)
        layers[name] = MaskedLinear.wrap(module, state)
    return Attached(state, layers)


def _check(name: str, module: nn.Module) -> None:
    if isinstance(module, MaskedLinear):
        raise ConfigError(f"{name} is masked already; attach to a freshly loaded model")
    if type(module) is not nn.Linear:
        # Quantised layers of several libraries are subclasses, hence the exact comparison.
        raise QuantizedModel(
            f"{name} is a {type(module).__name__}, not a plain nn.Linear; load the unquantised "
            "checkpoint, without adapters"
        )
    if not torch.is_floating_point(module.weight) or module.weight.is_meta:
        raise QuantizedModel(
            f"{name}.weight is {module.weight.dtype} on {module.weight.device}; it must be a "
            "floating-point tensor that is loaded"
        )


def _nothing_found(model: nn.Module, targets: str) -> Exception:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3 and re.search(r"(gate|w1|w13)", name.rsplit(".", 1)[-1]):
            return ExpertTensors(
                f"{name} {list(parameter.shape)} holds all experts in one tensor; a mask needs "
                "one matrix per gate, so this architecture is not supported"
            )
    linears = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    for name in linears:
        if re.search(r"gate_up|up_gate", name.rsplit(".", 1)[-1]):
            return FusedGate(
                f"{name} fuses gate and up projection into one matrix; a mask names checkpoint "
                "tensors, and this checkpoint has no separate gate"
            )
    kinds = sorted({name.rsplit(".", 1)[-1] for name in linears})
    return NoTargets(
        f"targets: {targets!r} matches none of the {len(linears)} linear layers "
        f"({', '.join(kinds[:12]) or 'none'}); set it to a pattern of their module names"
    )
