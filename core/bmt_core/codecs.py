"""The two ways in which positions become bytes: `gaps` (default) and `packbits` (the paper's)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from bmt_core.errors import MaskError, PayloadError, PositionsError
from bmt_core.limits import Limits
from bmt_core.mask import TensorMask, position_dtype
from bmt_core.payload import compress, content_size, expand

Codec = Literal["gaps", "packbits"]
CODEC_IDS: dict[Codec, int] = {"gaps": 1, "packbits": 2}
CODEC_NAMES: dict[int, Codec] = {number: name for name, number in CODEC_IDS.items()}

ESCAPE = 0xFFFF
GAPS_LEVEL = 19
# zstd's default level, with which the paper's sizes agree.
PACKBITS_LEVEL = 3

Spec = tuple[str, tuple[int, int], int]  # name, shape, zeros


def codec_id(codec: str) -> int:
    """The codec's number in the file. Raises MaskError for an unknown name."""
    for name, number in CODEC_IDS.items():
        if name == codec:
            return number
    raise MaskError(
        f"codec {codec!r} is unknown; it is one of {', '.join(CODEC_IDS)}",
        field="codec",
        value=codec,
    )


def encode_gaps(tensors: Sequence[TensorMask]) -> bytes:
    """One frame for all tensors: the low bytes of all 16-bit symbols, then the high bytes.

    A gap is the number of kept weights before a deleted one. Symbol s < 65535 says: skip s, delete
    one; 65535 says: skip 65535, delete nothing.
    """
    parts = []
    for t in tensors:
        steps = np.diff(t.positions.astype(np.int64), prepend=-1) - 1
        escapes, rest = steps // ESCAPE, (steps % ESCAPE).astype(np.uint16)
        if escapes.any():
            symbols = np.full(steps.size + int(escapes.sum()), ESCAPE, np.uint16)
            symbols[np.cumsum(escapes + 1) - 1] = rest
            parts.append(symbols)
        else:
            parts.append(rest)
    symbols = np.concatenate(parts) if parts else np.zeros(0, np.uint16)
    planes = np.concatenate([(symbols & 0xFF).astype(np.uint8), (symbols >> 8).astype(np.uint8)])
    return compress(planes.tobytes(), GAPS_LEVEL)


def decode_gaps(frame: memoryview, specs: Sequence[Spec], limits: Limits) -> list[np.ndarray]:
    """Positions of each tensor. Raises PayloadError, PositionsError, TooLarge."""
    zeros = sum(n for _, _, n in specs)
    numel = sum(s[0] * s[1] for _, s, _ in specs)
    size = content_size(frame)
    # The exact number of symbols is the frame's to say: escapes add to the zeros.
    if size % 2 or not zeros <= size // 2 <= zeros + numel // ESCAPE:
        raise PayloadError(
            f"the gaps take {size} bytes; {zeros} zeros in {numel} weights need between "
            f"{2 * zeros} and {2 * (zeros + numel // ESCAPE)}, an even number",
            field="content_size",
            value=size,
            bound=(2 * zeros, 2 * (zeros + numel // ESCAPE)),
        )
    raw = np.frombuffer(expand(frame, size, limits), np.uint8)
    count = size // 2
    steps = raw[count:].astype(np.uint32)
    steps <<= 8
    steps |= raw[:count]
    ends = None
    if count != zeros or bool((raw[count:] == 0xFF).any()):
        escape = steps == ESCAPE
        ends = np.flatnonzero(~escape)
        if ends.size != zeros or (count and ends[-1:] != count - 1):
            raise PositionsError(
                f"the gaps end {ends.size} positions; the header announces {zeros}",
                field="zeros",
                value=int(ends.size),
                bound=zeros,
            )
        steps += (~escape).astype(np.uint32)
    else:
        steps += 1
    # Sums run modulo 2**32 here and are checked in 64 bits per tensor below: a step is never
    # negative, so a last position within the tensor means that all are, in order.
    sums = np.cumsum(steps, dtype=np.uint32 if numel <= 1 << 32 else np.uint64)
    at_ends = sums if ends is None else sums[ends]
    offset_type, offset_mask = sums.dtype.type, int(np.iinfo(sums.dtype).max)
    result: list[np.ndarray] = []
    first = symbol = 0
    before = 0
    for name, shape, n in specs:
        last_symbol = (first + n if ends is None else int(ends[first + n - 1]) + 1) if n else symbol
        total = int(steps[symbol:last_symbol].sum(dtype=np.uint64))
        if total > shape[0] * shape[1]:
            raise PositionsError(
                f"{name}: position {total - 1} lies outside {shape[0] * shape[1]} weights",
                field="positions",
                value=total - 1,
                bound=shape[0] * shape[1],
            )
        dtype = position_dtype(shape[0] * shape[1])
        positions = at_ends[first : first + n] - offset_type((before + 1) & offset_mask)
        result.append(positions.astype(dtype, copy=False))
        first, symbol = first + n, last_symbol
        before += total
    return result


def encode_packbits(tensors: Sequence[TensorMask]) -> list[bytes]:
    """One frame a tensor: zstd(packbits(1[G > 0])), bit 1 = kept, as in the paper (section 4)."""
    frames = []
    for t in tensors:
        kept = np.ones(t.numel, np.bool_)
        kept[t.positions] = False
        frames.append(compress(np.packbits(kept).tobytes(), PACKBITS_LEVEL))
    return frames


def decode_packbits(
    frames: Sequence[memoryview], specs: Sequence[Spec], limits: Limits
) -> list[np.ndarray]:
    """Positions of each tensor. Raises PayloadError, PositionsError, TooLarge."""
    result = []
    for frame, (name, shape, zeros) in zip(frames, specs, strict=True):
        numel = shape[0] * shape[1]
        packed = np.frombuffer(expand(frame, -(-numel // 8), limits), np.uint8)
        # Most bytes keep all eight weights; only the others are looked into.
        places = np.flatnonzero(packed != 0xFF)
        bits = np.unpackbits(packed[places]).reshape(-1, 8)
        byte, bit = np.nonzero(bits == 0)
        positions = (places[byte].astype(np.uint64) << 3) + bit.astype(np.uint64)
        padding = int(np.count_nonzero(positions >= numel))
        if padding != -numel % 8:
            raise PositionsError(
                f"{name}: {-numel % 8} padding bits must be 0, {padding} are",
                field="padding",
                value=padding,
                bound=-numel % 8,
            )
        positions = positions[positions < numel].astype(position_dtype(numel))
        if positions.size != zeros:
            raise PositionsError(
                f"{name}: {positions.size} weights are deleted; the header announces {zeros}",
                field="zeros",
                value=int(positions.size),
                bound=zeros,
            )
        result.append(positions)
    return result
