"""Selection of the linear layers of a model that are masked, and of their rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from bmt_core.gates.geometry import FUSED_GATES, gate_first, in_tower
from torch import nn

from bmt_trainer.errors import ConfigError, ExpertTensors, FusedGate, NoTargets, QuantizedModel
from bmt_trainer.masking.experts import expert_gates, gate_shape, is_masked, stacked_weight
from bmt_trainer.masking.gated_rows import ALL_ROWS, GatedRows
from bmt_trainer.masking.masked_linear import MaskedLinear

#: The paper's targets, by module name: the gate projection of every transformer block. The gate in
#: a fused projection answers to the same name.
GATE_PROJECTIONS = r"\.mlp\.gate_proj$"
#: The gate of each expert, where a model holds them in one tensor: to be asked for.
EXPERT_GATES = r"\.experts\.\d+\.gate_proj$"

_FRESH = "attach to a freshly loaded model"


@dataclass(frozen=True)
class Target:
    """A layer to mask, and the rows of its weight that get gates.

    expert: number of the one whose gate is masked, if the layer holds all experts.
    """

    layer: nn.Module
    rows: GatedRows = ALL_ROWS
    expert: int | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The tensor of the layer's weight, of all experts if it holds them."""
        return stacked_weight(self.layer) if self.expert is not None else self.linear.weight

    @property
    def linear(self) -> nn.Linear:
        """The layer as a linear one, which it is unless it holds experts."""
        assert isinstance(self.layer, nn.Linear)
        return self.layer

    @property
    def stored_shape(self) -> tuple[int, int]:
        """[d_out, d_in] of the weight that a checkpoint stores, under the layer's name."""
        if self.expert is not None:
            return gate_shape(self.layer)
        return self.linear.out_features, self.linear.in_features

    @property
    def shape(self) -> tuple[int, int]:
        """[R, d_in] of the rows with gates."""
        return self.rows.shape(*self.stored_shape)

    @property
    def numel(self) -> int:
        """The number of gates."""
        return self.shape[0] * self.shape[1]


def select(model: nn.Module, targets: str | None = None) -> dict[str, Target]:
    """The linear layers whose module name matches `targets`, by name; `model` may be on meta.

    targets: a regular expression, searched for in the name; None: `GATE_PROJECTIONS`, which must
    match in every block and leave no experts out, because a model that is masked in part is to be
    asked for. The gate in a fused projection of a known architecture is found as `mlp.gate_proj`;
    a pattern that matches the fused layer's own name takes it whole. The gate of an expert is found
    as `experts.N.gate_proj`, by a pattern that is given alone. Raises ConfigError for an
    invalid pattern, and NoTargets, FusedGate, QuantizedModel or ExpertTensors for a model that
    cannot be masked.
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
    if targets is None:
        # Another tower's gates see no text.
        matches = {name: m for name, m in matches.items() if not in_tower(name)}
    for name, module in matches.items():
        if targets is not None and any(True for _ in module.children()):
            raise NoTargets(
                f"targets: {targets!r} matches {name or 'the whole model'}, a "
                f"{type(module).__name__} of several layers; set it to a pattern of the names of "
                "linear layers"
            )
        _check(name, module)
    chosen = {name: Target(m) for name, m in matches.items() if isinstance(m, nn.Linear)}
    for name, module in _fused(model):
        own = name.removesuffix("gate_up_proj") + "gate_proj"
        if name not in chosen and expression.search(own) and _is_gate_first(model):
            _check(name, module)
            if isinstance(module, nn.Linear):
                chosen[name] = Target(module, GatedRows(0, module.out_features // 2))
    if targets is not None:
        for name, module, expert in expert_gates(model):
            if expression.search(name):
                if is_masked(module):
                    raise ConfigError(f"{name} is masked already; {_FRESH}")
                chosen[name] = Target(module, expert=expert)
    if not chosen:
        raise _no_match(model, pattern)
    if targets is None:
        _refuse_part(model, list(chosen))
    return chosen


def held_by(targets: Iterable[Target]) -> tuple[int, int]:
    """Weights of the tensors that these targets are of, and of those that hold all experts."""
    weights = {id(t.layer): (t.weight.numel(), t.expert is not None) for t in targets}
    return sum(n for n, _ in weights.values()), sum(n for n, stacked in weights.values() if stacked)


def _fused(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The text model's fused gate and up projections, by name."""
    expression = re.compile(FUSED_GATES)
    for name, module in model.named_modules():
        if expression.search(name) and not in_tower(name):
            yield name, module


def _is_gate_first(model: nn.Module) -> bool:
    config = getattr(model, "config", None)
    parts = (config, getattr(config, "text_config", None))
    return gate_first(str(getattr(part, "model_type", "")) for part in parts)


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
        f"{part}, and {name} {shape} holds all experts in one tensor; {advice}{_of_experts(model)}"
    )


def holds_experts(name: str, parameter: torch.Tensor) -> bool:
    """True for a parameter [experts, …] that holds the gates of all experts, by its name."""
    leaf = name.rsplit(".", 1)[-1]
    return parameter.ndim == 3 and re.match(r"gate_up|up_gate|gate_proj|w1$|w13", leaf) is not None


def _of_experts(model: nn.Module) -> str:
    """The advice on the gates of a model's experts."""
    if any(True for _ in expert_gates(model)):
        return f"; to mask the gate of each expert, set targets to {EXPERT_GATES!r}"
    return (
        ", transposed, or with rows of gate and up projection in turns: a mask names rows that "
        "follow each other, so their gates cannot be masked"
    )


def _experts(model: nn.Module) -> tuple[str, list[int]] | None:
    """Name and shape of a tensor that holds the gates of all experts, if there is one."""
    for name, parameter in model.named_parameters():
        if holds_experts(name, parameter):
            return name, list(parameter.shape)
    return None


def _check(name: str, module: nn.Module) -> None:
    if isinstance(module, MaskedLinear):
        raise ConfigError(f"{name} is masked already; {_FRESH}")
    if not isinstance(module, nn.Linear) and _is_unquantized(module):
        raise NoTargets(
            f"targets: they match {name}, a {type(module).__name__}, and masks are of linear "
            "layers alone; set targets to a pattern of their names, such as "
            f"{GATE_PROJECTIONS!r}"
        )
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


def _is_unquantized(module: nn.Module) -> bool:
    """True for an embedding, a norm, a router or an activation: floating weights, or none.

    Quantized layers that are no `nn.Linear` hold integers, or keep their weight under other names.
    """
    held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    weight = getattr(module, "weight", None)
    return not held or (isinstance(weight, torch.Tensor) and torch.is_floating_point(weight))


def _no_match(model: nn.Module, targets: str) -> Exception:
    """The error that names the reason why no layer matches."""
    if (experts := _experts(model)) is not None:
        return ExpertTensors(
            f"targets: {targets!r} matches no layer, and {experts[0]} {experts[1]} holds all "
            f"experts in one tensor{_of_experts(model)}"
        )
    linears = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    for name in linears:
        if re.search(r"gate_up|up_gate", name.rsplit(".", 1)[-1]):
            if _is_gate_first(model):
                return FusedGate(
                    f"targets: {targets!r} matches no layer; {name} fuses gate and up projection, "
                    "and its gate's rows answer to the name mlp.gate_proj"
                )
            return FusedGate(
                f"{name} fuses gate and up projection into one matrix, and it is not known which "
                f"rows of a {_model_type(model)} are the gate's; a pattern of targets that matches "
                "this name masks all of its rows"
            )
    kinds = sorted({name.rsplit(".", 1)[-1] for name in linears})
    return NoTargets(
        f"targets: {targets!r} matches none of the {len(linears)} linear layers "
        f"({', '.join(kinds[:12]) or 'none'}); set it to a pattern of their module names"
    )


def _model_type(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
