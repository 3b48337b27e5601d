"""Mask algebra equals set algebra."""

from __future__ import annotations

import bmt_core
import numpy as np
import pytest

from tests.support.masks import mask_of_shapes

SHAPES = [(30, 40), (20, 20)]


def sets(mask):
    return {t.name: set(t.positions.tolist()) for t in mask.tensors}


@pytest.mark.parametrize("seed", range(5))
def test_operations_match_python_sets(seed):
    a, b = mask_of_shapes(seed, SHAPES, 0.3), mask_of_shapes(seed + 100, SHAPES, 0.2)
    for operation, same in (
        (bmt_core.union, set.union),
        (bmt_core.intersection, set.intersection),
        (bmt_core.difference, set.difference),
        (bmt_core.symmetric_difference, set.symmetric_difference),
    ):
        x, y = sets(a), sets(b)
        assert sets(operation(a, b)) == {n: same(x[n], y[n]) for n in x}
    both = sum(len(sets(a)[n] & sets(b)[n]) for n in sets(a))
    diff = bmt_core.compare(a, b)
    assert diff.total.both == both
    assert diff.total.only_a + both == a.zeros
    assert diff.total.only_b + both == b.zeros
    assert bmt_core.jaccard(a, b) == both / (a.zeros + b.zeros - both)


def test_a_symmetric_difference_turns_one_mask_into_the_other():
    a, b = mask_of_shapes(0, SHAPES, 0.3), mask_of_shapes(1, SHAPES, 0.3)
    flips = bmt_core.symmetric_difference(a, b)
    assert bmt_core.symmetric_difference(a, flips) == b


def test_masks_of_different_bases_are_refused():
    a = mask_of_shapes(0, SHAPES, 0.3)
    other = bmt_core.Mask(bmt_core.Base("o", "12" * 32), a.tensors)
    with pytest.raises(bmt_core.BaseMismatch):
        bmt_core.union(a, other)
    with pytest.raises(bmt_core.BaseMismatch):
        bmt_core.compare(a, mask_of_shapes(0, [(40, 30), (20, 20)], 0.3))


def test_identity_ignores_metadata_and_codec_but_not_the_base():
    a = mask_of_shapes(0, SHAPES, 0.3)
    again = bmt_core.Mask(bmt_core.Base("another id", "cd" * 32), a.tensors[::-1], {"x": 1})
    assert again.digest == a.digest
    assert hash(again) == hash(a)
    assert bmt_core.Mask(bmt_core.Base("m", "12" * 32), a.tensors).digest != a.digest
    assert bmt_core.jaccard(a, again) == 1.0


def test_a_tensor_missing_in_one_mask_counts_as_unmasked():
    a = mask_of_shapes(0, SHAPES, 0.3)
    b = bmt_core.Mask(a.base, a.tensors[:1])
    assert sets(bmt_core.union(a, b)) == sets(a)
    assert sets(bmt_core.intersection(a, b)) == {**sets(a), "t1": set()}
    assert bmt_core.compare(b, a).tensors["t1"].only_b == a.tensors[1].zeros
    nothing = bmt_core.Mask(a.base, ())
    assert bmt_core.union(nothing, nothing).tensors == ()
    assert bmt_core.jaccard(nothing, nothing) == 1.0
    assert bmt_core.jaccard(a, nothing) == 0.0
    assert bmt_core.union(a, b, {"made": "by hand"}).metadata == {"made": "by hand"}


@pytest.mark.parametrize("shape", [(65536, 65536), (65536, 65537)])
def test_positions_keep_their_dtype_around_32_bits(shape):
    last = shape[0] * shape[1] - 1

    def one(*positions):
        tensor = bmt_core.TensorMask("w", shape, np.array(positions, np.uint64))
        return bmt_core.Mask(bmt_core.Base("m", "cd" * 32), (tensor,))

    a, b = one(0, (1 << 31) + 1, last), one(1, (1 << 31) + 1)
    for operation, wanted in (
        (bmt_core.union, [0, 1, (1 << 31) + 1, last]),
        (bmt_core.intersection, [(1 << 31) + 1]),
        (bmt_core.difference, [0, last]),
        (bmt_core.symmetric_difference, [0, 1, last]),
    ):
        (tensor,) = operation(a, b).tensors
        assert tensor.positions.tolist() == wanted
        assert tensor.positions.dtype == a.tensors[0].positions.dtype
