"""Quantized gate projections of a checkpoint, by its headers and `config.json` alone.

    int8        compressed-tensors: int8 [R, K], a scale for each row or one for all
    fp8         FP8 E4M3 [R, K], a scale for all, for each row or for each block
    int4        compressed-tensors: eight codes of 4 bits in an int32 along K, scales by groups of K
    gptq-int4   the same, transposed, symmetric
    awq-int4    eight codes along R in an order of its own, with zero points

Legend: R rows, d_out; K columns, d_in; G groups of columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bmt_core.gates.geometry import Types, gate_parts
from bmt_core.gates.rows import Rows

from bmt_server.settings import SettingsError

Precision = Literal["int8", "fp8", "int4", "gptq-int4", "awq-int4"]
#: Element type and shape of a gate's tensors by part, see `gate_parts`.
Parts = Mapping[str, tuple[str, tuple[int, ...]]]

_FLOATS = frozenset({"F32", "F16", "BF16"})
# Codes of 4 bits in an int32.
PER_WORD = 8


class UnsupportedCodesError(SettingsError):
    """Masks cannot act on a checkpoint's codes; the message names them and what to do."""


@dataclass(frozen=True, slots=True)
class QuantizedGate:
    """One quantized gate projection.

    module: its name in the checkpoint; shape: [R, K]; parts: see `Parts`; block: rows and columns
    of an FP8 scale, (0, 0) if there is one for each row or for all.
    """

    module: str
    precision: Precision
    shape: tuple[int, int]
    parts: tuple[str, ...]
    block: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """Its name in masks, which is that of the tensor in the 16-bit checkpoint."""
        weight = f"{self.module}.weight"
        if not self.module.endswith(".gate_up_proj"):
            return weight
        return str(Rows(weight, 0, self.shape[0] // 2))

    @property
    def rows(self) -> int:
        """Rows that masks may delete from: all, or those of a fused projection's gate."""
        return self.shape[0] // (2 if self.module.endswith(".gate_up_proj") else 1)


def quantization_config(folder: str | Path) -> dict[str, Any]:
    """The quantization that a checkpoint's `config.json` names; empty if there is none."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    for part in (config, config.get("text_config")) if isinstance(config, dict) else ():
        found = part.get("quantization_config") if isinstance(part, dict) else None
        found = found or (part.get("compression_config") if isinstance(part, dict) else None)
        if isinstance(found, dict) and found:
            return found
    return {}


def quantized_gates(folder: str | Path, types: Types | None = None) -> dict[str, QuantizedGate]:
    """The quantized gates of a checkpoint by their names in masks.

    types: see `gate_parts`. Raises UnsupportedCodesError, also if they are of several kinds, and
    bmt_core.CheckpointError.
    """
    config = quantization_config(folder)
    gates = [
        _gate(folder, module, parts, config) for module, parts in gate_parts(folder, types).items()
    ]
    kinds = sorted({gate.precision for gate in gates})
    if len(kinds) > 1:
        raise UnsupportedCodesError(
            f"{folder} has gate projections of {' and '.join(kinds)}, and a server has one "
            "precision; serve a checkpoint whose gates are all of one kind"
        )
    return {gate.name: gate for gate in gates}


def _gate(
    folder: str | Path, module: str, parts: Parts, config: Mapping[str, Any]
) -> QuantizedGate:
    found = _known(module, parts, config) if config else None
    if found is None:
        part = next((p for p, (kind, _) in parts.items() if kind not in _FLOATS), "weight")
        kind = parts.get(part, ("no type", ()))[0]
        if not config:
            raise UnsupportedCodesError(
                f"{folder} is quantized: {module}.{part} is of type {kind}, and its config.json "
                "has no quantization_config, by which vLLM would know how; take a checkpoint that "
                "has, or the one that it was made from"
            )
        raise UnsupportedCodesError(
            f"{folder} is quantized: {module}.{part} is of type {kind}, with {', '.join(parts)}, "
            "and masks know INT8, FP8 and 4 bits of compressed-tensors, AWQ, GPTQ and FP8 by "
            "blocks; serve one of these, or the checkpoint that it was made from"
        )
    return found


def _known(module: str, parts: Parts, config: Mapping[str, Any]) -> QuantizedGate | None:
    """The gate if its tensors fit one of the layouts of this module's docstring."""
    names = tuple(parts)
    kind, shape = parts.get("weight", ("", ()))
    if kind in ("I8", "F8_E4M3") and len(shape) == 2:
        return _of_8_bits(module, parts, config)
    if "weight_g_idx" in parts:
        return None
    packed_kind, packed = parts.get("weight_packed", ("", ()))
    scale_kind, scale = parts.get("weight_scale", ("", ()))
    if packed_kind == "I32" and len(packed) == 2 and scale_kind in _FLOATS and len(scale) == 2:
        rows, columns = packed[0], packed[1] * PER_WORD
        fits = scale[0] == rows and scale[1] and columns % scale[1] == 0
        if fits and _bits(config) == 4:
            return QuantizedGate(module, "int4", (rows, columns), names)
        return None
    packed_kind, packed = parts.get("qweight", ("", ()))
    scale_kind, scale = parts.get("scales", ("", ()))
    zeros_kind, zeros = parts.get("qzeros", ("", ()))
    two = len(packed) == len(scale) == len(zeros) == 2
    if not two or (packed_kind, zeros_kind) != ("I32", "I32") or scale_kind not in _FLOATS:
        return None
    groups, rows = scale
    if _bits(config) != 4 or not groups or zeros != (groups, rows // PER_WORD):
        return None
    if packed[1] == rows and packed[0] * PER_WORD % groups == 0:
        return QuantizedGate(module, "gptq-int4", (rows, packed[0] * PER_WORD), names)
    if packed[1] * PER_WORD == rows and packed[0] % groups == 0:
        return QuantizedGate(module, "awq-int4", (rows, packed[0]), names)
    return None


def _of_8_bits(module: str, parts: Parts, config: Mapping[str, Any]) -> QuantizedGate | None:
    kind, (rows, columns) = parts["weight"]
    names = tuple(parts)
    of_scale = next((p for p in ("weight_scale", "weight_scale_inv") if p in parts), None)
    if of_scale is None or parts[of_scale][0] not in _FLOATS:
        return None
    scale = parts[of_scale][1]
    precision: Precision = "int8" if kind == "I8" else "fp8"
    if scale in ((), (1,), (rows,), (rows, 1), (1, 1)):
        return QuantizedGate(module, precision, (rows, columns), names)
    block = _block(config)
    if block is None or scale != (-(-rows // block[0]), -(-columns // block[1])):
        return None
    return QuantizedGate(module, precision, (rows, columns), names, block)


def _weights_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry of compressed-tensors for weights, if there is one group of layers."""
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        return {}
    (group,) = groups.values()
    weights = group.get("weights") if isinstance(group, dict) else None
    return weights if isinstance(weights, dict) else {}


def _bits(config: Mapping[str, Any]) -> int | None:
    """Bits of a code: of AWQ and GPTQ for the whole model, of compressed-tensors for its group."""
    found = config.get("bits", config.get("w_bit", _weights_of(config).get("num_bits")))
    return found if isinstance(found, int) else None


def _block(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block with one scale."""
    found = config.get("weight_block_size") or _weights_of(config).get("block_structure")
    if isinstance(found, list) and len(found) == 2:
        rows, columns = found
        if type(rows) is int and type(columns) is int and rows > 0 and columns > 0:
            return rows, columns
    return None


def quantizes_inputs(folder: str | Path) -> bool:
    """True if a compressed-tensors checkpoint has its layers' inputs quantized too (W8A8)."""
    return bool(_inputs(folder))


def symmetric_inputs(folder: str | Path) -> bool:
    """True if it has, without a zero point."""
    return any(inputs.get("symmetric") for inputs in _inputs(folder))


def _inputs(folder: str | Path) -> list[dict[str, Any]]:
    groups = quantization_config(folder).get("config_groups")
    kinds = groups.values() if isinstance(groups, dict) else ()
    found = [kind.get("input_activations") for kind in kinds if isinstance(kind, dict)]
    return [inputs for inputs in found if isinstance(inputs, dict) and inputs]
