"""Codecs of the zero positions: `gaps` (default) and `packbits` (section 4 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from bmt_core.errors import MaskError, PayloadError, PositionsError, TooLarge
from bmt_core.limits import Limits
from bmt_core.mask import TensorMask, position_dtype
from bmt_core.payload import compress, content_size, expand

Codec = Literal["gaps", "packbits"]
CODEC_IDS: dict[Codec, int] = {"gaps": 1, "packbits": 2}
CODEC_NAMES: dict[int, Codec] = {number: name for name, number in CODEC_IDS.items()}

ESCAPE = 0xFFFF
GAPS_LEVEL = 19
# Bound on one tensor before compression, bytes: few positions in a huge tensor need much memory.
MAX_CONTENT = 1 << 31
# zstd's default level; it reproduces the sizes in the paper.
PACKBITS_LEVEL = 3

_BLOCK = 1 << 16  # bytes of a bitmap that are decoded at once

Spec = tuple[str, tuple[int, int], int]  # name, shape, zeros


def codec_id(codec: str) -> int:
    """Return the codec's number in the file. Raises MaskError for an unknown name."""
    for name, number in CODEC_IDS.items():
        if name == codec:
            return number
    raise MaskError(
        f"codec {codec!r} is unknown; use one of {', '.join(CODEC_IDS)}",
        field="codec",
        value=codec,
    )


def _check_content(name: str, size: int) -> None:
    if size > MAX_CONTENT:
        raise TooLarge(
            f"{name} takes {size} bytes before compression; at most {MAX_CONTENT} are written",
            field="payload",
            value=size,
            bound=MAX_CONTENT,
        )


def encode_gaps(tensors: Sequence[TensorMask]) -> bytes:
    """Encode all tensors as one frame: low bytes of all 16-bit symbols, then the high bytes.

    A gap is the number of kept weights before a zero. Symbol s < 65535 means s kept weights and
    one zero; 65535 means 65535 kept weights and no zero.
    """
    parts = []
    for t in tensors:
        steps = np.diff(t.positions.astype(np.int64), prepend=-1) - 1
        escapes, rest = steps // ESCAPE, (steps % ESCAPE).astype(np.uint16)
        if escapes.any():
            _check_content(t.name, 2 * int(escapes.sum()))
            symbols = np.full(steps.size + int(escapes.sum()), ESCAPE, np.uint16)
            symbols[np.cumsum(escapes + 1) - 1] = rest
            parts.append(symbols)
        else:
            parts.append(rest)
    symbols = np.concatenate(parts) if parts else np.zeros(0, np.uint16)
    planes = np.concatenate([(symbols & 0xFF).astype(np.uint8), (symbols >> 8).astype(np.uint8)])
    return compress(planes.tobytes(), GAPS_LEVEL)


def decode_gaps(frame: memoryview, specs: Sequence[Spec], limits: Limits) -> list[np.ndarray]:
    """Decode the positions of each tensor. Raises PayloadError, PositionsError, TooLarge."""
    zeros = sum(n for _, _, n in specs)
    numel = sum(s[0] * s[1] for _, s, _ in specs)
    size = content_size(frame)
    # The number of symbols is known only within bounds: each escape adds one to the zeros.
    if size % 2 or not zeros <= size // 2 <= zeros + numel // ESCAPE:
        raise PayloadError(
            f"the gaps take {size} bytes; {zeros} zeros in {numel} weights need between "
            f"{2 * zeros} and {2 * (zeros + numel // ESCAPE)}, an even number",
            field="content_size",
            value=size,
            bound=(2 * zeros, 2 * (zeros + numel // ESCAPE)),
        )
    planes = np.frombuffer(expand(frame, size, limits), np.uint8)
    count = size // 2
    low, high = planes[:count], planes[count:]
    # For each escape, the number of zeros before it.
    before = np.zeros(0, np.int64)
    if count != zeros or bool((high == 0xFF).any()):
        escape = high == 0xFF
        escape &= low == 0xFF
        ended = count - int(np.count_nonzero(escape))
        if ended != zeros or (count and bool(escape[-1])):
            raise PositionsError(
                f"{count} gap symbols encode {ended} positions, the header states {zeros}, and the "
                "last symbol must encode one",
                field="zeros",
                value=ended,
                bound=zeros,
            )
        before = np.flatnonzero(escape)
        before -= np.arange(before.size)
    result: list[np.ndarray] = []
    first = symbol = 0
    # One tensor at a time, so that all passes over it stay in the processor's cache.
    for (name, shape, n), positions in zip(specs, _position_arrays(specs), strict=True):
        numel = shape[0] * shape[1]
        result.append(positions)
        first += n
        if not n:
            continue
        stop = first + (int(np.searchsorted(before, first)) if before.size else 0)
        symbols = np.left_shift(high[symbol:stop], 8, dtype=np.uint16)
        symbols |= low[symbol:stop]
        is_zero = None if stop - symbol == n else symbols != ESCAPE
        sums = positions if is_zero is None else np.empty(stop - symbol, positions.dtype)
        np.add(symbols, 1 if is_zero is None else is_zero, out=sums, dtype=sums.dtype)
        sums[0] -= 1  # positions count from 0
        np.cumsum(sums, out=sums)
        # A step is at most 2**16, so 2**16 - 1 steps cannot wrap around 2**32 unnoticed.
        marks = np.append(sums[:: (1 << 16) - 1], sums[-1])
        if bool((marks[1:] < marks[:-1]).any()) or int(sums[-1]) >= numel:
            raise PositionsError(
                f"{name}: positions lie outside its {numel} weights", field="positions", bound=numel
            )
        if is_zero is not None:
            positions[:] = sums[is_zero]
        symbol = stop
    return result


def _position_arrays(specs: Sequence[Spec]) -> Iterator[np.ndarray]:
    """Allocate each tensor's positions as a slice of one array per dtype.

    The kernel backs large arrays with huge pages. With one array per tensor, page faults took as
    long as all the sums.
    """
    dtypes = [position_dtype(d_out * d_in) for _, (d_out, d_in), _ in specs]
    arrays = {
        dtype: np.empty(sum(s[2] for s, d in zip(specs, dtypes, strict=True) if d == dtype), dtype)
        for dtype in set(dtypes)
    }
    for (_, _, n), dtype in zip(specs, dtypes, strict=True):
        yield arrays[dtype][:n]
        arrays[dtype] = arrays[dtype][n:]


def encode_packbits(tensors: Sequence[TensorMask]) -> list[bytes]:
    """Encode each tensor as a frame zstd(packbits(1[G > 0])), bit 1 = kept (section 4)."""
    frames = []
    for t in tensors:
        _check_content(t.name, -(-t.numel // 8))
        packed = np.full(-(-t.numel // 8), 0xFF, np.uint8)
        packed[-1] = 0xFF << (-t.numel % 8) & 0xFF
        if t.zeros:
            byte = t.positions >> 3
            bit = (0x80 >> (t.positions & 7)).astype(np.uint8)
            firsts = np.flatnonzero(np.append(True, byte[1:] != byte[:-1]))
            packed[byte[firsts]] ^= np.bitwise_or.reduceat(bit, firsts)
        frames.append(compress(packed.tobytes(), PACKBITS_LEVEL))
    return frames


def decode_packbits(
    frames: Sequence[memoryview], specs: Sequence[Spec], limits: Limits
) -> list[np.ndarray]:
    """Decode the positions of each tensor. Raises PayloadError, PositionsError, TooLarge."""
    result = []
    for frame, (name, shape, zeros) in zip(frames, specs, strict=True):
        numel = shape[0] * shape[1]
        packed = np.frombuffer(expand(frame, -(-numel // 8), limits), np.uint8)
        padding = -numel % 8
        if int(packed[-1]) & ((1 << padding) - 1):
            raise PositionsError(
                f"{name}: the {padding} padding bits must be 0", field="padding", bound=0
            )
        positions = np.empty(zeros, position_dtype(numel))
        filled = 0
        # In blocks, because a zero is one bit here and needs 16 bytes while it is decoded.
        for at in range(0, packed.size, _BLOCK):
            block = packed[at : at + _BLOCK]
            # Most bytes keep all eight weights; only the others are unpacked.
            byte_index = np.flatnonzero(block != 0xFF)
            bits = np.flatnonzero(np.unpackbits(block[byte_index]) == 0)
            if at + block.size == packed.size:
                bits = bits[: bits.size - padding]
            filled += bits.size
            if filled > zeros:
                break
            decoded = byte_index[bits >> 3]
            decoded += at
            decoded <<= 3
            decoded |= bits & 7
            positions[filled - bits.size : filled] = decoded
        if filled != zeros:
            raise PositionsError(
                f"{name}: {filled} weights {'or more ' if filled > zeros else ''}are zero; the "
                f"header states {zeros}",
                field="zeros",
                value=filled,
                bound=zeros,
            )
        result.append(positions)
    return result
