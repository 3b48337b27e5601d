"""Gate projections of a checkpoint, by the headers of its files and its `config.json`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from bmt_core.fingerprint import checkpoint_types
from bmt_core.gates.rows import Rows

#: Element type and shape of a checkpoint's tensors by name, as of `checkpoint_types`.
Types = Mapping[str, tuple[str, tuple[int, ...]]]
#: Names of maskable tensors: the gate projections of gated MLPs.
GATES = r"\.mlp\.gate_proj\.weight$"
#: Module names of projections that hold gate and up projection in one matrix.
FUSED_GATES = r"\.mlp\.gate_up_proj$"

#: Architectures, by `model_type`, whose fused projection is known to begin with the gate's rows:
#: they compute `gate, up = gate_up_proj(x).chunk(2)` (transformers 5.19, modeling_phi3.py,
#: modeling_glm.py, modeling_glm4.py and their copies). Others put `up` first, so no rule holds.
GATE_FIRST = frozenset({"phi3", "phi4_multimodal", "glm", "glm4", "glm4v_text", "glm_ocr_text"})

# Parts of names of vision and audio towers and of what joins them to the text model, whose gates
# no text passes.
_TOWER = re.compile(
    r"(?:^|[._])(?:vision|visual|vit|audio|image|speech|sam|talker|connector|perceiver|resampler"
    r"|projector|aligner)(?:[._]|$)"
)
# Blocks that predict further tokens, which no answer passes: engines load them as a draft model.
_AHEAD = re.compile(r"(?:^|[._])mtp(?:[._]|$)")
# A tensor of a gate projection: its module, and the rest of its name.
_OF_GATE = re.compile(r"^(.*\.mlp\.(?:gate_proj|gate_up_proj))\.(.+)$")
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_EXPERTS = re.compile(r"\.experts\.")
# The gate of an expert, or of one that all tokens pass, as a matrix of its own.
_EXPERT_GATE = re.compile(r"(.+\.experts)\.([0-9]{1,6})\.(?:gate_proj|w1)\.weight", re.ASCII)
_SHARED_GATE = re.compile(r".+\.shared_experts?\.gate_proj\.weight")
_LAYER = re.compile(r"(?:^|\.)layers\.([0-9]{1,9})\.")


def in_tower(name: str) -> bool:
    """True for a module or tensor of a vision or audio tower, by its name."""
    return _TOWER.search(name) is not None


def gate_first(model_types: Iterable[str]) -> bool:
    """True if a fused projection of these `model_type`s is known to begin with the gate's rows.

    model_types: of a configuration and of its text part.
    """
    return not GATE_FIRST.isdisjoint(model_types)


def model_types(checkpoint: str | os.PathLike[str]) -> set[str]:
    """The `model_type`s of a checkpoint's `config.json` and of its text part; empty without one."""
    kinds = (part.get("model_type") for part in _configs(checkpoint))
    return {kind for kind in kinds if isinstance(kind, str)}


def _configs(checkpoint: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The `config.json` of a checkpoint and its text part, those of them that there are."""
    try:
        config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    parts = (config, config.get("text_config")) if isinstance(config, dict) else ()
    return [part for part in parts if isinstance(part, dict)]


def _layers(checkpoint: str | os.PathLike[str]) -> int | None:
    """The number of the text model's layers, of its own part if that has one; None if unknown."""
    for part in reversed(_configs(checkpoint)):
        if isinstance(count := part.get("num_hidden_layers"), int):
            return count
    return None


def _is_of_text(name: str, layers: int | None) -> bool:
    """True for a tensor that the text model's answers pass.

    layers: of the text model; checkpoints have blocks that predict further tokens after the last.
    """
    if in_tower(name) or _AHEAD.search(name):
        return False
    layer = _LAYER.search(name)
    return layers is None or layer is None or int(layer[1]) < layers


def gate_parts(
    checkpoint: str | os.PathLike[str], types: Types | None = None
) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """Element type and shape of each tensor of the maskable gate projections, by module and part.

    A part is the rest of a tensor's name behind its module: `weight`, or `qweight` and `scales`.
    types: of `checkpoint_types`, None to read them. Raises CheckpointError.
    """
    layers, fused = _layers(checkpoint), gate_first(model_types(checkpoint))
    gates: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, entry in (checkpoint_types(checkpoint) if types is None else types).items():
        found = _OF_GATE.search(name)
        if found and _is_of_text(name, layers) and (fused or found[1].endswith(".gate_proj")):
            gates.setdefault(found[1], {})[found[2]] = entry
    return gates


def quantized_gates(
    checkpoint: str | os.PathLike[str], types: Types | None = None
) -> dict[str, str]:
    """Element types of the maskable gate projections that are stored as codes, by tensor.

    Quantizers store codes in the place of the weight (FP8, INT8, bitsandbytes) or under a name of
    their own (AWQ and GPTQ, compressed-tensors, HQQ, torchao, AQLM), so a gate counts if it has
    integers or 8-bit floats and no plain weight. types: see `gate_parts`. Raises CheckpointError.
    """
    made = {}
    for gate, parts in gate_parts(checkpoint, types).items():
        kinds = {part: kind for part, (kind, _) in parts.items()}
        # bitsandbytes may keep its codes as bytes of 16-bit floats: what it notes of them,
        # weight.quant_state..., is integers then.
        codes = [
            part
            for part, kind in kinds.items()
            if kind not in _FLOATS
            and (kinds.get("weight") not in _FLOATS or part.startswith("weight"))
        ]
        if codes:
            largest = max(codes, key=lambda part: prod(parts[part][1]))
            part = "weight" if "weight" in kinds else largest
            made[f"{gate}.{part}"] = kinds[part]
    return made


def has_expert_gates(checkpoint: str | os.PathLike[str], types: Types | None = None) -> bool:
    """True if blocks of a checkpoint are mixtures of experts.

    types: see `gate_parts`. Raises CheckpointError.
    """
    names = checkpoint_types(checkpoint) if types is None else types
    return any(_EXPERTS.search(name) for name in names)


def geometry(
    checkpoint: str | os.PathLike[str], pattern: str = GATES, types: Types | None = None
) -> dict[str, tuple[int, int]]:
    """Return the shapes [d_out, d_in] of the maskable tensors by name.

    By default of the gate projections of the text model's layers; one that is fused with the up
    projection is named by its rows (`gates/rows.py`). pattern: of the names of tensors, to return
    these instead, each whole, [experts, d_out, d_in] as [experts * d_out, d_in]. types: see
    `gate_parts`. Raises CheckpointError.
    """
    read = checkpoint_types(checkpoint) if types is None else types
    tensors = [(name, shape) for name, (_, shape) in read.items()]
    maskable = re.compile(pattern)
    found = {
        name: (prod(shape[:-1]), shape[-1])
        for name, shape in tensors
        if (len(shape) == 2 or (len(shape) == 3 and pattern != GATES))
        and 0 not in shape
        and maskable.search(name)
    }
    if pattern != GATES:
        return found
    layers = _layers(checkpoint)
    found = {name: shape for name, shape in found.items() if _is_of_text(name, layers)}
    fused = re.compile(FUSED_GATES.replace("$", r"\.weight$"))
    if not found and gate_first(model_types(checkpoint)):
        for name, shape in tensors:
            whole = len(shape) == 2 and shape[0] >= 2 and shape[1] > 0
            if whole and fused.search(name) and _is_of_text(name, layers):
                found[str(Rows(name, 0, shape[0] // 2))] = (shape[0] // 2, shape[1])
    return found


def expert_of(name: str) -> tuple[str, int] | None:
    """The module of all experts and the expert's number, by the name of its gate; else None."""
    found = _EXPERT_GATE.fullmatch(name)
    return (found[1], int(found[2])) if found else None


def served_geometry(
    checkpoint: str | os.PathLike[str], types: Types | None = None
) -> dict[str, tuple[int, int]]:
    """Shapes of the tensors that a server takes masks of: `geometry`, and gates of experts.

    Those that are matrices of their own, as weights: not rows of a tensor of all experts, and no
    codes. types: see `gate_parts`. Raises CheckpointError.
    """
    read = checkpoint_types(checkpoint) if types is None else types
    found, layers = geometry(checkpoint, types=read), _layers(checkpoint)
    gates = {
        name: (shape[0], shape[1])
        for name, (kind, shape) in read.items()
        if (_EXPERT_GATE.fullmatch(name) or _SHARED_GATE.fullmatch(name))
        and kind in _FLOATS
        and len(shape) == 2
        and 0 not in shape
        and _is_of_text(name, layers)
    }
    # Shared experts alone say nothing of the others, which may be of another form.
    return found | gates if any(map(expert_of, gates)) else found
