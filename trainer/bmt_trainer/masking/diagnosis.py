"""Layers of a model that can be masked, and reasons of the others, before a weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import bmt_core
from bmt_core.gates.geometry import expert_of, in_tower, served_geometry
from torch import nn

from bmt_trainer import models
from bmt_trainer.checkpoint_files import check_checkpoint
from bmt_trainer.errors import ModelError
from bmt_trainer.masking.export import check_stored
from bmt_trainer.masking.stored_names import stored_names
from bmt_trainer.masking.targets import GATE_PROJECTIONS, Target, holds_experts, select
from bmt_trainer.outlines.loading import reason_not_loaded

Shapes = Mapping[str, tuple[int, int]]
# How the reason of a layer begins that its checkpoint lacks.
_ABSENT = "the checkpoint has no"
# The reason of a layer that is masked by default.
_LEFT_OUT = "the targets leave its gate projection out"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A model's layers, as masks see them.

    model_type, architecture: of its configuration; tensors: names in a mask, with the shapes;
    layers: the layers of the text model, masked: those with such a tensor; reasons: of the others,
    by their numbers; refusal: why training on these targets does not start; served: names that a
    server of this checkpoint takes; unloaded: those of them that are no gates of the model;
    incomplete: why its tensors do not make the model.
    """

    model_type: str
    architecture: str
    tensors: Shapes
    layers: int
    masked: tuple[int, ...]
    reasons: Mapping[int, str]
    refusal: str | None
    served: Shapes
    unloaded: tuple[str, ...] = ()
    incomplete: str | None = None

    @property
    def not_served(self) -> str | None:
        """The reason why a server does not take such masks, as far as the checkpoint shows it."""
        if not self.tensors:
            return "there is nothing to serve"
        other = next((name for name in self.tensors if name not in self.served), None)
        if other is not None:
            return (
                "servers take masks of the text model's gate projections, and of those of experts "
                f"that are matrices of their own, not of {other}"
            )
        absent = next((r for r in self.reasons.values() if r.startswith(_ABSENT)), None)
        if absent is not None:
            return f"vLLM loads complete checkpoints alone: {absent}"
        if self.incomplete is not None:
            return f"vLLM loads complete checkpoints alone: {self.incomplete}"
        if self.unloaded:
            return (
                "servers take bases whose gate projections are all loaded alone, and the model "
                f"does not load {self.unloaded[0]}"
            )
        experts = next((r for r in self.reasons.values() if "experts" in r), None)
        if experts is not None and not any(map(expert_of, self.served)):
            return f"servers take bases with a gate projection in every layer alone: {experts}"
        return None

    def lines(self) -> Iterator[str]:
        """The diagnosis as text."""
        weights = sum(rows * columns for rows, columns in self.tensors.values())
        yield f"model: {self.model_type}, {self.architecture}"
        yield f"masked: {len(self.masked)} of {self.layers} layers, {weights:,} weights"
        if self.tensors:
            name, shape = next(iter(self.tensors.items()))
            more = f", and {len(self.tensors) - 1} more" if len(self.tensors) > 1 else ""
            yield f"  {name} {list(shape)}{more}"
        for reason, numbers in groupby(sorted(self.reasons), key=lambda n: self.reasons[n]):
            found = list(numbers)
            span = f"layer {found[0]}" + (f" to {found[-1]}" if found[1:] else "")
            yield f"not masked: {span}: {reason}"
        yield f"training: {'refused: ' + self.refusal if self.refusal else 'yes'}"
        if self.not_served is not None:
            yield f"server: no: {self.not_served}"
        else:
            yield f"server: yes, if vLLM loads {self.architecture} with these layers"


def diagnose(folder: Path, targets: str | None = None) -> Diagnosis:
    """Look at a checkpoint's configuration and headers. Raises ModelError, CheckpointError.

    targets: as of `select`; where the default is refused because it masks some layers alone,
    `tensors` has those that the same pattern takes if it is asked for.
    """
    check_checkpoint(folder)
    return diagnosis_of(models.outline(folder), targets, folder)


def diagnosis_of(model: nn.Module, targets: str | None, folder: Path | None) -> Diagnosis:
    """The diagnosis of a model's outline; folder: of its checkpoint, if there is one."""
    refusal: str | None = None
    chosen: dict[str, Target] = {}
    try:
        chosen = select(model, targets)
    except ModelError as error:
        refusal = str(error)
        if targets is None:
            chosen = _part(model)
    own = {n: t.stored_shape for n, t in chosen.items()}
    geometry = {f"{name}.weight": shape for name, shape in own.items()}
    stored = {name: name for name in geometry}
    if folder is not None:
        geometry = dict(bmt_core.geometry(folder, ""))
        stored = stored_names(model, geometry)

    def tensor_of(name: str, target: Target) -> str:
        return target.rows.name(stored.get(f"{name}.weight", f"{name}.weight"))

    tensors: dict[str, tuple[int, int]] = {}
    absent: dict[str, str] = {}
    for name, target in list(chosen.items()):
        tensor = tensor_of(name, target)
        try:
            check_stored(tensor, target.shape, geometry, folder.name if folder else "")
        except bmt_core.BaseMismatch as error:
            refusal = refusal or str(error)
            absent[name] = f"{_ABSENT} {tensor} of {list(target.shape)}"
            del chosen[name]
        else:
            tensors[tensor] = target.shape
    loaded = reason_not_loaded(model, folder) if folder is not None else None
    refusal = refusal or loaded
    served = served_geometry(folder) if folder is not None else tensors
    every = bmt_core.geometry(folder) if folder is not None else {}
    own_gates = _part(model)
    gates = {tensor_of(name, target) for name, target in own_gates.items()}
    prefix, layers = _layers(model)
    masked = [n for n, _ in enumerate(layers) if _within(chosen, f"{prefix}.{n}.")]
    return Diagnosis(
        model_type=str(getattr(getattr(model, "config", None), "model_type", "")),
        architecture=type(model).__name__,
        tensors=tensors,
        layers=len(layers),
        masked=tuple(masked),
        reasons={
            n: _first(absent, f"{prefix}.{n}.")
            or (reason_of(layer) if not _within(own_gates, f"{prefix}.{n}.") else _LEFT_OUT)
            for n, layer in enumerate(layers)
            if n not in masked
        },
        refusal=refusal,
        served=served,
        unloaded=tuple(name for name in every if name not in gates),
        incomplete=loaded,
    )


def _part(model: nn.Module) -> dict[str, Target]:
    """The layers that the default pattern takes if it is asked for; empty if there are none."""
    try:
        return {n: t for n, t in select(model, GATE_PROJECTIONS).items() if not in_tower(n)}
    except ModelError:
        return {}


def _within(names: Mapping[str, Target], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _first(reasons: Mapping[str, str], prefix: str) -> str | None:
    return next((reason for name, reason in reasons.items() if name.startswith(prefix)), None)


def _layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The text model's list of layers: the longest list that lies in no other one and no tower."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not inner and not in_tower(name):
            found[name] = module
    if not found:
        return "", nn.ModuleList()
    return max(found.items(), key=lambda item: len(item[1]))


def reason_of(layer: nn.Module) -> str:
    """Why a layer has nothing that is masked by default."""
    for name, parameter in layer.named_parameters():
        if holds_experts(name, parameter):
            return f"the experts of {name} {list(parameter.shape)} are in one tensor"
    linears = [name for name, m in layer.named_modules() if isinstance(m, nn.Linear)]
    for pattern, reason in (
        (r"gate_up|up_gate", "{} fuses gate and up projection in an unknown order"),
        (r"gate_proj$", "{} is a gate under another name; set targets to it, for training alone"),
        (r"experts", "it has experts, as {}"),
    ):
        if (name := next((n for n in linears if re.search(pattern, n)), None)) is not None:
            return reason.format(name)
    return f"it has no gate projection ({', '.join(linears[:4]) or 'no linear layers'})"
