"""Selection of the linear layers to mask in a model, and their replacement by masked ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from bmt_core import Mask
from torch import Tensor, nn

from bmt_trainer.errors import QuantizedModel
from bmt_trainer.masking.experts import mask_experts
from bmt_trainer.masking.masked_linear import MaskedLinear, MaskState, ParameterAccess
from bmt_trainer.masking.targets import Target, select

#: The name of the number of closed gates in logs, histories and results.
CLOSED_GATES = "closed_gates"


@dataclass(frozen=True, eq=False)
class Attached:
    """The masked layers of a model by module name, and their shared state.

    tensors: by module name, the name of its tensor in the checkpoint, if that is another than in
    the model.
    """

    # Departure: `closed` counts G <= 0 as appendix C does; zeros of a mask are weights not 0.

    state: MaskState
    layers: Mapping[str, MaskedLinear]
    tensors: Mapping[str, str] = field(default_factory=dict)

    def tensor(self, name: str) -> str:
        """The name in a mask of a layer's weight, or of its rows that have gates."""
        return self.layers[name].rows.name(self.tensors.get(name, f"{name}.weight"))

    @property
    def closed(self) -> int:
        """The number of closed gates: G <= 0, because Eq. 8 keeps G > 0.

        The zeros of the mask are fewer if the base has weights that are 0 already.
        """
        full_tensor = self.state.access.full_tensor
        return sum(int((full_tensor(m.gate_logits) <= 0).sum()) for m in self.layers.values())

    @property
    def numel(self) -> int:
        """The number of weights of the masked layers."""
        return sum(m.gated_weight.numel() for m in self.layers.values())

    @property
    def held(self) -> int:
        """The number of weights of the tensors that hold them."""
        return sum({id(m.holder): m.holder.numel() for m in self.layers.values()}.values())

    @property
    def sparsity(self) -> float:
        """The share of the gates that are closed."""
        return self.closed / self.numel

    @torch.no_grad()
    def load_mask(self, mask: Mask) -> None:
        """Set the trained gates to ±1 so that the hard mask is `mask`, which this run exported."""
        tensors = {tensor.name: tensor for tensor in mask.tensors}
        for name, layer in self.layers.items():
            zero = torch.zeros(layer.gated_weight.numel(), dtype=torch.bool)
            positions = tensors[self.tensor(name)].positions.astype("int64")
            zero[torch.from_numpy(positions)] = True
            zero = zero.to(layer.gate_logits.device)
            if layer.live is not None:
                zero = zero[layer.live]
            gates = torch.where(zero, -1.0, 1.0).view(layer.gate_logits.shape)
            self.state.access.assign(layer.gate_logits, gates)

    def start_teacher(self) -> None:
        """Add a teacher to every layer, its gates equal to the current ones."""
        for layer in self.layers.values():
            layer.start_teacher()

    def update_teacher(self, rate: float) -> None:
        """Move the teacher's gates of every layer towards the current ones (Eq. 4, γ = `rate`)."""
        for layer in self.layers.values():
            layer.update_teacher(rate)

    def gates(self) -> list[Tensor]:
        """The trainable tensors, fp32, one per layer."""
        return [m.gate_logits for m in self.layers.values()]


def attach(
    model: nn.Module,
    targets: str | None = None,
    access: ParameterAccess | None = None,
    stored: Mapping[str, str] | None = None,
) -> Attached:
    """Freeze `model` and mask, in place, each linear layer that `select` finds.

    access: for a model that a wrapper shards later; stored: names of tensors in the checkpoint by
    those of the model's parameters, if they differ. Raises the errors of `select`, and
    QuantizedModel for a weight on the meta device; the model is then unchanged.
    """
    chosen = select(model, targets)
    for name, target in chosen.items():
        if target.weight.is_meta:
            raise QuantizedModel(f"{name}.weight is on the meta device; load it on a real one")
    model.requires_grad_(False)
    state = MaskState(access=access or ParameterAccess())
    layers = {
        n: MaskedLinear.wrap(t.linear, state, t.rows) for n, t in chosen.items() if t.expert is None
    }
    layers |= _mask_experts(chosen, state)
    names = {n: (stored or {}).get(f"{n}.weight", f"{n}.weight") for n in layers}
    return Attached(state, layers, names)


def _mask_experts(chosen: Mapping[str, Target], state: MaskState) -> dict[str, MaskedLinear]:
    """The layers of experts' gates by name."""
    by_module: dict[nn.Module, dict[int, str]] = defaultdict(dict)
    for name, target in chosen.items():
        if target.expert is not None:
            by_module[target.layer][target.expert] = name
    return {
        names[expert]: layer
        for module, names in by_module.items()
        for expert, layer in mask_experts(module, list(names), state).items()
    }
