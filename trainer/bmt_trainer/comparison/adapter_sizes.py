"""Adapter sizes by the formulas of the paper's appendix B, in bytes.

They are lower bounds of what rebuilds the tuned model from the public base. The paper's "MB" are
MiB: 4714 for the 1,235.8 million weights of Llama-3.2-1B in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import zstandard
from bmt_core import Mask

MIB = 1 << 20
# zstd's own default, and what the paper's 8.4 MB of an 8B model comes to.
_LEVEL = 3


def full(total: int) -> int:
    """N_total fp32 numbers; weights that two layers share count once."""
    return 4 * total


def lora(rank: int, shapes: Iterable[tuple[int, int]]) -> int:
    """B and A of each target, [d_out, d_in] as in `shapes`."""
    return sum(4 * (rank * d_in + d_out * rank) for d_out, d_in in shapes)


def mth(active: int, places: Iterable[np.ndarray]) -> int:
    """`active` fp32 numbers, and where they are: places, bool of each tensor."""
    return 4 * active + _packed(places)


def bmt(mask: Mask) -> int:
    """zstd(packbits(1[G > 0])) over the masked weights. A `.bmt` file is smaller."""

    def kept() -> Iterable[np.ndarray]:
        for tensor in mask.tensors:
            bits = np.ones(tensor.numel, dtype=bool)
            bits[tensor.positions] = False
            yield bits

    return _packed(kept())


def _packed(parts: Iterable[np.ndarray]) -> int:
    """Size of all bits in one zstd frame."""
    bits = b"".join(np.packbits(part).tobytes() for part in parts)
    return len(zstandard.ZstdCompressor(level=_LEVEL).compress(bits))
