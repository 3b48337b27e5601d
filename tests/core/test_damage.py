"""Damaged files are refused with a typed error."""

from __future__ import annotations

import bmt_core
import numpy as np
import pytest

from tests.support.masks import mask_of_shapes


@pytest.fixture(scope="module", params=["gaps", "packbits"])
def file(request) -> tuple[bmt_core.Mask, bytes]:
    mask = mask_of_shapes(0, [(4, 10), (3, 7)], 0.2)
    return mask, bmt_core.encode(mask, request.param)


def test_every_truncation_is_refused(file):
    _, data = file
    for length in range(len(data)):
        with pytest.raises(bmt_core.FormatError):
            bmt_core.decode(data[:length])


def test_every_flipped_bit_is_refused(file):
    _, data = file
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(bmt_core.BmtError):
            bmt_core.decode(bytes(damaged))


@pytest.mark.parametrize("extra", [b"\0", b"PK\x03\x04", bytes(100)])
def test_trailing_bytes_are_refused(file, extra):
    with pytest.raises(bmt_core.TrailingBytes):
        bmt_core.decode(file[1] + extra)


def test_expected_base_and_limits(file):
    mask, data = file
    with pytest.raises(bmt_core.BaseMismatch, match="cdcdcdcd"):
        bmt_core.decode(data, expect_base="ab" * 32)
    geometry = {t.name: t.shape for t in mask.tensors}
    limits = bmt_core.Limits.for_geometry(geometry, max_sparsity=0.5)
    assert bmt_core.decode(data, limits=limits, expect_base=mask.base) == mask
    with pytest.raises(bmt_core.TooManyZeros):
        bmt_core.decode(data, limits=bmt_core.Limits.for_geometry(geometry, max_sparsity=0.1))
    with pytest.raises(bmt_core.BaseMismatch):
        bmt_core.decode(data, limits=bmt_core.Limits.for_geometry({"t0": (4, 10)}, 0.5))
    shapes = {**geometry, "t0": (10, 4)}
    with pytest.raises(bmt_core.BaseMismatch):
        bmt_core.decode(data, limits=bmt_core.Limits.for_geometry(shapes, 0.5))
    with pytest.raises(bmt_core.TooLarge):
        bmt_core.decode(data, limits=bmt_core.Limits(max_file_bytes=len(data) - 1))


@pytest.mark.parametrize("codec", ["gaps", "packbits"])
def test_limits_of_a_base_admit_its_mask_with_the_most_zeros(codec):
    mask = mask_of_shapes(1, [(64, 64)] * 3, 0.25)
    geometry = {t.name: t.shape for t in mask.tensors}
    data = bmt_core.encode(mask, codec)
    assert bmt_core.decode(data, limits=bmt_core.Limits.for_geometry(geometry, 0.25)) == mask


@pytest.mark.parametrize(
    "build",
    [
        lambda: bmt_core.TensorMask("t", (2, 2), np.array([1, 1])),
        lambda: bmt_core.TensorMask("t", (2, 2), np.array([2, 1])),
        lambda: bmt_core.TensorMask("t", (2, 2), np.array([4])),
        lambda: bmt_core.TensorMask("t t", (2, 2), np.array([1])),
        lambda: bmt_core.TensorMask("t", (0, 2), np.array([], np.uint32)),
        lambda: bmt_core.Base("m", "xyz"),
        lambda: bmt_core.Mask(
            bmt_core.Base("m", "ab" * 32), (bmt_core.TensorMask("t", (2, 2), np.array([1])),) * 2
        ),
        lambda: bmt_core.encode(mask_of_shapes(0, [(2, 2)], 0.5), "rar"),
    ],
)
def test_invalid_masks_cannot_be_built(build):
    with pytest.raises(bmt_core.MaskError):
        build()


@pytest.mark.parametrize(
    "metadata",
    [{"a": float("nan")}, {"a": object()}, {1: 2}, {"a": "x" * 70000}, {"a": [[[[[[]] * 1] * 1]]]}],
)
def test_metadata_that_cannot_be_stored_is_refused(metadata):
    deep: dict = {"a": 1}
    for _ in range(20):
        deep = {"a": deep}
    with pytest.raises(bmt_core.BadMetadata):
        bmt_core.Mask(
            bmt_core.Base("m", "ab" * 32), (), deep if metadata == {"a": [[[[[[]]]]]]} else metadata
        )
