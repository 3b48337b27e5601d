"""Adapter sizes by the formulas of the paper's appendix B, in bytes.

Lower bounds of the data that rebuilds the tuned model from the public base. The paper's "MB" are
MiB: 4714 for the 1,235.8 million weights of Llama-3.2-1B in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import zstandard
from bmt_core import Mask

MIB = 1 << 20
# zstd's default level; it gives the paper's 8.4 MB of an 8B model.
_LEVEL = 3


def full(total: int) -> int:
    """Full fine-tuning: `total` fp32 numbers; weights shared by two layers count once."""
    return 4 * total


def lora(rank: int, shapes: Iterable[tuple[int, int]]) -> int:
    """LoRA: B [d_out, rank] and A [rank, d_in], fp32; shapes: (d_out, d_in) of each target."""
    return sum(4 * (rank * d_in + d_out * rank) for d_out, d_in in shapes)


def mth(active: int, positions: Iterable[np.ndarray]) -> int:
    """MTH: `active` fp32 numbers and their packed positions; positions: bool of each tensor."""
    return 4 * active + _packed(positions)


def bmt(mask: Mask) -> int:
    """A mask: zstd(packbits(1[G > 0])) over the masked weights. A `.bmt` file is smaller."""
    # Departure: of the mask's positions, without those of weights that are 0 anyway.

    def kept() -> Iterable[np.ndarray]:
        for tensor in mask.tensors:
            bits = np.ones(tensor.numel, dtype=bool)
            bits[tensor.positions] = False
            yield bits

    return _packed(kept())


def _packed(parts: Iterable[np.ndarray]) -> int:
    """Size of all bits, eight per byte, in one zstd frame."""
    bits = b"".join(np.packbits(part).tobytes() for part in parts)
    return len(zstandard.ZstdCompressor(level=_LEVEL).compress(bits))
