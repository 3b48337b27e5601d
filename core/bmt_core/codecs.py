"""The two ways in which positions become bytes: `gaps` (default) and `packbits` (the paper's)."""

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
# Of one tensor, where few positions in a vast one would fill the memory.
MAX_CONTENT = 1 << 31
# zstd's default level, with which the paper's sizes agree.
PACKBITS_LEVEL = 3

_PIECE = 1 << 16

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


def _writable(name: str, size: int) -> None:
    if size > MAX_CONTENT:
        raise TooLarge(
            f"{name} takes {size} bytes before compression; at most {MAX_CONTENT} are written",
            field="payload",
            value=size,
            bound=MAX_CONTENT,
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
            _writable(t.name, 2 * int(escapes.sum()))
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
    planes = np.frombuffer(expand(frame, size, limits), np.uint8)
    count = size // 2
    low, high = planes[:count], planes[count:]
    # For each escape, how many zeros end before it.
    behind = np.zeros(0, np.int64)
    if count != zeros or bool((high == 0xFF).any()):
        escape = high == 0xFF
        escape &= low == 0xFF
        ended = count - int(np.count_nonzero(escape))
        if ended != zeros or (count and bool(escape[-1])):
            raise PositionsError(
                f"{count} gap symbols end {ended} positions, the header announces {zeros}, and the "
                "last must end one",
                field="zeros",
                value=ended,
                bound=zeros,
            )
        behind = np.flatnonzero(escape)
        behind -= np.arange(behind.size)
    result: list[np.ndarray] = []
    first = symbol = 0
    # Tensor by tensor, so that the passes over one stay in the processor's cache.
    for (name, shape, n), positions in zip(specs, _rooms(specs), strict=True):
        numel = shape[0] * shape[1]
        result.append(positions)
        first += n
        if not n:
            continue
        stop = first + (int(np.searchsorted(behind, first)) if behind.size else 0)
        symbols = np.left_shift(high[symbol:stop], 8, dtype=np.uint16)
        symbols |= low[symbol:stop]
        deletes = None if stop - symbol == n else symbols != ESCAPE
        sums = positions if deletes is None else np.empty(stop - symbol, positions.dtype)
        np.add(symbols, 1 if deletes is None else deletes, out=sums, dtype=sums.dtype)
        sums[0] -= 1  # positions count from 0
        np.cumsum(sums, out=sums)
        # A step is at most 2**16, so fewer than 2**16 of them cannot pass 2**32 unnoticed.
        marks = np.append(sums[:: (1 << 16) - 1], sums[-1])
        if bool((marks[1:] < marks[:-1]).any()) or int(sums[-1]) >= numel:
            raise PositionsError(
                f"{name}: positions lie outside its {numel} weights", field="positions", bound=numel
            )
        if deletes is not None:
            positions[:] = sums[deletes]
        symbol = stop
    return result


def _rooms(specs: Sequence[Spec]) -> Iterator[np.ndarray]:
    """Each tensor's positions, still empty: parts of one array of each type.

    The kernel gives a large array in huge pages. In small ones, the page faults of an array a
    tensor took as long as all the sums.
    """
    dtypes = [position_dtype(d_out * d_in) for _, (d_out, d_in), _ in specs]
    whole = {
        dtype: np.empty(sum(s[2] for s, d in zip(specs, dtypes, strict=True) if d == dtype), dtype)
        for dtype in set(dtypes)
    }
    for (_, _, n), dtype in zip(specs, dtypes, strict=True):
        yield whole[dtype][:n]
        whole[dtype] = whole[dtype][n:]


def encode_packbits(tensors: Sequence[TensorMask]) -> list[bytes]:
    """One frame a tensor: zstd(packbits(1[G > 0])), bit 1 = kept, as in the paper (section 4)."""
    frames = []
    for t in tensors:
        _writable(t.name, -(-t.numel // 8))
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
    """Positions of each tensor. Raises PayloadError, PositionsError, TooLarge."""
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
        # In pieces, because a deleted weight is one bit here and 16 bytes while it is looked for.
        for at in range(0, packed.size, _PIECE):
            piece = packed[at : at + _PIECE]
            # Most bytes keep all eight weights; only the others are looked into.
            places = np.flatnonzero(piece != 0xFF)
            bits = np.flatnonzero(np.unpackbits(piece[places]) == 0)
            if at + piece.size == packed.size:
                bits = bits[: bits.size - padding]
            filled += bits.size
            if filled > zeros:
                break
            found = places[bits >> 3]
            found += at
            found <<= 3
            found |= bits & 7
            positions[filled - bits.size : filled] = found
        if filled != zeros:
            raise PositionsError(
                f"{name}: {filled} weights {'or more ' if filled > zeros else ''}are deleted; the "
                f"header announces {zeros}",
                field="zeros",
                value=filled,
                bound=zeros,
            )
        result.append(positions)
    return result
