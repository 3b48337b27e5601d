"""Names of rows of a tensor: one spelling, as many rows as the shape has, each row once."""

from __future__ import annotations

import bmt_core
import numpy as np
import pytest
from bmt_core.gates.rows import Rows, overlap

BASE = bmt_core.Base("m", "ab" * 32)


def tensor(name: str, rows: int) -> bmt_core.TensorMask:
    return bmt_core.TensorMask(name, (rows, 4), np.array([0], np.uint32))


def test_a_name_and_its_rows():
    assert Rows.parse("w.weight[0:48]") == Rows("w.weight", 0, 48)
    assert str(Rows("w[0:1]", 7, 9)) == "w[0:1][7:9]"
    assert Rows.parse("w[0:1][7:9]") == Rows("w[0:1]", 7, 9)


@pytest.mark.parametrize(
    "name", ["w", "w[0]", "w[:3]", "w[0:]", "w[00:3]", "w[0:03]", "w[-1:2]", "[0:3]", "w[0:3]x"]
)
def test_other_names_are_whole_tensors(name):
    assert Rows.parse(name) is None
    assert bmt_core.Mask(BASE, (tensor(name, 3),)).tensors[0].name == name


@pytest.mark.parametrize(("name", "rows"), [("w[0:3]", 2), ("w[3:3]", 1), ("w[5:3]", 2)])
def test_the_rows_are_as_many_as_the_shape_has(name, rows):
    with pytest.raises(bmt_core.MaskError, match="rows, and the shape"):
        tensor(name, rows)


@pytest.mark.parametrize(
    ("names", "same"),
    [
        (["w[0:2]", "w[2:4]", "v[0:2]", "v"[:0] + "x"], None),
        (["w[0:2]", "w[1:3]"], ("w[0:2]", "w[1:3]")),
        # Names ascend as bytes, so rows 10 and 9 are not in order.
        (["w[10:12]", "w[8:11]"], ("w[8:11]", "w[10:12]")),
        (["w", "w[0:1]"], ("w", "w[0:1]")),
    ],
)
def test_no_row_is_named_twice(names, same):
    assert overlap(names) == same
    sizes = [(r.count if (r := Rows.parse(n)) else 4) for n in names]
    tensors = tuple(tensor(n, size) for n, size in zip(names, sizes, strict=True))
    if same is None:
        mask = bmt_core.Mask(BASE, tensors)
        assert bmt_core.decode(bmt_core.encode(mask)) == mask
    else:
        with pytest.raises(bmt_core.MaskError, match="rows in common"):
            bmt_core.Mask(BASE, tensors)


@pytest.mark.parametrize(
    "operation",
    [
        bmt_core.union,
        bmt_core.intersection,
        bmt_core.difference,
        bmt_core.symmetric_difference,
        bmt_core.compare,
        bmt_core.jaccard,
    ],
)
def test_masks_that_name_the_same_rows_differently_are_not_combined(operation):
    whole, part = (bmt_core.Mask(BASE, (t,)) for t in (tensor("w", 4), tensor("w[0:2]", 2)))
    for pair in ((whole, part), (part, whole)):
        with pytest.raises(bmt_core.MaskError, match="name the same weights differently"):
            operation(*pair)
    other = bmt_core.Mask(BASE, (tensor("w[2:4]", 2),))
    operation(part, other)
