"""Selection of the linear layers to mask in a model, and their replacement by masked ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from bmt_core import Mask
from torch import Tensor, nn

from bmt_trainer.errors import ConfigError, ExpertTensors, FusedGate, NoTargets, QuantizedModel
from bmt_trainer.masking.masked_linear import MaskedLinear, MaskState, ParameterAccess

#: The paper's targets, by module name: the gate projection of every transformer block.
GATE_PROJECTIONS = r"\.mlp\.gate_proj$"


@dataclass(frozen=True, eq=False)
class Attached:
    """The masked layers of a model by module name, and their shared state."""

    # Departure: `zeros` counts G <= 0 as appendix C does; a mask counts weights not 0.

    state: MaskState
    layers: Mapping[str, MaskedLinear]

    @property
    def zeros(self) -> int:
        """The number of weights that the hard mask zeros: G <= 0, because Eq. 8 keeps G > 0."""
        full_tensor = self.state.access.full_tensor
        return sum(int((full_tensor(m.gate_logits) <= 0).sum()) for m in self.layers.values())

    @property
    def numel(self) -> int:
        """The number of weights of the masked layers."""
        return sum(m.weight.numel() for m in self.layers.values())

    @property
    def sparsity(self) -> float:
        """The share of the masked layers' weights that the hard mask zeros."""
        return self.zeros / self.numel

    @torch.no_grad()
    def load_mask(self, mask: Mask) -> None:
        """Set the trained gates to ±1 so that the hard mask is `mask`, which this run exported."""
        tensors = {tensor.name: tensor for tensor in mask.tensors}
        for name, layer in self.layers.items():
            zero = torch.zeros(layer.weight.numel(), dtype=torch.bool)
            positions = tensors[f"{name}.weight"].positions.astype("int64")
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


def select(model: nn.Module, targets: str | None = None) -> dict[str, nn.Linear]:
    """The linear layers whose module name matches `targets`, by name; `model` may be on meta.

    targets: a regular expression, searched for in the name; None: `GATE_PROJECTIONS`, which must
    match in every block and leave no experts out, because a model that is masked in part is to be
    asked for. Raises ConfigError for an invalid pattern, and NoTargets, FusedGate, QuantizedModel
    or ExpertTensors for a model that cannot be masked.
    """
    pattern = GATE_PROJECTIONS if targets is None else targets
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"targets: {pattern!r} is not a regular expression ({error}); an example is "
            f"{GATE_PROJECTIONS!r}"
        ) from None
    if getattr(getattr(model, "config", None), "quantization_config", None) is not None:
        raise QuantizedModel("the model is quantized; train on its unquantized checkpoint")
    matches = {name: m for name, m in model.named_modules() if expression.search(name)}
    for name, module in matches.items():
        if targets is not None and any(True for _ in module.children()):
            raise NoTargets(
                f"targets: {targets!r} matches {name or 'the whole model'}, a "
                f"{type(module).__name__} of several layers; set it to a pattern of the names of "
                "linear layers"
            )
        _check(name, module)
    if not matches:
        raise _no_match(model, pattern)
    if targets is None:
        _refuse_part(model, list(matches))
    return {name: m for name, m in matches.items() if isinstance(m, nn.Linear)}


def attach(
    model: nn.Module, targets: str | None = None, access: ParameterAccess | None = None
) -> Attached:
    """Freeze `model` and mask, in place, each linear layer that `select` finds.

    access: for a model that a wrapper shards later. Raises the errors of `select`, and
    QuantizedModel for a weight on the meta device; the model is then unchanged.
    """
    chosen = select(model, targets)
    for name, module in chosen.items():
        if module.weight.is_meta:
            raise QuantizedModel(f"{name}.weight is on the meta device; load it on a real one")
    model.requires_grad_(False)
    state = MaskState(access=access or ParameterAccess())
    return Attached(state, {n: MaskedLinear.wrap(m, state) for n, m in chosen.items()})


def coverage(model: nn.Module, names: Iterable[str]) -> tuple[int, int]:
    """The number of blocks with a layer of these names, and of all blocks in the same lists."""
    lists = {n: len(m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    blocks: dict[str, set[str]] = {}
    for name in names:
        parts = name.split(".")
        for at in range(1, len(parts)):
            if (outer := ".".join(parts[:at])) in lists:  # the outermost: a list of blocks
                blocks.setdefault(outer, set()).add(parts[at])
                break
    return sum(map(len, blocks.values())), sum(lists[name] for name in blocks)


def _refuse_part(model: nn.Module, names: list[str]) -> None:
    covered, blocks = coverage(model, names)
    experts = _experts(model)
    if covered == blocks and experts is None:
        return
    part = f"targets: {GATE_PROJECTIONS!r} matches in {covered} of {blocks} layers"
    advice = f"to mask these alone, set targets to a pattern of them, such as {names[0]!r}"
    if experts is None:
        raise NoTargets(f"{part}, {names[0]} among them; {advice}")
    name, shape = experts
    raise ExpertTensors(
        f"{part}, and {name} {shape} holds all experts in one tensor, which a mask cannot name; "
        f"{advice}"
    )


def _experts(model: nn.Module) -> tuple[str, list[int]] | None:
    """Name and shape of a tensor that holds the gates of all experts, if there is one."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3 and re.search(r"(gate|w1|w13)", name.rsplit(".", 1)[-1]):
            return name, list(parameter.shape)
    return None


def _check(name: str, module: nn.Module) -> None:
    if isinstance(module, MaskedLinear):
        raise ConfigError(f"{name} is masked already; attach to a freshly loaded model")
    if type(module) is not nn.Linear:
        # Several libraries derive their quantized layers from nn.Linear: isinstance would pass.
        raise QuantizedModel(
            f"{name} is a {type(module).__name__}, not a plain nn.Linear; load the unquantized "
            "checkpoint, without adapters"
        )
    if not torch.is_floating_point(module.weight):
        raise QuantizedModel(
            f"{name}.weight is {module.weight.dtype}; load it as a floating-point tensor"
        )


def _no_match(model: nn.Module, targets: str) -> Exception:
    """The error that names the reason why no layer matches."""
    if (experts := _experts(model)) is not None:
        return ExpertTensors(
            f"{experts[0]} {experts[1]} holds all experts in one tensor; a mask needs one matrix "
            "per gate, so this architecture is not supported"
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
