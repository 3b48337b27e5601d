"""Gate projections of a checkpoint, by the headers of its files and its `config.json`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bmt_core.fingerprint import checkpoint_tensors
from bmt_core.gates.rows import Rows

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
    try:
        config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return set()
    return set(_types(config)) if isinstance(config, dict) else set()


def _types(config: Mapping[str, Any]) -> Iterator[str]:
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and isinstance(kind := part.get("model_type"), str):
            yield kind


def geometry(
    checkpoint: str | os.PathLike[str], pattern: str = GATES
) -> dict[str, tuple[int, int]]:
    """Return the shapes [d_out, d_in] of the maskable tensors by name.

    By default of the text model's gate projections; one that is fused with the up projection is
    named by its rows (`gates/rows.py`). pattern: of the names of tensors, to return these instead,
    each whole. Raises CheckpointError.
    """
    tensors = checkpoint_tensors(checkpoint)
    maskable = re.compile(pattern)
    found = {
        name: (shape[0], shape[1])
        for name, shape in tensors
        if len(shape) == 2 and 0 not in shape and maskable.search(name)
    }
    if pattern != GATES:
        return found
    found = {name: shape for name, shape in found.items() if not in_tower(name)}
    fused = re.compile(FUSED_GATES.replace("$", r"\.weight$"))
    if not found and gate_first(model_types(checkpoint)):
        for name, shape in tensors:
            whole = len(shape) == 2 and shape[0] >= 2 and shape[1] > 0
            if whole and fused.search(name) and not in_tower(name):
                found[str(Rows(name, 0, shape[0] // 2))] = (shape[0] // 2, shape[1])
    return found
