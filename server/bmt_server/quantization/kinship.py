"""Comparison of a quantized checkpoint with the one that it is said to be made from.

It shows that a mask's positions mean the same weights in both: names and shapes agree, each gate's
dequantized weights are near the base's, up to one factor for each column, and what neither
quantizes is equal. Two fine-tunes of one base may be nearer to each other than their quantized
copies are to them, so the comparison cannot say which of them a copy was made from; equal
embeddings can, mostly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import bmt_core
import torch
from bmt_core.fingerprint import checkpoint_types
from bmt_core.gates.geometry import Types, geometry, quantized_gates
from bmt_core.gates.rows import Rows

from bmt_server.quantization import codes
from bmt_server.quantization.family import Family, FamilyError, Member
from bmt_server.quantization.reader import GateReader

#: Largest |W - W'| / |W| of a gate, by its precision. Rounding gives 0.01 (INT8 by rows), 0.03
#: (FP8) and 0.10 to 0.16 (4 bits); checkpoints that have nothing in common, 1.4.
LIMITS = {"int8": 0.05, "fp8": 0.05, "int4": 0.25, "gptq-int4": 0.25, "awq-int4": 0.25}
# The same of tensors that neither quantizes, which may be stored in another type of 16 bits.
_PLAIN_LIMIT = 0.005
_FLOATS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64"}


def compare(
    base_name: str, base: str, members: Mapping[str, str], report: Callable[[str], None]
) -> Family:
    """The family of a base's folder and of its members' folders by name.

    report: receives a line for each member. Raises FamilyError for the first that is no member,
    codes.UnsupportedCodesError and bmt_core.CheckpointError.
    """
    types = checkpoint_types(base)
    if quantized_gates(base, types) or codes.quantization_config(base):
        raise FamilyError(f"{base} is quantized; name the 16-bit checkpoint that masks belong to")
    gates = geometry(base, types=types)
    if not gates:
        raise FamilyError(f"{base} has no gate projections, so masks delete nothing there")
    root = Member(base_name, bmt_core.fingerprint(base), plain_precision(types, gates))
    reader = GateReader(base, quantized=False)
    found = []
    for name, folder in members.items():
        member = _member(name, folder, reader, gates, types)
        scaled = ", its columns scaled" if member.column_scales else ""
        report(
            f"{name}: {member.precision}, {len(gates)} gates, distance {member.distance:.4f} on "
            f"average and {member.worst:.4f} at most (limit {LIMITS[member.precision]}){scaled}"
        )
        found.append(member)
    return Family(root, tuple(found))


def plain_precision(types: Types, gates: Iterable[str]) -> str:
    """The precision of gates that are stored as weights, `bf16`; `mixed` if they differ.

    types: of the checkpoint; gates: their names in masks.
    """
    parsed = {name: Rows.parse(name) for name in gates}
    tensors = {name if rows is None else rows.tensor for name, rows in parsed.items()}
    kinds = {_FLOATS.get(types[tensor][0], "mixed") for tensor in tensors}
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _member(
    name: str,
    folder: str,
    base: GateReader,
    gates: Mapping[str, tuple[int, int]],
    base_types: Types,
) -> Member:
    types = checkpoint_types(folder)
    if not quantized_gates(folder, types):
        raise FamilyError(
            f"{name} has no quantized gate projections; a family is a checkpoint and its quantized "
            "copies"
        )
    found = codes.quantized_gates(folder, types)
    shapes = {gate: (entry.rows, entry.shape[1]) for gate, entry in found.items()}
    if shapes != dict(gates):
        other = next(iter(sorted(set(shapes.items()) ^ set(gates.items()))))
        raise FamilyError(
            f"{name} has other gates: {len(shapes)} of them, and the base has {len(gates)}; "
            f"{other[0]} {list(other[1])} is in one of them alone"
        )
    modules = {tensor.rpartition(".")[0] for tensor in types}
    if missing := sorted(t for t in base_types if t.rpartition(".")[0] not in modules):
        raise FamilyError(f"{name} lacks {missing[0]}, which the base has")
    reader = GateReader(folder, quantized=True, types=types)
    _compare_plain(name, base, reader, base_types, types)
    precision = next(iter(found.values())).precision
    distances, scaled = [], False
    for gate, (rows, _) in gates.items():
        distance, scaled_here = gate_distance(base.rows(gate, 0, rows), reader.rows(gate, 0, rows))
        if not distance <= LIMITS[precision]:
            raise FamilyError(
                f"{name}: {gate} is at a distance of {distance:.3f} from the base's, beyond the "
                f"{LIMITS[precision]} of {precision}; it was made from another checkpoint, or its "
                "weights were rotated before, and a mask's positions mean other weights there"
            )
        distances.append(distance)
        scaled |= scaled_here
    fingerprint = bmt_core.fingerprint(folder)
    mean = sum(distances) / len(distances)
    return Member(name, fingerprint, precision, round(mean, 6), round(max(distances), 6), scaled)


def gate_distance(base: torch.Tensor, other: torch.Tensor) -> tuple[float, bool]:
    """|W s - W'| / |W s| of two gates [R, K], and if s, a factor for each column, is not 1.

    AWQ and SmoothQuant move a factor for each column between a gate and the norm before it. The
    product of a weight and its input stays, so a mask's deletion means the same.
    """
    plain = _distance(base, other)
    factors = (base * other).sum(0) / (base * base).sum(0).clamp_min(torch.finfo(base.dtype).tiny)
    # Columns of zeros alone have no factor.
    factors = torch.where((base == 0).all(0), torch.ones_like(factors), factors)
    if not bool((factors > 0).all()):
        return plain, False
    scaled = _distance(base * factors, other)
    return (scaled, True) if scaled < 0.5 * plain else (plain, False)


def _distance(base: torch.Tensor, other: torch.Tensor) -> float:
    size = float(base.norm())
    return float((base - other).norm()) / size if size else float(other.norm())


def _compare_plain(
    name: str, base: GateReader, member: GateReader, base_types: Types, types: Types
) -> None:
    """Compare the matrices that neither checkpoint quantizes, such as the embeddings."""
    for tensor, (kind, shape) in base_types.items():
        other = types.get(tensor)
        if other is None or len(shape) != 2 or kind not in _FLOATS or other[0] not in _FLOATS:
            continue
        if other[1] != shape:
            raise FamilyError(f"{name}: {tensor} is {list(other[1])}, and the base's {list(shape)}")
        distance = _distance(base.tensor(tensor).float(), member.tensor(tensor).float())
        if not distance <= _PLAIN_LIMIT:
            raise FamilyError(
                f"{name}: {tensor}, which is not quantized, is at a distance of {distance:.4f} "
                "from the base's; it was made from another checkpoint, such as a fine-tune"
            )
