"""Weights of quantized gates: W = (code - zero) * scale, in float32.

Legend as in `codes.py`: R rows, K columns, G groups of columns. Layouts are those of the libraries
that write them; tests compare with compressed-tensors', AutoAWQ's and GPTQ's own formulas.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bmt_server.quantization.codes import QuantizedGate, UnsupportedCodesError

# Places of AWQ's eight codes in an int32, in the order of the rows that they belong to.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
_SHIFTS = torch.arange(0, 32, 4, dtype=torch.int32)
# The code of zero, of symmetric codes that are stored without a sign.
_MIDDLE = 8


def dequantize(gate: QuantizedGate, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The gate's weights, float32 [R, K].

    parts: its tensors. Raises UnsupportedCodesError for codes that no supported engine reads.
    """
    if gate.precision in ("int8", "fp8"):
        return _of_8_bits(gate, parts)
    if gate.precision == "int4":
        return _packed(parts)
    return _awq(parts) if gate.precision == "awq-int4" else _gptq(gate, parts)


def _of_8_bits(gate: QuantizedGate, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    rows, columns = gate.shape
    scale = parts["weight_scale"] if "weight_scale" in parts else parts["weight_scale_inv"]
    scale = scale.float()
    if gate.block != (0, 0):
        high, wide = gate.block
        scale = scale.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
    elif scale.numel() == rows:
        scale = scale.reshape(rows, 1)
    else:
        scale = scale.reshape(())
    codes = parts["weight"].float()
    if (zero := parts.get("weight_zero_point")) is not None and zero.numel():
        codes = codes - (zero.float().reshape(-1, 1) if zero.numel() == rows else zero.float())
    return codes * scale


def _packed(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """compressed-tensors: weight_packed int32 [R, K / 8], weight_scale [R, G], and of asymmetric
    codes weight_zero_point int32 [R / 8, G]."""
    codes = _unpack_columns(parts["weight_packed"])  # [R, K]
    scale = parts["weight_scale"].float()
    wide = codes.shape[1] // scale.shape[1]
    zero: torch.Tensor | int = _MIDDLE
    if (packed := parts.get("weight_zero_point")) is not None:
        zero = _unpack_rows(packed)[: codes.shape[0]].repeat_interleave(wide, 1)
    return (codes - zero).float() * scale.repeat_interleave(wide, 1)


def _gptq(gate: QuantizedGate, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """GPTQ: qweight int32 [K / 8, R], scales [G, R], qzeros int32 [G, R / 8], g_idx int32 [K]."""
    codes, scales = _unpack_rows(parts["qweight"]), parts["scales"].float()
    wide = codes.shape[0] // scales.shape[0]
    order = parts.get("g_idx")
    if order is not None and not torch.equal(order.long(), torch.arange(codes.shape[0]) // wide):
        raise UnsupportedCodesError(
            f"{gate.module} is quantized by GPTQ in the order of activations (desc_act), which "
            "vLLM serves no more; serve a checkpoint with desc_act false"
        )
    # The first format stores one less than the zero.
    stored = _unpack_columns(parts["qzeros"]).unique().tolist()
    if stored not in ([_MIDDLE - 1], [_MIDDLE]):
        raise UnsupportedCodesError(
            f"{gate.module} is quantized by GPTQ with zero points (sym false), which vLLM does not "
            "serve; serve a symmetric checkpoint"
        )
    return ((codes - _MIDDLE).float() * scales.repeat_interleave(wide, 0)).t()


def _awq(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """AWQ: qweight int32 [K, R / 8], scales [G, R], qzeros int32 [G, R / 8]."""
    codes, zeros = (_unpack_columns(parts[p], _AWQ_ORDER) for p in ("qweight", "qzeros"))
    scales = parts["scales"].float()
    wide = codes.shape[0] // scales.shape[0]
    return (
        (codes - zeros.repeat_interleave(wide, 0)).float() * scales.repeat_interleave(wide, 0)
    ).t()


def _unpack_columns(packed: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """int32 [A, B / 8] to the codes [A, B], the first in the lowest bits of its word.

    order: places of the codes within a word.
    """
    codes = (packed[:, :, None] >> _SHIFTS) & 15
    return codes[:, :, list(order)].reshape(packed.shape[0], -1)


def _unpack_rows(packed: torch.Tensor) -> torch.Tensor:
    """int32 [A / 8, B] to the codes [A, B]."""
    return ((packed[:, None, :] >> _SHIFTS[:, None]) & 15).reshape(-1, packed.shape[1])
