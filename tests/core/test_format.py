"""Round trips: masks survive encoding, and encoding is deterministic."""

from __future__ import annotations

import pickle
import tracemalloc
import zlib

import bmt_core
import numpy as np
import pytest
import zstandard
from bmt_core import codecs
from bmt_core.mask import MAX_TENSORS
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import specification

BASE = bmt_core.Base("m", "ab" * 32)
CODECS = ("gaps", "packbits")

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=8,
)
names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


@st.composite
def tensors(draw, name):
    d_out, d_in = draw(st.integers(1, 2000)), draw(st.integers(1, 300))
    numel = d_out * d_in
    # Positions near the ends, adjacent, and about an escape apart.
    anchors = st.sampled_from([0, 65534, 65535, 65536, 131069, 131070, 131071, numel])
    offset = st.integers(-2, 2) | st.integers(0, numel)
    picks = draw(st.lists(st.tuples(anchors, offset), max_size=30))
    found = sorted({a + b for a, b in picks if 0 <= a + b < numel})
    return bmt_core.TensorMask(name, (d_out, d_in), np.array(found, np.int64))


@st.composite
def masks(draw):
    chosen = draw(st.lists(names, max_size=6, unique=True))
    return bmt_core.Mask(
        bmt_core.Base(draw(st.text(st.characters(codec="utf-8"), max_size=50)), "ab" * 32),
        tuple(draw(tensors(n)) for n in chosen),
        draw(st.dictionaries(st.text(st.characters(codec="utf-8")), json_values, max_size=4)),
    )


def same(a: bmt_core.Mask, b: bmt_core.Mask) -> bool:
    return (
        a.base == b.base
        and a.metadata == b.metadata
        and a.digest == b.digest
        and [(t.name, t.shape) for t in a.tensors] == [(t.name, t.shape) for t in b.tensors]
        and all(
            x.positions.dtype == y.positions.dtype and np.array_equal(x.positions, y.positions)
            for x, y in zip(a.tensors, b.tensors, strict=True)
        )
    )


@settings(max_examples=150, deadline=None)
@given(masks(), st.sampled_from(CODECS))
def test_round_trip(mask, codec):
    data = bmt_core.encode(mask, codec)
    read = bmt_core.decode(data)
    assert same(read, mask)
    assert bmt_core.encode(read, codec) == data
    if codec == "gaps" or mask.numel < 10_000:
        second = specification.read(data)
        assert second["positions"] == {t.name: t.positions.tolist() for t in mask.tensors}
        assert (second["model"], second["metadata"]) == (mask.base.model_id, mask.metadata)
    header = bmt_core.inspect(data)
    assert (header.codec, header.digest, header.base) == (codec, mask.digest, mask.base)
    assert (header.zeros, header.numel, header.file_bytes) == (mask.zeros, mask.numel, len(data))
    assert header.metadata == mask.metadata


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(CODECS))
def test_damage_anywhere_raises_or_leaves_the_mask_unchanged(data, codec):
    mask = data.draw(masks())
    sound = bmt_core.encode(mask, codec)
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    try:
        read = bmt_core.decode(bytes(damaged))
    except bmt_core.BmtError:
        return
    assert same(read, mask)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(noise):
    for data in (noise, b"\x89BMT\r\n\x1a\n" + noise):
        with pytest.raises(bmt_core.FormatError):
            bmt_core.decode(data)


def test_a_damaged_payload_with_a_valid_header_is_never_another_mask():
    """Each payload byte takes each value; only zstd's checksum and the mask digest can notice."""
    mask = bmt_core.Mask(BASE, (bmt_core.TensorMask("w", (4, 10), np.array([1, 6, 30])),))
    for codec in CODECS:
        data = bmt_core.encode(mask, codec)
        start = bmt_core.inspect(data).payload_offset
        for at in range(start, len(data)):
            for value in range(256):
                damaged = data[:at] + bytes([value]) + data[at + 1 :]
                crc = zlib.crc32(damaged[start:]).to_bytes(4, "little")
                damaged = damaged[:108] + crc + damaged[112:]
                try:
                    assert same(bmt_core.decode(damaged), mask)
                except bmt_core.BmtError:
                    continue


def test_many_tensors():
    every = tuple(
        bmt_core.TensorMask(f"layer.{i}", (3, 5), np.array([i % 15])) for i in range(MAX_TENSORS)
    )
    mask = bmt_core.Mask(BASE, every)
    for codec in CODECS:
        assert same(bmt_core.decode(bmt_core.encode(mask, codec)), mask)
    with pytest.raises(bmt_core.MaskError):
        bmt_core.Mask(BASE, (*every, bmt_core.TensorMask("one more", (3, 5), np.array([1]))))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((65536, 65535), np.uint32),
        ((65536, 65536), np.uint32),  # 2**32 weights: every position fits
        ((65536, 65537), np.uint64),
        ((1 << 20, 1 << 16), np.uint64),
    ],
)
def test_positions_around_and_above_32_bits(shape, dtype):
    numel = shape[0] * shape[1]
    edges = [0, 1, 65535, (1 << 31) - 1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1, 1 << 32, numel - 1]
    wide = bmt_core.TensorMask("w", shape, np.array(sorted({p for p in edges if p < numel})))
    # The sums of the second tensor continue after those of the first.
    last = bmt_core.TensorMask("x", (65536, 65536), np.array([5, (1 << 32) - 1]))
    none = bmt_core.TensorMask("y", shape, np.array([], np.uint64))
    mask = bmt_core.Mask(BASE, (wide, last, none))
    assert wide.positions.dtype == dtype
    assert same(bmt_core.decode(bmt_core.encode(mask)), mask)


def test_a_tensor_at_32_bits_is_not_wrapped_by_its_gaps():
    """Gaps that sum to 2**32 exactly, and one more: only the first lies inside 2**32 weights."""
    full = [65534] * 65536
    rest = (1 << 32) - 65536 * 65535
    for last, fits in ((rest - 1, True), (rest, False)):
        symbols = np.array([*full, last] if last < 65535 else [*full, 65535, last - 65535], "<u2")
        planes = symbols.view(np.uint8).reshape(-1, 2).T.tobytes()
        frame = zstandard.ZstdCompressor(write_checksum=True).compress(planes)
        spec = ("w", (65536, 65536), int((symbols < 65535).sum()))
        if fits:
            found = codecs.decode_gaps(memoryview(frame), [spec], bmt_core.Limits())
            assert int(found[0][-1]) == (1 << 32) - 1
            assert bool((np.diff(found[0].astype(np.int64)) > 0).all())
        else:
            with pytest.raises(bmt_core.PositionsError):
                codecs.decode_gaps(memoryview(frame), [spec], bmt_core.Limits())


def test_packing_needs_memory_for_the_packed_bits_only():
    mask = bmt_core.Mask(BASE, (bmt_core.TensorMask("w", (1 << 13, 1 << 13), np.array([7, 99])),))
    tracemalloc.start()
    data = bmt_core.encode(mask, "packbits")
    read = bmt_core.decode(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert same(read, mask)
    assert peak < 40 << 20, "64 Mi weights are 8 MiB of bits"


def test_masks_that_cannot_be_written_raise():
    far = (1 << 31) - 1
    mask = bmt_core.Mask(BASE, (bmt_core.TensorMask("w", (far, far), np.array([far * far - 1])),))
    for codec in CODECS:
        with pytest.raises(bmt_core.TooLarge):
            bmt_core.encode(mask, codec)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_read(kind):
    mask = bmt_core.Mask(BASE, (bmt_core.TensorMask("w", (4, 10), np.array([1, 6])),))
    data = bmt_core.encode(mask)
    assert same(bmt_core.decode(kind(data)), mask)
    assert same(bmt_core.decode(memoryview(b"x" + data + b"x")[1:-1]), mask)
    assert same(bmt_core.decode(memoryview(np.repeat(np.frombuffer(data, "u1"), 2))[::2]), mask)


@pytest.mark.parametrize(
    ("shape", "positions"),
    [
        ((3, 3), np.array([(1 << 32) + 5])),
        ((3, 3), np.array([-1])),
        ((65536, 65536), np.array([-1])),
        ((3, 3), np.array([0.5, 1.5])),
        ((3, 3), np.array([True, False])),
        ((3, 3), np.array(["1"])),
        ((3, 3), np.array([None])),
        ((3, 3), np.array([[1, 2]])),
        ((3, 3), np.array(1)),
        ((3, 3), np.array([9])),
        ((65536, 65537), np.array([(1 << 32) + 65536], np.uint64)),
        ((1 << 31, 1), np.array([1])),
        ((3, 3, 3), np.array([1])),
        ((3,), np.array([1])),
    ],
)
def test_positions_that_do_not_fit_are_refused_not_wrapped(shape, positions):
    with pytest.raises(bmt_core.MaskError):
        bmt_core.TensorMask("w", shape, positions)


def test_a_mask_shares_no_writable_array_with_its_maker():
    mine = np.array([1, 6], np.uint32)
    tensor = bmt_core.TensorMask("w", (4, 10), mine)
    assert mine.flags.writeable
    mine[0] = 2
    assert tensor.positions.tolist() == [1, 6]
    with pytest.raises(ValueError, match="read-only"):
        tensor.positions[0] = 3
    mask = bmt_core.Mask(BASE, (tensor,), {"a": 1})
    for read in (bmt_core.decode(bmt_core.encode(mask, c)) for c in CODECS):
        with pytest.raises(ValueError, match="read-only"):
            read.tensors[0].positions[0] = 3
    assert same(pickle.loads(pickle.dumps(mask)), mask)


@pytest.mark.parametrize(
    "build",
    [
        lambda: bmt_core.Mask(BASE, (), {"a": "\ud800"}),
        lambda: bmt_core.Mask(BASE, (), {"\udfff": 1}),
        lambda: bmt_core.Mask(BASE, (), {"a": 10**5000}),
        lambda: bmt_core.Mask(BASE, (), {"a": {1: 2}}),
        lambda: bmt_core.Mask(BASE, (), {"a": {1, 2}}),
        lambda: bmt_core.Mask(BASE, (), {"a": b"x"}),
        lambda: bmt_core.Mask(BASE, (), {"a": np.int64(1)}),
    ],
)
def test_metadata_outside_json_is_refused(build):
    with pytest.raises(bmt_core.BadMetadata):
        build()


def test_recursive_metadata_is_refused():
    loop: dict = {}
    loop["loop"] = loop
    with pytest.raises(bmt_core.BadMetadata):
        bmt_core.Mask(BASE, (), loop)


def test_a_model_id_has_bounded_length():
    assert bmt_core.Base("é" * 512, "ab" * 32)
    for text in ("é" * 513, "\ud800"):
        with pytest.raises(bmt_core.MaskError):
            bmt_core.Base(text, "ab" * 32)
