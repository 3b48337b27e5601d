"""Whatever the bytes are, the reader gives a mask or a `BmtError`: found by hypothesis."""

from __future__ import annotations

import zlib

import bmt_core
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.test_specification import random_mask

SEEDS = [
    bmt_core.encode(random_mask(seed, shapes, 0.2), codec)
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


@settings(max_examples=300, deadline=None)
@given(files(), st.sampled_from(LIMITS))
def test_the_reader_gives_a_mask_or_its_own_error(data, limits):
    refused = None
    try:
        mask = bmt_core.decode(data, limits=limits)
    except bmt_core.BmtError as error:
        refused = error
    if refused is not None:
        assert refused.code
        assert len(str(refused)) < 1000
        return
    assert bmt_core.decode(bmt_core.encode(mask)) == mask
    assert bmt_core.inspect(data).digest == mask.digest


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_is_written_is_read_again(data):
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 70)), max_size=4))
    tensors = []
    for i, (rows, cols) in enumerate(shapes):
        size = rows * cols
        picked = data.draw(st.sets(st.integers(0, size - 1), max_size=min(size, 60)))
        positions = np.array(sorted(picked), np.uint32)
        tensors.append(bmt_core.TensorMask(f"t{i}", (rows, cols), positions))
    mask = bmt_core.Mask(bmt_core.Base("m", "ab" * 32), tuple(tensors))
    for codec in ("gaps", "packbits"):
        found = bmt_core.decode(bmt_core.encode(mask, codec))
        assert found == mask
        assert found.digest == mask.digest
