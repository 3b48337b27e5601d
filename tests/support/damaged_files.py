"""Sound `.bmt` files with bytes changed, as hypothesis draws them."""

from __future__ import annotations

import zlib

import bmt_core
from hypothesis import strategies as st

from tests.support.masks import mask_of_shapes

SEEDS = [
    bmt_core.encode(mask_of_shapes(seed, shapes, 0.2), codec)
    for seed, shapes in enumerate([[(4, 10), (3, 7)], [(64, 64)], []])
    for codec in ("gaps", "packbits")
]
LIMITS = [
    None,
    bmt_core.Limits.for_geometry({"t0": (4, 10), "t1": (3, 7)}, 0.5),
    bmt_core.Limits(max_file_bytes=1 << 16, max_raw_bytes=1 << 16),
]


@st.composite
def files(draw) -> bytes:
    """Sound files with a few bytes changed, cut, doubled or put in; checksums put right or not."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["set", "word", "cut", "double", "insert"])):
            case "set" if data:
                data[at] = draw(st.integers(0, 255))
            case "word":
                size = draw(st.sampled_from([2, 4, 8]))
                value = draw(st.sampled_from([0, 1, 255, 1 << 15, 1 << 31, (1 << 32) - 1, 1 << 62]))
                data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            case "cut":
                del data[at : at + draw(st.integers(1, 40))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
    return put_right(bytes(data)) if draw(st.booleans()) else bytes(data)


def put_right(data: bytes) -> bytes:
    """With the checksums of a file, so that damage is not refused for them alone."""
    if len(data) < 112:
        return data
    table = int.from_bytes(data[16:20], "little")
    header = zlib.crc32(data[:104] + data[112 : 112 + table])
    payload = zlib.crc32(data[112 + table :])
    return data[:104] + header.to_bytes(4, "little") + payload.to_bytes(4, "little") + data[112:]
